/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sandbox, entered by a child process in each test, for there is no way
 * back. Every class of threads is tried with every forbidden call.
 */
#include "cmocka_all.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/securebits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/service.h"
#include "base/arith.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/thread.h"
#include "sandbox/landlock.h"
#include "sandbox/sandbox.h"
#include "sandbox/starter.h"
#include "sandbox/trap.h"
#include "vm/confine.h"

/* ---- children ---- */

struct outcome {
	int status; /* of wait() */
	char said[4096];
};

/* Run fn in a child, with its standard error caught. */
static void in_child(int (*fn)(void *arg), void *arg, struct outcome *ret)
{
	size_t len = 0;
	int pipe_fds[2];
	ssize_t n;
	pid_t pid;

	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		/* cmocka's handlers are no business of the sandbox */
		signal(SIGSYS, SIG_DFL);
		dup2(pipe_fds[1], STDERR_FILENO);
		_exit(fn(arg));
	}
	close(pipe_fds[1]);
	while (len < sizeof(ret->said) - 1 &&
	       (n = read(pipe_fds[0], ret->said + len,
			 sizeof(ret->said) - 1 - len)) > 0)
		len += (size_t)n;
	ret->said[len] = '\0';
	close(pipe_fds[0]);
	assert_int_equal(waitpid(pid, &ret->status, 0), pid);
}

/* A child that is to succeed; its words are shown if it does not. */
static void expect_fine(int (*fn)(void *arg), void *arg)
{
	struct outcome out;

	in_child(fn, arg, &out);
	if (!WIFEXITED(out.status) || WEXITSTATUS(out.status))
		fail_msg("status 0x%x: %s", (unsigned int)out.status, out.said);
}

#define CHECK(cond)                                                            \
	do {                                                                   \
		if (!(cond)) {                                                 \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, \
				#cond, strerror(errno));                       \
			return 1;                                              \
		}                                                              \
	} while (0)

static int enter_with(const struct sandbox_config *cfg,
		      const struct sandbox_paths *paths)
{
	struct sandbox_plan plan = {
		.cfg = cfg,
		.paths = paths,
		.control = &vm_control_class,
	};
	struct sandbox_extra extras[VM_MAX_EXTRAS];
	const struct thread_class **classes;
	struct err err = ERR_INIT;
	int r = vm_thread_classes(api_thread_classes, &classes,
				  &plan.num_classes);

	if (r)
		return r;
	plan.classes = classes;
	plan.extras = extras;
	plan.num_extras = vm_thread_extras(extras);
	r = sandbox_enter(&plan, &err);
	free(classes);
	if (r)
		fprintf(stderr, "%s\n", err.text);
	return r;
}

static int enter(enum sandbox_seccomp mode)
{
	struct sandbox_config cfg;

	sandbox_config_init(&cfg);
	cfg.seccomp = mode;
	cfg.landlock = SANDBOX_LANDLOCK_OFF;
	return enter_with(&cfg, NULL);
}

/* ---- calls that no thread may make ---- */

static long do_execve(void)
{
	char *argv[] = { (char *)"/bin/true", NULL };

	return execve(argv[0], argv, argv + 1);
}

static long do_ptrace(void)
{
	return syscall(SYS_ptrace, PTRACE_TRACEME, 0, 0, 0);
}

static long do_inet_socket(void)
{
	return syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);
}

