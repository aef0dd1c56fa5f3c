# SPDX-License-Identifier: Apache-2.0
"""The sandbox around a Linux guest: on by default, in a jail, without privileges."""
import grp
import os
import pathlib
import re
import signal
import subprocess

import pytest

from conftest import BOOT_SECONDS, TRACING, stop, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
MIB = 1 << 20
NOTHING = "0000000000000000"
UNPRIVILEGED = 4321
# Writes a block, and tells what it reads back.
DISK_JOB = ("echo written-by-the-guest | dd of=/dev/vda conv=fsync 2>/dev/null; "
            "echo 3 > /proc/sys/vm/drop_caches; head -c 21 /dev/vda; "
            "head -c 64 /dev/hwrng | wc -c; echo all-done")


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.img"
    path.touch()
    path.chmod(0o600)
    os.truncate(path, 16 * MIB)
    return path


@pytest.fixture
def kvm_group():
    """A group that may use /dev/kvm."""
    before = os.stat("/dev/kvm")
    try:
        gid = grp.getgrnam("kvm").gr_gid
    except KeyError:
        gid = 4322
    os.chown("/dev/kvm", 0, gid)
    os.chmod("/dev/kvm", 0o660)
    yield gid
    os.chown("/dev/kvm", before.st_uid, before.st_gid)
    os.chmod("/dev/kvm", before.st_mode & 0o777)


