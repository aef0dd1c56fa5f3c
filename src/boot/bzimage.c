/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bzImage by its 64-bit entry point (Documentation/arch/x86/boot.rst, "64-bit
 * boot protocol").
 *
 * The file: one boot sector, setup_sects sectors of real-mode code that are
 * not used here, then the protected-mode part. The setup header lies at 0x1f1
 * and ends at 0x202 + the byte at 0x201.
 *
 * Where it goes: the kernel decompresses itself to its runtime start, which is
 * the load address, but never below pref_address; it needs init_size bytes
 * from there before it can look at a memory map. So loading lower than
 * pref_address saves nothing, and pref_address is where it goes unless that is
 * below the memory for kernels or badly aligned, when a relocatable kernel is
 * moved up.
 */
#include <errno.h>

#include "base/arith.h"
#include "boot/boot_priv.h"
#include "x86/layout.h"

/* Offsets in the file; the zero page has the header at the same ones. */
#define HDR_SETUP_SECTS	    0x1f1
#define HDR_SYSSIZE	    0x1f4
#define HDR_BOOT_FLAG	    0x1fe
#define HDR_JUMP_LEN	    0x201
#define HDR_MAGIC	    0x202
#define HDR_VERSION	    0x206
#define HDR_INITRD_ADDR_MAX 0x22c
#define HDR_ALIGNMENT	    0x230
#define HDR_RELOCATABLE	    0x234
#define HDR_XLOADFLAGS	    0x236
#define HDR_CMDLINE_SIZE    0x238
#define HDR_PREF_ADDRESS    0x258
#define HDR_INIT_SIZE	    0x260
#define HDR_END_MIN	    0x264 /* all of the above is there */

#define BZIMAGE_VERSION_MIN 0x020c /* first with xloadflags */
#define XLF_KERNEL_64	    (1 << 0)

#define SECTOR_BYTES	512ull
#define ENTRY_64_OFFSET 0x200ull
/* boot.rst: 0 means 4. */
#define SETUP_SECTS_IF_ZERO 4

static int check_header(const struct boot_file *file, const uint8_t *head,
			size_t head_len, struct err *err)
{
	unsigned int version;

	if (head_len < HDR_END_MIN)
		return boot_file_err(file, err, ENODATA,
				     "truncated: ends inside the bzImage setup"
				     " header");
	if (le16_load(head + HDR_BOOT_FLAG) != 0xaa55)
		return boot_file_err(file, err, ENOEXEC,
				     "bad bzImage: no boot sector signature");
	version = le16_load(head + HDR_VERSION);
	if (version < BZIMAGE_VERSION_MIN)
		return boot_file_err(file, err, ENOTSUP,
				     "bzImage boot protocol %u.%02u is too old;"
				     " quire needs 2.12 (Linux 3.8) or newer",
				     version >> 8, version & 0xff);
	if (HDR_MAGIC + head[HDR_JUMP_LEN] < HDR_END_MIN)
		return boot_file_err(file, err, ENOEXEC,
				     "bad bzImage: setup header is only %d"
				     " bytes long",
				     HDR_MAGIC + head[HDR_JUMP_LEN] -
					     BOOT_SETUP_START);
	if (!(le16_load(head + HDR_XLOADFLAGS) & XLF_KERNEL_64))
		return boot_file_err(file, err, ENOTSUP,
				     "bzImage has no 64-bit entry point; quire"
				     " boots x86-64 kernels only");
	return 0;
}

/* Find the protected-mode part in the file. */
static int find_payload(const struct boot_file *file, const uint8_t *head,
			struct boot_segment *seg, struct err *err)
{
	uint64_t sects = head[HDR_SETUP_SECTS];
	/* In units of 16 bytes, rounded up: the file may end within one. */
	uint64_t want = le32_load(head + HDR_SYSSIZE) * 16ull;
	uint64_t have, end;

	seg->offset = ((sects ? sects : SETUP_SECTS_IF_ZERO) + 1) *
		      SECTOR_BYTES;
	end = seg->offset + want;
	have = file->size > seg->offset ? file->size - seg->offset : 0;
	if (want > align_up(have, 16))
		return boot_file_err(file, err, ENODATA,
				     "truncated bzImage: %llu bytes, its header"
				     " says %llu",
				     (unsigned long long)file->size,
				     (unsigned long long)end);
	if (want <= ENTRY_64_OFFSET)
		return boot_file_err(file, err, ENOEXEC,
				     "bad bzImage: no room for the 64-bit entry"
				     " point in %llu bytes of code",
				     (unsigned long long)want);
	seg->file_bytes = MIN(want, have);
	seg->mem_bytes = seg->file_bytes;
	return 0;
}

/* Decide on the load address; needs the payload's size. */
static int place(const struct boot_file *file, const uint8_t *head,
		 uint64_t ram_end, struct boot_kernel *kernel, struct err *err)
{
	struct boot_segment *seg = &kernel->segments[0];
	uint64_t need = MAX((uint64_t)le32_load(head + HDR_INIT_SIZE),
			    seg->mem_bytes);
	uint64_t align = le32_load(head + HDR_ALIGNMENT);
	uint64_t start = le64_load(head + HDR_PREF_ADDRESS);

	if (head[HDR_RELOCATABLE]) {
		if (!is_pow2(align))
			return boot_file_err(file, err, ENOEXEC,
					     "bad bzImage: kernel_alignment"
					     " %#llx is no power of two",
					     (unsigned long long)align);
		start = MAX(start, (uint64_t)LAYOUT_HIGH_RAM);
		/* Beyond any RAM anyway, and align_up() must not wrap. */
		start = start < 4 * GIB ? align_up(start, align) : start;
	}
	if (start < LAYOUT_HIGH_RAM)
		return boot_file_err(
			file, err, ENOTSUP,
			"bzImage wants to be loaded at %#llx, below"
			" 1 MiB, and is not relocatable",
			(unsigned long long)start);
	if (!range_ok(start, need, ram_end))
		return boot_file_no_room(file, start, need, ram_end, err);
	seg->gpa = start;
	kernel->start = start;
	kernel->end = start + need;
	kernel->entry = start + ENTRY_64_OFFSET;
	return 0;
}

int bzimage_parse(const struct boot_file *file, const uint8_t *head,
		  size_t head_len, uint64_t ram_end,
		  struct boot_kernel *ret_kernel, struct err *err)
{
	struct boot_kernel kernel = { .mode = START_LINUX64,
				      .num_segments = 1 };
	size_t setup_end;
	int rc;

	rc = check_header(file, head, head_len, err);
	if (rc)
		return rc;
	rc = find_payload(file, head, &kernel.segments[0], err);
	if (rc)
		return rc;
	rc = place(file, head, ram_end, &kernel, err);
	if (rc)
		return rc;

	kernel.initramfs_limit =
		(uint64_t)le32_load(head + HDR_INITRD_ADDR_MAX) + 1;
	kernel.cmdline_max = le32_load(head + HDR_CMDLINE_SIZE);
	/*
	 * A newer header may be longer than the zero page has room for; head
	 * never is.
	 */
	setup_end = HDR_MAGIC + head[HDR_JUMP_LEN];
	setup_end = MIN(setup_end, head_len);
	memcpy(kernel.setup, head + BOOT_SETUP_START,
	       setup_end - BOOT_SETUP_START);
	*ret_kernel = kernel;
	return 0;
}
