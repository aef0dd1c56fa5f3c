/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. A payload runs until it stores where there is no memory
 * (rather than to a port: not every KVM honours IOPL in user mode), or until
 * SIGALRM of a timer gets it out: the signal is blocked except inside KVM_RUN
 * (KVM_SET_SIGNAL_MASK), so it ends that call, whenever it comes, and no
 * handler is ever installed.
 */
#include "stage2/trial.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/clock.h"
#include "kvm/stats.h"
#include "x86/cpu.h"
#include "x86/layout.h"
#include "x86/start.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

#define RAM_BYTES    (4 * MIB)
#define PML4_GPA     0x1000ull
#define PDPT_GPA     0x2000ull
#define PD_GPA	     0x3000ull
#define GDT_GPA	     0x4000ull
#define LOOP_GPA     0x7000ull
#define FAULT_GPA    0x7100ull
#define STACK_GPA    0x9000ull
#define UNMAPPED_GPA PAGE_2M
#define EXIT_GPA     RAM_BYTES /* no memory slot from here on */

_Static_assert(GDT_GPA + START_FLAT64_BYTES <= LOOP_GPA, "room");

#define PTE_PRESENT_WRITE_USER 0x7ull
#define PTE_LARGE	       0x80ull

#define RUN_LIMIT_NS   100000000ull
#define SAMPLE_NS      8000000ull
#define FIRST_LOOPS    1000ull
#define MIN_SAMPLES    3u
#define MAX_SAMPLES    16u /* 10^12 rounds */
#define LOOP_INSNS     2   /* per round: dec, jnz */
#define PREFAULT_TRIES 1000

static const uint8_t loop_code[] = {
	0x48, 0xff, 0xcf,			  /* dec rdi */
	0x75, 0xfb,				  /* jnz -5 */
	0x88, 0x04, 0x25, 0x00, 0x00, 0x40, 0x00, /* mov [EXIT_GPA], al */
	0xeb, 0xfe,				  /* jmp . */
};

static const uint8_t fault_code[] = {
	0x8b, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, /* mov eax, [UNMAPPED_GPA] */
	0x88, 0x04, 0x25, 0x00, 0x00, 0x40, 0x00, /* mov [EXIT_GPA], al */
	0xeb, 0xfe,				  /* jmp . */
};

static int write_u64(struct ram *ram, uint64_t gpa, uint64_t v)
{
	uint8_t bytes[8];

	le64_store(bytes, v);
	return mem_write(ram, GPA(gpa), bytes, sizeof(bytes));
}

static int write_payload(struct ram *ram)
{
	int r = write_u64(ram, PML4_GPA, PDPT_GPA | PTE_PRESENT_WRITE_USER);

	if (!r)
		r = write_u64(ram, PDPT_GPA, PD_GPA | PTE_PRESENT_WRITE_USER);
	if (!r)
		r = write_u64(ram, PD_GPA, PTE_LARGE | PTE_PRESENT_WRITE_USER);
	if (!r)
		r = write_u64(ram, PD_GPA + EXIT_GPA / PAGE_2M * 8,
			      EXIT_GPA | PTE_LARGE | PTE_PRESENT_WRITE_USER);
	if (!r)
		r = mem_write(ram, GPA(LOOP_GPA), loop_code, sizeof(loop_code));
	if (!r)
		r = mem_write(ram, GPA(FAULT_GPA), fault_code,
			      sizeof(fault_code));
	return r;
}

/* Only SIGALRM comes through while the guest runs; see the top. */
static int set_run_mask(struct trial *m, struct err *err)
{
	/* The kernel's sigset_t is the first eight bytes of the C library's. */
	uint64_t buf[2] = { 0 };
	struct kvm_signal_mask *mask = (struct kvm_signal_mask *)buf;
	sigset_t set;
	int r;

	_Static_assert(sizeof(buf) >= sizeof(*mask) + 8, "room for the set");
	pthread_sigmask(SIG_SETMASK, NULL, &set);
	sigdelset(&set, SIGALRM);
	mask->len = 8;
	memcpy(mask->sigset, &set, mask->len);
	r = kvm_ioctl(m->vcpu.fd, KVM_SET_SIGNAL_MASK, mask);
	return r < 0 ? err_errno(err, -r, "KVM_SET_SIGNAL_MASK") : 0;
}

