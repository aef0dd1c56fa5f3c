/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "snapshot/reader.h"
#include "snapshot/take.h"
#include "vm/config.h"
#include "vm/config_json.h"
#include "vm/vmm.h"

/* Lives as long as the machine's memory: what is mapped is read through it. */
struct origin {
	struct snapshot_reader *reader;
	enum restore_mode mode;
};

static void free_origin(void *ctx)
{
	struct origin *o = ctx;

	snapshot_reader_free(o->reader);
	free(o);
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
	return o->mode == RESTORE_PRIVATE
		       ? snapshot_reader_map(o->reader, ram, err)
		       : restore_eager(ram, &req, NULL, err);
}

/* ---- the configuration ---- */

/* In which list, and where in it, a device is; NULL: there is none. */
static json_t *find_device(json_t *config, const char *id)
{
	const char *field;
	json_t *list, *device;
	size_t i;

	json_object_foreach(config, field, list)
	{
		json_array_foreach(list, i, device)
		{
			const char *its = json_string_value(
				json_object_get(device, "id"));

			if (its && !strcmp(its, id))
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
static int restore(struct vmm *v, struct origin *o, struct vm_config *cfg,
		   bool go_on, struct err *err)
{
	struct vmm_origin origin = {
		.memory = { .load = load_memory, .ctx = o },
		.release = free_origin,
		.ctx = o,
	};
	int r;

	origin.state = snapshot_reader_state(o->reader, &origin.state_bytes);
	r = vmm_restore(v, cfg, &origin, err);
	if (!r)
		r = vmm_renew_generation_id(v, err);
	if (!r && go_on)
		r = vmm_resume(v, err);
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
	vm_config_init(&cfg);
	r = snapshot_reader_open(&o->reader, req->path, err);
	if (!r)
		r = make_config(req, o->reader, &json, &cfg, err);
	if (!r)
		r = snapshot_reader_place_disks(o->reader, json, err);
	if (!r)
		r = restore(v, o, &cfg, req->resume, err);
	else
		free_origin(o);
	json_decref(json);
	vm_config_fini(&cfg);
	return r;
}
