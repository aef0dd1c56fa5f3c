/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nettest: TCP streams whose every byte is checked, both ways.
 *
 *	nettest serve PORT
 *	nettest [OPTION...] send|recv|both HOST PORT
 *
 *	--mib N		per stream and direction (8)
 *	--seconds S	for so long instead
 *	--streams N	connections at a time in each direction (1)
 *	--plain		do not look at the bytes: for measuring
 *
 * The one who serves may be on either side. A client prints one line of JSON:
 * bytes in each direction, seconds, and whether all was right; its exit status
 * is 1 if it was not. Bytes come from a table that the stream's seed moves,
 *with a prime length, so that a page in the wrong place does not look right.
 *
 * Protocol: the client sends a struct request. For "send" it then sends until
 * it closes its half, and gets a struct receipt; for "recv" it gets data until
 * the server closes its half. All in the byte order of one machine.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tools.h"

#define MAGIC	      0x71756e74u
#define TABLE_BYTES   1048573u /* prime */
#define PIECE	      (256u * 1024)
#define MIB	      (1024ull * 1024)
#define MAX_STREAMS   64
#define CONNECT_TURNS 100 /* of 0.1 s */

struct request {
	uint32_t magic;
	uint32_t recv; /* the server is to send */
	uint32_t plain;
	uint32_t millis; /* for so long, if bytes is 0 */
	uint64_t seed;
	uint64_t bytes;
};

struct receipt {
	uint64_t bytes;
	uint64_t wrong; /* 1 + offset of the first wrong byte, 0: none */
};

struct stream {
	pthread_t thread;
	struct sockaddr_in addr;
	struct request request;
	struct receipt got;
	const char *failed; /* what, or NULL */
	int error;
};

/* Twice, so that a piece can begin anywhere. */
static unsigned char table[TABLE_BYTES + PIECE];

static void table_fill(void)
{
	uint64_t x = 88172645463325252ull;
	size_t i;

	for (i = 0; i < TABLE_BYTES; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		table[i] = (unsigned char)(x >> 24);
	}
	memcpy(table + TABLE_BYTES, table, PIECE);
}

static const unsigned char *expected(uint64_t seed, uint64_t offset)
{
	return table + (seed * 7919 + offset) % TABLE_BYTES;
}

/* Send to the limit of bytes or time, and close that half. */
static int data_send(int fd, const struct request *request)
{
	double end = tools_seconds() + request->millis / 1e3;
	uint64_t sent = 0;

	while (request->bytes ? sent < request->bytes : tools_seconds() < end) {
		size_t want = PIECE;
		ssize_t n;

		if (request->bytes && request->bytes - sent < want)
			want = (size_t)(request->bytes - sent);
		n = send(fd, expected(request->seed, sent), want, 0);
		if (n < 0)
			return -errno;
		sent += (uint64_t)n;
	}
	return shutdown(fd, SHUT_WR) ? -errno : 0;
}

/* Take until the other closes its half. */
static int data_receive(int fd, const struct request *request,
			struct receipt *ret)
{
	unsigned char *buffer = malloc(PIECE);
	ssize_t n, i;

	ret->bytes = 0;
	ret->wrong = 0;
	if (!buffer)
		return -ENOMEM;
	while ((n = recv(fd, buffer, PIECE, 0)) > 0) {
		const unsigned char *want = expected(request->seed, ret->bytes);

		if (!request->plain && !ret->wrong &&
		    memcmp(buffer, want, (size_t)n)) {
			for (i = 0; buffer[i] == want[i]; i++)
				;
			ret->wrong = ret->bytes + (uint64_t)i + 1;
		}
		ret->bytes += (uint64_t)n;
	}
	free(buffer);
	return n < 0 ? -errno : 0;
}

static bool receive_exactly(int fd, void *buffer, size_t length)
{
	return recv(fd, buffer, length, MSG_WAITALL) == (ssize_t)length;
}

/* ---- server ---- */

static void *connection_main(void *arg)
{
	int fd = (int)(intptr_t)arg;
	struct request request;
	struct receipt receipt;

	if (receive_exactly(fd, &request, sizeof(request)) &&
	    request.magic == MAGIC) {
		if (request.recv)
			data_send(fd, &request);
		else if (!data_receive(fd, &request, &receipt))
			send(fd, &receipt, sizeof(receipt), 0);
	}
	close(fd);
	return NULL;
}

static int serve(uint16_t port)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;

	if (fd < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
	    bind(fd, (struct sockaddr *)&addr, sizeof(addr)) ||
	    listen(fd, MAX_STREAMS)) {
		perror("nettest: serve");
		return 1;
	}
	puts("nettest: serving");
	fflush(stdout);
	for (;;) {
		int peer = accept(fd, NULL, NULL);
		pthread_t thread;

		if (peer < 0)
			continue;
		if (pthread_create(&thread, NULL, connection_main,
				   (void *)(intptr_t)peer))
			close(peer);
		else
			pthread_detach(thread);
	}
}

/* ---- client ---- */

/* The other side may still be coming up. */
static int connect_patiently(const struct sockaddr_in *addr)
{
	int turn;

	for (turn = 0;; turn++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0), error;

		if (fd < 0)
			return -errno;
		if (!connect(fd, (const struct sockaddr *)addr, sizeof(*addr)))
			return fd;
		error = errno;
		close(fd);
		if (turn == CONNECT_TURNS)
			return -error;
		usleep(100000);
	}
}

