/* SPDX-License-Identifier: Apache-2.0 */
#include "api/metrics.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/compiler.h"
#include "version.h"
#include "vm/vmm.h"

enum type {
	COUNTER,
	GAUGE,
	UNTYPED,
	HISTOGRAM,
};

static const char *const type_names[] = { "counter", "gauge", "untyped",
					  "histogram" };

struct out {
	FILE *file;
	char family[96]; /* whose HELP and TYPE were printed last */
};

/* Samples of a family stand together, behind one HELP and one TYPE. */
static void print_family(struct out *o, const char *name, enum type type,
			 const char *help)
{
	if (!strcmp(o->family, name))
		return;
	snprintf(o->family, sizeof(o->family), "%s", name);
	fprintf(o->file, "# HELP %s %s\n# TYPE %s %s\n", name, help, name,
		type_names[type]);
}

/* Integers in full: %g would round a counter. */
static void print_value(struct out *o, const json_t *value)
{
	if (json_is_integer(value))
		fprintf(o->file, " %lld\n",
			(long long)json_integer_value(value));
	else if (json_is_boolean(value))
		fprintf(o->file, " %d\n", json_is_true(value));
	else
		fprintf(o->file, " %.9g\n", json_number_value(value));
}

/* In quotes, as the format wants it. */
static void print_label(struct out *o, const char *name, const char *value)
{
	fprintf(o->file, "{%s=\"", name);
	for (; *value; value++) {
		if (*value == '\n')
			fputs("\\n", o->file);
		else if (*value == '"' || *value == '\\')
			fprintf(o->file, "\\%c", *value);
		else
			fputc(*value, o->file);
	}
	fputs("\"}", o->file);
}

/* ---- numbers at a fixed place ---- */

struct metric {
	const char *name, *labels; /* labels: as printed, or "" */
	enum type type;
	const char *path; /* keys in the facts, with dots between */
	const char *help;
};

#define COVERED	  "quire_memory_covered_bytes"
#define POPULATED "quire_populate_bytes"
#define POP_TIME  "quire_populate_seconds"
#define BG_RUNS	  "quire_background_runs_total"
#define BG_BYTES  "quire_background_bytes_total"
#define BG_TIME	  "quire_background_busy_seconds_total"
#define BG_FAILED "quire_background_failed_bytes_total"
#define BG_UNITS  "quire_background_units_total"
#define DIRTY	  "quire_dirty_"
#define D_PAGES	  DIRTY "pages_total"
#define D_TIME	  DIRTY "seconds_total"

#define HELP_COVERED   "Guest memory mapped, by page table and size of entry."
#define HELP_POPULATED "Memory that the population before the start filled."
#define HELP_POP_TIME  "How long the population before the start took."
#define HELP_BG_RUNS   "Pieces of background work on memory done."
#define HELP_BG_BYTES  "Guest memory that background work went over."
#define HELP_BG_TIME   "Time that background work on memory took."
#define HELP_BG_FAILED "Guest memory that background work could not do."
#define HELP_BG_UNITS  "2 MiB units that coalescing looked at, by outcome."
#define HELP_D_PAGES   "Dirty pages, by who reported them or what became of them."
#define HELP_D_TIME    "Time spent on dirty tracking."

#define COVERAGE(table, page)                                              \
	{                                                                  \
		COVERED, "{table=\"" table "\",page=\"" page "\"}", GAUGE, \
			"memory.coverage." table "." page "_bytes",        \
			HELP_COVERED                                       \
	}
#define WORK(name, unit, help, work)                             \
	{                                                        \
		name, "{work=\"" work "\"}", COUNTER,            \
			"memory.background." work "." unit, help \
	}
#define WORKS(name, unit, help)                                               \
	WORK(name, unit, help, "repair"), WORK(name, unit, help, "populate"), \
		WORK(name, unit, help, "coalesce")
#define POPULATE(name, stage, key, help)               \
	{                                              \
		name, "{stage=\"" stage "\"}", GAUGE,  \
			"memory.population." key, help \
	}
#define UNITS(outcome)                                                       \
	{                                                                    \
		BG_UNITS, "{outcome=\"" outcome "\"}", COUNTER,              \
			"memory.background." outcome "_units", HELP_BG_UNITS \
	}
#define DIRTY_PAGES(kind)                                            \
	{                                                            \
		D_PAGES, "{kind=\"" kind "\"}", COUNTER,             \
			"memory.dirty_log.pages_" kind, HELP_D_PAGES \
	}
#define DIRTY_TIME(step)                                           \
	{                                                          \
		D_TIME, "{step=\"" step "\"}", COUNTER,            \
			"memory.dirty_log." step "_s", HELP_D_TIME \
	}
