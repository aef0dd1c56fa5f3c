/* SPDX-License-Identifier: Apache-2.0 */
#include "api/handlers.h"

#include <errno.h>

#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/kvlist.h"
#include "base/thread.h"
#include "migrate/receive.h"
#include "migrate/send.h"
#include "migrate/tls.h"
#include "migrate/uri.h"
#include "migrate/wire.h"
#include "sandbox/sandbox.h"
#include "snapshot/take.h"
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

/* ---- snapshots ---- */

/* A file that could not be opened: may be for the sandbox. */
static int explain(int r, struct err *err)
{
	const char *why = r ? sandbox_explain(r) : NULL;

	if (why)
		err_append(err, why);
	return r;
}

/* A path, or as Cloud Hypervisor has it "file:///path". */
static int path_of_url(const struct api_call *call, const char *field,
		       const char **ret, struct err *err)
{
	static const char scheme[] = "file://";
	const char *url = json_string_value(json_object_get(call->body, field));

	if (!strncmp(url, scheme, strlen(scheme)))
		url += strlen(scheme);
	else if (strstr(url, "://"))
		return err_set(err, EINVAL, "%s: only file:// is known", field);
	if (url[0] != '/')
		return err_set(err, EINVAL, "%s: not an absolute path", field);
	*ret = url;
	return 0;
}

/* The field, if there is one, as an index of names. */
static int enum_field(const struct api_call *call, const char *field,
		      const char *const *names, size_t num, int *ret,
		      struct err *err)
{
	const char *text = json_string_value(
		json_object_get(call->body, field));
	int r = text ? kvlist_enum(text, names, num, ret, err) : 0;

	if (r)
		err_prefix(err, "%s", field);
	return r;
}

static json_t *snapshot_reply(const struct snapshot_take_result *s)
{
	const char *layout = s->memory.layout == SNAPSHOT_DELTA ? "delta"
								: "whole";

	return json_pack("{s:s, s:s, s:s*, s:I, s:I, s:I, s:I, s:I, s:I}", "id",
			 s->id, "layout", layout, "parent_id",
			 s->parent_id[0] ? s->parent_id : NULL, "memory_bytes",
			 json_int_u64(s->memory.total_bytes), "data_bytes",
			 json_int_u64(s->memory.data_bytes), "waited_bytes",
			 json_int_u64(s->memory.waited_units * MEM_UNIT_BYTES),
			 "pause_us", json_int_u64(s->paused_ns / 1000),
			 "memory_us", json_int_u64(s->memory.wall_ns / 1000),
			 "total_us", json_int_u64(s->wall_ns / 1000));
}

int api_vm_snapshot(struct vmm *vmm, void *arg, struct err *err)
{
	struct api_call *call = arg;
	const json_t *body = call->body;
	struct snapshot_take_request req = {
		.files = json_string_value(json_object_get(body, "files")),
		.replace = json_is_true(json_object_get(body, "replace")),
		.live = json_is_true(json_object_get(body, "live")),
		.threads = (unsigned int)json_integer_value(
			json_object_get(body, "threads")),
	};
	const json_t *track = json_object_get(body, "track");
	struct snapshot_take_result result;
	int disks = SNAPSHOT_DISKS_CLONE;
	int r = path_of_url(call, "destination_url", &req.path, err);

	req.track = json_is_true(track);
	req.untrack = json_is_false(track);
	if (!r && json_is_string(json_object_get(body, "parent_url")))
		r = path_of_url(call, "parent_url", &req.parent, err);
	if (!r)
		r = enum_field(call, "disks", snapshot_disk_policy_names,
			       ARRAY_SIZE(snapshot_disk_policy_names), &disks,
			       err);
	if (r)
		return r;
	req.disks = (enum snapshot_disk_policy)disks;
	r = snapshot_take(vmm, &req, &result, err);
	if (!r)
		call->reply = snapshot_reply(&result);
	return explain(r, err);
}

static bool is_ending(void *ctx)
{
	return vmm_is_ending(ctx);
}

