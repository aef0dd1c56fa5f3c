/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-fs: a directory of the host in the guest, served by virtiofsd.
 * See virtio/virtio.h for the life of a device.
 */
#ifndef QUIRE_VIRTIO_FS_H
#define QUIRE_VIRTIO_FS_H

#include "virtio/virtio.h"

extern const struct virtio_class virtio_fs_class;

#endif
