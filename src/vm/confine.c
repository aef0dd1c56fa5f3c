/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/confine.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "boot/boot.h"
#include "device/chardev.h"
#include "device/outq.h"
#include "device/terminal.h"
#include "kvm/kvm.h"
#include "mem/keeper.h"
#include "mem/pager.h"
#include "mem/restore.h"
#include "vm/throttle.h"
#include "vm/vcpu.h"
#include "vm/vmm_priv.h"

/* Besides those of the virtio devices, which their classes name. */
static const struct thread_class *const own_classes[] = {
	&vcpu_thread_class,	    &populate_thread_class,
	&keeper_thread_class,	    &restore_thread_class,
	&outq_thread_class,	    &pager_handler_thread_class,
	&pager_filler_thread_class, &vmm_keep_thread_class,
	&throttle_thread_class,
};

static size_t count(const struct thread_class *const *list)
{
	size_t n = 0;

	while (list && list[n])
		n++;
	return n;
}

int vm_thread_classes(const struct thread_class *const *more,
		      const struct thread_class ***ret, size_t *ret_num)
{
	size_t num = ARRAY_SIZE(own_classes) + count(more);
	const struct thread_class **list;

	for (size_t i = 0; virtio_classes[i]; i++)
		num += count(virtio_classes[i]->thread_classes);
	list = calloc(num, sizeof(struct thread_class *));
	if (!list)
		return -ENOMEM;
	num = 0;
	for (size_t i = 0; i < ARRAY_SIZE(own_classes); i++)
		list[num++] = own_classes[i];
	for (size_t i = 0; virtio_classes[i]; i++)
		for (size_t j = 0; j < count(virtio_classes[i]->thread_classes);
		     j++)
			list[num++] = virtio_classes[i]->thread_classes[j];
	for (size_t i = 0; i < count(more); i++)
		list[num++] = more[i];
	*ret = list;
	*ret_num = num;
	return 0;
}

static size_t add_extra(struct sandbox_extra extras[VM_MAX_EXTRAS], size_t num,
			const struct thread_class *cls,
			const struct thread_class *more)
{
	if (!more)
		return num;
	BUG_ON(num == VM_MAX_EXTRAS);
	extras[num] = (struct sandbox_extra){ .cls = cls, .more = more };
	return num + 1;
}

size_t vm_thread_extras(struct sandbox_extra extras[VM_MAX_EXTRAS])
{
	size_t num = 0;

	for (size_t i = 0; virtio_classes[i]; i++) {
		num = add_extra(extras, num, &vcpu_thread_class,
				virtio_classes[i]->vcpu_calls);
		num = add_extra(extras, num, &vm_control_class,
				virtio_classes[i]->control_calls);
	}
	return num;
}

/* ---- what is opened once, with all rights there are ---- */

/* A VM that comes back needs them when it reboots: then it is told. */
static int open_boot_files(struct vm_config *cfg, bool may_lack,
			   struct err *err)
{
	const struct boot_config boot = {
		.kernel = cfg->kernel,
		.initramfs = cfg->initramfs,
	};
	int r;

	if (!cfg->kernel || cfg->files)
		return 0;
	cfg->files = malloc(sizeof(*cfg->files));
	if (!cfg->files)
		return err_set(err, ENOMEM, "out of memory");
	r = boot_files_open(&boot, cfg->files, err);
	if (r)
		free(take_ptr(cfg->files));
	if (!r || !may_lack)
		return r;
	log_warn("%s; the guest cannot reboot", err->text);
	return 0;
}

static int open_all(struct vm_config *cfg, bool comes_back, struct err *err)
{
	int r = open_boot_files(cfg, comes_back, err);

	if (!r && !cfg->chardev)
		r = chardev_new(&cfg->chardev, &cfg->serial, err);
	for (unsigned int i = 0; !r && i < cfg->num_devices; i++) {
		const struct virtio_class *cls = cfg->devices[i].cls;

		if (cls->config_open)
			r = cls->config_open(cfg->devices[i].config, err);
	}
	return r;
}

/* ---- what is opened by name, at every start or later ---- */

