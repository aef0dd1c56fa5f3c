/* SPDX-License-Identifier: Apache-2.0 */
/* migrate/wire.c, converge.c and uri.c: bytes, numbers and names. */
#include "cmocka_all.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/clock.h"
#include "kvm/irq.h"
#include "migrate/converge.h"
#include "migrate/uri.h"
#include "migrate/wire.h"

/* ---- preface ---- */

static void test_preface(void **state)
{
	const struct wire_preface p = { 3, 7, "0123456789abcde" };
	uint8_t bytes[WIRE_PREFACE_BYTES];
	struct wire_preface back;
	struct err err = ERR_INIT;

	wire_put_preface(bytes, &p);
	assert_memory_equal(bytes, "QUIREMIG\1\0\0\0\3\0\7\0", 16);
	assert_int_equal(wire_parse_preface(bytes, &back, &err), 0);
	assert_int_equal(back.stream, 3);
	assert_int_equal(back.num_streams, 7);
	assert_memory_equal(back.id, p.id, WIRE_ID_BYTES);
}

static int parse_preface(unsigned int stream, unsigned int num, uint8_t id,
			 size_t flip, struct err *err)
{
	struct wire_preface p = { .stream = stream, .num_streams = num };
	uint8_t bytes[WIRE_PREFACE_BYTES];

	p.id[15] = id;
	wire_put_preface(bytes, &p);
	if (flip < sizeof(bytes))
		bytes[flip] ^= 0x40;
	return wire_parse_preface(bytes, &p, err);
}

static void test_preface_refused(void **state)
{
	struct err err = ERR_INIT;

	assert_int_equal(parse_preface(64, 64, 1, 99, &err), 0);
	assert_int_equal(parse_preface(0, 1, 1, 99, &err), 0);
	assert_int_equal(parse_preface(0, 0, 1, 99, &err), -EBADMSG);
	assert_int_equal(parse_preface(0, 65, 1, 99, &err), -EBADMSG);
	assert_int_equal(parse_preface(2, 1, 1, 99, &err), -EBADMSG);
	assert_int_equal(parse_preface(0, 1, 0, 99, &err), -EBADMSG);
	assert_int_equal(parse_preface(0, 1, 1, 0, &err), -EBADMSG);
	assert_int_equal(parse_preface(0, 1, 1, 8, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "version 65"));
}

/* ---- control ---- */

static int parse_control(uint32_t type, uint64_t bytes, uint32_t zero,
			 enum wire_control wanted)
{
	uint8_t in[WIRE_CONTROL_BYTES];
	struct wire_control_header h = { .bytes = 77 };
	struct err err = ERR_INIT;
	int r;

	wire_put_control(in, (enum wire_control)type, bytes);
	le32_store(in + 4, zero);
	r = wire_parse_control(in, wanted, &h, &err);
	if (!r) {
		assert_int_equal(h.type, type);
		assert_int_equal(h.bytes, bytes);
	} else {
		assert_int_equal(h.bytes, 77);
		assert_true(err.text[0]);
	}
	return r;
}

static void test_control(void **state)
{
	assert_int_equal(parse_control(WIRE_COMMIT, 0, 0, WIRE_COMMIT), 0);
	assert_int_equal(parse_control(WIRE_ABORT, 400, 0, WIRE_COMMIT), 0);
	assert_int_equal(parse_control(WIRE_FAILED, 0, 0, WIRE_LOADED), 0);
	assert_int_equal(
		parse_control(WIRE_STATE, WIRE_MAX_STATE, 0, WIRE_STATE), 0);
	/* Not of that side, not in that order, not so long, not zero. */
	assert_int_equal(parse_control(WIRE_FAILED, 0, 0, WIRE_COMMIT),
			 -EBADMSG);
	assert_int_equal(parse_control(WIRE_ABORT, 0, 0, WIRE_RUNNING),
			 -EBADMSG);
	assert_int_equal(parse_control(WIRE_COMMIT, 0, 0, WIRE_READY),
			 -EBADMSG);
	assert_int_equal(parse_control(WIRE_COMMIT, 1, 0, WIRE_COMMIT),
			 -EBADMSG);
	assert_int_equal(parse_control(WIRE_STATE, 0, 0, WIRE_STATE), -EBADMSG);
	assert_int_equal(parse_control(WIRE_STATE, WIRE_MAX_STATE + 1, 0,
				       WIRE_STATE),
			 -EBADMSG);
	assert_int_equal(parse_control(WIRE_ABORT, 401, 0, WIRE_COMMIT),
			 -EBADMSG);
	assert_int_equal(parse_control(WIRE_COMMIT, 0, 1, WIRE_COMMIT),
			 -EBADMSG);
	assert_int_equal(parse_control(0, 0, 0, WIRE_COMMIT), -EBADMSG);
	assert_int_equal(parse_control(99, 0, 0, WIRE_COMMIT), -EBADMSG);
	assert_string_equal(wire_control_name(0), "?");
	assert_string_equal(wire_control_name(17), "?");
	assert_string_equal(wire_control_name(9), "ABORT");
}

