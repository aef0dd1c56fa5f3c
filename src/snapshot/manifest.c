/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/manifest.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/json.h"
#include "snapshot/format.h"
#include "snapshot/sum.h"

const char *const snapshot_file_names[SNAPSHOT_NUM_FILES] = {
	[SNAPSHOT_FILE_CONFIG] = SNAPSHOT_CONFIG,
	[SNAPSHOT_FILE_STATE] = SNAPSHOT_STATE,
	[SNAPSHOT_FILE_SUMS] = SNAPSHOT_SUMS,
	[SNAPSHOT_FILE_MAP] = SNAPSHOT_MAP,
};

const char *const snapshot_disk_kind_names[3] = {
	[SNAPSHOT_DISK_REFERENCE] = "reference",
	[SNAPSHOT_DISK_CLONE] = "clone",
	[SNAPSHOT_DISK_COPY] = "copy",
};

static const char *const layout_names[2] = {
	[SNAPSHOT_WHOLE] = "whole",
	[SNAPSHOT_DELTA] = "delta",
};

/* Beyond the address space of guests, and of a file's offsets. */
#define MAX_ADDRESS (1ull << 46)

void snapshot_manifest_init(struct snapshot_manifest *m)
{
	memset(m, 0, sizeof(*m));
}

void snapshot_manifest_fini(struct snapshot_manifest *m)
{
	for (unsigned int i = 0; i < m->num_disks; i++) {
		free(m->disks[i].id);
		free(m->disks[i].path);
		free(m->disks[i].file);
	}
	free(m->disks);
	free(m->parent_path);
	memset(m, 0, sizeof(*m));
}

uint64_t snapshot_manifest_span(const struct snapshot_manifest *m)
{
	const struct mem_range *last;

	if (!m->num_ranges)
		return 0;
	last = &m->ranges[m->num_ranges - 1];
	return last->start + last->len;
}

/* ---- disks ---- */

static bool is_file_name(const char *name)
{
	return *name && *name != '.' && !strchr(name, '/') &&
	       strlen(name) <= 200;
}

static int check_disk(const struct snapshot_manifest *m,
		      const struct snapshot_disk *disk, struct err *err)
{
	bool in_here = disk->kind != SNAPSHOT_DISK_REFERENCE;

	if (m->num_disks == SNAPSHOT_MAX_DISKS)
		return err_set(err, EINVAL, "disks: more than %d",
			       SNAPSHOT_MAX_DISKS);
	if (!is_file_name(disk->id) || !*disk->path)
		return err_set(err, EINVAL, "disks: id or path cannot be");
	if (in_here != (disk->file != NULL) ||
	    (in_here && (strncmp(disk->file, "disk-", 5) != 0 ||
			 strcmp(disk->file + 5, disk->id) != 0)))
		return err_set(err, EINVAL, "disks: %s: file cannot be",
			       disk->id);
	for (unsigned int i = 0; i < m->num_disks; i++) {
		if (!strcmp(m->disks[i].id, disk->id))
			return err_set(err, EINVAL, "disks: %s: is there twice",
				       disk->id);
	}
	return 0;
}

int snapshot_manifest_add_disk(struct snapshot_manifest *m,
			       const struct snapshot_disk *disk,
			       struct err *err)
{
	struct snapshot_disk *grown, *at;
	int r = check_disk(m, disk, err);

	if (r)
		return r;
	grown = realloc(m->disks, (m->num_disks + 1) * sizeof(*grown));
	if (!grown)
		return err_set(err, ENOMEM, "disks: out of memory");
	m->disks = grown;
	at = &grown[m->num_disks++];
	*at = (struct snapshot_disk){
		.id = strdup(disk->id),
		.path = strdup(disk->path),
		.file = disk->file ? strdup(disk->file) : NULL,
		.kind = disk->kind,
		.bytes = disk->bytes,
	};
	if (!at->id || !at->path || (disk->file && !at->file))
		return err_set(err, ENOMEM, "disks: out of memory");
	return 0;
}

/* ---- writing ---- */

static json_t *hex(uint64_t value)
{
	char text[20];

	snprintf(text, sizeof(text), "%016" PRIx64, value);
	return json_string(text);
}

