/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes into the memory file, several at a time: over an io_uring, or one by
 * one where the host has none. One thread per object; any number of objects on
 * one file.
 */
#ifndef QUIRE_SNAPSHOT_MEMORY_OUT_H
#define QUIRE_SNAPSHOT_MEMORY_OUT_H

#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"

struct memory_out;

/* fd is borrowed. 0 or a negative errno. */
__must_check int memory_out_new(struct memory_out **ret, int fd);
/* Waits for what is in flight. NULL is fine. */
void memory_out_free(struct memory_out *out);

/*
 * Have [p, p + len) written at offset. It is read until memory_out_drain()
 * returns. The first failure of an earlier write may come back here.
 */
__must_check int memory_out_write(struct memory_out *out, const void *p,
				  size_t len, uint64_t offset);

/* Begin what was asked for, rather than at the next wait. */
void memory_out_kick(struct memory_out *out);

/* Wait for all. 0, or the first failure; ret_offset: where it was. */
__must_check int memory_out_drain(struct memory_out *out, uint64_t *ret_offset);

#endif
