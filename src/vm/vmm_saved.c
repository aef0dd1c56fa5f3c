/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verbs of a VM that is saved, and of one that comes back.
 *
 * While a saved machine is held another thread reads its memory. Nothing but
 * the end of quire may take the machine from it, and that waits: the control
 * thread in vmm_end_hold(), which the other leaves by vmm_release(), without
 * the control thread's help.
 *
 * A guest that ends by itself before it is saved is not taken away either: who
 * holds it is about to call, and could not be answered while the control thread
 * waits for him.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "mem/window.h"
#include "state/state.h"
#include "vm/config_json.h"
#include "vm/machine_state.h"
#include "vm/vmm_priv.h"

/* ---- holding ---- */

int vmm_check_held(struct vmm *v, const char *verb, struct err *err)
{
	const char *why;

	/* Not the control thread's to ask: it is the only one that asks. */
	if (v->left && !v->ending)
		return err_set(err, EBUSY,
			       "%s: not now: the VM runs elsewhere, and needs "
			       "its memory, which is still here (quire migrate "
			       "--recover)",
			       verb);
	pthread_mutex_lock(&v->hold.lock);
	why = v->hold.why;
	pthread_mutex_unlock(&v->hold.lock);
	return why ? err_set(err, EBUSY, "%s: not now: %s", verb, why) : 0;
}

void vmm_begin_hold(struct vmm *v, const char *why)
{
	pthread_mutex_lock(&v->hold.lock);
	v->hold.why = why;
	v->hold.cancelled = false;
	v->hold.holds_end = true;
	pthread_mutex_unlock(&v->hold.lock);
}

bool vmm_holds_end(struct vmm *v)
{
	bool holds;

	pthread_mutex_lock(&v->hold.lock);
	holds = v->hold.holds_end;
	pthread_mutex_unlock(&v->hold.lock);
	return holds;
}

/* The VM is paused now, and who has it go on has its end looked at. */
static void end_holding_end(struct vmm *v)
{
	pthread_mutex_lock(&v->hold.lock);
	v->hold.holds_end = false;
	pthread_mutex_unlock(&v->hold.lock);
}

void vmm_release(struct vmm *v)
{
	pthread_mutex_lock(&v->hold.lock);
	v->hold.why = NULL;
	v->hold.holds_end = false;
	pthread_cond_broadcast(&v->hold.released);
	pthread_mutex_unlock(&v->hold.lock);
	/* What was put off (vmm_paging.c, on_ended() of vmm_loop.c). */
	io_eventfd_signal(v->paging_fd);
	io_eventfd_signal(v->ended.event_fd);
}

bool vmm_hold_cancelled(struct vmm *v)
{
	bool cancelled;

	pthread_mutex_lock(&v->hold.lock);
	cancelled = v->hold.cancelled;
	pthread_mutex_unlock(&v->hold.lock);
	return cancelled;
}

void vmm_end_hold(struct vmm *v)
{
	pthread_mutex_lock(&v->hold.lock);
	v->hold.cancelled = true;
	while (v->hold.why)
		pthread_cond_wait(&v->hold.released, &v->hold.lock);
	pthread_mutex_unlock(&v->hold.lock);
}

/* ---- saving ---- */

/* What cannot be duplicated is opened by its path. */
static void list_images(const struct vm_config *cfg, struct vmm_saved *ret)
{
	for (unsigned int i = 0; i < cfg->num_devices; i++) {
		const struct vm_device_config *dev = &cfg->devices[i];
		struct vmm_image *image = &ret->images[ret->num_images];
		int fd = dev->cls->config_image
				 ? dev->cls->config_image(dev->config)
				 : -1;

		if (fd >= 0)
			fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
		if (fd < 0)
			continue;
		snprintf(image->id, sizeof(image->id), "%s", dev->id);
		image->fd = fd;
		ret->num_images++;
	}
}

void vmm_saved_fini(struct vmm_saved *saved)
{
	for (unsigned int i = 0; i < saved->num_images; i++)
		close_fd(&saved->images[i].fd);
	saved->num_images = 0;
	free(take_ptr(saved->dirty_words));
	json_decref(take_ptr(saved->config));
}

static int check_since(const struct vmm *v, const char *since, struct err *err)
{
	const struct vm_track *track = &v->machine->memory.track;

	if (!since || vm_track_has(track, since))
		return 0;
	if (!track->num)
		return err_set(err, EINVAL,
			       "snapshot: nobody has noted what the guest "
			       "wrote since %s was taken: that begins with a "
			       "snapshot that is taken with track, and ends "
			       "when the VM is started anew",
			       since);
	return err_set(err, EINVAL,
		       "snapshot: what the guest wrote is noted since %s was "
		       "taken, not since %s: it can only be an increment of "
		       "that one",
		       track->points[track->num - 1].id, since);
}

static void point_into(struct vmm_saved *ret)
{
	const uint64_t *at = ret->dirty_words;

	for (unsigned int i = 0; i < ret->ram->num_regions; i++) {
		ret->dirty[i] = at;
		at += ram_region_words(&ret->ram->regions[i]);
	}
}

/* After the state is saved: that may write to memory, too. */
static int track_paused(struct vmm *v, const struct vmm_save_request *req,
			struct vmm_saved *ret, struct err *err)
{
	struct vm_track *track = &v->machine->memory.track;
	int r = 0;

	if (req->since || req->track)
		r = vm_track_collect(track, err);
	if (!r && req->since) {
		r = vm_track_since(track, req->since, &ret->dirty_words, err);
		if (!r)
			point_into(ret);
	}
	if (!r && req->track)
		r = vm_track_add(track, req->track, err);
	if (r)
		err_prefix(err, "snapshot");
	return r;
}

