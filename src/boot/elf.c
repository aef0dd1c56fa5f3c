/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ELF64 kernels (vmlinux) by their PVH entry point: Xen's
 * docs/misc/pvh.pandoc. The entry is in a note of name "Xen" and type
 * XEN_ELFNOTE_PHYS32_ENTRY, a physical address where the CPU starts in 32-bit
 * protected mode without paging. e_entry is a virtual address and not used.
 *
 * Segments go to their physical addresses; they must lie in low RAM above
 * 1 MiB and not on one another.
 */
#include <elf.h>
#include <errno.h>

#include "base/arith.h"
#include "boot/boot_priv.h"
#include "x86/layout.h"

#define XEN_ELFNOTE_PHYS32_ENTRY 18

/* A vmlinux has five program headers and some twenty notes. */
#define ELF_MAX_PHDRS 64
#define ELF_MAX_NOTES 256

static int check_ehdr(const struct boot_file *file, const Elf64_Ehdr *ehdr,
		      struct err *err)
{
	if (ehdr->e_ident[EI_CLASS] != ELFCLASS64 ||
	    ehdr->e_ident[EI_DATA] != ELFDATA2LSB ||
	    ehdr->e_machine != EM_X86_64)
		return boot_file_err(file, err, ENOTSUP,
				     "ELF file for another machine (class %u,"
				     " machine %u); quire boots x86-64 kernels"
				     " only",
				     ehdr->e_ident[EI_CLASS], ehdr->e_machine);
	if (ehdr->e_type != ET_EXEC && ehdr->e_type != ET_DYN)
		return boot_file_err(file, err, ENOEXEC,
				     "ELF file is not executable (type %u);"
				     " give a linked vmlinux",
				     ehdr->e_type);
	if (ehdr->e_phentsize != sizeof(Elf64_Phdr) || !ehdr->e_phnum ||
	    ehdr->e_phnum > ELF_MAX_PHDRS)
		return boot_file_err(file, err, ENOEXEC,
				     "bad ELF file: %u program headers of %u"
				     " bytes",
				     ehdr->e_phnum, ehdr->e_phentsize);
	return 0;
}

static int check_segment(const struct boot_file *file, const Elf64_Phdr *ph,
			 uint64_t ram_end, struct err *err)
{

	if (ph->p_filesz > ph->p_memsz)
		return boot_file_err(file, err, ENOEXEC,
				     "bad ELF file: segment at %#llx is larger"
				     " in the file than in memory",
				     (unsigned long long)ph->p_paddr);
	if (!range_ok(ph->p_offset, ph->p_filesz, file->size))
		return boot_file_err(file, err, ENODATA,
				     "truncated ELF file: segment at %#llx has"
				     " %llu bytes at offset %#llx, the file"
				     " has %llu",
				     (unsigned long long)ph->p_paddr,
				     (unsigned long long)ph->p_filesz,
				     (unsigned long long)ph->p_offset,
				     (unsigned long long)file->size);
	if (ph->p_paddr < LAYOUT_HIGH_RAM)
		return boot_file_err(file, err, ENOTSUP,
				     "ELF segment wants to be loaded at %#llx,"
				     " below 1 MiB, where the boot structures"
				     " are",
				     (unsigned long long)ph->p_paddr);
	if (!range_ok(ph->p_paddr, ph->p_memsz, ram_end))
		return boot_file_no_room(file, ph->p_paddr, ph->p_memsz,
					 ram_end, err);
	return 0;
}

static int add_segment(const struct boot_file *file, const Elf64_Phdr *ph,
		       uint64_t ram_end, struct boot_kernel *kernel,
		       struct err *err)
{
	uint64_t end;
	int rc;

