/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/wire.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "base/arith.h"
#include "kvm/irq.h"

#define MACHINE_HEAD_BYTES 40u
#define REGION_BYTES	   16u
#define CLASS_BYTES	   16u
#define DEVICE_BYTES	   (CLASS_BYTES + VM_MAX_NAME)
#define DISK_BYTES	   16u
#define SECTOR_BYTES	   512u
#define READY_RAN	   1u

/* More rounds than this are no migration. */
#define MAX_ROUNDS (1u << 20)

static const char magic[8] = { 'Q', 'U', 'I', 'R', 'E', 'M', 'I', 'G' };

static bool is_zero(const uint8_t *p, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++) {
		if (p[i])
			return false;
	}
	return true;
}

/* ---- preface ---- */

void wire_put_preface(uint8_t out[WIRE_PREFACE_BYTES],
		      const struct wire_preface *p)
{
	memcpy(out, magic, sizeof(magic));
	le32_store(out + 8, WIRE_VERSION);
	le16_store(out + 12, (uint16_t)p->stream);
	le16_store(out + 14, (uint16_t)p->num_streams);
	memcpy(out + 16, p->id, WIRE_ID_BYTES);
}

int wire_parse_preface(const uint8_t in[WIRE_PREFACE_BYTES],
		       struct wire_preface *ret, struct err *err)
{
	uint32_t version = le32_load(in + 8);

	if (memcmp(in, magic, sizeof(magic)) != 0)
		return err_set(err, EBADMSG, "this is no migration of quire");
	if (version != WIRE_VERSION)
		return err_set(err, ENOTSUP,
			       "the source speaks version %u of the protocol, "
			       "this quire version %u",
			       version, WIRE_VERSION);
	*ret = (struct wire_preface){
		.stream = le16_load(in + 12),
		.num_streams = le16_load(in + 14),
	};
	memcpy(ret->id, in + 16, WIRE_ID_BYTES);
	if (!ret->num_streams || ret->num_streams > WIRE_MAX_STREAMS ||
	    (ret->stream > ret->num_streams && ret->stream != WIRE_URGENT) ||
	    is_zero(ret->id, WIRE_ID_BYTES))
		return err_set(err, EBADMSG,
			       "a connection that says it is stream %u of %u",
			       ret->stream, ret->num_streams);
	return 0;
}

/* ---- control ---- */

static const struct {
	const char *name;
	uint64_t min, max; /* of the payload */
} controls[] = {
	[WIRE_MACHINE] = { "MACHINE", MACHINE_HEAD_BYTES, WIRE_MAX_MACHINE },
	[WIRE_ACCEPT] = { "ACCEPT", 0, 0 },
	[WIRE_STATE] = { "STATE", 1, WIRE_MAX_STATE },
	[WIRE_READY] = { "READY", WIRE_READY_BYTES, WIRE_READY_BYTES },
	[WIRE_LOADED] = { "LOADED", 0, 0 },
	[WIRE_COMMIT] = { "COMMIT", 0, 0 },
	[WIRE_RUNNING] = { "RUNNING", 0, 0 },
	[WIRE_FAILED] = { "FAILED", 0, WIRE_MAX_TEXT },
	[WIRE_ABORT] = { "ABORT", 0, WIRE_MAX_TEXT },
	[WIRE_PENDING] = { "PENDING", 8, WIRE_MAX_MAP },
	[WIRE_COMPLETE] = { "COMPLETE", WIRE_COMPLETE_BYTES,
			    WIRE_COMPLETE_BYTES },
	[WIRE_AGAIN] = { "AGAIN", WIRE_AGAIN_BYTES, WIRE_AGAIN_BYTES },
	[WIRE_MISSING] = { "MISSING", 8, WIRE_MAX_MAP },
	[WIRE_FREE] = { "FREE", 0, 0 },
	[WIRE_MEMORY] = { "MEMORY", 0, 0 },
	[WIRE_LANDED] = { "LANDED", 0, 0 },
};

