/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "x86/cpu.h"

/* A memslot has at most 2^31 - 1 pages. */
#define VM_MAX_MEMORY		    (8 * TIB)
#define VM_DEFAULT_SHUTDOWN_TIMEOUT 20

const char *const vm_action_names[2] = {
	[VM_ACTION_RESTART] = "restart",
	[VM_ACTION_STOP] = "stop",
};

const char *const vm_panic_action_names[3] = {
	[VM_PANIC_CONTINUE] = "continue",
	[VM_PANIC_RESTART] = "restart",
	[VM_PANIC_STOP] = "stop",
};

void vm_config_init(struct vm_config *cfg)
{
	*cfg = (struct vm_config){
		.num_cpus = 1,
		.threads_per_core = 1,
		.irqchip = IRQCHIP_KERNEL,
		.memory_bytes = VM_DEFAULT_MEMORY,
		.page = RAM_PAGE_THP,
		.populate = POPULATE_NONE,
		.stage2 = STAGE2_AUTO,
		.repair = true,
		.dirty_log = DIRTY_AUTO,
		.background_rate = VM_DEFAULT_RATE,
		.on_reboot = VM_ACTION_RESTART,
		.on_crash = VM_ACTION_STOP,
		.on_panic = VM_PANIC_CONTINUE,
		.shutdown_timeout_s = VM_DEFAULT_SHUTDOWN_TIMEOUT,
	};
	chardev_config_init(&cfg->serial);
}

static void device_config_fini(struct vm_device_config *dev)
{
	if (dev->config && dev->cls->config_fini)
		dev->cls->config_fini(dev->config);
	free(dev->config);
	free(dev->id);
	dev->config = NULL;
	dev->id = NULL;
}

void vm_config_fini(struct vm_config *cfg)
{
	for (unsigned int i = 0; i < cfg->num_devices; i++)
		device_config_fini(&cfg->devices[i]);
	cfg->num_devices = 0;
	chardev_config_fini(&cfg->serial);
	free(cfg->kernel);
	free(cfg->initramfs);
	free(cfg->cmdline);
	memset(cfg, 0, sizeof(*cfg));
}

static bool has_device(const struct vm_config *cfg,
		       const struct virtio_class *cls)
{
	for (unsigned int i = 0; i < cfg->num_devices; i++) {
		if (cfg->devices[i].cls == cls)
			return true;
	}
	return false;
}

int vm_config_add_device(struct vm_config *cfg, const struct virtio_class *cls,
			 const char *text, struct err *err)
{
	struct vm_device_config dev = { .cls = cls };
	int r = 0;

	if (cls->single && has_device(cfg, cls))
		return err_set(err, EINVAL, "%s may be given only once",
			       cls->option);
	if (cfg->num_devices == VM_MAX_DEVICES)
		return err_set(err, ENOSPC, "%s: more than %d devices",
			       cls->option, VM_MAX_DEVICES);
	dev.config = calloc(1, MAX(cls->config_bytes, (size_t)1));
	if (!dev.config)
		return err_set(err, ENOMEM, "out of memory");
	if (cls->config_defaults)
		cls->config_defaults(dev.config);
	if (*text)
		r = kvlist_parse(cls->option, text, cls->first_key, cls->keys,
				 cls->num_keys, dev.config, err);
	if (!r && cls->config_check) {
		r = cls->config_check(dev.config, err);
		if (r)
			err_prefix(err, "%s", cls->option);
	}
	if (r) {
		device_config_fini(&dev);
		return r;
	}
	cfg->devices[cfg->num_devices++] = dev;
	return 0;
}

static int cpus_boot(void *obj, const char *value, struct err *err)
{
	return kvlist_u32(value, 1, CPU_MAX_VCPUS,
			  &((struct vm_config *)obj)->num_cpus, err);
}

static int cpus_threads(void *obj, const char *value, struct err *err)
{
	return kvlist_u32(value, 1, 2,
			  &((struct vm_config *)obj)->threads_per_core, err);
}

static int cpus_dedicated(void *obj, const char *value, struct err *err)
{
	return kvlist_bool(value, &((struct vm_config *)obj)->dedicated_cpus,
			   err);
}

static const struct kvlist_key cpus_keys[] = {
	{ "boot", cpus_boot },
	{ "threads", cpus_threads },
	{ "dedicated", cpus_dedicated },
};

int vm_config_set_cpus(struct vm_config *cfg, const char *text, struct err *err)
{
	return kvlist_parse("--cpus", text, "boot", cpus_keys,
			    ARRAY_SIZE(cpus_keys), cfg, err);
}

