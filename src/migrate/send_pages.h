/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory on its way out, and disks: the caller takes what was written out of
 * the log, a thread for each data stream sends it.
 *
 *	start -> round* -> end or stop
 *
 * One thread calls. What was written is taken late, a piece at a time, just
 * before it is sent: what is written again until then is sent once.
 */
#ifndef QUIRE_MIGRATE_SEND_PAGES_H
#define QUIRE_MIGRATE_SEND_PAGES_H

#include "mem/dirty.h"
#include "mem/hints.h"
#include "migrate/disks.h"
#include "migrate/link.h"
#include "migrate/pack.h"

struct send_pages;

struct send_pages_config {
	const struct ram *ram;
	struct dirty_tracker *dirty;   /* tracking */
	const struct mem_hints *hints; /* what need not be sent, or NULL */
	struct migrate_disks disks;    /* tracked; none: num is 0 */
	const int *fds;		/* of the data streams; stay the caller's */
	struct tls *const *tls; /* of fds, each may be NULL; NULL: none */
	unsigned int num;
	uint64_t patience_ns;
	enum pack_method pack;	   /* how pages are compressed */
	uint64_t rate_bytes_per_s; /* all together; 0: as fast as it goes */
	/*
	 * Called on the caller's thread some times a second: a negative errno,
	 * and err, ends the round.
	 */
	int (*tick)(void *ctx, struct err *err);
	void *ctx;
};

struct send_pages_count {
	uint64_t page_bytes, zero_bytes;
	uint64_t unused_bytes; /* left out, since nobody needs them */
	uint64_t disk_bytes, disk_zero_bytes;
	uint64_t wire_bytes; /* with headers */
	/* Of pages that were compressed: before, and on the wire. */
	uint64_t pack_from_bytes, pack_to_bytes;
	uint64_t in_hand_bytes; /* out of the log, and not sent yet */
};

__must_check int send_pages_start(struct send_pages **ret,
				  const struct send_pages_config *cfg,
				  struct err *err);

/*
 * Send what is dirty now, once: in the first round all that is not zero. last:
 * nothing holds it back.
 */
__must_check int send_pages_round(struct send_pages *p, bool last,
				  struct err *err);

/* All has been sent, and the streams end. Frees nothing. */
__must_check int send_pages_end(struct send_pages *p, struct err *err);

/* The threads are gone, whatever they were at. NULL is fine. */
void send_pages_free(struct send_pages *p);

void send_pages_set_patience(struct send_pages *p, uint64_t ns);
/* Any time. */
void send_pages_read(struct send_pages *p, struct send_pages_count *ret);

#endif
