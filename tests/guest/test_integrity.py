# SPDX-License-Identifier: Apache-2.0
"""A Linux guest that verifies itself goes into a snapshot and back, again and again.

Its memory, its disk, its network (TCP streams with the host, whose every byte is checked)
and its timers are at work all the time; each time it comes back, all four have to get on
before the next snapshot. The VM is killed after each, so that nothing is left of it.

QUIRE_LINUX_CYCLES=N does all ways for 1, 2 and 4 vCPUs, N times each; without it two of
them, once. QUIRE_LINUX_FIFTY=1 has one guest go through fifty, in all ways in turn.
"""
import base64
import itertools
import os
import pathlib
import re
import shutil
import subprocess
import time

import pytest

from conftest import hang_report

SECONDS = 300  # a hang, not a slow machine
CYCLES = int(os.environ.get("QUIRE_LINUX_CYCLES", "1"))
MODES = ["private", "eager", "lazy", "working-set"]
PAGES = ["4k", "thp", "2m"]
NETTEST = pathlib.Path(os.environ["GUEST_TOOLS"]) / "nettest"
MIB = 1 << 20
PORT = 5001
POOL = pathlib.Path("/proc/sys/vm/nr_hugepages")

# What nettest may complain of though nothing is wrong: nobody is there yet. And the host's end
# of a connection may have come to its end after the snapshot: there is none then, and it is
# reset by the host when a restored guest goes on in the middle of it.
# A transfer may take 10 s, or the connection's other end is no more; the next has longer, on a
# host so slow that none is done by then.
FORGIVEN = "ok=': connect: '\n"
FORGIVEN_RESTORED = "ok=': connect: |reset by peer|not connected|Broken pipe|receipt: '\n"

WORK = """
dmesg -c > /dev/null
ip link set eth0 up; ip addr add 10.72.0.2/24 dev eth0
( n=0; while dd if=/dev/zero of=/dev/vda bs=1M count=4 conv=fsync 2> /dev/null &&
	blkverify --ops 40 --mib 4 --seed $n /dev/vda > /tmp/disk 2>&1; do
	n=$((n + 1)); echo "disk $n"
  done; echo "BAD disk"; cat /tmp/disk ) &
( head -c 4000000 /dev/urandom > /tmp/m; sum=$(md5sum < /tmp/m); n=0
  while [ "$(md5sum < /tmp/m)" = "$sum" ]; do
	n=$((n + 1)); echo "memory $n"; usleep 100000
  done; echo "BAD memory" ) &
( n=0; t=10; while :; do
	timeout $t nettest --mib 1 both 10.72.0.1 5001 > /tmp/net 2>&1
	if grep -q '"right": true' /tmp/net; then n=$((n + 1)); t=10; echo "network $n"
	elif grep nettest: /tmp/net | grep -qvE "$ok"; then echo "BAD network"; cat /tmp/net
	else t=$((t * 2)); fi
	usleep 100000
  done ) &
( while :; do sleep 3
	dmesg -c | grep -iE 'lockup|stall|hung task|error|irq .*nobody|BUG|Oops' | sed 's/^/BAD /'
  done ) &
i=0
while :; do
	read up rest < /proc/uptime; echo "tick $i $up"; usleep 200000; i=$((i + 1))
done
"""


def combinations():
    """(vCPUs, page, modes that take turns)"""
    if "QUIRE_LINUX_CYCLES" not in os.environ:
        # test_snapshot.py has more, with one and two.
        return [(2, "2m", ["lazy"]), (4, "thp", ["private"])]
    # Each number of vCPUs and each mode meet, and each mode with each page that it can have.
    pages = itertools.cycle(PAGES)
    found = []
    for cpus, mode in itertools.product([1, 2, 4], MODES):
        page = next(pages)
        if (mode, page) == ("private", "2m"):
            page = "thp"
        found.append((cpus, page, [mode]))
    return found


@pytest.fixture(scope="module", autouse=True)
def server():
    if not pathlib.Path("/dev/net/tun").exists():
        subprocess.run(["modprobe", "tun"], check=True)
    process = subprocess.Popen([NETTEST, "serve", str(PORT)], stdout=subprocess.DEVNULL)
    yield
    process.kill()
    process.wait()