const char *wire_control_name(uint32_t type)
{
	return type && type < ARRAY_SIZE(controls) ? controls[type].name : "?";
}

static bool is_of_source(enum wire_control type)
{
	return type == WIRE_MACHINE || type == WIRE_STATE ||
	       type == WIRE_READY || type == WIRE_COMMIT ||
	       type == WIRE_PENDING || type == WIRE_AGAIN ||
	       type == WIRE_FREE || type == WIRE_MEMORY;
}

void wire_put_control(uint8_t out[WIRE_CONTROL_BYTES], enum wire_control type,
		      uint64_t bytes)
{
	le32_store(out, type);
	le32_store(out + 4, 0);
	le64_store(out + 8, bytes);
}

int wire_parse_control(const uint8_t in[WIRE_CONTROL_BYTES],
		       enum wire_control wanted,
		       struct wire_control_header *ret, struct err *err)
{
	uint32_t type = le32_load(in), other;
	uint64_t bytes = le64_load(in + 8);

	other = is_of_source(wanted) ? WIRE_ABORT : WIRE_FAILED;
	if ((type != wanted && type != other) || le32_load(in + 4))
		return err_set(err, EBADMSG,
			       "message %u (%s) came where %s was due", type,
			       wire_control_name(type),
			       wire_control_name(wanted));
	if (bytes < controls[type].min || bytes > controls[type].max)
		return err_set(err, EBADMSG, "%s of %llu bytes",
			       wire_control_name(type),
			       (unsigned long long)bytes);
	*ret = (struct wire_control_header){
		.type = (enum wire_control)type,
		.bytes = bytes,
	};
	return 0;
}

/*
 * How many of the bytes are one character that a terminal only shows; 0: they
 * do not begin with one. Well-formed UTF-8 (Unicode 15, table 3-7), without the
 * controls from U+0080 to U+009F.
 */
static size_t shown_bytes(const uint8_t *in, size_t bytes)
{
	static const struct {
		uint8_t first, last; /* of the first byte */
		uint8_t low, high;   /* the second is within */
		uint8_t len;
	} forms[] = {
		{ 0xc2, 0xc2, 0xa0, 0xbf, 2 }, { 0xc3, 0xdf, 0x80, 0xbf, 2 },
		{ 0xe0, 0xe0, 0xa0, 0xbf, 3 }, { 0xe1, 0xec, 0x80, 0xbf, 3 },
		{ 0xed, 0xed, 0x80, 0x9f, 3 }, { 0xee, 0xef, 0x80, 0xbf, 3 },
		{ 0xf0, 0xf0, 0x90, 0xbf, 4 }, { 0xf1, 0xf3, 0x80, 0xbf, 4 },
		{ 0xf4, 0xf4, 0x80, 0x8f, 4 },
	};

	if (in[0] < 0x80)
		return in[0] >= ' ' && in[0] <= '~';
	for (size_t i = 0; i < ARRAY_SIZE(forms); i++) {
		size_t n = 2;

		if (in[0] < forms[i].first || in[0] > forms[i].last)
			continue;
		if (bytes < forms[i].len || in[1] < forms[i].low ||
		    in[1] > forms[i].high)
			return 0;
		while (n < forms[i].len && (in[n] & 0xc0) == 0x80)
			n++;
		return n == forms[i].len ? n : 0;
	}
	return 0;
}

void wire_parse_text(const uint8_t *in, size_t bytes,
		     char out[WIRE_MAX_TEXT + 1])
{
	size_t end = MIN(bytes, (size_t)WIRE_MAX_TEXT), n;

	for (size_t at = 0; at < end; at += n) {
		n = shown_bytes(in + at, end - at);
		if (n)
			memcpy(out + at, in + at, n);
		else
			out[at] = '?';
		n += !n;
	}
	out[end] = '\0';
}

/* ---- machine ---- */

