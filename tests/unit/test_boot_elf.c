/* SPDX-License-Identifier: Apache-2.0 */
/* boot/elf.c and the PVH start info: a good vmlinux, and all ways to spoil it.
 */
#include "boot_files.h"

#include <errno.h>
#include <sys/mman.h>

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

static void test_vmlinux_is_loaded(void **state)
{
	const struct ram *ram = *state;
	struct attempt a = { .cmdline = "console=ttyS0" };
	struct image image;
	unsigned char resident[ELF_DATA_MEM / PAGE_4K - 1];
	const uint8_t *bss;

	elf_make(&image);
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	assert_int_equal(a.state.mode, START_PVH32);
	assert_int_equal(a.state.entry, ELF_ENTRY);
	assert_int_equal(a.state.arg, LAYOUT_PVH_START);
	assert_memory_equal(guest_at(ram, ELF_TEXT_GPA, ELF_TEXT_BYTES),
			    image.data + ELF_TEXT_OFFSET, ELF_TEXT_BYTES);
	assert_memory_equal(guest_at(ram, ELF_DATA_GPA, ELF_DATA_BYTES),
			    image.data + ELF_DATA_OFFSET, ELF_DATA_BYTES);
	/* The bss is there, but costs nothing yet. */
	bss = guest_at(ram, ELF_DATA_GPA, ELF_DATA_MEM);
	assert_int_equal(mincore((void *)(bss + PAGE_4K),
				 ELF_DATA_MEM - PAGE_4K, resident),
			 0);
	for (size_t i = 0; i < ARRAY_SIZE(resident); i++)
		assert_int_equal(resident[i] & 1, 0);
	for (size_t i = ELF_DATA_BYTES; i < ELF_DATA_MEM; i++)
		assert_int_equal(bss[i], 0);
	assert_string_equal((const char *)guest_at(ram, LAYOUT_CMDLINE, 16),
			    "console=ttyS0");
}

static void test_start_info(void **state)
{
	const struct ram *ram = *state;
	struct e820_entry map[E820_MAX_ENTRIES];
	unsigned int num = e820_build(ram, map);
	struct attempt a = { .initramfs = "initramfs", .initramfs_len = 9 };
	const uint8_t *info, *mod, *mm;
	struct image image;

	elf_make(&image);
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	info = guest_at(ram, a.state.arg, 56);
	assert_int_equal(le32_load(info), 0x336ec578);
	assert_int_equal(le32_load(info + 4), 1);
	assert_int_equal(le32_load(info + 8), 0);
	assert_int_equal(le32_load(info + 12), 1);
	assert_int_equal(le64_load(info + 24), LAYOUT_CMDLINE);
	assert_int_equal(le64_load(info + 32), TEST_RSDP);
	assert_int_equal(le32_load(info + 48), num);

	mod = guest_at(ram, le64_load(info + 16), 32);
	assert_int_equal(le64_load(mod), RAM_BYTES - PAGE_4K);
	assert_int_equal(le64_load(mod + 8), 9);
	assert_memory_equal(guest_at(ram, le64_load(mod), 9), "initramfs", 9);

	mm = guest_at(ram, le64_load(info + 40), num * 24);
	for (unsigned int i = 0; i < num; i++, mm += 24) {
		assert_int_equal(le64_load(mm), map[i].addr);
		assert_int_equal(le64_load(mm + 8), map[i].size);
		assert_int_equal(le32_load(mm + 16), map[i].type);
		assert_int_equal(le32_load(mm + 20), 0);
	}

	/* Without an initramfs, over the same memory: no module. */
	a = (struct attempt){ 0 };
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	assert_int_equal(le32_load(info + 12), 0);
	assert_int_equal(le64_load(info + 16), 0);
}

/* A vmlinux that fills a small guest leaves room only in front of it. */
static void test_initramfs_in_front_of_the_kernel(void **state)
{
	const struct ram *ram = *state;
	struct attempt a = { .initramfs = "initramfs", .initramfs_len = 9 };
	struct image image;

	elf_make(&image);
	elf_phdr(&image, 1)->p_memsz = RAM_BYTES - ELF_DATA_GPA - 100;
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	assert_memory_equal(guest_at(ram, ELF_TEXT_GPA - PAGE_4K, 9),
			    "initramfs", 9);
	/* And if the kernel begins at 1 MiB there is none at all. */
	elf_phdr(&image, 0)->p_paddr = MIB;
	elf_phdr(&image, 0)->p_memsz = ELF_DATA_GPA - MIB;
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), -ENOMEM);
	assert_non_null(strstr(a.err.text, "do not fit"));
}

