/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/: sizes, option lists, checked arithmetic, errors, the event loop, small
 * files.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/evloop.h"
#include "base/io.h"
#include "base/kvlist.h"
#include "base/numlist.h"
#include "base/size.h"
#include "base/unix_socket.h"

static void test_size_parse(void **state)
{
	static const struct {
		const char *text;
		int r;
		uint64_t value;
	} cases[] = {
		{ "0", 0, 0 },
		{ "4096", 0, 4096 },
		{ "64K", 0, 64 * KIB },
		{ "512M", 0, 512 * MIB },
		{ "512MiB", 0, 512 * MIB },
		{ "5GB", 0, 5 * GIB },
		{ "2t", 0, 2 * TIB },
		{ "0x1000", 0, 4096 },
		{ "", -EINVAL, 0 },
		{ "M", -EINVAL, 0 },
		{ "-1", -EINVAL, 0 },
		{ "+1", -EINVAL, 0 },
		{ " 1", -EINVAL, 0 },
		{ "1.5G", -EINVAL, 0 },
		{ "1Q", -EINVAL, 0 },
		{ "1Mx", -EINVAL, 0 },
		{ "99999999999999999999", -ERANGE, 0 },
		{ "18446744073709551615K", -ERANGE, 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		uint64_t v = 77;

		assert_int_equal(size_parse(cases[i].text, &v), cases[i].r);
		assert_int_equal(v, cases[i].r ? 77 : cases[i].value);
	}
}

static void test_size_format(void **state)
{
	char buf[32];

	assert_string_equal(size_format(0, buf, sizeof(buf)), "0 B");
	assert_string_equal(size_format(64 * MIB, buf, sizeof(buf)), "64 MiB");
	assert_string_equal(size_format(1536 * MIB, buf, sizeof(buf)),
			    "1.5 GiB");
}

static void test_range_ok(void **state)
{
	assert_true(range_ok(0, 10, 10));
	assert_true(range_ok(10, 0, 10));
	assert_false(range_ok(1, 10, 10));
	assert_false(range_ok(11, 0, 10));
	assert_false(range_ok(UINT64_MAX, 2, 10));
	assert_false(range_ok(2, UINT64_MAX, 10));
}

struct opts {
	uint64_t size;
	bool flag;
	uint32_t num;
	char path[32];
};

static int set_size(void *obj, const char *value, struct err *err)
{
	return kvlist_size(value, &((struct opts *)obj)->size, err);
}

static int set_flag(void *obj, const char *value, struct err *err)
{
	return kvlist_bool(value, &((struct opts *)obj)->flag, err);
}

static int set_num(void *obj, const char *value, struct err *err)
{
	return kvlist_u32(value, 1, 8, &((struct opts *)obj)->num, err);
}

static int set_path(void *obj, const char *value, struct err *err)
{
	struct opts *o = obj;

	snprintf(o->path, sizeof(o->path), "%s", value);
	return 0;
}

static const struct kvlist_key keys[] = {
	{ "path", set_path },
	{ "size", set_size },
	{ "flag", set_flag },
	{ "num", set_num },
};

static int parse(const char *text, struct opts *o, struct err *err)
{
	memset(o, 0, sizeof(*o));
	return kvlist_parse("--opt", text, "path", keys, ARRAY_SIZE(keys), o,
			    err);
}

static void test_kvlist_good(void **state)
{
	struct err err = ERR_INIT;
	struct opts o;

	assert_int_equal(parse("size=4G,flag=on,num=8", &o, &err), 0);
	assert_int_equal(o.size, 4 * GIB);
	assert_true(o.flag);
	assert_int_equal(o.num, 8);
	assert_int_equal(parse("a.img,flag=off", &o, &err), 0);
	assert_string_equal(o.path, "a.img");
	/* ",," is one comma of the value */
	assert_int_equal(parse("path=a,,b,num=1", &o, &err), 0);
	assert_string_equal(o.path, "a,b");
}

static void test_kvlist_bad(void **state)
{
	static const struct {
		const char *text, *needle;
	} cases[] = {
		{ "colour=red", "unknown key 'colour' (known: path, size" },
		{ "size=", "size has no value" },
		{ "size=1,size=2", "given twice" },
		{ "size=x", "not a size" },
		{ "num=9", "not a number from 1 to 8" },
		{ "flag=maybe", "neither on nor off" },
		{ "num=1,stray", "'stray' is not key=value" },
		{ "", "'' is not key=value" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct err err = ERR_INIT;
		struct opts o;

		assert_true(parse(cases[i].text, &o, &err) < 0);
		assert_non_null(strstr(err.text, cases[i].needle));
		assert_non_null(strstr(err.text, "--opt"));
	}
}

static void test_kvlist_setters(void **state)
{
	struct err err = ERR_INIT;
	char *text = NULL;
	uint32_t num = 7;

	assert_int_equal(kvlist_string("a", &text, &err), 0);
	assert_int_equal(kvlist_string("b,c", &text, &err), 0);
	assert_string_equal(text, "b,c");
	free(text);
	assert_int_equal(kvlist_pow2("12", 2, 16, &num, &err), -EINVAL);
	assert_non_null(strstr(err.text, "not a power of two"));
	assert_int_equal(kvlist_pow2("1", 2, 16, &num, &err), -EINVAL);
	assert_int_equal(kvlist_pow2("32", 2, 16, &num, &err), -EINVAL);
	assert_int_equal(num, 7);
	assert_int_equal(kvlist_pow2("16", 2, 16, &num, &err), 0);
	assert_int_equal(num, 16);
}

static void test_err_text(void **state)
{
	struct err err = ERR_INIT;

	assert_int_equal(err_errno(&err, ENOENT, "a.img: cannot open"),
			 -ENOENT);
	err_prefix(&err, "--disk");
	assert_string_equal(
		err.text,
		"--disk: a.img: cannot open: No such file or directory");
	assert_int_equal(err_set(NULL, EIO, "nobody listens"), -EIO);
}

struct loop_state {
	struct evloop *loop;
	int fds[2];
	int calls;
};

static void on_readable(void *ctx, uint32_t events)
{
	struct loop_state *s = ctx;
	char c;

	assert_true(events & EPOLLIN);
	assert_int_equal(io_read_full(s->fds[0], &c, 1), 0);
	if (++s->calls == 3) {
		evloop_del(s->loop, s->fds[0]);
		evloop_stop(s->loop, 42);
		evloop_stop(s->loop, 7); /* the first one counts */
	}
}

static void test_evloop(void **state)
{
	struct loop_state s = { .calls = 0 };

	assert_int_equal(evloop_new(&s.loop), 0);
	assert_int_equal(pipe(s.fds), 0);
	assert_int_equal(evloop_add(s.loop, s.fds[0], EPOLLIN, on_readable, &s),
			 0);
	assert_int_equal(io_write_full(s.fds[1], "abc", 3), 0);
	assert_int_equal(evloop_run(s.loop), 42);
	assert_int_equal(s.calls, 3);
	/* the stop is used up; one that comes before the run counts */
	evloop_stop(s.loop, 5);
	assert_int_equal(evloop_run(s.loop), 5);
	evloop_free(s.loop);
	close(s.fds[0]);
	close(s.fds[1]);
}

static void test_small_files(void **state)
{
	static const struct {
		const char *text;
		int number; /* or -errno */
		int flag;
	} files[] = {
		{ "Y\n", -EINVAL, 1 },
		{ "N\n", -EINVAL, 0 },
		{ "1\n", 1, 1 },
		{ "0", 0, 0 },
		{ "4711\n", 4711, -EINVAL },
		{ "", -EINVAL, -EINVAL },
		{ "12 apples", -EINVAL, -EINVAL },
	};
	char path[] = "/tmp/quire-test-XXXXXX";
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		size_t len = strlen(files[i].text);
		uint64_t value = 99;
		int r;

		assert_int_equal(ftruncate(fd, 0), 0);
		assert_int_equal(pwrite(fd, files[i].text, len, 0), len);
		r = io_read_u64(path, &value);
		if (files[i].number < 0) {
			assert_int_equal(r, files[i].number);
			assert_int_equal(value, 99);
		} else {
			assert_int_equal(r, 0);
			assert_int_equal(value, files[i].number);
		}
		assert_int_equal(io_read_flag(path), files[i].flag);
	}
	close(fd);
	unlink(path);
	assert_int_equal(io_read_flag(path), -ENOENT);
}

static void test_numlist(void **state)
{
	const char *p = "0-3,8,10-11";
	unsigned int first, last;

	assert_int_equal(numlist_count(p), 7);
	assert_true(numlist_next(&p, &first, &last));
	assert_int_equal(first, 0);
	assert_int_equal(last, 3);
	assert_true(numlist_next(&p, &first, &last));
	assert_int_equal(first, 8);
	assert_int_equal(last, 8);
	assert_true(numlist_next(&p, &first, &last));
	assert_false(numlist_next(&p, &first, &last));

	assert_int_equal(numlist_count(""), 0);
	assert_int_equal(numlist_count("x"), 0);
	assert_int_equal(numlist_count("3-1"), 0);
	assert_int_equal(numlist_count("0-99999999999999999999"), 0);
	assert_int_equal(numlist_count("4294967295"), 0);
}

static int connect_to(const char *path)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un addr;
	int r;

	assert_int_equal(unix_socket_address(&addr, path), 0);
	r = connect(fd, (const struct sockaddr *)&addr, sizeof(addr));
	close(fd);
	return r ? -errno : 0;
}

