/* SPDX-License-Identifier: Apache-2.0 */
#include "api/route.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "api/handlers.h"
#include "api/metrics.h"
#include "base/compiler.h"
#include "virtio/virtio.h"

static const struct api_field remove_fields[] = {
	{ "id", API_STRING, true },
};

static const struct api_field populate_fields[] = {
	{ "range", API_OBJECT, false },
	{ "mode", API_STRING, false },
};

static const struct api_field snapshot_fields[] = {
	{ "destination_url", API_STRING, true },
	{ "files", API_STRING, false },
	{ "replace", API_BOOL, false },
	{ "disks", API_STRING, false },
	{ "threads", API_INTEGER, false },
	{ "parent_url", API_STRING, false },
	{ "track", API_BOOL, false },
	{ "live", API_BOOL, false },
};

static const struct api_field restore_fields[] = {
	{ "source_url", API_STRING, true }, { "memory", API_STRING, false },
	{ "name", API_STRING, false },	    { "devices", API_OBJECT, false },
	{ "resume", API_BOOL, false },	    { "record_s", API_INTEGER, false },
};

static const struct api_field send_fields[] = {
	{ "destination_url", API_STRING, true },
	{ "connections", API_INTEGER, false },
	{ "sockets", API_STRING, false },
	{ "downtime_ms", API_INTEGER, false },
	{ "bandwidth", API_INTEGER, false },
	{ "mode", API_STRING, false },
	{ "disks", API_STRING, false },
	{ "compress", API_STRING, false },
	{ "throttle", API_STRING, false },
	{ "tls", API_STRING, false },
	{ "tls_hostname", API_STRING, false },
	{ "recover", API_BOOL, false },
};

static const struct api_field receive_fields[] = {
	{ "receiver_url", API_STRING, true },
	{ "tls", API_STRING, false },
};

#define PUT_VERB(verb, fn, text)                                             \
	{                                                                    \
		.path = API_PREFIX verb, .method = "PUT", .summary = (text), \
		.changes = true, .handle = (fn),                             \
	}
#define GET_VERB(verb, fn, text)                                             \
	{                                                                    \
		.path = API_PREFIX verb, .method = "GET", .summary = (text), \
		.handle = (fn),                                              \
	}

