# SPDX-License-Identifier: Apache-2.0
"""virtio-fs through the real virtiofsd: contents, many files, and its death."""
import contextlib
import hashlib
import os
import pathlib
import signal
import subprocess
import time

import pytest

from conftest import BOOT_SECONDS, stop, wait_for

VIRTIOFSD = next((p for p in ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")
                  if os.access(p, os.X_OK)), None)
MIB = 1 << 20

pytestmark = pytest.mark.skipif(not VIRTIOFSD or os.geteuid() != 0,
                                reason="needs virtiofsd, and root for it")


@pytest.fixture
def share(tmp_path):
    path = tmp_path / "share"
    path.mkdir()
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def virtiofsds():
    """All that there are, which may be those of a test before on their way out."""
    return {int(p) for p in subprocess.run(["pgrep", "-x", "virtiofsd"], capture_output=True,
                                           text=True).stdout.split()}


def wait_gone(before):
    """Until there are no others than before: what is killed goes a little later."""
    deadline = time.monotonic() + BOOT_SECONDS
    while left := virtiofsds() - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def exchange(quire, share, *options):
    """The guest reads what the host wrote and the other way round."""
    (share / "from-host").write_bytes(os.urandom(5 * MIB + 123))
    expected = sha256(share / "from-host")
    result = quire.run(f"""
        set -e
        mount -t virtiofs data /mnt
        echo "{expected}  /mnt/from-host" | sha256sum -c
        dd if=/dev/urandom of=/mnt/from-guest bs=64k count=100 2>/dev/null
        sync
        sha256sum /mnt/from-guest
        mkdir /mnt/many
        i=0
        while [ $i -lt 300 ]; do echo "file $i" >/mnt/many/$i; i=$((i + 1)); done
        rm /mnt/many/7
        mv /mnt/many/8 /mnt/many/renamed
        ln -s renamed /mnt/many/link
        test "$(cat /mnt/many/link)" = "file 8"
        umount /mnt
        """, extra=options, cpus=2)
    assert result.status == 0 and result.job_status == 0, result
    assert sha256(share / "from-guest") in result.console
    assert (share / "from-guest").stat().st_size == 100 * 65536
    names = {p.name for p in (share / "many").iterdir()}
    assert names == {str(i) for i in range(300)} - {"7", "8"} | {"renamed", "link"}
    assert all((share / "many" / str(i)).read_text() == f"file {i}\n" for i in (0, 6, 299))
    return result


def test_directory(quire, share):
    before = virtiofsds()
    exchange(quire, share, "--fs", f"tag=data,path={share}")
    wait_gone(before)


def test_socket_and_reboot(quire, share, tmp_path):
    """A virtiofsd of the user's, which ends with its connection, lives through a reboot."""
    sock = tmp_path / "fs.sock"
    (share / "count").write_text("")
    with virtiofsd(sock, share):
        result = quire.run("mount -t virtiofs data /mnt; echo boot >>/mnt/count; "
                           "[ $(wc -l </mnt/count) = 3 ] && poweroff -f; sync",
                           end="reboot", extra=["--fs", f"tag=data,socket={sock}"])
    assert result.status == 0, result
    assert (share / "count").read_text() == "boot\n" * 3
    assert result.boots == 3


def test_readonly(quire, share):
    (share / "kept").write_text("as it was")
    result = quire.run("mount -t virtiofs data /mnt && cat /mnt/kept && "
                       "! echo spoilt >/mnt/kept && ! rm /mnt/kept && ! touch /mnt/new",
                       extra=["--fs", f"tag=data,path={share},readonly=on"])
    assert result.job_status == 0, result
    assert "as it was" in result.console and "Read-only file system" in result.console
    assert (share / "kept").read_text() == "as it was"
    assert not (share / "new").exists()


class virtiofsd:
    """A virtiofsd of the user's at a socket."""

    def __init__(self, sock, share):
        self.argv = [VIRTIOFSD, f"--socket-path={sock}", "-f", "-o", f"source={share}",
                     "-o", "log_level=err"]
        self.sock = pathlib.Path(sock)

    def __enter__(self):
        self.sock.unlink(missing_ok=True)
        self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + BOOT_SECONDS
        while not self.sock.exists():
            assert self.process.poll() is None, "virtiofsd ended"
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return self

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.kill()


# A guest that keeps reading, says when that fails, and mounts anew until that succeeds.
LIVES_ON = """
    mount -t virtiofs data /mnt
    echo ready to be hit
    n=0
    while dd if=/mnt/file of=/dev/null bs=64k 2>/tmp/why; do
        n=$((n + 1))
        echo 3 >/proc/sys/vm/drop_caches
    done
    grep -q 'not connected' /tmp/why && echo read failed as it should
    cat /tmp/why
    umount /mnt
    tries=0
    # Linux mounts without waiting for the server's answer: it shows in the first use.
    until mount -t virtiofs data /mnt && cat /mnt/message; do
        umount /mnt
        tries=$((tries + 1))
        [ $tries -lt 240 ] || exit 1
        sleep 1
    done
"""


def test_virtiofsd_dies_and_returns(quire, share, tmp_path):
    sock = tmp_path / "fs.sock"
    (share / "file").write_bytes(os.urandom(4 * MIB))
    (share / "message").write_text("all is well again\n")
    with virtiofsd(sock, share) as first:
        process = quire.start(LIVES_ON, extra=["--fs", f"tag=data,socket={sock}"])
        seen = wait_for(process, "ready to be hit")
        time.sleep(2)
        first.kill()
        seen += wait_for(process, "read failed as it should")
        with virtiofsd(sock, share):
            # Both may come at once, and what is read is not read again.
            seen += wait_for(process, "quire-guest: exit 0")
            assert "all is well again" in seen, seen
            process.communicate(timeout=BOOT_SECONDS)
    assert process.returncode == 0, seen


def test_own_virtiofsd_dies(quire, share):
    """Of a directory that is gone: errors in the guest, and quire goes on and ends in order."""
    (share / "file").write_bytes(os.urandom(4 * MIB))
    before = virtiofsds()
    process = quire.start(LIVES_ON, extra=["--fs", f"tag=data,path={share}"])
    wait_for(process, "ready to be hit")
    own = virtiofsds() - before
    assert own
    for pid in own:
        with contextlib.suppress(ProcessLookupError):  # it goes with its parent
            os.kill(pid, signal.SIGKILL)
    wait_for(process, "read failed as it should")
    assert stop(process) == 128 + signal.SIGINT
    wait_gone(before)