static void test_text(void **state)
{
	char out[WIRE_MAX_TEXT + 1];
	uint8_t in[WIRE_MAX_TEXT + 50];

	wire_parse_text((const uint8_t *)"a\033[2J\n\303\244", 8, out);
	assert_string_equal(out, "a?[2J?\303\244");
	/* Controls behind ASCII, and what is no UTF-8: cut, too long, alone. */
	wire_parse_text((const uint8_t *)"\302\233x\233y\177", 6, out);
	assert_string_equal(out, "??x?y?");
	wire_parse_text((const uint8_t *)"\302\240\342\202\254\360\237\230\200",
			9, out);
	assert_string_equal(out, "\302\240\342\202\254\360\237\230\200");
	wire_parse_text((const uint8_t *)"\300\257\355\240\200\364\220\200\200"
					 "\342\202",
			11, out);
	assert_string_equal(out, "???????????");
	wire_parse_text((const uint8_t *)"\342\202\254", 2, out);
	assert_string_equal(out, "??");
	memset(in, 'x', sizeof(in));
	wire_parse_text(in, sizeof(in), out);
	assert_int_equal(strlen(out), WIRE_MAX_TEXT);
}

static struct wire_machine a_machine(void)
{
	return (struct wire_machine){
		.memory_bytes = 5 * GIB,
		.num_cpus = 4,
		.threads_per_core = 2,
		.irqchip = IRQCHIP_KERNEL,
		.num_regions = 2,
		.num_devices = 2,
		.regions = { { 0, 3 * GIB }, { 4 * GIB, 2 * GIB } },
		.devices = { { "blk", "_disk0" }, { "net", "_net0" } },
	};
}

static void test_machine(void **state)
{
	const struct wire_machine m = a_machine();
	struct wire_machine back;
	uint8_t bytes[WIRE_MAX_MACHINE];
	struct err err = ERR_INIT;
	size_t len = wire_put_machine(bytes, &m);

	assert_int_equal(len, 40 + 2 * 16 + 2 * 80);
	assert_int_equal(wire_parse_machine(bytes, len, &back, &err), 0);
	assert_int_equal(back.num_regions, 2);
	assert_int_equal(back.regions[1].start, 4 * GIB);
	assert_string_equal(back.devices[1].id, "_net0");
	assert_int_equal(wire_machine_compare(&back, &m, &err), 0);
	/* Cut anywhere, or longer. */
	for (size_t cut = 0; cut < len; cut++)
		assert_int_equal(wire_parse_machine(bytes, cut, &back, &err),
				 -EBADMSG);
	assert_int_equal(wire_parse_machine(bytes, len + 1, &back, &err),
			 -EBADMSG);
}

static int parse_machine_with(size_t at, uint8_t value)
{
	const struct wire_machine m = a_machine();
	struct wire_machine back;
	uint8_t bytes[WIRE_MAX_MACHINE];
	struct err err = ERR_INIT;
	size_t len = wire_put_machine(bytes, &m);

	bytes[at] = value;
	return wire_parse_machine(bytes, len, &back, &err);
}

static void test_machine_refused(void **state)
{
	static const size_t places[] = {
		0,  5,	/* pages, units */
		16,	/* memory is not the sum of its regions */
		33, 34, /* numbers of regions and devices */
		35, 39, /* reserve */
		40, 48, /* the first region: start, length */
		56,	/* the second one begins within a page */
	};

	for (size_t i = 0; i < ARRAY_SIZE(places); i++)
		assert_int_equal(parse_machine_with(places[i], 0x81), -EBADMSG);
	assert_int_equal(parse_machine_with(8, 8), -ENOTSUP);
	/* Memory that is handed over, and follows; disks, and none; and
	 * disks with either of them. */
	assert_int_equal(parse_machine_with(8, 3), -EBADMSG);
	assert_int_equal(parse_machine_with(8, 4), -EBADMSG);
	assert_int_equal(parse_machine_with(8, 5), -EBADMSG);
	assert_int_equal(parse_machine_with(8, 6), -EBADMSG);
	/* The second region inside the first; its length beyond the end. */
	assert_int_equal(parse_machine_with(60, 0), -EBADMSG);
	assert_int_equal(parse_machine_with(71, 0xff), -EBADMSG);
	/* Names: not empty, printable, zeroes behind them. */
	assert_int_equal(parse_machine_with(72, 0), -EBADMSG);
	assert_int_equal(parse_machine_with(72, ' '), -EBADMSG);
	assert_int_equal(parse_machine_with(72, 0xc3), -EBADMSG);
	assert_int_equal(parse_machine_with(87, 'x'), -EBADMSG);
	assert_int_equal(parse_machine_with(88, 0), -EBADMSG);
}