#define DIRTY_ONE(name, type, key, help)                            \
	{                                                           \
		DIRTY name, "", type, "memory.dirty_log." key, help \
	}

/* Of one name together. */
static const struct metric metrics[] = {
	{ "quire_memory_size_bytes", "", GAUGE, "memory.size_bytes",
	  "Guest memory, as the guest sees it." },
	COVERAGE("host", "4k"),
	COVERAGE("host", "2m"),
	COVERAGE("host", "1g"),
	COVERAGE("second_stage", "4k"),
	COVERAGE("second_stage", "2m"),
	COVERAGE("second_stage", "1g"),
	POPULATE(POP_TIME, "all", "wall_s", HELP_POP_TIME),
	POPULATE(POP_TIME, "host", "host_s", HELP_POP_TIME),
	POPULATE(POP_TIME, "second_stage", "second_stage_s", HELP_POP_TIME),
	POPULATE(POPULATED, "all", "total_bytes", HELP_POPULATED),
	POPULATE(POPULATED, "host", "host_bytes", HELP_POPULATED),
	POPULATE(POPULATED, "second_stage", "second_stage_bytes",
		 HELP_POPULATED),
	{ "quire_populate_threads", "", GAUGE, "memory.population.threads",
	  "Threads that the population before the start used." },
	WORKS(BG_RUNS, "runs", HELP_BG_RUNS),
	WORKS(BG_BYTES, "bytes", HELP_BG_BYTES),
	WORKS(BG_TIME, "busy_s", HELP_BG_TIME),
	WORKS(BG_FAILED, "failed_bytes", HELP_BG_FAILED),
	UNITS("coalesced"),
	UNITS("large"),
	UNITS("refused"),
	UNITS("sparse"),
	{ "quire_second_stage_zaps_total", "", COUNTER,
	  "memory.background.zaps_seen",
	  "Times that the host was seen to take mappings out of the second "
	  "stage." },
	{ "quire_second_stage_zapped_bytes_total", "", COUNTER,
	  "memory.background.zapped_bytes",
	  "Memory that the second stage was seen to lose." },
	DIRTY_ONE("tracking", GAUGE, "tracking",
		  "1 while changes of memory are tracked."),
	DIRTY_ONE("starts_total", COUNTER, "starts",
		  "Times that tracking began."),
	DIRTY_ONE("rounds_total", COUNTER, "rounds",
		  "Rounds of collecting dirty pages."),
	DIRTY_ONE("round_pages", GAUGE, "round_pages",
		  "Dirty pages that the last round found."),
	DIRTY_ONE("waiting_pages", GAUGE, "pages_waiting",
		  "Dirty pages found and not taken yet."),
	DIRTY_ONE("ring_full_total", COUNTER, "ring_full",
		  "Times that a vCPU stopped because its dirty ring was full."),
	DIRTY_PAGES("kvm"),
	DIRTY_PAGES("vmm"),
	DIRTY_PAGES("taken"),
	DIRTY_TIME("start"),
	DIRTY_TIME("log"),
	DIRTY_TIME("clear"),
};

static const json_t *find(const json_t *facts, const char *path)
{
	const char *dot;

	while (facts && (dot = strchr(path, '.'))) {
		facts = json_object_getn(facts, path, (size_t)(dot - path));
		path = dot + 1;
	}
	return facts ? json_object_get(facts, path) : NULL;
}

static void print_metrics(struct out *o, const json_t *facts)
{
	for (size_t i = 0; i < ARRAY_SIZE(metrics); i++) {
		const struct metric *m = &metrics[i];
		const json_t *value = find(facts, m->path);

		if (!json_is_number(value) && !json_is_boolean(value))
			continue;
		print_family(o, m->name, m->type, m->help);
		fprintf(o->file, "%s%s", m->name, m->labels);
		print_value(o, value);
	}
}

/* ---- numbers whose names come from elsewhere ---- */

/* "a-b" is no part of a metric's name, "a_b" is. */
static void clean_name(char *name)
{
	for (; *name; name++)
		if (!isalnum((unsigned char)*name))
			*name = '_';
}

static void print_device_counter(struct out *o, const json_t *devices,
				 const char *counter)
{
	char name[96];
	const char *id;
	json_t *counters;

	snprintf(name, sizeof(name), "quire_device_%.60s_total", counter);
	clean_name(name);
	json_object_foreach((json_t *)devices, id, counters)
	{
		const json_t *value = json_object_get(counters, counter);

		if (id[0] == '_' && !strcmp(id, "_vm"))
			continue;
		if (!json_is_number(value))
			continue;
		print_family(o, name, COUNTER, "A counter of virtio devices.");
		fputs(name, o->file);
		print_label(o, "device", id);
		print_value(o, value);
	}
}

