/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The serial console's host side: outq.c (order, bursts, slow readers),
 * inpump.c (nothing lost, nothing stuck), and the chardevs tty, file, socket
 * and null with real descriptors, a terminal included.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <pty.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/evloop.h"
#include "base/io.h"
#include "base/log.h"
#include "device/chardev.h"
#include "device/outq.h"
#include "device/terminal.h"

#define MSEC 1000000ull

/* -- a guest: a receive buffer of cap bytes, drained by hand or at once -- */

struct guest {
	struct chardev *chr;
	pthread_mutex_t lock;
	size_t cap, len;
	uint8_t got[64 * 1024];
	size_t got_len;
	int breaks;
};

static size_t guest_room(void *ctx)
{
	struct guest *g = ctx;
	size_t room;

	pthread_mutex_lock(&g->lock);
	room = g->cap - g->len;
	pthread_mutex_unlock(&g->lock);
	return room;
}

static void guest_receive(void *ctx, const uint8_t *data, size_t len)
{
	struct guest *g = ctx;

	pthread_mutex_lock(&g->lock);
	if (len > g->cap - g->len || g->got_len + len > sizeof(g->got))
		abort(); /* more than there was room for */
	memcpy(g->got + g->got_len, data, len);
	g->got_len += len;
	g->len += len;
	pthread_mutex_unlock(&g->lock);
}

static void guest_break(void *ctx)
{
	((struct guest *)ctx)->breaks++;
}

static void guest_drain(struct guest *g)
{
	pthread_mutex_lock(&g->lock);
	g->len = 0;
	pthread_mutex_unlock(&g->lock);
	chardev_resume_input(g->chr);
}

static size_t guest_got(struct guest *g)
{
	size_t n;

	pthread_mutex_lock(&g->lock);
	n = g->got_len;
	pthread_mutex_unlock(&g->lock);
	return n;
}

static void guest_attach(struct guest *g, struct chardev *chr, size_t cap)
{
	struct chardev_client client = {
		.room = guest_room,
		.receive = guest_receive,
		.receive_break = guest_break,
		.ctx = g,
	};

	memset(g, 0, sizeof(*g));
	pthread_mutex_init(&g->lock, NULL);
	g->chr = chr;
	g->cap = cap;
	chardev_set_client(chr, &client);
}

/* -- a control thread -- */

static void *run_loop(void *arg)
{
	return (void *)(intptr_t)evloop_run(arg);
}

static void sleep_ms(unsigned int ms)
{
	struct timespec ts = { .tv_sec = ms / 1000,
			       .tv_nsec = ms % 1000 * 1000000L };

	nanosleep(&ts, NULL);
}

#define HANG_MS 60000u /* a hang, not a slow machine */
#define HANG_NS (HANG_MS * MSEC)
/* Of what is quick once, unless the machine stands still just then. */
#define TRIES 5

#define WAIT_FOR(cond)                                                       \
	do {                                                                 \
		for (unsigned int _i = 0; _i < HANG_MS / 5 && !(cond); _i++) \
			sleep_ms(5);                                         \
		assert_true(cond);                                           \
	} while (0)

static void write_text(struct chardev *chr, const char *text)
{
	chardev_write(chr, (const uint8_t *)text, strlen(text));
}

/* -- configuration -- */

static void test_config(void **state)
{
	static const char *const bad[] = {
		"",	   "ttyS0", "file", "file=",
		"socket=", "tty=x", "nul",  "filex=y"
	};
	struct chardev_config cfg;
	struct err err = ERR_INIT;

	chardev_config_init(&cfg);
	assert_int_equal(cfg.kind, CHARDEV_TTY);
	assert_int_equal(chardev_config_parse(&cfg, "--serial", "null", &err),
			 0);
	assert_int_equal(cfg.kind, CHARDEV_NULL);
	assert_int_equal(
		chardev_config_parse(&cfg, "--serial", "file=/a=b,c", &err), 0);
	assert_int_equal(cfg.kind, CHARDEV_FILE);
	assert_string_equal(cfg.path, "/a=b,c");
	assert_int_equal(
		chardev_config_parse(&cfg, "--serial", "socket=s", &err), 0);
	assert_string_equal(cfg.path, "s");
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(chardev_config_parse(&cfg, "--serial", bad[i],
						      &err),
				 -EINVAL);
		assert_non_null(strstr(err.text, "--serial"));
	}
	assert_string_equal(cfg.path, "s"); /* untouched by what is bad */
	chardev_config_fini(&cfg);
	assert_null(cfg.path);
}

/* -- outq -- */

struct sink {
	pthread_mutex_t lock;
	uint8_t got[4 * OUTQ_BYTES];
	size_t len;
	int calls;
	unsigned int delay_ms;
	atomic_bool entered, block;
	int result;
};

