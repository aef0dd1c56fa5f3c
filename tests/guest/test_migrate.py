# SPDX-License-Identifier: Apache-2.0
"""Guests that go from one quire process to another, under a real second stage.

A Linux guest that verifies itself (test_integrity.py) moves back and forth, its two network
interfaces ports of one bridge, its memory before it, after it, or handed over. Besides that
work it has one TCP connection from beginning to end, on which both sides check what comes.
What its processes say is one row of numbers: what was done twice, or left out, shows. Another
one loses its source in the middle, and waits for it. (test_migrate_net.py: between two
networks.)

And with the walking guest faults are counted: the guest finds all of its memory mapped.

QUIRE_MIGRATE_MOVES=N: so many moves, and beyond two also with one and four vCPUs.
"""
import base64
import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import threading
import time

import pytest

from conftest import is_listening
from test_integrity import FORGIVEN, MIB, NETTEST, PORT, SECONDS, WORK, Chain

MOVES = int(os.environ.get("QUIRE_MIGRATE_MOVES", "2"))
BRIDGE, TAPS, LINE_PORT = "qbr72", ["qmig0", "qmig1"], 5002
MAC = "02:00:00:00:72:02"
TAP_WORK = r"""
( n=0; while :; do n=$((n + 1)); echo "line $n"; usleep 100000; done |
	nc 10.72.0.1 5002 | ( m=0; while read -r word number; do
		m=$((m + 1))
		[ "$word $number" = "back $m" ] || echo "BAD connection: $word $number, not $m"
		[ $((m % 5)) = 0 ] && echo "connection $((m / 5))"
	  done; echo "BAD connection: ended" ) ) &
"""


def sh(*argv):
    subprocess.run([str(a) for a in argv], check=True, capture_output=True)


