/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/summary.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/size.h"
#include "mem/smaps.h"
#include "vm/machine.h"

static void take_memory_stats(struct vm_summary *s, struct machine *m,
			      void (*take)(struct memory_stats *s,
					   const struct vm_memory *m,
					   const int *stats_fds,
					   unsigned int num))
{
	int *fds = calloc(m->num_vcpus, sizeof(*fds));
	const struct coverage_table *second = &s->memory.second_stage;

	for (unsigned int i = 0; fds && i < m->num_vcpus; i++)
		fds[i] = vcpu_stats_fd(m->vcpus[i]);
	take(&s->memory, &m->memory, fds, fds ? m->num_vcpus : 0);
	free(fds);
	s->has_kvm_stats = s->memory.num_vcpus > 0;
	s->exits = memory_stats_vcpu(&s->memory, "exits");
	s->second_stage_faults = memory_stats_vcpu(&s->memory, "pf_taken") -
				 m->memory.populate_faults;
	s->pages_4k = second->by_4k / PAGE_4K;
	s->pages_2m = second->by_2m / PAGE_2M;
	s->pages_1g = second->by_1g / PAGE_1G;
}

static void take_counters(struct vm_summary *s, struct machine *m)
{
	s->exits_pio = s->exits_mmio = s->unclaimed = 0;
	for (unsigned int i = 0; i < m->num_vcpus; i++) {
		const struct vcpu_counters *c = vcpu_counters(m->vcpus[i]);

		s->exits_pio += atomic_load(&c->exits_pio);
		s->exits_mmio += atomic_load(&c->exits_mmio);
		s->unclaimed += atomic_load(&c->unclaimed);
	}
}

static void take_device(struct vm_summary_device *out,
			const struct virtio_dev *dev)
{
	struct machine_gone_devices count = { 0 };

	memset(out, 0, sizeof(*out));
	snprintf(out->id, sizeof(out->id), "%s", dev->id);
	/* Names of image files may be in any encoding; JSON is UTF-8. */
	for (char *c = out->id; *c; c++)
		if ((unsigned char)*c >= 0x80 || (unsigned char)*c < 0x20)
			*c = '?';
	snprintf(out->config_id, sizeof(out->config_id), "%s", dev->config_id);
	machine_device_count(dev, &count);
	out->requests = count.requests;
	out->kicks = count.kicks;
	out->interrupts = count.interrupts;
	out->errors = count.errors;
	BUG_ON(dev->num_counters > VIRTIO_MAX_COUNTERS);
	out->num_own = dev->num_counters;
	for (unsigned int i = 0; i < dev->num_counters; i++) {
		out->own[i].name = dev->counters[i].name;
		out->own[i].value = atomic_load(dev->counters[i].value);
	}
}

static void take_memory(struct vm_summary *s, struct machine *m)
{
	struct smaps_usage usage = { 0 };

	if (smaps_read(&m->memory.ram, &usage))
		return;
	s->guest_resident_bytes = usage.guest_resident_bytes;
	s->guest_huge_bytes = usage.guest_huge_bytes;
	s->overhead_bytes = usage.other_resident_bytes;
}

static void take_devices(struct vm_summary *s, struct machine *m)
{
	s->num_devices = m->num_devices;
	for (unsigned int i = 0; i < m->num_devices; i++)
		take_device(&s->devices[i], virtio_pci_dev(m->devices[i]));
	s->gone = m->gone;
}

void vm_summary_take_counters(struct vm_summary *s, struct machine *m)
{
	s->boots++;
	take_memory_stats(s, m, memory_stats_take_kvm);
	take_counters(s, m);
	take_devices(s, m);
}

void vm_summary_take(struct vm_summary *s, struct machine *m, uint64_t start_ns,
		     uint64_t built_ns)
{
	uint64_t init_ns = atomic_load(&m->milestone.at_ns[MILESTONE_INIT]);

	s->boots++;
	s->build_s = clock_ns_to_s(built_ns - start_ns);
	s->run_s = clock_ns_to_s(clock_now_ns() - built_ns);
	s->has_init = init_ns != 0;
	s->init_s = init_ns ? clock_ns_to_s(init_ns - start_ns) : 0;
	s->populate_s = clock_ns_to_s(m->memory.populated.wall_ns);
	s->num_cpus = m->num_vcpus;
	s->memory_bytes = ram_size(&m->memory.ram);
	take_memory(s, m);
	take_memory_stats(s, m, memory_stats_take);
	take_counters(s, m);
	take_devices(s, m);
}

