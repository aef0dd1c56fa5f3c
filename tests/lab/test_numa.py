# SPDX-License-Identifier: Apache-2.0
"""Guest RAM on the NUMA nodes that were asked for, on a host with two."""
import os
import re
import subprocess
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent
BUILD = Path(os.environ.get("QUIRE", REPO / "build/quire")).parent

# Start a guest, wait until it is up, print where its memory is, stop it.
RUN = r"""
show() {
    echo "== $1"
    $QUIRE run --kernel $GUEST_KERNEL --initramfs $GUEST_INITRD --serial file=/tmp/console --shutdown-timeout 0 \
        --memory "$1" --cmdline "console=ttyS0 quiet quire.modules=none quire.end=stay" &
    for i in $(seq 300); do
        grep -q "quire-guest: init" /tmp/console 2>/dev/null && break
        kill -0 $! || break
        sleep 0.3
    done
    cat /proc/$!/numa_maps
    kill -TERM $!
    wait $!
    echo "== ended $?"
    rm -f /tmp/console
}
refused() {
    echo "== $1"
    $QUIRE run --kernel $GUEST_KERNEL --memory "$1" 2>&1
    echo "== ended $?"
}
"""


def lab(script):
    """What a script says, of the last try: --retries has it said again."""
    begin = "== begin\n"
    done = subprocess.run(["lab/run", "--numa", "2", "--retries", "1", "--timeout", "900", "--",
                           "sh", "-c", f"echo {begin.strip()}; {RUN}{script}"], cwd=REPO,
                          text=True, check=False, stdin=subprocess.DEVNULL, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.rpartition(begin)[2]


def sections(text):
    """{heading: body}; a body ends with quire's status."""
    return dict(re.findall(r"^== (\S+)\n(.*?^== ended \d+)\n", text, re.M | re.S))


def pages(numa_maps, policy):
    """Pages of 4K on each node, over mappings with this policy."""
    counts = [0, 0]
    for line in numa_maps.splitlines():
        if line.split()[1:2] == [policy]:
            unit = int(re.search(r"kernelpagesize_kB=(\d+)", line)[1]) // 4
            for node in (0, 1):
                found = re.search(rf" N{node}=(\d+)", line)
                counts[node] += int(found[1]) * unit if found else 0
    return counts


def test_unit_tests_that_want_two_nodes():
    out = lab(f"exec {BUILD}/tests/unit/test_numa 2>&1")
    assert "SKIPPED" not in out and "FAILED" not in out, out
    assert "[       OK ] test_pages_are_placed" in out


def test_guest_memory():
    out = sections(lab("""
        show 256M,numa=bind:1,populate=host
        show 256M,numa=bind:0
        show 256M,numa=split,populate=host,page=4k
        show 256M,numa=interleave,shared=on,populate=host
        refused 256M,numa=bind:2
        echo 128 >/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages
        refused 256M,numa=bind:1,page=2m
        refused 256M,numa=split,page=2m
        show 256M,numa=bind:0,page=2m
        echo 0 >/proc/sys/vm/nr_hugepages
        """))
    assert len(out) == 8, out
    full = 256 * 256
    shown = {memory: body for memory, body in out.items() if body.endswith("ended 143")}
    assert len(shown) == 5, out
    assert pages(shown["256M,numa=bind:1,populate=host"], "bind:1") == [0, full]
    some = pages(shown["256M,numa=bind:0"], "bind:0")
    assert some[0] > 0 and some[1] == 0
    halves = shown["256M,numa=split,populate=host,page=4k"]
    assert pages(halves, "bind:0") == [full // 2, 0]
    assert pages(halves, "bind:1") == [0, full // 2]
    assert pages(shown["256M,numa=interleave,shared=on,populate=host"],
                 "interleave:0-1") == [full // 2, full // 2]
    some = pages(shown["256M,numa=bind:0,page=2m"], "bind:0")
    assert some[0] > 0 and some[1] == 0
    assert "this host has no node 2; there is memory to use on: 0-1" in out["256M,numa=bind:2"]
    for memory, need in (("256M,numa=bind:1,page=2m", 128), ("256M,numa=split,page=2m", 64)):
        assert f"{need} free huge pages of 2 MiB are needed on node 1, which has 0" in out[memory]
        assert f"echo {need} > /sys/devices/system/node/node1/" in out[memory]
        assert out[memory].endswith("ended 1")
