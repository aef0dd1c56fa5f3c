/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When a migration holds vCPUs back (vm/throttle.h), how much, and which: those
 * that dirty memory. Plain numbers; who calls measures and carries out.
 */
#ifndef QUIRE_MIGRATE_HOLD_BACK_H
#define QUIRE_MIGRATE_HOLD_BACK_H

#include <stdbool.h>
#include <stdint.h>

struct converge;

enum hold_back_mode {
	HOLD_BACK_OFF,
	HOLD_BACK_AUTO,	 /* when the rounds do not become shorter */
	HOLD_BACK_FIXED, /* from the second round on */
};

struct hold_back {
	enum hold_back_mode mode;
	unsigned int percent; /* now; with HOLD_BACK_FIXED as given */
	unsigned int lost;    /* rounds in a row that gained too little */
};

/* "off", "auto", or "1" to "99": a percentage. False: none of these. */
bool hold_back_parse(const char *text, struct hold_back *ret);

/*
 * After each round that is not to be the last. Returns the share of its time,
 * in percent, that a vCPU which dirties memory is to be held back in the next.
 */
unsigned int hold_back_round(struct hold_back *h, const struct converge *c);

/*
 * Does a vCPU that dirtied its pages (or took its faults), of all of them
 * together, dirty more than a little? Where nobody is known to, all do.
 */
bool hold_back_hits(uint64_t its, uint64_t all, unsigned int num_vcpus);

#endif
