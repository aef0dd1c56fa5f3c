# SPDX-License-Identifier: Apache-2.0
"""The control API of a running quire against its specification, and the commands that use
it: ctl, ps, completion."""
import contextlib
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import stat
import subprocess
import threading

import pytest
from api_kit import (QUIRE, SPEC, WAIT, Server, check_answer, halting_kernel, json_schema,
                     needs_kvm, process, vm_config, wait_for, wait_running)

VERBS = ["boot", "pause", "resume", "reboot", "power-button", "shutdown"]


@pytest.fixture
def server(tmp_path):
    with Server(tmp_path) as s:
        yield s


@pytest.fixture
def vm(server, tmp_path):
    """Created, not booted."""
    assert server.verb("create", vm_config(tmp_path)) == (204, "")
    return server


def table():
    done = subprocess.run([QUIRE, "ctl", "--list", "--json"], capture_output=True, text=True,
                          check=True)
    return json.loads(done.stdout)


# ---- the specification ----


def test_specification_and_program_have_the_same_paths():
    in_spec = {(path, method.upper()) for path, methods in SPEC["paths"].items()
               for method in methods}
    in_program = {(route["path"], route["method"]) for route in table()}
    assert in_spec == in_program


def test_specification_and_program_have_the_same_fields():
    for route in table():
        if route["verb"] == "vm.create":
            continue  # all of VmConfig, see test_states
        operation = SPEC["paths"][route["path"]][route["method"].lower()]
        body = operation.get("requestBody")
        schema = json_schema(body["content"]["application/json"]["schema"]) if body else {}
        assert set(schema.get("properties", {})) == set(route["fields"]), route["verb"]
        required = {name for name, field in route["fields"].items() if field["required"]}
        assert required <= set(schema.get("required", [])), route["verb"]


def test_fields_of_the_specification_are_accepted(server, tmp_path):
    """Each field of VmConfig is one to the program, if perhaps not with that value."""
    def fields(schema, prefix=()):
        for name, inner in schema.get("properties", {}).items():
            yield (*prefix, name)
            if inner.get("type") == "object":
                yield from fields(inner, (*prefix, name))
    schema = json_schema({"$ref": "#/components/schemas/VmConfig"})
    for path in fields(schema):
        body = "nonsense"
        for name in reversed(path):
            body = {name: body}
        status, answer = server.verb("create", body)
        assert status in (204, 400, 404), (path, answer)
        assert status == 204 or "unknown field" not in answer["error"], (path, answer)
        if status == 204:
            server.verb("delete")
    assert "unknown field" in server.verb("create", {"colour": "red"})[1]["error"]


def test_every_device_option_is_a_field_of_the_specification():
    """--console and the like: fields of VmConfig with the keys as theirs."""
    schema = json_schema({"$ref": "#/components/schemas/VmConfig"})["properties"]
    done = subprocess.run([QUIRE, "run", "--help"], capture_output=True, text=True, check=True)
    devices = done.stdout.split("\ndevices")[1]
    found = re.findall(r"^  --([a-z-]+) (\S+)", devices, re.M)
    assert {"disk", "rng"} <= {name for name, _ in found}
    for name, argument in found:
        field = schema.get(name) or schema.get(name + "s")
        assert field, f"VmConfig in docs/api/openapi.yaml lacks --{name}"
        fields = field.get("items", field)["properties"]
        for key in re.findall(r"([a-z_-]+)=", argument):
            assert key.replace("-", "_") in fields, f"--{name} {key}="


# ---- states ----


def statuses(server):
    return [server.verb(verb)[0] for verb in VERBS]


