/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Load the fuzzer's bytes as a kernel file into a small guest, and hold
 * boot_load_files() to its promises: it refuses with a reason, or the start
 * state points into RAM; memory that is not its own keeps its contents.
 */
#ifndef QUIRE_TESTS_FUZZ_BOOT_H
#define QUIRE_TESTS_FUZZ_BOOT_H

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/io.h"
#include "boot/boot_priv.h"
#include "x86/layout.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Enough for every decision about places. */
#define FUZZ_RAM_BYTES (8 * MIB)

/* Between 640 KiB and 1 MiB nothing is the loaders'. */
#define FUZZ_GUARD_START 0xa0000ull
#define FUZZ_GUARD_BYTES (LAYOUT_HIGH_RAM - FUZZ_GUARD_START)
#define FUZZ_GUARD_BYTE	 0x5a

struct fuzz_boot {
	struct ram ram;
	int kernel_fd;
	int initramfs_fd;
};

static inline int fuzz_memfd(const char *name, uint64_t size)
{
	int fd = memfd_create(name, MFD_CLOEXEC);

	BUG_ON(fd < 0 || ftruncate(fd, (off_t)size));
	return fd;
}

static inline void fuzz_boot_start(struct fuzz_boot *fuzz)
{
	struct ram_config cfg = {
		.size_bytes = FUZZ_RAM_BYTES,
		.hole_start = LAYOUT_HOLE_START,
		.hole_end = LAYOUT_HOLE_END,
		.page = RAM_PAGE_4K,
	};
	void *guard;

	BUG_ON(ram_init(&fuzz->ram, &cfg, NULL));
	guard = mem_map_range(&fuzz->ram, GPA(FUZZ_GUARD_START),
			      FUZZ_GUARD_BYTES, MEM_WRITE);
	BUG_ON(!guard);
	memset(guard, FUZZ_GUARD_BYTE, FUZZ_GUARD_BYTES);
	fuzz->kernel_fd = fuzz_memfd("kernel", 0);
	fuzz->initramfs_fd = fuzz_memfd("initramfs", 64 * KIB);
}

static inline void fuzz_boot_check_guard(struct fuzz_boot *fuzz)
{
	const uint8_t *guard = mem_map_range(&fuzz->ram, GPA(FUZZ_GUARD_START),
					     FUZZ_GUARD_BYTES, MEM_READ);

	BUG_ON(!guard || guard[0] != FUZZ_GUARD_BYTE);
	BUG_ON(memcmp(guard, guard + 1, FUZZ_GUARD_BYTES - 1));
}

static inline void fuzz_boot_run(struct fuzz_boot *fuzz, const uint8_t *data,
				 size_t size)
{
	struct boot_file kernel = { .fd = fuzz->kernel_fd,
				    .what = "kernel",
				    .path = "fuzz",
				    .size = size };
	struct boot_file initramfs = { .fd = fuzz->initramfs_fd,
				       .what = "initramfs",
				       .path = "fuzz",
				       .size = 64 * KIB };
	struct start_state start = { .entry = UINT64_MAX };
	struct err err = ERR_INIT;
	int rc;

	if (!size) /* boot_file_init() refuses these */
		return;
	BUG_ON(ftruncate(fuzz->kernel_fd, (off_t)size));
	BUG_ON(io_pwrite_full(fuzz->kernel_fd, data, size, 0));
	rc = boot_load_files(&fuzz->ram, &kernel, &initramfs, "quiet", 0,
			     &start, &err);
	if (rc) {
		BUG_ON(rc != -err.code || !err.text[0]);
		BUG_ON(start.entry != UINT64_MAX);
	} else {
		BUG_ON(start.entry < LAYOUT_HIGH_RAM);
		BUG_ON(start.entry >= FUZZ_RAM_BYTES);
	}
	fuzz_boot_check_guard(fuzz);
}

#endif
