/* SPDX-License-Identifier: Apache-2.0 */
/* virtio/net/net_req.c: what a driver's chains say. */
#include "cmocka_all.h"

#include <errno.h>
#include <string.h>

#include "base/arith.h"
#include "virtio/net/net_req.h"

static struct vq_chain chain;
static struct net_tx_frame frame;
static uint8_t ack;

/* A chain of these readable pieces; then, if wanted, one byte of answer. */
static void build(const struct iovec *out, unsigned int num, bool in)
{
	memset(&chain, 0, sizeof(chain));
	for (unsigned int i = 0; i < num; i++) {
		chain.iov[chain.num_out++] = out[i];
		chain.out_bytes += out[i].iov_len;
	}
	if (!in)
		return;
	chain.iov[chain.num_out] = (struct iovec){ &ack, 1 };
	chain.in_gpa[0] = GPA(0x1234);
	chain.num_in = 1;
	chain.in_bytes = 1;
}

static int parse_frame(struct net_hdr hdr, size_t len, uint64_t features)
{
	static char data[NET_MAX_FRAME + 1];
	struct iovec out[] = { { &hdr, sizeof(hdr) }, { data, len } };

	build(out, len ? 2 : 1, false);
	return net_tx_parse(&chain, features, &frame);
}

#define PLAIN ((struct net_hdr){ .flags = 0 })
#define ALL   (~0ull)

static void test_lengths(void **state)
{
	assert_int_equal(parse_frame(PLAIN, NET_ETH_BYTES, 0), 0);
	assert_int_equal(frame.bytes, NET_ETH_BYTES);
	assert_int_equal(parse_frame(PLAIN, NET_MAX_FRAME, 0), 0);
	assert_int_equal(frame.bytes, NET_MAX_FRAME);
	assert_int_equal(parse_frame(PLAIN, 0, 0), -EBADMSG);
	assert_int_equal(parse_frame(PLAIN, NET_ETH_BYTES - 1, 0), -EBADMSG);
	assert_int_equal(parse_frame(PLAIN, NET_MAX_FRAME + 1, 0), -EBADMSG);
}

static void test_no_header(void **state)
{
	char data[NET_HDR_BYTES] = { 0 };
	struct iovec out = { data, NET_HDR_BYTES - 1 };

	build(&out, 1, false);
	assert_int_equal(net_tx_parse(&chain, 0, &frame), -EINVAL);
	build(NULL, 0, true);
	assert_int_equal(net_tx_parse(&chain, 0, &frame), -EINVAL);
}

/* Wherever the descriptors' borders are, the same bytes come out. */
static void test_framing(void **state)
{
	char data[64];

	for (unsigned int i = 0; i < sizeof(data); i++)
		data[i] = (char)i;
	memset(data, 0, NET_HDR_BYTES);
	for (unsigned int cut = 1; cut < sizeof(data) - 1; cut++) {
		struct iovec out[] = {
			{ data, cut },
			{ data + cut, 1 },
			{ data + cut + 1, sizeof(data) - cut - 1 },
		};
		unsigned int at = NET_HDR_BYTES;

		build(out, 3, false);
		assert_int_equal(net_tx_parse(&chain, 0, &frame), 0);
		assert_ptr_equal(frame.iov[0].iov_base, &frame.hdr);
		assert_int_equal(frame.iov[0].iov_len, NET_HDR_BYTES);
		for (unsigned int i = 1; i < frame.num_iov; i++) {
			assert_ptr_equal(frame.iov[i].iov_base, data + at);
			assert_true(frame.iov[i].iov_len > 0);
			at += (unsigned int)frame.iov[i].iov_len;
		}
		assert_int_equal(at, sizeof(data));
	}
}

