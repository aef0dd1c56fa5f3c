/* SPDX-License-Identifier: Apache-2.0 */
/* Files that one process makes for another. */
#include "cmocka_all.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arith.h"
#include "snapshot/handed.h"

/* Both ends, and a directory; a thread that serves until it is over. */
struct pair {
	int asks, serves, dir_fd, parent_fd;
	char dir[40];
	pthread_t server;
	int result;
};

static void *serve(void *arg)
{
	struct pair *p = arg;

	struct pollfd fd = { .fd = p->serves, .events = POLLIN };

	do {
		assert_int_equal(poll(&fd, 1, -1), 1);
		p->result = handed_serve(p->serves, p->dir_fd, p->parent_fd);
	} while (!p->result);
	close(p->serves);
	return NULL;
}

static void start(struct pair *p)
{
	int fds[2];

	strcpy(p->dir, "/tmp/quire-handed-XXXXXX");
	assert_non_null(mkdtemp(p->dir));
	p->dir_fd = open(p->dir, O_RDONLY | O_DIRECTORY);
	p->parent_fd = -1;
	assert_true(p->dir_fd >= 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	p->asks = fds[0];
	p->serves = fds[1];
}

static void start_server(struct pair *p)
{
	start(p);
	assert_int_equal(pthread_create(&p->server, NULL, serve, p), 0);
}

static void end(struct pair *p)
{
	close(p->asks);
	assert_int_equal(rmdir(p->dir), 0);
	close(p->dir_fd);
}

static void test_files_come(void **state)
{
	struct pair p;
	struct stat st;
	int fd;

	start_server(&p);
	fd = handed_ask(p.asks, "memory");
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "abc", 3), 3);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(fstatat(p.dir_fd, "memory", &st, 0), 0);
	assert_int_equal(st.st_size, 3);
	assert_int_equal(st.st_mode & 0777, 0600);
	close(fd);
	assert_int_equal(handed_ask(p.asks, "memory"), -EEXIST);
	fd = handed_ask(p.asks, "state");
	assert_true(fd >= 0);
	close(fd);
	assert_false(handed_is_over(p.asks));
	shutdown(p.asks, SHUT_WR);
	pthread_join(p.server, NULL);
	assert_int_equal(p.result, -EPIPE);
	assert_true(handed_is_over(p.asks));
	assert_int_equal(handed_ask(p.asks, "more"), -EPIPE);
	assert_int_equal(unlinkat(p.dir_fd, "memory", 0), 0);
	assert_int_equal(unlinkat(p.dir_fd, "state", 0), 0);
	end(&p);
}

/* Of the parent, what is there, for reading; and only what is of use. */
static void test_parents_files(void **state)
{
	struct pair p;
	char path[80];
	int fd;

	start(&p);
	snprintf(path, sizeof(path), "%s/memory.sums", p.dir);
	fd = open(path, O_RDWR | O_CREAT, 0600);
	assert_int_equal(write(fd, "sums", 4), 4);
	close(fd);
	snprintf(path, sizeof(path), "%s/memory", p.dir);
	assert_int_equal(symlink("/etc/passwd", path), 0);
	p.parent_fd = dup(p.dir_fd);
	assert_int_equal(pthread_create(&p.server, NULL, serve, &p), 0);
	fd = handed_ask_parent(p.asks, "memory.sums");
	assert_true(fd >= 0);
	assert_int_equal(read(fd, path, 10), 4);
	assert_int_equal(write(fd, "x", 1), -1);
	close(fd);
	assert_int_equal(handed_ask_parent(p.asks, "manifest.json"), -ENOENT);
	assert_int_equal(handed_ask_parent(p.asks, "memory"), -ELOOP);
	/* What is there is not new. */
	assert_int_equal(handed_ask(p.asks, "memory.sums"), -EEXIST);
	shutdown(p.asks, SHUT_WR);
	pthread_join(p.server, NULL);
	assert_int_equal(p.result, -EPIPE);
	close(p.parent_fd);
	unlinkat(p.dir_fd, "memory.sums", 0);
	unlinkat(p.dir_fd, "memory", 0);
	end(&p);
	/* Without one. */
	start_server(&p);
	assert_int_equal(handed_ask_parent(p.asks, "memory"), -ENOENT);
	shutdown(p.asks, SHUT_WR);
	pthread_join(p.server, NULL);
	end(&p);
}

/* Who asks does not send such names; who serves would not take them. */
static void test_names_are_flat(void **state)
{
	static const char *const names[] = {
		"",
		".",
		"..",
		"a/b",
		"../evil",
		"/etc/evil",
		".evil",
		"parent/evil",
		"parent/",
		"parent/config.json",
		"parent/../memory",
	};
	char name[HANDED_NAME_BYTES];
	struct pair p;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		start_server(&p);
		assert_int_equal(handed_ask(p.asks, names[i]), -EINVAL);
		memset(name, 0, sizeof(name));
		strcpy(name, names[i]);
		assert_int_equal(write(p.asks, name, sizeof(name)),
				 sizeof(name));
		pthread_join(p.server, NULL);
		assert_int_equal(p.result, -EPROTO);
		end(&p);
	}
	/* One without an end. */
	start_server(&p);
	memset(name, 'a', sizeof(name));
	assert_int_equal(write(p.asks, name, sizeof(name)), sizeof(name));
	pthread_join(p.server, NULL);
	assert_int_equal(p.result, -EPROTO);
	end(&p);
}

