/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio/net/net_tap.c with the kernel's own tap, in a network namespace of the
 * test's: a frame from the "guest" is answered by the host's stack.
 */
#include "cmocka_all.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/log.h"
#include "virtio/net/net_backend.h"

#define WAIT_MS 20000

static const struct net_backend_config plain = {
	.ops = &net_tap_ops,
	.num_pairs = 1,
	.tap = "qt0",
};

static bool have_tap;

static int make_namespace(void **state)
{
	int fd;

	have_tap = !unshare(CLONE_NEWNET) ||
		   !unshare(CLONE_NEWUSER | CLONE_NEWNET);
	fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		have_tap = false;
	else
		close(fd);
	return 0;
}

static void need_tap(void)
{
	if (have_tap)
		return;
	print_message("no /dev/net/tun, or no network namespaces\n");
	skip();
}

static struct net_backend *open_tap(const struct net_backend_config *cfg)
{
	struct net_backend *b = NULL;
	struct err err = ERR_INIT;

	if (net_tap_ops.open(&b, cfg, &err))
		fail_msg("%s", err.text);
	return b;
}

/* "Who has this address?", from a station that has none yet. */
static void build_arp(unsigned char *p, uint32_t ip)
{
	static const unsigned char head[] = {
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 8,
		6,    0,    1,	  8,	0,    6,    4, 0, 1, 2, 0, 0, 0,
		0,    9,    10,	  3,	0,    9,    0, 0, 0, 0, 0, 0,
	};

	memset(p, 0, 60);
	memcpy(p, head, sizeof(head));
	memcpy(p + 38, &ip, 4);
}

static int send_frame(struct net_backend *b, unsigned int pair, void *frame,
		      size_t len, struct net_hdr hdr)
{
	struct iovec iov[] = { { &hdr, NET_HDR_BYTES },
			       { frame, len / 2 },
			       { (char *)frame + len / 2, len - len / 2 } };

	return b->ops->send(b, pair, iov, 3, (uint32_t)len);
}

/* Until a frame of this Ethernet type comes on the pair. */
static size_t receive_type(struct net_backend *b, unsigned int pair,
			   uint16_t type, unsigned char *buf, size_t room)
{
	uint64_t end = clock_now_ns() + WAIT_MS * 1000000ull;

	for (;;) {
		struct net_hdr hdr;
		struct iovec iov[] = { { &hdr, NET_HDR_BYTES },
				       { buf, 1 },
				       { buf + 1, room - 1 } };
		ssize_t n = b->ops->recv(b, pair, iov, 3);
		struct pollfd pfd;

		if (n >= 14 && (buf[12] << 8 | buf[13]) == type)
			return (size_t)n;
		assert_true(n >= 0 || n == -EAGAIN);
		assert_true(clock_now_ns() < end);
		assert_int_equal(b->ops->recv_wait(b, pair, &pfd), -1);
		poll(&pfd, 1, 1000);
	}
}

static void expect_arp_answer(struct net_backend *b, uint32_t ip)
{
	const struct net_hdr none = { .flags = 0 };
	unsigned char frame[60], got[2000];

	build_arp(frame, ip);
	assert_int_equal(send_frame(b, 0, frame, sizeof(frame), none), 0);
	assert_true(receive_type(b, 0, 0x0806, got, sizeof(got)) >= 42);
	assert_int_equal(got[21], 2); /* a reply, of the one asked for */
	assert_memory_equal(got + 28, &ip, 4);
}

static void test_frames(void **state)
{
	struct net_backend_config cfg = plain;
	const uint8_t mac[] = { 2, 0, 0, 0, 0, 0x77 };
	struct net_backend *b;
	unsigned char got[2000];

	need_tap();
	cfg.has_ip = cfg.has_mask = cfg.has_host_mac = true;
	cfg.ip = inet_addr("10.3.0.1");
	cfg.mask = inet_addr("255.255.255.0");
	cfg.mtu = 1400;
	memcpy(cfg.host_mac, mac, 6);
	b = open_tap(&cfg);
	assert_string_equal(b->label, "qt0");
	assert_true(atomic_load(&b->link));
	expect_arp_answer(b, cfg.ip);
	/* host_mac= is in the answer; a second one to look at. */
	build_arp(got, cfg.ip);
	assert_int_equal(send_frame(b, 0, got, 60, (struct net_hdr){ 0 }), 0);
	receive_type(b, 0, 0x0806, got, sizeof(got));
	assert_memory_equal(got + 6, mac, 6);
	/* Nobody else may have it meanwhile. */
	assert_int_equal(net_tap_ops.open(&b, &plain, NULL), -EBUSY);
	b->ops->close(b);
	/* Made here: gone. */
	assert_int_equal(if_nametoindex("qt0"), 0);
}

