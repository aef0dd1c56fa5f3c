/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. Everything KVM tells of a vCPU goes through one flat
 * struct, which the table describes; KVM's own structs are only ever filled
 * from it or into it.
 *
 * The order of loading is KVM's, not ours:
 *
 *	CPUID		before all, which is checked against it
 *	sregs		before MSRs and LAPIC: EFER, and the LAPIC's mode
 *	regs, XCR0, XSAVE (XCR0 says which of it is valid), debug registers
 *	LAPIC		before the MSR of the deadline timer, whose mode it has
 *	MP state	depends on none of these
 *	MSRs		but for those of time
 *	TSC		as an offset; then the deadline, which is counted in it
 *	events		last: what is pending is not lost to any of the others
 *
 * MSRs of which the new vCPU has the saved value already are not written. So
 * one that a host knows and another does not, or that may only be read, is an
 * error only where the guest would see the difference.
 */
#include "x86/cpu_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "x86/cpuid.h"
#include "x86/msr_state.h"

#define NUM_SEGMENTS 8 /* CS DS ES FS GS SS TR LDT */
/* Beyond what AMX needs (11 KiB) by a good deal. */
#define XSAVE_MAX_BYTES	  (64 * KIB)
#define XSAVE_MIN_BYTES	  4096u
#define CPUID_MAX_ENTRIES 1024u
#define CPUID_ENTRY_BYTES 28u

struct cpu_state {
	struct state_blob cpuid; /* CPUID_ENTRY_BYTES each */
	uint64_t gpr[16];	 /* RAX RBX RCX RDX RSI RDI RSP RBP R8... */
	uint64_t rip, rflags;
	uint64_t seg_base[NUM_SEGMENTS];
	uint32_t seg_limit[NUM_SEGMENTS];
	uint16_t seg_selector[NUM_SEGMENTS];
	uint32_t seg_access[NUM_SEGMENTS]; /* as in a VMCS, SDM 3C 25.4.1 */
	uint64_t gdt_base, idt_base;
	uint16_t gdt_limit, idt_limit;
	uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base;
	uint64_t interrupt_bitmap[4];
	uint64_t pdptrs[4];
	uint64_t xcr0;
	struct state_blob xsave;
	uint64_t dr[4], dr6, dr7;
	uint8_t lapic[KVM_APIC_REG_SIZE];
	uint64_t tsc, tsc_deadline;
	struct state_blob msrs; /* MSR_STATE_BYTES each */
	uint32_t tsc_khz;	/* 0: not known */
	uint32_t mp_state;
	bool has_pdptrs, has_xcr0, has_lapic;
	/* Events, as in struct kvm_vcpu_events. */
	bool exc_injected, exc_pending, exc_has_code, exc_has_payload;
	uint8_t exc_nr;
	bool int_injected, int_soft;
	uint8_t int_nr, int_shadow;
	bool nmi_injected, nmi_masked;
	uint8_t nmi_pending;
	bool smm, smm_pending, smm_inside_nmi, smm_latched_init;
	bool triple_fault;
	uint32_t ev_flags, exc_code, sipi_vector;
	uint64_t exc_payload;
};

#define F(kind, member, ...) \
	STATE_FIELD_##kind(struct cpu_state, member, __VA_ARGS__)

static const struct state_field fields[] = {
	F(BLOB, cpuid, 1, (uint64_t)CPUID_MAX_ENTRIES *CPUID_ENTRY_BYTES),
	F(UINTS, gpr, 2),
	F(UINT, rip, 3),
	F(UINT, rflags, 4),
	F(UINTS, seg_base, 5),
	F(UINTS, seg_limit, 6),
	F(UINTS, seg_selector, 7),
	F(UINTS, seg_access, 8, .max = 0x1ffff),
	F(UINT, gdt_base, 9),
	F(UINT, gdt_limit, 10),
	F(UINT, idt_base, 11),
	F(UINT, idt_limit, 12),
	F(UINT, cr0, 13),
	F(UINT, cr2, 14),
	F(UINT, cr3, 15),
	F(UINT, cr4, 16),
	F(UINT, cr8, 17, .max = 15),
	F(UINT, efer, 18),
	F(UINT, apic_base, 19),
	F(UINTS, interrupt_bitmap, 20),
	F(BOOL, has_pdptrs, 21),
	F(UINTS, pdptrs, 22),
	F(BOOL, has_xcr0, 23),
	F(UINT, xcr0, 24),
	F(BLOB, xsave, 25, XSAVE_MAX_BYTES),
	F(UINTS, dr, 26),
	F(UINT, dr6, 27),
	F(UINT, dr7, 28),
	F(BOOL, has_lapic, 29),
	F(BYTES, lapic, 30),
	F(UINT, mp_state, 31, .max = KVM_MP_STATE_SIPI_RECEIVED),
	F(UINT, ev_flags, 32),
	F(BOOL, exc_injected, 33),
	F(BOOL, exc_pending, 34),
	F(UINT, exc_nr, 35, .max = 31),
	F(BOOL, exc_has_code, 36),
	F(UINT, exc_code, 37),
	F(BOOL, exc_has_payload, 38),
	F(UINT, exc_payload, 39),
	F(BOOL, int_injected, 40),
	F(UINT, int_nr, 41),
	F(BOOL, int_soft, 42),
	F(UINT, int_shadow, 43, .max = 3),
	F(BOOL, nmi_injected, 44),
	F(UINT, nmi_pending, 45),
	F(BOOL, nmi_masked, 46),
	F(UINT, sipi_vector, 47, .max = 255),
	F(BOOL, smm, 48),
	F(BOOL, smm_pending, 49),
	F(BOOL, smm_inside_nmi, 50),
	F(BOOL, smm_latched_init, 51),
	F(BOOL, triple_fault, 52),
	F(UINT, tsc, 53),
	F(UINT, tsc_khz, 54),
	F(UINT, tsc_deadline, 55),
	F(BLOB, msrs, 56, (uint64_t)MSR_STATE_MAX *MSR_STATE_BYTES),
};

