# SPDX-License-Identifier: Apache-2.0
"""Live migration of a writing guest with its disks, between processes on this machine.

guest/probe/scribe.elf checks and changes blocks of all its disks for ever, and says so on
its console: one that is lost, old or from elsewhere is found in the pass after.
"""
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess

import pytest

from test_migrate import (STEPS, Relay, free_port, has_ended, is_in_doubt, migrate, preface, refused,
                          runs, says_gone, unix, wait_listening)
from test_migrate_tls import certs, tcp  # noqa: F401
from test_restore import BUILD, LONG, QUIRE, Host, log, wait_for

pytestmark = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                                reason="no usable /dev/kvm")
SCRIBE = (BUILD / "guest/probe/scribe.elf").resolve()
KIB = 1 << 10
MIB = 1 << 20
# Not whole clusters, and not one.
SIZES = {"a": 24 * MIB + 3 * 4096, "b": 2 * MIB}


@pytest.fixture
def host(tmp_path):
    h = Host(tmp_path)
    yield h
    h.end()


def images(host, name, fill=None, sizes=SIZES):
    """Of the VM: all holes, or old words of somebody else."""
    paths = {}
    for disk, size in sizes.items():
        paths[disk] = host.dir / f"{name}.{disk}.img"
        with open(paths[disk], "wb") as f:
            if fill:
                f.write(fill * size)
            f.truncate(size)
    return paths


def vm_args(host, name, paths, extra="", options=""):
    disks = [f"id={disk},path={path}{options}" for disk, path in paths.items()]
    args = ["--kernel", SCRIBE, "--cmdline", f"blocks=30 step=68 {extra}".strip(), "--cpus",
            "boot=1", "--memory", "size=128M", "--serial", f"file={host.dir}/{name}.log",
            "--name", name]
    for disk in disks:
        args += ["--disk", disk]
    return args


def boot(host, name="one", *args, paths=None, **kw):
    vm = host.start("run", *vm_args(host, name, paths or images(host, name), **kw), *args)
    wait_for("the guest", lambda: "scribe: ready, disks 2" in log(host.dir / f"{name}.log"))
    return vm


def incoming(host, name, uri, *args, paths=None, **kw):
    paths = paths or images(host, name, b"?")
    vm = host.start("run", *vm_args(host, name, paths, **kw), "--incoming", uri, *args)
    wait_listening(host, vm, uri)
    return vm


def passes(path):
    text = log(path)
    assert "BAD" not in text and "FAILED" not in text, text[-300:]
    return [int(n) for n in re.findall(r"scribe: pass (\d+)\r", text)]


def wait_passes(host, name, more=2):
    path = host.dir / f"{name}.log"
    seen = len(passes(path))
    wait_for(f"{more} passes of {name}", lambda: len(passes(path)) >= seen + more)


def is_follow_up(host, before, after):
    old, new = passes(host.dir / f"{before}.log"), passes(host.dir / f"{after}.log")
    assert old and new == list(range(new[0], new[0] + len(new)))
    assert old[-1] < new[0] <= old[-1] + 2, (old[-1], new[0])


@pytest.mark.parametrize("kind,streams,options", [("unix", 1, ""), ("unix", 3, ""), ("tcp", 4, ""),
                                                  ("unix", 2, ",direct=on")])
def test_goes_on(host, kind, streams, options):
    source = boot(host, options=options)
    wait_passes(host, "one")
    uri = unix(host, "two") if kind == "unix" else f"tcp:127.0.0.1:{free_port()}"
    incoming(host, "two", uri, options=options)
    report = json.loads(migrate(host, "one", uri, "--disks", "copy", "--streams", streams).stdout)
    assert report["disk_bytes"] + report["disk_zero_bytes"] >= sum(SIZES.values())
    # What the guest wrote is there: of 30 blocks on each of two disks most are not zero.
    assert report["disk_bytes"] >= 40 * 64 * KIB
    assert report["disk_bytes"] < sum(SIZES.values()) * report["rounds"]
    assert source.wait(LONG) == 0, host.said(source)
    wait_passes(host, "two", 4)
    is_follow_up(host, "one", "two")


