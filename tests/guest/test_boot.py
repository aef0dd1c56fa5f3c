# SPDX-License-Identifier: Apache-2.0
"""Stock Debian kernels boot, see the machine they were given, and end as asked."""
import os
import signal
import socket
import time

import pytest

from conftest import BOOT_SECONDS, stop, wait_for


@pytest.mark.parametrize("image", ["KERNEL", "VMLINUX"])
@pytest.mark.parametrize("version", ["6.1", "6.12"])
def test_kernels(quire, version, image):
    tag = version.replace(".", "_")
    got = quire.run("uname -r", kernel=os.environ[f"GUEST_{image}_{tag}"],
                    initrd=os.environ[f"GUEST_INITRD_{tag}"])
    assert got.status == 0, got
    assert got.job_status == 0, got.console
    assert f"\n{version}." in got.console.replace("\r", ""), got.console


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_cpus(quire, cpus):
    got = quire.run("nproc; grep -c ^processor /proc/cpuinfo; "
                    "cat /sys/devices/system/cpu/cpu*/topology/core_id | sort -u | wc -l",
                    cpus=cpus)
    assert got.status == 0 and got.job_status == 0, got
    lines = got.console.replace("\r", "").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("quire-guest: init"))
    assert lines[at + 1:at + 4] == [str(cpus)] * 3, got.console
    assert got.summary["vcpus"] == cpus


@pytest.mark.parametrize("cpus", [2, 4])
def test_threads_of_a_core(quire, cpus):
    got = quire.run("cat /sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
                    cpus=f"{cpus},threads=2")
    assert got.status == 0, got
    assert "\n0-1" in got.console.replace("\r", ""), got.console


# resident_mib: what a booted Debian kernel touches by itself. Kernel, initramfs
# and slabs are about 110 MiB (in 2M pages), the page structs 1/64 of memory, and
# with memory above 4 GiB the kernel clears a 64 MiB swiotlb.
@pytest.mark.parametrize("size,page,low,high,resident_mib", [
    ("128M", "thp", 90, 128, 128), ("1G", "thp", 900, 1024, 166),
    ("5G", "4k", 4800, 5120, 294)])
def test_memory(quire, size, page, low, high, resident_mib):
    got = quire.run("grep MemTotal /proc/meminfo", memory=f"size={size},page={page}")
    assert got.status == 0 and got.job_status == 0, got
    mib = int(got.console.split("MemTotal:")[1].split()[0]) / 1024
    assert low <= mib <= high
    # memory that the guest does not touch costs nothing
    assert got.summary["guest_resident_bytes"] <= resident_mib * 2**20, got.summary


def test_memory_map_of_5g(quire):
    """3 GiB below the hole and 2 GiB above it; Linux allocates from the top."""
    got = quire.run("grep 'System RAM' /proc/iomem", memory="size=5G")
    assert got.job_status == 0, got.console
    assert "00100000-bfffffff : System RAM" in got.console
    assert "100000000-17fffffff : System RAM" in got.console


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_irqchip(quire, irqchip):
    got = quire.run("cat /proc/interrupts", cpus=2, extra=["--irqchip", irqchip])
    assert got.status == 0 and got.job_status == 0, got
    assert "ttyS0" in got.console


def test_reboot_stops_when_asked(quire):
    got = quire.run("true", end="reboot", extra=["--on-reboot", "stop"])
    assert (got.status, got.boots) == (0, 1), got


@pytest.mark.parametrize("verb,extra", [("reboot", []), ("panic", []),
                                        ("triple", ["--on-crash", "restart"])])
def test_restarts(quire, verb, extra):
    guest = quire.start("true", end=verb, extra=extra)
    for _ in range(2):
        wait_for(guest, "quire-guest: init")
    assert stop(guest) == 128 + signal.SIGINT


def test_panic_stops_when_asked(quire):
    got = quire.run("true", end="panic", extra=["--on-reboot", "stop"])
    assert got.status == 0 and got.boots == 1, got


def test_triple_fault_is_a_failure(quire):
    got = quire.run("true", end="triple")
    assert (got.status, got.boots) == (1, 1), got
    assert "triple fault" in got.errors and "vCPU" in got.errors


