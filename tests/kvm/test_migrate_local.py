# SPDX-License-Identifier: Apache-2.0
"""Migration on one host by handing memory over (test_migrate.py says how the walking
guest tells that a page is lost, old or from elsewhere)."""
import json
import os
import re
import signal
import subprocess
import threading

import pytest

from test_migrate import (MIB, Relay, boot, free_port, host, incoming, is_follow_up,  # noqa: F401
                          is_in_doubt, migrate, refused, runs, unix, vm_args)
from test_migrate_tls import certs  # noqa: F401
from test_restore import LONG, QUIRE, log, passes, wait_for, wait_passes

pytestmark = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                                reason="no usable /dev/kvm")
STEPS = ["MACHINE", "ACCEPT", "MEMORY", "STATE", "READY", "LOADED", "COMMIT", "RUNNING"]


def move(host, before, after, *args, **kw):
    uri = unix(host, after)
    incoming(host, after, uri, **kw)
    return json.loads(migrate(host, before, uri, "--mode", "local", *args).stdout)


@pytest.mark.parametrize("cpus,page", [(1, "4k,shared=on"), (3, "thp,shared=on")])
def test_goes_on(host, cpus, page):
    """From process to process, and nothing of memory is sent."""
    kw = {"cpus": cpus, "page": page}
    source = boot(host, **kw)
    wait_passes(host.dir / "one.log")
    names = ["one", "two", "three", "four"]
    for before, after in zip(names, names[1:]):
        done = move(host, before, after, **kw)
        assert done["page_bytes"] == done["zero_bytes"] == done["rounds"] == 0
        assert done["wire_bytes"] < MIB
        wait_passes(host.dir / f"{after}.log", 3)
        is_follow_up(host, before, after)
    assert source.wait(LONG) == 0, host.said(source)


def test_both_ways(host):
    """Its memory is one like any other's: sent from there, and taken from there again."""
    page = "4k,shared=on"
    boot(host, page=page)
    wait_passes(host.dir / "one.log")
    move(host, "one", "two", page=page)
    wait_passes(host.dir / "two.log", 2)
    uri = unix(host, "three")
    incoming(host, "three", uri, page=page)
    assert json.loads(migrate(host, "two", uri).stdout)["page_bytes"] >= 24 * MIB
    wait_passes(host.dir / "three.log", 2)
    # There is nothing to be compressed, and nothing to say about it.
    move(host, "three", "four", "--compress", "lz4", page=page)
    wait_passes(host.dir / "four.log", 3)
    is_follow_up(host, "three", "four")


def test_paused(host):
    page = "4k,shared=on"
    boot(host, page=page)
    wait_passes(host.dir / "one.log")
    host.ask("one", "pause")
    move(host, "one", "two", page=page)
    assert host.state("two") == "Paused"
    host.ask("two", "resume")
    wait_passes(host.dir / "two.log", 3)
    is_follow_up(host, "one", "two")


def test_refused(host, certs):
    """By whom it cannot be: memory that is nobody else's, another kind, a network."""
    boot(host)
    uri = unix(host, "two")
    incoming(host, "two", uri)
    refused(migrate(host, "one", uri, "--mode", "local", check=False), "shared=on")
    boot(host, name="three", page="4k,shared=on")
    uri = unix(host, "four")
    vm = incoming(host, "four", uri)
    refused(migrate(host, "three", uri, "--mode", "local", check=False), "not shared")
    assert vm.wait(LONG) == 1
    uri = f"tcp:127.0.0.1:{free_port()}"
    done = migrate(host, "three", uri, "--mode", "local", check=False)
    assert done.returncode == 2 and "Unix socket" in done.stderr
    done = migrate(host, "three", unix(host, "x"), "--mode", "local", "--tls", certs.client,
                   "--tls-hostname", "x", check=False)
    assert done.returncode == 2 and "without --tls" in done.stderr
    for name in ("one", "three"):
        wait_passes(host.dir / f"{name}.log", 3)


def resume_unless_it_ran(host, cut):
    """A guest does not go on with memory in which it has run meanwhile. Right behind
    COMMIT nobody can say whether it did."""
    done = host.quire("ctl", "one", "resume", check=False)
    if cut == "RUNNING":
        assert done.returncode == 1
    if cut not in ("COMMIT", "RUNNING"):
        assert done.returncode == 0, done.stderr
    if done.returncode:
        assert "has run on this memory" in done.stderr and host.state("one") == "Paused"


@pytest.mark.parametrize("who", ["source", "destination", "link"])
@pytest.mark.parametrize("cut", STEPS)
def test_cut(host, cut, who):
    """Right after the message has passed somebody is killed: at most one side runs, and
    what the other did to the memory they had together is not seen."""
    page = "4k,shared=on"
    source = host.start("run", *vm_args(host, "one", page=page))
    wait_passes(host.dir / "one.log")
    vm = incoming(host, "two", unix(host, "two"), page=page)

    def act(relay):
        victim = {"source": source, "destination": vm}.get(who)
        if victim:
            victim.kill()
            victim.wait()
        relay.hang_up()
    relay = Relay(f"{host.dir}/relay", unix(host, "two")[5:], cut, act, True)
    try:
        done = migrate(host, "one", f"unix:{host.dir}/relay", "--mode", "local", check=False)
        wait_for("the message", lambda: relay.acted)
    finally:
        relay.close()
    if who != "source" and runs(host, "one", source):
        assert done.returncode == 1 and not (who == "link" and runs(host, "two", vm))
        if cut in ("COMMIT", "RUNNING") or is_in_doubt(cut, True, done):
            assert "may run at" in done.stderr and host.state("one") == "Paused"
            if who == "destination":
                resume_unless_it_ran(host, cut)
        if host.state("one") == "Running":
            wait_passes(host.dir / "one.log", 3)
    if who != "destination" and cut in ("COMMIT", "RUNNING"):
        wait_passes(host.dir / "two.log", 3)
        is_follow_up(host, "one", "two")
    for name in ("one", "two"):
        passes(host.dir / f"{name}.log")  # none of them found a bad page


