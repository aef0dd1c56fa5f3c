/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. libmicrohttpd has no thread of its own here: the HTTP
 * thread polls MHD's epoll descriptor beside its own (work done by a
 * lane, events, listeners that hang up) and calls MHD_run(). So everything of
 * MHD but starting and stopping happens on one thread, and nothing on that
 * thread waits for a client or for the VM.
 *
 * A request that needs the VM goes to a lane's thread, which calls vmm_call()
 * or works by itself, and comes back with the answer; meanwhile its connection
 * is suspended. So is
 * a listener without events. MHD does not look at suspended connections, hence
 * the polling for those that hang up.
 *
 * Time: each connection has a deadline for what the client has to do next, read
 * or write, and is shut down when it passes; MHD then cleans up. A client that
 * sends a byte now and then does not get more time (MHD's own time-out would
 * give it that).
 */
#include "api/server.h"

#include <errno.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/server_priv.h"
#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/thread.h"
#include "kvm/uapi.h"
#include "mem/pagemap_scan.h"
#include "migrate/follow.h"
#include "migrate/land.h"
#include "migrate/push.h"
#include "migrate/receive.h"
#include "migrate/sender.h"
#include "snapshot/reader.h"
#include "snapshot/writer.h"
#include "vm/vmm.h"

#define MS_PER_SEC 1000
#define BACKLOG	   32

/* ---- connections ---- */

void api_conn_set_deadline(struct api_conn *conn, unsigned int seconds)
{
	conn->deadline_ns = seconds ? clock_now_ns() + seconds * NSEC_PER_SEC
				    : 0;
}

static void add_conn(struct api_server *s, struct MHD_Connection *mhd,
		     void **socket_context)
{
	struct api_conn *conn = calloc(1, sizeof(*conn));

	*socket_context = conn;
	if (!conn)
		return; /* its first request is hung up on */
	conn->mhd = mhd;
	conn->fd = MHD_get_connection_info(mhd,
					   MHD_CONNECTION_INFO_CONNECTION_FD)
			   ->connect_fd;
	conn->next = s->conns;
	conn->at = &s->conns;
	if (conn->next)
		conn->next->at = &conn->next;
	s->conns = conn;
	api_conn_set_deadline(conn, API_READ_SECONDS);
}

static void remove_conn(struct api_conn *conn)
{
	if (!conn)
		return;
	*conn->at = conn->next;
	if (conn->next)
		conn->next->at = conn->at;
	if (conn->stream)
		conn->stream->conn = NULL;
	free(conn);
}

static void on_connection(void *ctx, struct MHD_Connection *mhd,
			  void **socket_context,
			  enum MHD_ConnectionNotificationCode code)
{
	struct api_server *s = ctx;

	if (code == MHD_CONNECTION_NOTIFY_STARTED)
		add_conn(s, mhd, socket_context);
	else {
		remove_conn(*socket_context);
		s->made_room = true;
	}
}

void api_server_suspend(struct api_conn *conn)
{
	conn->suspended = true;
	MHD_suspend_connection(conn->mhd);
}

static void resume(struct api_conn *conn)
{
	if (!conn->suspended)
		return;
	conn->suspended = false;
	MHD_resume_connection(conn->mhd);
}

/* Listeners that have something to read, or no time left to do so. */
static void serve_listener(struct api_conn *conn)
{
	switch (api_listener_state(conn->stream->listener)) {
	case API_LISTENER_LATE:
		if (!conn->deadline_ns)
			api_conn_set_deadline(conn, API_WRITE_SECONDS);
		resume(conn);
		break;
	case API_LISTENER_READY:
		resume(conn);
		break;
	case API_LISTENER_EMPTY:
		break;
	}
}

static void cut_off_late(struct api_conn *conn, uint64_t now)
{
	if (!conn->deadline_ns || now < conn->deadline_ns)
		return;
	/* MHD sees an end of file, or an error, and closes it. */
	shutdown(conn->fd, SHUT_RDWR);
	conn->gone = true;
	conn->deadline_ns = 0;
	if (conn->stream)
		resume(conn);
}

