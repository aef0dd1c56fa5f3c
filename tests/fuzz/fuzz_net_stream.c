/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a peer at a stream socket sends: any bytes, in any pieces.
 *
 * Input: a byte for the size of the pieces, a byte for the receiver's room,
 * then what the peer sends before it goes. The frames that come out are held to
 * a plain reading of the same bytes.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/compiler.h"
#include "base/log.h"
#include "virtio/net/net_stream.h"

#define HEAD_BYTES 2
#define MAX_ROOM   70000

/* The next frame of the input at *at; 0: none, or none that is to be given. */
static uint32_t expected(const uint8_t *data, size_t size, size_t *at)
{
	while (size - *at >= 4) {
		const uint8_t *p = data + *at;
		uint32_t len = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 |
			       (uint32_t)p[2] << 8 | p[3];

		if (!len || len > NET_MAX_FRAME || size - *at - 4 < len)
			break;
		*at += 4 + len;
		if (len >= NET_ETH_BYTES)
			return len;
	}
	*at = size;
	return 0;
}

/* Take all frames that are there. */
static void drain(struct net_backend *b, size_t room, const uint8_t *data,
		  size_t size, size_t *at)
{
	struct net_hdr hdr;
	char *p = malloc(room);
	struct iovec iov[] = { { &hdr, sizeof(hdr) }, { p, room } };
	ssize_t n;

	BUG_ON(!p);
	while ((n = b->ops->recv(b, 0, iov, 2)) != -EAGAIN) {
		uint32_t len;

		if (n == -EBADMSG)
			continue;
		BUG_ON(n < 0);
		len = expected(data, size, at);
		BUG_ON(!len || (size_t)n != MIN(room, (size_t)len));
		BUG_ON(memcmp(p, data + *at - len, (size_t)n));
	}
	free(p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t piece, room, at = 0;
	struct net_backend *b;
	struct pollfd pfd;
	int pair[2];

	if (size < HEAD_BYTES)
		return 0;
	log_set_level(LOG_LEVEL_ERROR);
	piece = 1 + (size_t)data[0] * data[0];
	room = 1 + (size_t)data[1] * data[1];
	room = MIN(room, (size_t)MAX_ROOM);
	data += HEAD_BYTES;
	size -= HEAD_BYTES;
	BUG_ON(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	BUG_ON(net_stream_new(&b, pair[0], NULL, NULL, NULL));
	for (size_t sent = 0; sent < size && atomic_load(&b->link);) {
		size_t len = MIN(piece, size - sent);

		if (write(pair[1], data + sent, len) != (ssize_t)len)
			break; /* it was cut off for what it sent */
		sent += len;
		drain(b, room, data, size, &at);
	}
	close(pair[1]);
	drain(b, room, data, size, &at);
	/* Nothing that should have come is missing, and the link is down. */
	BUG_ON(expected(data, size, &at));
	BUG_ON(atomic_load(&b->link));
	BUG_ON(b->ops->recv_wait(b, 0, &pfd) != -1 || pfd.fd != -1);
	b->ops->close(b);
	return 0;
}
