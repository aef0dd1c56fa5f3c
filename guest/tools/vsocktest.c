/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stream sockets between a guest and its host (AF_VSOCK), both ways, with
 * checked contents.
 *
 *   vsocktest serve PORT COUNT
 *	Echo what COUNT connections send, each in a process of its own, until
 *	they half-close; then close. "serving" when it listens.
 *   vsocktest echo CID PORT BYTES [PARALLEL]
 *	Send that many bytes to an echo server, over PARALLEL connections at
 *	once, half-close, and compare what comes back while sending.
 *   vsocktest send CID PORT BYTES
 *	Send and close, as fast as that goes.
 *   vsocktest receive CID PORT
 *	Read to the end; says how many bytes came, and what the end was.
 *
 * Byte i of connection n is a function of both (pattern()), so that losses,
 * repetitions and mix-ups show.  Exit status 0: all was right; 1: it was not,
 * with a line that says why.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "tools.h"

#define CHUNK	     65536
#define MAX_PARALLEL 256
#define MAX_BYTES    (1ull << 40)
/* Linux has it at 2 s, in which a busy host may not have come to look. */
#define CONNECT_S 120

/* One write per line: several processes report at once. */
static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void say(const char *format, ...)
{
	char text[256] = "vsocktest: ";
	size_t used = strlen(text);
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(text + used, sizeof(text) - used - 1, format, args);
	va_end(args);
	if (n < 0)
		return;
	used += (size_t)n;
	if (used > sizeof(text) - 2)
		used = sizeof(text) - 2;
	text[used++] = '\n';
	if (write(STDOUT_FILENO, text, used) < 0)
		return;
}

static int failed(const char *what)
{
	say("%s: %s", what, strerror(errno));
	return 1;
}

static unsigned char pattern(uint64_t connection, uint64_t i)
{
	uint64_t x = (i + connection * 0x1000003) * 0x9e3779b97f4a7c15ull;

	return (unsigned char)(x >> 56);
}

static bool write_all(int fd, const unsigned char *data, size_t length)
{
	while (length) {
		ssize_t n = send(fd, data, length, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return false;
		data += n;
		length -= (size_t)n;
	}
	return true;
}

static int socket_connect(uint64_t cid, uint64_t port)
{
	struct sockaddr_vm address = {
		.svm_family = AF_VSOCK,
		.svm_cid = (unsigned int)cid,
		.svm_port = (unsigned int)port,
	};
	const struct timeval patience = { .tv_sec = CONNECT_S };
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	if (!setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &patience,
			sizeof(patience)) &&
	    !connect(fd, (struct sockaddr *)&address, sizeof(address)))
		return fd;
	close(fd);
	return -1;
}

/* Wait for count children; false if one of them found fault. */
static bool children_end(uint64_t count)
{
	bool right = true;
	int status;

	while (count--)
		if (wait(&status) < 0 || status)
			right = false;
	return right;
}

static int connection_echo(int fd)
{
	static unsigned char data[CHUNK];
	ssize_t n;

	while ((n = read(fd, data, sizeof(data))) > 0)
		if (!write_all(fd, data, (size_t)n))
			return failed("echoing");
	return n ? failed("reading") : 0;
}

static int serve(uint64_t port, uint64_t count)
{
	struct sockaddr_vm address = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_ANY,
		.svm_port = (unsigned int)port,
	};
	int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	uint64_t i;

	if (listener < 0 ||
	    bind(listener, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(listener, MAX_PARALLEL))
		return failed("listening");
	say("serving");
	for (i = 0; i < count; i++) {
		int fd = accept(listener, NULL, NULL);
		pid_t pid;

		if (fd < 0)
			return failed("accepting");
		pid = fork();
		if (!pid)
			_exit(connection_echo(fd));
		if (pid < 0)
			return failed("fork");
		close(fd);
	}
	return children_end(count) ? 0 : 1;
}

static int pattern_send(int fd, uint64_t connection, uint64_t bytes)
{
	static unsigned char data[CHUNK];
	uint64_t done = 0;

	while (done < bytes) {
		size_t n = bytes - done < CHUNK ? bytes - done : CHUNK, i;

		for (i = 0; i < n; i++)
			data[i] = pattern(connection, done + i);
		if (!write_all(fd, data, n))
			return failed("sending");
		done += n;
	}
	return 0;
}