size_t wire_put_machine(uint8_t *out, const struct wire_machine *m)
{
	unsigned int num_disks = (m->features & WIRE_FEATURE_DISKS)
					 ? m->num_disks
					 : 0;
	uint8_t *p = out + MACHINE_HEAD_BYTES;

	memset(out, 0, MACHINE_HEAD_BYTES);
	le32_store(out, PAGE_4K);
	le32_store(out + 4, WIRE_UNIT_BYTES);
	le64_store(out + 8, m->features);
	le64_store(out + 16, m->memory_bytes);
	le32_store(out + 24, m->num_cpus);
	le32_store(out + 28, m->threads_per_core);
	out[32] = m->irqchip;
	out[33] = (uint8_t)m->num_regions;
	out[34] = (uint8_t)m->num_devices;
	out[35] = (uint8_t)num_disks;
	for (unsigned int i = 0; i < m->num_regions; i++, p += REGION_BYTES) {
		le64_store(p, m->regions[i].start);
		le64_store(p + 8, m->regions[i].len);
	}
	for (unsigned int i = 0; i < m->num_devices; i++, p += DEVICE_BYTES) {
		memset(p, 0, DEVICE_BYTES);
		memcpy(p, m->devices[i].cls,
		       strnlen(m->devices[i].cls, CLASS_BYTES - 1));
		memcpy(p + CLASS_BYTES, m->devices[i].id,
		       strnlen(m->devices[i].id, VM_MAX_NAME - 1));
	}
	for (unsigned int i = 0; i < num_disks; i++, p += DISK_BYTES) {
		le32_store(p, m->disks[i].device);
		le32_store(p + 4, 0);
		le64_store(p + 8, m->disks[i].bytes);
	}
	return (size_t)(p - out);
}

/* Printable, not empty, and zeroes behind it. */
static bool parse_name(char *to, const uint8_t *in, size_t size)
{
	size_t len = strnlen((const char *)in, size);

	if (!len || len == size || !is_zero(in + len, size - len))
		return false;
	for (size_t i = 0; i < len; i++) {
		if (!isgraph(in[i]) || in[i] >= 0x80)
			return false;
	}
	memcpy(to, in, size);
	return true;
}

static int parse_regions(const uint8_t *in, struct wire_machine *ret,
			 struct err *err)
{
	uint64_t end = 0, sum = 0;

	for (unsigned int i = 0; i < ret->num_regions; i++) {
		struct wire_range *r = &ret->regions[i];

		r->start = le64_load(in + (size_t)i * REGION_BYTES);
		r->len = le64_load(in + (size_t)i * REGION_BYTES + 8);
		if (!r->len || !is_aligned(r->start, PAGE_4K) ||
		    !is_aligned(r->len, PAGE_4K) || r->start < end ||
		    !add_u64(r->start, r->len, &end) ||
		    !add_u64(sum, r->len, &sum))
			return err_set(err, EBADMSG,
				       "MACHINE: region %u of memory", i);
	}
	if (sum != ret->memory_bytes)
		return err_set(err, EBADMSG,
			       "MACHINE: its regions are not its memory");
	return 0;
}

static int parse_devices(const uint8_t *in, struct wire_machine *ret,
			 struct err *err)
{
	for (unsigned int i = 0; i < ret->num_devices; i++) {
		const uint8_t *p = in + (size_t)i * DEVICE_BYTES;

		if (!parse_name(ret->devices[i].cls, p, CLASS_BYTES) ||
		    !parse_name(ret->devices[i].id, p + CLASS_BYTES,
				VM_MAX_NAME))
			return err_set(err, EBADMSG, "MACHINE: device %u", i);
	}
	return 0;
}

static int parse_disks(const uint8_t *in, struct wire_machine *ret,
		       struct err *err)
{
	unsigned int next = 0;

	for (unsigned int i = 0; i < ret->num_disks; i++, in += DISK_BYTES) {
		struct wire_disk *d = &ret->disks[i];

		*d = (struct wire_disk){
			.device = le32_load(in),
			.bytes = le64_load(in + 8),
		};
		if (d->device < next || d->device >= ret->num_devices ||
		    !is_zero(in + 4, 4) || !d->bytes || d->bytes > INT64_MAX ||
		    !is_aligned(d->bytes, SECTOR_BYTES))
			return err_set(err, EBADMSG, "MACHINE: disk %u", i);
		next = d->device + 1;
	}
	return 0;
}

