# SPDX-License-Identifier: Apache-2.0
"""tests/guest/conftest.py: which tests of guests get a second chance, and that it is said."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parent.parent / "guest/conftest.py"
WATCHED = """
class FakeWatch:
    def restart(self):
        self.exits = []

    def seen(self):
        return self.exits

WATCH = FakeWatch()
"""
TEST = """
import pathlib
import conftest
import pytest

tries = pathlib.Path({folder!r}) / "tries"

@pytest.fixture
def fresh():
    return []

def test_it(fresh):
    fresh.append(1)
    assert fresh == [1], "not the fixture of the first try"
    with open(tries, "a") as file:
        file.write("x")
    {fault}
    assert len(tries.read_text()) >= {needed}, {said!r}
"""


def outcome(folder, **what):
    """How often the test ran, and the results file."""
    (folder / "conftest.py").write_text(CONFTEST.read_text() + WATCHED)
    (folder / "test_it.py").write_text(TEST.format(folder=str(folder), **what))
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
                   cwd=folder, stdout=subprocess.DEVNULL, check=False,
                   env={**os.environ, "LAB_OUT": str(folder), "LAB_SHARD": "a", "QUIRE_LAB": "",
                        "PYTHONDONTWRITEBYTECODE": "1"})
    lines = (folder / "results-a.jsonl").read_text().splitlines()
    return len((folder / "tries").read_text()), [json.loads(line) for line in lines]


REGISTERS = "conftest.WATCH.exits.append('kvm_exit: rip 0xffffffffc0000000')"


@pytest.mark.parametrize("fault,said", [(REGISTERS, "no word"),
                                        ("pass", "Oops: int3: 0000 [#1]")])
def test_emulator_failed(tmp_path, fault, said):
    tries, results = outcome(tmp_path, fault=fault, said=said, needed=2)
    assert tries == 2
    assert [r.get("outcome") for r in results] == [None, "passed"]
    assert results[0]["repeated"].endswith("test_it.py::test_it") and results[0]["why"]


def test_twice_is_failed(tmp_path):
    tries, results = outcome(tmp_path, fault=REGISTERS, said="no word", needed=9)
    assert tries == 2 and results[-1]["outcome"] == "failed"


def test_no_fault_no_second_chance(tmp_path):
    tries, results = outcome(tmp_path, fault="pass", said="no word", needed=2)
    assert tries == 1 and [r["outcome"] for r in results] == ["failed"]


def test_fault_that_did_no_harm(tmp_path):
    tries, results = outcome(tmp_path, fault=REGISTERS, said="no word", needed=1)
    assert tries == 1 and [r["outcome"] for r in results] == ["passed"]
