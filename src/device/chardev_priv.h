/* SPDX-License-Identifier: Apache-2.0 */
/* Inside src/device only: the chardevs, and what they share. */
#ifndef QUIRE_DEVICE_CHARDEV_PRIV_H
#define QUIRE_DEVICE_CHARDEV_PRIV_H

#include <stdbool.h>

#include "device/chardev.h"

/* How long a reader may take nothing before the rest is given up at the end. */
#define CHARDEV_FINAL_STALL_NS 5000000000ull

__must_check int chardev_tty_new(struct chardev **ret,
				 const struct chardev_config *cfg,
				 struct err *err);
__must_check int chardev_file_new(struct chardev **ret,
				  const struct chardev_config *cfg,
				  struct err *err);
__must_check int chardev_socket_new(struct chardev **ret,
				    const struct chardev_config *cfg,
				    struct err *err);

/* The client's calls; without a client there is no room for anything. */
size_t chardev_room(const struct chardev *chr);
void chardev_receive(const struct chardev *chr, const uint8_t *data,
		     size_t len);
void chardev_receive_break(const struct chardev *chr);
void chardev_resized(const struct chardev *chr);

#endif
