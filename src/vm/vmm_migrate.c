/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verbs of a VM that goes to another process, and of one that comes from
 * there (docs/migration-protocol.md has who waits for what).
 *
 * While it goes the machine is held, though its guest runs: verbs get -EBUSY.
 * Its guest may end by itself meanwhile. That is looked at when the hold is
 * gone (vmm_holds_end()), and until then only cancels (vmm_sending_ended()).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "kvm/stats.h"
#include "mem/dirty.h"
#include "state/state.h"
#include "vm/machine_state.h"
#include "vm/vmm_priv.h"

/* ---- going ---- */

int vmm_check_own_memory(struct vmm *v, const char *verb, struct err *err)
{
	if (!v->in_doubt ||
	    ram_claims(&v->machine->memory.ram) == v->sent_claims)
		return 0;
	return err_set(err, EBADFD,
		       "%s: the VM has run on this memory in the process that "
		       "it was handed to; here it can only be ended",
		       verb);
}

int vmm_send_check(struct vmm *v, const struct machine **ret, struct err *err)
{
	const char *why = NULL;
	int r = vmm_check_state(v, "migrate",
				VMM_IN(VMM_RUNNING) | VMM_IN(VMM_PAUSED), err);

	if (!r)
		r = vmm_check_paging(v, "migrate", err);
	if (!r)
		r = vmm_check_own_memory(v, "migrate", err);
	if (r)
		return r;
	if (vm_config_shared(&v->cfg, &why) && why)
		return err_set(err, ENOTSUP,
			       "the %s device is served by another process: "
			       "what it writes to memory meanwhile would go "
			       "unseen",
			       why);
	if (!v->machine->memory.dirty)
		return err_set(err, ENOTSUP,
			       "this KVM cannot log what a guest writes");
	if (vm_paging_is_active(&v->machine->memory.paging))
		return err_set(err, EBUSY,
			       "memory that is being restored has not all come "
			       "yet; wait for the event \"resident\"");
	*ret = v->machine;
	return machine_check_saved(v->machine, err);
}

int vmm_send_begin(struct vmm *v, bool logs, const struct machine **ret,
		   struct err *err)
{
	struct vm_memory *memory;
	int r = vmm_send_check(v, ret, err);

	if (r)
		return r;
	memory = &v->machine->memory;
	/* There is one log, and it is needed from its beginning. */
	if (memory->track.num)
		log_info("migration: what the guest writes is no longer noted "
			 "for increments of snapshots");
	vm_track_end(&memory->track);
	r = logs ? dirty_start(memory->dirty, &memory->ram, err) : 0;
	if (r)
		return r;
	v->sending = true;
	v->sent_claims = ram_claims(&memory->ram);
	v->send_logs = logs;
	vmm_begin_hold(v, "the VM is being migrated");
	vmm_emit(v, "vm", "migration-started", NULL);
	return 0;
}

int vmm_send_stop(struct vmm *v, struct state_writer *w,
		  struct vmm_stopped *ret, struct err *err)
{
	int r;

	BUG_ON(!v->sending); /* who holds it sees to that */
	*ret = (struct vmm_stopped){
		.ran = v->state == VMM_RUNNING,
		.paused_ns = clock_now_ns(),
	};
	if (ret->ran) {
		machine_pause(v->machine);
		v->state = VMM_PAUSED;
		v->sent_ran = true;
		vmm_emit(v, "vm", "paused",
			 json_pack("{s:s}", "reason", "migration"));
	}
	/* What ended is not to go on elsewhere, and is looked at after. */
	r = vmm_check_not_ended(v, "migrate", err);
	if (!r)
		r = machine_save(v->machine, w, err);
	if (r)
		return r;
	r = state_writer_finish(w);
	if (r)
		return err_errno(err, -r, "saving the state of the VM");
	return v->send_logs ? dirty_final(v->machine->memory.dirty, NULL, err)
			    : 0;
}

int vmm_send_leave(struct vmm *v, struct err *err)
{
	int r;

	BUG_ON(!v->sending);
	r = machine_hand_over(v->machine, false, err);
	v->disks_left = !r;
	return r;
}

int vmm_take_disks(struct vmm *v, struct err *err)
{
	int r;

	if (!v->disks_left)
		return 0;
	r = machine_hand_over(v->machine, true, err);
	v->disks_left = r != 0;
	return r;
}

int vmm_send_reclaim(struct vmm *v, struct err *err)
{
	return v->sending ? vmm_take_disks(v, err) : 0;
}

/* The machine that was sent may have ended since the release. */
static bool end_sending(struct vmm *v)
{
	if (!v->sending)
		return false;
	v->sending = false;
	dirty_stop(v->machine->memory.dirty);
	return true;
}

int vmm_send_undo(struct vmm *v, struct err *err)
{
	bool ran = v->sent_ran;
	int r = 0;

	if (!end_sending(v))
		return 0;
	v->sent_ran = false;
	vmm_release(v);
	vmm_emit(v, "vm", "migration-failed", NULL);
	if (ran && v->state == VMM_PAUSED)
		r = vmm_resume(v, err);
	else
		r = vmm_take_disks(v, err);
	/* The guest may have ended, and that was put off. */
	io_eventfd_signal(v->ended.event_fd);
	return r;
}