static int check_features(uint64_t features, struct err *err)
{
	if (features & ~WIRE_FEATURES)
		return err_set(err, ENOTSUP,
			       "the source wants features (%#llx) that this "
			       "quire does not know",
			       (unsigned long long)features);
	/* What is handed over is neither sent nor does it follow; disks are
	 * there before their VM. */
	if (((features & WIRE_FEATURE_LOCAL) &&
	     features != WIRE_FEATURE_LOCAL) ||
	    ((features & WIRE_FEATURE_POSTCOPY) &&
	     (features & WIRE_FEATURE_DISKS)))
		return err_set(err, EBADMSG,
			       "MACHINE: features that exclude each other");
	return 0;
}

static size_t machine_bytes(const struct wire_machine *m)
{
	return MACHINE_HEAD_BYTES + (size_t)m->num_regions * REGION_BYTES +
	       (size_t)m->num_devices * DEVICE_BYTES +
	       (size_t)m->num_disks * DISK_BYTES;
}

static int check_numbers(const struct wire_machine *m, size_t bytes,
			 struct err *err)
{
	if (!m->num_regions || m->num_regions > RAM_MAX_REGIONS ||
	    m->num_devices > VM_MAX_DEVICES || m->num_disks > m->num_devices ||
	    !(m->features & WIRE_FEATURE_DISKS) != !m->num_disks)
		return err_set(err, EBADMSG,
			       "MACHINE: %u regions of memory, %u devices, %u "
			       "disks",
			       m->num_regions, m->num_devices, m->num_disks);
	if (bytes != machine_bytes(m))
		return err_set(err, EBADMSG, "MACHINE of %zu bytes", bytes);
	return 0;
}

int wire_parse_machine(const uint8_t *in, size_t bytes,
		       struct wire_machine *ret, struct err *err)
{
	int r;

	if (bytes < MACHINE_HEAD_BYTES || le32_load(in) != PAGE_4K ||
	    le32_load(in + 4) != WIRE_UNIT_BYTES || !is_zero(in + 36, 4))
		return err_set(err, EBADMSG, "MACHINE: its beginning");
	r = check_features(le64_load(in + 8), err);
	if (r)
		return r;
	*ret = (struct wire_machine){
		.features = le64_load(in + 8),
		.memory_bytes = le64_load(in + 16),
		.num_cpus = le32_load(in + 24),
		.threads_per_core = le32_load(in + 28),
		.irqchip = in[32],
		.num_regions = in[33],
		.num_devices = in[34],
		.num_disks = in[35],
	};
	r = check_numbers(ret, bytes, err);
	in += MACHINE_HEAD_BYTES;
	if (!r)
		r = parse_regions(in, ret, err);
	in += (size_t)ret->num_regions * REGION_BYTES;
	if (!r)
		r = parse_devices(in, ret, err);
	in += (size_t)ret->num_devices * DEVICE_BYTES;
	return r ? r : parse_disks(in, ret, err);
}

static const char *irqchip_text(uint8_t kind)
{
	return kind == IRQCHIP_SPLIT ? "split" : "kernel";
}

static const struct wire_device *find(const struct wire_machine *m,
				      const char *id)
{
	for (unsigned int i = 0; i < m->num_devices; i++) {
		if (!strcmp(m->devices[i].id, id))
			return &m->devices[i];
	}
	return NULL;
}

/* Their order is nothing: state is found by id, slots are in it. */
static int compare_devices(const struct wire_machine *theirs,
			   const struct wire_machine *ours, struct err *err)
{
	for (unsigned int i = 0; i < theirs->num_devices; i++) {
		const struct wire_device *a = &theirs->devices[i],
					 *b = find(ours, a->id);

		if (!b)
			return err_set(err, EINVAL,
				       "the VM has a %s device '%s' that is "
				       "not given here",
				       a->cls, a->id);
		if (strcmp(a->cls, b->cls) != 0)
			return err_set(err, EINVAL,
				       "the VM's device '%s' is %s, here it is "
				       "%s",
				       a->id, a->cls, b->cls);
	}
	for (unsigned int i = 0; i < ours->num_devices; i++) {
		const struct wire_device *b = &ours->devices[i];

		if (!find(theirs, b->id))
			return err_set(err, EINVAL,
				       "a %s device '%s' is given here that "
				       "the VM does not have",
				       b->cls, b->id);
	}
	return 0;
}

