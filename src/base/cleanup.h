/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scope cleanup for locals, and the take_*() idiom that hands one over.
 *
 *	_cleanup_free_ char *buf = malloc(n);
 *	_cleanup_close_ int fd = open(...);
 *	...
 *	*ret_fd = take_fd(&fd);
 *
 * Descriptors that are not open hold -1.
 */
#ifndef QUIRE_BASE_CLEANUP_H
#define QUIRE_BASE_CLEANUP_H

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_freep(void *p)
{
	free(*(void **)p);
}

static inline void cleanup_closep(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void cleanup_fclosep(FILE **f)
{
	if (*f)
		fclose(*f);
}

#define _cleanup_free_	 __attribute__((cleanup(cleanup_freep)))
#define _cleanup_close_	 __attribute__((cleanup(cleanup_closep)))
#define _cleanup_fclose_ __attribute__((cleanup(cleanup_fclosep)))

static inline int take_fd(int *fd)
{
	int taken = *fd;

	*fd = -1;
	return taken;
}

#define take_ptr(p)                         \
	({                                  \
		__typeof__(p) _taken = (p); \
		(p) = NULL;                 \
		_taken;                     \
	})

/* Close *fd if it is open and forget it. */
static inline void close_fd(int *fd)
{
	cleanup_closep(fd);
	*fd = -1;
}

#endif
