# SPDX-License-Identifier: Apache-2.0
"""Live migration of a walking guest between processes on this machine.

guest/probe/walker.elf checks and changes its memory for ever on all vCPUs, and says so on
its console: a page that is lost, old or from elsewhere is found in the pass after. Its
passes are counted, so a guest that began anew, or ran on both sides, shows as well: what
two processes say of one guest is one row of numbers.
"""
import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

import test_snapshot
from test_restore import LONG, QUIRE, WALKER, Host, log, passes, wait_for, wait_passes

pytestmark = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                                reason="no usable /dev/kvm")
MIB = 1 << 20
CONTROL = {1: "MACHINE", 2: "ACCEPT", 3: "STATE", 4: "READY", 5: "LOADED", 6: "COMMIT",
           7: "RUNNING", 8: "FAILED", 9: "ABORT", 10: "PENDING", 11: "COMPLETE", 12: "AGAIN",
           13: "MISSING", 14: "FREE", 15: "MEMORY", 16: "LANDED"}
BACK = {2, 5, 7, 8, 16}


@pytest.fixture
def host(tmp_path):
    h = Host(tmp_path)
    yield h
    h.end()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def vm_args(host, name, cpus=2, page="4k", mib=24, size="128M", extra=""):
    return ["--kernel", WALKER, "--cmdline", f"mib={mib} {extra}".strip(), "--cpus",
            f"boot={cpus}", "--memory", f"size={size},page={page}", "--serial",
            f"file={host.dir}/{name}.log", "--name", name]


def boot(host, name="one", **kw):
    vm = host.start("run", *vm_args(host, name, **kw))
    wait_for("the guest", lambda: "walker: ready" in log(host.dir / f"{name}.log"))
    return vm


def is_listening(path):
    """The file is there a little earlier."""
    return re.search(rf" 00010000 0001 01 +\d+ {re.escape(path)}$", open("/proc/net/unix").read(),
                     re.M)


def wait_listening(host, vm, uri):
    """Without a connection, which would be taken for one."""
    if uri.startswith("unix:"):
        wait_for("its socket", lambda: is_listening(uri[5:]))
    else:
        port = int(uri.rsplit(":", 1)[1])
        line = re.compile(rf"^ *\d+: [0-9A-F]+:{port:04X} [0-9A-F:]+ 0A ", re.M)
        wait_for("its port", lambda: line.search(open("/proc/net/tcp").read()))
    assert vm.poll() is None, host.said(vm)


def incoming(host, name, uri, *args, **kw):
    vm = host.start("run", *vm_args(host, name, **kw), "--incoming", uri, *args)
    wait_listening(host, vm, uri)
    return vm


def unix(host, name):
    return f"unix:{host.dir}/{name}.in"


def migrate(host, name, uri, *args, check=True):
    return host.quire("migrate", name, uri, "--json", *args, check=check)


def is_follow_up(host, before, after):
    """What after said begins where before ended: nothing twice, nothing left out. A line
    may be cut by the move itself."""
    old, new = passes(host.dir / f"{before}.log"), passes(host.dir / f"{after}.log")
    assert old and new, (old, new)
    assert new == list(range(new[0], new[0] + len(new)))
    assert old[-1] < new[0] <= old[-1] + 2, (old[-1], new[0])


def stats(host, name):
    return host.ask(name, "vm.memory-stats")["migration"]


@pytest.mark.parametrize("cpus,page,streams", [(1, "4k", 1), (2, "thp", 3), (3, "4k", 2),
                                               (4, "thp", 8)])
@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_goes_on(host, kind, cpus, page, streams):
    kw = {"cpus": cpus, "page": page}
    source = boot(host, **kw)
    wait_passes(host.dir / "one.log")
    uri = unix(host, "two") if kind == "unix" else f"tcp:127.0.0.1:{free_port()}"
    incoming(host, "two", uri, **kw)
    report = json.loads(migrate(host, "one", uri, "--streams", streams).stdout)
    assert report["connections"] == streams and report["rounds"] >= 2
    assert report["page_bytes"] >= 24 * MIB
    assert source.wait(LONG) == 0, host.said(source)
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")
    there = stats(host, "two")
    assert there["page_bytes"] == report["page_bytes"]
    assert there["rounds"] == report["rounds"]
    assert host.state("two") == "Running"


