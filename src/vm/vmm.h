/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VM of this process and all that can be asked of it: one event loop, the
 * control thread that runs it, and at most one VM at a time.
 *
 *	            create           boot            pause
 *	  EMPTY -----------> CREATED ----> RUNNING <-------> PAUSED
 *	    ^                   ^             |      resume    |
 *	    |     delete        | boot fails  | shutdown,      | shutdown,
 *	    +-- (from any) --+  |             v guest's end    v reboot
 *	                     +-----------  SHUTDOWN <----------+
 *	                                      | boot
 *	                                      +----> RUNNING
 *
 * A reboot, the guest's or vmm_reboot(), builds a new machine from the same
 * configuration: the clean state is the one that every boot tests. The serial
 * port's back end stays from the first boot until vmm_delete(): a client of the
 * console socket sees one console.
 *
 * Threads: vmm_call() and vmm_interrupt_calls() from any; all else on the
 * control thread, which is the one that called vmm_new() and calls vmm_run().
 * Others put a function there with vmm_call(); that is what serialises verbs.
 *
 * Errors: -EBADFD, the verb does not fit the state; -ENOENT, there is no VM, or
 * no such device; -EEXIST, there is one already; -EINVAL, a bad value; -EBUSY,
 * the machine is held (vmm_hold()). The text is for people.
 */
#ifndef QUIRE_VM_VMM_H
#define QUIRE_VM_VMM_H

#include <jansson.h>
#include <stdbool.h>

#include "base/err.h"
#include "vm/machine.h"

struct state_writer;
struct vm_config;
struct vm_summary;
struct virtio_class;
struct vmm;
struct write_window;

enum vmm_state {
	VMM_EMPTY, /* no VM */
	VMM_CREATED,
	VMM_RUNNING,
	VMM_PAUSED,
	VMM_SHUTDOWN,
};

/* "Empty", and Cloud Hypervisor's "Created", "Running", "Paused", "Shutdown" */
extern const char *const vmm_state_names[5];

/* Why vmm_run() returned. */
struct vm_result {
	enum machine_end end;
	unsigned int code; /* of MACHINE_END_DEBUG_EXIT */
	int signal;	   /* stopped by this signal; 0: not */
	bool quit;	   /* from the terminal (Ctrl-A x), or vmm_end() */
	char text[200];	   /* what happened, for CRASH and ERROR */
};

/*
 * Takes over SIGINT, SIGTERM and SIGHUP: call it before any other thread is
 * started, so that all of them inherit the mask.
 */
__must_check int vmm_new(struct vmm **ret, struct err *err);
/*
 * Stops and deletes the VM. No other thread is in vmm_call() any more. NULL is
 * fine.
 */
void vmm_free(struct vmm *v);

struct evloop *vmm_loop(struct vmm *v);
enum vmm_state vmm_state(const struct vmm *v);

/*
 * stays: the end of the guest is not the end of quire, the VM is SHUTDOWN then.
 * Default: false.
 */
void vmm_set_stays(struct vmm *v, bool stays);
/* Of the machines that ended so far. */
const struct vm_summary *vmm_summary(const struct vmm *v);

/*
 * Ask for userfaultfd, that vmm_restore() and live snapshots may want later,
 * while the process still has the rights; what it cannot get is said when it is
 * wanted.
 */
void vmm_prepare_paging(struct vmm *v);
/* For vmm_origin.memory; NULL: it was not asked for, or cannot be had. */
struct uffd_opener *vmm_uffds(struct vmm *v);

/*
 * The event loop, until quire is to end: by a signal, from the terminal, by
 * vmm_end(), or unless vmm_set_stays() by the guest. The VM is stopped then,
 * and vmm_call() fails. 0 with *ret filled; a negative errno when a machine
 * could not be built again for a reboot, or the loop itself failed.
 *
 * SIGTERM presses the power button and stops the VM shutdown_timeout_s later if
 * it is still there; a second SIGTERM, SIGINT or SIGHUP stops it at once. A VM
 * that does not run (PAUSED included: it may be paused for a reason) ends at
 * once.
 */
__must_check int vmm_run(struct vmm *v, struct vm_result *ret, struct err *err);

/*
 * Run fn on the control thread and return what it returned; waits for it, and
 * for what is before it in the queue. From the control thread itself: calls fn.
 * -ESHUTDOWN when quire is ending; fn did not run then.
 */
