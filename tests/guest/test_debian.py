# SPDX-License-Identifier: Apache-2.0
"""A real Debian with systemd: its root in a host directory, and on a disk.

QUIRE_STRESS_SECONDS is how long stress-ng runs (60).
"""
import base64
import os
import pathlib
import re
import subprocess

import pytest

from conftest import copy_sparse

DEBIAN = os.environ.get("GUEST_DEBIAN")
STRESS_SECONDS = int(os.environ.get("QUIRE_STRESS_SECONDS", "60"))
SECONDS = 900  # of a boot with systemd, in an emulated host

pytestmark = pytest.mark.skipif(not DEBIAN, reason="no Debian system: lab/assets --debian")


def boot(quire, root, job, *options, seconds=SECONDS, memory="768M"):
    encoded = base64.b64encode(job.encode()).decode()
    return quire.run(kernel=os.environ["GUEST_KERNEL_6_1"],
                     initrd=os.environ["GUEST_INITRD_6_1"], memory=memory,
                     cmdline=f"quire.root={root} quire.job64={encoded}",
                     extra=options, timeout=seconds)


def in_order(result):
    """It came up, did its job, and powered off by its own doing."""
    assert result.status == 0 and result.job_status == 0, result
    assert "quire-guest login:" in result.console, result.console
    assert re.search("reboot: Power down", result.console), result.console


@pytest.fixture
def tree(tmp_path):
    """The system as a directory on a file system of its own.

    Not the lab's view of the tree that lab/assets made: an overlay changes a file's inode
    number when it is first written, and virtiofsd then answers with EIO.
    """
    image, directory = tmp_path / "tree.ext4", tmp_path / "root"
    copy_sparse(pathlib.Path(DEBIAN) / "root.ext4", image)
    directory.mkdir()
    mount = subprocess.run(["mount", "-o", "loop", image, directory], capture_output=True,
                           text=True)
    if mount.returncode:
        pytest.skip(f"no loop mounts here: {mount.stderr.strip()}")
    yield directory
    subprocess.run(["umount", directory], check=True)
    image.unlink()


PACKAGES = """
set -e
findmnt -no FSTYPE /
systemctl is-active multi-user.target
dpkg -i /root/packages/*.deb
dpkg -V less hello
hello
dpkg --audit
less --version | head -1
dpkg --purge hello
! test -e /usr/bin/hello
sync
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="virtiofsd wants root")
def test_root_is_a_directory(quire, tree):
    """To a login prompt, and a package installation, in a directory of the host."""
    result = boot(quire, "virtiofs:root", PACKAGES,
                  "--fs", f"tag=root,path={tree},xattr=on,cache=always")
    in_order(result)
    assert "virtiofs\n" in result.console.replace("\r", "")
    assert "Hello, world!" in result.console
    # seen from the host: what was installed is there, what was purged is not
    assert (tree / "usr/bin/less").stat().st_size > 50000
    assert not (tree / "usr/bin/hello").exists()
    status = (tree / "var/lib/dpkg/status").read_text()
    assert "Package: less\nStatus: install ok installed\n" in status


STRESS = """
set -e
findmnt -no FSTYPE /
systemctl is-active multi-user.target
test "$(systemctl --failed --no-legend | wc -l)" = 0 || {{ systemctl --failed; exit 1; }}
stress-ng --verify --timeout {seconds} --metrics-brief --cpu 1 --vm 1 --vm-bytes 128M \\
    --hdd 1 --hdd-bytes 32M --temp-path /var/tmp
"""


def test_disk_and_stress(quire, tmp_path):
    """A disk to multi-user, stress-ng with verification, and a clean end."""
    image = tmp_path / "root.ext4"
    copy_sparse(pathlib.Path(DEBIAN) / "root.ext4", image)
    result = boot(quire, "/dev/vda", STRESS.format(seconds=STRESS_SECONDS),
                  "--disk", f"path={image}", seconds=SECONDS + 3 * STRESS_SECONDS)
    in_order(result)
    assert "successful run completed" in result.console
    assert not re.search("stress-ng: fail", result.console), result.console
