/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. The caller's thread goes over memory in pieces of 64
 * MiB: dirty_take(), which arms the pages again, then it publishes the bits in
 * a ring of pieces (piece_ring.h). Each sender (sender.h) goes over all of them
 * and sends the units that are its stream's. What goes out of a unit is
 * unit_out.h's to say.
 *
 * In the first round memory is looked through without faulting in what the
 * guest never touched; zeroes are not sent at all, since the destination begins
 * with nothing else, nor is what the guest does not need (mem/hints.h). Later a
 * page that is dirty was written, and is there.
 *
 * Images of disks come before memory in each round, in pieces of as many
 * clusters, by the same rule: what was written after its bit was taken is dirty
 * again.
 */
#include "migrate/send_pages.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "migrate/sender.h"

struct send_pages {
	struct send_pages_config cfg;
	struct piece_ring_tick tick;
	struct sender_common common;
	struct sender senders[];
};

static bool is_stopped(void *ctx)
{
	struct send_pages *p = ctx;

	return atomic_load_explicit(&p->common.ring.stop, memory_order_relaxed);
}

static void prepare_sender(struct send_pages *p, unsigned int i)
{
	struct sender *s = &p->senders[i];
	struct link *link = &s->out.stream.link;

	s->common = &p->common;
	s->index = i + 1;
	s->out.ram = p->cfg.ram;
	s->out.hints = p->cfg.hints;
	s->out.disks = &p->cfg.disks;
	unit_out_clear(&s->out);
	link->fd = p->cfg.fds[i];
	link->tls = p->cfg.tls ? p->cfg.tls[i] : NULL;
	link->patience_ns = p->cfg.patience_ns;
	link->given_up = is_stopped;
	link->ctx = p;
}

int send_pages_start(struct send_pages **ret,
		     const struct send_pages_config *cfg, struct err *err)
{
	struct send_pages *p = calloc(
		1, sizeof(*p) + cfg->num * sizeof(p->senders[0]));
	int r = 0;

	BUG_ON(cfg->num > WIRE_MAX_STREAMS);
	if (!p)
		return err_set(err, ENOMEM, "sending memory: out of memory");
	p->cfg = *cfg;
	p->tick = (struct piece_ring_tick){ cfg->tick, cfg->ctx };
	p->common.num = cfg->num;
	p->common.pack = cfg->pack;
	piece_ring_init(&p->common.ring, cfg->num);
	pace_init(&p->common.pace, cfg->rate_bytes_per_s);
	/* Also those that are never started have nothing to close. */
	for (unsigned int i = 0; i < cfg->num; i++)
		prepare_sender(p, i);
	for (unsigned int i = 0; !r && i < cfg->num; i++)
		r = sender_start(&p->senders[i]);
	if (!r) {
		*ret = p;
		return 0;
	}
	send_pages_free(p);
	return err_errno(err, -r, "starting a thread");
}

/* ---- a round ---- */

static int take_memory_piece(struct send_pages *p, unsigned int region,
			     uint64_t first, struct err *err)
{
	const struct ram_region *r = &p->cfg.ram->regions[region];
	struct piece *piece;
	int64_t n;
	int error = piece_ring_room(&p->common.ring, &piece, &p->tick, err);

	if (error)
		return error;
	piece->of_disk = false;
	piece->region = region;
	piece->first = first;
	piece->num = MIN(ram_region_pages(r) - first, (uint64_t)PIECE_PAGES);
	n = dirty_take(p->cfg.dirty, region, first, piece->num, piece->bits);
	if (n < 0)
		return err_errno(
			err, (int)-n, "what was written to memory at %#llx",
			(unsigned long long)(r->base.v + first * PAGE_4K));
	atomic_fetch_add(&p->common.in_hand, (uint64_t)n);
	if (n)
		piece_ring_publish(&p->common.ring);
	return 0;
}

static int take_memory(struct send_pages *p, struct err *err)
{
	const struct ram *ram = p->cfg.ram;
	int r = 0;

	for (unsigned int i = 0; !r && i < ram->num_regions; i++) {
		uint64_t num = ram_region_pages(&ram->regions[i]);

		for (uint64_t at = 0; !r && at < num; at += PIECE_PAGES) {
			r = take_memory_piece(p, i, at, err);
			if (!r)
				r = p->cfg.tick(p->cfg.ctx, err);
		}
	}
	return r;
}

