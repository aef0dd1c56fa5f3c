/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The structures a kernel finds its world by.
 *
 * Linux 64-bit entry: struct boot_params, the "zero page"
 * (Documentation/arch/x86/zero-page.rst): the setup header as it was in the
 * file, with the fields a loader fills in, and the e820 map.
 *
 * PVH: struct hvm_start_info version 1 with module list and memory map
 * (xen/include/public/arch-x86/hvm/start_info.h), laid out in one page:
 *
 *	+0x000	start info, 56 bytes
 *	+0x040	module list, one entry of 32 bytes: the initramfs
 *	+0x080	memory map, 24 bytes per entry
 */
#include <errno.h>

#include "base/arith.h"
#include "boot/boot_priv.h"
#include "x86/e820.h"
#include "x86/layout.h"

#define ZP_ACPI_RSDP_ADDR  0x070
#define ZP_E820_ENTRIES	   0x1e8
#define ZP_TYPE_OF_LOADER  0x210
#define ZP_CODE32_START	   0x214
#define ZP_RAMDISK_IMAGE   0x218
#define ZP_RAMDISK_SIZE	   0x21c
#define ZP_CMD_LINE_PTR	   0x228
#define ZP_SETUP_DATA	   0x250
#define ZP_E820_TABLE	   0x2d0
#define ZP_E820_ENTRY_SIZE 20

#define LOADER_UNDEFINED 0xff /* no number was assigned to us */

#define PVH_MAGIC	 0x336ec578
#define PVH_VERSION	 1
#define PVH_MODLIST	 0x040
#define PVH_MEMMAP	 0x080
#define PVH_MEMMAP_ENTRY 24
#define PVH_BYTES	 (PVH_MEMMAP + E820_MAX_ENTRIES * PVH_MEMMAP_ENTRY)

_Static_assert(ZP_E820_TABLE + E820_MAX_ENTRIES * ZP_E820_ENTRY_SIZE <= PAGE_4K,
	       "the map fits the zero page");
_Static_assert(LAYOUT_PVH_START + PVH_BYTES <= LAYOUT_ZERO_PAGE,
	       "the PVH page does not run into the next structure");

int boot_write_zero_page(const struct ram *ram,
			 const struct boot_kernel *kernel,
			 const struct boot_extras *extras)
{
	struct e820_entry map[E820_MAX_ENTRIES];
	unsigned int num = e820_build(ram, map);
	uint8_t zp[PAGE_4K] = { 0 };

	memcpy(zp + BOOT_SETUP_START, kernel->setup, sizeof(kernel->setup));
	le64_store(zp + ZP_ACPI_RSDP_ADDR, extras->rsdp);
	zp[ZP_TYPE_OF_LOADER] = LOADER_UNDEFINED;
	/* All below 4 GiB, so the ext_ fields stay 0. */
	le32_store(zp + ZP_CODE32_START, (uint32_t)kernel->start);
	le32_store(zp + ZP_RAMDISK_IMAGE, (uint32_t)extras->initramfs);
	le32_store(zp + ZP_RAMDISK_SIZE, (uint32_t)extras->initramfs_bytes);
	le32_store(zp + ZP_CMD_LINE_PTR, (uint32_t)extras->cmdline);
	/* A pointer the kernel would follow: never the file's. */
	le64_store(zp + ZP_SETUP_DATA, 0);
	zp[ZP_E820_ENTRIES] = (uint8_t)num;
	for (size_t i = 0; i < num; i++) {
		uint8_t *entry = zp + ZP_E820_TABLE + i * ZP_E820_ENTRY_SIZE;

		le64_store(entry, map[i].addr);
		le64_store(entry + 8, map[i].size);
		le32_store(entry + 16, map[i].type);
	}
	return mem_write(ram, GPA(LAYOUT_ZERO_PAGE), zp, sizeof(zp));
}

int boot_write_pvh_info(const struct ram *ram, const struct boot_extras *extras)
{
	struct e820_entry map[E820_MAX_ENTRIES];
	unsigned int num = e820_build(ram, map);
	uint8_t page[PVH_BYTES] = { 0 };

	le32_store(page + 0, PVH_MAGIC);
	le32_store(page + 4, PVH_VERSION);
	if (extras->initramfs_bytes) {
		le32_store(page + 12, 1);
		le64_store(page + 16, LAYOUT_PVH_START + PVH_MODLIST);
		le64_store(page + PVH_MODLIST, extras->initramfs);
		le64_store(page + PVH_MODLIST + 8, extras->initramfs_bytes);
	}
	le64_store(page + 24, extras->cmdline);
	le64_store(page + 32, extras->rsdp);
	le64_store(page + 40, LAYOUT_PVH_START + PVH_MEMMAP);
	le32_store(page + 48, num);
	for (size_t i = 0; i < num; i++) {
		uint8_t *entry = page + PVH_MEMMAP + i * PVH_MEMMAP_ENTRY;

		/* The types are those of e820. */
		le64_store(entry, map[i].addr);
		le64_store(entry + 8, map[i].size);
		le32_store(entry + 16, map[i].type);
	}
	return mem_write(ram, GPA(LAYOUT_PVH_START), page, sizeof(page));
}