/* NULL: it has none that can be written. */
static const struct wire_disk *disk_of(const struct wire_machine *m,
				       const char *id)
{
	for (unsigned int i = 0; i < m->num_disks; i++) {
		if (!strcmp(m->devices[m->disks[i].device].id, id))
			return &m->disks[i];
	}
	return NULL;
}

/* The devices are the same by now. */
static int compare_disks(const struct wire_machine *theirs,
			 const struct wire_machine *ours, struct err *err)
{
	if (!(theirs->features & WIRE_FEATURE_DISKS))
		return 0;
	for (unsigned int i = 0; i < theirs->num_disks; i++) {
		const struct wire_disk *a = &theirs->disks[i], *b;
		const char *id = theirs->devices[a->device].id;

		b = disk_of(ours, id);
		if (!b)
			return err_set(
				err, EINVAL,
				"the VM's disk '%s' is to be copied, and "
				"cannot be written here",
				id);
		if (a->bytes != b->bytes)
			return err_set(
				err, EINVAL,
				"the VM's disk '%s' has %llu bytes, here "
				"it has %llu",
				id, (unsigned long long)a->bytes,
				(unsigned long long)b->bytes);
	}
	for (unsigned int i = 0; i < ours->num_disks; i++) {
		const char *id = ours->devices[ours->disks[i].device].id;

		if (!disk_of(theirs, id))
			return err_set(
				err, EINVAL,
				"the VM's disk '%s' is readonly=on, here "
				"it is not: it would not be copied",
				id);
	}
	return 0;
}

bool wire_machine_same_disks(const struct wire_machine *a,
			     const struct wire_machine *b)
{
	if (a->num_disks != b->num_disks)
		return false;
	for (unsigned int i = 0; i < a->num_disks; i++) {
		const struct wire_disk *x = &a->disks[i], *y = &b->disks[i];

		if (x->bytes != y->bytes ||
		    strcmp(a->devices[x->device].id,
			   b->devices[y->device].id) != 0)
			return false;
	}
	return true;
}

int wire_machine_compare(const struct wire_machine *theirs,
			 const struct wire_machine *ours, struct err *err)
{
	if (theirs->memory_bytes != ours->memory_bytes ||
	    theirs->num_regions != ours->num_regions ||
	    memcmp(theirs->regions, ours->regions, sizeof(ours->regions)) != 0)
		return err_set(err, EINVAL,
			       "the VM has %llu MiB of memory, here it is "
			       "given %llu",
			       (unsigned long long)(theirs->memory_bytes / MIB),
			       (unsigned long long)(ours->memory_bytes / MIB));
	if (theirs->num_cpus != ours->num_cpus ||
	    theirs->threads_per_core != ours->threads_per_core)
		return err_set(err, EINVAL,
			       "the VM has %u vCPUs, %u to a core; here it is "
			       "given %u, %u to a core",
			       theirs->num_cpus, theirs->threads_per_core,
			       ours->num_cpus, ours->threads_per_core);
	if (theirs->irqchip != ours->irqchip)
		return err_set(err, EINVAL,
			       "the VM has --irqchip %s, here it is %s",
			       irqchip_text(theirs->irqchip),
			       irqchip_text(ours->irqchip));
	if (compare_devices(theirs, ours, err))
		return -EINVAL;
	return compare_disks(theirs, ours, err);
}

void wire_put_ready(uint8_t out[WIRE_READY_BYTES], const struct wire_ready *r)
{
	le64_store(out, r->ran ? READY_RAN : 0);
	le64_store(out + 8, r->rounds);
	le64_store(out + 16, r->page_bytes);
}

