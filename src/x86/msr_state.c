/* SPDX-License-Identifier: Apache-2.0 */
#include "x86/msr_state.h"

#include <asm/kvm_para.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/log.h"

/* KVM's own limit of a call (MAX_IO_MSRS), less one. */
#define MSRS_AT_ONCE 255u

/* Machine check banks have four MSRs each, from here on. */
#define MSR_MCG_CAP	 0x179u
#define MSR_MC_FIRST	 0x400u
#define MSR_MC_MAX_BANKS 32u

/* What KVM does not list. Source: Intel SDM 3A 12.11 (MTRR). */
static const struct msr_range {
	uint32_t first, num;
} more[] = {
	{ 0x200, 16 },				   /* variable MTRRs */
	{ 0x250, 1 },  { 0x258, 2 }, { 0x268, 8 }, /* fixed ones */
	{ 0x277, 1 },				   /* PAT */
	{ 0x2ff, 1 },				   /* MTRR_DEF_TYPE */
	{ 0x48, 1 },				   /* SPEC_CTRL */
	{ 0xda0, 1 },				   /* XSS */
	{ 0x1c4, 2 },				   /* XFD, XFD_ERR */
};

/*
 * What is saved elsewhere, or is not the guest's. The address of the wall clock
 * is an order to write it, once, which has been carried out; and with another
 * kvmclock than the restored one it would be wrong.
 */
static const struct msr_range never[] = {
	{ MSR_STATE_TSC, 1 },
	{ MSR_STATE_TSC_DEADLINE, 1 }, /* before the TSC is, it would fire */
	{ MSR_KVM_WALL_CLOCK, 2 }, /* and SYSTEM_TIME, both by old numbers */
	{ MSR_KVM_WALL_CLOCK_NEW, 1 },
	{ 0x480, 0x14 },       /* VMX capabilities */
	{ 0x40000000, 0x200 }, /* Hyper-V's, which no guest here is told of */
	{ 0xc0010114, 4 },     /* SVM: VM_CR, IGNNE, SMM_CTL, VM_HSAVE_PA */
};

static bool in_ranges(const struct msr_range *ranges, size_t num,
		      uint32_t index)
{
	for (size_t i = 0; i < num; i++)
		if (index >= ranges[i].first &&
		    index - ranges[i].first < ranges[i].num)
			return true;
	return false;
}

/* KVM_GET_MSRS of num entries; how many were read, or a negative errno. */
static int get_msrs(const struct kvm_vcpu *vcpu, struct kvm_msrs *msrs,
		    const struct kvm_msr_entry *entries, unsigned int num)
{
	msrs->nmsrs = num;
	memcpy(msrs->entries, entries, num * sizeof(*entries));
	return kvm_ioctl(vcpu->fd, KVM_GET_MSRS, msrs);
}

int msr_state_read(const struct kvm_vcpu *vcpu, uint32_t index, uint64_t *ret)
{
	const struct kvm_msr_entry entry = { .index = index };
	_cleanup_free_ struct kvm_msrs *msrs = calloc(1, sizeof(*msrs) +
								 sizeof(entry));
	int r;

	if (!msrs)
		return -ENOMEM;
	r = get_msrs(vcpu, msrs, &entry, 1);
	if (r <= 0)
		return r < 0 ? r : -ENOENT;
	*ret = msrs->entries[0].data;
	return 0;
}

int msr_state_write(const struct kvm_vcpu *vcpu, uint32_t index, uint64_t value)
{
	const struct kvm_msr_entry entry = { .index = index, .data = value };
	int r = kvm_vcpu_set_msrs(vcpu, &entry, 1);

	if (r <= 0)
		return r < 0 ? r : -ENOENT;
	return 0;
}

/* KVM stops at the first it refuses: go on behind that one. */
static int read_into(const struct kvm_vcpu *vcpu, struct kvm_msrs *msrs,
		     struct kvm_msr_entry *entries, unsigned int num)
{
	unsigned int at = 0, kept = 0;