def test_back_and_forth(host):
    boot(host, "vm0")
    for i in range(6):
        old, new = f"vm{i}", f"vm{i + 1}"
        wait_passes(host, old)
        uri = unix(host, new)
        # Once into images that it had two moves ago: what is there is old.
        incoming(host, new, uri, paths=i == 3 and {d: host.dir / f"vm2.{d}.img" for d in SIZES})
        migrate(host, old, uri, "--disks", "copy", "--streams", 1 + i % 3)
        wait_passes(host, new)
        is_follow_up(host, old, new)


def test_same_bytes(host):
    """Of a guest that stands still all is the same, and holes are holes."""
    boot(host)
    wait_passes(host, "one")
    host.quire("ctl", "one", "pause")
    incoming(host, "two", unix(host, "two"))
    migrate(host, "one", unix(host, "two"), "--disks", "copy")
    assert host.state("two") == "Paused"
    for disk in SIZES:
        old, new = host.dir / f"one.{disk}.img", host.dir / f"two.{disk}.img"
        assert old.read_bytes() == new.read_bytes()
    assert new.stat().st_blocks <= SIZES["b"] // 512
    host.quire("ctl", "two", "resume")
    wait_passes(host, "two", 2)


def test_read_only(host):
    """It stays behind: here it is shared."""
    paths = images(host, "one")
    shared = host.dir / "shared.img"
    shared.write_bytes(b"s" * MIB)
    args = ["--disk", f"id=ro,path={shared},readonly=on"]
    host.start("run", *vm_args(host, "one", {"a": paths["a"]}), *args)
    wait_for("the guest", lambda: "scribe: ready, disks 1" in log(host.dir / "one.log"))
    uri = unix(host, "two")
    two = host.start("run", *vm_args(host, "two", {"a": images(host, "two", b"?")["a"]}), *args,
                     "--incoming", uri)
    wait_listening(host, two, uri)
    host.quire("ctl", "one", "pause")
    report = json.loads(migrate(host, "one", uri, "--disks", "copy").stdout)
    assert report["disk_bytes"] + report["disk_zero_bytes"] == SIZES["a"]
    assert shared.read_bytes() == b"s" * MIB
    assert (host.dir / "two.a.img").read_bytes() == paths["a"].read_bytes()


def test_shared(host):
    """By default nothing is copied: both have the same images, one after the other."""
    boot(host)
    wait_passes(host, "one")
    uri = unix(host, "two")
    incoming(host, "two", uri, paths={d: host.dir / f"one.{d}.img" for d in SIZES})
    report = json.loads(migrate(host, "one", uri).stdout)
    assert report["disk_bytes"] == report["disk_zero_bytes"] == 0
    wait_passes(host, "two", 3)
    is_follow_up(host, "one", "two")


def test_the_same_image(host):
    """Given by mistake: refused before a byte of it is written."""
    boot(host)
    uri = unix(host, "two")
    two = incoming(host, "two", uri, paths={d: host.dir / f"one.{d}.img" for d in SIZES})
    refused(migrate(host, "one", uri, "--disks", "copy", check=False), "is in use by another")
    assert two.wait(LONG) == 1 and "needs images of its own" in host.said(two)
    wait_passes(host, "one", 3)


