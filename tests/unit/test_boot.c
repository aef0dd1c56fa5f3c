/* SPDX-License-Identifier: Apache-2.0 */
/*
 * boot/{boot,file,bzimage}.c: what is no kernel, what is a spoilt bzImage,
 * where a good one goes with its initramfs, and the zero page.
 */
#include "boot_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "x86/e820.h"

#define RAM_BYTES (64 * MIB)

static int setup(void **state)
{
	*state = test_ram_new(RAM_BYTES);
	return 0;
}

static int teardown(void **state)
{
	test_ram_free(*state);
	return 0;
}

static void test_bzimage_is_loaded(void **state)
{
	const struct ram *ram = *state;
	struct attempt a = { .cmdline = "console=ttyS0 quiet" };
	struct image image;
	const uint8_t *zp;

	bz_make(&image);
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	assert_int_equal(a.state.mode, START_LINUX64);
	assert_int_equal(a.state.entry, BZ_PREF + 0x200);
	assert_int_equal(a.state.arg, LAYOUT_ZERO_PAGE);
	assert_int_equal(a.state.stack, LAYOUT_BOOT_STACK);
	assert_memory_equal(guest_at(ram, BZ_PREF, BZ_CODE_BYTES),
			    image.data + BZ_CODE_OFFSET, BZ_CODE_BYTES);
	/* Nothing of the file is behind its code. */
	assert_int_equal(*guest_at(ram, BZ_PREF + BZ_CODE_BYTES, 1), 0);
	assert_string_equal((const char *)guest_at(ram, LAYOUT_CMDLINE, 32),
			    "console=ttyS0 quiet");

	zp = guest_at(ram, LAYOUT_ZERO_PAGE, PAGE_4K);
	assert_memory_equal(zp + 0x202, "HdrS", 4);
	assert_int_equal(zp[0x1f1], 1);
	assert_int_equal(zp[0x210], 0xff);
	assert_int_equal(le64_load(zp + 0x070), TEST_RSDP);
	assert_int_equal(le32_load(zp + 0x214), BZ_PREF);
	assert_int_equal(le32_load(zp + 0x218), 0);
	assert_int_equal(le32_load(zp + 0x21c), 0);
	assert_int_equal(le32_load(zp + 0x228), LAYOUT_CMDLINE);
	assert_int_equal(le64_load(zp + 0x258), BZ_PREF);
}

static void test_zero_page_has_the_memory_map(void **state)
{
	const struct ram *ram = *state;
	struct e820_entry map[E820_MAX_ENTRIES];
	unsigned int num = e820_build(ram, map);
	struct attempt a = { 0 };
	struct image image;
	const uint8_t *zp;

	bz_make(&image);
	/* The longest header there can be reaches into the map's place. */
	image.data[0x201] = 0xff;
	memset(image.data + 0x26c, 0xee, 0x300 - 0x26c);
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	zp = guest_at(ram, LAYOUT_ZERO_PAGE, PAGE_4K);
	assert_true(num >= 2);
	assert_int_equal(zp[0x1e8], num);
	for (unsigned int i = 0; i < num; i++) {
		const uint8_t *e = zp + 0x2d0 + i * 20;

		assert_int_equal(le64_load(e), map[i].addr);
		assert_int_equal(le64_load(e + 8), map[i].size);
		assert_int_equal(le32_load(e + 16), map[i].type);
	}
	assert_int_equal(le64_load(zp + 0x2d0 + num * 20), 0);
	/* Up to the end of the header's place it is the file's. */
	assert_int_equal(zp[0x28f], 0xee);
	assert_int_equal(zp[0x290], 0);
}

/* The kernel would follow it, and the file has no say in guest memory. */
static void test_setup_data_of_the_file_is_dropped(void **state)
{
	const struct ram *ram = *state;
	struct attempt a = { 0 };
	struct image image;

	bz_make(&image);
	le64_store(image.data + 0x250, 0x123456);
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	assert_int_equal(le64_load(guest_at(ram, LAYOUT_ZERO_PAGE + 0x250, 8)),
			 0);
}

