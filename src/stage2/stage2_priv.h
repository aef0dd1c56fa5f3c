/* SPDX-License-Identifier: Apache-2.0 */
/* One method of filling the second stage (private to stage2/). */
#ifndef QUIRE_STAGE2_STAGE2_PRIV_H
#define QUIRE_STAGE2_STAGE2_PRIV_H

#include "stage2/stage2.h"

struct stage2_class {
	enum stage2_method method;
	bool while_running;
	/*
	 * -ENOTSUP with the reason in err: not on this host. Anything else is
	 * a failure. *ret_ctx is what the others get.
	 */
	int (*open)(const struct stage2_env *env, void **ret_ctx,
		    struct err *err);
	/* Frees ctx; 0, or -errno when a vCPU is not as it was. */
	int (*close)(void *ctx);
	int (*fill)(void *ctx, unsigned int port, struct gpa gpa, uint64_t len);
};

extern const struct stage2_class stage2_ioctl, stage2_stub;

#endif