int wire_parse_ready(const uint8_t in[WIRE_READY_BYTES], struct wire_ready *ret,
		     struct err *err)
{
	uint64_t flags = le64_load(in);

	if (flags & ~(uint64_t)READY_RAN)
		return err_set(err, EBADMSG, "READY: flags %#llx",
			       (unsigned long long)flags);
	*ret = (struct wire_ready){
		.ran = flags & READY_RAN,
		.rounds = le64_load(in + 8),
		.page_bytes = le64_load(in + 16),
	};
	return 0;
}

/* ---- maps, and what ends post-copy ---- */

size_t wire_map_bytes(const struct page_map *map)
{
	size_t words = 0;

	for (unsigned int i = 0; i < map->num_regions; i++)
		words += page_map_words(&map->regions[i]);
	return words * sizeof(uint64_t);
}

void wire_put_map(uint8_t *out, const struct page_map *map)
{
	for (unsigned int i = 0; i < map->num_regions; i++) {
		const struct page_map_region *r = &map->regions[i];

		for (uint64_t w = 0; w < page_map_words(r); w++, out += 8)
			le64_store(out, atomic_load(&r->words[w]));
	}
}

int wire_parse_map(const uint8_t *in, size_t bytes, struct page_map *map,
		   struct err *err)
{
	if (bytes != wire_map_bytes(map))
		return err_set(err, EBADMSG,
			       "a map of %zu bytes for memory that needs %zu",
			       bytes, wire_map_bytes(map));
	for (unsigned int i = 0; i < map->num_regions; i++) {
		const struct page_map_region *r = &map->regions[i];

		for (uint64_t w = 0; w < page_map_words(r); w++, in += 8) {
			uint64_t word = le64_load(in), left;

			left = r->pages - w * 64;
			if (left < 64 && word >> left)
				return err_set(err, EBADMSG,
					       "a map of pages behind the end "
					       "of memory");
			atomic_store(&r->words[w], word);
		}
	}
	return 0;
}

void wire_put_again(uint8_t out[WIRE_AGAIN_BYTES], uint64_t features)
{
	le64_store(out, features);
}

int wire_parse_again(const uint8_t in[WIRE_AGAIN_BYTES], uint64_t *ret,
		     struct err *err)
{
	uint64_t features = le64_load(in);

	if (features & ~WIRE_FEATURES_PACKED)
		return err_set(err, ENOTSUP,
			       "AGAIN: features (%#llx) that this quire does "
			       "not know",
			       (unsigned long long)features);
	*ret = features;
	return 0;
}

void wire_put_complete(uint8_t out[WIRE_COMPLETE_BYTES], enum wire_complete how)
{
	le64_store(out, how);
}

int wire_parse_complete(const uint8_t in[WIRE_COMPLETE_BYTES],
			enum wire_complete *ret, struct err *err)
{
	uint64_t how = le64_load(in);

	if (how != WIRE_ALL_CAME && how != WIRE_VM_ENDED)
		return err_set(err, EBADMSG, "COMPLETE: %llu",
			       (unsigned long long)how);
	*ret = (enum wire_complete)how;
	return 0;
}

/* ---- data ---- */

unsigned int wire_stream_of(uint64_t gpa, unsigned int num)
{
	return 1 + (unsigned int)(gpa / WIRE_UNIT_BYTES % num);
}

static bool is_disk(const struct wire_data_header *h)
{
	return h->type == WIRE_DISK || h->type == WIRE_DISK_ZERO;
}

void wire_put_data(uint8_t out[WIRE_DATA_BYTES],
		   const struct wire_data_header *h)
{
	le32_store(out, h->type);
	le32_store(out + 4, is_disk(h) ? h->disk : h->packed);
	le64_store(out + 8, h->gpa);
	le64_store(out + 16, h->len);
}

static bool in_region(const struct wire_stream *s, uint64_t gpa, uint64_t len)
{
	for (unsigned int i = 0; i < s->num_regions; i++) {
		const struct wire_range *r = &s->regions[i];

		if (gpa >= r->start && range_ok(gpa - r->start, len, r->len))
			return true;
	}
	return false;
}

