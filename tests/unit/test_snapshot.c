/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot_kit.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include "base/bitmap.h"
#include "mem/restore.h"
#include "no_uring.h"
#include "snapshot/sum.h"
#include "snapshot/sum_xxh.h"
#include "snapshot/set_pages.h"
#include "snapshot/working_set.h"

/* 48 MiB in one region, or 16 + 48 around a hole. */
#define SMALL (48 * MIB)
#define SPLIT (GIB + 48 * MIB)

static void restore(const char *path, struct ram *ram, enum restore_mode mode)
{
	struct snapshot_reader *r = kit_open(path);
	struct restore_request req = {
		.source = snapshot_reader_memory(r),
		.threads = 2,
	};
	struct restore_result result = { 0 };
	struct err err = ERR_INIT;
	int code;

	if (mode == RESTORE_PRIVATE)
		code = snapshot_reader_map(r, ram, &err);
	else
		code = restore_eager(ram, &req, &result, &err);
	if (code)
		print_message("%s\n", err.text);
	assert_int_equal(code, 0);
	/* A mapping does without the reader, a new snapshot would not. */
	ram->behind = NULL;
	snapshot_reader_free(r);
}

static void round_trip(uint64_t size, enum ram_page page, bool shared,
		       bool direct, enum restore_mode mode)
{
	struct kit kit;
	struct ram ram, again;
	struct snapshot_memory_result result;
	struct snapshot_memory_request req = {
		.ram = &ram,
		.threads = 3,
		.direct = direct,
	};
	struct stat st;
	char memory[200];
	uint64_t bytes, present;

	/* On a disk once, with and without O_DIRECT. */
	kit_start_in(&kit, direct || size == SMALL ? "/tmp" : "/dev/shm");
	kit_ram(&ram, size, page, shared);
	bytes = kit_fill_all(&ram, 1);
	present = ram_present(&ram, 0, ram.regions[0].size);
	kit_write(&(struct snapshot_writer_config){ .path = kit.path[0] }, &req,
		  &result);
	assert_int_equal(result.data_bytes, bytes);
	assert_int_equal(result.total_bytes, ram_size(&ram));
	assert_int_equal(result.data_bytes + result.zero_bytes,
			 result.total_bytes);
	/* Nothing was faulted in to be copied out. */
	assert_int_equal(ram_present(&ram, 0, ram.regions[0].size), present);
	snprintf(memory, sizeof(memory), "%s/memory", kit.path[0]);
	assert_int_equal(stat(memory, &st), 0);
	assert_int_equal(st.st_size, ram.span);
	assert_in_range(st.st_blocks * 512, bytes, bytes + MIB);
	kit_ram(&again, size, mode == RESTORE_PRIVATE ? RAM_PAGE_4K : page,
		mode == RESTORE_PRIVATE ? false : shared);
	restore(kit.path[0], &again, mode);
	kit_check_all(&again, 1);
	ram_fini(&again);
	ram_fini(&ram);
	kit_end(&kit);
}

static void test_round_trip_private(void **state)
{
	round_trip(SMALL, RAM_PAGE_4K, false, false, RESTORE_PRIVATE);
	round_trip(SPLIT, RAM_PAGE_THP, false, true, RESTORE_PRIVATE);
}

static void test_round_trip_eager(void **state)
{
	round_trip(SMALL, RAM_PAGE_4K, false, true, RESTORE_EAGER);
	round_trip(SPLIT, RAM_PAGE_4K, false, false, RESTORE_EAGER);
	round_trip(SMALL, RAM_PAGE_THP, false, false, RESTORE_EAGER);
}

static void test_round_trip_shared(void **state)
{
	round_trip(SPLIT, RAM_PAGE_4K, true, false, RESTORE_EAGER);
	round_trip(SMALL, RAM_PAGE_4K, true, true, RESTORE_PRIVATE);
}

/* What another process wrote into the memfd is not in our page table. */
static void test_shared_written_elsewhere(void **state)
{
	struct kit kit;
	struct ram ram, again;
	char page[PAGE_4K];

	kit_start(&kit);
	kit_ram(&ram, SPLIT, RAM_PAGE_4K, true);
	memset(page, 0x5a, sizeof(page));
	/* In the second region: its place in the file is not its address. */
	assert_int_equal(pwrite(ram.fd, page, sizeof(page), GIB + 6 * MIB),
			 sizeof(page));
	assert_int_equal(ram_present(&ram, 2 * GIB, 48 * MIB), 0);
	kit_write(&(struct snapshot_writer_config){ .path = kit.path[0] },
		  &(struct snapshot_memory_request){ .ram = &ram }, NULL);
	assert_int_equal(ram_present(&ram, 2 * GIB, 48 * MIB), 0);
	kit_ram(&again, SPLIT, RAM_PAGE_4K, false);
	restore(kit.path[0], &again, RESTORE_PRIVATE);
	assert_memory_equal(again.base + 2 * GIB + 6 * MIB, page, PAGE_4K);
	assert_true(kit_page_is_zero(&again, 2 * GIB + 6 * MIB + PAGE_4K));
	ram_fini(&again);
	ram_fini(&ram);
	kit_end(&kit);
}

/* A snapshot of a VM that is mapped from a snapshot and touched little. */
static void test_snapshot_of_mapped(void **state)
{
	struct kit kit;
	struct ram ram, mapped, again;
	struct snapshot_reader *r;
	struct snapshot_memory_result result;
	struct err err = ERR_INIT;
	uint64_t bytes;

	kit_start(&kit);
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	bytes = kit_fill_all(&ram, 1);
	kit_write(&(struct snapshot_writer_config){ .path = kit.path[0] },
		  &(struct snapshot_memory_request){ .ram = &ram }, NULL);
	r = kit_open(kit.path[0]);
	kit_ram(&mapped, SMALL, RAM_PAGE_4K, false);
	assert_int_equal(snapshot_reader_map(r, &mapped, &err), 0);
	assert_int_equal(ram_present(&mapped, 0, SMALL), 0);
	kit_fill(&mapped, 2 * MIB, 2);
	kit_write(&(struct snapshot_writer_config){ .path = kit.path[1] },
		  &(struct snapshot_memory_request){ .ram = &mapped }, &result);
	assert_int_equal(result.data_bytes, bytes);
	assert_int_equal(ram_present(&mapped, 0, SMALL), PAGE_4K);
	kit_ram(&again, SMALL, RAM_PAGE_4K, false);
	restore(kit.path[1], &again, RESTORE_EAGER);
	assert_true(kit_page_is(&again, 2 * MIB, 2));
	kit_fill(&again, 2 * MIB, 1);
	kit_check_all(&again, 1);
	ram_fini(&mapped);
	snapshot_reader_free(r);
	ram_fini(&again);
	ram_fini(&ram);
	kit_end(&kit);
}