static int add_memory(struct trial *m, struct err *err)
{
	const struct ram_config cfg = {
		.size_bytes = RAM_BYTES,
		.hole_start = LAYOUT_HOLE_START,
		.hole_end = LAYOUT_HOLE_END,
		.page = RAM_PAGE_4K,
	};
	const struct ram_region *region;
	int r;

	r = ram_init(&m->ram, &cfg, err);
	if (r)
		return r;
	r = write_payload(&m->ram);
	if (r)
		return err_errno(err, -r, "filling guest memory");
	region = &m->ram.regions[0];
	r = kvm_vm_set_slot(&m->vm, region->slot, region->base.v, region->size,
			    m->ram.base + region->base.v, 0);
	return r < 0 ? err_errno(err, -r, "KVM_SET_USER_MEMORY_REGION") : 0;
}

static int add_vcpu(struct trial *m, const struct kvm *kvm, struct err *err)
{
	const struct cpu_config cfg = { .num_cpus = 1, .threads_per_core = 1 };
	int r;

	r = kvm_vcpu_create(&m->vcpu, &m->vm, 0, err);
	if (r)
		return r;
	r = cpu_model_new(&m->model, kvm, &cfg, err);
	if (!r)
		r = cpu_model_apply(m->model, &m->vcpu, true, err);
	if (!r)
		r = set_run_mask(m, err);
	return r;
}

int trial_start(struct trial *m, const struct kvm *kvm, struct err *err)
{
	int r;

	*m = (struct trial){
		.ram.fd = -1,
		.vm.fd = -1,
		.vcpu.fd = -1,
	};
	r = kvm_vm_create(&m->vm, kvm, err);
	if (!r)
		r = kvm_vm_place_pages(&m->vm, LAYOUT_KVM_IDENTITY,
				       LAYOUT_KVM_TSS, err);
	if (!r)
		r = irq_router_new(&m->router, &m->vm, IRQCHIP_KERNEL, err);
	if (!r)
		r = add_memory(m, err);
	if (!r)
		r = add_vcpu(m, kvm, err);
	if (r)
		trial_stop(m);
	return r;
}

void trial_stop(struct trial *m)
{
	if (!m->vm.kvm) /* never started, or stopped already */
		return;
	cpu_model_free(m->model);
	kvm_vcpu_close(&m->vcpu);
	irq_router_free(m->router);
	kvm_vm_close(&m->vm);
	ram_fini(&m->ram);
	memset(m, 0, sizeof(*m));
}

/* Arm the timer for this thread with ns, or disarm with 0. */
static void set_timer(timer_t timer, uint64_t ns)
{
	struct itimerspec spec = {
		.it_value.tv_sec = (time_t)(ns / NSEC_PER_SEC),
		.it_value.tv_nsec = (long)(ns % NSEC_PER_SEC),
	};

	timer_settime(timer, 0, &spec, NULL);
}

static bool take_alarm(const sigset_t *alarm)
{
	const struct timespec now = { 0 };

	return sigtimedwait(alarm, NULL, &now) == SIGALRM;
}

/* KVM_RUN until an exit: 0; -ETIME when the alarm came first. */
static int run_until_alarm(struct trial *m, const sigset_t *alarm)
{
	int r;

	for (;;) {
		r = kvm_vcpu_run(&m->vcpu);
		if (r != -EINTR && r != -EAGAIN)
			return r;
		/* Another signal (stop and continue) only interrupts. */
		if (take_alarm(alarm))
			return -ETIME;
	}
}

/* Run for at most RUN_LIMIT_NS. 0 with the time used, -ETIME or -errno. */
static int run_limited(struct trial *m, uint64_t *ret_ns)
{
	struct sigevent event = {
		.sigev_notify = SIGEV_THREAD_ID,
		.sigev_signo = SIGALRM,
	};
	sigset_t alarm, before;
	uint64_t start;
	timer_t timer;
	int r;

	event.sigev_notify_thread_id = gettid();
	if (timer_create(CLOCK_MONOTONIC, &event, &timer))
		return -errno;
	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &alarm, &before);
	set_timer(timer, RUN_LIMIT_NS);
	start = clock_now_ns();
	r = run_until_alarm(m, &alarm);
	*ret_ns = clock_now_ns() - start;
	timer_delete(timer);
	(void)take_alarm(&alarm);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return r;
}

/* KVM finishes the store on the next entry; enter without running. */
static void finish_exit(struct trial *m)
{
	kvm_vcpu_request_exit(&m->vcpu);
	(void)!kvm_vcpu_run(&m->vcpu);
	kvm_vcpu_clear_exit_request(&m->vcpu);
}