/* Of the kernel's own file systems; what is not there is done without. */
static const struct {
	const char *path;
	unsigned int access;
} system_paths[] = {
	/* Statistics and page tables of this process. */
	{ "/proc/self", SANDBOX_READ },
	/* What the host has left. */
	{ "/proc/meminfo", SANDBOX_READ },
	{ "/sys/fs/cgroup", SANDBOX_READ },
	{ "/sys/kernel/mm", SANDBOX_READ },
	{ "/sys/devices/system/node", SANDBOX_READ },
	{ "/sys/devices/system/cpu", SANDBOX_READ },
	/* How the second stage is made, and of block devices the queue. */
	{ "/sys/module", SANDBOX_READ },
	{ "/sys/dev/block", SANDBOX_READ },
	{ "/sys/devices", SANDBOX_READ },
	{ "/dev/null", SANDBOX_READ | SANDBOX_WRITE },
	{ "/dev/urandom", SANDBOX_READ },
};

static int add_config(struct sandbox_paths *paths, const struct vm_config *cfg,
		      struct err *err)
{
	int r = 0;

	if (cfg->serial.path)
		r = sandbox_paths_add_parent(paths, cfg->serial.path,
					     SANDBOX_REMOVE, true, err);
	for (unsigned int i = 0; !r && i < cfg->num_devices; i++) {
		const struct virtio_class *cls = cfg->devices[i].cls;

		if (cls->config_paths)
			r = cls->config_paths(cfg->devices[i].config, paths,
					      err);
	}
	return r;
}

static int add_paths(struct sandbox_paths *paths,
		     const struct vm_confinement *c, struct err *err)
{
	int r = sandbox_paths_add(paths, KVM_DEVICE_PATH,
				  SANDBOX_READ | SANDBOX_WRITE | SANDBOX_IOCTL,
				  true, err);

	for (size_t i = 0; !r && i < ARRAY_SIZE(system_paths); i++)
		r = sandbox_paths_add(paths, system_paths[i].path,
				      system_paths[i].access, true, err);
	if (!r)
		r = sandbox_paths_join(paths, c->paths, err);
	return r || !c->cfg ? r : add_config(paths, c->cfg, err);
}

static int enter(const struct vm_confinement *c,
		 const struct sandbox_config *cfg,
		 const struct sandbox_paths *paths, struct err *err)
{
	struct sandbox_plan plan = {
		.cfg = cfg,
		.paths = paths,
		.control = &vm_control_class,
		.dying = terminal_restore,
	};
	struct sandbox_extra extras[VM_MAX_EXTRAS];
	const struct thread_class **classes;
	int r = vm_thread_classes(c->classes, &classes, &plan.num_classes);

	if (r)
		return err_errno(err, -r, "sandbox");
	plan.classes = classes;
	plan.extras = extras;
	plan.num_extras = vm_thread_extras(extras);
	r = sandbox_enter(&plan, err);
	free(classes);
	return r;
}

/* Who may name files later is to find them, unless told where they will be. */
static enum sandbox_landlock choose_landlock(const struct vm_confinement *c)
{
	const struct sandbox_config *cfg = c->sandbox;

	if (cfg->landlock != SANDBOX_LANDLOCK_AUTO)
		return cfg->landlock;
	if (!c->expects_more || cfg->rules.num || cfg->jail)
		return SANDBOX_LANDLOCK_ON;
	log_info("landlock: off, for a client of --api-socket may name any "
		 "file; --landlock-rules says which, and turns it on");
	return SANDBOX_LANDLOCK_OFF;
}

int vm_confine(const struct vm_confinement *c, struct err *err)
{
	struct sandbox_config cfg = *c->sandbox;
	struct sandbox_paths paths = { .num = 0 };
	int r = c->cfg ? open_all(c->cfg, c->comes_back, err) : 0;

	/* Otherwise on the first object, by whatever thread: it reads a file.
	 */
	json_object_seed(0);

	cfg.landlock = choose_landlock(c);
	if (!r)
		r = add_paths(&paths, c, err);
	if (!r)
		r = enter(c, &cfg, &paths, err);
	sandbox_paths_fini(&paths);
	return r;
}
