# SPDX-License-Identifier: Apache-2.0
"""One walking guest, from process to process again and again (test_migrate.py says how it
tells that a page is lost, old or from elsewhere): after each move all of its memory is
checked, and its passes are counted on.

QUIRE_MIGRATE_HUNDRED=1: a hundred moves in each way that there is, which takes an hour;
otherwise one guest goes a few of them in turn.
"""
import itertools
import json
import os
from typing import NamedTuple

import pytest

from test_migrate import (boot, free_port, host, incoming, is_follow_up, migrate,  # noqa: F401
                          unix)
from test_migrate_tls import NAME, certs  # noqa: F401
from test_restore import LONG, wait_for, wait_passes

pytestmark = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                                reason="no usable /dev/kvm")
HUNDRED = "QUIRE_MIGRATE_HUNDRED" in os.environ
FEW = 12
# Prime to the number of ways: no two in a row of that many are alike. Of the first few some
# are of each mode, with all that goes with it.
STRIDE = 21


class Way(NamedTuple):
    """Of moving a VM."""
    mode: str
    tls: bool
    compress: str
    road: str

    def __str__(self):
        return "-".join([self.mode, "tls" if self.tls else "plain", self.compress, self.road])


WAYS = [Way(*way) for way in itertools.product(["precopy", "postcopy", "hybrid"], [False, True],
                                               ["none", "lz4", "zstd"], ["tcp", "unix"])]
# Of memory that is handed over nothing is sent, nor to another host.
WAYS.append(Way("local", False, "none", "unix"))


def follows(host, name):
    """Has its memory followed it, or not (None)? Before "complete" it does not go on."""
    return (host.ask(name, "info").get("migration") or {}).get("postcopy")


def move(host, certs, way, number, **kw):
    """The number-th of its processes takes it from the one before."""
    old, new = f"vm{number - 1}", f"vm{number}"
    uri = unix(host, new) if way.road == "unix" else f"tcp:127.0.0.1:{free_port()}"
    there = ["--tls", certs.server] if way.tls else []
    here = ["--tls", certs.client, "--tls-hostname", NAME] if way.tls else []
    source = host.started[-1]
    incoming(host, new, uri, *there, **kw)
    done = json.loads(migrate(host, old, uri, *here, "--mode", way.mode, "--compress",
                              way.compress, "--streams", number % 3 + 1).stdout)
    assert source.wait(LONG) == 0, host.said(source)
    # The way is the one that was asked for. A hybrid one has nothing to follow if the guest
    # has written nothing lately.
    assert (done["compressed_from_bytes"] > 0) == (way.compress != "none"), done
    assert (done["page_bytes"] == 0) == (way.mode == "local"), done
    assert way.mode == "hybrid" or (done["followed_bytes"] > 0) == (way.mode == "postcopy"), done
    wait_passes(host.dir / f"{new}.log", 2)
    is_follow_up(host, old, new)
    complete = "complete" if way.mode in ("postcopy", "hybrid") else None
    wait_for("all of its memory", lambda: follows(host, new) == complete)


def goes(host, certs, ways, **kw):
    boot(host, "vm0", **kw)
    wait_passes(host.dir / "vm0.log")
    for number, way in enumerate(ways, 1):
        print("move", number, way, flush=True)
        move(host, certs, way, number, **kw)
    wait_passes(host.dir / f"vm{len(ways)}.log", 4)


def test_in_turn(host, certs):
    """Each way to where another came from, with memory that can be handed over as well."""
    ways = [WAYS[i * STRIDE % len(WAYS)] for i in range(1, (len(WAYS) if HUNDRED else FEW) + 1)]
    assert len(set(ways)) == len(ways)
    assert {way.mode for way in ways} == {way.mode for way in WAYS}
    goes(host, certs, ways, cpus=2, mib=8, size="64M", page="4k,shared=on")


@pytest.mark.skipif(not HUNDRED, reason="an hour: QUIRE_MIGRATE_HUNDRED=1")
@pytest.mark.parametrize("way", WAYS if HUNDRED else WAYS[:1], ids=str)
def test_a_hundred_times(host, certs, way):
    page = ["4k", "thp"][WAYS.index(way) // 2 % 2] + (",shared=on" if way.mode == "local" else "")
    goes(host, certs, [way] * 100, cpus=2, mib=8, size="64M", page=page)
