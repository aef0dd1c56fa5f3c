/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of src/boot: how a load goes, in three steps.
 *
 *	parse	a format reader (bzimage.c, elf.c) checks the kernel file
 *		against itself and the guest's RAM and fills struct boot_kernel
 *	place	boot_load_files() finds room for initramfs and command line
 *	write	segments, initramfs and start structures go to guest memory
 *
 * Nothing is written before everything has been checked, except that a file
 * may still shrink or fail to read in the third step.
 *
 * Files are passed as open descriptors, so that tests and fuzzers hand in
 * memory. All addresses here are guest-physical.
 */
#ifndef QUIRE_BOOT_BOOT_PRIV_H
#define QUIRE_BOOT_BOOT_PRIV_H

#include <stdint.h>

#include "base/err.h"
#include "boot/boot.h"
#include "mem/ram.h"
#include "x86/start.h"

/* A regular file that is not empty. Borrows path. */
struct boot_file {
	int fd;
	const char *what; /* "kernel", "initramfs": for messages */
	const char *path;
	uint64_t size;
};

/* Open for reading; refuses what is no regular file without blocking on it. */
__must_check int boot_file_open(const char *what, const char *path,
				struct boot_file *ret_file, struct err *err);
/* The same for a descriptor that is open already; takes fd, on failure too. */
__must_check int boot_file_init(int fd, const char *what, const char *path,
				struct boot_file *ret_file, struct err *err);
/* Fine on a file with fd -1. */
void boot_file_close(struct boot_file *file);

/* Read exactly len bytes at offset. */
__must_check int boot_file_read(const struct boot_file *file, uint64_t offset,
				void *buf, uint64_t len, struct err *err);
/* The same, straight into guest memory. */
__must_check int boot_file_read_ram(const struct boot_file *file,
				    uint64_t offset, uint64_t len,
				    const struct ram *ram, struct gpa gpa,
				    struct err *err);
/* Fill err with "<what> <path>: <message>"; returns -code. */
int boot_file_err(const struct boot_file *file, struct err *err, int code,
		  const char *fmt, ...) __printf_fmt(4, 5);

/* Refuse a kernel that wants len bytes at gpa where RAM ends at ram_end. */
int boot_file_no_room(const struct boot_file *file, uint64_t gpa, uint64_t len,
		      uint64_t ram_end, struct err *err);

/*
 * A piece of the kernel. The rest of mem_bytes is what fresh RAM holds: zeros.
 */
struct boot_segment {
	uint64_t offset;
	uint64_t file_bytes;
	uint64_t gpa;
	uint64_t mem_bytes;
};

#define BOOT_MAX_SEGMENTS 32

/* The bytes of struct boot_params from 0x1f1 that hold the setup header. */
#define BOOT_SETUP_START 0x1f1
#define BOOT_SETUP_END	 0x290

/* What a format reader found out. */
struct boot_kernel {
	enum start_mode mode;
	uint64_t entry;
	/* What the kernel needs for itself until it reads the memory map. */
	uint64_t start, end;
	uint64_t initramfs_limit; /* first address no initramfs may use */
	uint64_t cmdline_max;	  /* bytes before the NUL */
	unsigned int num_segments;
	struct boot_segment segments[BOOT_MAX_SEGMENTS];
	/* bzImage only: the setup header, copied once. */
	uint8_t setup[BOOT_SETUP_END - BOOT_SETUP_START];
};

/* Where RAM from 0 ends: kernels and initramfs live below. */
uint64_t boot_low_ram_end(const struct ram *ram);

/* head: the first head_len bytes of file (at most BOOT_HEAD_BYTES). */
#define BOOT_HEAD_BYTES BOOT_SETUP_END
__must_check int bzimage_parse(const struct boot_file *file,
			       const uint8_t *head, size_t head_len,
			       uint64_t ram_end, struct boot_kernel *ret_kernel,
			       struct err *err);
__must_check int elf_parse(const struct boot_file *file, const uint8_t *head,
			   size_t head_len, uint64_t ram_end,
			   struct boot_kernel *ret_kernel, struct err *err);

/* The initramfs and what else the start structures name; 0 when absent. */
struct boot_extras {
	uint64_t initramfs, initramfs_bytes;
	uint64_t cmdline;
	uint64_t rsdp;
};

/* boot_params at LAYOUT_ZERO_PAGE. */
__must_check int boot_write_zero_page(const struct ram *ram,
				      const struct boot_kernel *kernel,
				      const struct boot_extras *extras);
/* hvm_start_info and its lists at LAYOUT_PVH_START. */
__must_check int boot_write_pvh_info(const struct ram *ram,
				     const struct boot_extras *extras);

/*
 * boot_load() on open files; initramfs may be NULL. The files stay the
 * caller's.
 */
__must_check int
boot_load_files(const struct ram *ram, const struct boot_file *kernel,
		const struct boot_file *initramfs, const char *cmdline,
		uint64_t rsdp, struct start_state *ret_state, struct err *err);

#endif
