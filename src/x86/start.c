/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sources: Documentation/arch/x86/boot.rst "64-bit boot protocol", Xen's
 * docs/misc/pvh.pandoc "CPU start of day", Intel SDM 3A 3.4.5 (descriptors),
 * 4.5 (4-level paging), 8.2 (TSS); 1 chapter 19 (I/O bitmap).
 */
#include "x86/start.h"

#include <errno.h>
#include <string.h>

#include "base/arith.h"
#include "x86/layout.h"

#define CR0_PE (1u << 0)
#define CR0_MP (1u << 1)
#define CR0_ET (1u << 4)
#define CR0_NE (1u << 5)
#define CR0_WP (1u << 16)
#define CR0_PG (1u << 31)

#define CR4_PAE	       (1u << 5)
#define CR4_OSFXSR     (1u << 9)
#define CR4_OSXMMEXCPT (1u << 10)

#define EFER_LME (1u << 8)
#define EFER_LMA (1u << 10)

#define RFLAGS_ALWAYS (1u << 1)
#define RFLAGS_IOPL3  (3u << 12)

#define PTE_PRESENT  (1u << 0)
#define PTE_WRITE    (1u << 1)
#define PTE_ACCESSED (1u << 5)
#define PTE_DIRTY    (1u << 6)
#define PTE_LARGE    (1u << 7)

/* ---- segments ---- */

/* Slots of the GDT; the boot protocol fixes the first two selectors. */
enum gdt_slot {
	GDT_CODE = 2, /* __BOOT_CS, 0x10 */
	GDT_DATA = 3, /* __BOOT_DS, 0x18 */
	GDT_TSS = 4,  /* two slots in long mode */
	GDT_USER_DATA = 6,
	GDT_USER_CODE = 7,
	GDT_NUM_SLOTS = 8,
};

#define GDT_SELECTOR(slot, rpl) ((uint16_t)((slot)*8 + (rpl)))

#define SEG_CODE_RX_A 0xb /* accessed: the CPU need not write the GDT */
#define SEG_DATA_RW_A 0x3
#define SEG_TSS_BUSY  0xb
#define TSS_BYTES     104

/* start_load_flat64: the TSS and its I/O bitmap behind the GDT. */
#define FLAT64_TSS_OFFSET (GDT_NUM_SLOTS * 8ull)
#define FLAT64_TSS_BYTES  (START_FLAT64_BYTES - FLAT64_TSS_OFFSET)
#define TSS_IO_BITMAP	  102 /* where the bitmap's offset is */

_Static_assert(FLAT64_TSS_BYTES == TSS_BYTES + 65536 / 8 + 1, "all ports");

enum seg_width { SEG_32, SEG_64 };

static struct kvm_segment flat_segment(enum gdt_slot slot, uint8_t type,
				       enum seg_width width, unsigned int dpl)
{
	return (struct kvm_segment){
		.base = 0,
		.limit = 0xffffffff,
		.selector = GDT_SELECTOR(slot, dpl),
		.type = type,
		.present = 1,
		.dpl = (uint8_t)dpl,
		.db = width == SEG_32,
		.s = 1,
		.l = width == SEG_64,
		.g = 1,
	};
}

/* VMX wants a busy TSS in TR even if nothing ever uses it. */
static struct kvm_segment tss_segment(uint64_t base, uint32_t bytes)
{
	return (struct kvm_segment){
		.base = base,
		.limit = bytes - 1,
		.selector = GDT_SELECTOR(GDT_TSS, 0),
		.type = SEG_TSS_BUSY,
		.present = 1,
	};
}

static const struct kvm_segment no_segment = { .unusable = 1 };

/* The descriptor in memory for a segment's hidden part. */
static uint64_t gdt_descriptor(const struct kvm_segment *seg)
{
	uint32_t limit = seg->g ? seg->limit >> 12 : seg->limit;
	uint64_t d = 0;

	d |= limit & 0xffff;
	d |= (uint64_t)(limit >> 16 & 0xf) << 48;
	d |= (seg->base & 0xffffff) << 16;
	d |= (seg->base >> 24 & 0xff) << 56;
	d |= (uint64_t)seg->type << 40;
	d |= (uint64_t)seg->s << 44;
	d |= (uint64_t)seg->dpl << 45;
	d |= (uint64_t)seg->present << 47;
	d |= (uint64_t)seg->l << 53;
	d |= (uint64_t)seg->db << 54;
	d |= (uint64_t)seg->g << 55;
	return d;
}

