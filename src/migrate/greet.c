/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. A table of guests, in the order in which they came. What
 * a guest sends moves it on through its states as far as it has come; then
 * it is given out, refused, or its time is up. Who is refused is told, and what
 * it still sends is read and forgotten for a moment: closing at once would
 * reset the connection, and take with it what it was told.
 *
 * A full table lets go of the guest that waits longest.
 */
#include "migrate/greet.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "migrate/link.h"

#define PATIENCE_NS (10 * NSEC_PER_SEC) /* with a guest, until its preface */
#define LINGER_NS   (2 * NSEC_PER_SEC)
#define SLICE_MS    100
#define MAX_GUESTS  (2 * WIRE_MAX_STREAMS)

enum guest_state {
	GUEST_NEW,     /* its first byte says plain or TLS */
	GUEST_TLS,     /* in the handshake */
	GUEST_PREFACE, /* which has come in part */
	GUEST_READY,
	GUEST_REFUSED, /* and told so */
};

struct guest {
	int fd;
	struct tls *tls;
	enum guest_state state;
	uint64_t until_ns;
	uint8_t bytes[WIRE_PREFACE_BYTES];
	size_t filled;
	struct wire_preface preface;
};

struct greeter {
	int listen_fd;
	const struct tls_credentials *credentials;
	struct guest guests[MAX_GUESTS];
	unsigned int num;
};

int greeter_new(struct greeter **ret, int listen_fd,
		const struct tls_credentials *tls, struct err *err)
{
	struct greeter *g = calloc(1, sizeof(*g));

	if (!g)
		return err_set(err, ENOMEM, "out of memory");
	g->listen_fd = listen_fd;
	g->credentials = tls;
	*ret = g;
	return 0;
}

/* The others keep their order. */
static void take_out(struct greeter *g, unsigned int i)
{
	g->num--;
	memmove(&g->guests[i], &g->guests[i + 1],
		(g->num - i) * sizeof(g->guests[0]));
}

static void let_go(struct greeter *g, unsigned int i)
{
	tls_free(g->guests[i].tls);
	close_fd(&g->guests[i].fd);
	take_out(g, i);
}

void greeter_free(struct greeter *g)
{
	if (!g)
		return;
	while (g->num)
		let_go(g, g->num - 1);
	free(g);
}

/* ---- one guest ---- */

static void say(const char *why)
{
	log_ratelimited(LOG_LEVEL_WARN,
			"migration: a connection is not taken: %s", why);
}

static void refuse(struct guest *u, const char *why)
{
	say(why);
	u->state = GUEST_REFUSED;
	u->until_ns = clock_now_ns() + LINGER_NS;
	(void)shutdown(u->fd, SHUT_WR);
}

/* Of the plain socket, or through TLS; 0 is its end. */
static ssize_t read_some(struct guest *u, void *buf, size_t size)
{
	ssize_t n;

	if (u->tls) {
		n = tls_recv(u->tls, buf, size);
		return n == -EPIPE ? 0 : n;
	}
	n = recv(u->fd, buf, size, MSG_DONTWAIT);
	return n < 0 ? -errno : n;
}