static void test_initramfs_is_as_high_as_allowed(void **state)
{
	const struct ram *ram = *state;
	uint8_t initramfs[5000];
	struct attempt a = { .initramfs = initramfs,
			     .initramfs_len = sizeof(initramfs) };
	uint64_t want = RAM_BYTES - 8192;
	struct image image;
	const uint8_t *zp;

	fill_pattern(initramfs, sizeof(initramfs), 9);
	bz_make(&image);
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	zp = guest_at(ram, LAYOUT_ZERO_PAGE, PAGE_4K);
	assert_int_equal(le32_load(zp + 0x218), want);
	assert_int_equal(le32_load(zp + 0x21c), sizeof(initramfs));
	assert_memory_equal(guest_at(ram, want, sizeof(initramfs)), initramfs,
			    sizeof(initramfs));

	/* initrd_addr_max is the last byte it may use. */
	a.initramfs_len = PAGE_4K;
	le32_store(image.data + 0x22c, 32 * MIB - 1);
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	assert_int_equal(le32_load(zp + 0x218), 32 * MIB - PAGE_4K);
	le32_store(image.data + 0x22c, 32 * MIB - 2);
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	assert_int_equal(le32_load(zp + 0x218), 32 * MIB - 2 * PAGE_4K);
}

static void test_initramfs_keeps_off_the_kernel(void **state)
{
	const struct ram *ram = *state;
	size_t len = 2 * MIB;
	uint8_t *initramfs = malloc(len);
	struct attempt a = { .initramfs = initramfs, .initramfs_len = len };
	struct image image;
	const uint8_t *zp;

	assert_non_null(initramfs);
	fill_pattern(initramfs, len, 11);
	bz_make(&image);
	/* Exactly its room is left behind what the kernel needs. */
	le32_store(image.data + 0x260,
		   (uint32_t)(RAM_BYTES - BZ_PREF - 2 * MIB));
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	zp = guest_at(ram, LAYOUT_ZERO_PAGE, PAGE_4K);
	assert_int_equal(le32_load(zp + 0x218), RAM_BYTES - 2 * MIB);

	/* One byte less, and it goes in front of the kernel. */
	le32_store(image.data + 0x260,
		   (uint32_t)(RAM_BYTES - BZ_PREF - 2 * MIB + 1));
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	assert_int_equal(le32_load(zp + 0x218), BZ_PREF - 2 * MIB);
	assert_memory_equal(guest_at(ram, BZ_PREF - 2 * MIB, len), initramfs,
			    len);
	assert_memory_equal(guest_at(ram, BZ_PREF, BZ_CODE_BYTES),
			    image.data + BZ_CODE_OFFSET, BZ_CODE_BYTES);
	free(initramfs);
}

static void test_initramfs_too_large(void **state)
{
	const struct ram *ram = *state;
	struct boot_file kernel, initramfs;
	struct start_state start;
	struct err err = ERR_INIT;
	struct image image;
	int rc;

	bz_make(&image);
	kernel = image_file(image.data, image.len, "kernel");
	initramfs = image_file("x", 1, "initramfs");
	/* 44 MiB lie above the kernel, 15 MiB below. */
	for (int i = 0; i < 3; i++) {
		static const uint64_t sizes[] = { 44 * MIB + 1, 10 * GIB,
						  INT64_MAX - PAGE_4K };

		initramfs.size = sizes[i];
		rc = boot_load_files(ram, &kernel, &initramfs, "", 0, &start,
				     &err);
		assert_int_equal(rc, -ENOMEM);
		assert_non_null(strstr(err.text, "initramfs test-file: "));
		assert_non_null(strstr(err.text, "do not fit"));
		assert_non_null(strstr(err.text, "44 MiB are left"));
	}
	/* The largest that fits, as a sparse file. */
	initramfs.size = 44 * MIB;
	assert_int_equal(ftruncate(initramfs.fd, 44 * MIB), 0);
	assert_int_equal(boot_load_files(ram, &kernel, &initramfs, "", 0,
					 &start, &err),
			 0);
	boot_file_close(&initramfs);
	boot_file_close(&kernel);
}