static int check(const struct state_check *c, const void *loaded,
		 const void *live)
{
	const struct cpu_state *s = loaded;

	if (!s->cpuid.bytes || s->cpuid.bytes % CPUID_ENTRY_BYTES)
		return state_refuse(c, "cpuid", "%zu bytes: not entries of %u",
				    s->cpuid.bytes, CPUID_ENTRY_BYTES);
	if (s->xsave.bytes < XSAVE_MIN_BYTES || s->xsave.bytes % 4)
		return state_refuse(c, "xsave", "%zu bytes, at least %u",
				    s->xsave.bytes, XSAVE_MIN_BYTES);
	if (s->msrs.bytes % MSR_STATE_BYTES)
		return state_refuse(c, "msrs", "%zu bytes: not entries of %u",
				    s->msrs.bytes, MSR_STATE_BYTES);
	if (!s->has_lapic)
		return state_refuse(c, "has_lapic", "there has to be one");
	return 0;
}

static const struct state_table table = {
	.section = "vcpu",
	.version = 1,
	.object_bytes = sizeof(struct cpu_state),
	.fields = fields,
	.num_fields = ARRAY_SIZE(fields),
	.check = check,
};

static void cpu_state_fini(struct cpu_state *s)
{
	state_blob_fini(&s->cpuid);
	state_blob_fini(&s->xsave);
	state_blob_fini(&s->msrs);
}

static int fail(const struct kvm_vcpu *vcpu, struct err *err, int r,
		const char *what)
{
	return err_errno(err, -r, "vCPU %u: %s", vcpu->id, what);
}

/* ---- CPUID ---- */

/*
 * Kernels like 6.1 do not say how many entries they have written. What follows
 * those is as it was, zeroes, which no entry is: leaf 0 has the vendor's name.
 */
static void trim_cpuid(struct kvm_cpuid2 *cpuid)
{
	static const struct kvm_cpuid_entry2 none;

	while (cpuid->nent &&
	       !memcmp(&cpuid->entries[cpuid->nent - 1], &none, sizeof(none)))
		cpuid->nent--;
}

static int get_cpuid(const struct kvm_vcpu *vcpu, struct kvm_cpuid2 **ret)
{
	struct kvm_cpuid2 *cpuid = calloc(
		1,
		sizeof(*cpuid) + CPUID_MAX_ENTRIES * sizeof(cpuid->entries[0]));
	int r;

	if (!cpuid)
		return -ENOMEM;
	cpuid->nent = CPUID_MAX_ENTRIES;
	r = kvm_ioctl(vcpu->fd, KVM_GET_CPUID2, cpuid);
	if (r < 0) {
		free(cpuid);
		return r;
	}
	trim_cpuid(cpuid);
	*ret = cpuid;
	return 0;
}

static int encode_cpuid(const struct kvm_cpuid2 *cpuid, struct state_blob *blob)
{
	uint8_t *p = calloc(cpuid->nent + 1, CPUID_ENTRY_BYTES);

	if (!p)
		return -ENOMEM;
	blob->data = p;
	blob->bytes = (size_t)cpuid->nent * CPUID_ENTRY_BYTES;
	for (uint32_t i = 0; i < cpuid->nent; i++, p += CPUID_ENTRY_BYTES) {
		const struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

		le32_store(p, e->function);
		le32_store(p + 4, e->index);
		le32_store(p + 8, e->flags);
		le32_store(p + 12, e->eax);
		le32_store(p + 16, e->ebx);
		le32_store(p + 20, e->ecx);
		le32_store(p + 24, e->edx);
	}
	return 0;
}

/* The blob's length was checked. */
static struct kvm_cpuid2 *decode_cpuid(const struct state_blob *blob)
{
	size_t num = blob->bytes / CPUID_ENTRY_BYTES;
	const uint8_t *p = blob->data;
	struct kvm_cpuid2 *cpuid = calloc(
		1, sizeof(*cpuid) + num * sizeof(cpuid->entries[0]));

	if (!cpuid)
		return NULL;
	cpuid->nent = (uint32_t)num;
	for (size_t i = 0; i < num; i++, p += CPUID_ENTRY_BYTES)
		cpuid->entries[i] = (struct kvm_cpuid_entry2){
			.function = le32_load(p),
			.index = le32_load(p + 4),
			.flags = le32_load(p + 8),
			.eax = le32_load(p + 12),
			.ebx = le32_load(p + 16),
			.ecx = le32_load(p + 20),
			.edx = le32_load(p + 24),
		};
	return cpuid;
}

