/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host's side of a console, which outlives the device: a machine that
 * reboots is built anew from the same configuration, and the console's file is
 * not begun again by that, nor its socket's client cut off.
 *
 * It is a chardev with an event loop for it, and belongs to the device's
 * configuration. The device that has it at the time runs the loop; between two
 * devices nobody does.
 *
 * Threads: all calls from the control thread while the loop does not run, but
 * start(), which is for the loop's thread.
 */
#ifndef QUIRE_VIRTIO_CONSOLE_BACKEND_H
#define QUIRE_VIRTIO_CONSOLE_BACKEND_H

#include "base/evloop.h"
#include "device/chardev.h"

struct console_backend {
	struct chardev_config cfg;
	struct evloop *loop;
	struct chardev *chr; /* NULL: not open */
	bool started;
};

/* Open what ->cfg names, if it is not. */
__must_check int console_backend_open(struct console_backend *backend,
				      struct err *err);

/* Begin input and output, if that has not happened. */
__must_check int console_backend_start(struct console_backend *backend,
				       struct err *err);

/* The device goes. A terminal gets its settings back; the rest stays. */
void console_backend_release(struct console_backend *backend);

/* Close it for good. Fine when not open. */
void console_backend_close(struct console_backend *backend);

#endif
