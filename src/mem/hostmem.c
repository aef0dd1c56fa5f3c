/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/hostmem.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/io.h"
#include "mem/memcg.h"

#define POOL_DIR "/sys/kernel/mm/hugepages/hugepages-%llukB"

/* 0 for a file that is absent or holds no number. */
static uint64_t pool_number(const char *root, uint64_t page_bytes,
			    const char *file)
{
	uint64_t value = 0;
	char path[PATH_MAX];

	if (snprintf(path, sizeof(path), "%s" POOL_DIR "/%s", root,
		     (unsigned long long)(page_bytes / KIB), file) >= PATH_MAX)
		return 0;
	return io_read_u64(path, &value) ? 0 : value;
}

static uint64_t excess(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

static struct hostmem_pool read_pool(const char *root, uint64_t page_bytes)
{
	uint64_t limit = pool_number(root, page_bytes,
				     "nr_overcommit_hugepages");
	uint64_t surplus = pool_number(root, page_bytes, "surplus_hugepages");
	uint64_t reserved = pool_number(root, page_bytes, "resv_hugepages");
	uint64_t unused = pool_number(root, page_bytes, "free_hugepages");
	char path[PATH_MAX];
	int len = snprintf(path, sizeof(path), "%s" POOL_DIR, root,
			   (unsigned long long)(page_bytes / KIB));

	return (struct hostmem_pool){
		.exists = len < PATH_MAX && !access(path, F_OK),
		.total = pool_number(root, page_bytes, "nr_hugepages"),
		.idle = excess(unused, reserved),
		.growth = excess(limit, surplus),
	};
}

bool hostmem_field(const char *text, const char *key, uint64_t *ret_bytes)
{
	const char *at = strstr(text, key);
	unsigned long long kib;

	if (!at || sscanf(at + strlen(key), " %llu kB", &kib) != 1)
		return false;
	return mul_u64(kib, KIB, ret_bytes);
}

static void read_meminfo(struct hostmem *host, const char *root)
{
	char path[PATH_MAX], text[4096];

	host->total_bytes = 0;
	host->available_bytes = UINT64_MAX;
	if (snprintf(path, sizeof(path), "%s/proc/meminfo", root) >= PATH_MAX ||
	    io_read_text(path, text, sizeof(text)) < 0)
		return;
	(void)hostmem_field(text, "MemTotal:", &host->total_bytes);
	(void)hostmem_field(text, "MemAvailable:", &host->available_bytes);
}

static void read_cgroup(struct hostmem_cgroup *ret, const char *root)
{
	struct memcg_room room;
	char file[PATH_MAX];
	struct memcg cg;
	size_t len;

	memcg_open(&cg, root);
	memcg_room(&cg, UINT64_MAX, &room);
	ret->left_bytes = room.left_bytes;
	ret->limit_bytes = room.limit_bytes;
	if (room.dir) {
		snprintf(file, sizeof(file), "%s/%s", room.dir, room.file);
		len = strlen(file);
		/* The end of a long name says more than its start. */
		snprintf(ret->file, sizeof(ret->file), "%s",
			 file + excess(len, sizeof(ret->file) - 1));
	}
	memcg_close(&cg);
}

static bool read_thp_never(const char *root)
{
	char path[PATH_MAX], text[64];

	return snprintf(path, sizeof(path),
			"%s/sys/kernel/mm/transparent_hugepage/enabled",
			root) >= PATH_MAX ||
	       io_read_text(path, text, sizeof(text)) < 0 ||
	       strstr(text, "[never]");
}

void hostmem_read(struct hostmem *ret, const char *root)
{
	*ret = (struct hostmem){
		.thp_never = read_thp_never(root),
		.pool_2m = read_pool(root, PAGE_2M),
		.pool_1g = read_pool(root, PAGE_1G),
	};
	read_meminfo(ret, root);
	read_cgroup(&ret->cgroup, root);
}

static int check_pool(const struct hostmem_pool *pool, uint64_t page_bytes,
		      uint64_t bytes, struct err *err)
{
	uint64_t need = div_round_up(bytes, page_bytes), usable;

	if (!pool->exists)
		return err_set(err, ENOMEM,
			       "this host has no huge pages of %llu MiB; its "
			       "kernel or processor lacks them",
			       (unsigned long long)(page_bytes / MIB));
	if (!add_u64(pool->idle, pool->growth, &usable) || need <= usable)
		return 0;
	return err_set(err, ENOMEM,
		       "%llu free huge pages of %llu MiB are needed, the pool "
		       "has %llu; as root: echo %llu > " POOL_DIR
		       "/nr_hugepages",
		       (unsigned long long)need,
		       (unsigned long long)(page_bytes / MIB),
		       (unsigned long long)usable,
		       (unsigned long long)(pool->total + need - usable),
		       (unsigned long long)(page_bytes / KIB));
}

/* The host's page tables and KVM's cost 1/512 each at worst. */
#define OVERHEAD_SHIFT 8

/*
 * The process itself: program, threads, devices, and what the estimates miss.
 * So that what passes here passes the guard to the end, if nobody else takes
 * any.
 */
#define PROCESS_BYTES (16 * MIB)

#define MIN_RESERVE   (64 * MIB)
#define RESERVE_SHIFT 7

uint64_t hostmem_reserve(uint64_t memory_bytes)
{
	return MAX(MIN_RESERVE, memory_bytes >> RESERVE_SHIFT);
}

uint64_t hostmem_cost(uint64_t bytes)
{
	uint64_t cost;

	return add_u64(bytes, bytes >> OVERHEAD_SHIFT, &cost) ? cost
							      : UINT64_MAX;
}

static int check_cgroup(const struct hostmem_cgroup *cgroup, uint64_t bytes,
			struct err *err)
{
	uint64_t need;

	if (cgroup->left_bytes == UINT64_MAX)
		return 0;
	if (!add_u64(hostmem_cost(bytes), PROCESS_BYTES, &need))
		need = UINT64_MAX;
	else if (need <= cgroup->left_bytes)
		return 0;
	return err_set(err, ENOMEM,
		       "%llu MiB of memory are needed, and %s leaves %llu MiB "
		       "of its %llu MiB; ask for less, or raise that limit",
		       (unsigned long long)(need / MIB), cgroup->file,
		       (unsigned long long)(cgroup->left_bytes / MIB),
		       (unsigned long long)(cgroup->limit_bytes / MIB));
}

static int check_available(const struct hostmem *host, uint64_t bytes,
			   struct err *err)
{
	uint64_t need;

	if (!add_u64(hostmem_cost(bytes),
		     hostmem_reserve(host->total_bytes) + PROCESS_BYTES, &need))
		need = UINT64_MAX;
	else if (need <= host->available_bytes)
		return 0;
	return err_set(err, ENOMEM,
		       "%llu MiB of memory are needed and %llu MiB are "
		       "available; ask for less, or free some",
		       (unsigned long long)(need / MIB),
		       (unsigned long long)(host->available_bytes / MIB));
}

int hostmem_check(const struct hostmem *host, enum ram_page page,
		  uint64_t bytes, struct err *err)
{
	int r;

	switch (page) {
	case RAM_PAGE_2M:
		return check_pool(&host->pool_2m, PAGE_2M, bytes, err);
	case RAM_PAGE_1G:
		return check_pool(&host->pool_1g, PAGE_1G, bytes, err);
	case RAM_PAGE_4K:
	case RAM_PAGE_THP:
		break;
	}
	r = check_available(host, bytes, err);
	return r ? r : check_cgroup(&host->cgroup, bytes, err);
}