static json_t *format_memory(const struct snapshot_manifest *m)
{
	json_t *regions = json_array();

	for (unsigned int i = 0; i < m->num_ranges; i++)
		json_array_append_new(
			regions,
			json_pack("{s:I, s:I}", "start",
				  json_int_u64(m->ranges[i].start), "bytes",
				  json_int_u64(m->ranges[i].len)));
	return json_pack(
		"{s:I, s:I, s:I, s:I, s:s, s:o}", "bytes",
		json_int_u64(mem_ranges_bytes(m->ranges, m->num_ranges)),
		"data_bytes", json_int_u64(m->data_bytes), "page_bytes",
		(json_int_t)PAGE_4K, "unit_bytes", (json_int_t)MEM_UNIT_BYTES,
		"layout", layout_names[m->layout], "regions", regions);
}

static json_t *format_files(const struct snapshot_manifest *m)
{
	json_t *files = json_object();

	for (unsigned int i = 0; i < SNAPSHOT_NUM_FILES; i++) {
		const struct snapshot_file_info *f = &m->files[i];

		if (f->exists)
			json_object_set_new(files, snapshot_file_names[i],
					    json_pack("{s:I, s:o}", "bytes",
						      json_int_u64(f->bytes),
						      "xxh3", hex(f->sum)));
	}
	return files;
}

static json_t *format_disks(const struct snapshot_manifest *m)
{
	json_t *disks = json_array();

	for (unsigned int i = 0; i < m->num_disks; i++) {
		const struct snapshot_disk *d = &m->disks[i];
		json_t *disk = json_pack("{s:o, s:o, s:s, s:I}", "id",
					 json_text(d->id), "path",
					 json_text(d->path), "kind",
					 snapshot_disk_kind_names[d->kind],
					 "bytes", json_int_u64(d->bytes));

		if (d->file)
			json_object_set_new(disk, "file", json_text(d->file));
		json_array_append_new(disks, disk);
	}
	return disks;
}

/* Of the object without its checksum, in the one form that is unambiguous. */
static int own_sum(const json_t *doc, uint64_t *ret)
{
	_cleanup_free_ char *text = json_dumps(doc,
					       JSON_COMPACT | JSON_SORT_KEYS);

	if (!text)
		return -ENOMEM;
	*ret = sum_bytes(text, strlen(text));
	return 0;
}

static json_t *format_all(const struct snapshot_manifest *m)
{
	json_t *doc = json_pack("{s:s, s:i, s:s, s:s, s:I, s:o, s:o, s:o}",
				"format", SNAPSHOT_FORMAT, "version",
				SNAPSHOT_VERSION, "quire", m->quire, "id",
				m->id, "created_unix",
				json_int_u64(m->created_unix), "memory",
				format_memory(m), "files", format_files(m),
				"disks", format_disks(m));

	if (doc && m->parent_path)
		json_object_set_new(doc, "parent",
				    json_pack("{s:s, s:o}", "id", m->parent_id,
					      "path",
					      json_text(m->parent_path)));
	return doc;
}

char *snapshot_manifest_format(const struct snapshot_manifest *m)
{
	json_t *doc = format_all(m);
	char *text = NULL, *line = NULL;
	uint64_t sum;

	if (doc && !own_sum(doc, &sum)) {
		json_object_set_new(doc, "checksum", hex(sum));
		text = json_dumps(doc, JSON_INDENT(2));
	}
	json_decref(doc);
	if (text && asprintf(&line, "%s\n", text) < 0)
		line = NULL;
	free(text);
	return line;
}

/* ---- reading ---- */

static int wrong(struct err *err, const char *member)
{
	return err_set(err, EBADMSG,
		       SNAPSHOT_MANIFEST ": %s: missing, or cannot be", member);
}

static int read_u64(const json_t *in, const char *key, uint64_t *ret)
{
	const json_t *value = json_object_get(in, key);

	if (!json_is_integer(value) || json_integer_value(value) < 0)
		return -EINVAL;
	*ret = (uint64_t)json_integer_value(value);
	return 0;
}

static int read_hex(const json_t *in, const char *key, uint64_t *ret)
{
	const char *text = json_string_value(json_object_get(in, key));
	char *end;

	if (!text || strlen(text) != 16 ||
	    strspn(text, "0123456789abcdef") != 16)
		return -EINVAL;
	*ret = strtoull(text, &end, 16);
	return 0;
}

static int read_name(const json_t *in, const char *key,
		     const char *const *names, unsigned int num,
		     unsigned int *ret)
{
	const char *text = json_string_value(json_object_get(in, key));

	for (unsigned int i = 0; text && i < num; i++) {
		if (!strcmp(text, names[i])) {
			*ret = i;
			return 0;
		}
	}
	return -EINVAL;
}

