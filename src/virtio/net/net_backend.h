/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a network device's frames go to and come from.
 *
 * A back end is one const struct net_backend_ops and one line in the array of
 * net_backend.c. It moves single frames, straight between the host and iovecs
 * in guest memory, for one or more pairs of queues.
 *
 * Threads: open, close, set_offloads and set_pairs are never concurrent with
 * each other; set_* may run beside recv and send. For each pair, recv and
 * recv_wait are called by one thread at a time and send by one thread at a
 * time; the two may be different ones. None of them blocks.
 *
 * What comes from the other end is hostile: a back end checks lengths once.
 */
#ifndef QUIRE_VIRTIO_NET_BACKEND_H
#define QUIRE_VIRTIO_NET_BACKEND_H

#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/uio.h>

#include "base/err.h"
#include "virtio/net/net_req.h"

#define NET_MAX_PAIRS 31u /* two queues each, and the control queue */

struct net_backend;

/* What the options ask for; strings belong to the caller. */
struct net_backend_config {
	const struct net_backend_ops *ops;
	unsigned int num_pairs;
	uint32_t mtu; /* 0: not given */
	/* tap */
	const char *tap; /* NULL: the kernel chooses a name */
	unsigned int num_fds;
	int fds[NET_MAX_PAIRS];
	bool has_ip, has_mask, has_host_mac;
	uint32_t ip, mask; /* network byte order */
	uint8_t host_mac[NET_MAC_BYTES];
	/* stream, passt */
	const char *socket;
	const char *tcp_ports, *udp_ports;
};

struct net_backend_ops {
	const char *name; /* mode=NAME */

	/* Fills what struct net_backend says. */
	int (*open)(struct net_backend **ret,
		    const struct net_backend_config *cfg, struct err *err);
	void (*close)(struct net_backend *b);

	/*
	 * Which NET_GUEST_OFFLOADS the driver can take from now on. May be
	 * NULL, as set_pairs: the first num pairs are in use from now on, the
	 * others are not to get frames.
	 */
	int (*set_offloads)(struct net_backend *b, uint64_t offloads);
	int (*set_pairs)(struct net_backend *b, unsigned int num);

	/*
	 * Take one frame. iov[0] is for the header; a frame longer than the
	 * rest is cut. Returns the bytes behind the header (as many as there is
	 * room for, at most), -EAGAIN when there is none, or another negative
	 * errno when a frame was lost.
	 */
	ssize_t (*recv)(struct net_backend *b, unsigned int pair,
			const struct iovec *iov, unsigned int num);
	/*
	 * What to wait for after -EAGAIN: *pfd (fd -1: nothing), and
	 * milliseconds until recv wants to be called anyway (-1: never).
	 */
	int (*recv_wait)(struct net_backend *b, unsigned int pair,
			 struct pollfd *pfd);

	/*
	 * Send one frame of bytes behind its header in iov[0]; the array may be
	 * written to. 0, -EAGAIN: not taken, wait for send_fd to take POLLOUT;
	 * another negative errno: it is lost.
	 */
	int (*send)(struct net_backend *b, unsigned int pair, struct iovec *iov,
		    unsigned int num, uint32_t bytes);
	/* The rest of a frame sent in part; -EAGAIN: not all yet. Or NULL. */
	int (*flush)(struct net_backend *b);
	int (*send_fd)(struct net_backend *b, unsigned int pair);
};

/* Embedded first in each back end's own struct. */
struct net_backend {
	const struct net_backend_ops *ops;
	unsigned int num_pairs;
	char label[32];	   /* "tap0", for messages */
	uint64_t features; /* that it can serve: CSUM, HOST_*, GUEST_* */
	_Atomic bool link;
	/* Called after link has changed, by a thread in recv. May be NULL. */
	void (*link_changed)(void *ctx);
	void *link_ctx;
};

extern const struct net_backend_ops net_tap_ops;
extern const struct net_backend_ops net_stream_ops;
extern const struct net_backend_ops net_passt_ops;

/* All of them, ends with NULL. */
extern const struct net_backend_ops *const net_backends[];

#endif
