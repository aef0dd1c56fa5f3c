# SPDX-License-Identifier: Apache-2.0
"""Snapshots that hold only what the guest wrote since another: what is in them, byte for byte
against a whole one of the same instant; that they come back in every way; and when they are
refused."""
import json
import shutil
import signal
import struct
import subprocess

import pytest

from host_kit import unmount
from test_snapshot import (MIB, PAGES, follows, host, needs_kvm, refusal,  # noqa: F401
                           restore, slow_snapshot)

pytestmark = needs_kvm
UNKNOWN = "nobody has noted what the guest wrote since"


def runs(place):
    raw = (place / "memory.map").read_bytes()
    return [struct.unpack_from("<QQ", raw, at) for at in range(32, len(raw), 16)]


def memory_of(place):
    """All of guest memory as a snapshot and those below it have it."""
    manifest = json.loads((place / "manifest.json").read_text())
    own = (place / "memory").read_bytes()
    if manifest["memory"]["layout"] == "whole":
        return bytearray(own)
    whole = memory_of((place / manifest["parent"]["path"]).resolve())
    for start, length in runs(place):
        whole[start:start + length] = own[start:start + length]
    return whole


def differ(a, b):
    return [hex(at) for at in range(0, len(a), 4096) if a[at:at + 4096] != b[at:at + 4096]]


def info(host, name):
    return json.loads(host.run("ctl", name, "info").stdout)


def chain(host, vm, *options, name="one", length=3):
    """A whole snapshot and increments, the guest running on between them."""
    places = [host.folder / f"{name}-s{i}" for i in range(length)]
    reports = [host.snapshot(name, places[0], "--disks", "copy", "--track", *options)]
    for i in range(1, length):
        assert follows(host.wait_passes(name, vm, 2))
        reports.append(host.snapshot(name, places[i], "--disks", "copy", "--track", "--parent",
                                     places[i - 1], *options))
    return places, reports


@pytest.mark.parametrize("memory", ["64M", "64M,page=thp", "64M,shared=on"])
def test_has_what_was_written(host, memory):
    """The guest's own stores, and those of quire for it."""
    vm = host.boot(memory=memory)
    host.wait_passes("one", vm, 3)
    places, reports = chain(host, vm)
    assert reports[0]["layout"] == "whole" and reports[0]["data_bytes"] > PAGES * 4096
    for before, report in zip(reports, reports[1:]):
        assert report["layout"] == "delta" and report["parent_id"] == before["id"]
        # All that the guest writes, and little else: not the kernel, not the tables.
        assert PAGES * 4096 <= report["data_bytes"] < reports[0]["data_bytes"]
    assert info(host, "one")["tracked_since"] == [r["id"] for r in reports]
    host.wait_passes("one", vm, 1)
    assert host.run("ctl", "one", "pause").returncode == 0
    assert host.run("ctl", "one", "renew-generation-id").returncode == 0
    last, whole, upon_first = (host.folder / n for n in ("last", "whole", "upon-first"))
    host.snapshot("one", last, "--disks", "copy", "--parent", places[2])
    host.snapshot("one", whole, "--disks", "copy")
    assert differ(memory_of(last), memory_of(whole)) == []
    assert (last / "memory.sums").read_bytes() == (whole / "memory.sums").read_bytes()
    # An older one is as good a parent.
    host.snapshot("one", upon_first, "--disks", "copy", "--parent", places[0])
    assert differ(memory_of(upon_first), memory_of(whole)) == []
    # Nothing was written since.
    assert host.snapshot("one", host.folder / "none", "--disks", "copy", "--track", "--parent",
                         places[2])["layout"] == "delta"
    report = host.snapshot("one", host.folder / "empty", "--disks", "copy", "--parent",
                           host.folder / "none")
    assert report["data_bytes"] <= 4096, report
    assert differ(memory_of(host.folder / "empty"), memory_of(whole)) == []


@pytest.mark.parametrize("memory", ["private", "eager", "lazy", "working-set"])
def test_comes_back(host, memory):
    vm = host.boot()
    host.wait_passes("one", vm, 2)
    places, _ = chain(host, vm)
    vm.kill()
    vm.wait()
    for i, place in enumerate(places):
        again = restore(host, place, "--memory", memory, name=f"back{i}")
        assert follows(host.wait_passes(f"back{i}", again, 3))
    # One that came back is a VM of its own, and can be a parent's again.
    refusal(host.run("snapshot", "back2", host.folder / "no", "--disks", "copy", "--parent",
                     places[2]), UNKNOWN)
    chain(host, again, name="back2", length=2)


