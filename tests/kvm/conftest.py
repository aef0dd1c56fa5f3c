# SPDX-License-Identifier: Apache-2.0
"""What tests on this machine's own KVM share."""
import pathlib

import pytest

from host_kit import locked

POOL = pathlib.Path("/proc/sys/vm/nr_hugepages")


def resize_pool(pages):
    """By so many 2M pages, in the host's pool of them; by how many it was."""
    before = int(POOL.read_text())
    POOL.write_text(str(max(before + pages, 0)))
    return int(POOL.read_text()) - before


@pytest.fixture
def pool_lock():
    """The pool is the host's: one test at a time, of those that run side by side."""
    with locked("hugetlb"):
        yield


@pytest.fixture
def hugetlb(pool_lock):
    """hugetlb(MIB) has the host keep so much in 2M pages until the test is over, or skips it."""
    added = []

    def reserve(mib):
        pages = mib // 2
        try:
            got = resize_pool(pages)
        except OSError as e:
            pytest.skip(f"no pool of 2M pages to be had: {e}")
        added.append(got)
        if got < pages:
            pytest.skip(f"the host has {2 * got} MiB for 2M pages, {mib} are needed")

    yield reserve
    for got in added:
        resize_pool(-got)
