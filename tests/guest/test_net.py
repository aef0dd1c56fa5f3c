# SPDX-License-Identifier: Apache-2.0
"""Network: what a guest and its host send each other arrives, whatever carries it."""
import json
import os
import pathlib
import subprocess
import time

import pytest

from conftest import BOOT_SECONDS, stop, wait_for, wait_listening

NETTEST = pathlib.Path(os.environ["GUEST_TOOLS"]) / "nettest"
PASST = "/usr/bin/passt"
PORT = 5001
MIB = 2**20
# passt has to have a default route; it gives the guest this address, and the
# gateway's leads to the host itself.
OUTSIDE, GATEWAY = "10.71.0.2", "10.71.0.1"


def sh(*argv, check=True):
    return subprocess.run([str(a) for a in argv], check=check, capture_output=True, text=True)


@pytest.fixture(scope="module", autouse=True)
def host():
    """Modules, a network of sorts, and the server of all transfers."""
    if not pathlib.Path("/dev/net/tun").exists():
        sh("modprobe", "tun")
    sh("modprobe", "dummy", check=False)
    sh("ip", "link", "add", "outside", "type", "dummy")
    sh("ip", "addr", "add", f"{OUTSIDE}/24", "dev", "outside")
    sh("ip", "link", "set", "outside", "up")
    sh("ip", "route", "add", "default", "via", GATEWAY)
    server = subprocess.Popen([NETTEST, "serve", str(PORT)], stdout=subprocess.DEVNULL)
    yield
    server.kill()
    server.wait()
    sh("ip", "link", "del", "outside")


def transfers(text):
    """nettest's lines of results in a console."""
    return [json.loads(line) for line in text.replace("\r", "").splitlines()
            if line.startswith('{"sent"')]


def check_transfer(got, mib, streams=1, ways=2):
    assert got["right"], got
    assert got["sent"] + got["received"] == mib * MIB * streams * ways, got


def tap_job(number, transfer, then=""):
    return (f"ip link set eth0 up; ip addr add 10.70.{number}.2/24 dev eth0; "
            f"nettest {transfer} 10.70.{number}.1 {PORT}; r=$?; {then} exit $r")


def tap_options(number, more=""):
    return f"tap=qtap{number},ip=10.70.{number}.1,mask=255.255.255.0{more}"


@pytest.mark.parametrize("number,options,cpus", [
    (0, "", 1), (1, ",num_queues=4", 2), (2, ",offload_csum=off", 1)],
    ids=["default", "two-pairs", "no-offloads"])
def test_tcp_over_tap(quire, number, options, cpus):
    queues = "ls -d /sys/class/net/eth0/queues/rx-* | wc -l; "
    got = quire.run(tap_job(number, "--mib 4 --streams 2 both", queues), cpus=cpus,
                    extra=["--net", tap_options(number, options) + ",mac=02:00:00:00:07:01"])
    assert got.status == 0 and got.job_status == 0, got
    check_transfer(*transfers(got.console), 4, streams=2)
    assert f"\n{cpus if 'queues' in options else 1}\n" in got.console.replace("\r", "")
    device, = got.summary["devices"]
    assert device["id"] == f"net0 (qtap{number}, 02:00:00:00:07:01)"
    assert device["errors"] == 0
    # quire made the interface: it is gone with quire.
    assert not pathlib.Path(f"/sys/class/net/qtap{number}").exists()


def test_host_connects_and_interface_goes_down_and_up(quire):
    """The other direction; and the driver resets the device in between."""
    job = ("ip link set eth0 up; ip addr add 10.70.3.2/24 dev eth0; nettest serve 5002 > /serve & "
           "until grep -q serving /serve; do sleep 0.1; done; echo first; read x; ip link set eth0 down; sleep 1; ip link set eth0 up; "
           "echo 'virtio0' >/sys/bus/virtio/drivers/virtio_net/unbind; "
           "echo 'virtio0' >/sys/bus/virtio/drivers/virtio_net/bind; "
           "ip link set eth0 up; ip addr add 10.70.3.2/24 dev eth0; echo second; read x; exit 0")
    argv = quire.argv(job, extra=["--net", tap_options(3)])
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    for phase in ("first", "second"):
        wait_for(process, phase)
        done = sh(NETTEST, "--mib", 4, "both", "10.70.3.2", 5002, check=False)
        assert done.returncode == 0, done
        check_transfer(json.loads(done.stdout), 4)
        process.stdin.write(b"go\n")
        process.stdin.flush()
    wait_for(process, "quire-guest: exit 0")
    process.stdin.close()
    assert process.wait(BOOT_SECONDS) == 0, process.stderr.read()
    process.stdout.close()
    process.stderr.close()


