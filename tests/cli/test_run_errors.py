# SPDX-License-Identifier: Apache-2.0
"""Bad input to quire run: one clear line that names what and what to do, exit
status 2 for usage and 1 for failure, nothing left behind."""
import json
import os
import pathlib
import shutil
import re
import struct
import subprocess
import time

import pytest
from api_kit import QUIRE, WAIT, needs_kvm, process, wait_for, wait_running


def quire(*args, **kwargs):
    return subprocess.run([QUIRE, *map(str, args)], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=WAIT, **kwargs)


def refused(done, status, *needles):
    """One line on stderr, nothing on stdout, the needles in it."""
    assert done.returncode == status, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("quire run: ") or done.stderr.startswith("quire: ")
    for needle in needles:
        assert needle in done.stderr, done.stderr


@pytest.fixture
def elf(tmp_path):
    """A minimal ELF64 with a PVH note whose code halts."""
    def make(cut=None):
        note = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", 0x200000)
        ehdr = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1" + bytes(9), 2, 62, 1,
                           0x200000, 64, 0, 0, 64, 56, 2, 0, 0, 0)
        load = struct.pack("<IIQQQQQQ", 1, 5, 0x1000, 0x200000, 0x200000, 4096, 4096, 0x1000)
        notes = struct.pack("<IIQQQQQQ", 4, 4, 176, 0, 0, len(note), len(note), 4)
        image = (ehdr + load + notes + note).ljust(0x1000, b"\0") + b"\xfa\xf4" * 2048
        path = tmp_path / "kernel.elf"
        path.write_bytes(image[:cut])
        return path
    return make


@pytest.mark.parametrize("args,needle", [
    ((), "no command given"),
    (("fly",), "unknown command 'fly'"),
    (("run",), "--kernel FILE"),
    (("run", "--colour", "red"), "unknown option '--colour'"),
    (("run", "-q"), "unknown option '-q'"),
    (("run", "--kernel"), "option '--kernel' needs a value"),
    (("run", "--kernel", "k", "extra"), "unexpected argument 'extra'"),
    (("run", "--kernel", "k", "--kernel", "l"), "given twice"),
    (("run", "--kernel", "k", "--memory", "size=1G,speed=fast"), "unknown key 'speed'"),
    (("run", "--kernel", "k", "--vsock", "cid=2,socket=/tmp/x"), "cid"),
    (("run", "--kernel", "k", "--vsock", "cid=3"), "socket=PATH is missing"),
    (("run", "--kernel", "k", "--console", "vt100"), "not one of tty, null, file=PATH"),
    (("run", "--kernel", "k", "--console", "tty", "--serial", "tty"),
     "--serial and --console both want the terminal"),
    (("run", "--kernel", "k", "--memory", "size=63M"), "not between 64M and 8T"),
    (("run", "--kernel", "k", "--memory", "size=65M"), "not a multiple of 2M"),
    (("run", "--kernel", "k", "--memory", "size=lots"), "not a size"),
    (("run", "--kernel", "k", "--memory", "1G,numa=near"),
     "numa=near: not one of none, bind, interleave, preferred, split"),
    (("run", "--kernel", "k", "--memory", "1G,numa=bind:all"), "'all' names no nodes"),
    (("run", "--kernel", "k", "--memory", "1G,numa=bind:0+"), "'0+' names no nodes"),
    (("run", "--kernel", "k", "--memory", "1G,numa=bind:1024"), "node numbers end at 1023"),
    (("run", "--kernel", "k", "--memory", "1G,numa=none:0"), "none takes no nodes"),
    (("run", "--kernel", "k", "--cpus", "boot=0"), "not a number from 1"),
    (("run", "--kernel", "k", "--cpus", "boot=3,threads=2"), "not a multiple"),
    (("run", "--kernel", "k", "--serial", "pigeon"), "pigeon"),
    (("run", "--kernel", "k", "--on-crash", "cry"), "not one of restart, stop"),
    (("run", "--kernel", "k", "--disk", "path=a,colour=red"), "unknown key 'colour'"),
    (("run", "--kernel", "k", "--disk", "readonly=on"), "path"),
])
def test_usage(args, needle):
    refused(quire(*args), 2, needle)