static int memory_size(void *obj, const char *value, struct err *err)
{
	struct vm_config *cfg = obj;
	uint64_t bytes;
	int r = kvlist_size(value, &bytes, err);

	if (r)
		return r;
	if (bytes < VM_MIN_MEMORY || bytes > VM_MAX_MEMORY)
		return err_set(err, EINVAL, "not between 64M and 8T");
	if (!is_aligned(bytes, PAGE_2M))
		return err_set(err, EINVAL, "not a multiple of 2M");
	cfg->memory_bytes = bytes;
	return 0;
}

static int memory_page(void *obj, const char *value, struct err *err)
{
	int v, r = kvlist_enum(value, ram_page_names,
			       ARRAY_SIZE(ram_page_names), &v, err);

	if (!r)
		((struct vm_config *)obj)->page = (enum ram_page)v;
	return r;
}

static int memory_shared(void *obj, const char *value, struct err *err)
{
	return kvlist_bool(value, &((struct vm_config *)obj)->shared, err);
}

static int memory_numa(void *obj, const char *value, struct err *err)
{
	return numa_config_parse(&((struct vm_config *)obj)->numa, value, err);
}

static int memory_populate(void *obj, const char *value, struct err *err)
{
	int v, r = kvlist_enum(value, populate_mode_names,
			       ARRAY_SIZE(populate_mode_names), &v, err);

	if (!r)
		((struct vm_config *)obj)->populate = (enum populate_mode)v;
	return r;
}

static int memory_stage2(void *obj, const char *value, struct err *err)
{
	int v, r = kvlist_enum(value, stage2_method_names,
			       ARRAY_SIZE(stage2_method_names), &v, err);

	if (!r)
		((struct vm_config *)obj)->stage2 = (enum stage2_method)v;
	return r;
}

static int memory_populate_threads(void *obj, const char *value,
				   struct err *err)
{
	return kvlist_u32(value, 1, 256,
			  &((struct vm_config *)obj)->populate_threads, err);
}

static int memory_repair(void *obj, const char *value, struct err *err)
{
	return kvlist_bool(value, &((struct vm_config *)obj)->repair, err);
}

static int memory_coalesce(void *obj, const char *value, struct err *err)
{
	return kvlist_bool(value, &((struct vm_config *)obj)->coalesce, err);
}

static int memory_background_rate(void *obj, const char *value, struct err *err)
{
	return kvlist_size(value, &((struct vm_config *)obj)->background_rate,
			   err);
}

static int memory_dirty_log(void *obj, const char *value, struct err *err)
{
	int v, r = kvlist_enum(value, dirty_method_names,
			       ARRAY_SIZE(dirty_method_names), &v, err);

	if (!r)
		((struct vm_config *)obj)->dirty_log = (enum dirty_method)v;
	return r;
}

static int memory_dirty_ring(void *obj, const char *value, struct err *err)
{
	uint32_t v = 0;
	int r = kvlist_u32(value, 1, DIRTY_RING_MAX_ENTRIES, &v, err);

	if (!r && !is_pow2(v))
		return err_set(err, EINVAL, "not a power of two");
	if (!r)
		((struct vm_config *)obj)->dirty_ring = v;
	return r;
}

static const struct kvlist_key memory_keys[] = {
	{ "size", memory_size },
	{ "page", memory_page },
	{ "shared", memory_shared },
	{ "populate", memory_populate },
	{ "stage2", memory_stage2 },
	{ "populate-threads", memory_populate_threads },
	{ "repair", memory_repair },
	{ "coalesce", memory_coalesce },
	{ "background-rate", memory_background_rate },
	{ "numa", memory_numa },
	{ "dirty-log", memory_dirty_log },
	{ "dirty-ring", memory_dirty_ring },
};

int vm_config_set_memory(struct vm_config *cfg, const char *text,
			 struct err *err)
{
	return kvlist_parse("--memory", text, "size", memory_keys,
			    ARRAY_SIZE(memory_keys), cfg, err);
}

int vm_config_check(const struct vm_config *cfg, struct err *err)
{
	if (!cfg->kernel)
		return err_set(err, EINVAL,
			       "no kernel given; name one with --kernel FILE");
	if (cfg->num_cpus % cfg->threads_per_core)
		return err_set(err, EINVAL,
			       "--cpus boot=%u is not a multiple of threads=%u",
			       cfg->num_cpus, cfg->threads_per_core);
	if (cfg->dirty_ring && cfg->dirty_log != DIRTY_RING)
		return err_set(err, EINVAL,
			       "--memory dirty-ring= wants dirty-log=ring");
	if (cfg->page == RAM_PAGE_1G && !is_aligned(cfg->memory_bytes, PAGE_1G))
		return err_set(err, EINVAL,
			       "--memory page=1g wants size= a multiple of 1G");
	return 0;
}
