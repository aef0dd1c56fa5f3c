/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside virtio-vsock: the device (vsock.c), its thread (vsock_loop.c), its
 * connections (vsock_conn.c) and how they begin (vsock_connect.c).
 *
 * Threads: between activate() and deactivate() everything but ->stop belongs to
 * the device's thread; without one, to the control thread.
 */
#ifndef QUIRE_VIRTIO_VSOCK_PRIV_H
#define QUIRE_VIRTIO_VSOCK_PRIV_H

#include <pthread.h>
#include <sys/queue.h>

#include "base/unix_socket.h"
#include "virtio/virtio.h"
#include "virtio/vsock/vsock_packet.h"

/* Connections at a time, half-open and lingering ones included. */
#define VSOCK_MAX_CONNS 1024u
/* What a guest may send ahead of a host that does not read; of each. */
#define VSOCK_BUF_BYTES 131072u
/* Payload of one packet to the guest. */
#define VSOCK_MAX_PAYLOAD (64u * 1024)
/*
 * Resets waiting for the guest to give a buffer. At the first limit the
 * transmit queue is left alone (virtio 1.2 section 5.10.6.1: additional
 * resources, bounded). Beyond that each connection that the guest knows of may
 * add one more: by the second limit, which is never reached.
 */
#define VSOCK_RSTS_TX  256u
#define VSOCK_RSTS_MAX 2048u

#define VSOCK_HASH_SIZE 256u

struct vsock_dev;

enum vsock_state {
	VSOCK_HELLO,	  /* a client that has yet to say CONNECT */
	VSOCK_REQUESTED,  /* it has: the guest's answer is awaited */
	VSOCK_CONNECTING, /* the guest asked; the listener's backlog is full */
	VSOCK_OPEN,
	VSOCK_CLOSING, /* the host is done, the guest's RST awaited; no fd */
	VSOCK_LINGER,  /* the guest is done, its last bytes go to the host */
	VSOCK_DEAD,    /* freed at the end of the thread's turn */
};

/* Packets that are due; resets are not the connection's, see vsock_rst(). */
enum {
	VSOCK_DUE_REQUEST = 1,
	VSOCK_DUE_RESPONSE = 2,
	VSOCK_DUE_CREDIT_UPDATE = 4,
	VSOCK_DUE_CREDIT_REQUEST = 8,
};

struct vsock_conn {
	TAILQ_ENTRY(vsock_conn) all;   /* of the device; or of the dead ones */
	TAILQ_ENTRY(vsock_conn) ready; /* has something for the guest */
	LIST_ENTRY(vsock_conn) hash;
	struct vsock_dev *dev;
	enum vsock_state state;
	bool in_ready, in_hash;
	uint32_t host_port, guest_port;
	int fd;
	uint64_t timer_ns;    /* when to look at it again; 0: no need */
	uint64_t deadline_ns; /* VSOCK_CONNECTING: when to give up */
	unsigned int due;
	/* VSOCK_SHUTDOWN_*: what each side said it will no more do. */
	uint32_t guest_shut, host_shut, host_shut_told;
	/* The socket, as epoll reported its edges. */
	bool readable, hung_up;
	/* To the guest: its buffer, and how much was sent, modulo 2^32. */
	uint32_t peer_buf_alloc, peer_fwd_cnt, tx_cnt;
	bool credit_asked;
	/* From the guest: received, passed on, and the latter as last told. */
	uint32_t rx_cnt, fwd_cnt, fwd_cnt_told;
	/* rx_cnt - fwd_cnt bytes from buf[buf_start] on, a ring; or NULL. */
	char *buf;
	uint32_t buf_start;
};

struct vsock_rst {
	uint64_t cid; /* that the guest meant: 2, unless it is mistaken */
	uint32_t host_port, guest_port;
};

TAILQ_HEAD(vsock_conn_list, vsock_conn);
LIST_HEAD(vsock_conn_chain, vsock_conn);

struct vsock_dev {
	struct virtio_dev vdev;
	uint64_t guest_cid;
	char *path;
	struct unix_listener listener;
	bool accepting;	    /* the listener is watched */
	uint64_t accept_ns; /* else: when to try again */
	int epoll_fd;
	pthread_t thread;
	bool running;
	_Atomic bool stop;

