/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-vsock: a driver of our own on three rings, and host programs on real
 * Unix sockets.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/log.h"
#include "base/unix_socket.h"
#include "steady_clock.h"
#include "virtio/vsock/vsock.h"
#include "virtio/vsock/vsock_packet.h"
#include "virtio_fake.h"

#define RAM_BYTES  (16 * MIB)
#define RING_SIZE  128
#define WAIT_MS	   30000
#define QUIET_MS   100 /* how long nothing has to come to be "nothing" */
#define CID	   42
#define HEADER	   44u
#define RX_PAYLOAD 4096u
#define RX_BYTES   (HEADER + RX_PAYLOAD)
#define NUM_RX	   64
#define WINDOW	   (128u * 1024) /* what the device gives each connection */

/* One side of a connection as the driver keeps it. */
struct flow {
	uint32_t host_port, guest_port;
	uint32_t sent, peer_alloc, peer_fwd;
	uint32_t received, buf_alloc;
};

struct fixture {
	struct ram ram;
	struct virtio_dev *dev;
	struct fake_transport transport;
	struct vring rings[3];
	uint64_t rx_gpa[RING_SIZE]; /* by descriptor */
	uint64_t tx_gpa;
	char dir[64], path[96];
	unsigned char payload[RX_PAYLOAD];
};

/* -- host programs -- */

static int host_listen(struct fixture *f, uint32_t port, int backlog)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s_%u", f->path, port);
	unlink(addr.sun_path);
	assert_int_equal(bind(fd, (const struct sockaddr *)&addr, sizeof(addr)),
			 0);
	assert_int_equal(listen(fd, backlog), 0);
	return fd;
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

static void host_say(int fd, const char *text)
{
	assert_int_equal(io_write_full(fd, text, strlen(text)), 0);
}

static bool readable(int fd, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, ms) == 1;
}

static void expect_text(int fd, const char *text)
{
	char got[64] = { 0 };
	size_t len = strlen(text), have = 0;

	while (have < len) {
		ssize_t n;

		assert_true(readable(fd, WAIT_MS));
		n = read(fd, got + have, len - have);
		assert_true(n > 0);
		have += (size_t)n;
	}
	assert_string_equal(got, text);
}

/* End of file, or the error of a connection that was cut. */
static void expect_end(int fd)
{
	char c;

	assert_true(readable(fd, WAIT_MS));
	assert_true(read(fd, &c, 1) <= 0);
}

/* -- the driver -- */

static void kick(struct fixture *f, unsigned int queue)
{
	io_eventfd_signal(f->dev->queues[queue].kick_fd);
}

static void post_rx(struct fixture *f, uint64_t gpa, uint32_t len)
{
	struct vring_buf buf = { gpa, len, true };
	uint16_t head = vring_add(&f->rings[0], &buf, 1);

	f->rx_gpa[head] = gpa;
}

static void activate(struct fixture *f, unsigned int num_rx, uint64_t features)
{
	static const uint64_t bases[] = { 0x10000, 0x400000, 0x800000 };
	struct vq_config cfg;

	f->dev->transport = &fake_transport_ops;
	f->dev->transport_ctx = &f->transport;
	f->dev->features = f->dev->offered & features;
	for (unsigned int i = 0; i < 3; i++) {
		vring_init(&f->rings[i], &f->ram, RING_SIZE, bases[i]);
		vring_config(&f->rings[i], &cfg);
		cfg.event_idx = f->dev->features & VIRTIO_F_EVENT_IDX;
		cfg.indirect = f->dev->features & VIRTIO_F_INDIRECT_DESC;
		assert_int_equal(vq_start(&f->dev->queues[i].vq, &cfg), 0);
	}
	for (unsigned int i = 0; i < num_rx; i++)
		post_rx(f, vring_alloc(&f->rings[0], RX_BYTES, 64), RX_BYTES);
	f->tx_gpa = vring_alloc(&f->rings[1], HEADER + WINDOW + 4096, 64);
	assert_int_equal(f->dev->cls->activate(f->dev), 0);
}

static void deactivate(struct fixture *f)
{
	f->dev->cls->deactivate(f->dev);
	for (unsigned int i = 0; i < 3; i++)
		vq_stop(&f->dev->queues[i].vq);
}

static void create(struct fixture *f)
{
	struct err err = ERR_INIT;
	char options[160];

	snprintf(options, sizeof(options), "cid=%d,socket=%s", CID, f->path);
	if (fake_create(&f->dev, &virtio_vsock_class, options, &f->ram, 1,
			&err))
		fail_msg("%s", err.text);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	if (!f || fake_ram_init(&f->ram, RAM_BYTES))
		return -1;
	strcpy(f->dir, "/tmp/quire-vsock-XXXXXX");
	if (!mkdtemp(f->dir))
		return -1;
	snprintf(f->path, sizeof(f->path), "%s/v.sock", f->dir);
	create(f);
	activate(f, NUM_RX, ~0ull);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	char command[128];

	deactivate(f);
	f->dev->cls->destroy(f->dev);
	/* Its own socket is gone; those of the tests' listeners are not. */
	assert_int_equal(access(f->path, F_OK), -1);
	snprintf(command, sizeof(command), "rm -rf %s", f->dir);
	assert_int_equal(system(command), 0);
	ram_fini(&f->ram);
	free(f);
	return 0;
}

static void put_header(struct fixture *f, const struct vsock_header *h)
{
	memcpy(vring_ptr(&f->rings[1], f->tx_gpa), h, sizeof(*h));
}

/* What is at tx_gpa goes out; returns when the device has taken it. */
static void send_raw(struct fixture *f, uint32_t len)
{
	struct vring_buf buf = { f->tx_gpa, len, false };
	struct vring_used_elem used = { 0 };
	uint16_t head = vring_add(&f->rings[1], &buf, 1);

	kick(f, 1);
	assert_true(vring_wait_used(&f->rings[1], WAIT_MS, &used));
	assert_int_equal(used.id, head);
	assert_int_equal(used.len, 0);
}

