# SPDX-License-Identifier: Apache-2.0
"""What two sides may not agree on: the VM goes on where it was with all that it had, the other
never runs, and each says what differs. (Which test has which failure: docs/migration-protocol.md.)
"""
import ctypes
import os
import re
import struct

import pytest

import test_migrate_disks as disks
from test_migrate import (MIB, Relay, boot, incoming, is_follow_up, migrate, refused, unix,
                          vm_args)
from test_restore import LONG, Host, log, wait_for, wait_passes

pytestmark = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                                reason="no usable /dev/kvm")


@pytest.fixture
def host(tmp_path):
    h = Host(tmp_path)
    yield h
    h.end()


def edited(host, edit):
    """As migrate(), with a relay between that edits."""
    relay = Relay(f"{host.dir}/relay", unix(host, "two")[5:], edit=edit)
    try:
        return migrate(host, "one", f"unix:{host.dir}/relay", check=False)
    finally:
        relay.close()


def both_say(host, done, two, words, waits=False):
    """And one side runs: the source, which can still be moved."""
    refused(done, words)
    if waits:  # for another source
        wait_for("its words", lambda: re.search(words, host.said(two)))
        assert two.poll() is None
    else:
        assert two.wait(LONG) == 1 and re.search(words, host.said(two)), host.said(two)
    assert log(host.dir / "two.log") == ""
    assert host.state("one") == "Running"


def moves_still(host):
    wait_passes(host.dir / "one.log", 2)
    incoming(host, "three", unix(host, "three"))
    migrate(host, "one", unix(host, "three"))
    wait_passes(host.dir / "three.log", 2)
    is_follow_up(host, "one", "three")


# ---- another version ----

def test_version(host):
    """A later quire's: both are told which is which, and the destination waits on."""
    boot(host)
    two = incoming(host, "two", unix(host, "two"))

    def edit(name, body):
        return body[:8] + struct.pack("<I", 9) + body[12:] if name == "PREFACE" else body
    both_say(host, edited(host, edit), two, "source speaks version 9 .*, this quire version 1", True)
    migrate(host, "one", unix(host, "two"))
    wait_passes(host.dir / "two.log", 2)
    is_follow_up(host, "one", "two")


def test_features(host):
    boot(host)
    two = incoming(host, "two", unix(host, "two"))

    def edit(name, body):
        return body[:8] + struct.pack("<Q", 1 << 40) + body[16:] if name == "MACHINE" else body
    both_say(host, edited(host, edit), two, r"features \(0x10000000000\) that this quire does not",
             True)
    moves_still(host)


# ---- state that does not fit: docs/state-format.md ----

def parse_state(data):
    """[name, instance, version, flags, [[tag, flags, value]]] of each section."""
    at, sections = 24, []
    for _ in range(struct.unpack_from("<I", data, 12)[0]):
        size, version, flags, name, instance, num, _ = struct.unpack_from("<IHHBBHI", data, at)
        at += 16
        names = data[at:at + name], data[at + name:at + name + instance]
        at += name + instance
        fields = []
        for _ in range(num):
            tag, field_flags, length = struct.unpack_from("<HHI", data, at)
            fields.append([tag, field_flags, data[at + 8:at + 8 + length]])
            at += 8 + length
        sections.append([*names, version, flags, fields])
    assert at == len(data) - 8
    return sections


def put_state(sections):
    body = b""
    for name, instance, version, flags, fields in sections:
        payload = b"".join(struct.pack("<HHI", tag, field_flags, len(value)) + value
                           for tag, field_flags, value in fields)
        body += struct.pack("<IHHBBHI", len(payload), version, flags, len(name), len(instance),
                            len(fields), 0) + name + instance + payload
    data = struct.pack("<8sIIQ", b"QUIRESTA", 1, len(sections), 24 + len(body) + 8) + body
    hash64 = ctypes.CDLL("libxxhash.so.0").XXH64
    hash64.restype = ctypes.c_uint64
    return data + struct.pack("<Q", hash64(data, ctypes.c_size_t(len(data)), ctypes.c_uint64(0)))


def field(sections, name, instance, tag):
    fields = next(s[4] for s in sections if s[:2] == [name, instance])
    return next(f for f in fields if f[0] == tag)


def of_state(change):
    def edit(name, body):
        if name != "STATE":
            return body
        sections = parse_state(body)
        assert put_state(sections) == body
        change(sections)
        return put_state(sections)
    return edit


class Cpuid:
    """Of vCPU 0."""

    def __init__(self, sections):
        self.field = field(sections, b"vcpu", b"0", 1)
        self.entries = [list(e) for e in struct.iter_unpack("<7I", self.field[2])]

    def find(self, leaf, index):
        for e in self.entries:
            if e[0] == leaf and (e[1] == index or not e[2] & 1):
                return e
        self.entries.append([leaf, index, int(leaf in (7, 13)), 0, 0, 0, 0])
        return self.entries[-1]

    def add(self, leaf, index, reg, bits):
        """The first that it does not have."""
        e = self.find(leaf, index)
        bit = next(b for b in bits if not e[3 + reg] >> b & 1)
        e[3 + reg] |= 1 << bit
        self.put()
        return bit

    def put(self):
        self.field[2] = b"".join(struct.pack("<7I", *e) for e in self.entries)


