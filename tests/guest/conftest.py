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
import re
import signal
import subprocess
import time

import pytest
from _pytest.runner import runtestprotocol

BOOT_SECONDS = 240  # a hang, not a slow machine
LAB_ATTEMPTS = 2
ENDLESS = 1000  # exits at a place where no guest belongs; a hung one makes more each second
TRACING = pathlib.Path("/sys/kernel/tracing")
INT3, INT3_WHY = "Oops: int3", "on an int3 that is no longer there"
CLAIMS = {}  # of files of tests: are they ours?


@dataclasses.dataclass
class Result:
    """What one run of quire left; status None: it hung and was killed."""
    status: int
    console: str
    errors: str
    summary: dict
    fault: str = ""  # of the emulator

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
        """A guest from start to end; again, in the lab, where its emulator failed."""
        kept = keep_images(kwargs.get("extra", ())) if WATCH else []
        for attempt in range(LAB_ATTEMPTS):
            result = self._run(*args, **kwargs)
            if not result.fault or attempt == LAB_ATTEMPTS - 1:
                break
            print("repeated, see emulator_fault():", result)
            note_repetition(os.environ.get("PYTEST_CURRENT_TEST", "?").split(" ")[0],
                            result.fault)
            for image, copy in kept:
                copy_sparse(copy, image)
        for _, copy in kept:
            copy.unlink()
        if result.status is None:
            pytest.fail(f"the guest hung, {result.fault or 'for no known reason'}: {result}")
        return result

    def _run(self, *args, timeout=BOOT_SECONDS, **kwargs):
        self.count += 1
        report = self.folder / f"summary-{self.count}.json"
        argv = self.argv(*args, **kwargs) + ["--summary-json", str(report)]
        if WATCH:
            WATCH.restart()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        console, errors, hung = communicate(process, timeout)
        summary = json.loads(report.read_text()) if report.exists() else {}
        result = Result(None if hung else process.returncode, console, errors, summary)
        result.fault = emulator_fault(result)
        return result


def communicate(process, timeout):
    """Console, errors, and whether it had to be killed: late, or beyond hope."""
    deadline, hung = time.monotonic() + timeout, False
    while True:
        try:
            console, errors = process.communicate(timeout=2)
            return (console.decode(errors="replace"), errors.decode(errors="replace"), hung)
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline or (WATCH and len(WATCH.seen()) >= ENDLESS):
                hung = True
                print(hang_report(process.pid))
                process.kill()


def read_all(paths):
    """Text of each file that can be read, by its path."""
    texts = {}
    for path in paths:
        try:
            texts[path] = path.read_text().strip()
        except OSError:
            pass  # a task that ended, a statistic that is write-only
    return texts


def hang_report(pid):
    """What a quire that does not end is doing: its threads, and KVM's counts in a second."""
    tasks = list(pathlib.Path(f"/proc/{pid}/task").glob("*"))
    counts = list(pathlib.Path("/sys/kernel/debug/kvm").glob(f"{pid}-*/*"))
    before = read_all(counts)
    ran = read_all([task / "schedstat" for task in tasks])
    exits = WATCH.seen() if WATCH else []
    lines = ["with the nested host's registers:", *exits[-3:]] if exits else \
        WATCH.sample(1) if WATCH else []
    for path, text in read_all([task / "schedstat" for task in tasks]).items():
        state = read_all([path.with_name(name) for name in ("comm", "wchan", "stack", "syscall")])
        busy = (int(text.split()[0]) - int(ran.get(path, text).split()[0])) / 1e9
        lines.append(f"{path.parent.name} ran {busy:.3f} s; " + "; ".join(state.values()))
    for path, text in read_all(counts).items():
        if text != before.get(path):
            lines.append(f"{path.name}: {before.get(path)} -> {text}")
    return "\n".join(["hung:", *lines])


class Watch:
    """Notices when the emulator under the lab mixes up a guest's registers.

    Its emulated VMEXIT now and then leaves the nested host's own RIP, RSP, RAX
    and CR3 where the guest's belong (lab/README.md, "Faults of the emulator").
    The guest then goes on behind the nested host's VMRUN instruction, in a page
    table that is none of its own. So exits are traced which report such a RIP.
    """

    def __init__(self):
        """OSError or LookupError: this machine cannot watch."""
        symbols = subprocess.run(["grep", "-F", "[kvm_amd]", "/proc/kallsyms"],
                                 capture_output=True, text=True).stdout
        places = {}
        for line in symbols.splitlines():
            address, _, name = line.split()[:3]
            places.setdefault(int(address, 16), name)
        start = next((a for a, n in places.items() if n == "__svm_vcpu_run"), 0)
        if not start:
            raise LookupError("__svm_vcpu_run")
        end = min((a for a in places if a > start), default=start + 0x200)
        self.filter = f"guest_rip >= {start:#x} && guest_rip < {min(end, start + 0x200):#x}"
        self.event = TRACING / "events/kvm/kvm_exit"
        (self.event / "filter").write_text(self.filter)
        (self.event / "enable").write_text("1")

    def restart(self):
        (TRACING / "trace").write_text("")

    def seen(self):
        """Such exits since restart(), if there were any: lines of the trace."""
        with open(TRACING / "trace") as trace:
            return [line.strip() for line in trace if "kvm_exit:" in line]

    def sample(self, seconds):
        """Some of all events of KVM within so many seconds."""
        (self.event / "filter").write_text("0")
        others = [TRACING / "events/kvm" / name / "enable"
                  for name in ("kvm_inj_virq", "kvm_pio", "kvm_mmio", "kvm_msr")]
        others = [path for path in others if path.exists()]
        for path in others:
            path.write_text("1")
        time.sleep(seconds)
        with open(TRACING / "trace") as trace:
            lines = [line.strip() for line in trace if ": kvm_" in line]
        for path in others:
            path.write_text("0")
        (self.event / "filter").write_text(self.filter)
        self.restart()
        return lines[-60:]


