# SPDX-License-Identifier: Apache-2.0
"""Ten thousand random requests: neither crash nor leak.

Under ASan and UBSan where that build is at hand (QUIRE_BUILD_ASAN). Requests are a mix:
right ones in any order, right ones with something spoilt, random JSON, and bytes that are
no HTTP at all, from several connections. QUIRE_API_SEED and QUIRE_API_REQUESTS repeat a run.
"""
import contextlib
import json
import os
import pathlib
import random
import re
import socket
import subprocess

from api_kit import HAVE_KVM, QUIRE, SPEC, Server, check_answer, vm_config, wait_for

SEED = int(os.environ.get("QUIRE_API_SEED", "20250101"))
REQUESTS = int(os.environ.get("QUIRE_API_REQUESTS", "10000"))
WARM_UP = REQUESTS // 4  # what stays from here on is counted
SANITIZED = {"ASAN_OPTIONS": "detect_leaks=1:quarantine_size_mb=4",
             "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1"}
PATHS = list(SPEC["paths"])
METHODS = ["GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH", "BREW"]
WORDS = ["id", "path", "payload", "kernel", "cpus", "boot_vcpus", "memory", "size", "disks",
         "range", "start", "mode", "", "_disk0", "on", "4G", "../../etc/passwd", "\u00e4\u2603",
         "x" * 300, "%n%s", "null"]


def binary():
    asan = os.environ.get("QUIRE_BUILD_ASAN")
    for path in ("quire", "src/cli/quire"):
        if asan and (pathlib.Path(asan) / path).exists():
            return pathlib.Path(asan) / path
    return QUIRE


def random_json(rng, depth=0):
    kind = rng.randrange(10 if depth < 6 else 6)
    if kind < 2:
        return rng.choice(WORDS)
    if kind < 4:
        return rng.choice([0, 1, -1, 2**31, 2**63 - 1, -2**63, 0.5, 1e300, rng.getrandbits(40)])
    if kind < 6:
        return rng.choice([True, False, None])
    if kind < 9:
        return {rng.choice(WORDS): random_json(rng, depth + 1) for _ in range(rng.randrange(5))}
    return [random_json(rng, depth + 1) for _ in range(rng.randrange(5))]


def spoil(rng, text):
    """One place changed, cut or doubled."""
    text = bytearray(text)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(text) + 1)
        what = rng.randrange(4)
        if what == 0 and at < len(text):
            text[at] = rng.randrange(256)
        elif what == 1:
            del text[at:at + rng.randrange(8)]
        elif what == 2:
            text[at:at] = rng.randbytes(rng.randrange(8))
        else:
            text[at:at] = text[:at][-20:]
    return bytes(text)