struct gdt_segments {
	struct kvm_segment code, data, user_code, user_data, tss;
};

static struct gdt_segments boot_segments(enum start_mode mode)
{
	enum seg_width code = mode == START_LINUX64 ? SEG_64 : SEG_32;

	return (struct gdt_segments){
		.code = flat_segment(GDT_CODE, SEG_CODE_RX_A, code, 0),
		.data = flat_segment(GDT_DATA, SEG_DATA_RW_A, SEG_32, 0),
		.tss = tss_segment(0, TSS_BYTES),
	};
}

static int write_gdt(const struct ram *ram, struct gpa at,
		     const struct gdt_segments *segs)
{
	uint64_t gdt[GDT_NUM_SLOTS] = { 0 };

	gdt[GDT_CODE] = gdt_descriptor(&segs->code);
	gdt[GDT_DATA] = gdt_descriptor(&segs->data);
	gdt[GDT_TSS] = gdt_descriptor(&segs->tss);
	gdt[GDT_TSS + 1] = segs->tss.base >> 32;
	gdt[GDT_USER_CODE] = gdt_descriptor(&segs->user_code);
	gdt[GDT_USER_DATA] = gdt_descriptor(&segs->user_data);
	return mem_write(ram, at, gdt, sizeof(gdt));
}

static struct kvm_dtable gdt_table(uint64_t base)
{
	return (struct kvm_dtable){
		.base = base,
		.limit = GDT_NUM_SLOTS * 8 - 1,
	};
}

/* ---- tables in guest memory ---- */

#define BOOT_NUM_PDS 4 /* one for each GiB */

static int write_identity_map(const struct ram *ram)
{
	const uint64_t table = PTE_PRESENT | PTE_WRITE | PTE_ACCESSED;
	const uint64_t page = table | PTE_DIRTY | PTE_LARGE;
	const uint64_t pdpt_at = LAYOUT_BOOT_PML4 + PAGE_4K;
	const uint64_t pd_at = pdpt_at + PAGE_4K;
	uint64_t entries[512] = { pdpt_at | table };
	int r = mem_write(ram, GPA(LAYOUT_BOOT_PML4), entries, sizeof(entries));

	if (r < 0)
		return r;
	for (uint64_t i = 0; i < BOOT_NUM_PDS; i++)
		entries[i] = (pd_at + i * PAGE_4K) | table;
	r = mem_write(ram, GPA(pdpt_at), entries, sizeof(entries));
	for (uint64_t pd = 0; r >= 0 && pd < BOOT_NUM_PDS; pd++) {
		for (uint64_t i = 0; i < 512; i++)
			entries[i] = (pd * PAGE_1G + i * PAGE_2M) | page;
		r = mem_write(ram, GPA(pd_at + pd * PAGE_4K), entries,
			      sizeof(entries));
	}
	return r;
}

int start_write_tables(const struct ram *ram, enum start_mode mode)
{
	struct gdt_segments segs = boot_segments(mode);
	int r = write_gdt(ram, GPA(LAYOUT_GDT), &segs);

	if (r < 0 || mode != START_LINUX64)
		return r;
	return write_identity_map(ram);
}

/* ---- registers ---- */

static int reset_fpu(struct kvm_vcpu *vcpu)
{
	struct kvm_fpu fpu = { .fcw = 0x37f, .mxcsr = 0x1f80 };

	return kvm_vcpu_set_fpu(vcpu, &fpu);
}

static void set_segments(struct kvm_sregs *sregs,
			 const struct kvm_segment *code,
			 const struct kvm_segment *data,
			 const struct kvm_segment *tss)
{
	sregs->cs = *code;
	sregs->ds = sregs->es = sregs->ss = *data;
	sregs->fs = sregs->gs = *data;
	sregs->tr = *tss;
	sregs->ldt = no_segment;
	sregs->idt = (struct kvm_dtable){ 0 };
	sregs->cr2 = 0;
	sregs->cr8 = 0;
	memset(sregs->interrupt_bitmap, 0, sizeof(sregs->interrupt_bitmap));
}

