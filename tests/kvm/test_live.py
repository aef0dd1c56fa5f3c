# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a guest that goes on while its memory is written.

The guests check all that they write (guest/probe/walker.elf; the counting one of
test_snapshot), so a page that got into the snapshot after its instant, or before, is found
in the next pass: by the guest that went on as by the one that comes back.
"""
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import time

import pytest

import test_snapshot
from host_kit import unmount
from test_cycles import WALKER, Chain
from test_increment import differ, memory_of
from test_snapshot import (MIB, SECONDS, follows, host, needs_kvm, refusal,  # noqa: F401
                           restore)

pytestmark = needs_kvm


def ask(chain, *argv):
    return subprocess.run([os.environ["QUIRE"], "snapshot", "walker", *map(str, argv)],
                          env=chain.env, text=True, capture_output=True, timeout=SECONDS,
                          stdin=subprocess.DEVNULL, check=False)


def live(chain, place, *argv):
    done = ask(chain, place, "--live", "--json", *argv)
    assert done.returncode == 0, (done.stderr, chain.said())
    return json.loads(done.stdout)


@pytest.fixture
def chain(tmp_path):
    chain = Chain(tmp_path)
    yield chain
    chain.end()


def boot(chain, cpus, memory, mib=96):
    chain.start("run", "--kernel", WALKER, "--cmdline", f"mib={mib}", "--cpus", f"boot={cpus}",
                "--memory", memory, "--serial", f"file={chain.serial}", "--name", "walker")
    chain.wait_passes()


@pytest.mark.parametrize("cpus,memory", [(1, "256M,page=4k"), (2, "256M,page=thp"),
                                         (2, "256M,shared=on"), (3, "256M,page=4k")])
def test_goes_on_and_comes_back(chain, cpus, memory):
    """Each cycle goes on from the one before: what is wrong is not lost."""
    boot(chain, cpus, memory)
    for number in range(5):
        place = chain.dir / f"snap{number}"
        report = live(chain, place, "--threads", number % 2 + 1)
        assert report["data_bytes"] > 96 * MIB, report
        # The guest that was saved has lost nothing.
        chain.wait_passes()
        chain.wait_passes()
        chain.end()
        chain.serial.unlink()
        chain.start("restore", place, "--as", "walker", "--memory", "eager")
        chain.last = 0
        chain.wait_passes()
        shutil.rmtree(place)


def test_one_after_the_other(chain):
    """Increments that are taken live, each upon the one before, and whole ones between them."""
    boot(chain, 2, "192M")
    places = [chain.dir / f"s{i}" for i in range(5)]
    live(chain, places[0], "--track")
    for before, place in zip(places, places[1:]):
        chain.wait_passes()
        report = live(chain, place, "--track", "--parent", before)
        assert report["layout"] == "delta", report
        live(chain, chain.dir / "whole", "--replace")
    chain.wait_passes()
    for place in (places[-1], places[2], chain.dir / "whole"):
        chain.end()
        chain.serial.unlink()
        chain.last = 0
        chain.start("restore", place, "--as", "walker", "--memory", "private")
        chain.wait_passes()


def test_paused(host):
    """Nobody writes, so it is the same as one that is not live."""
    vm = host.boot()
    host.wait_passes("one", vm, 2)
    assert host.run("ctl", "one", "pause").returncode == 0
    report = host.snapshot("one", host.folder / "live", "--disks", "copy", "--live")
    assert report["pause_us"] == 0 and report["waited_bytes"] == 0
    host.snapshot("one", host.folder / "whole", "--disks", "copy")
    assert differ(memory_of(host.folder / "live"), memory_of(host.folder / "whole")) == []
    assert host.run("ctl", "one", "resume").returncode == 0
    assert follows(host.wait_passes("one", vm, 2))


def test_what_cannot_be(host):
    vm = host.boot()
    host.wait_passes("one", vm, 1)
    host.snapshot("one", host.folder / "snap", "--disks", "copy", "--live")
    again = restore(host, host.folder / "snap")
    host.wait_passes("two", again, 1)
    refusal(host.run("snapshot", "two", host.folder / "s", "--disks", "copy", "--live"),
            "live: guest memory that is mapped from a file")
    assert not (host.folder / "s").exists()
    assert follows(host.wait_passes("two", again, 2))
    # But one whose memory has all come.
    again = restore(host, host.folder / "snap", "--memory", "lazy", name="three")
    host.wait_passes("three", again, 1)
    end = time.monotonic() + SECONDS
    while True:
        done = host.run("snapshot", "three", host.folder / "s", "--disks", "copy", "--live")
        if done.returncode == 0:
            break
        refusal(done, "has not all come yet")
        assert time.monotonic() < end
        time.sleep(0.05)
    assert follows(host.wait_passes("three", again, 3))


def in_window(chain, place):
    """A live snapshot of which some memory is written, and not nearly all."""
    client = subprocess.Popen([os.environ["QUIRE"], "snapshot", "walker", str(place), "--live",
                               "--threads", "1"], env=chain.env, text=True,
                              stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end = time.monotonic() + SECONDS
    while client.poll() is None and \
            not any(size_of(f) > 8 * MIB for f in chain.dir.glob(f".{place.name}.tmp-*/memory")):
        assert time.monotonic() < end
        time.sleep(0.001)
    return client


def size_of(path):
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("memory", ["640M,page=4k", "640M,page=thp", "640M,shared=on"])
def test_interrupted(chain, memory):
    """Nobody who waits in the window is left there."""
    boot(chain, 2, memory, mib=480)
    place = chain.dir / "snap"
    for sig in (signal.SIGINT, signal.SIGKILL, signal.SIGINT):
        client = in_window(chain, place)
        client.send_signal(sig)
        client.communicate(timeout=SECONDS)
        shutil.rmtree(place, ignore_errors=True)  # it may have been faster
        chain.wait_passes()
    live(chain, place)
    chain.end()
    chain.serial.unlink()
    chain.last = 0
    chain.start("restore", place, "--as", "walker", "--memory", "eager")
    chain.wait_passes()


# Goes from 4 MiB to the end of what it is told, by pages: each must be zero when it comes
# there, and is written. A dot for each 512 KiB; D at the end, X for a page that was not.
FRESH = ("be00004000 833e00 752f c70601000000 81c600100000 f7c6ffff0f00 7508 baf8030000 b02e ee "
         "81fe {top} 72d7 b044 baf8030000 ee f4ebfd b058 baf8030000 ee f4ebfd")
FRESH_TOP = 0x1f000000


def wait_text(host, name, vm, found):
    end = time.monotonic() + SECONDS
    while not found(host.log(name)):
        assert vm.poll() is None, vm.stderr.read()
        assert time.monotonic() < end, host.log(name)
        time.sleep(0.005)


@pytest.mark.parametrize("memory", ["512M,page=4k", "512M,page=thp", "512M,shared=on"])
def test_what_comes_meanwhile_is_not_in_it(host, memory, monkeypatch):
    """Pages that the guest makes while memory is written were not there at the instant."""
    code = FRESH.format(top=struct.pack("<I", FRESH_TOP).hex()).replace(" ", "")
    monkeypatch.setattr(test_snapshot, "CODE", bytes.fromhex(code))
    vm = host.boot(memory=memory)
    wait_text(host, "one", vm, lambda text: len(text) >= 20)
    host.snapshot("one", host.folder / "s", "--disks", "copy", "--live", "--threads", "1")
    wait_text(host, "one", vm, lambda text: "D" in text or "X" in text)
    assert "X" not in host.log("one")
    vm.kill()
    vm.wait()
    again = restore(host, host.folder / "s", "--memory", "eager")
    wait_text(host, "two", again, lambda text: "D" in text or "X" in text)
    assert "X" not in host.log("two")


def resident(vm, field):
    text = open(f"/proc/{vm.pid}/status", encoding="utf-8").read()
    return int(re.search(rf"^{field}:\s+(\d+) kB", text, re.M).group(1)) << 10


@pytest.mark.parametrize("memory,field", [("1G,shared=on", "RssShmem"), ("1G,page=4k", "RssAnon")])
def test_makes_no_memory(host, memory, field):
    """What the guest has not touched is still nothing after it."""
    vm = host.boot(memory=memory)
    host.wait_passes("one", vm, 1)
    before = resident(vm, field)
    host.snapshot("one", host.folder / "s", "--disks", "copy", "--live")
    assert resident(vm, field) < before + 64 * MIB


def test_the_vm_ends_meanwhile(host):
    """Killed, told to end, started anew: nobody hangs, and nothing half done is left."""
    for how in ("kill", "end", "reboot"):
        vm = host.boot(how, memory="256M")
        host.wait_passes(how, vm, 1)
        place = host.folder / f"snap-{how}"
        client = subprocess.Popen([os.environ["QUIRE"], "snapshot", how, str(place), "--disks",
                                   "copy", "--live"], env=host.env, stderr=subprocess.PIPE,
                                  text=True)
        end = time.monotonic() + SECONDS
        while not list(host.folder.glob(f".{place.name}.tmp-*/memory")) and client.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.0005)
        if how == "kill":
            vm.kill()
        elif how == "end":
            vm.send_signal(signal.SIGINT)
        else:
            said = host.run("ctl", how, "reboot")
            assert said.returncode == 0 or "a snapshot is being written" in said.stderr
        said = client.communicate(timeout=SECONDS)[1]
        assert client.returncode in (0, 1), said
        assert place.exists() == (client.returncode == 0)
        assert list(host.folder.glob(f".{place.name}.tmp-*")) == []
        if how != "reboot":
            vm.wait(SECONDS)
            continue
        host.wait_passes(how, vm, 2)
        vm.kill()
        vm.wait()


def test_full_disk(host):
    vm = host.boot()
    host.wait_passes("one", vm, 1)
    small = host.folder / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", small],
                      check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        refusal(host.run("snapshot", "one", small / "s", "--disks", "reference", "--live"),
                "writing [a-z0-9_-]+.*No space left on device")
        assert list(small.iterdir()) == []
    finally:
        unmount(small)
    assert follows(host.wait_passes("one", vm, 3))
    assert re.search("Running", host.run("ctl", "one", "info").stdout)