static void check_difference(const struct wire_machine *theirs,
			     const char *words)
{
	const struct wire_machine ours = a_machine();
	struct err err = ERR_INIT;

	assert_int_equal(wire_machine_compare(theirs, &ours, &err), -EINVAL);
	if (!strstr(err.text, words))
		fail_msg("'%s' is not in '%s'", words, err.text);
}

static void test_compare(void **state)
{
	struct wire_machine m = a_machine(), ours = a_machine();
	struct err err = ERR_INIT;

	m.memory_bytes = 6 * GIB;
	check_difference(&m, "6144 MiB of memory, here it is given 5120");
	m = a_machine();
	m.num_cpus = 8;
	check_difference(&m, "8 vCPUs, 2 to a core; here it is given 4, 2");
	m = a_machine();
	m.irqchip = IRQCHIP_SPLIT;
	check_difference(&m, "--irqchip split, here it is kernel");
	m = a_machine();
	strcpy(m.devices[1].id, "other");
	check_difference(&m, "net device 'other' that is not given here");
	m = a_machine();
	strcpy(m.devices[1].cls, "rng");
	check_difference(&m, "'_net0' is rng, here it is net");
	m = a_machine();
	m.num_devices = 1;
	check_difference(&m, "net device '_net0' is given here that");
	/* Their order is nothing. */
	m = a_machine();
	m.devices[0] = ours.devices[1];
	m.devices[1] = ours.devices[0];
	assert_int_equal(wire_machine_compare(&m, &ours, &err), 0);
}

static struct wire_machine with_disks(void)
{
	struct wire_machine m = a_machine();

	m.features = WIRE_FEATURE_DISKS;
	m.num_devices = 3;
	m.devices[2] = (struct wire_device){ "blk", "data" };
	m.num_disks = 2;
	m.disks[0] = (struct wire_disk){ 0, 3 * GIB + 512 };
	m.disks[1] = (struct wire_disk){ 2, 1 * MIB };
	return m;
}

static void test_same_disks(void **state)
{
	struct wire_machine m = with_disks(), other = with_disks();

	assert_true(wire_machine_same_disks(&m, &other));
	/* Of other devices, or more of them, in between. */
	strcpy(other.devices[1].id, "net7");
	assert_true(wire_machine_same_disks(&m, &other));
	other.disks[1].bytes += 512;
	assert_false(wire_machine_same_disks(&m, &other));
	other = with_disks();
	other.num_disks = 1;
	assert_false(wire_machine_same_disks(&m, &other));
	/* One went and came again, behind the other: of the same size. */
	m.disks[1].bytes = m.disks[0].bytes;
	other = m;
	other.devices[0] = m.devices[2];
	other.devices[2] = m.devices[0];
	assert_false(wire_machine_same_disks(&m, &other));
}

#define DISK(n) (40 + 2 * 16 + 3 * 80 + 16 * (n))

static int parse_disks_with(size_t at, uint8_t value)
{
	const struct wire_machine m = with_disks();
	struct wire_machine back;
	uint8_t bytes[WIRE_MAX_MACHINE];
	struct err err = ERR_INIT;
	size_t len = wire_put_machine(bytes, &m);

	assert_int_equal(len, DISK(2));
	bytes[at] = value;
	return wire_parse_machine(bytes, len, &back, &err);
}

