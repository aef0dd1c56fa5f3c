# SPDX-License-Identifier: Apache-2.0
"""Sockets between a Linux guest's own vsock and programs on the host, both ways."""
import contextlib
import os
import socket
import subprocess
import sys
import threading

import pytest

from conftest import BOOT_SECONDS, stop, wait_for

KIB, MIB = 1024, 2**20
SECONDS = BOOT_SECONDS


def listen(path, backlog=64):
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(backlog)
    server.settimeout(SECONDS)
    return server


def connect(path, port):
    """A connection to the guest, by the two lines of the convention."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(SECONDS)
    client.connect(str(path))
    client.sendall(b"CONNECT %d\n" % port)
    line = b""
    while not line.endswith(b"\n"):
        byte = client.recv(1)
        if not byte:
            raise ConnectionRefusedError(line)
        line += byte
    word, number = line.split()
    assert word == b"OK" and int(number) > 0
    return client


def echo(connection):
    with connection, contextlib.suppress(OSError):
        connection.settimeout(SECONDS)
        while data := connection.recv(65536):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # until the guest has closed


def serve_echo(server, count):
    threads = []
    for _ in range(count):
        connection, _ = server.accept()
        threads.append(threading.Thread(target=echo, args=(connection,)))
        threads[-1].start()
    for thread in threads:
        thread.join()


def ask_echo(path, port, data, failures):
    """Send all while receiving, then half-close: it comes back unchanged."""
    try:
        with connect(path, port) as client:
            def send():
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            back = b""
            while chunk := client.recv(65536):
                back += chunk
            sender.join()
            if back != data:
                failures.append(f"{len(back)} bytes of {len(data)}, or not the same")
    except OSError as error:
        failures.append(repr(error))


@pytest.fixture
def background():
    """Threads of the host's side, joined at the end."""
    threads = []

    def start(target, *args):
        threads.append(threading.Thread(target=target, args=args, daemon=True))
        threads[-1].start()
        return threads[-1]
    yield start
    for thread in threads:
        thread.join(timeout=SECONDS)
        assert not thread.is_alive()


def test_guest_to_host(quire, tmp_path, background):
    """Echo alone and many at once; nobody listens; a server that is killed; last words."""
    sock = tmp_path / "v.sock"
    with listen(f"{sock}_5000") as server, listen(f"{sock}_5002") as sink:
        background(serve_echo, server, 25)
        killed = subprocess.Popen(
            [sys.executable, "-c",
             "import os, socket, sys\n"
             "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
             "print('up', flush=True); c, _ = s.accept(); c.sendall(b'x' * 1000)\n"
             "os.kill(os.getpid(), 9)", f"{sock}_5001"], stdout=subprocess.PIPE)
        assert killed.stdout.readline() == b"up\n"
        last = []

        def take_last():
            connection, _ = sink.accept()
            with connection:
                while chunk := connection.recv(4096):
                    last.append(chunk)

        taker = background(take_last)
        result = quire.run(f"vsocktest echo 2 5000 {2 * MIB}; e1=$?; "
                           f"vsocktest echo 2 5000 {32 * KIB} 24; e2=$?; "
                           "vsocktest receive 2 5999; e3=$?; "
                           "vsocktest receive 2 5001; e4=$?; "
                           "vsocktest send 2 5002 300000; e5=$?; "
                           "echo statuses $e1 $e2 $e3 $e4 $e5",
                           extra=["--vsock", f"cid=77,socket={sock}"])
        killed.wait(timeout=SECONDS)
        taker.join(SECONDS)  # what the guest has sent may still be on its way
    assert result.status == 0 and result.errors == "", result
    # Nobody listened at 5999.
    assert "statuses 0 0 1 0 0" in result.console, result.console
    assert f"1 x {2 * MIB} bytes right" in result.console
    assert f"24 x {32 * KIB} bytes right" in result.console
    assert "connect: Connection reset by peer" in result.console
    assert "received 1000 bytes" in result.console
    assert sum(map(len, last)) == 300000
    assert not os.path.exists(sock)
    for line in result.console.splitlines():
        if "vsocktest:" in line:
            print(line)


def test_host_to_guest(quire, tmp_path):
    """Echo in the guest for clients of the host; nobody listens; the guest goes."""
    sock = tmp_path / "v.sock"
    data = os.urandom(MIB)
    failures = []
    # Stale: quire takes its place.
    with listen(sock):
        pass
    process = quire.start("vsocktest serve 1000 22", end="poweroff", cpus=2,
                          extra=["--vsock", f"cid=3,socket={sock}"])
    try:
        wait_for(process, "vsocktest: serving")
        with pytest.raises(ConnectionRefusedError):
            connect(sock, 1001)
        ask_echo(sock, 1000, data, failures)
        threads = [threading.Thread(target=ask_echo,
                                    args=(sock, 1000, data[i * KIB:][:32 * KIB], failures))
                   for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        # Another quire is refused the path while it is in use.
        other = subprocess.run(
            [*quire.argv("true"), "--vsock", f"cid=3,socket={sock}"],
            capture_output=True, text=True, timeout=SECONDS)
        assert other.returncode == 1 and "in use by another process" in other.stderr
        # The server's last connection outlives its guest: closed from here only.
        with connect(sock, 1000) as client:
            client.sendall(b"still here")
            assert client.recv(100) == b"still here"
            assert stop(process) == 130
            assert client.recv(1) == b""
    finally:
        process.kill()
        process.communicate()
    assert not os.path.exists(sock)


def test_reboot(quire, tmp_path, background):
    """The device is there again after a reboot, with its path."""
    sock = tmp_path / "v.sock"
    with listen(f"{sock}_5000") as server:
        background(serve_echo, server, 2)
        process = quire.start("vsocktest echo 2 5000 10000", end="reboot",
                              extra=["--vsock", f"cid=3,socket={sock}"])
        try:
            for _ in range(2):
                wait_for(process, "1 x 10000 bytes right")
            assert stop(process) == 130
        finally:
            process.kill()
            process.communicate()
    assert not os.path.exists(sock)