@pytest.mark.parametrize("method", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_compressed(host, kind, method):
    boot(host, page="thp")
    wait_passes(host.dir / "one.log")
    uri = unix(host, "two") if kind == "unix" else f"tcp:127.0.0.1:{free_port()}"
    incoming(host, "two", uri, page="thp")
    report = json.loads(migrate(host, "one", uri, "--compress", method, "--streams", 2).stdout)
    before, after = report["compressed_from_bytes"], report["compressed_to_bytes"]
    if method == "none":
        assert before == after == 0 and report["wire_bytes"] > report["page_bytes"]
    else:
        assert 0 < after < before <= report["page_bytes"]
        assert report["page_bytes"] - before + after < report["wire_bytes"]
        assert report["wire_bytes"] < report["page_bytes"]
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")
    assert stats(host, "two")["page_bytes"] == report["page_bytes"]


@pytest.mark.parametrize("memory", ["shared=on", "dirty-log=ring", "dirty-log=bitmap"])
def test_kinds_of_memory(host, memory):
    kw = {"size": f"128M,{memory}", "cpus": 3}
    boot(host, **kw)
    uri = unix(host, "two")
    incoming(host, "two", uri, **kw)
    report = json.loads(migrate(host, "one", uri).stdout)
    assert report["page_bytes"] >= 24 * MIB
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")


@pytest.mark.parametrize("mode", ["private", "lazy"])
def test_restored_before(host, mode):
    """What is still in the snapshot's file, and nowhere else, goes along."""
    boot(host, extra="every=4")
    snapshot = host.dir / "snap"
    host.quire("snapshot", "one", snapshot, "--track")
    host.started[0].kill()
    host.started[0].wait()
    host.start("restore", snapshot, "--as", "back", "--memory", mode, "--set",
               f"serial.file={host.dir}/back.log")
    wait_passes(host.dir / "back.log")
    uri = unix(host, "two")
    incoming(host, "two", uri, extra="every=4")
    end = time.monotonic() + LONG
    while (done := migrate(host, "back", uri, check=False)).returncode:
        refused(done, "not all come yet")
        assert time.monotonic() < end
    report = json.loads(done.stdout)
    assert report["page_bytes"] >= 24 * MIB  # also the pages that it does not walk
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "back", "two")


def test_noted_writes_end(host):
    """--track and migration both want the one log: the migration has it."""
    boot(host)
    host.quire("snapshot", "one", host.dir / "snap", "--track")
    client = start_slow(host, (incoming(host, "two", unix(host, "two")), unix(host, "two"))[1])
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=LONG)
    done = host.quire("snapshot", "one", host.dir / "inc", "--parent", host.dir / "snap",
                      check=False)
    assert done.returncode == 1 and "nobody has noted" in done.stderr
    host.quire("snapshot", "one", host.dir / "snap", "--track", "--replace")
    wait_passes(host.dir / "one.log", 2)
    host.quire("snapshot", "one", host.dir / "inc", "--parent", host.dir / "snap")


def test_back_and_forth(host):
    """Many times, each process with the default sandbox, on alternating roads."""
    boot(host, "vm0", cpus=2)
    for i in range(20):
        old, new = f"vm{i}", f"vm{i + 1}"
        wait_passes(host.dir / f"{old}.log", 2)
        uri = unix(host, new) if i % 2 else f"tcp:127.0.0.1:{free_port()}"
        vm = incoming(host, new, uri, cpus=2)
        migrate(host, old, uri, "--streams", i % 3 + 1)
        wait_passes(host.dir / f"{new}.log", 2)
        is_follow_up(host, old, new)
        assert "Seccomp:\t2" in open(f"/proc/{vm.pid}/status").read()
    wait_passes(host.dir / "vm20.log", 4)


def test_paused_stays_paused(host):
    boot(host)
    host.ask("one", "pause")
    uri = unix(host, "two")
    incoming(host, "two", uri)
    migrate(host, "one", uri)
    host.wait_state("two", "Paused")
    assert log(host.dir / "two.log") == ""
    host.ask("two", "resume")
    wait_passes(host.dir / "two.log", 3)


def test_untouched_memory_is_not_sent(host):
    boot(host, size="2G", mib=8)
    uri = unix(host, "two")
    incoming(host, "two", uri, size="2G", mib=8)
    report = json.loads(migrate(host, "one", uri, "--downtime", 1000).stdout)
    assert report["page_bytes"] + report["zero_bytes"] < report["rounds"] * 16 * MIB
    wait_passes(host.dir / "two.log", 3)
    resident = host.ask("two", "vm.memory-stats")["coverage"]["host"]
    assert sum(resident.values()) < 64 * MIB


def test_populated_there(host):
    """populate=host: all of it, also what the guest never touched."""
    args = dict(size="96M,populate=host")
    boot(host, **args)
    uri = unix(host, "two")
    incoming(host, "two", uri, **args)
    migrate(host, "one", uri)
    wait_passes(host.dir / "two.log", 3)
    resident = host.ask("two", "vm.memory-stats")["coverage"]["host"]
    assert sum(resident.values()) == 96 * MIB


def test_disk_goes_along(host):
    """One image, used by both: locked by one of them at any time, and never by both."""
    image = host.dir / "disk.img"
    image.write_bytes(os.urandom(MIB))
    disk = ["--disk", f"path={image}"]
    source = host.start("run", *vm_args(host, "one"), *disk)
    wait_passes(host.dir / "one.log")
    uri = unix(host, "two")
    incoming(host, "two", uri, *disk)
    migrate(host, "one", uri)
    assert source.wait(LONG) == 0
    wait_passes(host.dir / "two.log", 3)
    other = host.start("run", *vm_args(host, "three"), *disk)
    assert other.wait(LONG) == 1
    assert "in use by another" in host.said(other)


