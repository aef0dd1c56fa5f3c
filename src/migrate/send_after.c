/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that follows its VM: what is to follow, found while the guest stands
 * still; sending it; and what is done when the connections are lost, and found
 * again.
 *
 * The VM is the destination's once COMMIT was sent, and never runs here again.
 * Its memory does not change any more, so that it can be sent as often as it
 * takes.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "mem/pagemap.h"
#include "mem/source.h"
#include "migrate/send_priv.h"
#include "vm/machine.h"

#define TAKE_PAGES     16384u
#define LAST_WORDS_NS  (1 * NSEC_PER_SEC)
#define NO_PATIENCE_NS UINT64_MAX

const char *const migrate_mode_names[MIGRATE_NUM_MODES] = {
	[MIGRATE_PRECOPY] = "precopy",
	[MIGRATE_POSTCOPY] = "postcopy",
	[MIGRATE_HYBRID] = "hybrid",
	[MIGRATE_LOCAL] = "local",
};

/* ---- what is to follow ---- */

static void note_run(void *ctx, struct gpa gpa, uint64_t len)
{
	page_map_set(ctx, gpa.v, len);
}

/* What is in a file is not looked through: it may all be something. */
static int note_file(struct page_map *map, const struct ram *ram)
{
	uint64_t offset = 0;

	for (unsigned int i = 0; i < ram->num_regions; i++) {
		const struct ram_region *r = &ram->regions[i];
		off_t at = (off_t)offset, end = at + (off_t)r->size;
		off_t data, hole;

		while (at < end) {
			data = lseek(ram->fd, at, SEEK_DATA);
			if (data < 0 && errno == ENXIO)
				break;
			hole = data < 0 ? -1 : lseek(ram->fd, data, SEEK_HOLE);
			if (data < 0 || hole < 0)
				return -errno;
			if (data >= end)
				break;
			hole = MIN(hole, end);
			page_map_set(map,
				     r->base.v +
					     (uint64_t)(data - (off_t)offset),
				     (uint64_t)(hole - data));
			at = hole;
		}
		offset += r->size;
	}
	return 0;
}

static int note_behind(struct page_map *map, const struct ram *ram,
		       const struct ram_region *r)
{
	uint64_t at = r->base.v, end = at + r->size, len = 0;
	enum mem_content content = MEM_CONTENT_DATA;

	for (; at < end; at += len) {
		int n = mem_source_extent(ram->behind, GPA(at), end - at,
					  &content, &len);

		if (n)
			return n;
		if (content != MEM_CONTENT_ZERO)
			page_map_set(map, at, len);
	}
	return 0;
}

/* What the guest has ever touched; the rest is zero there as well. */
static int note_touched(struct page_map *map, const struct ram *ram)
{
	struct pagemap pm;
	int r = pagemap_open(&pm);

	if (r)
		return r;
	for (unsigned int i = 0; !r && i < ram->num_regions; i++) {
		const struct ram_region *region = &ram->regions[i];

		r = pagemap_each_held(&pm, ram, region->base, region->size,
				      false, note_run, map);
		if (!r && ram->behind)
			r = note_behind(map, ram, region);
	}
	pagemap_close(&pm);
	if (!r && ram->fd >= 0)
		r = note_file(map, ram);
	return r;
}

static void note_bits(struct page_map *map, uint64_t start,
		      const uint64_t *bits, uint64_t num)
{
	uint64_t at = 0, len;

	for (; dirty_next_run(bits, num, &at, &len); at += len)
		page_map_set(map, start + at * PAGE_4K, len * PAGE_4K);
}

/* What was written since it was sent. */
static int note_written(struct send *s, const struct ram *ram)
{
	struct dirty_tracker *dirty = s->machine->memory.dirty;
	uint64_t bits[TAKE_PAGES / 64];

	for (unsigned int i = 0; i < ram->num_regions; i++) {
		uint64_t num = ram_region_pages(&ram->regions[i]);

		for (uint64_t at = 0; at < num; at += TAKE_PAGES) {
			uint64_t step = MIN(num - at, (uint64_t)TAKE_PAGES);
			int64_t n = dirty_take(dirty, i, at, step, bits);

			if (n < 0)
				return (int)n;
			note_bits(&s->pending,
				  ram->regions[i].base.v + at * PAGE_4K, bits,
				  step);
		}
	}
	return 0;
}

int send_find_pending(struct send *s, struct err *err)
{
	const struct ram *ram = &s->machine->memory.ram;
	int r = page_map_init(&s->pending, ram);

	if (!r)
		r = s->converge.rounds ? note_written(s, ram)
				       : note_touched(&s->pending, ram);
	return r ? err_errno(err, -r, "finding out what is to be sent") : 0;
}

int send_pending(struct send *s, struct err *err)
{
	size_t bytes = wire_map_bytes(&s->pending);
	_cleanup_free_ uint8_t *payload = malloc(bytes);

	if (!payload)
		return err_set(err, ENOMEM, "out of memory");
	wire_put_map(payload, &s->pending);
	return link_put(&s->control, WIRE_PENDING, payload, bytes, err);
}

int send_start_push(struct send *s, struct err *err)
{
	const struct push_config cfg = {
		.ram = &s->machine->memory.ram,
		.pending = &s->pending,
		.fds = s->fds + 1,
		.tls = s->tls + 1,
		.num = s->num_streams,
		.urgent_fd = s->fds[s->urgent],
		.urgent_tls = s->tls[s->urgent],
		.patience_ns = SEND_PATIENCE_NS,
		.rate_bytes_per_s = s->req->rate_bytes_per_s,
		.pack = s->req->pack,
	};

	return push_start(&s->push, &cfg, err);
}

/* ---- until it is there ---- */