static void test_disks(void **state)
{
	const struct wire_machine m = with_disks();
	struct wire_machine back;
	uint8_t bytes[WIRE_MAX_MACHINE];
	struct err err = ERR_INIT;
	size_t len = wire_put_machine(bytes, &m);

	assert_int_equal(wire_parse_machine(bytes, len, &back, &err), 0);
	assert_int_equal(back.num_disks, 2);
	assert_int_equal(back.disks[0].bytes, 3 * GIB + 512);
	assert_int_equal(back.disks[1].device, 2);
	for (size_t cut = 0; cut < len; cut++)
		assert_int_equal(wire_parse_machine(bytes, cut, &back, &err),
				 -EBADMSG);
	/* More disks than there are, or than devices; without the feature. */
	assert_int_equal(parse_disks_with(35, 3), -EBADMSG);
	assert_int_equal(parse_disks_with(35, 4), -EBADMSG);
	assert_int_equal(parse_disks_with(35, 0), -EBADMSG);
	assert_int_equal(parse_disks_with(8, 0), -EBADMSG);
	assert_int_equal(parse_disks_with(36, 1), -EBADMSG);
	/* One device twice, not in order, none; reserve; sizes. */
	assert_int_equal(parse_disks_with(DISK(1), 0), -EBADMSG);
	assert_int_equal(parse_disks_with(DISK(0), 2), -EBADMSG);
	assert_int_equal(parse_disks_with(DISK(1), 3), -EBADMSG);
	assert_int_equal(parse_disks_with(DISK(1) + 3, 0x80), -EBADMSG);
	assert_int_equal(parse_disks_with(DISK(1) + 4, 1), -EBADMSG);
	assert_int_equal(parse_disks_with(DISK(1) + 8, 1), -EBADMSG);
	assert_int_equal(parse_disks_with(DISK(1) + 15, 0x80), -EBADMSG);
	assert_int_equal(parse_disks_with(DISK(1) + 10, 0), -EBADMSG);
	assert_int_equal(parse_disks_with(DISK(1) + 10, 0x20), 0);
}

static void check_disks(const struct wire_machine *theirs,
			const struct wire_machine *ours, const char *words)
{
	struct err err = ERR_INIT;
	int r = wire_machine_compare(theirs, ours, &err);

	assert_int_equal(r, words ? -EINVAL : 0);
	if (words && !strstr(err.text, words))
		fail_msg("'%s' is not in '%s'", words, err.text);
}

static void test_compare_disks(void **state)
{
	struct wire_machine m = with_disks(), ours = with_disks();

	check_disks(&m, &ours, NULL);
	/* Found by their names. */
	ours.devices[0] = m.devices[2];
	ours.devices[2] = m.devices[0];
	ours.disks[0].bytes = m.disks[1].bytes;
	ours.disks[1].bytes = m.disks[0].bytes;
	check_disks(&m, &ours, NULL);
	ours.disks[0].bytes += 512;
	check_disks(&m, &ours,
		    "disk 'data' has 1048576 bytes, here it has 1049088");
	ours = with_disks();
	ours.num_disks = 1;
	check_disks(&m, &ours, "disk 'data' is to be copied, and cannot be");
	check_disks(&ours, &m, "disk 'data' is readonly=on, here it is not");
	/* Shared they may be anything. */
	m.features = 0;
	check_disks(&m, &ours, NULL);
}

static void test_ready(void **state)
{
	const struct wire_ready r = { true, 5, 1 << 20 };
	struct wire_ready back;
	uint8_t bytes[WIRE_READY_BYTES];
	struct err err = ERR_INIT;

	wire_put_ready(bytes, &r);
	assert_int_equal(wire_parse_ready(bytes, &back, &err), 0);
	assert_true(back.ran);
	assert_int_equal(back.rounds, 5);
	assert_int_equal(back.page_bytes, 1 << 20);
	bytes[0] = 3;
	assert_int_equal(wire_parse_ready(bytes, &back, &err), -EBADMSG);
}

/* ---- data ---- */

static struct wire_stream a_stream(void)
{
	return (struct wire_stream){
		.index = 2,
		.num = 3,
		.num_regions = 2,
		.regions = { { 0, 7 * WIRE_UNIT_BYTES + 8192 },
			     { 4 * GIB, 16 * WIRE_UNIT_BYTES } },
	};
}

static int parse_data(struct wire_stream *s, uint32_t type, uint64_t gpa,
		      uint64_t len)
{
	struct wire_data_header h = { .type = (enum wire_data)type,
				      .gpa = gpa,
				      .len = len };
	struct wire_stream before = *s;
	uint8_t bytes[WIRE_DATA_BYTES];
	struct err err = ERR_INIT;
	int r;

	wire_put_data(bytes, &h);
	memset(&h, 0, sizeof(h));
	r = wire_parse_data(bytes, s, &h, &err);
	if (r)
		assert_memory_equal(s, &before, sizeof(before));
	else
		assert_int_equal(h.len, len);
	return r;
}

