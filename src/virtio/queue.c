/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. The rings stay mapped from vq_start() to vq_stop(). The
 * driver writes them at any time from other CPUs, so each field is loaded once,
 * by an atomic or by a copy with a compiler barrier behind it, and only the
 * loaded value is checked and used.
 *
 * Ordering, and what it pairs with on the driver's side:
 *
 * - avail->idx is loaded with acquire: pairs with the driver's write barrier
 *   between filling descriptors and ring entry and bumping avail->idx.
 * - used->idx is stored with release: pairs with the driver's read barrier
 *   between seeing used->idx and reading the used element and the data.
 * - vq_should_notify() has a full barrier between our store of used->idx and
 *   the load of used_event (or avail->flags): pairs with the driver's full
 *   barrier between storing used_event and looking at used->idx once more.
 *   One of the two sides sees the other's store, so no interrupt is lost.
 * - kicks_on() has a full barrier between our store of avail_event (or
 *   used->flags) and the load of avail->idx: pairs with the driver's full
 *   barrier between bumping avail->idx and reading avail_event.
 *
 * All indices run freely modulo 2^16 and are compared by difference.
 */
#include "virtio/queue.h"

#include <errno.h>
#include <linux/virtio_ring.h>
#include <string.h>

#include "base/arith.h"

#define AVAIL_FLAGS   0
#define AVAIL_IDX     2
#define AVAIL_RING(i) (4 + 2 * (size_t)(i))
#define USED_FLAGS    0
#define USED_IDX      2
#define USED_RING(i)  (4 + 8 * (size_t)(i))
#define DESC_BYTES    sizeof(struct vring_desc)

/* used_event follows the avail ring, avail_event the used ring. */
#define AVAIL_BYTES(size) (AVAIL_RING(size) + 2)
#define USED_BYTES(size)  (USED_RING(size) + 2)

static uint16_t avail_load(const struct virtqueue *vq, size_t at,
			   memory_order order)
{
	const _Atomic uint16_t *p = (const void *)((const char *)vq->avail +
						   at);

	return le16toh(atomic_load_explicit(p, order));
}

/* Store into the used ring and mark it dirty, in this order. */
static void used_store16(struct virtqueue *vq, size_t at, uint16_t value,
			 memory_order order)
{
	_Atomic uint16_t *p = (void *)((char *)vq->used + at);

	atomic_store_explicit(p, htole16(value), order);
	mem_mark_dirty(vq->ram, gpa_add(vq->used_gpa, at), 2);
}

static void full_barrier(void)
{
	/* Not atomic_thread_fence(): gcc's TSan refuses that one. */
	__sync_synchronize();
}

void vq_init(struct virtqueue *vq, unsigned int index, uint16_t max_size,
	     const struct ram *ram)
{
	BUG_ON(!is_pow2(max_size) || max_size > VQ_MAX_SIZE);
	*vq = (struct virtqueue){
		.index = index,
		.max_size = max_size,
		.ram = ram,
	};
}

/* Check and map the rings; nothing is written to them. */
static int map_rings(struct virtqueue *vq, const struct vq_config *cfg)
{
	const struct ram *ram = vq->ram;
	uint32_t held = atomic_load(&vq->held), num_holds = vq->num_holds;
	uint16_t size = cfg->size;

	if (!is_pow2(size) || size > vq->max_size ||
	    !is_aligned(cfg->desc, 16) || !is_aligned(cfg->avail, 2) ||
	    !is_aligned(cfg->used, 4))
		return -EINVAL;
	vq_init(vq, vq->index, vq->max_size, ram);
	vq->num_holds = num_holds;
	atomic_store(&vq->held, held);
	vq->desc = mem_map_range(ram, GPA(cfg->desc), DESC_BYTES * size,
				 MEM_READ);
	vq->avail = mem_map_range(ram, GPA(cfg->avail), AVAIL_BYTES(size),
				  MEM_READ);
	vq->used = mem_map_range(ram, GPA(cfg->used), USED_BYTES(size),
				 MEM_READ);
	if (!vq->desc || !vq->avail || !vq->used) {
		vq_stop(vq);
		return -EFAULT;
	}
	vq->size = size;
	vq->used_gpa = GPA(cfg->used);
	vq->event_idx = cfg->event_idx;
	vq->indirect = cfg->indirect;
	vq->started = true;
	return 0;
}

int vq_start(struct virtqueue *vq, const struct vq_config *cfg)
{
	int r = map_rings(vq, cfg);

	if (r)
		return r;
	/* The driver starts from zeroed rings: nothing used, nothing told. */
	vq->signalled_valid = true;
	used_store16(vq, USED_FLAGS, 0, memory_order_relaxed);
	if (vq->event_idx)
		used_store16(vq, USED_RING(vq->size), 0, memory_order_relaxed);
	return 0;
}