/*
 * Registers that are lists of features. own: bits that follow the guest's own
 * state (CR4, the LAPIC's enable bit) and say nothing of the host.
 */
static const struct feature_word {
	uint32_t function, index;
	enum cpuid_reg reg;
	uint32_t own;
} feature_words[] = {
	{ 0x1, 0, CPUID_ECX, 1u << 27 /* OSXSAVE */ | 1u << 3 /* MONITOR */ },
	{ 0x1, 0, CPUID_EDX, 1u << 9 /* APIC */ },
	{ 0x6, 0, CPUID_EAX, 0 },
	{ 0x7, 0, CPUID_EBX, 0 },
	{ 0x7, 0, CPUID_ECX, 1u << 4 /* OSPKE */ },
	{ 0x7, 0, CPUID_EDX, 0 },
	{ 0x7, 1, CPUID_EAX, 0 },
	{ 0x7, 1, CPUID_EDX, 0 },
	{ 0x7, 2, CPUID_EDX, 0 },
	{ 0xd, 0, CPUID_EAX, 0 },
	{ 0xd, 0, CPUID_EDX, 0 },
	{ 0xd, 1, CPUID_EAX, 0 },
	{ KVM_CPUID_FEATURES, 0, CPUID_EAX, 0 },
	{ 0x80000001, 0, CPUID_ECX, 0 },
	{ 0x80000001, 0, CPUID_EDX, 1u << 9 /* APIC */ },
	{ 0x80000007, 0, CPUID_EDX, 0 },
	{ 0x80000008, 0, CPUID_EBX, 0 },
	{ 0x80000021, 0, CPUID_EAX, 0 },
};

static const struct kvm_cpuid_entry2 *
find_entry(const struct kvm_cpuid2 *c, uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < c->nent; i++) {
		const struct kvm_cpuid_entry2 *e = &c->entries[i];

		if (e->function == function &&
		    (e->index == index ||
		     !(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX)))
			return e;
	}
	return NULL;
}

static uint32_t get_reg(const struct kvm_cpuid2 *c, uint32_t function,
			uint32_t index, enum cpuid_reg reg)
{
	const struct kvm_cpuid_entry2 *e = find_entry(c, function, index);

	if (!e)
		return 0;
	switch (reg) {
	case CPUID_EAX:
		return e->eax;
	case CPUID_EBX:
		return e->ebx;
	case CPUID_ECX:
		return e->ecx;
	case CPUID_EDX:
		return e->edx;
	}
	return 0;
}

static void vendor_of(const struct kvm_cpuid2 *c, char ret[13])
{
	le32_store(ret, get_reg(c, 0, 0, CPUID_EBX));
	le32_store(ret + 4, get_reg(c, 0, 0, CPUID_EDX));
	le32_store(ret + 8, get_reg(c, 0, 0, CPUID_ECX));
	ret[12] = '\0';
	for (unsigned int i = 0; i < 12; i++)
		if (ret[i] < ' ' || ret[i] > '~')
			ret[i] = '?';
}

static int check_phys_bits(const struct kvm_cpuid2 *saved,
			   const struct kvm_cpuid2 *ours, struct err *err)
{
	uint32_t was = get_reg(saved, 0x80000008, 0, CPUID_EAX) & 0xff;
	uint32_t is = get_reg(ours, 0x80000008, 0, CPUID_EAX) & 0xff;

	if (was <= is)
		return 0;
	return err_set(err, EINVAL,
		       "the saved CPU has %u physical address bits, this host "
		       "gives %u",
		       was, is);
}

/* What differs between the hosts of one vendor; as in /proc/cpuinfo. */
static const struct feature_name {
	uint32_t function, index;
	enum cpuid_reg reg;
	unsigned int bit;
	const char *name;
} feature_names[] = {
	{ 0x1, 0, CPUID_ECX, 12, "fma" },
	{ 0x1, 0, CPUID_ECX, 20, "sse4_2" },
	{ 0x1, 0, CPUID_ECX, 25, "aes" },
	{ 0x1, 0, CPUID_ECX, 26, "xsave" },
	{ 0x1, 0, CPUID_ECX, 28, "avx" },
	{ 0x1, 0, CPUID_ECX, 30, "rdrand" },
	{ 0x7, 0, CPUID_EBX, 3, "bmi1" },
	{ 0x7, 0, CPUID_EBX, 5, "avx2" },
	{ 0x7, 0, CPUID_EBX, 8, "bmi2" },
	{ 0x7, 0, CPUID_EBX, 16, "avx512f" },
	{ 0x7, 0, CPUID_EBX, 29, "sha_ni" },
	{ 0x7, 0, CPUID_ECX, 3, "pku" },
	{ 0x7, 0, CPUID_ECX, 9, "vaes" },
	{ 0x7, 0, CPUID_ECX, 16, "la57" },
	{ 0x7, 0, CPUID_EDX, 24, "amx_tile" },
	{ 0x7, 1, CPUID_EAX, 4, "avx_vnni" },
	{ 0xd, 0, CPUID_EAX, 2, "XSAVE of AVX" },
	{ 0xd, 0, CPUID_EAX, 5, "XSAVE of AVX-512" },
	{ 0xd, 0, CPUID_EAX, 9, "XSAVE of PKRU" },
	{ 0xd, 0, CPUID_EAX, 18, "XSAVE of AMX" },
	{ 0xd, 1, CPUID_EAX, 1, "xsavec" },
	{ 0xd, 1, CPUID_EAX, 3, "xsaves" },
	{ 0x80000001, 0, CPUID_EDX, 26, "pdpe1gb" },
	{ 0x80000001, 0, CPUID_EDX, 27, "rdtscp" },
};

