# SPDX-License-Identifier: Apache-2.0
"""quire snapshot and quire restore on this machine, with a guest of a few bytes that
counts in memory, checks what it counted, and says so on its serial port."""
import json
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import time

import pytest

from host_kit import of_threads, unmount

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/cli"))
from api_kit import Server, needs_kvm  # noqa: E402

pytestmark = needs_kvm
QUIRE = os.environ["QUIRE"]
MIB = 1 << 20
PAGES = 1024
SECONDS = 60

# 32 bit, flat, no paging. Each pass adds 1 to a word in each page, if it has what the
# pass before left there; then says a letter, 'a' to 'p', that counts the passes.
CODE = bytes.fromhex(
    "bf00004000"                          # mov edi, 0x400000
    "31db"                                # xor ebx, ebx
    "89fe"                                # pass: mov esi, edi
    "b9") + struct.pack("<I", PAGES) + bytes.fromhex(  # mov ecx, PAGES
    "391e"                                # page: cmp [esi], ebx
    "751a"                                # jne bad
    "ff06"                                # inc dword [esi]
    "81c600100000"                        # add esi, 4096
    "49"                                  # dec ecx
    "75f1"                                # jnz page
    "43"                                  # inc ebx
    "baf8030000"                          # mov edx, 0x3f8
    "89d8"                                # mov eax, ebx
    "240f"                                # and al, 15
    "0461"                                # add al, 'a'
    "ee"                                  # out dx, al
    "ebdb"                                # jmp pass
    "b058"                                # bad: mov al, 'X'
    "baf8030000"                          # mov edx, 0x3f8
    "ee"                                  # out dx, al
    "f4ebfd")                             # hlt; jmp


def counting_kernel(path):
    """An ELF64 with a PVH note around CODE."""
    note = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", 0x200000)
    ehdr = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1" + bytes(9), 2, 62, 1,
                       0x200000, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0x1000, 0x200000, 0x200000, 4096, 4096, 0x1000)
    notes = struct.pack("<IIQQQQQQ", 4, 4, 176, 0, 0, len(note), len(note), 4)
    path.write_bytes((ehdr + load + notes + note).ljust(0x1000, b"\0") + CODE.ljust(4096, b"\0"))
    return path


class Host:
    """quire processes that share a runtime directory."""

    def __init__(self, folder):
        self.folder = folder
        self.env = {**os.environ, "QUIRE_RUNTIME_DIR": str(folder / "run")}
        self.running = []

    def start(self, log, *argv):
        with open(self.folder / log, "wb") as out:
            process = subprocess.Popen([QUIRE, *map(str, argv)], env=self.env,
                                       stdin=subprocess.DEVNULL, stdout=out,
                                       stderr=subprocess.PIPE)
        self.running.append(process)
        return process

    def boot(self, name="one", *argv, memory="64M"):
        disk = self.folder / "disk.img"
        if not disk.exists():
            disk.write_bytes(os.urandom(MIB) + bytes(3 * MIB))
        kernel = counting_kernel(self.folder / "kernel.elf")
        return self.start(f"{name}.log", "run", "--name", name, "--kernel", kernel, "--memory",
                          memory, "--disk", f"path={disk}", *argv)

    def run(self, *argv, **kwargs):
        return subprocess.run([QUIRE, *map(str, argv)], env=self.env, text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS,
                              **kwargs)

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def wait_passes(self, name, process, num):
        """Until it has done so many passes from now on; all that it said."""
        end = time.monotonic() + SECONDS
        want = len(self.log(name)) + num
        while len(self.log(name)) < want:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end, self.log(name)
            time.sleep(0.02)
        return self.log(name)

    def snapshot(self, *argv):
        done = self.run("snapshot", *argv, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def end(self):
        for process in self.running:
            process.kill()
            process.communicate()


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path)
    yield host
    host.end()


def follows(text):
    """Each letter is the next of the one before it, and none an 'X'."""
    return all(b == "abcdefghijklmnop"[("abcdefghijklmnop".index(a) + 1) % 16]
               for a, b in zip(text, text[1:]))


