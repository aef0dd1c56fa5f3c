/* SPDX-License-Identifier: Apache-2.0 */
/*
 * States and verbs. A verb first checks the state, then acts; whatever fails
 * leaves a state that the next verb can go on from. Only vmm_start_machine()
 * and vmm_stop_machine() make and end machines.
 */
#include "vm/vmm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "device/terminal.h"
#include "sandbox/sandbox.h"
#include "vm/config_json.h"
#include "vm/vmm_priv.h"

const char *const vmm_state_names[5] = {
	[VMM_EMPTY] = "Empty",	     [VMM_CREATED] = "Created",
	[VMM_RUNNING] = "Running",   [VMM_PAUSED] = "Paused",
	[VMM_SHUTDOWN] = "Shutdown",
};

int vmm_check_state(struct vmm *v, const char *verb, unsigned int states,
		    struct err *err)
{
	if (VMM_IN(v->state) & states)
		return vmm_check_held(v, verb, err);
	if (v->state == VMM_EMPTY)
		return err_set(err, ENOENT, "%s: there is no VM; create one",
			       verb);
	return err_set(err, EBADFD, "%s: the VM's state is %s", verb,
		       vmm_state_names[v->state]);
}

/* ---- listeners ---- */

int vmm_listen(struct vmm *v,
	       void (*fn)(void *ctx, const char *source, const char *event,
			  const json_t *properties),
	       void *ctx)
{
	if (v->num_listeners == VMM_MAX_LISTENERS)
		return -ENOSPC;
	v->listeners[v->num_listeners++] = (struct vmm_listener){ fn, ctx };
	return 0;
}

void vmm_emit(struct vmm *v, const char *source, const char *event,
	      json_t *properties)
{
	for (unsigned int i = 0; i < v->num_listeners; i++)
		v->listeners[i].fn(v->listeners[i].ctx, source, event,
				   properties);
	json_decref(properties);
}

/* ---- machines ---- */

static void on_quit_key(void *ctx)
{
	vmm_begin_end(ctx, 0, true);
}

/* Errors of the first machine find a normal terminal: start it late. */
static int start_chardev(struct vmm *v, struct err *err)
{
	int r;

	if (v->chardev_started)
		return 0;
	r = chardev_start(v->chardev, v->loop, err);
	v->chardev_started = !r;
	return r;
}

/* Once: not at each reboot. */
static void say_shared(const struct vmm *v)
{
	const char *why;

	if (!v->summary.boots && vm_config_shared(&v->cfg, &why) && why &&
	    !v->cfg.shared)
		log_info("guest memory is shared, for the %s device", why);
}

int vmm_build_machine(struct vmm *v, struct err *err)
{
	struct machine_end_hooks hooks = vmm_loop_hooks(v);
	int r = 0;

	v->start_ns = clock_now_ns();
	if (!v->chardev)
		v->chardev = take_ptr(v->cfg.chardev);
	if (!v->chardev)
		r = chardev_new(&v->chardev, &v->cfg.serial, err);
	if (!r)
		r = machine_new(&v->machine, &v->cfg,
				v->origin.state ? &v->origin.memory : NULL,
				v->chardev, v->loop, &hooks, err);
	/* A guest that has not started needs no power button. */
	if (vmm_signal_waits(v)) {
		machine_free(take_ptr(v->machine));
		return err_set(err, ECANCELED, "stopped by a signal");
	}
	v->built_ns = clock_now_ns();
	if (r)
		return r;
	chardev_set_waiting(v->chardev, true);
	r = start_chardev(v, err);
	if (r)
		machine_free(take_ptr(v->machine));
	return r;
}

int vmm_start_machine(struct vmm *v, struct err *err)
{
	int r;

	say_shared(v);
	v->cfg.may_populate_later = v->stays;
	r = vmm_build_machine(v, err);
	if (r)
		return r;
	r = machine_start(v->machine, err);
	if (r) {
		machine_free(take_ptr(v->machine));
		return r;
	}
	v->state = VMM_RUNNING;
	return 0;
}

