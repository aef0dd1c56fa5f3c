# SPDX-License-Identifier: Apache-2.0
"""The lab itself: what a command inside finds, and how a run ends."""

import base64
import os
import re
import secrets
import signal
import subprocess
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
RUN = REPO / "lab/run"
PROGRAMS = {"qemu-system-x86_64", "virtiofsd"}  # of a lab
ATTEMPTS = 3  # only where the nested host died under its command
ENOUGH = 120  # seconds; a hang, not a slow machine
# With one CPU the emulator has no second thread to get wrong (lab/README.md): for what is
# not about several.
ONE_CPU = ("--smp", "1")
DIED = re.compile(r"^lab/run: .*( while the command ran\b|the nested host has not been heard of)",
                  re.M)

# QEMU's own small machine, started inside the lab.
PEER = ("qemu-system-x86_64 -M microvm,rtc=on,pcie=on -accel kvm -cpu host "
        "-m 256 -smp {smp} -nodefaults -no-user-config -display none "
        "-serial stdio -no-reboot -kernel {kernel} -initrd {initrd} "
        "-device virtio-rng-pci {more} "
        "-append 'console=ttyS0 quiet reboot=t panic=-1 {ask}'")


def peer(command, version="6_1", smp=1, initrd="", more="", end="poweroff"):
    """A shell command that runs a command in a guest."""
    encoded = base64.b64encode(command.encode()).decode()
    return PEER.format(kernel=f"$GUEST_KERNEL_{version}", smp=smp,
                       initrd=f"$GUEST_INITRD{initrd}_{version}", more=more,
                       ask=f"quire.run64={encoded} quire.end={end}")


@pytest.fixture(scope="session", autouse=True)
def cache():
    """All is made that a lab boots: a run of lab/run that makes some says so."""
    subprocess.run([REPO / "lab/assets"], check=True)


def lab(script, *options, timeout=600, env=None, attempts=ATTEMPTS):
    """A finished lab/run. One whose nested host died is what the emulator does once in a while
    (lab/README.md), and says nothing of what is tested: then there is another."""
    for _ in range(attempts):
        done = subprocess.run(
            [RUN, "--timeout", str(timeout), *options, "--", "sh", "-c", script],
            capture_output=True, text=True, check=False, cwd=REPO,
            stdin=subprocess.DEVNULL, env=dict(os.environ, **(env or {})))
        if done.returncode != 125 or not DIED.search(done.stderr):
            break
        print("repeated:", done.stderr)
    return done


def told(done):
    """What the command said on standard error. The emulator under a lab fails once in a while
    before there is a command (lab/README.md): lab/run boots again, and says that."""
    return re.sub(r"^lab/run: (?:.* on start-up\b.*|not up after \d+ s)\n"
                  r"(?:lab/run: .*\n)*?lab/run: starting over\n", "", done.stderr, flags=re.M)


def test_what_is_told_apart():
    boot = "lab/run: qemu ended with status 1 on start-up.\nlab/run: Its kernel\n" \
        "lab/run: starting over\nlab/run: not up after 100 s\nlab/run: starting over\n"
    under = "lab/run: qemu ended with status 1 while the command ran\nlab/run: starting over\n"
    more = "lab/run: building guest tools\n"
    done = subprocess.CompletedProcess([], 0, stderr=more + boot + "apart\n" + under)
    assert told(done) == more + "apart\n" + under


@pytest.fixture(name="mark")
def make_mark():
    """An environment by which a lab's processes are found: other labs may run beside it."""
    return {"QUIRE_TEST_MARK": secrets.token_hex(8)}


