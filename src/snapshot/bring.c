/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "sandbox/paths.h"
#include "snapshot/disks.h"
#include "snapshot/reader.h"
#include "snapshot/take.h"
#include "vm/config.h"
#include "vm/config_json.h"
#include "vm/vmm.h"

/* Lives as long as the machine's memory: what is mapped is read through it. */
struct snapshot_bring {
	struct snapshot_reader *reader;
	struct snapshot_placed placed;
	struct vm_config cfg;
	enum restore_mode mode;
	bool resume;
};

static int load_memory(void *ctx, struct ram *ram, struct err *err)
{
	struct snapshot_bring *b = ctx;
	const struct restore_request req = {
		.source = snapshot_reader_memory(b->reader),
	};
	int r = snapshot_reader_check_ram(b->reader, ram, err);

	if (r)
		return r;
	return b->mode == RESTORE_PRIVATE
		       ? snapshot_reader_map(b->reader, ram, err)
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

static int make_config(struct snapshot_bring *b,
		       const struct snapshot_bring_request *req,
		       json_t **ret_json, struct err *err)
{
	json_t *config = json_deep_copy(snapshot_reader_config(b->reader));
	int r;

	if (!config)
		return err_set(err, ENOMEM, "out of memory");
	/* Two VMs of one name cannot be. */
	json_object_del(config, "name");
	if (req->name)
		json_object_set_new(config, "name", json_string(req->name));
	r = change_devices(config, req->devices, err);
	if (!r)
		r = vm_config_from_json(&b->cfg, config, NULL, err);
	if (!r)
		r = vm_config_check(&b->cfg, err);
	if (r)
		json_decref(config);
	else
		*ret_json = config;
	return r;
}

/* ---- opening ---- */

static int open_all(struct snapshot_bring *b,
		    const struct snapshot_bring_request *req, struct err *err)
{
	json_t *json = NULL;
	int r = snapshot_reader_open(&b->reader, req->path, err);

	if (!r)
		r = make_config(b, req, &json, err);
	if (!r)
		r = snapshot_reader_place_disks(b->reader, json, &b->placed,
						err);
	json_decref(json);
	return r;
}

int snapshot_bring_open(struct snapshot_bring **ret,
			const struct snapshot_bring_request *req,
			struct err *err)
{
	struct snapshot_bring *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return err_set(err, ENOMEM, "out of memory");
	b->mode = req->mode;
	b->resume = req->resume;
	vm_config_init(&b->cfg);
	r = open_all(b, req, err);
	if (r)
		snapshot_bring_free(b);
	else
		*ret = b;
	return r;
}

void snapshot_bring_free(struct snapshot_bring *b)
{
	if (!b)
		return;
	/* Closed before they are removed. */
	vm_config_fini(&b->cfg);
	snapshot_placed_undo(&b->placed);
	snapshot_reader_free(b->reader);
	free(b);
}

struct vm_config *snapshot_bring_config(struct snapshot_bring *b)
{
	return &b->cfg;
}

int snapshot_bring_paths(const struct snapshot_bring *b,
			 struct sandbox_paths *paths, struct err *err)
{
	int r = 0;

	for (unsigned int i = 0; !r && i < b->placed.num; i++)
		r = sandbox_paths_add_parent(paths, b->placed.paths[i],
					     SANDBOX_REMOVE, true, err);
	return r;
}

/* ---- bringing it back ---- */

static void release(void *ctx)
{
	snapshot_bring_free(ctx);
}

int snapshot_bring_begin(struct vmm *v, struct snapshot_bring *b,
			 struct err *err)
{
	struct vmm_origin origin = {
		.memory = { .load = load_memory, .ctx = b },
		.release = release,
		.ctx = b,
	};
	bool resume = b->resume;
	int r;

	origin.state = snapshot_reader_state(b->reader, &origin.state_bytes);
	r = vmm_restore(v, &b->cfg, &origin, err);
	if (r)
		return r;
	/* From here on they are the guest's. */
	snapshot_placed_keep(&b->placed);
	r = vmm_renew_generation_id(v, err);
	return !r && resume ? vmm_resume(v, err) : r;
}
