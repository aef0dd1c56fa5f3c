/* SPDX-License-Identifier: Apache-2.0 */
#include "probe/tracked.h"

#include <string.h>

static int setup_vm(void *ctx, const struct kvm_vm *vm, struct err *err)
{
	struct probe_tracked *pt = ctx;

	return dirty_setup_vm(&pt->tracker, vm, pt->cfg, err);
}

/* Not before the vCPUs are known to the tracker: they do nothing until told. */
static int on_exit_reason(void *ctx, unsigned int vcpu, struct kvm_run *run)
{
	struct probe_tracked *pt = ctx;

	if (run->exit_reason != KVM_EXIT_DIRTY_RING_FULL)
		return 0;
	return dirty_ring_full(pt->tracker, vcpu) ? 0 : 1;
}

int probe_tracked_init(struct probe_tracked *pt, const struct probe_config *cfg,
		       const struct dirty_config *dirty, struct err *err)
{
	struct probe_config with_hooks = *cfg;
	int r;

	memset(pt, 0, sizeof(*pt));
	pt->cfg = dirty;
	with_hooks.vm_setup = setup_vm;
	with_hooks.on_exit = on_exit_reason;
	with_hooks.ctx = pt;
	r = probe_new(&pt->probe, &with_hooks, err);
	for (unsigned int i = 0; !r && i < cfg->num_vcpus; i++)
		r = dirty_add_vcpu(pt->tracker, probe_vcpu(pt->probe, i), err);
	pt->cfg = NULL;
	if (r)
		probe_tracked_fini(pt);
	return r;
}

void probe_tracked_fini(struct probe_tracked *pt)
{
	/* The vCPUs' threads use the tracker. */
	probe_free(pt->probe);
	dirty_free(pt->tracker);
	memset(pt, 0, sizeof(*pt));
}

int probe_tracked_start(struct probe_tracked *pt, struct err *err)
{
	/* The probe lends its memory for reading; tracking changes no byte. */
	return dirty_start(pt->tracker, (struct ram *)probe_ram(pt->probe),
			   err);
}
