# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a walking guest, restored in every way, and forks.

guest/probe/walker.elf checks and changes its memory for ever, and says so on its
console: a page that is lost, old or from elsewhere is found in the pass after.
"""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest

BUILD = pathlib.Path(os.environ.get("QUIRE_BUILD", "build"))
QUIRE = pathlib.Path(os.environ.get("QUIRE", BUILD / "quire")).resolve()
WALKER = (BUILD / "guest/probe/walker.elf").resolve()
LONG = 60


def wait_for(what, condition):
    end = time.monotonic() + LONG
    while not (result := condition()):
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.02)
    return result


class Host:
    """A runtime directory, and the VMs that were started in it."""

    def __init__(self, folder):
        self.dir = folder
        self.env = {**os.environ, "QUIRE_RUNTIME_DIR": str(folder / "run")}
        self.started = []

    def quire(self, *args, check=True):
        done = subprocess.run([QUIRE, *map(str, args)], env=self.env, text=True,
                              capture_output=True, timeout=LONG, stdin=subprocess.DEVNULL)
        if check:
            assert done.returncode == 0, (args, done.stderr[-2000:])
        return done

    def ask(self, name, verb, *fields):
        text = self.quire("ctl", name, verb, *fields).stdout
        return json.loads(text) if text.strip() else None

    def start(self, *args):
        """A VM in the background: its process."""
        err = open(self.dir / f"err{len(self.started)}", "w+")
        vm = subprocess.Popen([QUIRE, *map(str, args)], env=self.env, text=True,
                              stdin=subprocess.DEVNULL, stdout=err, stderr=err)
        vm.err = err
        self.started.append(vm)
        return vm

    def said(self, vm):
        vm.err.flush()
        return pathlib.Path(vm.err.name).read_text()

    def state(self, name):
        done = self.quire("ctl", name, "vm.info", check=False)
        return json.loads(done.stdout)["state"] if done.returncode == 0 else None

    def wait_state(self, name, state):
        wait_for(f"{name} {state}", lambda: self.state(name) == state)

    def end(self):
        for vm in self.started:
            if vm.poll() is None:
                vm.send_signal(signal.SIGINT)
        for vm in self.started:
            try:
                vm.wait(LONG)
            finally:
                vm.kill()


@pytest.fixture
def host(tmp_path):
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no usable /dev/kvm")
    assert WALKER.exists(), f"no {WALKER}"
    h = Host(tmp_path)
    yield h
    h.end()


def log(path):
    return path.read_bytes().decode(errors="replace") if path.exists() else ""


def passes(path):
    text = log(path)
    assert "BAD" not in text, text[-300:]
    return [int(n) for n in re.findall(r"walker: pass (\d+)\r", text)]


def wait_passes(path, more=2):
    """As many passes more, and none of them found anything wrong."""
    seen = len(passes(path))
    wait_for(f"{more} passes in {path.name}", lambda: len(passes(path)) >= seen + more)
    return passes(path)


def boot(host, name="one", cpus=1, page="4k", mib=48, extra="", size="128M"):
    serial = host.dir / f"{name}.log"
    host.start("run", "--kernel", WALKER, "--cmdline", f"mib={mib} {extra}", "--cpus", f"boot={cpus}",
               "--memory", f"size={size},page={page}", "--serial", f"file={serial}", "--name", name)
    wait_for("the guest", lambda: "walker: ready" in log(serial))
    return serial


def restore(host, snapshot, name, *args):
    serial = host.dir / f"{name}.log"
    return serial, host.start("restore", snapshot, "--as", name, "--set",
                              f"serial.file={serial}", *args)


def restore_stats(host, name):
    return host.ask(name, "vm.memory-stats")["restore"]


MODES = ["private", "eager", "lazy", "working-set"]


@pytest.mark.parametrize("mode,cpus,page", [
    *((mode, cpus, page) for mode in MODES
      for cpus, page in [(1, "4k"), (2, "thp"), (4, "4k"), (3, "thp")]),
    *((mode, cpus, page) for mode in MODES[1:]
      for cpus, page in [(1, "2m"), (4, "2m"), (2, "4k,shared=on")])])
def test_goes_on(host, hugetlb, mode, cpus, page):
    if page == "2m":
        hugetlb(3 * 128)
    before = wait_passes(boot(host, cpus=cpus, page=page))[-1]
    snapshot = host.dir / "snap"
    host.quire("snapshot", "one", snapshot)
    args = ["--record", "1"] if mode == "working-set" else []
    serial, _ = restore(host, snapshot, "two", "--memory", mode, *args)
    seen = wait_passes(serial, 3)
    # It went on where it was, and not from the start.
    assert seen[0] >= before and seen == list(range(seen[0], seen[0] + len(seen)))
    # So did the first one.
    wait_passes(host.dir / "one.log")
    stats = restore_stats(host, "two")
    assert stats["mode"] == mode and stats["go_on_s"] > 0 and not stats["error"]
    if mode in ("private", "eager"):
        assert stats["pager"] is None
        return
    wait_for("all of memory", lambda: restore_stats(host, "two")["resident_s"])
    # Who brought the last bytes adds them a moment later.
    wait_for("the count", lambda: sum(
        restore_stats(host, "two")["pager"]["brought_bytes"].values()) >= 48 << 20)
    pager = restore_stats(host, "two")["pager"]
    assert pager["settled_bytes"] == pager["total_bytes"] == 128 << 20
    # How much was faulted in is chance: the sweep may be faster than the guest.
    assert pager["failures"] == 0
    wait_passes(serial)
    # A copy that was brought can be saved again, and goes on once more.
    host.quire("snapshot", "two", host.dir / "again")
    wait_passes(restore(host, host.dir / "again", "three", "--memory", "lazy")[0], 3)


@pytest.mark.parametrize("page,words", [("2m", "hugetlb memory"), ("thp,shared=on", "shared memory")])
def test_what_cannot_be_mapped(host, hugetlb, page, words):
    """Refused before a disk is made, with what works instead; forks do that."""
    if page == "2m":
        hugetlb(3 * 64)
    disk = host.dir / "a.img"
    disk.write_bytes(os.urandom(1 << 20))
    serial = host.dir / "one.log"
    host.start("run", "--kernel", WALKER, "--cmdline", "mib=16", "--memory",
               f"size=64M,page={page}", "--serial", f"file={serial}", "--name", "one",
               "--disk", f"path={disk}")
    before = wait_passes(serial)[-1]
    host.quire("snapshot", "one", host.dir / "snap", "--disks", "copy")
    own = host.dir / "own.img"
    done = host.quire("restore", host.dir / "snap", "--set", f"_disk0.path={own}", check=False)
    assert done.returncode == 1
    assert f"{words} cannot be mapped from the snapshot: restore with memory eager" in done.stderr
    assert not own.exists()
    forks(host, "one", 2, "--disks", "copy")
    for name in ("one-1", "one-2"):
        assert wait_passes(host.dir / f"one.log.{name}", 3)[0] >= before
        assert restore_stats(host, name)["mode"] == "eager"


def recorded_bytes(snapshot, start=0):
    """The pages of its working set from there on: docs/snapshot-format.md."""
    records = (snapshot / "working-set").read_bytes()[32:]
    units = [records[at:at + 72] for at in range(0, len(records), 72)]
    return 4096 * sum(int.from_bytes(unit[8:], "little").bit_count() for unit in units
                      if int.from_bytes(unit[:8], "little") >= start)


WALKED_FROM = 32 << 20  # START of guest/probe/walker.c


def record(host, snapshot, name, mib):
    """A VM that has recorded a whole pass, of so many MiB: how long one takes is the host's
    business."""
    for seconds in (1, 4, 16, 50):
        serial, vm = restore(host, snapshot, name, "--memory", "working-set", "--record", seconds)
        wait_for("the recorded set", (snapshot / "working-set").exists)
        if recorded_bytes(snapshot, WALKED_FROM) == mib << 20:
            return serial
        vm.kill()
        vm.wait()
        serial.unlink()
        for path in snapshot.glob("working-set*"):
            path.unlink()
    raise AssertionError(f"no whole pass in {seconds} s")


def test_working_set_here_and_there(host):
    """Its pages are kept by themselves; what is in them comes from there."""
    boot(host, mib=64, extra="every=8")
    snapshot = host.dir / "snap"
    pages = snapshot / "working-set.pages"
    host.quire("snapshot", "one", snapshot)
    serial = record(host, snapshot, "two", 8)
    wait_for("the pages of the recorded set", pages.exists)
    wait_passes(serial)
    # Each eighth page of 64 MiB, and the little that is before them.
    assert 8 << 20 <= pages.stat().st_size <= 12 << 20
    serial, vm = restore(host, snapshot, "three", "--memory", "working-set", "--paused")
    host.wait_state("three", "Paused")
    wait_for("the working set", lambda: restore_stats(host, "three")["working_set_s"])
    # The guest verifies what has come, in the passes that follow.
    host.ask("three", "resume")
    wait_passes(serial, 3)
    assert "working set is taken from memory" not in host.said(vm)
    # Damage is said, costs time, and nothing else.
    with pages.open("r+b") as file:
        file.seek(pages.stat().st_size // 2)
        file.write(b"damage")
    serial, vm = restore(host, snapshot, "four", "--memory", "working-set")
    wait_passes(serial, 3)
    assert "working set is taken from memory" in host.said(vm)


def test_working_set(host):
    boot(host, mib=32, extra="every=2")
    snapshot = host.dir / "snap"
    host.quire("snapshot", "one", snapshot)
    wait_passes(record(host, snapshot, "two", 16))
    first = restore_stats(host, "two")["pager"]
    assert first["brought_bytes"]["working-set"] == 0
    serial, _ = restore(host, snapshot, "three", "--memory", "working-set")
    wait_passes(serial)
    wait_for("all of memory", lambda: restore_stats(host, "three")["resident_s"])
    stats = restore_stats(host, "three")
    assert stats["working_set_s"] > 0
    # All that was recorded, but for those units that somebody touched before, and of the
    # last one what another thread sweeps already: each thread may be at one of them.
    pager, came = stats["pager"], stats["pager"]["brought_bytes"]["working-set"]
    recorded = recorded_bytes(snapshot)
    assert 0 < came <= recorded
    assert came + (pager["faults"] + min(os.cpu_count(), 4) << 21) >= recorded
    assert pager["faults"] < first["faults"]


def test_working_set_that_is_damaged(host):
    boot(host)
    snapshot = host.dir / "snap"
    host.quire("snapshot", "one", snapshot)
    (snapshot / "working-set").write_bytes(b"not a working set" * 10)
    serial, vm = restore(host, snapshot, "two", "--memory", "working-set", "--record", "1")
    wait_passes(serial)


def pause_before_damage(host, mib=48):
    """A restored VM that has most of its memory still to come."""
    boot(host, mib=mib, cpus=2)
    snapshot = host.dir / "snap"
    host.quire("snapshot", "one", snapshot)
    serial, vm = restore(host, snapshot, "two", "--memory", "lazy", "--record", "600", "--paused")
    host.wait_state("two", "Paused")
    return snapshot, serial, vm


def test_source_that_fails(host):
    snapshot, serial, vm = pause_before_damage(host)
    memory = snapshot / "memory"
    shutil.copy(memory, host.dir / "good")
    size = memory.stat().st_size
    os.truncate(memory, 40 << 20)
    host.ask("two", "vm.resume")
    host.wait_state("two", "Paused")
    info = host.ask("two", "vm.info")
    assert "memory at offset" in info["memory_error"]
    assert "memory at offset" in restore_stats(host, "two")["error"]
    refused = host.quire("snapshot", "two", host.dir / "no", check=False)
    assert refused.returncode == 1 and "cannot be brought" in refused.stderr
    # Going on is trying again: it fails again.
    # (At once, where a vCPU still waits in the kernel.)
    host.quire("ctl", "two", "vm.resume", check=False)
    host.wait_state("two", "Paused")
    # And once the source is well the guest notices nothing.
    os.truncate(memory, size)
    with open(host.dir / "good", "rb") as good, open(memory, "r+b") as bad:
        good.seek(40 << 20)
        bad.seek(40 << 20)
        shutil.copyfileobj(good, bad)
    host.ask("two", "vm.resume")
    wait_passes(serial, 3)
    assert host.state("two") == "Running"
    assert "memory_error" not in host.ask("two", "vm.info")


@pytest.mark.parametrize("how", ["vm.shutdown", "vmm.shutdown", "SIGTERM"])
def test_end_without_memory(host, how):
    snapshot, serial, vm = pause_before_damage(host)
    with open(snapshot / "memory", "r+b") as f:
        f.seek(33 << 20)
        f.write(b"\x55" * (8 << 20))
    host.ask("two", "vm.resume")
    host.wait_state("two", "Paused")
    assert "checksum" in host.ask("two", "vm.info")["memory_error"]
    if how == "SIGTERM":
        vm.send_signal(signal.SIGTERM)
    else:
        host.ask("two", how)
    wait_for("the end", lambda: vm.poll() is not None or host.state("two") == "Shutdown")


def test_fails_while_it_is_built(host):
    boot(host, mib=16)
    snapshot = host.dir / "snap"
    host.quire("snapshot", "one", snapshot)
    with open(snapshot / "memory", "r+b") as f:
        for at in range(0, 128 << 20, 2 << 20):
            f.seek(at + 4096 * 7)
            f.write(b"\x55")
    _, vm = restore(host, snapshot, "two", "--memory", "lazy", "--paused")
    # Paused or refused, as what is wrong is met; it is not run, and ends.
    wait_for("an answer", lambda: vm.poll() is not None or host.state("two") == "Paused")
    if vm.poll() is None:
        host.quire("ctl", "two", "vm.resume", check=False)
        vm.send_signal(signal.SIGINT)
    assert vm.wait(LONG) in (1, 128 + signal.SIGINT)
    assert "checksum" in host.said(vm)


def test_killed(host):
    boot(host)
    snapshot = host.dir / "snap"
    host.quire("snapshot", "one", snapshot)
    for i, mode in enumerate(["lazy", "working-set", "working-set", "lazy"]):
        serial, vm = restore(host, snapshot, f"k{i}", "--memory", mode)
        wait_for("the guest", lambda: passes(serial))
        vm.kill()
        vm.wait()
    wait_passes(restore(host, snapshot, "last", "--memory", "eager")[0])


def test_usage(host):
    for args in (["--record", "0"], ["--record", "5"], ["--memory", "eager", "--record", "5"],
                 ["--memory", "slow"], ["--ready-fd", "1"], ["--ready-fd", "77"]):
        done = host.quire("restore", "/nowhere", *args, check=False)
        assert done.returncode == 2, (args, done.stderr)


# ---- forks ----


def forks(host, name, count, *args):
    done = host.quire("fork", name, "--count", count, "--json", *args)
    report = json.loads(done.stdout)
    for copy in report["copies"]:
        host.started.append(Fork(copy["pid"]))
    return report


class Fork:
    """A process that is not our child."""

    def __init__(self, pid):
        self.pid = pid

    def poll(self):
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 0
        return None

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self, timeout):
        wait_for("a fork's end", lambda: self.poll() is not None)

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def left_of_forks(host):
    return [p for p in os.listdir(host.dir) if p.startswith(".quire-fork")]


def test_fork(host):
    serial = boot(host, cpus=2)
    before = wait_passes(serial)[-1]
    report = forks(host, "one", 3, "--dir", host.dir)
    names = [c["name"] for c in report["copies"]]
    assert names == ["one-1", "one-2", "one-3"]
    for name in names:
        seen = wait_passes(host.dir / f"one.log.{name}", 3)
        assert seen[0] >= before
        assert restore_stats(host, name)["mode"] == "private"
    wait_passes(serial)
    # Nothing is left of what it needed.
    assert not left_of_forks(host)
    # A copy can be forked as well, and what it is called is free to choose.
    report = forks(host, "one-2", 2, "--dir", host.dir, "--as", "x{n}y", "--set",
                   f"serial.file={host.dir}/{{name}}-{{n}}.log")
    assert [c["name"] for c in report["copies"]] == ["x1y", "x2y"]
    wait_passes(host.dir / "x2y-2.log", 3)


def test_fork_all_or_none(host):
    boot(host)
    boot(host, name="one-2")
    done = host.quire("fork", "one", "--count", "3", "--dir", host.dir, check=False)
    assert done.returncode == 1 and "one-2" in done.stderr
    names = host.quire("ps", "--quiet").stdout.split()
    assert sorted(names) == ["one", "one-2"]
    assert not left_of_forks(host)
    assert host.quire("fork", "one", "--count", "2", "--as", "same", check=False).returncode == 2
    assert host.quire("fork", "one", "--count", "0", check=False).returncode == 2


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_fork_interrupted(host, which):
    serial = boot(host)
    fork = host.start("fork", "one", "--count", "20", "--dir", host.dir)
    wait_for("its directory", lambda: left_of_forks(host))
    fork.send_signal(which)
    assert fork.wait(60) == 128 + which
    assert not left_of_forks(host)
    assert host.quire("ps", "--quiet").stdout.split() == ["one"]
    wait_passes(serial)


def test_fork_disk(host):
    disk = host.dir / "a.img"
    disk.write_bytes(os.urandom(1 << 20))
    serial = host.dir / "one.log"
    host.start("run", "--kernel", WALKER, "--cmdline", "mib=16", "--memory", "size=64M", "--serial",
               f"file={serial}", "--name", "one", "--disk", f"path={disk}")
    wait_for("the guest", lambda: "walker: ready" in log(serial))
    forks(host, "one", 2, "--disks", "copy")
    for name in ("one-1", "one-2"):
        assert (host.dir / f"a.img.{name}").read_bytes() == disk.read_bytes()
        config = host.ask(name, "vm.info")["config"]
        assert config["disks"][0]["path"] == f"{disk}.{name}"
