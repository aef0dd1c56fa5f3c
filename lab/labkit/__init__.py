# SPDX-License-Identifier: Apache-2.0
"""The parts of quire's lab: a nested host for testing KVM code anywhere.

debian   fetches packages through apt without touching its configuration
kernel   unpacks kernels: vmlinux from bzImage, modules and their order
cpio     writes initramfs archives
assets   builds the cache of kernels and initramfs images
machine  starts virtiofsd and QEMU and makes sure that both end
channel  speaks to the agent inside
"""


class LabError(Exception):
    """Something a person can act on; the text says what."""
