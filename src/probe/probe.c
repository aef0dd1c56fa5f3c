/* SPDX-License-Identifier: Apache-2.0 */
#include "probe/probe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "kvm/stats.h"
#include "probe/image.h"
#include "probe/vcpu.h"
#include "x86/cpu.h"
#include "x86/layout.h"
#include "x86/start.h"

/*
 * Theory of operation. The shared page and the slots are host memory that both
 * sides map. A slot changes hands with the vCPU: probe_start() writes it while
 * the vCPU is parked, the payload reads and answers it, and probe_wait() copies
 * the answer once the vCPU is parked again. KVM_RUN orders both directions on
 * the vCPU's thread, and the vCPU's lock orders that thread with the caller.
 */
struct probe {
	struct probe_config cfg;
	struct kvm kvm;
	struct kvm_vm vm;
	struct ram ram;
	struct probe_layout layout;
	struct cpu_model *model;
	struct probe_shared *shared;
	struct probe_slot *slots;
	struct probe_times *times;
	struct probe_vcpu *vcpus;
	unsigned int num_vcpus;	    /* initialised entries of vcpus */
	uint64_t tsc_khz;	    /* 0: unknown */
	uint32_t tick_scale;	    /* for the payload; 0: unknown */
	struct kvm_stats *vm_stats; /* opened on first use, as the vCPUs' */
	bool restored;
};

static int fill_ram(struct probe *p, struct err *err)
{
	int r;

	if (p->cfg.ram_restore) {
		r = p->cfg.ram_restore(p->cfg.ctx, &p->ram, err);
		p->restored = !r;
		return r;
	}
	r = probe_layout_write(&p->layout, &p->ram, probe_payload,
			       probe_payload_size);
	return r ? err_errno(err, -r, "probe guest: loading the payload") : 0;
}

static int create_ram(struct probe *p, struct err *err)
{
	const struct probe_config *cfg = &p->cfg;
	struct ram_config rc = {
		.size_bytes = p->layout.ram_bytes,
		.hole_start = LAYOUT_HOLE_START,
		.hole_end = LAYOUT_HOLE_END,
		.page = cfg->page,
		.shared = cfg->shared,
	};
	int r;

	if (cfg->page == RAM_PAGE_1G)
		rc.size_bytes = align_up(rc.size_bytes, PAGE_1G);
	r = ram_init(&p->ram, &rc, err);
	if (r)
		return r;
	r = fill_ram(p, err);
	if (r)
		return r;
	p->shared = mem_map_range(&p->ram, GPA(PROBE_VA_SHARED),
				  sizeof(*p->shared), MEM_WRITE);
	p->slots = mem_map_range(&p->ram, GPA(PROBE_VA_SLOTS),
				 cfg->num_vcpus * sizeof(*p->slots), MEM_WRITE);
	p->times = mem_map_range(&p->ram, GPA(p->layout.times),
				 cfg->num_vcpus * sizeof(*p->times), MEM_WRITE);
	BUG_ON(!p->shared || !p->slots || !p->times);
	for (unsigned int i = 0; i < cfg->num_vcpus; i++) {
		p->slots[i].index = i;
		p->slots[i].times = p->layout.times + i * sizeof(*p->times);
	}
	for (unsigned int i = 0; i < p->ram.num_regions; i++) {
		const struct ram_region *region = &p->ram.regions[i];

		r = kvm_vm_set_slot(&p->vm, region->slot, region->base.v,
				    region->size, p->ram.base + region->base.v,
				    cfg->slot_flags);
		if (r)
			return err_errno(
				err, -r,
				"probe guest: giving KVM %llu MiB of "
				"memory at %#llx",
				(unsigned long long)(region->size / MIB),
				(unsigned long long)region->base.v);
	}
	return 0;
}

static int create_vcpu(struct probe *p, unsigned int i, struct err *err)
{
	struct probe_vcpu *v = &p->vcpus[i];
	struct start_flat64 start = {
		.pml4 = p->layout.tables,
		.rip = PROBE_VA_CODE,
		.rsp = probe_layout_stack_top(&p->layout, i),
		.rdi = PROBE_VA_SLOTS + i * sizeof(struct probe_slot),
		.cpl = 3,
	};
	int r;

	probe_vcpu_init(v, &p->cfg);
	p->num_vcpus++;
	r = kvm_vcpu_create(&v->kvm, &p->vm, i, err);
	if (r)
		return r;
	r = cpu_model_apply(p->model, &v->kvm, false, err);
	if (r)
		return r;
	r = start_load_flat64(&v->kvm, &p->ram, GPA(PROBE_VA_GDT), &start);
	if (r)
		return err_errno(err, -r,
				 "probe guest: loading the registers of vCPU "
				 "%u",
				 i);
	return probe_vcpu_start_thread(v, err);
}

