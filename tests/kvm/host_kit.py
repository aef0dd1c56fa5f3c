# SPDX-License-Identifier: Apache-2.0
"""What tests on this machine's own KVM ask of the host that others change meanwhile."""
import contextlib
import fcntl
import pathlib
import subprocess
import tempfile
import time

SECONDS = 60  # for what has to happen; a hang otherwise


@contextlib.contextmanager
def locked(what):
    """One at a time has this thing of the host's, of the tests that run side by side."""
    with open(pathlib.Path(tempfile.gettempdir()) / f"quire-tests-{what}", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def of_threads(pid, name):
    """What /proc has by that name of a process's threads, but of those that end meanwhile."""
    texts = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            texts.append((task / name).read_text())
        except (FileNotFoundError, ProcessLookupError):
            pass
    return texts


def unmount(place):
    """Files of a process that has ended may be open a little longer: the kernel takes down
    an io_uring, and what it has in hand, when it comes to it."""
    end = time.monotonic() + SECONDS
    while (done := subprocess.run(["umount", place], capture_output=True,
                                  text=True)).returncode:
        assert "busy" in done.stderr and time.monotonic() < end, done.stderr
        time.sleep(0.05)