def make_watch():
    if not os.environ.get("QUIRE_LAB"):
        return None
    try:
        return Watch()
    except (OSError, LookupError) as error:
        print("hangs get no second chance:", error)
        return None


WATCH = make_watch()


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


def note_repetition(test, why):
    """Said in the totals of tests/run: nobody should have to trust a silent retry."""
    path = results_file()
    if path:
        with open(path, "a") as results:
            results.write(json.dumps({"repeated": test_name(test), "why": why}) + "\n")


def emulator_fault(result):
    """The fault of the emulator under the lab that ended this guest, or "".

    Only what cannot be quire's gets a second chance: the guest died by an int3
    that it had removed, or hung or triple-faulted with the nested host's own
    registers (see Watch).
    """
    if WATCH and INT3 in result.console:
        return INT3_WHY
    hung = result.status is None
    if WATCH and (hung or (result.status == 1 and "triple fault" in result.errors)):
        exits = WATCH.seen()
        if exits:
            return f"with the nested host's registers: {exits[-1]}"
    return ""


def shard():
    """Which of several nested hosts that share the tests this one is."""
    return os.environ.get("LAB_SHARD", "all")


def results_file():
    out = os.environ.get("LAB_OUT")
    return pathlib.Path(out) / f"results-{shard()}.jsonl" if out else None


def claim(name):
    """Whether the tests of this file are ours: whoever asks first has them, and
    keeps them over a crash of the lab."""
    out = os.environ.get("LAB_OUT")
    if not out or "LAB_SHARD" not in os.environ:
        return True
    path = pathlib.Path(out) / f"claim-{name}"
    try:
        with open(path, "x") as file:
            file.write(shard())
        return True
    except FileExistsError:
        return path.read_text() == shard()


def pytest_runtest_protocol(item, nextitem):
    """Tests of a file that another nested host has taken are none of ours."""
    if item.path not in CLAIMS:
        CLAIMS[item.path] = claim(item.path.name)
    if not CLAIMS[item.path]:
        return True
    if not WATCH:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in run_watched(item, nextitem):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def run_watched(item, nextitem):
    """The reports of a test; again, where its guests were not run by Quire.run() and it
    failed with the emulator's fault in the trace."""
    WATCH.restart()
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    text = "".join(report.longreprtext for report in reports if report.failed)
    exits = WATCH.seen()
    if not text or not (exits or INT3 in text):
        return reports
    why = f"with the nested host's registers: {exits[-1]}" if exits else INT3_WHY
    item.config.get_terminal_writer().line(f"\n{text}\nrepeated: {why}")
    note_repetition(item.nodeid, why)
    return runtestprotocol(item, nextitem=nextitem, log=False)


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
    """Results one by one for tests/run: a crash of the lab loses none, nor what failed."""
    path = results_file()
    if not path or (report.when != "call" and report.outcome == "passed"):
        return
    reason = report.longrepr[2] if report.outcome == "skipped" else report.longreprtext
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
            report = hang_report(process.pid)
            process.kill()
            pytest.fail(f"no {needle!r} in:\n{text}\n{report}")
    assert needle.encode() in seen, seen.decode(errors="replace")
    return seen.decode(errors="replace")


def is_listening(path):
    """Without a connection, which would be taken for one. The file is there earlier."""
    return re.search(rf" 00010000 0001 01 +\d+ {re.escape(str(path))}$",
                     pathlib.Path("/proc/net/unix").read_text(), re.M)


def wait_listening(path, process, seconds=BOOT_SECONDS):
    """Until somebody listens at a Unix socket, which process is to do."""
    deadline = time.monotonic() + seconds
    while not is_listening(path):
        assert process.poll() is None, (path, process.returncode)
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


def stop(process, sig=signal.SIGINT, seconds=BOOT_SECONDS):
    """Signal quire and return its exit status; a hang fails."""
    process.send_signal(sig)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        report = hang_report(process.pid)
        process.kill()
        process.communicate()
        pytest.fail(f"quire did not end {seconds} s after signal {sig}\n{report}")
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
