/* SPDX-License-Identifier: Apache-2.0 */
#include "sandbox/sandbox.h"

#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/log.h"
#include "base/thread.h"
#include "sandbox/jail.h"
#include "sandbox/landlock.h"
#include "sandbox/privileges.h"
#include "sandbox/starter.h"
#include "sandbox/trap.h"

struct cage {
	const struct thread_class *cls;
	struct sandbox_filter filter;
};

/*
 * The process's, as the confinement itself: written while it is alone, read by
 * each thread that confines itself, never freed.
 */
static struct {
	bool entered, jail, landlock, root;
	struct cage *cages; /* NULL: seccomp is off */
	size_t num;
} sandbox;

static int confine(const struct thread_class *cls)
{
	if (!sandbox.cages)
		return 0;
	for (size_t i = 0; i < sandbox.num; i++)
		if (sandbox.cages[i].cls == cls)
			return sandbox_filter_install(&sandbox.cages[i].filter);
	log_error("thread %s: its class (%s) is not among those the sandbox "
		  "knows",
		  thread_own_name(), cls ? cls->name : "none");
	return -EPERM;
}

static struct thread_cage thread_cage = {
	.create = sandbox_starter_create,
	.confine = confine,
};

/* A class, and what its threads may do besides. */
static int build_cage(struct cage *cage, const struct thread_class *cls,
		      const struct sandbox_plan *plan, struct err *err)
{
	size_t num = 1;
	const struct thread_class **all = calloc(plan->num_extras + 1,
						 sizeof(struct thread_class *));
	int r;

	if (!all)
		return err_set(err, ENOMEM, "out of memory");
	all[0] = cls;
	for (size_t i = 0; i < plan->num_extras; i++)
		if (plan->extras[i].cls == cls)
			all[num++] = plan->extras[i].more;
	cage->cls = cls;
	r = sandbox_filter_build(&cage->filter, all, num, false,
				 plan->cfg->seccomp, err);
	free(all);
	return r;
}

/* What is allowed to any thread but the control thread, and its own. */
static int build_starter(struct cage *cage, const struct sandbox_plan *plan,
			 struct err *err)
{
	const struct thread_class **all = calloc(plan->num_classes +
							 plan->num_extras + 1,
						 sizeof(struct thread_class *));
	size_t num = 0;
	int r;

	if (!all)
		return err_set(err, ENOMEM, "out of memory");
	all[num++] = &sandbox_starter_class;
	for (size_t i = 0; i < plan->num_classes; i++)
		all[num++] = plan->classes[i];
	for (size_t i = 0; i < plan->num_extras; i++)
		if (plan->extras[i].cls != plan->control)
			all[num++] = plan->extras[i].more;
	cage->cls = &sandbox_starter_class;
	r = sandbox_filter_build(&cage->filter, all, num, true,
				 plan->cfg->seccomp, err);
	free(all);
	return r;
}

static int build_cages(const struct sandbox_plan *plan, struct err *err)
{
	size_t num = plan->num_classes + 2;
	int r;

	if (plan->cfg->seccomp == SANDBOX_SECCOMP_OFF)
		return 0;
	sandbox.cages = calloc(num, sizeof(*sandbox.cages));
	if (!sandbox.cages)
		return err_set(err, ENOMEM, "out of memory");
	sandbox.num = num;
	r = build_starter(&sandbox.cages[0], plan, err);
	if (!r)
		r = build_cage(&sandbox.cages[1], plan->control, plan, err);
	for (size_t i = 0; !r && i < plan->num_classes; i++)
		r = build_cage(&sandbox.cages[i + 2], plan->classes[i], plan,
			       err);
	return r;
}

static int enter_landlock(const struct sandbox_plan *plan,
			  const struct sandbox_paths *paths, struct err *err)
{
	int abi;

	if (plan->cfg->landlock == SANDBOX_LANDLOCK_OFF)
		return 0;
	abi = sandbox_landlock_abi();
	if (abi < 1) {
		log_info("landlock: not on this kernel (%s); files are "
			 "confined by user%s only",
			 strerror(-abi), plan->cfg->jail ? " and jail" : "");
		return 0;
	}
	sandbox.landlock = true;
	return sandbox_landlock_enter(abi, paths, err);
}