int vmm_send_left(struct vmm *v, const uint8_t *id, bool doubt, struct err *err)
{
	int r = 0;

	if (doubt)
		r = vmm_send_doubt(v, err);
	else if (end_sending(v))
		vmm_release(v);
	else
		return 0;
	v->sent_ran = false;
	memcpy(v->left_id, id, sizeof(v->left_id));
	v->has_left_id = true;
	v->left = !doubt;
	if (!doubt) {
		log_error("migration: the connection was lost while memory "
			  "followed the VM: the rest of it is here, and the VM "
			  "needs it: quire migrate --recover");
		vmm_emit(v, "vm", "migration-paused", NULL);
	}
	return r;
}

int vmm_send_begin_again(struct vmm *v, const struct machine **ret, uint8_t *id,
			 bool *ret_doubt, struct err *err)
{
	int r = v->left ? 0
			: vmm_check_state(v, "migrate", VMM_IN(VMM_PAUSED),
					  err);

	if (!r && v->sending)
		r = err_set(err, EBUSY, "migrate: its memory is being sent");
	if (!r && !v->has_left_id)
		r = err_set(err, EBADFD,
			    "migrate: no migration of this VM waits for a "
			    "connection");
	if (r)
		return r;
	memcpy(id, v->left_id, sizeof(v->left_id));
	*ret = v->machine;
	*ret_doubt = !v->left;
	v->sending = true;
	vmm_begin_hold(v, "the VM's memory is being sent");
	return 0;
}

int vmm_send_done(struct vmm *v, struct err *err)
{
	if (!v->sending)
		return 0;
	v->sending = v->left = v->has_left_id = false;
	v->disks_left = false;
	vmm_release(v);
	vmm_emit(v, "vm", "migrated", NULL);
	vmm_forget_vm(v);
	if (v->stays)
		vmm_emit(v, "vm", "deleted", NULL);
	else
		vmm_begin_end(v, 0, true);
	return 0;
}

int vmm_send_doubt(struct vmm *v, struct err *err)
{
	if (!end_sending(v))
		return 0;
	v->sent_ran = false;
	v->in_doubt = true;
	vmm_release(v);
	log_error("migration: the connection was lost in the hand-over, and "
		  "the VM may run at the destination: it stays paused here; "
		  "resume it only if it does not run there");
	vmm_emit(v, "vm", "migration-in-doubt", NULL);
	return 0;
}

void vmm_sending_ended(struct vmm *v)
{
	pthread_mutex_lock(&v->hold.lock);
	v->hold.cancelled = true;
	pthread_mutex_unlock(&v->hold.lock);
}

int vmm_fail(struct vmm *v, const struct err *why)
{
	vmm_begin_fail(v, -why->code, why);
	return 0;
}

/* ---- coming ---- */

void vmm_expect_disks(struct vm_config *cfg, bool expected)
{
	for (unsigned int i = 0; i < cfg->num_devices; i++) {
		struct vm_device_config *dev = &cfg->devices[i];

		if (dev->cls->config_expect)
			dev->cls->config_expect(dev->config, expected);
	}
}

/* Fresh memory is all that is wanted; the rest arrives. */
static int load_nothing(void *ctx, struct ram *ram, struct err *err)
{
	return 0;
}

static int check_may_follow(struct vmm *v, struct err *err)
{
	if (ram_page_is_hugetlb(v->cfg.page))
		return err_set(err, ENOTSUP,
			       "memory in %s pages cannot follow its VM: use "
			       "mode precopy",
			       ram_page_names[v->cfg.page]);
	if (!vmm_uffds(v))
		return err_set(
			err, EPERM,
			"this process got no userfaultfd when it "
			"started, so memory cannot follow its VM: grant "
			"read and write on /dev/userfaultfd, or use mode "
			"precopy");
	return 0;
}

static int begin_landing(struct vmm *v, struct vmm_landing *ret,
			 struct err *err)
{
	struct machine *m = v->machine;
	struct kvm_vcpu **vcpus;
	const char *why = NULL;
	int r = ret->follows ? check_may_follow(v, err) : 0;

	if (r)
		return r;
	if (vm_config_shared(&v->cfg, &why) && why)
		return err_set(err, ENOTSUP,
			       "the %s device is served by another process",
			       why);
	vcpus = calloc(m->num_vcpus, sizeof(struct kvm_vcpu *));
	if (!vcpus)
		return err_set(err, ENOMEM, "out of memory");
	for (unsigned int i = 0; i < m->num_vcpus; i++)
		vcpus[i] = vcpu_kvm(m->vcpus[i]);
	ret->machine = m;
	ret->ram = &m->memory.ram;
	ret->fills_host = v->cfg.populate == POPULATE_HOST ||
			  v->cfg.populate == POPULATE_FULL;
	r = vm_memory_begin_landing(&m->memory, vcpus, m->num_vcpus,
				    &ret->second_stage, err);
	free(vcpus);
	return r;
}

