/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/vcpu.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/cond.h"
#include "base/log.h"
#include "base/thread.h"
#include "device/ioapic.h"
#include "kvm/stats.h"
#include "mem/dirty.h"

struct vcpu {
	struct kvm_vcpu kvm;
	struct vcpu_env env;
	struct vcpu_counters counters;
	int stats_fd;
	pthread_t thread;
	bool started;
	_Atomic bool stop;
	_Atomic bool pause;	/* changed under lock, read by the thread */
	pthread_mutex_t lock;	/* the three below */
	pthread_cond_t changed; /* and what is waited for */
	uint64_t nap_until_ns;	/* out of the guest as long; under lock */
	bool parked;		/* out of the guest, and will not enter it */
	bool left;		/* the loop has ended */
};

int vcpu_new(struct vcpu **ret, const struct kvm_vm *vm, unsigned int id,
	     const struct vcpu_env *env, struct err *err)
{
	struct vcpu *vcpu = calloc(1, sizeof(*vcpu));
	int r;

	if (!vcpu)
		return err_set(err, ENOMEM, "out of memory");
	pthread_mutex_init(&vcpu->lock, NULL);
	pthread_cond_init(&vcpu->changed, NULL);
	vcpu->kvm.fd = -1;
	vcpu->stats_fd = -1;
	vcpu->env = *env;
	r = kvm_vcpu_create(&vcpu->kvm, vm, id, err);
	if (!r && env->dirty)
		r = dirty_add_vcpu(env->dirty, &vcpu->kvm, err);
	if (r) {
		vcpu_free(vcpu);
		return r;
	}
	vcpu->stats_fd = kvm_stats_fd(vcpu->kvm.fd);
	if (vcpu->stats_fd < 0)
		vcpu->stats_fd = -1;
	*ret = vcpu;
	return 0;
}

void vcpu_free(struct vcpu *vcpu)
{
	if (!vcpu)
		return;
	BUG_ON(vcpu->started);
	close_fd(&vcpu->stats_fd);
	kvm_vcpu_close(&vcpu->kvm);
	pthread_cond_destroy(&vcpu->changed);
	pthread_mutex_destroy(&vcpu->lock);
	free(vcpu);
}

struct kvm_vcpu *vcpu_kvm(struct vcpu *vcpu)
{
	return &vcpu->kvm;
}

const struct vcpu_counters *vcpu_counters(const struct vcpu *vcpu)
{
	return &vcpu->counters;
}

int vcpu_stats_fd(const struct vcpu *vcpu)
{
	return vcpu->stats_fd;
}

static void count(_Atomic uint64_t *counter)
{
	atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

static void handle_pio(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->kvm.run;
	char *data = (char *)run + run->io.data_offset;
	bool claimed = true;

	count(&vcpu->counters.exits_pio);
	for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
		if (run->io.direction == KVM_EXIT_IO_IN)
			claimed &= iobus_read(vcpu->env.pio, run->io.port, data,
					      run->io.size);
		else
			claimed &= iobus_write(vcpu->env.pio, run->io.port,
					       data, run->io.size);
	}
	if (!claimed)
		count(&vcpu->counters.unclaimed);
}

static void handle_mmio(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->kvm.run;
	bool claimed;

	count(&vcpu->counters.exits_mmio);
	if (run->mmio.is_write)
		claimed = iobus_write(vcpu->env.mmio, run->mmio.phys_addr,
				      run->mmio.data, run->mmio.len);
	else
		claimed = iobus_read(vcpu->env.mmio, run->mmio.phys_addr,
				     run->mmio.data, run->mmio.len);
	if (!claimed)
		count(&vcpu->counters.unclaimed);
}

/* Report the end and leave the loop. */
static bool end(struct vcpu *vcpu, enum vcpu_end how, const char *text)
{
	vcpu->env.ended(vcpu->env.ctx, vcpu->kvm.id, how, text);
	return false;
}

static bool end_error(struct vcpu *vcpu, const char *what, uint64_t detail)
{
	struct kvm_regs regs = { .rip = 0 };
	char text[160];
	int r = kvm_vcpu_get_regs(&vcpu->kvm, &regs);

	if (r)
		snprintf(text, sizeof(text), "%s (0x%llx)", what,
			 (unsigned long long)detail);
	else
		snprintf(text, sizeof(text), "%s (0x%llx) at RIP 0x%llx", what,
			 (unsigned long long)detail,
			 (unsigned long long)regs.rip);
	return end(vcpu, VCPU_END_ERROR, text);
}