	if (!ph->p_memsz && !ph->p_filesz)
		return 0;
	rc = check_segment(file, ph, ram_end, err);
	if (rc)
		return rc;
	if (kernel->num_segments == BOOT_MAX_SEGMENTS)
		return boot_file_err(file, err, ENOEXEC,
				     "bad ELF file: more than %d segments to"
				     " load",
				     BOOT_MAX_SEGMENTS);
	end = ph->p_paddr + ph->p_memsz;
	for (unsigned int i = 0; i < kernel->num_segments; i++) {
		const struct boot_segment *seg = &kernel->segments[i];

		if (ph->p_paddr < seg->gpa + seg->mem_bytes && seg->gpa < end)
			return boot_file_err(file, err, ENOEXEC,
					     "bad ELF file: segments at %#llx"
					     " and %#llx overlap",
					     (unsigned long long)seg->gpa,
					     (unsigned long long)ph->p_paddr);
	}
	kernel->segments[kernel->num_segments++] = (struct boot_segment){
		.offset = ph->p_offset,
		.file_bytes = ph->p_filesz,
		.gpa = ph->p_paddr,
		.mem_bytes = ph->p_memsz,
	};
	kernel->start = MIN(kernel->start, (uint64_t)ph->p_paddr);
	kernel->end = MAX(kernel->end, end);
	return 0;
}

/* The entry address: 4 bytes in some kernels, 8 in others. */
static int read_entry(const struct boot_file *file, uint64_t offset,
		      uint64_t len, uint64_t *ret_entry, struct err *err)
{
	uint8_t desc[8] = { 0 };
	int rc;

	if (len != 4 && len != 8)
		return boot_file_err(file, err, ENOEXEC,
				     "bad ELF file: PVH entry note of %llu"
				     " bytes",
				     (unsigned long long)len);
	rc = boot_file_read(file, offset, desc, len, err);
	if (rc)
		return rc;
	*ret_entry = le64_load(desc);
	return 0;
}

/* One note of a segment; offsets count from the segment's start. */
struct elf_note {
	Elf64_Nhdr hdr;
	char name[4]; /* as much of it as is compared */
	uint64_t desc;
	uint64_t next;
};

static int read_note(const struct boot_file *file, const Elf64_Phdr *ph,
		     uint64_t pos, struct elf_note *ret_note, struct err *err)
{
	/* Notes are aligned to 4 bytes, or to 8 where the segment says so. */
	uint64_t align = ph->p_align == 8 ? 8 : 4;
	uint64_t offset = ph->p_offset + pos;
	struct elf_note note = { 0 };
	uint8_t raw[sizeof(note.hdr) + sizeof(note.name)] = { 0 };
	int rc;

	rc = boot_file_read(file, offset, raw,
			    MIN(ph->p_filesz - pos, sizeof(raw)), err);
	if (rc)
		return rc;
	memcpy(&note.hdr, raw, sizeof(note.hdr));
	memcpy(note.name, raw + sizeof(note.hdr), sizeof(note.name));
	/* Sizes are 32-bit and pos is inside the file: no wrapping. */
	note.desc = pos + sizeof(note.hdr) +
		    align_up((uint64_t)note.hdr.n_namesz, align);
	note.next = note.desc + align_up((uint64_t)note.hdr.n_descsz, align);
	if (!range_ok(note.desc, note.hdr.n_descsz, ph->p_filesz))
		return boot_file_err(file, err, ENOEXEC,
				     "bad ELF file: note at offset %#llx is"
				     " larger than its segment",
				     (unsigned long long)offset);
	*ret_note = note;
	return 0;
}

static bool is_entry_note(const struct elf_note *note)
{
	return note->hdr.n_type == XEN_ELFNOTE_PHYS32_ENTRY &&
	       note->hdr.n_namesz == sizeof("Xen") &&
	       !memcmp(note->name, "Xen", sizeof("Xen"));
}

/*
 * Look through one PT_NOTE. 1: found, 0: not there. *budget bounds the notes
 * looked at in the whole file, since each costs a system call.
 */
static int scan_notes(const struct boot_file *file, const Elf64_Phdr *ph,
		      unsigned int *budget, uint64_t *ret_entry,
		      struct err *err)
{
	struct elf_note note;
	int rc;

