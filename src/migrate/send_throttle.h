/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a sender does about a guest that dirties memory faster than it is sent:
 * finds out which vCPUs do, and holds them back as migrate/hold_back.h says.
 * One thread's.
 */
#ifndef QUIRE_MIGRATE_SEND_THROTTLE_H
#define QUIRE_MIGRATE_SEND_THROTTLE_H

#include "base/err.h"
#include "migrate/hold_back.h"
#include "vm/config.h"

struct converge;
struct kvm_stats;
struct machine;
struct vm_throttle;

struct send_throttle {
	struct hold_back plan;
	const struct machine *machine; /* NULL: not begun, or ended */
	struct vm_throttle *throttle;  /* NULL: nobody is held back yet */
	unsigned int percent;	       /* now */
	unsigned int vcpus;	       /* that are held back now */
	struct send_throttle_vcpu {
		struct kvm_stats *stats; /* NULL: there are none */
		uint64_t seen;		 /* of what says that it dirties */
	} * of;
};

/* *plan is taken as it is. m is the caller's until the end. */
__must_check int send_throttle_begin(struct send_throttle *t,
				     const struct machine *m,
				     const struct hold_back *plan,
				     struct err *err);
/* After each round while the guest runs. */
__must_check int send_throttle_round(struct send_throttle *t,
				     const struct converge *c, struct err *err);
/* The guest has been stopped, or goes on here. Fine if it never began. */
void send_throttle_end(struct send_throttle *t);

#endif