def test_reboots_after_it(host):
    boot(host)
    uri = unix(host, "two")
    incoming(host, "two", uri)
    migrate(host, "one", uri)
    wait_passes(host.dir / "two.log")
    host.ask("two", "reboot")
    wait_for("a new guest", lambda: "walker: ready" in log(host.dir / "two.log"))


def test_over_the_api(host):
    """vm.create and vm.receive-migration; vm.send-migration without a client of ours."""
    boot(host)
    sock = host.dir / "api.sock"
    host.start("run", "--api-socket", sock)
    wait_for("the API", sock.exists)
    config = host.ask("one", "info")["config"]
    config["name"] = "two"
    config["serial"] = {"mode": "File", "file": str(host.dir / "two.log")}
    host.quire("ctl", sock, "create", f"@{write(host, 'config', config)}")
    uri = unix(host, "two")
    answer = []
    waiting = threading.Thread(target=lambda: answer.append(host.quire(
        "ctl", "--timeout", LONG, sock, "receive-migration", f"receiver_url={uri}",
        check=False)))
    waiting.start()
    wait_for("its socket", lambda: is_listening(uri[5:]))
    host.quire("ctl", "one", "send-migration", f"destination_url={uri}", "connections:=2")
    waiting.join(LONG)
    assert answer[0].returncode == 0, answer[0].stderr
    wait_passes(host.dir / "two.log", 3)
    is_follow_up(host, "one", "two")
    done = host.quire("ctl", sock, "receive-migration", f"receiver_url={uri}", check=False)
    assert done.returncode == 1 and "not booted" in done.stderr


def test_booted_instead(host):
    """Whoever boots the VM that waits for another has it, and keeps it."""
    uri = unix(host, "two")
    vm = incoming(host, "two", uri)
    host.quire("ctl", "two", "boot")
    wait_passes(host.dir / "two.log")
    wait_for("an end of waiting", lambda: "booted" in host.said(vm))
    boot(host)
    assert migrate(host, "one", uri, check=False).returncode == 1
    wait_passes(host.dir / "two.log", 3)
    wait_passes(host.dir / "one.log", 3)


def test_nobody_waits_for_a_vm_that_was_deleted(host):
    """The verb comes to an end, and makes room for others that take long."""
    sock = host.dir / "api.sock"
    host.start("run", "--api-socket", sock)
    wait_for("the API", sock.exists)
    config = {"payload": {"kernel": str(WALKER)}, "serial": {"mode": "Null"}}
    host.quire("ctl", sock, "create", f"@{write(host, 'config', config)}")
    uri = unix(host, "two")
    answer = []
    waiting = threading.Thread(target=lambda: answer.append(host.quire(
        "ctl", "--timeout", LONG, sock, "receive-migration", f"receiver_url={uri}",
        check=False)))
    waiting.start()
    wait_for("its socket", lambda: is_listening(uri[5:]))
    host.quire("ctl", sock, "delete")
    waiting.join(LONG)
    assert answer[0].returncode == 1 and "has been deleted" in answer[0].stderr
    assert not os.path.exists(uri[5:])


def write(host, name, value):
    path = host.dir / name
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("streams", [1, 4])
def test_bandwidth_and_progress(host, streams):
    """The streams have it together."""
    boot(host, mib=64)
    uri = unix(host, "two")
    incoming(host, "two", uri, mib=64)
    done = migrate(host, "one", uri, "--bandwidth", "8M", "--downtime", "60000", "--streams",
                   streams)
    report = json.loads(done.stdout)
    assert report["total_us"] > 4e6  # 64 MiB at 8 MiB/s
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert len(lines) >= 2 and lines[0]["phase"] == "pre-copy"
    assert lines[-1]["sent_bytes"] > lines[0]["sent_bytes"]
    # In the middle of the first round, that is what it is for: a second after the begin, and
    # five would do on a host that has no CPU to tell it.
    assert lines[1]["remaining_bytes"] > 16 * MIB
    wait_passes(host.dir / "two.log", 3)


@pytest.mark.parametrize("page", ["4k", "thp"])
def test_guest_that_writes_too_fast_is_held_back(host, page):
    """It never gets near enough by itself, and goes on here at its own speed after a Ctrl-C."""
    boot(host, mib=32, page=page)
    uri = unix(host, "two")
    incoming(host, "two", uri, mib=32, page=page)
    argv = [QUIRE, "migrate", "one", uri, "--downtime", "10", "--bandwidth", "50M", "--json"]
    client = subprocess.Popen(argv, env=host.env, text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in client.stderr:
        if line.startswith('{"phase"') and json.loads(line)["rounds"] > 4:
            break
    assert client.poll() is None
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=LONG)
    assert client.returncode == 128 + signal.SIGINT
    wait_passes(host.dir / "one.log", 3)
    uri = unix(host, "three")
    incoming(host, "three", uri, mib=32, page=page)
    done = migrate(host, "one", uri, *argv[4:-1], "--throttle", "auto")
    assert 20 <= json.loads(done.stdout)["throttle_percent"] <= 99
    assert any(json.loads(line)["throttle_percent"] for line in done.stderr.splitlines()
               if line.startswith('{"phase"'))
    # Nobody is held back there.
    wait_passes(host.dir / "three.log", 3)
    is_follow_up(host, "one", "three")