static int refuse_feature(const struct feature_word *w, unsigned int bit,
			  struct err *err)
{
	static const char *const regs[] = { "EAX", "EBX", "ECX", "EDX" };
	const char *name = NULL;

	for (size_t i = 0; i < ARRAY_SIZE(feature_names); i++) {
		const struct feature_name *f = &feature_names[i];

		if (f->function == w->function && f->index == w->index &&
		    f->reg == w->reg && f->bit == bit)
			name = f->name;
	}
	return err_set(err, EINVAL,
		       "the saved CPU has a feature that this machine cannot "
		       "give: CPUID leaf %#x.%u, %s bit %u%s%s%s; the VM goes "
		       "to hosts only that have what the one had where it was "
		       "booted",
		       w->function, w->index, regs[w->reg], bit,
		       name ? " (" : "", name ? name : "", name ? ")" : "");
}

int cpu_state_check_cpuid(const struct kvm_cpuid2 *saved,
			  const struct kvm_cpuid2 *ours, struct err *err)
{
	char was[13], is[13];

	vendor_of(saved, was);
	vendor_of(ours, is);
	if (strcmp(was, is) != 0)
		return err_set(err, EINVAL,
			       "the saved CPU is of %s, this host's of %s", was,
			       is);
	for (size_t i = 0; i < ARRAY_SIZE(feature_words); i++) {
		const struct feature_word *w = &feature_words[i];
		uint32_t lost = get_reg(saved, w->function, w->index, w->reg) &
				~get_reg(ours, w->function, w->index, w->reg) &
				~w->own;

		if (lost)
			return refuse_feature(
				w, (unsigned int)__builtin_ctz(lost), err);
	}
	return check_phys_bits(saved, ours, err);
}

/* Setting the same again is allowed at any time, another not for long. */
static int replace_cpuid(const struct kvm_vcpu *vcpu, struct kvm_cpuid2 *saved,
			 struct err *err)
{
	_cleanup_free_ struct kvm_cpuid2 *ours = NULL;
	int r = get_cpuid(vcpu, &ours);

	if (r)
		return fail(vcpu, err, r, "KVM_GET_CPUID2");
	r = cpu_state_check_cpuid(saved, ours, err);
	if (r)
		return r;
	if (saved->nent == ours->nent &&
	    !memcmp(saved->entries, ours->entries,
		    saved->nent * sizeof(saved->entries[0])))
		return 0;
	r = kvm_vcpu_set_cpuid(vcpu, saved);
	return r < 0 ? fail(vcpu, err, r, "KVM_SET_CPUID2") : 0;
}

static int load_cpuid(const struct kvm_vcpu *vcpu, const struct cpu_state *s,
		      struct err *err)
{
	struct kvm_cpuid2 *saved = decode_cpuid(&s->cpuid);
	int r = saved ? replace_cpuid(vcpu, saved, err)
		      : fail(vcpu, err, -ENOMEM, "loading its CPUID");

	free(saved);
	return r;
}

/* ---- general and special registers ---- */

/* The one list of the general registers, in the order of gpr[]. */
static void gpr_pointers(struct kvm_regs *r, __u64 *ret[16])
{
	__u64 *all[16] = {
		&r->rax, &r->rbx, &r->rcx, &r->rdx, &r->rsi, &r->rdi,
		&r->rsp, &r->rbp, &r->r8,  &r->r9,  &r->r10, &r->r11,
		&r->r12, &r->r13, &r->r14, &r->r15,
	};

	memcpy(ret, all, sizeof(all));
}

static int get_regs(const struct kvm_vcpu *vcpu, struct cpu_state *s)
{
	struct kvm_regs regs = { 0 };
	__u64 *gpr[16];
	int r = kvm_vcpu_get_regs(vcpu, &regs);

	gpr_pointers(&regs, gpr);
	for (unsigned int i = 0; i < 16; i++)
		s->gpr[i] = *gpr[i];
	s->rip = regs.rip;
	s->rflags = regs.rflags;
	return r;
}

static int set_regs(const struct kvm_vcpu *vcpu, const struct cpu_state *s)
{
	struct kvm_regs regs = { .rip = s->rip, .rflags = s->rflags };
	__u64 *gpr[16];

	gpr_pointers(&regs, gpr);
	for (unsigned int i = 0; i < 16; i++)
		*gpr[i] = s->gpr[i];
	return kvm_vcpu_set_regs(vcpu, &regs);
}

