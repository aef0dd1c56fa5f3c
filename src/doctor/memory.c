/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Probes of host memory: what can be populated, made large, tracked and locked,
 * and what the host does to memory on its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/types.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/numlist.h"
#include "base/size.h"
#include "doctor/doctor_priv.h"
#include "doctor/sysfs.h"
#include "mem/hostmem.h"
#include "mem/pagemap_scan.h"

/* Newer than the C library's headers. */
#ifndef MADV_COLLAPSE /* 6.1 */
#define MADV_COLLAPSE 25
#endif

/* A private anonymous 2 MiB at a 2 MiB boundary. */
struct scratch {
	char *map;
	char *at;
};

static int scratch_map(struct scratch *s)
{
	uintptr_t at;

	s->map = mmap(NULL, 2 * PAGE_2M, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (s->map == MAP_FAILED)
		return -ENOMEM; /* what else can fail here */
	at = align_up((uintptr_t)s->map, PAGE_2M);
	s->at = s->map + (at - (uintptr_t)s->map);
	return 0;
}

static void scratch_unmap(struct scratch *s)
{
	munmap(s->map, 2 * PAGE_2M);
}

static int advise(const struct scratch *s, int advice)
{
	return madvise(s->at, PAGE_2M, advice) ? -errno : 0;
}

void doctor_probe_populate(struct doctor *doc, const struct doctor_check *check)
{
	struct scratch s = { NULL, NULL };
	uint64_t start, ns;
	int r = scratch_map(&s);

	if (!r) {
		(void)advise(&s, MADV_NOHUGEPAGE);
		start = clock_now_ns();
		r = advise(&s, MADV_POPULATE_WRITE);
		ns = clock_now_ns() - start;
		scratch_unmap(&s);
	}
	if (r)
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "guest memory cannot be populated ahead",
			   "tried: %s", strerror(-r));
	else
		doctor_say(doc, check->name, DOCTOR_OK,
			   "host pages can be filled in parallel, ahead of the "
			   "guest",
			   "tried: 512 pages of 4K in %.2f ms (%.1f GiB/s)",
			   (double)ns / 1e6,
			   (double)PAGE_2M / (double)GIB / clock_ns_to_s(ns));
}

void doctor_probe_collapse(struct doctor *doc, const struct doctor_check *check)
{
	struct scratch s = { NULL, NULL };
	uint64_t start, ns;
	int r = scratch_map(&s);

	if (!r) {
		(void)advise(&s, MADV_NOHUGEPAGE);
		s.at[0] = 1;
		(void)advise(&s, MADV_HUGEPAGE); /* undo the refusal only */
		start = clock_now_ns();
		r = advise(&s, MADV_COLLAPSE);
		ns = clock_now_ns() - start;
		scratch_unmap(&s);
	}
	if (!r)
		doctor_say(doc, check->name, DOCTOR_OK,
			   "4K pages can be turned into 2M pages on demand",
			   "tried: 2 MiB in %.2f ms", (double)ns / 1e6);
	else if (r == -EINVAL)
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "only khugepaged turns 4K pages into 2M pages",
			   "tried: %s", strerror(-r));
	else
		doctor_say(doc, check->name, DOCTOR_DEGRADED,
			   "known to the kernel; it works again once a 2M page "
			   "can be had",
			   "tried: %s", strerror(-r));
}

static int try_pagemap_scan(void)
{
	_cleanup_close_ int fd = open("/proc/self/pagemap",
				      O_RDONLY | O_CLOEXEC);
	struct pagemap_scan_region region = { 0 };
	struct pagemap_scan scan = {
		.size = sizeof(scan),
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_mask = PAGEMAP_SCAN_PRESENT,
		.return_mask = PAGEMAP_SCAN_PRESENT,
	};
	struct scratch s = { NULL, NULL };
	int r;

	if (fd < 0)
		return -errno;
	r = scratch_map(&s);
	if (r)
		return r;
	s.at[0] = 1;
	scan.start = (uintptr_t)s.at;
	scan.end = scan.start + PAGE_4K;
	r = ioctl(fd, PAGEMAP_SCAN_IOCTL, &scan);
	r = r < 0 ? -errno : r;
	scratch_unmap(&s);
	if (r < 0)
		return r;
	/* The page just written has to be found. */
	return r == 1 && region.start == scan.start ? 0 : -EIO;
}

