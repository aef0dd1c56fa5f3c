/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>

#include "probe/probe.h"

static int run_population(struct probe *p, const struct probe_population *how,
			  const struct second_stage_filler *filler,
			  struct populate_result *ret, struct err *err)
{
	const struct ram *ram = probe_ram(p);
	const struct populate_request req = {
		.gpa = how->len ? how->from : GPA(0),
		.len = how->len ?: ram->span,
		.host = true,
		.second_stage = filler,
		.threads = how->threads,
		.watch = how->watch,
	};

	return populate_run(ram, &req, ret, err);
}

static int populate_full(struct probe *p, const struct probe_population *how,
			 const struct stage2_env *env,
			 struct populate_result *ret,
			 enum stage2_method *ret_method, struct err *reason,
			 struct err *err)
{
	struct stage2 *stage2;
	struct err close_err;
	int r = stage2_open(&stage2, how->stage2, env, err), r2;

	if (r)
		return r;
	*ret_method = stage2_method(stage2);
	if (*ret_method == STAGE2_NONE)
		err_set(reason, ENOTSUP, "%s", stage2_reason(stage2));
	r = run_population(p, how, stage2_filler(stage2), ret, err);
	r2 = stage2_close(stage2, &close_err);
	if (r2 && !r && err)
		*err = close_err;
	return r ? r : r2;
}

int probe_populate(struct probe *p, const struct probe_population *how,
		   struct populate_result *ret, enum stage2_method *ret_method,
		   struct err *reason, struct err *err)
{
	unsigned int num = probe_num_vcpus(p);
	struct kvm_vcpu **vcpus;
	struct stage2_env env = {
		.kvm = probe_vm(p)->kvm,
		.ram = probe_ram(p),
		.num_vcpus = num,
	};
	int r;

	*ret_method = STAGE2_NONE;
	if (how->mode != POPULATE_FULL)
		return run_population(p, how, NULL, ret, err);
	vcpus = calloc(num, sizeof(struct kvm_vcpu *));
	if (!vcpus)
		return err_set(err, ENOMEM, "out of memory");
	for (unsigned int i = 0; i < num; i++)
		vcpus[i] = probe_vcpu(p, i);
	env.vcpus = vcpus;
	r = populate_full(p, how, &env, ret, ret_method, reason, err);
	free(vcpus);
	return r;
}
