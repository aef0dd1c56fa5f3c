/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small kernels for the tests of src/boot: a well-formed bzImage and vmlinux
 * that a test then spoils, and a guest to load them into.
 */
#ifndef QUIRE_TESTS_BOOT_FILES_H
#define QUIRE_TESTS_BOOT_FILES_H

#include "cmocka_all.h"

#include <elf.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/io.h"
#include "boot/boot_priv.h"
#include "x86/layout.h"

#define TEST_RSDP 0xe0000ull

/* A file in memory; room is left for tests that make it longer. */
struct image {
	size_t len;
	uint8_t data[16 * 1024];
};

static inline void fill_pattern(uint8_t *p, size_t len, uint8_t seed)
{
	for (size_t i = 0; i < len; i++)
		p[i] = (uint8_t)(i * 7 + seed) | 1;
}

static inline struct ram *test_ram_new(uint64_t size)
{
	struct ram_config cfg = {
		.size_bytes = size,
		.hole_start = LAYOUT_HOLE_START,
		.hole_end = LAYOUT_HOLE_END,
		.page = RAM_PAGE_4K,
	};
	struct ram *ram = calloc(1, sizeof(*ram));
	struct err err = ERR_INIT;

	assert_non_null(ram);
	assert_int_equal(ram_init(ram, &cfg, &err), 0);
	return ram;
}

static inline void test_ram_free(struct ram *ram)
{
	ram_fini(ram);
	free(ram);
}

/* Guest bytes for reading, or the test fails. */
static inline const uint8_t *guest_at(const struct ram *ram, uint64_t gpa,
				      uint64_t len)
{
	const void *p = mem_map_range(ram, GPA(gpa), len, MEM_READ);

	assert_non_null(p);
	return p;
}

static inline struct boot_file image_file(const void *data, size_t len,
					  const char *what)
{
	int fd = memfd_create(what, MFD_CLOEXEC);
	struct boot_file file = { .fd = -1 };

	assert_true(fd >= 0);
	assert_int_equal(io_write_full(fd, data, len), 0);
	/* Not through boot_file_init(), which refuses the empty. */
	file = (struct boot_file){
		.fd = fd, .what = what, .path = "test-file", .size = len
	};
	return file;
}

/* What a load is made of, and what came of it. */
struct attempt {
	const void *initramfs;
	size_t initramfs_len;
	const char *cmdline;
	struct start_state state;
	struct err err;
};

static inline int attempt_load(struct attempt *a, const struct ram *ram,
			       const void *kernel, size_t kernel_len)
{
	struct boot_file initramfs = { .fd = -1 };
	struct boot_file file = image_file(kernel, kernel_len, "kernel");
	int rc;

	if (a->initramfs)
		initramfs = image_file(a->initramfs, a->initramfs_len,
				       "initramfs");
	memset(&a->err, 0, sizeof(a->err));
	rc = boot_load_files(ram, &file, a->initramfs ? &initramfs : NULL,
			     a->cmdline ? a->cmdline : "", TEST_RSDP, &a->state,
			     &a->err);
	boot_file_close(&initramfs);
	boot_file_close(&file);
	return rc;
}

/* The image must be refused with this code and a text that has these words. */
static inline void assert_refused(const struct ram *ram,
				  const struct image *image, int code,
				  const char *words)
{
	struct attempt a = { .cmdline = "quiet" };
	int rc = attempt_load(&a, ram, image->data, image->len);

	if (!strstr(a.err.text, words))
		fail_msg("\"%s\" has no \"%s\"", a.err.text, words);
	assert_int_equal(rc, -code);
	assert_int_equal(a.err.code, code);
	assert_non_null(strstr(a.err.text, "kernel test-file: "));
}

/* bzImage: two sectors of setup, then code. */

#define BZ_CODE_OFFSET 1024
#define BZ_CODE_BYTES  (4 * KIB)
#define BZ_PREF	       (16 * MIB)
#define BZ_INIT_SIZE   (4 * MIB)

static inline void bz_make(struct image *image)
{
	uint8_t *d = image->data;

	memset(image, 0, sizeof(*image));
	image->len = BZ_CODE_OFFSET + BZ_CODE_BYTES;
	d[0x1f1] = 1;
	le32_store(d + 0x1f4, BZ_CODE_BYTES / 16);
	le16_store(d + 0x1fe, 0xaa55);
	d[0x200] = 0xeb;
	d[0x201] = 0x6a; /* the header ends at 0x26c */
	memcpy(d + 0x202, "HdrS", 4);
	le16_store(d + 0x206, 0x020f);
	d[0x211] = 1;
	le32_store(d + 0x22c, 0x7fffffff);
	le32_store(d + 0x230, 2 * MIB);
	d[0x234] = 1;
	le16_store(d + 0x236, 1);
	le32_store(d + 0x238, 2047);
	le64_store(d + 0x258, BZ_PREF);
	le32_store(d + 0x260, BZ_INIT_SIZE);
	fill_pattern(d + BZ_CODE_OFFSET, BZ_CODE_BYTES, 1);
}