static void segment_pointers(struct kvm_sregs *r,
			     struct kvm_segment *ret[NUM_SEGMENTS])
{
	struct kvm_segment *all[NUM_SEGMENTS] = {
		&r->cs, &r->ds, &r->es, &r->fs, &r->gs, &r->ss, &r->tr, &r->ldt,
	};

	memcpy(ret, all, sizeof(all));
}

static uint32_t segment_access(const struct kvm_segment *seg)
{
	return (seg->type & 0xfu) | (uint32_t)(seg->s & 1) << 4 |
	       (uint32_t)(seg->dpl & 3) << 5 |
	       (uint32_t)(seg->present & 1) << 7 |
	       (uint32_t)(seg->avl & 1) << 12 | (uint32_t)(seg->l & 1) << 13 |
	       (uint32_t)(seg->db & 1) << 14 | (uint32_t)(seg->g & 1) << 15 |
	       (uint32_t)(seg->unusable & 1) << 16;
}

static void segment_load(struct kvm_segment *seg, const struct cpu_state *s,
			 unsigned int i)
{
	uint32_t a = s->seg_access[i];

	*seg = (struct kvm_segment){
		.base = s->seg_base[i],
		.limit = s->seg_limit[i],
		.selector = s->seg_selector[i],
		.type = a & 0xf,
		.s = a >> 4 & 1,
		.dpl = a >> 5 & 3,
		.present = a >> 7 & 1,
		.avl = a >> 12 & 1,
		.l = a >> 13 & 1,
		.db = a >> 14 & 1,
		.g = a >> 15 & 1,
		.unusable = a >> 16 & 1,
	};
}

/* PDPTRs, which are a cache of their own in PAE mode: from Linux 5.15 on. */
static int get_pdptrs(const struct kvm_vcpu *vcpu, struct cpu_state *s)
{
	struct kvm_sregs2 sregs2 = { .flags = 0 };
	int r = kvm_ioctl(vcpu->fd, KVM_GET_SREGS2, &sregs2);

	if (r == -ENOTTY || r == -EINVAL)
		return 0;
	if (r < 0)
		return r;
	s->has_pdptrs = sregs2.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID;
	if (s->has_pdptrs)
		memcpy(s->pdptrs, sregs2.pdptrs, sizeof(s->pdptrs));
	return 0;
}

static int get_sregs(const struct kvm_vcpu *vcpu, struct cpu_state *s)
{
	struct kvm_sregs sregs = { .cr0 = 0 };
	struct kvm_segment *seg[NUM_SEGMENTS];
	int r = kvm_vcpu_get_sregs(vcpu, &sregs);

	segment_pointers(&sregs, seg);
	for (unsigned int i = 0; i < NUM_SEGMENTS; i++) {
		s->seg_base[i] = seg[i]->base;
		s->seg_limit[i] = seg[i]->limit;
		s->seg_selector[i] = seg[i]->selector;
		s->seg_access[i] = segment_access(seg[i]);
	}
	s->gdt_base = sregs.gdt.base;
	s->gdt_limit = sregs.gdt.limit;
	s->idt_base = sregs.idt.base;
	s->idt_limit = sregs.idt.limit;
	s->cr0 = sregs.cr0;
	s->cr2 = sregs.cr2;
	s->cr3 = sregs.cr3;
	s->cr4 = sregs.cr4;
	s->cr8 = sregs.cr8;
	s->efer = sregs.efer;
	s->apic_base = sregs.apic_base;
	memcpy(s->interrupt_bitmap, sregs.interrupt_bitmap,
	       sizeof(s->interrupt_bitmap));
	return r < 0 ? r : get_pdptrs(vcpu, s);
}

/* Of what struct kvm_sregs has, kvm_sregs2 has all but the bitmap. */
static int set_pdptrs(const struct kvm_vcpu *vcpu, const struct cpu_state *s,
		      const struct kvm_sregs *sregs)
{
	struct kvm_sregs2 sregs2 = {
		.cs = sregs->cs,
		.ds = sregs->ds,
		.es = sregs->es,
		.fs = sregs->fs,
		.gs = sregs->gs,
		.ss = sregs->ss,
		.tr = sregs->tr,
		.ldt = sregs->ldt,
		.gdt = sregs->gdt,
		.idt = sregs->idt,
		.cr0 = sregs->cr0,
		.cr2 = sregs->cr2,
		.cr3 = sregs->cr3,
		.cr4 = sregs->cr4,
		.cr8 = sregs->cr8,
		.efer = sregs->efer,
		.apic_base = sregs->apic_base,
		.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID,
	};

	memcpy(sregs2.pdptrs, s->pdptrs, sizeof(s->pdptrs));
	return kvm_ioctl(vcpu->fd, KVM_SET_SREGS2, &sregs2);
}