void doctor_probe_pagemap(struct doctor *doc, const struct doctor_check *check)
{
	int r = try_pagemap_scan();

	if (r)
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "pages present or written are found through "
			   "/proc/self/pagemap, page by page",
			   "tried: %s", strerror(-r));
	else
		doctor_say(doc, check->name, DOCTOR_OK,
			   "present and written ranges are found in one call",
			   "tried on one page");
}

void doctor_probe_memcg(struct doctor *doc, const struct doctor_check *check)
{
	char left[32], limit[32], then[160];
	struct hostmem host;
	bool tight;

	hostmem_read(&host, doc->env->root);
	if (host.cgroup.left_bytes == UINT64_MAX) {
		doctor_say(doc, check->name, DOCTOR_OK,
			   "guests may fill what the host has",
			   "none that this process is under");
		return;
	}
	/* A limit above what there is limits nobody. */
	tight = host.cgroup.left_bytes < host.available_bytes;
	size_format(host.cgroup.left_bytes, left, sizeof(left));
	size_format(host.cgroup.limit_bytes, limit, sizeof(limit));
	snprintf(then, sizeof(then),
		 tight ? "guests started here can fill up to %s; beyond that "
			 "population is refused and running guests are killed"
		       : "more than the host has available",
		 left);
	doctor_say(doc, check->name, tight ? DOCTOR_DEGRADED : DOCTOR_OK, then,
		   "%s left of %s, %s", left, limit, host.cgroup.file);
}

static bool has_cap_ipc_lock(const struct doctor_env *env)
{
	char status[8192], value[32];
	unsigned long long caps;
	char *end;

	if (sysfs_read(env, status, sizeof(status), "/proc/self/status") < 0 ||
	    sysfs_field(status, "CapEff:", value, sizeof(value)))
		return false;
	caps = strtoull(value, &end, 16);
	return *end == '\0' && (caps >> 14 & 1); /* CAP_IPC_LOCK */
}

static const char *limit_text(rlim_t limit, char *buf, size_t size)
{
	if (limit == RLIM_INFINITY)
		return "unlimited";
	return size_format(limit, buf, size);
}

void doctor_probe_memlock(struct doctor *doc, const struct doctor_check *check)
{
	bool cap = has_cap_ipc_lock(doc->env);
	char soft[32], hard[32];
	struct rlimit lim;

	if (getrlimit(RLIMIT_MEMLOCK, &lim)) {
		doctor_say(doc, check->name, DOCTOR_DEGRADED, "", "%s",
			   strerror(errno));
		return;
	}
	doctor_say(doc, check->name,
		   cap || lim.rlim_cur == RLIM_INFINITY ? DOCTOR_OK
							: DOCTOR_DEGRADED,
		   cap || lim.rlim_cur == RLIM_INFINITY
			   ? "guest memory can be locked"
			   : "guest memory beyond the limit cannot be locked; "
			     "raise it (ulimit -l, LimitMEMLOCK=)",
		   "soft %s, hard %s%s",
		   limit_text(lim.rlim_cur, soft, sizeof(soft)),
		   limit_text(lim.rlim_max, hard, sizeof(hard)),
		   cap ? "; CAP_IPC_LOCK lifts it" : "");
}

#define THP_DIR "/sys/kernel/mm/transparent_hugepage"

/* The chosen word of a THP switch; -errno when there is none. */
static int thp_choice(struct doctor *doc, const char *file, char *ret,
		      size_t size)
{
	char text[128];
	ssize_t r = sysfs_read(doc->env, text, sizeof(text), THP_DIR "/%s",
			       file);

	return r < 0 ? (int)r : sysfs_choice(text, ret, size);
}

void doctor_probe_thp(struct doctor *doc, const struct doctor_check *check)
{
	char choice[32], pmd[32];
	uint64_t pmd_bytes;

	if (thp_choice(doc, "enabled", choice, sizeof(choice))) {
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "large guest pages only from hugetlb",
			   "the kernel has no transparent huge pages");
		return;
	}
	if (sysfs_read_u64(doc->env, &pmd_bytes, THP_DIR "/hpage_pmd_size"))
		pmd_bytes = PAGE_2M;
	size_format(pmd_bytes, pmd, sizeof(pmd));
	if (!strcmp(choice, "never"))
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "guests run on 4K pages: 512 times the faults and "
			   "more TLB misses; write madvise to \"enabled\" "
			   "in " THP_DIR ", or use hugetlb",
			   "enabled=never");
	else
		doctor_say(doc, check->name, DOCTOR_OK,
			   "guest memory gets large pages by advice",
			   "enabled=%s, %s pages", choice, pmd);
}

