/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A window in time in which guest memory goes on to be written, and yet what it
 * held at one instant can be read: everything is protected from being written
 * then, and who writes waits until the place was copied and released. Whoever
 * that is: the guest, this process, or the kernel for either.
 *
 *	write_window_open -> write_window_protect_ahead -> write_window_arm ->
 *		[reading, and release of each place once] -> write_window_close
 *
 * Protecting takes its time, tens of milliseconds for a GiB in small pages. So
 * that nobody stands still for it, it is done ahead, while the guest runs. What
 * is written then is let go at once, in units of 2 MiB, and protected anew at
 * the instant, which so takes as long as is fit for what was written just now,
 * not for all of memory.
 *
 * Not seen are writes of other processes that have the memory mapped. Memory
 * is not discarded from ahead to close.
 *
 * Threads: open, protect_ahead, arm and close one at a time; the others any, in
 * between. Someone has to serve faults from protect_ahead to close, and may not
 * write to guest memory himself.
 *
 * Source: Documentation/admin-guide/mm/userfaultfd.rst.
 */
#ifndef QUIRE_MEM_WINDOW_H
#define QUIRE_MEM_WINDOW_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "mem/pagemap.h"
#include "mem/ram.h"

struct write_window;

/*
 * The guest may run. uffd, borrowed, is one of uffd_open_protecting(), which
 * said all_kinds. ram outlives the window. -ENOTSUP, in words: not with this
 * kind of memory, or of kernel.
 */
__must_check int write_window_open(struct write_window **ret,
				   const struct ram *ram, int uffd,
				   bool all_kinds, struct err *err);

/*
 * Protect what is there; the guest may run. Not needed: arm does the same then,
 * for all of memory.
 */
__must_check int write_window_protect_ahead(struct write_window *w,
					    struct err *err);
/*
 * For a fault from before the instant: let its unit be written. True: that was
 * done; false: the instant has come, the place has to be copied first. -errno.
 */
__must_check int write_window_let_ahead(struct write_window *w, struct gpa gpa);

/* This is the instant: nobody writes. */
__must_check int write_window_arm(struct write_window *w, struct err *err);
/* Units that arm had to look at, of all; for statistics. */
uint64_t write_window_armed_units(const struct write_window *w);

/*
 * Did this page have content of its own at the instant? If not, what is there
 * now may be newer: it was zero, or is what ram->behind has.
 */
bool write_window_held(const struct write_window *w, unsigned int region,
		       uint64_t page);

/*
 * After [gpa, gpa + len) was copied, and before it is released: is that what it
 * held at the instant? -ESTALE: the kernel has let some of it be written. pm is
 * the caller's own.
 */
__must_check int write_window_check(const struct write_window *w,
				    struct pagemap *pm, struct gpa gpa,
				    uint64_t len);

/* To poll for reading; 1 and the place of the next writer who waits, or 0. */
int write_window_fd(const struct write_window *w);
__must_check int write_window_next(const struct write_window *w,
				   struct gpa *ret);
/* It was copied: let it be written. Wakes who waits; twice is fine. */
__must_check int write_window_release(const struct write_window *w,
				      struct gpa gpa, uint64_t len);

/* All of it may be written. NULL is fine. */
void write_window_close(struct write_window *w);

#endif