int vmm_call(struct vmm *v,
	     int (*fn)(struct vmm *v, void *arg, struct err *err), void *arg,
	     struct err *err);

/* All callers that still wait, and later ones, get -ESHUTDOWN. */
void vmm_interrupt_calls(struct vmm *v);
/* They do: what is done for a call can be given up. Any thread. */
bool vmm_is_ending(struct vmm *v);

/*
 * Verbs. vmm_create() reads the API's VmConfig (vm/config_json.h);
 * vmm_create_config() takes what is in *cfg and leaves it as
 * vm_config_init() does, on success only.
 */
int vmm_create(struct vmm *v, const json_t *vm_config, struct err *err);
int vmm_create_config(struct vmm *v, struct vm_config *cfg, struct err *err);
int vmm_boot(struct vmm *v, struct err *err);
int vmm_pause(struct vmm *v, struct err *err);
int vmm_resume(struct vmm *v, struct err *err);
/* At once, without asking the guest. From RUNNING or PAUSED into RUNNING. */
int vmm_reboot(struct vmm *v, struct err *err);
/* Asks the guest's operating system to shut down. */
int vmm_power_button(struct vmm *v, struct err *err);
/* At once, for the guest a power cut. */
int vmm_shutdown(struct vmm *v, struct err *err);
int vmm_delete(struct vmm *v, struct err *err);
/* quire ends: vmm_run() returns once the caller is back in the loop. */
int vmm_end(struct vmm *v, struct err *err);

/*
 * config is the device's object as in VmConfig. The configuration gets it in
 * every state; a RUNNING or PAUSED machine has it plugged in, and *ret_info
 * (the caller's reference) is {"id", "bdf"}. Otherwise *ret_info is NULL.
 */
int vmm_add_device(struct vmm *v, const struct virtio_class *cls,
		   const json_t *config, json_t **ret_info, struct err *err);
/*
 * Asks the guest to let it go; the event "device-removed" follows when it has.
 * At once where no machine runs; with the machine, if it ends before the guest
 * has answered. It may be asked again.
 */
int vmm_remove_device(struct vmm *v, const char *id, struct err *err);

/*
 * Tell the guest that it may have been copied: another VM generation id, upon
 * which Linux (from 5.18 on) reseeds its random numbers. RUNNING or PAUSED.
 */
int vmm_renew_generation_id(struct vmm *v, struct err *err);

/*
 * Populate memory of a RUNNING or PAUSED machine in the background:
 * {"range": {"start": N, "size": N}, "mode": "populate"|"repair"|"coalesce"},
 * both optional (all of memory, populate); request may be NULL. The event
 * "populated" follows when it is done.
 */
int vmm_populate(struct vmm *v, const json_t *request, struct err *err);

/*
 * For work on a machine, on another thread: hold it, then have it saved.
 *
 * vmm_hold(): RUNNING or PAUSED; it stays so, with *ret->ram as it is, and
 * *ret->window open with live. The verbs that would end or change it are
 * refused, saying why, until vmm_release(), and a guest that ends by itself is
 * only looked at when it was saved or released. Errors: EBUSY, somebody else
 * holds it; EINVAL, the machine does not track what it writes since then;
 * ENOTSUP, its memory cannot be written out live.
 *
 * vmm_save_held(): once. RUNNING is paused, PAUSED stays so. All in one call of
 * the control thread:
 *
 *	save	machine_save() into *w, which the caller finishes
 *	track	which pages were written since another snapshot, into
 *		*ret->dirty; this moment is a point to count from as well
 *	window	with live, it is armed (mem/window.h)
 *
 * After a failure it goes on if it ran; it stays held in any case.
 */
struct vmm_image {
	char id[VM_MAX_NAME]; /* the disk's */
	int fd;		      /* a duplicate */
};

struct vmm_saved {
	const struct ram *ram;
	json_t *config; /* as vmm_info(); the caller's reference */
	/*
	 * With since: for each region a bit per page, set where it was written;
	 * else NULL.
	 */
	const uint64_t *dirty[RAM_MAX_REGIONS];
	uint64_t *dirty_words; /* that dirty points into */
	/* With live; the caller closes it before vmm_release(). */
	struct write_window *window;
	/* Images that this process has held open since it was confined. */
	struct vmm_image images[VM_MAX_DEVICES];
	unsigned int num_images;
	bool was_running;
	uint64_t paused_ns; /* clock_now_ns() when it was paused */
};
struct vmm_save_request {
	const char *why; /* a literal: "a snapshot is being written" */
	/* Ids of snapshots (vm/track.h); NULL: none. */
	const char *since, *track;
	/* vmm_resume_held() will let the guest go on before the release. */
	bool live;
};