def refusal(done, words, status=1):
    assert done.returncode == status, (done.returncode, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    assert re.search(words, done.stderr), done.stderr


@pytest.fixture(scope="module")
def snap(tmp_path_factory):
    """A snapshot, its disk elsewhere; tests copy it."""
    host = Host(tmp_path_factory.mktemp("snap"))
    vm = host.boot()
    host.wait_passes("one", vm, 3)
    host.snapshot("one", host.folder / "snap", "--disks", "copy")
    host.end()
    return host.folder / "snap"


def copy_of(snap, host):
    place = host.folder / "copy"
    subprocess.run(["cp", "-a", "--sparse=always", snap, place], check=True)
    return place


def restore(host, place, *argv, name="two"):
    return host.start(f"{name}.log", "restore", place, "--as", name, "--set",
                      f"_disk0.path={host.folder}/{name}.img", *argv)


@pytest.mark.parametrize("memory", ["private", "eager", "lazy", "working-set"])
def test_goes_on_where_it_was(host, memory):
    """The default sandbox on both sides; several times over."""
    vm = host.boot()
    host.wait_passes("one", vm, 3)
    place = host.folder / "snap0"
    report = host.snapshot("one", place, "--disks", "copy")
    assert report["data_bytes"] >= PAGES * 4096
    text = host.wait_passes("one", vm, 3)
    assert follows(text), text
    name = "one"
    for turn in range(1, 4):
        vm.kill()
        vm.wait()
        old, name = name, f"turn{turn}"
        vm = restore(host, place, "--memory", memory, name=name)
        text = host.wait_passes(name, vm, 4)
        assert follows(text), text
        if turn == 1:  # the first letter is one that came after the snapshot
            assert text[0] in host.log(old)
        tasks = of_threads(vm.pid, "status")
        assert tasks and all("Seccomp:\t2" in t and "CapEff:\t0000000000000000" in t
                             for t in tasks)
        place = host.folder / f"snap{turn}"
        host.snapshot(name, place, "--disks", "copy")
        text = host.wait_passes(name, vm, 2)
        assert follows(text), text
        assert (host.folder / f"{name}.img").read_bytes() == \
            (host.folder / "disk.img").read_bytes()


def test_paused_stays_paused(host):
    vm = host.boot()
    host.wait_passes("one", vm, 2)
    assert host.run("ctl", "one", "pause").returncode == 0
    report = host.snapshot("one", host.folder / "snap", "--disks", "copy")
    assert report["pause_us"] == 0
    assert json.loads(host.run("ctl", "one", "info").stdout)["state"] == "Paused"
    again = restore(host, host.folder / "snap", "--paused")
    for _ in range(SECONDS * 10):
        if "Paused" in host.run("ctl", "two", "info").stdout:
            break
        time.sleep(0.1)
    assert host.log("two") == ""
    assert host.run("ctl", "two", "resume").returncode == 0
    assert follows(host.wait_passes("two", again, 3))


def test_what_is_in_the_way(host):
    vm = host.boot()
    host.wait_passes("one", vm, 1)
    place = host.folder / "snap"
    refusal(host.run("snapshot", "one", host.folder / "none/snap", "--disks", "copy"),
            "none/snap: directory .*none: No such file")
    refusal(host.run("snapshot", "nobody", place), "nobody")
    assert not place.exists()
    host.snapshot("one", place, "--disks", "copy")
    first = (place / "manifest.json").read_text()
    refusal(host.run("snapshot", "one", place, "--disks", "copy"), "exists; choose another")
    (host.folder / "other").mkdir()
    (host.folder / "other/file").touch()
    refusal(host.run("snapshot", "one", host.folder / "other", "--replace"),
            "no snapshot and is not replaced")
    host.snapshot("one", place, "--disks", "copy", "--replace")
    assert (place / "manifest.json").read_text() != first
    refusal(host.run("snapshot", "one", "--threads", "0", place), "--threads 0", 2)
    refusal(host.run("snapshot", "one"), "a VM and a directory", 2)
    assert sorted(p.name for p in host.folder.iterdir() if ".tmp-" in p.name) == []
    assert follows(host.wait_passes("one", vm, 2))


def test_full_disk(host):
    vm = host.boot()
    host.wait_passes("one", vm, 1)
    small = host.folder / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", small]).returncode:
        pytest.skip("mounting needs root")
    try:
        refusal(host.run("snapshot", "one", small / "s", "--disks", "copy"),
                "writing [a-z0-9_-]+.*No space left on device")
        assert list(small.iterdir()) == []
    finally:
        unmount(small)
    assert follows(host.wait_passes("one", vm, 2))


def in_the_making(host, place):
    return set(host.folder.glob(f".{place.name}.tmp-*"))


def stops_in_its_middle(client, find):
    """Is it stopped with files still to be made, of what find() has? It may have been faster."""
    end = time.monotonic() + SECONDS
    while client.poll() is None and not any((place / "state").exists() for place in find()):
        assert time.monotonic() < end
        time.sleep(0.0005)
    if client.poll() is not None:
        return False
    client.send_signal(signal.SIGSTOP)
    stat = pathlib.Path(f"/proc/{client.pid}/stat")
    while not re.search(r"\) [TZ] ", stat.read_text()):
        assert time.monotonic() < end
    # The last is the manifest.
    return any((place / "state").exists() and not (place / "manifest.json").exists()
               for place in find())


def slow_snapshot(host, place, *argv):
    """A snapshot in its middle: who makes the files is stopped, and the VM waits for more."""
    while True:
        left = in_the_making(host, place)  # by one that was killed
        client = subprocess.Popen([QUIRE, "snapshot", "one", str(place), "--disks", "copy",
                                   *argv], env=host.env, stderr=subprocess.PIPE, text=True)
        if stops_in_its_middle(client, lambda: in_the_making(host, place) - left):
            return client
        client.send_signal(signal.SIGCONT)
        said = client.communicate(timeout=SECONDS)[1]
        assert client.returncode == 0, said
        if "--replace" not in argv:
            shutil.rmtree(place)


def test_interrupted(host):
    """Ctrl-C, and kill -9 of the command, while it is being written."""
    vm = host.boot(memory="256M")
    host.wait_passes("one", vm, 1)
    place = host.folder / "snap"
    for sig, status in [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]:
        client = slow_snapshot(host, place)
        if sig != signal.SIGKILL:
            client.send_signal(sig)
            client.send_signal(signal.SIGCONT)
        else:
            client.kill()
        client.communicate(timeout=SECONDS)
        assert client.returncode == status
        assert not place.exists()
        if sig != signal.SIGKILL:
            assert list(host.folder.glob(".snap.tmp-*")) == []
        assert follows(host.wait_passes("one", vm, 2))
    # What kill -9 left, the next one removes.
    assert len(list(host.folder.glob(".snap.tmp-*"))) == 1
    host.snapshot("one", place, "--disks", "copy")
    assert list(host.folder.glob(".snap.tmp-*")) == []


def test_quire_dies_in_the_middle(host):
    vm = host.boot()
    host.wait_passes("one", vm, 1)
    place = host.folder / "snap"
    host.snapshot("one", place, "--disks", "copy")
    client = slow_snapshot(host, place, "--replace")
    first = {p.name: p.read_bytes() for p in place.iterdir()}
    vm.kill()
    vm.wait()
    client.send_signal(signal.SIGCONT)
    said = client.communicate(timeout=SECONDS)[1]
    assert client.returncode == 1 and said.count("\n") == 1, said
    assert {p.name: p.read_bytes() for p in place.iterdir()} == first
    assert list(host.folder.glob(".snap.tmp-*")) == []


def test_ends_while_it_is_written(host):
    """quire is told to end: the snapshot is given up, and it ends."""
    vm = host.boot()
    host.wait_passes("one", vm, 1)
    client = slow_snapshot(host, host.folder / "snap")
    vm.send_signal(signal.SIGINT)
    time.sleep(0.2)
    client.send_signal(signal.SIGCONT)
    client.communicate(timeout=SECONDS)
    assert vm.wait(SECONDS) == 130
    assert client.returncode in (0, 1)
    assert list(host.folder.glob(".snap.tmp-*")) == []


def flip(path, offset):
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)
        f.seek(offset)
        f.write(bytes([byte[0] ^ 0x10]))


