# SPDX-License-Identifier: Apache-2.0
"""tests/run: what its summary says of what failed, for whoever has only the end of a log."""
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
LONG = """
def helper():
    raise AssertionError("first\\n" + "\\n".join(f"console {i} " + "x" * i for i in range(200)))

def test_bad():
    helper()

def test_good():
    pass
"""


@pytest.fixture(name="run")
def load():
    """The program as a module."""
    loader = importlib.machinery.SourceFileLoader("tests_run", str(TESTS / "run"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = written
    return module


def pytest_of(folder, text, *options, **env):
    (folder / "test_it.py").write_text(text)
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                           *options, "."], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env}, check=False)
    assert done.returncode == 1, done.stdout
    return done


def assert_tells(run, note):
    lines = note.splitlines()
    assert lines[0].startswith("FAILED  ") and "test_bad" in lines[0]
    assert 2 < len(lines) <= 1 + run.WHY_LINES
    assert all(len(line) <= 8 + run.WHY_COLUMNS + 5 for line in lines)
    # where the test was, what was wrong, and the end of what the guest had said
    assert any("test_it.py:6:" in line for line in lines), note
    assert any(line.strip().startswith("E ") and "first" in line for line in lines), note
    assert "console 199" in note and "console 100 " not in note


def test_native_suite(run, tmp_path, capsys):
    report = tmp_path / "report.xml"
    pytest_of(tmp_path, LONG, f"--junitxml={report}", "-o", "junit_family=xunit2")
    totals = run.Totals()
    run.count_junit(totals, "kvm", report, 1)
    assert (totals.passed, totals.failed) == (1, 1)
    assert_tells(run, totals.notes[0])
    assert "console" not in capsys.readouterr().out, "only the summary has it"


def test_guests_of_the_lab(run, tmp_path):
    """By way of the results file, which conftest.py writes."""
    (tmp_path / "conftest.py").write_text(
        "import sys\nsys.path.insert(0, {!r})\n"
        "from conftest_of_guests import pytest_runtest_logreport\n".format(str(tmp_path)))
    (tmp_path / "conftest_of_guests.py").write_text((TESTS / "guest/conftest.py").read_text())
    pytest_of(tmp_path, LONG, LAB_OUT=str(tmp_path), LAB_SHARD="a", QUIRE_LAB="")
    results = tmp_path / "results-a.jsonl"
    assert [json.loads(line)["outcome"] for line in results.read_text().splitlines()] == \
        ["failed", "passed"]
    totals = run.Totals()
    run.count_lab_results(totals, "guest a", results)
    assert (totals.passed, totals.failed) == (1, 1)
    assert_tells(run, totals.notes[0])


def test_unit_program(run, tmp_path):
    """The sanitizer's line, where it happened, and cmocka's; not all that it printed."""
    program = tmp_path / "test_x"
    program.write_text("""#!/bin/sh
        seq 1000
        echo "[  ERROR   ] --- 0x1 != 0x2"
        echo "[   LINE   ] --- test_x.c:12: error: Failure!"
        echo "[  FAILED  ] case_of_two"
        echo "WARNING: ThreadSanitizer: data race (pid=1)"
        for i in $(seq 0 30); do echo "    #$i function_$i file.c:$i"; done
        echo "SUMMARY: ThreadSanitizer: data race file.c:0 in function_0"
        exit 66
    """)
    program.chmod(0o755)
    totals = run.Totals()
    run.count_cmocka(totals, "tsan", "test_x", *run.run_cmocka([str(program)], {}))
    assert totals.failed == 1 and len(totals.notes) == 1
    lines = [line.strip() for line in totals.notes[0].splitlines()]
    assert lines == [
        "FAILED  tsan test_x.case_of_two", "[  ERROR   ] --- 0x1 != 0x2",
        "[   LINE   ] --- test_x.c:12: error: Failure!",
        "WARNING: ThreadSanitizer: data race (pid=1)",
        *(f"#{i} function_{i} file.c:{i}" for i in range(15)),
        "SUMMARY: ThreadSanitizer: data race file.c:0 in function_0"]


def test_lab_that_dies(run, tmp_path, monkeypatch):
    job = run.LabJob("a", tmp_path / "out", [], [])
    monkeypatch.setattr(run, "run", lambda argv, stdout, **_: (
        stdout.write(b"".join(b"line %d\n" % i for i in range(100))),
        subprocess.CompletedProcess(argv, 124))[1])
    totals = run.Totals()
    run.run_lab_jobs(totals, "guest", [job], type("Options", (), {"build": tmp_path}))
    assert totals.failed == 1
    lines = totals.notes[0].splitlines()
    assert "124" in lines[0] and lines[-1].strip() == "line 99" and len(lines) <= 26
