/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/send_throttle.h"

#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "kvm/stats.h"
#include "mem/dirty.h"
#include "vm/machine.h"
#include "vm/throttle.h"
#include "vm/vcpu.h"

/*
 * Rings say how many pages a vCPU dirtied. Beside the bitmap its faults tell:
 * the first write to each page that is logged is one. Where the CPU itself logs
 * (Intel's PML) there are none; nobody is known to dirty more than others then.
 */
static uint64_t read_vcpu(const struct send_throttle *t, unsigned int i)
{
	struct dirty_tracker *dirty = t->machine->memory.dirty;
	uint64_t faults = 0;

	if (dirty_method(dirty) == DIRTY_RING)
		return dirty_vcpu_entries(dirty, i);
	if (!t->of[i].stats ||
	    kvm_stats_read(t->of[i].stats, "pf_taken", &faults))
		return 0;
	return faults;
}

int send_throttle_begin(struct send_throttle *t, const struct machine *m,
			const struct hold_back *plan, struct err *err)
{
	*t = (struct send_throttle){ .plan = *plan };
	if (plan->mode == HOLD_BACK_OFF)
		return 0;
	t->of = calloc(m->num_vcpus, sizeof(*t->of));
	if (!t->of)
		return err_set(err, ENOMEM, "out of memory");
	t->machine = m;
	for (unsigned int i = 0; i < m->num_vcpus; i++) {
		int fd = vcpu_stats_fd(m->vcpus[i]);

		if (fd < 0 || kvm_stats_open_fd(fd, &t->of[i].stats))
			t->of[i].stats = NULL;
		t->of[i].seen = read_vcpu(t, i);
	}
	return 0;
}

/* What each did since the last round; returns the sum. */
static uint64_t read_all(struct send_throttle *t, uint64_t *ret)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < t->machine->num_vcpus; i++) {
		uint64_t now = read_vcpu(t, i);

		ret[i] = now - t->of[i].seen;
		t->of[i].seen = now;
		sum += ret[i];
	}
	return sum;
}

static void hold_back(struct send_throttle *t, const uint64_t *did,
		      uint64_t sum)
{
	unsigned int num = t->machine->num_vcpus;

	t->vcpus = 0;
	for (unsigned int i = 0; i < num; i++) {
		bool hit = hold_back_hits(did[i], sum, num);

		vm_throttle_set(t->throttle, i, hit ? t->percent : 0);
		t->vcpus += hit;
	}
}

/* did: of each vCPU, since the round before; sum: of all. */
static int follow_plan(struct send_throttle *t, const struct converge *c,
		       const uint64_t *did, uint64_t sum, struct err *err)
{
	unsigned int before = t->percent;
	int r;

	t->percent = hold_back_round(&t->plan, c);
	if (!t->percent)
		return 0;
	if (!t->throttle) {
		r = vm_throttle_new(&t->throttle, t->machine->vcpus,
				    t->machine->num_vcpus);
		if (r)
			return err_errno(err, -r, "holding vCPUs back");
	}
	hold_back(t, did, sum);
	if (t->percent != before)
		log_info("migration: memory is dirtied faster than it is sent: "
			 "%u of %u vCPUs held back by %u %%",
			 t->vcpus, t->machine->num_vcpus, t->percent);
	return 0;
}

int send_throttle_round(struct send_throttle *t, const struct converge *c,
			struct err *err)
{
	uint64_t *did, sum;
	int r;

	if (!t->machine)
		return 0;
	did = calloc(t->machine->num_vcpus, sizeof(*did));
	if (!did)
		return err_set(err, ENOMEM, "out of memory");
	sum = read_all(t, did);
	r = follow_plan(t, c, did, sum, err);
	free(did);
	return r;
}

void send_throttle_end(struct send_throttle *t)
{
	if (!t->machine)
		return;
	vm_throttle_free(take_ptr(t->throttle));
	for (unsigned int i = 0; i < t->machine->num_vcpus; i++)
		kvm_stats_close(t->of[i].stats);
	free(take_ptr(t->of));
	t->machine = NULL;
}
