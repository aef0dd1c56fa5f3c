# SPDX-License-Identifier: Apache-2.0
"""Write cpio archives of the "newc" format, which is what an initramfs is.

Format: Documentation/driver-api/early-userspace/buffer-format.rst.  Written
here because device nodes and owner root need no privileges this way, and the
result depends on the content alone (times and inode numbers are fixed).
"""

import os
import stat


class Archive:
    """Collects entries in memory; parents are made as needed."""

    def __init__(self):
        self._parts = []
        self._inode = 1
        self._directories = set()

    def _entry(self, name, mode, data=b"", rdev=(0, 0)):
        name = name.strip("/")
        self._parents(name)
        self._raw(name, mode, data, rdev)

    def _raw(self, name, mode, data=b"", rdev=(0, 0)):
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0,
                  rdev[0], rdev[1], len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % f for f in fields) + encoded
        self._inode += 1
        self._parts += [head, b"\0" * (-len(head) % 4), data,
                        b"\0" * (-len(data) % 4)]

    def _parents(self, name):
        parent = os.path.dirname(name)
        if parent and parent not in self._directories:
            self.directory(parent)

    def directory(self, name, mode=0o755):
        name = name.strip("/")
        if name in self._directories:
            return
        self._entry(name, stat.S_IFDIR | mode)
        self._directories.add(name)

    def file(self, name, data, mode=0o644):
        self._entry(name, stat.S_IFREG | mode, data)

    def symlink(self, name, target):
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def node(self, name, kind, major, minor, mode=0o600):
        self._entry(name, (stat.S_IFCHR if kind == "c" else stat.S_IFBLK)
                    | mode, rdev=(major, minor))

    def bytes(self):
        """The whole archive, ended by its trailer and padded."""
        parts = list(self._parts)
        self._inode, inode = 0, self._inode
        self._raw("TRAILER!!!", 0)
        whole = b"".join(self._parts)
        self._parts, self._inode = parts, inode
        return whole + b"\0" * (-len(whole) % 512)