def status_of(task):
    text = (task / "status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def tasks_of(pid):
    """{name: status} of a process's threads. One that has ended since they were listed has
    nothing to check; the first is there as long as its process, or that is an error."""
    found = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            status = status_of(task)
        except (FileNotFoundError, ProcessLookupError):
            if task.name == str(pid):
                raise
            continue
        found[status["Name"]] = status
    assert "quire" in found, found
    return found


def check_confined(pid):
    tasks = tasks_of(pid)
    for name, status in tasks.items():
        assert status["Seccomp"] == "2", (name, status)
        assert status["NoNewPrivs"] == "1", (name, status)
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert status[kind] == NOTHING, (name, kind, status)
    return tasks


def test_every_task_is_confined(quire, disk):
    vm = quire.start(DISK_JOB, end="stay", cpus=2,
                     extra=["--disk", f"path={disk}", "--rng", "kernel"])
    seen = wait_for(vm, "all-done")
    assert "written-by-the-guest\n64" in seen.replace("\r", ""), seen
    tasks = check_confined(vm.pid)
    assert {"quire", "starter", "output", "api-http", "api-verb", "vcpu0", "vcpu1",
            "disk0-q0", "rng-q0"} <= set(tasks), set(tasks)
    assert stop(vm) == 128 + signal.SIGINT


def test_off_is_off(quire):
    vm = quire.start("echo here", end="stay", extra=["--seccomp", "off"])
    wait_for(vm, "here")
    for name, status in tasks_of(vm.pid).items():
        assert status["Seccomp"] == "0", name
        assert status["CapEff"] == NOTHING, name
    stop(vm)


def test_jail(quire, disk, kvm_group):
    """Files that were opened before work in it, though its user cannot reach them."""
    vm = quire.start(DISK_JOB, end="stay",
                     extra=["--disk", f"path={disk}", "--rng", "kernel",
                            f"--jail=uid={UNPRIVILEGED}"])
    seen = wait_for(vm, "all-done")
    assert "written-by-the-guest\n64" in seen.replace("\r", ""), seen
    for name, status in tasks_of(vm.pid).items():
        assert set(status["Uid"].split()) == {str(UNPRIVILEGED)}, name
        assert set(status["Gid"].split()) == {str(UNPRIVILEGED)}, name
        assert status["Groups"].split() == [str(kvm_group)], name
    check_confined(vm.pid)
    for kind in ("user", "mnt", "net", "ipc", "uts"):
        assert os.readlink(f"/proc/{vm.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    # The jail as it is seen from inside.
    root = pathlib.Path(f"/proc/{vm.pid}/root")
    top = {entry.name for entry in root.iterdir()}
    cwd = pathlib.Path.cwd().parts[1]
    assert top <= {"dev", "proc", "sys", "run", cwd}, top
    assert {entry.name for entry in (root / "dev").iterdir()} == {"kvm", "null", "urandom"}
    assert {entry.name for entry in (root / "proc").iterdir()} == {
        "self", str(vm.pid), "meminfo"}
    files = [name for name in (root / cwd).rglob("*") if not name.is_dir()]
    assert not files, files
    assert stop(vm) == 128 + signal.SIGINT


def test_jail_survives_a_reboot(quire, disk, kvm_group):
    job = ("if [ $(head -c 5 /dev/vda) = again ]; then echo second-boot; poweroff -f; fi; "
           "echo again | dd of=/dev/vda conv=fsync 2>/dev/null")
    vm = quire.start(job, end="reboot",
                     extra=["--disk", f"path={disk}", f"--jail=uid={UNPRIVILEGED}"])
    wait_for(vm, "second-boot")
    assert vm.wait(BOOT_SECONDS) == 0, vm.stderr.read()


def as_nobody_special(argv, gid):
    return ["setpriv", f"--reuid={UNPRIVILEGED}", f"--regid={UNPRIVILEGED}",
            f"--groups={gid}", *argv]


@pytest.mark.parametrize("jail", [(), ("--jail",)])
def test_unprivileged(quire, kvm_group, jail):
    """All that a user needs is /dev/kvm."""
    folder = pathlib.Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    image = folder / "disk.img"
    image.touch()
    os.truncate(image, 16 * MIB)
    for path in (folder, image):
        os.chown(path, UNPRIVILEGED, UNPRIVILEGED)
    argv = quire.argv(DISK_JOB, extra=[
        "--disk", f"path={image}", "--rng", "kernel", "--memory", "size=512M,populate=full",
        "--summary-json", str(folder / "summary"), *jail])
    at = argv.index("--memory")
    del argv[at:at + 2]
    done = subprocess.run(as_nobody_special(argv, kvm_group), capture_output=True, text=True,
                          timeout=BOOT_SECONDS, cwd="/", check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done
    assert "written-by-the-guest\n64" in done.stdout.replace("\r", ""), done
    assert (folder / "summary").stat().st_uid == UNPRIVILEGED


def documented():
    """{class: (calls, rare calls)} from docs/sandbox.md, which is held to the code."""
    classes = {}
    for name, lists in re.findall(r"^- \*\*(\S+)\*\* \(.*?\): (.*)$",
                                  (ROOT / "docs/sandbox.md").read_text(), re.M):
        usual, _, rare = lists.partition("; rarely ")
        usual = usual.split("; ")[0]
        names = {item.split()[0] for item in usual.split(", ")} - {"nothing"}
        rare = {item.split()[0] for item in rare.split("; ")[0].split(", ") if item}
        classes[name] = (names, rare)
    return classes


def class_of(task):
    for pattern, name in [(r"vcpu\d+", "vcpu"), (r"disk\d+-q\d+", "disk"), (r"rng-q\d+", "rng"),
                          (r"net\d+-\w+", "net"), ("quire", "control")]:
        if re.fullmatch(pattern, task):
            return name
    return task


def call_names():
    header = pathlib.Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").read_text()
    return {int(nr): name
            for name, nr in re.findall(r"^#define __NR_(\w+) (\d+)$", header, re.M)}


@pytest.fixture
def traced():
    """A function that tells {thread name: {calls}} since the fixture was made."""
    trigger = TRACING / "events/raw_syscalls/sys_enter"
    if not (trigger / "hist").exists():
        pytest.skip("this kernel has no histogram triggers")
    hist = "hist:keys=common_pid.execname,id:size=8192"
    (trigger / "trigger").write_text(hist)
    names = call_names()

    def read():
        found = {}
        for task, nr in re.findall(r"common_pid: (\S+) +\[ *\d+\], id: +(\d+)",
                                   (trigger / "hist").read_text()):
            found.setdefault(class_of(task), set()).add(names.get(int(nr), nr))
        return found
    yield read
    (trigger / "trigger").write_text("!" + hist)


def test_no_call_is_allowed_in_vain(quire, disk, tmp_path, request):
    """Every call that is not marked as rare happens when a guest boots, works, reboots."""
    subprocess.run(["modprobe", "tun"], check=True)
    job = ("ip link set eth0 up; ip addr add 10.70.9.2/24 dev eth0; ping -c 1 10.70.9.1; "
           "echo hello > /dev/hvc0; "
           "if [ $(head -c 5 /dev/vda) = again ]; then echo second-boot; "
           "head -c 64 /dev/hwrng | wc -c; blkdiscard /dev/vda; sync; echo last; sleep 1; "
           "poweroff -f; fi; "
           "echo again | dd of=/dev/vda conv=fsync 2>/dev/null; echo 1st-boot; read traced")
    vm = quire.start(job, end="reboot", cpus=2, memory="size=512M,populate=full",
                     extra=["--disk", f"path={disk}", "--rng", "kernel",
                            "--serial", f"socket={tmp_path}/serial",
                            "--console", f"file={tmp_path}/console",
                            "--net", "tap=qtap9,ip=10.70.9.1,mask=255.255.255.0",
                            "--vsock", f"cid=3,socket={tmp_path}/vsock",
                            "--summary-json", str(tmp_path / "summary")])
    client = subprocess.Popen(
        ["python3", "-c",
         "import socket,sys,threading,time\n"
         "for _ in range(2400):\n"
         "  s=socket.socket(socket.AF_UNIX)\n"
         "  try: s.connect(sys.argv[1]); break\n"
         "  except OSError: time.sleep(0.1)\n"
         "threading.Thread(target=lambda: s.sendall(sys.stdin.buffer.readline()),\n"
         "                 daemon=True).start()\n"
         "while (d := s.recv(4096)): sys.stdout.buffer.write(d); sys.stdout.flush()\n",
         str(tmp_path / "serial")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    vm.stdout.close()
    vm.stdout = client.stdout
    wait_for(vm, "1st-boot")
    traced = request.getfixturevalue("traced")
    client.stdin.write(b"yes\n")
    client.stdin.close()
    wait_for(vm, "last")
    assert vm.wait(BOOT_SECONDS) == 0, vm.stderr.read()
    used, lists = traced(), documented()
    base, base_rare = lists.pop("any")
    everyone = set().union(*used.values())
    unused = {"any": base - everyone}
    for name, (usual, _) in lists.items():
        unused[name] = usual - used.get(name, set())
    unused.pop("starter")  # part of its list is its children's
    for name in ("fs-watch", "snapshot", "snapshot-window", "snapshot-verify", "restore",
                 "pager-fault", "pager-fill", "working-set", "migrate-send",
                 "migrate-receive", "migrate-land", "migrate-push", "migrate-follow"):
        unused.pop(name)  # not in this guest
    print("used:", {name: sorted(calls) for name, calls in used.items() if name in lists})
    assert not any(unused.values()), {n: sorted(c) for n, c in unused.items() if c}
