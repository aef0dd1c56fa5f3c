# SPDX-License-Identifier: Apache-2.0
"""Fifty times in a row into a snapshot and back, with the commands.

guest/probe/walker.elf checks and changes its memory for ever, and says so on its
console: a page that is lost, old or from elsewhere is found in the pass after.
Each cycle ends the VM and goes on from the snapshot in another process.

QUIRE_CYCLES=all has fifty in each way for each kind of page and number of vCPUs, which
takes an hour; otherwise the ways take turns.
"""
import itertools
import os
import pathlib
import re
import shutil
import subprocess
import time

import pytest

BUILD = pathlib.Path(os.environ.get("QUIRE_BUILD", "build"))
QUIRE = pathlib.Path(os.environ.get("QUIRE", BUILD / "quire")).resolve()
WALKER = (BUILD / "guest/probe/walker.elf").resolve()
CYCLES = 50
LONG = 60
MODES = ["private", "eager", "lazy", "working-set"]


def ways(page):
    """How memory of such pages can come back; test_restore.py has what is refused."""
    return MODES[1:] if page == "2m" else MODES


def combinations():
    """(vCPUs, page, modes that take turns)"""
    if os.environ.get("QUIRE_CYCLES") == "all":
        return [(cpus, page, [mode]) for cpus, page in
                itertools.product([1, 2, 3, 4], ["4k", "thp", "2m"]) for mode in ways(page)]
    return [(cpus, page, ways(page)) for cpus, page in
            [(1, "4k"), (2, "thp"), (3, "4k"), (4, "thp"), (1, "2m"), (4, "2m")]]


class Chain:
    """One guest, and the processes that it has lived in."""

    def __init__(self, folder):
        self.dir = folder
        self.serial = folder / "serial"
        self.env = {**os.environ, "QUIRE_RUNTIME_DIR": str(folder / "run")}
        self.vm = None
        self.snapshot = None
        self.last = 0  # pass

    def said(self):
        return (self.dir / "err").read_text()[-2000:]

    def start(self, *args):
        with open(self.dir / "err", "w") as err:
            self.vm = subprocess.Popen([QUIRE, *map(str, args)], env=self.env,
                                       stdin=subprocess.DEVNULL, stdout=err, stderr=err)

    def console(self):
        text = self.serial.read_text(errors="replace") if self.serial.exists() else ""
        assert "BAD" not in text, text[-300:]
        return text

    def passes(self):
        return [int(n) for n in re.findall(r"walker: pass (\d+)\n", self.console())]

    def wait(self, what, condition):
        end = time.monotonic() + LONG
        while not (result := condition()):
            assert self.vm.poll() is None, f"{what}: quire ended: {self.said()}"
            assert time.monotonic() < end, f"waited for {what}: {self.console()[-300:]}"
            time.sleep(0.005)
        return result

    def wait_passes(self):
        """Two, so that all of memory was checked once since it came here."""
        seen = self.wait("passes", lambda: [n for n in self.passes() if n > self.last][1:])
        # From where it was: a guest that began anew would count from 1.
        assert seen[-1] > self.last
        self.last = seen[-1]

    def save(self, number):
        path = self.dir / f"snap{number}"
        done = subprocess.run([QUIRE, "snapshot", "walker", path], env=self.env, text=True,
                              capture_output=True, timeout=LONG, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        self.snapshot, old = path, self.snapshot
        if old:
            shutil.rmtree(old)

    def end(self):
        if self.vm:
            self.vm.kill()
            self.vm.wait(LONG)

    def restore(self, mode, *args):
        # It went on after the snapshot; what it did then is forgotten, with no word of farewell.
        self.end()
        self.serial.unlink()
        self.start("restore", self.snapshot, "--as", "walker", "--memory", mode, *args)

    def cycle(self, number, mode):
        self.save(number)
        if mode == "working-set":  # which is recorded by one and used by the next
            self.restore(mode, "--record", "1")
            self.wait("the recorded set", (self.snapshot / "working-set").exists)
        self.restore(mode)
        self.wait_passes()


@pytest.mark.parametrize("cpus,page,modes", combinations(),
                         ids=lambda v: "-".join(v) if isinstance(v, list) else str(v))
def test_fifty_cycles(tmp_path, hugetlb, cpus, page, modes):
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no usable /dev/kvm")
    assert WALKER.exists(), f"no {WALKER}"
    if page == "2m":
        hugetlb(128)  # one that ends, and the next
    chain = Chain(tmp_path)
    chain.start("run", "--kernel", WALKER, "--cmdline", "mib=16", "--cpus", f"boot={cpus}",
                "--memory", f"size=64M,page={page}", "--serial", f"file={chain.serial}",
                "--name", "walker")
    try:
        chain.wait_passes()
        for number in range(CYCLES):
            chain.cycle(number, modes[number % len(modes)])
    finally:
        chain.end()
    print(f"{CYCLES} cycles, {chain.last} passes")
