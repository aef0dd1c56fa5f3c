/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/take.h"

#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "state/state.h"
#include "vm/vmm.h"

struct take {
	struct vmm *vmm;
	const struct snapshot_take_request *req;
	struct snapshot_writer *writer;
	struct state_writer state;
	struct vmm_saved saved;
	struct snapshot_take_result *result;
	bool goes_on; /* live: it was let go on, or that was tried */
};

static struct vmm_save_request save_request(const struct take *t)
{
	return (struct vmm_save_request){
		.why = "a snapshot is being written",
		.since = snapshot_writer_parent_id(t->writer),
		.track = t->req->track ? snapshot_writer_id(t->writer) : NULL,
		.live = t->req->live,
	};
}

static int hold(struct vmm *v, void *arg, struct err *err)
{
	struct take *t = arg;
	const struct vmm_save_request req = save_request(t);

	return vmm_hold(v, &req, &t->saved, err);
}

static int save(struct vmm *v, void *arg, struct err *err)
{
	struct take *t = arg;
	const struct vmm_save_request req = save_request(t);

	return vmm_save_held(v, &req, &t->state, &t->saved, err);
}

/* The snapshot is not there, so nothing can be an increment of it. */
static int forget(struct vmm *v, void *arg, struct err *err)
{
	struct take *t = arg;

	vmm_forget_track(v, snapshot_writer_id(t->writer));
	return 0;
}

static int untrack(struct vmm *v, void *arg, struct err *err)
{
	vmm_forget_track(v, NULL);
	return 0;
}

static int resume(struct vmm *v, void *arg, struct err *err)
{
	return vmm_resume(v, err);
}

static int resume_held(struct vmm *v, void *arg, struct err *err)
{
	return vmm_resume_held(v, err);
}

static bool is_cancelled(void *ctx)
{
	struct take *t = ctx;

	return vmm_hold_cancelled(t->vmm) || snapshot_writer_is_over(t->writer);
}

static bool poll_hold(void *ctx, const struct populate_progress *progress)
{
	return is_cancelled(ctx);
}

static int write_disks(struct take *t, struct err *err)
{
	const struct snapshot_disks_request disks = {
		.config = t->saved.config,
		.policy = t->req->disks,
		.images = t->saved.images,
		.num_images = t->saved.num_images,
		.cancelled = is_cancelled,
		.ctx = t,
	};

	return snapshot_writer_put_disks(t->writer, &disks, err);
}

static int write_state(struct take *t, struct err *err)
{
	int r = state_writer_finish(&t->state);

	if (r)
		return err_errno(err, -r, "saving the state of the VM");
	r = snapshot_writer_put_state(t->writer, t->state.data, t->state.bytes,
				      err);
	return r ? r
		 : snapshot_writer_put_config(t->writer, t->saved.config, err);
}

/* Let it go on if it ran; the failure of that is told if nothing else is. */
static int go_on(struct take *t,
		 int (*resume_by)(struct vmm *v, void *arg, struct err *err),
		 int r, struct err *err)
{
	struct err resume_err = ERR_INIT;
	int r2;

	if (!t->saved.was_running)
		return r;
	r2 = vmm_call(t->vmm, resume_by, NULL, &resume_err);
	t->result->paused_ns = clock_now_ns() - t->saved.paused_ns;
	if (r2 && !r && err)
		*err = resume_err;
	return r ? r : r2;
}

static struct snapshot_memory_request
memory_request(struct take *t, const struct populate_watch *watch)
{
	return (struct snapshot_memory_request){
		.ram = t->saved.ram,
		.window = t->saved.window,
		.threads = t->req->threads,
		.watch = watch,
	};
}

static int prepare_memory(struct take *t, struct err *err)
{
	const struct snapshot_memory_request memory = memory_request(t, NULL);

	return snapshot_writer_prepare_memory(t->writer, &memory, err);
}

static int write_memory(struct take *t, struct err *err)
{
	const struct populate_watch watch = { .poll = poll_hold, .ctx = t };
	const struct snapshot_memory_request memory = memory_request(t, &watch);

	return snapshot_writer_put_memory(t->writer, &memory,
					  &t->result->memory, err);
}

/* Nobody serves the window, and nobody looks at the machine any more. */
static void let_go(struct take *t)
{
	snapshot_writer_drop_memory(t->writer);
	write_window_close(take_ptr(t->saved.window));
	vmm_release(t->vmm);
}

static int write_still(struct take *t, struct err *err)
{
	int r = write_state(t, err);

	if (!r)
		r = write_disks(t, err);
	return r ? r : write_memory(t, err);
}

/*
 * The guest stands still for what is to be of one instant and cannot be kept by
 * protecting it: disks.
 */
static int write_live(struct take *t, struct err *err)
{
	int r = write_disks(t, err);

	if (r)
		return r;
	r = go_on(t, resume_held, 0, err);
	t->goes_on = true;
	if (!r)
		r = write_memory(t, err);
	return r ? r : write_state(t, err);
}

/* Whatever happened, a VM that ran goes on. */
static int save_and_write(struct take *t, struct err *err)
{
	int r = prepare_memory(t, err);

	if (!r)
		r = vmm_call(t->vmm, save, t, err);
	if (r) {
		let_go(t);
		return r;
	}
	snapshot_writer_set_dirty(t->writer, t->saved.dirty);
	r = t->req->live ? write_live(t, err) : write_still(t, err);
	let_go(t);
	return t->goes_on ? r : go_on(t, resume, r, err);
}

static int take(struct take *t, struct err *err)
{
	const struct snapshot_writer_config cfg = {
		.path = t->req->path,
		.files = t->req->files,
		.replace = t->req->replace,
		.parent_path = t->req->parent,
	};
	/* What can be refused without a pause is. */
	int r = snapshot_writer_new(&t->writer, &cfg, err);

	if (!r)
		r = vmm_call(t->vmm, hold, t, err);
	if (r)
		return r;
	r = save_and_write(t, err);
	if (!r)
		r = snapshot_writer_commit(t->writer, err);
	if (r && t->req->track)
		(void)vmm_call(t->vmm, forget, t, NULL);
	else if (!r && t->req->untrack)
		(void)vmm_call(t->vmm, untrack, t, NULL);
	return r;
}

static void take_ids(struct take *t)
{
	const char *parent = snapshot_writer_parent_id(t->writer);

	memcpy(t->result->id, snapshot_writer_id(t->writer),
	       sizeof(t->result->id));
	if (parent)
		memcpy(t->result->parent_id, parent,
		       sizeof(t->result->parent_id));
}

int snapshot_take(struct vmm *v, const struct snapshot_take_request *req,
		  struct snapshot_take_result *ret, struct err *err)
{
	struct take t = { .vmm = v, .req = req, .result = ret };
	uint64_t began = clock_now_ns();
	int r;

	memset(ret, 0, sizeof(*ret));
	state_writer_init(&t.state);
	r = take(&t, err);
	if (!r)
		take_ids(&t);
	ret->wall_ns = clock_now_ns() - began;
	vmm_saved_fini(&t.saved);
	state_writer_fini(&t.state);
	snapshot_writer_free(t.writer);
	return r;
}
