# SPDX-License-Identifier: Apache-2.0
"""Memory limits: population that a memory cgroup has no room for is refused, or
stops with the range it came to, and the OOM killer has nothing to do."""
import contextlib
import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

from conftest import BOOT_SECONDS, stop, wait_for

MIB = 1 << 20
ROOT = pathlib.Path("/sys/fs/cgroup")


class Cgroup:
    def __init__(self, path):
        self.path = path

    def write(self, file, value):
        (self.path / file).write_text(str(value))

    def read(self, file):
        return (self.path / file).read_text()

    def event(self, name):
        return int(re.search(rf"^{name} (\d+)$", self.read("memory.events"), re.M)[1])

    def enter(self):
        """For Popen's preexec_fn."""
        self.write("cgroup.procs", os.getpid())

    def start(self, argv):
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, preexec_fn=self.enter)

    def run(self, argv):
        with self.start(argv) as process:
            out, errors = process.communicate(timeout=BOOT_SECONDS)
        return process.returncode, out.decode(), errors.decode()


@contextlib.contextmanager
def cgroup(name, parent=ROOT):
    if not (ROOT / "cgroup.controllers").exists():
        pytest.skip("no cgroup v2")
    path = parent / name
    path.mkdir()
    try:
        yield Cgroup(path)
    finally:
        for _ in range(100):  # the last process may still be on its way out
            with contextlib.suppress(OSError):
                path.rmdir()
                break
            time.sleep(0.1)


def no_oom(group):
    return group.event("oom_kill") == 0 and group.event("oom") == 0


@pytest.mark.parametrize("populate", ["host", "full", "background"])
@pytest.mark.parametrize("limit", ["memory.max", "memory.high"])
def test_too_small_a_cgroup_is_refused(quire, limit, populate):
    with cgroup("quire-small") as group:
        group.write(limit, 200 * MIB)
        status, out, errors = group.run(
            quire.argv("true", memory=f"256M,populate={populate}"))
        assert (status, out, errors.count("\n")) == (1, "", 1), errors
        assert f"273 MiB of memory are needed, and {group.path}/{limit} leaves" in errors
        assert "of its 200 MiB" in errors
        assert no_oom(group)
        # nothing was taken: not even by the one that was refused
        assert int(group.read("memory.peak")) < 64 * MIB


def test_the_limit_may_be_a_parents(quire):
    with cgroup("quire-parent") as parent:
        parent.write("cgroup.subtree_control", "+memory")
        parent.write("memory.max", 200 * MIB)
        with cgroup("vm", parent.path) as group:
            status, _, errors = group.run(quire.argv("true", memory="256M,populate=host"))
            assert status == 1 and f"{parent.path}/memory.max leaves" in errors, errors


def test_overcommit_is_legal(quire):
    """Without population nothing is asked: what is not touched costs nothing."""
    with cgroup("quire-over") as group:
        group.write("memory.max", 500 * MIB)
        status, out, errors = group.run(quire.argv("true", memory="1G"))
        assert status == 0 and "quire-guest: exit 0" in out, out + errors


def test_what_fits_runs(quire):
    """Up to the limit, with all of the memory used by the guest."""
    with cgroup("quire-fits") as group:
        group.write("memory.max", (512 + 2 + 16 + 40) * MIB)
        guest = group.start(quire.argv(
            "dd if=/dev/zero of=/dev/shm/x bs=1M count=200; echo filled",
            memory="512M,page=4k,populate=full"))
        wait_for(guest, "filled")
        guest.communicate(timeout=BOOT_SECONDS)
        assert guest.returncode == 0 and no_oom(group)


def hog(group, size):
    """A process in the group that holds size bytes until it is killed."""
    script = f"import time; x = b'x' * {size}; print('full', flush=True); time.sleep(1000)"
    process = group.start(["/usr/bin/python3", "-c", script])
    assert process.stdout.readline() == b"full\n"
    return process


def wait_until_above(group, process, size):
    deadline = time.monotonic() + BOOT_SECONDS
    while int(group.read("memory.current")) < size:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def ends_cleanly(process, group, reason):
    """One line that names the range and the reason, status 1, no OOM kill."""
    _, errors = process.communicate(timeout=BOOT_SECONDS)
    errors = [line for line in errors.decode().splitlines() if not line.startswith("{")]
    assert process.returncode == 1 and len(errors) == 1, errors
    assert re.search(r"populate: guest memory 0x[0-9a-f]+-0x[0-9a-f]+: ", errors[0]), errors
    assert reason in errors[0], errors
    assert no_oom(group)


@pytest.mark.parametrize("populate", ["host", "full"])
def test_limit_lowered_while_populating(quire, populate):
    with cgroup("quire-lowered") as group:
        vm = group.start(quire.argv("true", memory=f"1536M,page=4k,populate={populate}"))
        wait_until_above(group, vm, 128 * MIB)
        group.write("memory.max", 700 * MIB)
        ends_cleanly(vm, group, f"memory cgroup {group.path}: ")


def test_neighbour_grows_while_populating(quire):
    with cgroup("quire-neighbour") as group:
        group.write("memory.max", 1300 * MIB)
        vm = group.start(quire.argv("true", memory="1G,page=4k,populate=full"))
        wait_until_above(group, vm, 64 * MIB)
        # Two that race for the last bytes are beyond what one of them can see.
        vm.send_signal(signal.SIGSTOP)
        neighbour = hog(group, 400 * MIB)
        vm.send_signal(signal.SIGCONT)
        try:
            ends_cleanly(vm, group, "left of memory.max 1300 MiB")
            assert neighbour.poll() is None
        finally:
            neighbour.kill()
            neighbour.communicate()


def test_many_starts_near_the_limit(quire):
    """A refusal leaves nothing behind that the next start would miss."""
    with cgroup("quire-again") as group:
        group.write("memory.max", 300 * MIB)
        for _ in range(3):
            status, _, errors = group.run(quire.argv("true", memory="512M,populate=host"))
            assert status == 1 and "memory.max" in errors, errors
        guest = group.start(quire.argv("sleep 1000", memory="200M,populate=host"))
        wait_for(guest, "quire-guest: init")
        assert stop(guest) == 130
        assert no_oom(group)