/* What the mapping must refuse. */
static void test_map_refused(void **state)
{
	struct kit kit;
	struct ram ram, shared, larger;
	struct snapshot_reader *r;
	struct err err = ERR_INIT;

	kit_start(&kit);
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	kit_write(&(struct snapshot_writer_config){ .path = kit.path[0] },
		  &(struct snapshot_memory_request){ .ram = &ram }, NULL);
	r = kit_open(kit.path[0]);
	kit_ram(&shared, SMALL, RAM_PAGE_4K, true);
	assert_int_equal(snapshot_reader_map(r, &shared, &err), -ENOTSUP);
	kit_ram(&larger, SMALL + 2 * MIB, RAM_PAGE_4K, false);
	assert_int_equal(snapshot_reader_map(r, &larger, &err), -EINVAL);
	assert_non_null(strstr(err.text, "has 48 MiB of memory in 1 regions, "
					 "the machine has 50 MiB in 1"));
	snapshot_reader_free(r);
	ram_fini(&larger);
	ram_fini(&shared);
	ram_fini(&ram);
	kit_end(&kit);
}

static void test_contents(void **state)
{
	struct kit kit;
	struct ram ram;
	struct snapshot_reader *r;
	struct err err = ERR_INIT;
	size_t len;

	kit_start(&kit);
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	kit_fill_all(&ram, 1);
	kit_write(&(struct snapshot_writer_config){ .path = kit.path[0] },
		  &(struct snapshot_memory_request){ .ram = &ram }, NULL);
	assert_int_equal(kit_count(kit.dir), 1);
	assert_int_equal(kit_count(kit.path[0]), 5);
	r = kit_open(kit.path[0]);
	assert_memory_equal(snapshot_reader_state(r, &len), kit_state,
			    sizeof(kit_state));
	assert_int_equal(len, sizeof(kit_state));
	assert_string_equal(json_string_value(json_object_get(
				    snapshot_reader_config(r), "name")),
			    "unit");
	assert_int_equal(snapshot_reader_sums(r)[0], 0);
	assert_int_not_equal(snapshot_reader_sums(r)[1], 0);
	assert_int_equal(snapshot_reader_verify(r, 2, NULL, &err), 0);
	snapshot_reader_free(r);
	ram_fini(&ram);
	kit_end(&kit);
}

/* ---- whole or not at all ---- */

static void test_replace(void **state)
{
	struct kit kit;
	struct ram ram, again;
	struct snapshot_writer *w;
	struct err err = ERR_INIT;
	struct snapshot_writer_config cfg = { 0 };
	struct snapshot_memory_request req = { .ram = &ram };

	kit_start(&kit);
	cfg.path = kit.path[0];
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	kit_fill_all(&ram, 1);
	kit_write(&cfg, &req, NULL);
	assert_int_equal(snapshot_writer_new(&w, &cfg, &err), -EEXIST);
	kit_fill_all(&ram, 2);
	cfg.replace = true;
	/* Dropped half way: the old one stays, nothing else does. */
	w = kit_writer(&cfg);
	assert_int_equal(kit_count(kit.dir), 2);
	assert_int_equal(snapshot_writer_put_memory(w, &req, NULL, &err), 0);
	snapshot_writer_free(w);
	assert_int_equal(kit_count(kit.dir), 1);
	kit_ram(&again, SMALL, RAM_PAGE_4K, false);
	restore(kit.path[0], &again, RESTORE_PRIVATE);
	kit_write(&cfg, &req, NULL);
	assert_int_equal(kit_count(kit.dir), 1);
	/* Who has the old one mapped keeps it. */
	kit_check_all(&again, 1);
	ram_fini(&again);
	kit_ram(&again, SMALL, RAM_PAGE_4K, false);
	restore(kit.path[0], &again, RESTORE_EAGER);
	kit_check_all(&again, 2);
	ram_fini(&again);
	ram_fini(&ram);
	kit_end(&kit);
}

static void test_never_replaces_others(void **state)
{
	struct kit kit;
	struct snapshot_writer *w;
	struct err err = ERR_INIT;
	struct snapshot_writer_config cfg = { .replace = true };

	kit_start(&kit);
	cfg.path = kit.path[0];
	assert_int_equal(mkdir(kit.path[0], 0700), 0);
	assert_int_equal(snapshot_writer_new(&w, &cfg, &err), -EEXIST);
	assert_non_null(strstr(err.text, "no snapshot"));
	cfg.path = "/nowhere/at/all";
	assert_int_equal(snapshot_writer_new(&w, &cfg, &err), -ENOENT);
	cfg.path = "/tmp/..";
	assert_int_equal(snapshot_writer_new(&w, &cfg, &err), -EINVAL);
	kit_end(&kit);
}

struct stopper {
	unsigned int calls, stop_at;
	uint64_t stop_done; /* or once so many bytes are done; 0: not so */
	bool kill;
	uint64_t done;
};

static bool stop_poll(void *ctx, const struct populate_progress *progress)
{
	struct stopper *s = ctx;

	assert_true(progress->done_bytes >= s->done);
	s->done = progress->done_bytes;
	if (s->stop_done ? s->done < s->stop_done : ++s->calls < s->stop_at)
		return false;
	if (s->kill)
		raise(SIGKILL);
	return true;
}

static void test_cancel(void **state)
{
	struct kit kit;
	struct ram ram;
	struct snapshot_writer *w;
	struct stopper stopper = { .stop_done = 6 * MIB };
	const struct populate_watch watch = { stop_poll, &stopper };
	const struct snapshot_memory_request req = {
		.ram = &ram,
		.threads = 1,
		.watch = &watch,
	};
	struct err err = ERR_INIT;

	kit_start(&kit);
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	kit_fill_all(&ram, 1);
	w = kit_writer(&(struct snapshot_writer_config){ .path = kit.path[0] });
	assert_int_equal(snapshot_writer_put_memory(w, &req, NULL, &err),
			 -ECANCELED);
	/* The only worker waits for the watch after each unit. */
	assert_int_equal(stopper.done, 6 * MIB);
	snapshot_writer_free(w);
	assert_int_equal(kit_count(kit.dir), 0);
	ram_fini(&ram);
	kit_end(&kit);
}

static void killed_writer(const struct kit *kit, struct ram *ram)
{
	struct stopper stopper = { .stop_at = 4, .kill = true };
	const struct populate_watch watch = { stop_poll, &stopper };

	kit_write(
		&(struct snapshot_writer_config){
			.path = kit->path[0],
			.replace = true,
		},
		/* With two the first one may be asked only once. */
		&(struct snapshot_memory_request){
			.ram = ram, .threads = 1, .watch = &watch },
		NULL);
	_exit(1);
}