static bool handle_system_event(struct vcpu *vcpu)
{
	switch (vcpu->kvm.run->system_event.type) {
	case KVM_SYSTEM_EVENT_SHUTDOWN:
		return end(vcpu, VCPU_END_SYSTEM_SHUTDOWN, "");
	case KVM_SYSTEM_EVENT_RESET:
		return end(vcpu, VCPU_END_SYSTEM_RESET, "");
	default:
		return end(vcpu, VCPU_END_TRIPLE_FAULT,
			   "KVM reports a system crash");
	}
}

static bool handle_shutdown(struct vcpu *vcpu)
{
	struct kvm_regs regs = { .rip = 0 };
	char text[64] = "";

	if (!kvm_vcpu_get_regs(&vcpu->kvm, &regs))
		snprintf(text, sizeof(text), "at RIP 0x%llx",
			 (unsigned long long)regs.rip);
	return end(vcpu, VCPU_END_TRIPLE_FAULT, text);
}

static bool handle_ring_full(struct vcpu *vcpu)
{
	int r = vcpu->env.dirty ? dirty_ring_full(vcpu->env.dirty, vcpu->kvm.id)
				: -EINVAL;

	count(&vcpu->counters.exits_other);
	return r ? end_error(vcpu, "emptying the dirty ring failed",
			     (uint64_t)-r)
		 : true;
}

/* One exit; false: leave the loop. */
static bool handle_exit(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->kvm.run;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		handle_pio(vcpu);
		return true;
	case KVM_EXIT_MMIO:
		handle_mmio(vcpu);
		return true;
	case KVM_EXIT_IOAPIC_EOI:
		count(&vcpu->counters.exits_other);
		if (vcpu->env.ioapic)
			ioapic_eoi(vcpu->env.ioapic, run->eoi.vector);
		return true;
	case KVM_EXIT_DIRTY_RING_FULL:
		return handle_ring_full(vcpu);
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		count(&vcpu->counters.exits_other);
		return true;
	case KVM_EXIT_SHUTDOWN:
		return handle_shutdown(vcpu);
	case KVM_EXIT_SYSTEM_EVENT:
		return handle_system_event(vcpu);
	case KVM_EXIT_FAIL_ENTRY:
		return end_error(vcpu, "the CPU refused to enter the guest",
				 run->fail_entry.hardware_entry_failure_reason);
	case KVM_EXIT_INTERNAL_ERROR:
		return end_error(vcpu, "KVM internal error",
				 run->internal.suberror);
	default:
		return end_error(vcpu, "unexpected KVM exit", run->exit_reason);
	}
}

static bool handle_run_error(struct vcpu *vcpu, int r)
{
	char text[160];

	/* EAGAIN: an application processor still waits for its start-up IPI. */
	if (r == -EAGAIN)
		return true;
	if (r == -EFAULT || r == -EHWPOISON)
		return end_error(vcpu,
				 r == -EFAULT
					 ? "guest memory could not be reached"
					 : "guest memory is hardware-poisoned",
				 (uint64_t)-r);
	snprintf(text, sizeof(text), "KVM_RUN: %s", strerror(-r));
	return end(vcpu, VCPU_END_ERROR, text);
}

/*
 * Called after a KVM_RUN that returned -EINTR: that one has completed the last
 * exit, so that the registers are what the guest will go on with. The exit
 * request is taken back under the lock. A later pause sets its flag under the
 * same lock before it asks for an exit again, so none is lost; neither is a
 * stop, which the loop looks for afterwards. The pause may be over already, if
 * nobody waited for it (vcpu_wait_paused_until()); a nap likewise.
 */
static void park(struct vcpu *vcpu)
{
	pthread_mutex_lock(&vcpu->lock);
	vcpu->parked = true;
	pthread_cond_broadcast(&vcpu->changed);
	while (!atomic_load(&vcpu->stop)) {
		if (atomic_load(&vcpu->pause))
			pthread_cond_wait(&vcpu->changed, &vcpu->lock);
		else if (vcpu->nap_until_ns > clock_now_ns())
			(void)cond_wait_until(&vcpu->changed, &vcpu->lock,
					      vcpu->nap_until_ns);
		else
			break;
	}
	vcpu->parked = false;
	kvm_vcpu_clear_exit_request(&vcpu->kvm);
	pthread_mutex_unlock(&vcpu->lock);
}

static void leave(struct vcpu *vcpu)
{
	pthread_mutex_lock(&vcpu->lock);
	vcpu->left = true;
	pthread_cond_broadcast(&vcpu->changed);
	pthread_mutex_unlock(&vcpu->lock);
}