def test_without_a_vm(server):
    assert statuses(server) == [404] * len(VERBS)
    for name in ("info", "counters", "memory-stats"):
        assert server.get(name)[0] == 404
    assert server.verb("delete")[0] == 404
    assert server.verb("add-disk", {"path": "x"})[0] == 404
    assert server.verb("remove-device", {"id": "x"})[0] == 404
    assert server.verb("populate")[0] == 404
    assert server.ask("GET", "/api/v1/vmm.ping", checked=True)[1]["pid"] == server.proc.pid
    assert 'quire_vm_state{state="Empty"} 1' in server.ask("GET", "/metrics", checked=True)[1]
    assert server.end() == 0
    assert not server.socket.exists()


def test_created(vm, tmp_path):
    assert vm.state() == "Created"
    assert vm.verb("create", vm_config(tmp_path))[0] == 409
    for verb in VERBS[1:]:
        assert vm.verb(verb)[0] == 409, verb
    assert vm.get("counters")[0] == 200
    assert vm.get("memory-stats") == (200, {})
    status, info = vm.get("info")
    assert info["config"]["disks"] == [{"id": "_disk0", "path": str(tmp_path / "disk.img")}]
    assert info["memory_actual_size"] == 64 << 20 and info["boots"] == 0
    assert vm.verb("delete")[0] == 204
    assert vm.state() == "Empty"
    # what it says of itself is what it takes
    assert vm.verb("create", info["config"])[0] == 204
    assert vm.get("info")[1] == info


@needs_kvm
def test_counters_of_a_class(vm, tmp_path):
    """What a network counts beyond its queues' requests, in the API and in metrics."""
    path = tmp_path / "net.sock"
    with socket.socket(socket.AF_UNIX) as peer:
        peer.bind(str(path))
        peer.listen(1)
        assert vm.verb("boot")[0] == 204
        assert vm.verb("add-net", {"socket": str(path), "id": "lan"})[0] == 200
        counters = vm.get("counters")[1]["lan"]
        assert {"requests", "rx_frames", "rx_bytes", "rx_dropped", "tx_frames", "tx_bytes",
                "tx_dropped"} <= counters.keys()
        metrics = vm.ask("GET", "/metrics", checked=True)[1]
        assert 'quire_device_rx_frames_total{device="lan"} 0' in metrics


@needs_kvm
def test_states(vm):
    """All verbs in all states, and the answers as they are documented."""
    assert vm.verb("boot")[0] == 204
    assert vm.state() == "Running"
    assert vm.verb("boot")[0] == 409
    assert vm.verb("resume")[0] == 409
    assert vm.verb("power-button")[0] == 204
    assert vm.verb("pause")[0] == 204
    assert vm.state() == "Paused"
    assert vm.verb("pause")[0] == 409
    assert vm.verb("boot")[0] == 409
    status, counters = vm.get("counters")
    assert status == 200 and counters["_disk0"]["requests"] == 0
    status, stats = vm.get("memory-stats")
    assert status == 200 and stats["size_bytes"] == 64 << 20
    metrics = vm.ask("GET", "/metrics", checked=True)[1]
    assert 'quire_vm_state{state="Paused"} 1' in metrics
    assert f"quire_memory_size_bytes {64 << 20}" in metrics
    assert 'quire_device_requests_total{device="_disk0"} 0' in metrics
    assert vm.verb("resume")[0] == 204
    assert vm.verb("reboot")[0] == 204
    assert vm.state() == "Running"
    assert vm.get("info")[1]["boots"] == 2
    assert vm.verb("populate", {"range": {"start": 0, "size": 4 << 20}})[0] == 204
    assert vm.verb("populate", {"mode": "shine"})[0] == 400
    assert vm.verb("remove-device", {"id": "nobody"})[0] == 404
    assert vm.verb("shutdown")[0] == 204
    assert vm.state() == "Shutdown"
    for verb in VERBS[1:]:
        assert vm.verb(verb)[0] == 409, verb
    # of the machine that was
    assert vm.get("memory-stats")[1]["size_bytes"] == 64 << 20
    assert vm.verb("boot")[0] == 204
    assert vm.verb("delete")[0] == 204
    assert vm.state() == "Empty"
    assert vm.end() == 0


