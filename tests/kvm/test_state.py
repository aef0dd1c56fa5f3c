# SPDX-License-Identifier: Apache-2.0
"""A machine under a hostile guest, saved and restored again and again.

guest/probe/hostile.elf abuses PCI, virtio and the platform devices; whatever
state it has brought them into is saved, loaded into a new machine, and goes on.
Damaged copies of it are refused or loaded, and do no harm.
"""
import bisect
import json
import os
import pathlib
import re
import socket
import subprocess
import threading

import pytest

BUILD = pathlib.Path(os.environ.get("QUIRE_BUILD", "build"))
BUILD_ASAN = os.environ.get("QUIRE_BUILD_ASAN")

CONFIGS = {
    "one-cpu": {"cpus": {"boot_vcpus": 1}},
    "two-cpus": {"cpus": {"boot_vcpus": 2}},
    "split-irqchip": {"cpus": {"boot_vcpus": 2}, "irqchip": "split"},
    "many-devices": {"cpus": {"boot_vcpus": 2}, "watchdog": True,
                     "net": [{"mode": "socket", "socket": "{dir}/net"}],
                     "vsock": {"cid": 3, "socket": "{dir}/vsock"},
                     "console": {"mode": "File", "file": "{dir}/hvc"},
                     "rng": {"src": "kernel"}},
}


def binaries():
    """state_cycle and the guest image; the sanitized build if there is one."""
    for build in filter(None, [BUILD_ASAN, BUILD]):
        program = pathlib.Path(build) / "tests/kvm/state_cycle"
        guest = pathlib.Path(build) / "guest/probe/hostile.elf"
        if program.exists() and guest.exists():
            return program, guest
    return pytest.fail(f"no state_cycle with guest/probe/hostile.elf in {BUILD}")


class NetPeer:
    """The other end of a network: takes frames and gives some back, for each machine."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
                while data := connection.recv(65536):
                    connection.sendall(bytes([0, 0, 0, 60]) + bytes(60))
            except OSError:
                pass


def write_config(folder, guest, changes, seed):
    disk = folder / "disk.img"
    with open(disk, "wb") as f:
        f.truncate(4 << 20)
    text = json.dumps({
        "payload": {"kernel": str(guest), "cmdline": f"seed={seed}"},
        "memory": {"size": 128 << 20},
        "serial": {"mode": "File", "file": str(folder / "serial.log")},
        "disks": [{"path": str(disk)}],
        "on_panic": "continue",
        **changes,
    })
    path = folder / "vm.json"
    path.write_text(text.replace("{dir}", str(folder)))
    return path


def run(folder, changes, *options, seed=1):
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no usable /dev/kvm")
    program, guest = binaries()
    if not (folder / "net").exists():
        NetPeer(folder / "net")
    path = write_config(folder, guest, changes, seed)
    got = subprocess.run([program, *options, path], stdin=subprocess.DEVNULL,
                         capture_output=True, text=True, timeout=300,
                         env={**os.environ, "ASAN_OPTIONS": "detect_leaks=1",
                              "UBSAN_OPTIONS": "halt_on_error=1"})
    print(got.stderr[-4000:])
    assert got.returncode == 0, (got.returncode, got.stderr[-2000:])
    return json.loads(got.stderr.strip().splitlines()[-1])


def actions(folder):
    log = (folder / "serial.log").read_text(errors="replace")
    return [int(n) for n in re.findall(r"actions (\d+)", log)]


def ascending(numbers):
    """How many of them are in order: the longest subsequence that never falls."""
    ends = []
    for n in numbers:
        at = bisect.bisect_right(ends, n)
        ends[at:at + 1] = [n]
    return len(ends)


def crashed(report):
    """A guest that crashes itself, which it may, ends the run early."""
    return report["end"] != 0


@pytest.mark.parametrize("name", CONFIGS)
def test_goes_on(tmp_path, name):
    report, seed = {"end": 1}, 0
    # On a busy host it may also not have come to say anything.
    while crashed(report) or not actions(tmp_path):
        seed += 1
        assert seed < 20
        report = run(tmp_path, CONFIGS[name], "--cycles", "12", "--first", "400",
                     "--every", "60", "--shuffle", "--resume-first", seed=seed)
    assert report["cycles"] == 12
    # Its count went on in the last machine, from where it was in the others. Another CPU
    # abuses the serial port now and then, and a number loses digits or gets some.
    seen = actions(tmp_path)
    assert ascending(seen) >= 0.9 * len(seen)


def test_damage(tmp_path):
    report, seed = {"end": 1}, 100
    while crashed(report):
        seed += 1
        assert seed < 120
        report = run(tmp_path, CONFIGS["many-devices"], "--cycles", "4", "--first", "400",
                     "--every", "60", "--damage", "15", seed=seed)
    assert report["cycles"] == 4
    assert report["refused"] + report["accepted"] == 60
    assert report["refused"] > 5
