/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/ram.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/membarrier.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "mem/hostmem.h"

#ifndef MAP_HUGE_SHIFT
#define MAP_HUGE_SHIFT 26
#endif
#define HUGE_FLAG_2M (21 << MAP_HUGE_SHIFT)
#define HUGE_FLAG_1G (30 << MAP_HUGE_SHIFT)

const char *const ram_page_names[4] = {
	[RAM_PAGE_4K] = "4k",
	[RAM_PAGE_THP] = "thp",
	[RAM_PAGE_2M] = "2m",
	[RAM_PAGE_1G] = "1g",
};

uint64_t ram_page_bytes(enum ram_page page)
{
	switch (page) {
	case RAM_PAGE_2M:
		return PAGE_2M;
	case RAM_PAGE_1G:
		return PAGE_1G;
	case RAM_PAGE_4K:
	case RAM_PAGE_THP:
		break;
	}
	return PAGE_4K;
}

bool mem_await(const struct ram *ram, const void *hva, uint64_t len)
{
	const volatile char *p = hva;

	if (atomic_load_explicit(&ram->paged, memory_order_acquire)) {
		for (uint64_t at = 0; at < len; at += PAGE_4K)
			(void)p[at];
		if (len)
			(void)p[len - 1];
	}
	return !atomic_load(&ram->lost);
}

