/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-vsock: any packets from a guest, any behaviour of host programs, in
 * any order. There is no VM and no thread: the device's connections are driven
 * from here, on real Unix sockets.
 *
 * Input: commands of one byte and what they take.
 *
 *	0  a packet: 44 bytes of header with small ports, cut into descriptors
 *	1  the same with a header that is right but for op, ports and credit
 *	2  buffers for the guest, of some size, until there is nothing to say
 *	3  a client of the listening socket, with a line that may be right
 *	4  a host program writes
 *	5  a host program reads
 *	6  a host program shuts down, or closes
 *	7  time passes
 *
 * Each descriptor is a heap block of its own, so that a byte too many is seen
 * by AddressSanitizer.
 */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/log.h"
#include "virtio/vsock/vsock.h"
#include "virtio/vsock/vsock_priv.h"

#define CID	    5
#define MAX_CLIENTS 16
#define NUM_PORTS   3 /* ports 1 and 2 have listeners, 3 has none */
#define MAX_DESCS   8

struct input {
	const uint8_t *data;
	size_t left;
};

static struct {
	struct vsock_dev *dev;
	char path[64];
	struct unix_listener ports[2];
	int clients[MAX_CLIENTS];
	unsigned int num_clients;
} world;

/* The next len bytes, zeroes behind the end. */
static void take(struct input *in, void *buf, size_t len)
{
	size_t n = MIN(len, in->left);

	memset(buf, 0, len);
	if (n)
		memcpy(buf, in->data, n);
	in->data += n;
	in->left -= n;
}

static uint8_t take_byte(struct input *in)
{
	uint8_t b;

	take(in, &b, 1);
	return b;
}

static void tear_down(void)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(world.ports); i++)
		unix_listener_close(&world.ports[i]);
	virtio_vsock_class.destroy(&world.dev->vdev);
}

static void set_up(void)
{
	static uint64_t config[8];
	struct virtio_dev *vdev;
	struct err err = ERR_INIT;
	char text[128], path[80];

	if (world.dev)
		return;
	log_set_level(LOG_LEVEL_ERROR);
	signal(SIGPIPE, SIG_IGN);
	snprintf(world.path, sizeof(world.path), "/tmp/quire-fuzz-%d.sock",
		 (int)getpid());
	snprintf(text, sizeof(text), "cid=%d,socket=%s", CID, world.path);
	BUG_ON(virtio_vsock_class.config_bytes > sizeof(config));
	BUG_ON(kvlist_parse("--vsock", text, NULL, virtio_vsock_class.keys,
			    virtio_vsock_class.num_keys, config, &err));
	BUG_ON(virtio_vsock_class.create(&vdev, config, NULL, 1, 0, &err));
	virtio_vsock_class.config_fini(config);
	world.dev = container_of(vdev, struct vsock_dev, vdev);
	for (unsigned int i = 0; i < ARRAY_SIZE(world.ports); i++) {
		snprintf(path, sizeof(path), "%s_%u", world.path, i + 1);
		BUG_ON(unix_listener_open(&world.ports[i], path, 1, &err));
	}
	atexit(tear_down);
}

/* -- chains -- */

static void free_chain(struct vq_chain *chain)
{
	for (unsigned int i = 0; i < chain->num_out + chain->num_in; i++)
		free(chain->iov[i].iov_base);
	chain->num_out = 0;
	chain->num_in = 0;
}

/* len bytes in up to MAX_DESCS descriptors, none of them empty. */
static void build_chain(struct vq_chain *chain, bool out, size_t len,
			uint8_t cuts)
{
	size_t piece = MAX(len / (1 + cuts % MAX_DESCS), (size_t)1);
	unsigned int n = 0;

	chain->num_out = 0;
	chain->num_in = 0;
	chain->out_bytes = out ? len : 0;
	chain->in_bytes = out ? 0 : len;
	while (len) {
		size_t part = n + 1 == MAX_DESCS ? len : MIN(piece, len);

		chain->iov[n].iov_base = calloc(1, part);
		chain->iov[n].iov_len = part;
		BUG_ON(!chain->iov[n].iov_base);
		len -= part;
		n++;
	}
	if (out)
		chain->num_out = n;
	else
		chain->num_in = n;
}