def test_help_and_version():
    for args in (["--help"], ["run", "--help"], ["doctor", "--help"], ["bench", "--help"],
                 ["--version"]):
        done = quire(*args)
        assert done.returncode == 0 and done.stderr == "" and done.stdout, args
    for option in ("--disk", "--rng", "--memory", "--serial"):
        assert option in quire("run", "--help").stdout


def test_output_that_cannot_be_written():
    with open("/dev/full", "w") as full:
        done = subprocess.run([QUIRE, "--help"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and b"cannot write" in done.stderr


@needs_kvm
def test_missing_kernel(tmp_path):
    path = tmp_path / "nothing"
    refused(quire("run", "--kernel", path), 1, str(path), "No such file")


@needs_kvm
def test_kernel_is_a_directory(tmp_path):
    refused(quire("run", "--kernel", tmp_path), 1, str(tmp_path))


@needs_kvm
@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\necho no kernel\n", bytes(65536)],
                         ids=["empty", "script", "zeros"])
def test_not_a_kernel(tmp_path, content):
    path = tmp_path / "kernel"
    path.write_bytes(content)
    refused(quire("run", "--kernel", path), 1, str(path))


@needs_kvm
@pytest.mark.parametrize("cut", [4, 63, 100, 200, 0x1000, 0x1fff])
def test_truncated_elf(elf, cut):
    path = elf(cut)
    refused(quire("run", "--kernel", path), 1, str(path))


@needs_kvm
def test_initramfs_larger_than_memory(elf, tmp_path):
    initrd = tmp_path / "initrd"
    with open(initrd, "wb") as f:
        f.truncate(80 << 20)
    refused(quire("run", "--kernel", elf(), "--initramfs", initrd, "--memory", "64M"), 1,
            str(initrd), "memory")


@needs_kvm
def test_missing_initramfs(elf, tmp_path):
    refused(quire("run", "--kernel", elf(), "--initramfs", tmp_path / "no"), 1, "No such file")


@needs_kvm
def test_missing_disk(elf, tmp_path):
    refused(quire("run", "--kernel", elf(), "--disk", f"path={tmp_path}/no.img"), 1,
            "no.img", "no such file", "truncate")


@needs_kvm
def test_disk_of_odd_size(elf, tmp_path):
    disk = tmp_path / "odd.img"
    disk.write_bytes(bytes(1000))
    refused(quire("run", "--kernel", elf(), "--disk", f"path={disk}"), 1, str(disk), "512")


@needs_kvm
def test_empty_disk_and_directory(elf, tmp_path):
    disk = tmp_path / "empty.img"
    disk.write_bytes(b"")
    refused(quire("run", "--kernel", elf(), "--disk", f"path={disk}"), 1, str(disk))
    refused(quire("run", "--kernel", elf(), "--disk", f"path={tmp_path}"), 1, str(tmp_path))


@needs_kvm
def test_locked_disk(elf, tmp_path):
    disk = tmp_path / "a.img"
    disk.write_bytes(bytes(1 << 20))
    args = ["run", "--kernel", elf(), "--serial", "null", "--shutdown-timeout", "0",
            "--disk", f"path={disk}"]
    with process([QUIRE, *args], stdin=subprocess.DEVNULL) as first:
        wait_running(first)  # the payload halts for good
        refused(quire(*args), 1, str(disk), "in use")
        first.terminate()
        first.wait(timeout=WAIT)
    # two readers may share
    with process([QUIRE, *args[:-1], f"path={disk},readonly=on"],
                 stdin=subprocess.DEVNULL) as reader:
        wait_running(reader)
        refused(quire(*args), 1, "in use")
    refused(quire(*args[:-1], f"path={disk},readonly=on,num_queues=0"), 2, "num_queues")


@needs_kvm
def test_unwritable_serial_file(elf):
    refused(quire("run", "--kernel", elf(), "--serial", "file=/no/such/dir/log"), 1,
            "/no/such/dir/log")


@needs_kvm
def test_too_many_cpus_for_kvm(elf):
    done = quire("run", "--kernel", elf(), "--cpus", "boot=1024", "--serial", "null",
                 "--disk", "path=/nonexistent")
    assert done.returncode == 1


def in_namespace(script, *args):
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root for a mount namespace")
    return subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", QUIRE, *map(str, args)],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


def test_no_dev_kvm(elf):
    done = in_namespace("mount -t tmpfs none /dev && exec \"$1\" run --kernel \"$2\"", elf())
    refused(done, 1, "/dev/kvm", "modprobe")


def test_dev_kvm_is_something_else(elf):
    done = in_namespace("mount --bind /dev/null /dev/kvm && exec \"$1\" run --kernel \"$2\"",
                        elf())
    if not os.path.exists("/dev/kvm"):
        pytest.skip("no /dev/kvm to cover")
    refused(done, 1, "/dev/kvm")


def test_no_permission(elf):
    if not os.path.exists("/dev/kvm") or os.geteuid() != 0:
        pytest.skip("needs root and /dev/kvm")
    kernel = elf()
    # A node of its own: the host's is the other tests', too.
    done = in_namespace("mount -t tmpfs none /mnt && cp \"$1\" /mnt/quire && "
                        "cp \"$2\" /mnt/kernel && chmod 755 /mnt /mnt/* && "
                        "cp -a /dev/kvm /mnt/kvm && chmod 600 /mnt/kvm && "
                        "mount --bind /mnt/kvm /dev/kvm && "
                        "exec setpriv --reuid 65534 --clear-groups /mnt/quire run "
                        "--kernel /mnt/kernel", kernel)
    refused(done, 1, "/dev/kvm", "permission denied", "group kvm")


@needs_kvm
def test_interrupted_run_leaves_nothing(elf, tmp_path):
    """Ctrl-C and kill -9 in the middle: no socket, no lock, no process."""
    sock = tmp_path / "serial.sock"
    args = [QUIRE, "run", "--kernel", str(elf()), "--serial", f"socket={sock}"]
    for sig, status in ((2, 130), (1, 129)):
        with process(args, stdin=subprocess.DEVNULL, cwd=tmp_path) as vm:
            wait_for(sock.exists)
            wait_running(vm)
            vm.send_signal(sig)
            assert vm.wait(timeout=WAIT) == status
        assert not sock.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kernel.elf"]


@needs_kvm
def test_failed_start_leaves_the_console_file_alone(elf, tmp_path):
    log = tmp_path / "old.log"
    log.write_text("yesterday's panic\n")
    done = quire("run", "--kernel", tmp_path / "none", "--serial", f"file={log}")
    assert done.returncode == 1 and log.read_text() == "yesterday's panic\n"
    done = quire("run", "--kernel", tmp_path / "none", "--serial", f"file={tmp_path}/new.log")
    assert done.returncode == 1 and not (tmp_path / "new.log").exists()


@needs_kvm
def test_summary_path_is_checked_before_the_run(elf, tmp_path):
    # the payload would halt for good
    refused(quire("run", "--kernel", elf(), "--summary-json", tmp_path / "no/such.json"), 1,
            "--summary-json", "No such file")


def resident_mib(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^VmRSS:\s+(\d+) kB$", status, re.M)[1]) >> 10


@needs_kvm
def test_signal_while_memory_is_populated(elf):
    """Ctrl-C does not wait for gigabytes of population."""
    args = [QUIRE, "run", "--kernel", str(elf()), "--serial", "null",
            "--memory", "size=6G,page=4k,populate=host"]
    with process(args, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as vm:
        wait_for(lambda: vm.poll() is not None or resident_mib(vm.pid) > 64)
        vm.send_signal(2)
        assert vm.wait(timeout=WAIT) == 130
        assert vm.stderr.read() == b""


@needs_kvm
def test_closed_standard_descriptors(elf, tmp_path):
    """The disk must not become standard output."""
    disk = tmp_path / "a.img"
    disk.write_bytes(bytes(1 << 20))
    done = subprocess.run(["sh", "-c", "exec timeout -s INT 2 \"$@\" <&- >&- 2>&-", "sh", QUIRE,
                           "run", "--kernel", str(elf()), "--disk", f"path={disk}"], timeout=60)
    assert done.returncode in (124, 130), done
    assert disk.read_bytes() == bytes(1 << 20)


@needs_kvm
def test_ignored_signal_stays_ignored(elf):
    args = [QUIRE, "run", "--kernel", str(elf()), "--serial", "null"]
    with process(["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *args],
                 stdin=subprocess.DEVNULL) as vm:
        wait_running(vm)
        vm.send_signal(1)
        time.sleep(0.5)
        assert vm.poll() is None
        vm.send_signal(2)
        assert vm.wait(timeout=WAIT) == 130


@needs_kvm
def test_every_option_at_once(elf, tmp_path):
    """No two devices want the same ports: all optional ones together."""
    disk = tmp_path / "a.img"
    disk.write_bytes(bytes(1 << 20))
    for irqchip in ("kernel", "split"):
        args = [QUIRE, "run", "--kernel", str(elf()), "--serial", "null", "--debug-exit",
                "--irqchip", irqchip, "--cpus", "boot=2,threads=2", "--disk", f"path={disk}",
                "--rng", "src=/dev/urandom", "--summary", "--summary-json",
                str(tmp_path / "s.json")]
        with process(args, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as vm:
            wait_running(vm)
            vm.send_signal(2)
            assert vm.wait(timeout=WAIT) == 130, vm.stderr.read()
        assert (tmp_path / "s.json").exists()


@needs_kvm
def test_populating_more_than_the_host_has(elf):
    refused(quire("run", "--kernel", elf(), "--memory", "size=4T,populate=host"), 1,
            "memory", "available")


@needs_kvm
def test_numa_node_that_is_not_there(elf):
    refused(quire("run", "--kernel", elf(), "--memory", "64M,numa=bind:0+1023"), 1,
            "numa=", "no node 1023", "memory to use on: 0")


@needs_kvm
def test_hugetlb_pool_of_exactly_the_size(elf):
    """What the mapping reserved is not counted against the population."""
    pool = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    if os.geteuid() != 0 or not pool.exists():
        pytest.skip("needs root and 2M hugetlb pages")
    before = pool.read_text()
    try:
        pool.write_text("32")
        if int(pool.read_text()) != 32:
            pytest.skip("the host has no 64 MiB of free 2M pages")
        args = [QUIRE, "run", "--kernel", str(elf()), "--serial", "null",
                "--memory", "size=64M,page=2m,populate=host"]
        with process(args, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as vm:
            wait_running(vm)
            vm.send_signal(2)
            assert vm.wait(timeout=WAIT) == 130, vm.stderr.read()
        for populate in ("", ",populate=host"):
            refused(quire("run", "--kernel", elf(), "--memory", "size=128M,page=2m" + populate),
                    1, "64 free huge pages of 2 MiB are needed, the pool has 32", "echo 64 >")
    finally:
        pool.write_text(before)


@pytest.mark.parametrize("content,needle", [
    (b"", "line 1"),
    (b"\x00\x01\x02", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b"[]", "not a JSON object"),
    (b'{"payload": {"kernel": "k"}, "colour": 1}', "colour: unknown field"),
    (b'{"payload": {"kernel": "k"}, "memory": {"page": "5k"}}',
     "memory.page: not one of 4k, thp, 2m, 1g"),
    (b'{"payload": {"kernel": "k"}, "cpus": {"boot_vcpus": 2, "max_vcpus": 4}}', "max=4"),
    (b'{"payload": {"kernel": "k"}, "disks": [{"path": "a"}, {"path": 1.5}]}', "disks[1].path"),
    (b'{"payload": {"kernel": "k"}, "rng": {}, "rng": {}}', "duplicate"),
    (b'{"memory": {"size": "1G"}}', "payload.kernel"),
    (b'{"config": "other.json"}', "config: unknown field"),
    (b'{"log_level": "loud"}', "log_level: not one of error"),
    (b"[" * 100000, "levels deep"),
    (b" " * (1 << 20) + b"{}", "more than 1048576 bytes"),
], ids=lambda value: str(value)[:40] if isinstance(value, str) else "file")
def test_bad_config(tmp_path, content, needle):
    path = tmp_path / "vm.json"
    path.write_bytes(content)
    refused(quire("run", "--config", path), 2, needle)


def test_config_that_cannot_be_read(tmp_path):
    refused(quire("run", "--config", tmp_path / "none"), 2, "none", "No such file")
    refused(quire("run", "--config", tmp_path), 2, "directory")
    refused(quire("run", "--config", "a", "--config", "b"), 2, "given twice")
    refused(quire("run", "--config"), 2, "needs a value")


@needs_kvm
def test_config_and_options(elf, tmp_path):
    """The file first, wherever it is named; options win; one set of checks."""
    config = tmp_path / "vm.json"
    config.write_text(json.dumps({
        "payload": {"kernel": str(tmp_path / "missing")},
        "memory": {"size": "64M", "populate": "host", "page": "4k"},
        "serial": {"mode": "Null"}, "summary_json": str(tmp_path / "unused.json"),
        "disks": [{"path": str(tmp_path / "a.img"), "id": "first"}]}))
    for name in "ab":
        (tmp_path / f"{name}.img").write_bytes(bytes(1 << 20))
    args = ["run", "--kernel", elf(), "--disk", tmp_path / "b.img", "--memory", "size=128M",
            "--config", config, "--summary-json", tmp_path / "s.json"]
    with process([QUIRE, *args], stdin=subprocess.DEVNULL) as vm:
        wait_running(vm)
        vm.send_signal(2)
        assert vm.wait(timeout=WAIT) == 130
    summary = json.loads((tmp_path / "s.json").read_text())
    assert not (tmp_path / "unused.json").exists()
    assert summary["memory_bytes"] == 128 << 20
    assert summary["memory"]["page"] == "4k" and summary["memory"]["populate"] == "host"
    assert [d["id"] for d in summary["devices"]] == ["disk0 (a.img)", "disk1 (b.img)"]
    # an error of the file's values is found as one of options is
    refused(quire("run", "--config", config), 1, "missing", "No such file")
    refused(quire("run", "--config", config, "--disk", f"path={tmp_path}/b.img,id=first"), 2,
            "the id 'first' already")


@needs_kvm
def test_log_lines(elf, tmp_path):
    """JSON where standard error is no terminal, or as asked for."""
    def run(*extra):
        args = [QUIRE, "run", "--kernel", str(elf()), "--serial", "null",
                "--shutdown-timeout", "1", *extra]
        with process(args, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as vm:
            wait_running(vm)
            vm.send_signal(15)
            _, errors = vm.communicate(timeout=WAIT)
            assert vm.returncode == 143
            return errors.decode()

    lines = [json.loads(line) for line in run("--verbose").splitlines()]
    assert [(line["level"], line["module"]) for line in lines] == [("info", "vm"),
                                                                  ("warning", "vm")]
    assert all(set(line) == {"time", "level", "module", "message"} for line in lines)
    assert lines[0]["message"].startswith("SIGTERM: asked the guest")
    assert run("--log-format", "text") == (
        "quire: warning: the guest did not power off in 1 s; stopping it\n")
    assert run("--log-level", "error") == ""
    assert run("--log-level", "error,vm=info").count("\n") == 2
    log = tmp_path / "log"
    log.write_text("before\n")
    assert run("--log-file", str(log)) == ""
    assert log.read_text().startswith('before\n{"time": ')


@pytest.mark.parametrize("args,needle", [
    (("--log-level", "loud"), "not one of error, warning, info, debug"),
    (("--log-level", "info,cellar=debug"), "unknown module 'cellar'"),
    (("--log-format", "xml"), "not one of auto, text, json"),
    (("--log-file", "/no/such/dir/log"), "No such file"),
    (("--name", "a/b"), "not a name"),
    (("--name", "a" * 64), "not a name"),
])
def test_bad_names_and_logs(args, needle):
    refused(quire("run", "--kernel", "k", *args), 2, needle)