/* kill -9 in the middle: the one before is whole, what is left is removed. */
static void test_killed(void **state)
{
	struct kit kit;
	struct ram ram, again;
	struct snapshot_writer *w;
	pid_t pid;
	int status;

	kit_start(&kit);
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	kit_fill_all(&ram, 1);
	kit_write(&(struct snapshot_writer_config){ .path = kit.path[0] },
		  &(struct snapshot_memory_request){ .ram = &ram }, NULL);
	kit_fill_all(&ram, 2);
	pid = fork();
	if (!pid)
		killed_writer(&kit, &ram);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	assert_int_equal(kit_count(kit.dir), 2);
	kit_ram(&again, SMALL, RAM_PAGE_4K, false);
	restore(kit.path[0], &again, RESTORE_EAGER);
	kit_check_all(&again, 1);
	/* At another name nothing is touched; of a living writer neither. */
	w = kit_writer(&(struct snapshot_writer_config){ .path = kit.path[1] });
	assert_int_equal(kit_count(kit.dir), 3);
	kit_write(
		&(struct snapshot_writer_config){
			.path = kit.path[0],
			.replace = true,
		},
		&(struct snapshot_memory_request){ .ram = &ram }, NULL);
	assert_int_equal(kit_count(kit.dir), 2);
	snapshot_writer_free(w);
	assert_int_equal(kit_count(kit.dir), 1);
	ram_fini(&again);
	ram_fini(&ram);
	kit_end(&kit);
}

/* Two writers at one place: the first stays, the second is told. */
static void test_two_writers(void **state)
{
	struct kit kit;
	struct ram ram;
	struct snapshot_writer *a, *b;
	struct snapshot_writer_config cfg = { 0 };
	const struct snapshot_memory_request req = { .ram = &ram };
	struct err err = ERR_INIT;

	kit_start(&kit);
	cfg.path = kit.path[0];
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	a = kit_writer(&cfg);
	b = kit_writer(&cfg);
	assert_int_equal(snapshot_writer_put_memory(a, &req, NULL, &err), 0);
	assert_int_equal(snapshot_writer_put_memory(b, &req, NULL, &err), 0);
	assert_int_equal(snapshot_writer_commit(a, &err), 0);
	assert_int_equal(snapshot_writer_commit(b, &err), -EEXIST);
	snapshot_writer_free(b);
	snapshot_writer_free(a);
	assert_int_equal(kit_count(kit.dir), 1);
	snapshot_reader_free(kit_open(kit.path[0]));
	ram_fini(&ram);
	kit_end(&kit);
}

static void test_disk_full(void **state)
{
	struct kit kit;
	struct ram ram;
	struct snapshot_writer *w;
	struct err err = ERR_INIT;
	char path[200];

	kit_start(&kit);
	if (mount("none", kit.dir, "tmpfs", 0, "size=8m")) {
		print_message("skip: no mount(2) for a small file system: %s\n",
			      strerror(errno));
		kit_end(&kit);
		skip();
	}
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	kit_fill_all(&ram, 1);
	snprintf(path, sizeof(path), "%s/a", kit.dir);
	w = kit_writer(&(struct snapshot_writer_config){ .path = path });
	assert_int_equal(
		snapshot_writer_put_memory(w,
					   &(struct snapshot_memory_request){
						   .ram = &ram, .threads = 2 },
					   NULL, &err),
		-ENOSPC);
	assert_non_null(strstr(err.text, "writing memory at offset 0x"));
	assert_non_null(strstr(err.text, "No space left on device"));
	snapshot_writer_free(w);
	assert_int_equal(kit_count(kit.dir), 0);
	assert_int_equal(umount(kit.dir), 0);
	ram_fini(&ram);
	kit_end(&kit);
}

/* ---- damage ---- */

static int open_and_verify(const char *path, struct err *err)
{
	struct snapshot_reader *r;
	int code = snapshot_reader_open(&r, path, err);

	if (code)
		return code;
	code = snapshot_reader_verify(r, 1, NULL, err);
	snapshot_reader_free(r);
	return code;
}

static void flip(const char *dir, const char *name, uint64_t offset)
{
	char path[200];
	uint8_t byte;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_RDWR);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, (off_t)offset), 1);
	byte ^= 0x10;
	assert_int_equal(pwrite(fd, &byte, 1, (off_t)offset), 1);
	close(fd);
}

static void check_flipped(const char *dir, const char *name, uint64_t offset)
{
	struct err err = ERR_INIT;
	int code;

	flip(dir, name, offset);
	code = open_and_verify(dir, &err);
	if (!code || !strstr(err.text, name))
		print_message("%s at %llu: %d %s\n", name,
			      (unsigned long long)offset, code, err.text);
	assert_in_set(-code, ((const unsigned long[]){ EBADMSG, ENOTSUP }), 2);
	assert_non_null(strstr(err.text, name));
	flip(dir, name, offset);
}

static void test_flipped_bits(void **state)
{
	static const char *const names[] = { "manifest.json", "config.json",
					     "state", "memory.sums" };
	struct kit kit;
	struct ram ram;
	struct err err = ERR_INIT;
	struct stat st;
	char path[200];

	kit_start(&kit);
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	kit_fill_all(&ram, 1);
	kit_write(&(struct snapshot_writer_config){ .path = kit.path[0] },
		  &(struct snapshot_memory_request){ .ram = &ram }, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), "%s/%s", kit.path[0], names[i]);
		assert_int_equal(stat(path, &st), 0);
		/* Not white space of the manifest, which means nothing. */
		for (off_t at = 0; at < st.st_size - 1;
		     at += 1 + st.st_size / 64)
			if (i || at == 0)
				check_flipped(kit.path[0], names[i],
					      (uint64_t)at);
	}
	check_flipped(kit.path[0], "memory", 2 * MIB + 17);
	check_flipped(kit.path[0], "memory", 46 * MIB); /* in a hole */
	assert_int_equal(open_and_verify(kit.path[0], &err), 0);
	ram_fini(&ram);
	kit_end(&kit);
}

/* A damaged unit is not given to anybody, its neighbours are. */
static void test_source_checks(void **state)
{
	struct kit kit;
	struct ram ram;
	struct snapshot_reader *r;
	const struct mem_source *source;
	struct err err = ERR_INIT;
	char page[PAGE_4K];

	kit_start(&kit);
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	kit_fill_all(&ram, 1);
	kit_write(&(struct snapshot_writer_config){ .path = kit.path[0] },
		  &(struct snapshot_memory_request){ .ram = &ram }, NULL);
	flip(kit.path[0], "memory", 3 * MIB);
	r = kit_open(kit.path[0]);
	source = snapshot_reader_memory(r);
	assert_int_equal(mem_source_read(source, GPA(2 * MIB), page,
					 sizeof(page), &err),
			 -EBADMSG);
	assert_non_null(strstr(err.text,
			       "memory at offset 0x200000-0x400000: checksum "
			       "does not match"));
	assert_int_equal(mem_source_read(source, GPA(4 * MIB), page,
					 sizeof(page), &err),
			 0);
	assert_memory_equal(page, ram.base + 4 * MIB, sizeof(page));
	/* Known to be good: a second page is read alone. */
	assert_int_equal(mem_source_read(source, GPA(4 * MIB + 3 * PAGE_4K),
					 page, sizeof(page), &err),
			 0);
	assert_memory_equal(page, ram.base + 4 * MIB + 3 * PAGE_4K,
			    sizeof(page));
	snapshot_reader_free(r);
	ram_fini(&ram);
	kit_end(&kit);
}