static int sink_write(void *ctx, const uint8_t *data, size_t len)
{
	struct sink *s = ctx;

	if (s->delay_ms)
		sleep_ms(s->delay_ms);
	atomic_store(&s->entered, true);
	while (atomic_load(&s->block))
		sleep_ms(1);
	if (s->result)
		return s->result;
	pthread_mutex_lock(&s->lock);
	memcpy(s->got + s->len, data, len);
	s->len += len;
	s->calls++;
	pthread_mutex_unlock(&s->lock);
	return 0;
}

static struct sink *sink_new(void)
{
	struct sink *s = calloc(1, sizeof(*s));

	assert_non_null(s);
	pthread_mutex_init(&s->lock, NULL);
	return s;
}

/* Byte i of a stream that does not repeat with any power of two. */
static uint8_t pattern(size_t i)
{
	return (uint8_t)(i % 251);
}

static void put_pattern(struct outq *q, size_t from, size_t to)
{
	for (size_t i = from; i < to; i++) {
		uint8_t b = pattern(i);

		outq_put(q, &b, 1, true);
	}
}

static void check_pattern(const uint8_t *got, size_t from, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (got[i] != pattern(from + i))
			fail_msg("byte %zu is wrong", i);
	}
}

static void test_outq_coalesces(void **state)
{
	struct sink *s = sink_new();
	uint64_t start = clock_now_ns(), ns;
	struct outq *q;

	assert_int_equal(outq_new(&q, OUTQ_WAIT, sink_write, s), 0);
	put_pattern(q, 0, 100); /* before the start: kept */
	assert_int_equal(outq_start(q), 0);
	put_pattern(q, 100, 2000);
	ns = clock_now_ns() - start;
	assert_int_equal(outq_flush(q, HANG_NS), 0);
	assert_int_equal(s->len, 2000);
	check_pattern(s->got, 0, 2000);
	/* One write for each linger time, not for each byte; and the rest. */
	assert_in_range(s->calls, 1, ns / OUTQ_LINGER_NS + 2);
	assert_int_equal(outq_dropped(q), 0);
	assert_int_equal(outq_free(q), 0);
	free(s);
}

static void test_outq_waits_for_a_slow_reader(void **state)
{
	struct sink *s = sink_new();
	struct outq *q;

	s->delay_ms = 5; /* for each 4 KiB */
	assert_int_equal(outq_new(&q, OUTQ_WAIT, sink_write, s), 0);
	assert_int_equal(outq_start(q), 0);
	put_pattern(q, 0, 3 * OUTQ_BYTES);
	assert_int_equal(outq_flush(q, HANG_NS), 0);
	assert_int_equal(s->len, 3 * OUTQ_BYTES);
	check_pattern(s->got, 0, s->len);
	assert_int_equal(outq_dropped(q), 0);
	assert_int_equal(outq_free(q), 0);
	free(s);
}

static void test_outq_gives_up_on_a_stuck_reader(void **state)
{
	struct sink *s = sink_new();
	uint64_t start;
	struct outq *q;

	atomic_store(&s->block, true);
	assert_int_equal(outq_new(&q, OUTQ_WAIT, sink_write, s), 0);
	assert_int_equal(outq_start(q), 0);
	put_pattern(q, 0, 10);
	WAIT_FOR(atomic_load(&s->entered)); /* the sink has those */
	start = clock_now_ns();
	put_pattern(q, 10, OUTQ_BYTES + 10);
	assert_int_equal(outq_dropped(q), 0);
	/* The next one waits OUTQ_STALL_NS, those after it not at all. */
	put_pattern(q, 0, 1000);
	assert_int_equal(outq_dropped(q), 1000);
	assert_true(clock_now_ns() - start >= OUTQ_STALL_NS);
	/* a thousand waits would be far more than this, on any machine */
	assert_true(clock_now_ns() - start < 100 * OUTQ_STALL_NS);
	assert_int_equal(outq_flush(q, 10 * MSEC), -ETIMEDOUT);
	/* It reads again: all that was kept arrives, and more is taken. */
	atomic_store(&s->block, false);
	assert_int_equal(outq_flush(q, HANG_NS), 0);
	assert_int_equal(s->len, OUTQ_BYTES + 10);
	check_pattern(s->got, 0, s->len);
	put_pattern(q, 0, 10);
	assert_int_equal(outq_flush(q, HANG_NS), 0);
	assert_int_equal(s->len, OUTQ_BYTES + 20);
	assert_int_equal(outq_free(q), 0);
	free(s);
}

static void *put_much(void *arg)
{
	put_pattern(arg, 0, 2 * OUTQ_BYTES);
	return NULL;
}

