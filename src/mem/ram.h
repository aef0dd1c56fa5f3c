/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest RAM: the regions of one VM and the only way to their bytes.
 *
 * One stretch of host address space is reserved for the whole guest-physical
 * span, aligned to 1 GiB, and every region is mapped inside it at its GPA. So
 * HVA = base + GPA for all RAM, which makes GPA and HVA congruent modulo 1 GiB:
 * without that KVM would quietly map the whole slot with 4K pages.
 *
 * Threads: regions are fixed before the first accessor runs; after that the
 * accessors may be called from any thread. Guest memory changes under the
 * reader: copy once, then check the copy.
 *
 * Errors: a start or length outside RAM is -EFAULT and nothing is touched.
 */
#ifndef QUIRE_MEM_RAM_H
#define QUIRE_MEM_RAM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "mem/gpa.h"
#include "mem/numa.h"

struct mem_source;

enum ram_page {
	RAM_PAGE_4K,  /* MADV_NOHUGEPAGE */
	RAM_PAGE_THP, /* MADV_HUGEPAGE */
	RAM_PAGE_2M,  /* hugetlb */
	RAM_PAGE_1G,  /* hugetlb */
};

/* "4k", "thp", "2m", "1g", indexed by enum ram_page. */
extern const char *const ram_page_names[4];

/* The unit it is mapped in; 4K with THP. */
uint64_t ram_page_bytes(enum ram_page page);

static inline bool ram_page_is_hugetlb(enum ram_page page)
{
	return page == RAM_PAGE_2M || page == RAM_PAGE_1G;
}

struct ram_region {
	struct gpa base;
	uint64_t size;
	unsigned int slot; /* KVM memslot number */
	/*
	 * One bit per 4K page, set by every write through the accessors, or
	 * NULL while nobody tracks. Ordinary guest stores are KVM's to log.
	 */
	_Atomic(_Atomic uint64_t *) dirty;
	/* What dirty points to, if ever; stays until ram_fini(). */
	_Atomic uint64_t *dirty_map;
};

#define RAM_MAX_REGIONS 4

/* A stretch of a region with one owner, for threads that populate it. */
struct ram_segment {
	struct gpa base;
	uint64_t size;
	int node; /* NUMA node that its pages come from; -1: no certain one */
};

/* NUMA_SPLIT goes over this many nodes at most. */
#define RAM_MAX_PARTS	 64
#define RAM_MAX_SEGMENTS (RAM_MAX_REGIONS + RAM_MAX_PARTS)

struct ram {
	char *base; /* HVA of GPA 0 */
	uint64_t span;
	enum ram_page page;
	bool shared; /* memfd */
	int fd;	     /* the memfd, offset = distance from first region; or -1 */
	bool taken;  /* which another process made (ram_take_memfd()) */
	unsigned int num_regions;
	struct ram_region regions[RAM_MAX_REGIONS];
	/* Nodes that every page has to come from; empty: it need not. */
	struct numa_nodes bound;
	enum numa_policy policy; /* as set, over policy_nodes */
	struct numa_nodes policy_nodes;
	/*
	 * What a page holds that is not in the host's page table: NULL, zeroes
	 * (or, in a memfd, what the file has). Borrowed; set and cleared by who
	 * restores memory, while no guest runs: before anybody else has RAM, or
	 * on the control thread.
	 */
	const struct mem_source *behind;
	/*
	 * By the pager: pages that are not there are waited for; and: some
	 * never came, read as zeroes now, and are not what the guest has. Any
	 * thread.
	 */
	_Atomic bool paged, lost;
	_Atomic unsigned int mapping_ahead; /* callers between begin and end */
	unsigned int num_segments;
	struct ram_segment segments[RAM_MAX_SEGMENTS];
};

struct ram_config {
	uint64_t size_bytes;
	/*
	 * RAM up to hole_start stays low; the rest continues at hole_end
	 * (4 GiB). Both multiples of 1 GiB.
	 */
	uint64_t hole_start;
	uint64_t hole_end;
	enum ram_page page;
	bool shared;
	struct numa_config numa; /* zeroed: no policy */
};

/*
 * Map RAM of size_bytes (a multiple of 4K; of the page size for hugetlb). Only
 * address space is taken: nothing is populated. Huge-page advice and the NUMA
 * policy are set here, before anybody can populate.
 */
__must_check int ram_init(struct ram *ram, const struct ram_config *cfg,
			  struct err *err);

/* Unmap all. Fine on a zeroed or half-built struct. */
void ram_fini(struct ram *ram);

/*
 * RAM changes its place in the VMM, not in memory: to is what from was, which
 * is as after ram_fini(). Nobody has a pointer to from.
 */
void ram_move(struct ram *to, struct ram *from);