static int create_vcpus(struct probe *p, struct err *err)
{
	struct cpu_config cpu = {
		.num_cpus = p->cfg.num_vcpus,
		.threads_per_core = 1,
	};
	uint64_t scale;
	int r = cpu_model_new(&p->model, &p->kvm, &cpu, err);

	if (r)
		return r;
	p->vcpus = calloc(p->cfg.num_vcpus, sizeof(*p->vcpus));
	if (!p->vcpus)
		return err_set(err, ENOMEM, "probe guest: out of memory");
	for (unsigned int i = 0; i < p->cfg.num_vcpus; i++) {
		r = create_vcpu(p, i, err);
		if (r)
			return r;
	}
	r = kvm_ioctl_val(p->vcpus[0].kvm.fd, KVM_GET_TSC_KHZ, 0);
	p->tsc_khz = r > 0 ? (uint64_t)r : 0;
	/* From 4 MHz to 16 THz it fits. */
	if (p->tsc_khz) {
		scale = (1000000ull << PROBE_TICK_SHIFT) / p->tsc_khz;
		p->tick_scale = scale <= UINT32_MAX ? (uint32_t)scale : 0;
	}
	return 0;
}

static int build(struct probe *p, struct err *err)
{
	const struct probe_config *cfg = &p->cfg;
	int r;

	r = probe_layout_compute(&p->layout, cfg->num_vcpus, cfg->guest_page,
				 cfg->test_bytes, err);
	if (r)
		return r;
	r = kvm_open(&p->kvm, cfg->kvm_path ?: KVM_DEVICE_PATH, err);
	if (r)
		return r;
	r = kvm_vm_create(&p->vm, &p->kvm, err);
	if (r)
		return r;
	if (cfg->vm_setup) {
		r = cfg->vm_setup(cfg->ctx, &p->vm, err);
		if (r)
			return r;
	}
	r = create_ram(p, err);
	if (r)
		return r;
	return create_vcpus(p, err);
}

int probe_new(struct probe **ret, const struct probe_config *cfg,
	      struct err *err)
{
	struct probe *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return err_set(err, ENOMEM, "probe guest: out of memory");
	p->cfg = *cfg;
	p->kvm.fd = p->vm.fd = -1;
	r = build(p, err);
	if (r) {
		probe_free(p);
		return r;
	}
	*ret = p;
	return 0;
}

void probe_free(struct probe *p)
{
	if (!p)
		return;
	kvm_stats_close(p->vm_stats);
	for (unsigned int i = 0; i < p->num_vcpus; i++) {
		kvm_stats_close(p->vcpus[i].stats);
		probe_vcpu_fini(&p->vcpus[i]);
	}
	free(p->vcpus);
	cpu_model_free(p->model);
	kvm_vm_close(&p->vm);
	if (p->restored && p->cfg.ram_gone)
		p->cfg.ram_gone(p->cfg.ctx);
	ram_fini(&p->ram);
	kvm_close(&p->kvm);
	free(p);
}

unsigned int probe_num_vcpus(const struct probe *p)
{
	return p->num_vcpus;
}

const struct probe_layout *probe_layout(const struct probe *p)
{
	return &p->layout;
}

const struct ram *probe_ram(const struct probe *p)
{
	return &p->ram;
}

const struct kvm_vm *probe_vm(const struct probe *p)
{
	return &p->vm;
}

struct kvm_vcpu *probe_vcpu(struct probe *p, unsigned int i)
{
	BUG_ON(i >= p->num_vcpus);
	return &p->vcpus[i].kvm;
}

const struct cpu_model *probe_cpu_model(const struct probe *p)
{
	return p->model;
}

pid_t probe_thread_id(struct probe *p, unsigned int i)
{
	BUG_ON(i >= p->num_vcpus);
	return probe_vcpu_tid(&p->vcpus[i]);
}

