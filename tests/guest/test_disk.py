# SPDX-License-Identifier: Apache-2.0
"""What a guest wrote is what the host reads, also after the worst moment."""
import os
import pathlib
import signal
import subprocess
import time

import pytest

from conftest import BOOT_SECONDS, wait_for

MIB = 2**20
BLKVERIFY = pathlib.Path(os.environ["GUEST_TOOLS"]) / "blkverify"


@pytest.fixture
def image(tmp_path):
    def make(mib, name="disk.img"):
        path = tmp_path / name
        with open(path, "wb") as f:
            f.truncate(mib * MIB)
        return path
    return make


def verified_on_host(tmp_path, console, options, path):
    """Hold the file to what the guest's blkverify said was flushed."""
    journal = tmp_path / "console.txt"
    journal.write_text(console)
    return subprocess.run([BLKVERIFY, *options.split(), "--verify-journal", journal, path],
                          capture_output=True, text=True)


@pytest.mark.parametrize("disk_options", ["", ",direct=on", ",num_queues=2"],
                         ids=["default", "direct", "two-queues"])
def test_disk_is_byte_correct_after_poweroff(quire, image, tmp_path, disk_options):
    disk = image(64)
    options = "--seed 5 --mib 64 --ops 4000 --discard 10 --zero 10"
    got = quire.run(f"blkverify {options} /dev/vda", cpus=2 if "queues" in disk_options else 1,
                    extra=["--disk", f"path={disk}{disk_options}"])
    assert got.status == 0 and got.job_status == 0, got
    assert "flushed 4000" in got.console
    done = verified_on_host(tmp_path, got.console, options, disk)
    assert done.returncode == 0, done


def test_corruption_is_found(quire, image, tmp_path):
    """The verifier itself: one flipped bit in the image fails it."""
    disk = image(8)
    options = "--seed 3 --mib 8 --ops 1000"
    got = quire.run(f"blkverify {options} /dev/vda", extra=["--disk", f"path={disk}"])
    assert verified_on_host(tmp_path, got.console, options, disk).returncode == 0
    with open(disk, "r+b") as f:
        data = bytearray(f.read())
        at = next(i for i in range(0, len(data), 4096) if any(data[i:i + 4096])) + 2000
        f.seek(at)
        f.write(bytes([data[at] ^ 1]))
    assert verified_on_host(tmp_path, got.console, options, disk).returncode != 0


def test_readonly_disk(quire, image):
    disk = image(8)
    disk.write_bytes(b"quire!" + bytes(8 * MIB - 6))
    before = disk.read_bytes()
    job = ("head -c 6 /dev/vda; echo; cat /sys/block/vda/ro; "
           "dd if=/dev/zero of=/dev/vda bs=4k count=1 2>/dev/null; echo write=$?")
    got = quire.run(job, extra=["--disk", f"path={disk},readonly=on"])
    console = got.console.replace("\r", "")
    assert "quire!\n1\nwrite=1" in console, got.console
    assert disk.read_bytes() == before


def test_serial_number_and_two_disks(quire, image):
    first, second = image(8, "a.img"), image(16, "b.img")
    job = "cat /sys/block/vda/serial; echo; cat /sys/block/vda/size /sys/block/vdb/size"
    got = quire.run(job, extra=["--disk", f"path={first},serial=quire-one",
                                "--disk", f"path={second}"])
    console = got.console.replace("\r", "")
    assert "quire-one" in console
    assert f"{8 * MIB // 512}\n{16 * MIB // 512}" in console, got.console
    assert [d["id"] for d in got.summary["devices"]] == ["disk0 (a.img)", "disk1 (b.img)"]


def test_discard_and_write_zeroes_free_blocks(quire, image):
    disk = image(64)
    disk.write_bytes(os.urandom(64 * MIB))
    got = quire.run("blkdiscard /dev/vda || true; sync", extra=["--disk", f"path={disk}"],
                    initrd=os.environ["GUEST_INITRD_FIO"])
    assert got.status == 0 and got.job_status == 0, got
    assert disk.stat().st_blocks * 512 < MIB, disk.stat()
    assert disk.read_bytes() == bytes(64 * MIB)


