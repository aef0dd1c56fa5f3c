/* SPDX-License-Identifier: Apache-2.0 */
/* A message with a descriptor, from somebody who means it well, and not. */
#include "cmocka_all.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "migrate/link.h"

#define PATIENCE_NS (100 * NSEC_PER_MSEC)

struct pair {
	struct link in;
	int out; /* of the other side */
};

static void pair_make(struct pair *p)
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	p->in = (struct link){ .fd = fds[0], .patience_ns = PATIENCE_NS };
	p->out = fds[1];
}

static void pair_close(struct pair *p)
{
	close(p->in.fd);
	close(p->out);
}

static unsigned int count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned int num = 0;

	assert_non_null(dir);
	while (readdir(dir))
		num++;
	closedir(dir);
	return num;
}

/* Bytes of a header of that type, with some descriptors. */
static void send_part(int to, const uint8_t *bytes, size_t len, const int *fds,
		      unsigned int num)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(4 * sizeof(int))];
	} control = { .bytes = { 0 } };
	struct iovec iov = { (void *)bytes, len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (num) {
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(num * sizeof(int));
		memcpy(CMSG_DATA(&control.header), fds, num * sizeof(int));
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(num * sizeof(int));
	}
	assert_int_equal(sendmsg(to, &msg, 0), (ssize_t)len);
}

static int get(struct pair *p, int *fd, struct err *err)
{
	*err = (struct err)ERR_INIT;
	*fd = -1;
	return link_get_fd(&p->in, WIRE_MEMORY, fd, err);
}

static void test_comes(void **state)
{
	_cleanup_close_ int memfd = memfd_create("memory", MFD_CLOEXEC);
	struct err err = ERR_INIT;
	struct pair p;
	int fd = -1;

	pair_make(&p);
	assert_int_equal(ftruncate(memfd, 4096), 0);
	{
		struct link out = { .fd = p.out, .patience_ns = PATIENCE_NS };

		assert_int_equal(link_put_fd(&out, WIRE_MEMORY, memfd, &err),
				 0);
	}
	assert_int_equal(get(&p, &fd, &err), 0);
	assert_int_not_equal(fd, memfd);
	assert_int_equal(lseek(fd, 0, SEEK_END), 4096);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	close(fd);
	pair_close(&p);
}

/* It is with the first byte, however many come at once. */
static void test_comes_in_parts(void **state)
{
	uint8_t header[WIRE_CONTROL_BYTES];
	struct err err;
	struct pair p;
	int fd;

	pair_make(&p);
	wire_put_control(header, WIRE_MEMORY, 0);
	send_part(p.out, header, 1, &p.out, 1);
	send_part(p.out, header + 1, sizeof(header) - 1, NULL, 0);
	assert_int_equal(get(&p, &fd, &err), 0);
	assert_true(fd >= 0);
	close(fd);
	pair_close(&p);
}

static void test_refused(void **state)
{
	uint8_t memory[WIRE_CONTROL_BYTES], other[WIRE_CONTROL_BYTES];
	const int two[2] = { STDOUT_FILENO, STDERR_FILENO };
	struct err err;
	unsigned int before;
	struct pair p;
	int fd;

	wire_put_control(memory, WIRE_MEMORY, 0);
	wire_put_control(other, WIRE_STATE, 0);
	before = count_fds();
	for (unsigned int i = 0; i < 3; i++) {
		pair_make(&p);
		switch (i) {
		case 0: /* one too many */
			send_part(p.out, memory, sizeof(memory), two, 2);
			break;
		case 1: /* none */
			send_part(p.out, memory, sizeof(memory), NULL, 0);
			break;
		case 2: /* with something else */
			send_part(p.out, other, sizeof(other), two, 1);
			break;
		}
		assert_int_equal(get(&p, &fd, &err), -EBADMSG);
		assert_int_equal(fd, -1);
		pair_close(&p);
		assert_int_equal(count_fds(), before);
	}
}

/* Or gives up; or says nothing, half of it, or no more. */
static void test_does_not_come(void **state)
{
	uint8_t memory[WIRE_CONTROL_BYTES];
	struct err err = ERR_INIT;
	unsigned int before = count_fds();
	struct pair p;
	int fd;

	wire_put_control(memory, WIRE_MEMORY, 0);
	pair_make(&p);
	{
		struct link out = { .fd = p.out, .patience_ns = PATIENCE_NS };

		(void)err_set(&err, EIO, "no more");
		link_put_failure(&out, WIRE_ABORT, &err);
	}
	assert_int_equal(get(&p, &fd, &err), -ECONNABORTED);
	assert_non_null(strstr(err.text, "no more"));
	assert_int_equal(get(&p, &fd, &err), -ETIMEDOUT);
	send_part(p.out, memory, 7, &p.out, 1);
	assert_int_equal(get(&p, &fd, &err), -ETIMEDOUT);
	send_part(p.out, memory, 7, &p.out, 1);
	shutdown(p.out, SHUT_WR);
	assert_int_equal(get(&p, &fd, &err), -EPIPE);
	pair_close(&p);
	assert_int_equal(fd, -1);
	assert_int_equal(count_fds(), before);
}

static void test_not_through_a_network(void **state)
{
	struct err err = ERR_INIT;
	struct link l = {
		.fd = socket(AF_INET, SOCK_STREAM, 0),
		.patience_ns = PATIENCE_NS,
	};
	int fd = -1;

	assert_true(l.fd >= 0);
	assert_int_equal(link_put_fd(&l, WIRE_MEMORY, 1, &err), -ENOTSUP);
	assert_int_equal(link_get_fd(&l, WIRE_MEMORY, &fd, &err), -ENOTSUP);
	assert_int_equal(fd, -1);
	close(l.fd);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_comes),
		cmocka_unit_test(test_comes_in_parts),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_does_not_come),
		cmocka_unit_test(test_not_through_a_network),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
