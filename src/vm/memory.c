/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/cpus.h"
#include "base/io.h"
#include "base/log.h"
#include "kvm/stats.h"
#include "mem/hostmem.h"
#include "vm/config.h"
#include "x86/layout.h"

/*
 * Memory that will be filled at once is refused here rather than by the OOM
 * killer half way through. Before it is mapped: hugetlb reserves pages then.
 */
static int check_host_memory(const struct vm_config *cfg, struct err *err)
{
	struct hostmem host;

	if (cfg->populate == POPULATE_NONE)
		return 0;
	hostmem_read(&host, "");
	return hostmem_check(&host, cfg->page, cfg->memory_bytes, err);
}

static int register_slots(const struct vm_memory *m, struct err *err)
{
	for (unsigned int i = 0; i < m->ram.num_regions; i++) {
		const struct ram_region *region = &m->ram.regions[i];
		int r = kvm_vm_set_slot(m->vm, region->slot, region->base.v,
					region->size,
					m->ram.base + region->base.v, 0);

		if (r < 0)
			return err_errno(err, -r,
					 "registering guest memory with KVM");
	}
	return 0;
}

/* Transparent pages of a memfd are another matter than private ones. */
static void say_small_pages(const struct vm_config *cfg, bool shared)
{
	static const char path[] =
		"/sys/kernel/mm/transparent_hugepage/shmem_enabled";
	char text[80];

	if (!shared || cfg->page != RAM_PAGE_THP ||
	    io_read_text(path, text, sizeof(text)) < 0)
		return;
	if (strstr(text, "[never]") || strstr(text, "[deny]"))
		log_info("shared memory gets 4K pages only: %s is %s", path,
			 strstr(text, "[never]") ? "never" : "deny");
}

int vm_memory_map_ram(const struct vm_config *cfg, struct ram *ret,
		      struct err *err)
{
	const struct ram_config ram = {
		.size_bytes = cfg->memory_bytes,
		.hole_start = LAYOUT_HOLE_START,
		.hole_end = LAYOUT_HOLE_END,
		.page = cfg->page,
		.shared = vm_config_shared(cfg, NULL),
		.numa = cfg->numa,
	};
	int r = check_host_memory(cfg, err);

	say_small_pages(cfg, ram.shared);
	return r ? r : ram_init(ret, &ram, err);
}

static int have_ram(struct vm_memory *m, const struct vm_memory_origin *origin,
		    struct err *err)
{
	int r;

	if (origin && origin->ram) {
		ram_move(&m->ram, origin->ram);
		return 0;
	}
	r = vm_memory_map_ram(m->cfg, &m->ram, err);
	return r || !origin ? r : origin->load(origin->ctx, &m->ram, err);
}

int vm_memory_map(struct vm_memory *m, const struct vm_config *cfg,
		  const struct vm_memory_origin *origin,
		  const struct kvm_vm *vm, struct err *err)
{
	int r;

	vm_paging_init(&m->paging);
	m->has_paging = true;
	m->paging.event = m->paging_event;
	m->paging.event_ctx = m->idle_ctx;
	m->cfg = cfg;
	m->vm = vm;
	m->method = STAGE2_NONE;
	m->track.ram = &m->ram;
	m->track.dirty = m->dirty;
	m->paging.expected = origin && origin->paged_later;
	r = have_ram(m, origin, err);
	if (!r && origin)
		r = vm_paging_start(&m->paging, &m->ram, origin, cfg->num_cpus,
				    err);
	return r ? r : register_slots(m, err);
}

/* Said once, where the second stage was asked for and cannot be had. */
static void say_degraded(const struct vm_memory *m, const char *reason)
{
	if (m->cfg->stage2 != STAGE2_NONE)
		log_warn("populate=%s fills host pages only: %s",
			 populate_mode_names[m->cfg->populate], reason);
}

static int run_population(struct vm_memory *m, struct stage2 *stage2,
			  const struct populate_watch *watch, struct err *err)
{
	const struct populate_request req = {
		.gpa = GPA(0),
		.len = m->ram.span,
		.host = true,
		.second_stage = stage2 ? stage2_filler(stage2) : NULL,
		.threads = m->cfg->populate_threads,
		.watch = watch,
		.service = &m->service,
	};

	return populate_run(&m->ram, &req, &m->populated, err);
}

