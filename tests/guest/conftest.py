# SPDX-License-Identifier: Apache-2.0
"""Linux guests under quire, driven through its command line only.

These tests need a KVM that runs Linux: tests/run starts them inside the lab
(lab/run -- pytest tests/guest) unless this machine's own KVM does.
"""
import base64
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import time

import pytest

BOOT_SECONDS = 120  # a hang, not a slow machine
LAB_ATTEMPTS = 2


@dataclasses.dataclass
class Result:
    """What one run of quire left."""
    status: int
    console: str
    errors: str
    summary: dict

    @property
    def boots(self):
        return self.console.count("quire-guest: init")

    @property
    def job_status(self):
        """Exit status of the guest's job, None if it never ended."""
        for line in self.console.splitlines():
            if line.startswith("quire-guest: exit "):
                return int(line.split()[2])
        return None


class Quire:
    """Builds command lines and runs them."""

    def __init__(self, folder):
        self.binary = os.environ["QUIRE"]
        self.folder = folder
        self.count = 0

    def argv(self, job=None, *, end=None, kernel=None, initrd=None, cpus=1,
             memory="512M", cmdline="", extra=()):
        words = ["console=ttyS0", "quiet", "panic=-1", cmdline]
        if job is not None:
            words.append("quire.run64=" + base64.b64encode(job.encode()).decode())
        if end:
            words.append("quire.end=" + end)
        return [self.binary, "run",
                "--kernel", kernel or os.environ["GUEST_KERNEL"],
                "--initramfs", initrd or os.environ["GUEST_INITRD"],
                "--cpus", f"boot={cpus}", "--memory", memory,
                "--cmdline", " ".join(words), *extra]

    def start(self, *args, **kwargs):
        """A running quire: Popen with its console on stdout."""
        return subprocess.Popen(self.argv(*args, **kwargs), stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *args, **kwargs):
        """A guest from start to end; in the lab with one second chance."""
        if not os.environ.get("QUIRE_LAB"):
            return self._run(*args, **kwargs)
        kept = keep_images(kwargs.get("extra", ()))
        for attempt in range(LAB_ATTEMPTS):
            try:
                result = self._run(*args, **kwargs)
                fault = emulator_fault(result)
            except subprocess.TimeoutExpired as late:
                result, fault = late, True
            if not fault or attempt == LAB_ATTEMPTS - 1:
                break
            note_repetition(result)
            for image, copy in kept:
                copy_sparse(copy, image)
        for _, copy in kept:
            copy.unlink()
        if not isinstance(result, Result):
            pytest.fail(f"the guest hung {LAB_ATTEMPTS} times: {result.output!r}")
        return result

    def _run(self, *args, timeout=BOOT_SECONDS, **kwargs):
        self.count += 1
        report = self.folder / f"summary-{self.count}.json"
        argv = self.argv(*args, **kwargs) + ["--summary-json", str(report)]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=timeout,
                              capture_output=True)
        summary = json.loads(report.read_text()) if report.exists() else {}
        return Result(done.returncode, done.stdout.decode(errors="replace"),
                      done.stderr.decode(errors="replace"), summary)


def copy_sparse(source, target):
    subprocess.run(["cp", "--sparse=always", source, target], check=True)


def keep_images(extra):
    """Copies of the disks as they are: a repetition starts from the same."""
    kept = []
    for word in extra:
        if word.startswith("path="):
            image = pathlib.Path(word[len("path="):].split(",")[0])
            copy = image.with_name(image.name + ".kept")
            copy_sparse(image, copy)
            kept.append((image, copy))
    return kept


def note_repetition(result):
    """Said in the totals of tests/run: nobody should have to trust a silent retry."""
    print("repeated, see emulator_fault():", result)
    path = results_file()
    if path:
        test = os.environ.get("PYTEST_CURRENT_TEST", "?").split(" ")[0]
        with open(path, "a") as results:
            results.write(json.dumps({"repeated": test_name(test)}) + "\n")


def emulator_fault(result):
    """Did the emulator under the lab lose a kernel's change to its own code?

    Then the guest dies by an int3 nobody put there, by a triple fault, or loops
    for ever (lab/README.md, "Emulator fault"). Nothing else gets a second chance.
    """
    return "Oops: int3" in result.console or (
        result.status == 1 and "triple fault" in result.errors)


def results_file():
    out = os.environ.get("LAB_OUT")
    return pathlib.Path(out) / "results.jsonl" if out else None


def test_name(nodeid):
    return nodeid.split("tests/guest/")[-1]


def pytest_collection_modifyitems(config, items):
    """Tests that have a result from before a crash of the lab are not repeated."""
    path = results_file()
    if not path or not path.exists():
        return
    done = set()
    for line in path.read_text().splitlines():
        try:
            done.add(json.loads(line).get("test"))
        except ValueError:
            pass  # torn by the crash
    config.hook.pytest_deselected(
        items=[item for item in items if test_name(item.nodeid) in done])
    items[:] = [item for item in items if test_name(item.nodeid) not in done]


def pytest_runtest_logreport(report):
    """Results one by one for tests/run: a crash of the lab loses none."""
    path = results_file()
    if not path or (report.when != "call" and report.outcome == "passed"):
        return
    reason = report.longrepr[2] if report.outcome == "skipped" else ""
    with open(path, "a") as results:
        results.write(json.dumps({"test": test_name(report.nodeid), "outcome": report.outcome,
                                  "reason": str(reason)}) + "\n")


def wait_for(process, needle, seconds=BOOT_SECONDS):
    """Read the console until needle appears; returns what was read."""
    os.set_blocking(process.stdout.fileno(), False)
    seen, deadline = b"", time.monotonic() + seconds
    while needle.encode() not in seen:
        chunk = process.stdout.read()
        if chunk:
            seen += chunk
        elif chunk == b"" and process.poll() is not None:
            break
        else:
            time.sleep(0.02)
        if time.monotonic() >= deadline:
            text = seen.decode(errors="replace")
            process.kill()
            pytest.fail(f"no {needle!r} in:\n{text}")
    assert needle.encode() in seen, seen.decode(errors="replace")
    return seen.decode(errors="replace")


def stop(process, sig=signal.SIGINT, seconds=30):
    """Signal quire and return its exit status; a hang fails."""
    process.send_signal(sig)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        pytest.fail(f"quire did not end {seconds} s after signal {sig}")
    return process.returncode


@pytest.fixture
def quire(tmp_path):
    return Quire(pathlib.Path(tmp_path))


@pytest.fixture(autouse=True)
def nothing_left():
    """No test may leave a quire process behind."""
    yield
    left = subprocess.run(["pgrep", "-x", "-P", str(os.getpid()), "quire"],
                          capture_output=True, text=True).stdout
    for pid in left.split():
        os.kill(int(pid), signal.SIGKILL)
    assert not left, f"quire processes left: {left}"