	struct vsock_conn_list conns, ready, dead;
	struct vsock_conn_chain table[VSOCK_HASH_SIZE];
	unsigned int num_conns;
	uint64_t timer_ns;  /* the earliest of all, or earlier; 0: none */
	uint32_t next_port; /* counts the host's connections */

	struct vsock_rst rsts[VSOCK_RSTS_MAX]; /* a ring */
	uint32_t rst_head, rst_tail;	       /* running freely */

	struct vq_chain tx_chain;
	struct vq_chain rx_chain; /* popped and not pushed, if rx_held */
	bool rx_held, rx_pushed, tx_pushed;
	bool broken;
	/*
	 * The guest has connections that this device knows nothing of: it is to
	 * be told (5.10.6.7) before anything else.
	 */
	bool reset_due, event_pushed;
};

/* -- vsock_conn.c, vsock_connect.c; all on the device's thread -- */

/* What epoll events with this pointer mean; anything else is a connection. */
void vsock_conn_event(struct vsock_conn *conn, uint32_t events);

/* Take clients of the listening socket, until there is none. */
void vsock_accept(struct vsock_dev *dev);

/* A well-formed packet from the guest, with its payload in dev->tx_chain. */
void vsock_receive(struct vsock_dev *dev, const struct vsock_packet *packet);
/* One that is not. */
void vsock_refuse(struct vsock_dev *dev, const struct vsock_packet *packet);

/* Is there something for the guest? */
bool vsock_has_output(const struct vsock_dev *dev);
/*
 * Fill dev->rx_chain with the next packet. Returns its bytes; 0: it turned out
 * that there was nothing.
 */
uint32_t vsock_send_next(struct vsock_dev *dev);

unsigned int vsock_num_rsts(const struct vsock_dev *dev);

/* Whatever is due by now: give up, try again. Sets dev->timer_ns. */
void vsock_timers(struct vsock_dev *dev, uint64_t now_ns);

/* Does a host program have yet to take bytes that the guest sent? */
bool vsock_has_unsent(const struct vsock_dev *dev);

/* Close them all, without a word to the guest. */
void vsock_drop_all(struct vsock_dev *dev);
/* Free the dead ones: nobody holds a pointer to them any more. */
void vsock_reap(struct vsock_dev *dev);

/* -- between vsock_conn.c and vsock_connect.c -- */

struct vsock_conn *vsock_conn_find(struct vsock_dev *dev, uint32_t host_port,
				   uint32_t guest_port);
/* fd is taken over, also on failure; -1: there will be one. */
struct vsock_conn *vsock_conn_new(struct vsock_dev *dev, enum vsock_state state,
				  int fd);
/* Its ports are known: the guest's packets find it from now on. */
void vsock_conn_enter(struct vsock_conn *conn);
/* End it, without a word to the guest. */
void vsock_conn_kill(struct vsock_conn *conn);
/* End it on both sides. */
void vsock_conn_reset(struct vsock_conn *conn);
/* After whatever may have given it something to send to the guest. */
void vsock_conn_schedule(struct vsock_conn *conn);
void vsock_conn_set_timer(struct vsock_conn *conn, uint64_t ns);
/* A well-formed packet that is the connection's. */
void vsock_conn_receive(struct vsock_conn *conn, const struct vsock_packet *p);
void vsock_conn_take_credit(struct vsock_conn *conn,
			    const struct vsock_packet *p);
bool vsock_table_full(struct vsock_dev *dev);
void vsock_send_rst(struct vsock_dev *dev, uint64_t cid, uint32_t host_port,
		    uint32_t guest_port);
/* Bytes came, of a client that has yet to say CONNECT. */
void vsock_take_hello(struct vsock_conn *conn);

/* -- vsock_loop.c -- */

__must_check int vsock_loop_start(struct vsock_dev *dev);
void vsock_loop_stop(struct vsock_dev *dev);
/* Watch kicks and the listener; in create(). */
__must_check int vsock_loop_init(struct vsock_dev *dev);

extern const struct thread_class *const vsock_thread_classes[];

extern const struct thread_class vsock_vcpu_calls;

#endif