@pytest.mark.parametrize("leaf,index,reg,bits,words", [
    (0x1, 0, 2, [28, 12, 15], "leaf 0x1.0, ECX bit"),
    (0x7, 0, 1, [16, 5, 14, 2], "leaf 0x7.0, EBX bit"),
    (0xd, 0, 0, [18, 9, 5, 20], "leaf 0xd.0, EAX bit"),  # a component of XSAVE
    (0xd, 1, 0, [3, 1, 10], "leaf 0xd.1, EAX bit"),
])
def test_cpu_that_lacks_a_feature(host, leaf, index, reg, bits, words):
    boot(host)
    two = incoming(host, "two", unix(host, "two"))
    used = []
    done = edited(host, of_state(lambda s: used.append(Cpuid(s).add(leaf, index, reg, bits))))
    both_say(host, done, two, rf"{words} {used[0]}\b.*goes to hosts only that have what")
    moves_still(host)


def test_cpu_of_another_vendor(host):
    boot(host)
    two = incoming(host, "two", unix(host, "two"))

    def change(sections):
        cpuid = Cpuid(sections)
        cpuid.find(0, 0)[4] = int.from_bytes(b"Elbr", "little")
        cpuid.put()
    both_say(host, edited(host, of_state(change)), two, "the saved CPU is of Elbr")
    moves_still(host)


def test_cpu_with_more_address_bits(host):
    boot(host)
    two = incoming(host, "two", unix(host, "two"))

    def change(sections):
        cpuid = Cpuid(sections)
        e = cpuid.find(0x80000008, 0)
        e[3] = e[3] & ~0xff | 57
        cpuid.put()
    both_say(host, edited(host, of_state(change)), two, "saved CPU has 57 physical address bits")
    moves_still(host)


@pytest.mark.parametrize("change,words", [
    (lambda s: s.append([b"gpu", b"0", 1, 0, []]), "gpu"),
    (lambda s: field(s, b"vcpu", b"0", 3).__setitem__(0, 0x7fff), "vcpu"),
    (lambda s: s.pop(), "saved state"),
], ids=["section", "field", "missing"])
def test_state_of_another_quire(host, change, words):
    boot(host)
    two = incoming(host, "two", unix(host, "two"))
    both_say(host, edited(host, of_state(change)), two, words)
    moves_still(host)


def test_damaged_state(host):
    boot(host)
    two = incoming(host, "two", unix(host, "two"))

    def edit(name, body):
        return body[:200] + bytes([body[200] ^ 1]) + body[201:] if name == "STATE" else body
    both_say(host, edited(host, edit), two, "checksum .* does not fit")
    moves_still(host)


# ---- another machine; its memory and vCPUs are in test_migrate.test_another_machine ----

def test_cores(host):
    boot(host)
    args = ["--cpus", "boot=2,threads=2"]
    two = incoming(host, "two", unix(host, "two"), *args)
    done = migrate(host, "one", unix(host, "two"), check=False)
    both_say(host, done, two, "has 2 vCPUs, 1 to a core; here it is given 2, 2")
    moves_still(host)


def disk_args(host, name, *options):
    image = host.dir / "disk.img"
    if not image.exists():
        image.write_bytes(bytes(2 * MIB))
    return [arg for o in options for arg in ("--disk", o.format(image=image))]


@pytest.mark.parametrize("here,there,words", [
    (["path={image},id=d"], [], "has a blk device 'd' that is not given here"),
    ([], ["path={image},id=d"], "a blk device 'd' is given here that the VM does not have"),
    (["path={image},id=d"], ["path={image},id=e"], "has a blk device 'd' that is not given here"),
    (["path={image},id=d,num_queues=2"], ["path={image},id=d,num_queues=1"],
     r"'d' has 3 MSI-X vectors, here it has 2: give it as many queues \(num_queues=\)"),
])
def test_devices(host, here, there, words):
    """By kind, id and queues."""
    host.start("run", *vm_args(host, "one"), *disk_args(host, "one", *here))
    wait_passes(host.dir / "one.log")
    two = incoming(host, "two", unix(host, "two"), *disk_args(host, "two", *there))
    both_say(host, migrate(host, "one", unix(host, "two"), check=False), two, words)
    wait_passes(host.dir / "one.log", 2)


def test_kind_of_device(host):
    host.start("run", *vm_args(host, "one"), "--rng", "id=d")
    wait_passes(host.dir / "one.log")
    two = incoming(host, "two", unix(host, "two"), *disk_args(host, "two", "path={image},id=d"))
    both_say(host, migrate(host, "one", unix(host, "two"), check=False), two,
             "device 'd' is rng, here it is blk")


def test_size_of_a_disk(host):
    """Of one that both should reach, and which is another there."""
    other = host.dir / "other.img"
    other.write_bytes(bytes(MIB))
    host.start("run", *vm_args(host, "one"), *disk_args(host, "one", "path={image},id=d"))
    wait_passes(host.dir / "one.log")
    two = incoming(host, "two", unix(host, "two"), "--disk", f"path={other},id=d")
    both_say(host, migrate(host, "one", unix(host, "two"), check=False), two,
             "the disk had 2097152 bytes, here it has 1048576")
    wait_passes(host.dir / "one.log", 2)


def test_size_of_a_queue(host):
    """The guest's ring is larger than the device has one there."""
    disks.boot(host, options=",queue_size=256")
    disks.wait_passes(host, "one")
    two = disks.incoming(host, "two", unix(host, "two"), options=",queue_size=16",
                         paths={d: host.dir / f"one.{d}.img" for d in disks.SIZES})

    def change(sections):
        field(sections, b"virtio-queue", b"a/0", 3)[2] = struct.pack("<H", 256)
    both_say(host, edited(host, of_state(change)), two,
             r"had 256 entries, here it has 16 at the most: give it as many \(queue_size=\)")
    disks.wait_passes(host, "one", 3)
