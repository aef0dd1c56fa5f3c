# SPDX-License-Identifier: Apache-2.0
"""Guest memory filled ahead, kept and rebuilt, seen through a Linux guest."""
import ctypes
import json
import os
import pathlib
import re
import subprocess
import time

import pytest

from conftest import BOOT_SECONDS, stop, wait_for

MIB = 1 << 20
THP = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
MADV_COLLAPSE = 25
SYS_PIDFD_OPEN, SYS_PROCESS_MADVISE = 434, 440

TOUCH = "memtouch --threads 2 --mib 64"


@pytest.fixture
def thp():
    """Sets the host's transparent huge pages, and puts them back."""
    before = re.search(r"\[(\w+)\]", THP.read_text()).group(1)
    yield THP.write_text
    THP.write_text(before)


def in_pages(memory, table):
    coverage = memory["coverage"][table]
    return coverage["4k_bytes"] + coverage["2m_bytes"] + coverage["1g_bytes"]


def covered(summary, table="second_stage"):
    return in_pages(summary["memory"], table)


@pytest.mark.parametrize("page", ["4k", "thp"])
def test_full_leaves_no_faults(quire, page):
    """Not one of the guest's 4K pages is faulted in, from the first
    instruction of its kernel to its power-off."""
    done = quire.run(TOUCH, cpus=2, memory=f"size=512M,page={page},populate=full")
    assert done.status == 0 and done.job_status == 0, done.errors
    memory = done.summary["memory"]
    assert memory["stage2"] == "ioctl"
    assert memory["population"]["second_stage_bytes"] == 512 * MIB
    assert covered(done.summary) >= 512 * MIB
    # the LAPIC's page and what else is no RAM
    assert done.summary["second_stage_faults"] < 20


def test_stub_leaves_no_faults(quire):
    done = quire.run(TOUCH, cpus=2, memory="size=512M,page=4k,populate=full,stage2=stub")
    assert done.status == 0 and done.job_status == 0, done.errors
    assert done.summary["memory"]["stage2"] == "stub"
    assert covered(done.summary) >= 512 * MIB
    assert done.summary["second_stage_faults"] < 20


def test_host_leaves_the_second_stage(quire):
    done = quire.run(TOUCH, cpus=2, memory="size=512M,page=4k,populate=host")
    assert done.status == 0 and done.job_status == 0, done.errors
    assert covered(done.summary, "host") == 512 * MIB
    assert done.summary["second_stage_faults"] > 128 * MIB / 4096


class IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]


def guest_ram(pid, size):
    """The mapping of exactly that size."""
    for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
        start, end = (int(x, 16) for x in line.split()[0].split("-"))
        if end - start == size:
            return start
    pytest.fail("no mapping of guest RAM's size")


def collapse(pid, start, size):
    """As an administrator's tool would: from another process, 2 MiB at a time,
    some of which the kernel may be too busy for. Returns how much it did."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(SYS_PIDFD_OPEN, pid, 0)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    done = 0
    for at in range(start, start + size, 2 * MIB):
        vec = IoVec(at, 2 * MIB)
        for _ in range(5):
            if libc.syscall(SYS_PROCESS_MADVISE, fd, ctypes.byref(vec), 1,
                            MADV_COLLAPSE, 0) == 2 * MIB:
                done += 2 * MIB
                break
            time.sleep(0.05)
    os.close(fd)
    return done


class Looking:
    """At a guest's memory, by its statistics: the same as in its summary."""

    def __init__(self, quire, path):
        self.argv = [quire.binary, "ctl", str(path), "vm.memory-stats"]

    def look(self):
        return json.loads(subprocess.run(self.argv, capture_output=True, check=True).stdout)

    def wait(self, condition):
        deadline = time.monotonic() + BOOT_SECONDS
        while not condition(memory := self.look()):
            assert time.monotonic() < deadline, memory
            time.sleep(0.5)


def run_beside(quire, memory, beside):
    """A guest that waits; what happens beside it; then its summary."""
    report, api = quire.folder / "beside.json", quire.folder / "api"
    process = quire.start(end="stay", cpus=2, memory=memory,
                          extra=["--summary-json", str(report), "--api-socket", str(api)])
    try:
        wait_for(process, "quire-guest: init")
        beside(process.pid, Looking(quire, api))
        assert stop(process) == 130
    finally:
        process.kill()
        process.wait()
    return json.loads(report.read_text())