static int set_sregs(const struct kvm_vcpu *vcpu, const struct cpu_state *s)
{
	struct kvm_sregs sregs = {
		.gdt = { .base = s->gdt_base, .limit = s->gdt_limit },
		.idt = { .base = s->idt_base, .limit = s->idt_limit },
		.cr0 = s->cr0,
		.cr2 = s->cr2,
		.cr3 = s->cr3,
		.cr4 = s->cr4,
		.cr8 = s->cr8,
		.efer = s->efer,
		.apic_base = s->apic_base,
	};
	struct kvm_segment *seg[NUM_SEGMENTS];

	segment_pointers(&sregs, seg);
	for (unsigned int i = 0; i < NUM_SEGMENTS; i++)
		segment_load(seg[i], s, i);
	memcpy(sregs.interrupt_bitmap, s->interrupt_bitmap,
	       sizeof(s->interrupt_bitmap));
	/*
	 * With PDPTRs of their own KVM does not read them from guest memory,
	 * which may not be there yet; where it cannot be told, it does.
	 */
	if (s->has_pdptrs) {
		int r = set_pdptrs(vcpu, s, &sregs);

		if (r != -ENOTTY)
			return r;
	}
	return kvm_vcpu_set_sregs(vcpu, &sregs);
}

/* ---- FPU and what grew out of it ---- */

static size_t xsave_bytes(const struct kvm_vcpu *vcpu)
{
	/* Of the VM, but answered by any of its descriptors. */
	int bytes = kvm_cap(vcpu->vm_fd, KVM_CAP_XSAVE2);

	return MAX(bytes, (int)XSAVE_MIN_BYTES);
}

static int get_xsave(const struct kvm_vcpu *vcpu, struct cpu_state *s)
{
	size_t bytes = xsave_bytes(vcpu);
	int r;

	if (bytes > XSAVE_MAX_BYTES)
		return -E2BIG;
	s->xsave.data = calloc(1, bytes);
	if (!s->xsave.data)
		return -ENOMEM;
	s->xsave.bytes = bytes;
	r = kvm_ioctl(vcpu->fd, KVM_GET_XSAVE2, s->xsave.data);
	if (r == -ENOTTY || r == -EINVAL) {
		r = kvm_ioctl(vcpu->fd, KVM_GET_XSAVE, s->xsave.data);
		s->xsave.bytes = XSAVE_MIN_BYTES;
	}
	return r;
}

/* KVM reads as much as it would return: more than was saved is zeroes. */
static int set_xsave(const struct kvm_vcpu *vcpu, const struct cpu_state *s)
{
	size_t bytes = xsave_bytes(vcpu);
	_cleanup_free_ void *buf = calloc(1, MAX(bytes, s->xsave.bytes));

	if (!buf)
		return -ENOMEM;
	memcpy(buf, s->xsave.data, s->xsave.bytes);
	for (size_t i = bytes; i < s->xsave.bytes; i++)
		if (s->xsave.data[i])
			return -E2BIG;
	return kvm_ioctl(vcpu->fd, KVM_SET_XSAVE, buf);
}

static int get_xcr0(const struct kvm_vcpu *vcpu, struct cpu_state *s)
{
	struct kvm_xcrs xcrs = { .nr_xcrs = 0 };
	int r = kvm_ioctl(vcpu->fd, KVM_GET_XCRS, &xcrs);

	/* A host CPU without XSAVE has none. */
	if (r == -EINVAL || r == -ENOTTY)
		return 0;
	for (uint32_t i = 0; r >= 0 && i < xcrs.nr_xcrs && i < KVM_MAX_XCRS;
	     i++) {
		if (xcrs.xcrs[i].xcr == 0) {
			s->has_xcr0 = true;
			s->xcr0 = xcrs.xcrs[i].value;
		}
	}
	return r;
}

static int set_xcr0(const struct kvm_vcpu *vcpu, const struct cpu_state *s)
{
	struct kvm_xcrs xcrs = { .nr_xcrs = 1, .xcrs[0].value = s->xcr0 };

	return s->has_xcr0 ? kvm_ioctl(vcpu->fd, KVM_SET_XCRS, &xcrs) : 0;
}

static int get_debug(const struct kvm_vcpu *vcpu, struct cpu_state *s)
{
	struct kvm_debugregs d = { .dr6 = 0 };
	int r = kvm_ioctl(vcpu->fd, KVM_GET_DEBUGREGS, &d);

	memcpy(s->dr, d.db, sizeof(s->dr));
	s->dr6 = d.dr6;
	s->dr7 = d.dr7;
	return r;
}

static int set_debug(const struct kvm_vcpu *vcpu, const struct cpu_state *s)
{
	struct kvm_debugregs d = { .dr6 = s->dr6, .dr7 = s->dr7 };

	memcpy(d.db, s->dr, sizeof(s->dr));
	return kvm_ioctl(vcpu->fd, KVM_SET_DEBUGREGS, &d);
}

/* ---- LAPIC, MP state, events ---- */

static int get_lapic(const struct kvm_vcpu *vcpu, struct cpu_state *s)
{
	struct kvm_lapic_state lapic = { { 0 } };
	int r = kvm_vcpu_get_lapic(vcpu, &lapic);

	s->has_lapic = r >= 0;
	memcpy(s->lapic, lapic.regs, sizeof(s->lapic));
	return r;
}

static int set_lapic(const struct kvm_vcpu *vcpu, const struct cpu_state *s)
{
	struct kvm_lapic_state lapic;

	memcpy(lapic.regs, s->lapic, sizeof(s->lapic));
	return kvm_vcpu_set_lapic(vcpu, &lapic);
}

