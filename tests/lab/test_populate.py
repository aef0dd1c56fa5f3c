# SPDX-License-Identifier: Apache-2.0
"""Population on a kernel that has TDP and no call to fill it (6.1): the stub."""
import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def touch_on(kernel):
    quire = os.environ.get("QUIRE", str(ROOT / "build/quire"))
    done = subprocess.run(
        [ROOT / "lab/run", "--kernel", kernel, "--retries", "2", "--", quire, "bench", "touch",
         "--vcpus", "2", "--mib-per-vcpu", "32", "--page", "4k,thp", "--populate", "host,full",
         "--json"], stdout=subprocess.PIPE, text=True, timeout=600)
    assert done.returncode == 0
    return {(r["page"], r["populate"]): r for r in json.loads(done.stdout)["results"]}


def test_stub_on_6_1():
    rows = touch_on("6.1")
    for page in ("4k", "thp"):
        assert rows[page, "full"]["stage2"] == "stub"
        assert rows[page, "full"]["second_stage_faults"] == 0
        assert rows[page, "host"]["second_stage_faults"] > 0
