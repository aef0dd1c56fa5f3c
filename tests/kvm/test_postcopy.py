# SPDX-License-Identifier: Apache-2.0
"""Post-copy and hybrid migration of a walking guest (test_migrate.py says how it tells
that a page is lost, old or from elsewhere)."""
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import threading

import pytest

from test_migrate import (MIB, Between, Relay, boot, free_port, host, incoming,  # noqa: F401
                          is_follow_up, is_listening, migrate, preface, refused, unix)
from test_migrate_tls import NAME, certs, secure, send, tcp  # noqa: F401
from test_restore import LONG, QUIRE, log, passes, wait_for, wait_passes

pytestmark = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                                reason="no usable /dev/kvm")


def info(host, name):
    return host.ask(name, "info").get("migration")


def memory_followed(there, done, mode):
    """All that was missing at the switch was sent, and nothing twice that nobody waited for.
    In hybrid that may be nothing: a busy host may not let the guest write meanwhile."""
    missing = there["followed_bytes"]
    return (missing <= done["followed_bytes"] <= missing + done["urgent_pages"] * 4096
            and (missing > 0 or mode == "hybrid"))


@pytest.mark.parametrize("mode", ["postcopy", "hybrid"])
@pytest.mark.parametrize("cpus,page,streams", [(1, "4k", 1), (2, "4k", 2), (2, "thp", 3)])
def test_goes_on(host, mode, cpus, page, streams):
    kw = {"cpus": cpus, "page": page}
    source = boot(host, **kw)
    wait_passes(host.dir / "one.log")
    uri = unix(host, "two")
    incoming(host, "two", uri, **kw)
    done = json.loads(migrate(host, "one", uri, "--streams", streams, "--mode", mode).stdout)
    assert done["connections"] == streams
    assert done["rounds"] == (0 if mode == "postcopy" else 2) or done["rounds"] == 1
    assert done["page_bytes"] >= 24 * MIB and not done["ended_there"]
    assert memory_followed(info(host, "two"), done, mode)
    assert source.wait(LONG) == 0, host.said(source)
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")
    assert info(host, "two")["postcopy"] == "complete"
    assert host.ask("two", "vm.memory-stats")["restore"] is not None


@pytest.mark.parametrize("mode", ["postcopy", "hybrid"])
@pytest.mark.parametrize("kind,streams", [("unix", 1), ("tcp", 3)])
def test_goes_on_with_tls(host, certs, mode, kind, streams):
    source = boot(host)
    wait_passes(host.dir / "one.log")
    uri = unix(host, "two") if kind == "unix" else tcp()
    secure(host, "two", uri, certs.server)
    done = json.loads(send(host, "one", uri, certs.client, "--streams", streams, "--mode",
                           mode).stdout)
    assert done["connections"] == streams and memory_followed(info(host, "two"), done, mode)
    assert source.wait(LONG) == 0, host.said(source)
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")
    assert info(host, "two")["postcopy"] == "complete" and info(host, "two")["breaks"] == 0


