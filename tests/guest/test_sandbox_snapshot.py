# SPDX-License-Identifier: Apache-2.0
"""The sandbox around what is saved and comes back: what its threads may call they do call,
and snapshots and restores of VMs in a jail.

The guest is guest/probe/walker.elf, which checks its memory for ever and says so.
"""
import json
import os
import pathlib
import re
import subprocess
import time

import pytest

from conftest import wait_listening
from test_sandbox import UNPRIVILEGED, check_confined, documented, tasks_of
from test_sandbox import kvm_group, traced  # noqa: F401 (fixtures)

SECONDS = 240  # a hang, not a slow machine
MIB = 1 << 20


def walker():
    quire = pathlib.Path(os.environ["QUIRE"]).resolve()
    for folder in quire.parents:
        if (folder / "guest/probe/walker.elf").exists():
            return folder / "guest/probe/walker.elf"
    return pytest.fail(f"no walker.elf near {quire}")


class Host:
    """quire processes with one runtime directory."""

    def __init__(self, folder):
        self.dir = folder
        self.env = {**os.environ, "QUIRE_RUNTIME_DIR": str(folder / "run")}
        self.vms = {}
        self.disk = folder / "disk.img"
        self.disk.write_bytes(os.urandom(MIB))
        self.disk.chmod(0o600)

    def start(self, name, *argv):
        err = open(self.dir / f"{name}.err", "w")
        self.vms[name] = subprocess.Popen([os.environ["QUIRE"], *map(str, argv)], env=self.env,
                                          stdin=subprocess.DEVNULL, stdout=err, stderr=err)
        return self.vms[name]

    def boot(self, name, *argv, memory="size=64M"):
        self.start(name, "run", "--name", name, "--kernel", walker(), "--cmdline", "mib=16",
                   "--memory", memory, "--serial", f"file={self.dir}/{name}.log", "--disk",
                   f"path={self.disk}", *argv)
        self.wait_passes(name)

    def restore(self, name, snapshot, *argv):
        self.start(name, "restore", snapshot, "--as", name, "--set",
                   f"serial.file={self.dir}/{name}.log", "--set",
                   f"_disk0.path={self.dir}/{name}.img", *argv)
        return self.wait_passes(name)

    def run(self, *argv, status=0):
        done = subprocess.run([os.environ["QUIRE"], *map(str, argv)], env=self.env, text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS,
                              check=False)
        assert done.returncode == status, (argv, done)
        return done.stdout if not status else done.stderr

    def said(self, name):
        return (self.dir / f"{name}.err").read_text()

    def passes(self, name):
        path = self.dir / f"{name}.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        assert "BAD" not in text, text[-300:]
        return re.findall(r"walker: pass (\d+)\n", text)

    def wait(self, name, condition):
        end = time.monotonic() + SECONDS
        while not (result := condition()):
            assert self.vms[name].poll() is None, (self.vms[name].returncode, self.said(name))
            assert time.monotonic() < end, self.said(name)
            time.sleep(0.05)
        return result

    def wait_passes(self, name):
        count = len(self.passes(name))
        return self.wait(name, lambda: self.passes(name)[count + 1:])

    def wait_resident(self, name):
        self.wait(name, lambda: json.loads(self.run("ctl", name, "vm.memory-stats"))
                  ["restore"]["resident_s"])

    def stop(self, name):
        self.run("ctl", name, "vmm.shutdown")
        assert self.vms[name].wait(SECONDS) == 0, self.said(name)


@pytest.fixture
def host(tmp_path):
    # The jail's user has to reach what it is given.
    for folder in [tmp_path, *tmp_path.parents][:3]:
        folder.chmod(0o755)
    h = Host(tmp_path)
    yield h
    for vm in h.vms.values():
        vm.kill()
        vm.wait()


# Of the thread for long work, what this test does not come to: NUMA nodes, file systems
# between which the kernel does not copy, another version of the C library; and a migration,
# which tests/kvm/test_migrate.py has go on in the default sandbox.
ELSEWHERE = {"mbind", "get_mempolicy", "pread64", "pwrite64", "faccessat", "fstat",
             "accept4", "bind", "fallocate", "fchmod", "getsockopt", "listen", "recvfrom",
             "sendmsg", "shutdown"}


