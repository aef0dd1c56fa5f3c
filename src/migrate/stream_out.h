/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What goes out on a data stream: messages are gathered and sent together,
 * pages compressed where that is wanted.
 *
 * One thread's, but for the counters, which any may read. Errors are those of
 * migrate/link.h, in words.
 */
#ifndef QUIRE_MIGRATE_STREAM_OUT_H
#define QUIRE_MIGRATE_STREAM_OUT_H

#include <stdatomic.h>

#include "migrate/link.h"
#include "migrate/pack.h"

#define STREAM_OUT_HEADERS (WIRE_UNIT_PAGES + 1) /* and UNIT behind them */
#define STREAM_OUT_IOV	   1024u /* what the kernel takes at once: UIO_MAXIOV */

struct stream_out {
	struct link link; /* the caller's to set up */

	/* Gathered, and not sent yet. */
	uint8_t headers[STREAM_OUT_HEADERS][WIRE_DATA_BYTES];
	struct iovec iov[STREAM_OUT_IOV];
	unsigned int num_headers, num_iov;

	enum pack_method pack;
	struct packer *packer; /* NULL: nothing is compressed */
	uint8_t *copy;	       /* of pages, which no guest changes */
	uint8_t *packed;       /* of a unit; it never becomes larger */
	size_t packed_len;

	_Atomic uint64_t page_bytes, zero_bytes;
	_Atomic uint64_t wire_bytes;	     /* with headers */
	_Atomic uint64_t pack_from, pack_to; /* of pages that went compressed */
};

/* All zero before, but for link. -ENOMEM; fini is fine then, too. */
__must_check int stream_out_init(struct stream_out *o, enum pack_method pack);
/* All zero is fine. link stays open. */
void stream_out_fini(struct stream_out *o);

/* Nothing is gathered; what was is not sent. */
void stream_out_begin(struct stream_out *o);
bool stream_out_is_empty(const struct stream_out *o);
/* Any message, and len bytes behind it, which stay there until the flush. */
void stream_out_put(struct stream_out *o, const struct wire_data_header *h,
		    const char *data, size_t len);
/*
 * len bytes of pages of guest memory, at most a unit, that are at from (and may
 * change until the flush); NULL: zeroes. There is room for UNIT behind it. What
 * was gathered before is sent if there is not.
 */
__must_check int stream_out_put_pages(struct stream_out *o, uint64_t gpa,
				      const char *from, uint64_t len,
				      struct err *err);
__must_check int stream_out_flush(struct stream_out *o, struct err *err);

/* One message alone, without anything behind it. */
__must_check int stream_out_mark(struct stream_out *o, enum wire_data type,
				 uint64_t gpa, uint64_t len, struct err *err);

#endif