/* Whatever the CPU has, the sums are those of the format. */
static void test_sums(void **state)
{
	static const size_t lens[] = { 0, 1, 16, 17, 240, 241, 4096, 100001 };
	const char *pages[SUM_UNIT_PAGES] = { NULL };
	char *bytes = malloc(2 * MIB);
	bool avx2 = __builtin_cpu_supports("avx2");

	assert_non_null(bytes);
	/* XXH3 of nothing, as its specification has it. */
	assert_int_equal(sum_code_sse2.bytes("", 0), 0x2d06800538d394c2);
	for (size_t i = 0; i < 2 * MIB; i++)
		bytes[i] = (char)((i * 2654435761u) >> 11);
	for (size_t i = 0; i < ARRAY_SIZE(lens); i++) {
		uint64_t sum = sum_code_sse2.bytes(bytes + i, lens[i]);

		assert_int_equal(sum_bytes(bytes + i, lens[i]), sum);
		if (avx2)
			assert_int_equal(
				sum_code_avx2.bytes(bytes + i, lens[i]), sum);
	}
	memset(bytes + 3 * PAGE_4K, 0, 5 * PAGE_4K);
	for (size_t i = 0; i < SUM_UNIT_PAGES; i++)
		pages[i] = i < 3 || i >= 8 ? bytes + i * PAGE_4K : NULL;
	assert_int_equal(sum_unit_pages(pages, SUM_UNIT_PAGES),
			 sum_unit(bytes, 2 * MIB));
	assert_int_equal(sum_code_sse2.pages(pages, SUM_UNIT_PAGES),
			 sum_code_sse2.bytes(bytes, 2 * MIB));
	memset(pages, 0, sizeof(pages));
	assert_int_equal(sum_unit_pages(pages, SUM_UNIT_PAGES), 0);
	if (!avx2)
		print_message("this CPU has no AVX2: half of it not tested\n");
	free(bytes);
}

/* How many of the pages of [at, at + len) of a file the page cache has. */
static unsigned int cached_pages(const char *path, off_t at, size_t len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	unsigned char there[64];
	unsigned int n = 0;
	void *map;

	assert_true(fd >= 0 && len <= sizeof(there) * PAGE_4K);
	map = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, at);
	assert_ptr_not_equal(map, MAP_FAILED);
	assert_int_equal(mincore(map, len, there), 0);
	for (size_t i = 0; i < len / PAGE_4K; i++)
		n += there[i] & 1;
	munmap(map, len);
	close(fd);
	return n;
}

/* Long holes within a unit are not read, short ones and data are. */
static void test_holes(void **state)
{
	static const unsigned int filled[] = { 0,   1,	 4,   19,  36,
					       200, 201, 210, 510, 511 };
	const uint64_t unit = 4 * MIB;
	struct kit kit;
	struct ram ram;
	struct snapshot_reader *r;
	struct err err = ERR_INIT;
	char *bytes = malloc(2 * MIB), path[200];
	const struct mem_source *source;

	assert_non_null(bytes);
	/* tmpfs reads holes without making pages. */
	kit_start_in(&kit, "/tmp");
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	for (size_t i = 0; i < ARRAY_SIZE(filled); i++)
		kit_fill(&ram, unit + filled[i] * PAGE_4K, 1);
	kit_write(&(struct snapshot_writer_config){ .path = kit.path[0] },
		  &(struct snapshot_memory_request){ .ram = &ram }, NULL);
	r = kit_open(kit.path[0]);
	source = snapshot_reader_memory(r);
	memset(bytes, 0xff, 2 * MIB);
	assert_int_equal(
		mem_source_read(source, GPA(unit), bytes, 2 * MIB, &err), 0);
	assert_memory_equal(bytes, ram.base + unit, 2 * MIB);
	/* Known to be good now: from the midst of a hole into that of another.
	 */
	for (uint64_t at = 0; at < 2 * MIB - 40 * PAGE_4K; at += PAGE_4K) {
		memset(bytes, 0xff, 40 * PAGE_4K);
		assert_int_equal(mem_source_read(source, GPA(unit + at), bytes,
						 40 * PAGE_4K, &err),
				 0);
		assert_memory_equal(bytes, ram.base + unit + at, 40 * PAGE_4K);
	}
	snprintf(path, sizeof(path), "%s/memory", kit.path[0]);
	assert_int_equal(cached_pages(path, (off_t)(unit + 300 * PAGE_4K),
				      64 * PAGE_4K),
			 0);
	snapshot_reader_free(r);
	free(bytes);
	ram_fini(&ram);
	kit_end(&kit);
}

static void check_truncated(const char *dir, const char *name, off_t size)
{
	struct err err = ERR_INIT;
	char path[200], saved[200], command[500];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	snprintf(saved, sizeof(saved), "%s.saved", dir);
	snprintf(command, sizeof(command), "cp --sparse=always '%s' '%s'", path,
		 saved);
	assert_int_equal(system(command), 0);
	assert_int_equal(truncate(path, size), 0);
	assert_int_equal(open_and_verify(dir, &err), -EBADMSG);
	assert_non_null(strstr(err.text, name));
	assert_int_equal(rename(saved, path), 0);
}

static void test_truncated(void **state)
{
	struct kit kit;
	struct ram ram;
	struct err err = ERR_INIT;
	char path[200];

	kit_start(&kit);
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	kit_fill_all(&ram, 1);
	kit_write(&(struct snapshot_writer_config){ .path = kit.path[0] },
		  &(struct snapshot_memory_request){ .ram = &ram }, NULL);
	check_truncated(kit.path[0], "manifest.json", 0);
	check_truncated(kit.path[0], "manifest.json", 200);
	check_truncated(kit.path[0], "config.json", 5);
	check_truncated(kit.path[0], "state", 5);
	check_truncated(kit.path[0], "memory.sums", 0);
	check_truncated(kit.path[0], "memory.sums", 60);
	check_truncated(kit.path[0], "memory", SMALL - 4096);
	check_truncated(kit.path[0], "memory", SMALL + 4096); /* too long */
	assert_int_equal(open_and_verify(kit.path[0], &err), 0);
	/* Not regular, or not there. */
	snprintf(path, sizeof(path), "%s/state", kit.path[0]);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(open_and_verify(kit.path[0], &err), -ENOENT);
	assert_int_equal(mkfifo(path, 0600), 0);
	assert_int_equal(open_and_verify(kit.path[0], &err), -EINVAL);
	assert_int_equal(open_and_verify("/nowhere/at/all", &err), -ENOENT);
	ram_fini(&ram);
	kit_end(&kit);
}

