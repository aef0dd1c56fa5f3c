/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Direct boot, put together: tell the format, place everything, write it.
 * boot_priv.h describes the three steps.
 *
 * The initramfs goes as high as kernel and RAM allow, out of the way of what
 * the kernel allocates early. In a small guest the only room may be between
 * 1 MiB and the kernel, which is then taken.
 */
#include "boot/boot.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/size.h"
#include "boot/boot_priv.h"
#include "x86/layout.h"

/* COMMAND_LINE_SIZE - 1: what Linux keeps, without a word about the rest. */
#define LINUX_CMDLINE_MAX 2047

uint64_t boot_low_ram_end(const struct ram *ram)
{
	for (unsigned int i = 0; i < ram->num_regions; i++)
		if (!ram->regions[i].base.v)
			return MIN(ram->regions[i].size, LAYOUT_HOLE_START);
	return 0;
}

/* Files people mistake for a kernel, by their first bytes. */
static const struct {
	const char *magic;
	size_t len;
	const char *advice;
} not_kernels[] = {
	{ "\x1f\x8b", 2, "gzip data; decompress it first (gunzip)" },
	{ "\xfd\x37zXZ", 5, "xz data; decompress it first (unxz)" },
	{ "\x28\xb5\x2f\xfd", 4, "zstd data; decompress it first (unzstd)" },
	{ "\x04\x22\x4d\x18", 4, "lz4 data; decompress it first (unlz4)" },
	{ "070701", 6, "a cpio archive: an initramfs, not a kernel" },
	{ "MZ", 2,
	  "an EFI program without a Linux setup header; give the bzImage" },
};

static int refuse_kernel(const struct boot_file *file, const uint8_t *head,
			 size_t head_len, struct err *err)
{
	for (size_t i = 0; i < ARRAY_SIZE(not_kernels); i++)
		if (head_len >= not_kernels[i].len &&
		    !memcmp(head, not_kernels[i].magic, not_kernels[i].len))
			return boot_file_err(file, err, ENOEXEC,
					     "not a kernel but %s",
					     not_kernels[i].advice);
	return boot_file_err(file, err, ENOEXEC,
			     "not a kernel; give a bzImage or an x86-64 ELF"
			     " vmlinux");
}

static int parse_kernel(const struct boot_file *file, uint64_t ram_end,
			struct boot_kernel *ret_kernel, struct err *err)
{
	uint8_t head[BOOT_HEAD_BYTES] = { 0 };
	size_t len = (size_t)MIN(file->size, (uint64_t)sizeof(head));
	int rc;

	rc = boot_file_read(file, 0, head, len, err);
	if (rc)
		return rc;
	if (len >= SELFMAG && !memcmp(head, ELFMAG, SELFMAG))
		return elf_parse(file, head, len, ram_end, ret_kernel, err);
	if (len >= 0x206 && !memcmp(head + 0x202, "HdrS", 4))
		return bzimage_parse(file, head, len, ram_end, ret_kernel, err);
	return refuse_kernel(file, head, len, err);
}

/* The highest page-aligned place for len bytes in [low, high); 0: none. */
static uint64_t place_below(uint64_t low, uint64_t high, uint64_t len)
{
	uint64_t gpa;

	if (high < low || len > high - low)
		return 0;
	gpa = align_down(high - len, PAGE_4K);
	return gpa >= low ? gpa : 0;
}

static int no_room_for_initramfs(const struct boot_file *file,
				 const struct boot_kernel *kernel,
				 uint64_t limit, struct err *err)
{
	uint64_t above = limit > kernel->end ? limit - kernel->end : 0;
	uint64_t below = MIN(limit, kernel->start) - LAYOUT_HIGH_RAM;
	char have[32], want[32];

	return boot_file_err(
		file, err, ENOMEM,
		"%s do not fit into the guest's memory: %s are left"
		" beside the kernel; give it more (--memory size=)"
		" or use a smaller initramfs",
		size_format(file->size, want, sizeof(want)),
		size_format(MAX(above, below), have, sizeof(have)));
}

static int place_initramfs(const struct boot_file *file,
			   const struct boot_kernel *kernel, uint64_t ram_end,
			   struct boot_extras *extras, struct err *err)
{
	uint64_t limit = MAX(MIN(ram_end, kernel->initramfs_limit),
			     (uint64_t)LAYOUT_HIGH_RAM);
	uint64_t gpa = place_below(kernel->end, limit, file->size);

	if (!gpa)
		gpa = place_below(LAYOUT_HIGH_RAM, MIN(limit, kernel->start),
				  file->size);
	if (!gpa)
		return no_room_for_initramfs(file, kernel, limit, err);
	extras->initramfs = gpa;
	extras->initramfs_bytes = file->size;
	return 0;
}

static int check_cmdline(const struct boot_kernel *kernel, const char *cmdline,
			 struct err *err)
{
	uint64_t max = MIN(kernel->cmdline_max, LAYOUT_CMDLINE_MAX - 1);
	size_t len = strlen(cmdline);

	if (len > max)
		return err_set(err, E2BIG,
			       "kernel command line: %zu bytes, the kernel"
			       " takes %llu; shorten it",
			       len, (unsigned long long)max);
	if (kernel->mode == START_PVH32 && len > LINUX_CMDLINE_MAX)
		log_warn("kernel command line: %zu bytes; Linux cuts it at %d",
			 len, LINUX_CMDLINE_MAX);
	return 0;
}