@pytest.fixture
def hugetlb():
    """hugetlb(MIB): so much in 2M pages, until the test is over."""
    before = POOL.read_text()

    def reserve(mib):
        POOL.write_text(str(int(before) + mib // 2))
        if int(POOL.read_text()) < int(before) + mib // 2:
            pytest.skip(f"the host does not have {mib} MiB in 2M pages")
    yield reserve
    POOL.write_text(before)


class Chain:
    """One guest, and the processes that it has lived in."""

    def __init__(self, folder):
        self.folder = folder
        self.env = {**os.environ, "QUIRE_RUNTIME_DIR": str(folder / "run")}
        self.vm = self.disk = self.snapshot = self.before = None
        self.within = []  # a command that runs quire somewhere else
        self.number = 0
        self.began = 0  # of the restored process

    @property
    def log_path(self):
        return self.folder / f"log{self.number}"

    def log(self):
        return self.log_path.read_text(errors="replace").replace("\r", "")

    def said(self):
        return (self.folder / "err").read_text()[-2000:]

    def start(self, *argv):
        with open(self.log_path, "wb") as out, open(self.folder / "err", "w") as err:
            self.vm = subprocess.Popen([*self.within, os.environ["QUIRE"], *map(str, argv)],
                                       env=self.env, stdin=subprocess.DEVNULL, stdout=out,
                                       stderr=err)

    def boot(self, cpus, page):
        self.disk = self.folder / "disk0.img"
        with open(self.disk, "wb") as f:
            f.truncate(16 * MIB)
        words = "console=ttyS0 quiet panic=-1 quire.run64=" + \
            base64.b64encode((FORGIVEN_RESTORED + WORK).encode()).decode()
        self.start("run", "--name", "vm", "--kernel", os.environ["GUEST_KERNEL"],
                   "--initramfs", os.environ["GUEST_INITRD"], "--cpus", f"boot={cpus}",
                   "--memory", f"size=128M,page={page}", "--cmdline", words,
                   "--disk", f"path={self.disk}", "--rng", "kernel",
                   "--net", "tap=qtap72,ip=10.72.0.1,mask=255.255.255.0,mac=02:00:00:00:72:02")

    def numbers(self, what):
        return [int(n) for n in re.findall(rf"^{what} (\d+)\b.*\n", self.log(), re.M)]

    def wait(self, what, condition):
        end = time.monotonic() + SECONDS
        while not (result := condition()):
            log = self.log()
            assert "BAD" not in log, log[-2000:]
            assert self.vm.poll() is None, f"{what}: quire ended: {self.said()} {log[-2000:]}"
            if time.monotonic() >= end:
                pytest.fail(f"waited for {what}: {log[-2000:]}\n{hang_report(self.vm.pid)}")
            time.sleep(0.2)
        return result

    def wait_work(self, num=1):
        """Each kind of work gets on, from where it was, and nothing of it is wrong."""
        for what in ("disk", "memory", "network", "tick"):
            self.wait(what, lambda w=what: len(self.numbers(w)) > num)
        ticks = [(int(i), float(up)) for i, up in
                 re.findall(r"^tick (\d+) ([\d.]+)\n", self.log(), re.M)]
        assert [i for i, _ in ticks] == list(range(ticks[0][0], ticks[0][0] + len(ticks)))
        assert [up for _, up in ticks] == sorted(up for _, up in ticks)
        if self.before:
            # Counters and clock go on from a moment that the VM before has seen.
            # The clock has gone on for as long as its process has been there, at most.
            first, up = ticks[0]
            assert 0 < first <= max(self.before) + 1
            ran = time.monotonic() - self.began
            assert 0 <= up - self.before[first - 1] < max(30, ran)
        return ticks

    def save(self):
        old, self.snapshot = self.snapshot, self.folder / f"snap{self.number}"
        done = subprocess.run([os.environ["QUIRE"], "snapshot", "vm", self.snapshot, "--disks",
                               "copy"], env=self.env, text=True, capture_output=True,
                              timeout=SECONDS, stdin=subprocess.DEVNULL, check=False)
        assert done.returncode == 0, done.stderr
        # It goes on after that, and what it does then is forgotten.
        count = len(self.numbers("tick"))
        self.wait("a tick after the snapshot", lambda: len(self.numbers("tick")) > count)
        self.before = {int(i): float(up) for i, up in
                       re.findall(r"^tick (\d+) ([\d.]+)\n", self.log(), re.M)}
        if old:
            shutil.rmtree(old)

    def end(self):
        if self.vm:
            self.vm.kill()
            self.vm.wait()

    def restore(self, mode, *args):
        self.end()
        self.disk.unlink()
        self.number += 1
        self.began = time.monotonic()
        self.disk = self.folder / f"disk{self.number}.img"
        self.start("restore", self.snapshot, "--as", "vm", "--memory", mode, "--set",
                   f"_disk0.path={self.disk}", *args)

    def cycle(self, mode):
        self.save()
        if mode == "working-set":  # recorded by one, used by the next
            self.restore(mode, "--record", "1")
            self.wait("the recorded set", (self.snapshot / "working-set").exists)
        self.restore(mode)
        self.wait_work()


@pytest.mark.parametrize("cpus,page,modes", combinations(),
                         ids=lambda v: "-".join(v) if isinstance(v, list) else str(v))
def test_goes_on_again_and_again(tmp_path, hugetlb, cpus, page, modes):
    if page == "2m":
        hugetlb(2 * 128)
    chain = Chain(tmp_path)
    chain.boot(cpus, page)
    try:
        chain.wait_work()
        for number in range(CYCLES):
            chain.cycle(modes[number % len(modes)])
        print(f"{CYCLES} cycles; {chain.log()[-300:]}")
    finally:
        chain.end()


@pytest.mark.skipif("QUIRE_LINUX_FIFTY" not in os.environ,
                    reason="twenty minutes and more: QUIRE_LINUX_FIFTY=1")
def test_fifty_in_a_row(tmp_path):
    """One guest with two vCPUs, in all modes in turn."""
    chain = Chain(tmp_path)
    chain.boot(2, "thp")
    try:
        chain.wait_work()
        for number in range(50):
            chain.cycle(MODES[number % len(MODES)])
            print("cycle", number, flush=True)
    finally:
        chain.end()