static long do_fork(void)
{
	return syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

static long do_kill(void)
{
	return syscall(SYS_kill, 1, 0);
}

static long do_tgkill(void)
{
	return syscall(SYS_tgkill, 1, 1, 0);
}

static long do_mount(void)
{
	return syscall(SYS_mount, "none", "/tmp", "tmpfs", 0, NULL);
}

static long do_unshare(void)
{
	return syscall(SYS_unshare, CLONE_NEWUSER);
}

static long do_process_vm_readv(void)
{
	return syscall(SYS_process_vm_readv, 1, NULL, 0, NULL, 0, 0);
}

static long do_executable(void)
{
	return syscall(SYS_mmap, NULL, 4096, PROT_READ | PROT_EXEC,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static long do_ring(void)
{
	struct io_uring_params params = { .flags = 0 };

	return syscall(SYS_io_uring_setup, 4, &params);
}

static long do_tiocsti(void)
{
	return syscall(SYS_ioctl, 0, 0x5412 /* TIOCSTI */, "x");
}

static const struct forbidden {
	const char *name;
	int nr;
	long (*call)(void);
} forbidden[] = {
	{ "execve", SYS_execve, do_execve },
	{ "ptrace", SYS_ptrace, do_ptrace },
	{ "socket", SYS_socket, do_inet_socket },
	{ "clone", SYS_clone, do_fork },
	{ "kill", SYS_kill, do_kill },
	{ "tgkill", SYS_tgkill, do_tgkill },
	{ "mount", SYS_mount, do_mount },
	{ "unshare", SYS_unshare, do_unshare },
	{ "process_vm_readv", SYS_process_vm_readv, do_process_vm_readv },
	{ "mmap", SYS_mmap, do_executable },
	{ "io_uring_setup", SYS_io_uring_setup, do_ring },
	{ "ioctl", SYS_ioctl, do_tiocsti },
};

/* What a sanitizer's run time needs cannot be forbidden in its builds. */
static bool is_sanitizers(int nr)
{
	for (size_t i = 0; i < num_thread_sanitizer_calls; i++)
		if (thread_sanitizer_calls[i].nr == nr)
			return true;
	return false;
}

struct attempt {
	const struct thread_class *cls;
	const struct forbidden *what;
};

static void *attempt_thread(void *arg)
{
	const struct attempt *attempt = arg;

	attempt->what->call();
	return NULL;
}

static int attempt_child(void *arg)
{
	const struct attempt *attempt = arg;
	pthread_t thread;

	CHECK(!enter(SANDBOX_SECCOMP_ON));
	if (attempt->cls == &vm_control_class) {
		attempt->what->call();
		return 0;
	}
	CHECK(!thread_start(&thread, attempt->cls, "burglar", attempt_thread,
			    arg));
	pthread_join(thread, NULL);
	return 0;
}

static void try_forbidden(const struct thread_class *cls)
{
	for (size_t i = 0; i < ARRAY_SIZE(forbidden); i++) {
		struct attempt attempt = { cls, &forbidden[i] };
		struct outcome out;
		char want[128];

		if (is_sanitizers(forbidden[i].nr))
			continue;
		in_child(attempt_child, &attempt, &out);
		if (!WIFSIGNALED(out.status) || WTERMSIG(out.status) != SIGSYS)
			fail_msg("%s: %s: status 0x%x: %s", cls->name,
				 forbidden[i].name, (unsigned int)out.status,
				 out.said);
		snprintf(want, sizeof(want),
			 "quire: thread %s: system call %s (",
			 cls == &vm_control_class ? "control" : "burglar",
			 forbidden[i].name);
		if (!strstr(out.said, want))
			fail_msg("%s: wanted \"%s\", got: %s", cls->name, want,
				 out.said);
	}
}

static void test_forbidden_calls_end_it(void **state)
{
	const struct thread_class **classes;
	size_t num;

	assert_int_equal(vm_thread_classes(api_thread_classes, &classes, &num),
			 0);
	for (size_t i = 0; i < num; i++)
		try_forbidden(classes[i]);
	try_forbidden(&vm_control_class);
	free(classes);
}

/* ---- what remains ---- */

static int log_child(void *arg)
{
	CHECK(!enter(SANDBOX_SECCOMP_LOG));
	CHECK(do_ring() >= 0 || errno == EPERM || errno == ENOSYS);
	CHECK(do_executable() != -1);
	return 0;
}

static void test_log_lets_pass(void **state)
{
	expect_fine(log_child, NULL);
}

static int off_child(void *arg)
{
	char text[4096];

	CHECK(!enter(SANDBOX_SECCOMP_OFF));
	CHECK(io_read_text("/proc/self/status", text, sizeof(text)) > 0);
	CHECK(strstr(text, "\nSeccomp:\t0"));
	CHECK(strstr(text, "\nNoNewPrivs:\t1"));
	CHECK(strstr(text, "\nCapEff:\t0000000000000000"));
	return 0;
}

static void test_off_still_drops_privileges(void **state)
{
	expect_fine(off_child, NULL);
}

static void *nothing_thread(void *arg)
{
	return arg;
}

static int unknown_child(void *arg)
{
	pthread_t thread;

	CHECK(!enter(SANDBOX_SECCOMP_ON));
	CHECK(thread_start(&thread, &thread_class_tool, "tool", nothing_thread,
			   NULL) == -EPERM);
	return 0;
}

static void test_unknown_class_is_refused(void **state)
{
	expect_fine(unknown_child, NULL);
}

/* A thread whose class may little starts one whose class may other things. */
static const struct thread_class *class_named(const char *name)
{
	const struct thread_class **classes, *found = NULL;
	size_t num;

	if (vm_thread_classes(api_thread_classes, &classes, &num))
		return NULL;
	for (size_t i = 0; i < num; i++)
		if (!strcmp(classes[i]->name, name))
			found = classes[i];
	free(classes);
	return found;
}

static int prepare_ring(void *arg)
{
	return do_ring() >= 0 || errno == EPERM || errno == ENOSYS ? 0 : -errno;
}

static void *disk_thread(void *arg)
{
	/* Not a vCPU's: poll(2). */
	poll(NULL, 0, 0);
	return arg;
}

static void *vcpu_thread(void *arg)
{
	const struct thread_spec spec = {
		.cls = class_named("disk"),
		.name = "disk",
		.prepare = prepare_ring,
		.run = disk_thread,
		.arg = arg,
	};
	void *result = NULL;
	pthread_t thread;

	if (!thread_create(&thread, &spec))
		pthread_join(thread, &result);
	return result;
}

static int nested_child(void *arg)
{
	void *result = NULL;
	pthread_t thread;

	CHECK(!enter(SANDBOX_SECCOMP_ON));
	CHECK(!thread_start(&thread, class_named("vcpu"), "vcpu", vcpu_thread,
			    arg));
	pthread_join(thread, &result);
	CHECK(result == arg);
	return 0;
}

static void test_no_thread_hands_its_limits_on(void **state)
{
	int token;

	expect_fine(nested_child, &token);
}

static int fail_prepare(void *arg)
{
	return -ENODEV;
}

static int prepare_child(void *arg)
{
	const struct thread_spec spec = {
		.cls = class_named("disk"),
		.name = "disk",
		.prepare = fail_prepare,
		.run = nothing_thread,
	};
	pthread_t thread;

	CHECK(thread_create(&thread, &spec) == -ENODEV);
	CHECK(!enter(SANDBOX_SECCOMP_ON));
	CHECK(thread_create(&thread, &spec) == -ENODEV);
	return 0;
}

static void test_failed_preparation_is_told(void **state)
{
	expect_fine(prepare_child, NULL);
}

/* Each task: filters on, nothing left to gain. */
static void *wait_thread(void *arg)
{
	uint64_t v;

	(void)!read(*(int *)arg, &v, sizeof(v));
	return NULL;
}

static int count_confined(int pid, int *ret_tasks)
{
	static const char *const wanted[] = {
		"\nSeccomp:\t2",
		"\nNoNewPrivs:\t1",
		"\nCapInh:\t0000000000000000",
		"\nCapPrm:\t0000000000000000",
		"\nCapEff:\t0000000000000000",
		"\nCapAmb:\t0000000000000000",
	};
	char path[64], text[4096];
	uint64_t max;

	*ret_tasks = 0;
	CHECK(!io_read_u64("/proc/sys/kernel/pid_max", &max));
	/* Numbers of a process's tasks are close together, where little else
	 * runs, and begin again at the last; more than are there cannot be
	 * found. */
	for (uint64_t n = 0; n < MIN(max, (uint64_t)65536); n++) {
		uint64_t tid = ((uint64_t)pid + n) % max;

		snprintf(path, sizeof(path), "/proc/%d/task/%llu/status", pid,
			 (unsigned long long)tid);
		if (io_read_text(path, text, sizeof(text)) < 0)
			continue;
		for (size_t i = 0; i < ARRAY_SIZE(wanted); i++)
			if (!strstr(text, wanted[i])) {
				fprintf(stderr, "%llu lacks %s: %s\n",
					(unsigned long long)tid, wanted[i],
					text);
				return -1;
			}
		(*ret_tasks)++;
	}
	return 0;
}

static int tasks_child(void *arg)
{
	const struct thread_class **classes;
	pthread_t threads[64];
	int fds[2], tasks;
	size_t num;

	CHECK(!pipe(fds));
	CHECK(!vm_thread_classes(api_thread_classes, &classes, &num));
	CHECK(!enter(SANDBOX_SECCOMP_ON));
	for (size_t i = 0; i < num; i++)
		CHECK(!thread_start(&threads[i], classes[i], classes[i]->name,
				    wait_thread, &fds[0]));
	CHECK(!count_confined(getpid(), &tasks));
	/* And the control thread, and the starter. */
	CHECK(tasks == (int)num + 2);
	close(fds[1]);
	for (size_t i = 0; i < num; i++)
		pthread_join(threads[i], NULL);
	free(classes);
	return 0;
}

static void test_every_task_is_confined(void **state)
{
#ifdef QUIRE_SANITIZE_THREAD
	print_message("skip: the sanitizer has a thread of its own\n");
	skip();
#endif
	expect_fine(tasks_child, NULL);
}

static int twice_child(void *arg)
{
	pthread_t thread;
	int fds[2];

	CHECK(!pipe(fds));
	CHECK(!thread_start(&thread, &thread_class_tool, "early", wait_thread,
			    &fds[0]));
	CHECK(enter(SANDBOX_SECCOMP_ON) == -EBUSY);
	close(fds[1]);
	pthread_join(thread, NULL);
	return 0;
}

static void test_not_beside_other_threads(void **state)
{
	expect_fine(twice_child, NULL);
}

#ifdef QUIRE_SANITIZE_ADDRESS
/* The search for leaks, at the end, forks, and stops all threads. */
static __attribute__((noinline)) void leak(void)
{
	char *volatile lost = malloc(4321);

	lost[0] = 'x';
	lost = NULL;
}

static int leak_child(void *arg)
{
	pthread_t thread;
	int fds[2];

	CHECK(!pipe(fds));
	CHECK(!enter(SANDBOX_SECCOMP_ON));
	CHECK(!thread_start(&thread, class_named("disk"), "disk", wait_thread,
			    &fds[0]));
	leak();
	exit(0);
}

static void test_leaks_are_found_in_it(void **state)
{
	struct outcome out;

	in_child(leak_child, NULL, &out);
	if (!strstr(out.said, "4321 byte"))
		fail_msg("status 0x%x: %s", (unsigned int)out.status, out.said);
}
#endif

/* ---- Landlock ---- */

static char dir[] = "/tmp/quire-sandbox-XXXXXX";

static void make_file(const char *name)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
	assert_true(fd >= 0);
	fchmod(fd, 0666);
	close(fd);
}

static int make_dir(void **state)
{
	char path[128];

	if (!mkdtemp(dir) || chmod(dir, 0755))
		return -1;
	snprintf(path, sizeof(path), "%s/in", dir);
	if (mkdir(path, 0777) || chmod(path, 0777))
		return -1;
	make_file("in/file");
	make_file("outside");
	return 0;
}

static int remove_dir(void **state)
{
	static const char *const files[] = { "in/file", "in/made", "outside" };
	char path[128];

	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		snprintf(path, sizeof(path), "%s/%s", dir, files[i]);
		unlink(path);
	}
	snprintf(path, sizeof(path), "%s/in", dir);
	rmdir(path);
	return rmdir(dir);
}

static int try_open(const char *name, int flags)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, flags | O_CLOEXEC, 0666);
	if (fd < 0)
		return -errno;
	close(fd);
	return 0;
}