@needs_kvm
def test_boot_that_fails_can_be_repeated(server, tmp_path):
    config = vm_config(tmp_path)
    kernel = tmp_path / "kernel.elf"
    kernel.rename(tmp_path / "elsewhere")
    assert server.verb("create", config)[0] == 204
    status, answer = server.verb("boot")
    assert status == 500 and str(kernel) in answer["error"]
    assert server.state() == "Created"
    (tmp_path / "elsewhere").rename(kernel)
    assert server.verb("boot")[0] == 204


@needs_kvm
def test_events_of_a_life(vm):
    connection = vm.connect()
    connection.request("GET", "/api/v1/vm.events")
    stream = connection.getresponse()
    for verb in ("boot", "pause", "resume", "reboot", "shutdown", "delete"):
        assert vm.verb(verb)[0] == 204
    assert vm.end() == 0
    events = [json.loads(line) for line in stream.read().splitlines()]
    for event in events:
        check_answer("GET", "/api/v1/vm.events", 200, stream.getheader("Content-Type"), event)
    names = [e["event"] for e in events if e["source"] == "vm"]
    wanted = ["booted", "paused", "resumed", "rebooted", "shutdown", "deleted"]
    assert [n for n in names if n in wanted] == wanted
    times = [(e["timestamp"]["secs"], e["timestamp"]["nanos"]) for e in events]
    assert times == sorted(times)
    assert (events[-1]["source"], events[-1]["event"]) == ("vm", "ended")


# ---- nonsense ----


@pytest.mark.parametrize("method,path,body,headers,status", [
    ("GET", "/", None, {}, 404),
    ("GET", "/api/v1/vm.fly", None, {}, 404),
    ("GET", "/api/v2/vmm.ping", None, {}, 404),
    ("PUT", "/api/v1/vm.create/", "{}", {}, 404),
    ("GET", "/api/v1/" + "x" * 4000, None, {}, 404),
    ("GET", "/api/v1/vm.pause", None, {}, 405),
    ("POST", "/api/v1/vm.create", "{}", {}, 405),
    ("DELETE", "/metrics", None, {}, 405),
    ("OPTIONS", "/api/v1/vmm.ping", None, {}, 405),
    ("GET", "/api/v1/vm.info?really=1", None, {}, 400),
    ("PUT", "/api/v1/vm.boot", '{"fast": true}', {}, 400),
    ("PUT", "/api/v1/vm.create", "", {}, 400),
    ("PUT", "/api/v1/vm.create", "{", {}, 400),
    ("PUT", "/api/v1/vm.create", "[]", {}, 400),
    ("PUT", "/api/v1/vm.create", '"' + "x" * 1000 + '"', {}, 400),
    ("PUT", "/api/v1/vm.create", b"\xff\xfe", {}, 400),
    ("PUT", "/api/v1/vm.create", '{"cpus": {"boot_vcpus": "many"}}', {}, 400),
    ("PUT", "/api/v1/vm.create", '{"cpus": 1, "cpus": 1}', {}, 400),
    ("PUT", "/api/v1/vm.create", '{"a":' + "[" * 100000 + "]" * 100000 + "}", {}, 400),
    ("PUT", "/api/v1/vm.remove-device", "{}", {}, 400),
    ("PUT", "/api/v1/vm.remove-device", '{"id": 7}', {}, 400),
    ("PUT", "/api/v1/vm.populate", '{"range": 7}', {}, 400),
    ("PUT", "/api/v1/vm.create", "{}", {"Content-Type": "text/xml"}, 415),
    ("PUT", "/api/v1/vm.create", b" " * (10 << 20), {}, 413),
    ("PUT", "/api/v1/vmm.ping", b" " * (2 << 20), {}, 405),
], ids=itertools.count())
def test_nonsense_is_refused(server, method, path, body, headers, status):
    got, answer = server.ask(method, path, body, headers, checked="?" not in path)
    assert got == status, answer
    assert answer["error"]
    assert server.is_up()