static void print_devices(const struct vm_summary *s, FILE *out)
{
	for (unsigned int i = 0; i < s->num_devices; i++) {
		const struct vm_summary_device *d = &s->devices[i];

		fprintf(out,
			"  %-20s %llu requests, %llu kicks, %llu interrupts, "
			"%llu errors\n",
			d->id, (unsigned long long)d->requests,
			(unsigned long long)d->kicks,
			(unsigned long long)d->interrupts,
			(unsigned long long)d->errors);
	}
	if (s->gone.num)
		fprintf(out,
			"  %-20s %llu requests, %llu kicks, %llu interrupts, "
			"%llu errors in %u devices\n",
			"removed", (unsigned long long)s->gone.requests,
			(unsigned long long)s->gone.kicks,
			(unsigned long long)s->gone.interrupts,
			(unsigned long long)s->gone.errors, s->gone.num);
}

static void print_population(const struct vm_summary *s, FILE *out)
{
	const struct memory_stats *m = &s->memory;

	if (!m->populated.wall_ns)
		return;
	fprintf(out, "  population           %.0f ms on %u threads",
		s->populate_s * 1e3, m->populated.threads);
	fprintf(out, "; host pages %.0f ms, %llu ns per 4K",
		clock_ns_to_s(m->populated.host_ns) * 1e3,
		(unsigned long long)histogram_percentile(&m->host_page, 50));
	if (m->method != STAGE2_NONE)
		fprintf(out, "; second stage (%s) %.0f ms, %llu ns",
			stage2_method_names[m->method],
			clock_ns_to_s(m->populated.second_stage_ns) * 1e3,
			(unsigned long long)histogram_percentile(
				&m->second_stage_page, 50));
	fprintf(out, "\n");
}

static void print_restore(const struct vm_summary *s, FILE *out)
{
	const struct vm_paging_stats *p = &s->memory.paging;
	char fault[32], ahead[32], sweep[32];

	if (!p->mode)
		return;
	fprintf(out, "  restore              %s: went on after %.1f ms",
		p->mode, clock_ns_to_s(p->times.go_on) * 1e3);
	if (p->times.ahead)
		fprintf(out, ", working set after %.1f ms",
			clock_ns_to_s(p->times.ahead) * 1e3);
	if (p->times.complete)
		fprintf(out, ", resident after %.1f ms",
			clock_ns_to_s(p->times.complete) * 1e3);
	fprintf(out, "\n");
	if (!p->was_paged)
		return;
	fprintf(out,
		"  pager                %llu faults (half in %llu us, 99 %% in "
		"%llu us): %s; working set %s, behind %s\n",
		(unsigned long long)p->pager.faults,
		(unsigned long long)histogram_percentile(&p->pager.service,
							 50) /
			1000,
		(unsigned long long)histogram_percentile(&p->pager.service,
							 99) /
			1000,
		size_format(p->pager.bytes[PAGER_FAULT], fault, sizeof(fault)),
		size_format(p->pager.bytes[PAGER_WORKING_SET], ahead,
			    sizeof(ahead)),
		size_format(p->pager.bytes[PAGER_SWEEP], sweep, sizeof(sweep)));
	if (p->failed)
		fprintf(out, "  memory               %s\n", p->error.text);
}

static void print_background(const struct vm_summary *s, FILE *out)
{
	const struct keeper_stats *k = &s->memory.keeper;
	char text[KEEPER_NUM_WORKS][32], zapped[32];

	if (!s->memory.has_keeper)
		return;
	for (unsigned int w = 0; w < KEEPER_NUM_WORKS; w++)
		size_format(k->works[w].bytes, text[w], sizeof(text[w]));
	fprintf(out,
		"  background           populated %s, coalesced %llu pages of "
		"2M; second stage lost %s, %s looked at again\n",
		text[KEEPER_POPULATE], (unsigned long long)k->coalesced_units,
		size_format(k->zapped_bytes, zapped, sizeof(zapped)),
		text[KEEPER_REPAIR]);
}

void vm_summary_print(const struct vm_summary *s, FILE *out)
{
	char size[32], resident[32], huge[32], overhead[32], cpus[32];

	snprintf(cpus, sizeof(cpus), "%u vCPU%s", s->num_cpus,
		 s->num_cpus == 1 ? "" : "s");
	fprintf(out, "\nquire summary\n");
	fprintf(out, "  time                 build %.0f ms", s->build_s * 1e3);
	if (s->has_init)
		fprintf(out, ", guest init after %.0f ms", s->init_s * 1e3);
	fprintf(out, ", ran %.2f s", s->run_s);
	if (s->boots > 1)
		fprintf(out, " (boot %u)", s->boots);
	fprintf(out,
		"\n  guest memory         %s, %s resident, %s of it in huge "
		"pages\n",
		size_format(s->memory_bytes, size, sizeof(size)),
		size_format(s->guest_resident_bytes, resident,
			    sizeof(resident)),
		size_format(s->guest_huge_bytes, huge, sizeof(huge)));
	print_population(s, out);
	print_restore(s, out);
	fprintf(out, "  quire itself         %s beyond guest memory\n",
		size_format(s->overhead_bytes, overhead, sizeof(overhead)));
	if (s->has_kvm_stats)
		fprintf(out,
			"  second stage         %llu faults; %llu 4K, %llu 2M, "
			"%llu 1G entries\n",
			(unsigned long long)s->second_stage_faults,
			(unsigned long long)s->pages_4k,
			(unsigned long long)s->pages_2m,
			(unsigned long long)s->pages_1g);
	print_background(s, out);
	fprintf(out,
		"  %-20s %llu exits, to user space: %llu "
		"port, %llu MMIO, %llu claimed by nobody\n",
		cpus, (unsigned long long)s->exits,
		(unsigned long long)s->exits_pio,
		(unsigned long long)s->exits_mmio,
		(unsigned long long)s->unclaimed);
	print_devices(s, out);
}