static struct vsock_header header_of(const struct flow *fl, enum vsock_op op,
				     uint32_t len, uint32_t flags)
{
	return (struct vsock_header){
		.src_cid = CID,
		.dst_cid = VSOCK_CID_HOST,
		.src_port = fl->guest_port,
		.dst_port = fl->host_port,
		.len = len,
		.type = VSOCK_TYPE_STREAM,
		.op = (uint16_t)op,
		.flags = flags,
		.buf_alloc = fl->buf_alloc,
		.fwd_cnt = fl->received,
	};
}

static void guest_send(struct fixture *f, const struct flow *fl,
		       enum vsock_op op, uint32_t flags)
{
	struct vsock_header h = header_of(fl, op, 0, flags);

	put_header(f, &h);
	send_raw(f, HEADER);
}

static void guest_write(struct fixture *f, struct flow *fl, const void *data,
			uint32_t len)
{
	struct vsock_header h = header_of(fl, VSOCK_OP_RW, len, 0);

	put_header(f, &h);
	memcpy(vring_ptr(&f->rings[1], f->tx_gpa + HEADER), data, len);
	send_raw(f, HEADER + len);
	fl->sent += len;
}

static uint32_t credit(const struct flow *fl)
{
	return fl->peer_alloc - (fl->sent - fl->peer_fwd);
}

static bool try_receive(struct fixture *f, int ms, struct vsock_header *ret)
{
	struct vring_used_elem used = { 0 };
	uint64_t gpa;

	if (!vring_wait_used(&f->rings[0], (unsigned int)ms, &used))
		return false;
	gpa = f->rx_gpa[used.id];
	memcpy(ret, vring_ptr(&f->rings[0], gpa), sizeof(*ret));
	assert_int_equal(used.len, HEADER + ret->len);
	memcpy(f->payload, vring_ptr(&f->rings[0], gpa + HEADER),
	       MIN(ret->len, RX_PAYLOAD));
	/* Always so, whatever it is. */
	assert_int_equal(ret->dst_cid, CID);
	assert_int_equal(ret->type, VSOCK_TYPE_STREAM);
	post_rx(f, gpa, RX_BYTES);
	kick(f, 0);
	return true;
}

/* The next packet; it has to be of this flow. */
static struct vsock_header receive(struct fixture *f, struct flow *fl)
{
	struct vsock_header h = { 0 };

	if (!try_receive(f, WAIT_MS, &h))
		fail_msg("no packet came");
	assert_int_equal(h.src_cid, VSOCK_CID_HOST);
	assert_int_equal(h.src_port, fl->host_port);
	assert_int_equal(h.dst_port, fl->guest_port);
	if (h.op != VSOCK_OP_RST) {
		fl->peer_alloc = h.buf_alloc;
		fl->peer_fwd = h.fwd_cnt;
	}
	fl->received += h.len;
	return h;
}

static void expect_op(struct fixture *f, struct flow *fl, enum vsock_op op,
		      uint32_t flags)
{
	struct vsock_header h = receive(f, fl);

	assert_int_equal(h.op, op);
	assert_int_equal(h.flags, flags);
	assert_int_equal(h.len, 0);
}

static void expect_nothing(struct fixture *f)
{
	struct vsock_header h;

	if (try_receive(f, QUIET_MS, &h))
		fail_msg("op %u came out of the blue", h.op);
}

/* The guest connects to a host program; returns its end. */
static int guest_connect(struct fixture *f, struct flow *fl, uint32_t host_port,
			 uint32_t guest_port)
{
	_cleanup_close_ int listener = host_listen(f, host_port, 1);
	int fd;

	*fl = (struct flow){
		.host_port = host_port,
		.guest_port = guest_port,
		.buf_alloc = 1 << 20,
	};
	guest_send(f, fl, VSOCK_OP_REQUEST, 0);
	expect_op(f, fl, VSOCK_OP_RESPONSE, 0);
	assert_int_equal(fl->peer_alloc, WINDOW);
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

/* A REQUEST comes for this port: answer it. */
static void guest_accept(struct fixture *f, struct flow *fl, uint32_t port,
			 enum vsock_op answer)
{
	struct vsock_header h = { 0 };

	assert_true(try_receive(f, WAIT_MS, &h));
	assert_int_equal(h.op, VSOCK_OP_REQUEST);
	assert_int_equal(h.dst_port, port);
	assert_int_equal(h.src_cid, VSOCK_CID_HOST);
	assert_int_equal(h.len, 0);
	*fl = (struct flow){
		.host_port = h.src_port,
		.guest_port = port,
		.buf_alloc = 1 << 20,
		.peer_alloc = h.buf_alloc,
		.peer_fwd = h.fwd_cnt,
	};
	guest_send(f, fl, answer, 0);
}

static int host_connect_to(struct fixture *f, struct flow *fl, uint32_t port)
{
	int fd = host_connect(f);
	char line[64];

	snprintf(line, sizeof(line), "CONNECT %u\n", port);
	host_say(fd, line);
	guest_accept(f, fl, port, VSOCK_OP_RESPONSE);
	snprintf(line, sizeof(line), "OK %u\n", fl->host_port);
	expect_text(fd, line);
	return fd;
}

/* Byte i of a stream that tells any loss, repetition and mix-up. */
static unsigned char pattern(uint32_t seed, uint64_t i)
{
	uint64_t x = (i + seed) * 0x9e3779b97f4a7c15ull;

	return (unsigned char)(x >> 56);
}

static void fill(unsigned char *buf, uint32_t seed, uint64_t from, size_t len)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = pattern(seed, from + i);
}

