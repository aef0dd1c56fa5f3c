# SPDX-License-Identifier: Apache-2.0
"""vm.restore while other things are asked: it takes long, and holds nobody up."""
import contextlib
import os
import pathlib
import re
import subprocess
import sys
import threading

import pytest

from host_kit import of_threads

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/cli"))
from api_kit import Server, needs_kvm, wait_for  # noqa: E402

pytestmark = needs_kvm
BUILD = pathlib.Path(os.environ.get("QUIRE_BUILD", "build"))
WALKER = (BUILD / "guest/probe/walker.elf").resolve()
MIB = 1 << 20


class Vm(Server):
    """One server, which had a walking guest with a disk, and has a snapshot of it."""

    def __init__(self, folder, mib, size_mib):
        super().__init__(folder)
        self.serial, self.disk = folder / "serial", folder / "disk.img"
        self.disk.write_bytes(os.urandom(MIB))
        self.size = size_mib * MIB
        self.snapshot = folder / "snap"
        self.answer = None
        self.ok("create", {"payload": {"kernel": str(WALKER), "cmdline": f"mib={mib}"},
                           "memory": {"size": self.size}, "disks": [{"path": str(self.disk)}],
                           "serial": {"mode": "File", "file": str(self.serial)}})
        self.ok("boot")
        wait_for(lambda: self.passes())
        self.ok("snapshot", {"destination_url": str(self.snapshot), "disks": "copy"})
        self.ok("delete")
        self.serial.unlink()

    def ok(self, verb, body=None):
        status, answer = self.verb(verb, body)
        assert status in (200, 204), (verb, answer)

    def passes(self):
        text = self.serial.read_text(errors="replace") if self.serial.exists() else ""
        assert "BAD" not in text, text[-300:]
        return re.findall(r"walker: pass (\d+)\n", text)

    def begin_restore(self, disk, **fields):
        """In the background; self.answer is what was answered."""
        body = {"source_url": str(self.snapshot), "resume": True,
                "devices": {"_disk0": {"path": str(disk)}}, **fields}

        def ask():
            with contextlib.suppress(OSError):
                self.answer = self.verb("restore", body)
        self.answer = None
        thread = threading.Thread(target=ask)
        thread.start()
        return thread

    def waits(self):
        """Is the thread that makes disks somewhere in the kernel, for good?"""
        return any("(api-work) D " in stat for stat in of_threads(self.proc.pid, "stat"))

    def has_ram(self):
        """Is there a mapping as large as the guest's memory?"""
        for line in pathlib.Path(f"/proc/{self.proc.pid}/maps").read_text().splitlines():
            start, end = (int(n, 16) for n in line.split()[0].split("-"))
            if " rw-" in line and self.size <= end - start < 2 * self.size:
                return True
        return False


@pytest.fixture
def frozen(tmp_path):
    """A directory in which making a file waits until thaw()."""
    image, place = tmp_path / "frozen.img", tmp_path / "frozen"
    place.mkdir()
    with open(image, "wb") as f:
        f.truncate(64 * MIB)
    for argv in (["mkfs.ext4", "-q", image], ["mount", "-o", "loop", image, place],
                 ["fsfreeze", "--freeze", place]):
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode:
            subprocess.run(["umount", place], capture_output=True)
            pytest.skip(f"{argv[0]}: {done.stderr.strip()}")
    thawed = []

    def thaw():
        thawed.append(True)
        subprocess.run(["fsfreeze", "--unfreeze", place], check=True)
    yield place, thaw
    if not thawed:
        thaw()
    subprocess.run(["umount", "--lazy", place], check=True)


def test_answers_while_disks_are_made(tmp_path, frozen):
    place, thaw = frozen
    with Vm(tmp_path, 16, 64) as vm:
        thread = vm.begin_restore(place / "disk.img")
        try:
            wait_for(vm.waits)
            assert vm.ask("GET", "/api/v1/vmm.ping")[0] == 200
            status, answer = vm.get("info")
            assert status == 404 and "there is no VM" in answer["error"]
            assert vm.ask("GET", "/metrics")[0] == 200
            assert vm.waits() and vm.answer is None
        finally:
            thaw()
            thread.join()
        assert vm.answer == (204, "")
        assert vm.state() == "Running"
        assert (place / "disk.img").read_bytes() == vm.disk.read_bytes()
        wait_for(lambda: len(vm.passes()) > 2)


def test_who_comes_first(tmp_path, frozen):
    """A VM that is made meanwhile stays; the one that comes too late leaves nothing."""
    place, thaw = frozen
    with Vm(tmp_path, 16, 64) as vm:
        thread = vm.begin_restore(place / "disk.img")
        try:
            wait_for(vm.waits)
            vm.ok("create", {"payload": {"kernel": str(WALKER)}, "memory": {"size": "64M"},
                             "serial": {"mode": "Null"}})
        finally:
            thaw()
            thread.join()
        assert vm.answer[0] == 409, vm.answer
        assert vm.state() == "Created"
        assert not (place / "disk.img").exists()
        vm.ok("boot")
        assert vm.state() == "Running"


def test_answers_while_memory_is_read(tmp_path):
    """Memory is mapped, and so being read, and yet somebody answers that there is no VM."""
    with Vm(tmp_path, 200, 512) as vm:
        for attempt in range(10):
            disk = tmp_path / f"disk{attempt}.img"
            thread = vm.begin_restore(disk, memory="eager")
            seen = False
            while thread.is_alive() and not seen:
                seen = vm.has_ram() and vm.get("info")[0] == 404
            thread.join()
            assert vm.answer == (204, "")
            assert vm.state() == "Running"
            if seen:
                break
            vm.ok("delete")
        assert seen
        wait_for(lambda: len(vm.passes()) > 2)


@pytest.mark.parametrize("memory", ["eager", "private"])
def test_ends_meanwhile(tmp_path, memory):
    """quire ends; a restore that was not done by then leaves no disk."""
    with Vm(tmp_path, 200, 512) as vm:
        disk = tmp_path / "again.img"
        thread = vm.begin_restore(disk, memory=memory)
        wait_for(lambda: vm.has_ram() or not thread.is_alive())
        assert vm.end() == 0
        thread.join()
        assert vm.answer is None or vm.answer[0] in (204, 500, 503), vm.answer
        assert disk.exists() == (vm.answer == (204, ""))