static void serve_conns(struct api_server *s)
{
	uint64_t now = clock_now_ns();

	for (struct api_conn *c = s->conns; c; c = c->next) {
		if (c->stream)
			serve_listener(c);
		cut_off_late(c, now);
	}
}

/* ---- verbs ---- */

static void put_done(struct api_server *s, struct api_request *q)
{
	pthread_mutex_lock(&s->lock);
	q->next = s->done;
	s->done = q;
	pthread_mutex_unlock(&s->lock);
	io_eventfd_signal(s->wake_fd);
}

void api_server_submit(struct api_server *s, struct api_request *q)
{
	struct api_lane *lane =
		&s->lanes[q->route.kind == API_WORK ? API_LANE_WORK
						    : API_LANE_VERBS];
	bool closing;

	pthread_mutex_lock(&s->lock);
	closing = s->closing;
	if (!closing) {
		q->next = NULL;
		*lane->waiting_end = q;
		lane->waiting_end = &q->next;
		pthread_cond_signal(&lane->work);
	}
	pthread_mutex_unlock(&s->lock);
	/* The lane's thread may be gone. */
	if (closing) {
		api_request_carry_out(q, true);
		put_done(s, q);
	}
}

/* NULL: closing, and nothing is left. */
static struct api_request *next_waiting(struct api_lane *lane, bool *ret_refuse)
{
	struct api_server *s = lane->server;
	struct api_request *q;

	pthread_mutex_lock(&s->lock);
	while (!lane->waiting && !s->closing)
		pthread_cond_wait(&lane->work, &s->lock);
	q = lane->waiting;
	if (q) {
		lane->waiting = q->next;
		if (!lane->waiting)
			lane->waiting_end = &lane->waiting;
	}
	*ret_refuse = s->closing;
	pthread_mutex_unlock(&s->lock);
	return q;
}

static const struct thread_class verb_class = {
	.name = "api-verb",
	.what = "hands the API's verbs to the control thread",
};

/* src/snapshot/; memory is read and written by threads of its own. */
static const struct thread_call work_calls[] = {
	/* Its directory, made, looked through, put in its place. */
	RARE("vm.snapshot", openat),
	RARE("vm.snapshot", close),
	RARE("vm.snapshot", newfstatat),
	RARE("vm.snapshot", fstat),
	RARE("vm.snapshot", faccessat),
	RARE("vm.snapshot", faccessat2),
	RARE("vm.snapshot", getdents64),
	RARE_FCNTL("vm.snapshot", F_GETFL),
	RARE_FCNTL("vm.snapshot", F_SETFD),
	RARE("vm.snapshot", getrandom),
	RARE("vm.snapshot", mkdirat),
	RARE("vm.snapshot", flock),
	RARE("vm.snapshot", fsync),
	RARE("vm.snapshot", unlinkat),
	RARE("vm.snapshot", renameat2),
	RARE("vm.snapshot with parent_url", readlink),
	RARE("vm.snapshot with live", eventfd2),
	RARE_IOCTL("vm.snapshot with live", UFFDIO_WRITEPROTECT),
	RARE_IOCTL("vm.snapshot with live", PAGEMAP_SCAN_IOCTL),
	RARE_IOCTL("vm.snapshot with live", UFFDIO_UNREGISTER),
	RARE_IOCTL("vm.snapshot with live", UFFDIO_WAKE),
	/* Another process makes the files. */
	RARE_ARG("vm.snapshot", socket, 0, AF_UNIX),
	RARE("vm.snapshot", connect),
	RARE("vm.snapshot", poll),
	RARE("vm.snapshot", sendto),
	RARE("vm.snapshot", recvmsg),
	/* How many threads, and what is in the files. */
	RARE("vm.snapshot", sched_getaffinity),
	RARE("vm.snapshot", ftruncate),
	RARE("vm.snapshot", lseek),
	RARE_IOCTL("vm.snapshot", FICLONE),
	RARE("vm.snapshot", copy_file_range),
	RARE("vm.snapshot", pread64),
	RARE("vm.snapshot", pwrite64),
	/* Guest memory, mapped before the machine is built; a disk undone. */
	RARE("vm.restore", access),
	RARE("vm.restore, --memory shared=on", memfd_create),
	RARE_FCNTL("vm.restore, --memory shared=on", F_ADD_SEALS),
	RARE("vm.restore, --memory numa", mbind),
	RARE("vm.restore, --memory numa", get_mempolicy),
	RARE("vm.restore that fails", unlink),
	/* src/migrate/: what the guest wrote, and the control connection. */
	RARE_IOCTL("vm.send-migration", KVM_GET_DIRTY_LOG),
	RARE_IOCTL("vm.send-migration", KVM_CLEAR_DIRTY_LOG),
	RARE_IOCTL("vm.send-migration", KVM_RESET_DIRTY_RINGS),
	RARE_FCNTL("vm.send-migration with throttle", F_DUPFD_CLOEXEC),
	RARE("vm.send-migration", sendmsg),
	RARE("vm.send-migration", recvfrom),
	RARE("vm.send-migration", getsockopt),
	RARE("vm.receive-migration", bind),
	RARE("vm.receive-migration", fchmod),
	RARE("vm.receive-migration", listen),
	RARE("vm.receive-migration", accept4),
	RARE("vm.receive-migration", shutdown),
	RARE("vm.receive-migration, --memory shared=on", fallocate),
};