/*
 * Files that the C library would read later, on any thread: the number of CPUs,
 * once it has made a few heaps and asks how many it may; whether memory is
 * overcommitted, before it shrinks a heap; the time zone. Large blocks are
 * mappings of their own, and go as they did.
 */
static void settle_libc(void)
{
	mallopt(M_ARENA_MAX, 8 * get_nprocs());
	mallopt(M_TRIM_THRESHOLD, INT_MAX);
	mallopt(M_MMAP_THRESHOLD, 128 * 1024);
	tzset();
}

#ifdef QUIRE_SANITIZE_THREAD
#define THREADS_ALONE 3 /* the sanitizer has its own; two after a fork */
#else
#define THREADS_ALONE 1
#endif

static int count_threads(unsigned long *ret)
{
	char status[4096], *line;
	ssize_t len = io_read_text("/proc/self/status", status, sizeof(status));

	if (len < 0)
		return (int)len;
	line = strstr(status, "\nThreads:");
	if (!line)
		return -ENODATA;
	*ret = strtoul(line + 9, NULL, 10);
	return 0;
}

/*
 * Other threads would keep what this one gives away. One that was joined is
 * still counted for a moment.
 */
static int check_alone(struct err *err)
{
	unsigned long threads = 0;
	int r = count_threads(&threads);

	for (int i = 0; !r && threads > THREADS_ALONE && i < 100; i++) {
		usleep(1000);
		r = count_threads(&threads);
	}
	if (r)
		return err_errno(err, -r, "sandbox: /proc/self/status");
	if (threads > THREADS_ALONE)
		return err_set(err, EBUSY,
			       "sandbox: entered with threads running");
	return 0;
}

static int enter(const struct sandbox_plan *plan,
		 const struct sandbox_paths *paths, struct err *err)
{
	int r = 0;

	if (plan->cfg->jail)
		r = sandbox_jail_enter(plan->cfg, paths, err);
	if (!r)
		r = sandbox_set_no_new_privs(err);
	if (!r)
		r = sandbox_drop_capabilities(err);
	if (!r)
		r = enter_landlock(plan, paths, err);
	if (!r)
		r = sandbox_paths_check(paths, err);
	if (!r)
		r = sandbox_starter_init(confine, err);
	if (r)
		return r;
	/* In a jail there are none, Landlock lets none be executed. */
	thread_cage.may_exec = !sandbox.cages && !sandbox.landlock &&
			       !sandbox.jail;
	thread_set_cage(&thread_cage);
	thread_adopt(plan->control, "control");
	r = confine(plan->control);
	return r ? err_errno(err, -r, "seccomp: confining the control thread")
		 : 0;
}

int sandbox_enter(const struct sandbox_plan *plan, struct err *err)
{
	struct sandbox_paths paths = { .num = 0 };
	int r;

	BUG_ON(sandbox.entered);
	sandbox.entered = true;
	sandbox.jail = plan->cfg->jail;
	sandbox.root = !geteuid();
	r = check_alone(err);
	settle_libc();
	if (!r)
		r = sandbox_paths_join(&paths, plan->paths, err);
	if (!r)
		r = sandbox_paths_join(&paths, &plan->cfg->rules, err);
	if (!r)
		r = build_cages(plan, err);
	/* Filters are built of many small pieces, which are free again. */
	malloc_trim(0);
	if (!r)
		r = sandbox_trap_init(plan->dying, err);
	if (!r)
		r = enter(plan, &paths, err);
	sandbox_paths_fini(&paths);
	return r;
}

const char *sandbox_explain(int r)
{
	if (sandbox.jail && (r == -ENOENT || r == -EACCES || r == -EROFS))
		return "quire is in a jail that holds only what it was started "
		       "with and the paths of --landlock-rules";
	if (sandbox.landlock && (r == -EACCES || r == -EXDEV))
		return "quire opens only what it was started with and what is "
		       "below the paths of --landlock-rules (or start it with "
		       "--landlock off)";
	if (sandbox.root && r == -EACCES)
		return "quire has no capabilities: even as root it opens only "
		       "what root owns or everybody may";
	return NULL;
}