/* ---- increments ---- */

/* Changed in the second version: data to other data, to zero, zero to data. */
static uint64_t change(const struct ram *ram, uint64_t *map)
{
	static const uint64_t rewritten[] = { 2 * MIB, 2 * MIB + PAGE_4K,
					      10 * MIB };
	static const uint64_t fresh[] = { 40 * MIB, 7 * MIB };

	for (size_t i = 0; i < ARRAY_SIZE(rewritten); i++) {
		kit_fill(ram, rewritten[i], 2);
		bitmap_set(map, rewritten[i] / PAGE_4K);
	}
	for (size_t i = 0; i < ARRAY_SIZE(fresh); i++) {
		kit_fill(ram, fresh[i], 2);
		bitmap_set(map, fresh[i] / PAGE_4K);
	}
	memset(ram->base + 11 * MIB, 0, PAGE_4K);
	bitmap_set(map, 11 * MIB / PAGE_4K);
	/* Dirty, and the same. */
	bitmap_set(map, 3 * MIB / PAGE_4K);
	bitmap_set(map, 20 * MIB / PAGE_4K);
	return 6 * PAGE_4K; /* that are dirty and not zero */
}

static void check_changed(struct ram *ram)
{
	static const uint64_t all[] = { 2 * MIB, 2 * MIB + PAGE_4K, 10 * MIB,
					40 * MIB, 7 * MIB };

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		assert_true(kit_page_is(ram, all[i], 2));
	assert_true(kit_page_is_zero(ram, 11 * MIB));
	/* Make it what it was, and the rest can be compared. */
	for (size_t i = 0; i < 3; i++)
		kit_fill(ram, all[i], 1);
	memset(ram->base + 40 * MIB, 0, PAGE_4K);
	memset(ram->base + 7 * MIB, 0, PAGE_4K);
	kit_fill(ram, 11 * MIB, 1);
	kit_check_all(ram, 1);
}

static void check_snapshot(const char *path)
{
	struct snapshot_reader *r = kit_open(path);
	struct err err = ERR_INIT;
	struct ram ram;

	if (snapshot_reader_verify(r, 2, NULL, &err)) {
		print_message("%s\n", err.text);
		fail();
	}
	snapshot_reader_free(r);
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	restore(path, &ram, RESTORE_EAGER);
	check_changed(&ram);
	ram_fini(&ram);
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	restore(path, &ram, RESTORE_PRIVATE);
	check_changed(&ram);
	ram_fini(&ram);
}

/* The second snapshot upon the first. Returns what was written. */
static struct snapshot_memory_result write_increment(const struct kit *kit,
						     bool delta)
{
	struct ram ram;
	struct snapshot_reader *parent;
	struct snapshot_memory_result result;
	uint64_t map[BITMAP_WORDS(SMALL / PAGE_4K)] = { 0 };
	const struct snapshot_memory_request req = {
		.ram = &ram,
		.threads = 2,
		.dirty = { map },
	};
	uint64_t bytes;

	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	kit_fill_all(&ram, 1);
	kit_write(&(struct snapshot_writer_config){ .path = kit->path[0] },
		  &(struct snapshot_memory_request){ .ram = &ram }, NULL);
	bytes = change(&ram, map);
	parent = kit_open(kit->path[0]);
	kit_write(
		&(struct snapshot_writer_config){
			.path = kit->path[1],
			.parent = parent,
			.delta = delta,
		},
		&req, &result);
	assert_int_equal(result.data_bytes, bytes);
	assert_int_equal(result.zero_bytes, 2 * PAGE_4K);
	snapshot_reader_free(parent);
	ram_fini(&ram);
	return result;
}

static void test_delta(void **state)
{
	struct kit kit;
	struct snapshot_memory_result result;
	struct snapshot_reader *r;
	struct err err = ERR_INIT;
	struct stat st;
	char path[200], moved[200];

	kit_start(&kit);
	result = write_increment(&kit, true);
	assert_int_equal(result.layout, SNAPSHOT_DELTA);
	assert_false(result.reflinked);
	snprintf(path, sizeof(path), "%s/memory", kit.path[1]);
	assert_int_equal(stat(path, &st), 0);
	assert_in_range(st.st_blocks * 512, 6 * PAGE_4K, 64 * KIB);
	check_snapshot(kit.path[1]);
	r = kit_open(kit.path[1]);
	assert_string_equal(snapshot_reader_manifest(r)->parent_path,
			    "../snap0");
	assert_int_equal(snapshot_reader_whole_fd(r), -1);
	snapshot_reader_free(r);
	/* The map is checked as the rest. */
	check_flipped(kit.path[1], "memory.map", 10);
	check_flipped(kit.path[1], "memory.map", 40);
	/* Without its parent it is nothing, with another one neither. */
	snprintf(moved, sizeof(moved), "%s/elsewhere", kit.dir);
	assert_int_equal(rename(kit.path[0], moved), 0);
	assert_int_equal(open_and_verify(kit.path[1], &err), -ENOENT);
	assert_non_null(strstr(err.text, "its parent"));
	assert_int_equal(rename(kit.path[1], kit.path[0]), 0);
	assert_int_equal(open_and_verify(kit.path[0], &err), -ELOOP);
	kit_end(&kit);
}

static void write_next(const struct kit *kit, unsigned int from,
		       unsigned int to, uint64_t gpa)
{
	struct snapshot_reader *parent = kit_open(kit->path[from]);
	uint64_t map[BITMAP_WORDS(SMALL / PAGE_4K)] = { 0 };
	struct snapshot_memory_request req = { .dirty = { map } };
	struct ram ram;

	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	restore(kit->path[from], &ram, RESTORE_EAGER);
	kit_fill(&ram, gpa, 3);
	bitmap_set(map, gpa / PAGE_4K);
	req.ram = &ram;
	kit_write(
		&(struct snapshot_writer_config){
			.path = kit->path[to],
			.parent = parent,
			.delta = true,
		},
		&req, NULL);
	snapshot_reader_free(parent);
	ram_fini(&ram);
}

/* Deltas upon deltas; the newest that has a page wins. */
/* Say something else of the map, and have the file be so, as a hole. */
static void stretch_map(const char *path, uint64_t bytes)
{
	struct snapshot_reader *r = kit_open(path);
	struct snapshot_manifest m = *snapshot_reader_manifest(r);
	char name[200], *text;
	FILE *f;

	m.files[SNAPSHOT_FILE_MAP].bytes = bytes;
	text = snapshot_manifest_format(&m);
	assert_non_null(text);
	snapshot_reader_free(r);
	snprintf(name, sizeof(name), "%s/manifest.json", path);
	f = fopen(name, "w");
	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
	free(text);
	snprintf(name, sizeof(name), "%s/memory.map", path);
	assert_int_equal(truncate(name, (off_t)bytes), 0);
}

