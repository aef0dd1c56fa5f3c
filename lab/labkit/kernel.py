# SPDX-License-Identifier: Apache-2.0
"""Take kernels apart: the ELF file inside a bzImage, modules, their order.

bzImage layout: Documentation/arch/x86/boot.rst (setup_sects at 0x1f1,
payload_offset and payload_length at 0x248 and 0x24c since protocol 2.08).
"""

import bz2
import gzip
import lzma
import struct
import subprocess
import zlib
from pathlib import Path

from . import LabError


def _filter(*command):
    def run(data):
        # Some builds append the unpacked size to the stream; tools report
        # that as trailing garbage after having written everything.
        done = subprocess.run(command, input=data, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, check=False)
        return done.stdout
    return run


def _gunzip(data):
    return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(data)


def _unxz(data):
    return lzma.LZMADecompressor().decompress(data)


_PAYLOADS = (
    (b"\x1f\x8b\x08", _gunzip),
    (b"\xfd7zXZ\0", _unxz),
    (b"BZh", lambda data: bz2.BZ2Decompressor().decompress(data)),
    (b"\x5d\0\0", lambda data: lzma.LZMADecompressor(
        lzma.FORMAT_ALONE).decompress(data)),
    (b"\x02!L\x18", _filter("lz4", "-dc")),
    (b"\x28\xb5\x2f\xfd", _filter("zstd", "-dcq")),
)


def extract_vmlinux(image):
    """The ELF kernel inside the bytes of a bzImage."""
    if len(image) < 0x250 or image[0x202:0x206] != b"HdrS":
        raise LabError("not a bzImage: no HdrS mark at 0x202")
    if struct.unpack_from("<H", image, 0x206)[0] < 0x208:
        raise LabError("bzImage of a boot protocol before 2.08")
    setup = (image[0x1f1] or 4) + 1
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[setup * 512 + offset:][:length]
    for magic, unpack in _PAYLOADS:
        if payload.startswith(magic):
            # The last four bytes are the unpacked size, put there by the
            # build; legacy lz4 would read them as one more block.
            size = struct.unpack("<I", payload[-4:])[0]
            elf = unpack(payload[:-4])
            break
    else:
        raise LabError(f"unknown kernel payload {payload[:6].hex()}")
    if elf[:4] != b"\x7fELF":
        raise LabError("the kernel payload did not unpack to an ELF file")
    if magic != b"\x1f\x8b\x08" and len(elf) != size:
        raise LabError(f"the kernel payload unpacked to {len(elf)} bytes "
                       f"instead of {size}")
    return elf


def read_module(path):
    """A module's bytes, unpacked: initramfs loaders need no inflater."""
    data = Path(path).read_bytes()
    if path.name.endswith(".xz"):
        return lzma.decompress(data)
    if path.name.endswith(".gz"):
        return gzip.decompress(data)
    if path.name.endswith(".zst"):
        return _filter("zstd", "-dcq")(data)
    return data


def _stem(path):
    return Path(path).name.split(".ko")[0].replace("-", "_")


class Modules:
    """The modules of one kernel and what depends on what."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.release = self.directory.name
        self._path, self._depends = {}, {}
        for line in (self.directory / "modules.dep").read_text().splitlines():
            path, _, depends = line.partition(":")
            self._path[_stem(path)] = self.directory / path
            self._depends[_stem(path)] = [_stem(d) for d in depends.split()]
        builtin = (self.directory / "modules.builtin").read_text().split()
        self._builtin = {_stem(path) for path in builtin}

    def closure(self, names):
        """The named modules and what they need, in the order of loading.

        Built-in ones need nothing; a name that is neither built in nor
        there is an error: the image would be silently incomplete.
        """
        order = []

        def visit(name):
            if name in order or name in self._builtin:
                return
            if name not in self._path:
                raise LabError(f"kernel {self.release} has no module {name}")
            for depends in self._depends[name]:
                visit(depends)
            order.append(name)

        for name in names:
            visit(name.replace("-", "_"))
        return order

    def depends(self, name):
        """All a module needs, itself excluded, in the order of loading."""
        return self.closure([name])[:-1]

    def read(self, name):
        return read_module(self._path[name])

    def aliases(self, names):
        """The lines of modules.alias for these modules."""
        names = set(names)
        text = (self.directory / "modules.alias").read_text()
        return [line for line in text.splitlines()
                if line.startswith("alias ")
                and line.split()[-1].replace("-", "_") in names]
