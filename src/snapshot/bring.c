/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "sandbox/paths.h"
#include "snapshot/disks.h"
#include "snapshot/reader.h"
#include "snapshot/set_pages.h"
#include "snapshot/take.h"
#include "snapshot/working_set.h"
#include "vm/config.h"
#include "vm/config_json.h"
#include "vm/memory.h"
#include "vm/vmm.h"

/* Lives as long as the machine's memory: what is mapped is read through it. */
struct snapshot_bring {
	struct snapshot_reader *reader;
	struct snapshot_placed placed;
	struct vm_config cfg;
	enum restore_mode mode;
	bool resume;
	uint64_t began_ns;
	struct working_set ahead;
	struct set_pages *kept; /* of ahead; NULL: none are */
	unsigned int record_s;	/* 0: not recorded */
	struct ram ram;		/* with loaded: until the machine takes it */
	bool loaded;
	bool (*cancelled)(void *ctx);
	void *ctx;
};

static bool is_paged(enum restore_mode mode)
{
	return mode == RESTORE_LAZY || mode == RESTORE_WORKING_SET;
}

static int save_working_set(void *ctx, const struct working_set *set,
			    const _Atomic bool *stop, struct err *err)
{
	const struct snapshot_bring *b = ctx;
	struct err reason = ERR_INIT;
	int r = snapshot_working_set_save(b->reader, set, err);

	if (r)
		return r;
	/* Without them it is a good set still. */
	r = set_pages_save(b->reader, set, stop, &reason);
	if (r && r != -ECANCELED)
		log_warn("the working set is kept without its pages: %s",
			 reason.text);
	return 0;
}

static bool poll_cancelled(void *ctx, const struct populate_progress *progress)
{
	const struct snapshot_bring *b = ctx;

	return b->cancelled && b->cancelled(b->ctx);
}

