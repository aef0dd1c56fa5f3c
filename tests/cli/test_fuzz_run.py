# SPDX-License-Identifier: Apache-2.0
"""tests/fuzz/run with targets that are scripts: what it says of them, and that it leaves
none behind."""
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parent.parent / "fuzz" / "run"
RUNS = "echo stat::number_of_executed_units: 7\n"


@pytest.fixture
def build(tmp_path):
    (tmp_path / "tests" / "fuzz").mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    return tmp_path


def target(build, name, text):
    path = build / "tests" / "fuzz" / f"fuzz_{name}"
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


def start(build, *names, **kw):
    return subprocess.Popen([RUN, "--build", build, "--seconds", "1", *names], text=True,
                            env={**os.environ, "TMPDIR": str(build / "tmp")},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)


def test_each_is_named(build):
    """However it ends, and in one piece, however many end at once."""
    names = [f"bad{i}" for i in range(6)]
    for name in names:
        target(build, name, f"for i in $(seq 60); do echo {name} " + "x" * 800 + "; done; exit 77\n")
    target(build, "good", RUNS)
    target(build, "idle", "exit 0\n")
    # Its shell goes with it.
    target(build, "fatal", "kill -KILL $PPID\n")
    run = start(build, "good", *names, "idle", "missing", "fatal")
    said, errors = run.communicate(timeout=60)
    assert run.returncode == 1, errors
    lines = said.splitlines()
    assert lines[-1] == "1 passed, 8 failed, 1 skipped"
    assert "PASS good: 7 inputs from 0 seeds" in lines
    assert "FAIL idle: exit status 0; the end of its output:" in lines
    assert "FAIL fatal: it ended without a result" in lines
    assert any(line.startswith("SKIP missing: not built") for line in lines)
    for name in names:
        at = lines.index(f"FAIL {name}: exit status 77; the end of its output:")
        assert lines[at + 1:at + 41] == [f"    {name} " + "x" * 800] * 40
    assert not list((build / "tmp").iterdir())


def test_all_pass(build):
    target(build, "one", RUNS)
    target(build, "two", RUNS)
    run = start(build, "one", "two")
    said = run.communicate(timeout=60)[0]
    assert run.returncode == 0 and said.splitlines()[-1] == "2 passed, 0 failed, 0 skipped"
    run = start(build, "one", "one")
    assert "given twice" in run.communicate(timeout=60)[1] and run.returncode == 2


def lives(pid):
    try:
        return re.search(r"^State:\s+[^Z]", Path(f"/proc/{pid}/status").read_text(), re.M)
    except OSError:
        return False


@pytest.mark.parametrize("number,group", [(signal.SIGINT, True), (signal.SIGTERM, False),
                                          (signal.SIGHUP, False)])
def test_interrupted(build, number, group):
    """A Ctrl-C is for all of the terminal's; another signal for it alone. A target may be deaf
    to both."""
    target(build, "one", f"trap '' INT TERM; echo $$ >{build}/one\nwhile :; do sleep 1; done\n")
    target(build, "two", f"echo $$ >{build}/two\nexec sleep 100\n")
    run = start(build, "one", "two", start_new_session=True)
    for name in ("one", "two"):
        while not (build / name).exists() or not (build / name).read_text().strip():
            assert run.poll() is None
            time.sleep(0.02)
    (os.killpg if group else os.kill)(run.pid, number)
    run.communicate(timeout=60)
    assert run.returncode == 130
    for name in ("one", "two"):
        assert not lives(int((build / name).read_text()))
    assert not list((build / "tmp").iterdir())
