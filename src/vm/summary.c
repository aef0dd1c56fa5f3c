/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/summary.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "base/clock.h"
#include "base/size.h"
#include "kvm/stats.h"
#include "mem/smaps.h"
#include "vm/machine.h"

/* Sum name over all vCPUs; statistics that do not exist count as 0. */
static uint64_t sum_vcpus(struct kvm_stats *const *stats, unsigned int num,
			  const char *name)
{
	uint64_t sum = 0, value;

	for (unsigned int i = 0; i < num; i++) {
		if (stats[i] && !kvm_stats_read(stats[i], name, &value))
			sum += value;
	}
	return sum;
}

static void take_vcpu_stats(struct vm_summary *s, struct machine *m)
{
	struct kvm_stats **stats = calloc(m->num_vcpus,
					  sizeof(struct kvm_stats *));

	if (!stats)
		return;
	for (unsigned int i = 0; i < m->num_vcpus; i++) {
		int r = kvm_stats_open(vcpu_kvm(m->vcpus[i])->fd, &stats[i]);

		s->has_kvm_stats |= !r;
	}
	s->exits = sum_vcpus(stats, m->num_vcpus, "exits");
	s->second_stage_faults = sum_vcpus(stats, m->num_vcpus, "pf_taken");
	for (unsigned int i = 0; i < m->num_vcpus; i++)
		kvm_stats_close(stats[i]);
	free(stats);
}

static void take_vm_stats(struct vm_summary *s, struct machine *m)
{
	struct kvm_stats *stats;
	uint64_t v;

	if (kvm_stats_open(m->vm.fd, &stats))
		return;
	s->pages_4k = kvm_stats_read(stats, "pages_4k", &v) ? 0 : v;
	s->pages_2m = kvm_stats_read(stats, "pages_2m", &v) ? 0 : v;
	s->pages_1g = kvm_stats_read(stats, "pages_1g", &v) ? 0 : v;
	kvm_stats_close(stats);
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
	memset(out, 0, sizeof(*out));
	snprintf(out->id, sizeof(out->id), "%s", dev->id);
	/* Names of image files may be in any encoding; JSON is UTF-8. */
	for (char *c = out->id; *c; c++)
		if ((unsigned char)*c >= 0x80 || (unsigned char)*c < 0x20)
			*c = '?';
	out->errors = atomic_load(&dev->errors);
	for (unsigned int i = 0; i < dev->num_queues; i++) {
		const struct virtio_queue *q = &dev->queues[i];

		out->requests += atomic_load(&q->requests);
		out->kicks += atomic_load(&q->kicks);
		out->interrupts += atomic_load(&q->interrupts);
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
	take_vcpu_stats(s, m);
	take_vm_stats(s, m);
	take_counters(s, m);
	s->num_devices = m->num_devices;
	for (unsigned int i = 0; i < m->num_devices; i++)
		take_device(&s->devices[i], virtio_pci_dev(m->devices[i]));
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
	if (s->populate_s > 0)
		fprintf(out, "  population           %.0f ms\n",
			s->populate_s * 1e3);
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
	fprintf(out,
		"  %-20s %llu exits, to user space: %llu "
		"port, %llu MMIO, %llu claimed by nobody\n",
		cpus, (unsigned long long)s->exits,
		(unsigned long long)s->exits_pio,
		(unsigned long long)s->exits_mmio,
		(unsigned long long)s->unclaimed);
	print_devices(s, out);
}

static json_t *devices_json(const struct vm_summary *s)
{
	json_t *array = json_array();

	for (unsigned int i = 0; i < s->num_devices; i++) {
		const struct vm_summary_device *d = &s->devices[i];

		json_array_append_new(
			array,
			json_pack("{s:s, s:I, s:I, s:I, s:I}", "id", d->id,
				  "requests", (json_int_t)d->requests, "kicks",
				  (json_int_t)d->kicks, "interrupts",
				  (json_int_t)d->interrupts, "errors",
				  (json_int_t)d->errors));
	}
	return array;
}

static json_t *summary_json(const struct vm_summary *s)
{
	json_t *init = s->has_init ? json_real(s->init_s) : json_null();

	return json_pack(
		"{s:i, s:f, s:f, s:o, s:f, s:i, s:I, s:I, s:I, s:I, s:I, s:I, "
		"s:I, s:I, s:I, s:I, s:I, s:I, s:o}",
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
		(json_int_t)s->unclaimed, "devices", devices_json(s));
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