@pytest.fixture(scope="module")
def bridge():
    """With the host's own address, where the guest's peers are."""
    for module in ("tun", "bridge"):
        sh("modprobe", module)
    sh("ip", "link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
    sh("ip", "addr", "add", "10.72.0.1/24", "dev", BRIDGE)
    sh("ip", "link", "set", BRIDGE, "up")
    server = subprocess.Popen([NETTEST, "serve", str(PORT)], stdout=subprocess.DEVNULL)
    yield
    server.kill()
    server.wait()
    sh("ip", "link", "del", BRIDGE)


@pytest.fixture(scope="module")
def taps(bridge):
    for tap in TAPS:
        sh("ip", "tuntap", "add", "dev", tap, "mode", "tap", "vnet_hdr")
        sh("ip", "link", "set", tap, "master", BRIDGE, "up")
    yield
    for tap in TAPS:
        sh("ip", "link", "del", tap)


class Line:
    """The host's end of the one connection: numbered lines come, and each is answered."""

    def __init__(self):
        self.accepted = self.lines = 0
        self.wrong = None
        self.listener = socket.create_server(("10.72.0.1", LINE_PORT))
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            with connection, connection.makefile("rwb", buffering=0) as f:
                try:
                    self.answer(f)
                except OSError:
                    pass  # the guest is gone, with the last of its processes

    def answer(self, f):
        for line in f:
            self.lines += 1
            if line != b"line %d\n" % self.lines:
                self.wrong = self.wrong or (line, self.lines)
            f.write(b"back %d\n" % self.lines)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture
def line(bridge):
    host_end = Line()
    yield host_end
    host_end.close()


class Ears:
    """Hears who announces himself on the bridge by reverse ARP."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x8035))
        self.socket.bind((BRIDGE, 0x8035))
        self.socket.settimeout(SECONDS)

    def wait_for_guest(self):
        """It tells three times: all of them, so that none is left for the next."""
        for _ in range(3):
            frame = self.socket.recv(2000)
            assert frame[:6] == b"\xff" * 6 and frame[6:12].hex(":") == MAC


def port_of_guest():
    """The port behind which the bridge believes the guest."""
    entries = subprocess.run(["bridge", "fdb", "show", "br", BRIDGE], check=True, text=True,
                             capture_output=True).stdout
    return re.findall(rf"^{MAC} dev (\S+) master", entries, re.M)


class Traveller(Chain):
    """One guest, in processes that have its disk and its address, and each a tap."""

    KINDS = ("disk", "memory", "network", "connection", "tick")

    def __init__(self, folder, cpus, pages):
        super().__init__(folder)
        self.cpus, self.pages = cpus, pages
        self.processes = []

    def tap(self):
        return TAPS[self.number % 2]

    def argv(self, *args):
        return ["run", "--name", f"vm{self.number}", "--kernel", os.environ["GUEST_KERNEL"],
                "--initramfs", os.environ["GUEST_INITRD"], "--cmdline", self.words, "--cpus",
                f"boot={self.cpus}", "--memory",
                f"size=128M,page={self.pages[self.number % len(self.pages)]}", "--disk",
                f"path={self.disk}", "--rng", "kernel", "--net",
                f"tap={self.tap()},mac={MAC}", *args]

    def begin(self, words):
        self.words = words
        self.disk = self.folder / "disk.img"
        with open(self.disk, "wb") as f:
            f.truncate(16 * MIB)
        self.start(*self.argv())
        self.processes.append(self.vm)

    def counted(self, number):
        """The last of each count in the log of a process, and the first."""
        text = (self.folder / f"log{number}").read_text(errors="replace").replace("\r", "")
        assert "BAD" not in text, text[-2000:]
        found = {}
        for kind in self.KINDS:
            found[kind] = [int(n) for n in re.findall(rf"^{kind} (\d+)\b.*\n", text, re.M)]
        return found

    def receive(self, uri):
        """The next of the processes, which waits for the guest."""
        self.number += 1
        self.start(*self.argv("--incoming", uri))
        self.processes.append(self.vm)
        end = time.monotonic() + SECONDS
        while not self.is_ready(uri):
            assert self.vm.poll() is None and time.monotonic() < end, self.said()
            time.sleep(0.1)

    def is_ready(self, uri):
        return is_listening(uri[5:])

    def info(self, number):
        done = self.quire("ctl", f"vm{number}", "info")
        return json.loads(done.stdout)

    def quire(self, *args, within=(), check=True):
        return subprocess.run([*within, os.environ["QUIRE"], *args], env=self.env, text=True,
                              capture_output=True, timeout=SECONDS, check=check,
                              stdin=subprocess.DEVNULL)

    def move(self, *args, uri=None):
        """What quire says of it."""
        old, within = self.vm, self.within
        self.began = time.monotonic()
        uri = uri or f"unix:{self.folder}/in{self.number + 1}"
        self.receive(uri)
        done = self.quire("migrate", f"vm{self.number - 1}", uri, "--downtime", "2000", "--json",
                          *args, within=within, check=False)
        print(time.strftime("%X"), done.stdout, done.stderr[-600:], flush=True)
        assert done.returncode == 0, (done.stderr, self.said())
        assert old.wait(SECONDS) == 0
        return json.loads(done.stdout)

    def wait_here(self, stood=0):
        """stood: so many seconds it may have stood still, besides those that a move takes"""
        try:
            print(time.strftime("%X"), "wait here", flush=True)
            self._wait_here(stood)
        finally:
            print(time.strftime("%X"), "waited here", flush=True)

    def _wait_here(self, stood):
        """Each kind of work gets on, from where it was, and nothing of it is wrong."""
        for kind in self.KINDS:
            self.wait(kind, lambda k=kind: len(self.numbers(k)) > 1)
        before, here = self.counted(self.number - 1), self.counted(self.number)
        for kind in self.KINDS:
            first = here[kind][0]
            assert here[kind] == list(range(first, first + len(here[kind]))), kind
            if before[kind]:
                # A line may be cut by the move itself, and is in neither.
                assert before[kind][-1] < first <= before[kind][-1] + 2, (kind, before[kind][-3:])
        ups = [[float(up) for up in re.findall(r"^tick \d+ ([\d.]+)\n", self.log(), re.M)]
               for self.number in (self.number - 1, self.number)]
        assert ups[0] + ups[1] == sorted(ups[0] + ups[1])
        # The clock goes on with the host's, which is all that a slow one may need.
        ran = time.monotonic() - self.began if self.began else 0
        assert ups[1][0] - ups[0][-1] < max(30 + stood, ran)

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()


def linux(*work):
    return ("console=ttyS0 quiet panic=-1 quire.run64=" +
            base64.b64encode("".join(work).encode()).decode())


def with_line():
    """The work, and the one connection, which begins when the interface is up."""
    lines = WORK.splitlines(keepends=True)
    up = next(i for i, text in enumerate(lines) if "ip addr" in text) + 1
    return [FORGIVEN, *lines[:up], TAP_WORK, *lines[up:]]


@contextlib.contextmanager
def at_work(guest, *words):
    """It does some of each kind of its work first, and is gone afterwards."""
    guest.begin(" ".join([linux(*with_line()), *words]))
    try:
        for kind in guest.KINDS:
            guest.wait(kind, lambda k=kind: len(guest.numbers(k)) > 1)
        print(time.strftime("%X"), "at work", flush=True)
        yield guest
    finally:
        guest.end()


# Pages of either kind; memory that is handed over is what it was.
MODES = {"precopy": ["4k", "thp"], "postcopy": ["thp", "4k"], "hybrid": ["4k", "thp"],
         "local": ["4k,shared=on"]}


@pytest.mark.parametrize("cpus", [2] if MOVES <= 2 else [1, 2, 4])
@pytest.mark.parametrize("modes", [["precopy"], ["postcopy", "hybrid"], ["local"]],
                         ids="-".join)
def test_linux_goes_back_and_forth(tmp_path, taps, line, modes, cpus):
    ears = Ears()
    with at_work(Traveller(tmp_path, cpus, MODES[modes[0]])) as guest:
        for number in range(MOVES):
            mode = modes[number % len(modes)]
            done = guest.move("--mode", mode, "--streams", "2")
            # Of a hybrid move, what the guest wrote last: there may be nothing.
            assert mode == "hybrid" or (done["followed_bytes"] > 0) == (mode == "postcopy")
            assert (done["page_bytes"] == 0) == (mode == "local")
            ears.wait_for_guest()
            guest.wait_here()
            assert port_of_guest() == [guest.tap()]
    assert (line.accepted, line.wrong) == (1, None) and line.lines > 0


class Cable:
    """Passes bytes on to a Unix socket, until it is cut."""

    def __init__(self, path, to):
        self.to, self.ends = to, []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(16)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                here, _ = self.listener.accept()
                there = socket.socket(socket.AF_UNIX)
                there.connect(self.to)
                self.ends += [here, there]
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=self.carry, args=pair, daemon=True).start()

    @staticmethod
    def carry(a, b):
        with contextlib.suppress(OSError):
            while data := a.recv(1 << 16):
                b.sendall(data)

    def cut(self):
        for end in (self.listener, *self.ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_linux_waits_for_its_memory(tmp_path, taps, line):
    """The connection is cut while memory follows: for ten seconds the guest has what came,
    and what it touches besides when there is a connection again."""
    # That it stands still is what is to be seen here, and nothing for it to report.
    calm = ["nowatchdog", "rcupdate.rcu_cpu_stall_suppress=1"]
    with at_work(Traveller(tmp_path, 2, ["4k"]), *calm) as guest:
        source, uri, said = guest.vm, f"unix:{tmp_path}/in1", tmp_path / "said"
        guest.receive(uri)
        cable = Cable(f"{tmp_path}/cable", uri[5:])
        began = time.monotonic()
        with open(said, "w") as err:
            client = subprocess.Popen([os.environ["QUIRE"], "migrate", "vm0",
                                       f"unix:{tmp_path}/cable", "--mode", "postcopy",
                                       "--bandwidth", "2M"], env=guest.env, stderr=err)
        # That it runs there its source has to have heard, or it is in doubt.
        guest.wait("its move", lambda: '"phase":"post-copy"' in said.read_text()
                   or client.poll() is not None)
        assert guest.info(1)["state"] == "Running", said.read_text()
        cable.cut()
        assert client.wait(SECONDS) == 1 and "--recover" in said.read_text(), said.read_text()
        guest.wait("the break", lambda: guest.info(1)["migration"]["postcopy"] == "paused")
        pending = guest.info(1)["migration"]["pending_bytes"]
        time.sleep(10)
        assert guest.info(0)["migration"]["state"] == "postcopy-paused"
        assert guest.info(1)["migration"]["pending_bytes"] == pending > 0
        done = json.loads(guest.quire("migrate", "vm0", uri, "--recover", "--json").stdout)
        print(pending, done)
        # Of what it waited for some comes a second time.
        assert 0 < done["followed_bytes"] <= pending + done["urgent_pages"] * 4096
        assert source.wait(SECONDS) == 0
        assert guest.info(1)["migration"]["breaks"] == 1
        # Its clock did not: there may have been no tick before the connection was cut.
        guest.wait_here(time.monotonic() - began)
    assert (line.accepted, line.wrong) == (1, None) and line.lines > 0


# ---- faults, counted ----

class Walker:
    """Processes of the guest that checks and changes its memory for ever, on two CPUs."""

    IMAGE = pathlib.Path(os.environ["QUIRE"]).parent / "guest/probe/walker.elf"

    def __init__(self, folder, page, stage2):
        self.folder = folder
        self.env = {**os.environ, "QUIRE_RUNTIME_DIR": str(folder / "run")}
        self.args = ["--kernel", self.IMAGE, "--cmdline", "mib=24", "--cpus", "boot=2",
                     "--memory", f"size=128M,page={page},stage2={stage2}"]
        self.running = []

    def passes(self, name):
        text = (self.folder / name).read_text()
        assert "BAD" not in text, text[-300:]
        return [int(n) for n in re.findall(r"^walker: pass (\d+)\n", text, re.M)]

    def wait(self, what, condition):
        end = time.monotonic() + SECONDS
        while not condition():
            assert self.running[-1].poll() is None, (self.folder / "err").read_text()
            assert time.monotonic() < end, what
            time.sleep(0.1)

    def start(self, name, *args):
        with open(self.folder / "err", "a") as err:
            self.running.append(subprocess.Popen(
                [os.environ["QUIRE"], "run", "--name", name, *map(str, self.args), "--serial",
                 f"file={self.folder}/{name}", *args], env=self.env, stderr=err,
                stdin=subprocess.DEVNULL))

    def quire(self, *args):
        return subprocess.run([os.environ["QUIRE"], *args], env=self.env, text=True, check=True,
                              stdout=subprocess.PIPE, timeout=SECONDS).stdout

    def end(self):
        for process in self.running:
            process.kill()
            process.wait()


@pytest.mark.parametrize("page,stage2", [("4k", "auto"), ("thp", "auto"), ("4k", "none")])
def test_faults_of_the_first_pass(tmp_path, page, stage2):
    """After the switch-over: none, where memory is mapped ahead; without, all of them."""
    guest = Walker(tmp_path, page, stage2)
    uri = f"unix:{tmp_path}/in"
    try:
        guest.start("one")
        guest.wait("a pass", lambda: (tmp_path / "one").exists() and guest.passes("one"))
        guest.start("two", "--incoming", uri)
        guest.wait("its socket", lambda: is_listening(uri[5:]))
        guest.quire("migrate", "one", uri, "--downtime", "60000")
        guest.wait("passes", lambda: len(guest.passes("two")) >= 3)
        there = json.loads(guest.quire("ctl", "two", "vm.memory-stats"))["migration"]
    finally:
        guest.end()
    old, new = guest.passes("one"), guest.passes("two")
    assert new == list(range(new[0], new[0] + len(new)))
    assert old[-1] < new[0] <= old[-1] + 2
    print(page, stage2, there)
    if stage2 == "auto":
        assert there["second_stage_bytes"] >= 24 * MIB
        assert there["second_stage_faults"] == 0
    else:
        assert there["second_stage_bytes"] == 0
        assert there["second_stage_faults"] >= 24 * 256