static int landlock_child(void *arg)
{
	const unsigned int *access = arg;
	struct sandbox_paths paths = { .num = 0 };
	struct sandbox_config cfg;
	char path[128];

	sandbox_config_init(&cfg);
	snprintf(path, sizeof(path), "%s/in", dir);
	CHECK(!sandbox_paths_add(&paths, path, *access, false, NULL));
	CHECK(!enter_with(&cfg, &paths));
	CHECK(try_open("outside", O_RDONLY) == -EACCES);
	CHECK(try_open("in/file", O_RDONLY) ==
	      (*access & SANDBOX_READ ? 0 : -EACCES));
	CHECK(try_open("in/file", O_WRONLY) ==
	      (*access & (SANDBOX_WRITE | SANDBOX_MAKE) ? 0 : -EACCES));
	CHECK(try_open("in/made", O_WRONLY | O_CREAT | O_EXCL) ==
	      (*access & SANDBOX_MAKE ? 0 : -EACCES));
	if (*access & SANDBOX_MAKE) {
		snprintf(path, sizeof(path), "%s/in/made", dir);
		CHECK(!unlink(path));
	}
	return 0;
}

static void test_landlock_opens_only_what_is_listed(void **state)
{
	static const unsigned int all[] = {
		SANDBOX_READ,
		SANDBOX_WRITE,
		SANDBOX_READ | SANDBOX_WRITE,
		SANDBOX_MAKE,
	};

	if (sandbox_landlock_abi() < 1) {
		print_message("skip: no Landlock here\n");
		skip();
	}
	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		expect_fine(landlock_child, (void *)&all[i]);
}