static void test_unix_listener(void **state)
{
	struct unix_listener a, b;
	char path[64], too_long[200];
	struct err err = ERR_INIT;
	int fd;

	snprintf(path, sizeof(path), "/tmp/quire-base-%d.sock", (int)getpid());
	assert_int_equal(unix_listener_open(&a, path, 4, &err), 0);
	assert_int_equal(connect_to(path), 0);
	/* Live: refused, and left alone. */
	assert_int_equal(unix_listener_open(&b, path, 4, &err), -EADDRINUSE);
	assert_non_null(strstr(err.text, "in use"));
	unix_listener_close(&b);
	assert_int_equal(connect_to(path), 0);
	/* Stale: replaced. */
	close(a.fd);
	a.fd = -1;
	assert_int_equal(unix_listener_open(&b, path, 4, &err), 0);
	assert_int_equal(connect_to(path), 0);
	/* Another's by now: not removed. */
	assert_int_equal(unlink(path), 0);
	free(a.path);
	assert_int_equal(unix_listener_open(&a, path, 4, &err), 0);
	unix_listener_close(&b);
	assert_int_equal(connect_to(path), 0);
	unix_listener_close(&a);
	assert_int_equal(connect_to(path), -ENOENT);
	unix_listener_close(&a);
	/* A file that is no socket stays. */
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(unix_listener_open(&b, path, 4, &err), -EADDRINUSE);
	assert_int_equal(unlink(path), 0);
	memset(too_long, 'x', sizeof(too_long) - 1);
	too_long[sizeof(too_long) - 1] = '\0';
	assert_int_equal(unix_listener_open(&b, too_long, 4, &err),
			 -ENAMETOOLONG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_size_parse),
		cmocka_unit_test(test_size_format),
		cmocka_unit_test(test_range_ok),
		cmocka_unit_test(test_kvlist_good),
		cmocka_unit_test(test_kvlist_bad),
		cmocka_unit_test(test_kvlist_setters),
		cmocka_unit_test(test_err_text),
		cmocka_unit_test(test_evloop),
		cmocka_unit_test(test_small_files),
		cmocka_unit_test(test_numlist),
		cmocka_unit_test(test_unix_listener),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