/* RAM above 4 GiB takes neither kernel nor initramfs. */
static void test_large_guest(void **state)
{
	struct ram *ram = test_ram_new(5 * GIB);
	struct attempt a = { .initramfs = "initramfs", .initramfs_len = 9 };
	struct image image;
	const uint8_t *zp;

	bz_make(&image);
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	zp = guest_at(ram, LAYOUT_ZERO_PAGE, PAGE_4K);
	assert_int_equal(le32_load(zp + 0x218), 2 * GIB - PAGE_4K);

	le32_store(image.data + 0x22c, UINT32_MAX);
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	assert_int_equal(le32_load(zp + 0x218), 3 * GIB - PAGE_4K);
	assert_memory_equal(guest_at(ram, 3 * GIB - PAGE_4K, 9), "initramfs",
			    9);
	test_ram_free(ram);
}

static void test_kernel_is_moved_up(void **state)
{
	const struct ram *ram = *state;
	struct attempt a = { 0 };
	struct image image;

	bz_make(&image);
	le64_store(image.data + 0x258, 0x10000);
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	assert_int_equal(a.state.entry, 2 * MIB + 0x200);

	le64_store(image.data + 0x258, 5 * MIB);
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	assert_int_equal(a.state.entry, 6 * MIB + 0x200);
	assert_memory_equal(guest_at(ram, 6 * MIB, BZ_CODE_BYTES),
			    image.data + BZ_CODE_OFFSET, BZ_CODE_BYTES);

	/* One that cannot move is taken at its word, or not at all. */
	image.data[0x234] = 0;
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	assert_int_equal(a.state.entry, 5 * MIB + 0x200);
	le64_store(image.data + 0x258, 0x10000);
	assert_refused(ram, &image, ENOTSUP, "not relocatable");
}

static void test_kernel_needs_more_memory(void **state)
{
	const struct ram *ram = *state;
	struct attempt a = { 0 };
	struct image image;

	bz_make(&image);
	le32_store(image.data + 0x260, (uint32_t)(RAM_BYTES - BZ_PREF));
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	le32_store(image.data + 0x260, (uint32_t)(RAM_BYTES - BZ_PREF + 1));
	assert_refused(ram, &image, ENOMEM, "--memory");

	bz_make(&image);
	le64_store(image.data + 0x258, RAM_BYTES);
	assert_refused(ram, &image, ENOMEM, "the guest has 64 MiB");
	le64_store(image.data + 0x258, UINT64_MAX - 100);
	assert_refused(ram, &image, ENOMEM, "--memory");
	/* Without init_size the code itself still has to fit. */
	le64_store(image.data + 0x258, RAM_BYTES - BZ_CODE_BYTES / 2);
	le32_store(image.data + 0x260, 0);
	image.data[0x234] = 0;
	assert_refused(ram, &image, ENOMEM, "--memory");
	/* The largest alignment there is must not wrap the address. */
	bz_make(&image);
	le32_store(image.data + 0x230, 1u << 31);
	assert_refused(ram, &image, ENOMEM, "0x80000000");
}

static void test_spoilt_header(void **state)
{
	const struct ram *ram = *state;
	struct image image;

	bz_make(&image);
	le16_store(image.data + 0x1fe, 0);
	assert_refused(ram, &image, ENOEXEC, "boot sector");
	bz_make(&image);
	le16_store(image.data + 0x206, 0x020b);
	assert_refused(ram, &image, ENOTSUP, "protocol 2.11 is too old");
	bz_make(&image);
	le16_store(image.data + 0x236, 0xfffe);
	assert_refused(ram, &image, ENOTSUP, "64-bit entry");
	bz_make(&image);
	image.data[0x201] = 0x61;
	assert_refused(ram, &image, ENOEXEC, "setup header is only");
	bz_make(&image);
	le32_store(image.data + 0x230, 0);
	assert_refused(ram, &image, ENOEXEC, "power of two");
	le32_store(image.data + 0x230, 3 * 1024 * 1024);
	assert_refused(ram, &image, ENOEXEC, "power of two");
	bz_make(&image);
	le32_store(image.data + 0x1f4, 0x20);
	assert_refused(ram, &image, ENOEXEC, "64-bit entry");
	le32_store(image.data + 0x1f4, 0);
	assert_refused(ram, &image, ENOEXEC, "64-bit entry");
	le32_store(image.data + 0x1f4, UINT32_MAX);
	assert_refused(ram, &image, ENODATA, "truncated");
	bz_make(&image);
	image.data[0x1f1] = 0; /* means 4 */
	assert_refused(ram, &image, ENODATA, "truncated");
	image.data[0x1f1] = 0xff;
	assert_refused(ram, &image, ENODATA, "truncated");
}

