/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A vmm (vm/vmm.h) without machines, for tests of what drives one: it counts
 * the verbs, and calls run where they are made, one at a time. Include it in
 * one file of a program.
 */
#ifndef QUIRE_TESTS_FAKE_VMM_H
#define QUIRE_TESTS_FAKE_VMM_H

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "vm/vmm.h"

const char *const vmm_state_names[5] = { "Empty", "Created", "Running",
					 "Paused", "Shutdown" };

struct vmm {
	pthread_mutex_t lock; /* the rest; changed waits on it */
	pthread_cond_t changed;
	enum vmm_state state;
	unsigned int verbs; /* that changed something */
	bool held;	    /* vmm_call() waits */
	unsigned int held_calls;
	bool ending; /* ... and fails */
	char last[64];
	void (*listen)(void *ctx, const char *source, const char *event,
		       const json_t *properties);
	void *listen_ctx;
};

#define FAKE_VMM_INIT                                \
	{                                            \
		.lock = PTHREAD_MUTEX_INITIALIZER,   \
		.changed = PTHREAD_COND_INITIALIZER, \
	}

enum vmm_state vmm_state(const struct vmm *v)
{
	return v->state;
}

int vmm_call(struct vmm *v,
	     int (*fn)(struct vmm *v, void *arg, struct err *err), void *arg,
	     struct err *err)
{
	int r;

	pthread_mutex_lock(&v->lock);
	v->held_calls++;
	pthread_cond_broadcast(&v->changed);
	while (v->held && !v->ending)
		pthread_cond_wait(&v->changed, &v->lock);
	v->held_calls--;
	r = v->ending ? err_set(err, ESHUTDOWN, "quire is ending")
		      : fn(v, arg, err);
	pthread_mutex_unlock(&v->lock);
	return r;
}

bool vmm_is_ending(struct vmm *v)
{
	bool ending;

	pthread_mutex_lock(&v->lock);
	ending = v->ending;
	pthread_mutex_unlock(&v->lock);
	return ending;
}

static inline void fake_vmm_hold(struct vmm *v, bool held)
{
	pthread_mutex_lock(&v->lock);
	v->held = held;
	pthread_cond_broadcast(&v->changed);
	pthread_mutex_unlock(&v->lock);
}

static inline void fake_vmm_wait_for_calls(struct vmm *v, unsigned int num)
{
	pthread_mutex_lock(&v->lock);
	while (v->held_calls < num)
		pthread_cond_wait(&v->changed, &v->lock);
	pthread_mutex_unlock(&v->lock);
}

static inline int fake_verb(struct vmm *v, const char *name)
{
	v->verbs++;
	snprintf(v->last, sizeof(v->last), "%s", name);
	return 0;
}

#define FAKE_VERB(name)                          \
	int name(struct vmm *v, struct err *err) \
	{                                        \
		return fake_verb(v, #name);      \
	}

FAKE_VERB(vmm_boot)
FAKE_VERB(vmm_resume)
FAKE_VERB(vmm_reboot)
FAKE_VERB(vmm_power_button)
FAKE_VERB(vmm_shutdown)
FAKE_VERB(vmm_delete)
FAKE_VERB(vmm_renew_generation_id)
FAKE_VERB(vmm_end)

int vmm_pause(struct vmm *v, struct err *err)
{
	if (v->state != VMM_RUNNING)
		return err_set(err, EBADFD, "the VM is not running");
	return fake_verb(v, "vmm_pause");
}

int vmm_create(struct vmm *v, const json_t *vm_config, struct err *err)
{
	v->state = VMM_CREATED;
	return fake_verb(v, "vmm_create");
}

int vmm_add_device(struct vmm *v, const struct virtio_class *cls,
		   const json_t *config, json_t **ret_info, struct err *err)
{
	*ret_info = json_pack("{s:s, s:s}", "id", "_disk0", "bdf",
			      "0000:00:01.0");
	return fake_verb(v, "vmm_add_device");
}

int vmm_remove_device(struct vmm *v, const char *id, struct err *err)
{
	if (strcmp(id, "_disk0") != 0)
		return err_set(err, ENOENT, "no device '%s'", id);
	return fake_verb(v, "vmm_remove_device");
}

int vmm_populate(struct vmm *v, const json_t *request, struct err *err)
{
	return fake_verb(v, "vmm_populate");
}

json_t *vmm_info(struct vmm *v)
{
	return json_pack("{s:s, s:{}}", "state", vmm_state_names[v->state],
			 "config");
}

json_t *vmm_counters(struct vmm *v)
{
	return json_pack("{s:{s:i}}", "_disk0", "requests", 1);
}

json_t *vmm_memory_stats(struct vmm *v)
{
	return json_pack("{s:i}", "size_bytes", 4096);
}

int vmm_hold(struct vmm *v, const struct vmm_save_request *req,
	     struct vmm_saved *ret, struct err *err)
{
	return err_set(err, EBADFD, "there is nothing to save");
}

int vmm_save_held(struct vmm *v, const struct vmm_save_request *req,
		  struct state_writer *w, struct vmm_saved *ret,
		  struct err *err)
{
	return -EBADFD;
}

int vmm_resume_held(struct vmm *v, struct err *err)
{
	return -EBADFD;
}

void vmm_forget_track(struct vmm *v, const char *track)
{
}

void vmm_saved_fini(struct vmm_saved *saved)
{
}

void vmm_release(struct vmm *v)
{
}

struct uffd_opener *vmm_uffds(struct vmm *v)
{
	return NULL;
}

bool vmm_hold_cancelled(struct vmm *v)
{
	return false;
}

int vmm_restore(struct vmm *v, struct vm_config *cfg,
		const struct vmm_origin *origin, struct err *err)
{
	origin->release(origin->ctx);
	return err_set(err, EEXIST, "there is a VM");
}

#define FAKE_REFUSAL(name, ...)                                     \
	int name(struct vmm *v, __VA_ARGS__, struct err *err)       \
	{                                                           \
		return err_set(err, EBADFD, "there is no machine"); \
	}

FAKE_REFUSAL(vmm_send_check, const struct machine **ret)
FAKE_REFUSAL(vmm_send_begin, bool logs, const struct machine **ret)
FAKE_REFUSAL(vmm_send_stop, struct state_writer *w, struct vmm_stopped *ret)
FAKE_REFUSAL(vmm_receive_begin, struct vmm_landing *ret)
FAKE_REFUSAL(vmm_receive_load, const void *state, size_t bytes,
	     const struct vm_landed *landed)
FAKE_REFUSAL(vmm_receive_go, bool run)
FAKE_REFUSAL(vmm_receive_memory, int fd)
FAKE_REFUSAL(vmm_receive_page, const struct vmm_origin *origin,
	     struct pager **ret)
FAKE_REFUSAL(vmm_send_left, const uint8_t *id, bool doubt)
FAKE_REFUSAL(vmm_send_begin_again, const struct machine **ret, uint8_t *id,
	     bool *ret_doubt)
FAKE_VERB(vmm_send_leave)
FAKE_VERB(vmm_send_done)
FAKE_VERB(vmm_send_reclaim)
FAKE_VERB(vmm_send_undo)
FAKE_VERB(vmm_send_doubt)
FAKE_VERB(vmm_receive_drop)

int vmm_listen(struct vmm *v,
	       void (*fn)(void *ctx, const char *source, const char *event,
			  const json_t *properties),
	       void *ctx)
{
	v->listen = fn;
	v->listen_ctx = ctx;
	return 0;
}

#endif
