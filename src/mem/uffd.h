/* SPDX-License-Identifier: Apache-2.0 */
/*
 * userfaultfd: thin checked wrappers, for faults on missing pages, and on pages
 * that are protected from being written.
 *
 * KVM resolves guest faults from kernel mode, so the descriptor has to be one
 * that sees those: from /dev/userfaultfd, or from the system call with
 * CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1.
 *
 * Any thread, at once. Source: ioctl_userfaultfd(2),
 * Documentation/admin-guide/mm/userfaultfd.rst.
 */
#ifndef QUIRE_MEM_UFFD_H
#define QUIRE_MEM_UFFD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct uffd_fault {
	uint64_t address; /* of the access, or of its page */
	bool write;
};

/*
 * Where descriptors come from in a process that gives up its rights: asked for
 * before, used any time later. /dev/userfaultfd kept open makes any number of
 * them; a host that has only the system call, so many.
 */
#define UFFD_SPARES 4

struct uffd_opener {
	int device; /* or -1 */
	int spares[UFFD_SPARES];
	unsigned int num_spares; /* that are left */
};

/* -EPERM, with what to grant; -ENOTSUP: the kernel cannot. */
__must_check int uffd_opener_init(struct uffd_opener *o, struct err *err);
/* Its descriptors stay. Twice is fine. */
void uffd_opener_fini(struct uffd_opener *o);

/*
 * A descriptor, non-blocking, for memory that is shmem or hugetlb, as said, out
 * of opener (one thread at a time), or with the rights there are now (NULL).
 * -EPERM, with what to grant; -EMFILE: the opener has none left; -ENOTSUP: the
 * kernel cannot.
 */
__must_check int uffd_open(struct uffd_opener *opener, bool shmem, bool hugetlb,
			   struct err *err);

/*
 * The same for protection; any memory, or with *ret_all false only private
 * memory in small or transparent pages.
 */
__must_check int uffd_open_protecting(struct uffd_opener *opener, bool *ret_all,
				      struct err *err);

/* Have faults on missing pages of [hva, hva + len) reported. 0 or -errno. */
__must_check int uffd_register(int fd, void *hva, uint64_t len);
/* Have writes to protected pages of it reported. -EINVAL: not this memory. */
__must_check int uffd_register_protecting(int fd, void *hva, uint64_t len);
/*
 * Protect what is in the page table from being written (in shared and hugetlb
 * memory: also what is not), or let it be written and wake who waits for that.
 */
__must_check int uffd_protect(int fd, void *hva, uint64_t len, bool protect);
/* No more of them; who waits tries again. */
__must_check int uffd_unregister(int fd, void *hva, uint64_t len);

/* 1 and the next fault, 0 when there is none now, or -errno. */
__must_check int uffd_next(int fd, struct uffd_fault *ret);

/*
 * Install pages with what src holds, in steps of page bytes, and wake who waits
 * for them. Pages that are there already stay as they are, and nobody is woken.
 * Returns how many bytes were installed, or a negative errno; -ENOENT: it is
 * not registered (any more).
 */
__must_check int64_t uffd_copy(int fd, void *dst, const void *src, uint64_t len,
			       uint64_t page);
/* The same with 4K pages of zeroes; not for hugetlb. */
__must_check int64_t uffd_zero(int fd, void *dst, uint64_t len);

/* Have who waits in [hva, hva + len) try again. */
void uffd_wake(int fd, void *hva, uint64_t len);

#endif