void doctor_probe_shmem_thp(struct doctor *doc,
			    const struct doctor_check *check)
{
	char choice[32];

	if (thp_choice(doc, "shmem_enabled", choice, sizeof(choice)))
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "shared=on guests run on 4K pages or hugetlb",
			   "the kernel has no shmem_enabled");
	else if (!strcmp(choice, "never") || !strcmp(choice, "deny"))
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "shared=on guests run on 4K pages; write advise to "
			   "\"shmem_enabled\" in " THP_DIR ", or use hugetlb",
			   "shmem_enabled=%s", choice);
	else
		doctor_say(doc, check->name, DOCTOR_OK,
			   "shared=on guests get large pages",
			   "shmem_enabled=%s", choice);
}

void doctor_probe_thp_defrag(struct doctor *doc,
			     const struct doctor_check *check)
{
	char choice[32];

	if (thp_choice(doc, "defrag", choice, sizeof(choice)))
		doctor_say(doc, check->name, DOCTOR_MISSING, "",
			   "the kernel has no such switch");
	else if (!strcmp(choice, "never") || !strcmp(choice, "defer"))
		doctor_say(doc, check->name, DOCTOR_DEGRADED,
			   "population of fragmented memory falls back to 4K "
			   "pages at once; madvise makes it try harder",
			   "defrag=%s", choice);
	else
		doctor_say(doc, check->name, DOCTOR_OK,
			   "population compacts memory to get large pages",
			   "defrag=%s", choice);
}

#define NODE_DIR "/sys/devices/system/node"

/* " node0 3/4, node1 0/0": free/total of each node that has any. */
static void hugetlb_nodes(struct doctor *doc, uint64_t kib, char *buf,
			  size_t size)
{
	char online[256];
	const char *p = online;
	unsigned int first, last;
	size_t used = 0;

	buf[0] = '\0';
	if (sysfs_read(doc->env, online, sizeof(online), NODE_DIR "/online") <
	    0)
		return;
	while (numlist_next(&p, &first, &last)) {
		for (unsigned int node = first; node <= last; node++) {
			uint64_t total, avail;

			if (sysfs_read_u64(doc->env, &total,
					   NODE_DIR
					   "/node%u/hugepages/"
					   "hugepages-%llukB/nr_hugepages",
					   node, (unsigned long long)kib) ||
			    sysfs_read_u64(doc->env, &avail,
					   NODE_DIR
					   "/node%u/hugepages/"
					   "hugepages-%llukB/free_hugepages",
					   node, (unsigned long long)kib))
				continue;
			used += (size_t)snprintf(buf + used, size - used,
						 "%s node%u %llu/%llu",
						 used ? "," : ":", node,
						 (unsigned long long)avail,
						 (unsigned long long)total);
			if (used >= size)
				return;
		}
	}
}

struct pool {
	const char *name;
	uint64_t kib;
	const char *reserve; /* how to get pages into it */
	struct hostmem_pool now;
};

static void probe_pool(struct doctor *doc, const struct pool *pool)
{
	uint64_t usable = pool->now.idle + pool->now.growth;
	char nodes[120], then[160];

	if (!pool->now.exists) {
		doctor_say(doc, pool->name, DOCTOR_MISSING, "",
			   "not supported by kernel or processor");
		return;
	}
	hugetlb_nodes(doc, pool->kib, nodes, sizeof(nodes));
	if (usable)
		snprintf(then, sizeof(then),
			 "guests of up to %llu MiB can use them",
			 (unsigned long long)(usable * pool->kib / KIB));
	else
		snprintf(then, sizeof(then),
			 "no guest can use them now; reserve some: %s",
			 pool->reserve);
	doctor_say(doc, pool->name, usable ? DOCTOR_OK : DOCTOR_DEGRADED, then,
		   "%llu free of %llu%s", (unsigned long long)pool->now.idle,
		   (unsigned long long)pool->now.total, nodes);
}