int vq_restore(struct virtqueue *vq, const struct vq_config *cfg,
	       uint16_t used_idx)
{
	int r = map_rings(vq, cfg);

	if (r)
		return r;
	vq->used_idx = vq->shown_idx = used_idx;
	vq->last_avail = vq->avail_seen = used_idx;
	/*
	 * What the driver was told last is in guest memory: tell it again
	 * before sleeping. It may wait for an interrupt that was not sent.
	 */
	vq->avail_event = (uint16_t)(used_idx - 1);
	vq->signalled_valid = false;
	return 0;
}

void vq_stop(struct virtqueue *vq)
{
	vq->started = false;
	vq->desc = NULL;
	vq->avail = NULL;
	vq->used = NULL;
}

/*
 * A hold has a number, so that an answer to an earlier one is not taken for
 * one to this. That the device never came to pop needs no answer: the store of
 * touched before its first look at held, and ours of held before the look at
 * touched, are sequentially consistent, so one sees the other.
 */
void vq_hold(struct virtqueue *vq, bool held)
{
	if (!held)
		atomic_store(&vq->held, 0);
	else if (!atomic_load(&vq->held))
		atomic_store(&vq->held,
			     ++vq->num_holds ? vq->num_holds : ++vq->num_holds);
}

bool vq_is_held(const struct virtqueue *vq)
{
	return atomic_load_explicit(&vq->held, memory_order_acquire) != 0;
}

/* The device's thread; after its last write for what was popped. */
static void note_quiet(struct virtqueue *vq)
{
	uint32_t held = atomic_load(&vq->held);

	if (held && vq->last_avail == vq->shown_idx)
		atomic_store_explicit(&vq->quiet, held, memory_order_release);
}

bool vq_take_hold(struct virtqueue *vq)
{
	if (!atomic_load_explicit(&vq->touched, memory_order_relaxed))
		atomic_store(&vq->touched, true);
	if (!atomic_load(&vq->held))
		return false;
	note_quiet(vq);
	return true;
}

bool vq_is_quiet(const struct virtqueue *vq)
{
	uint32_t held = atomic_load(&vq->held);

	return held &&
	       (!atomic_load(&vq->touched) ||
		atomic_load_explicit(&vq->quiet, memory_order_acquire) == held);
}

/* ---- kicks ---- */

/* 1: there is something to pop, 0: nothing, -EINVAL: nonsense. */
static int avail_poll(struct virtqueue *vq)
{
	uint16_t idx = avail_load(vq, AVAIL_IDX, memory_order_acquire);
	uint16_t num = (uint16_t)(idx - vq->last_avail);

	if (num > vq->size)
		return -EINVAL;
	vq->avail_seen = idx;
	return num != 0;
}

/* Ask for a kick with the next entry; as avail_poll() about older ones. */
static int kicks_on(struct virtqueue *vq)
{
	if (vq->event_idx) {
		vq->avail_event = vq->last_avail;
		used_store16(vq, USED_RING(vq->size), vq->last_avail,
			     memory_order_relaxed);
	} else {
		used_store16(vq, USED_FLAGS, 0, memory_order_relaxed);
	}
	full_barrier();
	return avail_poll(vq);
}

void vq_disable_kick(struct virtqueue *vq)
{
	if (!vq->started || vq->kicks_off || vq_is_held(vq))
		return;
	vq->kicks_off = true;
	/* With event_idx, not moving avail_event is enough. */
	if (!vq->event_idx)
		used_store16(vq, USED_FLAGS, VRING_USED_F_NO_NOTIFY,
			     memory_order_relaxed);
}

bool vq_enable_kick(struct virtqueue *vq)
{
	if (!vq->started || vq->broken)
		return false;
	/* Nothing is written while held; there will be a kick at its end. */
	if (vq_is_held(vq))
		return false;
	vq->kicks_off = false;
	/* Nonsense counts as work: vq_pop() then says what it is. */
	return kicks_on(vq) != 0 && !vq_is_held(vq);
}

/* ---- popping ---- */

/* Where a walk is: the queue's own table, or an indirect one. */
struct walk {
	const char *table;
	uint32_t entries;
	uint32_t budget;
	bool indirect;
};

/* One copy; the barrier keeps later uses from going back to the source. */
static void desc_copy(const struct walk *walk, uint32_t index,
		      struct vring_desc *ret)
{
	memcpy(ret, walk->table + DESC_BYTES * index, DESC_BYTES);
	__asm__ volatile("" : : : "memory");
	ret->addr = le64toh(ret->addr);
	ret->len = le32toh(ret->len);
	ret->flags = le16toh(ret->flags);
	ret->next = le16toh(ret->next);
}