static void check(const unsigned char *buf, uint32_t seed, uint64_t from,
		  size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (buf[i] != pattern(seed, from + i))
			fail_msg("byte %llu is wrong",
				 (unsigned long long)(from + i));
}

/* -- connecting -- */

static void test_guest_connects(void **state)
{
	struct fixture *f = *state;
	struct flow fl;
	int fd = guest_connect(f, &fl, 52, 1024);

	guest_write(f, &fl, "hello", 5);
	expect_text(fd, "hello");
	host_say(fd, "world");
	assert_int_equal(receive(f, &fl).len, 5);
	assert_memory_equal(f->payload, "world", 5);
	close(fd);
	expect_op(f, &fl, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_BOTH);
	guest_send(f, &fl, VSOCK_OP_RST, 0);
	expect_nothing(f);
	/* It is forgotten. */
	guest_send(f, &fl, VSOCK_OP_CREDIT_UPDATE, 0);
	expect_op(f, &fl, VSOCK_OP_RST, 0);
}

static void test_host_connects(void **state)
{
	struct fixture *f = *state;
	struct flow a, b;
	int fd = host_connect_to(f, &a, 1234);
	int other = host_connect_to(f, &b, 1234);

	assert_int_not_equal(a.host_port, b.host_port);
	host_say(fd, "to a");
	assert_int_equal(receive(f, &a).len, 4);
	guest_write(f, &b, "from b", 6);
	expect_text(other, "from b");
	guest_send(f, &a, VSOCK_OP_RST, 0);
	expect_end(fd);
	close(fd);
	close(other);
	expect_op(f, &b, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_BOTH);
}

/* A paused machine: what the host says waits outside, with all else. */
static void test_held(void **state)
{
	struct fixture *f = *state;
	struct err err = ERR_INIT;
	struct flow fl;
	int fd = guest_connect(f, &fl, 52, 1024);

	host_say(fd, "before");
	assert_int_equal(receive(f, &fl).len, 6);
	virtio_dev_hold(f->dev, true);
	if (virtio_dev_drain(f->dev, clock_now_ns() + WAIT_MS * NSEC_PER_MSEC,
			     &err))
		fail_msg("%s", err.text);
	host_say(fd, "while");
	expect_nothing(f);
	virtio_dev_hold(f->dev, false);
	assert_int_equal(receive(f, &fl).len, 5);
	assert_memory_equal(f->payload, "while", 5);
	close(fd);
	expect_op(f, &fl, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_BOTH);
}

/* A restored driver is told that its connections are gone, once. */
static void test_transport_reset(void **state)
{
	struct fixture *f = *state;
	struct vring_used_elem used = { 0 };
	struct vring_buf buf = { 0, 8, true };

	deactivate(f);
	f->dev->restored = true;
	activate(f, 16, ~0ull);
	f->dev->restored = false;
	/* Its event queue was empty. */
	buf.gpa = vring_alloc(&f->rings[2], 8, 8);
	memset(vring_ptr(&f->rings[2], buf.gpa), 0xff, 8);
	vring_add(&f->rings[2], &buf, 1);
	kick(f, 2);
	assert_true(vring_wait_used(&f->rings[2], WAIT_MS, &used));
	assert_int_equal(used.len, 4);
	assert_int_equal(le32_load(vring_ptr(&f->rings[2], buf.gpa)),
			 VSOCK_EVENT_TRANSPORT_RESET);
	vring_add(&f->rings[2], &buf, 1);
	kick(f, 2);
	assert_false(vring_wait_used(&f->rings[2], QUIET_MS, &used));
	/* After a reset it is a new device. */
	deactivate(f);
	activate(f, 16, ~0ull);
	vring_add(&f->rings[2], &buf, 1);
	kick(f, 2);
	assert_false(vring_wait_used(&f->rings[2], QUIET_MS, &used));
}

static void test_refused(void **state)
{
	struct flow fl = { .host_port = 99, .guest_port = 5 };
	struct fixture *f = *state;
	int fd;

	/* Nobody listens. */
	guest_send(f, &fl, VSOCK_OP_REQUEST, 0);
	expect_op(f, &fl, VSOCK_OP_RST, 0);
	/* Nobody listens in the guest. */
	fd = host_connect(f);
	host_say(fd, "CONNECT 7\n");
	guest_accept(f, &fl, 7, VSOCK_OP_RST);
	expect_end(fd);
	close(fd);
	/* The client goes before the guest has answered. */
	fd = host_connect(f);
	host_say(fd, "CONNECT 8\n");
	close(fd);
	/* What there is to say of that comes before this one. */
	fd = host_connect(f);
	host_say(fd, "CONNECT 9\n");
	{
		struct vsock_header h = { 0 };
		uint16_t op = 0;

		while (h.dst_port != 9) {
			assert_true(try_receive(f, WAIT_MS, &h));
			if (h.dst_port == 8)
				op = h.op;
		}
		/* Whether it was told of it or not, it is told of the end. */
		assert_true(op == VSOCK_OP_RST || op == 0);
		assert_int_equal(h.op, VSOCK_OP_REQUEST);
		fl = (struct flow){ .host_port = h.src_port, .guest_port = 9 };
	}
	guest_send(f, &fl, VSOCK_OP_RST, 0);
	expect_end(fd);
	close(fd);
	expect_nothing(f);
}