static void test_checksum(void **state)
{
	struct net_hdr hdr = { .flags = NET_HDR_F_NEEDS_CSUM | 0xf0,
			       .csum_start = htole16(34),
			       .csum_offset = htole16(16),
			       .num_buffers = 7 };

	assert_int_equal(parse_frame(hdr, 52, NET_F_CSUM), 0);
	/* What is not known is not passed on. */
	assert_int_equal(frame.hdr.flags, NET_HDR_F_NEEDS_CSUM);
	assert_int_equal(frame.hdr.num_buffers, 0);
	assert_int_equal(le16toh(frame.hdr.csum_start), 34);
	/* The sum would be behind the end; not negotiated. */
	assert_int_equal(parse_frame(hdr, 51, NET_F_CSUM), -EBADMSG);
	assert_int_equal(parse_frame(hdr, 52, ALL & ~NET_F_CSUM), -EBADMSG);
	hdr.csum_start = hdr.csum_offset = UINT16_MAX;
	assert_int_equal(parse_frame(hdr, NET_MAX_FRAME, ALL), -EBADMSG);
	/* Without the flag the fields mean nothing. */
	hdr.flags = 0;
	assert_int_equal(parse_frame(hdr, 52, 0), 0);
	assert_int_equal(frame.hdr.csum_start, 0);
	assert_int_equal(frame.hdr.csum_offset, 0);
}

static void check_gso(uint8_t type, uint64_t feature)
{
	struct net_hdr hdr = { .flags = NET_HDR_F_NEEDS_CSUM,
			       .gso_type = type,
			       .hdr_len = htole16(54),
			       .gso_size = htole16(1448),
			       .csum_start = htole16(34),
			       .csum_offset = htole16(16) };

	assert_int_equal(parse_frame(hdr, 9000, NET_F_CSUM | feature), 0);
	assert_int_equal(le16toh(frame.hdr.gso_size), 1448);
	assert_int_equal(le16toh(frame.hdr.hdr_len), 54);
	assert_int_equal(parse_frame(hdr, 9000, ALL & ~feature), -EBADMSG);
	/* hdr_len is a hint; beyond the frame it is brought back. */
	hdr.hdr_len = htole16(60000);
	assert_int_equal(parse_frame(hdr, 9000, ALL), 0);
	assert_int_equal(le16toh(frame.hdr.hdr_len), 9000);
	hdr.gso_size = 0;
	assert_int_equal(parse_frame(hdr, 9000, ALL), -EBADMSG);
	hdr.gso_size = htole16(1448);
	hdr.flags = 0;
	assert_int_equal(parse_frame(hdr, 9000, ALL), -EBADMSG);
}

static void test_segmentation(void **state)
{
	struct net_hdr hdr = { .flags = NET_HDR_F_NEEDS_CSUM,
			       .gso_size = htole16(100) };

	check_gso(NET_GSO_TCPV4, NET_F_HOST_TSO4);
	check_gso(NET_GSO_TCPV6, NET_F_HOST_TSO6);
	check_gso(NET_GSO_UDP, NET_F_HOST_UFO);
	check_gso(NET_GSO_TCPV4 | NET_GSO_ECN,
		  NET_F_HOST_TSO4 | NET_F_HOST_ECN);
	hdr.gso_type = 2;
	assert_int_equal(parse_frame(hdr, 9000, ALL), -EBADMSG);
	hdr.gso_type = NET_GSO_ECN;
	assert_int_equal(parse_frame(hdr, 9000, ALL), -EBADMSG);
	hdr.gso_type = NET_GSO_ECN | NET_GSO_TCPV4;
	assert_int_equal(parse_frame(hdr, 9000, ALL & ~NET_F_HOST_ECN),
			 -EBADMSG);
}

