# SPDX-License-Identifier: Apache-2.0
"""A Linux guest that goes from one host to another and back.

The two are network namespaces, each with a bridge that the guest's tap is a port of. What
joins the bridges is a third, where the guest's peers are. Migration takes a wire of its own,
with the delay and the rate of a network (netem):

    qhost0: tap - br0 - up0 ---- qbr72 ---- up0 - br0 - tap :qhost1
                  wire --------- netem -------- wire

So its address has to be learnt anew on three bridges. test_migrate.py says what the guest
does, and how it is seen to be right.
"""
import json
import pathlib
import re
import subprocess

import pytest

from test_migrate import (BRIDGE, Ears, Traveller, at_work, bridge, line, port_of_guest,  # noqa: F401
                          sh)

HOSTS = ["qhost0", "qhost1"]
PORTS = ["qport0", "qport1"]  # of the bridge between them


def address(number):
    return f"10.73.0.{1 + number % 2}"


def inside(number):
    return ["nsenter", f"--net=/run/netns/{HOSTS[number % 2]}"]


@pytest.fixture(scope="module")
def hosts(bridge):
    for module in ("veth", "sch_netem"):
        sh("modprobe", module)
    for host, port in zip(HOSTS, PORTS):
        sh("ip", "netns", "add", host)
        sh("ip", "link", "add", port, "type", "veth", "peer", "name", "up0", "netns", host)
        sh("ip", "link", "set", port, "master", BRIDGE, "up")
        sh("ip", "-n", host, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        sh("ip", "-n", host, "tuntap", "add", "dev", "tap", "mode", "tap", "vnet_hdr")
        for link in ("up0", "tap"):
            sh("ip", "-n", host, "link", "set", link, "master", "br0", "up")
        sh("ip", "-n", host, "link", "set", "br0", "up")
    sh("ip", "link", "add", "wire", "netns", HOSTS[0], "type", "veth", "peer", "name", "wire",
       "netns", HOSTS[1])
    for number, host in enumerate(HOSTS):
        sh("ip", "-n", host, "addr", "add", f"{address(number)}/24", "dev", "wire")
        sh("ip", "-n", host, "link", "set", "wire", "up")
    yield
    for host in HOSTS:
        sh("ip", "netns", "del", host)


def set_wire(*netem):
    for host in HOSTS:
        sh("tc", "-n", host, "qdisc", "replace", "dev", "wire", "root", "netem", *netem)


def has_left(number):
    """Bytes that the discipline of the wire has let go."""
    said = subprocess.run(["tc", "-s", "-j", "-n", HOSTS[number % 2], "qdisc", "show", "dev",
                           "wire"], check=True, text=True, capture_output=True).stdout
    return next(q["bytes"] for q in json.loads(said) if q["kind"] == "netem")


class Emigrant(Traveller):
    """Each of its processes is on the other host."""

    def tap(self):
        self.within = inside(self.number)
        return "tap"

    def is_ready(self, uri):
        port = int(uri.rsplit(":", 1)[1])
        return re.search(rf"^ *\d+: [0-9A-F]+:{port:04X} [0-9A-F:]+ 0A ",
                         pathlib.Path(f"/proc/{self.vm.pid}/net/tcp").read_text(), re.M)


def test_linux_goes_to_another_host(tmp_path, hosts, line):
    """There over a wire that is slow, its memory before it; back over one that is long, its
    memory behind."""
    ears = Ears()
    with at_work(Emigrant(tmp_path, 2, ["4k", "thp"])) as guest:
        for mode, netem in [("precopy", ["delay", "2ms", "rate", "80mbit"]),
                            ("postcopy", ["delay", "20ms"])]:
            set_wire(*netem)
            before, there = has_left(guest.number), guest.number + 1
            done = guest.move("--mode", mode, "--streams", "2",
                              uri=f"tcp:{address(there)}:{7000 + there}")
            assert done["page_bytes"] > 0
            assert (done["followed_bytes"] > 0) == (mode == "postcopy")
            assert has_left(there - 1) - before >= done["wire_bytes"]
            ears.wait_for_guest()
            guest.wait_here()
            assert port_of_guest() == [PORTS[there % 2]]
    assert (line.accepted, line.wrong) == (1, None) and line.lines > 0
