/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the content of guest memory comes from when it is not in RAM (yet): a
 * snapshot's file, a migration's stream, a swap store. Restoring reads from a
 * source, eagerly or through the pager, and a new snapshot reads from it what
 * the VM never touched.
 *
 * A source is addressed by guest-physical address, in multiples of 4K, and does
 * not change while somebody uses it, but for ABSENT becoming DATA or ZERO.
 *
 * Threads: all operations from any, at once.
 */
#ifndef QUIRE_MEM_SOURCE_H
#define QUIRE_MEM_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "mem/gpa.h"

enum mem_content {
	MEM_CONTENT_DATA,
	MEM_CONTENT_ZERO,   /* all zero, known without reading */
	MEM_CONTENT_ABSENT, /* not there yet; only sources that are fed */
};

struct mem_source_ops {
	const char *name; /* for people: "file" */
	/*
	 * Reading the first page of a unit (mem/unit_job.h) costs what reading
	 * all of it does: it is checked as a whole.
	 */
	bool by_unit;
	/*
	 * What [gpa, gpa + len) begins with, and how many bytes of it (multiple
	 * of 4K, at least one page) are like that. Cheap: no data is read. 0 or
	 * a negative errno.
	 */
	int (*extent)(void *ctx, struct gpa gpa, uint64_t len,
		      enum mem_content *ret_content, uint64_t *ret_len);
	/*
	 * Copy [gpa, gpa + len), all of it DATA or ZERO, into buf. A source
	 * that has checksums has checked what it gives. 0 or a negative errno,
	 * and err says what and where; -EAGAIN, from fed sources only: it is
	 * asked for and will be put into the pager.
	 */
	int (*read)(void *ctx, struct gpa gpa, void *buf, uint64_t len,
		    struct err *err);
	/*
	 * Nobody wants the data any more: reads that wait for something that
	 * may never come fail now, and later ones at once. NULL: they never
	 * wait long.
	 */
	void (*abort)(void *ctx);
	/*
	 * Of fed sources: may what was asked for be long in coming, or never
	 * come? Any thread, does not wait. NULL: no.
	 */
	bool (*is_away)(void *ctx);
};

struct mem_source {
	const struct mem_source_ops *ops;
	void *ctx;
};

static inline int mem_source_extent(const struct mem_source *source,
				    struct gpa gpa, uint64_t len,
				    enum mem_content *ret_content,
				    uint64_t *ret_len)
{
	return source->ops->extent(source->ctx, gpa, len, ret_content, ret_len);
}

static inline int mem_source_read(const struct mem_source *source,
				  struct gpa gpa, void *buf, uint64_t len,
				  struct err *err)
{
	return source->ops->read(source->ctx, gpa, buf, len, err);
}

#endif
