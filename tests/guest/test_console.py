# SPDX-License-Identifier: Apache-2.0
"""The virtio console of a Linux guest (hvc0): output, a shell, a socket, the window."""
import fcntl
import itertools
import os
import pty
import select
import socket
import struct
import subprocess
import termios
import time

import pytest

from conftest import BOOT_SECONDS, stop, wait_listening

HVC = "console=hvc0"


def read_until(fd, needle, seconds=BOOT_SECONDS):
    """From a terminal or socket; what was read up to the needle and beyond."""
    seen, deadline = b"", time.monotonic() + seconds
    while needle not in seen:
        left = deadline - time.monotonic()
        ready = select.select([fd], [], [], max(left, 0))[0]
        try:
            chunk = os.read(fd, 65536) if ready else b""
        except OSError:
            chunk = b""
        if not chunk:
            pytest.fail(f"no {needle!r} in: {seen.decode(errors='replace')}")
        seen += chunk
    return seen


def ask_size(master, expected):
    """The guest hears of it by an interrupt, so a little later."""
    seen, deadline = b"", time.monotonic() + BOOT_SECONDS
    for number in itertools.count():
        os.write(master, b"stty size; echo e''nd%d.\n" % number)
        seen += read_until(master, b"end%d." % number)
        if expected in seen:
            return
        assert time.monotonic() < deadline, f"no {expected!r} in {seen!r}"
        time.sleep(0.5)


def test_output_and_reboot(quire, tmp_path):
    """Kernel messages and a command's output in a file, of both boots; nothing on serial."""
    out = tmp_path / "console.log"
    argv = quire.argv("uname -s; seq 3000", end="reboot",
                      cmdline=HVC, extra=["--console", f"file={out}", "--serial", "null"])
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 2 * BOOT_SECONDS
        while not out.exists() or out.read_bytes().count(b"quire-guest: exit") < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, out.exists() and out.read_bytes()[-2000:]
            time.sleep(0.2)
        assert stop(process) == 130
    finally:
        process.kill()
        output, errors = process.communicate()
    assert output == b"" and errors == b""
    text = out.read_text(errors="replace")
    numbers = "".join(f"{i}\n" for i in range(1, 3001))
    right = text.count("Linux\n" + numbers) == 2
    assert right, text[-1000:]


def test_shell_on_a_terminal(quire):
    """--console tty: keys, the window's size and its change, Ctrl-A x."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    before = termios.tcgetattr(slave)
    argv = quire.argv(cmdline=HVC + " quire.shell", extra=["--console", "tty"])
    process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=subprocess.PIPE,
                               preexec_fn=lambda: (os.setsid(),
                                                   fcntl.ioctl(0, termios.TIOCSCTTY, 0)))
    try:
        read_until(master, b"# ")
        os.write(master, b"echo $((6 * 7))' is it'\n")
        read_until(master, b"42 is it")
        ask_size(master, b"33 101")
        # Ctrl-C is the guest's, and ends what runs there: that says so itself, for
        # before it has the terminal the key is for the shell, which goes on waiting.
        os.write(master, b"sh -c 'echo wa\"\"its; exec sleep 1000'\n")
        read_until(master, b"waits")
        os.write(master, b"\x03echo al''ive\n")
        read_until(master, b"alive")
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
        ask_size(master, b"50 132")
        os.write(master, b"\x01x")
        assert process.wait(timeout=BOOT_SECONDS) == 0
        assert process.stderr.read() == b""
        assert termios.tcgetattr(slave)[:4] == before[:4]
    finally:
        process.kill()
        process.communicate()
        os.close(master)
        os.close(slave)


def test_socket(quire, tmp_path):
    """A client that comes late sees what was printed, and talks to the shell."""
    path = tmp_path / "console.sock"
    process = subprocess.Popen(
        quire.argv(cmdline=HVC + " quire.shell", end="poweroff",
                   extra=["--console", f"socket={path}", "--serial", "null"]),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_listening(path, process)
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        read_until(client.fileno(), b"# ")
        client.sendall(b"echo $((6 * 7))' it is'\n")
        read_until(client.fileno(), b"42 it is")
        client.close()
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        client.sendall(b"exit\n")
        assert process.wait(timeout=BOOT_SECONDS) == 0
    finally:
        process.kill()
        output, errors = process.communicate()
    assert output == b"" and errors == b""
    assert not path.exists()