/* Reserve span bytes of address space aligned to 1 GiB. */
static int reserve_span(uint64_t span, char **ret_base, struct err *err)
{
	uint64_t total = span + PAGE_1G;
	char *raw = mmap(NULL, total, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *base;

	if (raw == MAP_FAILED)
		return err_errno(err, errno,
				 "reserving address space for guest memory");
	base = (char *)align_up((uintptr_t)raw, PAGE_1G);
	if (base > raw)
		munmap(raw, (size_t)(base - raw));
	if (base + span < raw + total)
		munmap(base + span, (size_t)(raw + total - (base + span)));
	*ret_base = base;
	return 0;
}

/*
 * Transparent pages are advised before the first touch, so that population
 * and the guest's own faults both get 2M pages where THP is on "madvise", and
 * 4K means 4K where it is on "always".
 */
static int advise(char *hva, uint64_t size, enum ram_page page, struct err *err)
{
	/* A core dump of the VMM must not be a dump of the guest. */
	if (madvise(hva, size, MADV_DONTDUMP) && errno != EINVAL)
		return err_errno(err, errno, "madvise on guest memory");
	if (ram_page_is_hugetlb(page))
		return 0;
	if (madvise(hva, size,
		    page == RAM_PAGE_THP ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) &&
	    errno != EINVAL) /* EINVAL: a kernel built without THP */
		return err_errno(err, errno, "madvise on guest memory");
	return 0;
}

static int map_region(struct ram *ram, struct ram_region *region,
		      uint64_t file_offset, struct err *err)
{
	char *at = ram->base + region->base.v;
	int flags = MAP_FIXED | MAP_NORESERVE;

	if (ram->fd >= 0) {
		flags |= MAP_SHARED;
	} else {
		flags |= MAP_PRIVATE | MAP_ANONYMOUS;
		if (ram->page == RAM_PAGE_2M)
			flags |= MAP_HUGETLB | HUGE_FLAG_2M;
		if (ram->page == RAM_PAGE_1G)
			flags |= MAP_HUGETLB | HUGE_FLAG_1G;
	}
	/*
	 * With hugetlb the reservation must stand, or a guest fault on an empty
	 * pool would be a SIGBUS instead of an error here.
	 */
	if (ram_page_is_hugetlb(ram->page))
		flags &= ~MAP_NORESERVE;
	if (mmap(at, region->size, PROT_READ | PROT_WRITE, flags, ram->fd,
		 (off_t)file_offset) == MAP_FAILED) {
		if (ram_page_is_hugetlb(ram->page))
			return err_set(err, errno,
				       "no %llu MiB of free %s hugetlb pages; "
				       "see /sys/kernel/mm/hugepages/*/"
				       "nr_hugepages",
				       (unsigned long long)(region->size / MIB),
				       ram_page_names[ram->page]);
		return err_errno(err, errno, "mapping guest memory");
	}
	return advise(at, region->size, ram->page, err);
}

static int open_memfd(struct ram *ram, uint64_t size, struct err *err)
{
	unsigned int flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;

	if (ram->page == RAM_PAGE_2M)
		flags |= MFD_HUGETLB | HUGE_FLAG_2M;
	if (ram->page == RAM_PAGE_1G)
		flags |= MFD_HUGETLB | HUGE_FLAG_1G;
	ram->fd = memfd_create("quire-ram", flags);
	if (ram->fd < 0)
		return err_errno(err, errno, "memfd_create for guest memory");
	if (ftruncate(ram->fd, (off_t)size))
		return err_errno(err, errno, "sizing guest memory");
	/* Who gets the file must not be able to cut it off under us. */
	if (fcntl(ram->fd, F_ADD_SEALS,
		  F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return err_errno(err, errno, "sealing guest memory");
	return 0;
}

static void add_region(struct ram *ram, uint64_t base, uint64_t size)
{
	struct ram_region *region = &ram->regions[ram->num_regions];

	region->base = GPA(base);
	region->size = size;
	region->slot = ram->num_regions++;
	atomic_init(&region->dirty, NULL);
}

static void add_segment(struct ram *ram, uint64_t base, uint64_t size, int node)
{
	BUG_ON(ram->num_segments == RAM_MAX_SEGMENTS);
	ram->segments[ram->num_segments++] = (struct ram_segment){
		.base = GPA(base),
		.size = size,
		.node = node,
	};
}

/* Without a split each region is one segment, whoever owns it. */
static void whole_segments(struct ram *ram, const struct numa_config *cfg,
			   const struct numa_nodes *nodes)
{
	bool owned = cfg->policy == NUMA_BIND || cfg->policy == NUMA_PREFERRED;
	int node = owned && numa_nodes_count(nodes) == 1
			   ? numa_nodes_next(nodes, 0)
			   : -1;

	for (unsigned int i = 0; i < ram->num_regions; i++)
		add_segment(ram, ram->regions[i].base.v, ram->regions[i].size,
			    node);
}

/* The next size bytes of RAM, from *region and *offset in it on, are node's. */
static void split_part(struct ram *ram, unsigned int *region, uint64_t *offset,
		       uint64_t size, int node)
{
	while (size) {
		const struct ram_region *in = &ram->regions[*region];
		uint64_t take = MIN(size, in->size - *offset);

		add_segment(ram, in->base.v + *offset, take, node);
		size -= take;
		*offset += take;
		if (*offset == in->size) {
			(*region)++;
			*offset = 0;
		}
	}
}

static int split_segments(struct ram *ram, const struct numa_nodes *nodes,
			  struct err *err)
{
	unsigned int num = numa_nodes_count(nodes), region = 0;
	uint64_t size = ram_size(ram), offset = 0, unit = PAGE_2M, units;
	int node = -1;

	if (ram->page == RAM_PAGE_1G || size % (num * PAGE_1G) == 0)
		unit = PAGE_1G;
	units = size / unit;
	if (num > RAM_MAX_PARTS || num > units)
		return err_set(err, EINVAL,
			       "--memory numa=split: %llu MiB cannot be split "
			       "over %u nodes (at most %d, each gets %llu MiB "
			       "at least)",
			       (unsigned long long)(size / MIB), num,
			       RAM_MAX_PARTS, (unsigned long long)(unit / MIB));
	for (unsigned int i = 0; i < num; i++) {
		uint64_t part = (units / num + (i < units % num)) * unit;

		node = numa_nodes_next(nodes, (unsigned int)(node + 1));
		if (i == num - 1)
			part += size % unit;
		split_part(ram, &region, &offset, part, node);
	}
	return 0;
}

/* Bound hugetlb pages that a node lacks are to be missed now. */
static int check_node_pools(const struct ram *ram, enum numa_policy policy,
			    const struct numa_nodes *nodes, struct err *err)
{
	uint64_t unit = ram_page_bytes(ram->page);

	if (!ram_page_is_hugetlb(ram->page))
		return 0;
	if (policy == NUMA_BIND)
		return numa_check_pool(nodes, unit, ram_size(ram), err);
	for (int node = numa_nodes_next(nodes, 0);
	     policy == NUMA_SPLIT && node >= 0;
	     node = numa_nodes_next(nodes, (unsigned int)node + 1)) {
		struct numa_nodes one = { { 0 } };
		uint64_t bytes = 0;
		int r;

		for (unsigned int i = 0; i < ram->num_segments; i++) {
			if (ram->segments[i].node == node)
				bytes += ram->segments[i].size;
		}
		numa_nodes_add(&one, (unsigned int)node);
		r = numa_check_pool(&one, unit, bytes, err);
		if (r)
			return r;
	}
	return 0;
}

/* Set the policy on what lies in [start, start + len). */
static int apply_policy(struct ram *ram, uint64_t start, uint64_t len,
			struct err *err)
{
	int r = 0;

	for (unsigned int i = 0; !r && i < ram->num_segments; i++) {
		const struct ram_segment *seg = &ram->segments[i];
		uint64_t from = MAX(start, seg->base.v);
		uint64_t to = MIN(start + len, seg->base.v + seg->size);
		struct numa_nodes one = { { 0 } };

		if (from >= to)
			continue;
		if (seg->node >= 0)
			numa_nodes_add(&one, (unsigned int)seg->node);
		r = numa_apply(ram->base + from, to - from, ram->policy,
			       seg->node >= 0 ? &one : &ram->policy_nodes, err);
	}
	return r;
}

static int place(struct ram *ram, const struct numa_config *cfg,
		 struct err *err)
{
	struct numa_nodes nodes;
	int r = numa_resolve(cfg, &nodes, err);

	if (r)
		return r;
	if (cfg->policy == NUMA_BIND || cfg->policy == NUMA_SPLIT)
		ram->bound = nodes;
	if (cfg->policy == NUMA_SPLIT)
		r = split_segments(ram, &nodes, err);
	else
		whole_segments(ram, cfg, &nodes);
	ram->policy = cfg->policy;
	ram->policy_nodes = nodes;
	if (!r)
		r = apply_policy(ram, 0, ram->span, err);
	return r ? r : check_node_pools(ram, cfg->policy, &nodes, err);
}

static int check_config(const struct ram_config *cfg, struct err *err)
{
	uint64_t unit = ram_page_bytes(cfg->page), end;

	if (!cfg->size_bytes || !is_aligned(cfg->size_bytes, unit))
		return err_set(err, EINVAL,
			       "memory size is not a multiple of %llu KiB",
			       (unsigned long long)(unit / KIB));
	BUG_ON(!is_aligned(cfg->hole_start | cfg->hole_end, PAGE_1G));
	if (!add_u64(cfg->size_bytes, cfg->hole_end + PAGE_1G, &end) ||
	    end > 1ull << 46)
		return err_set(err, ENOMEM,
			       "memory size is beyond the host's address "
			       "space");
	return 0;
}

/*
 * The kernel refuses pages that a pool lacks without saying how many. Now that
 * nothing of ours is reserved any more, the pool's own numbers say it better
 * than err, if they are why.
 */
static void explain_pool(const struct ram_config *cfg, struct err *err)
{
	struct err better = ERR_INIT;
	struct hostmem host;

	hostmem_read(&host, "");
	if (err && hostmem_check(&host, cfg->page, cfg->size_bytes, &better))
		*err = better;
}

int ram_init(struct ram *ram, const struct ram_config *cfg, struct err *err)
{
	uint64_t low = MIN(cfg->size_bytes, cfg->hole_start);
	uint64_t high = cfg->size_bytes - low, file_offset = 0;
	int r;

	memset(ram, 0, sizeof(*ram));
	ram->fd = -1;
	r = check_config(cfg, err);
	if (r)
		return r;
	ram->page = cfg->page;
	ram->shared = cfg->shared;
	ram->span = high ? cfg->hole_end + high : low;
	r = reserve_span(ram->span, &ram->base, err);
	if (r)
		return r;
	add_region(ram, 0, low);
	if (high)
		add_region(ram, cfg->hole_end, high);
	if (cfg->shared)
		r = open_memfd(ram, cfg->size_bytes, err);
	for (unsigned int i = 0; !r && i < ram->num_regions; i++) {
		r = map_region(ram, &ram->regions[i], file_offset, err);
		file_offset += ram->regions[i].size;
	}
	if (!r)
		r = place(ram, &cfg->numa, err);
	if (r)
		ram_fini(ram);
	if (r == -ENOMEM && ram_page_is_hugetlb(cfg->page))
		explain_pool(cfg, err);
	return r;
}

/* Its pages come in one call: one fault for each would cost more than a bit. */
static _Atomic uint64_t *alloc_map(const struct ram_region *region)
{
	void *p = mmap(NULL, ram_region_words(region) * sizeof(uint64_t),
		       PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void free_map(struct ram_region *region)
{
	if (region->dirty_map)
		(void)munmap(region->dirty_map,
			     ram_region_words(region) * sizeof(uint64_t));
	region->dirty_map = NULL;
}

void ram_fini(struct ram *ram)
{
	if (ram->base)
		munmap(ram->base, ram->span);
	ram->base = NULL;
	for (unsigned int i = 0; i < ram->num_regions; i++)
		free_map(&ram->regions[i]);
	if (ram->span)
		close_fd(&ram->fd);
	ram->span = 0;
	ram->num_regions = 0;
	ram->num_segments = 0;
}

void ram_move(struct ram *to, struct ram *from)
{
	*to = *from;
	memset(from, 0, sizeof(*from));
	from->fd = -1;
}

static int check_file(const struct ram *ram, uint64_t end, int fd,
		      struct err *err)
{
	struct stat st;

	if (ram->fd >= 0 || ram_page_is_hugetlb(ram->page))
		return err_set(err, ENOTSUP,
			       "%s memory cannot be mapped from a file: it has "
			       "to be read",
			       ram->fd >= 0 ? "shared" : "hugetlb");
	if (fstat(fd, &st))
		return err_errno(err, errno, "memory file");
	if (!S_ISREG(st.st_mode))
		return err_set(err, EINVAL, "memory file: not a regular file");
	/* Beyond its end an access would be a SIGBUS. */
	if ((uint64_t)st.st_size < end)
		return err_set(err, ENODATA,
			       "memory file: ends at %#llx, guest memory at "
			       "%#llx",
			       (unsigned long long)st.st_size,
			       (unsigned long long)end);
	return 0;
}

int ram_map_file(struct ram *ram, struct gpa gpa, uint64_t len, int fd,
		 struct err *err)
{
	char *at = mem_map_range(ram, gpa, len, MEM_READ);
	int r;

	BUG_ON(!at || !is_aligned(gpa.v | len, PAGE_4K));
	r = check_file(ram, gpa.v + len, fd, err);
	if (r)
		return r;
	if (mmap(at, len, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd,
		 (off_t)gpa.v) == MAP_FAILED)
		return err_errno(err, errno, "mapping a memory file");
	r = advise(at, len, ram->page, err);
	return r ? r : apply_policy(ram, gpa.v, len, err);
}

/* The one check of what another process says is its memory. */
static int check_memfd(const struct ram *ram, int fd, struct err *err)
{
	bool huge = ram_page_is_hugetlb(ram->page);
	struct statfs fs;
	struct stat st;
	int seals;

	if (ram->fd < 0)
		return err_set(err, ENOTSUP,
			       "memory that is not shared cannot be taken over "
			       "(--memory shared=on)");
	seals = fcntl(fd, F_GET_SEALS);
	if (fstat(fd, &st) || fstatfs(fd, &fs) || seals < 0 ||
	    !S_ISREG(st.st_mode))
		return err_set(err, EINVAL, "this is no memory of a VM");
	/* It could become shorter, and an access a SIGBUS. */
	if (!(seals & F_SEAL_SHRINK))
		return err_set(err, EINVAL,
			       "the memory that came can still be cut off: it "
			       "is not sealed");
	if ((uint64_t)st.st_size != ram_size(ram) ||
	    (unsigned long)fs.f_type !=
		    (unsigned long)(huge ? HUGETLBFS_MAGIC : TMPFS_MAGIC) ||
	    (huge && (uint64_t)fs.f_bsize != ram_page_bytes(ram->page)))
		return err_set(err, EINVAL,
			       "the memory that came is not of the size, or "
			       "the kind of pages, of this VM's");
	return 0;
}

static int map_regions(struct ram *ram, struct err *err)
{
	uint64_t offset = 0;
	int r = 0;

	for (unsigned int i = 0; !r && i < ram->num_regions; i++) {
		r = map_region(ram, &ram->regions[i], offset, err);
		offset += ram->regions[i].size;
	}
	return r ? r : apply_policy(ram, 0, ram->span, err);
}

int ram_take_memfd(struct ram *ram, int fd, struct err *err)
{
	int own = ram->fd, r = check_memfd(ram, fd, err);

	if (r)
		return r;
	ram->fd = fd;
	r = map_regions(ram, err);
	if (r) {
		/* Only address space was taken for it, so it is there still. */
		ram->fd = own;
		if (map_regions(ram, NULL))
			atomic_store(&ram->lost, true);
		return r;
	}
	close_fd(&own);
	ram->taken = true;
	return 0;
}

/*
 * Kept where all who were handed the memfd have it in common, with the open
 * file: as the signal that F_SETSIG wants for asynchronous I/O, of which a file
 * in memory has none.
 */
#define NUM_CLAIMS 65u

static int add_claims(struct ram *ram, unsigned int num)
{
	unsigned int n = ram_claims(ram) + num;

	if (!ram->taken)
		return 0;
	return fcntl(ram->fd, F_SETSIG, (int)(n % NUM_CLAIMS)) ? -errno : 0;
}

int ram_claim(struct ram *ram, struct err *err)
{
	int r = add_claims(ram, 1);

	return r ? err_errno(err, -r, "memory that was taken over") : 0;
}

void ram_unclaim(struct ram *ram)
{
	(void)!add_claims(ram, NUM_CLAIMS - 1);
}

unsigned int ram_claims(const struct ram *ram)
{
	int n = ram->fd < 0 ? 0 : fcntl(ram->fd, F_GETSIG);

	return n < 0 ? 0 : (unsigned int)n;
}

uint64_t ram_size(const struct ram *ram)
{
	uint64_t size = 0;

	for (unsigned int i = 0; i < ram->num_regions; i++)
		size += ram->regions[i].size;
	return size;
}

unsigned int ram_num_segments(const struct ram *ram)
{
	return ram->num_segments;
}

const struct ram_segment *ram_segment(const struct ram *ram, unsigned int i)
{
	BUG_ON(i >= ram->num_segments);
	return &ram->segments[i];
}

int ram_node(const struct ram *ram, struct gpa gpa)
{
	for (unsigned int i = 0; i < ram->num_segments; i++) {
		const struct ram_segment *seg = &ram->segments[i];

		if (gpa.v >= seg->base.v && gpa.v - seg->base.v < seg->size)
			return seg->node;
	}
	return -1;
}

const struct ram_region *ram_region_at(const struct ram *ram, struct gpa gpa)
{
	for (unsigned int i = 0; i < ram->num_regions; i++) {
		if (gpa.v - ram->regions[i].base.v < ram->regions[i].size)
			return &ram->regions[i];
	}
	return NULL;
}

/* The one check: the region that holds all of [gpa, gpa + len), or NULL. */
static const struct ram_region *find_region(const struct ram *ram,
					    struct gpa gpa, uint64_t len)
{
	const struct ram_region *region = ram_region_at(ram, gpa);

	return region && range_ok(gpa.v - region->base.v, len, region->size)
		       ? region
		       : NULL;
}

/*
 * Release: the bytes written before are seen by whoever takes the bit. A bit
 * that is set already is set again all the same. Looking first would save the
 * locked instruction, but the look may overtake the bytes on their way to
 * memory: the bit is seen just before it is taken, the page copied without
 * them, and nobody marks it again.
 */
static void region_mark_dirty(const struct ram_region *region, uint64_t offset,
			      uint64_t len)
{
	_Atomic uint64_t *map = atomic_load_explicit(&region->dirty,
						     memory_order_acquire);

	if (likely(!map) || !len)
		return;
	for (uint64_t page = offset / PAGE_4K;
	     page <= (offset + len - 1) / PAGE_4K; page++)
		atomic_fetch_or_explicit(&map[page / 64], 1ull << (page % 64),
					 memory_order_release);
}

void *mem_map_range(const struct ram *ram, struct gpa gpa, uint64_t len,
		    enum mem_access access)
{
	const struct ram_region *region;

	if (!len)
		return NULL;
	region = find_region(ram, gpa, len);
	if (!region)
		return NULL;
	if (access == MEM_WRITE)
		region_mark_dirty(region, gpa.v - region->base.v, len);
	return ram->base + gpa.v;
}

int mem_read(const struct ram *ram, struct gpa gpa, void *buf, uint64_t len)
{
	const void *p;

	if (!len)
		return 0;
	p = mem_map_range(ram, gpa, len, MEM_READ);
	if (!p)
		return -EFAULT;
	memcpy(buf, p, len);
	return 0;
}

int mem_write(const struct ram *ram, struct gpa gpa, const void *buf,
	      uint64_t len)
{
	const struct ram_region *region;

	if (!len)
		return 0;
	region = find_region(ram, gpa, len);
	if (!region)
		return -EFAULT;
	memcpy(ram->base + gpa.v, buf, len);
	/* After the bytes: a harvest in between must not miss them. */
	region_mark_dirty(region, gpa.v - region->base.v, len);
	return 0;
}

void mem_mark_dirty(const struct ram *ram, struct gpa gpa, uint64_t len)
{
	const struct ram_region *region = find_region(ram, gpa, len);

	if (region)
		region_mark_dirty(region, gpa.v - region->base.v, len);
}

uint64_t ram_region_pages(const struct ram_region *region)
{
	return region->size / PAGE_4K;
}

uint64_t ram_region_words(const struct ram_region *region)
{
	return div_round_up(ram_region_pages(region), 64);
}

static int region_fill_map(struct ram_region *region)
{
	uint64_t pages = ram_region_pages(region);

	if (!region->dirty_map)
		region->dirty_map = alloc_map(region);
	if (!region->dirty_map)
		return -ENOMEM;
	for (uint64_t i = 0; i < pages / 64; i++)
		atomic_store_explicit(&region->dirty_map[i], UINT64_MAX,
				      memory_order_relaxed);
	if (pages % 64)
		atomic_store_explicit(&region->dirty_map[pages / 64],
				      (1ull << (pages % 64)) - 1,
				      memory_order_relaxed);
	return 0;
}

/*
 * A writer stores its bytes and then loads the map's pointer, and the processor
 * may do the load first. If it still finds none, its bytes must be in memory
 * when tracking is said to have begun, for nothing else tells of them. A full
 * barrier in every accessor would ensure that; so does one forced upon all
 * threads once, here, by membarrier(2).
 */
static int order_all_threads(struct err *err)
{
	for (int registered = 0; registered < 2; registered++) {
		if (!syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED,
			     0, 0))
			return 0;
		ram_dirty_prepare();
	}
	if (!syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0))
		return 0;
	return err_errno(err, errno, "dirty tracking: membarrier");
}

/* What fails here fails again when it is needed, and is said then. */
void ram_dirty_prepare(void)
{
	(void)syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED,
		      0, 0);
}

/* The gate counts callers that see RAM as constant, which it is but for it. */
static _Atomic unsigned int *mapping_ahead(const struct ram *ram)
{
	return &((struct ram *)ram)->mapping_ahead;
}

/*
 * Count first, look then; ram_dirty_start() does it the other way round. In the
 * one order of all these accesses (sequential consistency) one of the two comes
 * second, and sees the other.
 */
bool ram_map_ahead_begin(const struct ram *ram)
{
	atomic_fetch_add(mapping_ahead(ram), 1);
	for (unsigned int i = 0; i < ram->num_regions; i++) {
		if (atomic_load(&ram->regions[i].dirty)) {
			ram_map_ahead_end(ram);
			return false;
		}
	}
	return true;
}

void ram_map_ahead_end(const struct ram *ram)
{
	atomic_fetch_sub(mapping_ahead(ram), 1);
}

int ram_dirty_start(struct ram *ram, struct err *err)
{
	for (unsigned int i = 0; i < ram->num_regions; i++) {
		if (region_fill_map(&ram->regions[i]))
			return err_set(err, ENOMEM,
				       "dirty tracking: out of memory");
	}
	for (unsigned int i = 0; i < ram->num_regions; i++)
		atomic_store(&ram->regions[i].dirty, ram->regions[i].dirty_map);
	/* A piece of work is a few MiB at most. */
	while (atomic_load(&ram->mapping_ahead))
		usleep(100);
	return order_all_threads(err);
}

void ram_dirty_stop(struct ram *ram)
{
	for (unsigned int i = 0; i < ram->num_regions; i++)
		atomic_store_explicit(&ram->regions[i].dirty, NULL,
				      memory_order_release);
}