/* How long who waits for room goes on waiting when nobody is to any more. */
static uint64_t stop_waiting_ns(void)
{
	struct sink *s = sink_new();
	uint64_t start, ns;
	struct outq *q;
	pthread_t thread;

	atomic_store(&s->block, true);
	assert_int_equal(outq_new(&q, OUTQ_WAIT, sink_write, s), 0);
	assert_int_equal(outq_start(q), 0);
	assert_int_equal(pthread_create(&thread, NULL, put_much, q), 0);
	sleep_ms(50); /* it waits by now */
	start = clock_now_ns();
	outq_set_waiting(q, false);
	pthread_join(thread, NULL);
	ns = clock_now_ns() - start;
	assert_true(outq_dropped(q) > 0);
	atomic_store(&s->block, false);
	assert_int_equal(outq_free(q), 0);
	free(s);
	return ns;
}

static void test_outq_stop_waiting(void **state)
{
	/* It does not wait that out; a machine may stand still for as long. */
	for (int i = 0; stop_waiting_ns() >= OUTQ_STALL_NS / 2; i++)
		assert_in_range(i, 0, TRIES - 1);
}

static void test_outq_keeps_the_newest(void **state)
{
	struct sink *s = sink_new();
	struct outq *q;

	assert_int_equal(outq_new(&q, OUTQ_KEEP_NEW, sink_write, s), 0);
	outq_hold(q, true);
	assert_int_equal(outq_start(q), 0);
	put_pattern(q, 0, OUTQ_BYTES + 5000);
	assert_int_equal(outq_dropped(q), 5000);
	assert_int_equal(outq_flush(q, HANG_NS), -EIO); /* nobody reads */
	assert_int_equal(s->calls, 0);
	outq_hold(q, false);
	assert_int_equal(outq_flush(q, HANG_NS), 0);
	assert_int_equal(s->len, OUTQ_BYTES);
	check_pattern(s->got, 5000, s->len);
	assert_int_equal(outq_free(q), 0);
	free(s);
}

static void test_outq_errors(void **state)
{
	struct sink *s = sink_new();
	struct outq *q;

	assert_int_equal(outq_new(&q, OUTQ_WAIT, sink_write, s), 0);
	assert_int_equal(outq_start(q), 0);
	/* A full disk loses what it loses. */
	s->result = -ENOSPC;
	put_pattern(q, 0, 100);
	assert_int_equal(outq_flush(q, HANG_NS), 0);
	assert_int_equal(outq_dropped(q), 100);
	s->result = 0;
	put_pattern(q, 0, 10);
	assert_int_equal(outq_flush(q, HANG_NS), 0);
	assert_int_equal(s->len, 10);
	/* A reader that is gone is gone. Nobody waits for it. */
	s->result = -EPIPE;
	put_pattern(q, 0, 100);
	assert_int_equal(outq_flush(q, HANG_NS), -EIO);
	put_pattern(q, 0, 3 * OUTQ_BYTES);
	assert_int_equal(outq_dropped(q), 200 + 3 * OUTQ_BYTES);
	assert_int_equal(outq_free(q), 0);
	free(s);
}

static void test_outq_last_words(void **state)
{
	struct sink *s = sink_new();
	struct outq *q;
	char buf[16];
	int fds[2];

	assert_int_equal(pipe(fds), 0);
	assert_int_equal(outq_new(&q, OUTQ_WAIT, sink_write, s), 0);
	outq_put(q, (const uint8_t *)"farewell", 8, true);
	outq_last_words(q, fds[1]);
	assert_int_equal(read(fds[0], buf, sizeof(buf)), 8);
	assert_memory_equal(buf, "farewell", 8);
	assert_int_equal(outq_free(q), 0);
	close(fds[0]);
	close(fds[1]);
	free(s);
}

/* -- file and null -- */

static void test_file(void **state)
{
	char path[] = "/tmp/quire-test-XXXXXX", buf[64];
	struct chardev_config cfg = { .kind = CHARDEV_FILE,
				      .path = path,
				      .option = "--serial" };
	struct err err = ERR_INIT;
	struct chardev *chr;
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, "what was there", 14), 14);
	close(fd);
	assert_int_equal(chardev_new(&chr, &cfg, &err), 0);
	assert_int_equal(chardev_start(chr, NULL, &err), 0);
	write_text(chr, "hello ");
	write_text(chr, "world\n");
	assert_int_equal(chardev_flush(chr, HANG_NS), 0);
	assert_int_equal(io_read_text(path, buf, sizeof(buf)), 11);
	assert_string_equal(buf, "hello world");
	write_text(chr, "more");
	chardev_free(chr); /* writes the rest */
	assert_int_equal(io_read_text(path, buf, sizeof(buf)), 16);
	assert_string_equal(buf, "hello world\nmore");
	unlink(path);
}