def test_memory_is_one(host):
    """While both have it mapped there is one copy of it, and afterwards."""
    page = "4k,shared=on"
    source = boot(host, mib=48, page=page)
    wait_passes(host.dir / "one.log")
    move(host, "one", "two", mib=48, page=page)
    assert source.wait(LONG) == 0, host.said(source)  # half of it were its
    wait_passes(host.dir / "two.log", 2)
    pid = host.started[-1].pid
    smaps = open(f"/proc/{pid}/smaps_rollup").read()
    shmem = int(re.search(r"^Pss_Shmem:\s+(\d+)", smaps, re.M)[1])
    assert 48 << 10 <= shmem < 64 << 10


def test_it_ran_there(host):
    """The last word got lost: as long as it runs there, and after, it does not go on here."""
    page = "4k,shared=on"
    boot(host, page=page)
    wait_passes(host.dir / "one.log")
    there = incoming(host, "two", unix(host, "two"), page=page)
    relay = Relay(f"{host.dir}/relay", unix(host, "two")[5:], "RUNNING", Relay.hang_up, False)
    try:
        done = migrate(host, "one", f"unix:{host.dir}/relay", "--mode", "local", check=False)
    finally:
        relay.close()
    assert done.returncode == 1 and "may run at" in done.stderr
    wait_passes(host.dir / "two.log", 3)
    # Neither does it where it may be moved to next.
    move(host, "two", "three", page=page)
    assert there.wait(LONG) == 0
    wait_passes(host.dir / "three.log", 3)
    host.started[-1].kill()
    host.started[-1].wait()
    for verb in (["ctl", "one", "resume"], ["snapshot", "one", host.dir / "snapshot"],
                 ["migrate", "one", unix(host, "four"), "--mode", "local"]):
        if verb[0] == "migrate":
            incoming(host, "four", unix(host, "four"), page=page)
        done = host.quire(*verb, check=False)
        assert done.returncode == 1 and "has run on this memory" in done.stderr, done.stderr
        assert host.state("one") == "Paused"
    is_follow_up(host, "one", "two")
    is_follow_up(host, "two", "three")
    # With fresh memory it is a VM like any other.
    said = len(passes(host.dir / "one.log"))
    host.ask("one", "reboot")
    wait_for("the guest", lambda: len(passes(host.dir / "one.log")) > said)


def client_of(host):
    argv = [QUIRE, "migrate", "one", f"unix:{host.dir}/relay", "--mode", "local"]
    return subprocess.Popen(argv, env=host.env, text=True, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("cut", STEPS[:-2])
def test_interrupted(host, cut):
    """Ctrl-C while the next word is waited for: it goes on here, and nowhere else."""
    page = "4k,shared=on"
    boot(host, page=page)
    wait_passes(host.dir / "one.log")
    vm = incoming(host, "two", unix(host, "two"), page=page)
    clients = []

    def act(relay):
        wait_for("the command", lambda: clients)
        clients[0].send_signal(signal.SIGINT)

    relay = Relay(f"{host.dir}/relay", unix(host, "two")[5:], cut, act, False)
    try:
        clients.append(client_of(host))
        said = clients[0].communicate(timeout=LONG)[1]
        assert relay.acted and clients[0].returncode == 128 + signal.SIGINT, said
    finally:
        relay.close()
    wait_passes(host.dir / "one.log", 3)
    if cut != "MACHINE":
        assert vm.wait(LONG) == 1
    assert log(host.dir / "two.log") == ""
    # Nothing of it is left that were in the way of the next.
    move(host, "one", "three", page=page)
    wait_passes(host.dir / "three.log", 3)
    is_follow_up(host, "one", "three")


@pytest.mark.skipif("QUIRE_MIGRATE_SLOW" not in os.environ,
                    reason="more than a minute: QUIRE_MIGRATE_SLOW=1")
def test_takes_longer_than_silence_may(host):
    """Of much memory it takes a while to map it there. The streams say nothing meanwhile."""
    page = "4k,shared=on"
    boot(host, page=page)
    wait_passes(host.dir / "one.log")
    vm = incoming(host, "two", unix(host, "two"), page=page)

    def act(relay):
        vm.send_signal(signal.SIGSTOP)
        threading.Timer(65, vm.send_signal, (signal.SIGCONT,)).start()
    relay = Patient(f"{host.dir}/relay", unix(host, "two")[5:], "ACCEPT", act, True)
    try:
        client = client_of(host)
        said = client.communicate(timeout=3 * LONG)[1]
        assert client.returncode == 0, said
    finally:
        relay.close()
    wait_passes(host.dir / "two.log", 3)
    is_follow_up(host, "one", "two")


class Patient(Relay):
    """Goes on to pass on what comes."""

    def messages(self, x, y):
        while True:
            super().messages(x, y)
            if not self.acted or self.cut is None:
                return
            self.cut = None