static int walk_enter_indirect(const struct virtqueue *vq, struct walk *walk,
			       const struct vring_desc *desc)
{
	uint32_t entries = desc->len / DESC_BYTES;

	if (!vq->indirect || walk->indirect ||
	    (desc->flags & VRING_DESC_F_NEXT) || !entries ||
	    desc->len % DESC_BYTES)
		return -EINVAL;
	walk->table = mem_map_range(vq->ram, GPA(desc->addr), desc->len,
				    MEM_READ);
	if (!walk->table)
		return -EFAULT;
	walk->entries = entries;
	/* A table may be larger than the queue, but not endless. */
	walk->budget = MIN(entries, (uint32_t)VQ_MAX_SIZE);
	walk->indirect = true;
	return 0;
}

static int chain_add(const struct virtqueue *vq, struct vq_chain *chain,
		     const struct vring_desc *desc)
{
	unsigned int at = chain->num_out + chain->num_in;
	bool in = desc->flags & VRING_DESC_F_WRITE;
	struct iovec *iov = &chain->iov[at];

	if (!desc->len || (!in && chain->num_in))
		return -EINVAL;
	/* The used element can tell 32 bits of length. */
	if (chain->out_bytes + chain->in_bytes + desc->len > UINT32_MAX)
		return -E2BIG;
	if (vq->heads_only && at >= (in ? VQ_MAX_IOV : VQ_MAX_IOV / 2)) {
		*(in ? &chain->in_bytes : &chain->out_bytes) += desc->len;
		return 0;
	}
	if (at == VQ_MAX_IOV)
		return -E2BIG;
	/*
	 * MEM_READ for both directions: what gets written is marked dirty when
	 * it is there, in vq_push().
	 */
	iov->iov_base = mem_map_range(vq->ram, GPA(desc->addr), desc->len,
				      MEM_READ);
	iov->iov_len = desc->len;
	if (!iov->iov_base)
		return -EFAULT;
	if (in) {
		chain->in_gpa[chain->num_in++] = GPA(desc->addr);
		chain->in_bytes += desc->len;
	} else {
		chain->num_out++;
		chain->out_bytes += desc->len;
	}
	return 0;
}

static int chain_walk(const struct virtqueue *vq, struct vq_chain *chain)
{
	struct walk walk = {
		.table = vq->desc,
		.entries = vq->size,
		.budget = vq->size,
	};
	uint32_t index = chain->head;
	struct vring_desc desc;
	int r;

	for (;;) {
		if (index >= walk.entries)
			return -EINVAL;
		if (!walk.budget--)
			return -ELOOP;
		desc_copy(&walk, index, &desc);
		if (desc.flags & VRING_DESC_F_INDIRECT) {
			r = walk_enter_indirect(vq, &walk, &desc);
			if (r)
				return r;
			index = 0;
			continue;
		}
		r = chain_add(vq, chain, &desc);
		if (r)
			return r;
		if (!(desc.flags & VRING_DESC_F_NEXT))
			return 0;
		index = desc.next;
	}
}

static int vq_poll_for_pop(struct virtqueue *vq)
{
	int r;

	if (vq->avail_seen != vq->last_avail)
		return 1;
	r = avail_poll(vq);
	/*
	 * Before a device goes to sleep on an empty ring, the driver has to
	 * know from which entry on to kick; unless the device polls.
	 */
	if (r == 0 && vq->event_idx && !vq->kicks_off &&
	    vq->avail_event != vq->last_avail)
		r = kicks_on(vq);
	return r;
}

void vq_adopt(struct virtqueue *vq)
{
	const _Atomic uint16_t *p;

	if (!vq->started)
		return;
	p = (const void *)((const char *)vq->used + USED_IDX);
	vq->used_idx = le16toh(atomic_load_explicit(p, memory_order_acquire));
	vq->shown_idx = vq->used_idx;
	vq->last_avail = vq->avail_seen = vq->used_idx;
	vq->kicks_off = false;
	/* The driver may wait for what the other did not interrupt for. */
	vq->signalled_valid = false;
}

bool vq_has_work(const struct virtqueue *vq)
{
	return vq->started && !vq->broken && !vq_is_held(vq) &&
	       avail_load(vq, AVAIL_IDX, memory_order_relaxed) !=
		       vq->last_avail;
}