/* A string of 1 to size - 1 characters. */
static int read_text(const json_t *in, const char *key, char *ret, size_t size)
{
	const char *text = json_string_value(json_object_get(in, key));

	if (!text || !*text || strlen(text) >= size)
		return -EINVAL;
	memcpy(ret, text, strlen(text) + 1);
	return 0;
}

static int read_id(const json_t *in, const char *key,
		   char ret[SNAPSHOT_ID_CHARS + 1])
{
	const char *text = json_string_value(json_object_get(in, key));

	if (!text || strlen(text) != SNAPSHOT_ID_CHARS ||
	    strspn(text, "0123456789abcdef-") != SNAPSHOT_ID_CHARS)
		return -EINVAL;
	memcpy(ret, text, SNAPSHOT_ID_CHARS + 1);
	return 0;
}

/* Ascending, at multiples of 2 MiB, each of whole pages, apart by a unit. */
static int read_range(const json_t *in, uint64_t from, struct mem_range *ret)
{
	uint64_t start, len;

	if (read_u64(in, "start", &start) || read_u64(in, "bytes", &len))
		return -EINVAL;
	if (!len || !is_aligned(start, MEM_UNIT_BYTES) || start < from ||
	    !is_aligned(len, PAGE_4K) || !range_ok(start, len, MAX_ADDRESS))
		return -EINVAL;
	*ret = (struct mem_range){ .start = start, .len = len };
	return 0;
}

static int parse_regions(struct snapshot_manifest *m, const json_t *memory,
			 struct err *err)
{
	const json_t *regions = json_object_get(memory, "regions");
	size_t num = json_array_size(regions);
	uint64_t from = 0;

	if (!num || num > RAM_MAX_REGIONS)
		return wrong(err, "memory.regions");
	for (size_t i = 0; i < num; i++) {
		struct mem_range *range = &m->ranges[i];

		if (read_range(json_array_get(regions, i), from, range))
			return wrong(err, "memory.regions");
		from = range->start + range->len;
	}
	m->num_ranges = (unsigned int)num;
	return 0;
}

static int parse_memory(struct snapshot_manifest *m, const json_t *doc,
			struct err *err)
{
	const json_t *memory = json_object_get(doc, "memory");
	uint64_t bytes, page, unit;
	unsigned int layout;
	int r = parse_regions(m, memory, err);

	if (r)
		return r;
	if (read_u64(memory, "bytes", &bytes) ||
	    bytes != mem_ranges_bytes(m->ranges, m->num_ranges))
		return wrong(err, "memory.bytes");
	if (read_u64(memory, "page_bytes", &page) || page != PAGE_4K)
		return wrong(err, "memory.page_bytes");
	if (read_u64(memory, "unit_bytes", &unit) || unit != MEM_UNIT_BYTES)
		return wrong(err, "memory.unit_bytes");
	if (read_u64(memory, "data_bytes", &m->data_bytes) ||
	    m->data_bytes > bytes)
		return wrong(err, "memory.data_bytes");
	if (read_name(memory, "layout", layout_names, 2, &layout))
		return wrong(err, "memory.layout");
	m->layout = layout;
	return 0;
}

static int parse_files(struct snapshot_manifest *m, const json_t *doc,
		       struct err *err)
{
	static const uint64_t max[SNAPSHOT_NUM_FILES] = {
		[SNAPSHOT_FILE_CONFIG] = SNAPSHOT_MAX_CONFIG_BYTES,
		[SNAPSHOT_FILE_STATE] = SNAPSHOT_MAX_STATE_BYTES,
		[SNAPSHOT_FILE_SUMS] = INT64_MAX, /* the reader knows better */
		[SNAPSHOT_FILE_MAP] = SNAPSHOT_MAX_MAP_BYTES,
	};
	const json_t *files = json_object_get(doc, "files");

	for (unsigned int i = 0; i < SNAPSHOT_NUM_FILES; i++) {
		const json_t *in = json_object_get(files,
						   snapshot_file_names[i]);
		struct snapshot_file_info *f = &m->files[i];

		f->exists = in;
		if (f->exists !=
		    (i != SNAPSHOT_FILE_MAP || m->layout == SNAPSHOT_DELTA))
			return wrong(err, "files");
		if (in && (read_u64(in, "bytes", &f->bytes) ||
			   f->bytes > max[i] || read_hex(in, "xxh3", &f->sum)))
			return wrong(err, "files");
	}
	return 0;
}