/* Not those that the source writes to: what comes would destroy them. */
static int take_disks_early(struct vmm *v, struct err *err)
{
	int r = machine_hand_over(v->machine, true, err);

	if (r == -EBUSY)
		err_append(err, "a VM that comes with its disks needs images "
				"of its own for them");
	v->writes_disks = !r;
	return r;
}

static void leave_early_disks(struct vmm *v)
{
	if (v->writes_disks)
		(void)!machine_hand_over(v->machine, false, NULL);
	v->writes_disks = false;
}

int vmm_receive_begin(struct vmm *v, struct vmm_landing *ret, struct err *err)
{
	int r = vmm_check_state(v, "receive-migration", VMM_IN(VMM_CREATED),
				err);

	if (r)
		return r;
	vmm_expect_disks(&v->cfg, true);
	v->cfg.may_populate_later = v->stays;
	v->origin = (struct vmm_origin){
		.memory = { .load = load_nothing,
			    .mode = "migration",
			    .began_ns = clock_now_ns(),
			    .paged_later = ret->follows },
		.state = "",
	};
	r = vmm_build_machine(v, err);
	if (!r) {
		r = ret->writes_disks ? take_disks_early(v, err) : 0;
		if (!r)
			r = begin_landing(v, ret, err);
		if (!r) {
			v->receiving = true;
			vmm_begin_hold(v, "a VM is being received");
			return 0;
		}
		chardev_set_waiting(v->chardev, false);
		leave_early_disks(v);
		machine_free(take_ptr(v->machine));
	}
	vmm_release_origin(v);
	vmm_expect_disks(&v->cfg, false);
	return r;
}

static uint64_t faults_of(const struct machine *m)
{
	uint64_t sum = 0, value;

	for (unsigned int i = 0; i < m->num_vcpus; i++) {
		struct kvm_stats *stats;

		if (kvm_stats_open_fd(vcpu_stats_fd(m->vcpus[i]), &stats))
			return 0;
		if (!kvm_stats_read(stats, "pf_taken", &value))
			sum += value;
		kvm_stats_close(stats);
	}
	return sum;
}

int vmm_receive_memory(struct vmm *v, int fd, struct err *err)
{
	BUG_ON(!v->receiving);
	return ram_take_memfd(&v->machine->memory.ram, fd, err);
}

int vmm_receive_page(struct vmm *v, const struct vmm_origin *origin,
		     struct pager **ret, struct err *err)
{
	struct vm_memory *memory = &v->machine->memory;
	struct vm_memory_origin *own = &v->origin.memory;
	int r;

	BUG_ON(!v->receiving);
	own->source = origin->memory.source;
	own->opener = vmm_uffds(v);
	own->fed = true;
	v->origin.release = origin->release;
	v->origin.describe = origin->describe;
	v->origin.ctx = origin->ctx;
	r = vm_memory_page(memory, own, err);
	*ret = r ? NULL : memory->paging.pager;
	return r;
}

int vmm_receive_load(struct vmm *v, const void *state, size_t bytes,
		     const struct vm_landed *landed, struct err *err)
{
	int r;

	BUG_ON(!v->receiving);
	r = vm_memory_end_landing(&v->machine->memory, err);
	if (!r)
		r = machine_hand_over(v->machine, true, err);
	if (r)
		return r;
	v->machine->memory.has_landed = true;
	v->machine->memory.landed = *landed;
	v->origin.state = state;
	v->origin.state_bytes = bytes;
	r = vmm_load_machine(v, err);
	/* It is the caller's, and not needed any more. */
	v->origin.state = "";
	if (r) {
		/* The source hears of the failure, and wants them back. */
		(void)!machine_hand_over(v->machine, false, NULL);
		return r;
	}
	v->machine->memory.landed.base_faults = faults_of(v->machine);
	v->state = VMM_PAUSED;
	return 0;
}

int vmm_receive_go(struct vmm *v, bool run, struct err *err)
{
	struct ram *ram = &v->machine->memory.ram;
	int r;

	BUG_ON(!v->receiving || v->state != VMM_PAUSED);
	r = ram_claim(ram, err);
	if (r)
		return r;
	r = run ? vmm_resume_held(v, err) : 0;
	if (r) {
		ram_unclaim(ram);
		return r;
	}
	v->receiving = v->writes_disks = false;
	machine_announce(v->machine);
	vmm_expect_disks(&v->cfg, false);
	vmm_release(v);
	vmm_emit(v, "vm", "received", NULL);
	return 0;
}

int vmm_receive_drop(struct vmm *v, struct err *err)
{
	if (!v->receiving)
		return 0;
	v->receiving = false;
	vmm_release(v);
	chardev_set_waiting(v->chardev, false);
	/* First: the source may be waiting for them, its guest standing still.
	 */
	if (v->state == VMM_PAUSED)
		(void)!machine_hand_over(v->machine, false, NULL);
	else
		leave_early_disks(v);
	v->writes_disks = false;
	machine_stop(v->machine);
	machine_free(take_ptr(v->machine));
	vmm_release_origin(v);
	vmm_expect_disks(&v->cfg, false);
	v->state = VMM_CREATED;
	return 0;
}
