/* SPDX-License-Identifier: Apache-2.0 */
/*
 * KVM_PRE_FAULT_MEMORY. Whether it works is tried on one page: the number of
 * its capability has clashed with others, and with TDP switched off the kernel
 * has the call and refuses it.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/arith.h"
#include "mem/host_fill.h"
#include "stage2/stage2_priv.h"

struct ioctl_ctx {
	struct kvm_vcpu *const *vcpus;
};

/* Host page first, as always: see mem/populate.h. */
static int try_one_page(const struct stage2_env *env, struct err *err)
{
	struct gpa first = env->ram->regions[0].base;
	int r = host_fill(env->ram, first, PAGE_4K, err);

	if (r)
		return r;
	r = kvm_vcpu_prefault(env->vcpus[0], first.v, PAGE_4K);
	switch (-r) {
	case 0:
		return 0;
	case EOPNOTSUPP:
		return err_set(
			err, ENOTSUP,
			"this KVM uses shadow paging, whose second stage "
			"only faults can fill");
	case ENOTTY:
	case EINVAL:
		return err_set(err, ENOTSUP,
			       "this kernel has no KVM_PRE_FAULT_MEMORY (Linux "
			       "6.11)");
	default:
		return err_errno(err, -r, "KVM_PRE_FAULT_MEMORY at %#llx",
				 (unsigned long long)first.v);
	}
}

static int ioctl_open(const struct stage2_env *env, void **ret_ctx,
		      struct err *err)
{
	struct ioctl_ctx *ctx;
	int r = try_one_page(env, err);

	if (r)
		return r;
	ctx = malloc(sizeof(*ctx));
	if (!ctx)
		return err_set(err, ENOMEM, "out of memory");
	ctx->vcpus = env->vcpus;
	*ret_ctx = ctx;
	return 0;
}

static int ioctl_close(void *ctx)
{
	free(ctx);
	return 0;
}

static int ioctl_fill(void *opaque, unsigned int port, struct gpa gpa,
		      uint64_t len)
{
	const struct ioctl_ctx *ctx = opaque;

	return kvm_vcpu_prefault(ctx->vcpus[port], gpa.v, len);
}

const struct stage2_class stage2_ioctl = {
	.method = STAGE2_IOCTL,
	.while_running = true,
	.open = ioctl_open,
	.close = ioctl_close,
	.fill = ioctl_fill,
};
