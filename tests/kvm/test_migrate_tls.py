# SPDX-License-Identifier: Apache-2.0
"""Migration with TLS: who is let in, who is not, and what each is told."""
import json
import os
import re
import select
import socket
import subprocess
import threading
import time

import pytest

from test_migrate import (MIB, Between, boot, free_port, host, incoming, is_follow_up,  # noqa: F401
                          is_listening, migrate, preface, refused, start_slow, unix, vm_args,
                          write)
from test_restore import LONG, log, wait_for, wait_passes

pytestmark = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                                reason="no usable /dev/kvm")
NAME = "quire.example"
FILES = {"server": ("server-cert.pem", "server-key.pem"),
         "client": ("client-cert.pem", "client-key.pem")}


def certtool(*args):
    done = subprocess.run(["certtool", *map(str, args)], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


class Authority:
    """A CA, and directories with what it has signed."""

    def __init__(self, path):
        path.mkdir()
        self.path, self.key, self.cert = path, path / "key.pem", path / "cert.pem"
        self.make_key(self.key)
        certtool("--generate-self-signed", "--load-privkey", self.key, "--outfile", self.cert,
                 "--template", self.template("ca", "ca", "cert_signing_key",
                                             "expiration_days = 30"))

    @staticmethod
    def make_key(path):
        certtool("--generate-privkey", "--key-type=ecdsa", "--curve=secp256r1", "--outfile", path)

    def template(self, name, *lines):
        path = self.path / f"{name}.cfg"
        path.write_text("\n".join([f'cn = "{name}"', *lines]) + "\n")
        return path

    def sign(self, name, side, expired=False, purpose=None, dns=NAME, trusts=None):
        """A directory for side, whose owner trusts this CA, or another."""
        where = self.path / name
        where.mkdir(exist_ok=True)
        cert, key = (where / f for f in FILES[side])
        self.make_key(key)
        times = (['activation_date = "2020-01-01 00:00:00"',
                  'expiration_date = "2021-01-01 00:00:00"'] if expired
                 else ["expiration_days = 30"])
        purpose = purpose or {"server": "tls_www_server", "client": "tls_www_client"}[side]
        names = [f"dns_name = {dns}", "ip_address = 127.0.0.1"] if dns else []
        certtool("--generate-certificate", "--load-ca-certificate", self.cert,
                 "--load-ca-privkey", self.key, "--load-privkey", key, "--outfile", cert,
                 "--template", self.template(name, *names, purpose, "signing_key", *times))
        (where / "ca-cert.pem").write_bytes((trusts or self).cert.read_bytes())
        return where


class Certificates:
    def __init__(self, path):
        self.ours, self.theirs = Authority(path / "ours"), Authority(path / "theirs")
        self.server = self.ours.sign("server", "server")
        self.client = self.ours.sign("client", "client")
        self.expired_server = self.ours.sign("old-server", "server", expired=True)
        self.expired_client = self.ours.sign("old-client", "client", expired=True)
        self.other_name = self.ours.sign("elsewhere", "server", dns="elsewhere.example")
        self.nameless = self.ours.sign("nameless", "server", dns=None)
        self.server_as_client = self.ours.sign("server2", "client", purpose="tls_www_server")
        self.client_as_server = self.ours.sign("client2", "server", purpose="tls_www_client")
        # Signed by somebody else, though they know whom the other side has to be.
        self.foreign_client = self.theirs.sign("client", "client", trusts=self.ours)
        self.foreign_server = self.theirs.sign("server", "server", trusts=self.ours)
        # All in order, for another CA.
        self.foreign_pair = self.theirs.sign("all", "client")


@pytest.fixture(scope="session")
def certs(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certs"))


def secure(host, name, uri, directory, *args, **kw):
    return incoming(host, name, uri, "--tls", directory, *args, **kw)


def send(host, name, uri, directory, *args, check=True, hostname=None):
    if uri.startswith("unix:") and hostname is None:
        hostname = NAME
    if hostname:
        args += ("--tls-hostname", hostname)
    return migrate(host, name, uri, "--tls", directory, *args, check=check)


def tcp():
    return f"tcp:127.0.0.1:{free_port()}"


def fails(done, words):
    refused(done, words)


@pytest.mark.parametrize("streams", [1, 5])
@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_goes_on(host, certs, kind, streams):
    source = boot(host, cpus=2)
    wait_passes(host.dir / "one.log")
    uri = unix(host, "two") if kind == "unix" else tcp()
    secure(host, "two", uri, certs.server, cpus=2)
    report = json.loads(send(host, "one", uri, certs.client, "--streams", streams).stdout)
    assert report["connections"] == streams and report["page_bytes"] >= 24 * MIB
    assert source.wait(LONG) == 0, host.said(source)
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")


@pytest.mark.parametrize("method", ["lz4", "zstd"])
def test_compressed(host, certs, method):
    boot(host)
    wait_passes(host.dir / "one.log")
    uri = tcp()
    secure(host, "two", uri, certs.server)
    report = json.loads(send(host, "one", uri, certs.client, "--compress", method).stdout)
    assert 0 < report["compressed_to_bytes"] < report["compressed_from_bytes"]
    wait_passes(host.dir / "two.log", 4)
    is_follow_up(host, "one", "two")


def test_back_and_forth(host, certs):
    boot(host, "vm0")
    for i in range(6):
        old, new = f"vm{i}", f"vm{i + 1}"
        wait_passes(host.dir / f"{old}.log", 2)
        uri = unix(host, new) if i % 2 else tcp()
        vm = secure(host, new, uri, certs.server)
        send(host, old, uri, certs.client, "--streams", i % 3 + 1)
        wait_passes(host.dir / f"{new}.log", 2)
        is_follow_up(host, old, new)
        assert "Seccomp:\t2" in open(f"/proc/{vm.pid}/status").read()


class Sniffer(Between):
    """Passes connections on, keeps what it sees, and may change a byte."""

    def __init__(self, path, to, spoil=None):
        self.spoil, self.seen, self.number = spoil, bytearray(), 0
        super().__init__(path, to)

    def join(self, a, b):
        for x, y, back in ((a, b, False), (b, a, True)):
            threading.Thread(target=self.copy, args=(x, y, self.number, back),
                             daemon=True).start()
        self.number += 1

    def copy(self, x, y, number, back):
        at = 0
        try:
            while data := bytearray(x.recv(1 << 16)):
                if self.spoil and self.spoil[:2] == (number, back):
                    place = self.spoil[2] - at
                    if 0 <= place < len(data):
                        data[place] ^= 1
                at += len(data)
                self.seen += data
                y.sendall(data)
            y.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def test_nothing_is_readable(host, certs):
    """What the guest says to itself, and what the source says of the VM, is not to be seen
    between the two; without TLS it is, so the look is a real one."""
    words = b"walker: "  # of its code, which is in its memory
    for name, args in (("plain", []), ("tls", ["--tls", certs.server])):
        source = boot(host, name)
        uri = unix(host, f"{name}2")
        incoming(host, f"{name}2", uri, *args)
        sniffer = Sniffer(f"{host.dir}/{name}.sniff", uri[5:])
        try:
            there = f"unix:{host.dir}/{name}.sniff"
            if args:
                send(host, name, there, certs.client)
            else:
                migrate(host, name, there)
            assert source.wait(LONG) == 0
        finally:
            sniffer.close()
        assert (words in sniffer.seen) == (not args)
        assert (b"QUIREMIG" in sniffer.seen) == (not args)
        assert len(sniffer.seen) > 24 * MIB


@pytest.mark.parametrize("number,back,place", [
    (0, False, 4000), (1, False, 100000), (1, False, 9 << 20), (2, False, 1 << 20)])
def test_spoiled_on_the_way(host, certs, number, back, place):
    """A bit that somebody changes ends it: the guest goes on here, and never ran there."""
    boot(host)
    uri = unix(host, "two")
    vm = secure(host, "two", uri, certs.server)
    sniffer = Sniffer(f"{host.dir}/sniff", uri[5:], (number, back, place))
    try:
        done = send(host, "one", f"unix:{host.dir}/sniff", certs.client, "--streams", 2,
                    check=False)
    finally:
        sniffer.close()
    assert done.returncode == 1, done.stdout
    assert vm.wait(LONG) == 1
    assert log(host.dir / "two.log") == ""
    wait_passes(host.dir / "one.log", 3)


def goes_on_waiting(host, certs, vm, uri):
    """Whoever was refused has changed nothing: the right one is still taken."""
    assert vm.poll() is None, host.said(vm)
    wait_passes(host.dir / "one.log", 2)
    send(host, "one", uri, certs.client)
    wait_passes(host.dir / "two.log", 3)
    is_follow_up(host, "one", "two")


@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize("who,here,there", [
    ("foreign_client", "refuses us: CA is unknown", "(?i)not trusted.*issuer is unknown"),
    ("foreign_pair", "(?i)not trusted.*issuer is unknown", "refuses us: CA is unknown"),
    ("expired_client", "refuses us: Certificate is expired", "expired"),
    ("server_as_client", "refuses us: Certificate is bad", "purpose"),
])
def test_source_is_refused(host, certs, kind, who, here, there):
    boot(host)
    uri = unix(host, "two") if kind == "unix" else tcp()
    vm = secure(host, "two", uri, certs.server)
    fails(send(host, "one", uri, getattr(certs, who), check=False), here)
    wait_for("its words", lambda: re.search(there, host.said(vm)))
    goes_on_waiting(host, certs, vm, uri)


@pytest.mark.parametrize("who,here,there", [
    ("foreign_server", "(?i)not trusted.*issuer is unknown", "refuses us: CA is unknown"),
    ("expired_server", "expired", "refuses us: Certificate is expired"),
    ("client_as_server", "purpose", "refuses us: Certificate is bad"),
    ("other_name", rf"name.*does not match.*\(127.0.0.1\)|name.*does not match", "refuses us"),
    ("nameless", "name.*does not match", "refuses us"),
])
def test_destination_is_refused(host, certs, who, here, there):
    boot(host)
    uri = tcp()
    hostname = NAME if who == "other_name" else None
    vm = secure(host, "two", uri, getattr(certs, who))
    fails(send(host, "one", uri, certs.client, check=False, hostname=hostname), here)
    wait_for("its words", lambda: re.search(there, host.said(vm)))
    assert vm.poll() is None
    wait_passes(host.dir / "one.log", 2)
    if who == "other_name":  # which is its name after all
        send(host, "one", uri, certs.client, hostname="elsewhere.example")
        wait_passes(host.dir / "two.log", 3)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_plain_is_refused(host, certs, kind):
    boot(host)
    uri = unix(host, "two") if kind == "unix" else tcp()
    vm = secure(host, "two", uri, certs.server)
    fails(migrate(host, "one", uri, check=False), "it takes connections with TLS only")
    wait_for("its words", lambda: "it has no TLS" in host.said(vm))
    goes_on_waiting(host, certs, vm, uri)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_tls_is_refused(host, certs, kind):
    """Where there is none it is said, and nothing is sent."""
    boot(host)
    uri = unix(host, "two") if kind == "unix" else tcp()
    vm = incoming(host, "two", uri)
    fails(send(host, "one", uri, certs.client, check=False), "it has no TLS")
    wait_for("its words", lambda: "it wants TLS" in host.said(vm))
    assert vm.poll() is None
    migrate(host, "one", uri)
    wait_passes(host.dir / "two.log", 3)


def client_hello():
    """Whole records whose one message is longer than any may be."""
    body = b"\1" + (1 << 23).to_bytes(3, "big") + bytes(16380)
    return (b"\x16\3\1" + (16384).to_bytes(2, "big") + body[:16384]
            + (b"\x16\3\1" + (16384).to_bytes(2, "big") + bytes(16384)) * 30)


def test_strangers_hold_up_nobody(host, certs):
    """Silent, in the middle of a handshake, or with nonsense: nobody waits for them, and in
    the end each is let go."""
    boot(host)
    uri = tcp()
    vm = secure(host, "two", uri, certs.server)
    address = ("127.0.0.1", int(uri.rsplit(":", 1)[1]))
    said = [b"", b"\x16", b"\x16\3\1\2\0\1\0\1\xfc\3\3" + bytes(100), b"Q", preface(0, 1)[:31],
            preface(1, 1), client_hello(), b"\x16" + b"\xff" * 600, b"GET / HTTP/1.1\r\n\r\n"]
    strangers = []
    for data in said:
        s = socket.create_connection(address)
        s.settimeout(LONG)
        try:
            s.sendall(data)
        except OSError as error:
            assert not isinstance(error, TimeoutError)
        strangers.append(s)
    # None of them has been let go for its silence, and yet: at once.
    began = time.monotonic()
    fails(send(host, "one", uri, certs.foreign_client, check=False), "CA is unknown")
    assert strangers[0] not in select.select(strangers, [], [], 0)[0]
    assert vm.poll() is None
    for s in strangers:
        try:
            while s.recv(4096):
                pass
        except OSError as error:
            assert not isinstance(error, TimeoutError)
    assert time.monotonic() - began < LONG
    words = host.said(vm)
    assert "TLS handshake is too long" in words or "unexpected" in words.lower(), words
    goes_on_waiting(host, certs, vm, uri)


def test_many_strangers(host, certs):
    """More than are kept: the oldest go, the right one is still taken."""
    boot(host)
    uri = tcp()
    secure(host, "two", uri, certs.server)
    address = ("127.0.0.1", int(uri.rsplit(":", 1)[1]))
    strangers = [socket.create_connection(address) for _ in range(200)]
    send(host, "one", uri, certs.client, "--streams", 8)
    wait_passes(host.dir / "two.log", 3)
    for s in strangers:
        s.close()


def test_silent_destination(host, certs):
    """The source does not wait for ever either, and can be told to stop."""
    boot(host)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen(4)
        uri = f"tcp:127.0.0.1:{s.getsockname()[1]}"
        fails(send(host, "one", uri, certs.client, check=False), "TLS handshake: .*timed out")
    wait_passes(host.dir / "one.log", 2)


def test_credentials_are_checked(host, certs):
    boot(host)
    uri = tcp()
    nowhere, bad = host.dir / "nowhere", host.dir / "bad"
    bad.mkdir()
    fails(send(host, "one", uri, nowhere, check=False), "nowhere: No such file")
    fails(send(host, "one", uri, bad, check=False), "bad/ca-cert.pem: No such file")
    vm = secure_fails(host, uri, bad)
    assert "bad/ca-cert.pem: No such file" in vm
    for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem", "client-cert.pem",
                 "client-key.pem"):
        (bad / name).write_text("no certificate\n")
    assert "ca-cert.pem: " in secure_fails(host, uri, bad)
    (bad / "ca-cert.pem").write_bytes((certs.server / "ca-cert.pem").read_bytes())
    assert "server-cert.pem and server-key.pem" in secure_fails(host, uri, bad)
    # A key of another certificate.
    (bad / "server-cert.pem").write_bytes((certs.server / "server-cert.pem").read_bytes())
    (bad / "server-key.pem").write_bytes((certs.expired_server / "server-key.pem").read_bytes())
    assert "server-cert.pem and server-key.pem" in secure_fails(host, uri, bad)
    # The source's are read in its VM's process, when somebody is there.
    vm = incoming(host, "two", uri, "--tls", certs.server)
    fails(send(host, "one", uri, bad, check=False), "client-cert.pem and client-key.pem")
    (bad / "client-cert.pem").write_text("x" * (1 << 20))
    fails(send(host, "one", uri, bad, check=False), "client-cert.pem: more than")
    os.unlink(bad / "client-cert.pem")
    os.mkfifo(bad / "client-cert.pem")
    fails(send(host, "one", uri, bad, check=False), "client-cert.pem: ")
    goes_on_waiting(host, certs, vm, uri)


def secure_fails(host, uri, directory):
    vm = host.start("run", "--kernel", "/nonexistent", "--incoming", uri, "--tls", directory)
    assert vm.wait(LONG) != 0
    return host.said(vm)


def test_usage(host, certs):
    boot(host)
    for args, words in [
            (["unix:/x", "--tls", certs.client], "needs --tls-hostname"),
            (["unix:/x", "--tls-hostname", "x"], "goes with --tls"),
            (["tcp:x:1", "--tls", certs.client, "--tls-hostname", ""], "no name")]:
        done = host.quire("migrate", "one", *args, check=False)
        assert done.returncode == 2 and words in done.stderr, done.stderr
    done = host.quire("run", "--kernel", "/x", "--tls", certs.server, check=False)
    assert done.returncode == 2 and "--tls goes with --incoming" in done.stderr
    # A confined process reads no credentials, whoever asks it to.
    done = host.quire("ctl", "one", "send-migration", f"destination_url={unix(host, 'two')}",
                      f"tls={certs.client}", f"tls_hostname={NAME}", check=False)
    assert done.returncode == 1 and "reads no credentials" in done.stderr
    wait_passes(host.dir / "one.log", 2)


def test_over_the_api(host, certs):
    """vm.send-migration and vm.receive-migration with tls, where they may read files."""
    off = ["--landlock", "off"]
    host.start("run", *vm_args(host, "one"), *off)
    wait_passes(host.dir / "one.log")
    sock = host.dir / "api.sock"
    host.start("run", "--api-socket", sock, *off)
    wait_for("the API", sock.exists)
    config = host.ask("one", "info")["config"]
    config["name"] = "two"
    config["serial"] = {"mode": "File", "file": str(host.dir / "two.log")}
    host.quire("ctl", sock, "create", f"@{write(host, 'config', config)}")
    uri = unix(host, "two")
    waiting = threading.Thread(target=host.quire, args=(
        "ctl", "--timeout", LONG, sock, "receive-migration", f"receiver_url={uri}",
        f"tls={certs.server}"))
    waiting.start()
    wait_for("its socket", lambda: is_listening(uri[5:]))
    send = ("ctl", "one", "send-migration", f"destination_url={uri}", f"tls={certs.client}")
    done = host.quire(*send, check=False)
    assert done.returncode == 1 and "a name is needed" in done.stderr
    host.quire(*send, f"tls_hostname={NAME}")
    waiting.join(LONG)
    wait_passes(host.dir / "two.log", 3)
    is_follow_up(host, "one", "two")


def test_cancelled(host, certs):
    boot(host)
    uri = tcp()
    vm = secure(host, "two", uri, certs.server)
    client = start_slow(host, uri, "--tls", certs.client)
    client.terminate()
    client.communicate(timeout=LONG)
    assert client.returncode == 143 and vm.wait(LONG) == 1
    wait_passes(host.dir / "one.log", 3)
