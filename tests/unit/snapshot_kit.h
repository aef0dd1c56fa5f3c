/* SPDX-License-Identifier: Apache-2.0 */
/* Guest memory with a pattern, snapshots of it in a scratch directory. */
#ifndef QUIRE_TESTS_SNAPSHOT_KIT_H
#define QUIRE_TESTS_SNAPSHOT_KIT_H

#include "ram_present.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "snapshot/reader.h"
#include "snapshot/writer.h"

struct kit {
	char dir[128];
	char path[4][160]; /* in dir */
};

static inline void kit_start_in(struct kit *kit, const char *where)
{
	snprintf(kit->dir, sizeof(kit->dir), "%s/quire-snapshot-XXXXXX", where);
	assert_non_null(mkdtemp(kit->dir));
	for (int i = 0; i < 4; i++)
		snprintf(kit->path[i], sizeof(kit->path[i]), "%s/snap%d",
			 kit->dir, i);
}

/* In memory, where syncing takes no time. */
static inline void kit_start(struct kit *kit)
{
	kit_start_in(kit, access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
}

static inline void kit_end(const struct kit *kit)
{
	char command[160];

	snprintf(command, sizeof(command), "rm -rf '%s'", kit->dir);
	assert_int_equal(system(command), 0);
}

static inline void kit_ram(struct ram *ram, uint64_t size, enum ram_page page,
			   bool shared)
{
	const struct ram_config cfg = {
		.size_bytes = size,
		.hole_start = GIB,
		.hole_end = 2 * GIB,
		.page = page,
		.shared = shared,
	};
	struct err err = ERR_INIT;

	if (ram_init(ram, &cfg, &err)) {
		print_message("%s\n", err.text);
		fail();
	}
}

/* What page number `page` of a region holds in version `version`. */
static inline uint64_t kit_word(uint64_t gpa, uint64_t version)
{
	return (gpa + 1) * 0x9e3779b97f4a7c15ull + version;
}

static inline void kit_fill(const struct ram *ram, uint64_t gpa,
			    uint64_t version)
{
	uint64_t *p = (uint64_t *)(ram->base + gpa);

	for (unsigned int i = 0; i < 512; i++)
		p[i] = kit_word(gpa + i * 8, version);
}

static inline bool kit_page_is(const struct ram *ram, uint64_t gpa,
			       uint64_t version)
{
	const uint64_t *p = (const uint64_t *)(ram->base + gpa);

	for (unsigned int i = 0; i < 512; i++) {
		if (p[i] != kit_word(gpa + i * 8, version))
			return false;
	}
	return true;
}

static inline bool kit_page_is_zero(const struct ram *ram, uint64_t gpa)
{
	const uint64_t *p = (const uint64_t *)(ram->base + gpa);

	for (unsigned int i = 0; i < 512; i++) {
		if (p[i])
			return false;
	}
	return true;
}

/* One page of three in each of some units; some zeroes that are touched. */
static inline bool kit_has_data(uint64_t gpa)
{
	uint64_t unit = gpa / PAGE_2M;

	if (unit % 4 == 1)
		return true;
	return unit % 4 == 2 && gpa / PAGE_4K % 3 == 0;
}

static inline uint64_t kit_fill_all(const struct ram *ram, uint64_t version)
{
	uint64_t bytes = 0;

	for (unsigned int i = 0; i < ram->num_regions; i++) {
		uint64_t base = ram->regions[i].base.v;
		uint64_t size = MIN(ram->regions[i].size, 32 * MIB);

		for (uint64_t at = base; at < base + size; at += PAGE_4K) {
			if (!kit_has_data(at))
				continue;
			kit_fill(ram, at, version);
			bytes += PAGE_4K;
		}
		/* Touched, and zero. */
		memset(ram->base + base, 0, PAGE_4K);
	}
	return bytes;
}

static inline void kit_check_all(const struct ram *ram, uint64_t version)
{
	for (unsigned int i = 0; i < ram->num_regions; i++) {
		uint64_t base = ram->regions[i].base.v;
		uint64_t size = MIN(ram->regions[i].size, 36 * MIB);

		for (uint64_t at = base; at < base + size; at += PAGE_4K) {
			if (at - base < 32 * MIB && kit_has_data(at))
				assert_true(kit_page_is(ram, at, version));
			else
				assert_true(kit_page_is_zero(ram, at));
		}
	}
}

static const char kit_state[] = "saved state of a machine";

static inline struct snapshot_writer *
kit_writer(const struct snapshot_writer_config *cfg)
{
	json_t *config = json_pack("{s:s}", "name", "unit");
	struct snapshot_writer *w = NULL;
	struct err err = ERR_INIT;

	if (snapshot_writer_new(&w, cfg, &err)) {
		print_message("%s\n", err.text);
		fail();
	}
	assert_int_equal(snapshot_writer_put_config(w, config, &err), 0);
	assert_int_equal(snapshot_writer_put_state(w, kit_state,
						   sizeof(kit_state), &err),
			 0);
	json_decref(config);
	return w;
}

static inline void kit_write(const struct snapshot_writer_config *cfg,
			     const struct snapshot_memory_request *req,
			     struct snapshot_memory_result *ret)
{
	struct snapshot_writer *w = kit_writer(cfg);
	struct err err = ERR_INIT;

	if (snapshot_writer_put_memory(w, req, ret, &err) ||
	    snapshot_writer_commit(w, &err)) {
		print_message("%s\n", err.text);
		fail();
	}
	snapshot_writer_free(w);
}

static inline struct snapshot_reader *kit_open(const char *path)
{
	struct snapshot_reader *r = NULL;
	struct err err = ERR_INIT;

	if (snapshot_reader_open(&r, path, &err)) {
		print_message("%s\n", err.text);
		fail();
	}
	return r;
}

/* How many entries a directory has. */
static inline unsigned int kit_count(const char *path)
{
	char command[300];
	unsigned int num = 0;
	FILE *f;

	snprintf(command, sizeof(command), "ls -A '%s' | wc -l", path);
	f = popen(command, "r");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%u", &num), 1);
	pclose(f);
	return num;
}

#endif
