# SPDX-License-Identifier: Apache-2.0
"""blkverify has to find what is wrong; a verifier that cannot fail is none."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
BLOCK = 4096
OPTIONS = ["--seed", "7", "--mib", "4", "--ops", "600", "--sync-every", "20",
           "--discard", "10", "--zero", "10"]


@pytest.fixture(scope="session")
def tool():
    done = subprocess.run([REPO / "lab/assets", "--print"], check=True,
                          capture_output=True, text=True)
    directory = re.search(r"^GUEST_TOOLS=(.*)$", done.stdout, re.M)[1]
    return Path(directory) / "blkverify"


@pytest.fixture
def image(tool, tmp_path):
    path = tmp_path / "image"
    done = run(tool, *OPTIONS, path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified 1024 blocks, 0 wrong" in done.stdout
    assert done.stdout.count("flushed ") == 600 // 20 + 1
    return path


def run(tool, *arguments):
    return subprocess.run([tool, *map(str, arguments)], capture_output=True,
                          text=True, check=False)


def verify(tool, image, flushed=600, options=tuple(OPTIONS)):
    return run(tool, *options, "--verify", flushed, image)


def written(image):
    """Numbers of blocks that hold data."""
    data = image.read_bytes()
    return [n for n in range(len(data) // BLOCK)
            if data[n * BLOCK:(n + 1) * BLOCK].strip(b"\0")]


def change(image, offset, data):
    with open(image, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_good_image(tool, image):
    done = verify(tool, image)
    assert done.returncode == 0
    assert "0 wrong" in done.stdout


@pytest.mark.parametrize("where", [0, 9, 17, 25, 33, 37, 41, 2048, 4095])
def test_one_wrong_byte(tool, image, where):
    block = written(image)[3]
    byte = image.read_bytes()[block * BLOCK + where]
    change(image, block * BLOCK + where, bytes([byte ^ 1]))
    done = verify(tool, image)
    assert done.returncode == 1
    assert f"block {block}:" in done.stdout
    assert ", 1 wrong," in done.stdout


def test_a_block_in_the_wrong_place(tool, image):
    one, other = written(image)[:2]
    data = image.read_bytes()
    change(image, one * BLOCK, data[other * BLOCK:(other + 1) * BLOCK])
    done = verify(tool, image)
    assert done.returncode == 1
    assert "a block of another place" in done.stdout


def test_a_lost_block(tool, image):
    change(image, written(image)[0] * BLOCK, bytes(BLOCK))
    done = verify(tool, image)
    assert done.returncode == 1
    assert "zeroes where a flushed write belongs" in done.stdout


def test_data_where_nothing_was_written(tool, image):
    data = image.read_bytes()
    empty = next(n for n in range(1024) if n not in set(written(image)))
    change(image, empty * BLOCK, b"x" * BLOCK)
    assert data != image.read_bytes()
    done = verify(tool, image)
    assert done.returncode == 1
    assert "not a block of ours" in done.stdout


def test_another_seed(tool, image):
    done = verify(tool, image, options=["--seed", "8", *OPTIONS[2:]])
    assert done.returncode == 1


def test_an_old_block_where_a_flushed_one_belongs(tool, tmp_path):
    """Two images, one cut short: its blocks are right only for less."""
    options = ["--seed", "3", "--mib", "1", "--sync-every", "10"]
    short, whole = tmp_path / "short", tmp_path / "whole"
    assert run(tool, *options, "--ops", "100", short).returncode == 0
    assert run(tool, *options, "--ops", "300", whole).returncode == 0
    # As far as it says it got, all is well...
    done = run(tool, *options, "--ops", "300", "--verify", "100", short)
    assert done.returncode == 0, done.stdout
    # ...and what is newer than the last flush may be there too...
    done = run(tool, *options, "--ops", "300", "--verify", "100", whole)
    assert done.returncode == 0, done.stdout
    assert not re.search(r" 0 newer", done.stdout)
    # ...but a disk that promised more has lost it.
    done = run(tool, *options, "--ops", "300", "--verify", "300", short)
    assert done.returncode == 1
    assert "older than what was flushed" in done.stdout
    # One block is enough.
    old, new = short.read_bytes(), whole.read_bytes()
    block = next(n for n in range(256) if old[n * BLOCK:(n + 1) * BLOCK]
                 .strip(b"\0") and old[n * BLOCK:(n + 1) * BLOCK]
                 != new[n * BLOCK:(n + 1) * BLOCK])
    change(whole, block * BLOCK, old[block * BLOCK:(block + 1) * BLOCK])
    done = run(tool, *options, "--ops", "300", "--verify", "300", whole)
    assert done.returncode == 1
    assert ", 1 wrong," in done.stdout


def test_killed_at_any_moment(tool, tmp_path):
    """What a killed run printed as flushed is there."""
    options = ["--seed", "5", "--mib", "4", "--ops", "1000000",
               "--sync-every", "8", "--discard", "10"]
    image = tmp_path / "image"
    runner = subprocess.Popen([tool, *options, image], text=True,
                              stdout=subprocess.PIPE)
    lines = [runner.stdout.readline() for _ in range(20)]
    runner.send_signal(signal.SIGKILL)
    lines += runner.stdout.readlines()
    runner.wait()
    journal = tmp_path / "journal"
    journal.write_text("some console text\r\n" + "".join(lines))
    done = run(tool, *options, "--verify-journal", journal, image)
    assert done.returncode == 0, done.stdout
    flushed = int(re.search(r"flushed (\d+)", done.stdout)[1])
    assert flushed == 8 * len(lines) >= 160


def test_a_journal_cut_short(tool, image, tmp_path):
    journal = tmp_path / "journal"
    journal.write_text("flushed 20\r\n[ 1.0] flushed 40\nflushed 60")
    done = run(tool, *OPTIONS, "--verify-journal", journal, image)
    assert "flushed 40," in done.stdout


def test_a_discard_may_or_may_not_clear(tool, tmp_path):
    """Old data after a discard is right, data after zeroing is not."""
    for kind, status in (("--discard", 0), ("--zero", 1)):
        image = tmp_path / kind.strip("-")
        options = ["--mib", "1", "--ops", "100", "--sync-every", "100"]
        assert run(tool, *options, image).returncode == 0
        before = image.read_bytes()
        # The same schedule with clearing instead of some of the writes: its
        # cleared blocks that were written in the first run are candidates.
        os.unlink(image)
        options = ["--mib", "1", "--ops", "400", "--sync-every", "10",
                   kind, "30"]
        assert run(tool, *options, image).returncode == 0
        after = image.read_bytes()
        assert before != after
        short = tmp_path / "short"
        short.unlink(missing_ok=True)
        assert run(tool, *options[:2], "--ops", "390", *options[4:],
                   short).returncode == 0
        earlier = short.read_bytes()
        cleared = [n for n in range(256)
                   if earlier[n * BLOCK:(n + 1) * BLOCK].strip(b"\0")
                   and not after[n * BLOCK:(n + 1) * BLOCK].strip(b"\0")]
        assert cleared, "choose other options: nothing was cleared last"
        at = cleared[0] * BLOCK
        change(image, at, earlier[at:at + BLOCK])
        done = run(tool, *options, "--verify", "400", image)
        assert done.returncode == status, done.stdout


@pytest.mark.parametrize("arguments", [
    [], ["--mib", "0", "x"], ["--ops", "1x", "x"], ["--seed", "-1", "x"],
    ["--discard", "60", "--zero", "60", "x"], ["--frobnicate", "x"],
])
def test_usage(tool, arguments):
    done = run(tool, *arguments)
    assert done.returncode == 2
    assert "usage:" in done.stderr