/* num descriptors, all of them pass. */
static void answer_many(int fd, const void *bytes, size_t len, int pass,
			unsigned int num)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(3 * sizeof(int))];
	} control = { .bytes = { 0 } };
	struct iovec iov = { (void *)bytes, len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (pass >= 0) {
		int fds[3] = { pass, pass, pass };

		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(num * sizeof(int));
		control.header = (struct cmsghdr){
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS,
			.cmsg_len = CMSG_LEN(num * sizeof(int)),
		};
		memcpy(CMSG_DATA(&control.header), fds, num * sizeof(int));
	}
	assert_int_equal(sendmsg(fd, &msg, 0), len);
}

static void answer(int fd, const void *bytes, size_t len, int pass)
{
	answer_many(fd, bytes, len, pass, 1);
}

static unsigned int count_open(void)
{
	unsigned int num = 0;

	for (int fd = 0; fd < 256; fd++)
		num += fcntl(fd, F_GETFD) >= 0;
	return num;
}

/* Nobody can fill this process's table with what it does not want. */
static void test_more_than_one_is_none(void **state)
{
	static const uint8_t fine[4] = { 0 };
	struct pair p;
	char path[60];
	unsigned int before;
	int file;

	start(&p);
	snprintf(path, sizeof(path), "%s/empty", p.dir);
	file = open(path, O_RDWR | O_CREAT, 0600);
	before = count_open();
	for (unsigned int num = 2; num <= 3; num++) {
		answer_many(p.serves, fine, 4, file, num);
		assert_int_equal(handed_ask(p.asks, "a"), -EPROTO);
		assert_int_equal(count_open(), before);
	}
	close(file);
	assert_int_equal(unlink(path), 0);
	close(p.serves);
	end(&p);
}

/* What is no empty regular file is not written to. */
static void test_answers_are_checked(void **state)
{
	static const uint8_t fine[4] = { 0 }, error[4] = { ENOSPC },
			     strange[4] = { 0, 0, 0, 0xff };
	struct pair p;
	char path[60];
	int null = open("/dev/null", O_RDWR), file, pipe_fds[2];

	start(&p);
	snprintf(path, sizeof(path), "%s/full", p.dir);
	file = open(path, O_RDWR | O_CREAT, 0600);
	assert_int_equal(write(file, "x", 1), 1);
	assert_int_equal(pipe(pipe_fds), 0);
	answer(p.serves, fine, 4, -1);
	assert_int_equal(handed_ask(p.asks, "a"), -EPROTO);
	answer(p.serves, fine, 4, null);
	assert_int_equal(handed_ask(p.asks, "a"), -EPROTO);
	answer(p.serves, fine, 4, pipe_fds[1]);
	assert_int_equal(handed_ask(p.asks, "a"), -EPROTO);
	answer(p.serves, fine, 4, file);
	assert_int_equal(handed_ask(p.asks, "a"), -EPROTO);
	answer(p.serves, fine, 3, file);
	assert_int_equal(handed_ask(p.asks, "a"), -EPROTO);
	answer(p.serves, strange, 4, file);
	assert_int_equal(handed_ask(p.asks, "a"), -EPROTO);
	answer(p.serves, error, 4, -1);
	assert_int_equal(handed_ask(p.asks, "a"), -ENOSPC);
	/* None of what came stays open. */
	assert_int_equal(ftruncate(file, 0), 0);
	answer(p.serves, fine, 4, file);
	null = (close(null), handed_ask(p.asks, "a"));
	assert_true(null >= 0);
	close(null);
	close(file);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	close(p.serves);
	unlink(path);
	end(&p);
}

/* Who answers without reading does not make who asks wait for ever. */
static void test_answers_without_reading(void **state)
{
	const uint8_t refused[4] = { EPERM };
	struct pair p;
	int r = -EPERM;

	start(&p);
	for (int i = 0; i < 100000 && r == -EPERM; i++) {
		assert_int_equal(send(p.serves, refused, sizeof(refused), 0),
				 sizeof(refused));
		r = handed_ask(p.asks, "memory");
	}
	assert_int_equal(r, -EPROTO);
	close(p.serves);
	end(&p);
}

static void test_nobody_listens(void **state)
{
	struct err err = ERR_INIT;
	int fd = -1;

	assert_int_equal(handed_connect("/tmp/quire-no-such/files", &fd, &err),
			 -ENOENT);
	assert_non_null(strstr(err.text, "/tmp/quire-no-such/files"));
	assert_int_equal(fd, -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_files_come),
		cmocka_unit_test(test_parents_files),
		cmocka_unit_test(test_names_are_flat),
		cmocka_unit_test(test_answers_are_checked),
		cmocka_unit_test(test_more_than_one_is_none),
		cmocka_unit_test(test_answers_without_reading),
		cmocka_unit_test(test_nobody_listens),
	};

	return cmocka_run_group_tests_name("handed", tests, NULL, NULL);
}
