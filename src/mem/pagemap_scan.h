/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PAGEMAP_SCAN (Linux 6.7), which Debian 12's headers lack: ioctl on
 * /proc/PID/pagemap that returns runs of pages by category. Source:
 * Documentation/admin-guide/mm/pagemap.rst.
 */
#ifndef QUIRE_MEM_PAGEMAP_SCAN_H
#define QUIRE_MEM_PAGEMAP_SCAN_H

#include <linux/types.h>
#include <sys/ioctl.h>

struct pagemap_scan_region {
	__u64 start, end, categories;
};

struct pagemap_scan {
	__u64 size, flags, start, end, walk_end;
	__u64 vec, vec_len, max_pages;
	__u64 category_inverted, category_mask, category_anyof_mask;
	__u64 return_mask;
};

/* Returns how many regions it filled. */
#define PAGEMAP_SCAN_IOCTL   _IOWR('f', 16, struct pagemap_scan)
#define PAGEMAP_SCAN_WRITTEN (1ull << 1) /* not protected by userfaultfd */
#define PAGEMAP_SCAN_PRESENT (1ull << 3)
#define PAGEMAP_SCAN_SWAPPED \
	(1ull << 4)		      /* or any other entry that is no page */
#define PAGEMAP_SCAN_HUGE (1ull << 6) /* by one entry for 2 MiB or more */

#endif
