/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/memory_stats.h"

#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "kvm/stats.h"
#include "vm/config.h"

/* ---- taking ---- */

struct kvm_list {
	struct memory_stats_kvm *entries;
	unsigned int *num;
};

static void add_kvm(void *ctx, const char *name, uint64_t value)
{
	struct kvm_list *list = ctx;
	struct memory_stats_kvm *e;

	for (unsigned int i = 0; i < *list->num; i++) {
		e = &list->entries[i];
		if (!strcmp(e->name, name)) {
			e->value += value;
			return;
		}
	}
	if (*list->num == MEMORY_STATS_MAX_KVM)
		return;
	e = &list->entries[(*list->num)++];
	snprintf(e->name, sizeof(e->name), "%s", name);
	e->value = value;
}

/* Statistics that cannot be read are not there; nothing depends on them. */
static void take_kvm(struct kvm_stats *stats, struct memory_stats_kvm *entries,
		     unsigned int *num)
{
	struct kvm_list list = { .entries = entries, .num = num };

	(void)!kvm_stats_each(stats, add_kvm, &list);
	kvm_stats_close(stats);
}

static void take_vm(struct memory_stats *s, int vm_fd)
{
	struct kvm_stats *stats;

	if (kvm_stats_open(vm_fd, &stats))
		return;
	s->has_second_stage = !coverage_read_second_stage(stats,
							  &s->second_stage);
	take_kvm(stats, s->vm, &s->num_vm);
}

static void take_vcpu(struct memory_stats *s, int stats_fd)
{
	struct kvm_stats *stats;

	if (stats_fd >= 0 && !kvm_stats_open_fd(stats_fd, &stats))
		take_kvm(stats, s->vcpus, &s->num_vcpus);
}

static void take_dirty(struct memory_stats *s, struct dirty_tracker *tracker)
{
	if (!tracker)
		return;
	s->has_dirty = true;
	s->dirty_method = dirty_method(tracker);
	s->dirty_ring_entries = dirty_ring_entries(tracker);
	dirty_stats_read(tracker, &s->dirty);
}

void memory_stats_take_kvm(struct memory_stats *s, const struct vm_memory *m,
			   const int *stats_fds, unsigned int num)
{
	memset(s, 0, sizeof(*s));
	take_vm(s, m->vm->fd);
	for (unsigned int i = 0; i < num; i++)
		take_vcpu(s, stats_fds[i]);
}

void memory_stats_take(struct memory_stats *s, const struct vm_memory *m,
		       const int *stats_fds, unsigned int num)
{
	memory_stats_take_kvm(s, m, stats_fds, num);
	s->size_bytes = ram_size(&m->ram);
	s->page = m->ram.page;
	s->populate = m->cfg->populate;
	s->method = m->method;
	s->populated = m->populated;
	histogram_read(&m->service.host_page, &s->host_page);
	histogram_read(&m->service.second_stage_page, &s->second_stage_page);
	s->has_host = !coverage_read_host(&m->ram, &s->host);
	take_dirty(s, m->dirty);
	s->has_keeper = m->has_keeper;
	if (m->keeper)
		keeper_read_stats(m->keeper, &s->keeper);
	else
		s->keeper = m->kept;
	vm_paging_read_stats(&m->paging, &s->paging);
	s->has_landed = m->has_landed;
	s->landed = m->landed;
}

uint64_t memory_stats_vcpu(const struct memory_stats *s, const char *name)
{
	for (unsigned int i = 0; i < s->num_vcpus; i++) {
		if (!strcmp(s->vcpus[i].name, name))
			return s->vcpus[i].value;
	}
	return 0;
}

/* ---- JSON ---- */

static json_t *table_json(bool known, const struct coverage_table *t)
{
	if (!known)
		return json_null();
	return json_pack("{s:I, s:I, s:I}", "4k_bytes", json_int_u64(t->by_4k),
			 "2m_bytes", json_int_u64(t->by_2m), "1g_bytes",
			 json_int_u64(t->by_1g));
}

static json_t *populate_json(const struct memory_stats *s)
{
	const struct populate_result *p = &s->populated;

	if (!p->wall_ns)
		return json_null();
	return json_pack("{s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:i, s:i}",
			 "wall_s", clock_ns_to_s(p->wall_ns), "host_s",
			 clock_ns_to_s(p->host_ns), "second_stage_s",
			 clock_ns_to_s(p->second_stage_ns), "total_bytes",
			 json_int_u64(p->total_bytes), "host_bytes",
			 json_int_u64(p->host_bytes), "second_stage_bytes",
			 json_int_u64(p->second_stage_bytes), "units",
			 json_int_u64(p->units), "threads", (int)p->threads,
			 "ports", (int)p->ports);
}

static json_t *keeper_json(const struct memory_stats *s)
{
	const struct keeper_stats *k = &s->keeper;
	json_t *o;

	if (!s->has_keeper)
		return json_null();
	o = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "zaps_seen",
		      json_int_u64(k->zaps_seen), "zapped_bytes",
		      json_int_u64(k->zapped_bytes), "coalesced_units",
		      json_int_u64(k->coalesced_units), "large_units",
		      json_int_u64(k->large_units), "refused_units",
		      json_int_u64(k->refused_units), "sparse_units",
		      json_int_u64(k->sparse_units));
	for (unsigned int w = 0; o && w < KEEPER_NUM_WORKS; w++) {
		const struct keeper_work_stats *work = &k->works[w];

		json_object_set_new(
			o, keeper_work_names[w],
			json_pack("{s:I, s:I, s:f, s:I}", "runs",
				  json_int_u64(work->runs), "bytes",
				  json_int_u64(work->bytes), "busy_s",
				  clock_ns_to_s(work->ns), "failed_bytes",
				  json_int_u64(work->failed_bytes)));
	}
	return o;
}