void vmm_stop_machine(struct vmm *v)
{
	chardev_set_waiting(v->chardev, false);
	vmm_end_hold(v);
	/*
	 * A disk's last flush can take its time. When quire ends nobody reads
	 * signal_fd now, so another signal does what it does by default (the
	 * terminal is restored).
	 */
	if (v->ending)
		pthread_sigmask(SIG_UNBLOCK, &v->signals, NULL);
	vmm_end_recording(v);
	machine_stop(v->machine);
	vm_summary_take(&v->summary, v->machine, v->start_ns, v->built_ns);
	machine_free(take_ptr(v->machine));
	vmm_release_origin(v);
	/* Not before: devices may use their configuration to the end. */
	vmm_forget_asked_devices(v);
	v->populating = false;
	v->sending = v->sent_ran = v->receiving = v->disks_left = false;
	v->left = v->has_left_id = v->in_doubt = false;
}

/* ---- life ---- */

int vmm_new(struct vmm **ret, struct err *err)
{
	struct vmm *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return err_set(err, ENOMEM, "out of memory");
	v->control = pthread_self();
	v->signal_fd = v->deadline_fd = v->populated_fd = -1;
	v->paging_fd = v->recording_fd = v->uffds.device = -1;
	v->window_uffd = -1;
	v->ended.event_fd = v->calls.event_fd = v->panic.event_fd = -1;
	pthread_mutex_init(&v->ended.lock, NULL);
	pthread_mutex_init(&v->calls.lock, NULL);
	pthread_mutex_init(&v->hold.lock, NULL);
	pthread_cond_init(&v->hold.released, NULL);
	v->calls.last = &v->calls.first;
	r = kvm_vcpu_setup_kick();
	if (r)
		err_errno(err, -r, "sigaction");
	else
		r = vmm_loop_open(v, err);
	if (!r) {
		r = vmm_calls_open(v);
		if (r)
			err_errno(err, -r, "creating the command queue");
	}
	if (r) {
		vmm_free(v);
		return r;
	}
	terminal_set_quit(on_quit_key, v);
	*ret = v;
	return 0;
}

void vmm_forget_vm(struct vmm *v)
{
	uint64_t lost = v->chardev ? chardev_dropped(v->chardev) : 0;

	if (v->machine)
		vmm_stop_machine(v);
	if (lost)
		log_warn("%llu bytes of console output were lost: its reader "
			 "was too slow or gone",
			 (unsigned long long)lost);
	chardev_free(take_ptr(v->chardev));
	v->chardev_started = false;
	if (v->state != VMM_EMPTY)
		vm_config_fini(&v->cfg);
	v->state = VMM_EMPTY;
}

void vmm_free(struct vmm *v)
{
	if (!v)
		return;
	v->ending = true;
	vmm_forget_vm(v);
	terminal_set_quit(NULL, NULL);
	vmm_calls_close(v);
	vmm_loop_close(v);
	close_fd(&v->window_uffd);
	if (v->has_uffds)
		uffd_opener_fini(&v->uffds);
	pthread_mutex_destroy(&v->ended.lock);
	pthread_mutex_destroy(&v->hold.lock);
	pthread_cond_destroy(&v->hold.released);
	free(v);
}

struct evloop *vmm_loop(struct vmm *v)
{
	return v->loop;
}

enum vmm_state vmm_state(const struct vmm *v)
{
	return v->state;
}

void vmm_set_stays(struct vmm *v, bool stays)
{
	v->stays = stays;
}

const struct vm_summary *vmm_summary(const struct vmm *v)
{
	return &v->summary;
}

int vmm_run(struct vmm *v, struct vm_result *ret, struct err *err)
{
	int r = 0;

	/* A stop may be left over from an earlier end. */
	while (!r && !v->ending)
		r = evloop_run(v->loop);
	v->ending = true;
	vmm_interrupt_calls(v);
	if (v->machine) {
		vmm_stop_machine(v);
		v->state = VMM_SHUTDOWN;
	}
	vmm_emit(v, "vm", "ended", NULL);
	if (r)
		return err_errno(err, -r, "event loop");
	if (v->error) {
		*err = v->error_text;
		return v->error;
	}
	*ret = v->result;
	return 0;
}

/* ---- verbs ---- */

