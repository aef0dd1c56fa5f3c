# SPDX-License-Identifier: Apache-2.0
"""The lab's parts that need no nested host."""

import importlib.machinery
import importlib.util
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPO / "lab"))

from labkit import LabError, cpio, debian, kernel  # noqa: E402
from labkit.channel import Frames  # noqa: E402


def sources(tmp_path, **files):
    """machine_sources() of an /etc/apt with these files."""
    (tmp_path / "sources.list.d").mkdir()
    for name, text in files.items():
        name = name.replace("__", ".")
        where = (tmp_path if name == "sources.list"
                 else tmp_path / "sources.list.d")
        (where / name).write_text(text)
    return debian.machine_sources(tmp_path)


def test_one_line_sources(tmp_path):
    found = sources(tmp_path, sources__list="""
# deb http://old.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian bookworm main contrib
deb http://a.example/debian-security bookworm-security main
deb-src http://a.example/debian bookworm main
deb http://b.example/tools tools-bookworm main
deb http://c.example/linux/debian bookworm stable
""")
    assert len(found) == 1
    assert found[0].stanza("bookworm-backports") == (
        "Types: deb\nURIs: http://a.example/debian\n"
        "Suites: bookworm-backports\nComponents: main\n"
        "Architectures: amd64\nSigned-By: /k.gpg\n")


def test_deb822_sources(tmp_path):
    found = sources(tmp_path, debian__sources="""Types: deb deb-src
# a comment
URIs: http://a.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 key

Types: deb
URIs: http://a.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main
""", other__list="deb http://d.example/x bookworm main\n", junk__save="deb x")
    assert [s.uris for s in found] == [["http://a.example/debian"],
                                       ["http://d.example/x"]]
    stanza = found[0].stanza("bookworm")
    assert "Suites: bookworm\n" in stanza
    assert stanza.endswith("\n .\n key\n")


def test_no_source_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(debian, "machine_sources", lambda: [])
    with pytest.raises(LabError, match="no Debian bookworm archive"):
        debian.PrivateApt(tmp_path, "bookworm").resolve_kernel("x")


def test_cpio(tmp_path):
    archive = cpio.Archive()
    archive.file("a/b/file", b"12345", 0o755)
    archive.symlink("a/link", "b/file")
    archive.node("dev/console", "c", 5, 1)
    data = archive.bytes()
    assert len(data) % 512 == 0
    assert archive.bytes() == data
    done = subprocess.run(["cpio", "-itv", "--quiet"], input=data,
                          capture_output=True, check=True)
    lines = done.stdout.decode().splitlines()
    assert [line.split()[0][:4] for line in lines] == [
        "drwx", "drwx", "-rwx", "lrwx", "drwx", "crw-"]
    subprocess.run(["cpio", "-id", "--quiet", "a/b/file", "a/link"],
                   input=data, cwd=tmp_path, check=True)
    assert (tmp_path / "a/link").read_bytes() == b"12345"


def test_not_a_kernel():
    with pytest.raises(LabError, match="not a bzImage"):
        kernel.extract_vmlinux(b"\x7fELF" + bytes(8192))
    image = bytearray(8192)
    image[0x202:0x206] = b"HdrS"
    with pytest.raises(LabError, match="protocol"):
        kernel.extract_vmlinux(bytes(image))
    struct.pack_into("<H", image, 0x206, 0x20f)
    with pytest.raises(LabError, match="unknown kernel payload"):
        kernel.extract_vmlinux(bytes(image))


def test_module_order(tmp_path):
    release = tmp_path / "6.0.0"
    release.mkdir()
    (release / "modules.dep").write_text(
        "k/top-one.ko.xz: k/mid.ko.xz k/low.ko.xz\nk/mid.ko.xz: k/low.ko.xz\n"
        "k/low.ko.xz:\n")
    (release / "modules.builtin").write_text("k/inside.ko\n")
    modules = kernel.Modules(release)
    assert modules.closure(["top_one", "inside"]) == ["low", "mid", "top_one"]
    assert modules.depends("top_one") == ["low", "mid"]
    with pytest.raises(LabError, match="no module gone"):
        modules.closure(["gone"])


def test_frames():
    stream = (b"H\0\0\0\4\0\0\0" + b"1.25" + b"O\0\0\0\2\0\0\0hi"
              + b"X\0\0\0\1\0\0\0" + b"0")
    frames, found = Frames(), []
    for n in range(len(stream)):
        found += frames.feed(stream[n:n + 1])
    assert found == [("H", b"1.25"), ("O", b"hi"), ("X", b"0")]
    with pytest.raises(LabError, match="something else"):
        list(Frames().feed(b"SeaBIOS (version 1.16)"))


@pytest.fixture(name="lab_run")
def load():
    """The program as a module."""
    loader = importlib.machinery.SourceFileLoader("lab_run", str(REPO / "lab/run"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    written = sys.dont_write_bytecode
    loader.exec_module(module)  # writes none from then on
    sys.dont_write_bytecode = written
    return module


def test_one_process_outlives_the_other(lab_run, monkeypatch):
    """What it might still say is not waited for; what was said is read."""
    class Machine:
        def __init__(self, *_arguments):
            self.agent, self.peer = socket.socketpair()
            self.console, self.screen = socket.socketpair()
            self.notes = []

        def start(self):
            self.peer.sendall(b"H\0\0\0\4\0\0\0" + b"1.25")

        def dead(self):
            self.screen.sendall(b"last words")
            return "virtiofsd ended with status 1"

        def kill(self):
            self.peer.close()
            self.screen.close()

        def stop(self):
            self.agent.close()
            self.console.close()

    monkeypatch.setattr(lab_run, "Machine", Machine)
    monkeypatch.setattr(lab_run.Run, "_request", lambda self: None)
    run = lab_run.Run(lab_run.parse_arguments(["--", "true"]), None, time.monotonic())
    with pytest.raises(lab_run.Crashed, match="status 1 while the command ran"):
        run.execute()
    assert run.console_tail() == "last words"


def test_each_line_of_a_note_is_marked(lab_run, monkeypatch, capsys):
    """Whoever reads a command's own words tells them from those of the lab."""
    class Run:
        ready = False
        lives = iter([lab_run.Crashed("qemu ended on start-up.\nA known fault"),
                      lab_run.Crashed("not up"), None])

        def __init__(self, *_arguments):
            self.end = next(self.lives)

        def execute(self):
            if self.end:
                raise self.end
            return 7

        def console_tail(self):
            return "of the kernel\nitself"

    monkeypatch.setattr(lab_run, "Run", Run)
    status, run = lab_run.attempt(lab_run.parse_arguments(["--", "true"]), None)
    assert status == 7
    assert capsys.readouterr().err == (
        "lab/run: qemu ended on start-up.\nlab/run: A known fault\nlab/run: starting over\n"
        "lab/run: not up\nlab/run: starting over\n")
    lab_run.fail("crashed; QEMU says:\nRAX=0", run)
    assert capsys.readouterr().err == (
        "lab/run: crashed; QEMU says:\nlab/run: RAX=0\n"
        "lab/run: end of the nested host's console:\nof the kernel\nitself\n")
