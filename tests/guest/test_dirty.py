# SPDX-License-Identifier: Apache-2.0
"""Dirty tracking where KVM has a real second stage: tests/kvm/test_dirty.py there."""
import importlib.util
import pathlib

import pytest

SOURCE = pathlib.Path(__file__).resolve().parent.parent / "kvm" / "test_dirty.py"
SPEC = importlib.util.spec_from_file_location("kvm_test_dirty", SOURCE)
MODULE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MODULE)

test_nothing_is_lost = MODULE.test_nothing_is_lost
test_wrong_order_is_noticed = MODULE.test_wrong_order_is_noticed


@pytest.mark.parametrize("memory,method,entries", [
    ("512M", "bitmap", 0), ("512M,dirty-log=ring,dirty-ring=1024", "ring", 1024)])
def test_linux_guest_has_a_log_prepared(quire, memory, method, entries):
    got = quire.run("true", cpus=2, memory=memory)
    assert got.status == 0 and got.job_status == 0, got
    log = got.summary["memory"]["dirty_log"]
    assert (log["method"], log["ring_entries"], log["tracking"]) == (method, entries, False)