static int check_command(const struct probe *p, const struct probe_command *cmd,
			 struct err *err)
{
	if (cmd->op > PROBE_OP_SCATTER)
		return err_set(err, EINVAL, "probe command %u: unknown",
			       cmd->op);
	if (!is_aligned(cmd->start | cmd->stride, PROBE_MIN_STRIDE))
		return err_set(err, EINVAL,
			       "probe command %u: start and stride must be "
			       "multiples of %llu bytes",
			       cmd->op, PROBE_MIN_STRIDE);
	if (cmd->flags & PROBE_F_TIMED) {
		if (cmd->op != PROBE_OP_READ && cmd->op != PROBE_OP_WRITE)
			return err_set(err, EINVAL,
				       "probe command %u: cannot be timed",
				       cmd->op);
		if (!p->tick_scale)
			return err_set(err, ENOTSUP,
				       "probe guest: this KVM does not tell "
				       "how fast the guest's clock (TSC) is");
	}
	if (cmd->flags & PROBE_F_ABSOLUTE) {
		if (cmd->op != PROBE_OP_READ && cmd->op != PROBE_OP_FAULT)
			return err_set(err, EINVAL,
				       "probe command %u: takes no absolute "
				       "address",
				       cmd->op);
		return 0;
	}
	if (!range_ok(cmd->start, cmd->len, p->layout.test_bytes))
		return err_set(err, EINVAL,
			       "probe command %u: range %#llx+%#llx is outside "
			       "the test area",
			       cmd->op, (unsigned long long)cmd->start,
			       (unsigned long long)cmd->len);
	return 0;
}

static bool any_running(struct probe *p)
{
	for (unsigned int i = 0; i < p->num_vcpus; i++) {
		if (probe_vcpu_state(&p->vcpus[i]) == PROBE_VCPU_RUNNING)
			return true;
	}
	return false;
}

int probe_start(struct probe *p, unsigned int i,
		const struct probe_command *cmd, struct err *err)
{
	int r;

	BUG_ON(i >= p->num_vcpus);
	r = check_command(p, cmd, err);
	if (r)
		return r;
	if (probe_vcpu_state(&p->vcpus[i]) == PROBE_VCPU_IDLE) {
		if (!any_running(p)) {
			__atomic_store_n(&p->shared->stop, 0, __ATOMIC_SEQ_CST);
			__atomic_store_n(&p->shared->barrier_arrived, 0,
					 __ATOMIC_SEQ_CST);
			mem_mark_dirty(&p->ram, GPA(PROBE_VA_SHARED),
				       sizeof(*p->shared));
		}
		p->slots[i].command = *cmd;
		p->slots[i].command.tick_scale = p->tick_scale;
		mem_mark_dirty(&p->ram,
			       GPA(PROBE_VA_SLOTS + i * sizeof(*p->slots)),
			       sizeof(*p->slots));
	}
	return probe_vcpu_go(&p->vcpus[i], cmd->op == PROBE_OP_EXIT, err);
}

static uint64_t ticks_to_ns(const struct probe *p, uint64_t ticks)
{
	if (!p->tsc_khz)
		return 0;
	return (uint64_t)((unsigned __int128)ticks * 1000000 / p->tsc_khz);
}

int probe_wait(struct probe *p, unsigned int i, uint64_t timeout_ns,
	       struct probe_outcome *ret, struct err *err)
{
	struct probe_outcome out = { 0 };
	struct probe_vcpu *v;
	int r;

	BUG_ON(i >= p->num_vcpus);
	v = &p->vcpus[i];
	r = probe_vcpu_join(v, timeout_ns, err);
	if (r)
		return r;
	out.guest = p->slots[i].result;
	if (out.guest.status == PROBE_BAD_COMMAND)
		return err_set(err, EPROTO,
			       "probe vCPU %u: the payload does not know "
			       "command %u",
			       i, p->slots[i].command.op);
	out.wall_ns = v->finished_ns - v->entered_ns;
	out.guest_ns = ticks_to_ns(p, out.guest.tsc_end - out.guest.tsc_start);
	if (!out.guest_ns)
		out.guest_ns = out.wall_ns;
	if (ret)
		*ret = out;
	return 0;
}

int probe_run(struct probe *p, unsigned int i, const struct probe_command *cmd,
	      uint64_t timeout_ns, struct probe_outcome *ret, struct err *err)
{
	int r = probe_start(p, i, cmd, err);

	return r ? r : probe_wait(p, i, timeout_ns, ret, err);
}

void probe_read_times(const struct probe *p, unsigned int i,
		      struct histogram_snapshot *ret)
{
	struct probe_times times;