static int missing_child(void *arg)
{
	struct sandbox_paths paths = { .num = 0 };
	struct sandbox_config cfg;

	sandbox_config_init(&cfg);
	cfg.landlock = SANDBOX_LANDLOCK_OFF;
	CHECK(!sandbox_paths_add(&paths, "/nowhere/at/all", SANDBOX_READ, true,
				 NULL));
	CHECK(!sandbox_paths_add(&paths, "/nowhere/either", SANDBOX_MAKE, false,
				 NULL));
	CHECK(enter_with(&cfg, &paths) == -ENOENT);
	return 0;
}

static void test_missing_path_is_named(void **state)
{
	struct outcome out;

	in_child(missing_child, NULL, &out);
	assert_int_equal(out.status, 0);
	assert_non_null(strstr(out.said, "/nowhere/either"));
}

/* ---- the jail ---- */

static int jail_config(struct sandbox_config *cfg, const char *text)
{
	struct err err = ERR_INIT;

	sandbox_config_init(cfg);
	cfg->landlock = SANDBOX_LANDLOCK_OFF;
	return sandbox_set_jail(cfg, text, &err);
}

/* Network devices, other than those of the jail: only its own loopback. */
static int count_lines(const char *path)
{
	char text[8192], *p = text;
	int lines = 0;

	if (io_read_text(path, text, sizeof(text)) < 0)
		return -1;
	while ((p = strchr(p, '\n'))) {
		p++;
		lines++;
	}
	return lines + 1;
}

