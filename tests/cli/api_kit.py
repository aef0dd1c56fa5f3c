# SPDX-License-Identifier: Apache-2.0
"""What the tests of the control API share: a quire with its own runtime directory, a
client that can be rude, the specification."""
import contextlib
import http.client
import json
import os
import pathlib
import socket
import struct
import subprocess
import time

import jsonschema
import pytest
import yaml

QUIRE = os.environ["QUIRE"]
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SPEC = yaml.safe_load((ROOT / "docs/api/openapi.yaml").read_text())
HAVE_KVM = os.access("/dev/kvm", os.R_OK | os.W_OK)
needs_kvm = pytest.mark.skipif(not HAVE_KVM, reason="no usable /dev/kvm")
WAIT = 60  # for what has to happen; a hang otherwise


def wait_for(what, seconds=WAIT):
    """The first true value of what()."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.02)
    return value


@contextlib.contextmanager
def process(args, **kwargs):
    """A started one; when the block is left, however that comes, it is gone: many of them would
    never end, and whoever waits for them neither."""
    with subprocess.Popen([str(a) for a in args], **kwargs) as started:
        try:
            yield started
        finally:
            started.kill()


def thread_names(pid):
    """Of those that are there all the while."""
    names = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            names.append(pathlib.Path(f"/proc/{pid}/task/{task}/comm").read_text())
    return names


def wait_running(vm):
    """Until its first vCPU has a thread; it takes signals long before."""
    def runs():
        assert vm.poll() is None, vm.args
        return "vcpu0\n" in thread_names(vm.pid)
    wait_for(runs)


def halting_kernel(path):
    """A minimal ELF64 with a PVH note whose code halts for good."""
    note = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", 0x200000)
    ehdr = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1" + bytes(9), 2, 62, 1,
                       0x200000, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0x1000, 0x200000, 0x200000, 4096, 4096, 0x1000)
    notes = struct.pack("<IIQQQQQQ", 4, 4, 176, 0, 0, len(note), len(note), 4)
    image = (ehdr + load + notes + note).ljust(0x1000, b"\0") + b"\xfa\xf4" * 2048
    path.write_bytes(image)
    return path


def vm_config(folder):
    """A VM that halts at once: small, native, with a disk."""
    disk = folder / "disk.img"
    if not disk.exists():
        disk.write_bytes(bytes(1 << 20))
    return {"payload": {"kernel": str(halting_kernel(folder / "kernel.elf"))},
            "memory": {"size": "64M"}, "serial": {"mode": "Null"},
            "disks": [{"path": str(disk)}]}


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout=WAIT):
        super().__init__("localhost", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)  # with a time-out it would not wait at all
        self.sock.settimeout(self.timeout)


class Server:
    """quire run with an API; the folder holds all that it makes."""

    def __init__(self, folder, *args, quire=QUIRE, name="t", env=None):
        self.folder, self.name = folder, name
        self.socket = folder / "api.sock"
        self.env = {**os.environ, "QUIRE_RUNTIME_DIR": str(folder / "run"), **(env or {})}
        self.quire = str(quire)
        self.log = (folder / "stderr").open("w+")
        self.proc = subprocess.Popen(
            [self.quire, "run", "--api-socket", str(self.socket), "--name", name,
             *map(str, args)], env=self.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=self.log)
        wait_for(self.is_up)

    def is_up(self):
        assert self.proc.poll() is None, self.said()
        with contextlib.suppress(OSError):
            return self.ask("GET", "/api/v1/vmm.ping")[0] == 200

    def said(self):
        self.log.flush()
        return (self.folder / "stderr").read_text(errors="replace")

    def connect(self):
        return UnixConnection(self.socket)

    def ask(self, method, path, body=None, headers=None, checked=False):
        """Status, JSON or text. checked: as the specification has it."""
        connection = self.connect()
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        kind = answer.getheader("Content-Type", "")
        value = json.loads(text) if kind == "application/json" else text.decode()
        if checked:
            check_answer(method, path, answer.status, kind, value)
        return answer.status, value

    def verb(self, verb, body=None):
        """A checked PUT."""
        return self.ask("PUT", f"/api/v1/vm.{verb}", body, checked=True)

    def get(self, name):
        """A checked GET."""
        return self.ask("GET", f"/api/v1/vm.{name}", checked=True)

    def state(self):
        status, info = self.get("info")
        return info["state"] if status == 200 else "Empty"

    def raw(self, data, shut=True, timeout=WAIT):
        """All that is answered to bytes, until the server closes."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(timeout)
            s.connect(str(self.socket))
            got = b""
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                s.sendall(data)
                if shut:
                    s.shutdown(socket.SHUT_WR)
                while piece := s.recv(1 << 16):
                    got += piece
            return got

    def ctl(self, *args, **kwargs):
        return self.run("ctl", *args, **kwargs)

    def run(self, *args, **kwargs):
        return subprocess.run([self.quire, *map(str, args)], env=self.env, text=True,
                              capture_output=True, timeout=WAIT,
                              **{"stdin": subprocess.DEVNULL, **kwargs})

    def end(self):
        """By the API; returns the exit status."""
        if self.proc.poll() is None:
            assert self.ask("PUT", "/api/v1/vmm.shutdown")[0] == 204
        return self.proc.wait(WAIT)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.proc.kill()
        self.proc.wait()
        self.log.close()


# ---- the specification ----


def json_schema(schema):
    """OpenAPI 3.0's dialect as JSON Schema: "nullable" and references."""
    if isinstance(schema, list):
        return [json_schema(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        node = SPEC
        for part in schema["$ref"].removeprefix("#/").split("/"):
            node = node[part]
        return json_schema(node)
    out = {key: json_schema(value) for key, value in schema.items() if key != "nullable"}
    if schema.get("nullable"):
        out["type"] = [out["type"], "null"]
    return out


def resolve(node):
    return json_schema(node) if "$ref" in node else node


def documented(method, path, status):
    """{content type: schema} of an answer; fails if it is not in the specification."""
    if path not in SPEC["paths"]:
        assert status == 404, path
        return {"application/json": json_schema({"$ref": "#/components/schemas/Error"})}
    operation = SPEC["paths"][path].get(method.lower())
    if not operation:
        assert status == 405, (method, path, status)
        return resolve({"$ref": "#/components/responses/WrongMethod"})["content"]
    assert str(status) in operation["responses"], (method, path, status)
    return resolve(operation["responses"][str(status)]).get("content", {})


def check_answer(method, path, status, kind, value):
    content = documented(method, path, status)
    if not content:
        assert value == "", (method, path, status, value)
        return
    kinds = {name: entry for name, entry in content.items()}
    base = kind.split(";")[0]
    assert base in kinds, (method, path, kind)
    schema = kinds[base]
    jsonschema.validate(value, json_schema(schema.get("schema", schema)))
