/* SPDX-License-Identifier: Apache-2.0 */
#include "kvm/vcpu.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/cleanup.h"

int kvm_vcpu_create(struct kvm_vcpu *vcpu, const struct kvm_vm *vm,
		    unsigned int id, struct err *err)
{
	int fd = kvm_ioctl_val(vm->fd, KVM_CREATE_VCPU, id);
	void *run;

	if (fd < 0)
		return err_errno(err, -fd, "KVM_CREATE_VCPU %u", id);
	run = mmap(NULL, (size_t)vm->kvm->vcpu_mmap_bytes,
		   PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (run == MAP_FAILED) {
		int code = errno;

		close_fd(&fd);
		return err_errno(err, code, "mapping kvm_run of vCPU %u", id);
	}
	vcpu->fd = fd;
	vcpu->id = id;
	vcpu->kvm_fd = vm->kvm->fd;
	vcpu->vm_fd = vm->fd;
	vcpu->run = run;
	vcpu->run_bytes = (size_t)vm->kvm->vcpu_mmap_bytes;
	return 0;
}

void kvm_vcpu_close(struct kvm_vcpu *vcpu)
{
	if (vcpu->run)
		munmap(vcpu->run, vcpu->run_bytes);
	vcpu->run = NULL;
	close_fd(&vcpu->fd);
}

int kvm_vcpu_run(struct kvm_vcpu *vcpu)
{
	return ioctl(vcpu->fd, KVM_RUN, 0) < 0 ? -errno : 0;
}

/*
 * The kernel reads immediate_exit on entry to KVM_RUN; a store from another
 * thread only has to be untorn, and the signal that follows orders it.
 */
void kvm_vcpu_request_exit(struct kvm_vcpu *vcpu)
{
	__atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
}

void kvm_vcpu_clear_exit_request(struct kvm_vcpu *vcpu)
{
	__atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
}

/*
 * Getting a thread out of the guest without a race: the requester sets
 * kvm_run.immediate_exit, then sends the kick signal. In the guest, the signal
 * ends KVM_RUN; before it, the next KVM_RUN sees immediate_exit and returns.
 * The handler itself has nothing to do.
 */
#define KICK_SIGNAL (SIGRTMIN + 1)

static void on_kick(int sig)
{
}

int kvm_vcpu_setup_kick(void)
{
	struct sigaction sa = { .sa_handler = on_kick };

	sigemptyset(&sa.sa_mask);
	return sigaction(KICK_SIGNAL, &sa, NULL) ? -errno : 0;
}

void kvm_vcpu_accept_kicks(void)
{
	sigset_t kick;

	sigemptyset(&kick);
	sigaddset(&kick, KICK_SIGNAL);
	pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
}

void kvm_vcpu_kick(struct kvm_vcpu *vcpu, pthread_t thread)
{
	kvm_vcpu_request_exit(vcpu);
	pthread_kill(thread, KICK_SIGNAL);
}

int kvm_vcpu_get_regs(const struct kvm_vcpu *vcpu, struct kvm_regs *regs)
{
	return kvm_ioctl(vcpu->fd, KVM_GET_REGS, regs);
}

int kvm_vcpu_set_regs(const struct kvm_vcpu *vcpu, const struct kvm_regs *regs)
{
	return kvm_ioctl(vcpu->fd, KVM_SET_REGS, (void *)regs);
}

int kvm_vcpu_get_sregs(const struct kvm_vcpu *vcpu, struct kvm_sregs *sregs)
{
	return kvm_ioctl(vcpu->fd, KVM_GET_SREGS, sregs);
}

int kvm_vcpu_set_sregs(const struct kvm_vcpu *vcpu,
		       const struct kvm_sregs *sregs)
{
	return kvm_ioctl(vcpu->fd, KVM_SET_SREGS, (void *)sregs);
}

int kvm_vcpu_set_fpu(const struct kvm_vcpu *vcpu, const struct kvm_fpu *fpu)
{
	return kvm_ioctl(vcpu->fd, KVM_SET_FPU, (void *)fpu);
}

int kvm_vcpu_get_lapic(const struct kvm_vcpu *vcpu,
		       struct kvm_lapic_state *lapic)
{
	return kvm_ioctl(vcpu->fd, KVM_GET_LAPIC, lapic);
}

int kvm_vcpu_set_lapic(const struct kvm_vcpu *vcpu,
		       const struct kvm_lapic_state *lapic)
{
	return kvm_ioctl(vcpu->fd, KVM_SET_LAPIC, (void *)lapic);
}

int kvm_vcpu_get_mp_state(const struct kvm_vcpu *vcpu, uint32_t *ret_state)
{
	struct kvm_mp_state mp = { .mp_state = 0 };
	int r = kvm_ioctl(vcpu->fd, KVM_GET_MP_STATE, &mp);

	if (r >= 0)
		*ret_state = mp.mp_state;
	return r;
}

int kvm_vcpu_set_mp_state(const struct kvm_vcpu *vcpu, uint32_t state)
{
	struct kvm_mp_state mp = { .mp_state = state };

	return kvm_ioctl(vcpu->fd, KVM_SET_MP_STATE, &mp);
}

int kvm_vcpu_set_cpuid(const struct kvm_vcpu *vcpu,
		       const struct kvm_cpuid2 *cpuid)
{
	return kvm_ioctl(vcpu->fd, KVM_SET_CPUID2, (void *)cpuid);
}

int kvm_vcpu_set_msrs(const struct kvm_vcpu *vcpu,
		      const struct kvm_msr_entry *entries, unsigned int num)
{
	_cleanup_free_ struct kvm_msrs *msrs = calloc(
		1, sizeof(*msrs) + num * sizeof(*entries));

	if (!msrs)
		return -ENOMEM;
	msrs->nmsrs = num;
	memcpy(msrs->entries, entries, num * sizeof(*entries));
	return kvm_ioctl(vcpu->fd, KVM_SET_MSRS, msrs);
}

int kvm_vcpu_tell_paused(const struct kvm_vcpu *vcpu)
{
	return kvm_ioctl_val(vcpu->fd, KVM_KVMCLOCK_CTRL, 0);
}

static int tsc_offset_attr(const struct kvm_vcpu *vcpu, unsigned long request,
			   uint64_t *offset)
{
	struct kvm_device_attr attr = {
		.group = KVM_VCPU_TSC_CTRL,
		.attr = KVM_VCPU_TSC_OFFSET,
		.addr = (uintptr_t)offset,
	};

	return kvm_ioctl(vcpu->fd, request, &attr);
}

int kvm_vcpu_get_tsc_offset(const struct kvm_vcpu *vcpu, uint64_t *ret_offset)
{
	return tsc_offset_attr(vcpu, KVM_GET_DEVICE_ATTR, ret_offset);
}

int kvm_vcpu_set_tsc_offset(const struct kvm_vcpu *vcpu, uint64_t offset)
{
	return tsc_offset_attr(vcpu, KVM_SET_DEVICE_ATTR, &offset);
}

/*
 * The call returns 0 after any progress, with what is left. EAGAIN: a memslot
 * is being changed just now.
 */
int kvm_vcpu_prefault(const struct kvm_vcpu *vcpu, uint64_t gpa, uint64_t bytes)
{
	struct kvm_pre_fault_memory range = { .gpa = gpa, .size = bytes };

	while (range.size) {
		int r = kvm_ioctl(vcpu->fd, KVM_PRE_FAULT_MEMORY, &range);

		if (r == -EAGAIN)
			sched_yield();
		else if (r < 0)
			return r;
	}
	return 0;
}
