/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Progress of long work, on standard error: on a terminal one line that is
 * rewritten, elsewhere one line of JSON a second. Work that ends within a
 * second prints nothing. One thread.
 */
#ifndef QUIRE_BASE_PROGRESS_H
#define QUIRE_BASE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct progress {
	const char *what; /* "populate": one word */
	FILE *out;
	bool terminal;
	bool shown; /* a line is there to be ended */
	uint64_t next_ns;
};

/* what is kept. */
void progress_init(struct progress *p, const char *what);

/* done of total bytes after elapsed_ns of work; as often as one likes. */
void progress_update(struct progress *p, uint64_t done, uint64_t total,
		     uint64_t elapsed_ns);

/* Leaves the terminal at the beginning of a line. */
void progress_end(struct progress *p);

#endif