static int load_memory(void *ctx, struct ram *ram, struct err *err)
{
	struct snapshot_bring *b = ctx;
	const struct populate_watch watch = { .poll = poll_cancelled,
					      .ctx = b };
	const struct restore_request req = {
		.source = snapshot_reader_memory(b->reader),
		.watch = &watch,
	};
	int r = snapshot_reader_check_ram(b->reader, ram, err);

	if (r || is_paged(b->mode))
		return r;
	return b->mode == RESTORE_PRIVATE
		       ? snapshot_reader_map(b->reader, ram, err)
		       : restore_eager(ram, &req, NULL, err);
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

/* ---- in which ways memory can come ---- */

/* A private mapping of a file has the file's pages, and is nobody else's. */
static int check_mappable(const struct snapshot_bring *b, struct err *err)
{
	bool shared = vm_config_shared(&b->cfg, NULL);

	if (!shared && !ram_page_is_hugetlb(b->cfg.page))
		return 0;
	return err_set(err, EINVAL,
		       "%s memory cannot be mapped from the snapshot: restore "
		       "with memory eager%s",
		       shared ? "shared" : "hugetlb",
		       b->cfg.page == RAM_PAGE_1G ? ""
						  : ", lazy or working-set");
}

/* ---- memory that comes later ---- */

/* Another process's own mapping of the memory would find it missing. */
static int check_pageable(const struct snapshot_bring *b, struct err *err)
{
	const char *why = NULL;

	if (b->cfg.page == RAM_PAGE_1G)
		return err_set(err, EINVAL,
			       "memory in 1G pages cannot be brought later "
			       "(%s): restore with memory eager",
			       restore_mode_names[b->mode]);
	if (!vm_config_shared(&b->cfg, &why) || !why)
		return 0;
	return err_set(err, EINVAL,
		       "the %s device is served by another process, which "
		       "would find memory missing: it cannot be brought later "
		       "(%s), restore with memory eager",
		       why, restore_mode_names[b->mode]);
}

/* They may be of an older set, or cut short by the end of its VM. */
static void open_kept(struct snapshot_bring *b)
{
	struct err reason = ERR_INIT;
	int r = set_pages_open(&b->kept, b->reader, &b->ahead, &reason);

	if (r && r != -ENOENT && r != -ESTALE)
		log_warn("%s; memory is read instead", reason.text);
}

static int prepare_paging(struct snapshot_bring *b,
			  const struct snapshot_bring_request *req,
			  struct err *err)
{
	struct err reason = ERR_INIT;
	int r = check_pageable(b, err);

	if (r)
		return r;
	b->record_s = req->record_s;
	if (b->mode == RESTORE_LAZY || b->record_s)
		return 0;
	r = snapshot_working_set_load(b->reader, &b->ahead, &reason);
	if (!r) {
		open_kept(b);
		return 0;
	}
	/* A hint: without one it is recorded. */
	if (r != -ENOENT)
		log_warn("%s; it is recorded anew", reason.text);
	b->record_s = SNAPSHOT_RECORD_S;
	return 0;
}

/* ---- opening ---- */

static int open_all(struct snapshot_bring *b,
		    const struct snapshot_bring_request *req, struct err *err)
{
	json_t *json = NULL;
	int r = snapshot_reader_open(&b->reader, req->path, err);

	if (!r)
		r = make_config(b, req, &json, err);
	if (!r && is_paged(b->mode))
		r = prepare_paging(b, req, err);
	if (!r && b->mode == RESTORE_PRIVATE)
		r = check_mappable(b, err);
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
	b->began_ns = clock_now_ns();
	b->mode = req->mode;
	b->resume = req->resume;
	b->cancelled = b->placed.cancelled = req->cancelled;
	b->ctx = b->placed.ctx = req->ctx;
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
	ram_fini(&b->ram);
	/* Closed before they are removed. */
	vm_config_fini(&b->cfg);
	snapshot_placed_undo(&b->placed);
	set_pages_free(b->kept);
	snapshot_reader_free(b->reader);
	working_set_fini(&b->ahead);
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
	/* The working set is put into the snapshot. */
	if (!r && b->record_s)
		r = sandbox_paths_add(paths, snapshot_reader_path(b->reader),
				      SANDBOX_MAKE | SANDBOX_WRITE, true, err);
	return r;
}

/* ---- bringing it back ---- */

int snapshot_bring_load(struct snapshot_bring *b, struct err *err)
{
	int r;

	/* It comes later, or has come. */
	if (is_paged(b->mode) || b->loaded)
		return 0;
	r = vm_memory_map_ram(&b->cfg, &b->ram, err);
	if (r)
		return r;
	r = load_memory(b, &b->ram, err);
	if (r)
		ram_fini(&b->ram);
	b->loaded = !r;
	return r;
}

static void release(void *ctx)
{
	snapshot_bring_free(ctx);
}

int snapshot_bring_begin(struct vmm *v, struct snapshot_bring *b,
			 struct err *err)
{
	struct vmm_origin origin = {
		.memory = { .ram = b->loaded ? &b->ram : NULL,
			    .load = load_memory,
			    .ctx = b,
			    .began_ns = b->began_ns,
			    .mode = restore_mode_names[b->mode] },
		.release = release,
		.ctx = b,
	};
	bool resume = b->resume;
	int r;

	if (is_paged(b->mode)) {
		origin.record_s = b->record_s;
		origin.save_working_set = save_working_set;
		origin.memory.source = snapshot_reader_memory(b->reader);
		origin.memory.ahead = &b->ahead;
		origin.memory.store = b->kept ? set_pages_store(b->kept) : NULL;
		origin.memory.record = b->record_s != 0;
		origin.memory.opener = vmm_uffds(v);
	}
	origin.state = snapshot_reader_state(b->reader, &origin.state_bytes);
	r = vmm_restore(v, &b->cfg, &origin, err);
	if (r)
		return r;
	r = vmm_renew_generation_id(v, err);
	if (!r && resume)
		r = vmm_resume(v, err);
	/* Its memory may be no more: it is not to be resumed later. */
	if (r)
		(void)!vmm_delete(v, NULL);
	else
		snapshot_placed_keep(&b->placed); /* the guest's from now on */
	return r;
}