static void test_entry_note_forms(void **state)
{
	const struct ram *ram = *state;
	struct attempt a = { 0 };
	uint32_t entry32 = htole32(ELF_ENTRY + 4);
	uint64_t entry64 = htole64(ELF_ENTRY + 8);
	struct image image;

	/* Four bytes, as Linux writes it since 6.12. */
	elf_make_without_notes(&image);
	elf_add_note(&image, "Xen", 18, &entry32, 4);
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	assert_int_equal(a.state.entry, ELF_ENTRY + 4);

	/* Behind another note, all aligned to 8. */
	elf_make_without_notes(&image);
	elf_phdr(&image, 2)->p_align = 8;
	elf_add_note(&image, "GNU", 5, "x", 1);
	elf_add_note(&image, "Xen", 18, &entry64, 8);
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	assert_int_equal(a.state.entry, ELF_ENTRY + 8);

	elf_make_without_notes(&image);
	elf_add_note(&image, "Xen", 18, "123456", 6);
	assert_refused(ram, &image, ENOEXEC, "entry note of 6 bytes");
}

static void test_no_entry_note(void **state)
{
	const struct ram *ram = *state;
	struct image image;

	elf_make_without_notes(&image);
	assert_refused(ram, &image, ENOTSUP, "CONFIG_PVH=y");
	elf_add_note(&image, "GNU", 3, "build id", 8);
	elf_add_note(&image, "Xen", 5, "xen-3.0", 8);
	elf_add_note(&image, "Xenophobia", 18, "12345678", 8);
	assert_refused(ram, &image, ENOTSUP, "CONFIG_PVH=y");
	/* A name without its NUL is another name. */
	elf_make_without_notes(&image);
	elf_add_note(&image, "Xen", 18, "12345678", 8);
	le32_store(image.data + ELF_NOTE_OFFSET, 3);
	assert_refused(ram, &image, ENOTSUP, "CONFIG_PVH=y");
	elf_make(&image);
	elf_header(&image)->e_phnum = 2;
	assert_refused(ram, &image, ENOTSUP, "CONFIG_PVH=y");
}

static void test_entry_must_be_in_the_kernel(void **state)
{
	static const uint64_t entries[] = {
		0,
		MIB,
		ELF_TEXT_GPA - 1,
		ELF_TEXT_GPA + ELF_TEXT_BYTES,
		ELF_DATA_GPA + ELF_DATA_MEM,
		UINT64_MAX,
		ELF_ENTRY + 4 * GIB,
	};
	const struct ram *ram = *state;
	struct image image;

	for (size_t i = 0; i < ARRAY_SIZE(entries); i++) {
		uint64_t entry = htole64(entries[i]);

		elf_make_without_notes(&image);
		elf_add_note(&image, "Xen", 18, &entry, 8);
		assert_refused(ram, &image, ENOEXEC, "is in no segment");
	}
}

static void test_spoilt_notes(void **state)
{
	const struct ram *ram = *state;
	struct image image;
	uint8_t *note;

	/* Sizes that leave the segment, wrap 32 bits or the file. */
	elf_make(&image);
	note = image.data + ELF_NOTE_OFFSET;
	le32_store(note, UINT32_MAX);
	assert_refused(ram, &image, ENOEXEC, "larger than its segment");
	elf_make(&image);
	le32_store(note + 4, UINT32_MAX);
	assert_refused(ram, &image, ENOEXEC, "larger than its segment");
	elf_make(&image);
	elf_phdr(&image, 2)->p_offset = UINT64_MAX - 4;
	assert_refused(ram, &image, ENODATA, "truncated");
	elf_make(&image);
	elf_phdr(&image, 2)->p_filesz = UINT64_MAX;
	assert_refused(ram, &image, ENODATA, "truncated");
	/* A segment that ends inside the entry note's descriptor. */
	elf_make(&image);
	elf_phdr(&image, 2)->p_filesz -= 1;
	assert_refused(ram, &image, ENOEXEC, "larger than its segment");
	/* Or before it: then it is not there. */
	elf_phdr(&image, 2)->p_filesz -= 23;
	assert_refused(ram, &image, ENOTSUP, "CONFIG_PVH=y");
}

