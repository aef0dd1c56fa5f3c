/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where everything of a probe guest lies in its RAM, and its page tables.
 *
 * The control area (everything but the test area) starts at address 0 and is
 * mapped one to one with 4K pages. The test area is all RAM above it, mapped at
 * PROBE_VA_TEST without the hole below 4 GiB, with 4K or 2M pages. Accessed and
 * dirty bits are preset, so that the walks of the guest's MMU write nothing:
 * what KVM then counts is what the payload did.
 *
 * probe_layout_compute() is arithmetic only; probe_layout_write() fills RAM.
 */
#ifndef QUIRE_PROBE_LAYOUT_H
#define QUIRE_PROBE_LAYOUT_H

#include "base/err.h"
#include "mem/ram.h"
#include "probe/protocol.h"

enum probe_guest_page {
	PROBE_GUEST_PAGE_4K,
	PROBE_GUEST_PAGE_2M,
};

/* "4k", "2m", indexed by enum probe_guest_page. */
extern const char *const probe_guest_page_names[2];

struct probe_layout {
	unsigned int num_vcpus;
	enum probe_guest_page guest_page;
	uint64_t times;	 /* struct probe_times of the first vCPU */
	uint64_t stacks; /* the first vCPU's; then one hole + stack each */
	uint64_t tables; /* guest-physical; the first page is the root */
	uint64_t tables_bytes;
	uint64_t test_base; /* 2 MiB aligned: end of the control area */
	uint64_t test_bytes;
	uint64_t ram_bytes; /* all of it, a multiple of 2 MiB */
};

#define PROBE_MAX_VCPUS 1024u

/*
 * -EINVAL: no vCPU, too many, an empty test area or one so large that its page
 * tables do not fit below the hole.
 */
__must_check int probe_layout_compute(struct probe_layout *layout,
				      unsigned int num_vcpus,
				      enum probe_guest_page guest_page,
				      uint64_t test_bytes, struct err *err);

/* Top of vCPU i's stack, 16-byte aligned. */
uint64_t probe_layout_stack_top(const struct probe_layout *layout,
				unsigned int i);

/* The guest-physical address of an offset in the test area. */
struct gpa probe_layout_test_gpa(const struct probe_layout *layout,
				 uint64_t offset);

/*
 * Write page tables and image into RAM made for this layout. The image is at
 * most PROBE_CODE_MAX bytes.
 */
__must_check int probe_layout_write(const struct probe_layout *layout,
				    const struct ram *ram, const void *image,
				    size_t image_bytes);

#endif