static void test_hello_lines(void **state)
{
	static const char *const bad[] = {
		"CONNECT\n",
		"CONNECT \n",
		"CONNECT -1\n",
		"CONNECT 0x10\n",
		"CONNECT 4294967296\n",
		"LISTEN 5\n",
		"\n",
		"CONNECT 5 6\n",
		"CONNECT5\n",
		"CONNECT "
		/* Longer than any line can be, and no end. */
		"CONNECT "
		"000000000000000000000000000000000000000000000000000000001",
	};
	struct fixture *f = *state;
	struct flow fl;
	int fd;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		fd = host_connect(f);
		host_say(fd, bad[i]);
		expect_end(fd);
		close(fd);
	}
	expect_nothing(f);
	/* In pieces, in other words, and with data right behind it. */
	fd = host_connect(f);
	host_say(fd, "con");
	usleep(20000);
	host_say(fd, "nect  77\r\nearly");
	guest_accept(f, &fl, 77, VSOCK_OP_RESPONSE);
	assert_int_equal(receive(f, &fl).len, 5);
	assert_memory_equal(f->payload, "early", 5);
	expect_text(fd, "OK ");
	close(fd);
}

/* The listener takes none for a while: the guest is not refused. */
static void test_backlog_full(void **state)
{
	struct fixture *f = *state;
	uint64_t end = clock_now_ns() + WAIT_MS * NSEC_PER_MSEC;
	int listener = host_listen(f, 60, 0), fd;
	struct flow fl[4];
	unsigned int answered = 0;

	/* There may be none to take, and an answer on its way. */
	assert_int_equal(fcntl(listener, F_SETFL, O_NONBLOCK), 0);
	for (unsigned int i = 0; i < 4; i++) {
		fl[i] = (struct flow){ .host_port = 60, .guest_port = 100 + i };
		guest_send(f, &fl[i], VSOCK_OP_REQUEST, 0);
	}
	while (answered < 4) {
		struct vsock_header h = { 0 };

		if (!try_receive(f, 20, &h)) {
			assert_true(clock_now_ns() < end);
			fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
			assert_true(fd >= 0 || errno == EAGAIN);
			close_fd(&fd);
			continue;
		}
		if (h.op == VSOCK_OP_RESPONSE)
			answered++;
		else
			assert_int_not_equal(h.op, VSOCK_OP_RST);
	}
	close(listener);
}

/* -- data -- */

struct reader {
	int fd;
	uint32_t seed;
	size_t bytes;
};

static void *read_pattern(void *arg)
{
	struct reader *r = arg;
	static _Thread_local unsigned char buf[65536];
	size_t have = 0;

	while (have < r->bytes) {
		ssize_t n = read(r->fd, buf, sizeof(buf));

		if (n <= 0)
			break;
		for (ssize_t i = 0; i < n; i++)
			if (buf[i] != pattern(r->seed, have + (size_t)i))
				return (void *)1;
		have += (size_t)n;
	}
	return (void *)(uintptr_t)(have != r->bytes);
}

/* Send all, waiting for credit where there is none. */
static void guest_write_all(struct fixture *f, struct flow *fl, uint32_t seed,
			    size_t bytes)
{
	static unsigned char buf[65536];
	size_t done = 0;

	while (done < bytes) {
		uint32_t n = (uint32_t)MIN(bytes - done, sizeof(buf));

		n = MIN(n, credit(fl));
		if (!n) {
			struct vsock_header h = receive(f, fl);

			assert_int_equal(h.op, VSOCK_OP_CREDIT_UPDATE);
			continue;
		}
		/* Odd sizes meet the borders of the device's ring. */
		n = n > 5000 ? n - (uint32_t)(done % 4999) : n;
		fill(buf, seed, done, n);
		guest_write(f, fl, buf, n);
		done += n;
	}
}

static void test_megabytes_to_host(void **state)
{
	struct fixture *f = *state;
	struct flow fl;
	struct reader r = { .seed = 7, .bytes = 8 * MIB };
	pthread_t thread;
	void *bad;

	r.fd = guest_connect(f, &fl, 52, 1024);
	assert_int_equal(pthread_create(&thread, NULL, read_pattern, &r), 0);
	guest_write_all(f, &fl, r.seed, r.bytes);
	pthread_join(thread, &bad);
	assert_null(bad);
	close(r.fd);
}

struct writer {
	int fd;
	size_t bytes;
};

static void *write_pattern(void *arg)
{
	struct writer *w = arg;
	static _Thread_local unsigned char buf[50000];
	size_t done = 0;

	while (done < w->bytes) {
		size_t n = MIN(sizeof(buf), w->bytes - done);

		fill(buf, 9, done, n);
		if (io_write_full(w->fd, buf, n))
			return (void *)1;
		done += n;
	}
	shutdown(w->fd, SHUT_WR);
	return NULL;
}

/* The guest's buffer is small, and told as often as it is empty. */
static void test_megabytes_to_guest(void **state)
{
	struct fixture *f = *state;
	struct writer w = { .bytes = 8 * MIB };
	struct vsock_header h;
	struct flow fl;
	uint32_t told;
	pthread_t thread;
	void *bad;

	w.fd = guest_connect(f, &fl, 52, 1024);
	fl.buf_alloc = 30000;
	guest_send(f, &fl, VSOCK_OP_CREDIT_UPDATE, 0);
	told = 0;
	assert_int_equal(pthread_create(&thread, NULL, write_pattern, &w), 0);
	for (;;) {
		uint32_t before = fl.received;

		h = receive(f, &fl);
		if (h.op == VSOCK_OP_SHUTDOWN)
			break;
		if (h.op == VSOCK_OP_RW)
			check(f->payload, 9, before, h.len);
		else
			assert_int_equal(h.op, VSOCK_OP_CREDIT_REQUEST);
		assert_true(fl.received - told <= fl.buf_alloc);
		if (fl.received - told == fl.buf_alloc ||
		    h.op == VSOCK_OP_CREDIT_REQUEST) {
			told = fl.received;
			guest_send(f, &fl, VSOCK_OP_CREDIT_UPDATE, 0);
		}
	}
	assert_int_equal(fl.received, w.bytes);
	assert_int_equal(h.flags, VSOCK_SHUTDOWN_SEND);
	pthread_join(thread, &bad);
	assert_null(bad);
	close(w.fd);
}