	while (at < num) {
		unsigned int got, asked = MIN(num - at, MSRS_AT_ONCE);
		int r = get_msrs(vcpu, msrs, entries + at, asked);

		if (r < 0)
			return r;
		got = (unsigned int)r;
		memmove(entries + kept, msrs->entries, got * sizeof(*entries));
		kept += got;
		at += got + (got < asked);
	}
	return (int)kept;
}

/*
 * Read the values of entries; those that cannot be read are dropped. Returns
 * how many are left.
 */
static int read_values(const struct kvm_vcpu *vcpu,
		       struct kvm_msr_entry *entries, unsigned int num)
{
	struct kvm_msrs *msrs = calloc(1,
				       sizeof(*msrs) + num * sizeof(*entries));
	int r = msrs ? read_into(vcpu, msrs, entries, num) : -ENOMEM;

	free(msrs);
	return r;
}

/* ---- the list ---- */

struct msr_list {
	struct kvm_msr_entry entries[MSR_STATE_MAX];
	unsigned int num;
};

static void add(struct msr_list *list, uint32_t index)
{
	if (list->num == MSR_STATE_MAX ||
	    in_ranges(never, ARRAY_SIZE(never), index))
		return;
	for (unsigned int i = 0; i < list->num; i++)
		if (list->entries[i].index == index)
			return;
	list->entries[list->num++] = (struct kvm_msr_entry){ .index = index };
}

static int add_listed(const struct kvm_vcpu *vcpu, struct msr_list *list)
{
	_cleanup_free_ struct kvm_msr_list *known = calloc(
		1, sizeof(*known) + MSR_STATE_MAX * sizeof(uint32_t));
	int r;

	if (!known)
		return -ENOMEM;
	known->nmsrs = MSR_STATE_MAX;
	r = kvm_ioctl(vcpu->kvm_fd, KVM_GET_MSR_INDEX_LIST, known);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < known->nmsrs; i++)
		add(list, known->indices[i]);
	return 0;
}

static int make_list(const struct kvm_vcpu *vcpu, struct msr_list *list)
{
	uint64_t cap = 0;
	int r = add_listed(vcpu, list);

	if (r < 0)
		return r;
	for (size_t i = 0; i < ARRAY_SIZE(more); i++)
		for (uint32_t n = 0; n < more[i].num; n++)
			add(list, more[i].first + n);
	if (msr_state_read(vcpu, MSR_MCG_CAP, &cap) == 0)
		for (uint32_t n = 0;
		     n < 4 * MIN(cap & 0xff, (uint64_t)MSR_MC_MAX_BANKS); n++)
			add(list, MSR_MC_FIRST + n);
	return 0;
}

static int encode(const struct kvm_vcpu *vcpu, struct msr_list *list,
		  struct state_blob *blob)
{
	uint8_t *p;
	int num, r;

	r = make_list(vcpu, list);
	if (r < 0)
		return r;
	num = read_values(vcpu, list->entries, list->num);
	if (num < 0)
		return num;
	p = calloc((size_t)num + 1, MSR_STATE_BYTES);
	if (!p)
		return -ENOMEM;
	blob->data = p;
	blob->bytes = (size_t)num * MSR_STATE_BYTES;
	for (int i = 0; i < num; i++, p += MSR_STATE_BYTES) {
		le32_store(p, list->entries[i].index);
		le64_store(p + 4, list->entries[i].data);
	}
	return 0;
}

int msr_state_get(const struct kvm_vcpu *vcpu, struct state_blob *blob)
{
	struct msr_list *list = calloc(1, sizeof(*list));
	int r = list ? encode(vcpu, list, blob) : -ENOMEM;

	free(list);
	return r;
}

/* ---- putting them back ---- */

/* What is about to be written, and what this vCPU's KVM has now. */
struct setting {
	const struct kvm_vcpu *vcpu;
	struct msr_list ours; /* all that would be saved here */
	struct msr_list now;  /* those that can be read, in that order */
	struct msr_list differ;
	bool seen[MSR_STATE_MAX]; /* of ours, in the blob */
};