@pytest.mark.skipif("QUIRE_MIGRATE_SLOW" not in os.environ,
                    reason="a minute and a half: QUIRE_MIGRATE_SLOW=1")
def test_takes_longer_than_silence_may(host):
    """The control connection has nothing to say for more than a minute."""
    boot(host)
    uri = unix(host, "two")
    incoming(host, "two", uri)
    client = start_slow(host, uri, "--bandwidth", "450K", "--downtime", "60000", "--streams", "2")
    said = client.communicate(timeout=5 * LONG)[1]
    assert client.returncode == 0, said
    wait_passes(host.dir / "two.log", 3)
    is_follow_up(host, "one", "two")


def refused(done, words):
    assert done.returncode == 1 and re.search(words, done.stderr), (done.returncode, done.stderr)
    said = [line for line in done.stderr.splitlines() if not line.startswith('{"phase"')]
    assert len(said) == 1, done.stderr


@pytest.mark.parametrize("kw,words", [
    ({"cpus": 1}, "has 2 vCPUs, 1 to a core; here it is given 1"),
    ({"size": "64M"}, "has 128 MiB of memory, here it is given 64"),
])
def test_another_machine(host, kw, words):
    boot(host)
    uri = unix(host, "two")
    vm = incoming(host, "two", uri, **kw)
    refused(migrate(host, "one", uri, check=False), words)
    assert vm.wait(LONG) == 1 and re.search(words, host.said(vm))
    assert not os.path.exists(uri[5:])
    wait_passes(host.dir / "one.log", 3)


def test_other_devices(host):
    image = host.dir / "disk.img"
    image.write_bytes(bytes(MIB))
    boot(host)
    uri = unix(host, "two")
    vm = incoming(host, "two", uri, "--disk", f"path={image}")
    words = "a blk device '_disk0' is given here that the VM does not have"
    refused(migrate(host, "one", uri, check=False), words)
    assert vm.wait(LONG) == 1
    wait_passes(host.dir / "one.log", 3)


def test_wrong_usage(host):
    boot(host)
    for args, words in [(["one"], "a VM and a URI"), (["one", "http://x"], "not tcp:HOST:PORT"),
                        (["one", "unix:/x", "--downtime", "1"], "from 10 to 60000"),
                        (["one", "unix:/x", "--streams", "65"], "from 1 to 64"),
                        (["one", "unix:/x", "--mode", "x"], "not precopy, postcopy, hybrid or local"),
                        (["one", "unix:/x", "--recover", "--mode", "hybrid"], "no --mode"),
                        (["one", "unix:/x", "--compress", "gzip"], "not none, lz4 or zstd"),
                        (["one", "unix:/x", "--throttle", "100"], "percentage from 1 to 99"),
                        (["one", "unix:/x", "--bandwidth", "x"], "not a size")]:
        done = host.quire("migrate", *args, check=False)
        assert done.returncode == 2 and words in done.stderr, done.stderr
    refused(migrate(host, "one", f"unix:{host.dir}/nobody", check=False), "No such file")
    refused(migrate(host, "one", f"tcp:127.0.0.1:{free_port()}", check=False), "refused")
    done = host.quire("ctl", "one", "send-migration", "destination_url=tcp:127.0.0.1:1",
                      check=False)
    assert done.returncode == 1 and "quire migrate makes them" in done.stderr
    wait_passes(host.dir / "one.log", 2)


def test_strangers_are_let_go(host):
    """Whatever connects, or hangs up: the one that is waited for is still taken."""
    boot(host)
    uri = f"tcp:127.0.0.1:{free_port()}"
    incoming(host, "two", uri)
    address = ("127.0.0.1", int(uri.rsplit(":", 1)[1]))
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n" + bytes(32), preface(1, 1), preface(0, 0),
                 preface(0, 1) + bytes(64), preface(0, 2, version=9),
                 preface(0, 1) + struct.pack("<IIQ", 1, 0, 1 << 40)):
        with socket.create_connection(address) as s:
            s.settimeout(LONG)
            try:
                s.sendall(data)
                s.shutdown(socket.SHUT_WR)
                while s.recv(4096):
                    pass
            except OSError as error:  # it did not read what it does not want
                assert not isinstance(error, TimeoutError)
    migrate(host, "one", uri)
    wait_passes(host.dir / "two.log", 3)


def test_stranger_who_takes_his_time(host):
    """He has connected first, and says a byte now and then."""
    boot(host)
    uri = unix(host, "two")
    incoming(host, "two", uri)
    over = threading.Event()

    def dribble(s):
        for byte in preface(0, 1):
            if over.wait(1.5):
                return
            try:
                s.sendall(bytes([byte]))
            except OSError:
                return
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(uri[5:])
        thread = threading.Thread(target=dribble, args=(s,))
        thread.start()
        try:
            migrate(host, "one", uri)
        finally:
            over.set()
            thread.join()
    wait_passes(host.dir / "two.log", 3)


def preface(stream, num, version=1, ident=b"i" * 16):
    return b"QUIREMIG" + struct.pack("<IHH", version, stream, num) + ident


