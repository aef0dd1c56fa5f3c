/* SPDX-License-Identifier: Apache-2.0 */
#include "api/handlers.h"

#include <errno.h>

#include "vm/vmm.h"

/* The verbs that take nothing and answer nothing. */
#define PLAIN_VERB(name, verb)                                             \
	int name(struct vmm *vmm, void *arg __unused_arg, struct err *err) \
	{                                                                  \
		return verb(vmm, err);                                     \
	}

PLAIN_VERB(api_vmm_shutdown, vmm_end)
PLAIN_VERB(api_vm_boot, vmm_boot)
PLAIN_VERB(api_vm_pause, vmm_pause)
PLAIN_VERB(api_vm_resume, vmm_resume)
PLAIN_VERB(api_vm_reboot, vmm_reboot)
PLAIN_VERB(api_vm_power_button, vmm_power_button)
PLAIN_VERB(api_vm_shutdown, vmm_shutdown)
PLAIN_VERB(api_vm_delete, vmm_delete)
PLAIN_VERB(api_vm_renew_generation_id, vmm_renew_generation_id)

int api_vm_create(struct vmm *vmm, void *arg, struct err *err)
{
	const struct api_call *call = arg;

	return vmm_create(vmm, call->body, err);
}

int api_vm_add_device(struct vmm *vmm, void *arg, struct err *err)
{
	struct api_call *call = arg;

	return vmm_add_device(vmm, call->cls, call->body, &call->reply, err);
}

int api_vm_remove_device(struct vmm *vmm, void *arg, struct err *err)
{
	const struct api_call *call = arg;
	const char *id = json_string_value(json_object_get(call->body, "id"));

	return vmm_remove_device(vmm, id, err);
}

int api_vm_populate(struct vmm *vmm, void *arg, struct err *err)
{
	const struct api_call *call = arg;

	return vmm_populate(vmm, call->body, err);
}

/* A question that only a VM can answer. */
static int ask(struct vmm *vmm, struct api_call *call,
	       json_t *(*question)(struct vmm *vmm), struct err *err)
{
	if (vmm_state(vmm) == VMM_EMPTY)
		return err_set(err, ENOENT,
			       "there is no VM; vm.create makes one");
	call->reply = question(vmm);
	return call->reply ? 0 : err_set(err, ENOMEM, "out of memory");
}

int api_vm_info(struct vmm *vmm, void *arg, struct err *err)
{
	return ask(vmm, arg, vmm_info, err);
}

int api_vm_counters(struct vmm *vmm, void *arg, struct err *err)
{
	return ask(vmm, arg, vmm_counters, err);
}

int api_vm_memory_stats(struct vmm *vmm, void *arg, struct err *err)
{
	return ask(vmm, arg, vmm_memory_stats, err);
}

/* The metrics of a quire without a VM say just that. */
int api_metrics(struct vmm *vmm, void *arg, struct err *err)
{
	struct api_call *call = arg;
	bool empty = vmm_state(vmm) == VMM_EMPTY;

	call->reply = json_pack("{s:s, s:o*, s:o*}", "state",
				vmm_state_names[vmm_state(vmm)], "counters",
				empty ? NULL : vmm_counters(vmm), "memory",
				empty ? NULL : vmm_memory_stats(vmm));
	return call->reply ? 0 : err_set(err, ENOMEM, "out of memory");
}
