/* SPDX-License-Identifier: Apache-2.0 */
/*
 * VM generation id: 16 random bytes in the reserved page at LAYOUT_VMGENID,
 * which the DSDT's VGEN device points to. They change whenever this guest may
 * have become one of several that share a past (restored, forked), and an event
 * tells it; its random number generator, and what else must not repeat, starts
 * afresh.
 *
 * Threads: control thread. Source: Microsoft, "Virtual Machine Generation ID".
 */
#ifndef QUIRE_DEVICE_VMGENID_H
#define QUIRE_DEVICE_VMGENID_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct ram;
struct vmgenid;

#define VMGENID_BYTES 16

struct vmgenid_config {
	const struct ram *ram;
	bool keep; /* the page has an id: it is part of a saved guest */
	void (*event)(void *ctx); /* a pulse */
	void *ctx;
};

/* Writes the first id unless told to keep it; no event. */
__must_check int vmgenid_new(struct vmgenid **ret,
			     const struct vmgenid_config *cfg, struct err *err);
void vmgenid_free(struct vmgenid *v);

/*
 * Another id, then the event. vCPUs may run: a guest reads the id at boot and
 * after the event only. On failure the old one stays.
 */
__must_check int vmgenid_renew(struct vmgenid *v, struct err *err);

#endif