static void fill_chain(struct vq_chain *chain, const void *data, size_t len)
{
	const char *p = data;

	for (unsigned int i = 0; i < chain->num_out && len; i++) {
		size_t part = MIN(chain->iov[i].iov_len, len);

		memcpy(chain->iov[i].iov_base, p, part);
		p += part;
		len -= part;
	}
}

/* -- the guest -- */

static void send_packet(struct input *in, bool raw)
{
	struct vsock_dev *dev = world.dev;
	struct vsock_header h;
	struct vsock_packet packet;
	uint16_t payload;
	uint8_t cuts = take_byte(in);
	int r;

	take(in, &payload, sizeof(payload));
	payload %= 5000;
	take(in, &h, sizeof(h));
	h.src_port %= 4;
	/* Those that the host chose are found only by looking. */
	if (h.dst_port % 8 < 4)
		h.dst_port %= 4;
	else
		h.dst_port = (1u << 30) + (h.dst_port >> 8) % 64;
	if (!raw) {
		h.src_cid = CID;
		h.dst_cid = VSOCK_CID_HOST;
		h.type = VSOCK_TYPE_STREAM;
		h.op %= 9;
		h.len = payload;
		h.fwd_cnt %= 65536;
	}
	build_chain(&dev->tx_chain, true, sizeof(h) + payload, cuts);
	fill_chain(&dev->tx_chain, &h, sizeof(h));
	r = vsock_packet_parse(&dev->tx_chain, CID, &packet);
	BUG_ON(r < 0);
	if (r == VSOCK_TAKE) {
		BUG_ON(packet.len > payload || packet.dst_cid != 2);
		vsock_receive(dev, &packet);
	} else if (r == VSOCK_REFUSE) {
		vsock_refuse(dev, &packet);
	}
	free_chain(&dev->tx_chain);
}

static void check_output(const struct vq_chain *chain, uint32_t written)
{
	struct vsock_header h;
	char *to = (char *)&h;
	size_t have = 0;

	BUG_ON(written < sizeof(h) || written > chain->in_bytes);
	for (unsigned int i = 0; have < sizeof(h); i++) {
		size_t n = MIN(chain->iov[i].iov_len, sizeof(h) - have);

		memcpy(to + have, chain->iov[i].iov_base, n);
		have += n;
	}
	BUG_ON(h.dst_cid != CID || h.type != VSOCK_TYPE_STREAM);
	BUG_ON(h.op == VSOCK_OP_INVALID || h.op > VSOCK_OP_CREDIT_REQUEST);
	BUG_ON(h.len != written - sizeof(h));
	BUG_ON(h.len && h.op != VSOCK_OP_RW);
	BUG_ON(h.op == VSOCK_OP_RW && !h.len);
	BUG_ON(h.op == VSOCK_OP_SHUTDOWN && (!h.flags || h.flags > 3));
}

static void give_buffers(struct input *in)
{
	struct vsock_dev *dev = world.dev;
	size_t len = sizeof(struct vsock_header) + take_byte(in) * 20u;
	uint8_t cuts = take_byte(in);

	/* A device that always has something to say would not end. */
	for (unsigned int i = 0; vsock_has_output(dev); i++) {
		uint32_t written;

		BUG_ON(i > 100000);
		/* Those without room for data are used up without an end. */
		if (len == sizeof(struct vsock_header) && i == 100)
			break;
		build_chain(&dev->rx_chain, false, len, cuts);
		written = vsock_send_next(dev);
		if (written)
			check_output(&dev->rx_chain, written);
		free_chain(&dev->rx_chain);
	}
}

/* -- the host -- */

static void add_client(int fd)
{
	if (fd >= 0 && world.num_clients < MAX_CLIENTS)
		world.clients[world.num_clients++] = fd;
	else if (fd >= 0)
		close(fd);
}

static void take_events(void)
{
	struct vsock_dev *dev = world.dev;
	struct epoll_event evs[32];
	int n = epoll_wait(dev->epoll_fd, evs, ARRAY_SIZE(evs), 0);

	for (int i = 0; i < n; i++)
		vsock_conn_event(evs[i].data.ptr, evs[i].events);
	/* The loop would be told by its level; here nobody watches it. */
	vsock_accept(dev);
	vsock_reap(dev);
	for (unsigned int i = 0; i < ARRAY_SIZE(world.ports); i++)
		add_client(accept4(world.ports[i].fd, NULL, NULL,
				   SOCK_CLOEXEC | SOCK_NONBLOCK));
}