void vmm_forget_track(struct vmm *v, const char *track)
{
	if (v->machine && track)
		vm_track_drop(&v->machine->memory.track, track);
	else if (v->machine)
		vm_track_end(&v->machine->memory.track);
}

/* One descriptor for all windows of this process: hosts may have few. */
static int open_window(struct vmm *v, struct write_window **ret,
		       struct err *err)
{
	const char *other = NULL;

	if (vm_config_shared(&v->cfg, &other) && other)
		return err_set(err, ENOTSUP,
			       "the %s device is served by another process: "
			       "what it writes to memory meanwhile would go "
			       "unseen",
			       other);
	if (!vmm_uffds(v))
		return err_set(err, EPERM,
			       "this process got no userfaultfd when it "
			       "started: grant read and write on "
			       "/dev/userfaultfd");
	if (v->window_uffd < 0)
		v->window_uffd = uffd_open_protecting(
			vmm_uffds(v), &v->window_all_kinds, err);
	return v->window_uffd < 0
		       ? v->window_uffd
		       : write_window_open(ret, &v->machine->memory.ram,
					   v->window_uffd, v->window_all_kinds,
					   err);
}

static int save_paused(struct vmm *v, const struct vmm_save_request *req,
		       struct state_writer *w, struct vmm_saved *ret,
		       struct err *err)
{
	int r = machine_save(v->machine, w, err);

	if (!r)
		r = track_paused(v, req, ret, err);
	if (!r && ret->window)
		r = write_window_arm(ret->window, err);
	if (r)
		return r;
	ret->config = vm_config_to_json(&v->cfg);
	list_images(&v->cfg, ret);
	return ret->config ? 0 : err_set(err, ENOMEM, "out of memory");
}

int vmm_hold(struct vmm *v, const struct vmm_save_request *req,
	     struct vmm_saved *ret, struct err *err)
{
	int r = vmm_check_state(v, "snapshot",
				VMM_IN(VMM_RUNNING) | VMM_IN(VMM_PAUSED), err);

	if (!r)
		r = vmm_check_paging(v, "snapshot", err);
	if (!r)
		r = vmm_check_own_memory(v, "snapshot", err);
	if (!r)
		r = check_since(v, req->since, err);
	if (!r && v->machine->memory.paging.fed &&
	    vm_paging_is_active(&v->machine->memory.paging))
		r = err_set(err, EBUSY,
			    "snapshot: the VM's memory has not all come yet; "
			    "wait for the event \"resident\"");
	if (r)
		return r;
	*ret = (struct vmm_saved){ .ram = &v->machine->memory.ram };
	if (req->live)
		r = open_window(v, &ret->window, err);
	if (r)
		err_prefix(err, "snapshot: live");
	else
		vmm_begin_hold(v, req->why);
	return r;
}

/* It stands still now, so it can be told. */
int vmm_check_not_ended(struct vmm *v, const char *verb, struct err *err)
{
	bool ended;

	pthread_mutex_lock(&v->ended.lock);
	ended = v->ended.end != MACHINE_END_NONE;
	pthread_mutex_unlock(&v->ended.lock);
	return ended ? err_set(err, EBADFD, "%s: the guest has ended", verb)
		     : 0;
}

int vmm_save_held(struct vmm *v, const struct vmm_save_request *req,
		  struct state_writer *w, struct vmm_saved *ret,
		  struct err *err)
{
	int r;

	ret->was_running = v->state == VMM_RUNNING;
	ret->paused_ns = clock_now_ns();
	if (ret->was_running) {
		machine_pause(v->machine);
		v->state = VMM_PAUSED;
		vmm_emit(v, "vm", "paused", NULL);
	}
	end_holding_end(v);
	r = vmm_check_not_ended(v, "snapshot", err);
	if (!r)
		r = save_paused(v, req, w, ret, err);
	if (!r)
		return 0;
	if (req->track)
		vmm_forget_track(v, req->track);
	if (ret->was_running && vmm_resume_held(v, NULL))
		r = -EIO;
	return r;
}

/* ---- coming back ---- */

void vmm_release_origin(struct vmm *v)
{
	struct vmm_origin origin = v->origin;

	v->origin = (struct vmm_origin){ 0 };
	if (origin.release)
		origin.release(origin.ctx);
}

int vmm_load_machine(struct vmm *v, struct err *err)
{
	struct state_reader reader;
	int r = state_reader_init(&reader, v->origin.state,
				  v->origin.state_bytes, err);

	if (r)
		return r;
	r = machine_load(v->machine, &reader, err);
	state_reader_fini(&reader);
	return r ? r : machine_start(v->machine, err);
}

static int bring_back(struct vmm *v, struct err *err)
{
	int r = vmm_build_machine(v, err);

	if (r)
		return r;
	r = vmm_load_machine(v, err);
	if (r)
		machine_free(take_ptr(v->machine));
	else
		v->state = VMM_PAUSED;
	return r;
}

int vmm_restore(struct vmm *v, struct vm_config *cfg,
		const struct vmm_origin *origin, struct err *err)
{
	int r = vmm_create_config(v, cfg, err);

	if (r) {
		origin->release(origin->ctx);
		return r;
	}
	v->origin = *origin;
	r = bring_back(v, err);
	if (!r) {
		vmm_emit(v, "vm", "restored", NULL);
		return 0;
	}
	vmm_release_origin(v);
	vmm_forget_vm(v);
	return r;
}
