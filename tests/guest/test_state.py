# SPDX-License-Identifier: Apache-2.0
"""Saved state under Linux guests: a machine is paused, saved, freed, built anew,
loaded and resumed, again and again, and its guest goes on.

tests/kvm/state_cycle does it: quire's own library without a file in between. It waits
until the guest's init has told its milestone: under the lab's emulator a program cannot
write to a port after a restore (lab/README.md, "Faults of the emulator").
"""
import base64
import contextlib
import json
import os
import pathlib
import re
import socket
import struct
import subprocess
import threading
import time

import pytest

BUILD = pathlib.Path(os.environ["QUIRE"]).resolve().parents[0]
SECONDS = 960  # a hang, not a slow machine

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
	[ ! -c /dev/hvc0 ] || echo "tick $i" > /dev/hvc0
	usleep 100000; i=$((i + 1))
done
touch /tmp/done
wait
{last}
head -c 32 /dev/hwrng > /dev/null && echo "hwrng ok"
echo "clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
dmesg | grep -iE 'unstable|lockup|stall|hung task|skew|error|irq .*nobody' | sed 's/^/complaint /'
echo "interrupts $(grep -c virtio /proc/interrupts)"
echo "worked"
"""


# Meanwhile, on network and vsock; connections of the latter end with each restore, of
# which there are four at most: the fifth attempt afterwards is left alone.
TRAFFIC = """
ip link set eth0 up; ip addr add 10.9.9.2/24 dev eth0
( n=0; while [ ! -e /tmp/done ]; do
	ping -c 1 -W 2 -s 1000 10.9.9.1 > /dev/null && n=$((n + 1)); usleep 50000
  done; echo "pings $n" ) &
( n=0; while [ ! -e /tmp/done ]; do
	vsocktest echo 2 5000 100000 > /dev/null 2>&1 && n=$((n + 1)); usleep 50000
  done; echo "echoes $n" ) &
"""
AFTER = """
ping -c 3 -W 5 10.9.9.1 > /dev/null && echo "network ok"
for i in 1 2 3 4 5; do
	vsocktest echo 2 5000 100000 && echo "vsock ok" && break
done
"""


def listen(path):
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(16)
    return server


class NetPeer:
    """The other end of a network, for each machine anew: 10.9.9.1, which answers
    ARP and pings."""
    MAC, IP = bytes.fromhex("52540a090901"), bytes([10, 9, 9, 1])

    def __init__(self, path):
        self.socket = listen(path)
        threading.Thread(target=self.serve, daemon=True).start()

    def answer(self, frame):
        kind = frame[12:14]
        if kind == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == self.IP:
            sender, ip = frame[22:28], frame[28:32]
            return (sender + self.MAC + frame[12:20] + b"\0\2" + self.MAC + self.IP
                    + sender + ip)
        if kind == b"\x08\0" and frame[23] == 1 and frame[30:34] == self.IP and frame[34] == 8:
            # Addresses change places, and a request's type becomes a reply's: checksums of
            # 16-bit words grow by what that word lost.
            total = struct.unpack(">H", frame[36:38])[0] + 0x0800
            total = (total & 0xffff) + (total >> 16)
            return (frame[6:12] + self.MAC + frame[12:26] + frame[30:34] + frame[26:30]
                    + b"\0" + frame[35:36] + struct.pack(">H", total) + frame[38:])
        return None

    def serve_one(self, connection):
        def read(size):
            data = b""
            while len(data) < size:
                chunk = connection.recv(size - len(data))
                if not chunk:
                    raise ConnectionResetError
                data += chunk
            return data

        while True:
            frame = read(struct.unpack(">I", read(4))[0])
            reply = self.answer(frame)
            if reply:
                reply = reply.ljust(60, b"\0")
                connection.sendall(struct.pack(">I", len(reply)) + reply)

    def serve(self):
        while True:
            connection, _ = self.socket.accept()
            with connection, contextlib.suppress(OSError):
                self.serve_one(connection)


class Echo:
    """A program of the host at the other end of vsock: outlives the machines."""

    def __init__(self, path):
        self.socket = listen(path)
        threading.Thread(target=self.serve, daemon=True).start()

    @staticmethod
    def serve_one(connection):
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)

    def serve(self):
        while True:
            connection, _ = self.socket.accept()
            threading.Thread(target=self.serve_one, args=(connection,), daemon=True).start()


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
    """Its console and its report, in which "ran_s" is how long there was a machine that ran."""
    began = time.monotonic()
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
    took = time.monotonic() - began
    cycles = [int(ms) for ms in re.findall(r"^state_cycle: cycle \d+: \d+ bytes, (\d+) ms$",
                                           errors, re.M)]
    report = json.loads(errors.strip().splitlines()[-1])
    assert len(cycles) == report["cycles"]
    return console, {**report, "ran_s": took - sum(cycles) / 1000}


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
    path = config(tmp_path, WORK.format(ticks=ticks, ops=1000, last=""), irqchip=irqchip)
    # Each costs the lab some ten seconds, and the guest as much to find its memory again.
    console, report = run(tmp_path, path, "--cycles", "4", "--await", "tick 3", "--every",
                          "2500", "--to-the-end")
    times = check(console, ticks)
    assert report["cycles"] >= 2
    # A tick is 100 ms of guest time and what the work takes of the CPU, be it as long as a
    # slow host takes; the time between saving and resuming is none of it.
    assert times[-1] - times[0] < max(ticks, report["ran_s"])


@pytest.mark.parametrize("cpus", [2, 4])
def test_cpus_and_devices(tmp_path, cpus):
    """In another order, on another slot of the bus each time, under traffic."""
    ticks = 40
    NetPeer(tmp_path / "net")
    Echo(tmp_path / "vsock_5000")
    job = TRAFFIC + WORK.format(ticks=ticks, ops=800, last=AFTER)
    path = config(tmp_path, job, cpus={"boot_vcpus": cpus}, watchdog=True,
                  vsock={"cid": 3, "socket": str(tmp_path / "vsock")},
                  console={"mode": "File", "file": str(tmp_path / "hvc.log")},
                  net=[{"mode": "socket", "socket": str(tmp_path / "net")}])
    console, report = run(tmp_path, path, "--cycles", "4", "--await", "tick 3", "--every",
                          "3000", "--resume-first", "--shuffle", "--to-the-end")
    check(console, ticks)
    assert report["cycles"] >= 2
    assert "network ok" in console and "vsock ok" in console
    assert int(re.search(r"^pings (\d+)", console, re.M)[1]) > 0
    assert int(re.search(r"^echoes (\d+)", console, re.M)[1]) > 0
    # Written by each machine from its beginning or behind the last one's end, the other
    # console has no line twice, and the last one.
    lines = re.findall(r"^tick (\d+)", (tmp_path / "hvc.log").read_text(errors="replace"), re.M)
    assert lines and int(lines[-1]) == ticks - 1
    assert [int(n) for n in lines] == list(range(int(lines[0]), ticks))