static int jail_child(void *arg)
{
	static const char *const gone[] = { "/etc",  "/usr", "/bin", "/home",
					    "/root", "/var", "/lib" };
	struct sandbox_paths paths = { .num = 0 };
	bool root = !geteuid();
	struct sandbox_config cfg;
	char path[128], text[4096];

	CHECK(!jail_config(&cfg, root ? "uid=12345,gid=12346" : "on"));
	snprintf(path, sizeof(path), "%s/in", dir);
	CHECK(!sandbox_paths_add(&paths, path, SANDBOX_READ | SANDBOX_MAKE,
				 false, NULL));
	CHECK(!sandbox_paths_add(&paths, "/proc/self", SANDBOX_READ, false,
				 NULL));
	CHECK(!enter_with(&cfg, &paths));
	for (size_t i = 0; i < ARRAY_SIZE(gone); i++)
		CHECK(open(gone[i], O_PATH | O_CLOEXEC) < 0 && errno == ENOENT);
	CHECK(try_open("outside", O_RDONLY) == -ENOENT);
	CHECK(try_open("in/file", O_RDWR) == 0);
	CHECK(try_open("in/made", O_WRONLY | O_CREAT | O_EXCL) == 0);
	snprintf(path, sizeof(path), "%s/in/made", dir);
	CHECK(!unlink(path));
	/* Nothing can be made outside of what was put in. */
	CHECK(try_open("new", O_WRONLY | O_CREAT) == -EROFS);
	CHECK(io_read_text("/proc/self/status", text, sizeof(text)) > 0);
	CHECK(strstr(text, "\nSeccomp:\t2"));
	CHECK(!root || strstr(text, "\nUid:\t12345\t12345\t12345\t12345"));
	CHECK(!root || strstr(text, "\nGid:\t12346\t12346\t12346\t12346"));
	CHECK(open("/proc/1/status", O_RDONLY | O_CLOEXEC) < 0 &&
	      errno == ENOENT);
	/* Two lines of heading, and the loopback device. */
	CHECK(count_lines("/proc/self/net/dev") == 3);
	return 0;
}