def processes(mark):
    """Those of the lab with this mark that lab/run has started: their programs, by pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "cmdline").read_bytes()
            marked = mark["QUIRE_TEST_MARK"].encode() in (entry / "environ").read_bytes()
        except OSError:
            continue
        program = line.split(b"\0")[0].rsplit(b"/")[-1]
        if marked and program.startswith((b"qemu-system", b"virtiofsd")):
            found[int(entry.name)] = program.decode()
    return found


def gone(mark, seconds=ENOUGH):
    """Do these processes end in time?"""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if not processes(mark):
            return True
        time.sleep(0.1)
    return False


def test_what_a_command_finds(tmp_path):
    script = r"""
        set -e
        test "$PWD" = "$1"
        uname -r; nproc
        cat /sys/module/kvm_amd/parameters/npt
        cat /sys/module/kvm/parameters/tdp_mmu
        test -c /dev/kvm -a -b "$LAB_DISK" -a "$QUIRE_LAB" = 1
        for f in GUEST_KERNEL GUEST_VMLINUX GUEST_INITRD GUEST_INITRD_FIO; do
            for v in "" _6_1 _6_12; do
                eval "test -s \"\$$f$v\"" || { echo "no $f$v"; exit 1; }
            done
        done
        echo "QUIRE $QUIRE"; echo "GIVEN $GIVEN $TOLD"
        cat /sys/devices/system/node/online
        cat /sys/fs/cgroup/cgroup.subtree_control
        mount -t hugetlbfs | wc -l
        test -w /dev/shm -a -c /dev/ptmx -a -d /dev/pts
        grep -q UP /sys/class/net/lo/operstate ||
            grep -q unknown /sys/class/net/lo/operstate
        cat /sys/class/net/lo/flags
        echo scratch >"$0"
        echo shared >"$LAB_OUT/shared"
        echo apart >&2
    """.replace("$0", str(REPO / "scratch-of-a-lab-test")).replace(
        "$1", str(REPO))
    done = lab(script, "--disk", "64", "--numa", "2", "--out", tmp_path,
               "--env", "GIVEN", "--env", "TOLD=there",
               env={"GIVEN": "here", "QUIRE": "/tmp/some/quire"})
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("6.12.")
    assert lines[1:4] == ["2", "Y", "Y"]
    assert "QUIRE /tmp/some/quire" in lines
    assert "GIVEN here there" in lines
    assert "0-1" in lines
    for controller in ("cpu", "cpuset", "io", "memory", "hugetlb", "pids"):
        assert controller in lines[7].split()
    assert told(done) == "apart\n", "the console belongs elsewhere"
    assert (tmp_path / "shared").read_text() == "shared\n"
    assert not (REPO / "scratch-of-a-lab-test").exists()


@pytest.mark.parametrize("script, status", [
    ("exit 7", 7),
    ("kill -9 $$", 128 + 9),
])
def test_exit_status_passes(script, status):
    assert lab(script).returncode == status


def test_output_is_whole():
    done = lab("seq 1 200000; seq 1 1000 >&2")
    assert done.returncode == 0
    assert done.stdout.split() == [str(n) for n in range(1, 200001)]
    assert told(done).split() == [str(n) for n in range(1, 1001)]


def test_a_command_that_hangs(mark):
    # Starting the nested host takes up to a minute of it on a busy machine.
    done = lab("echo begun; sleep 1000", *ONE_CPU, timeout=120, env=mark)
    assert done.returncode == 124
    assert done.stdout == "begun\n"
    assert "did not end within 120 s" in done.stderr
    assert gone(mark)


def test_a_crash_is_a_failure_of_the_lab():
    done = lab("echo c >/proc/sysrq-trigger; sleep 1000", attempts=1)
    assert done.returncode == 125
    assert "crashed" in done.stderr
    assert "sysrq triggered crash" in done.stderr, "no console to read"


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT,
                                 signal.SIGKILL])
def test_nothing_left_behind(mark, sig):
    run = subprocess.Popen([RUN, "--disk", "64", "--", "sh", "-c",
                            "echo up; sleep 1000"], cwd=REPO,
                           stdout=subprocess.PIPE, text=True,
                           stderr=subprocess.DEVNULL, env={**os.environ, **mark})
    assert run.stdout.readline() == "up\n"
    assert set(processes(mark).values()) == PROGRAMS
    run.send_signal(sig)
    assert run.wait(timeout=ENOUGH) == (
        -sig if sig == signal.SIGKILL else 128 + sig)
    assert gone(mark)


def test_the_parent_is_killed(mark):
    parent = subprocess.Popen(
        ["/usr/bin/python3", "-c",
         "import subprocess, sys; "
         "subprocess.run(sys.argv[1:], check=False)",
         RUN, "--", "sh", "-c", "echo up; sleep 1000"],
        cwd=REPO, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL, env={**os.environ, **mark})
    assert parent.stdout.readline() == "up\n"
    assert set(processes(mark).values()) == PROGRAMS
    parent.kill()
    parent.wait()
    assert gone(mark)


@pytest.mark.parametrize("arguments", [
    ["--kernel", "5.10", "--", "true"], ["--smp", "0", "--", "true"],
    ["--no-such-option"], ["--"],
])
def test_usage(arguments):
    done = subprocess.run([RUN, *arguments], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_no_crash_is_taken_for_success():
    """A guest that dies must not look like one that finished."""
    done = lab(peer("echo begun; echo c >/proc/sysrq-trigger"), *ONE_CPU)
    assert "quire-guest: init" in done.stdout
    assert "quire-guest: exit" not in done.stdout


@pytest.mark.parametrize("host, version", [("6.12", "6_1"), ("6.1", "6_12")])
def test_guest_boots(host, version):
    done = lab(peer("uname -r; nproc; lsmod; cat /proc/sys/kernel/random/uuid;"
                    "memtouch --mib 8; exit 5", version, smp=2),
               "--kernel", host, *ONE_CPU)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    first = next(i for i, l in enumerate(lines)
                 if l.startswith("quire-guest: init "))
    assert float(lines[first].split()[2]) > 0
    assert lines[first + 1].startswith(version.replace("_", ".") + ".")
    assert lines[first + 2] == "2"
    assert any(l.startswith("virtio_rng") for l in lines)
    assert not any(l.startswith("virtio_blk") for l in lines), "no disk there"
    assert any('"second_pass_s"' in l for l in lines)
    assert "quire-guest: exit 5" in lines


def test_guest_disk_with_fio_and_blkverify():
    disk = ("-drive if=none,id=d,format=raw,file=/run/d.img,discard=unmap "
            "-device virtio-blk-pci,drive=d")
    run = "blkverify --mib 32 --ops 400 --discard 10 --zero 10 /dev/vda"
    script = (f"truncate -s 64M /run/d.img; {peer(run, more=disk)}; "
              "$GUEST_TOOLS/blkverify --verify 400 --buffered --mib 32 "
              "--ops 400 --discard 10 --zero 10 /run/d.img && "
              + peer("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt && "
                     "fio --name=x --directory=/mnt --size=8m --rw=randwrite "
                     "--verify=crc32c --ioengine=libaio --direct=1 "
                     ">/dev/null && umount /mnt && e2fsck -fn /dev/vda",
                     initrd="_FIO", more=disk))
    done = lab(script, *ONE_CPU)
    assert done.stdout.count("quire-guest: exit 0") == 2, done.stdout
    assert done.stdout.count("verified 8192 blocks, 0 wrong") == 2


def test_guest_ends():
    """Each verb, and the other way to give a command; one lab for all."""
    ends = {"reboot": "reboot: Restarting system",
            "panic": "sysrq: Trigger a crash",
            "triple": "reboot: Restarting system",
            "halt": "reboot: System halted"}
    script = ""
    for end in ends:
        guest = f"timeout 400 {peer('true', end=end).replace(' quiet', '')}"
        if end == "halt":
            # A halted machine stays; all others have to end by themselves.
            guest = (f"{{ {guest}; echo END $?; }} >/run/said & "
                     "until grep -q 'System halted\\|^END' /run/said; do sleep 1; done; "
                     "sleep 10; cat /run/said")
        else:
            guest += "; echo END $?"
        script += f"echo BEGIN {end}; {guest}; "
    script += "echo BEGIN percent; " + PEER.format(
        kernel="$GUEST_KERNEL", initrd="$GUEST_INITRD", smp=1, more="",
        ask="quire.run=echo%20one%25%0Aecho%20two")
    done = lab(script, *ONE_CPU, timeout=1800)
    parts = done.stdout.split("BEGIN ")[1:]
    for (end, said), part in zip(ends.items(), parts):
        assert part.startswith(end)
        assert "quire-guest: exit 0" in part, part
        assert said in part
        assert re.findall(r"^END (.*)$", part, re.M) == ([] if end == "halt" else ["0"])
    assert "\none%\ntwo\nquire-guest: exit 0\n" in parts[4]