static void test_file_refused(void **state)
{
	char dir[] = "/tmp/quire-test-XXXXXX", path[64];
	struct chardev_config cfg = { .kind = CHARDEV_FILE,
				      .path = dir,
				      .option = "--serial" };
	struct err err = ERR_INIT;
	struct chardev *chr;

	assert_non_null(mkdtemp(dir));
	assert_int_equal(chardev_new(&chr, &cfg, &err), -EISDIR);
	assert_non_null(strstr(err.text, dir));
	snprintf(path, sizeof(path), "%s/no/such", dir);
	cfg.path = path;
	assert_int_equal(chardev_new(&chr, &cfg, &err), -ENOENT);
	snprintf(path, sizeof(path), "%s/fifo", dir);
	assert_int_equal(mkfifo(path, 0600), 0);
	assert_int_equal(chardev_new(&chr, &cfg, &err), -ENXIO);
	assert_non_null(strstr(err.text, "reader"));
	unlink(path);
	rmdir(dir);
}

static void test_null(void **state)
{
	struct chardev_config cfg = { .kind = CHARDEV_NULL,
				      .option = "--serial" };
	struct err err = ERR_INIT;
	struct chardev *chr;

	assert_int_equal(chardev_new(&chr, &cfg, &err), 0);
	assert_int_equal(chardev_start(chr, NULL, &err), 0);
	write_text(chr, "into the void");
	chardev_resume_input(chr);
	chardev_set_waiting(chr, false);
	assert_int_equal(chardev_flush(chr, MSEC), 0);
	assert_int_equal(chardev_dropped(chr), 0);
	chardev_free(chr);
	chardev_free(NULL);
}

/* -- socket -- */

struct sock_fixture {
	char dir[32];
	char path[64];
	struct chardev *chr;
	struct evloop *loop;
	struct guest guest;
	pthread_t thread;
};

static int sock_setup(void **state)
{
	struct sock_fixture *f = calloc(1, sizeof(*f));
	struct chardev_config cfg = { .kind = CHARDEV_SOCKET,
				      .option = "--serial" };
	struct err err = ERR_INIT;

	assert_non_null(f);
	strcpy(f->dir, "/tmp/quire-test-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->path, sizeof(f->path), "%s/con", f->dir);
	cfg.path = f->path;
	assert_int_equal(evloop_new(&f->loop), 0);
	assert_int_equal(chardev_new(&f->chr, &cfg, &err), 0);
	guest_attach(&f->guest, f->chr, 16);
	assert_int_equal(chardev_start(f->chr, f->loop, &err), 0);
	assert_int_equal(pthread_create(&f->thread, NULL, run_loop, f->loop),
			 0);
	*state = f;
	return 0;
}

static int sock_teardown(void **state)
{
	struct sock_fixture *f = *state;

	evloop_stop(f->loop, 0);
	pthread_join(f->thread, NULL);
	chardev_free(f->chr);
	evloop_free(f->loop);
	assert_int_equal(access(f->path, F_OK), -1); /* removed */
	assert_int_equal(rmdir(f->dir), 0);
	free(f);
	return 0;
}

static int sock_socket(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	return fd;
}

static void sock_connect_fd(int fd, const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	strcpy(addr.sun_path, path);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)),
			 0);
}

static int sock_connect(const char *path)
{
	int fd = sock_socket();

	sock_connect_fd(fd, path);
	return fd;
}

/* Read exactly text. */
static void expect(int fd, const char *text)
{
	size_t len = strlen(text), got = 0;
	char buf[256];

	assert_true(len < sizeof(buf));
	while (got < len) {
		struct pollfd pfd = { .fd = fd, .events = POLLIN };
		ssize_t n;

		assert_int_equal(poll(&pfd, 1, HANG_MS), 1);
		n = read(fd, buf + got, len - got);
		assert_true(n > 0);
		got += (size_t)n;
	}
	assert_memory_equal(buf, text, len);
}

static void test_socket_both_ways(void **state)
{
	struct sock_fixture *f = *state;
	int fd;

	write_text(f->chr, "booting\n"); /* before anybody is there */
	fd = sock_connect(f->path);
	expect(fd, "booting\n");
	write_text(f->chr, "login: ");
	expect(fd, "login: ");
	assert_int_equal(write(fd, "root\n", 5), 5);
	WAIT_FOR(guest_got(&f->guest) == 5);
	assert_memory_equal(f->guest.got, "root\n", 5);
	close(fd);
}

static void test_socket_input_waits_for_room(void **state)
{
	struct sock_fixture *f = *state;
	int fd = sock_connect(f->path);
	uint8_t data[20000];

	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = pattern(i);
	assert_int_equal(io_write_full(fd, data, sizeof(data)), 0);
	WAIT_FOR(guest_got(&f->guest) == 16);
	sleep_ms(20);
	assert_int_equal(guest_got(&f->guest), 16); /* and no more */
	for (size_t want = 32; want < 20000; want += 16) {
		guest_drain(&f->guest);
		WAIT_FOR(guest_got(&f->guest) == want);
	}
	guest_drain(&f->guest);
	WAIT_FOR(guest_got(&f->guest) == 20000);
	check_pattern(f->guest.got, 0, 20000);
	close(fd);
}