static void test_endless_notes(void **state)
{
	const struct ram *ram = *state;
	struct image image;

	/* Empty ones of 12 bytes: each costs us a read. */
	elf_make_without_notes(&image);
	image.len = sizeof(image.data);
	elf_phdr(&image, 2)->p_filesz = image.len - ELF_NOTE_OFFSET;
	assert_refused(ram, &image, ENOEXEC, "more than 256 notes");
}

static void test_spoilt_header(void **state)
{
	const struct ram *ram = *state;
	struct image image;

	elf_make(&image);
	elf_header(&image)->e_ident[EI_CLASS] = ELFCLASS32;
	assert_refused(ram, &image, ENOTSUP, "another machine");
	elf_make(&image);
	elf_header(&image)->e_ident[EI_DATA] = ELFDATA2MSB;
	assert_refused(ram, &image, ENOTSUP, "another machine");
	elf_make(&image);
	elf_header(&image)->e_machine = EM_AARCH64;
	assert_refused(ram, &image, ENOTSUP, "another machine");
	elf_make(&image);
	elf_header(&image)->e_type = ET_REL;
	assert_refused(ram, &image, ENOEXEC, "not executable");
	elf_make(&image);
	elf_header(&image)->e_phentsize = 32;
	assert_refused(ram, &image, ENOEXEC, "program headers");
	elf_make(&image);
	elf_header(&image)->e_phnum = 0;
	assert_refused(ram, &image, ENOEXEC, "program headers");
	elf_header(&image)->e_phnum = 65;
	assert_refused(ram, &image, ENOEXEC, "program headers");
	elf_header(&image)->e_phnum = UINT16_MAX;
	assert_refused(ram, &image, ENOEXEC, "program headers");
	elf_make(&image);
	elf_header(&image)->e_phoff = UINT64_MAX - 10;
	assert_refused(ram, &image, ENODATA, "truncated");
	elf_header(&image)->e_phoff = image.len - 100;
	assert_refused(ram, &image, ENODATA, "truncated");
	elf_make(&image);
	elf_phdr(&image, 0)->p_type = PT_NULL;
	elf_phdr(&image, 1)->p_type = PT_NULL;
	assert_refused(ram, &image, ENOEXEC, "nothing to load");
}

static void test_spoilt_segments(void **state)
{
	const struct ram *ram = *state;
	struct image image;
	Elf64_Phdr *text = elf_phdr(&image, 0);
	Elf64_Phdr *data = elf_phdr(&image, 1);

	elf_make(&image);
	text->p_offset = UINT64_MAX - 0x100;
	assert_refused(ram, &image, ENODATA, "truncated");
	elf_make(&image);
	text->p_filesz = text->p_memsz = UINT64_MAX;
	assert_refused(ram, &image, ENODATA, "truncated");
	elf_make(&image);
	text->p_filesz = text->p_memsz + 1;
	assert_refused(ram, &image, ENOEXEC, "larger in the file");
	elf_make(&image);
	text->p_paddr = MIB - 1;
	assert_refused(ram, &image, ENOTSUP, "below 1 MiB");
	text->p_paddr = 0;
	assert_refused(ram, &image, ENOTSUP, "below 1 MiB");
	elf_make(&image);
	data->p_paddr = RAM_BYTES - ELF_DATA_MEM + 1;
	assert_refused(ram, &image, ENOMEM, "--memory");
	data->p_paddr = UINT64_MAX - 1;
	assert_refused(ram, &image, ENOMEM, "--memory");
	elf_make(&image);
	data->p_memsz = UINT64_MAX;
	assert_refused(ram, &image, ENOMEM, "--memory");
	elf_make(&image);
	data->p_paddr = ELF_TEXT_GPA + ELF_TEXT_BYTES - 1;
	assert_refused(ram, &image, ENOEXEC, "overlap");
	data->p_paddr = ELF_TEXT_GPA - ELF_DATA_MEM + 1;
	assert_refused(ram, &image, ENOEXEC, "overlap");
}

