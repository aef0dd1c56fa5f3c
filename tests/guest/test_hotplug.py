# SPDX-License-Identifier: Apache-2.0
"""PCI hot-plug and the VM generation id, through the control API of a running quire."""
import hashlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import time

import pytest

from conftest import BOOT_SECONDS, stop, wait_for
from test_platform import VERSIONS, images

CYCLES = 100
MIB = 1 << 20


class Api(http.client.HTTPConnection):
    """Requests over the Unix socket of --api-socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=BOOT_SECONDS)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def ask(self, method, verb, body=None):
        """Status and decoded body."""
        self.request(method, f"/api/v1/{verb}", json.dumps(body) if body is not None else None,
                     {"Content-Type": "application/json"} if body is not None else {})
        answer = self.getresponse()
        text = answer.read()
        self.close()
        return answer.status, json.loads(text) if text else None

    def put(self, verb, body=None):
        status, answer = self.ask("PUT", verb, body)
        assert status in (200, 204), (verb, status, answer)
        return answer

    def ids(self):
        """The devices that have counters: those that are plugged."""
        return {name for name in self.ask("GET", "vm.counters")[1] if name != "_vm"}

    def wait_gone(self, name, seconds=BOOT_SECONDS):
        deadline = time.monotonic() + seconds
        while name in self.ids():
            assert time.monotonic() < deadline, f"{name} does not go"
            time.sleep(0.05)


def make_image(path, seed):
    """4 MiB that tell which image it is; returns their digest."""
    block = hashlib.sha256(str(seed).encode()).digest() * 2048
    path.write_bytes(block * (4 * MIB // len(block)))
    return hashlib.md5(path.read_bytes()).hexdigest()


class Guest:
    """A running guest with an API socket."""

    def __init__(self, quire, job, extra=(), **kwargs):
        self.socket = quire.folder / "api"
        self.process = quire.start(job, extra=["--api-socket", str(self.socket), *extra],
                                   **kwargs)
        self.api = Api(self.socket)

    def wait(self, needle):
        return wait_for(self.process, needle)

    def stop(self):
        if self.process.poll() is None:
            stop(self.process, signal.SIGINT)


# A disk that comes is read whole and summed, then waited for to go. Meanwhile the
# boot disk is busy. Linux makes the node a little before it can be opened.
WATCH_DISKS = """
(while :; do dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null || sleep 1; done) &
n=0
while :; do
    until { true < /dev/vdb; } 2> /dev/null; do sleep 0.05; done
    echo "came $n $(md5sum < /dev/vdb)"
    while [ -b /dev/vdb ]; do sleep 0.05; done
    echo "went $n"
    n=$((n + 1))
