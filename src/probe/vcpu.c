/* SPDX-License-Identifier: Apache-2.0 */
#include "probe/vcpu.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cond.h"
#include "base/thread.h"

/*
 * Theory of operation. A guest that never exits is got out by a kick. The
 * thread knows from `abandoned` that the -EINTR it then sees is meant; any
 * other is a stray signal and it enters again.
 */

void probe_vcpu_init(struct probe_vcpu *v, const struct probe_config *cfg)
{
	memset(v, 0, sizeof(*v));
	v->kvm.fd = -1;
	v->cfg = cfg;
	pthread_cond_init(&v->changed, NULL);
	pthread_mutex_init(&v->lock, NULL);
}

static uint64_t current_rip(struct probe_vcpu *v)
{
	struct kvm_regs regs;

	return kvm_vcpu_get_regs(&v->kvm, &regs) ? 0 : regs.rip;
}

/* Fill v->err for an exit the payload cannot have meant. */
static int unexpected_exit(struct probe_vcpu *v)
{
	const struct kvm_run *run = v->kvm.run;
	unsigned int id = v->kvm.id;
	unsigned long long rip = current_rip(v);

	switch (run->exit_reason) {
	case KVM_EXIT_SHUTDOWN:
		return err_set(&v->err, EIO,
			       "probe vCPU %u: triple fault at RIP %#llx", id,
			       rip);
	case KVM_EXIT_MMIO:
		return err_set(&v->err, EIO,
			       "probe vCPU %u: %s of %u bytes outside RAM at "
			       "guest address %#llx, RIP %#llx",
			       id, run->mmio.is_write ? "write" : "read",
			       run->mmio.len,
			       (unsigned long long)run->mmio.phys_addr, rip);
	case KVM_EXIT_IO:
		return err_set(&v->err, EIO,
			       "probe vCPU %u: access to port %#x at RIP %#llx",
			       id, run->io.port, rip);
	case KVM_EXIT_INTERNAL_ERROR:
		return err_set(&v->err, EIO,
			       "probe vCPU %u: KVM internal error %u at RIP "
			       "%#llx",
			       id, run->internal.suberror, rip);
	case KVM_EXIT_FAIL_ENTRY:
		return err_set(&v->err, EIO,
			       "probe vCPU %u: the CPU refused to enter the "
			       "guest (reason %#llx)",
			       id,
			       (unsigned long long)run->fail_entry
				       .hardware_entry_failure_reason);
	default:
		return err_set(&v->err, EIO,
			       "probe vCPU %u: unexpected exit %u at RIP %#llx",
			       id, run->exit_reason, rip);
	}
}

static bool is_payload_signal(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_IO &&
	       run->io.direction == KVM_EXIT_IO_OUT &&
	       run->io.port == PROBE_PORT;
}

static int interrupted(struct probe_vcpu *v)
{
	if (!atomic_load(&v->abandoned))
		return 0;
	kvm_vcpu_clear_exit_request(&v->kvm);
	return err_set(&v->err, ETIMEDOUT,
		       "probe vCPU %u: still busy when its time was up, at RIP "
		       "%#llx",
		       v->kvm.id, (unsigned long long)current_rip(v));
}

/* Run the guest to its next signal. 0, or a negative errno with v->err. */
static int run_guest(struct probe_vcpu *v)
{
	const struct probe_config *cfg = v->cfg;
	int r;

	for (;;) {
		r = kvm_vcpu_run(&v->kvm);
		if (r == -EINTR || r == -EAGAIN) {
			r = interrupted(v);
			if (r)
				return r;
			continue;
		}
		if (r)
			return err_errno(&v->err, -r,
					 "probe vCPU %u: KVM_RUN at RIP %#llx",
					 v->kvm.id,
					 (unsigned long long)current_rip(v));
		if (is_payload_signal(v->kvm.run))
			return 0;
		r = cfg->on_exit ? cfg->on_exit(cfg->ctx, v->kvm.id, v->kvm.run)
				 : 0;
		if (r <= 0)
			return unexpected_exit(v);
	}
}

static void *vcpu_thread(void *arg)
{
	struct probe_vcpu *v = arg;
	int r;

	kvm_vcpu_accept_kicks();
	pthread_mutex_lock(&v->lock);
	v->tid = gettid();
	pthread_cond_broadcast(&v->changed);
	for (;;) {
		while (v->state != PROBE_VCPU_RUNNING && !v->quit)
			pthread_cond_wait(&v->changed, &v->lock);
		if (v->quit)
			break;
		v->entered_ns = clock_now_ns();
		pthread_mutex_unlock(&v->lock);
		r = run_guest(v);
		pthread_mutex_lock(&v->lock);
		v->finished_ns = clock_now_ns();
		if (r)
			v->state = PROBE_VCPU_FAILED;
		else
			v->state = v->leaving ? PROBE_VCPU_LEFT
					      : PROBE_VCPU_IDLE;
		pthread_cond_broadcast(&v->changed);
	}
	pthread_mutex_unlock(&v->lock);
	return NULL;
}