/*
 * The zeros behind a segment's file bytes are there already: RAM is fresh, for
 * a restarted guest too. Storing them would only make the pages resident.
 */
static int load_segments(const struct boot_file *file, const struct ram *ram,
			 const struct boot_kernel *kernel, struct err *err)
{
	int rc = 0;

	for (unsigned int i = 0; !rc && i < kernel->num_segments; i++) {
		const struct boot_segment *seg = &kernel->segments[i];

		rc = boot_file_read_ram(file, seg->offset, seg->file_bytes, ram,
					GPA(seg->gpa), err);
	}
	return rc;
}

/* What the registers of the first vCPU point to. */
static int write_start(const struct ram *ram, const struct boot_kernel *kernel,
		       const struct boot_extras *extras,
		       struct start_state *ret_state, struct err *err)
{
	struct start_state state = {
		.mode = kernel->mode,
		.entry = kernel->entry,
		.stack = LAYOUT_BOOT_STACK,
	};
	int rc;

	switch (kernel->mode) {
	case START_LINUX64:
		state.arg = LAYOUT_ZERO_PAGE;
		rc = boot_write_zero_page(ram, kernel, extras);
		break;
	case START_PVH32:
		state.arg = LAYOUT_PVH_START;
		rc = boot_write_pvh_info(ram, extras);
		break;
	default:
		rc = -EINVAL;
	}
	if (!rc)
		rc = start_write_tables(ram, kernel->mode);
	if (rc)
		return err_errno(err, -rc,
				 "cannot write the boot structures to guest"
				 " memory");
	*ret_state = state;
	return 0;
}

int boot_load_files(const struct ram *ram, const struct boot_file *kernel_file,
		    const struct boot_file *initramfs, const char *cmdline,
		    uint64_t rsdp, struct start_state *ret_state,
		    struct err *err)
{
	uint64_t ram_end = boot_low_ram_end(ram);
	struct boot_extras extras = { .cmdline = LAYOUT_CMDLINE, .rsdp = rsdp };
	struct boot_kernel kernel = { 0 };
	int rc;

	rc = parse_kernel(kernel_file, ram_end, &kernel, err);
	if (rc)
		return rc;
	rc = check_cmdline(&kernel, cmdline, err);
	if (rc)
		return rc;
	if (initramfs) {
		rc = place_initramfs(initramfs, &kernel, ram_end, &extras, err);
		if (rc)
			return rc;
	}

	rc = load_segments(kernel_file, ram, &kernel, err);
	if (rc)
		return rc;
	if (initramfs) {
		rc = boot_file_read_ram(initramfs, 0, initramfs->size, ram,
					GPA(extras.initramfs), err);
		if (rc)
			return rc;
	}
	rc = mem_write(ram, GPA(LAYOUT_CMDLINE), cmdline, strlen(cmdline) + 1);
	if (rc)
		return err_errno(err, -rc, "kernel command line");
	return write_start(ram, &kernel, &extras, ret_state, err);
}

int boot_files_open(const struct boot_config *cfg, struct boot_files *ret,
		    struct err *err)
{
	struct boot_file file;
	int r;

	*ret = (struct boot_files){ .kernel = -1, .initramfs = -1 };
	r = boot_file_open("kernel", cfg->kernel, &file, err);
	if (r)
		return r;
	ret->kernel = file.fd;
	if (!cfg->initramfs)
		return 0;
	r = boot_file_open("initramfs", cfg->initramfs, &file, err);
	if (r)
		boot_files_close(ret);
	else
		ret->initramfs = file.fd;
	return r;
}

void boot_files_close(struct boot_files *files)
{
	close_fd(&files->kernel);
	close_fd(&files->initramfs);
}

/* Looked at anew each time: files change, and are hostile. */
static int look_at(int fd, const char *what, const char *path,
		   struct boot_file *ret, struct err *err)
{
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

	if (copy < 0)
		return err_errno(err, errno, "%s %s", what, path);
	return boot_file_init(copy, what, path, ret, err);
}

static int load_from(const struct ram *ram, const struct boot_config *cfg,
		     const struct boot_files *files,
		     struct start_state *ret_state, struct err *err)
{
	struct boot_file initramfs = { .fd = -1 };
	struct boot_file kernel = { .fd = -1 };
	int rc = look_at(files->kernel, "kernel", cfg->kernel, &kernel, err);

	if (!rc && cfg->initramfs)
		rc = look_at(files->initramfs, "initramfs", cfg->initramfs,
			     &initramfs, err);
	if (!rc)
		rc = boot_load_files(ram, &kernel,
				     cfg->initramfs ? &initramfs : NULL,
				     cfg->cmdline ? cfg->cmdline : "",
				     cfg->rsdp, ret_state, err);
	boot_file_close(&initramfs);
	boot_file_close(&kernel);
	return rc;
}

int boot_load(const struct ram *ram, const struct boot_config *cfg,
	      struct start_state *ret_state, struct err *err)
{
	struct boot_files files;
	int rc;

	if (cfg->files)
		return load_from(ram, cfg, cfg->files, ret_state, err);
	rc = boot_files_open(cfg, &files, err);
	if (rc)
		return rc;
	rc = load_from(ram, cfg, &files, ret_state, err);
	boot_files_close(&files);
	return rc;
}
