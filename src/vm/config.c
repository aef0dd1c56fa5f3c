/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "boot/boot.h"

#define VM_DEFAULT_SHUTDOWN_TIMEOUT 20

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

void vm_config_fini(struct vm_config *cfg)
{
	while (cfg->num_devices)
		vm_config_remove_device(cfg, cfg->devices[0].id);
	chardev_free(cfg->chardev);
	chardev_config_fini(&cfg->serial);
	free(cfg->name);
	if (cfg->files)
		boot_files_close(cfg->files);
	free(cfg->files);
	free(cfg->kernel);
	free(cfg->initramfs);
	free(cfg->cmdline);
	memset(cfg, 0, sizeof(*cfg));
}

bool vm_config_shared(const struct vm_config *cfg, const char **ret_why)
{
	const char *why = NULL;

	for (unsigned int i = 0; i < cfg->num_devices && !why; i++) {
		if (cfg->devices[i].cls->needs_shared_memory)
			why = cfg->devices[i].cls->name;
	}
	if (ret_why)
		*ret_why = why;
	return cfg->shared || why;
}

static int check_cpus(const struct vm_config *cfg, struct err *err)
{
	if (cfg->num_cpus % cfg->threads_per_core)
		return err_set(err, EINVAL,
			       "--cpus boot=%u is not a multiple of threads=%u",
			       cfg->num_cpus, cfg->threads_per_core);
	if (cfg->max_cpus && cfg->max_cpus != cfg->num_cpus)
		return err_set(err, EINVAL,
			       "--cpus max=%u: vCPUs cannot be added to a "
			       "running VM; say the same as boot=%u",
			       cfg->max_cpus, cfg->num_cpus);
	return 0;
}

static int check_memory(const struct vm_config *cfg, struct err *err)
{
	const char *why;

	if (cfg->dirty_ring && cfg->dirty_log != DIRTY_RING)
		return err_set(err, EINVAL,
			       "--memory dirty-ring= wants dirty-log=ring");
	if (cfg->page == RAM_PAGE_1G && !is_aligned(cfg->memory_bytes, PAGE_1G))
		return err_set(err, EINVAL,
			       "--memory page=1g wants size= a multiple of 1G");
	if (cfg->words.shared_off && vm_config_shared(cfg, &why))
		return err_set(err, EINVAL,
			       "--memory shared=off: the %s device needs "
			       "shared memory; leave shared= out",
			       why);
	return 0;
}

/* Two that read one terminal would each get some of what is typed. */
static int check_terminal(const struct vm_config *cfg, struct err *err)
{
	const char *first = cfg->serial.kind == CHARDEV_TTY ? "--serial" : NULL;

	for (unsigned int i = 0; i < cfg->num_devices; i++) {
		const struct virtio_class *cls = cfg->devices[i].cls;

		if (!vm_device_wants_terminal(&cfg->devices[i]))
			continue;
		if (first)
			return err_set(err, EINVAL,
				       "%s and %s both want the terminal; give "
				       "one of them null, file=PATH or "
				       "socket=PATH",
				       first, cls->option);
		first = cls->option;
	}
	return 0;
}

int vm_config_check(const struct vm_config *cfg, struct err *err)
{
	int r;

	if (!cfg->kernel)
		return err_set(err, EINVAL,
			       "no kernel given; name one with --kernel FILE "
			       "(in JSON: payload.kernel)");
	r = check_cpus(cfg, err);
	if (!r)
		r = check_memory(cfg, err);
	return r ? r : check_terminal(cfg, err);
}