/* Before a disk is made for nothing. */
static int check_empty(struct vmm *vmm, void *arg __unused_arg, struct err *err)
{
	return vmm_state(vmm) == VMM_EMPTY
		       ? 0
		       : err_set(err, EEXIST,
				 "restore: there is a VM; delete it first");
}

static int begin_restore(struct vmm *vmm, void *arg, struct err *err)
{
	struct snapshot_bring **bring = arg;

	return snapshot_bring_begin(vmm, take_ptr(*bring), err);
}

/* Only the end needs the control thread. */
static int restore(struct vmm *vmm, const struct snapshot_bring_request *req,
		   struct err *err)
{
	struct snapshot_bring *bring = NULL;
	int r = vmm_call(vmm, check_empty, NULL, err);

	if (!r)
		r = snapshot_bring_open(&bring, req, err);
	if (!r)
		r = snapshot_bring_load(bring, err);
	if (!r)
		r = vmm_call(vmm, begin_restore, &bring, err);
	snapshot_bring_free(bring);
	return explain(r, err);
}

int api_vm_restore(struct vmm *vmm, void *arg, struct err *err)
{
	struct api_call *call = arg;
	const json_t *body = call->body;
	struct snapshot_bring_request req = {
		.name = json_string_value(json_object_get(body, "name")),
		.devices = json_object_get(body, "devices"),
		.resume = json_is_true(json_object_get(body, "resume")),
		.cancelled = is_ending,
		.ctx = vmm,
	};
	json_int_t record = json_integer_value(
		json_object_get(body, "record_s"));
	int mode = RESTORE_PRIVATE;
	int r = path_of_url(call, "source_url", &req.path, err);

	if (!r)
		r = enum_field(call, "memory", restore_mode_names,
			       ARRAY_SIZE(restore_mode_names), &mode, err);
	if (r)
		return r;
	if (record < 0 || record > SNAPSHOT_MAX_RECORD_S)
		return err_set(err, EINVAL, "record_s: not from 0 to %u",
			       SNAPSHOT_MAX_RECORD_S);
	req.record_s = (unsigned int)record;
	req.mode = (enum restore_mode)mode;
	return restore(vmm, &req, err);
}

/* ---- migration ---- */

static json_t *migration_reply(const struct migrate_send_result *m)
{
	return json_pack(
		"{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:i, "
		"s:i, s:I, s:I, s:b}",
		"downtime_us", json_int_u64(m->downtime_ns / 1000), "total_us",
		json_int_u64(m->total_ns / 1000), "page_bytes",
		json_int_u64(m->page_bytes), "zero_bytes",
		json_int_u64(m->zero_bytes), "disk_bytes",
		json_int_u64(m->disk_bytes), "disk_zero_bytes",
		json_int_u64(m->disk_zero_bytes), "compressed_from_bytes",
		json_int_u64(m->pack_from_bytes), "compressed_to_bytes",
		json_int_u64(m->pack_to_bytes), "wire_bytes",
		json_int_u64(m->wire_bytes), "last_bytes",
		json_int_u64(m->last_bytes), "rounds", (int)m->rounds,
		"connections", (int)m->streams, "throttle_percent",
		(int)m->throttle_percent, "followed_bytes",
		json_int_u64(m->followed_bytes), "urgent_pages",
		json_int_u64(m->urgent_pages), "ended_there",
		(int)m->ended_there);
}

/* A number in [min, max], if there is one. */
static int number_field(const struct api_call *call, const char *field,
			uint64_t min, uint64_t max, uint64_t *ret,
			struct err *err)
{
	const json_t *value = json_object_get(call->body, field);
	uint64_t n = (uint64_t)json_integer_value(value);

	if (!value)
		return 0;
	if (n < min || n > max)
		return err_set(err, EINVAL, "%s: not from %llu to %llu", field,
			       (unsigned long long)min,
			       (unsigned long long)max);
	*ret = n;
	return 0;
}

static int migration_request(const struct api_call *call,
			     struct migrate_send_request *ret, struct err *err)
{
	const json_t *body = call->body;
	const char *throttle = json_string_value(
		json_object_get(body, "throttle"));
	uint64_t streams = 0, downtime = 0;
	int pack = PACK_NONE, mode = MIGRATE_PRECOPY, disks = 0;
	int r = number_field(call, "connections", 1, WIRE_MAX_STREAMS, &streams,
			     err);

