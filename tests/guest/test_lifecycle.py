# SPDX-License-Identifier: Apache-2.0
"""The life of a VM with a Linux guest, driven over the control API: pause and
resume, power button, reboot, shutdown and booting again."""
import http.client
import json
import re
import socket
import time

import pytest

from conftest import BOOT_SECONDS, wait_for, wait_listening

PAUSE_SECONDS = 15
# Says the guest's uptime ten times a second; then what the kernel complained of.
TICK = """
dmesg -c > /dev/null
i=0
while [ $i -lt 60 ]; do
	read up rest < /proc/uptime; echo "up $up"
	usleep 100000; i=$((i + 1))
done
echo "clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
dmesg | grep -iE 'unstable|soft lockup|stall|hung task|skew' | sed 's/^/complaint /'
echo "ticked"
"""
# Opened before it says so: from then on the kernel keeps what is pressed.
BUTTON = """
for e in /dev/input/event*; do :; done
exec 3< $e
echo listening on $e
head -c 24 <&3 > /dev/null && echo button pressed
"""


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=BOOT_SECONDS)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Api:
    def __init__(self, path):
        self.path = path

    def call(self, method, verb, body=None):
        connection = Connection(self.path)
        connection.request(method, f"/api/v1/{verb}", body and json.dumps(body))
        response = connection.getresponse()
        text = response.read()
        connection.close()
        return response.status, json.loads(text) if text else None

    def put(self, verb, body=None):
        status, answer = self.call("PUT", verb, body)
        assert status in (200, 204), (verb, status, answer)
        return answer

    def get(self, verb):
        status, answer = self.call("GET", verb)
        assert status == 200, (verb, status, answer)
        return answer

    def wait_state(self, state, seconds=BOOT_SECONDS):
        deadline = time.monotonic() + seconds
        while self.get("vm.info")["state"] != state:
            assert time.monotonic() < deadline, self.get("vm.info")
            time.sleep(0.2)


@pytest.fixture
def start(quire, tmp_path):
    """Start a guest with a control API; ends it, whatever the test did."""
    guests = []

    def make(*args, extra=(), **kwargs):
        path = tmp_path / f"api-{len(guests)}.sock"
        guest = quire.start(*args, extra=(*extra, "--api-socket", str(path)), **kwargs)
        guests.append(guest)
        wait_listening(path, guest)
        return guest, Api(path)

    yield make
    for guest in guests:
        if guest.poll() is None:
            guest.kill()
        guest.communicate()


def read_now(guest):
    """What the console has to give without waiting."""
    return (guest.stdout.read() or b"").decode(errors="replace")


def ticks(text):
    """Of whole lines: half a number is another one."""
    return [float(t) for t in re.findall(r"^up ([0-9.]+)\r?\n", text, re.M)]


def test_pause_and_boot_again(start):
    """Console and clock stand still, and go on as if nothing had been; then the
    VM is off, and on again."""
    guest, api = start(TICK, cpus=2)
    looked = time.monotonic()  # there may be two in what is read first
    seen = wait_for(guest, "up ")
    deadline = time.monotonic() + BOOT_SECONDS
    while len(ticks(seen)) < 2:
        assert time.monotonic() < deadline and guest.poll() is None, seen
        time.sleep(0.2)
        looked = time.monotonic()
        seen += read_now(guest)
    api.put("vm.pause")
    ran = time.monotonic() - looked
    assert api.get("vm.info")["state"] == "Paused"
    time.sleep(3)  # for output on its way
    seen += read_now(guest)
    before = ticks(seen)[-1]
    exits = api.get("vm.counters")["_vm"]["exits"]
    time.sleep(PAUSE_SECONDS)
    assert read_now(guest) == ""
    assert api.get("vm.counters")["_vm"]["exits"] == exits
    assert api.call("PUT", "vm.pause")[0] == 409
    assert api.call("PUT", "vm.power-button")[0] == 409
    resumed = time.monotonic()
    api.put("vm.resume")
    seen = wait_for(guest, "up ")
    ran += time.monotonic() - resumed
    if "ticked" not in seen:
        seen += wait_for(guest, "ticked")
    after = ticks(seen)[0]
    # a busy host may stretch a tick by what the guest ran; a clock that went on in the
    # pause is found in any case
    assert 0 <= after - before < PAUSE_SECONDS / 2 + min(ran, PAUSE_SECONDS / 2)
    assert "complaint" not in seen, seen
    assert "clock kvm-clock" in seen
    api.wait_state("Shutdown")  # the guest powered off
    assert api.call("PUT", "vm.resume")[0] == 409
    api.put("vm.boot")
    wait_for(guest, "up ")
    assert api.get("vm.info")["boots"] == 2
    api.put("vm.shutdown")
    assert api.get("vm.info")["state"] == "Shutdown"
    api.put("vmm.shutdown")
    assert guest.wait(timeout=BOOT_SECONDS) == 0


def test_reboot_power_button_and_config(start, quire, tmp_path):
    """vm.reboot starts anew; the button is heard; and the configuration that
    vm.info tells makes the same VM again, from a file."""
    image = tmp_path / "disk.img"
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    job = "cat /sys/bus/pci/devices/*/device | tr '\\n' ' '\n" + BUTTON
    guest, api = start(job, cpus=2, cmdline="quire.modules=button,evdev",
                       extra=("--rng", "src=kernel", "--disk", f"path={image}"))
    first = wait_for(guest, "listening on")
    api.put("vm.reboot")
    again = wait_for(guest, "listening on")
    assert "quire-guest: init" in again
    config = api.get("vm.info")["config"]
    api.put("vm.power-button")
    wait_for(guest, "button pressed")
    api.wait_state("Shutdown")
    api.put("vmm.shutdown")
    assert guest.wait(timeout=BOOT_SECONDS) == 0

    path = tmp_path / "vm.json"
    path.write_text(json.dumps(config))
    quire.argv = lambda *args, extra=(), **kwargs: [
        quire.binary, "run", "--config", str(path), *extra]
    guest, api = start()
    third = wait_for(guest, "listening on")
    devices = [re.findall(r"0x[0-9a-f]{4}", text) for text in (first, again, third)]
    assert devices[0] and devices[0] == devices[1] == devices[2]
    assert api.get("vm.info")["config"] == config
    guest.terminate()  # SIGTERM: the button, and quire ends with the guest
    assert guest.wait(timeout=BOOT_SECONDS) == 0