static bool is_over(void *ctx)
{
	struct send *s = ctx;

	send_report(s);
	return send_is_given_up(s) || push_failed(s->push, NULL);
}

static int get_complete(struct send *s, struct err *err)
{
	_cleanup_free_ uint8_t *payload = NULL;
	enum wire_complete how = WIRE_ALL_CAME;
	int r = link_get(&s->control, WIRE_COMPLETE, &payload, NULL, err);

	if (!r)
		r = wire_parse_complete(payload, &how, err);
	s->result->ended_there = !r && how == WIRE_VM_ENDED;
	/* Who does not hear of it waits a little for us, in vain. */
	if (!r && how == WIRE_ALL_CAME)
		(void)!link_put(&s->control, WIRE_FREE, NULL, 0, NULL);
	return r;
}

/*
 * Whoever has all closes his connections, of which the last word may be just
 * behind.
 */
static int wait_complete(struct send *s, struct err *err)
{
	struct err words = ERR_INIT;
	int r;

	s->control.given_up = is_over;
	s->control.ctx = s;
	atomic_store(&s->control.patience_ns, NO_PATIENCE_NS);
	r = get_complete(s, err);
	if (r != -ECANCELED)
		return r;
	if (push_failed(s->push, err))
		r = -EPIPE;
	s->control.given_up = NULL;
	atomic_store(&s->control.patience_ns, r == -EPIPE ? LAST_WORDS_NS : 0);
	s->control.until_ns = clock_now_ns() + LAST_WORDS_NS;
	return get_complete(s, &words) ? r : 0;
}

static void count_pushed(struct send *s)
{
	struct push_count count;

	push_read(s->push, &count);
	s->result->page_bytes += count.page_bytes;
	s->result->zero_bytes += count.zero_bytes;
	s->result->wire_bytes += count.wire_bytes;
	s->result->pack_from_bytes += count.pack_from_bytes;
	s->result->pack_to_bytes += count.pack_to_bytes;
	s->result->followed_bytes = count.page_bytes + count.zero_bytes;
	s->result->urgent_pages = count.urgent_pages;
}

static int left(struct vmm *v, void *arg, struct err *err)
{
	const struct send *s = arg;

	return vmm_send_left(v, s->id, false, err);
}

static int left_in_doubt(struct vmm *v, void *arg, struct err *err)
{
	const struct send *s = arg;

	return vmm_send_left(v, s->id, true, err);
}

int send_rest_after(struct send *s, struct err *err)
{
	int r;

	s->phase = "post-copy";
	r = wait_complete(s, err);
	s->result->total_ns = clock_now_ns() - s->began_ns;
	count_pushed(s);
	push_free(take_ptr(s->push));
	send_close_all(s);
	if (!r) {
		(void)!send_let_go(s, send_done, NULL);
		return 0;
	}
	err_append(err, "the VM runs at the destination, and waits for memory "
			"that is still here: quire migrate --recover brings "
			"it");
	(void)!send_let_go(s, left, NULL);
	return -EREMOTEIO;
}

void send_doubt_after(struct send *s)
{
	(void)!send_let_go(s, left_in_doubt, NULL);
}

/* ---- again ---- */

static int begin_again(struct vmm *v, void *arg, struct err *err)
{
	struct send *s = arg;

	return vmm_send_begin_again(v, &s->machine, s->id, &s->in_doubt, err);
}

static int get_missing(struct send *s, struct err *err)
{
	_cleanup_free_ uint8_t *payload = NULL;
	uint8_t again[WIRE_AGAIN_BYTES];
	size_t bytes = 0;
	int r = page_map_init(&s->pending, &s->machine->memory.ram);

	if (r)
		return err_set(err, ENOMEM, "out of memory");
	wire_put_again(again, send_pack_features(s));
	r = link_put(&s->control, WIRE_AGAIN, again, sizeof(again), err);
	if (!r)
		r = send_begin_streams(s, err);
	if (!r)
		r = link_get(&s->control, WIRE_MISSING, &payload, &bytes, err);
	return r ? r : wire_parse_map(payload, bytes, &s->pending, err);
}

static int recover(struct send *s, struct err *err)
{
	int r = vmm_call(s->vmm, begin_again, s, err);

	s->begun = !r;
	if (!r)
		r = send_open_all(s, err);
	if (!r)
		r = get_missing(s, err);
	if (!r) {
		s->in_doubt = false;
		r = send_start_push(s, err);
	}
	if (!r) {
		push_go(s->push);
		return send_rest_after(s, err);
	}
	r = send_ask_why(s, r, err);
	send_close_all(s);
	(void)!send_let_go(s, s->in_doubt ? left_in_doubt : left, NULL);
	return r;
}

int migrate_recover(struct vmm *v, const struct migrate_send_request *req,
		    struct migrate_send_result *ret, struct err *err)
{
	/* There is an urgent connection, as with any mode but one. */
	const struct migrate_send_request own = {
		.mode = MIGRATE_POSTCOPY,
		.sockets = req->sockets,
		.uri = req->uri,
		.tls_dir = req->tls_dir,
		.tls_hostname = req->tls_hostname,
		.streams = req->streams,
		.rate_bytes_per_s = req->rate_bytes_per_s,
		.pack = req->pack,
	};
	struct send s = {
		.vmm = v,
		.req = &own,
		.result = ret,
		.session_fd = -1,
		.control.fd = -1,
		.began_ns = clock_now_ns(),
		.reported_ns = clock_now_ns(),
	};
	struct err none = ERR_INIT;
	int r;

	memset(ret, 0, sizeof(*ret));
	r = recover(&s, err ? err : &none);
	page_map_fini(&s.pending);
	tls_credentials_free(s.credentials);
	close_fd(&s.session_fd);
	return r;
}