def test_405_says_what_is_allowed(server):
    connection = server.connect()
    connection.request("GET", "/api/v1/vm.boot")
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Allow")) == (405, "PUT")


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8",
                                  "application/x-www-form-urlencoded", None])
def test_content_types_that_are_accepted(server, tmp_path, kind):
    headers = {"Content-Type": kind} if kind else {}
    body = json.dumps(vm_config(tmp_path))
    assert server.ask("PUT", "/api/v1/vm.create", body, headers)[0] == 204


def test_bodies_in_chunks(server, tmp_path):
    connection = server.connect()
    text = json.dumps(vm_config(tmp_path)).encode()
    connection.request("PUT", "/api/v1/vm.create", iter([text[:5], text[5:]]),
                       encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    assert connection.getresponse().status == 204
    # without an end: cut off, long before memory is short
    with contextlib.suppress(OSError):
        connection = server.connect()
        connection.request("PUT", "/api/v1/vm.create", (b" " * 65536 for _ in range(100000)),
                           encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
        assert connection.getresponse().status == 413
    assert server.is_up()


def test_garbage_on_the_socket(server):
    for data in (b"", b"\0" * 5000, b"\r\n\r\n", b"GET", b"GET /\r\n\r\n", b"x" * 200000,
                 b"GET / HTTP/9.9\r\n\r\n", b"PUT /api/v1/vm.create HTTP/1.1\r\n\r\n",
                 b"PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
                 b"PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999"
                 b"999999\r\n\r\n",
                 b"PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{",
                 b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20000 + b"\r\n"):
        got = server.raw(data)
        assert not got or re.match(rb"HTTP/1\.[01] (4|501|505)", got), (data[:60], got[:200])
        assert server.is_up()


def test_enormous_bodies_are_refused_before_they_are_sent(server):
    head = (b"PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n"
            b"\r\n")
    assert b" 413 " in server.raw(head, shut=False)
    head = (b"PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n"
            b"Expect: 100-continue\r\n\r\n")
    assert b" 413 " in server.raw(head, shut=False)


# ---- many, slow and rude clients ----


def test_slow_clients_are_cut_off_and_hold_up_nobody(server):
    slow = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    for s in slow:
        s.connect(str(server.socket))
        s.sendall(b"PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    dripping = threading.Event()

    def drip():
        """A byte now and then buys no time."""
        while not dripping.wait(0.5):
            with contextlib.suppress(OSError):
                slow[0].sendall(b" ")
    thread = threading.Thread(target=drip)
    thread.start()
    try:
        assert server.ask("GET", "/api/v1/vmm.ping")[0] == 200
        for s in slow:
            s.settimeout(WAIT)
            with contextlib.suppress(ConnectionResetError):
                assert s.recv(1) == b""
            s.close()
    finally:
        dripping.set()
        thread.join()
    assert server.is_up()


def test_more_connections_than_are_served(server):
    """Those beyond the limit wait, and get their turn when others are cut off."""
    idle = [socket.socket(socket.AF_UNIX) for _ in range(80)]
    for s in idle:
        s.connect(str(server.socket))
    assert server.ask("GET", "/api/v1/vmm.ping")[0] == 200
    for s in idle:
        s.close()


def test_two_clients_at_once(vm):
    failures = []

    def client():
        connection = vm.connect()
        for _ in range(300):
            for path in ("/api/v1/vm.info", "/api/v1/vmm.ping", "/metrics"):
                connection.request("GET", path)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    failures.append((path, answer.status))
    threads = [threading.Thread(target=client) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


# ---- metrics ----


SAMPLE = re.compile(r'([a-z_0-9]+)(\{[a-z]+="(?:[^"\\\n]|\\.)*"(?:,[a-z]+="(?:[^"\\\n]|\\.)*")*\})?'
                    r' (-?[0-9.e+-]+|NaN|[+-]Inf)$')


def check_metrics(text):
    """Prometheus' text format: heads before samples, each family in one piece."""
    families, current, samples = {}, None, set()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            current = line.split()[2]
            assert current not in families, line
            families[current] = None
        elif line.startswith("# TYPE "):
            assert line.split()[2] == current
            families[current] = line.split()[3]
        else:
            match = SAMPLE.match(line)
            assert match, line
            name = match[1]
            if families[current] == "histogram":
                name = re.sub("_(bucket|sum|count)$", "", name)
            assert name == current, line
            assert (match[1], match[2]) not in samples, line
            samples.add((match[1], match[2]))
            if families[current] == "counter":
                assert name.endswith("_total") and float(match[3]) >= 0, line
    return families


@needs_kvm
def test_metrics_are_well_formed(vm):
    assert set(check_metrics(vm.ask("GET", "/metrics")[1])) >= {"quire_info", "quire_vm_state"}
    assert vm.verb("boot")[0] == 204
    assert vm.verb("pause")[0] == 204
    families = check_metrics(vm.ask("GET", "/metrics")[1])
    for name, kind in (("quire_memory_covered_bytes", "gauge"),
                       ("quire_device_requests_total", "counter"),
                       ("quire_vm_exits_total", "counter"), ("quire_kvm_vm", "untyped"),
                       ("quire_populate_host_page_seconds", "histogram")):
        assert families.get(name) == kind, name


# ---- ctl ----


def test_ctl(server, tmp_path):
    done = server.ctl("t", "ping")
    assert done.returncode == 0 and json.loads(done.stdout)["pid"] == server.proc.pid
    done = server.ctl("t", "info")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "quire ctl: vm.info: there is no VM; vm.create makes one\n"
    config = tmp_path / "vm.json"
    config.write_text(json.dumps(vm_config(tmp_path)))
    done = server.ctl("t", "vm.create", f"@{config}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads(server.ctl("t", "info").stdout)["state"] == "Created"
    done = server.ctl("t", "add-disk", f"path={tmp_path}/disk.img", "readonly=on", "id=data")
    assert done.returncode == 0, done.stderr
    disks = json.loads(server.ctl("t", "info").stdout)["config"]["disks"]
    assert disks[1] == {"id": "data", "path": f"{tmp_path}/disk.img", "readonly": True}
    assert server.ctl("t", "remove-device", "id=data").returncode == 0
    assert len(json.loads(server.ctl("t", "info").stdout)["config"]["disks"]) == 1
    assert server.ctl("t", "delete").returncode == 0
    # by path, from standard input, as an argument, key by key
    done = server.ctl(server.socket, "create", "@-", stdin=config.open())
    assert done.returncode == 0, done.stderr
    assert server.ctl("t", "delete").returncode == 0
    done = server.ctl("t", "create", "payload.kernel=/k", "cpus.boot_vcpus:=2", "memory.size=128M")
    assert done.returncode == 0, done.stderr
    info = json.loads(server.ctl("t", "info").stdout)
    assert info["config"]["cpus"]["boot_vcpus"] == 2
    assert info["memory_actual_size"] == 128 << 20
    assert "quire_info" in server.ctl("t", "metrics").stdout
    assert server.ctl("t", "vmm.shutdown").returncode == 0
    assert server.proc.wait(60) == 0
    done = server.ctl("t", "ping")
    assert done.returncode == 1
    assert done.stderr == "quire ctl: no VM is called 't'; none is running\n"


@pytest.mark.parametrize("args,needle", [
    ((), "a VM and a verb are needed"),
    (("t",), "a VM and a verb are needed"),
    (("t", "fly"), "unknown verb 'fly'"),
    (("t", "create", "x"), "neither KEY=VALUE"),
    (("t", "create", "{"), "line 1"),
    (("t", "create", "{}", "a=b"), "nothing goes with a whole body"),
    (("t", "create", "@/no/such/file"), "/no/such/file"),
    (("t", "create", "a=1", "a=2"), "given twice"),
    (("t", "create", "a=1", "a.b=2"), "an object and a value"),
    (("t", "create", "a:=x"), "not JSON"),
    (("t", "create", "=x"), "neither KEY=VALUE"),
    (("--timeout", "soon", "t", "ping"), "--timeout soon"),
    (("--list", "t"), "stand alone"),
    (("--colour",), "unknown option"),
])
def test_ctl_usage(args, needle):
    done = subprocess.run([QUIRE, "ctl", *args], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert needle in done.stderr and done.stderr.count("\n") == 1


def test_ctl_of_something_else(tmp_path):
    """A socket that nobody listens on, one that does not speak HTTP, one that hangs up."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))
        done = subprocess.run([QUIRE, "ctl", path, "ping"], capture_output=True, text=True)
        assert done.returncode == 1 and "onnection refused" in done.stderr
        s.listen()
        for said in (b"SSH-2.0-x\r\n", b"", b"HTTP/1.1 200 OK\r\nA: b\r\n", b"x" * 100000):
            with process([QUIRE, "ctl", path, "ping"], stderr=subprocess.PIPE,
                         text=True) as ctl:
                peer, _ = s.accept()
                with contextlib.suppress(OSError):
                    peer.sendall(said)
                peer.close()
                assert ctl.wait(60) == 1
                assert ctl.stderr.read().count("\n") == 1
        with process([QUIRE, "ctl", "--timeout", "1", path, "ping"],
                     stderr=subprocess.PIPE, text=True) as ctl:
            assert ctl.wait(60) == 1
            assert "no answer in time" in ctl.stderr.read()


def test_ctl_events_goes_on_until_the_end(server, tmp_path):
    with process([QUIRE, "ctl", "t", "events"], env=server.env, text=True,
                 stdout=subprocess.PIPE) as ctl:
        # until it listens there is nothing to see: try until something is
        lines = []

        def churn():
            server.verb("create", vm_config(tmp_path))
            server.verb("delete")
            return ctl.poll() is None and os.read(ctl.stdout.fileno(), 1 << 16)
        os.set_blocking(ctl.stdout.fileno(), False)

        def try_churn():
            with contextlib.suppress(BlockingIOError):
                return churn()
        first = wait_for(try_churn).decode()
        os.set_blocking(ctl.stdout.fileno(), True)
        assert server.end() == 0
        lines = (first + ctl.stdout.read()).splitlines()
        assert ctl.wait(60) == 0
    assert json.loads(lines[0])["source"] == "vm"
    assert json.loads(lines[-1])["event"] == "ended"


# ---- names ----


def ps(server, *args):
    done = server.run("ps", *args)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ps_entry(server):
    """The one VM that is listed, when it answers: on a busy host that may take longer than ps
    waits."""
    def answers():
        entry, = json.loads(ps(server, "--json"))
        return entry["state"] != "unreachable" and entry
    return wait_for(answers)


def is_stopped(pid):
    """All threads: a signal that stops them takes its time to reach each."""
    try:
        stats = [pathlib.Path(f"/proc/{pid}/task/{task}/stat").read_text()
                 for task in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return False  # one that ended just then
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def test_ps(server, tmp_path):
    assert ps(server, "--quiet") == "t\n"
    entry = ps_entry(server)
    assert entry["name"] == "t" and entry["pid"] == server.proc.pid
    assert entry["state"] == "Empty" and entry["vcpus"] is None
    server.verb("create", vm_config(tmp_path))
    entry = ps_entry(server)
    assert (entry["state"], entry["vcpus"], entry["memory_bytes"]) == ("Created", 1, 64 << 20)
    head, line = wait_for(lambda: (said := ps(server)) and "unreachable" not in said
                          and said).splitlines()
    assert head.split()[:3] == ["NAME", "PID", "STATE"]
    assert line.split()[:4] == ["t", str(server.proc.pid), "Created", "1"]
    # stopped: there, but it does not answer
    server.proc.send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: is_stopped(server.proc.pid))
        assert json.loads(ps(server, "--json"))[0]["state"] == "unreachable"
    finally:
        server.proc.send_signal(signal.SIGCONT)
    assert server.end() == 0
    assert ps(server, "--quiet") == ""
    assert json.loads(ps(server, "--json")) == []
    assert not list((tmp_path / "run").iterdir())


def test_a_name_is_taken_once(server, tmp_path):
    done = server.run("run", "--name", "t", "--api-socket", tmp_path / "other")
    assert done.returncode == 1
    assert f"'t' is running (process {server.proc.pid})" in done.stderr
    assert server.is_up() and not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["", ".", "a/b", "-x", "a b", "x" * 64, "ä"])
def test_bad_names(tmp_path, name):
    done = subprocess.run([QUIRE, "run", "--name", name, "--api-socket", tmp_path / "s"],
                          capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode in (1, 2) and done.stderr.count("\n") == 1, done


def test_kill_leaves_an_entry_that_is_cleaned(tmp_path):
    """ps removes it; and a new quire takes name and socket over."""
    for cleaner in ("ps", "run"):
        with Server(tmp_path) as server:
            server.proc.kill()
            server.proc.wait()
            assert (tmp_path / "run/t/api.sock").is_symlink()
            assert server.socket.exists()
            if cleaner == "ps":
                assert ps(server, "--quiet") == ""
                assert not (tmp_path / "run/t").exists()
    with Server(tmp_path) as server:
        assert ps(server, "--quiet") == "t\n"
        assert server.end() == 0
    assert not server.socket.exists()


def test_socket_is_private_and_not_shared(server, tmp_path):
    assert stat.S_IMODE(server.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    done = server.run("run", "--name", "u", "--api-socket", server.socket)
    assert done.returncode == 1 and "in use" in done.stderr
    assert server.is_up()
    (tmp_path / "file").write_text("precious")
    done = server.run("run", "--name", "u", "--api-socket", tmp_path / "file")
    assert done.returncode == 1 and "not a socket" in done.stderr
    assert (tmp_path / "file").read_text() == "precious"
    assert ps(server, "--quiet") == "t\n"


@needs_kvm
def test_every_run_is_listed(tmp_path):
    """Without --name too; and where there is no runtime directory it runs all the same."""
    kernel = halting_kernel(tmp_path / "kernel.elf")
    run = tmp_path / "run"
    args = [QUIRE, "run", "--kernel", kernel, "--serial", "null", "--memory", "64M",
            "--shutdown-timeout", "0"]
    env = {**os.environ, "QUIRE_RUNTIME_DIR": str(run)}
    with process(args, env=env, stdin=subprocess.DEVNULL) as vm:
        def listed():
            done = subprocess.run([QUIRE, "ps", "--json"], env=env, capture_output=True)
            return json.loads(done.stdout or "[]")
        entry, = wait_for(lambda: [e for e in listed() if e["state"] == "Running"])
        assert entry["name"] == f"vm-{vm.pid}" and entry["pid"] == vm.pid
        done = subprocess.run([QUIRE, "ctl", entry["name"], "pause"], env=env)
        assert done.returncode == 0
        vm.terminate()
        assert vm.wait(60) == 143
    assert not list(run.iterdir())
    run.chmod(0o755)
    with process(args, env=env, stdin=subprocess.DEVNULL) as vm:
        wait_running(vm)
        vm.terminate()
        assert vm.wait(60) == 143
    # but a name that was asked for is wanted
    done = subprocess.run([*args, "--name", "x"], env=env, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True)
    assert done.returncode == 1 and "0700" in done.stderr


# ---- completion ----


COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"
_quire
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="session")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "quire"
    done = subprocess.run([QUIRE, "completion", "bash"], capture_output=True, check=True)
    path.write_bytes(done.stdout)
    subprocess.run(["bash", "-n", path], check=True)
    return path


def complete(script, *words, env=None):
    path = os.pathsep.join([os.path.dirname(QUIRE), os.environ["PATH"]])
    done = subprocess.run(["bash", "-c", COMPLETE, "bash", script, "quire", *words],
                          env={**os.environ, **(env or {}), "PATH": path}, text=True,
                          capture_output=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_completion_of_commands_and_options(script):
    commands = complete(script, "")
    assert {"run", "ps", "ctl", "doctor", "bench", "completion", "--help"} <= commands
    assert complete(script, "d") == {"doctor"}
    options = complete(script, "run", "--")
    listed = set(re.findall(r"^  (--[a-z-]+)", subprocess.run(
        [QUIRE, "run", "--help"], capture_output=True, text=True).stdout, re.M))
    assert listed <= options
    assert complete(script, "run", "--ker") == {"--kernel"}
    assert complete(script, "bench", "") == {"touch", "populate", "walk", "dirty", "pager",
                                             "migrate", "restore", "snapshot"}
    assert "--vcpus" in complete(script, "bench", "touch", "--")
    assert complete(script, "completion", "") == {"bash", "zsh"}
    assert complete(script, "doctor", "--j") == {"--json"}
    assert complete(script, "nonsense", "") == set()


def test_completion_of_values(script, tmp_path):
    assert complete(script, "run", "--irqchip", "") == {"kernel", "split"}
    assert complete(script, "run", "--disk", "pa") == {"path="}
    # as bash cuts --disk path=a.img,rea
    assert complete(script, "run", "--disk", "path", "=", "a.img,rea") == {"a.img,readonly="}
    (tmp_path / "vmlinux").touch()
    assert complete(script, "run", "--kernel", f"{tmp_path}/vm") == {f"{tmp_path}/vmlinux"}
    assert complete(script, "run", "--disk", "path", "=", f"{tmp_path}/vm") == {
        f"{tmp_path}/vmlinux"}
    assert "--memory" in complete(script, "run", "--kernel", "x", "--mem")


def test_completion_of_snapshots(script, server, tmp_path):
    assert complete(script, "snapshot", "", env=server.env) == {"t"}
    (tmp_path / "there").mkdir()
    (tmp_path / "this-file").touch()
    assert complete(script, "snapshot", "t", f"{tmp_path}/th") == {f"{tmp_path}/there"}
    assert complete(script, "restore", f"{tmp_path}/th") == {f"{tmp_path}/there"}
    assert complete(script, "snapshot", "t", "x", "--dis") == {"--disks"}
    assert complete(script, "snapshot", "--disks", "c") == {"clone", "copy"}
    assert {"private", "eager"} <= complete(script, "restore", "--memory", "")
    assert complete(script, "restore", "--landlock-rules", "pa") == {"path="}


def test_completion_of_vms_and_verbs(script, server):
    # "quire" in the script has to be the one that is tested
    assert complete(script, "ctl", "", env=server.env) == {"t"}
    verbs = complete(script, "ctl", "t", "", env=server.env)
    assert {"pause", "add-disk", "metrics", "ping", "vmm.shutdown", "shutdown"} <= verbs
    for verb in verbs:
        assert server.ctl("--timeout", "1", "nobody", verb).returncode == 1, verb
    assert complete(script, "ctl", "t", "po") == {"power-button", "populate"}


def test_completion_for_zsh():
    done = subprocess.run([QUIRE, "completion", "zsh"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("#compdef quire\n")
    assert subprocess.run([QUIRE, "completion", "fish"], capture_output=True).returncode == 2