static int take_disk_piece(struct send_pages *p, unsigned int disk,
			   uint64_t first, uint64_t num, struct err *err)
{
	struct piece *piece;
	uint64_t n;
	int r = piece_ring_room(&p->common.ring, &piece, &p->tick, err);

	if (r)
		return r;
	piece->of_disk = true;
	piece->region = disk;
	piece->first = first;
	piece->num = num;
	memset(piece->bits, 0, PIECE_CLUSTERS / 8);
	n = block_track_take(blockdev_track(p->cfg.disks.list[disk]), first,
			     num, piece->bits);
	atomic_fetch_add(&p->common.in_hand, n * SENDER_CLUSTER_PAGES);
	if (!n)
		return 0;
	piece_ring_publish(&p->common.ring);
	return p->cfg.tick(p->cfg.ctx, err);
}

/*
 * A tick for each piece of which something is sent: 1 TiB is 16384 pieces, most
 * of them clean, and the last round has the guest wait.
 */
static int take_disk(struct send_pages *p, unsigned int disk, struct err *err)
{
	uint64_t num = div_round_up(blockdev_size(p->cfg.disks.list[disk]),
				    WIRE_CLUSTER_BYTES);
	int r = 0;

	for (uint64_t at = 0; !r && at < num; at += PIECE_CLUSTERS)
		r = take_disk_piece(p, disk, at,
				    MIN(num - at, (uint64_t)PIECE_CLUSTERS),
				    err);
	return r ? r : p->cfg.tick(p->cfg.ctx, err);
}

static int take_disks(struct send_pages *p, struct err *err)
{
	int r = 0;

	for (unsigned int i = 0; !r && i < p->cfg.disks.num; i++)
		r = take_disk(p, i, err);
	return r;
}

int send_pages_round(struct send_pages *p, bool last, struct err *err)
{
	int r;

	if (last)
		pace_release(&p->common.pace);
	r = take_disks(p, err);
	if (!r)
		r = take_memory(p, err);
	return r ? r : piece_ring_end_round(&p->common.ring, &p->tick, err);
}

/* ---- the end ---- */

static void join(struct send_pages *p)
{
	for (unsigned int i = 0; i < p->cfg.num; i++)
		sender_join(&p->senders[i]);
}

int send_pages_end(struct send_pages *p, struct err *err)
{
	piece_ring_end(&p->common.ring);
	join(p);
	return piece_ring_error(&p->common.ring, err);
}

void send_pages_free(struct send_pages *p)
{
	if (!p)
		return;
	piece_ring_stop(&p->common.ring);
	pace_release(&p->common.pace);
	join(p);
	for (unsigned int i = 0; i < p->cfg.num; i++)
		unit_out_fini(&p->senders[i].out);
	pace_fini(&p->common.pace);
	piece_ring_fini(&p->common.ring);
	free(p);
}

/* ---- any time ---- */

void send_pages_set_patience(struct send_pages *p, uint64_t ns)
{
	for (unsigned int i = 0; i < p->cfg.num; i++)
		atomic_store(&p->senders[i].out.stream.link.patience_ns, ns);
}

void send_pages_read(struct send_pages *p, struct send_pages_count *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->in_hand_bytes = atomic_load(&p->common.in_hand) * PAGE_4K;
	for (unsigned int i = 0; i < p->cfg.num; i++) {
		struct unit_out *u = &p->senders[i].out;
		struct stream_out *o = &u->stream;

		ret->page_bytes += atomic_load(&o->page_bytes);
		ret->zero_bytes += atomic_load(&o->zero_bytes);
		ret->disk_bytes += atomic_load(&u->disk_bytes);
		ret->disk_zero_bytes += atomic_load(&u->disk_zero_bytes);
		ret->unused_bytes += atomic_load(&u->unused_bytes);
		ret->wire_bytes += atomic_load(&o->wire_bytes);
		ret->pack_from_bytes += atomic_load(&o->pack_from);
		ret->pack_to_bytes += atomic_load(&o->pack_to);
	}
}
