/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-net as a driver sees it, with a Unix stream socket as the other end:
 * the test is the driver, and the peer.
 */
#include "cmocka_all.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/log.h"
#include "virtio/net/net.h"
#include "virtio/net/net_spec.h"
#include "virtio_fake.h"

#define RAM_BYTES (16 * MIB)
#define RING_SIZE 64
#define WAIT_MS	  20000
#define HDR	  NET_HDR_BYTES
#define RX	  0
#define TX	  1
#define CTRLQ	  2

struct fixture {
	struct ram ram;
	struct virtio_dev *dev;
	struct fake_transport transport;
	struct vring rings[3];
	char dir[32], path[64];
	int listener, peer;
};

static void nap(void)
{
	const struct timespec pause = { .tv_nsec = 200000 };

	nanosleep(&pause, NULL);
}

#define WAIT_FOR(cond)                                                 \
	do {                                                           \
		uint64_t _end = clock_now_ns() + WAIT_MS * 1000000ull; \
                                                                       \
		while (!(cond)) {                                      \
			if (clock_now_ns() > _end)                     \
				fail_msg("never: %s", #cond);          \
			nap();                                         \
		}                                                      \
	} while (0)

static void listen_on(struct fixture *f)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", f->path);
	unlink(f->path);
	f->listener = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(
		bind(f->listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(f->listener, 1), 0);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	if (!f || fake_ram_init(&f->ram, RAM_BYTES))
		return -1;
	snprintf(f->dir, sizeof(f->dir), "/tmp/quire-net-XXXXXX");
	if (!mkdtemp(f->dir))
		return -1;
	snprintf(f->path, sizeof(f->path), "%s/net", f->dir);
	f->peer = -1;
	listen_on(f);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	close_fd(&f->peer);
	close_fd(&f->listener);
	unlink(f->path);
	rmdir(f->dir);
	ram_fini(&f->ram);
	free(f);
	return 0;
}

static void create(struct fixture *f, const char *options)
{
	struct err err = ERR_INIT;
	char text[200];

	snprintf(text, sizeof(text), "socket=%s,%s", f->path,
		 options ? options : "queue_size=64");
	if (fake_create(&f->dev, &virtio_net_class, text, &f->ram, 1, &err))
		fail_msg("%s", err.text);
	f->peer = accept(f->listener, NULL, NULL);
	assert_true(f->peer >= 0);
}

/* Negotiate and start all three queues. */
static int activate(struct fixture *f, uint64_t features)
{
	f->dev->transport = &fake_transport_ops;
	f->dev->transport_ctx = &f->transport;
	f->dev->features = f->dev->offered & features;
	for (unsigned int i = 0; i < 3; i++) {
		struct vq_config cfg;

		vring_init(&f->rings[i], &f->ram, RING_SIZE,
			   0x10000 + i * 4 * MIB);
		vring_config(&f->rings[i], &cfg);
		cfg.event_idx = f->dev->features & VIRTIO_F_EVENT_IDX;
		cfg.indirect = f->dev->features & VIRTIO_F_INDIRECT_DESC;
		assert_int_equal(vq_start(&f->dev->queues[i].vq, &cfg), 0);
	}
	return f->dev->cls->activate(f->dev);
}

static void deactivate(struct fixture *f)
{
	f->dev->cls->deactivate(f->dev);
	for (unsigned int i = 0; i < 3; i++)
		vq_stop(&f->dev->queues[i].vq);
}

static void start(struct fixture *f, const char *options, uint64_t features)
{
	create(f, options);
	assert_int_equal(activate(f, features), 0);
}

static void stop(struct fixture *f)
{
	deactivate(f);
	f->dev->cls->destroy(f->dev);
}

static void kick(struct fixture *f, unsigned int queue)
{
	io_eventfd_signal(f->dev->queues[queue].kick_fd);
}

static uint64_t counter(struct fixture *f, const char *name)
{
	for (unsigned int i = 0; i < f->dev->num_counters; i++)
		if (!strcmp(f->dev->counters[i].name, name))
			return atomic_load(f->dev->counters[i].value);
	fail_msg("no counter %s", name);
	return 0;
}

/* ---- the peer ---- */

static void fill(unsigned char *p, size_t len, unsigned int seed)
{
	for (size_t i = 0; i < len; i++)
		p[i] = (unsigned char)(i * 7 + i / 251 + seed);
}

static void peer_send_len(struct fixture *f, uint32_t len)
{
	uint32_t be = htonl(len);

	assert_int_equal(io_write_full(f->peer, &be, sizeof(be)), 0);
}

static void peer_send(struct fixture *f, size_t len, unsigned int seed)
{
	_cleanup_free_ unsigned char *p = malloc(len);

	fill(p, len, seed);
	peer_send_len(f, (uint32_t)len);
	assert_int_equal(io_write_full(f->peer, p, len), 0);
}

/* The next frame that comes is this one. */
static void peer_expect(struct fixture *f, size_t len, unsigned int seed)
{
	_cleanup_free_ unsigned char *got = malloc(len);
	_cleanup_free_ unsigned char *want = malloc(len);
	uint32_t be;

	assert_int_equal(io_read_full(f->peer, &be, sizeof(be)), 0);
	assert_int_equal(ntohl(be), len);
	assert_int_equal(io_read_full(f->peer, got, len), 0);
	fill(want, len, seed);
	assert_memory_equal(got, want, len);
}

/* ---- the driver ---- */

/* Header and frame in a chain of pieces of so many bytes. */
static uint16_t driver_send(struct fixture *f, size_t len, unsigned int seed,
			    uint32_t piece, bool indirect)
{
	struct vring *ring = &f->rings[TX];
	uint64_t gpa = vring_alloc(ring, HDR + len, 16), table;
	struct vring_buf bufs[VQ_MAX_IOV];
	unsigned int n = 0;

	memset(vring_ptr(ring, gpa), 0, HDR);
	fill((unsigned char *)vring_ptr(ring, gpa) + HDR, len, seed);
	for (uint32_t at = 0; at < HDR + len; at += piece)
		bufs[n++] = (struct vring_buf){
			gpa + at, (uint32_t)MIN(piece, HDR + len - at), false
		};
	if (!indirect)
		return vring_add(ring, bufs, n);
	table = vring_alloc(ring, 16ull * n, 16);
	return vring_add_indirect(ring, table, bufs, n);
}

static void expect_used(struct fixture *f, unsigned int queue, uint16_t head,
			uint32_t len)
{
	struct vring_used_elem used = { 0 };

	assert_true(vring_wait_used(&f->rings[queue], WAIT_MS, &used));
	assert_int_equal(used.id, head);
	assert_int_equal(used.len, len);
}

/* A receive buffer; its address. */
static uint64_t post(struct fixture *f, uint32_t len)
{
	uint64_t gpa = vring_alloc(&f->rings[RX], len, 16);
	struct vring_buf buf = { gpa, len, true };

	memset(vring_ptr(&f->rings[RX], gpa), 0xee, len);
	vring_add(&f->rings[RX], &buf, 1);
	return gpa;
}

static void expect_bytes(struct fixture *f, uint64_t gpa, size_t len,
			 unsigned int seed)
{
	const unsigned char *p = vring_ptr(&f->rings[RX], gpa);
	_cleanup_free_ unsigned char *want = malloc(len);
	struct vring_used_elem used = { 0 };

	assert_true(vring_wait_used(&f->rings[RX], WAIT_MS, &used));
	assert_int_equal(used.len, HDR + len);
	for (unsigned int i = 0; i < NET_HDR_NUM_BUFFERS; i++)
		assert_int_equal(p[i], 0);
	assert_int_equal(le16_load(p + NET_HDR_NUM_BUFFERS), 1);
	fill(want, len, seed);
	assert_memory_equal(p + HDR, want, len);
}

/* Not a byte more; where no frame was dropped, which leaves its own. */
static void expect_frame(struct fixture *f, uint64_t gpa, size_t len,
			 unsigned int seed)
{
	const unsigned char *p = vring_ptr(&f->rings[RX], gpa);

	expect_bytes(f, gpa, len, seed);
	assert_int_equal(p[HDR + len], 0xee);
}

/* ---- tests ---- */

static uint16_t config16(struct fixture *f, uint32_t offset)
{
	uint16_t v;

	f->dev->cls->config_read(f->dev, offset, &v, 2);
	return le16toh(v);
}

static void test_config(void **state)
{
	const uint8_t want[] = { 2, 0, 0, 0x12, 0x34, 0x56 };
	struct fixture *f = *state;
	uint8_t mac[6];

	create(f, "mac=02:00:00:12:34:56,mtu=9000");
	f->dev->cls->config_read(f->dev, 0, mac, 6);
	assert_memory_equal(mac, want, 6);
	assert_int_equal(config16(f, 6), NET_S_LINK_UP);
	assert_int_equal(config16(f, 8), 1);
	assert_int_equal(config16(f, 10), 9000);
	assert_true(f->dev->offered & NET_F_MTU);
	/* A stream has no place for a header that asks for work. */
	assert_false(f->dev->offered &
		     (NET_F_CSUM | NET_F_HOST_TSO4 | NET_GUEST_OFFLOADS |
		      NET_F_CTRL_GUEST_OFFLOADS | NET_F_MQ));
	assert_non_null(strstr(f->dev->id, "02:00:00:12:34:56"));
	f->dev->cls->destroy(f->dev);
	close_fd(&f->peer);
	/* By chance: local, of one station, another each time. */
	create(f, NULL);
	f->dev->cls->config_read(f->dev, 0, mac, 6);
	assert_int_equal(mac[0] & 3, 2);
	assert_memory_not_equal(mac, want, 6);
	f->dev->cls->destroy(f->dev);
}

/* After a migration: so that bridges learn where the guest's address is now. */
static void test_announce(void **state)
{
	const unsigned char mac[] = { 2, 0, 0, 0x12, 0x34, 0x56 };
	struct fixture *f = *state;

	create(f, "mac=02:00:00:12:34:56");
	/* A driver that is not there, and one that is held: when it goes on. */
	f->dev->cls->announce(f->dev);
	assert_int_equal(activate(f, ~0ull), 0);
	for (unsigned int i = 0; i < 3; i++) {
		unsigned char frame[60];
		uint32_t be;

		assert_int_equal(io_read_full(f->peer, &be, sizeof(be)), 0);
		assert_int_equal(ntohl(be), sizeof(frame));
		assert_int_equal(io_read_full(f->peer, frame, sizeof(frame)),
				 0);
		assert_memory_equal(frame, "\xff\xff\xff\xff\xff\xff", 6);
		assert_memory_equal(frame + 6, mac, 6);
		assert_memory_equal(frame + 12, "\x80\x35\0\1\x08\0\6\4\0\3",
				    10);
		assert_memory_equal(frame + 22, mac, 6);
		assert_memory_equal(frame + 32, mac, 6);
	}
	/* And then the driver's own. */
	driver_send(f, 70, 1, 4096, false);
	kick(f, TX);
	peer_expect(f, 70, 1);
	stop(f);
}

static void test_transmit(void **state)
{
	struct fixture *f = *state;
	uint16_t heads[4];

	start(f, NULL, ~0ull);
	heads[0] = driver_send(f, 60, 1, 4096, false);
	heads[1] = driver_send(f, 1514, 2, 100, false);
	heads[2] = driver_send(f, 65536, 3, 4096, true);
	heads[3] = driver_send(f, 14, 4, 1, true);
	kick(f, TX);
	peer_expect(f, 60, 1);
	peer_expect(f, 1514, 2);
	peer_expect(f, 65536, 3);
	peer_expect(f, 14, 4);
	for (unsigned int i = 0; i < 4; i++)
		expect_used(f, TX, heads[i], 0);
	assert_int_equal(f->transport.needs_reset, 0);
	WAIT_FOR(f->dev->queues[TX].requests == 4);
	stop(f);
}

/* Frames that cannot be sent are dropped, those after them are not. */
static void test_transmit_drops(void **state)
{
	struct fixture *f = *state;
	uint16_t a, b, c;
	uint64_t gpa;
	struct vring_buf buf;

	start(f, NULL, ~0ull);
	a = driver_send(f, 13, 1, 4096, false);
	gpa = vring_alloc(&f->rings[TX], 100, 16);
	memset(vring_ptr(&f->rings[TX], gpa), 0xff, 100);
	buf = (struct vring_buf){ gpa, 100, false };
	b = vring_add(&f->rings[TX], &buf, 1);
	c = driver_send(f, 100, 5, 4096, false);
	kick(f, TX);
	expect_used(f, TX, a, 0);
	expect_used(f, TX, b, 0);
	expect_used(f, TX, c, 0);
	peer_expect(f, 100, 5);
	assert_int_equal(counter(f, "tx_dropped"), 2);
	assert_int_equal(counter(f, "tx_frames"), 1);
	assert_int_equal(counter(f, "tx_bytes"), 100);
	stop(f);
}

/* A peer that does not read: the driver waits, and nothing is torn. */
static void test_transmit_backpressure(void **state)
{
	struct fixture *f = *state;
	unsigned int used = 0, seed;
	struct vring_used_elem elem;

	start(f, NULL, ~0ull);
	for (seed = 0; seed < 24; seed++)
		driver_send(f, 65536, seed, 65548, false);
	kick(f, TX);
	/* More than a socket holds. */
	assert_true(vring_wait_used(&f->rings[TX], WAIT_MS, &elem));
	for (seed = 0; seed < 24; seed++)
		peer_expect(f, 65536, seed);
	for (used = 1; used < 24; used++)
		assert_true(vring_wait_used(&f->rings[TX], WAIT_MS, &elem));
	stop(f);
}

/* The rest of the last frame goes out by itself, with none behind it. */
static void test_transmit_rest(void **state)
{
	const struct timeval limit = { .tv_sec = WAIT_MS / 1000 };
	const int frame = 4 + 65536;
	struct fixture *f = *state;
	struct vring_used_elem elem;
	unsigned int num = 0;
	int queued;

	start(f, NULL, ~0ull);
	/* One by one, until the socket has but a part of the last. */
	do {
		driver_send(f, 65536, num, 65548, false);
		kick(f, TX);
		assert_true(vring_wait_used(&f->rings[TX], WAIT_MS, &elem));
		assert_int_equal(ioctl(f->peer, FIONREAD, &queued), 0);
		num++;
		assert_in_range(num, 1, 24);
	} while (queued == (int)num * frame);
	assert_in_range(queued, 1, (int)num * frame - 1);
	assert_int_equal(setsockopt(f->peer, SOL_SOCKET, SO_RCVTIMEO, &limit,
				    sizeof(limit)),
			 0);
	for (unsigned int seed = 0; seed < num; seed++)
		peer_expect(f, 65536, seed);
	stop(f);
}

/* Stopped while the peer does not read: no hang, and the rest goes back. */
static void test_stop_while_blocked(void **state)
{
	struct fixture *f = *state;
	struct vring_used_elem elem;
	unsigned int used = 1;

	start(f, NULL, ~0ull);
	for (unsigned int i = 0; i < 24; i++)
		driver_send(f, 65536, i, 65548, false);
	kick(f, TX);
	assert_true(vring_wait_used(&f->rings[TX], WAIT_MS, &elem));
	f->dev->cls->deactivate(f->dev);
	while (vring_take_used(&f->rings[TX], &elem))
		used++;
	assert_true(used < 24);
	assert_int_equal(f->dev->queues[TX].vq.last_avail, used);
	for (unsigned int i = 0; i < 3; i++)
		vq_stop(&f->dev->queues[i].vq);
	f->dev->cls->destroy(f->dev);
}

static void test_receive(void **state)
{
	struct fixture *f = *state;
	uint64_t a, b;

	start(f, NULL, ~0ull);
	a = post(f, 1600);
	b = post(f, 1600);
	kick(f, RX);
	peer_send(f, 60, 1);
	expect_frame(f, a, 60, 1);
	peer_send(f, 1514, 2);
	expect_frame(f, b, 1514, 2);
	/* No buffer: the frame waits for one. */
	peer_send(f, 100, 3);
	nap();
	a = post(f, 200);
	kick(f, RX);
	expect_frame(f, a, 100, 3);
	stop(f);
}

/* Byte by byte, and several at once: the borders of reads mean nothing. */
static void test_receive_in_pieces(void **state)
{
	struct fixture *f = *state;
	unsigned char buf[3 * 104];
	uint64_t gpas[6];

	for (unsigned int i = 0; i < 3; i++) {
		uint32_t be = htonl(100);

		memcpy(buf + 104 * i, &be, 4);
		fill(buf + 104 * i + 4, 100, i);
	}
	start(f, NULL, ~0ull);
	for (unsigned int i = 0; i < 6; i++)
		gpas[i] = post(f, 200);
	kick(f, RX);
	for (unsigned int i = 0; i < sizeof(buf); i++) {
		assert_int_equal(io_write_full(f->peer, buf + i, 1), 0);
		if (i % 50 == 0)
			nap();
	}
	assert_int_equal(io_write_full(f->peer, buf, sizeof(buf)), 0);
	for (unsigned int i = 0; i < 6; i++)
		expect_frame(f, gpas[i], 100, i % 3);
	stop(f);
}

/* What num merged buffers of len bytes each have, header included. */
static void collect(struct fixture *f, const uint64_t *gpas, uint32_t len,
		    unsigned int num, size_t bytes, unsigned char *ret)
{
	for (unsigned int i = 0; i < num; i++) {
		struct vring_used_elem used = { 0 };
		uint32_t want = (uint32_t)MIN((size_t)len, bytes);

		/* They come together: there is nothing to wait for. */
		if (i == 0)
			assert_true(
				vring_wait_used(&f->rings[RX], WAIT_MS, &used));
		else
			assert_true(vring_take_used(&f->rings[RX], &used));
		assert_int_equal(used.len, want);
		memcpy(ret, vring_ptr(&f->rings[RX], gpas[i]), want);
		ret += want;
		bytes -= want;
	}
	assert_int_equal(bytes, 0);
}

static void expect_merged(struct fixture *f, const uint64_t *gpas, uint32_t len,
			  size_t frame, unsigned int seed)
{
	unsigned int num = (unsigned int)div_round_up(HDR + frame, len);
	_cleanup_free_ unsigned char *got = malloc(HDR + frame);
	_cleanup_free_ unsigned char *want = malloc(frame);

	collect(f, gpas, len, num, HDR + frame, got);
	assert_int_equal(le16_load(got + NET_HDR_NUM_BUFFERS), num);
	fill(want, frame, seed);
	assert_memory_equal(got + HDR, want, frame);
}

/* The same frame size twice and more: by way of the side buffer, and not. */
static void test_merged(void **state)
{
	static const size_t sizes[] = { 1489, 9000, 65536, 9000, 1488, 60 };
	struct fixture *f = *state;

	start(f, NULL, ~0ull);
	for (unsigned int i = 0; i < ARRAY_SIZE(sizes); i++) {
		unsigned int num = (unsigned int)div_round_up(HDR + sizes[i],
							      1500);
		uint64_t gpas[RING_SIZE];

		for (unsigned int j = 0; j < num; j++)
			gpas[j] = post(f, 1500);
		kick(f, RX);
		peer_send(f, sizes[i], i);
		expect_merged(f, gpas, 1500, sizes[i], i);
	}
	stop(f);
}

/* Half of the buffers first: nothing is shown before the frame is whole. */
static void test_merged_waits(void **state)
{
	struct fixture *f = *state;
	struct vring_used_elem used;
	uint64_t gpas[7];

	start(f, NULL, ~0ull);
	for (unsigned int i = 0; i < 3; i++)
		gpas[i] = post(f, 1500);
	kick(f, RX);
	peer_send(f, 9000, 9);
	for (unsigned int i = 0; i < 20; i++)
		nap();
	assert_false(vring_take_used(&f->rings[RX], &used));
	for (unsigned int i = 3; i < 7; i++) {
		gpas[i] = post(f, 1500);
		kick(f, RX);
	}
	expect_merged(f, gpas, 1500, 9000, 9);
	stop(f);
}

/* A ring that cannot hold a frame does not wait for what cannot come. */
static void test_too_small_ring(void **state)
{
	struct fixture *f = *state;
	uint64_t gpas[RING_SIZE];

	start(f, NULL, ~0ull);
	for (unsigned int i = 0; i < RING_SIZE; i++)
		gpas[i] = post(f, 100);
	kick(f, RX);
	peer_send(f, 65536, 1);
	peer_send(f, 60, 2);
	expect_bytes(f, gpas[0], 60, 2);
	stop(f);
}

/* Without MRG_RXBUF: one buffer, or nothing. */
static void test_unmerged(void **state)
{
	struct fixture *f = *state;
	uint64_t gpas[3];

	start(f, NULL, ~NET_F_MRG_RXBUF);
	for (unsigned int i = 0; i < 3; i++)
		gpas[i] = post(f, 1600);
	kick(f, RX);
	peer_send(f, 60, 1);
	expect_frame(f, gpas[0], 60, 1);
	peer_send(f, 9000, 2);
	peer_send(f, 1500, 3);
	expect_bytes(f, gpas[1], 1500, 3);
	assert_int_equal(counter(f, "rx_dropped"), 1);
	assert_int_equal(counter(f, "rx_frames"), 2);
	assert_int_equal(counter(f, "rx_bytes"), 1560);
	stop(f);
}

/* Header and data in descriptors of their own, in an indirect table. */
static void test_receive_chain(void **state)
{
	struct fixture *f = *state;
	struct vring *ring = &f->rings[RX];
	struct vring_used_elem used = { 0 };
	unsigned char want[700];
	uint64_t gpa, table;

	start(f, NULL, ~NET_F_MRG_RXBUF);
	gpa = vring_alloc(ring, 2048, 16);
	table = vring_alloc(ring, 64, 16);
	struct vring_buf bufs[] = { { gpa, 5, true },
				    { gpa + 5, 7, true },
				    { gpa + 12, 500, true },
				    { gpa + 512, 1536, true } };
	vring_add_indirect(ring, table, bufs, 4);
	kick(f, RX);
	peer_send(f, 700, 8);
	assert_true(vring_wait_used(ring, WAIT_MS, &used));
	assert_int_equal(used.len, HDR + 700);
	fill(want, 700, 8);
	assert_memory_equal(vring_ptr(ring, gpa + 12), want, 700);
	assert_int_equal(le16_load(vring_ptr(ring, gpa + 10)), 1);
	stop(f);
}

/* Buffers that were taken in stock are given back by a stop. */
static void test_stock_goes_back(void **state)
{
	struct fixture *f = *state;
	uint64_t gpas[8];

	start(f, NULL, ~0ull);
	for (unsigned int i = 0; i < 8; i++)
		gpas[i] = post(f, 1500);
	kick(f, RX);
	peer_send(f, 60, 1);
	expect_frame(f, gpas[0], 60, 1);
	f->dev->cls->deactivate(f->dev);
	assert_int_equal(f->dev->queues[RX].vq.last_avail, 1);
	assert_int_equal(f->dev->queues[RX].vq.used_idx, 1);
	/* Going on with the same ring: the next one is the second. */
	assert_int_equal(f->dev->cls->activate(f->dev), 0);
	peer_send(f, 60, 2);
	expect_frame(f, gpas[1], 60, 2);
	stop(f);
}

static void drain(struct fixture *f)
{
	struct err err = ERR_INIT;

	virtio_dev_hold(f->dev, true);
	if (virtio_dev_drain(f->dev, clock_now_ns() + WAIT_MS * NSEC_PER_MSEC,
			     &err))
		fail_msg("%s", err.text);
}

/* A paused machine: the stock goes back, frames wait outside. */
static void test_held(void **state)
{
	struct fixture *f = *state;
	const struct virtqueue *vq;
	struct vring_used_elem used;
	uint64_t gpas[8];

	start(f, NULL, ~0ull);
	vq = &f->dev->queues[RX].vq;
	for (unsigned int i = 0; i < 8; i++)
		gpas[i] = post(f, 1500);
	kick(f, RX);
	peer_send(f, 60, 1);
	expect_frame(f, gpas[0], 60, 1);
	drain(f);
	assert_int_equal(vq->last_avail, 1);
	assert_int_equal(vq->shown_idx, 1);
	peer_send(f, 60, 2);
	for (unsigned int i = 0; i < 20; i++)
		nap();
	assert_false(vring_take_used(&f->rings[RX], &used));
	virtio_dev_hold(f->dev, false);
	expect_frame(f, gpas[1], 60, 2);
	stop(f);
}

/* One that waits for buffers meanwhile is not lost. */
static void test_held_in_the_middle(void **state)
{
	struct fixture *f = *state;
	uint64_t gpas[7];

	start(f, NULL, ~0ull);
	for (unsigned int i = 0; i < 3; i++)
		gpas[i] = post(f, 1500);
	kick(f, RX);
	peer_send(f, 9000, 9);
	for (unsigned int i = 0; i < 20; i++)
		nap();
	drain(f);
	assert_int_equal(f->dev->queues[RX].vq.last_avail, 0);
	virtio_dev_hold(f->dev, false);
	for (unsigned int i = 3; i < 7; i++) {
		gpas[i] = post(f, 1500);
		kick(f, RX);
	}
	expect_merged(f, gpas, 1500, 9000, 9);
	stop(f);
}

/* A limit that lets nothing through for an hour holds nobody up. */
static void test_held_limited(void **state)
{
	struct fixture *f = *state;

	start(f, "ops_size=2,ops_refill_time=3600000,num_queues=2", ~0ull);
	for (uint32_t n = 0; n < 3; n++)
		driver_send(f, 60, n, 4096, false);
	kick(f, TX);
	peer_expect(f, 60, 0);
	peer_expect(f, 60, 1);
	for (unsigned int i = 0; i < 4; i++)
		(void)post(f, 1500);
	kick(f, RX);
	for (unsigned int i = 0; i < 20; i++)
		nap();
	drain(f);
	assert_int_equal(f->dev->queues[TX].vq.last_avail, 2);
	virtio_dev_hold(f->dev, false);
	stop(f);
}

/* ---- bad drivers ---- */

static void expect_broken(struct fixture *f)
{
	WAIT_FOR(f->transport.needs_reset == 1);
	deactivate(f);
	/* Reset: works again. */
	assert_int_equal(activate(f, ~0ull), 0);
	driver_send(f, 60, 1, 4096, false);
	kick(f, TX);
	peer_expect(f, 60, 1);
	stop(f);
}

static void bad_buffer(struct fixture *f, unsigned int queue, uint64_t gpa,
		       uint32_t len, bool in)
{
	struct vring_buf buf = { gpa, len, in };

	start(f, NULL, ~0ull);
	vring_add(&f->rings[queue], &buf, 1);
	kick(f, queue);
	expect_broken(f);
}

/* What is broken is saved as well: buffers in stock go back before the bad. */
static void test_held_broken(void **state)
{
	struct vring_buf bad = { RAM_BYTES - 1, 2, true };
	struct fixture *f = *state;

	start(f, NULL, ~0ull);
	for (unsigned int i = 0; i < 3; i++)
		(void)post(f, 100);
	vring_add(&f->rings[RX], &bad, 1);
	kick(f, RX);
	WAIT_FOR(f->transport.needs_reset == 1);
	drain(f);
	virtio_dev_hold(f->dev, false);
	deactivate(f);
	assert_int_equal(activate(f, ~0ull), 0);
	stop(f);
}

static void test_bad_chain_rx(void **state)
{
	bad_buffer(*state, RX, RAM_BYTES - 1, 2, true);
}

static void test_bad_chain_tx(void **state)
{
	bad_buffer(*state, TX, RAM_BYTES - 1, 2, false);
}

static void test_bad_chain_ctrl(void **state)
{
	bad_buffer(*state, CTRLQ, RAM_BYTES - 1, 2, false);
}

static void test_short_header(void **state)
{
	bad_buffer(*state, TX, 0x8000, HDR - 1, false);
}

static void test_short_buffer(void **state)
{
	bad_buffer(*state, RX, 0x8000, HDR - 1, true);
}

static void test_readable_buffer(void **state)
{
	bad_buffer(*state, RX, 0x8000, 2000, false);
}

static void test_no_answer_byte(void **state)
{
	bad_buffer(*state, CTRLQ, 0x8000, 3, false);
}

/* ---- control ---- */

static uint8_t command(struct fixture *f, const void *data, uint32_t len)
{
	struct vring *ring = &f->rings[CTRLQ];
	uint64_t gpa = vring_alloc(ring, len + 1, 16);
	struct vring_buf bufs[] = { { gpa, len, false },
				    { gpa + len, 1, true } };
	uint8_t *ack = vring_ptr(ring, gpa + len);
	uint16_t head;

	memcpy(vring_ptr(ring, gpa), data, len);
	*ack = 0x55;
	head = vring_add(ring, bufs, 2);
	kick(f, CTRLQ);
	expect_used(f, CTRLQ, head, 1);
	return *ack;
}

#define COMMAND(f, ...)                               \
	({                                            \
		const uint8_t _d[] = { __VA_ARGS__ }; \
                                                      \
		command(f, _d, (uint32_t)sizeof(_d)); \
	})

static void test_control(void **state)
{
	const uint8_t want[] = { 2, 3, 4, 5, 6, 7 };
	struct fixture *f = *state;
	uint8_t mac[6];

	start(f, NULL, ~0ull);
	assert_int_equal(COMMAND(f, 0, 0, 1), NET_CTRL_OK);
	assert_int_equal(COMMAND(f, 1, 1, 2, 3, 4, 5, 6, 7), NET_CTRL_OK);
	f->dev->cls->config_read(f->dev, 0, mac, 6);
	assert_memory_equal(mac, want, 6);
	assert_int_equal(COMMAND(f, 1, 1, 3, 3, 4, 5, 6, 7), NET_CTRL_ERR);
	assert_int_equal(COMMAND(f, 4, 0, 1, 0), NET_CTRL_ERR);
	assert_int_equal(COMMAND(f, 9, 9), NET_CTRL_ERR);
	f->dev->cls->config_read(f->dev, 0, mac, 6);
	assert_memory_equal(mac, want, 6);
	assert_int_equal(f->transport.needs_reset, 0);
	stop(f);
}

/* ---- the connection ---- */

static void test_reconnect(void **state)
{
	struct fixture *f = *state;
	uint16_t head;
	uint64_t gpa;

	start(f, NULL, ~0ull);
	gpa = post(f, 1600);
	kick(f, RX);
	/* It goes in the middle of a frame. */
	peer_send_len(f, 100);
	assert_int_equal(io_write_full(f->peer, "half", 4), 0);
	close_fd(&f->listener);
	unlink(f->path);
	close_fd(&f->peer);
	WAIT_FOR(f->transport.config_changes == 1);
	assert_int_equal(config16(f, 6), 0);
	/* Frames are lost meanwhile, not kept, and the driver does not wait. */
	head = driver_send(f, 60, 1, 4096, false);
	kick(f, TX);
	expect_used(f, TX, head, 0);
	listen_on(f);
	f->peer = accept(f->listener, NULL, NULL);
	WAIT_FOR(f->transport.config_changes == 2);
	assert_int_equal(config16(f, 6), NET_S_LINK_UP);
	driver_send(f, 60, 2, 4096, false);
	kick(f, TX);
	peer_expect(f, 60, 2);
	peer_send(f, 200, 3);
	expect_frame(f, gpa, 200, 3);
	stop(f);
}

/* The rest of a frame of the old connection does not reach the new one. */
static void test_reconnect_while_blocked(void **state)
{
	struct fixture *f = *state;
	struct vring_used_elem elem;

	start(f, NULL, ~0ull);
	for (unsigned int i = 0; i < 24; i++)
		driver_send(f, 65536, i, 65548, false);
	kick(f, TX);
	post(f, 1600);
	kick(f, RX);
	assert_true(vring_wait_used(&f->rings[TX], WAIT_MS, &elem));
	/* Not before they are lost: a new one would get those that are left. */
	close_fd(&f->listener);
	unlink(f->path);
	close_fd(&f->peer);
	for (unsigned int i = 1; i < 24; i++)
		assert_true(vring_wait_used(&f->rings[TX], WAIT_MS, &elem));
	listen_on(f);
	f->peer = accept(f->listener, NULL, NULL);
	WAIT_FOR(f->transport.config_changes == 2);
	driver_send(f, 60, 2, 4096, false);
	kick(f, TX);
	peer_expect(f, 60, 2);
	stop(f);
}

static void bad_length(struct fixture *f, uint32_t len)
{
	char c;

	start(f, NULL, ~0ull);
	post(f, 1600);
	kick(f, RX);
	peer_send_len(f, len);
	/* The connection is ended, and made anew. */
	assert_int_equal(recv(f->peer, &c, 1, 0), 0);
	close_fd(&f->peer);
	f->peer = accept(f->listener, NULL, NULL);
	assert_true(f->peer >= 0);
	WAIT_FOR(f->transport.config_changes == 2);
	driver_send(f, 60, 2, 4096, false);
	kick(f, TX);
	peer_expect(f, 60, 2);
	stop(f);
}

static void test_length_zero(void **state)
{
	bad_length(*state, 0);
}

static void test_length_huge(void **state)
{
	bad_length(*state, UINT32_MAX);
}

static void test_length_one_too_many(void **state)
{
	bad_length(*state, 65536 + 64 + 1);
}

/* Too short for Ethernet: not given to the driver, but no reason to part. */
static void test_runt(void **state)
{
	struct fixture *f = *state;
	uint64_t gpa;

	start(f, NULL, ~0ull);
	gpa = post(f, 1600);
	kick(f, RX);
	peer_send(f, 13, 1);
	peer_send(f, 14, 2);
	expect_frame(f, gpa, 14, 2);
	assert_int_equal(f->transport.config_changes, 0);
	stop(f);
}

/* A limit of two frames that does not refill in time lets two through. */
static void test_rate_limit(void **state)
{
	struct fixture *f = *state;
	struct vring_used_elem used;
	uint16_t a, b;

	start(f, "ops_size=2,ops_refill_time=86400000", ~0ull);
	a = driver_send(f, 60, 1, 4096, false);
	b = driver_send(f, 60, 2, 4096, false);
	driver_send(f, 60, 3, 4096, false);
	kick(f, TX);
	expect_used(f, TX, a, 0);
	expect_used(f, TX, b, 0);
	for (unsigned int i = 0; i < 20; i++)
		nap();
	assert_false(vring_take_used(&f->rings[TX], &used));
	/* The other direction has its own. */
	for (unsigned int i = 0; i < 3; i++) {
		uint64_t gpa = post(f, 100);

		kick(f, RX);
		peer_send(f, 60, i);
		if (i < 2)
			expect_frame(f, gpa, 60, i);
	}
	for (unsigned int i = 0; i < 20; i++)
		nap();
	assert_false(vring_take_used(&f->rings[RX], &used));
	stop(f);
}

/* ---- interrupts and kicks ---- */

static void test_interrupts(void **state)
{
	struct fixture *f = *state;

	start(f, NULL, ~VIRTIO_F_EVENT_IDX);
	post(f, 200);
	kick(f, RX);
	peer_send(f, 60, 1);
	WAIT_FOR(f->transport.queue_interrupts == 1);
	vring_set_no_interrupt(&f->rings[RX], true);
	expect_used(f, RX, 0, HDR + 60);
	post(f, 200);
	kick(f, RX);
	peer_send(f, 60, 2);
	expect_used(f, RX, 1, HDR + 60);
	stop(f);
	assert_int_equal(f->transport.queue_interrupts, 1);
}

/* ---- options ---- */

static void refuse(struct fixture *f, const char *options, const char *text)
{
	struct virtio_dev *dev = NULL;
	struct err err = ERR_INIT;

	assert_true(fake_create(&dev, &virtio_net_class, options, &f->ram, 1,
				&err) < 0);
	assert_null(dev);
	if (!strstr(err.text, text))
		fail_msg("'%s' is not in: %s", text, err.text);
}

static void test_bad_options(void **state)
{
	struct fixture *f = *state;

	refuse(f, "socket=/nonexistent/x", "passt");
	refuse(f, "mode=socket", "wants socket=");
	refuse(f, "socket=/x,tap=t", "mode=tap");
	refuse(f, "socket=/x,num_queues=4", "one pair");
	refuse(f, "passt,socket=/x", "mode=socket");
	refuse(f, "tap=t,tcp_ports=80", "mode=passt");
	refuse(f, "mode=bridge", "tap, socket, passt");
	refuse(f, "tap=a/b", "not the name");
	refuse(f, "tap=abcdefghijklmnop", "not the name");
	refuse(f, "tap=tap%d", "not the name");
	refuse(f, "tap=t,num_queues=3", "pairs");
	refuse(f, "tap=t,num_queues=64", "from 2 to 62");
	refuse(f, "tap=t,queue_size=100", "power of two");
	refuse(f, "tap=t,mtu=67", "from 68");
	refuse(f, "tap=t,mac=1:2:3:4:5:6", "MAC");
	refuse(f, "tap=t,mac=02:00:00:12:34:567", "MAC");
	refuse(f, "tap=t,mac=01:00:00:00:00:01", "one station");
	refuse(f, "tap=t,mac=00:00:00:00:00:00", "one station");
	refuse(f, "tap=t,ip=10.0.0", "IPv4");
	refuse(f, "tap=t,mask=255.255.255.0", "wants ip=");
	refuse(f, "tap=t,ip=10.0.0.1,mask=255.0.255.0", "mask");
	refuse(f, "tap=t,fd=3", "either");
	refuse(f, "fd=3+4,num_queues=2", "num_queues=2 wants 1");
	refuse(f, "fd=3x", "descriptors");
	refuse(f, "fd=[3,,4", "descriptors");
	refuse(f, "fd=999", "fd=999");
	refuse(f, "fd=0", "fd=0");
	refuse(f, "tap=t,bw_size=1M", "bw_refill_time");
	refuse(f, "tap=t,ops_refill_time=10", "ops_size");
}

#define NET_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		NET_TEST(test_config),
		NET_TEST(test_announce),
		NET_TEST(test_transmit),
		NET_TEST(test_transmit_drops),
		NET_TEST(test_transmit_backpressure),
		NET_TEST(test_transmit_rest),
		NET_TEST(test_stop_while_blocked),
		NET_TEST(test_receive),
		NET_TEST(test_receive_in_pieces),
		NET_TEST(test_merged),
		NET_TEST(test_merged_waits),
		NET_TEST(test_too_small_ring),
		NET_TEST(test_unmerged),
		NET_TEST(test_receive_chain),
		NET_TEST(test_stock_goes_back),
		NET_TEST(test_held),
		NET_TEST(test_held_in_the_middle),
		NET_TEST(test_held_limited),
		NET_TEST(test_held_broken),
		NET_TEST(test_bad_chain_rx),
		NET_TEST(test_bad_chain_tx),
		NET_TEST(test_bad_chain_ctrl),
		NET_TEST(test_short_header),
		NET_TEST(test_short_buffer),
		NET_TEST(test_readable_buffer),
		NET_TEST(test_no_answer_byte),
		NET_TEST(test_control),
		NET_TEST(test_reconnect),
		NET_TEST(test_reconnect_while_blocked),
		NET_TEST(test_length_zero),
		NET_TEST(test_length_huge),
		NET_TEST(test_length_one_too_many),
		NET_TEST(test_runt),
		NET_TEST(test_rate_limit),
		NET_TEST(test_interrupts),
		NET_TEST(test_bad_options),
	};

	log_set_level(LOG_LEVEL_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