/* A header that the kernel does not like loses that frame and no other. */
static void test_bad_header(void **state)
{
	const struct net_hdr bad = { .flags = NET_HDR_F_NEEDS_CSUM,
				     .gso_type = 99 };
	struct net_backend_config cfg = plain;
	unsigned char frame[60];
	struct net_backend *b;

	need_tap();
	cfg.has_ip = true;
	cfg.ip = inet_addr("10.3.0.1");
	b = open_tap(&cfg);
	build_arp(frame, cfg.ip);
	assert_int_equal(send_frame(b, 0, frame, sizeof(frame), bad), -EINVAL);
	expect_arp_answer(b, cfg.ip);
	b->ops->close(b);
}

static void test_offloads(void **state)
{
	struct net_backend *b;

	need_tap();
	b = open_tap(&plain);
	assert_true(b->features & NET_F_CSUM);
	assert_true(b->features & NET_F_GUEST_TSO4);
	assert_int_equal(b->ops->set_offloads(b, 0), 0);
	assert_int_equal(b->ops->set_offloads(b, NET_F_GUEST_CSUM), 0);
	assert_int_equal(
		b->ops->set_offloads(b, b->features & NET_GUEST_OFFLOADS), 0);
	b->ops->close(b);
}

static void test_pairs(void **state)
{
	struct net_backend_config cfg = plain;
	const struct net_hdr none = { .flags = 0 };
	unsigned char frame[60], got[2000];
	struct net_backend *b;

	need_tap();
	cfg.num_pairs = 3;
	cfg.has_ip = true;
	cfg.ip = inet_addr("10.3.0.1");
	b = open_tap(&cfg);
	assert_int_equal(b->num_pairs, 3);
	build_arp(frame, cfg.ip);
	/*
	 * What a detached file sent is answered on the one that is left; later
	 * they are back.
	 */
	assert_int_equal(b->ops->set_pairs(b, 1), 0);
	assert_int_equal(send_frame(b, 2, frame, sizeof(frame), none), 0);
	receive_type(b, 0, 0x0806, got, sizeof(got));
	expect_arp_answer(b, cfg.ip);
	assert_int_equal(b->ops->set_pairs(b, 3), 0);
	assert_int_equal(send_frame(b, 2, frame, sizeof(frame), none), 0);
	assert_int_equal(b->ops->set_pairs(b, 2), 0);
	assert_int_equal(b->ops->set_pairs(b, 2), 0);
	assert_int_equal(send_frame(b, 1, frame, sizeof(frame), none), 0);
	b->ops->close(b);
}

static int open_fd(short flags)
{
	struct ifreq ifr = { .ifr_flags = flags, .ifr_name = "qt1" };
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ioctl(fd, TUNSETIFF, &ifr), 0);
	return fd;
}

/* Descriptors stay open with their owner, and have to be of the right kind. */
static void test_fds(void **state)
{
	struct net_backend_config cfg = plain;
	struct err err = ERR_INIT;
	struct net_backend *b;

	need_tap();
	cfg.tap = NULL;
	cfg.num_fds = 1;
	cfg.fds[0] = open_fd(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
	for (unsigned int i = 0; i < 2; i++) {
		b = open_tap(&cfg);
		assert_string_equal(b->label, "qt1");
		b->ops->close(b);
	}
	assert_true(if_nametoindex("qt1") > 0);
	close(cfg.fds[0]);
	cfg.fds[0] = open_fd(IFF_TAP | IFF_NO_PI);
	assert_int_equal(net_tap_ops.open(&b, &cfg, &err), -EINVAL);
	assert_non_null(strstr(err.text, "IFF_VNET_HDR"));
	close(cfg.fds[0]);
	cfg.fds[0] = open("/dev/null", O_RDWR | O_CLOEXEC);
	assert_int_equal(net_tap_ops.open(&b, &cfg, &err), -EINVAL);
	assert_non_null(strstr(err.text, "not an open tap"));
	close(cfg.fds[0]);
}

/* An interface that was there keeps what it had; wrong kinds are told. */
static void test_existing(void **state)
{
	struct net_backend_config cfg = plain;
	struct err err = ERR_INIT;
	struct net_backend *b;
	int fd, on = 1;

	need_tap();
	fd = open_fd(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
	assert_int_equal(ioctl(fd, TUNSETPERSIST, &on), 0);
	close(fd);
	cfg.tap = "qt1";
	b = open_tap(&cfg);
	b->ops->close(b);
	assert_true(if_nametoindex("qt1") > 0);
	cfg.num_pairs = 2;
	assert_int_equal(net_tap_ops.open(&b, &cfg, &err), -EINVAL);
	assert_non_null(strstr(err.text, "multi_queue"));
	cfg.tap = "lo";
	assert_true(net_tap_ops.open(&b, &cfg, &err) < 0);
	fd = open_fd(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
	assert_int_equal(ioctl(fd, TUNSETPERSIST, 0), 0);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_frames),
		cmocka_unit_test(test_offloads),
		cmocka_unit_test(test_bad_header),
		cmocka_unit_test(test_pairs),
		cmocka_unit_test(test_fds),
		cmocka_unit_test(test_existing),
	};

	log_set_level(LOG_LEVEL_ERROR);
	return cmocka_run_group_tests(tests, make_namespace, NULL);
}