static void test_truncated_anywhere(void **state)
{
	const struct ram *ram = *state;
	struct image image;
	size_t whole;

	bz_make(&image);
	whole = image.len;
	for (image.len = 0x206; image.len + 15 < whole; image.len++)
		assert_refused(ram, &image, ENODATA, "truncated");
	/* syssize counts 16 bytes at a time: this may be the whole kernel. */
	assert_int_equal(image.len, whole - 15);
	for (; image.len <= whole; image.len++) {
		struct attempt a = { 0 };

		assert_int_equal(attempt_load(&a, ram, image.data, image.len),
				 0);
	}
	/* Too short to be told for a kernel. */
	for (image.len = 1; image.len < 0x206; image.len++)
		assert_refused(ram, &image, ENOEXEC, "not a kernel");
}

static void test_not_a_kernel(void **state)
{
	static const struct {
		const char *bytes, *words;
	} files[] = {
		{ "#!/bin/sh\n", "not a kernel; give a bzImage" },
		{ "\x1f\x8b\x08", "gunzip" },
		{ "\xfd\x37zXZ", "unxz" },
		{ "\x28\xb5\x2f\xfd", "unzstd" },
		{ "\x04\x22\x4d\x18", "unlz4" },
		{ "070701", "an initramfs" },
		{ "MZ", "EFI program" },
		{ "M", "give a bzImage" },
	};
	const struct ram *ram = *state;
	struct image image;

	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		memset(&image, 0, sizeof(image));
		image.len = strlen(files[i].bytes);
		memcpy(image.data, files[i].bytes, image.len);
		assert_refused(ram, &image, ENOEXEC, files[i].words);
		/* The same beginning of a larger file. */
		image.len = 4096;
		assert_refused(ram, &image, ENOEXEC, files[i].words);
	}
}

static void test_command_line_limits(void **state)
{
	const struct ram *ram = *state;
	char *text = malloc(LAYOUT_CMDLINE_MAX + 1);
	struct attempt a = { .cmdline = text };
	struct image image;

	assert_non_null(text);
	bz_make(&image);
	memset(text, 'a', LAYOUT_CMDLINE_MAX + 1);
	text[2047] = '\0';
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	assert_string_equal((const char *)guest_at(ram, LAYOUT_CMDLINE, 2048),
			    text);
	text[2047] = 'a';
	text[2048] = '\0';
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), -E2BIG);
	assert_non_null(
		strstr(a.err.text, "2048 bytes, the kernel takes 2047"));

	/* A kernel that takes any length finds the end of our room for it. */
	le32_store(image.data + 0x238, UINT32_MAX);
	memset(text, 'a', LAYOUT_CMDLINE_MAX + 1);
	text[LAYOUT_CMDLINE_MAX - 1] = '\0';
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	text[LAYOUT_CMDLINE_MAX - 1] = 'a';
	text[LAYOUT_CMDLINE_MAX] = '\0';
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), -E2BIG);
	free(text);
}

/* A guest that is restarted is loaded over what it left behind. */
static void test_second_load_leaves_no_trace_of_the_first(void **state)
{
	const struct ram *ram = *state;
	struct attempt a = { .initramfs = "x",
			     .initramfs_len = 1,
			     .cmdline = "a long command line" };
	struct image image;
	const uint8_t *zp = guest_at(ram, LAYOUT_ZERO_PAGE, PAGE_4K);

	bz_make(&image);
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	memset(mem_map_range(ram, GPA(LAYOUT_ZERO_PAGE), PAGE_4K, MEM_WRITE),
	       0xff, PAGE_4K);
	a = (struct attempt){ .cmdline = "short" };
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	assert_int_equal(le32_load(zp + 0x218), 0);
	assert_int_equal(le32_load(zp + 0x21c), 0);
	assert_int_equal(zp[0], 0);
	assert_int_equal(zp[0x1ef], 0); /* the sentinel */
	assert_int_equal(zp[PAGE_4K - 1], 0);
	assert_string_equal((const char *)guest_at(ram, LAYOUT_CMDLINE, 8),
			    "short");
}

