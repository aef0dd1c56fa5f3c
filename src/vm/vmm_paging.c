/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A restored VM whose memory comes while its guest runs: what happens when it
 * has come, when its source fails, and when the working set is recorded.
 */
#include <errno.h>
#include <string.h>
#include <sys/timerfd.h>

#include "base/io.h"
#include "base/log.h"
#include "base/thread.h"
#include "vm/vmm_priv.h"

/* ---- userfaultfd, asked for while the process still may ---- */

void vmm_prepare_paging(struct vmm *v)
{
	struct err err = ERR_INIT;

	if (v->has_uffds)
		return;
	v->has_uffds = !uffd_opener_init(&v->uffds, &err);
	if (!v->has_uffds)
		log_info("memory cannot be restored lazily, nor written "
			 "into a snapshot live: %s",
			 err.text);
}

struct uffd_opener *vmm_uffds(struct vmm *v)
{
	return v->has_uffds ? &v->uffds : NULL;
}

/* ---- the working set ---- */

static void arm_recording(const struct vmm *v, unsigned int seconds)
{
	const struct itimerspec at = { .it_value.tv_sec = seconds };

	(void)!timerfd_settime(v->recording_fd, 0, &at, NULL);
}

void vmm_begin_recording(struct vmm *v)
{
	if (vm_paging_is_recording(&v->machine->memory.paging))
		arm_recording(v, v->origin.record_s);
}

static const struct thread_call keep_calls[] = {
	CALL(openat),
	CALL(pread64),
	CALL(fsync),
	CALL(renameat),
	CALL(close),
	RARE("pages here and there are kept", pwrite64),
	RARE("there are none, or the disk is full", unlinkat),
	RARE("memory is in very many pieces, or was cut off", lseek),
};

const struct thread_class vmm_keep_thread_class = {
	.name = "working-set",
	.what = "puts the working set into its snapshot",
	THREAD_CALLS(keep_calls),
};

static void *keep_main(void *arg)
{
	struct vmm *v = arg;
	struct vmm_keeping *k = &v->keeping;

	k->result = v->origin.save_working_set(v->origin.ctx, &k->set, &k->stop,
					       &k->err);
	atomic_store(&k->done, true);
	io_eventfd_signal(v->paging_fd);
	return NULL;
}

/* What it says of memory may have to be read and written: not here. */
static int start_keeping(struct vmm *v)
{
	struct vmm_keeping *k = &v->keeping;
	int r;

	atomic_store(&k->stop, false);
	atomic_store(&k->done, false);
	k->err = (struct err)ERR_INIT;
	r = thread_start(&k->thread, &vmm_keep_thread_class, "working-set",
			 keep_main, v);
	k->running = !r;
	return r;
}

static void look_kept(struct vmm *v)
{
	struct vmm_keeping *k = &v->keeping;

	pthread_join(k->thread, NULL);
	k->running = false;
	if (k->result)
		log_warn("the working set is not kept: %s", k->err.text);
	else
		vmm_emit(v, "vm", "working-set-recorded",
			 json_pack("{s:I, s:I}", "units",
				   (json_int_t)k->set.num, "pages",
				   (json_int_t)working_set_pages(&k->set)));
	working_set_fini(&k->set);
}

/* A hint is no reason to fail anything. */
static void end_recording(struct vmm *v)
{
	int r = v->machine ? vm_paging_end_recording(&v->machine->memory.paging,
						     &v->keeping.set)
			   : -ENOENT;

	if (r == -ENOENT)
		return;
	arm_recording(v, 0);
	if (!r) {
		r = start_keeping(v);
		if (r)
			working_set_fini(&v->keeping.set);
	}
	if (r)
		log_warn("the working set is not kept: %s", strerror(-r));
}

void vmm_end_recording(struct vmm *v)
{
	end_recording(v);
	if (!v->keeping.running)
		return;
	/* Which pages they are is soon written; what is in them is not. */
	atomic_store(&v->keeping.stop, true);
	look_kept(v);
}

void vmm_on_recorded(void *ctx, uint32_t events)
{
	struct vmm *v = ctx;

	io_eventfd_drain(v->recording_fd);
	end_recording(v);
	/* All may have come meanwhile. */
	io_eventfd_signal(v->paging_fd);
}

/* ---- completion and failure ---- */

static bool is_held(struct vmm *v)
{
	return vmm_check_held(v, "", NULL) != 0;
}

/*
 * Memory that followed its VM was not populated before: that would have asked
 * for each page of it. What is not there by now is zero.
 */
static void populate_rest(struct vmm *v)
{
	struct vm_memory *m = &v->machine->memory;
	struct err err = ERR_INIT;

	if (!m->paging.fed || m->cfg->populate == POPULATE_NONE)
		return;
	if (vm_memory_request(m, KEEPER_POPULATE, GPA(0), m->ram.span, &err))
		log_warn("memory is not populated: %s", err.text);
	else
		v->populating = true;
}

static void look_complete(struct vmm *v)
{
	struct vm_paging *paging = &v->machine->memory.paging;

	/* Who holds the machine reads through the pager's source. */
	if (is_held(v) || !vm_paging_finish(paging))
		return;
	vmm_emit(v, "vm", "resident", NULL);
	populate_rest(v);
}

/*
 * The guest stands still until it is resumed, which tries again. A guest that
 * is paused already is in nobody's way.
 */
static void look_failed(struct vmm *v, const struct err *error)
{
	log_error("guest memory cannot be brought: %s", error->text);
	vmm_emit(v, "vm", "memory-failed",
		 json_pack("{s:s}", "error", error->text));
	if (v->state != VMM_RUNNING)
		return;
	machine_pause(v->machine);
	v->state = VMM_PAUSED;
	vmm_emit(v, "vm", "paused", json_pack("{s:s}", "reason", "memory"));
}

void vmm_look_at_paging(struct vmm *v)
{
	struct err error = ERR_INIT;

	if (v->keeping.running && atomic_load(&v->keeping.done))
		look_kept(v);
	if (vm_paging_failed(&v->machine->memory.paging, &error))
		look_failed(v, &error);
	else
		look_complete(v);
}

int vmm_check_paging(struct vmm *v, const char *verb, struct err *err)
{
	struct err error = ERR_INIT;

	if (!v->machine ||
	    !vm_paging_failed(&v->machine->memory.paging, &error))
		return 0;
	return err_set(err, EIO, "%s: guest memory cannot be brought: %s", verb,
		       error.text);
}