static void test_received(void **state)
{
	struct net_hdr hdr = { .flags = NET_HDR_F_DATA_VALID };

	assert_true(net_rx_acceptable(&hdr, 0));
	hdr.flags = NET_HDR_F_NEEDS_CSUM;
	assert_false(net_rx_acceptable(&hdr, 0));
	assert_true(net_rx_acceptable(&hdr, NET_F_GUEST_CSUM));
	hdr.gso_type = NET_GSO_TCPV4;
	assert_false(net_rx_acceptable(&hdr, NET_F_GUEST_CSUM));
	assert_true(
		net_rx_acceptable(&hdr, NET_F_GUEST_CSUM | NET_F_GUEST_TSO4));
	hdr.gso_type = NET_GSO_TCPV6 | NET_GSO_ECN;
	assert_false(
		net_rx_acceptable(&hdr, NET_F_GUEST_CSUM | NET_F_GUEST_TSO6));
	assert_true(net_rx_acceptable(&hdr, ALL));
	hdr.gso_type = 77;
	assert_false(net_rx_acceptable(&hdr, ALL));
}

static void test_features(void **state)
{
	static const uint64_t tso = NET_F_HOST_TSO4 | NET_F_HOST_TSO6 |
				    NET_F_HOST_UFO | NET_F_HOST_ECN;

	assert_int_equal(net_features_effective(ALL), ALL);
	assert_int_equal(net_features_effective(tso), 0);
	assert_int_equal(net_features_effective(tso | NET_F_CSUM),
			 tso | NET_F_CSUM);
	assert_int_equal(net_features_effective(NET_GUEST_OFFLOADS &
						~NET_F_GUEST_CSUM),
			 0);
	assert_int_equal(net_features_effective(NET_F_GUEST_ECN |
						NET_F_GUEST_CSUM),
			 NET_F_GUEST_CSUM);
	assert_int_equal(net_features_effective(NET_F_MQ | NET_F_CTRL_RX), 0);
}

/* ---- control ---- */

static int control(const void *data, size_t len, uint64_t features,
		   struct net_ctrl *ret)
{
	/* In single bytes, for the borders are the driver's choice. */
	struct iovec out[VQ_MAX_IOV - 1];

	for (size_t i = 0; i < len; i++)
		out[i] = (struct iovec){ (char *)(uintptr_t)data + i, 1 };
	build(out, (unsigned int)len, true);
	return net_ctrl_parse(&chain, features, 4, ret);
}

#define CONTROL(features, ...)                                                 \
	({                                                                     \
		const uint8_t _data[] = { __VA_ARGS__ };                       \
		struct net_ctrl _c;                                            \
                                                                               \
		assert_int_equal(control(_data, sizeof(_data), features, &_c), \
				 0);                                           \
		assert_ptr_equal(_c.ack, &ack);                                \
		assert_int_equal(_c.ack_gpa.v, 0x1234);                        \
		_c;                                                            \
	})
#define KIND(features, ...) (CONTROL(features, __VA_ARGS__).kind)

static void test_control_rules(void **state)
{
	uint8_t head[] = { 0, 0 };
	struct iovec out = { head, 2 };
	struct net_ctrl c;

	build(&out, 1, false); /* no room for the answer */
	assert_int_equal(net_ctrl_parse(&chain, ALL, 4, &c), -EINVAL);
	assert_int_equal(control(head, 1, ALL, &c), -EINVAL);
	assert_int_equal(control(head, 0, ALL, &c), -EINVAL);
	assert_int_equal(KIND(ALL, 99, 0), NET_CTRL_REFUSE);
}

static void test_control_filters(void **state)
{
	for (uint8_t cmd = 0; cmd < 6; cmd++) {
		assert_int_equal(KIND(ALL, 0, cmd, 1), NET_CTRL_ACCEPT);
		assert_int_equal(KIND(0, 0, cmd, 1), NET_CTRL_REFUSE);
		assert_int_equal(KIND(ALL, 0, cmd), NET_CTRL_REFUSE);
		assert_int_equal(KIND(ALL, 0, cmd, 1, 1), NET_CTRL_REFUSE);
	}
	assert_int_equal(KIND(ALL, 0, 6, 1), NET_CTRL_REFUSE);
	/* Two lists: none and one address. */
	assert_int_equal(KIND(ALL, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4, 5,
			      6),
			 NET_CTRL_ACCEPT);
	assert_int_equal(KIND(ALL, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4, 5),
			 NET_CTRL_REFUSE);
	assert_int_equal(KIND(ALL, 1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0),
			 NET_CTRL_REFUSE);
	assert_int_equal(KIND(ALL, 1, 0, 0, 0, 0, 0), NET_CTRL_REFUSE);
}