/*
 * Have all that the device has to say of what it took: what it is told for
 * nobody is answered ahead of it, but the second time not ahead of the first.
 */
static void hear_out(struct fixture *f, struct flow *fl)
{
	const struct flow nobody = { .host_port = 1, .guest_port = 2 };

	for (unsigned int i = 0; i < 2; i++) {
		struct vsock_header h = { 0 };

		guest_send(f, &nobody, VSOCK_OP_CREDIT_UPDATE, 0);
		while (h.op != VSOCK_OP_RST) {
			assert_true(try_receive(f, WAIT_MS, &h));
			if (h.op != VSOCK_OP_RST)
				fl->peer_fwd = h.fwd_cnt;
		}
		assert_int_equal(h.dst_port, nobody.guest_port);
	}
}

/* A host that does not read stops its own connection and no other. */
static void test_slow_reader(void **state)
{
	static unsigned char buf[16384];
	struct fixture *f = *state;
	struct flow slow, other;
	int fd = guest_connect(f, &slow, 52, 1024), fd2;
	struct reader r = { .fd = fd, .seed = 3 };
	size_t sent = 0;

	/* The socket's own buffer first, then all of the credit. */
	while (credit(&slow)) {
		uint32_t n = MIN(credit(&slow), (uint32_t)sizeof(buf));

		fill(buf, r.seed, sent, n);
		guest_write(f, &slow, buf, n);
		sent += n;
		if (credit(&slow) < sizeof(buf))
			hear_out(f, &slow);
	}
	fd2 = guest_connect(f, &other, 53, 1024);
	guest_write(f, &other, "goes on", 7);
	expect_text(fd2, "goes on");
	/* An answer, but no more credit. */
	guest_send(f, &slow, VSOCK_OP_CREDIT_REQUEST, 0);
	expect_op(f, &slow, VSOCK_OP_CREDIT_UPDATE, 0);
	assert_int_equal(credit(&slow), 0);
	/* Close it: what was sent is there to be read all the same. */
	guest_send(f, &slow, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_BOTH);
	expect_op(f, &slow, VSOCK_OP_RST, 0);
	/* The ports are free again at once. */
	{
		struct flow again;
		int fd3 = guest_connect(f, &again, 52, 1024);

		guest_write(f, &again, "new", 3);
		expect_text(fd3, "new");
		close(fd3);
	}
	r.bytes = sent;
	assert_null(read_pattern(&r));
	expect_end(fd);
	close(fd);
	close(fd2);
}

static void test_credit_overrun(void **state)
{
	static unsigned char buf[65536];
	struct fixture *f = *state;
	struct vsock_header h = { 0 };
	struct flow fl;
	int fd = guest_connect(f, &fl, 52, 1024);

	/* Whatever the host's kernel takes, at some point it is too much. */
	for (unsigned int i = 0; i < 100 && h.op != VSOCK_OP_RST; i++) {
		struct vsock_header out = header_of(&fl, VSOCK_OP_RW,
						    sizeof(buf), 0);

		put_header(f, &out);
		send_raw(f, HEADER + sizeof(buf));
		while (h.op != VSOCK_OP_RST && try_receive(f, 5, &h))
			;
	}
	assert_int_equal(h.op, VSOCK_OP_RST);
	/* It was forgotten with that. */
	guest_write(f, &fl, "x", 1);
	expect_op(f, &fl, VSOCK_OP_RST, 0);
	close(fd);
}

/* No credit: the guest is asked for some, once. */
static void test_no_credit(void **state)
{
	struct fixture *f = *state;
	struct flow fl;
	int fd = guest_connect(f, &fl, 52, 1024);

	fl.buf_alloc = 3;
	guest_send(f, &fl, VSOCK_OP_CREDIT_UPDATE, 0);
	host_say(fd, "abcdef");
	assert_int_equal(receive(f, &fl).len, 3);
	expect_op(f, &fl, VSOCK_OP_CREDIT_REQUEST, 0);
	expect_nothing(f);
	/* Nonsense gives none: more read than was sent. */
	fl.received += 1000;
	guest_send(f, &fl, VSOCK_OP_CREDIT_UPDATE, 0);
	expect_nothing(f);
	fl.received -= 1000;
	guest_send(f, &fl, VSOCK_OP_CREDIT_UPDATE, 0);
	assert_int_equal(receive(f, &fl).len, 3);
	assert_memory_equal(f->payload, "def", 3);
	close(fd);
}

/* -- ends -- */

static void test_half_close_by_guest(void **state)
{
	struct fixture *f = *state;
	struct flow fl;
	int fd = guest_connect(f, &fl, 52, 1024);

	guest_write(f, &fl, "question", 8);
	guest_send(f, &fl, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_SEND);
	expect_text(fd, "question");
	expect_end(fd);
	host_say(fd, "answer");
	assert_int_equal(receive(f, &fl).len, 6);
	close(fd);
	expect_op(f, &fl, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_BOTH);
	/* Sending after having said that it would not. */
	fl.sent = 0;
	guest_write(f, &fl, "x", 1);
	expect_op(f, &fl, VSOCK_OP_RST, 0);
}

static void test_half_close_by_host(void **state)
{
	struct fixture *f = *state;
	struct flow fl;
	int fd = guest_connect(f, &fl, 52, 1024);

	host_say(fd, "question");
	shutdown(fd, SHUT_WR);
	assert_int_equal(receive(f, &fl).len, 8);
	expect_op(f, &fl, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_SEND);
	guest_write(f, &fl, "answer", 6);
	expect_text(fd, "answer");
	guest_send(f, &fl, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_BOTH);
	expect_op(f, &fl, VSOCK_OP_RST, 0);
	expect_end(fd);
	close(fd);
}