int vmm_hold(struct vmm *v, const struct vmm_save_request *req,
	     struct vmm_saved *ret, struct err *err);
int vmm_save_held(struct vmm *v, const struct vmm_save_request *req,
		  struct state_writer *w, struct vmm_saved *ret,
		  struct err *err);
/*
 * Nothing will be counted from track any more, for there is no such snapshot;
 * NULL: from none. Fine where it is not known, or the machine is gone.
 */
void vmm_forget_track(struct vmm *v, const char *track);
/* Let a held machine go on that was saved live: it stays held. */
int vmm_resume_held(struct vmm *v, struct err *err);
/*
 * What is in *saved but the window; of it only images may be filled, or config
 * NULL.
 */
void vmm_saved_fini(struct vmm_saved *saved);
/* Any thread but the control thread, once. */
void vmm_release(struct vmm *v);
/* quire is to end, and waits for vmm_release(). Any thread. */
bool vmm_hold_cancelled(struct vmm *v);

/*
 * A VM that was saved comes back: from EMPTY, cfg as of vmm_create_config(),
 * into PAUSED; vmm_resume() lets it go on.
 */
struct vmm_origin {
	struct vm_memory_origin memory;
	const void *state; /* layer state/'s bytes */
	size_t state_bytes;
	/*
	 * With memory.record: after so many seconds, or at the end, what was
	 * touched is given to save_working_set, on a thread of its own: *stop
	 * asks it to leave out what takes long.
	 */
	unsigned int record_s;
	int (*save_working_set)(void *ctx, const struct working_set *set,
				const _Atomic bool *stop, struct err *err);
	/* "migration" in vmm_info(), a new reference. NULL: nothing to tell. */
	json_t *(*describe)(void *ctx);
	/* The machine that came from here is gone, or was not to be. */
	void (*release)(void *ctx);
	void *ctx;
};
/*
 * Takes the origin, in any case. With memory.source, memory comes while the
 * guest runs: the event "resident" follows when all has come, and
 * "memory-failed" when it cannot, upon which the VM is PAUSED; vmm_resume()
 * tries again.
 */
int vmm_restore(struct vmm *v, struct vm_config *cfg,
		const struct vmm_origin *origin, struct err *err);

/*
 * A VM goes to another process (migrate/send.h). Control thread, in this order:
 *
 *	begin	from RUNNING or PAUSED: what is written is logged, if logs (who
 *		sends nothing before stop has no use for it); the machine is
 *		held, though its guest runs, until one of the last three
 *	stop	it stands still, and is saved into *w, which is finished
 *	leave	its disks are durable and nobody's
 *	done	the VM is gone from here; without vmm_set_stays() quire ends
 *	reclaim	its disks are its own again; -EBUSY: somebody has one, perhaps
 *		not for long: as before
 *	undo	it goes on here, if it ran; instead of any of the others. Fails
 *		where somebody has taken a disk: PAUSED then
 *	doubt	it may run elsewhere: PAUSED, until vmm_resume()
 *	left	post-copy has lost its connection: PAUSED for good, its memory
 *		being wanted elsewhere; or, with doubt, as above, too
 *
 * After left, begin_again holds the machine again, until done or left. id is
 * the migration's.
 *
 * The machine that begin returns stays until then. vmm_hold_cancelled(): the
 * guest has ended, or quire is to: undo. When a call fails with -ESHUTDOWN,
 * which says that quire ends, vmm_release() takes the place of the last three.
 */
struct vmm_stopped {
	bool ran;
	uint64_t paused_ns; /* clock_now_ns() when it was stopped */
};
/* Could it begin? *ret is good for as long as the caller is here. */
int vmm_send_check(struct vmm *v, const struct machine **ret, struct err *err);
int vmm_send_begin(struct vmm *v, bool logs, const struct machine **ret,
		   struct err *err);
int vmm_send_stop(struct vmm *v, struct state_writer *w,
		  struct vmm_stopped *ret, struct err *err);
