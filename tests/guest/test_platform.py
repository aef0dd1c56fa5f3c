# SPDX-License-Identifier: Apache-2.0
"""What the DSDT describes beside the classics: panic port, generation id, slots."""
import os
import re
import signal

import pytest

from conftest import stop, wait_for

VERSIONS = ["6.1", "6.12"]


def images(version):
    tag = version.replace(".", "_")
    return {"kernel": os.environ[f"GUEST_KERNEL_{tag}"],
            "initrd": os.environ[f"GUEST_INITRD_{tag}"]}


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
@pytest.mark.parametrize("version", VERSIONS)
def test_drivers_find_their_devices(quire, version, irqchip):
    got = quire.run(
        "ls /sys/bus/pci/slots | wc -l; ls /sys/bus/platform/devices/QEMU0001:00/driver/; "
        "cat /sys/firmware/acpi/interrupts/gpe01 /sys/firmware/acpi/interrupts/gpe02; "
        "dmesg | grep -iE 'acpi.*(error|bug|exception)'",
        cmdline="quire.modules=pvpanic_mmio", extra=["--irqchip", irqchip], **images(version))
    assert got.status == 0, got
    text = got.console.replace("\r", "")
    assert "\n31\n" in text, text  # slots that acpiphp serves
    assert "module" in text, text  # the driver's link to pvpanic_mmio
    assert len(re.findall(r"EN +enabled", text)) == 2, text
    assert not re.search(r"(?i)acpi.*(error|exception)", text), text


@pytest.mark.parametrize("version", VERSIONS)
def test_panic_stops(quire, version):
    got = quire.run("true", end="panic", cmdline="panic=0 quire.modules=pvpanic_mmio",
                    extra=["--on-panic", "stop"], **images(version))
    assert (got.status, got.boots) == (1, 1), got
    assert "panicked" in got.errors, got


def test_panic_restarts(quire):
    guest = quire.start("true", end="panic", cmdline="panic=0 quire.modules=pvpanic_mmio",
                        extra=["--on-panic", "restart"])
    for _ in range(2):
        wait_for(guest, "quire-guest: init")
    assert stop(guest) == 128 + signal.SIGINT


def test_panic_is_the_guests_affair_by_default(quire):
    """It reboots, since its panic= argument says so; the event is seen all the same."""
    got = quire.run("true", end="panic", cmdline="quire.modules=pvpanic_mmio",
                    extra=["--on-reboot", "stop"])
    assert (got.status, got.boots) == (0, 1), got
    assert "panicked" in got.errors, got