def test_when_it_is_refused(host):
    vm = host.boot()
    host.wait_passes("one", vm, 1)
    first, second = host.folder / "first", host.folder / "second"
    report = host.snapshot("one", first, "--disks", "copy")
    refused = ("snapshot", "one", second, "--disks", "copy", "--parent")
    refusal(host.run(*refused, first), f"{UNKNOWN} {report['id']}")
    refusal(host.run(*refused, host.folder / "none"), "--parent .*none: No such file")
    refusal(host.run(*refused, host.folder), "manifest.json: No such file")
    tracked = host.snapshot("one", host.folder / "third", "--disks", "copy", "--track")
    refusal(host.run(*refused, first),
            f"is noted since {tracked['id']} was taken, not since {report['id']}")
    # What it would lose its parent by.
    refusal(host.run("snapshot", "one", host.folder / "third", "--disks", "copy", "--replace",
                     "--parent", host.folder / "third"), "increment of what it replaces")
    # Nor of what rests upon that.
    report = host.snapshot("one", host.folder / "fourth", "--disks", "copy", "--track",
                           "--parent", host.folder / "third")
    if report["layout"] == "delta":
        refusal(host.run("snapshot", "one", host.folder / "third", "--disks", "copy", "--replace",
                         "--parent", host.folder / "fourth"), "its parent rests upon that")
    # A damaged parent; one of its checksums is not memory's business.
    shutil.copytree(host.folder / "third", host.folder / "bad")
    with open(host.folder / "bad/memory.sums", "r+b") as f:
        f.seek(40)
        f.write(b"damaged!")
    refusal(host.run(*refused, host.folder / "bad"), "memory.sums: .*offset ")
    # Never again is it noted, once that is said, or the guest starts anew.
    host.snapshot("one", host.folder / "untracked", "--disks", "copy", "--untrack")
    assert "tracked_since" not in info(host, "one")
    refusal(host.run(*refused, host.folder / "third"), UNKNOWN)
    host.snapshot("one", host.folder / "fifth", "--disks", "copy", "--track")
    assert host.run("ctl", "one", "reboot").returncode == 0
    refusal(host.run(*refused, host.folder / "fifth"), UNKNOWN)
    assert not second.exists()
    host.wait_passes("one", vm, 1)


def test_memory_of_another_size(host):
    vm = host.boot()
    other = host.start(
        "two.log", "run", "--name", "two", "--kernel", host.folder / "kernel.elf", "--memory",
        "80M")
    host.wait_passes("one", vm, 1)
    host.wait_passes("two", other, 1)
    host.snapshot("one", host.folder / "first", "--disks", "copy", "--track")
    refusal(host.run("snapshot", "two", host.folder / "s", "--parent", host.folder / "first"),
            UNKNOWN)


def test_elsewhere_and_over_the_api(host):
    """A parent in another directory; files made by quire itself."""
    allowed = host.folder / "allowed"
    (allowed / "deep").mkdir(parents=True)
    vm = host.boot("one", "--landlock-rules", f"path={allowed},access=rw")
    host.wait_passes("one", vm, 1)
    base = allowed / "deep/base"
    host.snapshot("one", base, "--disks", "copy", "--track")
    link = host.folder / "link"
    link.symlink_to(allowed / "deep")
    for i, argv in enumerate([(), ("--direct",)]):
        host.wait_passes("one", vm, 1)
        for place, path in [(allowed / f"far{i}", str(base)), (link / f"near{i}", "../base")]:
            host.snapshot("one", place, "--disks", "copy", "--parent", link / "base", *argv)
            manifest = json.loads((place / "manifest.json").read_text())
            assert manifest["parent"]["path"] == path, (place, argv)
            again = restore(host, place, name=f"back-{place.name}")
            assert follows(host.wait_passes(f"back-{place.name}", again, 2))


def test_no_longer_than_that(host):
    vm = host.boot()
    host.wait_passes("one", vm, 1)
    places, _ = chain(host, vm, length=16)
    refusal(host.run("snapshot", "one", host.folder / "more", "--disks", "copy", "--parent",
                     places[-1]), "rests on 15 others")
    again = restore(host, places[-1])
    assert follows(host.wait_passes("two", again, 2))


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGKILL])
def test_interrupted(host, sig):
    """One that was not finished is nothing; the next has what it would have had."""
    vm = host.boot()
    host.wait_passes("one", vm, 1)
    base, place = host.folder / "base", host.folder / "snap"
    host.snapshot("one", base, "--disks", "copy", "--track")
    for _ in range(6):  # more than are remembered
        host.wait_passes("one", vm, 1)
        client = slow_snapshot(host, place, "--track", "--parent", str(base))
        client.send_signal(sig)
        client.send_signal(signal.SIGCONT)
        client.communicate(timeout=60)
        if client.returncode == 0:  # it was faster
            shutil.rmtree(place)
        assert not place.exists()
    if json.loads((base / "manifest.json").read_text())["id"] not in \
            info(host, "one")["tracked_since"]:
        pytest.skip("the signals came too late too often")
    assert host.run("ctl", "one", "pause").returncode == 0
    host.snapshot("one", place, "--disks", "copy", "--parent", base)
    host.snapshot("one", host.folder / "whole", "--disks", "copy")
    assert differ(memory_of(place), memory_of(host.folder / "whole")) == []


def test_blocks_are_shared(host):
    """On XFS it is whole, stands alone, and may replace its parent."""
    image, mount = host.folder / "xfs.img", host.folder / "xfs"
    mount.mkdir()
    with open(image, "wb") as f:
        f.truncate(512 * MIB)
    try:
        if subprocess.run(["mkfs.xfs", "-q", image], check=False).returncode or \
                subprocess.run(["mount", "-o", "loop", image, mount], check=False).returncode:
            pytest.skip("no XFS here")
    except FileNotFoundError:
        pytest.skip("no mkfs.xfs here")
    try:
        vm = host.boot()
        host.wait_passes("one", vm, 1)
        base = mount / "base"
        first = host.snapshot("one", base, "--disks", "copy", "--track")
        assert host.run("ctl", "one", "pause").returncode == 0
        report = host.snapshot("one", base, "--disks", "copy", "--track", "--replace",
                               "--parent", base)
        assert report["layout"] == "whole" and report["parent_id"] == first["id"]
        assert report["data_bytes"] < first["data_bytes"]
        host.snapshot("one", host.folder / "whole", "--disks", "copy")
        assert differ(memory_of(base), memory_of(host.folder / "whole")) == []
        again = restore(host, base)
        assert follows(host.wait_passes("two", again, 2))
        again.kill()
        again.wait()
    finally:
        unmount(mount)