/* The stub's touches are faults like any other to KVM, but not the guest's. */
static uint64_t faults_so_far(struct kvm_vcpu *const *vcpus, unsigned int num)
{
	uint64_t sum = 0, value;

	for (unsigned int i = 0; i < num; i++) {
		struct kvm_stats *stats;

		if (kvm_stats_open(vcpus[i]->fd, &stats))
			return 0;
		if (!kvm_stats_read(stats, "pf_taken", &value))
			sum += value;
		kvm_stats_close(stats);
	}
	return sum;
}

static int populate_full(struct vm_memory *m, struct kvm_vcpu *const *vcpus,
			 unsigned int num_vcpus,
			 const struct populate_watch *watch, struct err *err)
{
	const struct stage2_env env = {
		.kvm = m->vm->kvm,
		.ram = &m->ram,
		.vcpus = vcpus,
		.num_vcpus = num_vcpus,
	};
	struct stage2 *stage2;
	struct err close_err;
	int r = stage2_open(&stage2, m->cfg->stage2, &env, err), r2;

	if (r)
		return r;
	m->method = stage2_method(stage2);
	if (m->method == STAGE2_NONE)
		say_degraded(m, stage2_reason(stage2));
	r = run_population(m, stage2, watch, err);
	if (m->method == STAGE2_STUB)
		m->populate_faults = faults_so_far(vcpus, num_vcpus);
	r2 = stage2_close(stage2, &close_err);
	if (r2 && !r && err)
		*err = close_err;
	return r ? r : r2;
}

int vm_memory_populate(struct vm_memory *m, struct kvm_vcpu *const *vcpus,
		       unsigned int num_vcpus,
		       const struct populate_watch *watch, struct err *err)
{
	switch (m->cfg->populate) {
	case POPULATE_HOST:
		return run_population(m, NULL, watch, err);
	case POPULATE_FULL:
		return populate_full(m, vcpus, num_vcpus, watch, err);
	case POPULATE_NONE:
	case POPULATE_BACKGROUND:
		break;
	}
	return 0;
}

static bool wants_repair(const struct vm_config *cfg)
{
	return cfg->repair && (cfg->populate == POPULATE_FULL ||
			       cfg->populate == POPULATE_BACKGROUND);
}

static bool wants_keeper(const struct vm_config *cfg)
{
	return wants_repair(cfg) || cfg->coalesce ||
	       cfg->populate == POPULATE_BACKGROUND;
}

static unsigned int num_background_threads(const struct vm_config *cfg)
{
	return cfg->populate_threads ? cfg->populate_threads : cpus_allowed();
}

/*
 * The ioctl is the one method that works beside a running guest. Background
 * work without the second stage is still worth something.
 */
static int open_background(struct vm_memory *m, struct err *err)
{
	const struct stage2_env env = {
		.kvm = m->vm->kvm,
		.ram = &m->ram,
		.vcpus = m->helpers.list,
		.num_vcpus = m->helpers.num,
	};
	bool populates = m->cfg->populate == POPULATE_BACKGROUND;
	struct err reason;
	int r = stage2_open(&m->background, STAGE2_IOCTL, &env, &reason);

	if (!r && populates)
		m->method = STAGE2_IOCTL;
	if (r == -ENOTSUP) {
		if (populates)
			say_degraded(m, reason.text);
		return 0;
	}
	if (r && err)
		*err = reason;
	return r;
}

int vm_memory_prepare_keeper(struct vm_memory *m, const struct cpu_model *model,
			     unsigned int first_id, struct err *err)
{
	if ((!wants_keeper(m->cfg) && !m->cfg->may_populate_later &&
	     !m->paging.pager && !m->paging.expected) ||
	    m->cfg->stage2 == STAGE2_NONE)
		return 0;
	stage2_helpers_init(&m->helpers, m->vm, model, first_id,
			    num_background_threads(m->cfg));
	return m->helpers.num ? open_background(m, err) : 0;
}

