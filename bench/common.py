# SPDX-License-Identifier: Apache-2.0
"""What the A/B scripts in this directory share.

A script compares quire with a peer on one machine, in one run, with the same
guest: runs of both sides alternate, so that a slow minute of the machine hits
both; medians are compared; `ratio` above 1 means quire is better.

    common.enter_lab(["--mem", "3000"])         # returns inside the lab only
    guest = common.Guest.from_environment(cmdline="...")
    for name, argv in common.alternate(sides, runs):
        with common.Vm(argv) as vm:
            seconds = vm.wait_for(b"quire-guest: init", timeout=120)
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
QEMU = "qemu-system-x86_64"


class BenchError(Exception):
    """Something a person has to look at; the text says what."""


class Stopped(BaseException):
    """A signal asks us to end; with blocks clean up on its way."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


# lab/run: the lab itself failed, not the command. The emulated CPU now and then
# runs an instruction that the nested kernel has just patched away; results are
# printed only at the end, so nothing of a lost run mixes with the next.
LAB_FAILED = 125
LAB_ATTEMPTS = 3


def enter_lab(lab_options=()):
    """Run this script again inside the lab, unless that is where it is.

    With BENCH_HERE=1 it stays on this machine, for hosts whose own KVM runs
    Linux; GUEST_KERNEL and GUEST_INITRD then come from the caller.
    """
    if "QUIRE_LAB" in os.environ or os.environ.get("BENCH_HERE") == "1":
        return
    command = [str(REPO / "lab/run"), *lab_options, "--",
               os.path.abspath(sys.argv[0]), *sys.argv[1:]]
    for attempt in range(1, LAB_ATTEMPTS + 1):
        status = subprocess.call(command)
        if status != LAB_FAILED or attempt == LAB_ATTEMPTS:
            sys.exit(status)
        progress(f"the lab failed; attempt {attempt + 1} of {LAB_ATTEMPTS}")


def from_environment(name):
    try:
        return os.environ[name]
    except KeyError:
        raise BenchError(f"{name} is not set: outside the lab, name the file "
                         "in the environment") from None


@dataclasses.dataclass
class Guest:
    """What both sides boot."""

    kernel: str
    initramfs: str
    cmdline: str
    cpus: int = 1
    mem_mib: int = 128

    @classmethod
    def from_environment(cls, cmdline, initramfs="GUEST_INITRD", **rest):
        return cls(kernel=from_environment("GUEST_KERNEL"),
                   initramfs=from_environment(initramfs), cmdline=cmdline,
                   **rest)


def quire_command(guest, extra=(), memory=""):
    """memory: more keys for --memory, as ",page=4k"."""
    quire = os.environ.get("QUIRE", str(REPO / "build/quire"))
    if not os.access(quire, os.X_OK):
        raise BenchError(f"{quire}: no such program; run make build")
    return [quire, "run", "--kernel", guest.kernel,
            "--initramfs", guest.initramfs, "--cmdline", guest.cmdline,
            "--cpus", f"boot={guest.cpus}",
            "--memory", f"size={guest.mem_mib}M{memory}", "--serial", "tty",
            *extra]


def qemu_command(guest, extra=(), machine="microvm,rtc=on"):
    """QEMU without any device that was not asked for."""
    return [QEMU, "-M", machine, "-accel", "kvm", "-cpu", "host",
            "-smp", str(guest.cpus), "-m", str(guest.mem_mib),
            "-nodefaults", "-no-user-config", "-display", "none",
            "-no-reboot", "-serial", "stdio", "-kernel", guest.kernel,
            "-initrd", guest.initramfs, "-append", guest.cmdline, *extra]


def qemu_version():
    text = subprocess.run([QEMU, "--version"], capture_output=True, text=True,
                          check=True).stdout
    return text.splitlines()[0]