/* Files by path. */

struct files {
	struct ram *ram;
	char dir[64];
	char path[128];
};

static int files_setup(void **state)
{
	struct files *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	f->ram = test_ram_new(RAM_BYTES);
	snprintf(f->dir, sizeof(f->dir), "/tmp/quire-test-boot-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	assert_int_equal(chmod(f->dir, 0755), 0);
	snprintf(f->path, sizeof(f->path), "%s/vmlinuz", f->dir);
	*state = f;
	return 0;
}

static int files_teardown(void **state)
{
	struct files *f = *state;

	unlink(f->path);
	assert_int_equal(rmdir(f->dir), 0);
	test_ram_free(f->ram);
	free(f);
	return 0;
}

static void put_file(const char *path, const void *data, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	assert_true(fd >= 0);
	assert_int_equal(io_write_full(fd, data, len), 0);
	close(fd);
}

/* Refused by path: the message has the path and the words. */
static void assert_path_refused(struct files *f, const char *kernel,
				const char *initramfs, int code,
				const char *words)
{
	struct boot_config cfg = { .kernel = kernel,
				   .initramfs = initramfs,
				   .cmdline = "" };
	struct start_state start;
	struct err err = ERR_INIT;

	assert_int_equal(boot_load(f->ram, &cfg, &start, &err), -code);
	assert_int_equal(err.code, code);
	assert_non_null(strstr(err.text, initramfs ? initramfs : kernel));
	if (!strstr(err.text, words))
		fail_msg("\"%s\" has no \"%s\"", err.text, words);
}

static void test_good_path(void **state)
{
	struct files *f = *state;
	struct boot_config cfg = { .kernel = f->path,
				   .initramfs = f->path,
				   .cmdline = "quiet",
				   .rsdp = TEST_RSDP };
	struct start_state start;
	struct err err = ERR_INIT;
	struct image image;

	bz_make(&image);
	put_file(f->path, image.data, image.len);
	assert_int_equal(boot_load(f->ram, &cfg, &start, &err), 0);
	assert_int_equal(start.entry, BZ_PREF + 0x200);
	assert_memory_equal(guest_at(f->ram, RAM_BYTES - 8192, image.len),
			    image.data, image.len);
}

static void test_no_such_file(void **state)
{
	struct files *f = *state;
	struct image image;

	assert_path_refused(f, f->path, NULL, ENOENT, "check the path");
	bz_make(&image);
	put_file(f->path, image.data, image.len);
	assert_path_refused(f, f->path, "/nonexistent/initrd", ENOENT,
			    "initramfs /nonexistent/initrd: cannot open");
}

static void test_not_regular(void **state)
{
	struct files *f = *state;
	struct image image;

	assert_path_refused(f, f->dir, NULL, EISDIR, "is a directory");
	assert_path_refused(f, "/dev/zero", NULL, EINVAL, "is a device");
	/* Nobody writes to it: this must not wait for somebody. */
	assert_int_equal(mkfifo(f->path, 0600), 0);
	assert_path_refused(f, f->path, NULL, EINVAL, "is a FIFO");
	unlink(f->path);
	bz_make(&image);
	put_file(f->path, image.data, image.len);
	assert_path_refused(f, f->path, f->dir, EISDIR, "is a directory");
}

static void test_empty(void **state)
{
	struct files *f = *state;

	put_file(f->path, "", 0);
	assert_path_refused(f, f->path, NULL, ENODATA, "is empty");
}

static void test_unreadable(void **state)
{
	struct files *f = *state;
	struct image image;
	bool root = geteuid() == 0;

	bz_make(&image);
	put_file(f->path, image.data, image.len);
	assert_int_equal(chmod(f->path, 0), 0);
	/* Root may read anything: be somebody else for a moment. */
	if (root)
		assert_int_equal(seteuid(65534), 0);
	assert_path_refused(f, f->path, NULL, EACCES, "make it readable");
	if (root)
		assert_int_equal(seteuid(0), 0);
}

static void test_file_shrinks_meanwhile(void **state)
{
	struct files *f = *state;
	struct start_state start;
	struct boot_file file;
	struct err err = ERR_INIT;
	struct image image;

	bz_make(&image);
	put_file(f->path, image.data, image.len);
	assert_int_equal(boot_file_open("kernel", f->path, &file, &err), 0);
	assert_int_equal(truncate(f->path, 2000), 0);
	assert_int_equal(boot_load_files(f->ram, &file, NULL, "", 0, &start,
					 &err),
			 -ENODATA);
	assert_non_null(strstr(err.text, "became shorter"));
	boot_file_close(&file);
	boot_file_close(&file); /* closed is fine */
}

/*
 * The real thing: kernels the environment names, or the lab's where the test
 * runs in the top of the tree.
 */
static void test_real_kernels(void **state)
{
	static const char *const paths[][2] = {
		{ "GUEST_KERNEL_6_1", "build/lab/kernels/6.1/bzImage" },
		{ "GUEST_VMLINUX_6_1", "build/lab/kernels/6.1/vmlinux" },
		{ "GUEST_KERNEL_6_12", "build/lab/kernels/6.12/bzImage" },
		{ "GUEST_VMLINUX_6_12", "build/lab/kernels/6.12/vmlinux" },
	};
	struct ram *ram = test_ram_new(128 * MIB);
	unsigned int found = 0;

	for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
		const char *named = getenv(paths[i][0]);
		struct boot_config cfg = { .kernel = named ? named
							   : paths[i][1],
					   .cmdline = "quiet" };
		struct start_state start;
		struct err err = ERR_INIT;

		if (!named && access(cfg.kernel, R_OK))
			continue;
		found++;
		if (boot_load(ram, &cfg, &start, &err))
			fail_msg("%s", err.text);
		/* All of these are linked to run at 16 MiB. */
		assert_true(start.entry >= 16 * MIB);
		assert_true(start.entry < 32 * MIB);
	}
	test_ram_free(ram);
	if (!found) {
		print_message("skip: no lab kernels (make assets)\n");
		skip();
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bzimage_is_loaded),
		cmocka_unit_test(test_zero_page_has_the_memory_map),
		cmocka_unit_test(test_setup_data_of_the_file_is_dropped),
		cmocka_unit_test(test_initramfs_is_as_high_as_allowed),
		cmocka_unit_test(test_initramfs_keeps_off_the_kernel),
		cmocka_unit_test(test_initramfs_too_large),
		cmocka_unit_test(test_large_guest),
		cmocka_unit_test(test_kernel_is_moved_up),
		cmocka_unit_test(test_kernel_needs_more_memory),
		cmocka_unit_test(test_spoilt_header),
		cmocka_unit_test(test_truncated_anywhere),
		cmocka_unit_test(test_not_a_kernel),
		cmocka_unit_test(test_command_line_limits),
		cmocka_unit_test(test_second_load_leaves_no_trace_of_the_first),
		cmocka_unit_test(test_real_kernels),
	};
	const struct CMUnitTest file_tests[] = {
		cmocka_unit_test_setup_teardown(test_good_path, files_setup,
						files_teardown),
		cmocka_unit_test_setup_teardown(test_no_such_file, files_setup,
						files_teardown),
		cmocka_unit_test_setup_teardown(test_not_regular, files_setup,
						files_teardown),
		cmocka_unit_test_setup_teardown(test_empty, files_setup,
						files_teardown),
		cmocka_unit_test_setup_teardown(test_unreadable, files_setup,
						files_teardown),
		cmocka_unit_test_setup_teardown(test_file_shrinks_meanwhile,
						files_setup, files_teardown),
	};
	int failed = cmocka_run_group_tests_name("boot", tests, setup,
						 teardown);

	return failed + cmocka_run_group_tests_name("boot files", file_tests,
						    NULL, NULL);
}
