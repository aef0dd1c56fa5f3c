# SPDX-License-Identifier: Apache-2.0
"""quire bench restore: every way measured, the guest's memory verified after each, nothing
left behind, and bad requests refused. Counts and fields, no times."""
import json
import os
import subprocess

import pytest

from host_kit import locked

QUIRE = os.environ.get("QUIRE", "build/quire")
WAYS = ["eager", "private", "lazy", "working-set"]
MOMENTS = ["opened_s", "first_instruction_s", "first_pass_s", "resident_s"]


def bench(*args):
    return subprocess.run([QUIRE, "bench", "restore", *args], capture_output=True, text=True,
                          timeout=300, check=False)


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no usable /dev/kvm")
def test_every_way(tmp_path):
    with locked("bench"):
        done = bench("--json", "--mib", "64", "--set-mib", "1", "--spread", "16", "--page",
                     "4k,thp", "--runs", "2", "--dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert (out["mib"], out["set_mib"], out["spread"]) == (64, 1, 16)
    assert [(r["page"], r["memory"]) for r in out["results"]] == [
        (page, way) for page in ("4k", "thp") for way in WAYS]
    for result in out["results"]:
        for moment in MOMENTS:
            assert (moment in result) == ((moment, result["memory"]) != ("resident_s",
                                                                         "private"))
            if moment in result:
                assert result[moment] > 0
                assert len(result[f"{moment[:-2]}_runs_s"]) == 2
        assert result["opened_s"] <= result["first_instruction_s"] < result["first_pass_s"]
        assert 0 < result["first_pass_alone_s"] < result["first_pass_s"]
        assert result["kvm_faults"] is None or result["kvm_faults_runs"][0] >= 0
        # With the set ahead there may be nothing to wait for.
        if result["memory"] != "working-set":
            assert (result["service"]["count"] > 0) == (result["memory"] == "lazy")
        assert (result["working_set_bytes"] > 0) == (result["memory"] == "working-set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args,words", [
    (["--mib", "64", "--set-mib", "65"], "more than the guest's memory"),
    (["--mib", "64", "--set-mib", "8", "--spread", "16"], "more than its share"),
    (["--page", "2m"], "--page"), (["--spread", "513"], "--spread"), (["--runs", "0"], "--runs"),
    (["--dir", "/nowhere"], "/nowhere"),
])
def test_refused(args, words):
    if "/nowhere" in args and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no usable /dev/kvm")
    done = bench(*args)
    assert done.returncode in (1, 2) and done.stdout == ""
    assert words in done.stderr, done.stderr
