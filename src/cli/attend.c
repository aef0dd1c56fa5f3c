/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/attend.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/thread.h"

void attend_init(struct attend *a)
{
	a->listener = (struct unix_listener)UNIX_LISTENER_INIT;
	a->conn_fd = a->signal_fd = a->done_fd = -1;
}

int attend_open(struct attend *a, struct err *err)
{
	char path[sizeof(a->dir) + 10];
	int r;

	snprintf(a->dir, sizeof(a->dir), "/tmp/quire-%s-XXXXXX",
		 a->command->name);
	if (!mkdtemp(a->dir)) {
		a->dir[0] = '\0';
		return err_errno(err, errno, "a directory in /tmp");
	}
	snprintf(path, sizeof(path), "%s/%s", a->dir, a->field);
	r = unix_listener_open_private(&a->listener, path, 1, err);
	if (r)
		err_prefix(err, "%s", path);
	else if (json_object_set_new(a->body, a->field, json_string(path)))
		r = err_set(err, ENOMEM, "out of memory");
	return r;
}

static void *asker_main(void *arg)
{
	struct attend *a = arg;
	struct api_route route;
	const struct cli_question q = {
		.command = a->command,
		.vm = a->vm,
		.route = &route,
		.body = a->body,
	};

	a->status = api_route_by_verb(a->verb, &route)
			    ? CLI_FAILURE
			    : cli_ask(&q, &a->answer);
	io_eventfd_signal(a->done_fd);
	return NULL;
}

static int start_asking(struct attend *a, struct err *err)
{
	sigset_t signals;
	int r;

	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	a->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);
	a->done_fd = eventfd(0, EFD_CLOEXEC);
	if (a->signal_fd < 0 || a->done_fd < 0)
		return err_errno(err, errno, "starting");
	r = thread_start(&a->asker, &thread_class_tool, "ask", asker_main, a);
	return r ? err_errno(err, -r, "starting a thread") : 0;
}

/* The first is taken here; a second one ends the process as usual. */
static void take_signal(struct attend *a)
{
	struct signalfd_siginfo info;
	sigset_t none;

	if (io_read_full(a->signal_fd, &info, sizeof(info)))
		return;
	a->signal = (int)info.ssi_signo;
	close_fd(&a->conn_fd);
	unix_listener_close(&a->listener);
	close_fd(&a->signal_fd);
	sigemptyset(&none);
	pthread_sigmask(SIG_SETMASK, &none, NULL);
}

static void take_connection(struct attend *a)
{
	int fd = accept4(a->listener.fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0)
		return;
	/* One is all that comes. */
	unix_listener_close(&a->listener);
	a->conn_fd = fd;
	if (a->connected && a->connected(a->ctx, fd))
		close_fd(&a->conn_fd);
}

static void serve(struct attend *a)
{
	struct pollfd fds[4] = {
		{ .fd = a->done_fd, .events = POLLIN },
		{ .fd = a->signal_fd, .events = POLLIN },
		{ .fd = a->listener.fd, .events = POLLIN },
		{ .fd = a->conn_fd, .events = POLLIN },
	};

	while (poll(fds, ARRAY_SIZE(fds), -1) < 0 && errno == EINTR)
		;
	if (fds[1].revents)
		take_signal(a);
	else if (fds[2].revents)
		take_connection(a);
	else if (fds[3].revents && a->readable(a->ctx, a->conn_fd))
		close_fd(&a->conn_fd);
}

static bool is_done(const struct attend *a)
{
	struct pollfd fd = { .fd = a->done_fd, .events = POLLIN };

	return poll(&fd, 1, 0) > 0;
}

int attend_run(struct attend *a, struct err *err)
{
	int r = start_asking(a, err);

	if (r)
		return r;
	while (!is_done(a))
		serve(a);
	pthread_join(a->asker, NULL);
	return 0;
}

void attend_end(struct attend *a)
{
	close_fd(&a->conn_fd);
	close_fd(&a->signal_fd);
	close_fd(&a->done_fd);
	unix_listener_close(&a->listener);
	if (a->dir[0])
		(void)rmdir(a->dir);
	a->dir[0] = '\0';
	free(take_ptr(a->answer.text));
}
