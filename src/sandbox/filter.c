/* SPDX-License-Identifier: Apache-2.0 */
#include "sandbox/filter.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"

#define OPTIMIZE_BINARY_TREE 2

const char *const sandbox_seccomp_names[3] = {
	[SANDBOX_SECCOMP_ON] = "on",
	[SANDBOX_SECCOMP_LOG] = "log",
	[SANDBOX_SECCOMP_OFF] = "off",
};

/* Two classes may need the same: the second time is no error. */
static int add_call(scmp_filter_ctx ctx, const struct thread_call *call)
{
	struct scmp_arg_cmp cmp = {
		.arg = call->arg ? call->arg - 1 : 0,
		.op = SCMP_CMP_MASKED_EQ,
		.datum_a = call->mask,
		.datum_b = call->own_pid ? (uint64_t)getpid() : call->value,
	};
	int r = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, call->nr,
				       call->arg ? 1 : 0, &cmp);

	return r == -EEXIST ? 0 : r;
}

static int add_calls(scmp_filter_ctx ctx, const struct thread_call *calls,
		     size_t num)
{
	int r = 0;

	for (size_t i = 0; !r && i < num; i++)
		r = add_call(ctx, &calls[i]);
	return r;
}

static int add_class(scmp_filter_ctx ctx, const struct thread_class *cls,
		     bool with_prepare)
{
	int r = 0;

	for (; !r && cls; cls = cls->also) {
		r = add_calls(ctx, cls->calls, cls->num_calls);
		if (!r && with_prepare)
			r = add_calls(ctx, cls->prepare_calls,
				      cls->num_prepare_calls);
	}
	return r;
}

static int fill(scmp_filter_ctx ctx, const struct thread_class *const *classes,
		size_t num, bool with_prepare)
{
	int r = add_calls(ctx, thread_base_calls, num_thread_base_calls);

	if (!r)
		r = add_calls(ctx, thread_sanitizer_calls,
			      num_thread_sanitizer_calls);
	for (size_t i = 0; !r && i < num; i++)
		r = add_class(ctx, classes[i], with_prepare);
	/*
	 * Its flags are behind a pointer, so no filter can tell a thread from a
	 * process: the C library shall use clone.
	 */
	if (!r)
		r = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SYS_clone3,
				     0);
	if (!r)
		r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE,
				     OPTIMIZE_BINARY_TREE);
	return r;
}

/* libseccomp writes a program to a file only. */
static int export(scmp_filter_ctx ctx, struct sandbox_filter *ret)
{
	_cleanup_close_ int fd = memfd_create("seccomp", MFD_CLOEXEC);
	_cleanup_free_ struct sock_filter *code = NULL;
	struct stat st;
	int r;

	if (fd < 0)
		return -errno;
	r = seccomp_export_bpf(ctx, fd);
	if (r)
		return r;
	if (fstat(fd, &st))
		return -errno;
	code = malloc((size_t)st.st_size);
	if (!code)
		return -ENOMEM;
	r = io_pread_full(fd, code, (size_t)st.st_size, 0);
	if (r)
		return r;
	ret->prog.len = (unsigned short)((size_t)st.st_size / sizeof(*code));
	ret->prog.filter = take_ptr(code);
	return 0;
}

int sandbox_filter_build(struct sandbox_filter *ret,
			 const struct thread_class *const *classes,
			 size_t num_classes, bool with_prepare,
			 enum sandbox_seccomp mode, struct err *err)
{
	scmp_filter_ctx ctx = seccomp_init(
		mode == SANDBOX_SECCOMP_LOG ? SCMP_ACT_LOG : SCMP_ACT_TRAP);
	int r;

	if (!ctx)
		return err_set(err, ENOMEM, "seccomp: out of memory");
	r = fill(ctx, classes, num_classes, with_prepare);
	if (!r)
		r = export(ctx, ret);
	seccomp_release(ctx);
	return r ? err_errno(err, -r, "seccomp: making the filter of %s",
			     num_classes == 1 ? classes[0]->name : "threads")
		 : 0;
}

void sandbox_filter_free(struct sandbox_filter *filter)
{
	free(take_ptr(filter->prog.filter));
}

int sandbox_filter_install(const struct sandbox_filter *filter)
{
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter->prog) <
			       0
		       ? -errno
		       : 0;
}
