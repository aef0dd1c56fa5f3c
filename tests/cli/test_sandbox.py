# SPDX-License-Identifier: Apache-2.0
"""What a confined quire does when its user asks for more than it was started with: it works,
or is refused with a message that says what to do."""
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import tempfile

import pytest
from api_kit import QUIRE, Server, halting_kernel, needs_kvm, process, vm_config, wait_for

pytestmark = needs_kvm
MIB = 1 << 20
NOBODY = 65534


def has_landlock():
    done = subprocess.run(
        ["python3", "-c", "import ctypes,sys;"
         "sys.exit(ctypes.CDLL(None).syscall(444, None, 0, 1) < 1)"])
    return done.returncode == 0


needs_landlock = pytest.mark.skipif(not has_landlock(), reason="no Landlock here")


def image(folder, name):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(bytes(MIB))
    return path


@contextlib.contextmanager
def running(folder, *args, memory="size=64M", **kwargs):
    """A VM that was named on the command line and halts."""
    kernel = halting_kernel(folder / "kernel.elf")
    with Server(folder, "--kernel", kernel, "--memory", memory, "--serial", "null",
                "--shutdown-timeout", "0", *args, **kwargs) as server:
        wait_for(lambda: server.state() == "Running")
        yield server
        assert server.proc.poll() is None, server.said()
        assert server.end() == 0, server.said()


def refused(answer, *words):
    status, body = answer
    assert 400 <= status < 600 and status not in (404, 405), answer
    for word in words:
        assert word in body["error"], answer