def test_background_fills_while_it_runs(quire):
    """All of memory, though the guest uses only some of it, which waits meanwhile."""
    def beside(pid, looking):
        looking.wait(lambda memory: memory["background"]["populate"]["bytes"] >= 512 * MIB
                     and in_pages(memory, "second_stage") >= 512 * MIB)

    summary = run_beside(
        quire, "size=512M,page=4k,populate=background,background-rate=0", beside)
    populate = summary["memory"]["background"]["populate"]
    assert populate["bytes"] == 512 * MIB
    assert populate["failed_bytes"] == 0
    assert covered(summary) >= 512 * MIB
    assert covered(summary, "host") == 512 * MIB


def test_repair_after_somebody_elses_zap(quire, thp):
    """4K pages become 2M ones behind our back: the second stage loses them,
    and has them again a little later."""
    thp("never")

    done = []

    def beside(pid, looking):
        thp("madvise")
        done.append(collapse(pid, guest_ram(pid, 512 * MIB), 256 * MIB))
        looking.wait(lambda memory: memory["background"]["zapped_bytes"] >= 2 * MIB
                     and memory["coverage"]["second_stage"]["2m_bytes"] >= done[0] - 4 * MIB
                     and in_pages(memory, "second_stage") >= 512 * MIB)

    summary = run_beside(quire, "size=512M,page=thp,populate=full", beside)
    background = summary["memory"]["background"]
    assert done[0] >= 64 * MIB
    assert background["zaps_seen"] >= 1
    assert background["zapped_bytes"] >= 2 * MIB
    assert background["repair"]["failed_bytes"] == 0
    # Large ones, as the host's are now. KVM may keep a unit in 4K pages where
    # the machine's own pages interrupt it; coverage below is exact.
    second = summary["memory"]["coverage"]["second_stage"]
    assert second["2m_bytes"] >= done[0] - 4 * MIB
    assert covered(summary) >= 512 * MIB


def test_coalesce_rebuilds_large_pages(quire, thp):
    thp("never")

    def beside(pid, looking):
        seen = []

        def is_done(memory):
            """And what was rebuilt in the host is in the second stage, with nothing on its
            way: it was the same two seconds before."""
            seen.append((memory["background"]["coalesced_units"], memory["coverage"]))
            host, second = (memory["coverage"][t]["2m_bytes"] for t in ("host", "second_stage"))
            return (seen[-1][0] >= 64 and host == second >= 128 * MIB
                    and in_pages(memory, "second_stage") >= 256 * MIB
                    and seen[-5:] == seen[-1:] * 5)
        thp("madvise")
        looking.wait(is_done)

    summary = run_beside(
        quire, "size=256M,page=thp,populate=full,coalesce=on,background-rate=0", beside)
    memory = summary["memory"]
    assert memory["background"]["coalesced_units"] >= 64
    assert memory["coverage"]["host"]["2m_bytes"] >= 128 * MIB
    assert memory["coverage"]["second_stage"]["2m_bytes"] == memory["coverage"]["host"]["2m_bytes"]
    assert covered(summary) >= 256 * MIB


def test_interrupted_population_ends(quire):
    """SIGINT while memory is being filled: status 130, nothing left."""
    process = subprocess.Popen(
        quire.argv(memory="size=2G,page=4k,populate=full"), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + BOOT_SECONDS
    while b"progress" not in (line := process.stderr.readline()):
        assert line or process.poll() is None
        assert time.monotonic() < deadline
    assert stop(process) == 130


@pytest.mark.parametrize("memory,method,entries", [
    ("512M", "bitmap", 0), ("512M,dirty-log=ring,dirty-ring=1024", "ring", 1024)])
def test_linux_guest_has_a_log_prepared(quire, memory, method, entries):
    got = quire.run("true", cpus=2, memory=memory)
    assert got.status == 0 and got.job_status == 0, got
    log = got.summary["memory"]["dirty_log"]
    assert (log["method"], log["ring_entries"], log["tracking"]) == (method, entries, False)
