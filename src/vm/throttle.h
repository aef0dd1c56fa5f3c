/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hold vCPUs back for a part of their time: a guest that writes memory faster
 * than it can be sent never comes to an end otherwise. In each period a vCPU
 * naps outside of the guest for its share, whatever else it does.
 *
 * A guest notices: its time goes on. Periods are short, so that what it misses
 * at once is little.
 */
#ifndef QUIRE_VM_THROTTLE_H
#define QUIRE_VM_THROTTLE_H

#include "base/compiler.h"
#include "base/thread_class.h"

struct vcpu;
struct vm_throttle;

#define THROTTLE_PERIOD_MS   20u
#define THROTTLE_MAX_PERCENT 99u

extern const struct thread_class throttle_thread_class;

/*
 * A thread that does so for num vCPUs, which outlive it; nobody is held back
 * yet. Any thread.
 */
__must_check int vm_throttle_new(struct vm_throttle **ret,
				 struct vcpu *const *vcpus, unsigned int num);
/* Nobody is held back any more. NULL is fine. */
void vm_throttle_free(struct vm_throttle *t);

/*
 * From the next period on vCPU i naps for so much of its time, at most
 * THROTTLE_MAX_PERCENT; 0: not at all. Any thread.
 */
void vm_throttle_set(struct vm_throttle *t, unsigned int i,
		     unsigned int percent);

#endif