/* 0: moved on. -EAGAIN: waits. Otherwise it is to be let go. */
static int look_at_first(struct greeter *g, struct guest *u)
{
	struct err err = ERR_INIT;
	uint8_t byte;
	ssize_t n = recv(u->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

	if (n < 0)
		return -errno;
	if (!n)
		return -EPIPE;
	if (byte != TLS_FIRST_BYTE) {
		u->state = GUEST_PREFACE;
		return 0;
	}
	if (!g->credentials) {
		tls_refuse_plainly(u->fd);
		refuse(u, "it wants TLS, and there is no --tls here");
		return 0;
	}
	u->state = GUEST_TLS;
	n = tls_new(&u->tls, g->credentials, u->fd, NULL, &err);
	if (n)
		say(err.text);
	return (int)n;
}

static int shake_hands(struct guest *u)
{
	struct err err = ERR_INIT;
	int r = tls_handshake(u->tls, &err);

	if (r == -EAGAIN)
		return r;
	if (r)
		refuse(u, err.text);
	else
		u->state = GUEST_PREFACE;
	return 0;
}

/* Nothing of a plain guest is taken where TLS is wanted, but it is told. */
static void refuse_plain(struct guest *u)
{
	struct link link = { .fd = u->fd };
	struct err words = ERR_INIT;

	(void)err_set(&words, EKEYREJECTED,
		      "it takes connections with TLS only; give --tls");
	if (!u->preface.stream)
		link_put_failure(&link, WIRE_FAILED, &words);
	refuse(u, "it has no TLS, and --tls is given here");
}

/* FAILED is the same in all versions, for the source to know why. */
static void refuse_version(struct guest *u, const struct err *why)
{
	struct link link = { .fd = u->fd, .tls = u->tls };
	struct err words = *why;

	err_append(&words, "let the same version run on both sides");
	link_put_failure(&link, WIRE_FAILED, &words);
	refuse(u, why->text);
}

static int read_preface(struct greeter *g, struct guest *u)
{
	struct err err = ERR_INIT;
	int r;
	ssize_t n = read_some(u, u->bytes + u->filled,
			      sizeof(u->bytes) - u->filled);

	if (n <= 0)
		return n ? (int)n : -EPIPE;
	u->filled += (size_t)n;
	if (u->filled < sizeof(u->bytes))
		return 0;
	r = wire_parse_preface(u->bytes, &u->preface, &err);
	if (r == -ENOTSUP)
		refuse_version(u, &err);
	else if (r)
		refuse(u, err.text);
	else if (g->credentials && !u->tls)
		refuse_plain(u);
	else
		u->state = GUEST_READY;
	return 0;
}

static int forget_rest(struct guest *u)
{
	uint8_t buf[4096];
	ssize_t n = recv(u->fd, buf, sizeof(buf), MSG_DONTWAIT);

	if (n < 0)
		return -errno;
	return n ? 0 : -EPIPE;
}

static int step(struct greeter *g, struct guest *u)
{
	switch (u->state) {
	case GUEST_NEW:
		return look_at_first(g, u);
	case GUEST_TLS:
		return shake_hands(u);
	case GUEST_PREFACE:
		return read_preface(g, u);
	case GUEST_REFUSED:
		return forget_rest(u);
	case GUEST_READY:
		break;
	}
	return -EAGAIN;
}

/* ---- all of them ---- */

static int take_guest(struct greeter *g)
{
	int fd = accept4(g->listen_fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0 &&
	    (errno == EINTR || errno == ECONNABORTED || errno == EAGAIN))
		return 0;
	if (fd < 0)
		return -errno;
	if (g->num == MAX_GUESTS) {
		say("there are too many");
		let_go(g, 0);
	}
	g->guests[g->num++] = (struct guest){
		.fd = fd,
		.until_ns = clock_now_ns() + PATIENCE_NS,
	};
	return 0;
}

static short wanted_events(const struct guest *u)
{
	if (u->state == GUEST_READY)
		return POLLRDHUP;
	return u->state == GUEST_TLS ? tls_wants(u->tls) : POLLIN;
}

static const char *gone_text(const struct guest *u, int r)
{
	if (r == -ETIMEDOUT)
		return u->state == GUEST_READY ? "no migration of its id began"
					       : "it does not say what it is";
	return "it ended before it said what it is";
}

/* As far as it goes; false: it is gone. Bounded: each step reads something, or
 * is a new state. */
static bool serve(struct greeter *g, unsigned int i, short events)
{
	struct guest *u = &g->guests[i];
	int r = 0;

	if (u->state == GUEST_READY && events)
		r = -EPIPE; /* it has hung up meanwhile */
	for (unsigned int n = 0; !r && n < 64 && u->state != GUEST_READY; n++)
		r = step(g, u);
	if ((!r || r == -EAGAIN || r == -EINTR) && clock_now_ns() > u->until_ns)
		r = -ETIMEDOUT;
	if (!r || r == -EAGAIN || r == -EINTR)
		return true;
	if (u->state != GUEST_REFUSED)
		say(gone_text(u, r));
	let_go(g, i);
	return false;
}

/* The one that came first. */
static bool give_out(struct greeter *g, bool wants_control,
		     struct greeting *ret)
{
	for (unsigned int i = 0; i < g->num; i++) {
		struct guest *u = &g->guests[i];

		if (u->state != GUEST_READY ||
		    (wants_control && u->preface.stream))
			continue;
		*ret = (struct greeting){
			.fd = u->fd,
			.tls = u->tls,
			.preface = u->preface,
		};
		take_out(g, i);
		return true;
	}
	return false;
}

int greeter_next(struct greeter *g, bool wants_control, struct greeting *ret)
{
	struct pollfd fds[MAX_GUESTS + 1];
	unsigned int num = g->num;
	int r = 0;

	if (give_out(g, wants_control, ret))
		return 1;
	for (unsigned int i = 0; i < num; i++)
		fds[i] = (struct pollfd){
			.fd = g->guests[i].fd,
			.events = wanted_events(&g->guests[i]),
		};
	fds[num] = (struct pollfd){ .fd = g->listen_fd, .events = POLLIN };
	if (poll(fds, num + 1, SLICE_MS) < 0)
		return errno == EINTR ? 0 : -errno;
	/* From behind, for some go on the way. */
	for (unsigned int i = num; i-- > 0;)
		(void)serve(g, i, fds[i].revents);
	if (fds[num].revents)
		r = take_guest(g);
	if (r)
		return r;
	return give_out(g, wants_control, ret);
}
