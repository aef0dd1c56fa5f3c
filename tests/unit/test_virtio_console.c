/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-console: a driver of our own, and a file or a socket as its host side.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/log.h"
#include "base/unix_socket.h"
#include "virtio/console/console.h"
#include "virtio_fake.h"

#define RAM_BYTES (8 * MIB)
#define RING_SIZE 16
#define WAIT_MS	  30000
#define QUIET_MS  100

struct fixture {
	struct ram ram;
	struct virtio_dev *dev;
	void *config;
	struct fake_transport transport;
	struct vring rx, tx;
	char dir[64], path[96];
};

/* Unlike fake_create(): the configuration lives on, as a VM's does. */
static int configure(struct fixture *f, const char *options, struct err *err)
{
	const struct virtio_class *cls = &virtio_console_class;
	int r;

	f->config = calloc(1, cls->config_bytes);
	assert_non_null(f->config);
	cls->config_defaults(f->config);
	r = kvlist_parse(cls->option, options, cls->first_key, cls->keys,
			 cls->num_keys, f->config, err);
	return r ? r : cls->config_check(f->config, err);
}

static void unconfigure(struct fixture *f)
{
	virtio_console_class.config_fini(f->config);
	free(take_ptr(f->config));
}

static void start_queue(struct fixture *f, unsigned int i, struct vring *ring)
{
	struct vq_config cfg;

	vring_config(ring, &cfg);
	cfg.event_idx = f->dev->features & VIRTIO_F_EVENT_IDX;
	cfg.indirect = f->dev->features & VIRTIO_F_INDIRECT_DESC;
	assert_int_equal(vq_start(&f->dev->queues[i].vq, &cfg), 0);
}

static void activate(struct fixture *f, uint64_t features)
{
	f->dev->transport = &fake_transport_ops;
	f->dev->transport_ctx = &f->transport;
	f->dev->features = f->dev->offered & features;
	vring_init(&f->rx, &f->ram, RING_SIZE, 0x10000);
	vring_init(&f->tx, &f->ram, RING_SIZE, 0x200000);
	start_queue(f, 0, &f->rx);
	start_queue(f, 1, &f->tx);
	assert_int_equal(f->dev->cls->activate(f->dev), 0);
}

static void deactivate(struct fixture *f)
{
	f->dev->cls->deactivate(f->dev);
	vq_stop(&f->dev->queues[0].vq);
	vq_stop(&f->dev->queues[1].vq);
}

static void create(struct fixture *f)
{
	struct err err = ERR_INIT;

	if (virtio_console_class.create(&f->dev, f->config, &f->ram, 1, 0,
					&err))
		fail_msg("%s", err.text);
}

static void start(struct fixture *f, const char *mode)
{
	struct err err = ERR_INIT;
	char options[160];

	snprintf(options, sizeof(options), "%s%s", mode,
		 strchr(mode, '=') ? f->path : "");
	if (configure(f, options, &err))
		fail_msg("%s", err.text);
	create(f);
	activate(f, ~0ull);
}

static void destroy(struct fixture *f)
{
	deactivate(f);
	f->dev->cls->destroy(f->dev);
}

static void stop(struct fixture *f)
{
	destroy(f);
	unconfigure(f);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	if (!f || fake_ram_init(&f->ram, RAM_BYTES))
		return -1;
	strcpy(f->dir, "/tmp/quire-console-XXXXXX");
	if (!mkdtemp(f->dir))
		return -1;
	snprintf(f->path, sizeof(f->path), "%s/out", f->dir);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	unlink(f->path);
	assert_int_equal(rmdir(f->dir), 0);
	ram_fini(&f->ram);
	free(f);
	return 0;
}

static void kick(struct fixture *f, unsigned int queue)
{
	io_eventfd_signal(f->dev->queues[queue].kick_fd);
}

/* The guest prints; returns when the device has taken it. */
static void print(struct fixture *f, const char *text, size_t len)
{
	uint64_t gpa = vring_alloc(&f->tx, len, 16);
	struct vring_buf bufs[] = { { gpa, (uint32_t)len / 2, false },
				    { gpa + len / 2, (uint32_t)(len - len / 2),
				      false } };
	struct vring_used_elem used = { 0 };
	uint16_t head;

	memcpy(vring_ptr(&f->tx, gpa), text, len);
	head = len > 1 ? vring_add(&f->tx, bufs, 2)
		       : vring_add(&f->tx, bufs + 1, 1);
	kick(f, 1);
	assert_true(vring_wait_used(&f->tx, WAIT_MS, &used));
	assert_int_equal(used.id, head);
	assert_int_equal(used.len, 0);
}

