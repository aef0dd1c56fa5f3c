/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/uri.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/size.h"

#define BACKLOG 64
/* Another host that says nothing at all for 30 s is gone. */
#define KEEPALIVE_S	 5
#define KEEPALIVE_PROBES 5

/* What is behind "tcp:" or "tcp://"; NULL: it is not that. */
static const char *behind(const char *text, const char *scheme)
{
	size_t len = strlen(scheme);

	if (strncmp(text, scheme, len) != 0)
		return NULL;
	text += len;
	return text[0] == '/' && text[1] == '/' ? text + 2 : text;
}

static int parse_tcp(struct migrate_uri *ret, const char *text, const char *at,
		     struct err *err)
{
	const char *colon = strrchr(at, ':');
	size_t len = colon ? (size_t)(colon - at) : 0;
	uint64_t port;

	/* [::1]:4444 */
	if (len >= 2 && at[0] == '[' && at[len - 1] == ']') {
		at++;
		len -= 2;
	}
	if (!len || len >= sizeof(ret->host) ||
	    size_parse_u64(colon + 1, &port) || !port || port > 65535)
		return err_set(err, EINVAL, "'%.80s': not tcp:HOST:PORT", text);
	snprintf(ret->host, sizeof(ret->host), "%.*s", (int)len, at);
	snprintf(ret->port, sizeof(ret->port), "%u", (unsigned int)port);
	return 0;
}

int migrate_uri_parse(struct migrate_uri *ret, const char *text,
		      struct err *err)
{
	const char *tcp = behind(text, "tcp:"), *at;

	memset(ret, 0, sizeof(*ret));
	if (tcp) {
		ret->kind = MIGRATE_TCP;
		return parse_tcp(ret, text, tcp, err);
	}
	ret->kind = MIGRATE_UNIX;
	at = behind(text, "unix:");
	/* unix:///run/x: the path keeps its slash. */
	if (at && at[0] && strlen(at) <= UNIX_SOCKET_PATH_MAX) {
		snprintf(ret->host, sizeof(ret->host), "%s", at);
		return 0;
	}
	return err_set(err, EINVAL,
		       "'%.80s': not tcp:HOST:PORT, nor unix:PATH of at most "
		       "%zu bytes",
		       text, UNIX_SOCKET_PATH_MAX);
}

static int look_up(const struct migrate_uri *uri, bool passive,
		   struct addrinfo **ret, struct err *err)
{
	const struct addrinfo hints = {
		.ai_socktype = SOCK_STREAM,
		.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0),
	};
	int r = getaddrinfo(uri->host, uri->port, &hints, ret);

	return r ? err_set(err, EHOSTUNREACH, "%s: %s", uri->host,
			   gai_strerror(r))
		 : 0;
}

/*
 * Messages are whole, and pages large: nothing is won by waiting for more. And
 * memory that follows its VM may have nothing to say for long: that the other
 * host is gone is then seen by the kernel alone. What is accepted inherits it.
 *
 * There is no TCP_USER_TIMEOUT: with that a kernel also ends a connection whose
 * other end is there and reads nothing for so long, as a destination does that
 * populates its memory, or waits for a disk. Who is behind a connection on
 * which much is under way is seen on that of control, which is idle.
 */
static void set_options(int fd)
{
	static const struct {
		int level, name, value;
	} options[] = {
		{ IPPROTO_TCP, TCP_NODELAY, 1 },
		{ SOL_SOCKET, SO_KEEPALIVE, 1 },
		{ IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_S },
		{ IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_S },
		{ IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES },
	};

	for (size_t i = 0; i < ARRAY_SIZE(options); i++)
		(void)setsockopt(fd, options[i].level, options[i].name,
				 &options[i].value, sizeof(options[i].value));
}

static int try_connect(const struct addrinfo *ai, int *ret_fd)
{
	_cleanup_close_ int fd = socket(ai->ai_family,
					SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, ai->ai_addr, ai->ai_addrlen))
		return -errno;
	set_options(fd);
	*ret_fd = take_fd(&fd);
	return 0;
}

int migrate_uri_connect(const struct migrate_uri *uri, int *ret_fd,
			struct err *err)
{
	struct addrinfo *list = NULL;
	int r;

	if (uri->kind == MIGRATE_UNIX) {
		r = unix_socket_connect(uri->host, 0, ret_fd);
		return r ? err_errno(err, -r, "connecting to %s", uri->host)
			 : 0;
	}
	r = look_up(uri, false, &list, err);
	if (r)
		return r;
	r = -EADDRNOTAVAIL;
	for (struct addrinfo *ai = list; ai && r; ai = ai->ai_next)
		r = try_connect(ai, ret_fd);
	freeaddrinfo(list);
	return r ? err_errno(err, -r, "connecting to %s, port %s", uri->host,
			     uri->port)
		 : 0;
}

static int try_listen(const struct addrinfo *ai, int *ret_fd)
{
	_cleanup_close_ int fd = socket(
		ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int one = 1;

	if (fd < 0)
		return -errno;
	/* A destination before this one may have ended just now. */
	(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	set_options(fd);
	if (bind(fd, ai->ai_addr, ai->ai_addrlen) || listen(fd, BACKLOG))
		return -errno;
	*ret_fd = take_fd(&fd);
	return 0;
}

int migrate_uri_listen(const struct migrate_uri *uri, struct unix_listener *ret,
		       struct err *err)
{
	struct addrinfo *list = NULL;
	int r;

	*ret = (struct unix_listener)UNIX_LISTENER_INIT;
	if (uri->kind == MIGRATE_UNIX) {
		r = unix_listener_open_private(ret, uri->host, BACKLOG, err);
		if (r)
			err_prefix(err, "%s", uri->host);
		return r;
	}
	r = look_up(uri, true, &list, err);
	if (r)
		return r;
	r = -EADDRNOTAVAIL;
	for (struct addrinfo *ai = list; ai && r; ai = ai->ai_next)
		r = try_listen(ai, &ret->fd);
	freeaddrinfo(list);
	return r ? err_errno(err, -r, "listening on %s, port %s", uri->host,
			     uri->port)
		 : 0;
}