static const struct thread_class work_class = {
	.name = "api-work",
	.what = "carries out what takes long, as snapshots",
	THREAD_CALLS(work_calls),
};

static void *lane_main(void *arg)
{
	struct api_lane *lane = arg;
	struct api_request *q;
	bool refuse;

	while ((q = next_waiting(lane, &refuse))) {
		api_request_carry_out(q, refuse);
		put_done(lane->server, q);
	}
	return NULL;
}

static void take_done(struct api_server *s)
{
	struct api_request *q, *next;

	pthread_mutex_lock(&s->lock);
	q = s->done;
	s->done = NULL;
	pthread_mutex_unlock(&s->lock);
	for (; q; q = next) {
		next = q->next;
		resume(q->conn);
	}
}

/* ---- the HTTP thread ---- */

struct poll_set {
	struct pollfd fds[2 + API_MAX_LISTENERS];
	struct api_conn *conns[2 + API_MAX_LISTENERS]; /* from 2 on */
	nfds_t num;
	int timeout_ms;
};

static void set_timeout(struct poll_set *p, uint64_t ms)
{
	if (p->timeout_ms < 0 || ms < (uint64_t)p->timeout_ms)
		p->timeout_ms = (int)ms;
}

static void prepare_poll(struct api_server *s, struct poll_set *p,
			 uint64_t end_ns)
{
	const union MHD_DaemonInfo *mhd = MHD_get_daemon_info(
		s->daemon, MHD_DAEMON_INFO_EPOLL_FD);
	uint64_t now = clock_now_ns(), soonest = end_ns;
	MHD_UNSIGNED_LONG_LONG mhd_ms;

	p->fds[0] = (struct pollfd){ .fd = s->wake_fd, .events = POLLIN };
	p->fds[1] = (struct pollfd){ .fd = mhd->epoll_fd, .events = POLLIN };
	p->num = 2;
	p->timeout_ms = -1;
	for (struct api_conn *c = s->conns; c; c = c->next) {
		/* POLLHUP and POLLERR need not be asked for. */
		if (c->stream && c->suspended && p->num < ARRAY_SIZE(p->fds)) {
			p->conns[p->num] = c;
			p->fds[p->num++] = (struct pollfd){ .fd = c->fd };
		}
		if (c->deadline_ns && (!soonest || c->deadline_ns < soonest))
			soonest = c->deadline_ns;
	}
	/* Rounded up: not to come round again before it is time. */
	if (soonest)
		set_timeout(p, soonest <= now
				       ? 0
				       : (soonest - now) / NSEC_PER_MSEC + 1);
	/* At the limit MHD stops listening; it looks again when it runs. */
	if (s->made_room)
		set_timeout(p, 0);
	s->made_room = false;
	if (MHD_get_timeout(s->daemon, &mhd_ms) == MHD_YES)
		set_timeout(p, MIN(mhd_ms, (MHD_UNSIGNED_LONG_LONG)MS_PER_SEC));
}

