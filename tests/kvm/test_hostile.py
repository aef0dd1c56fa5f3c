# SPDX-License-Identifier: Apache-2.0
"""A hostile guest against a full machine: no crash, no hang, no leak.

guest/probe/hostile.elf knows PCI, virtio and the platform devices and abuses
them on two CPUs. quire runs it under ASan+UBSan where that build is at hand
(QUIRE_BUILD_ASAN), restarting it whenever it manages to crash itself.
QUIRE_HOSTILE_SECONDS is the time for all configurations together (default 60).
"""
import http.client
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import threading
import time

import pytest

from host_kit import of_threads

BUILD = pathlib.Path(os.environ.get("QUIRE_BUILD", "build"))
BUILD_ASAN = os.environ.get("QUIRE_BUILD_ASAN")
SECONDS = float(os.environ.get("QUIRE_HOSTILE_SECONDS", "60"))
STOP_SECONDS = 60  # for what has to happen; a hang otherwise
BOOT_SECONDS = 5  # below it a machine may not even have booted
STALL_SECONDS = 10  # without a sign of life from the guest

CONFIGS = {
    "one-cpu": ["--cpus", "boot=1"],
    "two-cpus": ["--cpus", "boot=2"],
    "split-irqchip": ["--cpus", "boot=2", "--irqchip", "split"],
    "network": ["--cpus", "boot=2", "--net", "socket={dir}/net"],
    "many-disks": ["--cpus", "boot=2", "--disk", "path={dir}/c.img",
                   "--disk", "path={dir}/d.img,readonly=on"],
}

ASAN_ENV = {
    "ASAN_OPTIONS": "detect_leaks=1:quarantine_size_mb=4",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
}


def binaries():
    """quire and the guest image; the sanitized build if there is one."""
    for build in filter(None, [BUILD_ASAN, BUILD]):
        build = pathlib.Path(build)
        for quire in (build / "quire", build / "src/cli/quire"):
            guest = build / "guest/probe/hostile.elf"
            if quire.exists() and guest.exists():
                return quire, guest
    pytest.fail(f"no quire with guest/probe/hostile.elf in {BUILD}")


def need_kvm():
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no usable /dev/kvm")


def actions(log):
    """The number of actions that the guest reported last; it restarts at 0."""
    words = re.findall(rb"hostile: actions (\d+) ", log.read_bytes())
    return int(words[-1]) if words else 0


def own_threads(pid):
    """How many threads of a process are its own, not the kernel's."""
    return sum(not name.startswith("iou-") for name in of_threads(pid, "comm"))


class Use:
    """The most that a process held: descriptors, threads, memory.

    A moment says little: a restart gives everything back and takes it again.
    The kernel's workers of io_uring are listed among the threads; there are
    as many as disk requests happen to block, up to a bound of the kernel's.
    """

    def __init__(self):
        self.fds = self.threads = self.kib = 0

    def sample(self, pid):
        proc = pathlib.Path(f"/proc/{pid}")
        self.fds = max(self.fds, len(os.listdir(proc / "fd")))
        self.threads = max(self.threads, own_threads(pid))
        rss = re.search(r"^VmRSS:\s+(\d+)", (proc / "status").read_text(), re.M)
        self.kib = max(self.kib, int(rss[1]))


