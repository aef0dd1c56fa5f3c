/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Back end: passt, started here, at the other end of a socket pair.
 *
 * passt(1) carries the guest's connections as sockets of an ordinary user: no
 * interface, no privilege. It ends by itself when our end of the pair is
 * closed, however this process ends. What it says goes into a pipe that is
 * looked at only when it ends early, to say why; when the pipe is full, it is
 * lost.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/thread.h"
#include "virtio/net/net_stream.h"

#define PASST	     "/usr/bin/passt"
#define CHILD_SOCKET 3 /* descriptor numbers in the child */
/* After its socket is closed it needs a moment; then it is killed. */
#define END_TURNS   50
#define END_TURN_US 10000

struct passt {
	pid_t pid;  /* 0: reaped */
	int pid_fd; /* of it */
	int says;   /* what it writes on standard error */
};

/* The last whole line it wrote that is its own, or "". */
static void last_words(const struct passt *p, char *buf, size_t size)
{
	char text[4096], *line, *rest = text, *found = NULL;
	ssize_t n = read(p->says, text, sizeof(text) - 1);

	text[MAX(n, 0)] = '\0';
	while ((line = strsep(&rest, "\n")))
		if (*line && strncmp(line, "Failed to send", 14) != 0)
			found = line;
	snprintf(buf, size, "%s", found ? found : "");
	for (char *c = buf; *c; c++)
		if ((unsigned char)*c < ' ')
			*c = ' ';
}

/* By the thread that receives, when the connection is gone. */
static void passt_ended(void *ctx)
{
	struct passt *p = ctx;
	char why[200];

	last_words(p, why, sizeof(why));
	log_warn("--net passt: " PASST " ended%s%s", *why ? ": " : "", why);
}

static void passt_closed(void *ctx)
{
	struct passt *p = ctx;

	for (unsigned int i = 0; p->pid && i < END_TURNS; i++) {
		if (waitpid(p->pid, NULL, WNOHANG))
			p->pid = 0;
		else
			usleep(END_TURN_US);
	}
	if (p->pid) {
		/* Of another user by now? It ends with its socket. */
		if (!pidfd_send_signal(p->pid_fd, SIGKILL, NULL, 0))
			waitpid(p->pid, NULL, 0);
	}
	close_fd(&p->pid_fd);
	close_fd(&p->says);
	free(p);
}

/*
 * Own process group: keys on a terminal are for the guest. The signal mask and
 * dispositions of this process are not for it.
 */
static int spawn(pid_t *ret_pid, int sock, int says, char *const argv[])
{
	static char path[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
	char *const env[] = { path, NULL };
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	sigset_t none, all;
	int r;

	sigemptyset(&none);
	sigfillset(&all);
	if (posix_spawn_file_actions_init(&files))
		return -ENOMEM;
	if (posix_spawnattr_init(&attr)) {
		posix_spawn_file_actions_destroy(&files);
		return -ENOMEM;
	}
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETPGROUP |
						POSIX_SPAWN_SETSIGMASK |
						POSIX_SPAWN_SETSIGDEF);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &all);
	r = posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDWR, 0);
	if (!r)
		r = posix_spawn_file_actions_adddup2(&files, 0, 1);
	if (!r)
		r = posix_spawn_file_actions_adddup2(&files, says, 2);
	if (!r)
		r = posix_spawn_file_actions_adddup2(&files, sock,
						     CHILD_SOCKET);
	if (!r)
		r = posix_spawn(ret_pid, PASST, &files, &attr, argv, env);
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&files);
	return -r;
}

static int start(struct passt *p, const struct net_backend_config *cfg,
		 int sock, int says, struct err *err)
{
	char fd[12], mtu[12];
	const char *argv[16] = { PASST, "--foreground", "--quiet", "--fd", fd };
	unsigned int n = 5;
	int r;

	snprintf(fd, sizeof(fd), "%d", CHILD_SOCKET);
	if (cfg->mtu) {
		snprintf(mtu, sizeof(mtu), "%u", cfg->mtu);
		argv[n++] = "--mtu";
		argv[n++] = mtu;
	}
	if (cfg->tcp_ports) {
		argv[n++] = "--tcp-ports";
		argv[n++] = cfg->tcp_ports;
	}
	if (cfg->udp_ports) {
		argv[n++] = "--udp-ports";
		argv[n++] = cfg->udp_ports;
	}
	/* The strings are not written to: the type is older than const. */
	r = spawn(&p->pid, sock, says, (char *const *)argv);
	if (r)
		return err_errno(err, -r, "%s (package passt)", PASST);
	/* A confined quire signals nobody by number. */
	p->pid_fd = pidfd_open(p->pid, 0);
	return p->pid_fd < 0 ? err_errno(err, errno, "pidfd of passt") : 0;
}

/*
 * A number above those that the child's descriptors get, in place of *fd: which
 * this process may have had closed when it was started.
 */
static int move_up(int *fd)
{
	int moved = fcntl(*fd, F_DUPFD_CLOEXEC, CHILD_SOCKET + 1);

	if (moved < 0)
		return -errno;
	close(*fd);
	*fd = moved;
	return 0;
}

/* The child's end of a pipe for p->says, and both ends of a socket pair. */
static int make_ends(struct passt *p, int *ret_says, int ret_pair[2])
{
	int ends[2], r;

	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK))
		return -errno;
	p->says = ends[0];
	*ret_says = ends[1];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ret_pair))
		return -errno;
	r = move_up(ret_says);
	return r ? r : move_up(&ret_pair[1]);
}

static int passt_open(struct net_backend **ret,
		      const struct net_backend_config *cfg, struct err *err)
{
	struct passt *p = calloc(1, sizeof(*p));
	const struct net_stream_hooks hooks = {
		.ended = passt_ended,
		.closed = passt_closed,
		.ctx = p,
	};
	_cleanup_close_ int says = -1;
	int pair[2] = { -1, -1 }, r;

	if (!p)
		return err_set(err, ENOMEM, "out of memory");
	if (!thread_may_exec()) {
		free(p);
		return err_set(err, EPERM,
			       "quire confines itself and starts no programs "
			       "any more: start passt --socket PATH and give "
			       "mode=socket,socket=PATH");
	}
	p->says = p->pid_fd = -1;
	r = make_ends(p, &says, pair);
	if (r)
		err_errno(err, -r, "a socket for passt");
	else
		r = start(p, cfg, pair[1], says, err);
	close_fd(&pair[1]);
	if (!r)
		r = net_stream_new(ret, take_fd(&pair[0]), NULL, &hooks, err);
	if (r) {
		close_fd(&pair[0]);
		passt_closed(p);
		return r;
	}
	snprintf((*ret)->label, sizeof((*ret)->label), "passt");
	return 0;
}

const struct net_backend_ops net_passt_ops = {
	.name = "passt",
	.open = passt_open,
};