static void note_hang_ups(struct poll_set *p)
{
	for (nfds_t i = 2; i < p->num; i++) {
		if (!p->fds[i].revents)
			continue;
		p->conns[i]->gone = true;
		resume(p->conns[i]);
	}
}

static bool is_closing(struct api_server *s)
{
	bool closing;

	pthread_mutex_lock(&s->lock);
	closing = s->closing;
	pthread_mutex_unlock(&s->lock);
	return closing;
}

/* No more clients; those that are there get what is theirs. */
static uint64_t begin_draining(struct api_server *s)
{
	(void)MHD_quiesce_daemon(s->daemon); /* the socket stays ours */
	api_events_end(s->events);
	return clock_now_ns() + API_DRAIN_SECONDS * NSEC_PER_SEC;
}

static const struct thread_call http_calls[] = {
	CALL(poll),
	/* libmicrohttpd's: its connections. */
	CALL(epoll_wait),
	RARE("a client", epoll_ctl),
	RARE("a client", accept4),
	RARE("a client", recvfrom),
	RARE("a client", sendto),
	RARE("a client", sendmsg),
	RARE("a client", setsockopt),
	RARE("a client", shutdown),
	RARE("a client", close),
};

static const struct thread_class http_class = {
	.name = "api-http",
	.what = "serves the control API",
	THREAD_CALLS(http_calls),
};

const struct thread_class *const api_thread_classes[] = {
	&verb_class,
	&work_class,
	&http_class,
	&snapshot_thread_class,
	&snapshot_window_thread_class,
	&snapshot_verify_thread_class,
	&migrate_send_thread_class,
	&migrate_receive_thread_class,
	&migrate_land_thread_class,
	&migrate_push_thread_class,
	&migrate_follow_thread_class,
	NULL,
};

static void *http_main(void *arg)
{
	struct api_server *s = arg;
	struct poll_set *p = &(struct poll_set){ .num = 0 };
	uint64_t end_ns = 0;

	for (;;) {
		if (!end_ns && is_closing(s))
			end_ns = begin_draining(s);
		if (end_ns && (!s->num_requests || clock_now_ns() >= end_ns))
			break;
		take_done(s);
		serve_conns(s);
		prepare_poll(s, p, end_ns);
		if (poll(p->fds, p->num, p->timeout_ms) > 0) {
			if (p->fds[0].revents)
				io_eventfd_drain(s->wake_fd);
			note_hang_ups(p);
		}
		take_done(s);
		serve_conns(s);
		MHD_run(s->daemon);
	}
	/* MHD cannot be stopped over a suspended connection. */
	for (struct api_conn *c = s->conns; c; c = c->next)
		resume(c);
	return NULL;
}

/* ---- start and stop ---- */

static void on_event(void *ctx, const char *source, const char *event,
		     const json_t *properties)
{
	struct api_server *s = ctx;

	api_events_publish(s->events, source, event, properties);
	io_eventfd_signal(s->wake_fd);
}

