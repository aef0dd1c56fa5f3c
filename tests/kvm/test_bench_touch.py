# SPDX-License-Identifier: Apache-2.0
"""quire bench touch: the numbers it prints, and how it refuses bad requests."""
import json
import os
import pathlib
import subprocess

import pytest

QUIRE = os.environ.get("QUIRE", "build/quire")
THP = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
POOL = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
FIELDS = {"populate", "page", "vcpus", "mib_per_vcpu", "populate_s",
          "first_pass_s", "second_pass_s", "second_stage_faults"}


def quire(*args):
    return subprocess.run([QUIRE, "bench", *args], capture_output=True,
                          text=True, timeout=300, check=False)


def need_kvm():
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no usable /dev/kvm")


def touch(*args):
    need_kvm()
    done = quire("touch", "--json", *args)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def moved():
    """Pages that the host has moved, swapped or let go so far: KVM forgets where they were."""
    counts = dict(line.split() for line in pathlib.Path("/proc/vmstat").read_text().splitlines())
    return [counts.get(name) for name in ("pgmigrate_success", "pgmigrate_fail", "pswpout",
                                          "numa_pte_updates", "thp_split_pmd")]


def touch_in_place(*args):
    """What is measured while the host moves nothing: each page moved is one more fault."""
    for _ in range(10):
        before, out = moved(), touch(*args)
        if moved() == before:
            break
    return out


def test_results_have_all_fields():
    out = touch("--vcpus", "2", "--mib-per-vcpu", "32", "--page", "4k",
                "--populate", "none,host")
    assert out["second_stage"] in ("shadow", "tdp", "unknown")
    assert [r["populate"] for r in out["results"]] == ["none", "host"]
    for result in out["results"]:
        assert FIELDS <= result.keys()
        assert (result["page"], result["vcpus"], result["mib_per_vcpu"]) == ("4k", 2, 32)
        assert result["first_pass_s"] > 0 and result["second_pass_s"] > 0
    none, host = out["results"]
    assert none["populate_s"] == 0 < host["populate_s"]


def test_one_fault_for_each_4k_page():
    # The second pass is short: whoever takes the CPU from it once makes it as long.
    for _ in range(10):
        result = touch_in_place("--mib-per-vcpu", "64", "--page", "4k",
                                "--populate", "none")["results"][0]
        assert result["second_stage_faults"] == 64 * 256
        if result["first_pass_s"] > 4 * result["second_pass_s"]:
            return
    pytest.fail(f"the second pass takes as long as the first: {result}")


def test_thp_takes_one_fault_for_each_2m():
    if "[never]" in THP.read_text():
        pytest.skip("transparent huge pages are off")
    result = touch("--mib-per-vcpu", "64", "--page", "thp",
                   "--populate", "host")["results"][0]
    # A host short of 2M pages backs some of them with 4K.
    assert 32 <= result["second_stage_faults"] < 64 * 256


def test_guest_page_4k():
    out = touch_in_place("--vcpus", "2", "--mib-per-vcpu", "16", "--page", "4k",
                         "--populate", "none", "--guest-page", "4k")
    assert out["guest_page"] == "4k"
    assert out["results"][0]["second_stage_faults"] == 2 * 16 * 256


def test_histogram_counts_every_first_write():
    out = touch("--vcpus", "2", "--mib-per-vcpu", "8", "--page", "4k",
                "--populate", "none,host", "--histogram")
    for result in out["results"]:
        first = result["first_touch"]
        assert first["count"] == 2 * 8 * 256
        assert sum(b["count"] for b in first["buckets"]) == first["count"]
        bounds = [b["le_ns"] for b in first["buckets"]]
        assert bounds == sorted(set(bounds))
        assert first["min_ns"] <= first["mean_ns"] <= first["max_ns"]
        assert first["p50_ns"] <= first["p99_ns"] <= first["max_ns"]
        assert first["max_ns"] <= bounds[-1]


def test_histogram_is_by_request():
    result = touch("--mib-per-vcpu", "8", "--populate", "none")["results"][0]
    assert "first_touch" not in result


def test_table_says_both_sides():
    need_kvm()
    done = quire("touch", "--mib-per-vcpu", "16", "--page", "4k")
    assert done.returncode == 0, done.stderr
    assert "shadow paging" in done.stdout or "TDP" in done.stdout
    assert "populate=host makes the first pass" in done.stdout


def test_hugetlb_pool_too_small(pool_lock):
    need_kvm()
    if not POOL.exists():
        pytest.skip("no 2 MiB hugetlb pages on this host")
    pages = int(POOL.read_text()) + 100
    done = quire("touch", "--mib-per-vcpu", str(2 * pages), "--page", "2m")
    assert done.returncode == 1
    assert "nr_hugepages" in done.stderr and done.stderr.count("\n") == 1


def test_more_memory_than_there_is():
    need_kvm()
    done = quire("touch", "--mib-per-vcpu", str(1 << 23), "--page", "4k")
    assert done.returncode == 1
    assert "MiB are available" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("args", [
    [], ["nosuch"], ["touch", "--nosuch"], ["touch", "--vcpus"],
    ["touch", "--vcpus", "0"], ["touch", "--vcpus", "x"],
    ["touch", "--vcpus", "1025"], ["touch", "--mib-per-vcpu", "-1"],
    ["touch", "--page", "8k"], ["touch", "--page", "1g"],
    ["touch", "--page", "4k,4k"], ["touch", "--populate", "none,"],
    ["touch", "--guest-page", "4k,2m"], ["touch", "--json=yes"],
    ["touch", "surplus"],
])
def test_wrong_usage(args):
    done = quire(*args)
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("quire bench")


@pytest.mark.parametrize("args", [["--help"], ["touch", "--help"]])
def test_help(args):
    done = quire(*args)
    assert done.returncode == 0 and done.stderr == ""
    assert "--mib-per-vcpu" in done.stdout