/* As a rule they come in the order of our list: from says where to look. */
static const struct kvm_msr_entry *find(const struct msr_list *list,
					uint32_t index, unsigned int *from)
{
	for (unsigned int i = 0; i < list->num; i++) {
		unsigned int at = (*from + i) % list->num;

		if (list->entries[at].index == index) {
			*from = at + 1;
			return &list->entries[at];
		}
	}
	return NULL;
}

static int refuse(const struct setting *s, const struct kvm_msr_entry *entry,
		  struct err *err)
{
	unsigned int from = 0;
	const struct kvm_msr_entry *now = find(&s->now, entry->index, &from);

	return err_set(err, EINVAL,
		       "vCPU %u: this host's KVM does not take the value %#llx "
		       "of MSR %#x (it has %#llx)",
		       s->vcpu->id, (unsigned long long)entry->data,
		       entry->index, now ? (unsigned long long)now->data : 0);
}

/* At once: a guest stands still for it. */
static int read_now(struct setting *s, struct err *err)
{
	int r = make_list(s->vcpu, &s->ours);

	if (!r) {
		s->now = s->ours;
		r = read_values(s->vcpu, s->now.entries, s->now.num);
	}
	if (r < 0)
		return err_errno(err, -r, "vCPU %u: reading MSRs", s->vcpu->id);
	s->now.num = (unsigned int)r;
	return 0;
}

/*
 * What this host would not save, or cannot read, is only missed if it was used:
 * other than zero. What would not be saved is not tried: what else a KVM lets
 * its user set is nobody's to choose for us.
 */
static int find_differing(struct setting *s, const struct state_blob *blob,
			  struct err *err)
{
	unsigned int from_ours = 0, from_now = 0;

	for (size_t at = 0; at + MSR_STATE_BYTES <= blob->bytes;
	     at += MSR_STATE_BYTES) {
		const struct kvm_msr_entry entry = {
			.index = le32_load(blob->data + at),
			.data = le64_load(blob->data + at + 4),
		};
		const struct kvm_msr_entry *ours, *now;

		/* Not what we save; who does has something in mind. */
		if (in_ranges(never, ARRAY_SIZE(never), entry.index))
			return err_set(err, EINVAL,
				       "vCPU %u: MSR %#x is not one that is "
				       "saved",
				       s->vcpu->id, entry.index);
		ours = find(&s->ours, entry.index, &from_ours);
		/* Which of them would it be? */
		if (ours && s->seen[ours - s->ours.entries])
			return err_set(err, EINVAL,
				       "vCPU %u: MSR %#x is there twice",
				       s->vcpu->id, entry.index);
		if (ours)
			s->seen[ours - s->ours.entries] = true;
		now = find(&s->now, entry.index, &from_now);
		if (entry.data == (now ? now->data : 0))
			continue;
		if (!ours)
			return refuse(s, &entry, err);
		s->differ.entries[s->differ.num++] = entry;
	}
	return 0;
}

static int write_differing(const struct setting *s, struct err *err)
{
	const struct msr_list *d = &s->differ;
	unsigned int at = 0;

	while (at < d->num) {
		unsigned int num = MIN(d->num - at, MSRS_AT_ONCE);
		int r = kvm_vcpu_set_msrs(s->vcpu, d->entries + at, num);

		if (r < 0)
			return err_errno(err, -r, "vCPU %u: writing MSRs",
					 s->vcpu->id);
		at += (unsigned int)r;
		/* KVM stops at the first that it refuses. */
		if ((unsigned int)r < num)
			return refuse(s, &d->entries[at], err);
	}
	return 0;
}

int msr_state_set(const struct kvm_vcpu *vcpu, const struct state_blob *blob,
		  struct err *err)
{
	struct setting *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return err_set(err, ENOMEM, "out of memory");
	s->vcpu = vcpu;
	r = read_now(s, err);
	if (!r)
		r = find_differing(s, blob, err);
	if (!r)
		r = write_differing(s, err);
	free(s);
	return r;
}