def test_verbs_meanwhile(host):
    boot(host)
    uri = unix(host, "two")
    incoming(host, "two", uri)
    client = start_slow(host, uri)
    for verb in ("pause", "reboot", "shutdown", "delete"):
        done = host.quire("ctl", "one", verb, check=False)
        assert done.returncode == 1 and "is being migrated" in done.stderr, done.stderr
    done = host.quire("ctl", "two", "boot", check=False)
    assert done.returncode == 1 and "is being received" in done.stderr, done.stderr
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=LONG)
    wait_passes(host.dir / "one.log", 3)
    host.ask("one", "pause")
    host.ask("one", "resume")


def start_slow(host, uri, *args):
    """A migration that takes its time, in the middle of its first round."""
    client = subprocess.Popen([QUIRE, "migrate", "one", uri, "--bandwidth", "1M", *args],
                              env=host.env, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
    wait_for("its begin", lambda: host.ask("one", "info").get("migration"))
    return client


@pytest.mark.parametrize("sig,status", [(signal.SIGINT, 130), (signal.SIGTERM, 143),
                                        (signal.SIGKILL, -9)])
def test_cancelled(host, sig, status):
    """Again and again: each leaves the guest as it was, its log of writes off."""
    boot(host)
    for i in range(3):
        uri = unix(host, f"two{i}")
        vm = incoming(host, f"two{i}", uri)
        client = start_slow(host, uri)
        client.send_signal(sig)
        client.communicate(timeout=LONG)
        assert client.returncode == status
        assert vm.wait(LONG) == 1
        assert "the other side" in host.said(vm) or "source is gone" in host.said(vm)
        wait_for("no tracking",
                 lambda: not host.ask("one", "vm.memory-stats")["dirty_log"]["tracking"])
        wait_passes(host.dir / "one.log", 2)
    uri = unix(host, "three")
    incoming(host, "three", uri)
    migrate(host, "one", uri)
    wait_passes(host.dir / "three.log", 3)


def test_destination_is_told_to_end(host):
    """While it waits, and while memory comes in."""
    boot(host)
    vm = incoming(host, "two", unix(host, "two"))
    vm.send_signal(signal.SIGINT)
    assert vm.wait(LONG) == 130
    uri = unix(host, "three")
    vm = incoming(host, "three", uri)
    client = start_slow(host, uri)
    vm.send_signal(signal.SIGINT)
    said = client.communicate(timeout=LONG)[1]
    assert vm.wait(LONG) == 130, host.said(vm)
    assert client.returncode == 1, said
    wait_passes(host.dir / "one.log", 3)


def test_source_is_told_to_end(host):
    source = boot(host)
    uri = unix(host, "two")
    vm = incoming(host, "two", uri)
    client = start_slow(host, uri)
    source.send_signal(signal.SIGINT)
    assert source.wait(LONG) == 130, host.said(source)
    client.communicate(timeout=LONG)
    assert client.returncode == 1
    assert vm.wait(LONG) == 1


def test_source_is_told_to_power_off(host):
    """SIGTERM asks the guest to: here, and not wherever it is going."""
    source = boot(host)
    uri = unix(host, "two")
    vm = incoming(host, "two", uri)
    client = start_slow(host, uri)
    source.send_signal(signal.SIGTERM)
    said = client.communicate(timeout=LONG)[1]
    assert client.returncode == 1 and "cancelled" in said, said
    assert vm.wait(LONG) == 1
    wait_passes(host.dir / "one.log", 2)  # this guest does not listen
    source.send_signal(signal.SIGINT)
    assert source.wait(LONG) == 130


# Writes 4 MiB, says 'r', counts for a while, and crashes (no IDT).
CRASHING = bytes.fromhex(
    "bf00004000" "b900040000"            # mov edi, 0x400000; mov ecx, 1024
    "890f" "81c700100000" "49" "75f5"    # fill: mov [edi], ecx; add edi, 4096; dec; jnz
    "baf8030000" "b072" "ee"             # mov edx, 0x3f8; mov al, 'r'; out dx, al
    "b900001000" "49" "75fd" "0f0b")     # mov ecx, 1 << 20; count: dec; jnz; ud2


def test_the_guest_ends_meanwhile(host, monkeypatch):
    """By itself, its memory half sent: that is given up, and its end is what it always is."""
    monkeypatch.setattr(test_snapshot, "CODE", CRASHING)
    kernel = test_snapshot.counting_kernel(host.dir / "kernel.elf")
    args = ["--kernel", kernel, "--memory", "size=64M", "--serial", f"file={host.dir}/one.log"]
    source = host.start("run", "--name", "one", *args)
    wait_for("the guest", lambda: "r" in log(host.dir / "one.log"))
    uri = unix(host, "two")
    vm = host.start("run", "--name", "two", *args[:-1], "null", "--incoming", uri)
    wait_listening(host, vm, uri)
    client = subprocess.Popen([QUIRE, "migrate", "one", uri, "--bandwidth", "4K"], env=host.env,
                              text=True, stderr=subprocess.PIPE)
    said = client.communicate(timeout=LONG)[1]
    assert client.returncode == 1 and "cancelled" in said, said
    assert source.wait(LONG) == 1 and "triple fault" in host.said(source)
    assert vm.wait(LONG) == 1


def test_source_with_an_api_stays(host):
    """Without a VM, ready for another."""
    sock = host.dir / "api.sock"
    source = host.start("run", *vm_args(host, "one"), "--api-socket", sock)
    wait_passes(host.dir / "one.log")
    uri = unix(host, "two")
    incoming(host, "two", uri)
    migrate(host, "one", uri)
    wait_passes(host.dir / "two.log", 3)
    done = host.quire("ctl", sock, "info", check=False)
    assert done.returncode == 1 and "there is no VM" in done.stderr
    # And back into it.
    config = host.ask("two", "info")["config"]
    config["serial"] = {"mode": "File", "file": str(host.dir / "three.log")}
    host.quire("ctl", sock, "create", f"@{write(host, 'config', config)}")
    uri = unix(host, "three")
    waiting = threading.Thread(target=host.quire, args=("ctl", sock, "receive-migration",
                                                        f"receiver_url={uri}"))
    waiting.start()
    wait_for("its socket", lambda: is_listening(uri[5:]))
    migrate(host, "two", uri)
    waiting.join(LONG)
    wait_passes(host.dir / "three.log", 3)
    is_follow_up(host, "two", "three")
    assert source.poll() is None


# ---- between the two: a relay that sees the messages, and cuts ----

class Between:
    """Takes connections in the place of the destination and makes one to it for each: what
    is to be done with the two is join()'s to say."""

    def __init__(self, path, to):
        self.to, self.lock, self.sockets, self.over = to, threading.Lock(), [], False
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(16)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                a, _ = self.listener.accept()
            except OSError:
                return
            b = socket.socket(socket.AF_UNIX)
            try:
                b.connect(self.to)
                with self.lock:
                    if self.over:
                        raise OSError("end")
                    self.sockets += [a, b]
                self.join(a, b)
            except OSError:  # one of the two is gone already
                a.close()
                b.close()

    def hang_up(self):
        """Nothing more is passed on."""
        with self.lock:
            self.over = True
            for s in self.sockets:
                with contextlib.suppress(OSError):
                    s.shutdown(socket.SHUT_RDWR)

    def close(self):
        with contextlib.suppress(OSError):  # close() alone is not seen by who waits in accept()
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.hang_up()


class Relay(Between):
    """Passes messages on. At the one called cut, it does what it is told instead of passing
    it on, or right after. edit gets the name and payload of each (PREFACE: the first 32 bytes
    of a connection), and says what is passed on instead."""

    def __init__(self, path, to, cut=None, act=None, after=False, edit=None):
        self.cut, self.act, self.after, self.edit = cut, act, after, edit
        self.gate, self.seen, self.acted = threading.Lock(), [], False
        super().__init__(path, to)

    def join(self, a, b):
        first = self.read(a, 32)
        control = first[12:14] == b"\0\0"
        b.sendall(self.edit("PREFACE", first) if self.edit else first)
        for x, y in ((a, b), (b, a)):
            target = self.messages if control else self.bytes
            threading.Thread(target=target, args=(x, y), daemon=True).start()

    @staticmethod
    def read(s, num):
        data = b""
        while len(data) < num:
            more = s.recv(num - len(data))
            if not more:
                raise OSError("end")
            data += more
        return data

    def bytes(self, x, y):
        try:
            while data := x.recv(1 << 16):
                y.sendall(data)
            y.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    @staticmethod
    def pass_on(y, data, fds):
        if fds:
            socket.send_fds(y, [data], fds)
            for fd in fds:
                os.close(fd)
        else:
            y.sendall(data)

    def pass_or_act(self, name, y, data, fds):
        """False: it was the one. What answers that is not passed on before all is done."""
        with self.gate:
            if self.over:
                raise OSError("end")
            if name != self.cut or self.acted:
                self.pass_on(y, data, fds)
                return True
            self.acted = True
            if self.after:
                self.pass_on(y, data, fds)
            self.act(self)
        return False

    def messages(self, x, y):
        try:
            while True:
                head, fds, _, _ = socket.recv_fds(x, 16, 4)
                if not head:
                    raise OSError("end")
                head += self.read(x, 16 - len(head))
                kind, _, size = struct.unpack("<IIQ", head)
                body = self.read(x, size)
                name = CONTROL[kind]
                self.seen.append(name)
                if self.edit:
                    body = self.edit(name, body)
                    head = struct.pack("<IIQ", kind, 0, len(body))
                if not self.pass_or_act(name, y, head + body, fds):
                    return
        except OSError:
            # The other way, too: what was passed on is read first.
            for s in (x, y):
                try:
                    s.shutdown(socket.SHUT_WR)
                except OSError:
                    pass


STEPS = ["MACHINE", "ACCEPT", "LANDED", "STATE", "READY", "LOADED", "COMMIT", "RUNNING"]


@pytest.mark.parametrize("mode", ["precopy", "hybrid"])
def test_guest_runs_until_a_round_has_landed(host, mode):
    """A destination that has a lot to populate, or to map, has nobody stand still."""
    boot(host)
    wait_passes(host.dir / "one.log")
    there = unix(host, "two")
    incoming(host, "two", there)
    held = []

    def hold(name, body):
        if name == "LANDED" and not held:
            held.append(wait_passes(host.dir / "one.log", 3))
            held.append(host.state("one"))
            held.append("STATE" in relay.seen)
        return body
    relay = Relay(f"{host.dir}/relay", there[5:], edit=hold)
    try:
        migrate(host, "one", f"unix:{host.dir}/relay", "--mode", mode)
    finally:
        relay.close()
    assert held[1:] == ["Running", False]
    # Each round, and the one of a guest that stands still as well.
    rounds = {"precopy": 2, "hybrid": 1}[mode]
    assert relay.seen.count("LANDED") >= rounds
    wait_passes(host.dir / "two.log", 3)
    is_follow_up(host, "one", "two")


def runs(host, name, vm):
    if vm.poll() is not None:
        return False
    return host.state(name) == "Running"


def relayed(host, cut, act, after=False):
    """With a disk: who goes on has its lock again."""
    image = host.dir / "disk.img"
    image.write_bytes(bytes(MIB))
    disk = ["--disk", f"path={image}"]
    source = host.start("run", *vm_args(host, "one"), *disk)
    wait_passes(host.dir / "one.log")
    there = unix(host, "two")
    vm = incoming(host, "two", there, *disk)
    relay = Relay(f"{host.dir}/relay", there[5:], cut, act(source, vm), after)
    try:
        done = migrate(host, "one", f"unix:{host.dir}/relay", check=False)
        wait_for("the message", lambda: relay.acted)
    finally:
        relay.close()
    return source, vm, done


def is_in_doubt(cut, after, done):
    """LOADED was all that came, also right behind READY: the source may have sent COMMIT
    before it saw the end."""
    return cut in ("READY", "LOADED") and after and "may run at" in done.stderr


def says_gone(text, *others):
    """One side about the other."""
    assert re.search("|".join(["the (other side|source) is gone", *others]), text), text


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("cut", STEPS)
def test_link_is_cut(host, cut, after):
    """At most one side runs, whatever the step; exactly one, but where nobody can know."""
    source, vm, done = relayed(host, cut, lambda source, vm: Relay.hang_up, after)
    committed = (cut == "COMMIT" and after) or cut == "RUNNING"
    if committed and after and done.returncode == 0:
        # The last word came through just so.
        assert source.wait(LONG) == 0
    elif cut in ("COMMIT", "RUNNING") or is_in_doubt(cut, after, done):
        # It stays paused until somebody who knows lets it go on.
        assert done.returncode == 1 and "may run at the destination" in done.stderr
        assert host.state("one") == "Paused"
    else:
        assert done.returncode == 1, done.stderr
        says_gone(done.stderr)
        wait_passes(host.dir / "one.log", 3)
    if committed:
        wait_passes(host.dir / "two.log", 3)
        is_follow_up(host, "one", "two")
    else:
        # With MACHINE it waits for another source; without a VM it ends.
        if cut == "MACHINE" and not after:
            assert vm.poll() is None
        else:
            assert vm.wait(LONG) == 1
            # What it may see first: the source has the disk again.
            says_gone(host.said(vm), "disk.img: is in use by another")
        assert log(host.dir / "two.log") == ""
    if not committed and host.state("one") == "Paused":
        host.ask("one", "resume")
        wait_passes(host.dir / "one.log", 3)
    assert not (runs(host, "one", source) and runs(host, "two", vm))


def test_destination_is_slow_to_give_up(host):
    """It has locked the disk, and sees late that it is over: the guest still goes on here."""
    def act(source, vm):
        def cut(relay):
            vm.send_signal(signal.SIGSTOP)
            threading.Timer(2, vm.send_signal, (signal.SIGCONT,)).start()
            relay.hang_up()
        return cut
    _, vm, done = relayed(host, "LOADED", act)
    assert done.returncode == 1 and "stays paused" not in done.stderr, done.stderr
    assert vm.wait(LONG) == 1
    wait_passes(host.dir / "one.log", 3)


def has_ended(host, vm):
    """Whether it does, of its own; or else its guest goes on there."""
    wait_for("an end, or a guest", lambda: vm.poll() is not None or log(host.dir / "two.log"))
    return vm.poll() is not None


@pytest.mark.parametrize("who", ["source", "destination"])
@pytest.mark.parametrize("cut", STEPS)
def test_killed(host, cut, who):
    """Right after the message has passed; what the other does then."""
    def act(source, vm):
        def kill(relay):
            victim = source if who == "source" else vm
            victim.kill()
            victim.wait()
            relay.hang_up()
        return kill
    source, vm, done = relayed(host, cut, act, after=True)
    if who == "destination":
        if cut in ("COMMIT", "RUNNING") and done.returncode == 0:
            return  # it was told that it ran there, and it did
        assert done.returncode == 1
        says_gone(done.stderr)
        if cut in ("COMMIT", "RUNNING") or is_in_doubt(cut, True, done):
            assert "may run at the destination" in host.said(source)
            assert host.state("one") == "Paused"
            host.ask("one", "resume")
        wait_passes(host.dir / "one.log", 3)
        return
    assert done.returncode == 1 and "as when the process behind it ends" in done.stderr
    if cut in ("COMMIT", "RUNNING") or (cut in ("READY", "LOADED") and not has_ended(host, vm)):
        # After LOADED, which may follow READY at once, it may have sent COMMIT before that.
        wait_passes(host.dir / "two.log", 3)
        is_follow_up(host, "one", "two")
    else:
        assert vm.wait(LONG) == 1
        says_gone(host.said(vm))
        assert log(host.dir / "two.log") == ""


def test_disk_cannot_be_locked_there(host):
    """The destination's image is somebody else's: the guest goes on here."""
    ours, theirs = host.dir / "a.img", host.dir / "b.img"
    for image in (ours, theirs):
        image.write_bytes(bytes(MIB))
    host.start("run", *vm_args(host, "one"), "--disk", f"path={ours}")
    wait_passes(host.dir / "one.log")
    host.start("run", *vm_args(host, "holder"), "--disk", f"path={theirs}")
    wait_passes(host.dir / "holder.log")
    uri = unix(host, "two")
    vm = incoming(host, "two", uri, "--disk", f"path={theirs}")
    refused(migrate(host, "one", uri, check=False), "b.img: is in use by another")
    assert vm.wait(LONG) == 1
    wait_passes(host.dir / "one.log", 3)
    # Its own is locked again.
    other = host.start("run", *vm_args(host, "three"), "--disk", f"path={ours}")
    assert other.wait(LONG) == 1


def accepted(path):
    """A source of one stream whose machine was taken: control connection, and the other."""
    region = struct.pack("<QQ", 0, 128 * MIB)
    machine = (struct.pack("<IIQQIIBBB5x", 4096, 2 * MIB, 0, 128 * MIB, 2, 1, 1, 1, 0) + region)
    control, stream = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    for number, s in enumerate((control, stream)):
        s.connect(path)
        s.sendall(preface(number, 1))
    control.sendall(struct.pack("<IIQ", 1, 0, len(machine)) + machine)
    assert Relay.read(control, 16)[0] == 2
    return control, stream


@pytest.mark.parametrize("pause", [None, 0.02], ids=["floods", "trickles"])
def test_source_without_end(host, pause):
    """It is READY, it says, and its stream goes on and on: Ctrl-C ends that."""
    vm = incoming(host, "two", unix(host, "two"))
    control, stream = accepted(unix(host, "two")[5:])
    control.sendall(struct.pack("<IIQ", 3, 0, 64) + bytes(64))
    control.sendall(struct.pack("<IIQ", 4, 0, 24) + bytes(24))

    def send():
        stream.sendall(struct.pack("<IIQQ", 1, 0, 0, 2 * MIB))
        try:
            while vm.poll() is None:
                if pause:
                    stream.sendall(b"x")
                    time.sleep(pause)
                else:
                    stream.sendall(bytes(2 * MIB) + struct.pack("<IIQQ", 1, 0, 0, 2 * MIB))
        except OSError:
            pass
    thread = threading.Thread(target=send)
    thread.start()
    try:
        time.sleep(0.5)
        vm.send_signal(signal.SIGINT)
        assert vm.wait(LONG) == 130, host.said(vm)
    finally:
        vm.kill()
        thread.join()
        control.close()
        stream.close()


def test_hostile_source(host):
    """Whatever a source says, the destination ends with an error, and never runs."""
    end = struct.pack("<IIQQ", 5, 0, 0, 0)
    page = struct.pack("<IIQQ", 1, 0, 0, 4096) + bytes(4096)
    streams = [struct.pack("<IIQQ", 1, 0, 128 * MIB, 4096), struct.pack("<IIQQ", 1, 0, 0, 4097),
               struct.pack("<IIQQ", 2, 0, 2 * MIB - 4096, 8192), struct.pack("<IIQQ", 4, 0, 2, 0),
               struct.pack("<IIQQ", 7, 0, 0, 0), struct.pack("<IIQQ", 5, 0, 0, 1), end + page,
               struct.pack("<IIQQ", 1, 0, 1 << 63, 1 << 63), b"\xff" * 24, b"\0" * 7]
    for i, data in enumerate(streams):
        vm = incoming(host, f"two{i}", unix(host, f"two{i}"))
        control, stream = accepted(unix(host, f"two{i}")[5:])
        with control, stream:
            stream.sendall(data)
            stream.shutdown(socket.SHUT_WR)
            control.sendall(struct.pack("<IIQ", 3, 0, 64) + bytes(64))
            control.sendall(struct.pack("<IIQ", 4, 0, 24) + bytes(24))
            answer = Relay.read(control, 16)
            assert answer[0] == 8, (i, answer)  # FAILED
        assert vm.wait(LONG) == 1, (i, host.said(vm))
        assert host.said(vm).count("\n") == 1, host.said(vm)
        assert log(host.dir / f"two{i}.log") == ""