static int start_keeper(struct vm_memory *m, struct err *err)
{
	const struct keeper_config cfg = {
		.ram = &m->ram,
		.second_stage = m->background ? stage2_filler(m->background)
					      : NULL,
		.vm_fd = m->vm->fd,
		.threads = num_background_threads(m->cfg),
		.rate_bytes_per_s = m->cfg->background_rate,
		.watch = wants_repair(m->cfg) && m->background,
		.coalesce_every_s = m->cfg->coalesce ? COALESCE_EVERY_S : 0,
		.idle = m->idle,
		.idle_ctx = m->idle_ctx,
	};
	int r = keeper_new(&m->keeper, &cfg, err);

	m->has_keeper = !r;
	if (r || !m->background || !m->paging.was_paged)
		return r;
	atomic_store(&m->paging.keeper, m->keeper);
	/* What came before it was there. */
	keeper_request(m->keeper, KEEPER_REPAIR, GPA(0), m->ram.span);
	return 0;
}

int vm_memory_request(struct vm_memory *m, enum keeper_work work,
		      struct gpa start, uint64_t len, struct err *err)
{
	int r = m->keeper ? 0 : start_keeper(m, err);

	if (!r)
		keeper_request(m->keeper, work, start, len);
	return r;
}

bool vm_memory_is_idle(const struct vm_memory *m)
{
	return !m->keeper || !keeper_wait_idle(m->keeper, 0);
}

int vm_memory_start(struct vm_memory *m, struct err *err)
{
	bool follows = m->paging.pager && m->background;
	int r = follows || wants_keeper(m->cfg) ? start_keeper(m, err) : 0;

	/* What follows is not to be asked for by who waits for none of it. */
	if (!r && m->cfg->populate == POPULATE_BACKGROUND && !m->paging.fed)
		keeper_request(m->keeper, KEEPER_POPULATE, GPA(0), m->ram.span);
	return r;
}

/*
 * The ioctl alone: a stub would put its code where memory is just arriving. The
 * method is not the configuration's to choose, for nothing was asked for.
 */
int vm_memory_begin_landing(struct vm_memory *m, struct kvm_vcpu *const *vcpus,
			    unsigned int num_vcpus,
			    const struct second_stage_filler **ret_filler,
			    struct err *err)
{
	struct stage2_env env = {
		.kvm = m->vm->kvm,
		.ram = &m->ram,
		.num_vcpus = num_vcpus,
	};
	struct err reason = ERR_INIT;
	int r;

	*ret_filler = NULL;
	if (m->cfg->stage2 == STAGE2_NONE)
		return 0;
	/* Borrowed until it is closed, the caller's list may be gone then. */
	m->landing_vcpus = calloc(num_vcpus, sizeof(void *));
	if (!m->landing_vcpus)
		return err_set(err, ENOMEM, "out of memory");
	memcpy(m->landing_vcpus, vcpus, num_vcpus * sizeof(void *));
	env.vcpus = m->landing_vcpus;
	r = stage2_open(&m->landing, STAGE2_IOCTL, &env, &reason);
	if (r == -ENOTSUP) {
		log_info("migration: memory is not mapped in the second stage "
			 "ahead of the guest: %s",
			 reason.text);
		return 0;
	}
	if (r && err)
		*err = reason;
	if (!r) {
		m->method = STAGE2_IOCTL;
		*ret_filler = stage2_filler(m->landing);
	}
	return r;
}

int vm_memory_end_landing(struct vm_memory *m, struct err *err)
{
	int r = stage2_close(take_ptr(m->landing), err);

	free(take_ptr(m->landing_vcpus));
	return r;
}

int vm_memory_page(struct vm_memory *m, const struct vm_memory_origin *origin,
		   struct err *err)
{
	int r = vm_memory_end_landing(m, err);

	return r ? r
		 : vm_paging_start(&m->paging, &m->ram, origin,
				   m->cfg->num_cpus, err);
}

void vm_memory_stop(struct vm_memory *m)
{
	/* First: the keeper's threads may be among those that wait for it. */
	vm_paging_stop(&m->paging);
	atomic_store(&m->paging.keeper, NULL);
	if (m->keeper)
		keeper_read_stats(m->keeper, &m->kept);
	keeper_free(m->keeper);
	m->keeper = NULL;
	/* Never run, so in no state that could not be given back. */
	(void)!vm_memory_end_landing(m, NULL);
	(void)!stage2_close(m->background, NULL);
	m->background = NULL;
	stage2_helpers_fini(&m->helpers);
}

void vm_memory_fini(struct vm_memory *m)
{
	vm_memory_stop(m);
	if (m->has_paging)
		vm_paging_fini(&m->paging);
	m->has_paging = false;
	vm_track_fini(&m->track);
	dirty_free(m->dirty);
	m->dirty = NULL;
	ram_fini(&m->ram);
}
