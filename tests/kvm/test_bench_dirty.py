# SPDX-License-Identifier: Apache-2.0
"""quire bench dirty: both methods measured, and bad requests refused."""
import json
import os
import subprocess

import pytest

QUIRE = os.environ.get("QUIRE", "build/quire")
TIMES = ["first_start_s", "start_s", "start_s_per_gib", "first_round_s", "plain_pass_s",
         "tracked_pass_s", "round_s", "idle_round_s", "log_ns_per_page", "clear_ns_per_page",
         "harvested_pass_s", "slowdown", "harvest_slowdown", "stop_s", "after_pass_s"]


def quire(*args):
    return subprocess.run([QUIRE, "bench", "dirty", *args], capture_output=True,
                          text=True, timeout=300, check=False)


def need_kvm():
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no usable /dev/kvm")


def test_both_methods():
    need_kvm()
    done = quire("--json", "--vcpus", "2", "--mib-per-vcpu", "8", "--page", "4k",
                 "--rounds", "2", "--ring-entries", "1024")
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["second_stage"] in ("shadow", "tdp", "unknown") and out["rounds"] == 2
    bitmap, ring = out["results"]
    assert (bitmap["method"], ring["method"]) == ("bitmap", "ring")
    for result in bitmap, ring:
        assert (result["page"], result["vcpus"], result["mib_per_vcpu"]) == ("4k", 2, 8)
        assert result["ram_bytes"] >= 16 << 20
        assert all(result[name] > 0 for name in TIMES), result
    assert bitmap["ring_entries"] == bitmap["ring_full"] == 0
    assert ring["ring_entries"] == 1024
    # 2048 pages a pass do not fit
    assert ring["ring_full"] >= 2 and ring["ring_full_per_pass"] >= 1


def test_no_ring_overflow_where_all_fits():
    need_kvm()
    done = quire("--json", "--mib-per-vcpu", "8", "--page", "4k", "--rounds", "1",
                 "--method", "ring", "--ring-entries", "8192")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["ring_full_per_pass"] == 0


def test_table():
    need_kvm()
    done = quire("--mib-per-vcpu", "4", "--page", "4k", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    for word in "4k bitmap", "4k ring", "start, ms per GiB", "times one without":
        assert word in done.stdout


@pytest.mark.parametrize("args", [
    ["--method", "auto"], ["--method", "bitmap,bitmap"], ["--ring-entries", "1000"],
    ["--ring-entries", "131072"], ["--rounds", "0"], ["--rounds", "100"], ["--vcpus", "0"],
    ["--page", "1g"], ["--json=1"], ["surplus"],
])
def test_wrong_usage(args):
    done = quire(*args)
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" and done.stderr.count("\n") == 1


def test_ring_too_small_for_this_kvm():
    need_kvm()
    done = quire("--method", "ring", "--ring-entries", "1", "--mib-per-vcpu", "4")
    assert done.returncode == 1
    assert "ring of 1 entries" in done.stderr and done.stderr.count("\n") == 1