int start_load(struct kvm_vcpu *vcpu, const struct start_state *state)
{
	const struct gdt_segments segs = boot_segments(state->mode);
	struct kvm_regs regs = {
		.rip = state->entry,
		.rsp = state->stack,
		.rflags = RFLAGS_ALWAYS,
	};
	struct kvm_sregs sregs;
	int r = kvm_vcpu_get_sregs(vcpu, &sregs);

	if (r < 0)
		return r;
	set_segments(&sregs, &segs.code, &segs.data, &segs.tss);
	sregs.gdt = gdt_table(LAYOUT_GDT);
	switch (state->mode) {
	case START_LINUX64:
		sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
		sregs.cr3 = LAYOUT_BOOT_PML4;
		sregs.cr4 = CR4_PAE;
		sregs.efer = EFER_LME | EFER_LMA;
		regs.rsi = state->arg;
		break;
	case START_PVH32:
		/* All other writable bits are clear; ET is not writable. */
		sregs.cr0 = CR0_PE | CR0_ET;
		sregs.cr3 = 0;
		sregs.cr4 = 0;
		sregs.efer = 0;
		regs.rbx = state->arg;
		break;
	}
	r = kvm_vcpu_set_sregs(vcpu, &sregs);
	if (r >= 0)
		r = reset_fpu(vcpu);
	return r < 0 ? r : kvm_vcpu_set_regs(vcpu, &regs);
}

/* The I/O bitmap is all zeros, and ends with the byte of ones it has to. */
static int write_flat64_tables(const struct ram *ram, struct gpa gdt,
			       const struct gdt_segments *segs)
{
	uint8_t tss[FLAT64_TSS_BYTES] = { 0 };
	int r = write_gdt(ram, gdt, segs);

	if (r < 0)
		return r;
	le16_store(tss + TSS_IO_BITMAP, TSS_BYTES);
	tss[sizeof(tss) - 1] = 0xff;
	return mem_write(ram, gpa_add(gdt, FLAT64_TSS_OFFSET), tss,
			 sizeof(tss));
}

static int load_flat64(struct kvm_vcpu *vcpu, uint64_t gdt,
		       const struct gdt_segments *segs,
		       const struct start_flat64 *state)
{
	struct kvm_regs regs = {
		.rip = state->rip,
		.rsp = state->rsp,
		.rdi = state->rdi,
		.rsi = state->rsi,
		.rflags = RFLAGS_ALWAYS,
	};
	struct kvm_sregs sregs;
	int r = kvm_vcpu_get_sregs(vcpu, &sregs);

	if (r < 0)
		return r;
	if (state->cpl == 3) {
		set_segments(&sregs, &segs->user_code, &segs->user_data,
			     &segs->tss);
		regs.rflags |= RFLAGS_IOPL3;
	} else {
		set_segments(&sregs, &segs->code, &segs->data, &segs->tss);
	}
	sregs.fs.base = state->fs_base;
	sregs.gdt = gdt_table(gdt);
	sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
	sregs.cr3 = state->pml4;
	sregs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
	sregs.efer = EFER_LME | EFER_LMA;
	r = kvm_vcpu_set_sregs(vcpu, &sregs);
	return r < 0 ? r : kvm_vcpu_set_regs(vcpu, &regs);
}

static struct gdt_segments flat64_segments(uint64_t gdt)
{
	return (struct gdt_segments){
		.code = flat_segment(GDT_CODE, SEG_CODE_RX_A, SEG_64, 0),
		.data = flat_segment(GDT_DATA, SEG_DATA_RW_A, SEG_32, 0),
		.user_code = flat_segment(GDT_USER_CODE, SEG_CODE_RX_A, SEG_64,
					  3),
		.user_data = flat_segment(GDT_USER_DATA, SEG_DATA_RW_A, SEG_32,
					  3),
		.tss = tss_segment(gdt + FLAT64_TSS_OFFSET, FLAT64_TSS_BYTES),
	};
}

int start_load_flat64(struct kvm_vcpu *vcpu, const struct ram *ram,
		      struct gpa gdt, const struct start_flat64 *state)
{
	const struct gdt_segments segs = flat64_segments(gdt.v);
	int r;

	if (state->cpl != 0 && state->cpl != 3)
		return -EINVAL;
	r = write_flat64_tables(ram, gdt, &segs);
	if (r >= 0)
		r = load_flat64(vcpu, gdt.v, &segs, state);
	return r < 0 ? r : reset_fpu(vcpu);
}

int start_load_flat64_registers(struct kvm_vcpu *vcpu,
				const struct start_flat64 *state)
{
	const struct gdt_segments segs = flat64_segments(0);

	BUG_ON(state->cpl != 0);
	return load_flat64(vcpu, 0, &segs, state);
}