/* 0: it has not come to that. */
static json_t *time_json(uint64_t ns)
{
	return ns ? json_real(clock_ns_to_s(ns)) : json_null();
}

static json_t *pager_json(const struct pager_stats *p)
{
	json_t *brought = json_object();

	for (unsigned int i = 0; i < PAGER_NUM_PRIORITIES; i++)
		json_object_set_new(brought, pager_priority_names[i],
				    json_integer(json_int_u64(p->bytes[i])));
	return json_pack("{s:I, s:I, s:I, s:o, s:I, s:I, s:I, s:I, s:I, s:i, "
			 "s:i, s:o}",
			 "total_bytes", json_int_u64(p->total_bytes),
			 "zero_bytes", json_int_u64(p->zero_bytes),
			 "settled_bytes", json_int_u64(p->settled_bytes),
			 "brought_bytes", brought, "faults",
			 json_int_u64(p->faults), "zero_faults",
			 json_int_u64(p->zero_faults), "late_faults",
			 json_int_u64(p->late_faults), "failures",
			 json_int_u64(p->failures), "collapsed_units",
			 json_int_u64(p->collapsed_units), "handlers",
			 (int)p->handlers, "fillers", (int)p->fillers,
			 "service", json_histogram(&p->service));
}

static json_t *restore_json(const struct memory_stats *s)
{
	const struct vm_paging_stats *p = &s->paging;

	if (!p->mode)
		return json_null();
	return json_pack("{s:s, s:o, s:o, s:o, s:o, s:o}", "mode", p->mode,
			 "go_on_s", time_json(p->times.go_on), "working_set_s",
			 time_json(p->times.ahead), "resident_s",
			 time_json(p->times.complete), "error",
			 p->failed ? json_string(p->error.text) : json_null(),
			 "pager",
			 p->was_paged ? pager_json(&p->pager) : json_null());
}

static json_t *landed_json(const struct memory_stats *s)
{
	const struct vm_landed *l = &s->landed;
	uint64_t faults = memory_stats_vcpu(s, "pf_taken");

	if (!s->has_landed)
		return json_null();
	return json_pack("{s:I, s:I, s:I, s:I, s:I}", "page_bytes",
			 json_int_u64(l->page_bytes), "zero_bytes",
			 json_int_u64(l->zero_bytes), "second_stage_bytes",
			 json_int_u64(l->second_stage_bytes), "rounds",
			 json_int_u64(l->rounds), "second_stage_faults",
			 json_int_u64(faults > l->base_faults
					      ? faults - l->base_faults
					      : 0));
}

static json_t *dirty_json(const struct memory_stats *s)
{
	const struct dirty_stats *d = &s->dirty;

	if (!s->has_dirty)
		return json_null();
	return json_pack(
		"{s:s, s:i, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, "
		"s:f, s:f}",
		"method", dirty_method_names[s->dirty_method], "ring_entries",
		(int)s->dirty_ring_entries, "tracking", (int)d->tracking,
		"starts", json_int_u64(d->starts), "rounds",
		json_int_u64(d->rounds), "round_pages",
		json_int_u64(d->round_pages), "pages_kvm",
		json_int_u64(d->pages_kvm), "pages_vmm",
		json_int_u64(d->pages_vmm), "pages_taken",
		json_int_u64(d->pages_taken), "pages_waiting",
		json_int_u64(d->pages_waiting), "ring_full",
		json_int_u64(d->ring_full), "start_s",
		clock_ns_to_s(d->start_ns), "log_s", clock_ns_to_s(d->log_ns),
		"clear_s", clock_ns_to_s(d->clear_ns));
}

static json_t *kvm_json(const struct memory_stats_kvm *entries,
			unsigned int num)
{
	json_t *o = json_object();

	for (unsigned int i = 0; i < num; i++)
		json_object_set_new(
			o, entries[i].name,
			json_integer(json_int_u64(entries[i].value)));
	return o;
}

json_t *memory_stats_json(const struct memory_stats *s)
{
	return json_pack(
		"{s:I, s:s, s:s, s:s, s:{s:o, s:o}, s:o, s:{s:o, s:o}, s:o, "
		"s:o, s:o, s:o, s:{s:o, s:o}}",
		"size_bytes", json_int_u64(s->size_bytes), "page",
		ram_page_names[s->page], "populate",
		populate_mode_names[s->populate], "stage2",
		stage2_method_names[s->method], "coverage", "host",
		table_json(s->has_host, &s->host), "second_stage",
		table_json(s->has_second_stage, &s->second_stage), "population",
		populate_json(s), "service", "host_page",
		json_histogram(&s->host_page), "second_stage_page",
		json_histogram(&s->second_stage_page), "background",
		keeper_json(s), "restore", restore_json(s), "migration",
		landed_json(s), "dirty_log", dirty_json(s), "kvm", "vm",
		kvm_json(s->vm, s->num_vm), "vcpus",
		kvm_json(s->vcpus, s->num_vcpus));
}