static void test_socket_one_client_after_another(void **state)
{
	struct sock_fixture *f = *state;
	int first = sock_connect(f->path), second;
	struct pollfd pfd;

	write_text(f->chr, "one");
	expect(first, "one");
	second = sock_connect(f->path); /* waits in the backlog */
	write_text(f->chr, "two");
	expect(first, "two");
	pfd = (struct pollfd){ .fd = second, .events = POLLIN };
	assert_int_equal(poll(&pfd, 1, 20), 0);
	close(first);
	write_text(f->chr, "three"); /* whether it was noticed yet or not */
	expect(second, "three");
	close(second);
}

static void test_socket_gone_with_input_unread(void **state)
{
	struct sock_fixture *f = *state;
	int fd = sock_connect(f->path), next;
	uint8_t data[8192] = { 0 };

	/* More than is held for a guest that takes nothing. */
	assert_int_equal(io_write_full(fd, data, sizeof(data)), 0);
	WAIT_FOR(guest_got(&f->guest) == 16);
	close(fd);
	/* The next client must not have to wait for the guest. */
	next = sock_connect(f->path);
	write_text(f->chr, "still here");
	expect(next, "still here");
	close(next);
}

static void test_socket_half_closed_client_still_reads(void **state)
{
	struct sock_fixture *f = *state;
	int fd = sock_connect(f->path), next;

	assert_int_equal(write(fd, "uptime\n", 7), 7);
	assert_int_equal(shutdown(fd, SHUT_WR), 0);
	WAIT_FOR(guest_got(&f->guest) == 7);
	write_text(f->chr, "up 3 days");
	expect(fd, "up 3 days");
	close(fd);
	next = sock_connect(f->path);
	write_text(f->chr, "hello");
	expect(next, "hello");
	close(next);
}

/* Far more than the queue and the socket's buffer hold. */
static uint64_t write_much_ns(struct chardev *chr)
{
	const uint8_t block[4096] = { 0 };
	uint64_t start = clock_now_ns();

	for (int i = 0; i < 1000; i++)
		chardev_write(chr, block, sizeof(block));
	return clock_now_ns() - start;
}

static void test_socket_client_that_does_not_read(void **state)
{
	struct sock_fixture *f = *state;
	int fd = sock_connect(f->path);

	/* not even one wait */
	for (int i = 0; write_much_ns(f->chr) >= OUTQ_STALL_NS; i++)
		assert_in_range(i, 0, TRIES - 1);
	assert_true(chardev_dropped(f->chr) > 0);
	close(fd);
}

static uint64_t thread_cpu_ns(pthread_t thread)
{
	struct timespec ts;
	clockid_t clock;

	assert_int_equal(pthread_getcpuclockid(thread, &clock), 0);
	assert_int_equal(clock_gettime(clock, &ts), 0);
	return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}

/* Without a free descriptor the control thread waits instead of spinning. */
static void test_socket_out_of_descriptors(void **state)
{
	struct sock_fixture *f = *state;
	struct rlimit before, none;
	uint64_t cpu, start, ns;
	int fd;

	log_set_level(LOG_LEVEL_ERROR);
	fd = dup(0); /* the lowest free one, which the limit will forbid */
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	none = before;
	none.rlim_cur = (rlim_t)fd;
	close(fd);
	fd = sock_socket();
	none.rlim_cur++;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	sock_connect_fd(fd, f->path);
	sleep_ms(50);
	cpu = thread_cpu_ns(f->thread);
	start = clock_now_ns();
	sleep_ms(300);
	cpu = thread_cpu_ns(f->thread) - cpu;
	ns = clock_now_ns() - start;
	assert_int_equal(write(fd, "hello", 5), 5);
	assert_int_equal(guest_got(&f->guest), 0);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	assert_true(cpu < ns / 10);
	WAIT_FOR(guest_got(&f->guest) == 5);
	log_set_level(LOG_LEVEL_INFO);
	close(fd);
}

