/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starting virtiofsd. It is given a listening socket (--fd), in whose queue our
 * connection already waits: nobody else can come first, and there is no moment
 * at which to look whether it is up. The socket's name is in a directory that
 * only we can enter, and both are gone before virtiofsd runs.
 *
 * The options are those of Debian 12's virtiofsd, which the later one, written
 * in Rust, takes too. The thread pool is off in both unless asked for; it is
 * switched off here by name, because then each queue is served in order, and
 * what a dead virtiofsd left unanswered is known exactly (vq_adopt()).
 */
#include "virtio/fs/fs_backend.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "base/unix_socket.h"

#ifndef PIDFD_SIGNAL_PROCESS_GROUP /* Linux 6.9 */
#define PIDFD_SIGNAL_PROCESS_GROUP (1u << 2)
#endif

#define START_MS   20000 /* for virtiofsd to start and shake hands */
#define REOPEN_MS  3000
#define WAIT_MS	   3000 /* for a user's virtiofsd to be there at all */
#define RETRY_MS   100
#define END_MS	   2000 /* for virtiofsd to end by itself */
#define EXIT_SETUP 127

const char *const fs_cache_names[3] = {
	[FS_CACHE_AUTO] = "auto",
	[FS_CACHE_NONE] = "none",
	[FS_CACHE_ALWAYS] = "always",
};

const char *const fs_sandbox_names[2] = {
	[FS_SANDBOX_NAMESPACE] = "namespace",
	[FS_SANDBOX_CHROOT] = "chroot",
};

/* Where distributions put it. */
static const char *const programs[] = {
	"/usr/libexec/virtiofsd",
	"/usr/lib/qemu/virtiofsd",
	"/usr/lib/virtiofsd",
	"/usr/bin/virtiofsd",
};

struct fs_backend *fs_backend_new(void)
{
	struct fs_backend *b = calloc(1, sizeof(*b));

	if (!b)
		return NULL;
	b->refs = 1;
	vhost_user_init(&b->vu);
	b->pid_fd = b->log_fd = -1;
	return b;
}

struct fs_backend *fs_backend_ref(struct fs_backend *b)
{
	b->refs++;
	return b;
}

void fs_backend_unref(struct fs_backend *b)
{
	if (!b || --b->refs)
		return;
	fs_backend_close(b, NULL);
	free(b->socket);
	free(b->path);
	free(b->daemon);
	free(b);
}

/* ---- what it prints ---- */

/* Returns true when c ended a line. */
static bool line_add(struct fs_backend *b, char c)
{
	if (b->line_done) {
		b->line_len = 0;
		b->line_done = false;
	}
	if (c == '\n') {
		b->line_done = b->line_len > 0;
		return b->line_done;
	}
	/* It may be anything, and a terminal reads our log. */
	if (c < ' ' || c > '~')
		c = '?';
	if (b->line_len < sizeof(b->line) - 1) {
		b->line[b->line_len++] = c;
		b->line[b->line_len] = '\0';
	}
	return false;
}

void fs_backend_log(struct fs_backend *b, const char *id)
{
	char buf[1024];
	ssize_t n;

	if (b->log_fd < 0)
		return;
	n = read(b->log_fd, buf, sizeof(buf));
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		close_fd(&b->log_fd);
	for (ssize_t i = 0; i < n; i++) {
		if (line_add(b, buf[i]) && id)
			log_ratelimited(LOG_LEVEL_WARN, "%s: virtiofsd: %s", id,
					b->line);
	}
}

/* ---- its end ---- */

static void describe_end(const siginfo_t *info, const char **ret_how)
{
	if (!ret_how)
		return;
	if (info->si_code != CLD_EXITED)
		*ret_how = info->si_status == SIGKILL ? "it was killed"
						      : "it crashed";
	else
		*ret_how = info->si_status ? "it failed" : "it ended";
}

static bool has_ended(const struct fs_backend *b)
{
	struct pollfd pfd = { .fd = b->pid_fd, .events = POLLIN };

	return poll(&pfd, 1, END_MS) > 0;
}

/*
 * Through the descriptor: a confined quire signals nobody by number, or it
 * could signal all that its user runs. Before Linux 6.9 that does not reach
 * what virtiofsd has forked; that asks the kernel to be told of its parent's
 * end.
 */
static void kill_group(const struct fs_backend *b)
{
	if (pidfd_send_signal(b->pid_fd, SIGKILL, NULL,
			      PIDFD_SIGNAL_PROCESS_GROUP) &&
	    errno == EINVAL)
		pidfd_send_signal(b->pid_fd, SIGKILL, NULL, 0);
}

/*
 * Wait for the process, by force after END_MS; say how it ended by itself. One
 * that not even SIGKILL ends, waiting for a dead disk or server, is left behind
 * rather than waited for.
 */