static void print_vm_counters(struct out *o, const json_t *counters)
{
	char name[96];
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)counters, key, value)
	{
		snprintf(name, sizeof(name), "quire_vm_%.60s_total", key);
		clean_name(name);
		if (!json_is_number(value))
			continue;
		print_family(o, name, COUNTER, "A counter of the VM's vCPUs.");
		fputs(name, o->file);
		print_value(o, value);
	}
}

/* Each counter's name once, with all devices that have it. */
static void print_counters(struct out *o, const json_t *devices)
{
	json_t *names = json_object(), *counters, *value;
	const char *id, *counter;

	json_object_foreach((json_t *)devices, id, counters)
	{
		if (!strcmp(id, "_vm"))
			continue;
		json_object_foreach(counters, counter, value)
		{
			json_object_set_new(names, counter, json_true());
		}
	}
	json_object_foreach(names, counter, value)
	{
		print_device_counter(o, devices, counter);
	}
	json_decref(names);
	print_vm_counters(o, json_object_get(devices, "_vm"));
}

/* KVM's statistics: counters and gauges alike, so without a type. */
static void print_kvm(struct out *o, const json_t *stats, const char *name,
		      const char *help)
{
	const char *stat;
	json_t *value;

	json_object_foreach((json_t *)stats, stat, value)
	{
		print_family(o, name, UNTYPED, help);
		fputs(name, o->file);
		print_label(o, "stat", stat);
		print_value(o, value);
	}
}

static double ns_of(const json_t *object, const char *key)
{
	return json_number_value(json_object_get(object, key)) /
	       (double)NSEC_PER_SEC;
}

/* base/json.h says what is in it; buckets here count all up to their bound. */
static void print_histogram(struct out *o, const json_t *h, const char *name,
			    const char *help)
{
	const json_t *count = json_object_get(h, "count"), *bucket;
	long long sum = 0;
	size_t i;

	if (!json_is_integer(count))
		return;
	print_family(o, name, HISTOGRAM, help);
	json_array_foreach(json_object_get(h, "buckets"), i, bucket)
	{
		sum += json_integer_value(json_object_get(bucket, "count"));
		fprintf(o->file, "%s_bucket{le=\"%.9g\"} %lld\n", name,
			ns_of(bucket, "le_ns"), sum);
	}
	fprintf(o->file, "%s_bucket{le=\"+Inf\"} %lld\n", name,
		(long long)json_integer_value(count));
	fprintf(o->file, "%s_sum %.9g\n%s_count %lld\n", name,
		ns_of(h, "mean_ns") * json_number_value(count), name,
		(long long)json_integer_value(count));
}

static void print_state(struct out *o, const json_t *state)
{
	const char *now = json_string_value(state);

	print_family(o, "quire_info", GAUGE, "The quire that answers.");
	fputs("quire_info", o->file);
	print_label(o, "version", QUIRE_VERSION);
	fputs(" 1\n", o->file);
	print_family(o, "quire_vm_state", GAUGE,
		     "1 for the state that the VM is in, 0 for the others.");
	for (size_t i = 0; i < ARRAY_SIZE(vmm_state_names); i++) {
		fputs("quire_vm_state", o->file);
		print_label(o, "state", vmm_state_names[i]);
		fprintf(o->file, " %d\n",
			now && !strcmp(now, vmm_state_names[i]));
	}
}

char *api_metrics_text(const json_t *facts)
{
	char *text = NULL;
	size_t len = 0;
	struct out o = { .file = open_memstream(&text, &len) };
	int failed;

	if (!o.file)
		return NULL;
	print_state(&o, json_object_get(facts, "state"));
	print_metrics(&o, facts);
	print_histogram(&o, find(facts, "memory.service.host_page"),
			"quire_populate_host_page_seconds",
			"Time to fill a 4 KiB host page, per page.");
	print_histogram(
		&o, find(facts, "memory.service.second_stage_page"),
		"quire_populate_second_stage_page_seconds",
		"Time to map a 4 KiB page in the second stage, per page.");
	print_counters(&o, json_object_get(facts, "counters"));
	print_kvm(&o, find(facts, "memory.kvm.vm"), "quire_kvm_vm",
		  "A statistic that KVM keeps of the VM.");
	print_kvm(&o, find(facts, "memory.kvm.vcpus"), "quire_kvm_vcpus",
		  "A statistic that KVM keeps of vCPUs, summed over them.");
	failed = ferror(o.file);
	if (fclose(o.file) || failed) {
		free(text);
		return NULL;
	}
	return text;
}

int api_metrics_render(struct api_call *call)
{
	call->text = api_metrics_text(call->reply);
	return call->text ? 0 : -ENOMEM;
}