@pytest.mark.parametrize("mode", ["postcopy", "hybrid"])
@pytest.mark.parametrize("method", ["lz4", "zstd"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_goes_on_compressed(host, certs, mode, method, tls):
    """What the guest waited for is not; all of the rest that is worth it."""
    boot(host)
    wait_passes(host.dir / "one.log")
    uri = unix(host, "two")
    args = ["--streams", 2, "--mode", mode, "--compress", method]
    if tls:
        secure(host, "two", uri, certs.server)
        done = json.loads(send(host, "one", uri, certs.client, *args).stdout)
    else:
        incoming(host, "two", uri)
        done = json.loads(migrate(host, "one", uri, *args).stdout)
    assert 0 < done["compressed_to_bytes"] < done["compressed_from_bytes"]
    assert done["compressed_from_bytes"] <= done["page_bytes"]
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")


def test_kinds_of_memory(host):
    """In a file: what is discarded is a hole then."""
    kw = {"size": "128M,shared=on", "cpus": 2}
    for old, new, mode in (("one", "two", "postcopy"), ("two", "three", "hybrid")):
        if old == "one":
            boot(host, **kw)
        uri = unix(host, new)
        incoming(host, new, uri, **kw)
        migrate(host, old, uri, "--mode", mode)
        wait_passes(host.dir / f"{new}.log", 4)
        is_follow_up(host, old, new)


def test_over_the_api(host):
    """Without a client of ours: the VM's process makes the connections itself."""
    source = boot(host)
    wait_passes(host.dir / "one.log")
    uri = unix(host, "two")
    incoming(host, "two", uri)
    to = ("ctl", "one", "send-migration", f"destination_url={uri}")
    done = host.quire(*to, "mode=sideways", check=False)
    assert done.returncode == 1 and "mode" in done.stderr, done.stderr
    done = json.loads(host.quire(*to, "mode=hybrid", "connections:=2", "compress=lz4").stdout)
    assert done["rounds"] >= 1 and memory_followed(info(host, "two"), done, "hybrid")
    assert source.wait(LONG) == 0, host.said(source)
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")


def rss(vm):
    with open(f"/proc/{vm.pid}/status") as f:
        return int(next(line for line in f if line.startswith("VmRSS:")).split()[1]) << 10


@pytest.mark.parametrize("populate", ["host", "full", "background"])
@pytest.mark.parametrize("mode", ["postcopy", "hybrid"])
def test_populates_there(host, mode, populate):
    """All of memory, of which the guest uses a fifth."""
    boot(host)
    wait_passes(host.dir / "one.log")
    uri = unix(host, "two")
    vm = incoming(host, "two", uri, size=f"128M,populate={populate}")
    migrate(host, "one", uri, "--mode", mode)
    wait_for("all of its memory", lambda: rss(vm) >= 128 * MIB)
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")


def test_hugetlb_is_refused(host, hugetlb):
    """By the destination: 4K of it cannot be missing."""
    hugetlb(128)
    boot(host)
    uri = unix(host, "two")
    vm = incoming(host, "two", uri, page="2m")
    refused(migrate(host, "one", uri, "--mode", "postcopy", check=False), "cannot follow")
    assert vm.wait(LONG) == 1
    wait_passes(host.dir / "one.log", 3)


def test_back_and_forth(host):
    boot(host, "vm0", cpus=2, page="thp")
    for i in range(12):
        old, new = f"vm{i}", f"vm{i + 1}"
        wait_passes(host.dir / f"{old}.log", 2)
        uri = unix(host, new) if i % 2 else f"tcp:127.0.0.1:{free_port()}"
        incoming(host, new, uri, cpus=2, page="thp")
        mode = ("postcopy", "hybrid", "precopy")[i % 3]
        # What came by post-copy goes on only when all of it is here.
        done = migrate(host, old, uri, "--mode", mode, "--streams", i % 3 + 1, check=False)
        while done.returncode:
            refused(done, "not all come yet")
            done = migrate(host, old, uri, "--mode", mode, check=False)
        wait_passes(host.dir / f"{new}.log", 2)
        is_follow_up(host, old, new)


def test_paused_stays_paused(host):
    """All of its memory comes nevertheless."""
    boot(host)
    host.ask("one", "pause")
    uri = unix(host, "two")
    incoming(host, "two", uri)
    migrate(host, "one", uri, "--mode", "postcopy")
    assert host.state("two") == "Paused" and log(host.dir / "two.log") == ""
    host.ask("two", "resume")
    wait_passes(host.dir / "two.log", 3)


# ---- connections that break ----

class Cable(Between):
    """Passes bytes on, until it is cut: close()."""

    def __init__(self, path, to):
        self.urgent = None  # the source's end of that connection
        self.control = None  # the destination's end of that one
        self.first = []     # of each connection
        super().__init__(path, to)

    def join(self, a, b):
        first = Relay.read(a, 32)
        b.sendall(first)
        with self.lock:
            self.first.append(first)
            if first[12:14] == b"\xff\xff":
                self.urgent = a
            elif first[12:14] == b"\0\0":
                self.control = b
        for x, y in ((a, b), (b, a)):
            threading.Thread(target=self.move, args=(x, y), daemon=True).start()

    def move(self, x, y):
        try:
            while data := x.recv(1 << 16):
                y.sendall(data)
        except OSError:
            pass
        for s in (x, y):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def start(host, uri, *args):
    return subprocess.Popen([QUIRE, "migrate", "one", uri, "--json", *map(str, args)],
                            env=host.env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def wait_follows(client):
    """The source has heard that the VM runs there: from now on it is not in doubt."""
    said = ""
    while '"phase":"post-copy"' not in said:
        line = client.stderr.readline()
        assert line, said
        said += line


def start_slow(host, there, mode="postcopy", paused=True, certs=None, args=(), **kw):
    """Memory follows the VM slowly, over a cable. A guest that is not paused asks for most
    of it."""
    tls = ["--tls", certs.client, "--tls-hostname", NAME] if certs else []
    source = boot(host, **kw)
    wait_passes(host.dir / "one.log")
    if paused:
        host.ask("one", "pause")
    vm = incoming(host, "two", there, *(["--tls", certs.server] if certs else []), **kw)
    cable = Cable(f"{host.dir}/cable", there[5:])
    client = start(host, f"unix:{host.dir}/cable", "--mode", mode, "--bandwidth", "2M", *tls,
                   *args)
    wait_for("the VM there", lambda: (info(host, "two") or {}).get("postcopy") == "active"
             and host.state("two") == ("Paused" if paused else "Running"))
    wait_follows(client)
    return source, vm, cable, client


def recovers(host, uri, *args):
    return host.quire("migrate", "one", uri, "--recover", "--json", *args, check=False)


@pytest.mark.parametrize("cpus,page", [(1, "4k"), (2, "thp")])
def test_is_cut_and_recovers(host, cpus, page):
    """More than once; no page is lost, and nobody runs it here meanwhile."""
    there = unix(host, "two")
    source, vm, cable, client = start_slow(host, there, paused=False, cpus=cpus, page=page,
                                           mib=160, size="256M")
    cable.close()
    said = client.communicate(timeout=LONG)[1]
    assert client.returncode == 1 and "--recover" in said, said
    for i in range(3):
        wait_for("the break", lambda: info(host, "two")["postcopy"] == "paused")
        assert info(host, "one")["state"] == "postcopy-paused"
        for verb in ("resume", "reboot", "shutdown", "delete"):
            done = host.quire("ctl", "one", verb, check=False)
            assert done.returncode == 1 and "runs elsewhere" in done.stderr, done.stderr
        assert host.state("one") == "Paused"
        # Nobody else is taken for the source.
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(there[5:])
            s.sendall(preface(0, 1))
            assert s.recv(1) == b""
        if i == 2:
            break
        os.unlink(f"{host.dir}/cable")
        cable = Cable(f"{host.dir}/cable", there[5:])
        again = start(host, f"unix:{host.dir}/cable", "--recover", "--bandwidth", "2M")
        wait_for("the connection", lambda: info(host, "two")["postcopy"] == "active")
        wait_follows(again)
        cable.close()
        said = again.communicate(timeout=LONG)[1]
        assert again.returncode == 1 and "--recover" in said, said
    done = recovers(host, there)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["followed_bytes"] > 0
    assert source.wait(LONG) == 0, host.said(source)
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")
    assert info(host, "two")["breaks"] >= 3


def test_control_connection_is_cut_alone(host):
    """One break as any other, though the connections for memory are still there."""
    there = unix(host, "two")
    source, vm, cable, client = start_slow(host, there)
    cable.control.shutdown(socket.SHUT_WR)
    wait_for("the break", lambda: info(host, "two")["postcopy"] == "paused")
    said = client.communicate(timeout=LONG)[1]
    assert client.returncode == 1 and "--recover" in said, said
    assert info(host, "two")["breaks"] == 1
    done = recovers(host, there)
    assert done.returncode == 0, done.stderr
    assert source.wait(LONG) == 0, host.said(source)
    host.ask("two", "resume")
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")
    assert info(host, "two")["breaks"] == 1


def stranger(path, first, credentials=None):
    """The first byte that comes back to one who says this; with TLS, if credentials."""
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(LONG)
        plain.connect(path)
        s = plain
        try:
            if credentials:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                if credentials != "none":
                    context.load_cert_chain(credentials / "client-cert.pem",
                                            credentials / "client-key.pem")
                s = context.wrap_socket(plain)
            s.sendall(first)
            return s.recv(1)
        except OSError:
            return b""


AGAIN = struct.pack("<IIQQ", 12, 0, 8, 0)


@pytest.mark.parametrize("method", ["none", "zstd"])
def test_recovers_with_tls(host, certs, method):
    """Only by who has the id, and a certificate: all others are refused while the VM waits,
    and so is a destination of another name by the source."""
    there = unix(host, "two")
    source, vm, cable, client = start_slow(host, there, paused=False, certs=certs,
                                           args=["--compress", "lz4"], mib=160, size="256M")
    cable.close()
    said = client.communicate(timeout=LONG)[1]
    assert client.returncode == 1 and "--recover" in said, said
    wait_for("the break", lambda: info(host, "two")["postcopy"] == "paused")
    for args, words in [
            ((), "it takes connections with TLS only"),
            (("--tls", certs.foreign_client, "--tls-hostname", NAME), "refuses us: CA is unknown"),
            (("--tls", certs.expired_client, "--tls-hostname", NAME), "refuses us.*expired"),
            (("--tls", certs.server_as_client, "--tls-hostname", NAME), "refuses us"),
            (("--tls", certs.client, "--tls-hostname", "elsewhere.example"),
             "name.*does not match")]:
        refused(recovers(host, there, *args), words)
        assert info(host, "one")["state"] == "postcopy-paused"
        assert info(host, "two")["postcopy"] == "paused"
        assert host.state("two") == "Running"
    # Strangers: without a certificate, with one of another CA, and one of ours without the id.
    for credentials in ("none", certs.foreign_client, certs.client):
        assert stranger(there[5:], preface(0, 1) + AGAIN, credentials) == b"", credentials
    assert info(host, "two")["postcopy"] == "paused" and vm.poll() is None
    done = recovers(host, there, "--tls", certs.client, "--tls-hostname", NAME, "--compress",
                    method)
    assert done.returncode == 0, done.stderr
    done = json.loads(done.stdout)
    assert done["followed_bytes"] > 0
    assert (done["compressed_from_bytes"] > 0) == (method != "none")
    assert source.wait(LONG) == 0, host.said(source)
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")


@pytest.mark.parametrize("features", [1, 1 << 10, 1 << 63])
def test_again_with_features_that_nobody_knows(host, features):
    """It is told so, and the right one is still taken. The id is the VM's source's secret;
    here it is read from the cable."""
    there = unix(host, "two")
    source, vm, cable, client = start_slow(host, there)
    ident = cable.first[0][16:]
    cable.close()
    client.communicate(timeout=LONG)
    wait_for("the break", lambda: info(host, "two")["postcopy"] == "paused")
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(LONG)
        s.connect(there[5:])
        s.sendall(preface(0, 1, ident=ident) + struct.pack("<IIQQ", 12, 0, 8, features))
        head = Relay.read(s, 16)
        assert head[0] == 8, head
        assert b"features" in Relay.read(s, head[8])
    done = recovers(host, there)
    assert done.returncode == 0, done.stderr
    host.ask("two", "resume")
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")


def test_recover_without_reason(host):
    boot(host)
    uri = unix(host, "two")
    incoming(host, "two", uri)
    refused(recovers(host, uri), "waits for a connection|state is Running")
    host.ask("one", "pause")
    refused(recovers(host, uri), "waits for a connection")


@pytest.mark.parametrize("sig,status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(host, sig, status):
    """Ctrl-C leaves the memory here, and does not stop the VM there."""
    there = unix(host, "two")
    source, vm, cable, client = start_slow(host, there)
    # What was written is of no interest where nothing was sent before.
    assert host.ask("one", "vm.memory-stats")["dirty_log"]["starts"] == 0
    client.send_signal(sig)
    client.communicate(timeout=LONG)
    assert client.returncode == status
    assert info(host, "one")["state"] == "postcopy-paused"
    done = recovers(host, there)
    assert done.returncode == 0, done.stderr
    host.ask("two", "resume")
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")


def test_verbs_meanwhile(host):
    there = unix(host, "two")
    source, vm, cable, client = start_slow(host, there)
    done = host.quire("snapshot", "two", host.dir / "snap", check=False)
    assert done.returncode == 1 and "not all come yet" in done.stderr
    host.ask("two", "resume")
    host.ask("two", "pause")
    client.kill()
    client.communicate()
    wait_for("the break", lambda: info(host, "two")["postcopy"] == "paused")
    done = recovers(host, there)
    assert done.returncode == 0, done.stderr
    host.ask("two", "resume")
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")


def test_pause_while_it_waits(host):
    """The guest waits for memory, and nobody is there to bring it: whoever asks is answered,
    and nothing is lost."""
    there = unix(host, "two")
    source, vm, cable, client = start_slow(host, there, paused=False, mib=160, size="256M",
                                           cpus=2)
    cable.close()
    client.communicate(timeout=LONG)
    wait_for("the break", lambda: info(host, "two")["postcopy"] == "paused")
    for _ in range(2):
        host.ask("two", "pause")
        assert host.state("two") == "Paused"
        done = host.quire("ctl", "two", "resume", check=False)
        # A vCPU that is in the kernel for a page cannot go on before that is there.
        assert host.state("two") == ("Paused" if done.returncode else "Running")
        if done.returncode:
            assert "waits for memory" in done.stderr, done.stderr
            break
    done = recovers(host, there)
    assert done.returncode == 0, done.stderr
    if host.state("two") == "Paused":
        host.ask("two", "resume")
    assert source.wait(LONG) == 0, host.said(source)
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")


@pytest.mark.parametrize("cut", [False, True], ids=["connected", "cut"])
@pytest.mark.parametrize("verb", ["reboot", "shutdown", "delete"])
def test_ended_by_a_verb(host, verb, cut):
    """The VM there is not that VM any more: nobody wants the memory."""
    there = unix(host, "two")
    source, vm, cable, client = start_slow(host, there, paused=False, mib=160, size="256M")
    if cut:
        cable.close()
        client.communicate(timeout=LONG)
        wait_for("the break", lambda: info(host, "two")["postcopy"] == "paused")
    host.ask("two", verb)
    if cut:
        wait_for("an end of waiting", lambda: not is_listening(there[5:]))
        refused(recovers(host, there), "")
    else:
        out, said = client.communicate(timeout=LONG)
        assert client.returncode == 0, said
        assert json.loads(out)["ended_there"]
        assert source.wait(LONG) == 0, host.said(source)
    if verb == "reboot":
        assert info(host, "two") is None
        wait_for("a new guest", lambda: log(host.dir / "two.log").count("walker: ready") >= 1)
    elif verb == "shutdown":
        assert host.state("two") == "Shutdown" and info(host, "two") is None
        host.ask("two", "boot")
        wait_for("a new guest", lambda: log(host.dir / "two.log").count("walker: ready") >= 1)
    else:
        done = host.quire("ctl", "two", "info", check=False)
        assert done.returncode == 1 and vm.poll() is None


def test_received_over_the_api(host):
    """Shared memory that came and is to come again, in a process that is confined."""
    boot(host, size="128M,shared=on")
    wait_passes(host.dir / "one.log")
    sock = host.dir / "api.sock"
    vm = host.start("run", "--api-socket", sock)
    wait_for("the API", sock.exists)
    config = host.ask("one", "info")["config"]
    config["name"] = "two"
    config["serial"] = {"mode": "File", "file": str(host.dir / "two.log")}
    (host.dir / "config").write_text(json.dumps(config))
    host.quire("ctl", sock, "create", f"@{host.dir}/config")
    uri = unix(host, "two")
    answer = []
    waiting = threading.Thread(target=lambda: answer.append(host.quire(
        "ctl", "--timeout", LONG, sock, "receive-migration", f"receiver_url={uri}",
        check=False)))
    waiting.start()
    wait_for("its socket", lambda: is_listening(uri[5:]))
    done = json.loads(migrate(host, "one", uri, "--mode", "hybrid").stdout)
    there = json.loads(host.quire("ctl", sock, "info").stdout)["migration"]
    assert done["rounds"] >= 1 and memory_followed(there, done, "hybrid")
    waiting.join(LONG)
    assert answer[0].returncode == 0, answer[0].stderr + host.said(vm)
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")


@pytest.mark.parametrize("cut", [False, True], ids=["connected", "cut"])
def test_vm_ends_there(host, cut):
    """Nobody wants its memory any more: the source is free, and not hung by it."""
    there = unix(host, "two")
    source, vm, cable, client = start_slow(host, there)
    if cut:
        cable.close()
        client.communicate(timeout=LONG)
        wait_for("the break", lambda: info(host, "two")["postcopy"] == "paused")
    vm.send_signal(signal.SIGINT)
    assert vm.wait(LONG) == 130, host.said(vm)
    if cut:
        source.send_signal(signal.SIGINT)
        assert source.wait(LONG) == 130
    else:
        out, said = client.communicate(timeout=LONG)
        assert client.returncode == 0, said
        assert json.loads(out)["ended_there"]
        assert source.wait(LONG) == 0


@pytest.mark.parametrize("sig,status", [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_source_is_killed(host, sig, status):
    """The VM there waits for ever for what only the source had; it can be ended."""
    there = unix(host, "two")
    source, vm, cable, client = start_slow(host, there)
    source.send_signal(sig)
    assert source.wait(LONG) == status, host.said(source)
    client.communicate(timeout=LONG)
    wait_for("the break", lambda: info(host, "two")["postcopy"] == "paused")
    host.ask("two", "resume")
    assert host.state("two") == "Running"
    vm.send_signal(signal.SIGINT)
    assert vm.wait(LONG) == 130, host.said(vm)


def test_urgent_pages_are_asked_for(host):
    """The walker walks faster than memory is pushed. It stands still while the last is: a
    page that is pushed and asked for just before the end has no answer."""
    there = unix(host, "two")
    source, vm, cable, client = start_slow(host, there, paused=False, mib=96,
                                           args=["--bandwidth", "8M"])
    wait_for("a request", lambda: info(host, "two")["urgent_pages"])
    host.ask("two", "pause")
    out, said = client.communicate(timeout=LONG)
    assert client.returncode == 0, said
    done = json.loads(out)
    there = info(host, "two")
    assert done["urgent_pages"] > 0 and there["urgent_pages"] == done["urgent_pages"]
    assert there["requests"] == done["urgent_pages"]
    assert 0 < there["urgent_p50_us"] <= there["urgent_p99_us"]
    host.ask("two", "resume")
    wait_passes(host.dir / "two.log", 3)
    is_follow_up(host, "one", "two")


@pytest.mark.parametrize("request_", [
    struct.pack("<IIQQ", 6, 0, 1 << 40, 4096), struct.pack("<IIQQ", 6, 0, 0, 8192),
    struct.pack("<IIQQ", 6, 0, 1, 4096), struct.pack("<IIQQ", 6, 1, 0, 4096),
    struct.pack("<IIQQ", 1, 0, 0, 4096), b"\xff" * 24,
], ids=["beyond", "long", "unaligned", "reserve", "answer", "noise"])
def test_hostile_request(host, request_):
    """The source hangs up, and has the memory still."""
    there = unix(host, "two")
    source, vm, cable, client = start_slow(host, there)
    with cable.lock:
        cable.urgent.sendall(request_)
    said = client.communicate(timeout=LONG)[1]
    assert client.returncode == 1 and "a request" in said and "--recover" in said, said
    wait_for("the break", lambda: info(host, "two")["postcopy"] == "paused")
    done = recovers(host, there)
    assert done.returncode == 0, done.stderr
    host.ask("two", "resume")
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")


def test_hostile_source(host):
    """Maps that are not of this memory: it ends with an error, and never runs."""
    region = struct.pack("<QQ", 0, 128 * MIB)
    machine = (struct.pack("<IIQQIIBBB5x", 4096, 2 * MIB, 1, 128 * MIB, 2, 1, 1, 1, 0) + region)
    size = 128 * MIB // 4096 // 8
    maps = [bytes(8), bytes(size - 8), bytes(size + 8), b"", b"\xff" * size]
    for i, pages in enumerate(maps):
        path = unix(host, f"two{i}")[5:]
        vm = incoming(host, f"two{i}", f"unix:{path}")
        with socket.socket(socket.AF_UNIX) as control, socket.socket(socket.AF_UNIX) as stream, \
                socket.socket(socket.AF_UNIX) as urgent:
            for number, s in ((0, control), (1, stream), (0xffff, urgent)):
                s.connect(path)
                s.sendall(preface(number, 1))
            control.sendall(struct.pack("<IIQ", 1, 0, len(machine)) + machine)
            assert Relay.read(control, 16)[0] == 2
            stream.sendall(struct.pack("<IIQQ", 5, 0, 0, 0))
            control.sendall(struct.pack("<IIQ", 3, 0, 64) + bytes(64))
            try:
                control.sendall(struct.pack("<IIQ", 10, 0, len(pages)) + pages)
                control.sendall(struct.pack("<IIQ", 4, 0, 24) + bytes(24))
            except OSError:
                pass  # it has seen enough
            assert Relay.read(control, 16)[0] == 8, i  # FAILED
        assert vm.wait(LONG) == 1, (i, host.said(vm))
        assert log(host.dir / f"two{i}.log") == ""


STEPS = ["ACCEPT", "STATE", "PENDING", "READY", "LOADED"]


@pytest.mark.parametrize("cut", STEPS)
def test_link_is_cut_before(host, cut):
    """Nothing was handed over: it goes on here, and is forgotten there."""
    source = boot(host)
    wait_passes(host.dir / "one.log")
    there = unix(host, "two")
    vm = incoming(host, "two", there)
    relay = Relay(f"{host.dir}/relay", there[5:], cut, Relay.hang_up, False)
    try:
        done = migrate(host, "one", f"unix:{host.dir}/relay", "--mode", "postcopy", check=False)
    finally:
        relay.close()
    assert done.returncode == 1, done.stderr
    assert vm.wait(LONG) == 1, host.said(vm)
    assert source.poll() is None and host.state("one") == "Running"
    wait_passes(host.dir / "one.log", 3)
    assert log(host.dir / "two.log") == ""


@pytest.mark.parametrize("cut,after", [("COMMIT", False), ("COMMIT", True), ("RUNNING", False)])
def test_link_is_cut_in_the_hand_over(host, cut, after):
    """In doubt: it stays paused here until one who knows says where it is."""
    boot(host)
    wait_passes(host.dir / "one.log")
    there = unix(host, "two")
    vm = incoming(host, "two", there)
    relay = Relay(f"{host.dir}/relay", there[5:], cut, Relay.hang_up, after)
    try:
        done = migrate(host, "one", f"unix:{host.dir}/relay", "--mode", "postcopy", check=False)
    finally:
        relay.close()
    assert done.returncode == 1 and "may run at the destination" in done.stderr, done.stderr
    assert host.state("one") == "Paused" and info(host, "one")["state"] == "in-doubt"
    if cut == "RUNNING":
        assert recovers(host, there).returncode == 0
        wait_passes(host.dir / "two.log", 3)
        is_follow_up(host, "one", "two")
        return
    # COMMIT may have come, and the connections be gone before it was looked at.
    if vm.poll() is None and after:
        done = recovers(host, there)
        if done.returncode == 0:
            wait_passes(host.dir / "two.log", 3)
            return
    assert vm.wait(LONG) == 1
    assert recovers(host, there).returncode == 1
    assert info(host, "one")["state"] == "in-doubt"
    host.ask("one", "resume")
    wait_passes(host.dir / "one.log", 3)
    assert log(host.dir / "two.log") == ""


def test_words_that_never_end(host):
    """Instead of RUNNING: the source is in doubt soon, and can be ended, whatever comes."""
    source = boot(host)
    wait_passes(host.dir / "one.log")
    there = unix(host, "two")
    incoming(host, "two", there)
    over = threading.Event()

    def dribble(relay):
        with relay.lock:
            s = relay.sockets[0]
        s.sendall(struct.pack("<IIQ", 8, 0, 400))
        try:
            while not over.wait(1):
                s.sendall(b"x")
        except OSError:
            pass

    relay = Relay(f"{host.dir}/relay", there[5:], "RUNNING", dribble, False)
    try:
        done = migrate(host, "one", f"unix:{host.dir}/relay", "--mode", "postcopy", check=False)
    finally:
        over.set()
        relay.close()
    assert done.returncode == 1 and "may run at the destination" in done.stderr, done.stderr
    assert info(host, "one")["state"] == "in-doubt"
    assert recovers(host, there).returncode == 0
    assert source.wait(LONG) == 0, host.said(source)
    wait_passes(host.dir / "two.log", 3)
    is_follow_up(host, "one", "two")