static int get_mp_state(const struct kvm_vcpu *vcpu, struct cpu_state *s)
{
	return kvm_vcpu_get_mp_state(vcpu, &s->mp_state);
}

static int set_mp_state(const struct kvm_vcpu *vcpu, const struct cpu_state *s)
{
	return kvm_vcpu_set_mp_state(vcpu, s->mp_state);
}

static int get_events(const struct kvm_vcpu *vcpu, struct cpu_state *s)
{
	struct kvm_vcpu_events e = { .flags = 0 };
	int r = kvm_ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &e);

	s->ev_flags = e.flags;
	s->exc_injected = e.exception.injected;
	s->exc_pending = e.exception.pending;
	s->exc_nr = e.exception.nr;
	s->exc_has_code = e.exception.has_error_code;
	s->exc_code = e.exception.error_code;
	s->exc_has_payload = e.exception_has_payload;
	s->exc_payload = e.exception_payload;
	s->int_injected = e.interrupt.injected;
	s->int_nr = e.interrupt.nr;
	s->int_soft = e.interrupt.soft;
	s->int_shadow = e.interrupt.shadow;
	s->nmi_injected = e.nmi.injected;
	s->nmi_pending = e.nmi.pending;
	s->nmi_masked = e.nmi.masked;
	s->sipi_vector = e.sipi_vector;
	s->smm = e.smi.smm;
	s->smm_pending = e.smi.pending;
	s->smm_inside_nmi = e.smi.smm_inside_nmi;
	s->smm_latched_init = e.smi.latched_init;
	s->triple_fault = e.triple_fault.pending;
	return r;
}

/* What KVM is told as valid: what both the saver's and this one know. */
#define EVENT_FLAGS                                                          \
	(KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR | \
	 KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM)

static int set_events(const struct kvm_vcpu *vcpu, const struct cpu_state *s)
{
	struct kvm_vcpu_events e = {
		.flags = (s->ev_flags & EVENT_FLAGS) |
			 KVM_VCPUEVENT_VALID_NMI_PENDING |
			 KVM_VCPUEVENT_VALID_SIPI_VECTOR,
		.exception = {
			/*
			 * Without KVM_CAP_EXCEPTION_PAYLOAD, which is off, one
			 * that is pending has to be told as injected.
			 */
			.injected = s->exc_injected || s->exc_pending,
			.nr = s->exc_nr,
			.has_error_code = s->exc_has_code,
			.error_code = s->exc_code,
		},
		.interrupt = {
			.injected = s->int_injected,
			.nr = s->int_nr,
			.soft = s->int_soft,
			.shadow = s->int_shadow,
		},
		.nmi = {
			.injected = s->nmi_injected,
			.pending = s->nmi_pending,
			.masked = s->nmi_masked,
		},
		.sipi_vector = s->sipi_vector,
		.smi = {
			.smm = s->smm,
			.pending = s->smm_pending,
			.smm_inside_nmi = s->smm_inside_nmi,
			.latched_init = s->smm_latched_init,
		},
	};

	return kvm_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &e);
}

/* ---- time ---- */

static int get_time(const struct kvm_vcpu *vcpu, uint64_t host_tsc,
		    struct cpu_state *s)
{
	int khz = kvm_ioctl_val(vcpu->fd, KVM_GET_TSC_KHZ, 0);
	uint64_t offset;
	int r;

	s->tsc_khz = khz > 0 ? (uint32_t)khz : 0;
	if (kvm_vcpu_get_tsc_offset(vcpu, &offset) >= 0) {
		s->tsc = host_tsc + offset;
	} else {
		/* Later than the instant by what saving has taken. */
		r = msr_state_read(vcpu, MSR_STATE_TSC, &s->tsc);
		if (r < 0)
			return r;
	}
	r = msr_state_read(vcpu, MSR_STATE_TSC_DEADLINE, &s->tsc_deadline);
	if (r == -ENOENT) { /* this CPU has no such timer */
		s->tsc_deadline = 0;
		r = 0;
	}
	return r;
}

/*
 * Guest and host tick alike as long as the host is of the same frequency. On
 * another the guest's is scaled, where the CPU can do that.
 */
static int set_tsc_khz(const struct kvm_vcpu *vcpu, const struct cpu_state *s,
		       struct err *err)
{
	int khz = kvm_ioctl_val(vcpu->fd, KVM_GET_TSC_KHZ, 0);
	uint32_t is = khz > 0 ? (uint32_t)khz : 0;
	int r;

	/* Hosts measure it anew at each boot: 250 ppm is the same. */
	if (!s->tsc_khz || !is ||
	    MAX(is, s->tsc_khz) - MIN(is, s->tsc_khz) <= is / 4000)
		return 0;
	r = kvm_ioctl_val(vcpu->fd, KVM_SET_TSC_KHZ, s->tsc_khz);
	if (r >= 0)
		return 0;
	return err_errno(err, -r,
			 "vCPU %u: its TSC ticked at %u kHz, this host's does "
			 "at %u and cannot be scaled",
			 vcpu->id, s->tsc_khz, is);
}

