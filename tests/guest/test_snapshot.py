# SPDX-License-Identifier: Apache-2.0
"""quire snapshot and quire restore with a Linux guest that works and verifies itself.

Each process writes the guest's console into a log of its own.
"""
import base64
import json
import os
import re
import signal
import subprocess
import time

import pytest

from conftest import BOOT_SECONDS

MIB = 1 << 20
WORK_SECONDS = 4 * BOOT_SECONDS  # of all ticks; a hang, not a slow machine

# Works on the disk, in memory and with timers until it is told on its console that it has
# done enough: how much it does in the time that a command takes is the host's affair.
WORK = """
stty -echo < /dev/console
( read word < /dev/console; touch /tmp/done ) &
( blkverify --ops {ops} --mib 16 /dev/vda; echo "disk $?" ) &
( head -c 8000000 /dev/urandom > /tmp/m; sum=$(md5sum < /tmp/m); n=0
  while [ ! -e /tmp/done ]; do
	[ "$(md5sum < /tmp/m)" = "$sum" ] || echo "memory differs"; n=$((n + 1)); usleep 50000
  done; echo "memory $n" ) &
i=0
while [ ! -e /tmp/done ]; do
	read up rest < /proc/uptime; echo "tick $i $up"
	usleep 100000; i=$((i + 1))
done
wait
dmesg | grep -iE 'lockup|stall|hung task|error|irq .*nobody|crng reseeded' | sed 's/^/kernel: /'
echo "worked"
"""


class Host:
    """quire processes with one runtime directory."""

    def __init__(self, folder):
        self.folder = folder
        self.env = {**os.environ, "QUIRE_RUNTIME_DIR": str(folder / "run")}
        self.running = []

    def start(self, log, *argv):
        """A quire whose serial port is on stdout, which is a file."""
        with open(self.folder / log, "wb") as out:
            process = subprocess.Popen([os.environ["QUIRE"], *map(str, argv)], env=self.env,
                                       stdin=subprocess.PIPE, stdout=out,
                                       stderr=subprocess.PIPE)
        self.running.append(process)
        return process

    def run(self, *argv):
        return subprocess.run([os.environ["QUIRE"], *map(str, argv)], env=self.env, text=True,
                              stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=BOOT_SECONDS)

    def boot(self, name, job, cpus=1, disk="disk.img"):
        image = self.folder / disk
        with open(image, "wb") as f:
            f.truncate(32 * MIB)
        words = "console=ttyS0 quiet panic=-1 quire.run64=" + \
            base64.b64encode(job.encode()).decode()
        return self.start(f"{name}.log", "run", "--name", name,
                          "--kernel", os.environ["GUEST_KERNEL"],
                          "--initramfs", os.environ["GUEST_INITRD"],
                          "--cpus", f"boot={cpus}", "--memory", "128M", "--cmdline", words,
                          "--disk", f"path={image}", "--rng", "kernel")

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace").replace("\r", "")

    def wait_for(self, name, pattern, process, seconds=BOOT_SECONDS):
        end = time.monotonic() + seconds
        while not re.search(pattern, self.log(name), re.M):
            assert time.monotonic() < end, (pattern, self.log(name))
            if process.poll() is not None and not re.search(pattern, self.log(name), re.M):
                pytest.fail(f"ended with {process.returncode}: {process.stderr.read()!r}\n"
                            + self.log(name))
            time.sleep(0.1)
        return self.log(name)

    def wait_ticks(self, name, process, count):
        """So many more."""
        last = ticks_of(self.log(name))[-1][0]
        self.wait_for(name, rf"^tick {last + count} ", process)

    def wait_worked(self, name, process):
        """It is told that it has done enough, and is done; all that it said."""
        process.stdin.write(b"enough\n")
        process.stdin.flush()
        return self.wait_for(name, r"^worked$", process, WORK_SECONDS)

    def end(self):
        for process in self.running:
            process.kill()
            process.communicate()


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path)
    yield host
    host.end()


def ticks_of(text):
    return [(int(i), float(up)) for i, up in re.findall(r"^tick (\d+) ([\d.]+)$", text, re.M)]


def wait_restored(host, log, process, began):
    """Until it has told a tick; so many seconds since began its clock may have gone on."""
    host.wait_for(log, r"^tick ", process)
    return max(30, time.monotonic() - began)


def check_whole(before, after, seconds):
    """The restored guest counted on from where the snapshot was, and all is well."""
    seen = ticks_of(after)
    first = seen[0][0]
    assert [i for i, _ in seen] == list(range(first, first + len(seen))), after
    earlier = dict(ticks_of(before))
    # The snapshot is a moment that the first VM has seen, time did not jump.
    assert 0 < first <= max(earlier) + 1, (first, max(earlier))
    times = [up for _, up in seen]
    assert times == sorted(times)
    assert seen[0][1] - earlier[first - 1] < seconds
    assert "disk 0" in after, after
    assert re.search(r"^memory \d+", after, re.M), after
    assert "memory differs" not in before + after
    assert re.search(r"^worked$", after, re.M), after
    for complaint in re.findall(r"^kernel: (.*)", after, re.M):
        assert "crng reseeded" in complaint, complaint


@pytest.mark.parametrize("cpus,memory,how", [
    (1, "private", "still"), (2, "eager", "still"), (2, "lazy", "live"),
    (1, "working-set", "still"), (1, "private", "increment"), (2, "eager", "live increment")])