def status_of(pid):
    with open(f"/proc/{pid}/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


# ---- disks ----


@pytest.mark.parametrize("start", ["kernel", "empty"])
def test_api_may_name_any_disk_by_default(tmp_path, start):
    with contextlib.ExitStack() as stack:
        if start == "kernel":
            server = stack.enter_context(running(tmp_path))
        else:
            server = stack.enter_context(Server(tmp_path))
            assert server.verb("create", vm_config(tmp_path)) == (204, "")
            assert server.verb("boot") == (204, "")
        assert status_of(server.proc.pid)["Seccomp"] == "2"
        added = server.verb("add-disk", {"path": str(image(tmp_path / "other", "a"))})
        assert added[0] == 200, added
        assert server.verb("reboot")[0] == 204
        assert set(server.get("counters")[1]) >= {added[1]["id"]}


@needs_landlock
@pytest.mark.parametrize("start", ["kernel", "empty"])
def test_rules_say_what_the_api_may_name(tmp_path, start):
    inside, outside = image(tmp_path / "in", "a"), image(tmp_path / "out", "b")
    rules = ["--landlock-rules", f"path={inside.parent},access=rw"]
    with contextlib.ExitStack() as stack:
        if start == "kernel":
            server = stack.enter_context(running(tmp_path, *rules))
        else:
            server = stack.enter_context(Server(tmp_path, *rules))
            config = vm_config(inside.parent)
            assert server.verb("create", config) == (204, "")
            assert server.verb("boot") == (204, "")
        refused(server.verb("add-disk", {"path": str(outside)}), str(outside),
                "Permission denied", "--landlock-rules")
        added = server.verb("add-disk", {"path": str(inside)})
        assert added[0] == 200, added
        assert server.verb("reboot")[0] == 204


@needs_landlock
def test_without_the_api_only_what_was_named(tmp_path):
    """By quire ctl NAME, which finds every quire."""
    disk, other = image(tmp_path, "a"), image(tmp_path, "b")
    env = {**os.environ, "QUIRE_RUNTIME_DIR": str(tmp_path / "run")}
    with process([QUIRE, "run", "--name", "it", "--kernel",
                  halting_kernel(tmp_path / "kernel.elf"), "--memory", "64M",
                  "--serial", "null", "--disk", f"path={disk}", "--shutdown-timeout", "0"],
                 env=env, stdin=subprocess.DEVNULL) as vm:
        def ctl(*words):
            return subprocess.run([QUIRE, "ctl", "it", *words], env=env, capture_output=True,
                                  text=True)
        wait_for(lambda: "Running" in ctl("info").stdout)
        done = ctl("add-disk", f"path={other}")
        assert done.returncode == 1
        assert str(other) in done.stderr and "--landlock-rules" in done.stderr, done
        assert ctl("reboot").returncode == 0
        vm.send_signal(signal.SIGTERM)
        assert vm.wait(60) == 143
    assert not list((tmp_path / "run").iterdir())


@needs_landlock
def test_landlock_can_be_had_with_the_api(tmp_path):
    with running(tmp_path, "--landlock", "on") as server:
        refused(server.verb("add-disk", {"path": str(image(tmp_path / "x", "a"))}),
                "--landlock-rules")


@pytest.fixture
def for_nobody():
    """A folder that user nobody reaches, and /dev/kvm for its group."""
    if os.geteuid():
        pytest.skip("only root becomes another user")
    kvm = os.stat("/dev/kvm")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        os.chown("/dev/kvm", kvm.st_uid, NOBODY)
        os.chmod("/dev/kvm", 0o660)
        yield folder
        os.chown("/dev/kvm", kvm.st_uid, kvm.st_gid)
        os.chmod("/dev/kvm", kvm.st_mode & 0o777)


def test_rules_put_disks_into_a_jail(for_nobody):
    inside, outside = image(for_nobody / "in", "a"), image(for_nobody / "out", "b")
    for path in (inside, inside.parent):
        os.chown(path, NOBODY, NOBODY)
    with running(for_nobody, "--jail", "--landlock-rules",
                 f"path={inside.parent},access=rw") as server:
        assert status_of(server.proc.pid)["Uid"].split() == [str(NOBODY)] * 4
        refused(server.verb("add-disk", {"path": str(outside)}), str(outside), "jail")
        added = server.verb("add-disk", {"path": str(inside)})
        assert added[0] == 200, added
        # No host files: neither the kernel's, which is open, nor any other.
        root = f"/proc/{server.proc.pid}/root"
        assert os.path.exists(f"{root}{inside}")
        for gone in (f"{for_nobody}/kernel.elf", outside, "/etc", "/usr", "/root"):
            assert not os.path.exists(f"{root}{gone}"), gone


# ---- programs ----


def test_programs_are_not_started_later(tmp_path):
    with running(tmp_path, memory="size=64M,shared=on") as server:
        refused(server.verb("add-net", {"mode": "passt"}), "start passt", "mode=socket")
        refused(server.verb("add-fs", {"tag": "x", "path": str(tmp_path)}), "start virtiofsd",
                "socket=")
        assert server.verb("reboot")[0] == 204


def test_nor_for_a_vm_that_comes_later(tmp_path):
    with Server(tmp_path) as server:
        config = {**vm_config(tmp_path), "fs": [{"tag": "x", "path": str(tmp_path)}]}
        assert server.verb("create", config) == (204, "")
        refused(server.verb("boot"), "start virtiofsd", "socket=")
        assert server.verb("delete") == (204, "")
        del config["fs"]
        config["net"] = [{"mode": "passt"}]
        assert server.verb("create", config) == (204, "")
        refused(server.verb("boot"), "start passt")
        assert server.end() == 0


def test_programs_are_started_where_nothing_forbids_it(tmp_path):
    """--seccomp off, and no Landlock; it is still without capabilities."""
    with running(tmp_path, "--seccomp", "off") as server:
        assert status_of(server.proc.pid)["CapEff"] == "0000000000000000"
        answer = server.verb("add-net", {"mode": "passt"})
        assert answer[0] == 200, answer


# ---- networks ----


def test_a_socket_of_passt_is_connected_to(tmp_path):
    path = tmp_path / "passt"
    with socket.socket(socket.AF_UNIX) as passt, running(tmp_path) as server:
        passt.bind(str(path))
        passt.listen()
        added = server.verb("add-net", {"mode": "socket", "socket": str(path)})
        assert added[0] == 200, added
        passt.accept()[0].close()


@pytest.fixture
def tap():
    """An interface that was made beforehand; skips where none can be."""
    name = f"qst{os.getpid() % 100000}"
    made = subprocess.run(["ip", "tuntap", "add", "dev", name, "mode", "tap"],
                          capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no tap interfaces here: {made.stderr.strip()}")
    yield name
    subprocess.run(["ip", "tuntap", "del", "dev", name, "mode", "tap"], check=True)


def test_a_tap_that_is_there_is_added(tmp_path, tap):
    with running(tmp_path) as server:
        refused(server.verb("add-net", {"mode": "tap", "tap": "qst-none"}), "not permitted",
                "ip tuntap add")
        refused(server.verb("add-net", {"tap": tap, "ip": "10.99.0.1"}), "beforehand")
        added = server.verb("add-net", {"tap": tap, "mtu": 1400})
        assert added[0] == 200, added
        assert server.verb("reboot")[0] == 204


@needs_landlock
def test_a_tap_wants_a_rule_where_there_are_any(tmp_path, tap):
    with running(tmp_path, "--landlock", "on") as server:
        refused(server.verb("add-net", {"tap": tap}), "/dev/net/tun", "--landlock-rules")
    (tmp_path / "again").mkdir()
    with running(tmp_path / "again", "--landlock-rules",
                 "path=/dev/net/tun,access=rw") as server:
        added = server.verb("add-net", {"tap": tap})
        assert added[0] == 200, added