/* Nothing is read any more that would show it. */
static void test_half_closed_then_closed(void **state)
{
	struct fixture *f = *state;
	struct flow fl;
	int fd = guest_connect(f, &fl, 52, 1024);

	shutdown(fd, SHUT_WR);
	expect_op(f, &fl, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_SEND);
	close(fd);
	expect_op(f, &fl, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_BOTH);
	guest_send(f, &fl, VSOCK_OP_RST, 0);
	expect_nothing(f);
}

/* The guest does not want to hear more. */
static void test_guest_stops_reading(void **state)
{
	struct fixture *f = *state;
	struct flow fl;
	int fd = guest_connect(f, &fl, 52, 1024);
	struct pollfd p = { .fd = fd, .events = POLLOUT };

	guest_send(f, &fl, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_RCV);
	assert_int_equal(poll(&p, 1, WAIT_MS), 1);
	assert_int_equal(send(fd, "x", 1, MSG_NOSIGNAL), -1);
	assert_int_equal(errno, EPIPE);
	guest_write(f, &fl, "still", 5);
	expect_text(fd, "still");
	close(fd);
	expect_op(f, &fl, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_BOTH);
}

/* The host does not, and tells so; what is on its way is dropped. */
static void test_host_stops_reading(void **state)
{
	static unsigned char buf[WINDOW];
	struct fixture *f = *state;
	struct flow fl;
	int fd = guest_connect(f, &fl, 52, 1024);

	shutdown(fd, SHUT_RD);
	guest_write(f, &fl, buf, 1000);
	expect_op(f, &fl, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_RCV);
	assert_int_equal(credit(&fl), WINDOW);
	guest_write(f, &fl, buf, WINDOW);
	expect_op(f, &fl, VSOCK_OP_CREDIT_UPDATE, 0);
	assert_int_equal(credit(&fl), WINDOW);
	host_say(fd, "still");
	assert_int_equal(receive(f, &fl).len, 5);
	close(fd);
	expect_op(f, &fl, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_BOTH);
}

/* A host program that dies with bytes unread. */
static void test_host_dies(void **state)
{
	struct fixture *f = *state;
	struct flow fl;
	int fd = guest_connect(f, &fl, 52, 1024);

	guest_write(f, &fl, "unread", 6);
	close(fd);
	expect_op(f, &fl, VSOCK_OP_RST, 0);
}

/* Reset and power-off: what the guest sent is still read. */
static void test_last_words(void **state)
{
	static unsigned char buf[65536];
	struct fixture *f = *state;
	struct flow fl;
	struct reader r = { .seed = 5 };
	pthread_t thread;
	void *bad;

	r.fd = guest_connect(f, &fl, 52, 1024);
	while (credit(&fl) >= sizeof(buf)) {
		fill(buf, r.seed, r.bytes, sizeof(buf));
		guest_write(f, &fl, buf, sizeof(buf));
		r.bytes += sizeof(buf);
		hear_out(f, &fl);
	}
	assert_int_equal(pthread_create(&thread, NULL, read_pattern, &r), 0);
	deactivate(f);
	pthread_join(thread, &bad);
	assert_null(bad);
	close(r.fd);
	activate(f, NUM_RX, ~0ull);
}

/* -- hostile -- */

/* Sends h with so many bytes in all; nobody answers, or an RST comes. */
static void expect_answer(struct fixture *f, struct vsock_header h,
			  uint32_t bytes, bool rst)
{
	struct vsock_header got = { 0 };

	put_header(f, &h);
	send_raw(f, bytes);
	if (!rst) {
		expect_nothing(f);
		return;
	}
	assert_true(try_receive(f, WAIT_MS, &got));
	assert_int_equal(got.op, VSOCK_OP_RST);
	assert_int_equal(got.src_cid, h.dst_cid);
	assert_int_equal(got.src_port, h.dst_port);
	assert_int_equal(got.dst_port, h.src_port);
	assert_int_equal(got.len, 0);
}

static void test_hostile_headers(void **state)
{
	struct flow fl = { .host_port = 1, .guest_port = 2 };
	struct fixture *f = *state;
	struct vsock_header h = header_of(&fl, VSOCK_OP_RW, 0, 0), bad;

	expect_answer(f, h, HEADER, true); /* no such connection */
	bad = h;
	bad.op = VSOCK_OP_RST;
	expect_answer(f, bad, HEADER, false);
	bad.type = 2; /* no RST for an RST */
	expect_answer(f, bad, HEADER, false);
	bad = h;
	bad.type = 77;
	expect_answer(f, bad, HEADER, true);
	bad = h;
	bad.op = 8;
	expect_answer(f, bad, HEADER, true);
	bad.op = 0;
	expect_answer(f, bad, HEADER, true);
	bad = h;
	bad.dst_cid = 43; /* a sibling: not reachable */
	bad.op = VSOCK_OP_REQUEST;
	expect_answer(f, bad, HEADER, true);
	bad = h;
	bad.src_cid = 43; /* not itself */
	expect_answer(f, bad, HEADER, false);
	bad = h;
	bad.len = 0xffffffff;
	expect_answer(f, bad, HEADER + 10, true);
	assert_int_equal(f->transport.needs_reset, 0);
	assert_int_equal(f->dev->errors, 7);
}

/* The same in a connection, which is at its end then. */
static void test_hostile_connection(void **state)
{
	struct fixture *f = *state;
	struct flow fl = { .host_port = 52, .guest_port = 1024 };
	struct vsock_header bad[5];
	unsigned int at[] = { HEADER, HEADER, HEADER + 3, HEADER, HEADER };

	bad[0] = header_of(&fl, VSOCK_OP_REQUEST, 0, 0);
	bad[1] = header_of(&fl, VSOCK_OP_RESPONSE, 0, 0);
	bad[2] = header_of(&fl, VSOCK_OP_RW, 4, 0);
	bad[3] = header_of(&fl, (enum vsock_op)9, 0, 0);
	bad[4] = header_of(&fl, VSOCK_OP_RW, 0, 0);
	bad[4].type = 2;
	for (unsigned int i = 0; i < ARRAY_SIZE(bad); i++) {
		int fd = guest_connect(f, &fl, 52, 1024);

		expect_answer(f, bad[i], at[i], true);
		expect_end(fd);
		close(fd);
		expect_nothing(f);
	}
}