static int start_daemon(struct api_server *s, struct err *err)
{
	s->daemon = MHD_start_daemon(
		MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME, 0, NULL, NULL,
		api_request_step, s, MHD_OPTION_LISTEN_SOCKET, s->socket.fd,
		MHD_OPTION_CONNECTION_LIMIT, API_MAX_CONNECTIONS,
		MHD_OPTION_NOTIFY_CONNECTION, on_connection, s,
		MHD_OPTION_NOTIFY_COMPLETED, api_request_end, s,
		MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
	return s->daemon ? 0
			 : err_errno(err, errno ? errno : EIO,
				     "starting the API's HTTP server");
}

static int start_threads(struct api_server *s, struct err *err)
{
	static const struct {
		const char *name;
		const struct thread_class *cls;
	} kinds[API_NUM_LANES] = {
		[API_LANE_VERBS] = { "api-verb", &verb_class },
		[API_LANE_WORK] = { "api-work", &work_class },
	};
	int r = 0;

	for (unsigned int i = 0; !r && i < API_NUM_LANES; i++) {
		r = thread_start(&s->lanes[i].thread, kinds[i].cls,
				 kinds[i].name, lane_main, &s->lanes[i]);
		s->lanes[i].has_thread = !r;
	}
	if (!r) {
		r = thread_start(&s->http_thread, &http_class, "api-http",
				 http_main, s);
		s->has_http = !r;
	}
	return r ? err_errno(err, -r, "starting the API's threads") : 0;
}

static int start(struct api_server *s, const char *path, struct err *err)
{
	int r = api_events_new(&s->events);

	if (r)
		return err_errno(err, -r, "starting the API");
	s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->wake_fd < 0)
		return err_errno(err, errno, "eventfd");
	r = unix_listener_open_private(&s->socket, path, BACKLOG, err);
	return r ? r : start_daemon(s, err);
}

int api_server_serve(struct api_server *s, struct err *err)
{
	int r = start_threads(s, err);

	if (r)
		return r;
	/* Last: there is no way to stop listening. */
	r = vmm_listen(s->vmm, on_event, s);
	return r ? err_errno(err, -r, "listening to the VM's events") : 0;
}

static void init_lane(struct api_server *s, struct api_lane *lane)
{
	lane->server = s;
	lane->waiting_end = &lane->waiting;
	pthread_cond_init(&lane->work, NULL);
}

int api_server_open(struct api_server **ret, struct vmm *vmm, const char *path,
		    struct err *err)
{
	struct api_server *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return err_set(err, ENOMEM, "out of memory");
	s->vmm = vmm;
	s->wake_fd = -1;
	s->socket = (struct unix_listener)UNIX_LISTENER_INIT;
	pthread_mutex_init(&s->lock, NULL);
	for (unsigned int i = 0; i < API_NUM_LANES; i++)
		init_lane(s, &s->lanes[i]);
	r = start(s, path, err);
	if (r)
		api_server_free(s);
	else
		*ret = s;
	return r;
}

void api_server_stop(struct api_server *s)
{
	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	s->closing = true;
	for (unsigned int i = 0; i < API_NUM_LANES; i++)
		pthread_cond_signal(&s->lanes[i].work);
	pthread_mutex_unlock(&s->lock);
	for (unsigned int i = 0; i < API_NUM_LANES; i++) {
		if (s->lanes[i].has_thread)
			pthread_join(s->lanes[i].thread, NULL);
		s->lanes[i].has_thread = false;
	}
	if (s->wake_fd >= 0)
		io_eventfd_signal(s->wake_fd);
	if (s->has_http)
		pthread_join(s->http_thread, NULL);
	s->has_http = false;
	if (s->daemon) {
		/* Or it closes our socket. Twice is fine. */
		(void)MHD_quiesce_daemon(s->daemon);
		MHD_stop_daemon(s->daemon);
	}
	s->daemon = NULL;
	unix_listener_close(&s->socket);
}

void api_server_free(struct api_server *s)
{
	if (!s)
		return;
	api_server_stop(s);
	api_events_free(s->events);
	close_fd(&s->wake_fd);
	for (unsigned int i = 0; i < API_NUM_LANES; i++)
		pthread_cond_destroy(&s->lanes[i].work);
	pthread_mutex_destroy(&s->lock);
	free(s);
}
