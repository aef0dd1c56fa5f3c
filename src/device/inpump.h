/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input of a character device: reads a descriptor on the control thread and
 * hands the bytes to the client as fast as the guest takes them. In between it
 * holds INPUMP_BYTES. When they are full the descriptor is left alone (a
 * hang-up is still noticed) and nothing is lost; but with drops set, which is
 * for a person at a terminal, it is read and filtered on, so that escape keys
 * work however much was typed at a guest that hangs. The rest is dropped then.
 *
 * Descriptors that epoll refuses because they are always ready (files,
 * /dev/null) work the same.
 *
 * Threads: resume from any; all else, and all callbacks, on the control thread.
 */
#ifndef QUIRE_DEVICE_INPUMP_H
#define QUIRE_DEVICE_INPUMP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"

#define INPUMP_BYTES 4096

struct chardev;
struct evloop;

struct inpump_ops {
	/*
	 * Look at what was read, and remove from it what is not for the guest:
	 * returns the new length. May be NULL.
	 */
	size_t (*filter)(void *ctx, uint8_t *data, size_t len);
	/*
	 * The input ended (error 0) or failed, and the pump is closed. The
	 * descriptor is the owner's to close.
	 */
	void (*end)(void *ctx, int error);
	/* Hung up, but with input left to read. May be NULL. */
	void (*hangup)(void *ctx);
	void *ctx;
	bool drops; /* rather than not to read */
};

struct inpump {
	struct inpump_ops ops;
	struct chardev *chr;
	struct evloop *loop;
	int fd;	       /* borrowed; -1 while closed */
	int resume_fd; /* eventfd, watched always */
	int always_fd; /* eventfd that is always ready, or -1 */
	bool watching; /* for input */
	bool hung_up;
	atomic_bool waiting; /* for the client; cleared by inpump_resume */
	uint64_t dropped;
	uint32_t start, len; /* of what is held, a ring */
	uint8_t held[INPUMP_BYTES];
};

__must_check int inpump_init(struct inpump *pump, struct chardev *chr,
			     struct evloop *loop, const struct inpump_ops *ops);
/* Harmless on a zeroed or already finished pump. */
void inpump_fini(struct inpump *pump);

/* Begin to read fd, which stays the caller's. One at a time. */
__must_check int inpump_open(struct inpump *pump, int fd);
/*
 * Before the caller closes fd. What was read is still handed over. Harmless
 * when none is open.
 */
void inpump_close(struct inpump *pump);

/* The client may have room again. Cheap when the pump does not wait for it. */
void inpump_resume(struct inpump *pump);

#endif