static const struct thread_call vcpu_calls[] = {
	CALL_IOCTL(KVM_RUN),
	/* Devices answer on this thread: interrupt lines and vectors, */
	CALL_IOCTL(KVM_IRQ_LINE),
	CALL_IOCTL(KVM_IRQFD),
	CALL_IOCTL(KVM_SET_GSI_ROUTING),
	RARE_IOCTL("--irqchip split", KVM_SIGNAL_MSI),
	/* doorbells that the driver moves or resets, */
	CALL_IOCTL(KVM_IOEVENTFD),
	/* timers. */
	CALL(timerfd_settime),
	RARE_IOCTL("a crash, for its message", KVM_GET_REGS),
	RARE_IOCTL("a dirty ring is full", KVM_RESET_DIRTY_RINGS),
	RARE("a device's thread could not be started", close),
};

const struct thread_class vcpu_thread_class = {
	.name = "vcpu",
	.what = "runs one CPU of the guest, and what it asks of devices",
	THREAD_CALLS(vcpu_calls),
};

static void *vcpu_loop(void *arg)
{
	struct vcpu *vcpu = arg;
	bool go_on = true;

	kvm_vcpu_accept_kicks();
	while (go_on &&
	       !atomic_load_explicit(&vcpu->stop, memory_order_acquire)) {
		int r = kvm_vcpu_run(&vcpu->kvm);

		/* What memory that was lost made it do goes nowhere. */
		if (atomic_load(&vcpu->stop))
			break;
		/*
		 * Also when it is not to pause any more: somebody has to take
		 * the exit request back, or no KVM_RUN enters the guest again.
		 */
		if (r == -EINTR)
			park(vcpu);
		else
			go_on = r ? handle_run_error(vcpu, r)
				  : handle_exit(vcpu);
	}
	leave(vcpu);
	return NULL;
}

int vcpu_start(struct vcpu *vcpu)
{
	char name[16];
	int r;

	snprintf(name, sizeof(name), "vcpu%u", vcpu->kvm.id);
	if (atomic_load(&vcpu->pause))
		kvm_vcpu_request_exit(&vcpu->kvm);
	r = thread_start(&vcpu->thread, &vcpu_thread_class, name, vcpu_loop,
			 vcpu);
	if (!r)
		vcpu->started = true;
	return r;
}

void vcpu_request_pause(struct vcpu *vcpu)
{
	pthread_mutex_lock(&vcpu->lock);
	atomic_store(&vcpu->pause, true);
	pthread_mutex_unlock(&vcpu->lock);
	if (vcpu->started)
		kvm_vcpu_kick(&vcpu->kvm, vcpu->thread);
}

bool vcpu_wait_paused_until(struct vcpu *vcpu, uint64_t until_ns)
{
	bool out, more = true;

	pthread_mutex_lock(&vcpu->lock);
	while (more && vcpu->started && !vcpu->parked && !vcpu->left)
		more = cond_wait_until(&vcpu->changed, &vcpu->lock, until_ns);
	out = !vcpu->started || vcpu->parked || vcpu->left;
	pthread_mutex_unlock(&vcpu->lock);
	return out;
}

void vcpu_resume(struct vcpu *vcpu)
{
	pthread_mutex_lock(&vcpu->lock);
	atomic_store(&vcpu->pause, false);
	pthread_cond_broadcast(&vcpu->changed);
	pthread_mutex_unlock(&vcpu->lock);
}

void vcpu_nap_until(struct vcpu *vcpu, uint64_t until_ns)
{
	pthread_mutex_lock(&vcpu->lock);
	vcpu->nap_until_ns = until_ns;
	pthread_cond_broadcast(&vcpu->changed);
	pthread_mutex_unlock(&vcpu->lock);
	if (until_ns && vcpu->started)
		kvm_vcpu_kick(&vcpu->kvm, vcpu->thread);
}

void vcpu_request_stop(struct vcpu *vcpu)
{
	/* Pairs with the acquire in vcpu_loop(). */
	pthread_mutex_lock(&vcpu->lock);
	atomic_store_explicit(&vcpu->stop, true, memory_order_release);
	pthread_cond_broadcast(&vcpu->changed);
	pthread_mutex_unlock(&vcpu->lock);
	if (vcpu->started)
		kvm_vcpu_kick(&vcpu->kvm, vcpu->thread);
}

void vcpu_join(struct vcpu *vcpu)
{
	if (vcpu->started)
		pthread_join(vcpu->thread, NULL);
	vcpu->started = false;
}
