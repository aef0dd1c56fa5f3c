# SPDX-License-Identifier: Apache-2.0
"""Disks in snapshots, restores and forks: cloned where the file system shares blocks, on
others copied or refused."""
import os
import re
import shutil
import subprocess

import pytest

from host_kit import unmount
from test_restore import Host, WALKER, forks, wait_passes

MIB = 1 << 20
SHARING = {"xfs": ["mkfs.xfs", "-q"], "btrfs": ["mkfs.btrfs", "-q"]}
OTHERS = {"ext4": ["mkfs.ext4", "-q"]}


@pytest.fixture
def host(tmp_path):
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no usable /dev/kvm")
    h = Host(tmp_path)
    yield h
    h.end()


@pytest.fixture
def mounted(host):
    """mounted(KIND): a directory on a file system of that kind. Goes before the host does."""
    places = []

    def mount(kind):
        argv = {**SHARING, **OTHERS}[kind]
        if not shutil.which(argv[0]):
            pytest.skip(f"no {argv[0]}")
        image, place = host.dir / f"{kind}.fs", host.dir / kind
        place.mkdir()
        with open(image, "wb") as f:
            f.truncate(512 * MIB)
        subprocess.run([*argv, image], check=True)
        done = subprocess.run(["mount", "-o", "loop", image, place], capture_output=True,
                              text=True)
        if done.returncode:
            pytest.skip(f"{kind}: {done.stderr.strip()}")
        places.append(place)
        return place
    yield mount
    host.end()
    for place in places:
        unmount(place)


def is_shared(path):
    """Are all of its blocks another file's as well?"""
    subprocess.run(["sync", path], check=True)
    listing = subprocess.run(["filefrag", "-v", path], capture_output=True, text=True,
                             check=True).stdout
    extents = re.findall(r"^ +\d+: .*$", listing, re.M)
    assert extents, listing
    return all("shared" in line for line in extents)


def boot(host, place):
    disk = place / "disk.img"
    disk.write_bytes(os.urandom(4 * MIB))
    serial = host.dir / "one.log"
    host.start("run", "--kernel", WALKER, "--cmdline", "mib=16", "--memory", "size=64M",
               "--serial", f"file={serial}", "--name", "one", "--disk", f"path={disk}")
    wait_passes(serial)
    return disk


def restore(host, snapshot, disk, name="two", check=True):
    serial = host.dir / f"{name}.log"
    args = ["restore", snapshot, "--as", name, "--set", f"serial.file={serial}", "--set",
            f"_disk0.path={disk}"]
    if not check:
        return host.quire(*args, check=False)
    host.start(*args)
    return wait_passes(serial)


@pytest.mark.parametrize("kind", SHARING)
def test_cloned(host, mounted, kind):
    place = mounted(kind)
    disk = boot(host, place)
    assert not is_shared(disk)
    snapshot = place / "snap"
    host.quire("snapshot", "one", snapshot)
    saved = snapshot / "disk-_disk0"
    assert is_shared(saved) and is_shared(disk)
    # --disks copy need not copy.
    host.quire("snapshot", "one", place / "copied", "--disks", "copy")
    assert is_shared(place / "copied/disk-_disk0")
    restore(host, snapshot, place / "two.img")
    assert is_shared(place / "two.img")
    forks(host, "one", 2)
    for path in [place / "two.img", place / "disk.img.one-1", place / "disk.img.one-2"]:
        assert is_shared(path) and path.read_bytes() == disk.read_bytes()
    # A clone is a file of its own.
    before = saved.read_bytes()
    with open(place / "two.img", "r+b") as f:
        f.write(b"other" * 1000)
    assert saved.read_bytes() == before == disk.read_bytes()
    assert not [p for p in os.listdir(place) if p.startswith(".")]


@pytest.mark.parametrize("kind", OTHERS)
def test_where_nothing_is_shared(host, mounted, kind):
    place = mounted(kind)
    disk = boot(host, place)
    for args in (["snapshot", "one", place / "snap"], ["fork", "one"]):
        done = host.quire(*args, check=False)
        assert done.returncode == 1
        assert re.search(r"disk _disk0.*cannot be cloned here.*--disks copy", done.stderr)
    assert sorted(os.listdir(place)) == ["disk.img", "lost+found"]
    host.quire("snapshot", "one", place / "snap", "--disks", "copy")
    restore(host, place / "snap", place / "two.img")
    forks(host, "one", 1, "--disks", "copy")
    for path in [place / "snap/disk-_disk0", place / "two.img", place / "disk.img.one-1"]:
        assert not is_shared(path) and path.read_bytes() == disk.read_bytes()


def test_from_one_to_another(host, mounted):
    """Blocks are shared within a file system only."""
    from_place, to_place = mounted("xfs"), mounted("btrfs")
    disk = boot(host, from_place)
    done = host.quire("snapshot", "one", to_place / "snap", check=False)
    assert done.returncode == 1 and "cannot be cloned here" in done.stderr
    assert os.listdir(to_place) == []
    host.quire("snapshot", "one", to_place / "snap", "--disks", "copy")
    assert not is_shared(to_place / "snap/disk-_disk0")
    # Coming back it is copied over, or cloned where that can be.
    restore(host, to_place / "snap", from_place / "two.img")
    restore(host, to_place / "snap", to_place / "three.img", name="three")
    assert not is_shared(from_place / "two.img")
    assert is_shared(to_place / "three.img")
    for path in [from_place / "two.img", to_place / "three.img"]:
        assert path.read_bytes() == disk.read_bytes()


def test_full(host, mounted):
    """A disk for which there is no room: nothing is left, and the snapshot is as it was."""
    place, small = mounted("xfs"), host.dir / "small"
    boot(host, place)
    host.quire("snapshot", "one", place / "snap")
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", small], check=True)
    try:
        done = restore(host, place / "snap", small / "two.img", check=False)
        assert done.returncode == 1
        assert re.search(r"disk _disk0: making .*two\.img.*No space left on device", done.stderr)
        assert not (small / "two.img").exists()
    finally:
        unmount(small)
    restore(host, place / "snap", place / "two.img")