def test_persistent_tap_of_an_unprivileged_user(quire):
    """Made beforehand for a user; quire needs no privilege and changes nothing."""
    sh("ip", "tuntap", "add", "dev", "qtap5", "mode", "tap", "user", "nobody")
    sh("ip", "addr", "add", "10.70.5.1/24", "dev", "qtap5")
    sh("ip", "link", "set", "qtap5", "up")
    pathlib.Path("/dev/net/tun").chmod(0o666)
    pathlib.Path("/dev/kvm").chmod(0o666)
    argv = quire.argv(tap_job(5, "--mib 2 send"), extra=["--net", "tap=qtap5"])
    done = subprocess.run(["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups",
                           *argv], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          timeout=BOOT_SECONDS, check=False)
    assert done.returncode == 0, done
    check_transfer(*transfers(done.stdout), 2, ways=1)
    refused = subprocess.run(["setpriv", "--reuid", "nobody", "--regid", "nogroup",
                              "--clear-groups", *quire.argv("", extra=["--net", "tap=qtap6"])],
                             capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "qtap6" in refused.stderr and "CAP_NET_ADMIN" in refused.stderr
    assert pathlib.Path("/sys/class/net/qtap5").exists()
    sh("ip", "link", "del", "qtap5")


PASST_UP = (f"ip link set eth0 mtu 65520 up; ip addr add {OUTSIDE}/24 dev eth0; "
            f"ip route add default via {GATEWAY}; ")


def passts():
    return sh("pgrep", "-f", "^/usr/bin/passt", check=False).stdout.split()


def test_tcp_over_passt_that_quire_starts(quire):
    job = (PASST_UP + f"nettest --mib 1 both {GATEWAY} {PORT}; r=$?; nettest serve 5003 & "
           "sleep 1; echo serving; read x; exit $r")
    argv = quire.argv(job, extra=["--net", "passt,tcp_ports=5003"])
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    seen = wait_for(process, "nettest: serving")
    check_transfer(*transfers(seen), 1)
    assert len(passts()) == 1
    done = sh(NETTEST, "--mib", 1, "both", "127.0.0.1", 5003, check=False)
    assert done.returncode == 0, done
    check_transfer(json.loads(done.stdout), 1)
    # However quire ends, passt ends with it.
    stop(process)
    deadline = time.monotonic() + BOOT_SECONDS
    while passts() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not passts()


def start_passt(path):
    """As our user: else it becomes nobody, whose socket a quire without capabilities cannot
    connect to again."""
    process = subprocess.Popen([PASST, "--foreground", "--quiet", "--socket", path,
                                "--runas", f"{os.getuid()}:{os.getgid()}"],
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    wait_listening(path, process)  # quire connects once
    return process


def test_passt_at_a_socket_goes_and_comes_back(quire):
    path = "/tmp/quire-test-passt.socket"
    passt = start_passt(path)
    job = (PASST_UP + f"nettest --mib 1 send {GATEWAY} {PORT} || exit 1; echo phase one; "
           "while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 1; done; "
           "echo link down; "
           "while [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 1; done; "
           f"echo link up; nettest --mib 1 recv {GATEWAY} {PORT}")
    process = quire.start(job, extra=["--net", f"socket={path}"])
    try:
        seen = wait_for(process, "phase one")
        check_transfer(*transfers(seen), 1, ways=1)
        passt.kill()
        passt.wait()
        os.unlink(path)
        wait_for(process, "link down")
        passt = start_passt(path)
        seen = wait_for(process, "quire-guest: exit 0")
        assert "link up" in seen, seen
        check_transfer(*transfers(seen), 1, ways=1)
        assert process.wait(BOOT_SECONDS) == 0
        errors = process.stderr.read().decode()
        assert "connection lost" in errors, errors
    finally:
        passt.kill()
        passt.wait()
        os.path.exists(path) and os.unlink(path)
        process.kill()
        process.communicate()


def test_rate_limit_holds(quire):
    """Counts, not times: in the time of a transfer no more passes than was allowed."""
    limit = ",bw_size=262144,bw_refill_time=1000"
    got = quire.run(tap_job(4, "--mib 1 send"), extra=["--net", tap_options(4, limit)])
    assert got.status == 0 and got.job_status == 0, got
    result, = transfers(got.console)
    check_transfer(result, 1, ways=1)
    # The bucket's content, and what came meanwhile; payload is less than what was counted.
    assert result["sent"] <= 262144 * (1 + result["seconds"]) + 65536, result
