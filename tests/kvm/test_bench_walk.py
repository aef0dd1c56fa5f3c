# SPDX-License-Identifier: Apache-2.0
"""quire bench walk: what it prints, and that no fault disturbs what it times."""
import json
import os
import pathlib
import subprocess

import pytest

QUIRE = os.environ.get("QUIRE", "build/quire")
THP = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
FIELDS = {"mib", "guest_page", "page", "ns_per_access", "min_ns_per_access",
          "max_ns_per_access", "ratio_to_best", "second_stage_faults",
          "theory_references_per_tlb_miss", "cache_misses_per_access",
          "dtlb_misses_per_access"}
# (guest page, host page): references per miss, four levels on both sides.
THEORY = {
    "tdp": {("4k", "4k"): 24, ("4k", "thp"): 19, ("2m", "4k"): 19,
            ("2m", "thp"): 15},
    "shadow": {("4k", "4k"): 4, ("4k", "thp"): 4, ("2m", "4k"): 4,
               ("2m", "thp"): 3},
}


def quire(*args):
    return subprocess.run([QUIRE, "bench", "walk", *args], capture_output=True,
                          text=True, timeout=300, check=False)


def need_kvm():
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no usable /dev/kvm")


def walk(*args):
    need_kvm()
    done = quire("--json", "--steps", "20000", "--rounds", "3", *args)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("node", ["page", "line"])
def test_every_combination_without_faults(node):
    if "[never]" in THP.read_text():
        pytest.skip("transparent huge pages are off")
    out = walk("--mib", "4,8", "--node", node)
    assert (out["node"], out["steps"], out["rounds"]) == (node, 20000, 3)
    assert [(r["mib"], r["guest_page"], r["page"]) for r in out["results"]] == [
        (mib, guest, host) for mib in (4, 8) for guest in ("4k", "2m")
        for host in ("4k", "thp")]
    for r in out["results"]:
        assert FIELDS <= r.keys()
        assert 0 < r["min_ns_per_access"] <= r["ns_per_access"] <= r["max_ns_per_access"]
        assert r["second_stage_faults"] in (0, None)
        expected = THEORY.get(out["second_stage"], {})
        assert r["theory_references_per_tlb_miss"] == expected.get(
            (r["guest_page"], r["page"]))
        if "pages_4k" in r and r["page"] == "4k":
            assert r["pages_2m"] == 0 and r["pages_4k"] >= r["mib"] * 256
    for mib in (4, 8):
        ratios = [r["ratio_to_best"] for r in out["results"] if r["mib"] == mib]
        assert min(ratios) == 1


def test_one_combination():
    out = walk("--mib", "2", "--guest-page", "2m", "--page", "4k")
    assert len(out["results"]) == 1
    assert out["results"][0]["ratio_to_best"] == 1


def test_table():
    need_kvm()
    done = quire("--mib", "2", "--page", "4k", "--steps", "1000")
    assert done.returncode == 0, done.stderr
    assert "shadow paging" in done.stdout or "TDP" in done.stdout
    assert "in theory" in done.stdout
    assert len(done.stdout.splitlines()) >= 7


def test_more_memory_than_there_is():
    need_kvm()
    done = quire("--mib", str(1 << 23), "--guest-page", "2m")
    assert done.returncode == 1
    assert "MiB are available" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("args", [
    ["--nosuch"], ["--mib"], ["--mib", "0"], ["--mib", "16,"],
    ["--mib", "1,2,3,4,5,6,7,8,9"], ["--page", "1g"], ["--page", "4k,4k"],
    ["--guest-page", "thp"], ["--node", "page,line"], ["--node", "word"],
    ["--steps", "0"], ["--rounds", "100"], ["--json=yes"], ["surplus"],
])
def test_wrong_usage(args):
    done = quire(*args)
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("quire bench walk")


def test_help():
    done = quire("--help")
    assert done.returncode == 0 and done.stderr == ""
    assert "--guest-page" in done.stdout
