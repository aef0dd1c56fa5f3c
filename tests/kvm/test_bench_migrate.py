# SPDX-License-Identifier: Apache-2.0
"""quire bench migrate: every variant measured, the guest's memory checked at the destination,
nothing left behind, and bad requests refused. Counts and fields, no times."""
import json
import os
import pathlib
import signal
import subprocess
import time

import pytest

from host_kit import locked

QUIRE = os.environ.get("QUIRE", "build/quire")
MIB = 1 << 20
FIGURES = ["total_s", "downtime_s", "silence_before_s", "silence_s", "rounds", "wire_bytes",
           "bytes_per_s", "copy_bytes_per_s", "copy_ratio", "second_stage_bytes",
           "first_pass_s", "steady_pass_s", "pass_ratio", "second_stage_faults"]
FOLLOWING = ["followed_bytes", "urgent_pages", "urgent_p50_s", "urgent_p99_s"]
# Fields that may be 0: nothing is mapped ahead where KVM cannot, or need not be.
MAY_BE_NONE = {"second_stage_bytes", "second_stage_faults", "silence_before_s"}


def command(*args):
    return [QUIRE, "bench", "migrate", *args]


def bench(*args):
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=300,
                          check=False)


def need_kvm():
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no usable /dev/kvm")


@pytest.fixture(autouse=True)
def places():
    """Directories of benches that are not there before: of one test at a time."""
    def look():
        return {str(p) for p in pathlib.Path("/tmp").glob("quire-bench-*")}
    with locked("bench"):
        before = look()
        yield lambda: look() - before


def test_every_variant(places):
    need_kvm()
    done = bench("--json", "--mib", "80", "--used-mib", "16", "--write-rate", "8",
                 "--streams", "1,3", "--stage2", "fill,none", "--vcpus", "2", "--runs", "2")
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert (out["mib"], out["used_mib"], out["vcpus"]) == (80, 16, 2)
    kinds = [(r["write_mib_per_s"], r["page"], r["transport"], r["streams"], r["stage2"])
             for r in out["results"]]
    assert kinds == [(write, "4k", transport, streams, stage2) for write in (0, 8)
                     for transport in ("unix", "tcp") for streams in (1, 3)
                     for stage2 in ("fill", "none")]
    for r in out["results"]:
        for figure in FIGURES:
            assert len(r[figure + "_runs"]) == 2
            assert r[figure] > 0 or figure in MAY_BE_NONE, (figure, r)
        # All of what is filled, once; the guest's own image besides.
        assert r["wire_bytes"] > 16 * MIB and r["rounds"] >= 2
        assert r["write_mib_per_s"] or r["wire_bytes"] < 20 * MIB
        if r["stage2"] == "none" or out["second_stage"] == "shadow":
            assert r["second_stage_bytes"] == 0
        elif out["second_stage"] == "tdp":
            assert r["second_stage_bytes"] >= 16 * MIB and r["second_stage_faults"] == 0
        if r["stage2"] == "none" and out["second_stage"] == "tdp":
            assert r["second_stage_faults"] >= 16 * MIB // 4096
    assert not places()


def test_modes(places):
    """What follows the VM is told, and what of it the guest waited for; all of it came."""
    need_kvm()
    done = bench("--json", "--mib", "80", "--used-mib", "16", "--write-rate", "64",
                 "--streams", "1", "--transport", "unix", "--runs", "1", "--mode",
                 "precopy,postcopy,hybrid")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [(r["write_mib_per_s"], r["mode"]) for r in results] == [
        (write, mode) for write in (0, 64) for mode in ("precopy", "postcopy", "hybrid")]
    for r in results:
        for figure in FIGURES:
            none = figure in MAY_BE_NONE or (figure == "rounds" and r["mode"] == "postcopy")
            assert r[figure] > 0 or none, (figure, r)
        if r["mode"] == "precopy":
            assert not any(r[figure] for figure in FOLLOWING), r
        if r["mode"] == "postcopy":
            assert r["followed_bytes"] > 16 * MIB, r
        assert r["urgent_p50_s"] <= r["urgent_p99_s"] and r["wire_bytes"] > 16 * MIB
        assert (r["urgent_pages"] > 0) == (r["urgent_p99_s"] > 0), r
    assert not places()


def test_slow_push():
    """The guest writes all of its memory before a tenth of it is pushed."""
    need_kvm()
    done = bench("--json", "--mib", "80", "--used-mib", "16", "--write-rate", "64",
                 "--streams", "1", "--transport", "unix", "--runs", "1", "--mode", "postcopy",
                 "--bandwidth", "8M")
    assert done.returncode == 0, done.stderr
    slept, wrote = json.loads(done.stdout)["results"]
    assert wrote["urgent_pages"] > 100 and wrote["urgent_pages"] > slept["urgent_pages"]


def test_table():
    need_kvm()
    done = bench("--mib", "80", "--used-mib", "8", "--transport", "unix", "--runs", "1")
    assert done.returncode == 0, done.stderr
    for word in ("downtime", "1st pass", "faults", "2 streams send"):
        assert word in done.stdout


@pytest.mark.parametrize("args,words", [
    (["--downtime", "1"], "--downtime 1"),
    (["--bandwidth", "x"], "--bandwidth x")])
def test_options_go_to_migrate(args, words, places):
    """Which says what is wrong with them; the bench ends, and its processes."""
    need_kvm()
    done = bench("--mib", "80", "--used-mib", "8", "--runs", "1", *args)
    assert done.returncode == 1 and words in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert not places()


def running(place):
    """Processes whose runtime directory that is."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if f"QUIRE_RUNTIME_DIR={place}\0".encode() in (entry / "environ").read_bytes():
                found.append(entry)
        except OSError:
            pass
    return found


def wait_for(what, done):
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_killed(sig, places):
    """Its guests go with it."""
    need_kvm()
    vm = subprocess.Popen(command("--mib", "80", "--used-mib", "8", "--bandwidth", "1M"))
    wait_for("its guests", lambda: places() and running(next(iter(places()))))
    place = next(iter(places()))
    vm.send_signal(sig)
    vm.wait(60)
    wait_for("their end", lambda: not running(place))
    subprocess.run(["rm", "-r", place], check=True)


@pytest.mark.parametrize("args", [
    ["--mib", "64", "--used-mib", "17"], ["--used-mib", "3009"], ["--streams", "65"],
    ["--streams", "0"], ["--streams", "1,,2"], ["--transport", "pigeon"],
    ["--transport", "unix,unix"], ["--stage2", "ioctl"], ["--page", "1g"], ["--runs", "0"],
    ["--runs", "100"], ["--tick", "0"], ["--write-rate", "0"], ["--vcpus", "65"], ["--json=1"],
    ["--mode"], ["--mode", "sideways"], ["--mode", "hybrid,hybrid"], ["--no-such"], ["surplus"],
])
def test_wrong_usage(args):
    done = bench(*args)
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" and done.stderr.count("\n") == 1
