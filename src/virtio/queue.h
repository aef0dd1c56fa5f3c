/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Split virtqueue, device side (virtio 1.2 section 2.7), with indirect
 * descriptors and event index.
 *
 * Everything in the rings is hostile. Ring fields are copied once and the copy
 * is checked; a chain is walked with a budget (the queue size), and comes out
 * as a flat list of checked host iovecs. A chain that breaks a rule makes
 * vq_pop() return a negative errno and the queue broken: the device then asks
 * for a reset (virtio_dev_broken) and the VM lives on.
 *
 * Every popped chain is pushed exactly once, by vq_push().
 *
 * Threads: a queue belongs to one thread at a time. Set-up (vq_start/vq_stop)
 * is the transport's, while the device's threads are not running.
 */
#ifndef QUIRE_VIRTIO_QUEUE_H
#define QUIRE_VIRTIO_QUEUE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "mem/ram.h"

#define VQ_MAX_SIZE 1024
/* Host iovecs one chain may need; a chain with more is refused. */
#define VQ_MAX_IOV 256

/* What the driver wrote through the transport; checked by vq_start(). */
struct vq_config {
	uint16_t size;		    /* power of two, <= max */
	uint64_t desc, avail, used; /* guest-physical */
	bool event_idx;
	bool indirect;
};

struct virtqueue {
	unsigned int index;
	uint16_t max_size;
	uint16_t size;
	bool started;
	bool broken;
	/*
	 * See vq_hold(); these outlive vq_start(). held: which hold it is, 0:
	 * none. quiet: the hold for which the device has said that it is.
	 */
	_Atomic uint32_t held, quiet;
	uint32_t num_holds;   /* the holder's */
	_Atomic bool touched; /* by vq_pop(), since vq_start() */
	bool event_idx, indirect;
	/*
	 * Set after vq_start() by a device that reads and writes only the first
	 * bytes of both parts of a chain: iovecs that do not fit are left out,
	 * and a chain may have more than VQ_MAX_IOV.
	 */
	bool heads_only;
	const struct ram *ram;
	/* Mapped once at vq_start(): RAM regions never move. */
	const void *desc;
	const void *avail;
	void *used;
	struct gpa used_gpa;  /* for dirty marking */
	uint16_t last_avail;  /* next avail entry to pop */
	uint16_t avail_seen;  /* avail index as last read and checked */
	uint16_t avail_event; /* what the driver was last told (event_idx) */
	bool kicks_off;	      /* between vq_disable_kick and vq_enable_kick */
	uint16_t used_idx;    /* next used entry to fill */
	uint16_t shown_idx;   /* used_idx as the driver sees it */
	uint16_t signalled_used; /* used index at the last interrupt check */
	bool signalled_valid;
};

/*
 * One popped request. iov[0..num_out) is what the driver wrote for the device
 * (read-only), iov[num_out..num_out+num_in) is for the device to fill.
 */
struct vq_chain {
	uint16_t head;
	unsigned int num_out, num_in;
	uint64_t out_bytes, in_bytes;
	struct iovec iov[VQ_MAX_IOV];
	struct gpa
		in_gpa[VQ_MAX_IOV]; /* of iov[num_out + i], for marking dirty */
};

void vq_init(struct virtqueue *vq, unsigned int index, uint16_t max_size,
	     const struct ram *ram);

/* Check and map the rings. -EINVAL/-EFAULT on anything out of order. */
__must_check int vq_start(struct virtqueue *vq, const struct vq_config *cfg);
void vq_stop(struct virtqueue *vq);

/*
 * Take the next chain: 1 = *ret filled, 0 = ring empty, negative errno = the
 * ring or the chain breaks the rules (the queue is now broken for good, and the
 * head, if it was known, has been pushed with length 0).
 */
__must_check int vq_pop(struct virtqueue *vq, struct vq_chain *ret);

/*
 * Somebody else has served the ring, a back end in another process, and does so
 * no more: go on behind what it has used. What it took and did not return is
 * popped again, exactly that if it served requests in their order.
 */
void vq_adopt(struct virtqueue *vq);

/*
 * The machine is paused: while held the ring looks empty to its device, which
 * finishes what it popped before. Any thread. After the end of it the device
 * has to be kicked, since the driver's kick may have been taken meanwhile.
 */
void vq_hold(struct virtqueue *vq, bool held);

/*
 * For the device's thread: is it held? A device that has popped chains in stock
 * gives them back first (vq_unpop()). When nothing that was popped is
 * outstanding, who waits for that is told. vq_pop() does this as well; a device
 * that pops no more, because the queue is broken, calls it when it is kicked.
 */
bool vq_take_hold(struct virtqueue *vq);

/* A look without an answer. Any thread. */
bool vq_is_held(const struct virtqueue *vq);

/*
 * For the holder: is all that was popped completed, and will the device write
 * to the ring and its chains no more until it is let go on? Any thread.
 */
bool vq_is_quiet(const struct virtqueue *vq);

/*
 * As vq_start(), for a ring that was served before, elsewhere: used_idx is
 * where that was left off, with nothing outstanding. Nothing is written to
 * guest memory, which may not be there yet.
 */
__must_check int vq_restore(struct virtqueue *vq, const struct vq_config *cfg,
			    uint16_t used_idx);

/* Is there something to pop? A look without consequences, for polling. */
bool vq_has_work(const struct virtqueue *vq);

/*
 * Return a chain: written is how many bytes of the in-part were filled; that
 * much is marked dirty. The driver sees it at once.
 */
void vq_push(struct virtqueue *vq, const struct vq_chain *chain,
	     uint32_t written);

/* The same when only head is kept; the caller has marked the pages dirty. */
void vq_push_head(struct virtqueue *vq, uint16_t head, uint32_t written);

/*
 * vq_push_head() in two steps, for chains that the driver has to see together
 * (one frame in several buffers) or that come in batches: fill one used element
 * after the other, then show them. vq_push*() shows filled ones as well.
 */
void vq_push_fill(struct virtqueue *vq, uint16_t head, uint32_t written);
void vq_push_show(struct virtqueue *vq);

/*
 * Put back the last num chains that were popped, none of which was pushed: as
 * if they had never been taken. For a device that keeps buffers in stock.
 */
void vq_unpop(struct virtqueue *vq, unsigned int num);

/* After pushes: does the driver want an interrupt? (Full barrier inside.) */
bool vq_should_notify(struct virtqueue *vq);

/*
 * Ask for no kicks while polling / ask for the next one. vq_enable_kick()
 * returns true when more work slipped in meanwhile: pop again.
 */
void vq_disable_kick(struct virtqueue *vq);
bool vq_enable_kick(struct virtqueue *vq);

/*
 * Copy between a flat buffer and a part of the chain, from byte offset skip.
 * Return the number of bytes copied (less than len when the chain is short).
 */
size_t vq_chain_read(const struct vq_chain *chain, uint64_t skip, void *buf,
		     size_t len);
size_t vq_chain_write(struct vq_chain *chain, uint64_t skip, const void *buf,
		      size_t len);

#endif