def test_refused(host):
    boot(host)
    for name, kw, why in [
            ("size", {"paths": images(host, "size", sizes={**SIZES, "b": MIB})},
             "disk 'b' has 2097152 bytes, here it has 1048576"),
            ("ro", {"options": ",readonly=on"}, "is to be copied, and cannot be written here")]:
        vm = incoming(host, name, unix(host, name), **kw)
        refused(migrate(host, "one", unix(host, name), "--disks", "copy", check=False), why)
        assert vm.wait(LONG) == 1
    for mode in "postcopy", "hybrid", "local":
        done = migrate(host, "one", unix(host, "x"), "--disks", "copy", "--mode", mode,
                       check=False)
        assert done.returncode == 2 and "precopy only" in done.stderr
        done = host.quire("ctl", "one", "vm.send-migration", f"destination_url={unix(host, 'x')}",
                          f"mode={mode}", "disks=copy", check=False)
        assert done.returncode == 1 and "precopy only" in done.stderr
    assert migrate(host, "one", unix(host, "x"), "--disks", "no", check=False).returncode == 2
    wait_passes(host, "one", 3)


def test_asked_to_go(host):
    """A disk that its guest may let go any time is not copied."""
    boot(host)
    host.quire("ctl", "one", "vm.remove-device", "id=b")
    vm = incoming(host, "two", unix(host, "two"))
    refused(migrate(host, "one", unix(host, "two"), "--disks", "copy", check=False),
            "asked to let disk 'b' go")
    assert vm.wait(LONG) == 1
    wait_passes(host, "one", 3)


@pytest.mark.parametrize("options", [("--compress", "lz4"), ("--throttle", "auto")])
def test_beside(host, options):
    """Disks are neither compressed nor in the way of it."""
    boot(host)
    wait_passes(host, "one")
    incoming(host, "two", unix(host, "two"))
    migrate(host, "one", unix(host, "two"), "--disks", "copy", *options)
    wait_passes(host, "two", 3)
    is_follow_up(host, "one", "two")


def test_tls(host, certs):  # noqa: F811
    boot(host)
    wait_passes(host, "one")
    uri = tcp()
    incoming(host, "two", uri, "--tls", certs.server)
    migrate(host, "one", uri, "--disks", "copy", "--tls", certs.client)
    wait_passes(host, "two", 3)
    is_follow_up(host, "one", "two")


def slow(host, uri, *args):
    """A migration that is under way, and will be for a while."""
    client = subprocess.Popen([QUIRE, "migrate", "one", uri, "--disks", "copy",
                               "--bandwidth", "2M", *args], env=host.env, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in client.stderr:
        if json.loads(line)["sent_bytes"] > 0:
            return client
    raise AssertionError("it ended")


def test_counts_for_downtime(host):
    """A guest that writes its disks faster than they are sent is not stopped, though its memory
    is next to nothing."""
    boot(host)
    uri = unix(host, "two")
    incoming(host, "two", uri)
    client = slow(host, uri, "--downtime", "10")
    said = []
    for line in client.stderr:
        said.append(json.loads(line))
        if said[-1]["rounds"] >= 3:
            break
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=LONG)
    assert client.returncode == 130
    assert said[-1]["phase"] == "pre-copy" and said[-1]["predicted_downtime_ms"] > 10
    assert said[-1]["dirty_bytes_per_s"] > 64 * KIB
    wait_passes(host, "one", 3)


@pytest.mark.parametrize("who", ["destination", "source"])
def test_one_dies(host, who):
    source = boot(host)
    uri = unix(host, "two")
    two = incoming(host, "two", uri)
    client = slow(host, uri)
    (two if who == "destination" else source).kill()
    client.communicate(timeout=LONG)
    assert client.returncode == 1
    if who == "source":
        assert two.wait(LONG) == 1 and "good for nothing" in host.said(two)
        return
    wait_passes(host, "one", 3)
    # And once more, from the beginning.
    incoming(host, "three", unix(host, "three"))
    migrate(host, "one", unix(host, "three"), "--disks", "copy")
    wait_passes(host, "three", 3)
    is_follow_up(host, "one", "three")


# ---- failures, at each step ----