@pytest.fixture
def mounted(tmp_path):
    """Mount an image read-only on the host (replaying its journal first)."""
    folder = tmp_path / "mnt"
    folder.mkdir()

    def mount(disk):
        subprocess.run(["mount", "-o", "loop,ro", disk, folder], check=True)
        return folder
    yield mount
    subprocess.run(["umount", folder], check=False)


def test_ext4_with_checksums(quire, image, tmp_path, mounted):
    """More than 512 MiB of random I/O through ext4, verified on the host."""
    disk = image(1024)
    subprocess.run(["mkfs.ext4", "-q", "-F", disk], check=True)
    # operations of 1 to 16 blocks: more than 512 MiB written
    options = "--seed 9 --mib 384 --ops 18000 --sync-every 128 --discard 4 --zero 3"
    job = ("mkdir -p /m && mount -t ext4 -o discard /dev/vda /m && "
           f"blkverify {options} /m/data && umount /m && "
           "cat /sys/block/vda/stat")
    got = quire.run(job, timeout=4 * BOOT_SECONDS, extra=["--disk", f"path={disk}"])
    assert got.status == 0 and got.job_status == 0, got
    sectors = int(got.console.replace("\r", "").split("\nquire-guest: exit")[0]
                  .splitlines()[-1].split()[6])
    assert sectors * 512 >= 512 * MIB, "the job wrote less than 512 MiB"
    assert subprocess.run(["e2fsck", "-fn", disk], capture_output=True).returncode == 0
    done = verified_on_host(tmp_path, got.console, options, mounted(disk) / "data")
    assert done.returncode == 0, done


def killed(quire, disk, job, seconds):
    """Console of a guest whose quire was killed -9 in the middle of job."""
    guest = quire.start(job, extra=["--disk", f"path={disk}"])
    console = wait_for(guest, "flushed ")
    deadline = time.monotonic() + seconds
    os.set_blocking(guest.stdout.fileno(), False)
    while time.monotonic() < deadline:
        console += (guest.stdout.read() or b"").decode(errors="replace")
        time.sleep(0.01)
    guest.send_signal(signal.SIGKILL)
    guest.wait(timeout=BOOT_SECONDS)
    console += (guest.stdout.read() or b"").decode(errors="replace")
    assert "quire-guest: exit" not in console, "the job ended before the kill"
    return console


@pytest.mark.parametrize("seconds", [0.2, 1.1, 2.3])
def test_flushed_data_survives_kill_9(quire, image, tmp_path, seconds):
    disk = image(64)
    options = "--seed 7 --mib 64 --ops 1000000 --discard 10 --zero 5"
    console = killed(quire, disk, f"blkverify {options} /dev/vda", seconds)
    done = verified_on_host(tmp_path, console, options, disk)
    assert done.returncode == 0, done


def test_ext4_survives_kill_9(quire, image, tmp_path, mounted):
    disk = image(256)
    subprocess.run(["mkfs.ext4", "-q", "-F", disk], check=True)
    options = "--seed 11 --mib 128 --ops 1000000"
    console = killed(quire, disk, "mkdir -p /m && mount -t ext4 /dev/vda /m && "
                     f"blkverify {options} /m/data", 2)
    # replay the journal, as the next boot would
    assert subprocess.run(["e2fsck", "-fy", disk], capture_output=True).returncode in (0, 1)
    done = verified_on_host(tmp_path, console, options, mounted(disk) / "data")
    assert done.returncode == 0, done


def test_kill_9_frees_the_lock(quire, image):
    disk = image(8)
    extra = ["--disk", f"path={disk}"]
    first = quire.start("sleep 1000", extra=extra)
    wait_for(first, "quire-guest: init")
    second = quire.run("true", extra=extra)
    assert second.status == 1 and "in use" in second.errors, second
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=BOOT_SECONDS)
    assert quire.run("true", extra=extra).status == 0


def test_rng(quire):
    job = ("cat /sys/class/misc/hw_random/rng_current; "
           "dd if=/dev/hwrng bs=512 count=8 2>/dev/null | od -An -tx1 | sort -u | wc -l")
    got = quire.run(job, extra=["--rng", "src=/dev/urandom"])
    assert got.status == 0 and got.job_status == 0, got
    assert "virtio_rng" in got.console
    lines = [int(x) for x in got.console.split() if x.isdigit()]
    assert 200 in lines or 256 in lines or max(lines) > 150, got.console