/* Next to one another, to 1 MiB and to the end of RAM is fine. */
static void test_segments_at_the_edges(void **state)
{
	const struct ram *ram = *state;
	struct attempt a = { 0 };
	struct image image;

	elf_make(&image);
	elf_phdr(&image, 1)->p_paddr = ELF_TEXT_GPA + ELF_TEXT_BYTES;
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	elf_phdr(&image, 1)->p_paddr = RAM_BYTES - ELF_DATA_MEM;
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	elf_phdr(&image, 1)->p_paddr = MIB;
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	assert_memory_equal(guest_at(ram, MIB, ELF_DATA_BYTES),
			    image.data + ELF_DATA_OFFSET, ELF_DATA_BYTES);
	/* An empty segment may be anywhere. */
	elf_phdr(&image, 1)->p_paddr = 0;
	elf_phdr(&image, 1)->p_filesz = 0;
	elf_phdr(&image, 1)->p_memsz = 0;
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
}

static void test_too_many_segments(void **state)
{
	const struct ram *ram = *state;
	struct attempt a = { 0 };
	struct image image;
	Elf64_Phdr notes;

	elf_make(&image);
	notes = *elf_phdr(&image, 2);
	for (unsigned int i = 2; i < BOOT_MAX_SEGMENTS + 1; i++)
		*elf_phdr(&image, i) = (Elf64_Phdr){
			.p_type = PT_LOAD,
			.p_paddr = 32 * MIB + i * PAGE_4K,
			.p_memsz = PAGE_4K,
		};
	*elf_phdr(&image, BOOT_MAX_SEGMENTS) = notes;
	elf_header(&image)->e_phnum = BOOT_MAX_SEGMENTS + 1;
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);

	*elf_phdr(&image, BOOT_MAX_SEGMENTS + 1) = notes;
	*elf_phdr(&image, BOOT_MAX_SEGMENTS) = (Elf64_Phdr){
		.p_type = PT_LOAD, .p_paddr = 48 * MIB, .p_memsz = 1
	};
	elf_header(&image)->e_phnum = BOOT_MAX_SEGMENTS + 2;
	assert_refused(ram, &image, ENOEXEC, "more than 32 segments");
}

static void test_truncated_anywhere(void **state)
{
	const struct ram *ram = *state;
	struct attempt a = { 0 };
	struct image image;
	size_t whole;

	elf_make(&image);
	whole = image.len;
	for (image.len = SELFMAG; image.len < whole; image.len++)
		assert_refused(ram, &image, ENODATA, "truncated");
	assert_int_equal(attempt_load(&a, ram, image.data, whole), 0);
	for (image.len = 1; image.len < SELFMAG; image.len++)
		assert_refused(ram, &image, ENOEXEC, "not a kernel");
}

static void test_command_line_limit(void **state)
{
	const struct ram *ram = *state;
	char *text = malloc(LAYOUT_CMDLINE_MAX + 1);
	struct attempt a = { .cmdline = text };
	struct image image;

	assert_non_null(text);
	elf_make(&image);
	memset(text, 'a', LAYOUT_CMDLINE_MAX);
	text[LAYOUT_CMDLINE_MAX] = '\0';
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), -E2BIG);
	text[2047] = '\0';
	assert_int_equal(attempt_load(&a, ram, image.data, image.len), 0);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_vmlinux_is_loaded),
		cmocka_unit_test(test_start_info),
		cmocka_unit_test(test_initramfs_in_front_of_the_kernel),
		cmocka_unit_test(test_entry_note_forms),
		cmocka_unit_test(test_no_entry_note),
		cmocka_unit_test(test_entry_must_be_in_the_kernel),
		cmocka_unit_test(test_spoilt_notes),
		cmocka_unit_test(test_endless_notes),
		cmocka_unit_test(test_spoilt_header),
		cmocka_unit_test(test_spoilt_segments),
		cmocka_unit_test(test_segments_at_the_edges),
		cmocka_unit_test(test_too_many_segments),
		cmocka_unit_test(test_truncated_anywhere),
		cmocka_unit_test(test_command_line_limit),
	};

	return cmocka_run_group_tests_name("boot elf", tests, setup, teardown);
}
