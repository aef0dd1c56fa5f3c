/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/memory_out.h"

#include <errno.h>
#include <liburing.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/io.h"

/* Runs in flight; each is at most what one unit has. */
#define DEPTH 32

struct slot {
	const char *p;
	size_t len;
	uint64_t offset;
	struct slot *next_free;
};

struct memory_out {
	int fd;
	bool sync; /* no io_uring */
	struct io_uring ring;
	struct slot slots[DEPTH];
	struct slot *idle;
	unsigned int inflight;
	int error; /* first failure */
	uint64_t error_offset;
};

/*
 * From here on it writes and does nothing else, whoever has the ring: io_uring
 * is no way around the thread's filter, which has pwrite64. No registered
 * files: the kernel would keep the file open for a while after the ring's end.
 */
static int restrict_ring(struct io_uring *ring)
{
	struct io_uring_restriction list[1];

	memset(list, 0, sizeof(list));
	list[0].opcode = IORING_RESTRICTION_SQE_OP;
	list[0].sqe_op = IORING_OP_WRITE;
	/* liburing 2.3 declares functions for both but does not export them. */
	if (syscall(SYS_io_uring_register, ring->ring_fd,
		    IORING_REGISTER_RESTRICTIONS, list, ARRAY_SIZE(list)) < 0 ||
	    syscall(SYS_io_uring_register, ring->ring_fd,
		    IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0)
		return -errno;
	return 0;
}

static int make_ring(struct io_uring *ring)
{
	int r = io_uring_queue_init(DEPTH, ring, IORING_SETUP_R_DISABLED);

	if (r)
		return r;
	r = restrict_ring(ring);
	if (r)
		io_uring_queue_exit(ring);
	return r;
}

int memory_out_new(struct memory_out **ret, int fd)
{
	struct memory_out *out = calloc(1, sizeof(*out));

	if (!out)
		return -ENOMEM;
	out->fd = fd;
	/* Why it fails (a sysctl, a filter, an old kernel) does not matter. */
	out->sync = make_ring(&out->ring) < 0;
	for (unsigned int i = 0; i < DEPTH; i++) {
		out->slots[i].next_free = out->idle;
		out->idle = &out->slots[i];
	}
	*ret = out;
	return 0;
}

static void note_error(struct memory_out *out, int error, uint64_t offset)
{
	if (out->error)
		return;
	out->error = error;
	out->error_offset = offset;
}

/* What a short write left is written here; a full disk then says so. */
static void complete(struct memory_out *out, struct slot *slot, int res)
{
	int r = res;

	if (res == -EINTR || res == -EAGAIN)
		res = r = 0;
	if (r >= 0 && (size_t)res < slot->len)
		r = io_pwrite_full(out->fd, slot->p + res,
				   slot->len - (size_t)res,
				   slot->offset + (uint64_t)res);
	if (r < 0)
		note_error(out, r, slot->offset);
	slot->next_free = out->idle;
	out->idle = slot;
	out->inflight--;
}

/* One completion at least. */
static void reap(struct memory_out *out)
{
	struct io_uring_cqe *cqe;
	int r = io_uring_submit_and_wait(&out->ring, 1);

	if (r < 0 && r != -EINTR && r != -EAGAIN && r != -EBUSY)
		note_error(out, r, 0);
	while (!io_uring_peek_cqe(&out->ring, &cqe)) {
		complete(out, io_uring_cqe_get_data(cqe), cqe->res);
		io_uring_cqe_seen(&out->ring, cqe);
	}
}

int memory_out_write(struct memory_out *out, const void *p, size_t len,
		     uint64_t offset)
{
	struct io_uring_sqe *sqe;
	struct slot *slot;

	if (out->sync) {
		int r = io_pwrite_full(out->fd, p, len, offset);

		if (r)
			note_error(out, r, offset);
		return out->error;
	}
	while (!out->idle)
		reap(out);
	slot = out->idle;
	out->idle = slot->next_free;
	*slot = (struct slot){ .p = p, .len = len, .offset = offset };
	/* There are as many entries as slots. */
	sqe = io_uring_get_sqe(&out->ring);
	BUG_ON(!sqe);
	io_uring_prep_write(sqe, out->fd, p, (unsigned int)len, offset);
	io_uring_sqe_set_data(sqe, slot);
	out->inflight++;
	return out->error;
}

void memory_out_kick(struct memory_out *out)
{
	/* What it cannot begin is begun, and an error seen, by the wait. */
	if (!out->sync && out->inflight)
		(void)!io_uring_submit(&out->ring);
}

int memory_out_drain(struct memory_out *out, uint64_t *ret_offset)
{
	while (out->inflight)
		reap(out);
	if (out->error && ret_offset)
		*ret_offset = out->error_offset;
	return out->error;
}

void memory_out_free(struct memory_out *out)
{
	if (!out)
		return;
	(void)!memory_out_drain(out, NULL);
	if (!out->sync)
		io_uring_queue_exit(&out->ring);
	free(out);
}