static void test_control_mac(void **state)
{
	struct net_ctrl c = CONTROL(ALL, 1, 1, 2, 3, 4, 5, 6, 7);
	const uint8_t mac[] = { 2, 3, 4, 5, 6, 7 };

	assert_int_equal(c.kind, NET_CTRL_SET_MAC);
	assert_memory_equal(c.mac, mac, 6);
	assert_int_equal(KIND(ALL, 1, 1, 3, 3, 4, 5, 6, 7), NET_CTRL_REFUSE);
	assert_int_equal(KIND(ALL, 1, 1, 0, 0, 0, 0, 0, 0), NET_CTRL_REFUSE);
	assert_int_equal(KIND(ALL, 1, 1, 2, 3, 4, 5, 6), NET_CTRL_REFUSE);
	assert_int_equal(KIND(ALL, 1, 2, 2, 3, 4, 5, 6, 7), NET_CTRL_REFUSE);
	assert_int_equal(KIND(ALL & ~NET_F_CTRL_MAC_ADDR, 1, 1, 2, 3, 4, 5, 6,
			      7),
			 NET_CTRL_REFUSE);
}

static void test_control_pairs(void **state)
{
	for (uint8_t n = 1; n <= 4; n++) {
		struct net_ctrl c = CONTROL(ALL, 4, 0, n, 0);

		assert_int_equal(c.kind, NET_CTRL_SET_PAIRS);
		assert_int_equal(c.pairs, n);
	}
	assert_int_equal(KIND(ALL, 4, 0, 0, 0), NET_CTRL_REFUSE);
	assert_int_equal(KIND(ALL, 4, 0, 5, 0), NET_CTRL_REFUSE);
	assert_int_equal(KIND(ALL, 4, 0, 1, 1), NET_CTRL_REFUSE);
	assert_int_equal(KIND(ALL, 4, 0, 1), NET_CTRL_REFUSE);
	assert_int_equal(KIND(ALL, 4, 1, 1, 0), NET_CTRL_REFUSE);
	assert_int_equal(KIND(ALL & ~NET_F_MQ, 4, 0, 1, 0), NET_CTRL_REFUSE);
}

static void test_control_offloads(void **state)
{
	struct net_ctrl c = CONTROL(ALL, 5, 0, 0x82, 0, 0, 0, 0, 0, 0, 0);

	assert_int_equal(c.kind, NET_CTRL_SET_OFFLOADS);
	assert_int_equal(c.offloads, NET_F_GUEST_CSUM | NET_F_GUEST_TSO4);
	assert_int_equal(KIND(ALL & ~NET_F_GUEST_TSO4, 5, 0, 0x82, 0, 0, 0, 0,
			      0, 0, 0),
			 NET_CTRL_REFUSE);
	assert_int_equal(KIND(ALL, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0),
			 NET_CTRL_REFUSE);
	assert_int_equal(KIND(ALL, 5, 0, 0x82, 0), NET_CTRL_REFUSE);
	assert_int_equal(KIND(ALL & ~NET_F_CTRL_GUEST_OFFLOADS, 5, 0, 0x82, 0,
			      0, 0, 0, 0, 0, 0),
			 NET_CTRL_REFUSE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lengths),
		cmocka_unit_test(test_no_header),
		cmocka_unit_test(test_framing),
		cmocka_unit_test(test_checksum),
		cmocka_unit_test(test_segmentation),
		cmocka_unit_test(test_received),
		cmocka_unit_test(test_features),
		cmocka_unit_test(test_control_rules),
		cmocka_unit_test(test_control_filters),
		cmocka_unit_test(test_control_mac),
		cmocka_unit_test(test_control_pairs),
		cmocka_unit_test(test_control_offloads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