static int parse_parent(struct snapshot_manifest *m, const json_t *doc,
			struct err *err)
{
	const json_t *parent = json_object_get(doc, "parent");
	const char *path = json_string_value(json_object_get(parent, "path"));

	if (!parent && m->layout == SNAPSHOT_WHOLE)
		return 0;
	if (!path || !*path || read_id(parent, "id", m->parent_id))
		return wrong(err, "parent");
	m->parent_path = strdup(path);
	return m->parent_path ? 0 : err_set(err, ENOMEM, "out of memory");
}

static int parse_disk(struct snapshot_manifest *m, const json_t *in,
		      struct err *err)
{
	json_t *file = json_object_get(in, "file");
	unsigned int kind;
	struct snapshot_disk disk = {
		.id = (char *)json_string_value(json_object_get(in, "id")),
		.path = (char *)json_string_value(json_object_get(in, "path")),
		.file = (char *)json_string_value(file),
	};

	if (!disk.id || !disk.path || (file && !disk.file) ||
	    read_u64(in, "bytes", &disk.bytes) ||
	    read_name(in, "kind", snapshot_disk_kind_names, 3, &kind))
		return -EINVAL;
	disk.kind = kind;
	return snapshot_manifest_add_disk(m, &disk, err);
}

static int parse_disks(struct snapshot_manifest *m, const json_t *doc,
		       struct err *err)
{
	const json_t *disks = json_object_get(doc, "disks");

	if (!json_is_array(disks))
		return wrong(err, "disks");
	for (size_t i = 0; i < json_array_size(disks); i++) {
		int r = parse_disk(m, json_array_get(disks, i), err);

		if (r)
			return r == -ENOMEM ? r : wrong(err, "disks");
	}
	return 0;
}

/* Before anything else is believed. */
static int check_sum(json_t *doc, struct err *err)
{
	uint64_t said, sum;

	if (read_hex(doc, "checksum", &said))
		return wrong(err, "checksum");
	json_object_del(doc, "checksum");
	if (own_sum(doc, &sum))
		return err_set(err, ENOMEM, "out of memory");
	if (sum != said)
		return err_set(err, EBADMSG,
			       SNAPSHOT_MANIFEST
			       ": its checksum does not match: damaged, or "
			       "edited");
	return 0;
}

static int check_kind(const json_t *doc, struct err *err)
{
	const char *format = json_string_value(json_object_get(doc, "format"));
	uint64_t version;

	if (!format || strcmp(format, SNAPSHOT_FORMAT) != 0)
		return err_set(err, EBADMSG,
			       SNAPSHOT_MANIFEST ": format: not a snapshot");
	if (read_u64(doc, "version", &version))
		return wrong(err, "version");
	if (version != SNAPSHOT_VERSION)
		return err_set(err, ENOTSUP,
			       SNAPSHOT_MANIFEST ": version: %llu; this quire "
						 "knows %d",
			       (unsigned long long)version, SNAPSHOT_VERSION);
	return 0;
}

static int parse(struct snapshot_manifest *m, json_t *doc, struct err *err)
{
	int r = check_kind(doc, err);

	if (!r)
		r = check_sum(doc, err);
	if (r)
		return r;
	if (read_id(doc, "id", m->id))
		return wrong(err, "id");
	if (read_text(doc, "quire", m->quire, sizeof(m->quire)))
		return wrong(err, "quire");
	if (read_u64(doc, "created_unix", &m->created_unix))
		return wrong(err, "created_unix");
	r = parse_memory(m, doc, err);
	if (!r)
		r = parse_files(m, doc, err);
	if (!r)
		r = parse_parent(m, doc, err);
	return r ? r : parse_disks(m, doc, err);
}

int snapshot_manifest_parse(struct snapshot_manifest *ret, const char *text,
			    size_t len, struct err *err)
{
	struct snapshot_manifest m;
	json_error_t where;
	json_t *doc = json_loadb(text, len, JSON_REJECT_DUPLICATES, &where);
	int r;

	if (!doc)
		return err_set(err, EBADMSG,
			       SNAPSHOT_MANIFEST ": offset %d: %s",
			       where.position, where.text);
	snapshot_manifest_init(&m);
	r = parse(&m, doc, err);
	json_decref(doc);
	if (r)
		snapshot_manifest_fini(&m);
	else
		*ret = m;
	return r;
}