static int can_unshare(void *arg)
{
	return unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET) ? 77 : 0;
}

static void need_namespaces(void)
{
	struct outcome out;

	in_child(can_unshare, NULL, &out);
	if (out.status) {
		print_message("skip: no user namespaces here\n");
		skip();
	}
}

static void test_jail_holds_nothing_else(void **state)
{
	need_namespaces();
	expect_fine(jail_child, NULL);
}

static int stranger_child(void *arg)
{
	struct sandbox_config cfg;

	if (!geteuid())
		CHECK(!setresgid(4000, 4000, 4000) &&
		      !setresuid(4000, 4000, 4000));
	CHECK(!jail_config(&cfg, "uid=4001"));
	CHECK(enter_with(&cfg, NULL) == -EPERM);
	return 0;
}

static void test_only_root_changes_its_uid(void **state)
{
	struct outcome out;

	in_child(stranger_child, NULL, &out);
	if (out.status)
		fail_msg("%s", out.said);
	assert_non_null(strstr(out.said, "only root can become another user"));
}

/* ---- the lists ---- */

static bool same_call(const struct thread_call *a, const struct thread_call *b)
{
	return a->nr == b->nr && a->arg == b->arg && a->mask == b->mask &&
	       a->value == b->value && a->own_pid == b->own_pid;
}

static bool same_or_wider(const struct thread_call *wide,
			  const struct thread_call *call)
{
	return same_call(wide, call) || (wide->nr == call->nr && !wide->arg);
}

/* No call is there twice, nor narrower beside a wider one. */
static void check_list(const char *name, const struct thread_call *calls,
		       size_t num, const struct thread_call *others,
		       size_t num_others, bool same_list)
{
	for (size_t i = 0; i < num; i++)
		for (size_t j = 0; j < num_others; j++)
			if (!(same_list && i == j) &&
			    same_or_wider(&others[j], &calls[i]))
				fail_msg("%s: call %d (%s) is there already",
					 name, calls[i].nr, calls[i].text);
}

static void check_class(const struct thread_class *cls)
{
	const struct thread_class *c;

	check_list(cls->name, cls->calls, cls->num_calls, cls->calls,
		   cls->num_calls, true);
	check_list(cls->name, cls->calls, cls->num_calls, thread_base_calls,
		   num_thread_base_calls, false);
	for (c = cls->also; c; c = c->also)
		check_list(cls->name, cls->calls, cls->num_calls, c->calls,
			   c->num_calls, false);
}

static void test_no_call_is_listed_twice(void **state)
{
	struct sandbox_extra extras[VM_MAX_EXTRAS];
	const struct thread_class **classes;
	size_t num;

	assert_int_equal(vm_thread_classes(api_thread_classes, &classes, &num),
			 0);
	for (size_t i = 0; i < num; i++) {
		check_class(classes[i]);
		for (size_t j = 0; j < i; j++)
			assert_string_not_equal(classes[i]->name,
						classes[j]->name);
	}
	check_class(&vm_control_class);
	check_class(&sandbox_starter_class);
	free(classes);
	num = vm_thread_extras(extras);
	for (size_t i = 0; i < num; i++) {
		check_class(extras[i].more);
		check_list(extras[i].more->name, extras[i].more->calls,
			   extras[i].more->num_calls, extras[i].cls->calls,
			   extras[i].cls->num_calls, false);
	}
	check_list("base", thread_base_calls, num_thread_base_calls,
		   thread_base_calls, num_thread_base_calls, true);
}