int vmm_create_config(struct vmm *v, struct vm_config *cfg, struct err *err)
{
	int r;

	if (v->state != VMM_EMPTY)
		return err_set(err, EEXIST,
			       "create: there is a VM; delete it first");
	r = vm_config_check(cfg, err);
	if (r)
		return r;
	v->cfg = *cfg;
	vm_config_init(cfg);
	memset(&v->summary, 0, sizeof(v->summary));
	v->state = VMM_CREATED;
	vmm_emit(v, "vm", "created", NULL);
	return 0;
}

int vmm_create(struct vmm *v, const json_t *vm_config, struct err *err)
{
	struct vm_config cfg;
	int r;

	vm_config_init(&cfg);
	r = vm_config_from_json(&cfg, vm_config, NULL, err);
	if (!r)
		r = vmm_create_config(v, &cfg, err);
	vm_config_fini(&cfg);
	return r;
}

/*
 * A file of the configuration that is not there is the host's failure; to the
 * caller of a verb -ENOENT and -EEXIST speak of VMs and devices.
 */
static int host_failure(int r, struct err *err)
{
	const char *why = r ? sandbox_explain(r) : NULL;

	if (why)
		err_append(err, why);
	return r == -ENOENT || r == -EEXIST ? -EIO : r;
}

int vmm_boot(struct vmm *v, struct err *err)
{
	int r = vmm_check_state(
		v, "boot", VMM_IN(VMM_CREATED) | VMM_IN(VMM_SHUTDOWN), err);

	if (r)
		return r;
	r = vmm_start_machine(v, err);
	if (!r)
		vmm_emit(v, "vm", "booted", NULL);
	return host_failure(r, err);
}

int vmm_pause(struct vmm *v, struct err *err)
{
	int r = vmm_check_state(v, "pause", VMM_IN(VMM_RUNNING), err);

	if (r)
		return r;
	machine_pause(v->machine);
	v->state = VMM_PAUSED;
	vmm_emit(v, "vm", "paused", NULL);
	return 0;
}

static int resume(struct vmm *v, struct err *err)
{
	int r = vmm_take_disks(v, err);

	if (!r)
		r = vm_paging_let_go_on(&v->machine->memory.paging, err);
	if (r)
		return r;
	if (!machine_resume(v->machine)) {
		r = vmm_check_paging(v, "resume", err);
		return r ? r
			 : err_set(err, EBUSY,
				   "resume: a vCPU waits for memory that is "
				   "still where the VM came from");
	}
	vmm_begin_recording(v);
	v->has_left_id = v->in_doubt = false;
	v->state = VMM_RUNNING;
	vmm_emit(v, "vm", "resumed", NULL);
	/* Its end may have been posted just before the pause. */
	io_eventfd_signal(v->ended.event_fd);
	return 0;
}

int vmm_resume(struct vmm *v, struct err *err)
{
	int r = vmm_check_state(v, "resume", VMM_IN(VMM_PAUSED), err);

	if (!r)
		r = vmm_check_own_memory(v, "resume", err);
	return r ? r : resume(v, err);
}

int vmm_resume_held(struct vmm *v, struct err *err)
{
	BUG_ON(v->state != VMM_PAUSED); /* who holds it sees to that */
	return resume(v, err);
}

int vmm_reboot(struct vmm *v, struct err *err)
{
	int r = vmm_check_state(v, "reboot",
				VMM_IN(VMM_RUNNING) | VMM_IN(VMM_PAUSED), err);

	if (r)
		return r;
	vmm_stop_machine(v);
	v->state = VMM_SHUTDOWN;
	r = vmm_start_machine(v, err);
	if (r)
		vmm_emit(v, "vm", "failed",
			 json_pack("{s:s}", "error", err ? err->text : ""));
	else
		vmm_emit(v, "vm", "rebooted",
			 json_pack("{s:s}", "reason", "api"));
	return host_failure(r, err);
}

int vmm_power_button(struct vmm *v, struct err *err)
{
	int r = vmm_check_state(v, "power-button", VMM_IN(VMM_RUNNING), err);

	if (!r)
		platform_power_button(v->machine->platform);
	return r;
}

int vmm_shutdown(struct vmm *v, struct err *err)
{
	int r = vmm_check_state(v, "shutdown",
				VMM_IN(VMM_RUNNING) | VMM_IN(VMM_PAUSED), err);

	if (r)
		return r;
	vmm_stop_machine(v);
	v->state = VMM_SHUTDOWN;
	vmm_emit(v, "vm", "shutdown", json_pack("{s:s}", "reason", "api"));
	/* What SIGTERM waited for has happened. */
	if (v->shutting_down)
		vmm_begin_end(v, 0, true);
	return 0;
}