static int load(struct trial *m, unsigned int cpl, uint64_t rip, uint64_t rdi)
{
	const struct start_flat64 state = {
		.pml4 = PML4_GPA,
		.rip = rip,
		.rsp = STACK_GPA,
		.rdi = rdi,
		.cpl = cpl,
	};

	return start_load_flat64(&m->vcpu, &m->ram, GPA(GDT_GPA), &state);
}

/* One sample of rounds loops: how many were done, in what time. */
static int sample(struct trial *m, unsigned int cpl, uint64_t rounds,
		  uint64_t *ret_done, uint64_t *ret_ns)
{
	struct kvm_regs regs;
	int r = load(m, cpl, LOOP_GPA, rounds);

	if (r)
		return r;
	r = run_limited(m, ret_ns);
	if (!r) {
		if (m->vcpu.run->exit_reason != KVM_EXIT_MMIO)
			return -EIO;
		finish_exit(m);
		*ret_done = rounds;
		return 0;
	}
	if (r != -ETIME)
		return r;
	r = kvm_vcpu_get_regs(&m->vcpu, &regs);
	if (r)
		return r;
	*ret_done = regs.rdi <= rounds ? rounds - regs.rdi : 0;
	return 0;
}

int trial_rate(struct trial *m, unsigned int cpl, double *ret_per_s)
{
	uint64_t rounds = FIRST_LOOPS, done = 0, ns = 0;
	double best = 0;
	int r;

	/*
	 * The first entry of a VM is slow, so it does not count. After that
	 * grow until a sample is long against an exit, and believe the fastest:
	 * whatever disturbs a sample slows it down.
	 */
	r = sample(m, cpl, 1, &done, &ns);
	for (unsigned int i = 0; !r && i < MAX_SAMPLES; i++) {
		r = sample(m, cpl, rounds, &done, &ns);
		if (r)
			break;
		best = MAX(best, (double)done / clock_ns_to_s(ns + 1));
		if (i + 1 >= MIN_SAMPLES && ns >= SAMPLE_NS)
			break;
		rounds *= 4;
	}
	if (!r)
		*ret_per_s = best * LOOP_INSNS;
	return r;
}

static int prefault(struct trial *m)
{
	struct kvm_pre_fault_memory range = {
		.gpa = UNMAPPED_GPA,
		.size = RAM_BYTES - UNMAPPED_GPA,
	};
	int r = -EAGAIN;

	/* The call returns 0 after any progress, with what is left. */
	for (int i = 0; i < PREFAULT_TRIES && range.size; i++) {
		r = kvm_ioctl(m->vcpu.fd, KVM_PRE_FAULT_MEMORY, &range);
		if (r < 0 && r != -EAGAIN)
			return r;
	}
	if (range.size)
		return r < 0 ? r : -EIO;
	return (int)((RAM_BYTES - UNMAPPED_GPA) / PAGE_4K);
}

void trial_prefault(struct trial *m)
{
	void *hva = mem_map_range(&m->ram, GPA(UNMAPPED_GPA),
				  RAM_BYTES - UNMAPPED_GPA, MEM_WRITE);
	uint64_t start;

	if (m->prefault_tried)
		return;
	m->prefault_tried = true;
	/* So that only the second stage is timed; without it the call does
	 * both. */
	if (hva)
		(void)madvise(hva, RAM_BYTES - UNMAPPED_GPA,
			      MADV_POPULATE_WRITE);
	start = clock_now_ns();
	m->prefault_result = prefault(m);
	m->prefault_ns = clock_now_ns() - start;
}

int trial_guest_faults(struct trial *m, uint64_t *ret_count)
{
	struct kvm_stats *stats;
	uint64_t before, after, ns;
	int r;

	r = kvm_stats_open(m->vcpu.fd, &stats);
	if (r)
		return r;
	r = kvm_stats_read(stats, "pf_guest", &before);
	if (!r)
		r = load(m, 0, FAULT_GPA, 0);
	if (!r)
		r = run_limited(m, &ns);
	/* No gate for the page fault, none for what follows: triple fault. */
	if (!r && m->vcpu.run->exit_reason != KVM_EXIT_SHUTDOWN)
		r = -EIO;
	if (!r)
		r = kvm_stats_read(stats, "pf_guest", &after);
	if (!r)
		*ret_count = after - before;
	kvm_stats_close(stats);
	return r;
}
