/* SPDX-License-Identifier: Apache-2.0 */
/* virtio-console: a console without a UART (hvc0). See console.c. */
#ifndef QUIRE_VIRTIO_CONSOLE_H
#define QUIRE_VIRTIO_CONSOLE_H

#include "virtio/virtio.h"

extern const struct virtio_class virtio_console_class;

#endif
