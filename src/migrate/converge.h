/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When a migration that copies beforehand may stop the guest: by what the stop
 * would take, out of what is left to send and how fast it goes. Plain numbers,
 * no clock of its own.
 */
#ifndef QUIRE_MIGRATE_CONVERGE_H
#define QUIRE_MIGRATE_CONVERGE_H

#include <stdbool.h>
#include <stdint.h>

struct converge {
	uint64_t downtime_ns; /* that may be taken */
	/* What a stop takes besides memory: saving, loading, messages. */
	uint64_t fixed_ns;
	double rate;	 /* bytes/s sent; 0: not known yet */
	double dirtying; /* bytes/s that get dirty; 0: not known yet */
	unsigned int rounds;
	uint64_t left; /* bytes, after the last round */
};

void converge_init(struct converge *c, uint64_t downtime_ns);

/*
 * A round took ns, sent sent_bytes (what was on the wire, or
 * would have been without compression), and left_bytes got
 * dirty meanwhile.
 */
void converge_round(struct converge *c, uint64_t sent_bytes, uint64_t ns,
		    uint64_t left_bytes);

/* How long the guest would stand still, were it stopped now. */
uint64_t converge_downtime_ns(const struct converge *c);

/* It may be stopped now. Not before the first round. */
bool converge_is_near(const struct converge *c);

/*
 * Until then, at this rate and this guest; UINT64_MAX: never, memory gets
 * dirty as fast as it is sent.
 */
uint64_t converge_eta_ns(const struct converge *c);

#endif
