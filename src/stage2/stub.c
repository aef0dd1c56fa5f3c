/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The touch stub: on kernels that have TDP but no call to fill it, vCPUs read
 * one byte of each page themselves, before they get their real state.
 *
 * A read is enough. KVM maps a page for writing on a read fault too when the
 * host's entry is writable, which the host stage has seen to.
 *
 * The stub needs a page of code and, for each vCPU, page tables: a window of
 * 1 GiB that a fill moves to where it works, and the code's own page, all in
 * 2M pages:
 *
 *	PML4[0] -> PDPT;  PDPT[0] -> PD of the code;  PDPT[1] -> PD, the window
 *
 * They lie in guest RAM from 1 MiB on, and what was there is put back on close.
 * A memslot of their own would have to go again, and on those same kernels that
 * zaps the whole second stage. Accessed and dirty bits are preset, though
 * the processor counts a walk as a write to the table's page either way.
 *
 * A fill loads the registers, enters the guest, and is done at the port write.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "stage2/detect.h"
#include "stage2/stage2_priv.h"
#include "x86/start.h"

#define STUB_BASE	MIB
#define STUB_PORT_PAGES 4 /* PML4, PDPT, PD of the code, PD of the window */
#define STUB_EXIT_PORT	0xf4
#define WINDOW_ENTRY	1 /* of the PDPT */
#define WINDOW_VA	(WINDOW_ENTRY * PAGE_1G)
#define ENTRIES		512

#define PTE_TABLE 0x63ull /* present, writable, accessed, dirty */
#define PTE_LARGE (PTE_TABLE | 0x80ull)

/* RDI: address, RSI: number of pages. */
static const uint8_t stub_code[] = {
	0x8a, 0x07,					    /* mov al, [rdi] */
	0x48, 0x81,	      0xc7, 0x00, 0x10, 0x00, 0x00, /* add rdi, 4096 */
	0x48, 0xff,	      0xce,			    /* dec rsi */
	0x75, 0xf2,	      /* jnz the beginning */
	0xe6, STUB_EXIT_PORT, /* out, al */
	0xeb, 0xfe,	      /* jmp . */
};

struct stub_vcpu {
	struct kvm_vcpu *kvm;
	uint64_t tables; /* guest-physical, STUB_PORT_PAGES of them */
	/* As found. */
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	uint32_t mp_state;
	bool has_mp_state, taken;
};

struct stub_ctx {
	const struct ram *ram;
	uint64_t bytes;	 /* of guest RAM in use from STUB_BASE on */
	char *displaced; /* what was there */
	unsigned int num;
	struct stub_vcpu vcpus[];
};

static int put_table(const struct stub_ctx *ctx, uint64_t gpa,
		     const uint64_t *entries)
{
	return mem_write(ctx->ram, GPA(gpa), entries,
			 ENTRIES * sizeof(*entries));
}

/* Everything but the window, which a fill sets. */
static int write_tables(const struct stub_ctx *ctx, const struct stub_vcpu *v)
{
	uint64_t entries[ENTRIES] = { 0 };
	uint64_t pdpt = v->tables + PAGE_4K, code = pdpt + PAGE_4K;
	int r;

	entries[0] = pdpt | PTE_TABLE;
	r = put_table(ctx, v->tables, entries);
	entries[0] = code | PTE_TABLE;
	entries[WINDOW_ENTRY] = (code + PAGE_4K) | PTE_TABLE;
	if (!r)
		r = put_table(ctx, pdpt, entries);
	entries[0] = PTE_LARGE; /* the first 2 MiB, where the code is */
	entries[WINDOW_ENTRY] = 0;
	return r ? r : put_table(ctx, code, entries);
}

static int move_window(const struct stub_ctx *ctx, const struct stub_vcpu *v,
		       uint64_t gpa)
{
	uint64_t entries[ENTRIES], base = align_down(gpa, PAGE_1G);

	for (uint64_t i = 0; i < ENTRIES; i++)
		entries[i] = (base + i * PAGE_2M) | PTE_LARGE;
	return put_table(ctx, v->tables + 3 * PAGE_4K, entries);
}

/*
 * Make the vCPU runnable. Application processors wait for their start-up
 * message; without an irqchip there is no such state, and none to set.
 */
static int take_vcpu(struct stub_vcpu *v)
{
	int r = kvm_vcpu_get_regs(v->kvm, &v->regs);

	if (!r)
		r = kvm_vcpu_get_sregs(v->kvm, &v->sregs);
	if (r)
		return r;
	v->has_mp_state = !kvm_vcpu_get_mp_state(v->kvm, &v->mp_state);
	if (v->has_mp_state && v->mp_state != KVM_MP_STATE_RUNNABLE)
		r = kvm_vcpu_set_mp_state(v->kvm, KVM_MP_STATE_RUNNABLE);
	v->taken = !r;
	return r;
}

static int give_back_vcpu(struct stub_vcpu *v)
{
	int r;

	if (!v->taken)
		return 0;
	r = kvm_vcpu_set_sregs(v->kvm, &v->sregs);
	if (!r)
		r = kvm_vcpu_set_regs(v->kvm, &v->regs);
	if (!r && v->has_mp_state && v->mp_state != KVM_MP_STATE_RUNNABLE)
		r = kvm_vcpu_set_mp_state(v->kvm, v->mp_state);
	return r;
}

