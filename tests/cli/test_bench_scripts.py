# SPDX-License-Identifier: Apache-2.0
"""The scripts that compare with peers: wrong options are one line, results are complete,
and whatever ends them leaves no process and no file. What they measure needs the lab."""
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

BENCH = pathlib.Path(__file__).resolve().parent.parent.parent / "bench"
SCRIPTS = sorted(path.name for path in BENCH.glob("*-vs-*"))
RESTORE = BENCH / "restore-vs-qemu"
MIGRATE = BENCH / "migrate-vs-qemu"
ENOUGH = 60  # seconds; a hang, not a slow machine

# Does on the console what quire and the guest do, as far as the script sees it.
STAND_IN = '''#!{python}
import json, os, pathlib, sys, time

command, args = sys.argv[1], sys.argv[2:]
with open(os.environ["STAND_IN_LOG"], "a") as log:
    print(os.getpid(), json.dumps(sys.argv[1:]), file=log)
if command == "snapshot":
    pathlib.Path(args[1]).mkdir()
    pathlib.Path(args[1], "memory").write_bytes(bytes(4096))
elif command == "ctl":
    print(json.dumps({{"restore": {{"go_on_s": 0.001, "resident_s": 100.0}}}}))
else:
    if command == "restore" and os.environ.get("STAND_IN_FAILS"):
        sys.exit("quire restore: no such luck")
    if "--record" in args:
        pathlib.Path(args[0], "working-set").touch()
    if not os.environ.get("STAND_IN_HANGS"):
        print("bench: tick", flush=True)
    for line in sys.stdin:
        print("bench: passed", flush=True)
    time.sleep({enough})
'''


@pytest.fixture
def stand_in(tmp_path):
    """Environment for the script, in which quire is a stand-in."""
    quire = tmp_path / "quire"
    quire.write_text(STAND_IN.format(python=sys.executable, enough=ENOUGH))
    quire.chmod(0o755)
    (tmp_path / "tmp").mkdir()
    env = {name: value for name, value in os.environ.items() if name != "LAB_DISK"}
    return {**env, "BENCH_HERE": "1", "QUIRE": str(quire), "TMPDIR": str(tmp_path / "tmp"),
            "STAND_IN_LOG": str(tmp_path / "log"), "GUEST_KERNEL": "/dev/null",
            "GUEST_INITRD": "/dev/null"}


def calls(env):
    """[(pid, arguments)] of the stand-in."""
    lines = pathlib.Path(env["STAND_IN_LOG"]).read_text().splitlines()
    return [(int(line.split()[0]), json.loads(line.split(" ", 1)[1])) for line in lines]


def assert_nothing_left(env):
    assert os.listdir(env["TMPDIR"]) == []
    for pid, argv in calls(env):
        assert not pathlib.Path(f"/proc/{pid}").exists(), argv


@pytest.mark.parametrize("name", SCRIPTS)
def test_wrong_option_is_one_line(name):
    done = subprocess.run([BENCH / name, "--runs", "many"], capture_output=True, text=True,
                          check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{name}: argument --runs: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["--modes", "eager,loud"], ["--runs", "0"], ["--fill", "500"],
                                   ["--cpus", "-1"], ["--only", "xen"]])
def test_restore_refuses(words):
    done = subprocess.run([RESTORE, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("restore-vs-qemu: ") and done.stderr.count("\n") == 1


def test_restore_measures_each_mode(stand_in):
    done = subprocess.run([RESTORE, "--only", "quire", "--runs", "2", "--json", "--cold"],
                          env=stand_in, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    sides = {r["side"]: r for r in result["results"]}
    assert list(sides) == ["eager", "private", "lazy", "working-set"]
    assert (result["ratio"], result["ratios"], result["cold"]) == (None, {}, True)
    for name, r in sides.items():
        assert len(r["first_s"]["runs"]) == 2
        assert 0 < r["first_s"]["min"] <= r["pass_s"]["min"], name
    # Before the guest goes on, never, and when quire says so.
    assert sides["eager"]["all_s"] == sides["eager"]["first_s"]
    assert sides["private"]["all_s"] is None
    for name in ("lazy", "working-set"):
        assert sides[name]["all_s"]["min"] > 100
    # Each as a warm-up and twice, and once to have the working set recorded.
    restores = [argv for _pid, argv in calls(stand_in) if argv[0] == "restore"]
    assert len(restores) == 4 * 3 + 1
    assert sum("--record" in argv for argv in restores) == 1
    assert_nothing_left(stand_in)


def test_restore_that_fails_says_why_and_leaves_nothing(stand_in):
    stand_in["STAND_IN_FAILS"] = "1"
    done = subprocess.run([RESTORE, "--only", "quire"], env=stand_in, capture_output=True,
                          text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("no such luck\n")
    assert "Traceback" not in done.stderr
    assert_nothing_left(stand_in)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_restore_that_is_interrupted_leaves_nothing(stand_in, number):
    stand_in["STAND_IN_HANGS"] = "1"
    with subprocess.Popen([RESTORE, "--only", "quire"], env=stand_in, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as script:
        deadline = time.monotonic() + ENOUGH
        while not os.path.exists(stand_in["STAND_IN_LOG"]) or not calls(stand_in):
            assert time.monotonic() < deadline and script.poll() is None
            time.sleep(0.05)
        script.send_signal(number)
        out, errors = script.communicate(timeout=ENOUGH)
    assert (script.returncode, out, errors) == (128 + number, "", "")
    assert_nothing_left(stand_in)


def load(path):
    """The script as a module."""
    loader = importlib.machinery.SourceFileLoader(path.name.replace("-", "_"), str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    script = importlib.util.module_from_spec(spec)
    loader.exec_module(script)
    return script


def test_ratio_is_of_the_medians():
    script = load(RESTORE)
    took = [script.result_of("private", [{"first_s": t, "pass_s": 4, "all_s": None}
                                         for t in (1, 2, 90)]),
            script.result_of("qemu", [{"first_s": t, "pass_s": 2, "all_s": t}
                                      for t in (3, 6, 7)])]
    assert script.ratios_of(took) == {"private": {"first_s": 3.0, "pass_s": 0.5}}
    assert script.ratios_of(took[:1]) == {}


@pytest.mark.parametrize("words", [["--sides", "quire-fill,xen"], ["--streams", "0"],
                                   ["--memory", "64", "--mib", "64"], ["--thp", "sometimes"],
                                   ["--write-rate", "-1"]])
def test_migrate_refuses(words):
    done = subprocess.run([MIGRATE, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("migrate-vs-qemu: ") and done.stderr.count("\n") == 1


def test_migrate_compares_within_one_state_of_huge_pages():
    script = load(MIGRATE)

    def run(total, first, steady, faults):
        return {"total_s": total, "downtime_s": total / 10, "first_s": first,
                "steady_s": steady, "cold_s": first, "faults": faults}
    results = script.results_of({
        ("never", "quire-fill"): [run(2, 1, 1, 0), run(4, 3, 1, 0), run(90, 2, 1, 4)],
        ("never", "qemu-multifd"): [run(8, 30, 2, None)],
        ("always", "qemu-precopy"): [run(1, 1, 1, 5)]})
    assert [r["faults"] for r in results] == [0, None, 5]
    assert results[0]["first_by_steady"] == 2 and results[0]["first_by_cold"] == 1
    assert script.ratios_of(results) == [{"host_thp": "never", "qemu": "qemu-multifd",
                                          "total_s": 2.0, "downtime_s": 2.0, "first_s": 15.0}]
