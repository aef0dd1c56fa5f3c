/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the verbs of the API do: each a step from struct api_call to the vmm and
 * back. Control thread; for the table in route.c.
 */
#ifndef QUIRE_API_HANDLERS_H
#define QUIRE_API_HANDLERS_H

#include "api/route.h"

int api_vmm_shutdown(struct vmm *vmm, void *arg, struct err *err);
int api_vm_create(struct vmm *vmm, void *arg, struct err *err);
int api_vm_boot(struct vmm *vmm, void *arg, struct err *err);
int api_vm_info(struct vmm *vmm, void *arg, struct err *err);
int api_vm_counters(struct vmm *vmm, void *arg, struct err *err);
int api_vm_pause(struct vmm *vmm, void *arg, struct err *err);
int api_vm_resume(struct vmm *vmm, void *arg, struct err *err);
int api_vm_reboot(struct vmm *vmm, void *arg, struct err *err);
int api_vm_power_button(struct vmm *vmm, void *arg, struct err *err);
int api_vm_shutdown(struct vmm *vmm, void *arg, struct err *err);
int api_vm_delete(struct vmm *vmm, void *arg, struct err *err);
int api_vm_add_device(struct vmm *vmm, void *arg, struct err *err);
int api_vm_remove_device(struct vmm *vmm, void *arg, struct err *err);
int api_vm_renew_generation_id(struct vmm *vmm, void *arg, struct err *err);
int api_vm_populate(struct vmm *vmm, void *arg, struct err *err);
int api_vm_memory_stats(struct vmm *vmm, void *arg, struct err *err);
/* Not on the control thread. */
int api_vm_snapshot(struct vmm *vmm, void *arg, struct err *err);
int api_vm_send_migration(struct vmm *vmm, void *arg, struct err *err);
int api_vm_receive_migration(struct vmm *vmm, void *arg, struct err *err);
int api_vm_restore(struct vmm *vmm, void *arg, struct err *err);
/* Takes what api_metrics_render() makes text of. */
int api_metrics(struct vmm *vmm, void *arg, struct err *err);

#endif