static void test_socket_path_in_use(void **state)
{
	struct sock_fixture *f = *state;
	struct chardev_config cfg = { .kind = CHARDEV_SOCKET,
				      .path = f->path,
				      .option = "--serial" };
	char longer[300], other[64];
	struct err err = ERR_INIT;
	struct chardev *chr;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd;

	assert_int_equal(chardev_new(&chr, &cfg, &err), -EADDRINUSE);
	memset(longer, 'a', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	cfg.path = longer;
	assert_int_equal(chardev_new(&chr, &cfg, &err), -ENAMETOOLONG);

	/* Left behind by a process that died: taken over. */
	snprintf(other, sizeof(other), "%s/old", f->dir);
	strcpy(addr.sun_path, other);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	close(fd);
	cfg.path = other;
	assert_int_equal(chardev_new(&chr, &cfg, &err), 0);
	chardev_free(chr);
	assert_int_equal(access(other, F_OK), -1);

	/* But never a file. */
	fd = open(other, O_CREAT | O_WRONLY, 0600);
	close(fd);
	assert_int_equal(chardev_new(&chr, &cfg, &err), -EADDRINUSE);
	assert_int_equal(unlink(other), 0);
}

/*
 * -- tty: in a child, whose descriptors 0 and 1 we choose. It is this program,
 * executed afresh: no threads or sanitizer state of ours come with it --
 */

static struct evloop *tty_loop;

static void tty_quit(void *ctx)
{
	evloop_stop(tty_loop, 42);
}

static void child_resume(void *ctx, uint32_t events)
{
	/* A guest that takes everything, and echoes it in angle brackets. */
	struct guest *g = ctx;
	uint8_t open = '<', close_ = '>';

	chardev_write(g->chr, &open, 1);
	chardev_write(g->chr, g->got, g->got_len);
	chardev_write(g->chr, &close_, 1);
}

static void echo_receive(void *ctx, const uint8_t *data, size_t len)
{
	struct guest *g = ctx;

	guest_receive(ctx, data, len);
	child_resume(ctx, 0);
	g->got_len = 0;
	if (data[len - 1] == '!')
		abort();
	if (data[len - 1] == '.')
		evloop_stop(tty_loop, 3);
}

static void echo_break(void *ctx)
{
	struct guest *g = ctx;

	write_text(g->chr, "<break>");
}

static void echo_size(void *ctx)
{
	struct guest *g = ctx;
	uint16_t cols = 0, rows = 0;
	char text[32];

	if (chardev_size(g->chr, &cols, &rows))
		abort();
	snprintf(text, sizeof(text), "<%ux%u>", cols, rows);
	write_text(g->chr, text);
}

static size_t deaf_room(void *ctx)
{
	return 0;
}

static int echo_child(bool deaf)
{
	struct chardev_config cfg;
	struct err err = ERR_INIT;
	static struct guest g;
	struct chardev *chr;
	int code;

	chardev_config_init(&cfg);
	terminal_set_quit(tty_quit, NULL);
	if (evloop_new(&tty_loop) || chardev_new(&chr, &cfg, &err))
		return 100;
	guest_attach(&g, chr, sizeof(g.got));
	chr->client.receive = echo_receive;
	chr->client.receive_break = echo_break;
	chr->client.resized = echo_size;
	if (deaf)
		chr->client.room = deaf_room;
	if (chardev_start(chr, tty_loop, &err))
		return 101;
	write_text(chr, "ready\n");
	code = evloop_run(tty_loop);
	write_text(chr, "bye\n");
	chardev_free(chr);
	evloop_free(tty_loop);
	return code;
}

static pid_t spawn_child(const char *child, int in, int out)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		setsid();
		ioctl(in, TIOCSCTTY, 0);
		dup2(in, 0);
		dup2(out, 1);
		execl("/proc/self/exe", "test_chardev", child, NULL);
		_exit(99);
	}
	return pid;
}

static pid_t spawn(int in, int out)
{
	return spawn_child("echo", in, out);
}

static int wait_status(pid_t pid)
{
	int status;

	for (unsigned int i = 0; i < HANG_MS / 10; i++) {
		if (waitpid(pid, &status, WNOHANG) == pid)
			return status;
		sleep_ms(10);
	}
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	fail_msg("the child hangs");
	return status;
}

static void open_terminal(int *ret_master, int *ret_slave,
			  struct termios *ret_before)
{
	assert_int_equal(openpty(ret_master, ret_slave, NULL, NULL, NULL), 0);
	/* A child that outlived us would keep its own terminal open. */
	assert_int_equal(fcntl(*ret_master, F_SETFD, FD_CLOEXEC), 0);
	assert_int_equal(tcgetattr(*ret_slave, ret_before), 0);
}

static bool is_as_before(int slave, const struct termios *before)
{
	struct termios now;

	assert_int_equal(tcgetattr(slave, &now), 0);
	return now.c_iflag == before->c_iflag &&
	       now.c_oflag == before->c_oflag &&
	       now.c_lflag == before->c_lflag && now.c_cflag == before->c_cflag;
}

static void type(int master, const char *keys)
{
	assert_int_equal(write(master, keys, strlen(keys)), strlen(keys));
}

static void test_tty_raw_and_keys(void **state)
{
	struct termios before, raw;
	int master, slave, status;
	pid_t pid;

	open_terminal(&master, &slave, &before);
	pid = spawn(slave, slave);
	expect(master, "ready\n"); /* no CR added: raw */
	assert_int_equal(tcgetattr(slave, &raw), 0);
	assert_int_equal(raw.c_lflag & (ICANON | ECHO | ISIG), 0);
	type(master, "a\x03\x1a\r"); /* Ctrl-C and Ctrl-Z are the guest's */
	expect(master, "<a\x03\x1a\r>");
	type(master, "\x01\x01");
	expect(master, "<\x01>");
	type(master, "\x01"); /* in two pieces */
	sleep_ms(20);
	type(master, "b");
	expect(master, "<break>");
	type(master, "\x01h");
	expect(master, "\r\nCtrl-A x");
	type(master, "\x01x");
	status = wait_status(pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 42);
	assert_true(is_as_before(slave, &before));
	close(master);
	close(slave);
}

