/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the vmm share: vmm.c the states and verbs, vmm_populate.c
 * the verb for memory, vmm_saved.c those for a machine that is saved and comes
 * back, vmm_migrate.c for one that goes to another process or comes from there,
 * vmm_paging.c what follows when its memory comes later, vmm_loop.c the
 * signals and the end of a machine, vmm_calls.c the queue, vmm_info.c what is
 * told about it.
 */
#ifndef QUIRE_VM_VMM_PRIV_H
#define QUIRE_VM_VMM_PRIV_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "base/evloop.h"
#include "mem/uffd.h"
#include "vm/summary.h"
#include "vm/vmm.h"

#define VMM_MAX_LISTENERS 8

struct vmm_call_entry;

/* Functions of other threads, in order. */
struct vmm_calls {
	int event_fd;
	pthread_mutex_t lock; /* the two below, and the entries */
	struct vmm_call_entry *first, **last;
	bool closed;
};

/* How a machine ended: posted by a vCPU's thread, taken by the loop. */
struct vmm_ended {
	int event_fd;
	pthread_mutex_t lock; /* all below */
	enum machine_end end;
	unsigned int code;
	char text[200];
};

/* The guest's panics, of this machine. */
struct vmm_panic {
	int event_fd;
	_Atomic unsigned int events; /* device/pvpanic.h; from vCPU threads */
	unsigned int told;
};

/* A machine that work on another thread wants to stay as it is. */
struct vmm_hold {
	pthread_mutex_t lock; /* those below */
	pthread_cond_t released;
	/* "a snapshot is being written"; NULL: there is none */
	const char *why;
	bool cancelled;
	bool holds_end; /* not yet saved: vmm_holds_end() */
};

struct vmm_listener {
	void (*fn)(void *ctx, const char *source, const char *event,
		   const json_t *properties);
	void *ctx;
};

/* A working set that was recorded is put into its snapshot (vmm_paging.c). */
struct vmm_keeping {
	pthread_t thread;
	bool running; /* to be joined; the control thread's */
	_Atomic bool stop, done;
	struct working_set set;
	int result;
	struct err err;
};

struct vmm {
	pthread_t control;
	struct evloop *loop;
	enum vmm_state state;
	bool stays, ending, chardev_started;
	struct vm_config cfg; /* meaningless while EMPTY */
	struct chardev *chardev;
	struct machine *machine;  /* RUNNING and PAUSED */
	struct vmm_origin origin; /* of this machine; zeroed: it was booted */
	uint64_t start_ns, built_ns;
	struct vm_summary summary; /* of machines that ended */

	/* With vmm_prepare_paging(). */
	struct uffd_opener uffds;
	bool has_uffds;
	int window_uffd; /* -1: none was needed yet */
	bool window_all_kinds;

	/* In doubt: as long as ram_claims() is this, not on this memory. */
	unsigned int sent_claims;

	int signal_fd, deadline_fd, populated_fd, paging_fd, recording_fd;
	sigset_t signals;   /* that signal_fd takes */
	bool shutting_down; /* SIGTERM pressed the power button */
	bool populating;    /* vmm_populate() asked; its event is due */

	/* Migration: the machine goes, it ran when it was stopped; or comes. */
	bool sending, send_logs, sent_ran, receiving, writes_disks;
	bool disks_left; /* it may not go on before vmm_take_disks() */
	bool in_doubt;	 /* it may run elsewhere; see sent_claims */
	/* Post-copy lost its connection: for vmm_send_begin_again(). */
	bool has_left_id;
	uint8_t left_id[VMM_MIGRATION_ID_BYTES];
	bool left; /* the VM runs elsewhere, of memory that is still here */

	struct vmm_calls calls;
	struct vmm_hold hold;
	struct vmm_keeping keeping;
	struct vmm_ended ended;
	struct vmm_panic panic;
	struct vm_result result;
	int error; /* what vmm_run() returns */
	struct err error_text;

	struct vmm_listener listeners[VMM_MAX_LISTENERS];
	unsigned int num_listeners;
};

/* Tell the listeners; takes properties, which may be NULL. */
void vmm_emit(struct vmm *v, const char *source, const char *event,
	      json_t *properties);

/*
 * vmm.c: does the verb, so called in messages, fit one of these states (VMM_IN
 * of each)?
 */
#define VMM_IN(state) (1u << (state))
__must_check int vmm_check_state(struct vmm *v, const char *verb,
				 unsigned int states, struct err *err);

/*
 * vmm.c: build a machine, of v->origin if that is set, and have it ready to
 * run; build one and run it; end the one that runs.
 */
__must_check int vmm_build_machine(struct vmm *v, struct err *err);
__must_check int vmm_start_machine(struct vmm *v, struct err *err);
void vmm_stop_machine(struct vmm *v);
/* Back to EMPTY, from any state. */
void vmm_forget_vm(struct vmm *v);

/*
 * vmm_migrate.c: the guest ended by itself, or is to, while its VM is being
 * sent: that is over. The disks, where they were given up, are this machine's
 * again.
 */
void vmm_sending_ended(struct vmm *v);
__must_check int vmm_take_disks(struct vmm *v, struct err *err);

/*
 * vmm_migrate.c: -EBADFD, in words, where another process was given the memory
 * of this VM and has run it: what is here fits it no more.
 */
__must_check int vmm_check_own_memory(struct vmm *v, const char *verb,
				      struct err *err);

/*
 * vmm_saved.c: somebody holds the machine from now on; -EBADFD, the guest of
 * one that stands still has ended; load v->origin.state.
 */
void vmm_begin_hold(struct vmm *v, const char *why);
__must_check int vmm_check_not_ended(struct vmm *v, const char *verb,
				     struct err *err);
__must_check int vmm_load_machine(struct vmm *v, struct err *err);
/* -EBUSY, in words, while somebody holds the machine. */
__must_check int vmm_check_held(struct vmm *v, const char *verb,
				struct err *err);
/* Is the end of a guest not to be looked at now? It will be signalled. */
__must_check bool vmm_holds_end(struct vmm *v);
/* Nobody holds the machine any more; waits for that. */
void vmm_end_hold(struct vmm *v);
/* The machine is gone, and what its memory came from with it. */
void vmm_release_origin(struct vmm *v);

/* vmm_paging.c: memory has come, or cannot; the guest goes on; it stops. */
void vmm_look_at_paging(struct vmm *v);
void vmm_begin_recording(struct vmm *v);
void vmm_end_recording(struct vmm *v);
extern const struct thread_class vmm_keep_thread_class;
void vmm_on_recorded(void *ctx, uint32_t events);
/* -EIO, in words, while memory's source has failed. */
__must_check int vmm_check_paging(struct vmm *v, const char *verb,
				  struct err *err);

/* vmm_loop.c */
__must_check int vmm_loop_open(struct vmm *v, struct err *err);
void vmm_loop_close(struct vmm *v);
/* The hooks of the next machine; what an older one posted is forgotten. */
struct machine_end_hooks vmm_loop_hooks(struct vmm *v);
bool vmm_signal_waits(void *vmm);
/* As if the guest had let go of what it was asked for. */
void vmm_forget_asked_devices(struct vmm *v);
/* Begin to end quire: the loop stops, for the first reason given. */
void vmm_begin_end(struct vmm *v, int signal, bool quit);
void vmm_begin_fail(struct vmm *v, int error, const struct err *text);

/* vmm_calls.c; the loop has to outlive them. */
__must_check int vmm_calls_open(struct vmm *v);
void vmm_calls_close(struct vmm *v);

#endif