	*ret = (struct migrate_send_request){
		.uri = json_string_value(
			json_object_get(body, "destination_url")),
		.sockets = json_string_value(json_object_get(body, "sockets")),
		.tls_dir = json_string_value(json_object_get(body, "tls")),
		.tls_hostname = json_string_value(
			json_object_get(body, "tls_hostname")),
	};
	if (!r)
		r = number_field(call, "downtime_ms", MIGRATE_MIN_DOWNTIME_MS,
				 MIGRATE_MAX_DOWNTIME_MS, &downtime, err);
	if (!r)
		r = number_field(call, "bandwidth", 1, INT64_MAX,
				 &ret->rate_bytes_per_s, err);
	if (!r)
		r = enum_field(call, "compress", pack_method_names,
			       PACK_NUM_METHODS, &pack, err);
	if (!r)
		r = enum_field(call, "mode", migrate_mode_names,
			       MIGRATE_NUM_MODES, &mode, err);
	if (!r)
		r = enum_field(call, "disks", migrate_disks_names,
			       MIGRATE_NUM_DISKS, &disks, err);
	ret->mode = (enum migrate_mode)mode;
	ret->copies_disks = disks;
	if (!r && throttle && !hold_back_parse(throttle, &ret->throttle))
		r = err_set(err, EINVAL,
			    "throttle %.40s: not off, auto, or a percentage "
			    "from 1 to 99",
			    throttle);
	ret->pack = (enum pack_method)pack;
	ret->streams = (unsigned int)streams;
	ret->downtime_ms = (unsigned int)downtime;
	return r;
}

int api_vm_send_migration(struct vmm *vmm, void *arg, struct err *err)
{
	struct api_call *call = arg;
	struct migrate_send_request req;
	struct migrate_send_result result;
	int r = migration_request(call, &req, err);

	if (!r && json_is_true(json_object_get(call->body, "recover")))
		r = migrate_recover(vmm, &req, &result, err);
	else if (!r)
		r = migrate_send(vmm, &req, &result, err);
	if (!r)
		call->reply = migration_reply(&result);
	return r;
}

static int check_created(struct vmm *vmm, void *arg, struct err *err)
{
	if (vmm_state(vmm) == VMM_CREATED)
		return 0;
	return err_set(err, vmm_state(vmm) == VMM_EMPTY ? ENOENT : EBADFD,
		       "receive-migration: the VM that comes is to be created "
		       "first, as it is there, and not booted");
}

static int migration_credentials(const struct api_call *call,
				 struct tls_credentials **ret, struct err *err)
{
	const char *dir = json_string_value(json_object_get(call->body, "tls"));
	int r = dir ? tls_credentials_load(ret, TLS_DESTINATION, dir, err) : 0;

	if (r == -EACCES && thread_is_caged())
		err_append(err, "a confined quire reads no credentials; quire "
				"run --incoming URI --tls DIR does, before it "
				"is");
	return r;
}

int api_vm_receive_migration(struct vmm *vmm, void *arg, struct err *err)
{
	struct api_call *call = arg;
	const char *text = json_string_value(
		json_object_get(call->body, "receiver_url"));
	struct unix_listener listener = UNIX_LISTENER_INIT;
	struct tls_credentials *tls = NULL;
	struct migrate_uri uri;
	int r = migrate_uri_parse(&uri, text, err);

	if (!r && uri.kind == MIGRATE_TCP && thread_is_caged())
		r = err_set(err, EPERM,
			    "%s: this process is confined and opens no network "
			    "connections; quire run --incoming %s does, "
			    "before it is",
			    text, text);
	if (!r)
		r = migration_credentials(call, &tls, err);
	if (!r)
		r = vmm_call(vmm, check_created, NULL, err);
	if (!r)
		r = explain(migrate_uri_listen(&uri, &listener, err), err);
	if (!r)
		r = migrate_receive(vmm, listener.fd, tls, err);
	unix_listener_close(&listener);
	tls_credentials_free(tls);
	return r;
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