/*
 * vmlinux: text, data with a bss, notes (one that is not ours, then the PVH
 * entry). The names below are where a test changes something.
 */

#define ELF_TEXT_GPA	(16 * MIB)
#define ELF_TEXT_OFFSET 0x1000
#define ELF_TEXT_BYTES	0x1000
#define ELF_DATA_GPA	(ELF_TEXT_GPA + 0x10000)
#define ELF_DATA_OFFSET 0x2000
#define ELF_DATA_BYTES	0x800
#define ELF_DATA_MEM	0x3000
#define ELF_NOTE_OFFSET 0x2800
#define ELF_ENTRY	(ELF_TEXT_GPA + 0x120)

static inline Elf64_Ehdr *elf_header(struct image *image)
{
	return (Elf64_Ehdr *)image->data;
}

/* 0: text, 1: data, 2: notes. */
static inline Elf64_Phdr *elf_phdr(struct image *image, unsigned int i)
{
	return (Elf64_Phdr *)(image->data + sizeof(Elf64_Ehdr)) + i;
}

/* Append a note; returns where its descriptor is. */
static inline uint8_t *elf_add_note(struct image *image, const char *name,
				    uint32_t type, const void *desc,
				    uint32_t desc_len)
{
	Elf64_Phdr *ph = elf_phdr(image, 2);
	uint8_t *p = image->data + ph->p_offset + ph->p_filesz;
	uint64_t align = ph->p_align;
	uint32_t name_len = (uint32_t)strlen(name) + 1;
	uint64_t desc_at = 12 + align_up(name_len, align);
	uint64_t total = desc_at + align_up(desc_len, align);

	assert_true(p + total <= image->data + sizeof(image->data));
	le32_store(p, name_len);
	le32_store(p + 4, desc_len);
	le32_store(p + 8, type);
	memcpy(p + 12, name, name_len);
	memcpy(p + desc_at, desc, desc_len);
	ph->p_filesz += total;
	ph->p_memsz = ph->p_filesz;
	image->len = MAX(image->len, (size_t)(p + total - image->data));
	return p + desc_at;
}

static inline void elf_make_without_notes(struct image *image)
{
	memset(image, 0, sizeof(*image));
	image->len = ELF_NOTE_OFFSET;
	*elf_header(image) = (Elf64_Ehdr){
		.e_ident = { ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64,
			     ELFDATA2LSB, EV_CURRENT },
		.e_type = ET_EXEC,
		.e_machine = EM_X86_64,
		.e_version = EV_CURRENT,
		.e_phoff = sizeof(Elf64_Ehdr),
		.e_ehsize = sizeof(Elf64_Ehdr),
		.e_phentsize = sizeof(Elf64_Phdr),
		.e_phnum = 3,
	};
	*elf_phdr(image, 0) = (Elf64_Phdr){
		.p_type = PT_LOAD,
		.p_offset = ELF_TEXT_OFFSET,
		.p_paddr = ELF_TEXT_GPA,
		.p_filesz = ELF_TEXT_BYTES,
		.p_memsz = ELF_TEXT_BYTES,
	};
	*elf_phdr(image, 1) = (Elf64_Phdr){
		.p_type = PT_LOAD,
		.p_offset = ELF_DATA_OFFSET,
		.p_paddr = ELF_DATA_GPA,
		.p_filesz = ELF_DATA_BYTES,
		.p_memsz = ELF_DATA_MEM,
	};
	*elf_phdr(image, 2) = (Elf64_Phdr){
		.p_type = PT_NOTE,
		.p_offset = ELF_NOTE_OFFSET,
		.p_align = 4,
	};
	fill_pattern(image->data + ELF_TEXT_OFFSET, ELF_TEXT_BYTES, 3);
	fill_pattern(image->data + ELF_DATA_OFFSET, ELF_DATA_BYTES, 5);
}

static inline void elf_make(struct image *image)
{
	uint64_t entry = htole64(ELF_ENTRY);

	elf_make_without_notes(image);
	elf_add_note(image, "GNU", 3, "0123456789", 10);
	/* The right number under another name is not it. */
	elf_add_note(image, "Not", 18, "12345678", 8);
	elf_add_note(image, "Xen", 18, &entry, sizeof(entry));
}

#endif
