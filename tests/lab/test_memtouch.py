# SPDX-License-Identifier: Apache-2.0
"""memtouch does what its options say, seen from the faults it causes."""

import json
import os
import re
import resource
import subprocess
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
PAGES = 2 * 8 * 256  # of two threads with 8 MiB
ENOUGH = 120  # seconds; a hang, not a slow machine


@pytest.fixture(scope="session")
def tool():
    done = subprocess.run([REPO / "lab/assets", "--print"], check=True,
                          capture_output=True, text=True)
    directory = re.search(r"^GUEST_TOOLS=(.*)$", done.stdout, re.M)[1]
    return Path(directory) / "memtouch"


def run(tool, *arguments, **more):
    """Result, standard error, and minor faults of the process."""
    with subprocess.Popen([tool, "--mib", "8", *arguments],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, **more) as process:
        out, errors = process.stdout.read(), process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, out, errors, usage.ru_minflt


def test_later_passes_find_the_memory_of_the_first(tool):
    status, out, errors, faults = run(tool, "--passes", "4")
    result = json.loads(out)
    assert (status, errors) == (0, "")
    assert len(result["passes_s"]) == 4 and min(result["passes_s"]) > 0
    assert (result["threads"], result["mib_per_thread"]) == (2, 8)
    assert result["fresh"] is False
    assert PAGES <= faults < 2 * PAGES


def test_fresh_maps_anew_in_every_pass(tool):
    status, out, errors, faults = run(tool, "--passes", "4", "--fresh")
    result = json.loads(out)
    assert (status, errors) == (0, "")
    assert len(result["passes_s"]) == 4 and result["fresh"] is True
    assert result["first_pass_s"] == result["passes_s"][0]
    assert result["second_pass_s"] == result["passes_s"][1]
    assert 4 * PAGES <= faults < 5 * PAGES


def test_progress_tells_of_each_pass(tool):
    status, out, errors, _ = run(tool, "--fresh", "--progress", "--passes", "3")
    assert status == 0
    took = re.findall(r"^memtouch: pass (\d) took ([\d.]+) s$", errors, re.M)
    assert [int(number) for number, _ in took] == [1, 2, 3]
    assert [float(s) for _, s in took] == json.loads(out)["passes_s"]


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_no_memory_is_an_error_not_a_hang(tool, fresh):
    limit = 512 << 20

    def scarce():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    status, out, errors, _ = run(tool, "--mib", "1024", *fresh,
                                 preexec_fn=scarce)
    assert status == 1 and out == ""
    assert "Cannot allocate memory" in errors


@pytest.mark.parametrize("arguments", [
    ["--write-rate", "5"], ["--threads", "0"], ["--passes", "1"], ["--passes", "17"], ["--fresh=1"],
    ["--mib", "x"], ["more"],
])
def test_usage(tool, arguments):
    status, out, errors, _ = run(tool, *arguments)
    assert status == 2 and out == ""
    assert "usage: memtouch" in errors


def test_asked_passes_wait_for_a_line(tool):
    status, out, errors, faults = run(tool, "--progress", "--passes", "3", "--ask",
                                      stdin=subprocess.DEVNULL)
    assert (status, out) == (1, "") and "Broken pipe" in errors
    with subprocess.Popen([tool, "--mib", "8", "--progress", "--passes", "3", "--ask"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        for number in (1, 2, 3):
            assert f"memtouch: pass {number} took" in process.stderr.readline()
            if number < 3:
                process.stdin.write("go\n")
                process.stdin.flush()
        assert len(json.loads(process.stdout.read())["passes_s"]) == 3


def addresses(pid, mib):
    """Of the memory, by its size, in 4 KiB pages of threads side by side."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    return [int(at, 16) for at, resident in
            re.findall(r"^([0-9a-f]+)-[0-9a-f]+ .*(?:\n\w+:.*)*?\nRss: +(\d+) kB$", text, re.M)
            if int(resident) >= mib << 10]


def test_cold_pass_is_elsewhere(tool):
    """And finds its memory there: nothing is faulted in again."""
    with subprocess.Popen([tool, "--mib", "8", "--threads", "1", "--progress", "--passes", "4",
                           "--ask"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        seen = []
        for number, line in enumerate(("go", "cold", "go"), 1):
            assert f"memtouch: pass {number} took" in process.stderr.readline()
            seen.append(addresses(process.pid, 8))
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
        process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0 and all(len(at) == 1 for at in seen)
    assert seen[0] == seen[1] != seen[2]
    assert usage.ru_minflt < PAGES


def resident_mib(pid):
    return int(re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(),
                         re.M)[1]) / 1024


def test_writes_while_it_waits(tool):
    """Around in 16 MiB of its own, and until the line comes only."""
    with subprocess.Popen([tool, "--mib", "8", "--threads", "1", "--progress", "--ask",
                           "--write-rate", "1000"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        assert "memtouch: pass 1 took" in process.stderr.readline()
        limit = time.monotonic() + ENOUGH
        while resident_mib(process.pid) < 8 + 16 and time.monotonic() < limit:
            time.sleep(0.05)
        assert 8 + 16 <= resident_mib(process.pid) < 8 + 16 + 8
        assert json.loads(process.communicate("go\n", timeout=ENOUGH)[0])["threads"] == 1
    assert process.returncode == 0


def test_rate_is_kept(tool):
    """What has come after a second and a half is no more than that."""
    with subprocess.Popen([tool, "--mib", "8", "--threads", "1", "--progress", "--ask",
                           "--write-rate", "4"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        began = time.monotonic()
        assert "memtouch: pass 1 took" in process.stderr.readline()
        time.sleep(1.5)
        resident, took = resident_mib(process.pid), time.monotonic() - began
        assert 8 < resident <= 8 + 4 + 4 * took
        process.communicate("go\n", timeout=ENOUGH)
