/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtqueue against any ring: descriptor table, avail ring and indirect
 * tables are the input's, and the device's own writes may land in them.
 *
 * Input: struct head, then the bytes of guest memory from 0 on. The queue lies
 * as head says; descriptors that point into the first 128 KiB are good ones.
 * Checked: whatever comes out of vq_pop() lies in guest RAM and adds up, all
 * loops end, and no page changes without its dirty mark.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/compiler.h"
#include "virtio/queue.h"

#define RAM_BYTES  (128 * KIB)
#define NUM_PAGES  (RAM_BYTES / PAGE_4K)
#define MAX_ROUNDS 64

enum head_flag {
	HEAD_EVENT_IDX = 1,
	HEAD_INDIRECT = 2,
	HEAD_POLL = 4,	    /* kicks off while popping */
	HEAD_PUSH_HEAD = 8, /* complete with no data, by head only */
	HEAD_HOLD = 16,	    /* pop two before pushing the first */
};

struct head {
	uint8_t flags;
	uint8_t size_shift;
	uint8_t avail_bump; /* the driver adds this after each round */
	uint8_t written;
	uint16_t desc, avail, used; /* in units of their alignment */
} __packed_struct;

static struct ram ram;
static _Atomic uint64_t dirty[1];
static uint8_t before[RAM_BYTES];

static void ram_setup(void)
{
	static const struct ram_config cfg = {
		.size_bytes = RAM_BYTES,
		.hole_start = 3 * GIB,
		.hole_end = 4 * GIB,
	};

	if (ram.base)
		return;
	BUG_ON(ram_init(&ram, &cfg, NULL));
	atomic_store(&ram.regions[0].dirty, dirty);
}

static void check_chain(const struct vq_chain *chain)
{
	uint64_t out = 0, in = 0;

	BUG_ON(chain->num_out + chain->num_in > VQ_MAX_IOV);
	BUG_ON(chain->num_out + chain->num_in == 0);
	for (unsigned int i = 0; i < chain->num_out + chain->num_in; i++) {
		const struct iovec *iov = &chain->iov[i];
		uint64_t at = (uint64_t)((char *)iov->iov_base - ram.base);

		BUG_ON(!iov->iov_len || !range_ok(at, iov->iov_len, RAM_BYTES));
		if (i < chain->num_out)
			out += iov->iov_len;
		else
			in += iov->iov_len;
		BUG_ON(i >= chain->num_out &&
		       chain->in_gpa[i - chain->num_out].v != at);
	}
	BUG_ON(out != chain->out_bytes || in != chain->in_bytes);
	BUG_ON(out + in > UINT32_MAX);
}

static void complete(struct virtqueue *vq, struct vq_chain *chain,
		     const struct head *head)
{
	static char buf[4096];
	size_t n;

	n = vq_chain_read(chain, head->written, buf, sizeof(buf));
	BUG_ON(n > chain->out_bytes);
	if (head->flags & HEAD_PUSH_HEAD) {
		vq_push_head(vq, chain->head, 0);
		return;
	}
	memset(buf, 0xa5, sizeof(buf));
	n = vq_chain_write(chain, 0, buf, head->written * 16u);
	BUG_ON(n != MIN(chain->in_bytes, head->written * 16ull));
	vq_push(vq, chain, (uint32_t)n);
}

static void check_dirty(void)
{
	for (unsigned int i = 0; i < NUM_PAGES; i++)
		BUG_ON(!(atomic_load(&dirty[0]) >> i & 1) &&
		       memcmp(before + i * PAGE_4K, ram.base + i * PAGE_4K,
			      PAGE_4K) != 0);
}

/* The driver's next entries, which the device's checks do not wait for. */
static void bump_avail(const struct vq_config *cfg, uint8_t by)
{
	uint8_t *p = (uint8_t *)ram.base + cfg->avail + 2;

	le16_store(p, (uint16_t)(le16_load(p) + by));
	memcpy(before + cfg->avail + 2, p, 2);
}

static void drive(struct virtqueue *vq, const struct vq_config *cfg,
		  const struct head *head)
{
	static struct vq_chain chains[2];
	unsigned int held = 0;
	uint16_t popped = 0;
	bool more = true;
	int r = 0;

	for (int round = 0; round < MAX_ROUNDS && more; round++) {
		if (head->flags & HEAD_POLL)
			vq_disable_kick(vq);
		r = vq_pop(vq, &chains[held]);
		if (r == 1) {
			check_chain(&chains[held]);
			popped++;
			if ((head->flags & HEAD_HOLD) && !held) {
				held = 1;
				continue;
			}
			complete(vq, &chains[held], head);
		} else {
			more = head->avail_bump && r == 0;
		}
		vq_should_notify(vq);
		if (head->flags & HEAD_POLL)
			more |= vq_enable_kick(vq) && r == 1;
		bump_avail(cfg, head->avail_bump);
	}
	if (held)
		complete(vq, &chains[0], head);
	BUG_ON((r < 0) != vq->broken);
	/* A broken queue stays so, and each chain was pushed once. */
	BUG_ON(vq->broken && vq_pop(vq, &chains[0]) >= 0);
	BUG_ON((uint16_t)(vq->used_idx - popped) > vq->broken);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vq_config cfg;
	struct virtqueue vq;
	struct head head;
	size_t n;

	if (size < sizeof(head))
		return 0;
	ram_setup();
	memcpy(&head, data, sizeof(head));
	n = MIN(size - sizeof(head), (size_t)RAM_BYTES);
	memset(ram.base, 0, RAM_BYTES);
	memcpy(ram.base, data + sizeof(head), n);
	memcpy(before, ram.base, RAM_BYTES);
	atomic_store(&dirty[0], 0);

	cfg = (struct vq_config){
		.size = (uint16_t)(1u << (head.size_shift & 15)),
		.desc = 16ull * head.desc,
		.avail = 2ull * head.avail,
		.used = 4ull * head.used,
		.event_idx = head.flags & HEAD_EVENT_IDX,
		.indirect = head.flags & HEAD_INDIRECT,
	};
	vq_init(&vq, 0, VQ_MAX_SIZE, &ram);
	if (vq_start(&vq, &cfg))
		return 0;
	drive(&vq, &cfg, &head);
	check_dirty();
	vq_stop(&vq);
	return 0;
}
