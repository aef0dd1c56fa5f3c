# SPDX-License-Identifier: Apache-2.0
"""Dirty tracking where KVM has a real second stage: tests/kvm/test_dirty.py there."""
import importlib.util
import pathlib

SOURCE = pathlib.Path(__file__).resolve().parent.parent / "kvm" / "test_dirty.py"
SPEC = importlib.util.spec_from_file_location("kvm_test_dirty", SOURCE)
MODULE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MODULE)

test_nothing_is_lost = MODULE.test_nothing_is_lost
test_wrong_order_is_noticed = MODULE.test_wrong_order_is_noticed