/*
 * Map [gpa, gpa + len), whole 4K pages in one region, privately from fd, a
 * regular file open for reading that holds it at offset gpa: what nobody writes
 * is the file's page cache, shared with whoever maps it, a page that is written
 * becomes this VM's own. Advice and NUMA policy are as before. Only address
 * space is taken. The file must never change as long as RAM is mapped.
 *
 * Before the memslots are made, one thread. -ENOTSUP: RAM that is shared or
 * of hugetlb pages; -ENODATA: the file is shorter.
 */
__must_check int ram_map_file(struct ram *ram, struct gpa gpa, uint64_t len,
			      int fd, struct err *err);

/*
 * RAM that is shared becomes what another process has in fd: its memfd, of the
 * same size and kind, with all regions in their order, sealed so that nobody
 * can cut it off. It takes fd, unless it fails; then RAM is as before. Nobody
 * reads or writes RAM meanwhile, but memslots may be there. -ENOTSUP: this RAM
 * is not shared; -EINVAL: fd is not that.
 */
__must_check int ram_take_memfd(struct ram *ram, int fd, struct err *err);

/*
 * A guest began to run on RAM that was taken over; or did not, after all. RAM
 * that was not: nothing happens. ram_claims() is how often that was so far
 * (modulo 65), as all who have the memfd see it, whoever is gone since; 0 where
 * there is none. Who gave his memory away, and does not know what became of it,
 * tells so whether it is still as he left it.
 */
__must_check int ram_claim(struct ram *ram, struct err *err);
void ram_unclaim(struct ram *ram);
unsigned int ram_claims(const struct ram *ram);

uint64_t ram_size(const struct ram *ram);

/*
 * The regions, cut where the owner changes: in address order, without overlap,
 * and together all of RAM. Cuts are multiples of 2 MiB (with 1G pages, and
 * where that gives equal parts, of 1 GiB), so no huge page has two owners.
 */
unsigned int ram_num_segments(const struct ram *ram);
const struct ram_segment *ram_segment(const struct ram *ram, unsigned int i);
/* The node of the segment that gpa is in; -1: no certain one, or no RAM. */
int ram_node(const struct ram *ram, struct gpa gpa);

enum mem_access {
	MEM_READ,  /* the VMM reads guest memory */
	MEM_WRITE, /* the VMM writes guest memory; the range is marked dirty */
};

/*
 * The host address of [gpa, gpa + len), which must lie in one region, or NULL.
 * len 0 is refused. With MEM_WRITE the range is marked dirty now, which is
 * enough only while nobody tracks (building a machine). Whoever writes through
 * the pointer later, or has the kernel write there (io_uring), calls
 * mem_mark_dirty() once the data is there: a mark made before may be taken, and
 * the page copied, before the data comes.
 */
__must_check void *mem_map_range(const struct ram *ram, struct gpa gpa,
				 uint64_t len, enum mem_access access);

/* Copy out of / into guest memory. 0 or -EFAULT. len 0 is fine. */
__must_check int mem_read(const struct ram *ram, struct gpa gpa, void *buf,
			  uint64_t len);
__must_check int mem_write(const struct ram *ram, struct gpa gpa,
			   const void *buf, uint64_t len);

/*
 * Before bytes of guest memory leave the VM: wait until they are there. False:
 * they never came, and what would be taken are zeroes. Waiting here, and not in
 * a system call that is given them, also lets whoever waits be told so. Costs
 * nothing where nothing is missing.
 */
__must_check bool mem_await(const struct ram *ram, const void *hva,
			    uint64_t len);

/*
 * Mark a range dirty that was written through a mapped pointer. After the
 * bytes, always: who takes the mark is then sure to see them.
 */
void mem_mark_dirty(const struct ram *ram, struct gpa gpa, uint64_t len);

/* The region that gpa is in, or NULL. */
const struct ram_region *ram_region_at(const struct ram *ram, struct gpa gpa);
/* How many 4K pages a region has, and 64-bit words its dirty map. */
uint64_t ram_region_pages(const struct ram_region *region);
uint64_t ram_region_words(const struct ram_region *region);

/*
 * Once in a process, better before it has threads: what ram_dirty_start() would
 * otherwise wait for, which with threads takes the kernel some 10 ms.
 */
void ram_dirty_prepare(void);

/*
 * Give every region a dirty map with all bits set. When this returns, each
 * write through the accessors is either in memory for all to see or will be
 * marked, and nothing is being mapped ahead. Control thread; for mem/dirty.c.
 */
__must_check int ram_dirty_start(struct ram *ram, struct err *err);

/*
 * Around every piece of work that maps guest memory in the second stage ahead
 * of the guest. False: it is tracked, do not, and do not call end. A page that
 * KVM maps writable while it logs counts as dirty; with dirty rings that is an
 * entry in the ring of the vCPU it was mapped through, which nobody keeps from
 * running over. ram_dirty_start() waits for those that have begun. Any thread.
 */
__must_check bool ram_map_ahead_begin(const struct ram *ram);
void ram_map_ahead_end(const struct ram *ram);

/*
 * Stop marking. The maps themselves stay, since an accessor on another thread
 * may be about to set a bit.
 */
void ram_dirty_stop(struct ram *ram);

#endif
