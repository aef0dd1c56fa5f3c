# SPDX-License-Identifier: Apache-2.0
"""Frames to and from the agent; lab/l1/agent.c describes them."""

import struct

from . import LabError

_HEAD = struct.Struct("<c3xI")
_LENGTH_MAX = 1 << 20


def request(cwd, command, env):
    """The bytes of a request to run a command."""
    words = [str(cwd), str(len(command)), *command]
    words += [f"{name}={value}" for name, value in env.items()]
    payload = b"".join(w.encode(errors="surrogateescape") + b"\0"
                       for w in words)
    return _HEAD.pack(b"R", len(payload)) + payload


class Frames:
    """Cuts a byte stream into (type, payload)."""

    def __init__(self):
        self._held = bytearray()

    def feed(self, data):
        self._held += data
        while len(self._held) >= _HEAD.size:
            kind, length = _HEAD.unpack_from(self._held)
            if kind not in b"HOEAX" or length > _LENGTH_MAX:
                raise LabError("the agent's port carried something else "
                               f"than frames: {bytes(self._held[:32])!r}")
            end = _HEAD.size + length
            if len(self._held) < end:
                return
            payload = bytes(self._held[_HEAD.size:end])
            del self._held[:end]
            yield kind.decode(), payload
