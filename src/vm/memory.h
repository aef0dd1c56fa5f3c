/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine's guest memory, from mapping to tearing down: RAM and its memslots,
 * population before the start, and the keeper (mem/keeper.h) that works on it
 * while the guest runs.
 *
 *	vm_memory_map -> vm_memory_populate -> vm_memory_start
 *		-> vm_memory_stop -> vm_memory_fini
 *
 * Control thread only, but for the first step. Half built and zeroed structs
 *are fine for stop and fini.
 */
#ifndef QUIRE_VM_MEMORY_H
#define QUIRE_VM_MEMORY_H

#include "kvm/kvm.h"
#include "mem/dirty.h"
#include "mem/hints.h"
#include "mem/keeper.h"
#include "mem/populate.h"
#include "mem/ram.h"
#include "stage2/helpers.h"
#include "stage2/stage2.h"
#include "vm/paging.h"
#include "vm/track.h"

struct cpu_model;
struct vm_config;

/* Memory that came from another process while it was written there. */
struct vm_landed {
	uint64_t page_bytes, zero_bytes; /* received, also more than once */
	uint64_t second_stage_bytes;	 /* mapped ahead of the guest */
	uint64_t disk_bytes; /* of content that was written to disks */
	uint64_t rounds;
	/* Second-stage faults that the vCPUs had when the guest went on. */
	uint64_t base_faults;
};

/* With --memory coalesce=on, from one pass over all RAM to the next. */
#define COALESCE_EVERY_S 10

struct vm_memory {
	const struct vm_config *cfg;
	const struct kvm_vm *vm;
	struct ram ram;
	/* Prepared by the machine, before anything else here; NULL: no log. */
	struct dirty_tracker *dirty;
	struct vm_track track; /* what was written since its snapshots */
	/* Of a device that knows what the guest does not need; NULL: none. */
	const struct mem_hints *hints;
	/* How it was populated; wall_ns 0: it was not. */
	struct populate_result populated;
	struct populate_service service;
	uint64_t populate_faults;  /* second-stage faults that it took itself */
	enum stage2_method method; /* that filled the second stage, or NONE */
	struct stage2_helpers helpers;
	struct stage2 *background; /* over the helpers */
	void (*idle)(void *ctx);   /* see keeper_config; set by the machine */
	void *idle_ctx;
	struct keeper *keeper;
	bool has_keeper;	  /* or had */
	struct keeper_stats kept; /* what it did, once stopped */
	struct vm_paging paging;
	bool has_paging;	/* was made */
	struct stage2 *landing; /* over the vCPUs, while memory comes in */
	struct kvm_vcpu **landing_vcpus; /* those it is over */
	bool has_landed;
	struct vm_landed landed;
	/* Something has happened to it; set by the machine, with idle_ctx. */
	void (*paging_event)(void *ctx);
};

/* Where the content of guest memory comes from, if it is not made. */
struct vm_memory_origin {
	/*
	 * RAM as of vm_memory_map_ram() that has been loaded; it is taken.
	 * NULL: it is mapped when the machine is built, and load is called.
	 */
	struct ram *ram;
	/* RAM is mapped and untouched, and KVM does not know it yet. */
	int (*load)(void *ctx, struct ram *ram, struct err *err);
	void *ctx;
	const char *mode;  /* "eager": a literal, for people */
	uint64_t began_ns; /* when restoring began */
	/*
	 * After load: the pager brings memory from this source while the guest
	 * runs. NULL: load has brought it, or mapped it.
	 */
	const struct mem_source *source;
	const struct working_set *ahead;       /* NULL: none; not kept */
	const struct working_set_store *store; /* of ahead; NULL: none */
	bool record;			       /* what the guest touches */
	struct uffd_opener *opener;	       /* may be NULL */
	bool fed; /* the source: what it has not cannot be read from it */
	/* There is none yet, but there will be: vm_memory_page(). */
	bool paged_later;
};

/*
 * Check that the host has what is asked for, and map RAM. Any thread: what
 * comes of it may be loaded while the control thread does something else.
 */
__must_check int vm_memory_map_ram(const struct vm_config *cfg, struct ram *ret,
				   struct err *err);

/*
 * The same, have origin (NULL: there is none) load it, and give it to KVM as
 * memslots, once and for all. cfg and vm are kept.
 */
__must_check int vm_memory_map(struct vm_memory *m, const struct vm_config *cfg,
			       const struct vm_memory_origin *origin,
			       const struct kvm_vm *vm, struct err *err);

/*
 * What the configuration says: host pages, second stage through the vCPUs,
 * which have their CPUID and do not run yet. The guest's memory may hold
 * anything.
 */
__must_check int vm_memory_populate(struct vm_memory *m,
				    struct kvm_vcpu *const *vcpus,
				    unsigned int num_vcpus,
				    const struct populate_watch *watch,
				    struct err *err);

/*
 * Before the guest runs: make what background work needs (helper vCPUs with ids
 * from first_id on), and begin it. Nothing when the configuration asks for
 * none.
 */
__must_check int vm_memory_prepare_keeper(struct vm_memory *m,
					  const struct cpu_model *model,
					  unsigned int first_id,
					  struct err *err);
__must_check int vm_memory_start(struct vm_memory *m, struct err *err);
/*
 * Ask the keeper for work on [start, start + len), cut to RAM, while the guest
 * runs; where the configuration asked for none it is started now. The idle hook
 * follows. Without vm_config.may_populate_later, host pages only.
 */
__must_check int vm_memory_request(struct vm_memory *m, enum keeper_work work,
				   struct gpa start, uint64_t len,
				   struct err *err);
bool vm_memory_is_idle(const struct vm_memory *m);

/*
 * A machine that was built to be loaded gets its memory from another process:
 * *ret_filler is for mapping it ahead of the guest, through the vCPUs, none of
 * which runs; NULL: this KVM has no way to, or it is not wanted. Until
 * vm_memory_end_landing().
 */
__must_check int
vm_memory_begin_landing(struct vm_memory *m, struct kvm_vcpu *const *vcpus,
			unsigned int num_vcpus,
			const struct second_stage_filler **ret_filler,
			struct err *err);
__must_check int vm_memory_end_landing(struct vm_memory *m, struct err *err);

/*
 * Landing has ended, and what has not come follows while the guest runs: from
 * source, which is fed. There was origin.paged_later.
 */
__must_check int vm_memory_page(struct vm_memory *m,
				const struct vm_memory_origin *origin,
				struct err *err);

/*
 * No background work any more; the helper vCPUs are gone, and so is the pager:
 * memory that did not come reads as zeroes, so that the vCPUs have been told
 * not to enter the guest again.
 */
void vm_memory_stop(struct vm_memory *m);

/*
 * The VM is closed: unmapping RAM under it would zap page by page. What still
 * keeps the kernel's VM, the mapped dirty rings, goes first.
 */
void vm_memory_fini(struct vm_memory *m);

#endif