/* ---- the manual ---- */

static void add_call(char *line, size_t size, const struct thread_call *call,
		     bool first)
{
	size_t len = strlen(line);
	const char *name = sandbox_call_name(call->nr);

	assert_non_null(name);
	snprintf(line + len, size - len, "%s%s%s%s", first ? "" : ", ", name,
		 call->text[0] ? " " : "", call->text);
}

/* "- **vcpu** (runs ...): write, ...; rarely: ...; at its start: ..." */
static void describe(char *line, size_t size, const char *name,
		     const char *what, const struct thread_call *calls,
		     size_t num)
{
	bool first = true;
	size_t len;

	len = (size_t)snprintf(line, size, "- **%s** (%s): ", name, what);
	for (size_t i = 0; i < num; i++) {
		if (calls[i].rare)
			continue;
		add_call(line, size, &calls[i], first);
		first = false;
	}
	if (first)
		snprintf(line + len, size - len, "nothing else");
	first = true;
	for (size_t i = 0; i < num; i++) {
		if (!calls[i].rare)
			continue;
		len = strlen(line);
		if (first)
			snprintf(line + len, size - len, "; rarely ");
		add_call(line, size, &calls[i], first);
		first = false;
	}
}

static void describe_class(char *line, size_t size,
			   const struct thread_class *cls)
{
	describe(line, size, cls->name, cls->what, cls->calls, cls->num_calls);
	for (size_t i = 0; i < cls->num_prepare_calls; i++) {
		size_t len = strlen(line);

		if (!i)
			snprintf(line + len, size - len, "; to get ready ");
		add_call(line, size, &cls->prepare_calls[i], !i);
	}
	if (cls->also) {
		size_t len = strlen(line);

		snprintf(line + len, size - len, "; and what *%s* may",
			 cls->also->name);
	}
}

#define MAX_LINES 64

/* The lines of docs/sandbox.md, in order; the caller frees each. */
static size_t all_lines(char *lines[MAX_LINES])
{
	struct sandbox_extra extras[VM_MAX_EXTRAS];
	const struct thread_class **classes;
	const size_t size = 4096;
	size_t num, num_extras = vm_thread_extras(extras), n = 0;

	if (vm_thread_classes(api_thread_classes, &classes, &num))
		return 0;
	for (size_t i = 0; i < num + num_extras + 3; i++)
		lines[i] = calloc(1, size);
	describe(lines[n++], size, "any", "every thread", thread_base_calls,
		 num_thread_base_calls);
	describe_class(lines[n++], size, &vm_control_class);
	describe_class(lines[n++], size, &sandbox_starter_class);
	for (size_t i = 0; i < num; i++)
		describe_class(lines[n++], size, classes[i]);
	for (size_t i = 0; i < num_extras; i++)
		describe_class(lines[n++], size, extras[i].more);
	free(classes);
	return n;
}

static void find_line(const char *page, const char *line)
{
	const char *at = strstr(page, line);

	if (!at || at[strlen(line)] != '\n')
		fail_msg("docs/sandbox.md lacks the line\n%s", line);
}

static void test_manual_has_the_lists(void **state)
{
	char *lines[MAX_LINES], *page, *at;
	struct err err = ERR_INIT;
	size_t num, found = 0;

	page = at = calloc(1, 65536);
	assert_non_null(page);
	assert_true(io_read_text(QUIRE_SOURCE "/docs/sandbox.md", page, 65536) >
		    0);
	assert_int_equal(sandbox_trap_init(NULL, &err), 0); /* the names */
	num = all_lines(lines);
	for (size_t i = 0; i < num; i++) {
		find_line(page, lines[i]);
		free(lines[i]);
	}
	while ((at = strstr(at, "\n- **"))) {
		found++;
		at++;
	}
	assert_int_equal(found, num);
	free(page);
}