void doctor_probe_hugetlb(struct doctor *doc, const struct doctor_check *check)
{
	struct hostmem host;
	struct pool pools[] = {
		{ .name = "hugetlb pool, 2M",
		  .kib = PAGE_2M / KIB,
		  .reserve = "sysctl vm.nr_hugepages=N" },
		{ .name = "hugetlb pool, 1G",
		  .kib = PAGE_1G / KIB,
		  .reserve = "hugepagesz=1G hugepages=N on the kernel command "
			     "line" },
	};

	hostmem_read(&host, doc->env->root);
	pools[0].now = host.pool_2m;
	pools[1].now = host.pool_1g;
	for (size_t i = 0; i < ARRAY_SIZE(pools); i++)
		probe_pool(doc, &pools[i]);
}

void doctor_probe_ksm(struct doctor *doc, const struct doctor_check *check)
{
	uint64_t run, sharing;

	if (sysfs_read_u64(doc->env, &run, "/sys/kernel/mm/ksm/run")) {
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "no merging of equal pages between guests",
			   "the kernel has none");
		return;
	}
	if (sysfs_read_u64(doc->env, &sharing,
			   "/sys/kernel/mm/ksm/pages_sharing"))
		sharing = 0;
	doctor_say(doc, check->name, DOCTOR_OK,
		   run == 1 ? "merges what asks for it; guest memory does not, "
			      "as merging splits large pages"
			    : "pages stay where population put them",
		   "run=%llu, %llu pages sharing", (unsigned long long)run,
		   (unsigned long long)sharing);
}

void doctor_probe_numa_balancing(struct doctor *doc,
				 const struct doctor_check *check)
{
	char nodes[256];
	uint64_t mode;
	bool many;

	if (sysfs_read(doc->env, nodes, sizeof(nodes), NODE_DIR "/online") < 0)
		nodes[0] = '\0';
	many = numlist_count(nodes) > 1;
	if (sysfs_read_u64(doc->env, &mode, "/proc/sys/kernel/numa_balancing"))
		doctor_say(doc, check->name, DOCTOR_OK,
			   "nothing unmaps populated memory to watch it",
			   "the kernel has none");
	else if (!mode || !many)
		doctor_say(doc, check->name, DOCTOR_OK,
			   "nothing unmaps populated memory to watch it",
			   "kernel.numa_balancing=%llu%s",
			   (unsigned long long)mode,
			   many ? "" : ", one node: no effect");
	else
		doctor_say(doc, check->name, DOCTOR_DEGRADED,
			   "the host unmaps guest memory now and then to see "
			   "who uses it, and that undoes population; bind "
			   "guests to nodes or set kernel.numa_balancing=0",
			   "kernel.numa_balancing=%llu",
			   (unsigned long long)mode);
}

/* Number of areas and their size in KiB, from the text of /proc/swaps. */
static unsigned int swap_areas(const char *text, uint64_t *ret_kib)
{
	unsigned int areas = 0;

	*ret_kib = 0;
	/* The first line is a heading. */
	while ((text = strchr(text, '\n')) && *++text) {
		unsigned long long kib;

		if (sscanf(text, "%*s %*s %llu", &kib) != 1)
			continue;
		areas++;
		*ret_kib += kib;
	}
	return areas;
}

void doctor_probe_swap(struct doctor *doc, const struct doctor_check *check)
{
	int zswap = sysfs_read_flag(doc->env,
				    "/sys/module/zswap/parameters/enabled");
	const char *zswap_text = zswap < 0 ? "absent" : zswap ? "on" : "off";
	char text[4096], size[32];
	unsigned int areas;
	uint64_t kib;

	if (sysfs_read(doc->env, text, sizeof(text), "/proc/swaps") < 0)
		text[0] = '\0';
	areas = swap_areas(text, &kib);
	if (!areas)
		doctor_say(doc, check->name, DOCTOR_OK,
			   "the kernel does not swap guest memory",
			   "no kernel swap; zswap %s", zswap_text);
	else
		doctor_say(doc, check->name, DOCTOR_OK,
			   "under memory pressure the kernel may swap guest "
			   "memory and undo population",
			   "%u area%s, %s; zswap %s", areas,
			   areas == 1 ? "" : "s",
			   size_format(kib * KIB, size, sizeof(size)),
			   zswap_text);
}