int vq_pop(struct virtqueue *vq, struct vq_chain *ret)
{
	uint16_t head;
	int r;

	if (!vq->started)
		return 0;
	if (vq_take_hold(vq))
		return vq->broken ? -EIO : 0;
	if (vq->broken)
		return -EIO;
	r = vq_poll_for_pop(vq);
	if (r == 0)
		return 0;
	if (r < 0)
		goto broken;
	head = avail_load(vq, AVAIL_RING(vq->last_avail & (vq->size - 1)),
			  memory_order_relaxed);
	if (head >= vq->size) {
		r = -EINVAL;
		goto broken;
	}
	vq->last_avail++;
	ret->head = head;
	ret->num_out = 0;
	ret->num_in = 0;
	ret->out_bytes = 0;
	ret->in_bytes = 0;
	r = chain_walk(vq, ret);
	if (!r)
		return 1;
	vq_push_head(vq, head, 0);
broken:
	vq->broken = true;
	return r;
}

void vq_unpop(struct virtqueue *vq, unsigned int num)
{
	/* Of a held queue that is quiet the holder reads the indices. */
	if (!num)
		return;
	/*
	 * The ring entries are read again when they are popped again: by then
	 * the driver may have changed them, and they are checked anew.
	 */
	vq->last_avail = (uint16_t)(vq->last_avail - num);
	note_quiet(vq);
}

/* ---- pushing ---- */

void vq_push_fill(struct virtqueue *vq, uint16_t head, uint32_t written)
{
	size_t at;
	_Atomic uint32_t *elem;

	if (!vq->started)
		return;
	at = USED_RING(vq->used_idx & (vq->size - 1));
	elem = (void *)((char *)vq->used + at);
	atomic_store_explicit(&elem[0], htole32(head), memory_order_relaxed);
	atomic_store_explicit(&elem[1], htole32(written), memory_order_relaxed);
	mem_mark_dirty(vq->ram, gpa_add(vq->used_gpa, at), 8);
	vq->used_idx++;
	/* All the way round without a check: the difference would say 0. */
	if (vq->used_idx == vq->signalled_used)
		vq->signalled_valid = false;
}

void vq_push_show(struct virtqueue *vq)
{
	if (!vq->started)
		return;
	used_store16(vq, USED_IDX, vq->used_idx, memory_order_release);
	vq->shown_idx = vq->used_idx;
	note_quiet(vq);
}

void vq_push_head(struct virtqueue *vq, uint16_t head, uint32_t written)
{
	vq_push_fill(vq, head, written);
	vq_push_show(vq);
}

void vq_push(struct virtqueue *vq, const struct vq_chain *chain,
	     uint32_t written)
{
	uint64_t left = MIN((uint64_t)written, chain->in_bytes);

	written = (uint32_t)left;
	for (unsigned int i = 0; left && i < chain->num_in; i++) {
		uint64_t len = chain->iov[chain->num_out + i].iov_len;

		len = MIN(len, left);
		mem_mark_dirty(vq->ram, chain->in_gpa[i], len);
		left -= len;
	}
	vq_push_head(vq, chain->head, written);
}

bool vq_should_notify(struct virtqueue *vq)
{
	uint16_t old = vq->signalled_used, now = vq->used_idx;
	bool valid = vq->signalled_valid;

	if (!vq->started || (valid && old == now))
		return false;
	full_barrier();
	vq->signalled_used = now;
	vq->signalled_valid = true;
	if (!vq->event_idx)
		return !(avail_load(vq, AVAIL_FLAGS, memory_order_relaxed) &
			 VRING_AVAIL_F_NO_INTERRUPT);
	if (!valid)
		return true;
	/* Did the used index step over the entry the driver waits for? */
	return vring_need_event(avail_load(vq, AVAIL_RING(vq->size),
					   memory_order_relaxed),
				now, old);
}

/* ---- data ---- */

/*
 * Copy between buf and the num iovecs at iov, from byte skip of them. to_guest
 * decides the direction.
 */
static size_t iov_copy(const struct iovec *iov, unsigned int num, uint64_t skip,
		       char *buf, size_t len, bool to_guest)
{
	size_t done = 0;

	for (unsigned int i = 0; i < num && done < len; i++) {
		char *base = iov[i].iov_base;
		size_t n;

		if (skip >= iov[i].iov_len) {
			skip -= iov[i].iov_len;
			continue;
		}
		n = MIN(iov[i].iov_len - (size_t)skip, len - done);
		if (to_guest)
			memcpy(base + skip, buf + done, n);
		else
			memcpy(buf + done, base + skip, n);
		done += n;
		skip = 0;
	}
	return done;
}

size_t vq_chain_read(const struct vq_chain *chain, uint64_t skip, void *buf,
		     size_t len)
{
	return iov_copy(chain->iov, chain->num_out, skip, buf, len, false);
}

size_t vq_chain_write(struct vq_chain *chain, uint64_t skip, const void *buf,
		      size_t len)
{
	/* The cast drops const for a direction that only reads buf. */
	return iov_copy(chain->iov + chain->num_out, chain->num_in, skip,
			(char *)(uintptr_t)buf, len, true);
}
