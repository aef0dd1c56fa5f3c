/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Post-copy at the source: memory that stands still, sent to who runs the VM
 * already. A page that somebody waits for there goes out on the urgent
 * connection as it is asked for; the rest is pushed on the data streams, what
 * is around the pages that were asked for first.
 *
 *	start -> go -> (failed, or the destination says that all has come)
 *		-> free
 *
 * One thread calls.
 */
#ifndef QUIRE_MIGRATE_PUSH_H
#define QUIRE_MIGRATE_PUSH_H

#include "base/thread_class.h"
#include "migrate/link.h"
#include "migrate/pack.h"
#include "migrate/page_map.h"

extern const struct thread_class migrate_push_thread_class;

struct push;

struct push_config {
	const struct ram *ram;		/* nobody writes it any more */
	const struct page_map *pending; /* what is to be sent; the caller's */
	/* Of the data streams, and that of requests; stay the caller's. */
	const int *fds;
	struct tls *const *tls; /* of fds, each may be NULL */
	unsigned int num;
	int urgent_fd;
	struct tls *urgent_tls; /* may be NULL */
	uint64_t patience_ns;
	enum pack_method pack;	   /* how what is pushed is compressed */
	uint64_t rate_bytes_per_s; /* of it, all together; 0: no limit */
};

struct push_count {
	uint64_t page_bytes, zero_bytes;
	uint64_t wire_bytes; /* with headers */
	/* Of pages that were compressed: before, and on the wire. */
	uint64_t pack_from_bytes, pack_to_bytes;
	uint64_t urgent_pages; /* that were asked for */
};

/* From here on what is asked for is answered. */
__must_check int push_start(struct push **ret, const struct push_config *cfg,
			    struct err *err);
/* And the rest is pushed. */
void push_go(struct push *p);
/* Has a connection failed? Then err (may be NULL) has the first. Any thread. */
bool push_failed(struct push *p, struct err *err);
/* The threads are gone, whatever they were at. NULL is fine. */
void push_free(struct push *p);

/* Any time. */
void push_read(struct push *p, struct push_count *ret);

#endif