#define UNIT(n) ((n)*WIRE_UNIT_BYTES)

static void test_ranges(void **state)
{
	struct wire_stream s = a_stream();

	/* Units 1, 4, 7, 10 ... are stream 2's of 3. */
	assert_int_equal(wire_stream_of(UNIT(1) + 4096, 3), 2);
	assert_int_equal(parse_data(&s, WIRE_PAGES, UNIT(1), UNIT(1)), 0);
	assert_int_equal(parse_data(&s, WIRE_PAGES, UNIT(5) - 4096, 4096), 0);
	assert_int_equal(parse_data(&s, WIRE_ZERO, UNIT(7), 8192), 0);
	assert_int_equal(parse_data(&s, WIRE_UNIT, UNIT(4), UNIT(1)), 0);
	assert_int_equal(s.page_bytes, UNIT(1) + 4096);
	/* Another stream's. */
	assert_int_equal(parse_data(&s, WIRE_PAGES, 0, 4096), -EBADMSG);
	assert_int_equal(parse_data(&s, WIRE_ZERO, UNIT(2), 4096), -EBADMSG);
	/* Empty, of parts of pages, over the end of a unit, or of a region. */
	assert_int_equal(parse_data(&s, WIRE_PAGES, UNIT(1), 0), -EBADMSG);
	assert_int_equal(parse_data(&s, WIRE_PAGES, UNIT(1), 100), -EBADMSG);
	assert_int_equal(parse_data(&s, WIRE_PAGES, UNIT(1) + 512, 4096),
			 -EBADMSG);
	assert_int_equal(parse_data(&s, WIRE_ZERO, UNIT(1) + 4096, UNIT(1)),
			 -EBADMSG);
	assert_int_equal(parse_data(&s, WIRE_ZERO, UNIT(7), 12288), -EBADMSG);
	assert_int_equal(parse_data(&s, WIRE_ZERO, UNIT(10), 4096), -EBADMSG);
	assert_int_equal(parse_data(&s, WIRE_PAGES, UNIT(1), 1ull << 63),
			 -EBADMSG);
	assert_int_equal(parse_data(&s, WIRE_PAGES, 0ull - 4096, 8192),
			 -EBADMSG);
	/* In the second region: 4 GiB is unit 2048, of stream 3. */
	assert_int_equal(parse_data(&s, WIRE_PAGES, UNIT(2050), 4096), 0);
	assert_int_equal(parse_data(&s, WIRE_PAGES, UNIT(2065), 4096),
			 -EBADMSG);
}

static int parse_disk(struct wire_stream *s, uint32_t type, uint32_t disk,
		      uint64_t offset, uint64_t len)
{
	const struct wire_data_header h = { .type = (enum wire_data)type,
					    .gpa = offset,
					    .len = len,
					    .disk = disk };
	struct wire_stream before = *s;
	struct wire_data_header back = { 0 };
	uint8_t bytes[WIRE_DATA_BYTES];
	struct err err = ERR_INIT;
	int r;

	wire_put_data(bytes, &h);
	r = wire_parse_data(bytes, s, &back, &err);
	if (r) {
		assert_memory_equal(s, &before, sizeof(before));
		return r;
	}
	assert_int_equal(back.type, h.type);
	assert_int_equal(back.gpa, h.gpa);
	assert_int_equal(back.len, h.len);
	assert_int_equal(back.packed, 0);
	assert_int_equal(back.disk, h.disk);
	return 0;
}