def test_no_call_is_allowed_in_vain(host, traced):  # noqa: F811
    allowed = host.dir / "allowed"
    allowed.mkdir()
    host.boot("one", "--landlock-rules", f"path={allowed},access=rw",
              memory="size=64M,shared=on,populate=host")
    host.run("snapshot", "one", host.dir / "snap", "--disks", "copy")
    host.run("snapshot", "one", allowed / "direct", "--direct", "--disks", "copy")
    host.run("snapshot", "one", allowed / "direct", "--direct", "--disks", "copy", "--replace")
    host.run("snapshot", "one", allowed / "live", "--direct", "--disks", "copy", "--live",
             "--track")
    host.run("snapshot", "one", allowed / "delta", "--direct", "--disks", "copy", "--parent",
             allowed / "live")
    host.stop("one")
    for name, mode in [("eager", "eager"), ("lazy", "lazy"), ("first", "working-set"),
                       ("second", "working-set")]:
        host.restore(name, host.dir / "snap", "--memory", mode,
                     *(["--record", "1"] if name == "first" else []))
        if mode in ("lazy", "working-set"):
            host.wait_resident(name)
        host.stop(name)
    # Over the API: one that fails when its disk is made, one that does not.
    host.start("api", "run", "--api-socket", host.dir / "api.sock", "--name", "api")
    wait_listening(host.dir / "api.sock", host.vms["api"])
    body = host.dir / "body.json"
    for damage in (True, False):
        sums = host.dir / "snap/memory"
        with open(sums, "r+b") as f:
            f.seek(4 * MIB)
            byte = f.read(1)[0]
            f.seek(4 * MIB)
            f.write(bytes([byte ^ 1 if damage else byte]))
        body.write_text(json.dumps({
            "source_url": str(host.dir / "snap"), "memory": "eager", "resume": True, "devices": {
                "_disk0": {"path": str(host.dir / "api.img")},
                "serial": {"file": str(host.dir / "api.log")}}}))
        said = host.run("ctl", "api", "vm.restore", f"@{body}", status=int(damage))
        with open(sums, "r+b") as f:
            f.seek(4 * MIB)
            f.write(bytes([byte]))
        assert not damage or "checksum" in said
        assert (host.dir / "api.img").exists() == (not damage)
    host.wait_passes("api")
    host.stop("api")

    used, lists = traced(), documented()
    unused = {name: lists[name][0] - used.get(name, set())
              for name in ("snapshot", "snapshot-window", "restore", "pager-fault",
                           "pager-fill")}
    # All of its list is rare: it waits for such a verb.
    unused["api-work"] = lists["api-work"][1] - used["api-work"] - ELSEWHERE
    for name in unused:
        print(name, "used", sorted(used.get(name, set())), "rare and not used",
              sorted(lists[name][1] - used.get(name, set())))
    assert not any(unused.values()), {n: sorted(c) for n, c in unused.items() if c}


@pytest.fixture
def jailed(host, kvm_group):  # noqa: F811
    """A VM in a jail, and a directory in which it may make snapshots."""
    place = host.dir / "place"
    place.mkdir()
    os.chown(place, UNPRIVILEGED, UNPRIVILEGED)
    host.boot("one", f"--jail=uid={UNPRIVILEGED}", "--landlock-rules",
              f"path={place},access=rw")
    return place


def test_snapshot_of_a_jailed_vm(host, jailed):
    """It makes the files itself, where it may, and as its user; nothing comes in or out
    otherwise, which is said."""
    said = host.run("snapshot", "one", host.dir / "snap", "--disks", "copy", status=1)
    assert "connecting to who makes the files" in said and "--direct" in said
    said = host.run("snapshot", "one", host.dir / "snap", "--direct", "--disks", "copy", status=1)
    assert "in a jail" in said and "--landlock-rules" in said
    assert not (host.dir / "snap").exists()
    snapshot = jailed / "snap"
    host.run("snapshot", "one", snapshot, "--direct", "--disks", "copy")
    host.run("snapshot", "one", snapshot, "--direct", "--disks", "copy", "--replace")
    assert {p.stat().st_uid for p in snapshot.iterdir()} == {UNPRIVILEGED}
    assert os.listdir(jailed) == ["snap"]
    assert (snapshot / "disk-_disk0").read_bytes() == host.disk.read_bytes()
    before = int(host.wait_passes("one")[0])
    host.stop("one")
    # And out of a jail it goes on.
    assert int(host.restore("two", snapshot, "--memory", "eager")[0]) < before + 100


@pytest.mark.parametrize("mode", ["private", "eager", "lazy", "working-set"])
def test_restore_into_a_jail(host, jailed, mode):
    """What only root can read, and where only root can write, is opened before."""
    snapshot = jailed / "snap"
    host.run("snapshot", "one", snapshot, "--direct", "--disks", "copy")
    os.chown(snapshot, 0, 0)
    for path in snapshot.iterdir():
        os.chown(path, 0, 0)
    host.stop("one")
    host.restore("two", snapshot, "--memory", mode, f"--jail=uid={UNPRIVILEGED}",
                 *(["--record", "1"] if mode == "working-set" else []))
    check_confined(host.vms["two"].pid)
    for name, status in tasks_of(host.vms["two"].pid).items():
        assert set(status["Uid"].split()) == {str(UNPRIVILEGED)}, name
    if mode in ("lazy", "working-set"):
        host.wait_resident("two")
    # A hint that cannot be kept, since the directory is root's, is no reason to fail.
    if mode == "working-set":
        host.wait("two", lambda: "working set is not kept" in host.said("two"))
    host.wait_passes("two")
    assert (host.dir / "two.img").read_bytes() == host.disk.read_bytes()
    host.stop("two")


def test_restore_that_fails_in_a_jail(host, jailed):
    """Memory is read inside; the disk was made outside, by root. It is not left unsaid."""
    snapshot = jailed / "snap"
    host.run("snapshot", "one", snapshot, "--direct", "--disks", "copy")
    host.stop("one")
    with open(snapshot / "memory", "r+b") as f:
        f.seek(0x400000)
        f.write(b"\x55" * 4096)
    said = host.run("restore", snapshot, "--memory", "eager", "--set",
                    f"_disk0.path={host.dir}/no.img", f"--jail=uid={UNPRIVILEGED}", status=1)
    assert "checksum" in said
    assert not (host.dir / "no.img").exists() or "cannot be removed" in said