def relayed(host, act=None, cut=None, after=False, edit=None):
    """edit gets the client, which is asked to end by a signal, too."""
    source = boot(host, "one", "--landlock-rules", f"path={host.dir},access=rw")
    wait_passes(host, "one")
    there = unix(host, "two")
    two = incoming(host, "two", there)
    client = None
    relay = Relay(f"{host.dir}/relay", there[5:], cut, act and act(source, two), after,
                  edit and (lambda name, body: edit(client, name, body)))
    try:
        client = subprocess.Popen([QUIRE, "migrate", "one", f"unix:{host.dir}/relay", "--disks",
                                   "copy"], env=host.env, text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE)
        client.stderr_text = client.communicate(timeout=LONG)[1]
        if act:
            wait_for("the message", lambda: relay.acted)
    finally:
        relay.close()
    return source, two, client


def check_locked(host, name):
    """Nobody else may have the images of this one."""
    other = host.start("run", *vm_args(host, "other", {d: host.dir / f"{name}.{d}.img"
                                                       for d in SIZES}))
    assert other.wait(LONG) == 1 and "is in use by another" in host.said(other)


def goes_on_here(host, two=None):
    """With its disks as it left them, and able to go elsewhere."""
    wait_passes(host, "one", 3)
    check_locked(host, "one")
    if two:
        assert two.wait(LONG) == 1 and log(host.dir / "two.log") == ""
        assert "good for nothing" in host.said(two), host.said(two)
    incoming(host, "three", unix(host, "three"))
    migrate(host, "one", unix(host, "three"), "--disks", "copy")
    wait_passes(host, "three", 3)
    is_follow_up(host, "one", "three")


def goes_on_there(host):
    wait_passes(host, "two", 3)
    is_follow_up(host, "one", "two")
    check_locked(host, "two")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("cut", STEPS[1:])
def test_link_is_cut(host, cut, after):
    source, two, done = relayed(host, lambda source, two: Relay.hang_up, cut, after)
    committed = (cut == "COMMIT" and after) or cut == "RUNNING"
    if committed and after and done.returncode == 0:
        assert source.wait(LONG) == 0  # the last word came through just so
        goes_on_there(host)
        return
    assert done.returncode == 1, done.stderr_text
    says_gone(done.stderr_text)
    if cut in ("COMMIT", "RUNNING") or is_in_doubt(cut, after, Said(done)):
        assert "may run at the destination" in done.stderr_text
        assert host.state("one") == "Paused"
        check_locked(host, "one")
    if committed:
        goes_on_there(host)
        return
    if host.state("one") == "Paused":
        assert two.wait(LONG) == 1
        host.ask("one", "resume")
    goes_on_here(host, two)
    assert not (runs(host, "one", source) and runs(host, "two", two))


class Said:
    def __init__(self, client):
        self.stderr = client.stderr_text


@pytest.mark.parametrize("who", ["source", "destination"])
@pytest.mark.parametrize("cut", STEPS[1:])
def test_killed(host, cut, who):
    def act(source, two):
        def kill(relay):
            victim = source if who == "source" else two
            victim.kill()
            victim.wait()
            relay.hang_up()
        return kill
    _, two, done = relayed(host, act, cut, True)
    if who == "destination":
        if cut in ("COMMIT", "RUNNING") and done.returncode == 0:
            return  # it was told that it ran there, and it did
        assert done.returncode == 1
        says_gone(done.stderr_text)
        if cut in ("COMMIT", "RUNNING") or is_in_doubt(cut, True, Said(done)):
            assert host.state("one") == "Paused"
            host.ask("one", "resume")
        goes_on_here(host)
        return
    if cut in ("COMMIT", "RUNNING") or (cut in ("READY", "LOADED") and not has_ended(host, two)):
        goes_on_there(host)
    else:
        assert two.wait(LONG) == 1 and log(host.dir / "two.log") == ""
        says_gone(host.said(two))
        assert "good for nothing" in host.said(two)