static void test_disk_ranges(void **state)
{
	struct wire_stream s = a_stream();
	const uint64_t c = WIRE_CLUSTER_BYTES;

	/* None were announced. */
	assert_int_equal(parse_disk(&s, WIRE_DISK, 0, UNIT(1), c), -EBADMSG);
	s.num_disks = 2;
	s.disk_bytes[0] = UNIT(5) + 3 * c + 512;
	s.disk_bytes[1] = UNIT(1) + 512;
	assert_int_equal(parse_disk(&s, WIRE_DISK, 0, UNIT(1), UNIT(1)), 0);
	assert_int_equal(parse_disk(&s, WIRE_DISK, 0, UNIT(4) + 3 * c, c), 0);
	assert_int_equal(parse_disk(&s, WIRE_DISK_ZERO, 0, UNIT(4), UNIT(1)),
			 0);
	/* The last one is what is left. */
	assert_int_equal(parse_disk(&s, WIRE_DISK, 1, UNIT(1), 512), 0);
	assert_int_equal(parse_disk(&s, WIRE_DISK, 1, UNIT(1), c), -EBADMSG);
	assert_int_equal(parse_disk(&s, WIRE_DISK_ZERO, 1, UNIT(1), 1024),
			 -EBADMSG);
	assert_int_equal(s.page_bytes, UNIT(1) + c + 512);
	/* Another stream's; the third disk; empty; of parts of clusters. */
	assert_int_equal(parse_disk(&s, WIRE_DISK, 0, 0, c), -EBADMSG);
	assert_int_equal(parse_disk(&s, WIRE_DISK_ZERO, 0, UNIT(5), c),
			 -EBADMSG);
	assert_int_equal(parse_disk(&s, WIRE_DISK, 2, UNIT(1), c), -EBADMSG);
	assert_int_equal(parse_disk(&s, WIRE_DISK, ~0u, UNIT(1), c), -EBADMSG);
	assert_int_equal(parse_disk(&s, WIRE_DISK, 0, UNIT(1), 0), -EBADMSG);
	assert_int_equal(parse_disk(&s, WIRE_DISK, 0, UNIT(1), 512), -EBADMSG);
	assert_int_equal(parse_disk(&s, WIRE_DISK, 0, UNIT(1) + 512, c),
			 -EBADMSG);
	/* Over 2 MiB, over the end, around it. */
	assert_int_equal(parse_disk(&s, WIRE_DISK, 0, UNIT(1) + c, UNIT(1)),
			 -EBADMSG);
	assert_int_equal(parse_disk(&s, WIRE_DISK_ZERO, 0, UNIT(7), c),
			 -EBADMSG);
	assert_int_equal(parse_disk(&s, WIRE_DISK, 0, UNIT(1), 0ull - c),
			 -EBADMSG);
	assert_int_equal(parse_disk(&s, WIRE_DISK, 0, 0ull - c, 2 * c),
			 -EBADMSG);
	/* Where others have zero there is which disk. */
	assert_int_equal(parse_disk(&s, WIRE_ROUND, 0, 1, 0), 0);
	assert_int_equal(parse_disk(&s, WIRE_END, 0, 1, s.page_bytes), 0);
	assert_int_equal(parse_disk(&s, WIRE_DISK, 0, UNIT(1), c), -EBADMSG);
}

static void test_rounds(void **state)
{
	struct wire_stream s = a_stream();

	assert_int_equal(parse_data(&s, WIRE_ROUND, 2, 0), -EBADMSG);
	assert_int_equal(parse_data(&s, WIRE_ROUND, 1, 8), -EBADMSG);
	assert_int_equal(parse_data(&s, WIRE_ROUND, 1, 0), 0);
	assert_int_equal(parse_data(&s, WIRE_ROUND, 1, 0), -EBADMSG);
	assert_int_equal(parse_data(&s, WIRE_PAGES, UNIT(1), 4096), 0);
	assert_int_equal(parse_data(&s, WIRE_ROUND, 2, 0), 0);
	assert_int_equal(parse_data(&s, WIRE_END, 1, 4096), -EBADMSG);
	assert_int_equal(parse_data(&s, WIRE_END, 2, 8192), -EBADMSG);
	assert_int_equal(parse_data(&s, 0, 0, 0), -EBADMSG);
	assert_int_equal(parse_data(&s, 6, 0, 0), -EBADMSG);
	assert_int_equal(parse_data(&s, WIRE_END, 2, 4096), 0);
	assert_true(s.ended);
	assert_int_equal(parse_data(&s, WIRE_PAGES, UNIT(1), 4096), -EBADMSG);
}

/* ---- convergence ---- */

static void test_converges(void **state)
{
	struct converge c;

	converge_init(&c, 100 * NSEC_PER_MSEC);
	assert_false(converge_is_near(&c));
	/* 1 GiB in 1 s, and 512 MiB got dirty: half a second more. */
	converge_round(&c, GIB, NSEC_PER_SEC, GIB / 2);
	assert_false(converge_is_near(&c));
	assert_in_range(converge_downtime_ns(&c), 500 * NSEC_PER_MSEC,
			520 * NSEC_PER_MSEC);
	assert_in_range(converge_eta_ns(&c), 500 * NSEC_PER_MSEC, NSEC_PER_SEC);
	converge_round(&c, GIB / 2, NSEC_PER_SEC / 2, GIB / 4);
	converge_round(&c, GIB / 4, NSEC_PER_SEC / 4, GIB / 16);
	assert_true(converge_is_near(&c));
	assert_int_equal(converge_eta_ns(&c), 0);
	assert_int_equal(c.rounds, 3);
}