/* Until the port write. Other signals than a kick only interrupt. */
static int run_to_exit(struct kvm_vcpu *vcpu)
{
	int r;

	do
		r = kvm_vcpu_run(vcpu);
	while (r == -EINTR || r == -EAGAIN);
	if (r)
		return r;
	if (vcpu->run->exit_reason != KVM_EXIT_IO ||
	    vcpu->run->io.port != STUB_EXIT_PORT)
		return -EIO;
	/* KVM finishes the port write on the next entry: enter, run nothing. */
	kvm_vcpu_request_exit(vcpu);
	r = kvm_vcpu_run(vcpu);
	kvm_vcpu_clear_exit_request(vcpu);
	return r == -EINTR ? 0 : -EIO;
}

/* [gpa, gpa + len) inside one GiB. */
static int touch(const struct stub_ctx *ctx, struct stub_vcpu *v, uint64_t gpa,
		 uint64_t len)
{
	const struct start_flat64 start = {
		.pml4 = v->tables,
		.rip = STUB_BASE,
		.rdi = WINDOW_VA + gpa % PAGE_1G,
		.rsi = len / PAGE_4K,
	};
	int r = move_window(ctx, v, gpa);

	/* Loading CR3 also drops what the vCPU has cached of the window. */
	if (!r)
		r = start_load_flat64_registers(v->kvm, &start);
	return r ? r : run_to_exit(v->kvm);
}

static int stub_fill(void *opaque, unsigned int port, struct gpa gpa,
		     uint64_t len)
{
	struct stub_ctx *ctx = opaque;
	uint64_t at = gpa.v, end = gpa.v + len;

	while (at < end) {
		uint64_t stop = MIN(end, align_down(at, PAGE_1G) + PAGE_1G);
		int r = touch(ctx, &ctx->vcpus[port], at, stop - at);

		if (r)
			return r;
		at = stop;
	}
	return 0;
}

static int stub_close(void *opaque)
{
	struct stub_ctx *ctx = opaque;
	int r = 0, r2;

	for (unsigned int i = 0; i < ctx->num; i++) {
		r2 = give_back_vcpu(&ctx->vcpus[i]);
		r = r ? r : r2;
	}
	if (ctx->displaced) {
		r2 = mem_write(ctx->ram, GPA(STUB_BASE), ctx->displaced,
			       ctx->bytes);
		r = r ? r : r2;
	}
	free(ctx->displaced);
	free(ctx);
	return r;
}

static int displace(struct stub_ctx *ctx)
{
	char *saved = malloc(ctx->bytes);
	int r;

	if (!saved)
		return -ENOMEM;
	r = mem_read(ctx->ram, GPA(STUB_BASE), saved, ctx->bytes);
	if (r)
		free(saved);
	else
		ctx->displaced = saved;
	return r;
}

static int prepare(struct stub_ctx *ctx, const struct stage2_env *env)
{
	int r = displace(ctx);

	if (!r)
		r = mem_write(ctx->ram, GPA(STUB_BASE), stub_code,
			      sizeof(stub_code));
	for (unsigned int i = 0; !r && i < ctx->num; i++) {
		struct stub_vcpu *v = &ctx->vcpus[i];

		v->kvm = env->vcpus[i];
		v->tables = STUB_BASE +
			    PAGE_4K * (1 + STUB_PORT_PAGES * (uint64_t)i);
		r = write_tables(ctx, v);
		if (!r)
			r = take_vcpu(v);
	}
	return r;
}

static int check_tdp(const struct stage2_env *env, struct err *err)
{
	switch (stage2_detect(env->kvm)) {
	case SECOND_STAGE_TDP:
		return 0;
	case SECOND_STAGE_SHADOW:
		return err_set(
			err, ENOTSUP,
			"this KVM uses shadow paging, whose second stage "
			"only faults can fill");
	case SECOND_STAGE_UNKNOWN:
		break;
	}
	return err_set(err, ENOTSUP,
		       "nothing tells whether this KVM uses TDP (EPT or NPT)");
}

static int stub_open(const struct stage2_env *env, void **ret_ctx,
		     struct err *err)
{
	struct stub_ctx *ctx;
	int r = check_tdp(env, err);

	if (r)
		return r;
	ctx = calloc(1, sizeof(*ctx) + env->num_vcpus * sizeof(ctx->vcpus[0]));
	if (!ctx)
		return err_set(err, ENOMEM, "out of memory");
	ctx->ram = env->ram;
	ctx->num = env->num_vcpus;
	ctx->bytes = PAGE_4K * (1 + STUB_PORT_PAGES * (uint64_t)ctx->num);
	r = prepare(ctx, env);
	if (r) {
		(void)!stub_close(ctx);
		return err_errno(err, -r, "preparing the touch stub");
	}
	*ret_ctx = ctx;
	return 0;
}

const struct stage2_class stage2_stub = {
	.method = STAGE2_STUB,
	.while_running = false,
	.open = stub_open,
	.close = stub_close,
	.fill = stub_fill,
};