int vmm_send_leave(struct vmm *v, struct err *err);
int vmm_send_done(struct vmm *v, struct err *err);
int vmm_send_reclaim(struct vmm *v, struct err *err);
int vmm_send_undo(struct vmm *v, struct err *err);
int vmm_send_doubt(struct vmm *v, struct err *err);

#define VMM_MIGRATION_ID_BYTES 16

int vmm_send_left(struct vmm *v, const uint8_t *id, bool doubt,
		  struct err *err);
int vmm_send_begin_again(struct vmm *v, const struct machine **ret, uint8_t *id,
			 bool *ret_doubt, struct err *err);

/*
 * A VM comes from another process (migrate/receive.h), into one that is
 * CREATED. Control thread:
 *
 *	begin	the machine is built and held; its memory, all zero, is for
 *		others to fill
 *	memory	its memory is in fd, which is taken unless that fails; instead
 *		of being filled
 *	page	with landing.follows: what did not come is missing, until source
 *		brings it; release(ctx) once the machine is gone
 *	load	the disks are its own, the state is loaded: PAUSED, held still
 *	go	it runs, or with run false is PAUSED; not held any more
 *	drop	instead of go: CREATED, as if nothing had been
 *
 * -ESHUTDOWN: as above, vmm_release() takes the place of drop.
 */
struct vmm_landing {
	const struct machine *machine;
	const struct ram *ram;
	/* Maps what has come ahead of the guest; NULL: that cannot be. */
	const struct second_stage_filler *second_stage;
	bool fills_host; /* host pages are wanted for all of memory */
	bool follows;	 /* the caller's: page will be called */
	/* The caller's: its disks are written meanwhile, so they are its own
	 * from begin on. */
	bool writes_disks;
};
int vmm_receive_begin(struct vmm *v, struct vmm_landing *ret, struct err *err);
int vmm_receive_memory(struct vmm *v, int fd, struct err *err);
int vmm_receive_page(struct vmm *v, const struct vmm_origin *origin,
		     struct pager **ret, struct err *err);
int vmm_receive_load(struct vmm *v, const void *state, size_t bytes,
		     const struct vm_landed *landed, struct err *err);
int vmm_receive_go(struct vmm *v, bool run, struct err *err);
int vmm_receive_drop(struct vmm *v, struct err *err);
/* Before vm_confine(): the disks of cfg are another process's still. */
void vmm_expect_disks(struct vm_config *cfg, bool expected);

/* quire is to end, for this failure. */
int vmm_fail(struct vmm *v, const struct err *why);

/*
 * A new reference. NULL: there is no VM, or no memory. From any other state;
 * without a machine vmm_counters() and vmm_memory_stats() tell of the last one,
 * or are empty objects.
 *
 * vmm_info: {"config", "state", "memory_actual_size", "boots", "leaving": [ids
 * of devices that the guest was asked for and has not let go], and
 * "memory_error" while memory cannot be brought, "tracked_since": [ids of
 * snapshots] while what the guest writes is noted, "migration": what its
 * memory comes from, or who wants it} vmm_counters:
 * {"_disk0": {"requests", "kicks", "interrupts", "errors", and what a class
 * counts besides, as "rx_bytes"}, ...,
 * "_vm": {...}}, all integers
 * vmm_memory_stats: see vm/memory_stats.h
 */
json_t *vmm_info(struct vmm *v);
json_t *vmm_counters(struct vmm *v);
json_t *vmm_memory_stats(struct vmm *v);

/*
 * Call fn for every event, on the control thread; it must not block, and must
 * not call verbs. source "vm": "created", "booted", "paused", "resumed",
 * "rebooted", "restored", "resident", "memory-failed",
 * "working-set-recorded", "migration-started", "migration-failed",
 * "migration-in-doubt", "migration-paused", "migrated", "received", "shutdown",
 * "crashed", "failed", "panic", "populated", "deleted", "ended" (quire ends);
 * source "device": "device-added", "device-removed". The object properties has
 * what else is known ("reason", "error", "id"); it is borrowed and may be NULL.
 * Listeners stay until vmm_free(). -ENOSPC.
 */
int vmm_listen(struct vmm *v,
	       void (*fn)(void *ctx, const char *source, const char *event,
			  const json_t *properties),
	       void *ctx);

#endif