static void test_tty_window_size(void **state)
{
	struct winsize size = { .ws_col = 132, .ws_row = 50 };
	struct termios before;
	int master, slave;
	pid_t pid;

	open_terminal(&master, &slave, &before);
	pid = spawn(slave, slave);
	expect(master, "ready\n");
	assert_int_equal(ioctl(master, TIOCSWINSZ, &size), 0);
	expect(master, "<132x50>");
	size.ws_col = 80;
	assert_int_equal(ioctl(master, TIOCSWINSZ, &size), 0);
	expect(master, "<80x50>");
	type(master, "\x01x");
	assert_int_equal(WEXITSTATUS(wait_status(pid)), 42);
	close(master);
	close(slave);
}

static void test_tty_restored_after_a_crash(void **state)
{
	int master, slave, status;
	struct termios before;
	pid_t pid;

	open_terminal(&master, &slave, &before);
	pid = spawn(slave, slave);
	expect(master, "ready\n");
	assert_false(is_as_before(slave, &before));
	type(master, "!");
	expect(master, "<!>"); /* what was queued is not lost either */
	status = wait_status(pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGABRT);
	assert_true(is_as_before(slave, &before));
	close(master);
	close(slave);
}

static void check_restored_after(int sig)
{
	int master, slave, status;
	struct termios before;
	pid_t pid;

	open_terminal(&master, &slave, &before);
	pid = spawn(slave, slave);
	expect(master, "ready\n");
	assert_false(is_as_before(slave, &before));
	assert_int_equal(kill(pid, sig), 0);
	status = wait_status(pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), sig);
	assert_true(is_as_before(slave, &before));
	close(master);
	close(slave);
}

static void test_tty_restored_after_a_signal(void **state)
{
	const int fatal[] = {
		SIGHUP,	 SIGINT,  SIGQUIT,   SIGTERM, SIGUSR1,	SIGUSR2,
		SIGPIPE, SIGALRM, SIGVTALRM, SIGPROF, SIGXCPU,	SIGXFSZ,
		SIGIO,	 SIGPWR,  SIGSTKFLT, SIGSYS,  SIGRTMIN, SIGRTMAX,
	};

	for (size_t i = 0; i < ARRAY_SIZE(fatal); i++)
		check_restored_after(fatal[i]);
}

/* Escape keys work however much was typed at a guest that takes nothing. */
static void test_tty_keys_after_much_input(void **state)
{
	int master, slave, status;
	struct termios before;
	char line[100];
	pid_t pid;

	memset(line, 'a', sizeof(line));
	open_terminal(&master, &slave, &before);
	pid = spawn_child("deaf", slave, slave);
	expect(master, "ready\n");
	assert_int_equal(fcntl(master, F_SETFL, O_NONBLOCK), 0);
	for (size_t left = 10000; left;) {
		struct pollfd pfd = { .fd = master, .events = POLLOUT };
		ssize_t n;

		assert_int_equal(poll(&pfd, 1, HANG_MS), 1);
		n = write(master, line, MIN(left, sizeof(line)));
		assert_true(n > 0 || errno == EAGAIN);
		left -= n > 0 ? (size_t)n : 0;
	}
	type(master, "\x01h");
	expect(master, "\r\nCtrl-A x");
	type(master, "\x01x");
	status = wait_status(pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 42);
	close(master);
	close(slave);
}

static void test_tty_raw_again_after_stop(void **state)
{
	struct termios before;
	int master, slave;
	pid_t pid;

	open_terminal(&master, &slave, &before);
	pid = spawn(slave, slave);
	expect(master, "ready\n");
	assert_int_equal(kill(pid, SIGSTOP), 0);
	/* A shell takes the terminal back meanwhile. */
	assert_int_equal(tcsetattr(slave, TCSANOW, &before), 0);
	assert_int_equal(kill(pid, SIGCONT), 0);
	WAIT_FOR(!is_as_before(slave, &before));
	type(master, "\x01x");
	wait_status(pid);
	assert_true(is_as_before(slave, &before));
	close(master);
	close(slave);
}