/* A sparse file costs nothing; reading it must not cost what it claims. */
static void test_sparse_map(void **state)
{
	struct snapshot_reader *r = NULL;
	struct kit kit;
	struct err err = ERR_INIT;

	kit_start(&kit);
	(void)write_increment(&kit, true);
	stretch_map(kit.path[1], 1ull << 40);
	assert_int_equal(snapshot_reader_open(&r, kit.path[1], &err), -EBADMSG);
	assert_non_null(strstr(err.text, "manifest.json: files"));
	kit_end(&kit);
}

static void test_chain(void **state)
{
	struct kit kit;
	struct ram ram;

	kit_start(&kit);
	write_increment(&kit, true);
	write_next(&kit, 1, 2, 30 * MIB);
	write_next(&kit, 2, 3, 7 * MIB);
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	restore(kit.path[3], &ram, RESTORE_PRIVATE);
	assert_true(kit_page_is(&ram, 30 * MIB, 3));
	assert_true(kit_page_is(&ram, 7 * MIB, 3));
	if (kit_has_data(30 * MIB))
		kit_fill(&ram, 30 * MIB, 1);
	else
		memset(ram.base + 30 * MIB, 0, PAGE_4K);
	kit_fill(&ram, 7 * MIB, 2);
	check_changed(&ram);
	ram_fini(&ram);
	kit_end(&kit);
}

/* A long run of a delta is mapped, and shares the page cache. */
static void test_delta_mapped(void **state)
{
	struct kit kit;
	struct ram ram, again;
	struct snapshot_reader *parent;
	uint64_t map[BITMAP_WORDS(SMALL / PAGE_4K)] = { 0 };
	struct snapshot_memory_request req = { .ram = &ram, .dirty = { map } };

	kit_start(&kit);
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	kit_fill_all(&ram, 1);
	kit_write(&(struct snapshot_writer_config){ .path = kit.path[0] },
		  &(struct snapshot_memory_request){ .ram = &ram }, NULL);
	for (uint64_t at = 40 * MIB; at < 41 * MIB; at += PAGE_4K) {
		kit_fill(&ram, at, 2);
		bitmap_set(map, at / PAGE_4K);
	}
	kit_fill(&ram, 44 * MIB, 2);
	bitmap_set(map, 44 * MIB / PAGE_4K);
	parent = kit_open(kit.path[0]);
	kit_write(
		&(struct snapshot_writer_config){
			.path = kit.path[1],
			.parent = parent,
			.delta = true,
		},
		&req, NULL);
	snapshot_reader_free(parent);
	kit_ram(&again, SMALL, RAM_PAGE_4K, false);
	restore(kit.path[1], &again, RESTORE_PRIVATE);
	/* Only the short run was read. */
	assert_int_equal(ram_present(&again, 0, SMALL), PAGE_4K);
	for (uint64_t at = 40 * MIB; at < 41 * MIB; at += PAGE_4K)
		assert_true(kit_page_is(&again, at, 2));
	assert_true(kit_page_is(&again, 44 * MIB, 2));
	ram_fini(&again);
	ram_fini(&ram);
	kit_end(&kit);
}

/* What must be refused. */
static void test_increment_refused(void **state)
{
	struct kit kit;
	struct ram ram;
	struct snapshot_reader *parent;
	struct snapshot_writer *w;
	struct snapshot_writer_config cfg = { .replace = true, .delta = true };
	const struct snapshot_memory_request req = { .ram = &ram };
	struct err err = ERR_INIT;

	kit_start(&kit);
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	kit_write(&(struct snapshot_writer_config){ .path = kit.path[0] }, &req,
		  NULL);
	parent = kit_open(kit.path[0]);
	cfg.path = kit.path[0];
	cfg.parent = parent;
	w = kit_writer(&cfg);
	assert_int_equal(snapshot_writer_put_memory(w, &req, NULL, &err),
			 -EINVAL);
	assert_non_null(strstr(err.text, "increment of what it replaces"));
	snapshot_writer_free(w);
	ram_fini(&ram);
	kit_ram(&ram, SMALL + 2 * MIB, RAM_PAGE_4K, false);
	cfg.path = kit.path[1];
	w = kit_writer(&cfg);
	assert_int_equal(snapshot_writer_put_memory(w, &req, NULL, &err),
			 -EINVAL);
	assert_non_null(strstr(err.text, "another size"));
	snapshot_writer_free(w);
	assert_int_equal(kit_count(kit.dir), 1);
	snapshot_reader_free(parent);
	ram_fini(&ram);
	kit_end(&kit);
}

static void make_image(const char *path)
{
	char block[4096];
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);

	assert_true(fd >= 0);
	memset(block, 0x42, sizeof(block));
	assert_int_equal(pwrite(fd, block, sizeof(block), MIB), sizeof(block));
	assert_int_equal(ftruncate(fd, 8 * MIB), 0);
	close(fd);
}

static void check_cloned_disk(const struct kit *kit)
{
	struct ram ram;
	struct snapshot_writer *w;
	struct snapshot_reader *r;
	char image[200];
	const struct snapshot_disk_request disk = {
		.id = "a",
		.path = image,
		.fd = -1,
	};
	const struct snapshot_memory_request memory = { .ram = &ram };
	struct err err = ERR_INIT;

	snprintf(image, sizeof(image), "%s/image", kit->dir);
	make_image(image);
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	w = kit_writer(
		&(struct snapshot_writer_config){ .path = kit->path[3] });
	assert_int_equal(snapshot_writer_put_memory(w, &memory, NULL, &err), 0);
	assert_int_equal(snapshot_writer_add_disk(w, &disk, &err), 0);
	assert_int_equal(snapshot_writer_commit(w, &err), 0);
	snapshot_writer_free(w);
	r = kit_open(kit->path[3]);
	assert_int_equal(snapshot_reader_manifest(r)->disks[0].kind,
			 SNAPSHOT_DISK_CLONE);
	snapshot_reader_free(r);
	ram_fini(&ram);
}

