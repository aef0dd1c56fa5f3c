/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Direct kernel boot: put kernel, initramfs, command line and the start
 * structures into guest RAM and say where the boot vCPU begins.
 *
 * Kernel files are hostile: every offset and size in them is checked against
 * file and RAM. Formats: bzImage by the 64-bit entry point
 * (Documentation/arch/x86/boot.rst), ELF vmlinux with the PVH note
 * (docs/misc/pvh.pandoc of Xen: 32-bit entry, hvm_start_info).
 */
#ifndef QUIRE_BOOT_BOOT_H
#define QUIRE_BOOT_BOOT_H

#include "x86/start.h"

/* Both files, open; -1: there is none. */
struct boot_files {
	int kernel, initramfs;
};

struct boot_config {
	const char *kernel;    /* path */
	const char *initramfs; /* path or NULL */
	const char *cmdline;   /* "" when none */
	uint64_t rsdp;	       /* from acpi_write_tables() */
	/* Opened before; stays the caller's. NULL: open the paths. */
	const struct boot_files *files;
};

/* What boot_load() would open, for later and more than once. */
__must_check int boot_files_open(const struct boot_config *cfg,
				 struct boot_files *ret, struct err *err);
/* Fine where nothing is open. */
void boot_files_close(struct boot_files *files);

/*
 * Load everything; also writes the start tables (x86/start.h). ram is fresh
 * from ram_init() above 1 MiB: a kernel finds zeros in its bss. On failure
 * guest RAM contents are unspecified and err names the file and the reason:
 * missing, unreadable, not a kernel, truncated, too large for the memory.
 */
__must_check int boot_load(const struct ram *ram, const struct boot_config *cfg,
			   struct start_state *ret_state, struct err *err);

#endif