class Random:
    def __init__(self, server, folder):
        self.server, self.rng = server, random.Random(SEED)
        self.config = vm_config(folder)
        self.disk = self.config["disks"][0]["path"]
        self.verbs = self.right_requests()
        self.counts = {}
        self.connection = server.connect()

    def right_requests(self):
        """(weight, method, path, body); a boot builds a machine, which takes its time."""
        verb = "/api/v1/vm."
        found = [(8, "GET", path, None) for path, methods in SPEC["paths"].items()
                 if "get" in methods and not path.endswith("vm.events")]
        found += [(6, "PUT", verb + "create", self.config), (2, "PUT", verb + "delete", None),
                  (6, "PUT", verb + "pause", None), (6, "PUT", verb + "resume", None),
                  (4, "PUT", verb + "power-button", None), (1, "PUT", verb + "shutdown", None),
                  (6, "PUT", verb + "add-disk", {"path": self.disk, "readonly": True}),
                  (6, "PUT", verb + "remove-device", {"id": "_disk1"}),
                  (3, "PUT", verb + "populate", {"mode": "repair"})]
        if HAVE_KVM:
            found += [(2, "PUT", verb + "boot", None), (1, "PUT", verb + "reboot", None)]
        return found

    def http(self, method, path, body=None, headers=None):
        try:
            self.connection.request(method, path, body, headers or {})
            answer = self.connection.getresponse()
            text = answer.read()
        except (OSError, ConnectionError):
            raise
        except Exception:  # a closed connection reads as many things
            self.connection.close()
            return None
        self.counts[answer.status] = self.counts.get(answer.status, 0) + 1
        if answer.will_close:
            self.connection.close()
        return answer, text

    def right(self):
        weights = [v[0] for v in self.verbs]
        _, method, path, body = self.rng.choices(self.verbs, weights)[0]
        done = self.http(method, path, json.dumps(body) if body else None)
        if done:
            answer, text = done
            kind = answer.getheader("Content-Type", "")
            value = json.loads(text) if kind == "application/json" else text.decode()
            check_answer(method, path, answer.status, kind, value)

    def random_body(self):
        path = self.rng.choice(PATHS)
        if path.endswith(("vm.events", "vmm.shutdown")):
            return
        self.http("PUT", path, json.dumps(random_json(self.rng)))

    def spoilt_body(self):
        body = spoil(self.rng, json.dumps(self.config).encode())
        self.http("PUT", "/api/v1/vm.create", body)

    def wrong_request(self):
        path = self.rng.choice([self.rng.choice(PATHS) + self.rng.choice(["/", "x", "?a=b", "%00"]),
                                "/" + "a" * self.rng.randrange(3000), "/api/v1/vm.info"])
        headers = self.rng.choice([{}, {"Content-Type": "text/html"}, {"Expect": "100-continue"},
                                   {"X": "y" * self.rng.randrange(4000)}])
        if self.rng.randrange(4) == 0:
            self.http("PUT", "/api/v1/vm.create", "{}", {"Content-Type": "text/html"})
        self.http(self.rng.choice(METHODS[2:]), path, b"x" * self.rng.randrange(100), headers)

    def garbage(self):
        """A connection of its own; not all of them wait for what is said to them."""
        whole = (b"PUT /api/v1/vm.pause HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
                 b"Content-Type: application/json\r\n\r\n{}")
        data = self.rng.choice([spoil(self.rng, whole), self.rng.randbytes(self.rng.randrange(500)),
                                whole[:self.rng.randrange(len(whole))], whole * 3])
        if b"shutdown" in data:
            return
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(60)
            s.connect(str(self.server.socket))
            with contextlib.suppress(OSError):
                s.sendall(data)
                s.settimeout(0.1)  # what waits for more is left waiting
                if self.rng.randrange(2):
                    s.shutdown(socket.SHUT_WR)
                    while s.recv(1 << 16):
                        pass

    def listener(self):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(self.server.socket))
            s.sendall(b"GET /api/v1/vm.events HTTP/1.1\r\nHost: x\r\n\r\n")
            if self.rng.randrange(2):
                s.settimeout(60)
                assert s.recv(100)

    def one(self):
        step, = self.rng.choices(
            [self.right, self.random_body, self.spoilt_body, self.wrong_request, self.garbage,
             self.listener], [50, 10, 10, 10, 15, 5])
        try:
            step()
        except (ConnectionError, BrokenPipeError):
            self.connection.close()


def usage(pid):
    """Descriptors and resident KiB, in a quire without a VM."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return (len(os.listdir(f"/proc/{pid}/fd")),
            int(re.search(r"^VmRSS:\s+(\d+)", status, re.M)[1]))


def settle(server):
    """No VM, no client."""
    server.ask("PUT", "/api/v1/vm.delete")
    at_rest = wait_for(lambda: server.ask("GET", "/api/v1/vm.info")[0] == 404)
    assert at_rest
    return usage(server.proc.pid)


def test_random_requests(tmp_path):
    quire = binary()
    with Server(tmp_path, quire=quire, env=SANITIZED) as server:
        fuzz = Random(server, tmp_path)
        for n in range(REQUESTS):
            fuzz.one()
            if n == WARM_UP:
                fuzz.connection.close()
                before = settle(server)
            assert server.proc.poll() is None, (n, server.said()[-8000:])
        fuzz.connection.close()
        # connections that nobody closed run into their deadline
        after = wait_for(lambda: (u := settle(server))[0] <= before[0] + 4 and u)
        print(f"seed {SEED}, {quire}: {sorted(fuzz.counts.items())}, "
              f"(fds, KiB) {before} -> {after}")
        # what each request left behind would add up to more
        assert after[1] <= before[1] + (8 << 10)
        assert set(fuzz.counts) >= {200, 204, 400, 404, 405, 409, 415}
        status = server.end()
        said = server.said()
        assert not re.search(r"Sanitizer|runtime error|BUG:", said), said[-8000:]
        assert status == 0, said[-8000:]
    assert subprocess.run([QUIRE, "ps", "--quiet"], env=server.env, capture_output=True,
                          check=True).stdout == b""