/* On a file system that can share blocks: one whole file, few new blocks. */
static void reflinked(const char *mkfs)
{
	struct kit kit, inner;
	struct snapshot_memory_result result;
	struct snapshot_reader *r;
	char command[900], mnt[96];

	kit_start_in(&kit, "/tmp");
	snprintf(command, sizeof(command),
		 "truncate -s 400M '%s/image' && %s '%s/image' >/dev/null 2>&1 "
		 "&& mkdir '%s/mnt' && mount -o loop '%s/image' '%s/mnt' "
		 "2>/dev/null",
		 kit.dir, mkfs, kit.dir, kit.dir, kit.dir, kit.dir);
	if (system(command)) {
		kit_end(&kit);
		print_message("skip: %s or a loop mount cannot be had\n", mkfs);
		skip();
	}
	snprintf(mnt, sizeof(mnt), "%.80s/mnt", kit.dir);
	kit_start_in(&inner, mnt);
	check_cloned_disk(&inner);
	result = write_increment(&inner, false);
	assert_true(result.reflinked);
	assert_int_equal(result.layout, SNAPSHOT_WHOLE);
	check_snapshot(inner.path[1]);
	/* It stands alone. */
	r = kit_open(inner.path[1]);
	assert_string_equal(snapshot_reader_manifest(r)->parent_path,
			    "../snap0");
	assert_int_not_equal(snapshot_reader_whole_fd(r), -1);
	snapshot_reader_free(r);
	snprintf(command, sizeof(command), "rm -r '%s'", inner.path[0]);
	assert_int_equal(system(command), 0);
	check_snapshot(inner.path[1]);
	snprintf(command, sizeof(command), "umount '%s/mnt'", kit.dir);
	assert_int_equal(system(command), 0);
	kit_end(&kit);
}

static void test_reflink_xfs(void **state)
{
	reflinked("mkfs.xfs -q");
}

static void test_reflink_btrfs(void **state)
{
	reflinked("mkfs.btrfs -q");
}

/* ---- disks ---- */

static void test_disks(void **state)
{
	struct kit kit;
	struct ram ram;
	struct snapshot_writer *w;
	struct snapshot_reader *r;
	const struct snapshot_manifest *m;
	char image[200], copy[500];
	struct snapshot_disk_request disk = {
		.id = "_disk0",
		.path = image,
		.fd = -1,
	};
	const struct snapshot_memory_request memory = { .ram = &ram };
	struct err err = ERR_INIT;
	struct stat st;

	kit_start(&kit);
	snprintf(image, sizeof(image), "%s/image", kit.dir);
	make_image(image);
	kit_ram(&ram, SMALL, RAM_PAGE_4K, false);
	w = kit_writer(&(struct snapshot_writer_config){ .path = kit.path[0] });
	assert_int_equal(snapshot_writer_put_memory(w, &memory, NULL, &err), 0);
	disk.may_copy = true;
	assert_int_equal(snapshot_writer_add_disk(w, &disk, &err), 0);
	assert_int_equal(snapshot_writer_add_disk(w, &disk, &err), -EINVAL);
	disk.id = "../evil";
	assert_int_equal(snapshot_writer_add_disk(w, &disk, &err), -EINVAL);
	disk.id = "two";
	disk.reference = true;
	assert_int_equal(snapshot_writer_add_disk(w, &disk, &err), 0);
	assert_int_equal(snapshot_writer_commit(w, &err), 0);
	snapshot_writer_free(w);

	r = kit_open(kit.path[0]);
	m = snapshot_reader_manifest(r);
	assert_int_equal(m->num_disks, 2);
	assert_int_equal(m->disks[0].kind, SNAPSHOT_DISK_COPY);
	assert_string_equal(m->disks[0].file, "disk-_disk0");
	assert_int_equal(m->disks[1].kind, SNAPSHOT_DISK_REFERENCE);
	assert_null(m->disks[1].file);
	snapshot_reader_free(r);
	snprintf(copy, sizeof(copy), "cmp '%s' '%.160s/disk-_disk0'", image,
		 kit.path[0]);
	assert_int_equal(system(copy), 0);
	snprintf(copy, sizeof(copy), "%.160s/disk-_disk0", kit.path[0]);
	assert_int_equal(stat(copy, &st), 0);
	assert_in_range(st.st_blocks * 512, 4096, 64 * KIB);
	assert_int_equal(truncate(copy, MIB), 0);
	assert_int_equal(open_and_verify(kit.path[0], &err), -EBADMSG);
	assert_non_null(strstr(err.text, "disk-_disk0: ends at offset"));
	ram_fini(&ram);
	kit_end(&kit);
}

/* No sharing on tmpfs: said, and nothing is left. */
static void test_disk_not_cloned(void **state)
{
	struct kit kit;
	struct snapshot_writer *w;
	char image[200];
	const struct snapshot_disk_request disk = {
		.id = "a",
		.path = image,
		.fd = -1,
	};
	struct err err = ERR_INIT;

	kit_start(&kit);
	snprintf(image, sizeof(image), "%s/image", kit.dir);
	make_image(image);
	w = kit_writer(&(struct snapshot_writer_config){ .path = kit.path[0] });
	assert_int_equal(snapshot_writer_add_disk(w, &disk, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "cannot be cloned here"));
	snapshot_writer_free(w);
	assert_int_equal(kit_count(kit.dir), 1);
	kit_end(&kit);
}

/* ---- working set ---- */

static void test_working_set_file(void **state)
{
	struct kit kit;
	struct ram ram;
	struct snapshot_reader *r;
	struct working_set_unit units[] = {
		{ .gpa = 2 * GIB + 4 * MIB, .pages = { 5, 0, 1ull << 63 } },
		{ .gpa = 2 * MIB, .pages = { [7] = UINT64_MAX } },
	};
	const struct working_set set = { .num = 2, .units = units };
	struct working_set back;
	struct err err = ERR_INIT;

	kit_start(&kit);
	kit_ram(&ram, SPLIT, RAM_PAGE_4K, false);
	kit_write(&(struct snapshot_writer_config){ .path = kit.path[0] },
		  &(struct snapshot_memory_request){ .ram = &ram }, NULL);
	r = kit_open(kit.path[0]);
	assert_int_equal(snapshot_working_set_load(r, &back, &err), -ENOENT);
	assert_int_equal(snapshot_working_set_save(r, &set, &err), 0);
	assert_int_equal(kit_count(kit.path[0]), 6);
	assert_int_equal(snapshot_working_set_load(r, &back, &err), 0);
	assert_int_equal(back.num, 2);
	assert_memory_equal(back.units, units, sizeof(units));
	working_set_fini(&back);
	/* Out of place, twice, beyond the end: nobody's pages. */
	units[1].gpa = GIB;
	assert_int_equal(snapshot_working_set_save(r, &set, &err), 0);
	assert_int_equal(snapshot_working_set_load(r, &back, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "working-set: offset 104: unit "
					 "0x40000000 is out of place"));
	units[1].gpa = units[0].gpa;
	assert_int_equal(snapshot_working_set_save(r, &set, &err), 0);
	assert_int_equal(snapshot_working_set_load(r, &back, &err), -EBADMSG);
	flip(kit.path[0], "working-set", 40);
	assert_int_equal(snapshot_working_set_load(r, &back, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "checksum"));
	snapshot_reader_free(r);
	ram_fini(&ram);
	kit_end(&kit);
}

static void cut(const char *dir, const char *name, off_t size)
{
	char path[200];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	assert_int_equal(truncate(path, size), 0);
}