static const struct api_route routes[] = {
	{
		.path = API_PREFIX "vmm.ping",
		.method = "GET",
		.summary = "version and process id",
		.kind = API_PING,
	},
	PUT_VERB("vmm.shutdown", api_vmm_shutdown, "end quire, and its VM"),
	{
		.path = API_PREFIX "vm.create",
		.method = "PUT",
		.summary = "make a VM of a configuration; nothing runs yet",
		.changes = true,
		.body = API_BODY_OPEN,
		.handle = api_vm_create,
	},
	PUT_VERB("vm.boot", api_vm_boot, "start the VM"),
	GET_VERB("vm.info", api_vm_info, "configuration and state"),
	GET_VERB("vm.counters", api_vm_counters, "counters of the devices"),
	PUT_VERB("vm.pause", api_vm_pause, "stop the guest where it is"),
	PUT_VERB("vm.resume", api_vm_resume, "let a paused guest go on"),
	PUT_VERB("vm.reboot", api_vm_reboot,
		 "start the VM anew, without asking the guest"),
	PUT_VERB("vm.power-button", api_vm_power_button,
		 "ask the guest to power off"),
	PUT_VERB("vm.shutdown", api_vm_shutdown,
		 "switch the VM off, without asking the guest"),
	PUT_VERB("vm.delete", api_vm_delete, "forget the VM"),
	{
		.path = API_PREFIX "vm.remove-device",
		.method = "PUT",
		.summary = "ask the guest to let a device go",
		.changes = true,
		.body = API_BODY_FIELDS,
		.fields = remove_fields,
		.num_fields = ARRAY_SIZE(remove_fields),
		.handle = api_vm_remove_device,
	},
	{
		.path = API_PREFIX "vm.populate",
		.method = "PUT",
		.summary = "work on guest memory in the background",
		.changes = true,
		.body = API_BODY_FIELDS,
		.fields = populate_fields,
		.num_fields = ARRAY_SIZE(populate_fields),
		.handle = api_vm_populate,
	},
	{
		.path = API_PREFIX "vm.snapshot",
		.method = "PUT",
		.summary = "write the VM into a directory",
		.changes = true,
		.kind = API_WORK,
		.body = API_BODY_FIELDS,
		.fields = snapshot_fields,
		.num_fields = ARRAY_SIZE(snapshot_fields),
		.handle = api_vm_snapshot,
	},
	{
		.path = API_PREFIX "vm.restore",
		.method = "PUT",
		.summary = "bring back a VM from such a directory",
		.changes = true,
		.kind = API_WORK,
		.body = API_BODY_FIELDS,
		.fields = restore_fields,
		.num_fields = ARRAY_SIZE(restore_fields),
		.handle = api_vm_restore,
	},
	{
		.path = API_PREFIX "vm.send-migration",
		.method = "PUT",
		.summary = "send the VM to another quire, while it runs",
		.changes = true,
		.kind = API_WORK,
		.body = API_BODY_FIELDS,
		.fields = send_fields,
		.num_fields = ARRAY_SIZE(send_fields),
		.handle = api_vm_send_migration,
	},
	{
		.path = API_PREFIX "vm.receive-migration",
		.method = "PUT",
		.summary = "wait for the VM that was created, from another "
			   "quire",
		.changes = true,
		.kind = API_WORK,
		.body = API_BODY_FIELDS,
		.fields = receive_fields,
		.num_fields = ARRAY_SIZE(receive_fields),
		.handle = api_vm_receive_migration,
	},
	PUT_VERB("vm.renew-generation-id", api_vm_renew_generation_id,
		 "tell the guest that it may have been copied"),
	GET_VERB("vm.memory-stats", api_vm_memory_stats,
		 "coverage, population and tracking of guest memory"),
	{
		.path = API_PREFIX "vm.events",
		.method = "GET",
		.summary = "what happens, as JSON lines, until quire ends",
		.kind = API_EVENTS,
	},
	{
		.path = "/metrics",
		.method = "GET",
		.summary = "all counters in Prometheus' text format",
		.handle = api_metrics,
		.render = api_metrics_render,
		.content_type = API_METRICS_TYPE,
	},
};

/* The i-th class of devices that can be added to a VM; NULL: no more. */
static const struct virtio_class *class_with_verb(size_t i)
{
	for (size_t c = 0; virtio_classes[c]; c++) {
		if (virtio_classes[c]->api_verb && !i--)
			return virtio_classes[c];
	}
	return NULL;
}

bool api_route_get(size_t i, struct api_route *ret)
{
	const struct virtio_class *cls;

	if (i < ARRAY_SIZE(routes)) {
		*ret = routes[i];
		return true;
	}
	cls = class_with_verb(i - ARRAY_SIZE(routes));
	if (!cls)
		return false;
	*ret = (struct api_route){
		.method = "PUT",
		.summary = cls->option_help,
		.changes = true,
		.body = API_BODY_OPEN,
		.cls = cls,
		.handle = api_vm_add_device,
	};
	snprintf(ret->path, sizeof(ret->path), API_PREFIX "vm.%s",
		 cls->api_verb);
	return true;
}

int api_route_find(const char *method, const char *path, struct api_route *ret)
{
	struct api_route r;
	int found = -ENOENT;

	for (size_t i = 0; api_route_get(i, &r); i++) {
		if (strcmp(r.path, path) != 0)
			continue;
		*ret = r;
		if (!strcmp(r.method, method))
			return 0;
		found = -EPERM;
	}
	return found;
}

const char *api_route_verb(const struct api_route *route)
{
	return strrchr(route->path, '/') + 1;
}

int api_route_by_verb(const char *verb, struct api_route *ret)
{
	static const char *const prefixes[] = { "", "vm.", "vmm." };
	size_t skip;

	for (size_t p = 0; p < ARRAY_SIZE(prefixes); p++) {
		skip = strlen(prefixes[p]);
		for (size_t i = 0; api_route_get(i, ret); i++) {
			const char *name = api_route_verb(ret);

			if (!strncmp(name, prefixes[p], skip) &&
			    !strcmp(name + skip, verb))
				return 0;
		}
	}
	return -ENOENT;
}
