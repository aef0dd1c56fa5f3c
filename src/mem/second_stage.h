/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How population reaches KVM's second stage (EPT, NPT) without knowing how it
 * is filled: layer stage2/ makes these, one for each method.
 *
 * A port is what one thread at a time may fill through, as a rule the
 * descriptor of one vCPU: KVM serialises calls on a vCPU and runs those on
 * different ones in parallel.
 */
#ifndef QUIRE_MEM_SECOND_STAGE_H
#define QUIRE_MEM_SECOND_STAGE_H

#include <stdint.h>

#include "base/compiler.h"
#include "mem/gpa.h"

struct second_stage_filler {
	const char *name; /* of the method, for people */
	unsigned int num_ports;
	/*
	 * Map [gpa, gpa + len), multiples of 4K inside one memslot, in the
	 * second stage, as writable and as large as the host's page table
	 * allows now. Host pages that are missing may be faulted in, for
	 * reading only: fill those first. 0 or a negative errno. port is below
	 * num_ports and used by one thread at a time.
	 */
	int (*fill)(void *ctx, unsigned int port, struct gpa gpa, uint64_t len);
	void *ctx;
};

#endif