static void reap(struct fs_backend *b, const char **ret_how)
{
	siginfo_t info = { 0 };
	bool forced;

	if (!b->pid)
		return;
	forced = !has_ended(b);
	if (forced) {
		kill_group(b);
		if (ret_how)
			*ret_how = "it hung";
	}
	if (forced && !has_ended(b))
		log_error("virtiofsd (process %d) cannot be killed and is left "
			  "behind",
			  (int)b->pid);
	else if (!waitid(P_PID, (id_t)b->pid, &info, WEXITED) && !forced)
		describe_end(&info, ret_how);
	b->pid = 0;
	close_fd(&b->pid_fd);
}

void fs_backend_close(struct fs_backend *b, const char **ret_how)
{
	vhost_user_close(&b->vu);
	reap(b, ret_how);
	close_fd(&b->log_fd);
}

/* ---- its start ---- */

struct launch {
	const char *argv[20];
	pid_t parent;
	int listener, log, null;
	const char *readonly; /* directory, or NULL */
};

/* Between fork and exec: only what is safe in a signal handler. */
static void child_fail(const char *what)
{
	static const char *const ends[] = { ": ", "\n" };
	const char *why = strerrordesc_np(errno);
	const char *parts[] = { what, ends[0], why ? why : "?", ends[1] };

	for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
		if (write(STDERR_FILENO, parts[i], strlen(parts[i])) < 0)
			break;
	_exit(EXIT_SETUP);
}

/*
 * virtiofsd of Debian 12 has no such option; a read-only mount that only it
 * sees does the same for any version, and it cannot be talked out of it.
 */
static void child_make_readonly(const char *path)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY };

	if (unshare(CLONE_NEWNS) ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount(path, path, NULL, MS_BIND | MS_REC, NULL) ||
	    mount_setattr(AT_FDCWD, path, AT_RECURSIVE, &attr, sizeof(attr)))
		child_fail("readonly=on (a read-only mount wants root)");
}

static void child_run(const struct launch *l)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* Sent when our thread ends: the control thread ends with quire. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != l->parent)
		_exit(EXIT_SETUP);
	/* Ctrl-C is for quire. */
	setpgid(0, 0);
	if (dup2(l->null, STDIN_FILENO) < 0 ||
	    dup2(l->log, STDOUT_FILENO) < 0 ||
	    dup2(l->log, STDERR_FILENO) < 0 || fcntl(l->listener, F_SETFD, 0))
		_exit(EXIT_SETUP);
	if (l->readonly)
		child_make_readonly(l->readonly);
	/* exec takes strings that it only reads without const. */
	execv(l->argv[0], (char *const *)(uintptr_t)l->argv);
	child_fail(l->argv[0]);
}

static int find_program(const struct fs_backend *b, const char **ret,
			struct err *err)
{
	if (b->daemon) {
		*ret = b->daemon;
		return access(b->daemon, X_OK)
			       ? err_errno(err, errno, "daemon=%s", b->daemon)
			       : 0;
	}
	for (size_t i = 0; i < ARRAY_SIZE(programs); i++) {
		if (!access(programs[i], X_OK)) {
			*ret = programs[i];
			return 0;
		}
	}
	return err_set(err, ENOENT,
		       "no virtiofsd found; install it (Debian 12: package "
		       "qemu-system-common, later: virtiofsd), or name it "
		       "with daemon=");
}

/* A name in a directory of our own, for as long as it takes to connect. */
static int connected_listener(int *ret_listener, int *ret_fd)
{
	const char *run = getenv("XDG_RUNTIME_DIR");
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	_cleanup_close_ int listener = -1;
	_cleanup_close_ int fd = -1;
	char dir[80], path[100];
	int r = 0;

	snprintf(dir, sizeof(dir), "%s/quire-fs-XXXXXX",
		 run && strlen(run) < 50 ? run : "/tmp");
	if (!mkdtemp(dir)) {
		snprintf(dir, sizeof(dir), "/tmp/quire-fs-XXXXXX");
		if (!mkdtemp(dir))
			return -errno;
	}
	snprintf(path, sizeof(path), "%s/s", dir);
	memcpy(addr.sun_path, path, strlen(path) + 1);
	listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listener < 0 || fd < 0 ||
	    bind(listener, (struct sockaddr *)&addr, sizeof(addr)) ||
	    listen(listener, 1) ||
	    connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
		r = -errno;
	unlink(path);
	rmdir(dir);
	if (r)
		return r;
	*ret_listener = take_fd(&listener);
	*ret_fd = take_fd(&fd);
	return 0;
}

static int run_program(struct fs_backend *b, const char *program, int listener,
		       struct err *err)
{
	_cleanup_free_ char *path = realpath(b->path, NULL);
	_cleanup_close_ int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	_cleanup_close_ int log = -1;
	char fd_arg[32], source[PATH_MAX + 16], cache[32], sandbox[32];
	struct launch l = {
		.argv = { program, fd_arg, "-f", "--thread-pool-size=0", "-o",
			  source, "-o", cache, "-o", sandbox, "-o",
			  "log_level=err", "-o",
			  b->xattr ? "xattr" : "no_xattr" },
		.parent = getpid(),
		.listener = listener,
		.null = null,
		.readonly = b->readonly ? path : NULL,
	};
	int pipe_fds[2] = { -1, -1 }, r;

