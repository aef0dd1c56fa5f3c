/* SPDX-License-Identifier: Apache-2.0 */
#include "stage2/stage2.h"

#include <errno.h>
#include <stdlib.h>

#include "base/arith.h"
#include "stage2/stage2_priv.h"

const char *const stage2_method_names[4] = {
	[STAGE2_AUTO] = "auto",
	[STAGE2_IOCTL] = "ioctl",
	[STAGE2_STUB] = "stub",
	[STAGE2_NONE] = "none",
};

/* In the order AUTO tries them. */
static const struct stage2_class *const stage2_classes[] = {
	&stage2_ioctl,
	&stage2_stub,
};

struct stage2 {
	const struct stage2_class *cls; /* NULL: none */
	struct second_stage_filler filler;
	struct err reason;
};

static int open_class(struct stage2 *s, const struct stage2_class *cls,
		      const struct stage2_env *env, struct err *err)
{
	int r = cls->open(env, &s->filler.ctx, err);

	if (r)
		return r;
	s->cls = cls;
	s->filler.name = stage2_method_names[cls->method];
	s->filler.num_ports = env->num_vcpus;
	s->filler.fill = cls->fill;
	return 0;
}

/*
 * With AUTO a method that does not work here only leaves its reason behind; the
 * last one is the one to tell, since it is the one that would have been taken.
 */
static int open_wanted(struct stage2 *s, enum stage2_method wanted,
		       const struct stage2_env *env, struct err *err)
{
	for (size_t i = 0; i < ARRAY_SIZE(stage2_classes); i++) {
		const struct stage2_class *cls = stage2_classes[i];
		int r;

		if (wanted != STAGE2_AUTO && wanted != cls->method)
			continue;
		r = open_class(s, cls, env, &s->reason);
		if (!r)
			return 0;
		if (r != -ENOTSUP || wanted != STAGE2_AUTO) {
			if (err)
				*err = s->reason;
			return r;
		}
	}
	if (wanted == STAGE2_NONE)
		err_set(&s->reason, ENOTSUP,
			"second stage: none was asked for");
	return 0;
}

int stage2_open(struct stage2 **ret, enum stage2_method wanted,
		const struct stage2_env *env, struct err *err)
{
	struct stage2 *s = calloc(1, sizeof(*s));
	struct stage2_env capped = *env;
	int r;

	BUG_ON(!env->num_vcpus);
	if (!s)
		return err_set(err, ENOMEM, "out of memory");
	capped.num_vcpus = MIN(env->num_vcpus, (unsigned int)STAGE2_MAX_PORTS);
	r = open_wanted(s, wanted, &capped, err);
	if (r) {
		free(s);
		return r;
	}
	*ret = s;
	return 0;
}

int stage2_close(struct stage2 *s, struct err *err)
{
	int r = 0;

	if (s && s->cls)
		r = s->cls->close(s->filler.ctx);
	if (r)
		err_errno(err, -r,
			  "second stage: giving vCPUs back from "
			  "method %s",
			  s->filler.name);
	free(s);
	return r;
}

enum stage2_method stage2_method(const struct stage2 *s)
{
	return s->cls ? s->cls->method : STAGE2_NONE;
}

const struct second_stage_filler *stage2_filler(const struct stage2 *s)
{
	return s->cls ? &s->filler : NULL;
}

const char *stage2_reason(const struct stage2 *s)
{
	return s->cls ? "" : s->reason.text;
}

bool stage2_works_while_running(const struct stage2 *s)
{
	return s->cls && s->cls->while_running;
}