int probe_vcpu_start_thread(struct probe_vcpu *v, struct err *err)
{
	char name[16];
	int r = kvm_vcpu_setup_kick();

	snprintf(name, sizeof(name), "probe-vcpu%u", v->kvm.id);
	if (!r)
		r = thread_start(&v->thread, &thread_class_tool, name,
				 vcpu_thread, v);
	if (r)
		return err_errno(err, -r, "starting the thread of vCPU %u",
				 v->kvm.id);
	v->thread_started = true;
	return 0;
}

pid_t probe_vcpu_tid(struct probe_vcpu *v)
{
	pid_t tid;

	pthread_mutex_lock(&v->lock);
	while (!v->tid)
		pthread_cond_wait(&v->changed, &v->lock);
	tid = v->tid;
	pthread_mutex_unlock(&v->lock);
	return tid;
}

/* Throw the thread out of the guest, now or as soon as it enters. */
static void abandon(struct probe_vcpu *v)
{
	atomic_store(&v->abandoned, true);
	kvm_vcpu_kick(&v->kvm, v->thread);
}

void probe_vcpu_fini(struct probe_vcpu *v)
{
	if (v->thread_started) {
		pthread_mutex_lock(&v->lock);
		v->quit = true;
		pthread_cond_broadcast(&v->changed);
		pthread_mutex_unlock(&v->lock);
		abandon(v);
		pthread_join(v->thread, NULL);
	}
	kvm_vcpu_close(&v->kvm);
	pthread_cond_destroy(&v->changed);
	pthread_mutex_destroy(&v->lock);
}

enum probe_vcpu_state probe_vcpu_state(struct probe_vcpu *v)
{
	enum probe_vcpu_state state;

	pthread_mutex_lock(&v->lock);
	state = v->state;
	pthread_mutex_unlock(&v->lock);
	return state;
}

static int state_error(struct probe_vcpu *v, struct err *err)
{
	switch (v->state) {
	case PROBE_VCPU_IDLE:
		return 0;
	case PROBE_VCPU_RUNNING:
		return err_set(err, EBUSY, "probe vCPU %u still runs a command",
			       v->kvm.id);
	case PROBE_VCPU_LEFT:
		return err_set(err, EIO, "probe vCPU %u has left", v->kvm.id);
	case PROBE_VCPU_FAILED:
		break;
	}
	if (err)
		*err = v->err;
	return -v->err.code;
}

int probe_vcpu_go(struct probe_vcpu *v, bool leaving, struct err *err)
{
	int r;

	pthread_mutex_lock(&v->lock);
	r = state_error(v, err);
	if (!r) {
		v->state = PROBE_VCPU_RUNNING;
		v->leaving = leaving;
		pthread_cond_broadcast(&v->changed);
	}
	pthread_mutex_unlock(&v->lock);
	return r;
}

/* Lock held. False when the time is up first. */
static bool wait_while_running(struct probe_vcpu *v, uint64_t timeout_ns)
{
	uint64_t now = clock_now_ns(), end;

	if (__builtin_add_overflow(now, timeout_ns, &end))
		end = INT64_MAX;
	while (v->state == PROBE_VCPU_RUNNING) {
		if (!cond_wait_until(&v->changed, &v->lock, end))
			return v->state != PROBE_VCPU_RUNNING;
	}
	return true;
}

int probe_vcpu_join(struct probe_vcpu *v, uint64_t timeout_ns, struct err *err)
{
	int r;

	pthread_mutex_lock(&v->lock);
	if (!wait_while_running(v, timeout_ns)) {
		abandon(v);
		while (v->state == PROBE_VCPU_RUNNING)
			pthread_cond_wait(&v->changed, &v->lock);
		if (v->state != PROBE_VCPU_FAILED) {
			/* It finished on its own at the last moment. */
			atomic_store(&v->abandoned, false);
			kvm_vcpu_clear_exit_request(&v->kvm);
		}
	}
	r = v->state == PROBE_VCPU_LEFT ? 0 : state_error(v, err);
	pthread_mutex_unlock(&v->lock);
	return r;
}
