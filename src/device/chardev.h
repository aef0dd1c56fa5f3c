/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A character device's host side: where the bytes of a serial port or a virtio
 * console go and come from.
 *
 *	tty (or stdio)	this process's terminal, raw while the VM runs
 *	file=PATH	output, to a new or emptied file; no input
 *	socket=PATH	a listening Unix socket, one client at a time
 *	null (or off)	output dropped, no input
 *
 * Output is collected and written by a thread of the chardev's own, so a byte
 * costs its sender no system call (see outq.h for what happens when the reader
 * is slow). Input is read on the control thread, never more than the client has
 * room for.
 *
 * Threads: chardev_write, _resume_input, _flush and _set_waiting from any;
 * everything else from the thread of the event loop it was started on (or
 * before that runs, or after), here called the control thread. The chardev
 * calls its client on that thread, holding no lock.
 */
#ifndef QUIRE_DEVICE_CHARDEV_H
#define QUIRE_DEVICE_CHARDEV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct evloop;

enum chardev_kind {
	CHARDEV_TTY,
	CHARDEV_FILE,
	CHARDEV_SOCKET,
	CHARDEV_NULL,
};

struct chardev_config {
	enum chardev_kind kind;
	char *path;	    /* file and socket; owned */
	const char *option; /* for messages; borrowed */
	bool given;	    /* by the user, not a default */
};

/* The default: tty, "--serial". */
void chardev_config_init(struct chardev_config *cfg);
void chardev_config_fini(struct chardev_config *cfg);

/* "tty", "null", "file=PATH", "socket=PATH". option must stay valid. */
__must_check int chardev_config_parse(struct chardev_config *cfg,
				      const char *option, const char *text,
				      struct err *err);

/* The device that the guest sees; all called on the control thread. */
struct chardev_client {
	/* How many bytes receive() would take now. */
	size_t (*room)(void *ctx);
	/* len is at most what room() last said. */
	void (*receive)(void *ctx, const uint8_t *data, size_t len);
	/* A break condition on the line. May be NULL. */
	void (*receive_break)(void *ctx);
	/* chardev_size() has changed. May be NULL. */
	void (*resized)(void *ctx);
	void *ctx;
};

struct chardev;

struct chardev_ops {
	int (*start)(struct chardev *chr, struct evloop *loop, struct err *err);
	void (*write)(struct chardev *chr, const uint8_t *data, size_t len);
	void (*resume_input)(struct chardev *chr);
	int (*flush)(struct chardev *chr, uint64_t stall_ns);
	void (*set_waiting)(struct chardev *chr, bool waiting);
	uint64_t (*dropped)(struct chardev *chr);
	int (*size)(struct chardev *chr, uint16_t *ret_cols,
		    uint16_t *ret_rows);
	void (*free)(struct chardev *chr);
};

/* Embedded in each implementation. Every op but free may be NULL. */
struct chardev {
	const struct chardev_ops *ops;
	struct chardev_client client; /* all NULL until a device attaches */
};

/* Open what cfg names. cfg is not needed afterwards. */
__must_check int chardev_new(struct chardev **ret,
			     const struct chardev_config *cfg, struct err *err);

/*
 * Stop, write out what is buffered (unless its reader takes nothing for five
 * seconds), restore the terminal, remove the socket. Before the loop is freed,
 * after the client. NULL is fine.
 */
void chardev_free(struct chardev *chr);

/*
 * Called by the device; NULL detaches it. Another may follow at any time (a
 * machine that was rebuilt to reboot): input waits in between, output has been
 * taken already.
 */
void chardev_set_client(struct chardev *chr,
			const struct chardev_client *client);

/*
 * Begin: the terminal becomes raw, the socket accepts, input flows. Until then
 * output is only kept.
 */
__must_check int chardev_start(struct chardev *chr, struct evloop *loop,
			       struct err *err);

void chardev_write(struct chardev *chr, const uint8_t *data, size_t len);

/* The client has room again after room() had returned 0. */
void chardev_resume_input(struct chardev *chr);

/*
 * Wait until all output is written, as long as its reader takes something every
 * stall_ns. -ETIMEDOUT, or -EIO if it cannot be written at all.
 */
int chardev_flush(struct chardev *chr, uint64_t stall_ns);

/*
 * With waiting off a full buffer drops output instead of waiting for its
 * reader: the machine is being stopped and its vCPU threads have to return. On
 * again for the next machine. Default: on.
 */
void chardev_set_waiting(struct chardev *chr, bool waiting);

/* Output bytes lost since the start. */
uint64_t chardev_dropped(struct chardev *chr);

/* The window that output appears in. -ENOTTY: there is none. */
int chardev_size(struct chardev *chr, uint16_t *ret_cols, uint16_t *ret_rows);

#endif