static void test_tty_output_to_a_pipe(void **state)
{
	int master, slave, fds[2];
	struct termios before, raw;
	pid_t pid;

	/* The screen may be somebody else's: its output stays cooked. */
	open_terminal(&master, &slave, &before);
	assert_int_equal(pipe(fds), 0);
	pid = spawn(slave, fds[1]);
	close(fds[1]);
	expect(fds[0], "ready\n");
	assert_int_equal(tcgetattr(slave, &raw), 0);
	assert_int_equal(raw.c_lflag & ICANON, 0);
	assert_int_equal(raw.c_oflag, before.c_oflag);
	type(master, "\x01x");
	assert_int_equal(WEXITSTATUS(wait_status(pid)), 42);
	expect(fds[0], "bye\n");
	close(fds[0]);
	close(master);
	close(slave);
}

static void test_tty_without_a_terminal(void **state)
{
	int in[2], out[2];
	pid_t pid;

	assert_int_equal(pipe(in), 0);
	assert_int_equal(pipe(out), 0);
	pid = spawn(in[0], out[1]);
	close(in[0]);
	close(out[1]);
	expect(out[0], "ready\n");
	type(in[1], "\x01x"); /* plain bytes to a guest */
	expect(out[0], "<\x01x>");
	type(in[1], ".");
	assert_int_equal(WEXITSTATUS(wait_status(pid)), 3);
	expect(out[0], "<.>bye\n");
	close(in[1]);
	close(out[0]);
}

static void test_tty_input_from_a_file(void **state)
{
	char path[] = "/tmp/quire-test-XXXXXX";
	int fd = mkstemp(path), out[2];
	pid_t pid;

	/* epoll refuses files; they are read all the same. */
	assert_true(fd >= 0);
	unlink(path);
	assert_int_equal(write(fd, "script.", 7), 7);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	assert_int_equal(pipe(out), 0);
	pid = spawn(fd, out[1]);
	close(fd);
	close(out[1]);
	expect(out[0], "ready\n<script.>bye\n");
	assert_int_equal(WEXITSTATUS(wait_status(pid)), 3);
	close(out[0]);
}

static int stuck_child(void)
{
	static uint8_t much[160 * 1024];
	struct chardev_config cfg;
	struct err err = ERR_INIT;
	struct chardev *chr;

	chardev_config_init(&cfg);
	if (evloop_new(&tty_loop) || chardev_new(&chr, &cfg, &err) ||
	    chardev_start(chr, tty_loop, &err))
		return 100;
	chardev_set_waiting(chr, false);
	chardev_write(chr, much, sizeof(much)); /* nobody reads */
	chardev_free(chr);
	evloop_free(tty_loop);
	return 7;
}

static void test_tty_stuck_reader_does_not_hang_the_end(void **state)
{
	uint64_t start = clock_now_ns();
	int in[2], out[2], status;
	pid_t pid;

	assert_int_equal(pipe(in), 0);
	assert_int_equal(pipe(out), 0);
	pid = spawn_child("stuck", in[0], out[1]);
	status = wait_status(pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 7);
	/* a hang, not a slow machine */
	assert_true(clock_now_ns() - start < 60000 * MSEC);
	close(in[0]);
	close(in[1]);
	close(out[0]);
	close(out[1]);
}

#define S(fn) cmocka_unit_test_setup_teardown(fn, sock_setup, sock_teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_config),
		cmocka_unit_test(test_outq_coalesces),
		cmocka_unit_test(test_outq_waits_for_a_slow_reader),
		cmocka_unit_test(test_outq_gives_up_on_a_stuck_reader),
		cmocka_unit_test(test_outq_stop_waiting),
		cmocka_unit_test(test_outq_keeps_the_newest),
		cmocka_unit_test(test_outq_errors),
		cmocka_unit_test(test_outq_last_words),
		cmocka_unit_test(test_file),
		cmocka_unit_test(test_file_refused),
		cmocka_unit_test(test_null),
		S(test_socket_both_ways),
		S(test_socket_input_waits_for_room),
		S(test_socket_one_client_after_another),
		S(test_socket_gone_with_input_unread),
		S(test_socket_half_closed_client_still_reads),
		S(test_socket_client_that_does_not_read),
		S(test_socket_out_of_descriptors),
		S(test_socket_path_in_use),
		cmocka_unit_test(test_tty_raw_and_keys),
		cmocka_unit_test(test_tty_window_size),
		cmocka_unit_test(test_tty_restored_after_a_crash),
		cmocka_unit_test(test_tty_restored_after_a_signal),
		cmocka_unit_test(test_tty_keys_after_much_input),
		cmocka_unit_test(test_tty_raw_again_after_stop),
		cmocka_unit_test(test_tty_output_to_a_pipe),
		cmocka_unit_test(test_tty_without_a_terminal),
		cmocka_unit_test(test_tty_input_from_a_file),
		cmocka_unit_test(test_tty_stuck_reader_does_not_hang_the_end),
	};

	/* Started again by spawn_child(). */
	if (argc > 1 && !strcmp(argv[1], "stuck"))
		return stuck_child();
	if (argc > 1)
		return echo_child(!strcmp(argv[1], "deaf"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