class Peer:
    """The other end of the guest's network: sends back what it gets, and at
    times what makes no sense, so that the connection is lost and made anew."""

    def __init__(self, folder):
        self.path = folder / "net"
        self.path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.bytes = 0
        threading.Thread(target=self.main, daemon=True).start()

    def main(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                try:
                    self.echo(connection)
                except OSError:
                    pass

    def echo(self, connection):
        for turn in itertools.count(1):
            data = connection.recv(65536)
            if not data:
                return
            self.bytes += len(data)
            connection.sendall(os.urandom(64) if turn % 1000 == 0 else data)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


class Attack:
    """One run of quire with the hostile guest in it."""

    def __init__(self, folder, options):
        quire, guest = binaries()
        self.log, self.errors = folder / "serial", folder / "stderr"
        self.summary = folder / "summary"
        self.progress = self.seen = 0
        self.log.unlink(missing_ok=True)
        self.log.touch()
        for image in ("a", "b", "c", "d"):
            (folder / f"{image}.img").touch()
            os.truncate(folder / f"{image}.img", 8 << 20)
        argv = [quire, "run", "--kernel", guest,
                "--memory", "size=64M,page=4k",
                "--disk", f"path={folder}/a.img",
                "--disk", f"path={folder}/b.img", "--rng", "",
                "--serial", f"file={self.log}", "--on-reboot", "restart",
                "--on-crash", "restart", "--shutdown-timeout", "0",
                "--summary-json", self.summary,
                *(word.format(dir=folder) for word in options)]
        with self.errors.open("wb") as err:
            self.proc = subprocess.Popen(argv, stdout=subprocess.DEVNULL,
                                         stderr=err,
                                         env={**os.environ, **ASAN_ENV})

    def begin(self):
        """Until the guest has done something, if it does: what quire takes as it starts
        is taken."""
        end = time.monotonic() + STOP_SECONDS
        while not self.progress and time.monotonic() < end:
            self.go_on(time.monotonic() + 0.2)

    def go_on(self, deadline):
        """Until deadline, or until the guest has done nothing for a while;
        returns what quire used meanwhile.

        It may: some of its interrupts are INITs to itself. A quire that is
        stuck looks alike here, but does not survive stop().
        """
        since, use = time.monotonic(), Use()
        while time.monotonic() < min(deadline, since + STALL_SECONDS):
            assert self.proc.poll() is None, (
                f"quire ended with {self.proc.returncode}:\n" + self.said()[-8000:])
            use.sample(self.proc.pid)
            time.sleep(0.1)
            now = actions(self.log)
            if now != self.seen:
                self.progress += now - self.seen if now > self.seen else now
                self.seen, since = now, time.monotonic()
        return use

    def said(self):
        return self.errors.read_text(errors="replace")

    def stop(self):
        self.proc.send_signal(signal.SIGTERM)
        status = self.proc.wait(STOP_SECONDS)
        said = self.said()
        assert not re.search(r"Sanitizer|runtime error|BUG:", said), said[-8000:]
        assert status == 128 + signal.SIGTERM, said[-8000:]

    def kill(self):
        self.proc.kill()
        self.proc.wait()


@pytest.mark.parametrize("name", CONFIGS)
def test_hostile_guest(name, tmp_path):
    need_kvm()
    seconds = max(SECONDS / len(CONFIGS), BOOT_SECONDS)
    end = time.monotonic() + seconds
    total = runs = boots = 0
    peer = Peer(tmp_path)
    # A guest may stop itself before it has done much: then it is another's turn.
    while not total or (name == "network" and not peer.bytes) or \
            end - time.monotonic() > BOOT_SECONDS:
        assert time.monotonic() < end + 3 * STOP_SECONDS, (total, runs, boots, peer.bytes)
        attack = Attack(tmp_path, CONFIGS[name])
        try:
            attack.begin()
            half = max(end - time.monotonic(), seconds / 2) / 2
            before = attack.go_on(time.monotonic() + half)
            after = attack.go_on(time.monotonic() + half)
            attack.stop()
        finally:
            attack.kill()
        runs += 1
        total += attack.progress
        boots += json.loads(attack.summary.read_text())["boots"]
        # What is taken for each queue or reset and not given back adds up to
        # more than this; the guest's RAM is 64 MiB and fills at its pace.
        assert after.fds <= before.fds + 16
        assert after.threads <= before.threads + 8
        assert after.kib <= before.kib + (64 << 10) + (8 << 10)
    peer.close()
    assert bool(peer.bytes) == (name == "network")
    print(f"{name}: {total} actions, {runs} runs, {boots} boots, "
          f"{after.kib} KiB resident")


class Api(http.client.HTTPConnection):
    """The control API of a quire, over its Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=STOP_SECONDS)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def ask(self, method, verb, body=None):
        self.request(method, f"/api/v1/{verb}", body and json.dumps(body),
                     {"Content-Type": "application/json"} if body else {})
        answer = self.getresponse()
        text = answer.read()
        self.close()
        return answer.status, json.loads(text) if text else None


def devices(api):
    status, counters = api.ask("GET", "vm.counters")
    assert status == 200
    return set(counters) - {"_vm"}


def test_devices_come_and_go_under_attack(tmp_path):
    """Two CPUs write anything to the hot-plug registers and to every device, while disks
    are plugged and asked back: each goes once, and no other."""
    need_kvm()
    attack = Attack(tmp_path, ["--cpus", "boot=2", "--api-socket", "{dir}/api",
                               "--watchdog", "--verbose"])
    api, cycles = Api(tmp_path / "api"), 0
    end = time.monotonic() + max(SECONDS / len(CONFIGS), BOOT_SECONDS)
    try:
        while not (tmp_path / "api").exists():
            assert attack.proc.poll() is None, attack.said()
            time.sleep(0.05)
        boot = devices(api)
        while time.monotonic() < end or not cycles:
            name = f"hot{cycles}"
            status, answer = api.ask("PUT", "vm.add-disk",
                                     {"path": f"{tmp_path}/c.img", "id": name})
            assert status == 200, answer
            assert devices(api) == boot | {name}
            asked = time.monotonic()
            while name in devices(api):
                # a restart of the machine lets it go as well: then it is unknown
                assert api.ask("PUT", "vm.remove-device", {"id": name})[0] in (204, 404)
                assert time.monotonic() < asked + STOP_SECONDS, attack.said()[-4000:]
                time.sleep(0.02)
            assert devices(api) == boot
            assert attack.proc.poll() is None, attack.said()[-8000:]
            cycles += 1
        attack.stop()
    finally:
        attack.kill()
    ejected = attack.said().count(": removed")
    print(f"{cycles} cycles, {ejected} of them by the guest's eject")
    assert cycles > 0