json_t *vm_summary_device_json(const struct vm_summary_device *d)
{
	json_t *o = json_pack("{s:I, s:I, s:I, s:I}", "requests",
			      json_int_u64(d->requests), "kicks",
			      json_int_u64(d->kicks), "interrupts",
			      json_int_u64(d->interrupts), "errors",
			      json_int_u64(d->errors));

	for (unsigned int i = 0; i < d->num_own; i++)
		json_object_set_new(
			o, d->own[i].name,
			json_integer(json_int_u64(d->own[i].value)));
	return o;
}

static json_t *devices_json(const struct vm_summary *s)
{
	json_t *array = json_array();

	for (unsigned int i = 0; i < s->num_devices; i++) {
		json_t *o = vm_summary_device_json(&s->devices[i]);

		json_object_set_new(o, "id", json_string(s->devices[i].id));
		json_array_append_new(array, o);
	}
	return array;
}

static json_t *gone_json(const struct vm_summary *s)
{
	return json_pack("{s:i, s:I, s:I, s:I, s:I}", "devices",
			 (int)s->gone.num, "requests",
			 (json_int_t)s->gone.requests, "kicks",
			 (json_int_t)s->gone.kicks, "interrupts",
			 (json_int_t)s->gone.interrupts, "errors",
			 (json_int_t)s->gone.errors);
}

static json_t *summary_json(const struct vm_summary *s)
{
	json_t *init = s->has_init ? json_real(s->init_s) : json_null();

	return json_pack(
		"{s:i, s:f, s:f, s:o, s:f, s:i, s:I, s:I, s:I, s:I, s:I, s:I, "
		"s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o}",
		"boots", (int)s->boots, "build_s", s->build_s, "run_s",
		s->run_s, "init_s", init, "populate_s", s->populate_s, "vcpus",
		(int)s->num_cpus, "memory_bytes", (json_int_t)s->memory_bytes,
		"guest_resident_bytes", (json_int_t)s->guest_resident_bytes,
		"guest_huge_bytes", (json_int_t)s->guest_huge_bytes,
		"overhead_bytes", (json_int_t)s->overhead_bytes, "exits",
		(json_int_t)s->exits, "second_stage_faults",
		(json_int_t)s->second_stage_faults, "pages_4k",
		(json_int_t)s->pages_4k, "pages_2m", (json_int_t)s->pages_2m,
		"pages_1g", (json_int_t)s->pages_1g, "exits_pio",
		(json_int_t)s->exits_pio, "exits_mmio",
		(json_int_t)s->exits_mmio, "exits_unclaimed",
		(json_int_t)s->unclaimed, "devices", devices_json(s),
		"removed_devices", gone_json(s), "memory",
		memory_stats_json(&s->memory));
}

/* "PATH.<pid>.tmp" */
static int temporary_name(const char *path, char *buf, size_t size,
			  struct err *err)
{
	if (snprintf(buf, size, "%s.%d.tmp", path, (int)getpid()) >= (int)size)
		return err_set(err, ENAMETOOLONG, "%s: name too long", path);
	return 0;
}

int vm_summary_check_path(const char *path, struct err *err)
{
	char temporary[PATH_MAX];
	int fd, r = temporary_name(path, temporary, sizeof(temporary), err);

	if (r)
		return r;
	fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	if (fd < 0)
		return err_errno(err, errno, "--summary-json %s: cannot write",
				 path);
	close(fd);
	unlink(temporary);
	return 0;
}

int vm_summary_write_json(const struct vm_summary *s, const char *path,
			  struct err *err)
{
	char temporary[PATH_MAX];
	json_t *root = summary_json(s);
	int r;

	if (!root)
		return err_set(err, ENOMEM, "out of memory");
	r = temporary_name(path, temporary, sizeof(temporary), err);
	if (!r && (json_dump_file(root, temporary, JSON_INDENT(1)) ||
		   rename(temporary, path))) {
		r = err_errno(err, errno ? errno : EIO,
			      "--summary-json %s: cannot write", path);
		unlink(temporary);
	}
	json_decref(root);
	return r;
}