static void test_idle_guest(void **state)
{
	struct converge c;

	converge_init(&c, 10 * NSEC_PER_MSEC);
	converge_round(&c, 4096, NSEC_PER_MSEC, 0);
	assert_true(converge_is_near(&c));
}

/* Faster than it is sent: never, and the stop would be as long as a round. */
static void test_never(void **state)
{
	struct converge c;

	converge_init(&c, 300 * NSEC_PER_MSEC);
	for (int i = 0; i < 5; i++)
		converge_round(&c, GIB, NSEC_PER_SEC, GIB);
	assert_false(converge_is_near(&c));
	assert_true(converge_eta_ns(&c) == UINT64_MAX);
	/* Until it calms down. */
	converge_round(&c, GIB, NSEC_PER_SEC, GIB / 8);
	assert_true(converge_is_near(&c));
}

static void test_slow_network(void **state)
{
	struct converge c;

	converge_init(&c, 300 * NSEC_PER_MSEC);
	converge_round(&c, 1, NSEC_PER_SEC * 1000, TIB);
	assert_true(converge_downtime_ns(&c) == UINT64_MAX);
	assert_true(converge_eta_ns(&c) == UINT64_MAX);
	converge_round(&c, 0, 0, TIB);
	assert_false(converge_is_near(&c));
}

/* ---- names ---- */

static void test_uri(void **state)
{
	static const char *const bad[] = {
		"",	      "tcp:",	       "tcp:host",  "tcp:host:",
		"tcp::4444",  "tcp:host:0",    "unix:",	    "tcp:host:65536",
		"tcp:h:44x4", "http://h:4444", "/run/sock", "tcp:h:-1",
	};
	char longest[120] = "unix:";
	struct migrate_uri uri;
	struct err err = ERR_INIT;

	assert_int_equal(migrate_uri_parse(&uri, "tcp:host:4444", &err), 0);
	assert_int_equal(uri.kind, MIGRATE_TCP);
	assert_string_equal(uri.host, "host");
	assert_string_equal(uri.port, "4444");
	assert_int_equal(migrate_uri_parse(&uri, "tcp:[::1]:80", &err), 0);
	assert_string_equal(uri.host, "::1");
	assert_int_equal(migrate_uri_parse(&uri, "tcp://a.b:1", &err), 0);
	assert_string_equal(uri.host, "a.b");
	assert_int_equal(migrate_uri_parse(&uri, "unix:/run/x", &err), 0);
	assert_int_equal(uri.kind, MIGRATE_UNIX);
	assert_string_equal(uri.host, "/run/x");
	assert_int_equal(migrate_uri_parse(&uri, "unix:///run/x", &err), 0);
	assert_string_equal(uri.host, "/run/x");
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(migrate_uri_parse(&uri, bad[i], &err),
				 -EINVAL);
	memset(longest + 5, 'x', UNIX_SOCKET_PATH_MAX);
	assert_int_equal(migrate_uri_parse(&uri, longest, &err), 0);
	longest[5 + UNIX_SOCKET_PATH_MAX] = 'x';
	assert_int_equal(migrate_uri_parse(&uri, longest, &err), -EINVAL);
}

static int option(int fd, int level, int name)
{
	int value = -1;
	socklen_t len = sizeof(value);

	assert_int_equal(getsockopt(fd, level, name, &value, &len), 0);
	return value;
}

/* A host that is gone is noticed; one that only reads nothing is waited for. */
static void is_patient(int fd)
{
	assert_int_equal(option(fd, SOL_SOCKET, SO_KEEPALIVE), 1);
	assert_int_equal(option(fd, IPPROTO_TCP, TCP_KEEPIDLE) +
				 option(fd, IPPROTO_TCP, TCP_KEEPINTVL) *
					 option(fd, IPPROTO_TCP, TCP_KEEPCNT),
			 30);
	assert_int_equal(option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT), 0);
}

static void test_tcp_options(void **state)
{
	struct unix_listener listener;
	struct migrate_uri uri;
	struct err err = ERR_INIT;
	char text[40];
	int r = -EADDRINUSE, fd, accepted;

	for (unsigned int port = 41000; r && port < 41100; port++) {
		snprintf(text, sizeof(text), "tcp:127.0.0.1:%u", port);
		assert_int_equal(migrate_uri_parse(&uri, text, &err), 0);
		r = migrate_uri_listen(&uri, &listener, &err);
	}
	assert_int_equal(r, 0);
	assert_int_equal(migrate_uri_connect(&uri, &fd, &err), 0);
	do
		accepted = accept(listener.fd, NULL, NULL);
	while (accepted < 0 && errno == EAGAIN);
	assert_true(accepted >= 0);
	is_patient(fd);
	is_patient(accepted);
	close(fd);
	close(accepted);
	unix_listener_close(&listener);
}

