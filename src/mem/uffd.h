/* SPDX-License-Identifier: Apache-2.0 */
/*
 * userfaultfd: thin checked wrappers, for faults on missing pages.
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
 * A descriptor, non-blocking, for memory that is shmem or hugetlb, as said.
 * -EPERM, with what to grant; -ENOTSUP: the kernel cannot.
 */
__must_check int uffd_open(bool shmem, bool hugetlb, struct err *err);

/* Have faults on missing pages of [hva, hva + len) reported. 0 or -errno. */
__must_check int uffd_register(int fd, void *hva, uint64_t len);
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