/* For docs/sandbox.md, when a list has changed. */
static int print_lists(void)
{
	char *lines[MAX_LINES];
	struct err err = ERR_INIT;
	int r = sandbox_trap_init(NULL, &err);
	size_t num = r ? 0 : all_lines(lines);

	for (size_t i = 0; i < num; i++) {
		puts(lines[i]);
		free(lines[i]);
	}
	return num ? 0 : 1;
}

static void refuse(int (*parse)(struct sandbox_config *, const char *,
				struct err *),
		   const char *text, const char *word)
{
	struct err err = ERR_INIT;
	struct sandbox_config cfg;

	sandbox_config_init(&cfg);
	assert_true(parse(&cfg, text, &err) < 0);
	if (!strstr(err.text, word))
		fail_msg("%s: '%s' lacks '%s'", text, err.text, word);
	sandbox_config_fini(&cfg);
}

static void test_options(void **state)
{
	struct err err = ERR_INIT;
	struct sandbox_config cfg;

	sandbox_config_init(&cfg);
	assert_int_equal(cfg.seccomp, SANDBOX_SECCOMP_ON);
	assert_int_equal(cfg.landlock, SANDBOX_LANDLOCK_AUTO);
	assert_int_equal(sandbox_set_landlock(&cfg, "off", &err), 0);
	assert_int_equal(cfg.landlock, SANDBOX_LANDLOCK_OFF);
	assert_false(cfg.jail);
	assert_int_equal(sandbox_set_seccomp(&cfg, "false", &err), 0);
	assert_int_equal(cfg.seccomp, SANDBOX_SECCOMP_OFF);
	assert_int_equal(sandbox_set_seccomp(&cfg, "log", &err), 0);
	assert_int_equal(cfg.seccomp, SANDBOX_SECCOMP_LOG);
	assert_int_equal(
		sandbox_add_landlock_rules(&cfg, "path=/a,access=rw", &err), 0);
	assert_int_equal(sandbox_add_landlock_rules(&cfg, "/a,access=r", &err),
			 0);
	assert_int_equal(cfg.rules.num, 1);
	assert_int_equal(sandbox_set_jail(&cfg, "uid=5,gid=6,chroot=/x", &err),
			 0);
	assert_true(cfg.jail && cfg.has_uid && cfg.has_gid);
	assert_int_equal(cfg.uid, 5);
	assert_int_equal(cfg.gid, 6);
	assert_string_equal(cfg.chroot, "/x");
	sandbox_config_fini(&cfg);
	refuse(sandbox_set_seccomp, "maybe", "on, log, off");
	refuse(sandbox_set_landlock, "maybe", "auto, on, off");
	refuse(sandbox_add_landlock_rules, "path=/a", "access=");
	refuse(sandbox_add_landlock_rules, "path=/a,access=x", "access=x");
	refuse(sandbox_set_jail, "uid=0", "uid=0");
	refuse(sandbox_set_jail, "chroot=x", "absolute");
	refuse(sandbox_set_jail, "cell=5", "cell");
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_forbidden_calls_end_it),
		cmocka_unit_test(test_log_lets_pass),
		cmocka_unit_test(test_off_still_drops_privileges),
		cmocka_unit_test(test_unknown_class_is_refused),
		cmocka_unit_test(test_no_thread_hands_its_limits_on),
		cmocka_unit_test(test_failed_preparation_is_told),
		cmocka_unit_test(test_every_task_is_confined),
		cmocka_unit_test(test_not_beside_other_threads),
#ifdef QUIRE_SANITIZE_ADDRESS
		cmocka_unit_test(test_leaks_are_found_in_it),
#endif
		cmocka_unit_test(test_landlock_opens_only_what_is_listed),
		cmocka_unit_test(test_missing_path_is_named),
		cmocka_unit_test(test_jail_holds_nothing_else),
		cmocka_unit_test(test_only_root_changes_its_uid),
		cmocka_unit_test(test_no_call_is_listed_twice),
		cmocka_unit_test(test_manual_has_the_lists),
		cmocka_unit_test(test_options),
	};

	if (argc > 1 && !strcmp(argv[1], "--lists"))
		return print_lists();

	return cmocka_run_group_tests_name("sandbox", tests, make_dir,
					   remove_dir);
}