static int check_range(const struct wire_stream *s,
		       const struct wire_data_header *h, struct err *err)
{
	uint64_t offset = h->gpa % WIRE_UNIT_BYTES;

	if (!h->len || !is_aligned(h->gpa, PAGE_4K) ||
	    !is_aligned(h->len, PAGE_4K) ||
	    !range_ok(offset, h->len, WIRE_UNIT_BYTES) ||
	    !in_region(s, h->gpa, h->len))
		return err_set(err, EBADMSG,
			       "stream %u: %#llx bytes of memory at %#llx",
			       s->index, (unsigned long long)h->len,
			       (unsigned long long)h->gpa);
	if (s->index != WIRE_URGENT &&
	    wire_stream_of(h->gpa, s->num) != s->index)
		return err_set(err, EBADMSG,
			       "stream %u: memory at %#llx is another stream's",
			       s->index, (unsigned long long)h->gpa);
	return 0;
}

/* Smaller than what it becomes, which is a range of memory: never more. */
static int check_packed(const struct wire_stream *s,
			const struct wire_data_header *h, struct err *err)
{
	uint64_t feature = h->type == WIRE_PAGES_LZ4 ? WIRE_FEATURE_LZ4
						     : WIRE_FEATURE_ZSTD;

	if (!(s->features & feature))
		return err_set(err, EBADMSG,
			       "stream %u: compressed pages that were not "
			       "announced",
			       s->index);
	if (!h->packed || h->packed >= h->len)
		return err_set(err, EBADMSG,
			       "stream %u: %#llx bytes of memory from %u",
			       s->index, (unsigned long long)h->len, h->packed);
	return check_range(s, h, err);
}

/* As memory: nothing of an image is on two streams. */
static int check_disk(const struct wire_stream *s,
		      const struct wire_data_header *h, struct err *err)
{
	uint64_t size = h->disk < s->num_disks ? s->disk_bytes[h->disk] : 0;

	if (!h->len || !is_aligned(h->gpa, WIRE_CLUSTER_BYTES) ||
	    !range_ok(h->gpa, h->len, size) ||
	    !range_ok(h->gpa % WIRE_UNIT_BYTES, h->len, WIRE_UNIT_BYTES) ||
	    (!is_aligned(h->len, WIRE_CLUSTER_BYTES) &&
	     h->gpa + h->len != size))
		return err_set(err, EBADMSG,
			       "stream %u: %#llx bytes at %#llx of disk %u",
			       s->index, (unsigned long long)h->len,
			       (unsigned long long)h->gpa, h->disk);
	if (wire_stream_of(h->gpa, s->num) != s->index)
		return err_set(err, EBADMSG,
			       "stream %u: disk %u at %#llx is another "
			       "stream's",
			       s->index, h->disk, (unsigned long long)h->gpa);
	return 0;
}

static bool is_packed(const struct wire_data_header *h)
{
	return h->type == WIRE_PAGES_LZ4 || h->type == WIRE_PAGES_ZSTD;
}

static bool has_content(const struct wire_data_header *h)
{
	return h->type == WIRE_PAGES || h->type == WIRE_DISK || is_packed(h);
}

static int check_data(struct wire_stream *s, const struct wire_data_header *h,
		      struct err *err)
{
	switch (h->type) {
	case WIRE_PAGES:
	case WIRE_ZERO:
	case WIRE_UNIT:
		return check_range(s, h, err);
	case WIRE_PAGES_LZ4:
	case WIRE_PAGES_ZSTD:
		return check_packed(s, h, err);
	case WIRE_DISK:
	case WIRE_DISK_ZERO:
		return check_disk(s, h, err);
	case WIRE_ROUND:
		if (h->gpa == s->rounds + 1 && h->gpa <= MAX_ROUNDS && !h->len)
			return 0;
		break;
	case WIRE_END:
		if (h->gpa == s->rounds && h->len == s->page_bytes)
			return 0;
		break;
	case WIRE_REQUEST:
	case WIRE_DONE:
		break;
	}
	return err_set(err, EBADMSG,
		       "stream %u: message %u (%#llx, %#llx) after %llu rounds",
		       s->index, (unsigned int)h->type,
		       (unsigned long long)h->gpa, (unsigned long long)h->len,
		       (unsigned long long)s->rounds);
}