def test_killed_and_restored(host, cpus, memory, how):
    """While it works: snapshot, kill -9, restore; it goes on and verifies."""
    snap = host.folder / "snap"
    options = ["--disks", "copy", "--json"] + ["--live"] * ("live" in how)
    vm = host.boot("one", WORK.format(ops=800), cpus=cpus)
    host.wait_for("one", r"^tick 10 ", vm)
    if "increment" in how:
        parent = host.folder / "parent"
        done = host.run("snapshot", "one", parent, "--track", *options)
        assert done.returncode == 0, done.stderr
        options += ["--parent", parent]
        host.wait_ticks("one", vm, 5)
    done = host.run("snapshot", "one", snap, *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["memory_bytes"] >= 127 * MIB > report["data_bytes"] > MIB
    assert report["layout"] == ("delta" if "increment" in how else "whole")
    assert 0 < report["pause_us"] <= report["total_us"]
    print(f"{how}: {done.stdout}")
    # It goes on after it, too.
    host.wait_ticks("one", vm, 2)
    vm.send_signal(signal.SIGKILL)
    vm.wait()
    before = host.log("one")

    refused = host.run("restore", snap, "--as", "two")
    assert refused.returncode == 1
    assert re.search(r"disk\.img is there; move it away.*--set _disk0\.path=", refused.stderr)
    os.rename(host.folder / "disk.img", host.folder / "disk.old")
    began = time.monotonic()
    again = host.start("two.log", "restore", snap, "--as", "two", "--memory", memory)
    seconds = wait_restored(host, "two", again, began)
    assert "two" in host.run("ps", "--quiet").stdout.split()
    host.wait_ticks("two", again, 20)
    after = host.wait_worked("two", again)
    assert again.wait(BOOT_SECONDS) == 0, again.stderr.read()
    check_whole(before, after, seconds)


def test_a_second_one_beside_the_first(host):
    """--as and --set: both run on, each with a disk of its own, and both are right."""
    snap = host.folder / "snap"
    vm = host.boot("one", WORK.format(ops=500))
    host.wait_for("one", r"^tick 5 ", vm)
    assert host.run("snapshot", "one", snap, "--disks", "copy").returncode == 0
    assert "is running" in host.run("restore", snap, "--as", "one", "--set",
                                    f"_disk0.path={host.folder}/x.img").stderr
    assert not (host.folder / "x.img").exists()
    began = time.monotonic()
    again = host.start("two.log", "restore", snap, "--as", "two", "--set",
                       f"_disk0.path={host.folder}/two.img")
    seconds = wait_restored(host, "two", again, began)
    assert set(host.run("ps", "--quiet").stdout.split()) == {"one", "two"}
    info = json.loads(host.run("ctl", "two", "info").stdout)
    assert info["state"] == "Running"
    assert info["config"]["disks"][0]["path"] == f"{host.folder}/two.img"
    host.wait_ticks("two", again, 20)
    after = host.wait_worked("two", again)
    before = host.wait_worked("one", vm)
    check_whole(before, after, seconds)
    assert "disk 0" in before and "memory differs" not in before


def small_fs(host, mib):
    """A file system that is soon full."""
    place = host.folder / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", place], check=True)
    return place


def test_refused_and_killed(host):
    """What cannot be is said in one line, nothing is left of it, the guest works on; and
    kill -9 in the middle leaves the older one valid."""
    snap = host.folder / "snap"
    vm = host.boot("one", WORK.format(ops=300))
    host.wait_for("one", r"^tick 5 ", vm)
    assert host.run("snapshot", "one", snap, "--disks", "copy").returncode == 0
    manifest = (snap / "manifest.json").read_text()

    small = small_fs(host, 8)
    for argv, words in [
            ((small / "s",), "No space left on device"),
            ((snap,), "exists; choose another name"),
            ((host.folder / "none/s",), "No such file or directory")]:
        done = host.run("snapshot", "one", *argv, "--disks", "copy")
        assert done.returncode == 1
        assert words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert list(small.iterdir()) == []
    subprocess.run(["umount", small], check=True)
    # No sharing of blocks here.
    done = host.run("snapshot", "one", host.folder / "s")
    assert done.returncode == 1 and "have it copied (--disks copy)" in done.stderr
    host.wait_ticks("one", vm, 2)

    client = subprocess.Popen([os.environ["QUIRE"], "snapshot", "one", snap, "--replace",
                               "--disks", "copy"], env=host.env, stderr=subprocess.PIPE)
    deadline = time.monotonic() + BOOT_SECONDS
    while not list(host.folder.glob(".snap.tmp-*/memory")):
        assert client.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    vm.send_signal(signal.SIGKILL)
    said = client.communicate(timeout=BOOT_SECONDS)[1].decode()
    assert client.returncode == 1 and said.count("\n") == 1, said
    assert list(host.folder.glob(".snap.tmp-*")) == []
    assert (snap / "manifest.json").read_text() == manifest
    vm.wait()
    before = host.log("one")
    os.unlink(host.folder / "disk.img")
    began = time.monotonic()
    again = host.start("two.log", "restore", snap, "--memory", "eager")
    seconds = wait_restored(host, "two", again, began)
    host.wait_ticks("two", again, 20)
    after = host.wait_worked("two", again)
    check_whole(before, after, seconds)


def test_working_set_is_mapped(tmp_path):
    """Also in the second stage, before the guest goes on: some of it, at least, in one run of
    five, however slow the host is in the time that a guest waits for it."""
    done = subprocess.run([os.environ["QUIRE"], "bench", "restore", "--json", "--mib", "32",
                           "--set-mib", "1", "--runs", "5", "--dir", str(tmp_path)], text=True,
                          capture_output=True, timeout=BOOT_SECONDS, check=True)
    results = json.loads(done.stdout)["results"]
    if results[0]["kvm_faults"] is None:
        pytest.skip("this KVM counts no faults")
    faults = {r["memory"]: r["kvm_faults_runs"] for r in results}
    print(faults)
    assert min(faults["private"] + faults["eager"]) >= 256
    assert min(faults["working-set"]) < 256
