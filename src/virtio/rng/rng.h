/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-rng: the class for the registry. All else goes through it; see
 * virtio/virtio.h for threads and ownership.
 *
 * Source: virtio 1.2 section 5.4.
 */
#ifndef QUIRE_VIRTIO_RNG_H
#define QUIRE_VIRTIO_RNG_H

#include "virtio/virtio.h"

extern const struct virtio_class virtio_rng_class;

#endif
