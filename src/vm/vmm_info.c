/* SPDX-License-Identifier: Apache-2.0 */
/* What is told about the VM: its configuration, counters and memory. */
#include <stdlib.h>

#include "base/json.h"
#include "vm/config_json.h"
#include "vm/vmm_priv.h"

/*
 * The account of the machine that runs, as if it ended now; else of the last
 * one. The caller frees it. NULL: no VM, or no memory.
 */
static struct vm_summary *account(struct vmm *v, bool counters_only)
{
	struct vm_summary *s;

	if (v->state == VMM_EMPTY)
		return NULL;
	s = malloc(sizeof(*s));
	if (!s)
		return NULL;
	*s = v->summary;
	if (v->machine && counters_only)
		vm_summary_take_counters(s, v->machine);
	else if (v->machine)
		vm_summary_take(s, v->machine, v->start_ns, v->built_ns);
	return s;
}

/* What the guest has been asked for and has not let go. */
static json_t *leaving(const struct machine *m)
{
	json_t *ids = json_array();

	for (unsigned int i = 0; m && i < m->num_devices; i++)
		if (machine_removal_requested(m, i))
			json_array_append_new(
				ids, json_string(virtio_pci_dev(m->devices[i])
							 ->config_id));
	return ids;
}

/* Ids of the snapshots that the next can be an increment of, oldest first. */
static json_t *tracked(const struct machine *m)
{
	json_t *ids = json_array();

	for (unsigned int i = 0; m && i < m->memory.track.num; i++)
		json_array_append_new(
			ids, json_string(m->memory.track.points[i].id));
	return ids;
}

/* Of post-copy, while either side has to do with it. */
static json_t *migration(struct vmm *v)
{
	if (v->sending || v->has_left_id)
		return json_pack("{s:s, s:s}", "role", "source", "state",
				 v->sending ? "active"
				 : v->left  ? "postcopy-paused"
					    : "in-doubt");
	return v->machine && v->origin.describe
		       ? v->origin.describe(v->origin.ctx)
		       : NULL;
}

json_t *vmm_info(struct vmm *v)
{
	struct err error = ERR_INIT;
	json_t *config, *o, *moving;

	if (v->state == VMM_EMPTY)
		return NULL;
	config = vm_config_to_json(&v->cfg);
	o = json_pack("{s:o, s:o, s:s, s:I, s:i}", "config", config, "leaving",
		      leaving(v->machine), "state", vmm_state_names[v->state],
		      "memory_actual_size", json_int_u64(v->cfg.memory_bytes),
		      "boots", (int)(v->summary.boots + (v->machine != NULL)));
	if (o && v->machine && v->machine->memory.track.num)
		json_object_set_new(o, "tracked_since", tracked(v->machine));
	moving = o ? migration(v) : NULL;
	if (moving)
		json_object_set_new(o, "migration", moving);
	if (o && v->machine &&
	    vm_paging_failed(&v->machine->memory.paging, &error))
		json_object_set_new(o, "memory_error", json_string(error.text));
	return o;
}

json_t *vmm_counters(struct vmm *v)
{
	struct vm_summary *s = account(v, true);
	json_t *o = s ? json_object() : NULL;

	for (unsigned int i = 0; o && i < s->num_devices; i++)
		json_object_set_new(o, s->devices[i].config_id,
				    vm_summary_device_json(&s->devices[i]));
	if (o && s->boots)
		json_object_set_new(
			o, "_vm",
			json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "boots",
				  (json_int_t)s->boots, "exits",
				  json_int_u64(s->exits), "exits_pio",
				  json_int_u64(s->exits_pio), "exits_mmio",
				  json_int_u64(s->exits_mmio),
				  "exits_unclaimed", json_int_u64(s->unclaimed),
				  "second_stage_faults",
				  json_int_u64(s->second_stage_faults)));
	free(s);
	return o;
}

json_t *vmm_memory_stats(struct vmm *v)
{
	struct vm_summary *s = account(v, false);
	json_t *o = NULL;

	if (s)
		o = s->boots ? memory_stats_json(&s->memory) : json_object();
	free(s);
	return o;
}