static void new_client(struct input *in)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un addr;
	uint8_t kind = take_byte(in);
	char line[80];
	size_t len;

	if (fd < 0 || unix_socket_address(&addr, world.path) ||
	    connect(fd, (const struct sockaddr *)&addr, sizeof(addr))) {
		close(fd);
		return;
	}
	if (kind & 1) {
		len = (size_t)snprintf(line, sizeof(line), "CONNECT %u\n%s",
				       kind / 2 % 4, kind & 64 ? "more" : "");
	} else {
		len = kind % sizeof(line);
		take(in, line, len);
	}
	if (send(fd, line, len, MSG_NOSIGNAL) < 0)
		BUG_ON(errno == EBADF);
	add_client(fd);
	take_events();
}

static int pick_client(struct input *in, unsigned int *ret)
{
	uint8_t b = take_byte(in);

	if (!world.num_clients)
		return -1;
	*ret = b % world.num_clients;
	return world.clients[*ret];
}

static void client_writes(struct input *in)
{
	static const char data[4096];
	unsigned int i;
	int fd = pick_client(in, &i);

	if (fd >= 0 && send(fd, data, 1 + take_byte(in) * 16u,
			    MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		BUG_ON(errno == EBADF);
}

static void client_reads(struct input *in)
{
	static char data[65536];
	unsigned int i;
	int fd = pick_client(in, &i);

	if (fd >= 0 && recv(fd, data, sizeof(data), MSG_DONTWAIT) < 0)
		BUG_ON(errno == EBADF);
}

static void client_ends(struct input *in)
{
	unsigned int i;
	int fd = pick_client(in, &i);
	uint8_t how = take_byte(in);

	if (fd < 0)
		return;
	if (how % 4 < 3) {
		shutdown(fd, how % 4); /* SHUT_RD, SHUT_WR, SHUT_RDWR */
		return;
	}
	close(fd);
	world.clients[i] = world.clients[--world.num_clients];
}

static void check_connections(void)
{
	const struct vsock_dev *dev = world.dev;
	const struct vsock_conn *conn;
	unsigned int n = 0;

	TAILQ_FOREACH(conn, &dev->conns, all)
	{
		uint32_t held = conn->rx_cnt - conn->fwd_cnt;

		n++;
		BUG_ON(conn->state == VSOCK_DEAD);
		BUG_ON(held > VSOCK_BUF_BYTES || (held && !conn->buf));
		BUG_ON((conn->state == VSOCK_CLOSING) && conn->fd >= 0);
		BUG_ON(conn->in_ready && !conn->in_hash);
	}
	BUG_ON(n != dev->num_conns || n > VSOCK_MAX_CONNS);
	BUG_ON(vsock_num_rsts(dev) >= VSOCK_RSTS_MAX);
}

static void reset_world(void)
{
	vsock_drop_all(world.dev);
	vsock_reap(world.dev);
	while (world.num_clients)
		close(world.clients[--world.num_clients]);
	/* Whoever waits in a backlog. */
	take_events();
	vsock_drop_all(world.dev);
	vsock_reap(world.dev);
	while (world.num_clients)
		close(world.clients[--world.num_clients]);
	world.dev->next_port = 0;
	world.dev->timer_ns = 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, MIN(size, (size_t)4096) };

	set_up();
	while (in.left) {
		switch (take_byte(&in) % 8) {
		case 0:
			send_packet(&in, true);
			break;
		case 1:
			send_packet(&in, false);
			break;
		case 2:
			give_buffers(&in);
			break;
		case 3:
			new_client(&in);
			break;
		case 4:
			client_writes(&in);
			break;
		case 5:
			client_reads(&in);
			break;
		case 6:
			client_ends(&in);
			break;
		case 7:
			vsock_timers(world.dev,
				     clock_now_ns() +
					     take_byte(&in) * NSEC_PER_SEC / 4);
			break;
		}
		take_events();
		check_connections();
	}
	reset_world();
	return 0;
}