def test_halted_guest_does_not_hang_quire(quire):
    guest = quire.start("true", end="halt")
    wait_for(guest, "quire-guest: exit")
    time.sleep(1)
    assert guest.poll() is None  # a halted guest is no ended guest
    assert stop(guest) == 128 + signal.SIGINT


def test_panicked_guest_that_stays_does_not_hang_quire(quire):
    guest = quire.start("true", end="panic", cmdline="panic=0")
    wait_for(guest, "quire-guest: exit")
    time.sleep(2)
    assert guest.poll() is None
    assert stop(guest, signal.SIGHUP) == 128 + signal.SIGHUP


def test_sigterm_deadline(quire):
    """A guest that ignores its power button is stopped after the deadline."""
    guest = quire.start("sleep 1000", extra=["--shutdown-timeout", "2"])
    wait_for(guest, "quire-guest: init")
    start = time.monotonic()
    assert stop(guest, signal.SIGTERM) == 128 + signal.SIGTERM
    assert time.monotonic() - start >= 1.9


def test_power_button(quire):
    """SIGTERM presses the button; a guest that listens powers off: status 0."""
    # Opened before it says so: from then on the kernel keeps what is pressed.
    job = ("for e in /dev/input/event*; do :; done; exec 3<$e; echo listening on $e; "
           "head -c 24 <&3 >/dev/null && echo button-seen")
    guest = quire.start(job, cmdline="quire.modules=button,evdev")
    wait_for(guest, "listening")
    guest.send_signal(signal.SIGTERM)
    wait_for(guest, "button-seen")
    out, _ = guest.communicate(timeout=BOOT_SECONDS)
    assert guest.returncode == 0, out


def test_serial_file_and_null(quire, tmp_path):
    log = tmp_path / "console.log"
    got = quire.run("echo hello from the guest", extra=["--serial", f"file={log}"])
    assert got.status == 0 and got.console == ""
    assert "hello from the guest" in log.read_text()
    got = quire.run("true", extra=["--serial", "null"])
    assert got.status == 0 and got.console == ""


def test_console_file_spans_reboots(quire, tmp_path):
    """The log of the boot that crashed is what people look for."""
    log = tmp_path / "console.log"
    guest = quire.start("true", end="reboot", extra=["--serial", f"file={log}"])
    deadline = time.monotonic() + 2 * BOOT_SECONDS
    while not log.exists() or log.read_text(errors="replace").count("quire-guest: init") < 2:
        assert time.monotonic() < deadline and guest.poll() is None
        time.sleep(0.1)
    assert stop(guest) == 128 + signal.SIGINT


def test_serial_socket_both_ways(quire, tmp_path):
    path = tmp_path / "console.sock"
    guest = quire.start("read -r line; echo got:$line", extra=["--serial", f"socket={path}"])
    client = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + BOOT_SECONDS
    while True:
        try:
            client.connect(str(path))
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    client.settimeout(BOOT_SECONDS)
    seen = b""
    while b"quire-guest: init" not in seen:
        seen += client.recv(4096)
    time.sleep(0.3)
    client.sendall(b"ping\n")
    while b"got:ping" not in seen:
        data = client.recv(4096)
        assert data, seen
        seen += data
    guest.communicate(timeout=BOOT_SECONDS)
    assert guest.returncode == 0
    assert not path.exists()


def test_debug_exit(quire):
    got = quire.run("true", end="debug", extra=["--debug-exit"])
    assert got.status == 7, got


def test_clock(quire):
    before = int(time.time())
    got = quire.run("date +%s; cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
    guest = [int(x) for x in got.console.split() if x.isdigit() and len(x) == 10]
    assert guest and before - 2 <= guest[0] <= time.time() + 2, got.console
    assert "kvm-clock" in got.console or "tsc" in got.console


def test_populated_host_pages(quire):
    got = quire.run("true", memory="size=256M,page=4k,populate=host")
    assert got.status == 0
    assert got.summary["guest_resident_bytes"] == 256 * 2**20
    assert got.summary["populate_s"] > 0
