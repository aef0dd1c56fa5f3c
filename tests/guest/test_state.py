# SPDX-License-Identifier: Apache-2.0
"""Saved state under Linux guests: a machine is paused, saved, freed, built anew,
loaded and resumed, again and again, and its guest goes on.

tests/kvm/state_cycle does it: quire's own library without a file in between.
"""
import base64
import json
import os
import pathlib
import re
import socket
import subprocess
import threading

import pytest

BUILD = pathlib.Path(os.environ["QUIRE"]).resolve().parents[0]
SECONDS = 300

# Works on the disk, in memory and with timers until it has counted its ticks,
# and says what the kernel complained of.
WORK = """
dmesg -c > /dev/null
( blkverify --ops {ops} --mib 16 /dev/vda; echo "disk $?" ) &
( head -c 8000000 /dev/urandom > /tmp/m; sum=$(md5sum < /tmp/m); n=0
  while [ ! -e /tmp/done ]; do
	[ "$(md5sum < /tmp/m)" = "$sum" ] || echo "memory differs"; n=$((n + 1))
  done; echo "memory $n" ) &
head -c 32 /dev/hwrng > /dev/null && echo "hwrng ok"
i=0
while [ $i -lt {ticks} ]; do
	read up rest < /proc/uptime; echo "tick $i $up"
	usleep 100000; i=$((i + 1))
done
touch /tmp/done
wait
head -c 32 /dev/hwrng > /dev/null && echo "hwrng ok"
echo "clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
dmesg | grep -iE 'unstable|lockup|stall|hung task|skew|error|irq .*nobody' | sed 's/^/complaint /'
echo "interrupts $(grep -c virtio /proc/interrupts)"
echo "worked"
"""


class NetPeer:
    """The other end of a network, for each machine anew: takes frames."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
                while connection.recv(65536):
                    pass
            except OSError:
                pass


def program():
    for folder in (BUILD, BUILD.parent, BUILD.parent.parent):
        path = folder / "tests/kvm/state_cycle"
        if path.exists():
            return path
    return pytest.fail(f"no tests/kvm/state_cycle near {BUILD}")


def config(tmp_path, job, **changes):
    words = ["console=ttyS0", "quiet", "panic=-1",
             "quire.run64=" + base64.b64encode(job.encode()).decode()]
    disk = tmp_path / "disk.img"
    with open(disk, "wb") as f:
        f.truncate(32 << 20)
    doc = {
        "payload": {"kernel": os.environ["GUEST_KERNEL"],
                    "initramfs": os.environ["GUEST_INITRD"],
                    "cmdline": " ".join(words)},
        "cpus": {"boot_vcpus": 1},
        "memory": {"size": 128 << 20},
        "serial": {"mode": "File", "file": str(tmp_path / "serial.log")},
        "disks": [{"path": str(disk)}],
        "rng": {"src": "kernel"},
        **changes,
    }
    path = tmp_path / "vm.json"
    path.write_text(json.dumps(doc))
    return path


def run(tmp_path, path, *options):
    try:
        got = subprocess.run([program(), *options, path], stdin=subprocess.DEVNULL,
                             capture_output=True, text=True, timeout=SECONDS)
        errors, status = got.stderr, got.returncode
    except subprocess.TimeoutExpired as late:
        errors, status = (late.stderr or b"").decode(errors="replace"), None
    log = tmp_path / "serial.log"
    console = log.read_text(errors="replace") if log.exists() else ""
    print(console, errors)
    assert status == 0, (status, errors[-2000:], console[-2000:])
    return console, json.loads(errors.strip().splitlines()[-1])


def check(console, ticks):
    """All of them, each once, in order, and time never went back."""
    seen = re.findall(r"^tick (\d+) ([\d.]+)", console, re.M)
    assert [int(i) for i, _ in seen] == list(range(ticks))
    times = [float(up) for _, up in seen]
    assert times == sorted(times)
    assert "disk 0" in console
    assert re.search(r"^memory \d+", console, re.M)
    assert "memory differs" not in console
    assert console.count("hwrng ok") == 2
    assert "worked" in console
    assert "complaint" not in console
    assert "clock kvm-clock" in console or "clock tsc" in console
    return times


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_guest_goes_on(tmp_path, irqchip):
    ticks = 60
    path = config(tmp_path, WORK.format(ticks=ticks, ops=1500), irqchip=irqchip)
    console, report = run(tmp_path, path, "--cycles", "1000", "--first", "14000",
                          "--every", "2500")
    times = check(console, ticks)
    assert report["cycles"] >= 2
    # A tick is 100 ms of guest time and what the work takes of the CPU; the
    # time between saving and resuming, which is far longer, is none of it.
    assert times[-1] - times[0] < ticks


def test_two_cpus_and_a_shuffle_of_devices(tmp_path):
    ticks = 40
    NetPeer(tmp_path / "net")
    path = config(tmp_path, WORK.format(ticks=ticks, ops=800),
                  cpus={"boot_vcpus": 2}, watchdog=True,
                  vsock={"cid": 3, "socket": str(tmp_path / "vsock")},
                  console={"mode": "File", "file": str(tmp_path / "hvc.log")},
                  net=[{"mode": "socket", "socket": str(tmp_path / "net")}])
    console, report = run(tmp_path, path, "--cycles", "1000", "--first", "14000",
                          "--every", "2500", "--resume-first", "--shuffle")
    check(console, ticks)
    assert report["cycles"] >= 2
