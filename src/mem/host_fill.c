/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/host_fill.h"

#include <errno.h>
#include <sys/mman.h>

#include "base/arith.h"

#ifndef MADV_POPULATE_WRITE /* Linux 5.14 */
#define MADV_POPULATE_WRITE 23
#endif

/* 0 or a positive errno. */
static int populate_write(const struct ram *ram, uint64_t gpa, uint64_t len)
{
	while (madvise(ram->base + gpa, len, MADV_POPULATE_WRITE)) {
		if (errno != EINTR && errno != EAGAIN)
			return errno;
	}
	return 0;
}

/*
 * Which page is it? What lies before it is populated already, so a second walk
 * in single pages is quick and leaves nothing undone that could be done.
 */
static void narrow(const struct ram *ram, uint64_t *gpa, uint64_t *len)
{
	uint64_t step = ram_page_bytes(ram->page);

	for (uint64_t at = *gpa; at < *gpa + *len; at += step) {
		if (!populate_write(ram, at, step))
			continue;
		*gpa = at;
		*len = step;
		return;
	}
}

static const char *reason(int code)
{
	switch (code) {
	case ENOMEM:
		return "the host ran out of memory";
	case EFAULT:
		return "the host could not provide the page (out of memory or "
		       "of hugetlb pages, or an error of the backing store)";
	case EHWPOISON:
		return "a host page is hardware-poisoned";
	default:
		return NULL;
	}
}

int host_fill(const struct ram *ram, struct gpa gpa, uint64_t len,
	      struct err *err)
{
	unsigned long long from, to;
	uint64_t at = gpa.v;
	int code = populate_write(ram, at, len);

	if (!code)
		return 0;
	if (code == EINVAL)
		return err_set(err, ENOTSUP,
			       "populate: this kernel has no "
			       "MADV_POPULATE_WRITE (Linux 5.14); use "
			       "populate=none");
	if (code == EFAULT || code == EHWPOISON)
		narrow(ram, &at, &len);
	from = at;
	to = at + len;
	if (reason(code))
		return err_set(err, code,
			       "populate: guest memory %#llx-%#llx: %s", from,
			       to, reason(code));
	return err_errno(err, code, "populate: guest memory %#llx-%#llx", from,
			 to);
}
