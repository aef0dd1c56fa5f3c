# SPDX-License-Identifier: Apache-2.0
"""Dirty tracking loses no write, and the test of that would notice if it did.

Runs dirty_torture (its source says what it does) with fixed seeds. tests/guest
has the same in the lab.
"""
import json
import os
import pathlib
import subprocess

import pytest

THP = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
SKIPPED = 77
IN_LAB = bool(os.environ.get("QUIRE_LAB"))
# The emulator under the lab gives a guest its host's registers now and then
# (lab/README.md, "Faults of the emulator"): less work, and a second chance.
SECONDS, PHASES = (3, 2) if IN_LAB else (6, 3)
# So small that it overflows all the time; the smallest that KVM takes here.
RING = 256 if IN_LAB else 1024
ATTEMPTS = 3 if IN_LAB else 1


def torture_program():
    build = os.environ.get("QUIRE_BUILD")
    if not build:
        build = pathlib.Path(os.environ.get("QUIRE", "build/quire")).parent
    return pathlib.Path(build) / "tests" / "kvm" / "dirty_torture"


def torture(*args, timeout=300):
    for _ in range(ATTEMPTS):
        done = subprocess.run([torture_program(), *map(str, args)], capture_output=True,
                              text=True, timeout=timeout, check=False)
        # A guest that the emulator killed says nothing; a lost page always counts.
        if "triple fault" not in done.stderr:
            break
        print("repeated:", done.stderr)
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    print(done.stderr, done.stdout)
    assert done.returncode in (0, 1) and done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def much_happened(result, phases):
    """Nothing lost means little where little was written."""
    return (result["rounds"] > 3 * phases
            and result["guest_stores"] > 1000 and result["vmm_writes"] > 100
            and result["pages_kvm"] > 1000 and result["pages_vmm"] > 100
            and (result["ring_full"] > 0) == (result["method"] == "ring"))


@pytest.mark.parametrize("page", ["4k", "thp"])
@pytest.mark.parametrize("method", ["bitmap", "ring"])
def test_nothing_is_lost(method, page):
    if page == "thp" and "[never]" in THP.read_text():
        pytest.skip("transparent huge pages are off")
    # A busy machine gets longer to do as much; what is lost fails at once.
    for seconds in (SECONDS, 4 * SECONDS, 16 * SECONDS):
        status, result = torture("--method", method, "--page", page, "--seconds", seconds,
                                 "--phases", PHASES, "--vcpus", 2, "--takers", 3, "--mib", 32,
                                 "--ring-entries", RING, "--seed", 7)
        assert status == 0 and result["pages_different"] == 0, result
        assert result["starts"] == PHASES
        assert result["pages_copied"] == result["pages_taken"]
        assert result["pages_compared"] >= PHASES * result["mib"] * 256
        if much_happened(result, PHASES):
            return
    pytest.fail(f"too little happened: {result}")


@pytest.mark.parametrize("method,fault", [
    ("ring", "reset-late"), ("bitmap", "clear-late"),
    ("bitmap", "mark-early"), ("ring", "mark-early")])
def test_wrong_order_is_noticed(method, fault):
    """Arming after handing out, marking before writing: pages are lost, and it shows."""
    # Where the guest gets little of a CPU (some 1000 stores in a run) five were once
    # too few to meet it; each that comes after costs time only if none before did.
    for seed in range(1, 16):
        status, result = torture("--method", method, "--break", fault, "--seconds", 3,
                                 "--phases", 3, "--mib", 32, "--ring-entries", RING,
                                 "--seed", seed)
        if result["pages_different"]:
            break
    assert status == 1 and result["pages_different"] > 0, result