/* Two pages with a word in each, one of zeroes; then a dense unit; one page. */
static void set_of_pages(struct ram *ram, struct working_set_unit units[3])
{
	units[0] = (struct working_set_unit){ .gpa = 2 * GIB + 4 * MIB,
					      .pages = { [0] = 0x13 } };
	units[1] = (struct working_set_unit){ .gpa = 2 * MIB };
	memset(units[1].pages, 0xff, sizeof(units[1].pages));
	units[2] = (struct working_set_unit){ .gpa = 4 * MIB,
					      .pages = { [7] = 1ull << 63 } };
	*(uint64_t *)(ram->base + units[0].gpa) = 11;
	*(uint64_t *)(ram->base + units[0].gpa + 4 * PAGE_4K) = 12;
	*(uint64_t *)(ram->base + units[2].gpa + 511 * PAGE_4K) = 13;
}

static void check_kept(struct snapshot_reader *r, const struct working_set *set)
{
	_cleanup_free_ uint64_t *buf = malloc(2 * MIB);
	uint64_t pages[WORKING_SET_WORDS];
	struct set_pages *kept;
	const struct working_set_store *store;
	struct err err = ERR_INIT;

	assert_int_equal(set_pages_open(&kept, r, set, &err), 0);
	store = set_pages_store(kept);
	assert_int_equal(store->read(store->ctx, 0, buf, pages, &err), 1);
	assert_int_equal(pages[0], 0x11); /* what is zero is not there */
	assert_int_equal(buf[0], 11);
	assert_int_equal(buf[PAGE_4K / 8], 12);
	assert_int_equal(store->read(store->ctx, 1, buf, pages, &err), 0);
	assert_int_equal(store->read(store->ctx, 2, buf, pages, &err), 1);
	assert_int_equal(pages[0], 0);
	assert_int_equal(pages[7], 1ull << 63);
	assert_int_equal(buf[0], 13);
	set_pages_free(kept);
}

static void check_damage(struct kit *kit, struct snapshot_reader *r,
			 const struct working_set *set)
{
	static const char name[] = "working-set.pages";
	_cleanup_free_ uint64_t *buf = malloc(2 * MIB);
	uint64_t pages[WORKING_SET_WORDS];
	struct set_pages *kept;
	const struct working_set_store *store;
	struct err err = ERR_INIT;

	/* A page: found when it is read, and only then. */
	flip(kit->path[0], name, 4096 + 2 * 4096);
	assert_int_equal(set_pages_open(&kept, r, set, &err), 0);
	store = set_pages_store(kept);
	assert_int_equal(store->read(store->ctx, 0, buf, pages, &err), 1);
	assert_int_equal(store->read(store->ctx, 2, buf, pages, &err),
			 -EBADMSG);
	assert_non_null(strstr(err.text, "offset 12288: checksum"));
	set_pages_free(kept);
	flip(kit->path[0], name, 90);
	assert_int_equal(set_pages_open(&kept, r, set, &err), -EBADMSG);
	flip(kit->path[0], name, 90);
	cut(kit->path[0], name, 4096 + 2 * 4096);
	assert_int_equal(set_pages_open(&kept, r, set, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "ends at offset 12288; its pages at "
					 "16384"));
	cut(kit->path[0], name, 100);
	assert_int_equal(set_pages_open(&kept, r, set, &err), -EBADMSG);
}

static void test_set_pages(void **state)
{
	static const _Atomic bool never, always = true;
	struct kit kit;
	struct ram ram;
	struct snapshot_reader *r;
	struct working_set_unit units[3];
	const struct working_set set = { .num = 3, .units = units };
	const struct working_set less = { .num = 2, .units = units };
	const struct working_set dense = { .num = 1, .units = &units[1] };
	struct set_pages *kept;
	struct err err = ERR_INIT;

	kit_start(&kit);
	kit_ram(&ram, SPLIT, RAM_PAGE_4K, false);
	set_of_pages(&ram, units);
	kit_write(&(struct snapshot_writer_config){ .path = kit.path[0] },
		  &(struct snapshot_memory_request){ .ram = &ram }, NULL);
	r = kit_open(kit.path[0]);
	assert_int_equal(set_pages_open(&kept, r, &set, &err), -ENOENT);
	assert_int_equal(set_pages_save(r, &set, &always, &err), -ECANCELED);
	assert_int_equal(kit_count(kit.path[0]), 5);
	assert_int_equal(set_pages_save(r, &set, &never, &err), 0);
	check_kept(r, &set);
	/* They go with one set. */
	assert_int_equal(set_pages_open(&kept, r, &less, &err), -EBADMSG);
	units[2].pages[0] = 1;
	assert_int_equal(set_pages_open(&kept, r, &set, &err), -ESTALE);
	units[2].pages[0] = 0;
	check_damage(&kit, r, &set);
	/* Nothing to keep: nothing is there afterwards. */
	assert_int_equal(set_pages_save(r, &dense, &never, &err), 0);
	assert_int_equal(set_pages_open(&kept, r, &dense, &err), -ENOENT);
	assert_int_equal(kit_count(kit.path[0]), 5);
	snapshot_reader_free(r);
	ram_fini(&ram);
	kit_end(&kit);
}

static void test_without_io_uring(void **state)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip_eager),
		cmocka_unit_test(test_disk_full),
	};

	run_without_io_uring("without io_uring", tests);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip_private),
		cmocka_unit_test(test_round_trip_eager),
		cmocka_unit_test(test_round_trip_shared),
		cmocka_unit_test(test_shared_written_elsewhere),
		cmocka_unit_test(test_snapshot_of_mapped),
		cmocka_unit_test(test_map_refused),
		cmocka_unit_test(test_contents),
		cmocka_unit_test(test_replace),
		cmocka_unit_test(test_never_replaces_others),
		cmocka_unit_test(test_cancel),
		cmocka_unit_test(test_killed),
		cmocka_unit_test(test_two_writers),
		cmocka_unit_test(test_disk_full),
		cmocka_unit_test(test_flipped_bits),
		cmocka_unit_test(test_source_checks),
		cmocka_unit_test(test_holes),
		cmocka_unit_test(test_sums),
		cmocka_unit_test(test_truncated),
		cmocka_unit_test(test_delta),
		cmocka_unit_test(test_sparse_map),
		cmocka_unit_test(test_chain),
		cmocka_unit_test(test_delta_mapped),
		cmocka_unit_test(test_increment_refused),
		cmocka_unit_test(test_reflink_xfs),
		cmocka_unit_test(test_reflink_btrfs),
		cmocka_unit_test(test_disks),
		cmocka_unit_test(test_disk_not_cloned),
		cmocka_unit_test(test_working_set_file),
		cmocka_unit_test(test_set_pages),
		cmocka_unit_test(test_without_io_uring),
	};

	return cmocka_run_group_tests_name("snapshot", tests, NULL, NULL);
}