/* Some KVMs take an offset and do not apply it. */
static int set_tsc_offset(const struct kvm_vcpu *vcpu, uint64_t offset)
{
	uint64_t now;
	int r = kvm_vcpu_set_tsc_offset(vcpu, offset);

	if (r >= 0)
		r = kvm_vcpu_get_tsc_offset(vcpu, &now);
	if (r >= 0 && now != offset)
		r = -EOPNOTSUPP;
	return r;
}

static int set_tsc(const struct kvm_vcpu *vcpu, uint64_t host_tsc,
		   const struct cpu_state *s)
{
	int r = set_tsc_offset(vcpu, s->tsc - host_tsc);

	if (r < 0)
		r = msr_state_write(vcpu, MSR_STATE_TSC, s->tsc);
	if (r < 0 || !s->tsc_deadline)
		return r;
	return msr_state_write(vcpu, MSR_STATE_TSC_DEADLINE, s->tsc_deadline);
}

/* ---- all of it ---- */

static int gather(const struct kvm_vcpu *vcpu, uint64_t host_tsc,
		  struct cpu_state *s, struct err *err)
{
	static const struct {
		const char *what;
		int (*get)(const struct kvm_vcpu *vcpu, struct cpu_state *s);
	} parts[] = {
		/*
		 * The first, as reading it has KVM take in what is under way
		 * (INIT, SIPI).
		 */
		{ "KVM_GET_MP_STATE", get_mp_state },
		{ "KVM_GET_REGS", get_regs },
		{ "KVM_GET_SREGS", get_sregs },
		{ "KVM_GET_XCRS", get_xcr0 },
		{ "KVM_GET_XSAVE", get_xsave },
		{ "KVM_GET_DEBUGREGS", get_debug },
		{ "KVM_GET_LAPIC", get_lapic },
		{ "KVM_GET_VCPU_EVENTS", get_events },
	};
	_cleanup_free_ struct kvm_cpuid2 *cpuid = NULL;
	int r = get_cpuid(vcpu, &cpuid);

	if (!r)
		r = encode_cpuid(cpuid, &s->cpuid);
	if (r < 0)
		return fail(vcpu, err, r, "KVM_GET_CPUID2");
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		r = parts[i].get(vcpu, s);
		if (r < 0)
			return fail(vcpu, err, r, parts[i].what);
	}
	r = msr_state_get(vcpu, &s->msrs);
	if (!r)
		r = get_time(vcpu, host_tsc, s);
	return r < 0 ? fail(vcpu, err, r, "KVM_GET_MSRS") : 0;
}

static void instance_of(const struct kvm_vcpu *vcpu, char ret[16])
{
	snprintf(ret, 16, "%u", vcpu->id);
}

int cpu_state_save(const struct kvm_vcpu *vcpu, uint64_t host_tsc,
		   struct state_writer *w, struct err *err)
{
	struct cpu_state *s = calloc(1, sizeof(*s));
	char instance[16];
	int r;

	if (!s)
		return err_set(err, ENOMEM, "out of memory");
	instance_of(vcpu, instance);
	r = gather(vcpu, host_tsc, s, err);
	if (!r)
		state_save(w, &table, instance, s);
	cpu_state_fini(s);
	free(s);
	return r;
}

static int apply(const struct kvm_vcpu *vcpu, uint64_t host_tsc,
		 const struct cpu_state *s, struct err *err)
{
	static const struct {
		const char *what;
		int (*set)(const struct kvm_vcpu *vcpu,
			   const struct cpu_state *s);
	} parts[] = {
		{ "KVM_SET_SREGS", set_sregs },
		{ "KVM_SET_REGS", set_regs },
		{ "KVM_SET_XCRS", set_xcr0 },
		{ "KVM_SET_XSAVE", set_xsave },
		{ "KVM_SET_DEBUGREGS", set_debug },
		{ "KVM_SET_LAPIC", set_lapic },
		{ "KVM_SET_MP_STATE", set_mp_state },
	};
	int r = load_cpuid(vcpu, s, err);

	for (size_t i = 0; !r && i < ARRAY_SIZE(parts); i++) {
		r = parts[i].set(vcpu, s);
		r = r < 0 ? fail(vcpu, err, r, parts[i].what) : 0;
	}
	if (!r)
		r = msr_state_set(vcpu, &s->msrs, err);
	if (!r)
		r = set_tsc_khz(vcpu, s, err);
	if (r)
		return r;
	r = set_tsc(vcpu, host_tsc, s);
	if (r < 0)
		return fail(vcpu, err, r, "setting the TSC");
	r = set_events(vcpu, s);
	return r < 0 ? fail(vcpu, err, r, "KVM_SET_VCPU_EVENTS") : 0;
}

int cpu_state_load(const struct kvm_vcpu *vcpu, uint64_t host_tsc,
		   struct state_reader *r, struct err *err)
{
	struct cpu_state *s = calloc(1, sizeof(*s));
	char instance[16];
	int ret;

	if (!s)
		return err_set(err, ENOMEM, "out of memory");
	instance_of(vcpu, instance);
	ret = state_load(r, &table, instance, s, err);
	if (!ret)
		ret = apply(vcpu, host_tsc, s, err);
	cpu_state_fini(s);
	free(s);
	return ret;
}