static void load_data(const uint8_t in[WIRE_DATA_BYTES],
		      struct wire_data_header *ret)
{
	*ret = (struct wire_data_header){
		.type = (enum wire_data)le32_load(in),
		.gpa = le64_load(in + 8),
		.len = le64_load(in + 16),
	};
	if (is_disk(ret))
		ret->disk = le32_load(in + 4);
	else
		ret->packed = le32_load(in + 4);
}

int wire_parse_data(const uint8_t in[WIRE_DATA_BYTES], struct wire_stream *s,
		    struct wire_data_header *ret, struct err *err)
{
	struct wire_data_header h;
	int r;

	load_data(in, &h);
	if (s->ended || (h.packed && !is_packed(&h)))
		return err_set(err, EBADMSG, "stream %u: bytes %s", s->index,
			       s->ended ? "after its end" : "in reserve");
	r = check_data(s, &h, err);
	if (r)
		return r;
	s->rounds += h.type == WIRE_ROUND;
	s->page_bytes += has_content(&h) ? h.len : 0;
	s->ended = h.type == WIRE_END;
	*ret = h;
	return 0;
}

/* ---- post-copy ---- */

/* What a range that follows may be. */
static int check_following(const struct wire_stream *s,
			   const struct wire_data_header *h, struct err *err)
{
	if (is_packed(h))
		return check_packed(s, h, err);
	if ((h->type != WIRE_PAGES && h->type != WIRE_ZERO) || h->packed)
		return err_set(err, EBADMSG,
			       "stream %u: message %u while memory follows",
			       s->index, (unsigned int)h->type);
	return check_range(s, h, err);
}

int wire_parse_follow(const uint8_t in[WIRE_DATA_BYTES], struct wire_stream *s,
		      const struct page_map *pending,
		      struct wire_data_header *ret, struct err *err)
{
	struct wire_data_header h;
	int r;

	load_data(in, &h);
	if (h.type == WIRE_DONE && s->index != WIRE_URGENT && !s->ended &&
	    !h.gpa && !h.len && !h.packed) {
		s->ended = true;
		*ret = h;
		return 0;
	}
	if (s->ended)
		return err_set(err, EBADMSG, "stream %u: bytes after its end",
			       s->index);
	r = check_following(s, &h, err);
	if (r)
		return r;
	if (!page_map_has(pending, h.gpa, h.len))
		return err_set(err, EBADMSG,
			       "stream %u: %#llx bytes of memory at %#llx that "
			       "were not pending",
			       s->index, (unsigned long long)h.len,
			       (unsigned long long)h.gpa);
	s->page_bytes += h.type == WIRE_ZERO ? 0 : h.len;
	*ret = h;
	return 0;
}

int wire_parse_request(const uint8_t in[WIRE_DATA_BYTES],
		       const struct page_map *pending, struct page_map *asked,
		       struct wire_data_header *ret, struct err *err)
{
	struct wire_data_header h;

	load_data(in, &h);
	if (h.type != WIRE_REQUEST || h.packed || h.len != PAGE_4K ||
	    !is_aligned(h.gpa, PAGE_4K) || !page_map_test(pending, h.gpa))
		return err_set(err, EBADMSG,
			       "a request (%u) for %#llx bytes of memory at "
			       "%#llx",
			       (unsigned int)h.type, (unsigned long long)h.len,
			       (unsigned long long)h.gpa);
	if (!page_map_set(asked, h.gpa, PAGE_4K))
		return err_set(err, EBADMSG,
			       "a second request for memory at %#llx",
			       (unsigned long long)h.gpa);
	*ret = h;
	return 0;
}