static const char *exchange(int fd, struct stream *s)
{
	if (send(fd, &s->request, sizeof(s->request), 0) !=
	    (ssize_t)sizeof(s->request))
		return "request";
	if (s->request.recv) {
		s->error = data_receive(fd, &s->request, &s->got);
		return s->error ? "receive" : NULL;
	}
	s->error = data_send(fd, &s->request);
	if (s->error)
		return "send";
	return receive_exactly(fd, &s->got, sizeof(s->got)) ? NULL : "receipt";
}

static void *stream_main(void *arg)
{
	struct stream *s = arg;
	int fd = connect_patiently(&s->addr);

	if (fd < 0) {
		s->failed = "connect";
		s->error = fd;
		return NULL;
	}
	s->failed = exchange(fd, s);
	close(fd);
	return NULL;
}

static bool stream_right(const struct stream *s)
{
	const char *way = s->request.recv ? "recv" : "send";

	if (s->failed) {
		fprintf(stderr, "nettest: %s: %s: %s\n", way, s->failed,
			strerror(-s->error));
		return false;
	}
	if (s->got.wrong) {
		fprintf(stderr, "nettest: %s: byte %llu is wrong\n", way,
			(unsigned long long)s->got.wrong - 1);
		return false;
	}
	if (s->request.bytes && s->got.bytes != s->request.bytes) {
		fprintf(stderr, "nettest: %s: %llu bytes of %llu\n", way,
			(unsigned long long)s->got.bytes,
			(unsigned long long)s->request.bytes);
		return false;
	}
	return s->got.bytes > 0;
}

static int client(struct stream *streams, unsigned int count)
{
	uint64_t bytes[2] = { 0, 0 };
	double began = tools_seconds(), took;
	bool right = true;
	unsigned int i;

	for (i = 0; i < count; i++)
		if (pthread_create(&streams[i].thread, NULL, stream_main,
				   &streams[i])) {
			fputs("nettest: no thread\n", stderr);
			return 1;
		}
	for (i = 0; i < count; i++)
		pthread_join(streams[i].thread, NULL);
	took = tools_seconds() - began;
	for (i = 0; i < count; i++) {
		bytes[streams[i].request.recv] += streams[i].got.bytes;
		right &= stream_right(&streams[i]);
	}
	printf("{\"sent\": %llu, \"received\": %llu, \"seconds\": %.3f, "
	       "\"right\": %s}\n",
	       (unsigned long long)bytes[0], (unsigned long long)bytes[1], took,
	       right ? "true" : "false");
	return right ? 0 : 1;
}

struct options {
	uint64_t mib, seconds, streams;
	bool plain;
};

static bool options_read(int *argc, char ***argv, struct options *ret)
{
	*ret = (struct options){ .mib = 8, .streams = 1 };
	for (; *argc > 1 && !strncmp((*argv)[1], "--", 2);
	     (*argc)--, (*argv)++) {
		const char *name = (*argv)[1];

		if (!strcmp(name, "--plain")) {
			ret->plain = true;
			continue;
		}
		if (*argc < 3)
			return false;
		if (!strcmp(name, "--mib")
			    ? !tools_number((*argv)[2], 1, 1 << 20, &ret->mib)
		    : !strcmp(name, "--seconds")
			    ? !tools_number((*argv)[2], 1, 86400, &ret->seconds)
		    : !strcmp(name, "--streams")
			    ? !tools_number((*argv)[2], 1, MAX_STREAMS,
					    &ret->streams)
			    : true)
			return false;
		(*argc)--;
		(*argv)++;
	}
	return true;
}

static unsigned int streams_prepare(struct stream *streams,
				    const struct options *options,
				    const struct sockaddr_in *addr,
				    const char *verb)
{
	bool both = !strcmp(verb, "both");
	unsigned int count = 0, i, recv_too;

	for (i = 0; i < options->streams; i++)
		for (recv_too = 0; recv_too < 2; recv_too++) {
			if (!both && recv_too != !strcmp(verb, "recv"))
				continue;
			streams[count].addr = *addr;
			streams[count].request = (struct request){
				.magic = MAGIC,
				.recv = recv_too,
				.plain = options->plain,
				.seed = count + 1,
				.millis = (uint32_t)(options->seconds * 1000),
				.bytes = options->seconds ? 0
							  : options->mib * MIB,
			};
			count++;
		}
	return count;
}

static int usage(void)
{
	fputs("usage: nettest serve PORT\n"
	      "       nettest [--mib N | --seconds S] [--streams N] [--plain] "
	      "send|recv|both HOST PORT\n",
	      stderr);
	return 2;
}

int nettest_main(int argc, char **argv)
{
	static struct stream streams[2 * MAX_STREAMS];
	struct sockaddr_in addr = { .sin_family = AF_INET };
	struct options options;
	uint64_t port;

	signal(SIGPIPE, SIG_IGN);
	table_fill();
	if (argc == 3 && !strcmp(argv[1], "serve") &&
	    tools_number(argv[2], 1, 65535, &port))
		return serve((uint16_t)port);
	if (!options_read(&argc, &argv, &options) || argc != 4 ||
	    (strcmp(argv[1], "send") && strcmp(argv[1], "recv") &&
	     strcmp(argv[1], "both")) ||
	    inet_pton(AF_INET, argv[2], &addr.sin_addr) != 1 ||
	    !tools_number(argv[3], 1, 65535, &port))
		return usage();
	addr.sin_port = htons((uint16_t)port);
	return client(streams,
		      streams_prepare(streams, &options, &addr, argv[1]));
}
