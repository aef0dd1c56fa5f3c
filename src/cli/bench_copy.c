/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench_copy.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/thread.h"

struct copy;

/* One end of a connection, and its thread. */
struct end {
	struct copy *copy;
	unsigned int stream;
	int fd;
	bool sends;
	pthread_t thread;
	bool started;
	int error;
};

struct copy {
	unsigned int streams;
	uint64_t bytes;
	char *from, *to;
	struct end ends[2 * BENCH_COPY_MAX_STREAMS];
};

/* ---- connections ---- */

static int listen_tcp(struct sockaddr_in *ret)
{
	socklen_t len = sizeof(*ret);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	*ret = (struct sockaddr_in){
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	if (fd < 0)
		return -errno;
	if (bind(fd, (struct sockaddr *)ret, len) || listen(fd, 1) ||
	    getsockname(fd, (struct sockaddr *)ret, &len)) {
		int r = -errno;

		close(fd);
		return r;
	}
	return fd;
}

int bench_free_port(unsigned int *ret, struct err *err)
{
	struct sockaddr_in at;
	int fd = listen_tcp(&at);

	if (fd < 0)
		return err_errno(err, -fd, "a port of 127.0.0.1");
	close(fd);
	*ret = ntohs(at.sin_port);
	return 0;
}

static int connect_tcp(int ret[2])
{
	struct sockaddr_in at;
	_cleanup_close_ int fd = listen_tcp(&at);

	if (fd < 0)
		return fd;
	ret[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (ret[0] < 0 || connect(ret[0], (struct sockaddr *)&at, sizeof(at)))
		return -errno;
	ret[1] = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
	return ret[1] < 0 ? -errno : 0;
}

static int connect_all(struct copy *c, enum migrate_uri_kind kind)
{
	int r = 0;

	for (unsigned int i = 0; !r && i < c->streams; i++) {
		int pair[2] = { -1, -1 };

		if (kind == MIGRATE_TCP)
			r = connect_tcp(pair);
		else if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0,
				    pair))
			r = -errno;
		for (unsigned int k = 0; k < 2; k++)
			c->ends[2 * i + k] = (struct end){
				.copy = c,
				.stream = i,
				.fd = pair[k],
				.sends = !k,
			};
	}
	return r;
}

/* ---- threads ---- */

static int receive(int fd, char *to, size_t len)
{
	while (len) {
		ssize_t n = recv(fd, to, len, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EPIPE;
		to += n;
		len -= (size_t)n;
	}
	return 0;
}

static int transmit(int fd, const char *from, size_t len)
{
	while (len) {
		ssize_t n = send(fd, from, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		from += n;
		len -= (size_t)n;
	}
	return 0;
}

static void *end_main(void *arg)
{
	struct end *e = arg;
	const struct copy *c = e->copy;
	uint64_t step = c->streams * PAGE_2M;

	for (uint64_t at = e->stream * PAGE_2M; !e->error && at < c->bytes;
	     at += step)
		e->error = e->sends ? transmit(e->fd, c->from + at, PAGE_2M)
				    : receive(e->fd, c->to + at, PAGE_2M);
	/* The other end does not wait for what will not come. */
	if (e->error)
		(void)shutdown(e->fd, SHUT_RDWR);
	return NULL;
}

static int run(struct copy *c)
{
	unsigned int num = 2 * c->streams;
	int r = 0;

	for (unsigned int i = 0; !r && i < num; i++) {
		r = thread_start(&c->ends[i].thread, &thread_class_tool, "copy",
				 end_main, &c->ends[i]);
		c->ends[i].started = !r;
		if (r)
			(void)shutdown(c->ends[i].fd, SHUT_RDWR);
	}
	for (unsigned int i = 0; i < num; i++) {
		if (r && !c->ends[i].started && c->ends[i].fd >= 0)
			(void)shutdown(c->ends[i].fd, SHUT_RDWR);
	}
	for (unsigned int i = 0; i < num; i++) {
		if (!c->ends[i].started)
			continue;
		pthread_join(c->ends[i].thread, NULL);
		if (!r)
			r = c->ends[i].error;
	}
	return r;
}

/* ---- memory ---- */

/* Aligned as a guest's is, with the same advice. */
static char *map(uint64_t bytes, enum ram_page page)
{
	char *at = mmap(NULL, bytes + PAGE_2M, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *start;

	if (at == MAP_FAILED)
		return NULL;
	start = (char *)align_up((uintptr_t)at, PAGE_2M);
	(void)madvise(start, bytes,
		      page == RAM_PAGE_4K ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
	if (start > at)
		(void)munmap(at, (size_t)(start - at));
	(void)munmap(start + bytes, PAGE_2M - (size_t)(start - at));
	return start;
}

static int copy_mapped(struct copy *c, enum migrate_uri_kind kind,
		       double *ret_s)
{
	uint64_t began;
	int r;

	for (unsigned int i = 0; i < ARRAY_SIZE(c->ends); i++)
		c->ends[i].fd = -1;
	memset(c->from, 0x5a, c->bytes);
	r = connect_all(c, kind);
	began = clock_now_ns();
	if (!r)
		r = run(c);
	*ret_s = clock_ns_to_s(clock_now_ns() - began);
	for (unsigned int i = 0; i < ARRAY_SIZE(c->ends); i++)
		close_fd(&c->ends[i].fd);
	if (!r && memcmp(c->from, c->to, c->bytes) != 0)
		r = -EIO;
	return r;
}

int bench_copy(enum migrate_uri_kind kind, unsigned int streams, uint64_t bytes,
	       enum ram_page page, double *ret_s, struct err *err)
{
	struct copy c = {
		.streams = streams,
		.bytes = bytes,
		.from = map(bytes, page),
		.to = map(bytes, page),
	};
	int r = -ENOMEM;

	BUG_ON(streams > BENCH_COPY_MAX_STREAMS);
	if (c.from && c.to)
		r = copy_mapped(&c, kind, ret_s);
	if (c.from)
		(void)munmap(c.from, bytes);
	if (c.to)
		(void)munmap(c.to, bytes);
	return r ? err_errno(err, -r, "copying memory over sockets") : 0;
}