	if (!range_ok(ph->p_offset, ph->p_filesz, file->size))
		return boot_file_err(file, err, ENODATA,
				     "truncated ELF file: notes are %llu bytes"
				     " at offset %#llx, the file has %llu",
				     (unsigned long long)ph->p_filesz,
				     (unsigned long long)ph->p_offset,
				     (unsigned long long)file->size);
	/* The last note need not be padded: next may be past the end. */
	for (uint64_t pos = 0;
	     pos < ph->p_filesz && ph->p_filesz - pos >= sizeof(note.hdr);
	     pos = note.next) {
		if (!(*budget)--)
			return boot_file_err(file, err, ENOEXEC,
					     "bad ELF file: more than %d notes",
					     ELF_MAX_NOTES);
		rc = read_note(file, ph, pos, &note, err);
		if (rc)
			return rc;
		if (!is_entry_note(&note))
			continue;
		rc = read_entry(file, ph->p_offset + note.desc,
				note.hdr.n_descsz, ret_entry, err);
		return rc ? rc : 1;
	}
	return 0;
}

static int find_entry(const struct boot_file *file, const Elf64_Phdr *phdrs,
		      unsigned int num_phdrs, struct boot_kernel *kernel,
		      struct err *err)
{
	unsigned int budget = ELF_MAX_NOTES;
	int found = 0;

	for (unsigned int i = 0; i < num_phdrs && !found; i++) {
		if (phdrs[i].p_type != PT_NOTE)
			continue;
		found = scan_notes(file, &phdrs[i], &budget, &kernel->entry,
				   err);
	}
	if (found < 0)
		return found;
	if (!found)
		return boot_file_err(file, err, ENOTSUP,
				     "ELF file has no PVH entry note; build the"
				     " kernel with CONFIG_PVH=y or give its"
				     " bzImage");
	for (unsigned int i = 0; i < kernel->num_segments; i++) {
		const struct boot_segment *seg = &kernel->segments[i];

		if (kernel->entry >= seg->gpa &&
		    kernel->entry - seg->gpa < seg->mem_bytes)
			return 0;
	}
	return boot_file_err(file, err, ENOEXEC,
			     "bad ELF file: PVH entry %#llx is in no segment",
			     (unsigned long long)kernel->entry);
}

int elf_parse(const struct boot_file *file, const uint8_t *head,
	      size_t head_len, uint64_t ram_end, struct boot_kernel *ret_kernel,
	      struct err *err)
{
	struct boot_kernel kernel = {
		.mode = START_PVH32,
		.start = UINT64_MAX,
		/* The protocol knows no limits; LAYOUT_* and RAM set them. */
		.initramfs_limit = UINT64_MAX,
		.cmdline_max = UINT64_MAX,
	};
	Elf64_Phdr phdrs[ELF_MAX_PHDRS];
	Elf64_Ehdr ehdr;
	int rc;

	if (head_len < sizeof(ehdr))
		return boot_file_err(file, err, ENODATA,
				     "truncated: ends inside the ELF header");
	memcpy(&ehdr, head, sizeof(ehdr));
	rc = check_ehdr(file, &ehdr, err);
	if (rc)
		return rc;
	rc = boot_file_read(file, ehdr.e_phoff, phdrs,
			    ehdr.e_phnum * sizeof(*phdrs), err);
	if (rc)
		return rc;
	for (unsigned int i = 0; i < ehdr.e_phnum; i++) {
		if (phdrs[i].p_type != PT_LOAD)
			continue;
		rc = add_segment(file, &phdrs[i], ram_end, &kernel, err);
		if (rc)
			return rc;
	}
	if (!kernel.num_segments)
		return boot_file_err(file, err, ENOEXEC,
				     "ELF file has nothing to load");
	rc = find_entry(file, phdrs, ehdr.e_phnum, &kernel, err);
	if (rc)
		return rc;
	*ret_kernel = kernel;
	return 0;
}