static void print_text(struct fixture *f, const char *text)
{
	print(f, text, strlen(text));
}

static int host_connect(struct fixture *f)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un addr;

	assert_int_equal(unix_socket_address(&addr, f->path), 0);
	assert_int_equal(
		connect(fd, (const struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

static void expect_text(int fd, const char *text)
{
	char got[256] = { 0 };
	size_t len = strlen(text), have = 0;

	while (have < len) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		ssize_t n;

		assert_int_equal(poll(&p, 1, WAIT_MS), 1);
		n = read(fd, got + have, len - have);
		assert_true(n > 0);
		have += (size_t)n;
	}
	assert_string_equal(got, text);
}

static uint64_t post_rx(struct fixture *f, uint32_t len)
{
	uint64_t gpa = vring_alloc(&f->rx, len, 16);
	struct vring_buf buf = { gpa, len, true };

	vring_add(&f->rx, &buf, 1);
	kick(f, 0);
	return gpa;
}

static void expect_input(struct fixture *f, uint64_t gpa, const char *text)
{
	struct vring_used_elem used = { 0 };

	assert_true(vring_wait_used(&f->rx, WAIT_MS, &used));
	assert_int_equal(used.len, strlen(text));
	assert_memory_equal(vring_ptr(&f->rx, gpa), text, strlen(text));
}

/* -- tests -- */

static void test_file(void **state)
{
	struct fixture *f = *state;
	char *big = malloc(300000), *got = malloc(400000);
	_cleanup_close_ int fd = -1;

	assert_true(big && got);
	memset(big, 'x', 300000);
	start(f, "file=");
	print_text(f, "hello ");
	print(f, big, 300000);
	print_text(f, "!");
	assert_int_equal(fake_requests(f->dev, 1, 3), 3);
	stop(f);
	fd = open(f->path, O_RDONLY);
	assert_int_equal(read(fd, got, 400000), 300007);
	assert_memory_equal(got, "hello xxx", 9);
	assert_int_equal(got[300006], '!');
	free(big);
	free(got);
}

static void test_socket_both_ways(void **state)
{
	struct fixture *f = *state;
	uint64_t a, b;
	int fd;

	start(f, "socket=");
	print_text(f, "before anybody listened\n");
	fd = host_connect(f);
	expect_text(fd, "before anybody listened\n");
	/* Input waits for buffers, of any size. */
	assert_int_equal(write(fd, "abcdef", 6), 6);
	a = post_rx(f, 4);
	expect_input(f, a, "abcd");
	b = post_rx(f, 4096);
	expect_input(f, b, "ef");
	/* And buffers for input. */
	a = post_rx(f, 16);
	usleep(20000);
	assert_int_equal(write(fd, "later", 5), 5);
	expect_input(f, a, "later");
	print_text(f, "answer");
	expect_text(fd, "answer");
	close(fd);
	/* Another one. */
	fd = host_connect(f);
	print_text(f, "again");
	expect_text(fd, "again");
	close(fd);
	stop(f);
	assert_int_equal(access(f->path, F_OK), -1);
}

/* Much input through small buffers: in order, nothing lost. */
static void test_much_input(void **state)
{
	struct vring_used_elem used = { 0 };
	struct fixture *f = *state;
	unsigned char data[20000], next = 0;
	size_t sent = 0, have = 0;
	uint64_t gpa;
	int fd;

	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (unsigned char)i;
	start(f, "socket=");
	fd = host_connect(f);
	assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
	gpa = vring_alloc(&f->rx, 64, 16);
	while (have < sizeof(data)) {
		struct vring_buf buf = { gpa, 64, true };
		ssize_t n = write(fd, data + sent, sizeof(data) - sent);

		sent += n > 0 ? (size_t)n : 0;
		vring_add(&f->rx, &buf, 1);
		kick(f, 0);
		assert_true(vring_wait_used(&f->rx, WAIT_MS, &used));
		assert_true(used.len >= 1 && used.len <= 64);
		for (uint32_t i = 0; i < used.len; i++, next++)
			assert_int_equal(
				*((unsigned char *)vring_ptr(&f->rx, gpa) + i),
				next);
		have += used.len;
	}
	close(fd);
	stop(f);
}

/* A reboot: another device, the same file and the same client. */
static void test_reboot(void **state)
{
	struct fixture *f = *state;
	uint64_t gpa;
	int fd;

	start(f, "socket=");
	fd = host_connect(f);
	print_text(f, "one ");
	expect_text(fd, "one ");
	destroy(f);
	assert_int_equal(write(fd, "typed early", 11), 11);
	create(f);
	activate(f, ~VIRTIO_F_EVENT_IDX);
	print_text(f, "two");
	expect_text(fd, "two");
	gpa = post_rx(f, 64);
	expect_input(f, gpa, "typed early");
	close(fd);
	stop(f);
	assert_int_equal(access(f->path, F_OK), -1);
}

static void test_reboot_keeps_file(void **state)
{
	struct fixture *f = *state;
	char got[64] = { 0 };

	start(f, "file=");
	print_text(f, "first ");
	destroy(f);
	create(f);
	activate(f, ~0ull);
	print_text(f, "second");
	stop(f);
	assert_true(io_read_text(f->path, got, sizeof(got)) > 0);
	assert_string_equal(got, "first second");
}

/* Device resets, with a buffer held and without. */
static void test_restarts(void **state)
{
	struct vring_used_elem used = { 0 };
	struct fixture *f = *state;
	int fd;

	start(f, "socket=");
	fd = host_connect(f);
	for (unsigned int i = 0; i < 20; i++) {
		uint64_t gpa = post_rx(f, 32);

		if (i % 3 == 0) {
			assert_int_equal(write(fd, "key", 3), 3);
			expect_input(f, gpa, "key");
			post_rx(f, 32);
			usleep(2000);
		}
		print_text(f, ".");
		deactivate(f);
		/* What it held came back empty; the rest it left alone. */
		while (vring_take_used(&f->rx, &used))
			assert_int_equal(used.len, 0);
		activate(f, i & 1 ? ~0ull : ~VIRTIO_F_EVENT_IDX);
	}
	expect_text(fd, "....................");
	close(fd);
	stop(f);
}

/* A reader that is stuck holds up neither the driver's reset nor the end. */
static void test_stuck_reader(void **state)
{
	struct fixture *f = *state;
	_cleanup_close_ int keep = -1;
	struct vring_buf buf = { 0x300000, MIB, false };

	assert_int_equal(mkfifo(f->path, 0600), 0);
	keep = open(f->path, O_RDONLY | O_NONBLOCK);
	assert_true(keep >= 0);
	start(f, "file=");
	vring_add(&f->tx, &buf, 1);
	kick(f, 1);
	usleep(50000);
	deactivate(f);
	activate(f, ~0ull);
	close_fd(&keep); /* or the final flush would wait for it */
	stop(f);
}

static void expect_needs_reset(struct fixture *f, unsigned int count)
{
	for (int i = 0; i < WAIT_MS && f->transport.needs_reset < count; i++)
		usleep(1000);
	assert_int_equal(f->transport.needs_reset, count);
}

static void test_bad_chains(void **state)
{
	struct fixture *f = *state;
	struct vring_buf bad = { RAM_BYTES - 1, 2, false };
	uint64_t gpa;
	int fd;

	start(f, "socket=");
	fd = host_connect(f);
	vring_add(&f->tx, &bad, 1);
	kick(f, 1);
	expect_needs_reset(f, 1);
	deactivate(f);
	activate(f, ~0ull);
	bad.in = true;
	vring_add(&f->rx, &bad, 1);
	kick(f, 0);
	assert_int_equal(write(fd, "x", 1), 1);
	expect_needs_reset(f, 2);
	deactivate(f);
	activate(f, ~0ull);
	/* Nothing to fill: given back, and the next one is taken. */
	bad = (struct vring_buf){ 0x300000, 4, false };
	vring_add(&f->rx, &bad, 1);
	gpa = post_rx(f, 8);
	expect_input(f, gpa, "");
	expect_input(f, gpa, "x");
	close(fd);
	stop(f);
}

/* cols and rows as the driver reads them. */
static bool window_is(struct fixture *f, uint16_t cols, uint16_t rows)
{
	uint16_t size[2] = { 0, 0 };

	f->dev->cls->config_read(f->dev, 0, size, sizeof(size));
	return le16toh(size[0]) == cols && le16toh(size[1]) == rows;
}

static unsigned int wait_for_change(struct fixture *f, unsigned int before)
{
	for (int i = 0; i < WAIT_MS && f->transport.config_changes == before;
	     i++)
		usleep(1000);
	return f->transport.config_changes;
}

/* On a terminal of its own; returns 0, or which step was wrong. */
static int window_child(struct fixture *f, int slave)
{
	struct winsize size = { .ws_col = 132, .ws_row = 50 };

	setsid();
	if (ioctl(slave, TIOCSCTTY, 0) || dup2(slave, 0) < 0 ||
	    dup2(slave, 1) < 0)
		return 1;
	start(f, "tty");
	if (!(f->dev->features & 1) || !window_is(f, 101, 33))
		return 2;
	/* Without a change, too, for that is how Linux learns of it. */
	if (wait_for_change(f, 0) != 1)
		return 3;
	usleep(150000);
	print_text(f, "hello");
	if (wait_for_change(f, 1) != 2)
		return 4;
	if (ioctl(1, TIOCSWINSZ, &size))
		return 5;
	if (wait_for_change(f, 2) != 3 || !window_is(f, 132, 50))
		return 6;
	stop(f);
	return 0;
}

static void test_window(void **state)
{
	struct winsize size = { .ws_col = 101, .ws_row = 33 };
	struct fixture *f = *state;
	int master, slave, status;
	pid_t pid;

	assert_int_equal(openpty(&master, &slave, NULL, NULL, &size), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid)
		_exit(window_child(f, slave));
	expect_text(master, "hello");
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	close(master);
	close(slave);
}

static void refuse(struct fixture *f, const char *options, const char *text)
{
	struct err err = ERR_INIT;
	int r = configure(f, options, &err);

	if (!r)
		r = virtio_console_class.create(&f->dev, f->config, &f->ram, 1,
						0, &err);
	assert_true(r < 0);
	if (!strstr(err.text, text))
		fail_msg("'%s' is not in: %s", text, err.text);
	unconfigure(f);
}

static void test_config(void **state)
{
	struct fixture *f = *state;
	uint32_t space[3] = { 1, 1, 1 };
	struct err err = ERR_INIT;

	refuse(f, "pty0", "not one of tty, null, file=PATH, socket=PATH");
	refuse(f, "tty,file=x", "takes one of");
	refuse(f, "file=x,socket=y", "takes one of");
	refuse(f, "mode=File", "takes one of");
	refuse(f, "file=", "file has no value");
	refuse(f, "file=/nonexistent/x", "No such file");
	refuse(f, "socket=/nonexistent/x", "No such file");
	/* A file that was made for nothing is gone again. */
	assert_int_equal(access(f->path, F_OK), -1);

	assert_int_equal(configure(f, "mode=Tty", &err), 0);
	assert_true(virtio_console_class.wants_terminal(f->config));
	unconfigure(f);

	start(f, "off");
	assert_false(virtio_console_class.wants_terminal(f->config));
	assert_false(f->dev->offered & 1); /* no window */
	f->dev->cls->config_read(f->dev, 0, space, sizeof(space));
	assert_int_equal(space[0] | space[1] | space[2], 0);
	print_text(f, "into the void");
	stop(f);
}

#define CONSOLE_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CONSOLE_TEST(test_file),
		CONSOLE_TEST(test_socket_both_ways),
		CONSOLE_TEST(test_much_input),
		CONSOLE_TEST(test_reboot),
		CONSOLE_TEST(test_reboot_keeps_file),
		CONSOLE_TEST(test_restarts),
		CONSOLE_TEST(test_stuck_reader),
		CONSOLE_TEST(test_bad_chains),
		CONSOLE_TEST(test_window),
		CONSOLE_TEST(test_config),
	};

	signal(SIGPIPE, SIG_IGN);
	log_set_level(LOG_LEVEL_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