	BUG_ON(i >= p->num_vcpus);
	times = p->times[i];
	*ret = (struct histogram_snapshot){ .sum = times.sum,
					    .max = times.max };
	memcpy(ret->buckets, times.buckets, sizeof(ret->buckets));
	for (unsigned int b = 0; b < HISTOGRAM_BUCKETS; b++)
		ret->count += times.buckets[b];
	ret->min = ret->count ? ~times.max_complement : 0;
}

/* vCPU i's part of the range of cmd. */
static struct probe_command share_of(const struct probe *p, unsigned int i,
				     const struct probe_command *cmd)
{
	uint64_t each = align_down(cmd->len / p->num_vcpus, PAGE_4K);
	struct probe_command part = *cmd;

	part.flags |= PROBE_F_BARRIER;
	part.barrier_count = p->num_vcpus;
	part.start += i * each;
	part.len = i + 1 < p->num_vcpus ? each : cmd->len - i * each;
	return part;
}

int probe_run_all(struct probe *p, const struct probe_command *cmd,
		  uint64_t timeout_ns, struct probe_outcome *outcomes,
		  struct err *err)
{
	uint64_t began = clock_now_ns(), spent;
	unsigned int started = 0;
	int r = check_command(p, cmd, err), r2;

	for (; !r && started < p->num_vcpus; started++) {
		struct probe_command part = share_of(p, started, cmd);

		r = probe_start(p, started, &part, err);
		if (r)
			break;
	}
	/* Those at the barrier would wait for the missing ones for ever. */
	if (r && started)
		probe_stop(p);
	for (unsigned int i = 0; i < started; i++) {
		spent = clock_now_ns() - began;
		r2 = probe_wait(p, i,
				timeout_ns > spent ? timeout_ns - spent : 0,
				outcomes ? &outcomes[i] : NULL, r ? NULL : err);
		if (r2 && !r) {
			r = r2;
			probe_stop(p);
		}
	}
	return r;
}

void probe_stop(struct probe *p)
{
	__atomic_store_n(&p->shared->stop, 1, __ATOMIC_SEQ_CST);
	mem_mark_dirty(&p->ram, GPA(PROBE_VA_SHARED), sizeof(*p->shared));
}

/* Faults of the payload's own pages and of table walks take well under this. */
#define WARM_UP_TIMEOUT_NS (60 * NSEC_PER_SEC)

int probe_warm_up(struct probe *p, struct err *err)
{
	struct probe_command nop = { .op = PROBE_OP_NOP };
	/* Of an empty range: it touches nothing but the times. */
	struct probe_command timed = { .op = PROBE_OP_READ,
				       .flags = PROBE_F_TIMED,
				       .passes = 1 };
	struct probe_command tables = {
		.op = PROBE_OP_READ,
		.flags = PROBE_F_ABSOLUTE,
		.start = p->layout.tables,
		.len = p->layout.tables_bytes,
		.stride = PAGE_4K,
		.passes = 1,
	};
	int r = probe_run_all(p, &nop, WARM_UP_TIMEOUT_NS, NULL, err);

	if (!r && p->tick_scale)
		r = probe_run_all(p, &timed, WARM_UP_TIMEOUT_NS, NULL, err);
	return r ? r : probe_run(p, 0, &tables, WARM_UP_TIMEOUT_NS, NULL, err);
}

static int open_counters(struct probe *p)
{
	int r = 0;

	if (!p->vm_stats)
		r = kvm_stats_open(p->vm.fd, &p->vm_stats);
	for (unsigned int i = 0; !r && i < p->num_vcpus; i++) {
		if (!p->vcpus[i].stats)
			r = kvm_stats_open(p->vcpus[i].kvm.fd,
					   &p->vcpus[i].stats);
	}
	return r;
}

int probe_read_counters(struct probe *p, struct probe_counters *ret)
{
	struct probe_counters c = { 0 };
	uint64_t value;
	int r = open_counters(p);

	for (unsigned int i = 0; !r && i < p->num_vcpus; i++) {
		r = kvm_stats_read(p->vcpus[i].stats, "pf_taken", &value);
		if (!r)
			c.faults += value;
	}
	if (r)
		return r;
	c.has_pages = !kvm_stats_read(p->vm_stats, "pages_4k", &c.pages_4k) &&
		      !kvm_stats_read(p->vm_stats, "pages_2m", &c.pages_2m) &&
		      !kvm_stats_read(p->vm_stats, "pages_1g", &c.pages_1g);
	*ret = c;
	return 0;
}