/* Compressed pages: announced, smaller than what they become, and a range. */
static int parse_packed(uint64_t features, uint32_t type, uint64_t len,
			uint32_t packed)
{
	struct wire_stream s = {
		.index = 1,
		.num = 1,
		.num_regions = 1,
		.regions = { { 0, 8 * WIRE_UNIT_BYTES } },
		.features = features,
	};
	const struct wire_data_header h = {
		.type = (enum wire_data)type,
		.gpa = WIRE_UNIT_BYTES,
		.len = len,
		.packed = packed,
	};
	struct wire_data_header back = { .len = 0 };
	uint8_t bytes[WIRE_DATA_BYTES];
	struct err err = ERR_INIT;
	int r;

	wire_put_data(bytes, &h);
	r = wire_parse_data(bytes, &s, &back, &err);
	assert_int_equal(s.page_bytes, r || type == WIRE_ZERO ? 0 : len);
	assert_int_equal(back.packed, r ? 0 : packed);
	return r;
}

static void test_packed(void **state)
{
	const uint64_t lz4 = WIRE_FEATURE_LZ4, zstd = WIRE_FEATURE_ZSTD;
	const uint32_t unit = WIRE_UNIT_BYTES;

	assert_int_equal(parse_packed(lz4, WIRE_PAGES_LZ4, unit, 1), 0);
	assert_int_equal(parse_packed(lz4, WIRE_PAGES_LZ4, unit, unit - 1), 0);
	assert_int_equal(parse_packed(zstd, WIRE_PAGES_ZSTD, 4096, 4095), 0);
	assert_int_equal(parse_packed(zstd, WIRE_PAGES_LZ4, 4096, 9), -EBADMSG);
	assert_int_equal(parse_packed(lz4, WIRE_PAGES_ZSTD, 4096, 9), -EBADMSG);
	assert_int_equal(parse_packed(0, WIRE_PAGES_LZ4, 4096, 9), -EBADMSG);
	assert_int_equal(parse_packed(lz4, WIRE_PAGES_LZ4, 4096, 0), -EBADMSG);
	assert_int_equal(parse_packed(lz4, WIRE_PAGES_LZ4, 4096, 4096),
			 -EBADMSG);
	assert_int_equal(parse_packed(lz4, WIRE_PAGES_LZ4, 4096, UINT32_MAX),
			 -EBADMSG);
	assert_int_equal(parse_packed(lz4, WIRE_PAGES_LZ4, 4097, 9), -EBADMSG);
	assert_int_equal(parse_packed(lz4, WIRE_PAGES_LZ4, 2 * WIRE_UNIT_BYTES,
				      9),
			 -EBADMSG);
	assert_int_equal(parse_packed(lz4, WIRE_PAGES_LZ4, 1ull << 40, 9),
			 -EBADMSG);
	/* The others have no such length. */
	assert_int_equal(parse_packed(lz4, WIRE_PAGES, 4096, 9), -EBADMSG);
	assert_int_equal(parse_packed(lz4, WIRE_ZERO, 4096, 9), -EBADMSG);
	assert_int_equal(parse_packed(lz4, WIRE_ZERO, 4096, 0), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_preface),
		cmocka_unit_test(test_preface_refused),
		cmocka_unit_test(test_control),
		cmocka_unit_test(test_text),
		cmocka_unit_test(test_machine),
		cmocka_unit_test(test_machine_refused),
		cmocka_unit_test(test_compare),
		cmocka_unit_test(test_same_disks),
		cmocka_unit_test(test_disks),
		cmocka_unit_test(test_compare_disks),
		cmocka_unit_test(test_ready),
		cmocka_unit_test(test_ranges),
		cmocka_unit_test(test_disk_ranges),
		cmocka_unit_test(test_packed),
		cmocka_unit_test(test_rounds),
		cmocka_unit_test(test_converges),
		cmocka_unit_test(test_idle_guest),
		cmocka_unit_test(test_never),
		cmocka_unit_test(test_slow_network),
		cmocka_unit_test(test_uri),
		cmocka_unit_test(test_tcp_options),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