static int pattern_check(int fd, uint64_t connection, uint64_t bytes)
{
	static unsigned char data[CHUNK];
	uint64_t done = 0;
	ssize_t n, i;

	while ((n = read(fd, data, sizeof(data))) > 0)
		for (i = 0; i < n; i++, done++)
			if (data[i] != pattern(connection, done)) {
				say("byte %llu is wrong",
				    (unsigned long long)done);
				return 1;
			}
	if (n < 0)
		return failed("receiving");
	if (done != bytes) {
		say("%llu bytes of %llu came back", (unsigned long long)done,
		    (unsigned long long)bytes);
		return 1;
	}
	return 0;
}

/* One connection: a child sends while this process receives. */
static int echo_once(uint64_t cid, uint64_t port, uint64_t bytes,
		     uint64_t connection)
{
	int fd = socket_connect(cid, port), status = 1;
	pid_t pid;

	if (fd < 0)
		return failed("connect");
	pid = fork();
	if (!pid) {
		status = pattern_send(fd, connection, bytes);
		shutdown(fd, SHUT_WR);
		_exit(status);
	}
	if (pid < 0)
		return failed("fork");
	status = pattern_check(fd, connection, bytes);
	return children_end(1) ? status : 1;
}

static int echo(uint64_t cid, uint64_t port, uint64_t bytes, uint64_t parallel)
{
	double start = tools_seconds(), took;
	uint64_t i;

	for (i = 0; i < parallel; i++) {
		pid_t pid = fork();

		if (!pid)
			_exit(echo_once(cid, port, bytes, i));
		if (pid < 0)
			return failed("fork");
	}
	if (!children_end(parallel))
		return 1;
	took = tools_seconds() - start;
	say("%llu x %llu bytes right in %.3f s", (unsigned long long)parallel,
	    (unsigned long long)bytes, took);
	return 0;
}

static int send_only(uint64_t cid, uint64_t port, uint64_t bytes)
{
	double start = tools_seconds();
	int fd = socket_connect(cid, port), status;

	if (fd < 0)
		return failed("connect");
	status = pattern_send(fd, 0, bytes);
	close(fd);
	if (!status)
		say("sent %llu bytes in %.3f s", (unsigned long long)bytes,
		    tools_seconds() - start);
	return status;
}

static int receive(uint64_t cid, uint64_t port)
{
	static unsigned char data[CHUNK];
	int fd = socket_connect(cid, port);
	unsigned long long total = 0;
	double start = tools_seconds();
	ssize_t n;

	if (fd < 0)
		return failed("connect");
	while ((n = read(fd, data, sizeof(data))) > 0)
		total += (unsigned long long)n;
	say("received %llu bytes in %.3f s, then %s", total,
	    tools_seconds() - start, n ? strerror(errno) : "the end");
	return 0;
}

static int usage(void)
{
	fputs("usage: vsocktest serve PORT COUNT\n"
	      "       vsocktest echo CID PORT BYTES [PARALLEL]\n"
	      "       vsocktest send CID PORT BYTES\n"
	      "       vsocktest receive CID PORT\n",
	      stderr);
	return 2;
}

int vsocktest_main(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "";
	uint64_t cid, port, bytes, parallel = 1;

	if (argc == 4 && !strcmp(verb, "serve")) {
		if (tools_number(argv[2], 0, UINT32_MAX, &port) &&
		    tools_number(argv[3], 1, UINT32_MAX, &parallel))
			return serve(port, parallel);
		return usage();
	}
	if (argc < 4 || !tools_number(argv[2], 0, UINT32_MAX, &cid) ||
	    !tools_number(argv[3], 0, UINT32_MAX, &port))
		return usage();
	if (argc == 4 && !strcmp(verb, "receive"))
		return receive(cid, port);
	if (argc < 5 || !tools_number(argv[4], 0, MAX_BYTES, &bytes))
		return usage();
	if (argc == 5 && !strcmp(verb, "send"))
		return send_only(cid, port, bytes);
	if (argc > 6 || strcmp(verb, "echo") ||
	    (argc == 6 && !tools_number(argv[5], 1, MAX_PARALLEL, &parallel)))
		return usage();
	return echo(cid, port, bytes, parallel);
}
