/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside virtio-net: the device (net.c), its queues (net_rx.c, net_tx.c,
 * net_ctrl.c) and the threads that serve them (net_worker.c).
 *
 * Threads: what struct net_dev has is fixed between activate() and
 * deactivate(), but for the atomics. A struct net_queue belongs to its worker.
 */
#ifndef QUIRE_VIRTIO_NET_PRIV_H
#define QUIRE_VIRTIO_NET_PRIV_H

#include <pthread.h>

#include "virtio/net/net_backend.h"
#include "virtio/ratelimit.h"
#include "virtio/virtio.h"

/* Of one direction; since the device was made. */
struct net_counters {
	_Atomic uint64_t frames, bytes, dropped;
};

#define NET_COUNTERS 6

struct net_dev {
	struct virtio_dev vdev;
	struct net_backend *backend;
	bool owns_backend; /* else the configuration does */
	struct ratelimit rx_limit, tx_limit;
	struct net_counters rx, tx;
	struct virtio_counter counters[NET_COUNTERS]; /* names of those */
	unsigned int max_pairs;
	uint16_t mtu;	      /* of the configuration space, if offered */
	_Atomic uint64_t mac; /* byte 0 is the lowest */
	uint8_t own_mac[NET_MAC_BYTES]; /* as configured, or chosen */
	bool mac_given;			/* configured */
	uint64_t features;	    /* effective: net_features_effective() */
	_Atomic uint64_t offloads;  /* NET_GUEST_OFFLOADS in force */
	_Atomic unsigned int pairs; /* in use */
	/* Of a saved state, for the next activate(): net_load(). */
	uint64_t saved_offloads;
	unsigned int saved_pairs;
	_Atomic bool stop;
	_Atomic bool announce; /* asked for; the first transmit queue does */
	struct net_worker *workers; /* between activate and deactivate */
	unsigned int num_workers;
};

/* What a queue waits for when it has nothing to do. */
struct net_wait {
	struct pollfd peer; /* fd -1: not for the other end */
	bool driver;	    /* for more from the driver, which is to kick */
	/* Nanoseconds of CLOCK_MONOTONIC; 0: no time is set. */
	uint64_t until_ns;
};

struct net_queue;

struct net_queue_ops {
	/*
	 * Do what there is to do, up to a budget, with kicks off; true: there
	 * is more. Else *wait (cleared by the caller) is set, and the queue's
	 * kick is waited for in any case: a stop and a change of pairs come by
	 * it.
	 */
	bool (*serve)(struct net_queue *q, struct net_wait *wait);
	/* Held: give back what was popped and is in stock. NULL: never any. */
	void (*be_quiet)(struct net_queue *q);
	/* No more serve: every popped chain goes back. Frees the queue. */
	void (*finish)(struct net_queue *q);
};

/* Embedded first in each kind of queue. */
struct net_queue {
	const struct net_queue_ops *ops;
	struct net_dev *dev;
	unsigned int index; /* of the virtqueue */
	unsigned int pair;
	bool broken;
};

/* Make a queue's state for an enabled virtqueue; NULL: no memory. */
struct net_queue *net_rx_new(struct net_dev *dev, unsigned int pair);
struct net_queue *net_tx_new(struct net_dev *dev, unsigned int pair);
struct net_queue *net_ctrl_new(struct net_dev *dev, unsigned int index);

static inline struct virtio_queue *net_virtio_queue(const struct net_queue *q)
{
	return &q->dev->vdev.queues[q->index];
}

static inline bool net_stopping(const struct net_dev *dev)
{
	/* Pairs with the store in net_deactivate(), before its wake-up. */
	return atomic_load_explicit(&dev->stop, memory_order_acquire);
}

static inline void net_count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* The driver broke the rules on this queue: no more is done with it. */
void net_queue_broken(struct net_queue *q, const char *why);

/* Until when (CLOCK_MONOTONIC) the limit forbids a frame; 0: it does not. */
uint64_t net_limited_until(struct ratelimit *limit);

/* A thread and the queues it serves, in this order. */
#define NET_WORKER_QUEUES 2

struct net_worker {
	struct net_dev *dev;
	unsigned int num_queues;
	struct net_queue *queues[NET_WORKER_QUEUES];
	struct net_wait waits[NET_WORKER_QUEUES]; /* of the last serving */
	pthread_t thread;
	bool running;
};

/* Before it is started; takes the queue. -ENOMEM: it is NULL. */
__must_check int net_worker_add(struct net_worker *w, struct net_queue *queue);
/* Serves what was added, if that is anything. */
__must_check int net_worker_start(struct net_worker *w, struct net_dev *dev,
				  const char *name);
/* dev->stop is set and the queues are kicked: wait for the end, free them. */
void net_worker_stop(struct net_worker *w);

extern const struct thread_class *const net_thread_classes[];
extern const struct thread_class net_vcpu_calls, net_control_calls;

#endif
