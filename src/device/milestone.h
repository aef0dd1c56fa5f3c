/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Boot milestones: a one-byte port whose writes are stamped with the host's
 * clock. The guest writes 1 when its init starts (lab guests and `make demo`
 * do), and the exit summary shows the time. Values 0..15; the first write of
 * each counts, so a guest can neither move a stamp nor fill anything.
 *
 * Threads: written by vCPU threads, read by any.
 */
#ifndef QUIRE_DEVICE_MILESTONE_H
#define QUIRE_DEVICE_MILESTONE_H

#include <stdint.h>

#include "bus/iobus.h"

#define MILESTONE_MAX  16
#define MILESTONE_INIT 1

struct milestone {
	_Atomic uint64_t at_ns[MILESTONE_MAX]; /* clock_now_ns(); 0: not yet */
};

/* Claims PORT_MILESTONE on pio. m must outlive the bus. */
__must_check int milestone_attach(struct milestone *m, struct iobus *pio);

#endif