@pytest.mark.parametrize("step", ["ACCEPT", "STATE", "READY", "LOADED"])
def test_cancelled(host, step):
    """By Ctrl-C, while that message is on its way."""
    def edit(client, name, body):
        if name == step:
            client.send_signal(signal.SIGINT)
            client.wait(LONG)
        return body
    _, two, client = relayed(host, edit=edit)
    assert client.returncode == 130, client.stderr_text
    goes_on_here(host, two)


def test_changed_while_connecting(host):
    """The disks that were announced are those that are copied, or none."""
    more = host.dir / "more.img"
    more.write_bytes(bytes(MIB))

    def edit(_, name, body):
        if name == "ACCEPT":
            host.quire("ctl", "one", "vm.add-disk", f"path={more}", "id=c")
        return body
    _, two, client = relayed(host, edit=edit)
    assert client.returncode == 1 and "devices were changed while" in client.stderr_text
    assert two.wait(LONG) == 1 and "devices were changed while" in host.said(two)
    wait_passes(host, "one", 3)


@pytest.fixture
def small(tmp_path):
    """A file system of 3 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", path]).returncode:
        pytest.skip("no mount(2) for a small file system")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_disk_is_full(host, small):
    """There: the guest goes on here, with all that it had."""
    paths = images(host, "one", b"x")
    boot(host, paths=paths)
    wait_passes(host, "one")
    there = images(host, "two")
    there["a"] = small / "a.img"
    with open(there["a"], "wb") as f:
        f.truncate(SIZES["a"])
    two = incoming(host, "two", unix(host, "two"), paths=there)
    words = f"writing disk {there['a']} at (0x[0-9a-f]+|0): No space left on device"
    refused(migrate(host, "one", unix(host, "two"), "--disks", "copy", check=False), words)
    assert two.wait(LONG) == 1 and re.search(words, host.said(two))
    assert "good for nothing" in host.said(two) and log(host.dir / "two.log") == ""
    wait_passes(host, "one", 3)
    host.quire("ctl", "one", "pause")
    incoming(host, "three", unix(host, "three"))
    migrate(host, "one", unix(host, "three"), "--disks", "copy")
    for disk in SIZES:
        assert paths[disk].read_bytes() == (host.dir / f"three.{disk}.img").read_bytes()
    host.quire("ctl", "three", "resume")
    wait_passes(host, "three", 3)


@contextlib.contextmanager
def failing(vm, call, error):
    """Calls by that name fail, from each thread's second on. (Unit 0 of both disks goes over
    one stream, so there is a thread that makes two of each.)"""
    words = ["-e", f"trace={call}", "-e", f"inject={call}:error={error}:when=2+"]
    tracer = subprocess.Popen(["strace", "-f", "-o", os.devnull, *words, "-p", str(vm.pid)],
                              stderr=subprocess.PIPE, text=True)
    try:
        first = tracer.stderr.readline()
        if "attached" not in first:
            pytest.skip(f"no strace: {first.strip()}")
        yield
    finally:
        tracer.terminate()
        tracer.communicate()


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace")
@pytest.mark.parametrize("call,error,what,words", [
    ("pwrite64", "EIO", "writing disk", "Input/output error"),
    ("fdatasync", "EIO", "disk", "fdatasync: Input/output error"),
    ("fdatasync", "ENOSPC", "disk", "fdatasync: No space left on device"),
])
def test_disk_fails(host, call, error, what, words):
    """There: what was written is not there, or nobody knows. The guest goes on here."""
    boot(host)
    wait_passes(host, "one")
    there = images(host, "two")
    # What strace(1) lets fail is a call that no filter knows.
    two = incoming(host, "two", unix(host, "two"), "--seccomp", "off", paths=there)
    words = f"{what} {host.dir}/two.[ab].img.*: {words}"
    with failing(two, call, error):
        refused(migrate(host, "one", unix(host, "two"), "--disks", "copy", check=False), words)
        assert two.wait(LONG) == 1 and re.search(words, host.said(two))
    assert "good for nothing" in host.said(two) and log(host.dir / "two.log") == ""
    wait_passes(host, "one", 3)


# ---- a hostile source ----

def announce(path, features, devices, disks, streams=1):
    """A source up to the answer to its MACHINE: connections, type and text of that."""
    machine = struct.pack("<IIQQIIBBBB4x", 4096, 2 * MIB, features, 128 * MIB, 1, 1, 1, 1,
                          len(devices), len(disks)) + struct.pack("<QQ", 0, 128 * MIB)
    for cls, ident in devices:
        machine += struct.pack("16s64s", cls, ident)
    for device, size in disks:
        machine += struct.pack("<IIQ", device, 0, size)
    control, stream = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    for number, s in enumerate((control, stream)):
        s.connect(path)
        s.sendall(preface(number, 1))
    control.sendall(struct.pack("<IIQ", 1, 0, len(machine)) + machine)
    return control, stream, *answer(control)


def answer(control):
    kind, _, size = struct.unpack("<IIQ", Relay.read(control, 16))
    return kind, Relay.read(control, size).decode()


DEVICES = [(b"blk", b"a"), (b"blk", b"b"), (b"blk", b"ro")]
DISKS = [(0, SIZES["a"]), (1, SIZES["b"])]


@pytest.mark.parametrize("devices,disks,words", [
    (DEVICES, DISKS + [(2, MIB)], "'ro' is to be copied, and cannot be written here"),
    (DEVICES, [(0, SIZES["a"] + 512), (1, SIZES["b"])], "'a' has .* bytes, here it has"),
    (DEVICES, [(0, SIZES["a"])], "'b' is readonly=on, here it is not"),
    (DEVICES[:2] + [(b"blk", b"a")], DISKS + [(2, SIZES["a"])], "'ro' is given here that"),
])
def test_hostile_machine(host, devices, disks, words):
    hostile_start(host)
    control, stream, kind, text = announce(unix(host, "two")[5:], 4, devices, disks)
    with control, stream:
        assert kind == 8 and re.search(words, text), text
    hostile_end(host)


@pytest.mark.parametrize("features,kind,disk,at,size", [
    (4, 8, 2, 0, 65536),                        # which is none, though ro is a device
    (4, 8, 1, 2 * MIB, 65536),                  # behind its end
    (4, 9, 0, SIZES["a"] // 65536 * 65536, 65536),
    (4, 9, 1, 0, 4 * MIB),
    (4, 8, 0, 512, 65536),
    (4, 8, 0, 0, 512),
    (4, 9, 0, 1 << 63, 1 << 63),
    (0, 8, 0, 0, 65536),                        # they do not come along
    (0, 9, 0, 0, 65536),
])
def test_hostile_stream(host, features, kind, disk, at, size):
    hostile_start(host)
    control, stream, said, text = announce(unix(host, "two")[5:], features, DEVICES,
                                           DISKS if features else [])
    with control, stream:
        assert said == 2, text
        stream.sendall(struct.pack("<IIQQ", kind, disk, at, size) + b"h" * min(size, 65536))
        said, text = answer(control)
        assert said == 8 and "stream 1" in text, text
    hostile_end(host)


def hostile_start(host):
    """Nothing of what it has may change."""
    paths = images(host, "two", b"o")
    paths["ro"] = host.dir / "ro.img"
    paths["ro"].write_bytes(b"o" * MIB)
    args = vm_args(host, "two", {d: paths[d] for d in SIZES})
    host.two = host.start("run", *args, "--disk", f"id=ro,path={paths['ro']},readonly=on",
                          "--incoming", unix(host, "two"))
    wait_listening(host, host.two, unix(host, "two"))
    host.paths = paths


def hostile_end(host):
    assert host.two.wait(LONG) == 1, host.said(host.two)
    assert log(host.dir / "two.log") == ""
    for disk, path in host.paths.items():
        assert set(path.read_bytes()) == {ord("o")}, disk