done
"""


@pytest.fixture
def boot_disk(tmp_path):
    path = pathlib.Path(tmp_path) / "boot.img"
    make_image(path, "boot")
    return ["--disk", f"path={path}"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_disk_comes_and_goes(quire, boot_disk, version, irqchip):
    guest = Guest(quire, WATCH_DISKS, extra=[*boot_disk, "--irqchip", irqchip],
                  **images(version))
    cycles = CYCLES if (version, irqchip) == ("6.12", "kernel") else 5
    try:
        guest.wait("quire-guest: init")
        time.sleep(1)  # whether the guest's PCI is up already must not matter; often it is
        for n in range(cycles):
            path = quire.folder / f"hot{n % 2}.img"
            digest = make_image(path, n)
            added = guest.api.put("vm.add-disk", {"path": str(path), "id": f"hot{n}"})
            assert added["id"] == f"hot{n}"
            assert re.fullmatch(r"0000:00:[01][0-9a-f]\.0", added["bdf"]), added
            guest.wait(f"came {n} {digest}")
            guest.api.put("vm.remove-device", {"id": f"hot{n}"})
            guest.wait(f"went {n}")
            guest.api.wait_gone(f"hot{n}")
            # the slot is the same each time: it is given back
            first = added["bdf"] if n == 0 else first
            assert added["bdf"] == first
        assert guest.api.ids() == {"_disk0"}
    finally:
        guest.stop()


def test_all_slots(quire, boot_disk):
    """Until there are no more, then all out again."""
    guest = Guest(quire, "until [ $(ls /sys/block | grep -c vd) = 28 ]; do sleep 0.1; done; "
                  "echo full; until [ $(ls /sys/block | grep -c vd) = 1 ]; do sleep 0.1; done",
                  extra=boot_disk)
    try:
        guest.wait("quire-guest: init")
        for n in range(27):
            path = quire.folder / f"hot{n}.img"
            make_image(path, n)
            guest.api.put("vm.add-disk", {"path": str(path), "id": f"hot{n}"})
        status, answer = guest.api.ask("PUT", "vm.add-disk", {"path": str(path), "id": "more"})
        assert 400 <= status < 500, answer
        guest.wait("full")
        for n in range(27):
            guest.api.put("vm.remove-device", {"id": f"hot{n}"})
        guest.wait("quire-guest: exit 0")
    finally:
        guest.stop()


def test_guest_that_does_not_let_go(quire, boot_disk):
    """Without its hot-plug driver it hears nothing: the device stays, asking again is fine."""
    guest = Guest(quire, "until [ -e /never ]; do md5sum < /dev/vda; sleep 1; done",
                  cmdline="acpiphp.disable=1", extra=boot_disk)
    try:
        guest.wait("quire-guest: init")
        for _ in range(3):
            guest.api.put("vm.remove-device", {"id": "_disk0"})
        assert guest.api.ask("PUT", "vm.remove-device", {"id": "nobody"})[0] == 404
        digest = hashlib.md5((quire.folder / "boot.img").read_bytes()).hexdigest()
        for _ in range(2):
            guest.wait(digest)
        assert guest.api.ids() == {"_disk0"}
    finally:
        guest.stop()


def test_guest_power_control_keeps_the_device(quire, boot_disk):
    """The guest alone cannot lose a device: it switches the slot off and on again."""
    guest = Guest(quire, "slot=$(basename $(grep -l $(basename $(readlink -f /sys/block/vda/"
                  "../../..) | cut -d. -f1) /sys/bus/pci/slots/*/address | xargs dirname)); "
                  "echo 0 > /sys/bus/pci/slots/$slot/power; [ -b /dev/vda ] && exit 1; "
                  "echo 1 > /sys/bus/pci/slots/$slot/power; "
                  "until [ -b /dev/vda ]; do sleep 0.1; done; md5sum < /dev/vda", extra=boot_disk)
    try:
        digest = hashlib.md5((quire.folder / "boot.img").read_bytes()).hexdigest()
        assert digest in guest.wait("quire-guest: exit 0")
        # It powers off; quire stays, being told what to do through its API.
        deadline = time.monotonic() + BOOT_SECONDS
        while guest.api.ask("GET", "vm.info")[1]["state"] != "Shutdown":
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        guest.stop()


def test_generation_id(quire):
    """Linux 6.12's driver reseeds when the id changes; 6.1's cloud kernel has none."""
    guest = Guest(quire, "until dmesg | grep 'crng init done'; do sleep 0.1; done; echo waiting; "
                  "until dmesg | grep 'due to virtual machine fork'; do sleep 0.1; done",
                  **images("6.12"))
    try:
        guest.wait("waiting")
        guest.api.put("vm.renew-generation-id")
        guest.wait("quire-guest: exit 0")
    finally:
        guest.stop()


def connect_when_it_listens(guest):
    """The socket of a quire that has just been started: a file first, a listener next."""
    api, deadline = Api(guest.socket), time.monotonic() + BOOT_SECONDS
    while True:
        try:
            api.connect()
            return api
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < deadline and guest.process.poll() is None
            time.sleep(0.02)


def events_until(guest, last):
    """The events of a guest from its start to the one named last, or all it had."""
    events, seen = connect_when_it_listens(guest), []
    events.request("GET", "/api/v1/vm.events")
    stream = events.getresponse()
    while last not in seen:
        line = stream.readline()
        if not line:
            break
        seen.append(json.loads(line).get("event"))
    events.close()
    return seen


def test_panic_is_an_event(quire):
    guest = Guest(quire, "true", end="panic", cmdline="panic=0 quire.modules=pvpanic_mmio")
    try:
        seen = events_until(guest, "panic")
        assert "panic" in seen, guest.process.communicate(timeout=BOOT_SECONDS)
    finally:
        guest.stop()