	if (!path)
		return err_errno(err, errno, "path=%s", b->path);
	if (null < 0 || pipe2(pipe_fds, O_CLOEXEC))
		return err_errno(err, errno, "starting %s", program);
	log = pipe_fds[1];
	l.log = log;
	b->log_fd = pipe_fds[0];
	snprintf(fd_arg, sizeof(fd_arg), "--fd=%d", listener);
	snprintf(source, sizeof(source), "source=%s", path);
	snprintf(cache, sizeof(cache), "cache=%s", fs_cache_names[b->cache]);
	snprintf(sandbox, sizeof(sandbox), "sandbox=%s",
		 fs_sandbox_names[b->sandbox]);
	b->pid = fork();
	if (!b->pid)
		child_run(&l);
	if (b->pid < 0) {
		b->pid = 0;
		return err_errno(err, errno, "starting %s", program);
	}
	b->pid_fd = pidfd_open(b->pid, 0);
	if (b->pid_fd >= 0 && !fcntl(b->log_fd, F_SETFL, O_NONBLOCK))
		return 0;
	r = err_errno(err, errno, "starting %s", program);
	kill(b->pid, SIGKILL);
	waitpid(b->pid, NULL, 0);
	b->pid = 0;
	return r;
}

static int check_directory(const char *path, struct err *err)
{
	struct stat st;

	if (stat(path, &st))
		return err_errno(err, errno, "path=%s", path);
	if (!S_ISDIR(st.st_mode))
		return err_set(err, ENOTDIR, "path=%s: not a directory", path);
	return 0;
}

/* It died: its own words explain more than ours. */
static void explain(struct fs_backend *b, const char *program, struct err *err)
{
	const char *how = "it does not answer";

	vhost_user_close(&b->vu);
	reap(b, &how);
	while (b->log_fd >= 0)
		fs_backend_log(b, NULL);
	if (b->line_len)
		err_set(err, ECONNRESET, "%s: %s: %s", program, how, b->line);
	else
		err_prefix(err, "%s: %s", program, how);
}

static int start(struct fs_backend *b, uint64_t features,
		 unsigned int num_queues, struct err *err)
{
	_cleanup_close_ int listener = -1;
	const char *program = NULL;
	int fd = -1, r;

	if (!thread_may_exec())
		return err_set(err, EPERM,
			       "quire confines itself and starts no programs "
			       "any more: start virtiofsd "
			       "--socket-path=PATH --shared-dir=%s and give "
			       "socket=PATH",
			       b->path);
	r = check_directory(b->path, err);
	if (!r)
		r = find_program(b, &program, err);
	if (r)
		return r;
	r = connected_listener(&listener, &fd);
	if (r)
		return err_errno(err, -r, "a socket for %s", program);
	b->line_len = 0;
	r = run_program(b, program, listener, err);
	if (r) {
		close_fd(&fd);
		fs_backend_close(b, NULL);
		return r;
	}
	/* Only virtiofsd holds it now, and its death hangs up on us. */
	close_fd(&listener);
	r = vhost_user_connect(&b->vu, fd, features, num_queues, START_MS, err);
	if (r == -ENOTSUP)
		fs_backend_close(b, NULL);
	else if (r)
		explain(b, program, err);
	return r;
}

/* ---- one that runs already ---- */

int fs_backend_reopen(struct fs_backend *b, uint64_t features,
		      unsigned int num_queues, struct err *err)
{
	int fd = -1, r = unix_socket_connect(b->socket, SOCK_NONBLOCK, &fd);

	if (r)
		return err_errno(err, -r, "socket=%s", b->socket);
	return vhost_user_connect(&b->vu, fd, features, num_queues, REOPEN_MS,
				  err);
}

static bool may_come(int r)
{
	return r == -ENOENT || r == -ECONNREFUSED || r == -EAGAIN;
}

static int attach(struct fs_backend *b, uint64_t features,
		  unsigned int num_queues, struct err *err)
{
	uint64_t end = clock_now_ns() + WAIT_MS * NSEC_PER_MSEC;
	int r = fs_backend_reopen(b, features, num_queues, err);

	while (may_come(r) && clock_now_ns() < end) {
		poll(NULL, 0, RETRY_MS);
		r = fs_backend_reopen(b, features, num_queues, err);
	}
	if (may_come(r))
		err_prefix(err, "no virtiofsd listens (waited %d s)",
			   WAIT_MS / 1000);
	return r;
}

int fs_backend_open(struct fs_backend *b, uint64_t features,
		    unsigned int num_queues, struct err *err)
{
	if (b->vu.fd >= 0 && !vhost_user_hung_up(&b->vu))
		return 0;
	fs_backend_close(b, NULL);
	return b->path ? start(b, features, num_queues, err)
		       : attach(b, features, num_queues, err);
}