int vmm_delete(struct vmm *v, struct err *err)
{
	int r = vmm_check_state(v, "delete", ~VMM_IN(VMM_EMPTY), err);

	if (r)
		return r;
	vmm_forget_vm(v);
	vmm_emit(v, "vm", "deleted", NULL);
	if (v->shutting_down)
		vmm_begin_end(v, 0, true);
	return 0;
}

int vmm_end(struct vmm *v, struct err *err)
{
	vmm_begin_end(v, 0, true);
	return 0;
}

/* ---- devices ---- */

static bool has_machine(const struct vmm *v)
{
	return v->state == VMM_RUNNING || v->state == VMM_PAUSED;
}

static json_t *pci_info(const char *id, uint8_t devfn)
{
	char bdf[16];

	snprintf(bdf, sizeof(bdf), "0000:00:%02x.%x", devfn >> 3, devfn & 7u);
	return json_pack("{s:s, s:s}", "id", id, "bdf", bdf);
}

/* Its configuration is there: plug it into the machine that runs. */
static int plug_device(struct vmm *v, const char *id, json_t **ret_info,
		       struct err *err)
{
	const struct vm_device_config *dev = vm_config_device(&v->cfg, id);
	uint8_t devfn = 0;
	int r;

	if (dev->cls->needs_shared_memory && !v->machine->memory.ram.shared)
		return err_set(err, EINVAL,
			       "the %s device needs shared memory, which this "
			       "VM was started without; start it with --memory "
			       "shared=on",
			       dev->cls->name);
	/* Its own mapping of the memory knows of no userfaultfd. */
	if (dev->cls->needs_shared_memory &&
	    vm_paging_is_active(&v->machine->memory.paging))
		return err_set(
			err, EBUSY,
			"the %s device is served by another process, "
			"which would find memory missing that is still "
			"being restored; wait for the event \"resident\"",
			dev->cls->name);
	r = machine_add_device(v->machine, dev, &devfn, err);
	if (r)
		return host_failure(r, err);
	*ret_info = pci_info(id, devfn);
	return 0;
}

int vmm_add_device(struct vmm *v, const struct virtio_class *cls,
		   const json_t *config, json_t **ret_info, struct err *err)
{
	int r = vmm_check_state(v, "add-device", ~VMM_IN(VMM_EMPTY), err);
	json_t *info = NULL;
	const char *id;

	if (r)
		return r;
	if (!config)
		return err_set(err, EINVAL, "%s: no configuration", cls->name);
	r = vm_config_add_device_json(&v->cfg, cls, config, cls->name, &id,
				      err);
	if (r)
		return r;
	if (has_machine(v))
		r = plug_device(v, id, &info, err);
	if (r) {
		vm_config_remove_device(&v->cfg, id);
		return r;
	}
	vmm_emit(v, "device", "device-added", json_pack("{s:s}", "id", id));
	*ret_info = info;
	return 0;
}

int vmm_remove_device(struct vmm *v, const char *id, struct err *err)
{
	int r = vmm_check_state(v, "remove-device", ~VMM_IN(VMM_EMPTY), err);
	struct vm_device_config *dev;

	if (r)
		return r;
	if (!id)
		return err_set(err, EINVAL, "remove-device: id is missing");
	dev = vm_config_device(&v->cfg, id);
	if (!dev)
		return err_set(err, ENOENT,
			       "remove-device: there is no device '%s'", id);
	if (has_machine(v)) {
		r = machine_request_removal(v->machine, id, err);
		dev->leaving = !r;
		return r;
	}
	vmm_emit(v, "device", "device-removed", json_pack("{s:s}", "id", id));
	vm_config_remove_device(&v->cfg, id);
	return 0;
}

int vmm_renew_generation_id(struct vmm *v, struct err *err)
{
	int r = vmm_check_state(v, "renew-generation-id",
				VMM_IN(VMM_RUNNING) | VMM_IN(VMM_PAUSED), err);

	return r ? r : machine_renew_generation_id(v->machine, err);
}