def refused_restore(host, place, words, *argv):
    image = host.folder / "refused.img"
    refusal(host.run("restore", place, "--set", f"_disk0.path={image}", *argv), words)
    assert not image.exists()


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "state", "memory.sums",
                                  "memory", "disk-_disk0"])
def test_truncated(host, snap, name):
    place = copy_of(snap, host)
    # The manifest ends with a new line, which is of no use.
    os.truncate(place / name, (place / name).stat().st_size - 2)
    refused_restore(host, place, rf"snapshot {place}: {re.escape(name)}.*(offset|ends)")


@pytest.mark.parametrize("name", ["config.json", "state", "memory.sums"])
def test_flipped(host, snap, name):
    place = copy_of(snap, host)
    for offset in (0, (place / name).stat().st_size // 2, (place / name).stat().st_size - 1):
        flip(place / name, offset)
        refused_restore(host, place, rf"snapshot {place}: {re.escape(name)}: .*offset ")
        flip(place / name, offset)


def test_flipped_memory_is_found_when_it_is_read(host, snap):
    place = copy_of(snap, host)
    flip(place / "memory", 0x400000 + 5 * 4096)
    refused_restore(host, place, r"memory at offset 0x400000-0x600000: checksum", "--memory",
                    "eager")


def test_another_version(host, snap):
    place = copy_of(snap, host)
    text = (place / "manifest.json").read_text()
    newer = re.sub(r'("version": *)1\b', r"\g<1>77", text, count=1)
    assert newer != text
    (place / "manifest.json").write_text(newer)
    refused_restore(host, place, r"manifest\.json.*77")


def test_not_a_snapshot(host, snap):
    refused_restore(host, host.folder / "none", "none: No such file")
    refused_restore(host, host.folder, "manifest.json: No such file")
    place = copy_of(snap, host)
    (place / "state").unlink()
    (place / "state").symlink_to("/dev/zero")
    refused_restore(host, place, "state: ")
    refusal(host.run("restore", snap, "--set", "_disk9.path=/x"), "no device '_disk9'")
    refusal(host.run("restore", snap, "--set", "disk"), "not ID.KEY=VALUE", 2)
    refusal(host.run("restore", snap, "--memory", "none"), "--memory none", 2)
    refusal(host.run("restore"), "one directory", 2)


def test_disks_are_removed_when_it_fails(host, snap):
    """A failure after they were made; what was there before is never touched."""
    place = copy_of(snap, host)
    flip(place / "memory", 0x400000)
    refused_restore(host, place, "checksum", "--memory", "eager")
    there = host.folder / "there.img"
    there.write_text("mine")
    refusal(host.run("restore", snap, "--set", f"_disk0.path={there}"),
            "is there; move it away")
    assert there.read_text() == "mine"


def test_over_the_api(host, snap, tmp_path):
    """vm.snapshot with rules for Landlock, and without; vm.restore likewise."""
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    vm = host.boot("one", "--landlock-rules", f"path={allowed},access=rw")
    host.wait_passes("one", vm, 1)
    refusal(host.run("snapshot", "one", tmp_path / "no", "--direct", "--disks", "copy"),
            r"Permission denied.*--landlock-rules")
    host.snapshot("one", allowed / "yes", "--direct", "--disks", "copy")
    host.snapshot("one", allowed / "yes", "--direct", "--disks", "copy", "--replace")
    assert [p.name for p in allowed.iterdir()] == ["yes"]
    assert follows(host.wait_passes("one", vm, 1))

    with Server(tmp_path, "--landlock", "on", name="shut") as server:
        status, answer = server.verb("restore", {"source_url": str(snap)})
        assert status == 500 and "--landlock-rules" in answer["error"], answer
        assert server.state() == "Empty"
    (tmp_path / "open").mkdir()
    with Server(tmp_path / "open", name="open") as server:
        body = {"source_url": f"file://{snap}", "resume": True, "name": "named",
                "devices": {"_disk0": {"path": str(tmp_path / "open/disk.img")}}}
        assert server.verb("restore", body) == (204, "")
        assert server.state() == "Running"
        assert server.get("info")[1]["config"]["name"] == "named"
        assert server.verb("restore", body)[0] == 409
        status, answer = server.verb("snapshot", {
            "destination_url": str(tmp_path / "open/again"), "disks": "copy"})
        assert status == 200, answer
        assert server.end() == 0
    assert (tmp_path / "open/again/manifest.json").exists()


def test_generation_id_is_another(host, snap):
    """Each copy has one of its own; the snapshot keeps the old one."""
    layout = (ROOT / "src/x86/layout.h").read_text()
    place = int(re.search(r"LAYOUT_VMGENID\s+\\?\s*(0x[0-9a-f]+)", layout)[1], 16)

    def generation_id(snapshot):
        with open(snapshot / "memory", "rb") as memory:
            memory.seek(place)
            return memory.read(16)
    ids = set()
    for i in range(2):
        vm = restore(host, snap, name=f"copy{i}")
        host.wait_passes(f"copy{i}", vm, 1)
        host.snapshot(f"copy{i}", host.folder / f"s{i}", "--disks", "copy")
        ids.add(generation_id(host.folder / f"s{i}"))
    ids.add(generation_id(snap))
    assert len(ids) == 3


def test_memory_is_mapped_from_the_file(host, snap):
    """Private mappings of one file, which may go: the kernel shares what nobody writes."""
    place = copy_of(snap, host)
    vms = [restore(host, place, name=f"copy{i}") for i in range(2)]
    for i, vm in enumerate(vms):
        host.wait_passes(f"copy{i}", vm, 1)
        assert f"{place}/memory" in pathlib.Path(f"/proc/{vm.pid}/maps").read_text()
    shutil.rmtree(place)
    for i, vm in enumerate(vms):
        assert follows(host.wait_passes(f"copy{i}", vm, 2))
