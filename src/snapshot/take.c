/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/take.h"

#include <errno.h>
#include <string.h>

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
};

static int save_and_hold(struct vmm *v, void *arg, struct err *err)
{
	struct take *t = arg;
	const struct vmm_save_request req = {
		.why = "a snapshot is being written",
		.since = snapshot_writer_parent_id(t->writer),
		.track = t->req->track ? snapshot_writer_id(t->writer) : NULL,
	};

	return vmm_save_and_hold(v, &req, &t->state, &t->saved, err);
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

static bool is_cancelled(void *ctx)
{
	struct take *t = ctx;

	return vmm_hold_cancelled(t->vmm) || snapshot_writer_is_over(t->writer);
}

static bool poll_hold(void *ctx, const struct populate_progress *progress)
{
	return is_cancelled(ctx);
}

/* The VM is held. */
static int write_parts(struct take *t, struct err *err)
{
	const struct populate_watch watch = { .poll = poll_hold, .ctx = t };
	struct snapshot_memory_request memory = {
		.ram = t->saved.ram,
		.threads = t->req->threads,
		.watch = &watch,
	};
	const struct snapshot_disks_request disks = {
		.config = t->saved.config,
		.policy = t->req->disks,
		.images = t->saved.images,
		.num_images = t->saved.num_images,
		.cancelled = is_cancelled,
		.ctx = t,
	};
	int r = state_writer_finish(&t->state);

	if (r)
		return err_errno(err, -r, "saving the state of the VM");
	memcpy(memory.dirty, t->saved.dirty, sizeof(memory.dirty));
	r = snapshot_writer_put_state(t->writer, t->state.data, t->state.bytes,
				      err);
	if (!r)
		r = snapshot_writer_put_config(t->writer, t->saved.config, err);
	if (!r)
		r = snapshot_writer_put_disks(t->writer, &disks, err);
	if (!r)
		r = snapshot_writer_put_memory(t->writer, &memory,
					       &t->result->memory, err);
	return r;
}

/* Whatever happened, a VM that ran goes on. */
static int write_and_resume(struct take *t, struct err *err)
{
	struct err resume_err = ERR_INIT;
	int r = write_parts(t, err), r2;

	vmm_release(t->vmm);
	if (!t->saved.was_running)
		return r;
	r2 = vmm_call(t->vmm, resume, NULL, &resume_err);
	t->result->paused_ns = clock_now_ns() - t->saved.paused_ns;
	if (r2 && !r && err)
		*err = resume_err;
	return r ? r : r2;
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
		r = vmm_call(t->vmm, save_and_hold, t, err);
	if (r)
		return r;
	r = write_and_resume(t, err);
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