class Vm:
    """One running VMM; its serial console is our pipe.

    Times count from just before the process is made.  Leaving the with block
    kills whatever still runs.  With dialogue=True the guest's console can be
    typed to, by send().  pass_fds: descriptors that argv speaks of.
    """

    def __init__(self, argv, dialogue=False, pass_fds=()):
        self._argv = argv
        self._dialogue = dialogue
        self._pass_fds = pass_fds
        self._process = None
        self._began = None
        self.console = b""

    def __enter__(self):
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            self._argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE if self._dialogue else subprocess.DEVNULL,
            pass_fds=self._pass_fds, start_new_session=True)
        os.set_blocking(self._process.stdout.fileno(), False)
        return self

    def __exit__(self, *_exception):
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()
        if self._dialogue:
            self._process.stdin.close()

    def send(self, line):
        """Type a line on the guest's console."""
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self.failure("ended early") from None

    @property
    def pid(self):
        return self._process.pid

    def _read(self, deadline):
        """Wait for console output; False at its end."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not selector.select(max(deadline - time.monotonic(), 0)):
                took = time.monotonic() - self._began
                if time.monotonic() >= deadline:
                    raise self.failure(f"no sign of it after {took:.0f} s")
        data = os.read(self._process.stdout.fileno(), 65536)
        self.console += data
        return bool(data)

    def failure(self, what):
        # What it said since it was last listened to.
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._process.stdout.fileno(), 65536):
                self.console += chunk
        tail = self.console.decode(errors="replace").replace("\r", "")
        tail = "\n".join(tail.splitlines()[-25:])
        return BenchError(f"{' '.join(self._argv)}\n{what}; its console ends "
                          f"with:\n{tail}")

    def wait_for(self, marker, timeout):
        """Seconds from the start until marker was on the console."""
        return self.wait_for_pattern(re.compile(re.escape(marker)), timeout)

    def wait_for_pattern(self, pattern, timeout):
        """The same for a compiled regular expression of bytes."""
        deadline = time.monotonic() + timeout
        while not pattern.search(self.console):
            if not self._read(deadline):
                raise self.failure(f"ended without {pattern.pattern!r}")
        return time.monotonic() - self._began

    def wait_exit(self, timeout):
        """Seconds until the VMM ended by itself, with status 0."""
        deadline = time.monotonic() + timeout
        while self._read(deadline):
            pass
        try:
            status = self._process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            raise self.failure("did not end") from None
        if status:
            raise self.failure(f"exit status {status}")
        return time.monotonic() - self._began


# ---- asking ----


def run_quire(*argv):
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(done.stderr.strip())
    return done.stdout


QMP_SECONDS = 600  # for an answer; a hang, not a slow machine


class Qmp:
    """QEMU's control socket: one command, one answer; events are skipped."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(QMP_SECONDS)
        self._socket.connect(path)
        self._lines = self._socket.makefile("rw")
        self._lines.readline()
        self("qmp_capabilities")

    def __call__(self, command, **arguments):
        json.dump({"execute": command, "arguments": arguments}, self._lines)
        self._lines.write("\n")
        self._lines.flush()
        while True:
            line = self._lines.readline()
            if not line:
                raise BenchError(f"QEMU, {command}: it ended")
            answer = json.loads(line)
            if "error" in answer:
                raise BenchError(f"QEMU, {command}: "
                                        f"{answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self._lines.close()
        self._socket.close()


# ---- the host ----


THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
KVM_STATISTICS = Path("/sys/kernel/debug/kvm")


def set_thp(state):
    try:
        THP.write_text(state)
    except OSError as error:
        raise BenchError(f"{THP}: {error.strerror}: the host's huge "
                                "pages have to be switched") from None


def thp_state():
    return re.search(r"\[(\w+)\]", THP.read_text())[1]


def faults_of(pid):
    """Second-stage faults of a VMM's VM so far, None where nobody says."""
    for vm in KVM_STATISTICS.glob(f"{pid}-*"):
        try:
            return int((vm / "pf_taken").read_text())
        except OSError:
            pass
    return None


# A mapping's first line in smaps: the address range.
SMAPS_HEAD = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ")


def own_memory(pid, guest_bytes):
    """KiB a VMM uses beyond guest RAM: rss, pss and private pages.

    Guest RAM is the one mapping of that very size; not to find it is an error,
    because a guess would flatter or wrong somebody.
    """
    mappings = []
    for line in Path(f"/proc/{pid}/smaps").read_bytes().splitlines():
        head = SMAPS_HEAD.match(line)
        if head:
            size = int(head[2], 16) - int(head[1], 16)
            mappings.append({"size": size})
        elif line.endswith(b" kB"):
            key, value = line.split(b":")
            mappings[-1][key.decode()] = int(value.split()[0])
    ram = [m for m in mappings if m["size"] == guest_bytes]
    if len(ram) != 1:
        raise BenchError(f"process {pid}: {len(ram)} mappings of the size of "
                         f"guest RAM ({guest_bytes} bytes), one was expected")
    rest = [m for m in mappings if m is not ram[0]]

    def total(*keys):
        return sum(m.get(k, 0) for m in rest for k in keys)

    return {"rss_kib": total("Rss"), "pss_kib": total("Pss"),
            "private_kib": total("Private_Clean", "Private_Dirty"),
            "guest_rss_kib": ram[0].get("Rss", 0)}


def alternate(sides, runs):
    """(name, value) of every side, runs times, the order swapped each time."""
    names = list(sides)
    for run in range(runs):
        for name in names if run % 2 == 0 else reversed(names):
            yield name, sides[name]


def summary(values):
    return {"median": statistics.median(values), "min": min(values),
            "max": max(values), "runs": values}


def progress(text):
    """For a person who waits; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def emit_json(bench, results, ratio, **more):
    json.dump({"bench": bench, "results": results, "ratio": ratio, **more},
              sys.stdout, indent=2)
    print(flush=True)


class Parser(argparse.ArgumentParser):
    """What is wrong with the options, in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def parser(description, runs):
    """The options all scripts have."""
    made = Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--runs", type=int, default=runs, metavar="N",
                      help=f"runs of each side ({runs})")
    made.add_argument("--json", action="store_true",
                      help="print one JSON object with results and ratio")
    made.add_argument("--only", choices=["quire", "qemu"],
                      help="one side only; there is no ratio then")
    return made


def stop_on_signals():
    def stop(number, _frame):
        # One is enough; the next ones must not cut the cleaning up short.
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, stop)


def run(main):
    """Call main() and turn what goes wrong into one message and status 1."""
    stop_on_signals()
    try:
        sys.exit(main())
    except Stopped as stopped:
        sys.exit(128 + stopped.number)
    except (BenchError, OSError, subprocess.CalledProcessError) as error:
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        sys.exit(1)