static void test_needs_reset(void **state)
{
	struct fixture *f = *state;
	uint64_t end = clock_now_ns() + WAIT_MS * 1000000ull;
	unsigned int expected = 0;
	struct flow fl;
	int fd;

	for (unsigned int i = 0; i < 4; i++) {
		struct vring_buf buf = { f->tx_gpa, HEADER - 1, false };

		fd = guest_connect(f, &fl, 52, 1024);
		switch (i) {
		case 0: /* no header */
			vring_add(&f->rings[1], &buf, 1);
			break;
		case 1: /* not in memory */
			buf.gpa = RAM_BYTES - 2;
			vring_add(&f->rings[1], &buf, 1);
			break;
		case 2: /* for the device to fill: nothing to read */
			buf.in = true;
			vring_add(&f->rings[1], &buf, 1);
			break;
		case 3: /* no room for a header, of what is next */
			deactivate(f);
			close(fd);
			activate(f, 0, ~0ull);
			post_rx(f, f->tx_gpa, HEADER - 1);
			fd = host_connect(f);
			host_say(fd, "CONNECT 1\n");
			break;
		}
		kick(f, 1);
		expected++;
		while (f->transport.needs_reset < expected &&
		       clock_now_ns() < end)
			usleep(1000);
		assert_int_equal(f->transport.needs_reset, expected);
		/* It hangs up, and works again after a reset. */
		expect_end(fd);
		close(fd);
		deactivate(f);
		activate(f, NUM_RX, i & 1 ? ~0ull : ~VIRTIO_F_EVENT_IDX);
	}
	fd = guest_connect(f, &fl, 52, 1024);
	guest_write(f, &fl, "fine", 4);
	expect_text(fd, "fine");
	close(fd);
}

/* Resets pile up to a limit; then the guest has to take some first. */
static void test_resets_pile_up(void **state)
{
	struct flow fl = { .host_port = 1, .guest_port = 2 };
	struct fixture *f = *state;
	struct vsock_header h = header_of(&fl, VSOCK_OP_RW, 0, 0);
	struct vring_used_elem used;
	unsigned int taken = 0, rsts = 0;

	deactivate(f);
	activate(f, 0, ~0ull);
	put_header(f, &h);
	for (unsigned int i = 0; i < 300; i++) {
		struct vring_buf buf = { f->tx_gpa, HEADER, false };

		/* The ring has 128 entries. */
		if (i >= RING_SIZE) {
			assert_true(
				vring_wait_used(&f->rings[1], WAIT_MS, &used));
			taken++;
		}
		vring_add(&f->rings[1], &buf, 1);
		kick(f, 1);
	}
	for (; taken < 256; taken++)
		assert_true(vring_wait_used(&f->rings[1], WAIT_MS, &used));
	assert_false(vring_wait_used(&f->rings[1], QUIET_MS, &used));
	for (unsigned int i = 0; i < NUM_RX; i++)
		post_rx(f, vring_alloc(&f->rings[0], RX_BYTES, 64), RX_BYTES);
	kick(f, 0);
	while (rsts < 300) {
		struct vsock_header got = { 0 };

		assert_true(try_receive(f, WAIT_MS, &got));
		assert_int_equal(got.op, VSOCK_OP_RST);
		rsts++;
	}
	for (; taken < 300; taken++)
		assert_true(vring_wait_used(&f->rings[1], WAIT_MS, &used));
}

/* Buffers that hold a header only: used up, not waited on for ever. */
static void test_tiny_buffers(void **state)
{
	struct fixture *f = *state;
	struct vring_used_elem used = { 0 };
	struct vsock_header h;
	struct flow fl;
	uint64_t gpa;
	int fd;

	fd = guest_connect(f, &fl, 52, 1024);
	deactivate(f);
	close(fd);
	activate(f, 0, ~0ull);
	gpa = vring_alloc(&f->rings[0], 3 * HEADER, 64);
	fd = host_listen(f, 52, 1);
	post_rx(f, gpa, HEADER);
	post_rx(f, gpa + HEADER, HEADER);
	guest_send(f, &fl, VSOCK_OP_REQUEST, 0);
	assert_true(vring_wait_used(&f->rings[0], WAIT_MS, &used));
	assert_int_equal(used.len, HEADER);
	{
		int end = accept4(fd, NULL, NULL, SOCK_CLOEXEC);

		host_say(end, "data");
		assert_true(vring_wait_used(&f->rings[0], WAIT_MS, &used));
		assert_int_equal(used.len, HEADER);
		memcpy(&h, vring_ptr(&f->rings[0], gpa + HEADER), sizeof(h));
		assert_int_equal(h.op, VSOCK_OP_CREDIT_UPDATE);
		post_rx(f, vring_alloc(&f->rings[0], RX_BYTES, 64), RX_BYTES);
		kick(f, 0);
		assert_int_equal(receive(f, &fl).len, 4);
		close(end);
	}
	close(fd);
}

/* Header and payload in many small pieces, wherever their borders are. */
static void test_any_framing(void **state)
{
	struct fixture *f = *state;
	struct vring_used_elem used;
	struct vring_buf bufs[60];
	struct vsock_header h;
	struct flow fl;
	int fd = guest_connect(f, &fl, 52, 1024);
	unsigned int n = 0;

	h = header_of(&fl, VSOCK_OP_RW, 10, 0);
	put_header(f, &h);
	memcpy(vring_ptr(&f->rings[1], f->tx_gpa + HEADER), "0123456789", 10);
	for (uint32_t at = 0; at < HEADER + 10; at++)
		bufs[n++] = (struct vring_buf){ f->tx_gpa + at, 1, false };
	vring_add(&f->rings[1], bufs, n);
	kick(f, 1);
	assert_true(vring_wait_used(&f->rings[1], WAIT_MS, &used));
	expect_text(fd, "0123456789");
	close(fd);
}

