/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "snapshot/reader.h"
#include "snapshot/take.h"
#include "snapshot/working_set.h"
#include "vm/config.h"
#include "vm/config_json.h"
#include "vm/vmm.h"

/* Lives as long as the machine's memory: what is mapped is read through it. */
struct origin {
	struct snapshot_reader *reader;
	enum restore_mode mode;
	uint64_t began_ns;
	struct working_set ahead;
};

static void free_origin(void *ctx)
{
	struct origin *o = ctx;

	snapshot_reader_free(o->reader);
	working_set_fini(&o->ahead);
	free(o);
}

static int save_working_set(void *ctx, const struct working_set *set,
			    struct err *err)
{
	const struct origin *o = ctx;

	return snapshot_working_set_save(o->reader, set, err);
}

static int load_memory(void *ctx, struct ram *ram, struct err *err)
{
	struct origin *o = ctx;
	const struct restore_request req = {
		.source = snapshot_reader_memory(o->reader),
	};
	int r = snapshot_reader_check_ram(o->reader, ram, err);

	if (r)
		return r;
	switch (o->mode) {
	case RESTORE_PRIVATE:
		return snapshot_reader_map(o->reader, ram, err);
	case RESTORE_EAGER:
		return restore_eager(ram, &req, NULL, err);
	case RESTORE_LAZY:
	case RESTORE_WORKING_SET:
		break;
	}
	return 0;
}

/* ---- memory that comes later ---- */

/* Another process's own mapping of the memory would find it missing. */
static int check_pageable(const struct vm_config *cfg, enum restore_mode mode,
			  struct err *err)
{
	const char *why = NULL;

	if (!vm_config_shared(cfg, &why) || !why)
		return 0;
	return err_set(err, EINVAL,
		       "the %s device is served by another process, which "
		       "would find memory missing: %s cannot be, restore with "
		       "memory eager",
		       why, restore_mode_names[mode]);
}

static int load_ahead(struct origin *o, struct err *err)
{
	int r = snapshot_working_set_load(o->reader, &o->ahead, err);

	/* A hint: without one it is recorded. */
	if (r && r != -ENOENT)
		log_warn("%s; it is recorded anew", err ? err->text : "");
	return r ? -ENOENT : 0;
}

static int prepare_paging(struct vmm *v, struct origin *o,
			  const struct snapshot_bring_request *req,
			  const struct vm_config *cfg,
			  struct vmm_origin *origin, struct err *err)
{
	bool missing = false;
	int r = check_pageable(cfg, o->mode, err);

	if (r)
		return r;
	if (o->mode == RESTORE_WORKING_SET && !req->record_s)
		missing = load_ahead(o, err) != 0;
	origin->record_s = req->record_s ? req->record_s
			   : missing	 ? SNAPSHOT_RECORD_S
					 : 0;
	origin->save_working_set = save_working_set;
	origin->memory.source = snapshot_reader_memory(o->reader);
	origin->memory.ahead = &o->ahead;
	origin->memory.record = origin->record_s != 0;
	origin->memory.opener = vmm_uffds(v);
	return 0;
}

/* ---- the configuration ---- */

static bool has_id(const json_t *device, const char *id)
{
	const char *its = json_string_value(json_object_get(device, "id"));

	return its && !strcmp(its, id);
}

/* In which list, and where in it, a device is; NULL: there is none. */
static json_t *find_device(json_t *config, const char *id)
{
	const char *field;
	json_t *list, *device;
	size_t i;

	json_object_foreach(config, field, list)
	{
		/* Of what there can be one only: "serial". */
		if (json_is_object(list) &&
		    (!strcmp(field, id) || has_id(list, id)))
			return list;
		json_array_foreach(list, i, device)
		{
			if (has_id(device, id))
				return device;
		}
	}
	return NULL;
}

static int change_devices(json_t *config, const json_t *devices,
			  struct err *err)
{
	const char *id;
	json_t *fields, *device;

	json_object_foreach((json_t *)devices, id, fields)
	{
		device = find_device(config, id);
		if (!device)
			return err_set(err, EINVAL,
				       "the snapshot has no device '%.60s'",
				       id);
		if (!json_is_object(fields) ||
		    json_object_update(device, fields))
			return err_set(err, EINVAL,
				       "device '%.60s': not an object", id);
	}
	return 0;
}

static int make_config(const struct snapshot_bring_request *req,
		       const struct snapshot_reader *reader, json_t **ret_json,
		       struct vm_config *ret, struct err *err)
{
	json_t *config = json_deep_copy(snapshot_reader_config(reader));
	int r;

	if (!config)
		return err_set(err, ENOMEM, "out of memory");
	/* Two VMs of one name cannot be. */
	json_object_del(config, "name");
	if (req->name)
		json_object_set_new(config, "name", json_string(req->name));
	r = change_devices(config, req->devices, err);
	if (!r)
		r = vm_config_from_json(ret, config, NULL, err);
	if (r)
		json_decref(config);
	else
		*ret_json = config;
	return r;
}

/* ---- bringing it back ---- */

/* Takes the origin. */
static int restore(struct vmm *v, struct origin *o,
		   const struct snapshot_bring_request *req,
		   struct vm_config *cfg, struct err *err)
{
	struct vmm_origin origin = {
		.memory = { .load = load_memory,
			    .ctx = o,
			    .began_ns = o->began_ns,
			    .mode = restore_mode_names[o->mode] },
		.release = free_origin,
		.ctx = o,
	};
	int r = 0;

	if (o->mode == RESTORE_LAZY || o->mode == RESTORE_WORKING_SET)
		r = prepare_paging(v, o, req, cfg, &origin, err);
	if (r) {
		free_origin(o);
		return r;
	}
	origin.state = snapshot_reader_state(o->reader, &origin.state_bytes);
	r = vmm_restore(v, cfg, &origin, err);
	if (r)
		return r;
	r = vmm_renew_generation_id(v, err);
	if (!r && req->resume)
		r = vmm_resume(v, err);
	/* Its memory may be no more: it is not to be resumed later. */
	if (r)
		(void)!vmm_delete(v, NULL);
	return r;
}

int snapshot_bring(struct vmm *v, const struct snapshot_bring_request *req,
		   struct err *err)
{
	struct origin *o = calloc(1, sizeof(*o));
	json_t *json = NULL;
	struct vm_config cfg;
	int r;

	if (!o)
		return err_set(err, ENOMEM, "out of memory");
	o->mode = req->mode;
	o->began_ns = clock_now_ns();
	vm_config_init(&cfg);
	r = snapshot_reader_open(&o->reader, req->path, err);
	if (!r)
		r = make_config(req, o->reader, &json, &cfg, err);
	if (!r)
		r = snapshot_reader_place_disks(o->reader, json, err);
	if (!r)
		r = restore(v, o, req, &cfg, err);
	else
		free_origin(o);
	json_decref(json);
	vm_config_fini(&cfg);
	return r;
}
