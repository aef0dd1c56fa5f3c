# SPDX-License-Identifier: Apache-2.0
"""The unit tests that need a second stage: here is a KVM that has one."""
import os
import pathlib
import subprocess

from conftest import BOOT_SECONDS

BUILD = pathlib.Path(os.environ["QUIRE"]).parent


def test_stage2_unit():
    """Filling by each method, beside a running guest, repair, coalescing."""
    done = subprocess.run([BUILD / "tests/unit/test_stage2"], timeout=4 * BOOT_SECONDS, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    assert "SKIPPED" not in done.stdout, done.stdout