/* The table has an end; who comes later is refused, until one goes. */
static void test_table_full(void **state)
{
	struct rlimit old, more = { 4096, 4096 };
	struct fixture *f = *state;
	int *fds = calloc(1025, sizeof(int));
	struct flow fl = { .host_port = 9, .guest_port = 9 };

	assert_non_null(fds);
	getrlimit(RLIMIT_NOFILE, &old);
	more.rlim_max = MAX(old.rlim_max, more.rlim_cur);
	if (setrlimit(RLIMIT_NOFILE, &more)) {
		free(fds);
		skip();
	}
	for (unsigned int i = 0; i < 1024; i++) {
		fds[i] = host_connect(f);
		host_say(fds[i], "C");
	}
	/* All are in, for this one, the last in the queue, is refused. */
	fds[1024] = host_connect(f);
	expect_end(fds[1024]);
	close(fds[1024]);
	close(host_listen(f, 9, 1));
	fds[1024] = host_listen(f, 9, 1);
	guest_send(f, &fl, VSOCK_OP_REQUEST, 0);
	expect_op(f, &fl, VSOCK_OP_RST, 0);
	host_say(fds[0], "\n");
	expect_end(fds[0]);
	guest_send(f, &fl, VSOCK_OP_REQUEST, 0);
	expect_op(f, &fl, VSOCK_OP_RESPONSE, 0);
	for (unsigned int i = 0; i < 1025; i++)
		close(fds[i]);
	setrlimit(RLIMIT_NOFILE, &old);
	free(fds);
}

/* -- configuration -- */

static void refuse(struct fixture *f, const char *options, const char *text)
{
	struct virtio_dev *dev = NULL;
	struct err err = ERR_INIT;

	assert_true(fake_create(&dev, &virtio_vsock_class, options, &f->ram, 1,
				&err) < 0);
	assert_null(dev);
	if (!strstr(err.text, text))
		fail_msg("'%s' is not in: %s", text, err.text);
}

static void test_config(void **state)
{
	struct fixture *f = *state;
	char options[256];
	uint64_t cid = 0;

	refuse(f, "cid=3", "socket=PATH is missing");
	refuse(f, "socket=/tmp/x", "cid=N is missing");
	refuse(f, "cid=2,socket=/tmp/x", "cid");
	refuse(f, "cid=4294967295,socket=/tmp/x", "cid");
	refuse(f, "cid=3,socket=", "socket");
	refuse(f, "cid=3,socket=/nonexistent/x", "No such file");
	memset(options, 'x', sizeof(options));
	memcpy(options, "cid=3,socket=", 13);
	options[13 + 98] = '\0';
	refuse(f, options, "too long");
	/* The fixture's device is alive. */
	snprintf(options, sizeof(options), "cid=3,socket=%s", f->path);
	refuse(f, options, "in use");
	assert_int_equal(f->dev->cls->config_space_bytes, 8);
	f->dev->cls->config_read(f->dev, 0, &cid, 8);
	assert_int_equal(cid, CID);
	assert_int_equal(f->dev->num_queues, 3);
	assert_true(f->dev->offered & VSOCK_F_STREAM);
}

/* Event buffers are the device's to keep; a driver resets at any time. */
static void test_restarts(void **state)
{
	struct fixture *f = *state;
	struct vring_used_elem used;

	for (unsigned int i = 0; i < 20; i++) {
		struct vring_buf buf = { f->tx_gpa, 8, true };
		struct flow fl;
		int fd = i & 1 ? host_connect_to(f, &fl, 5)
			       : guest_connect(f, &fl, 52, 1024);

		vring_add(&f->rings[2], &buf, 1);
		kick(f, 2);
		host_say(fd, "unread by the guest");
		deactivate(f);
		assert_false(vring_take_used(&f->rings[2], &used));
		expect_end(fd);
		close(fd);
		activate(f, NUM_RX, i & 2 ? ~0ull : ~VIRTIO_F_EVENT_IDX);
	}
}

#define VSOCK_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		VSOCK_TEST(test_guest_connects),
		VSOCK_TEST(test_host_connects),
		VSOCK_TEST(test_refused),
		VSOCK_TEST(test_held),
		VSOCK_TEST(test_transport_reset),
		VSOCK_TEST(test_hello_lines),
		VSOCK_TEST(test_backlog_full),
		VSOCK_TEST(test_megabytes_to_host),
		VSOCK_TEST(test_megabytes_to_guest),
		VSOCK_TEST(test_slow_reader),
		VSOCK_TEST(test_credit_overrun),
		VSOCK_TEST(test_no_credit),
		VSOCK_TEST(test_half_close_by_guest),
		VSOCK_TEST(test_half_close_by_host),
		VSOCK_TEST(test_half_closed_then_closed),
		VSOCK_TEST(test_guest_stops_reading),
		VSOCK_TEST(test_host_stops_reading),
		VSOCK_TEST(test_host_dies),
		VSOCK_TEST(test_last_words),
		VSOCK_TEST(test_hostile_headers),
		VSOCK_TEST(test_hostile_connection),
		VSOCK_TEST(test_needs_reset),
		VSOCK_TEST(test_resets_pile_up),
		VSOCK_TEST(test_tiny_buffers),
		VSOCK_TEST(test_any_framing),
		VSOCK_TEST(test_table_full),
		VSOCK_TEST(test_config),
		VSOCK_TEST(test_restarts),
	};

	log_set_level(LOG_LEVEL_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
