/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/send.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/json.h"
#include "base/log.h"
#include "base/thread.h"
#include "migrate/send_priv.h"
#include "migrate/shape.h"
#include "migrate/uri.h"

/* Of memory: a destination that populates, or maps, all of it takes none so
 * long. */
#define PATIENCE_PAGES_NS (300 * NSEC_PER_SEC)
#define HANDSHAKE_NS	  (10 * NSEC_PER_SEC)
#define LAST_WORDS_NS	  (1 * NSEC_PER_SEC)
/*
 * The first round is all of memory; another catches what was written in it,
 * while what is hot is left to follow.
 */
#define HYBRID_ROUNDS 2u
/* Longer than a destination waits for COMMIT, which keeps the disks so long. */
#define RECLAIM_NS	 (15 * NSEC_PER_SEC)
#define RECLAIM_SLICE_MS 50
#define REPORT_NS	 (NSEC_PER_SEC / 2)

/* ---- giving up, and telling how it goes ---- */

static bool is_over(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLRDHUP };

	return fd >= 0 && poll(&pfd, 1, 0) > 0;
}

bool send_is_given_up(void *ctx)
{
	struct send *s = ctx;

	return is_over(s->session_fd) || vmm_is_ending(s->vmm) ||
	       (s->begun && vmm_hold_cancelled(s->vmm));
}

static uint64_t bytes_waiting(const struct send *s)
{
	struct dirty_stats stats = { 0 };

	if (s->begun)
		dirty_stats_read(s->machine->memory.dirty, &stats);
	return stats.pages_waiting * PAGE_4K +
	       (s->tracks ? migrate_disks_dirty(&s->disks) : 0);
}

static uint64_t bytes_pending(const struct send *s, const struct push_count *c)
{
	uint64_t all = page_map_count(&s->pending) * PAGE_4K;

	/* Some go twice. */
	return all - MIN(all, c->page_bytes + c->zero_bytes);
}

/* null where it is never, or not known. */
static json_t *ms_json(uint64_t ns)
{
	return ns == UINT64_MAX
		       ? json_null()
		       : json_integer((json_int_t)(ns / NSEC_PER_MSEC));
}

/* Who does not read as fast misses some: it never waits. */
static void tell(struct send *s)
{
	const struct converge *c = &s->converge;
	struct send_pages_count count = s->count;
	struct push_count pushed = { 0 };
	_cleanup_free_ char *text = NULL;
	json_t *o;
	size_t len;

	if (s->session_fd < 0 || !s->phase)
		return;
	if (s->pages)
		send_pages_read(s->pages, &count);
	if (s->push)
		push_read(s->push, &pushed);
	o = json_pack(
		"{s:s, s:I, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:o, s:o}",
		"phase", s->phase, "elapsed_ms",
		(json_int_t)((clock_now_ns() - s->began_ns) / NSEC_PER_MSEC),
		"rounds", (int)c->rounds, "sent_bytes",
		json_int_u64(count.wire_bytes + pushed.wire_bytes),
		"compressed_from_bytes",
		json_int_u64(count.pack_from_bytes + pushed.pack_from_bytes),
		"compressed_to_bytes",
		json_int_u64(count.pack_to_bytes + pushed.pack_to_bytes),
		"remaining_bytes",
		json_int_u64(s->push ? bytes_pending(s, &pushed)
				     : bytes_waiting(s) + count.in_hand_bytes),
		"rate_bytes_per_s", (json_int_t)c->rate, "dirty_bytes_per_s",
		(json_int_t)c->dirtying, "throttle_percent",
		(int)s->throttle.percent, "predicted_downtime_ms",
		c->rounds ? ms_json(converge_downtime_ns(c)) : json_null(),
		"eta_ms",
		c->rounds ? ms_json(converge_eta_ns(c)) : json_null());
	text = o ? json_dumps(o, JSON_COMPACT) : NULL;
	json_decref(o);
	if (!text)
		return;
	len = strlen(text);
	text[len] = '\n'; /* in the place of its end */
	(void)!send(s->session_fd, text, len + 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void send_report(struct send *s)
{
	if (clock_now_ns() - s->reported_ns <= REPORT_NS)
		return;
	s->reported_ns = clock_now_ns();
	tell(s);
}

/* Of who waits on the control connection. */
static bool tells_and_is_given_up(void *ctx)
{
	send_report(ctx);
	return send_is_given_up(ctx);
}

/* ---- rounds that are in their place ---- */

static int take_landed(struct send *s, struct err *err)
{
	int r = link_get(&s->control, WIRE_LANDED, NULL, NULL, err);

	if (!r && s->rounds_landed == s->rounds_begun)
		r = err_set(err, EBADMSG, "LANDED came too early");
	s->rounds_landed += !r;
	return r;
}

static int wait_landed(struct send *s, struct err *err)
{
	int r = 0;

	while (!r && s->rounds_landed < s->rounds_begun)
		r = take_landed(s, err);
	return r;
}

/* Until LOADED the destination says nothing else, but that it is over there. */
static int tick(void *ctx, struct err *err)
{
	struct send *s = ctx;

	if (send_is_given_up(s))
		return err_set(err, ECANCELED, "cancelled");
	send_report(s);
	return link_is_readable(&s->control) ? take_landed(s, err) : 0;
}

/* ---- connections ---- */

static int connect_all(struct send *s, struct err *err)
{
	unsigned int num = (s->req->streams ? s->req->streams : 1) + 1 +
			   send_follows(s);
	struct migrate_uri uri;
	int r = migrate_uri_parse(&uri, s->req->uri, err);

	if (!r && uri.kind == MIGRATE_TCP && thread_is_caged())
		return err_set(err, EPERM,
			       "%s: this process is confined and makes no "
			       "network connections; quire migrate makes them "
			       "for it",
			       s->req->uri);
	while (!r && s->num_fds < num) {
		r = migrate_uri_connect(&uri, &s->fds[s->num_fds], err);
		s->num_fds += !r;
	}
	return r;
}

/* Whom the destination has to be, with TLS. */
static int find_host(struct send *s, struct err *err)
{
	struct migrate_uri uri;
	int r;

	if (s->req->tls_hostname) {
		snprintf(s->host, sizeof(s->host), "%s", s->req->tls_hostname);
		return 0;
	}
	r = migrate_uri_parse(&uri, s->req->uri, err);
	if (!r && uri.kind != MIGRATE_TCP)
		r = err_set(err, EINVAL,
			    "%s: a name is needed that the certificate there "
			    "is for",
			    s->req->uri);
	if (!r)
		snprintf(s->host, sizeof(s->host), "%s", uri.host);
	return r;
}

static int make_session(struct send *s, struct link *link, unsigned int i,
			struct err *err)
{
	int r = tls_new(&s->tls[i], s->credentials, link->fd, s->host, err);

	if (r)
		return r;
	link->tls = s->tls[i];
	if (!i)
		s->control.tls = link->tls;
	return link_handshake(link, err);
}

/* The first bytes of connection i; with TLS these come after its own. */
static int begin_connection(struct send *s, unsigned int i, struct err *err)
{
	uint8_t bytes[WIRE_PREFACE_BYTES];
	struct iovec iov = { bytes, sizeof(bytes) };
	struct wire_preface p = {
		.stream = i && i == s->urgent ? WIRE_URGENT : i,
		.num_streams = s->num_streams,
	};
	struct link link = {
		.fd = s->fds[i],
		.patience_ns = s->credentials ? HANDSHAKE_NS : SEND_PATIENCE_NS,
		.given_up = send_is_given_up,
		.ctx = s,
	};
	int r = s->credentials ? make_session(s, &link, i, err) : 0;

	if (r)
		return r;
	memcpy(p.id, s->id, sizeof(p.id));
	wire_put_preface(bytes, &p);
	r = link_send(&link, &iov, 1);
	if (r == -EPIPE)
		return err_set(err, EPIPE,
			       "the other side is gone (connection %u)", i);
	return r ? err_errno(err, -r, "connection %u", i) : 0;
}

static int make_id(struct send *s, struct err *err)
{
	static const uint8_t none[WIRE_ID_BYTES];

	if (memcmp(s->id, none, sizeof(none)) != 0)
		return 0;
	return getrandom(s->id, sizeof(s->id), 0) == sizeof(s->id)
		       ? 0
		       : err_errno(err, errno, "random numbers");
}

static int begin_control(struct send *s, struct err *err)
{
	int r = s->credentials ? find_host(s, err) : 0;

	if (!r)
		r = make_id(s, err);
	return r ? r : begin_connection(s, 0, err);
}

int send_begin_streams(struct send *s, struct err *err)
{
	int r = 0;

	for (unsigned int i = 1; !r && i < s->num_fds; i++)
		r = begin_connection(s, i, err);
	return r;
}

static int take_all(struct send *s, struct err *err)
{
	int files[TLS_NUM_FILES];
	bool has_files = false;
	int r = migrate_handed_take(s->req->sockets, &s->session_fd, s->fds,
				    &s->num_fds, files, &has_files, err);

	if (r || !has_files)
		return r;
	r = tls_credentials_new(&s->credentials, TLS_SOURCE, files, err);
	tls_files_close(files);
	return r;
}

static int load_credentials(struct send *s, struct err *err)
{
	int r = s->req->tls_dir
			? tls_credentials_load(&s->credentials, TLS_SOURCE,
					       s->req->tls_dir, err)
			: 0;

	if (r == -EACCES && thread_is_caged())
		err_append(err, "a confined quire reads no credentials; quire "
				"migrate --tls hands them to it");
	return r;
}

int send_open_all(struct send *s, struct err *err)
{
	int r = load_credentials(s, err);

	if (!r)
		r = s->req->sockets ? take_all(s, err) : connect_all(s, err);
	if (!r && (s->num_fds < 2u + send_follows(s) ||
		   s->num_fds > WIRE_MAX_STREAMS + 1u + send_follows(s)))
		r = err_set(err, EPROTO, "%u connections", s->num_fds);
	if (r)
		return r;
	s->control.fd = s->fds[0];
	s->control.patience_ns = SEND_PATIENCE_NS;
	s->control.given_up = tells_and_is_given_up;
	s->control.ctx = s;
	s->urgent = send_follows(s) ? s->num_fds - 1 : 0;
	s->num_streams = s->num_fds - 1 - send_follows(s);
	s->result->streams = s->num_streams;
	return begin_control(s, err);
}

/* ---- on the control thread ---- */

static bool is_local(const struct send *s)
{
	return s->req->mode == MIGRATE_LOCAL;
}

uint64_t send_pack_features(const struct send *s)
{
	static const uint64_t features[PACK_NUM_METHODS] = {
		[PACK_LZ4] = WIRE_FEATURE_LZ4,
		[PACK_ZSTD] = WIRE_FEATURE_ZSTD,
	};

	return features[s->req->pack];
}

static int look_at(struct vmm *v, void *arg, struct err *err)
{
	struct send *s = arg;
	const struct machine *m;
	int r = vmm_send_check(v, &m, err);

	if (!r)
		migrate_shape(m, &s->shape);
	if (is_local(s))
		s->shape.features = WIRE_FEATURE_LOCAL;
	else
		s->shape.features = send_pack_features(s) |
				    (send_follows(s) ? WIRE_FEATURE_POSTCOPY
						     : 0);
	/* None that is written: nothing has to go along. */
	if (s->req->copies_disks && s->shape.num_disks)
		s->shape.features |= WIRE_FEATURE_DISKS;
	if (!r && is_local(s) && m->memory.ram.fd < 0)
		r = err_set(err, ENOTSUP,
			    "memory that is not shared cannot be handed over "
			    "(--memory shared=on)");
	return r;
}

static int begin(struct vmm *v, void *arg, struct err *err)
{
	struct send *s = arg;

	/* Without rounds it is told by what the guest ever touched. */
	return vmm_send_begin(v,
			      s->req->mode == MIGRATE_PRECOPY ||
				      s->req->mode == MIGRATE_HYBRID,
			      &s->machine, err);
}

static bool copies_disks(const struct send *s)
{
	return s->shape.features & WIRE_FEATURE_DISKS;
}

/*
 * What was announced, it may have been before the machine was held. Were one
 * taken out and put in again, its content would go into another's image.
 */
static int track_disks(struct vmm *v, void *arg, struct err *err)
{
	struct send *s = arg;
	struct wire_machine now;
	int r;

	migrate_shape(s->machine, &now);
	if (!wire_machine_same_disks(&s->shape, &now))
		return err_set(err, EBUSY,
			       "the VM's devices were changed while it "
			       "connected; try again");
	migrate_disks_of(s->machine, &s->disks);
	r = migrate_disks_track(s->machine, &s->disks, err);
	s->tracks = !r;
	return r;
}

/* Before the machine is let go. */
static void untrack_disks(struct send *s)
{
	if (s->tracks)
		migrate_disks_untrack(&s->disks);
	s->tracks = false;
}

static int stop(struct vmm *v, void *arg, struct err *err)
{
	struct send *s = arg;

	return vmm_send_stop(v, &s->state, &s->stopped, err);
}

static int leave(struct vmm *v, void *arg, struct err *err)
{
	return vmm_send_leave(v, err);
}

int send_done(struct vmm *v, void *arg, struct err *err)
{
	return vmm_send_done(v, err);
}

static int reclaim(struct vmm *v, void *arg, struct err *err)
{
	return vmm_send_reclaim(v, err);
}

static int undo(struct vmm *v, void *arg, struct err *err)
{
	return vmm_send_undo(v, err);
}

static int doubt(struct vmm *v, void *arg, struct err *err)
{
	return vmm_send_doubt(v, err);
}

int send_let_go(struct send *s,
		int (*by)(struct vmm *v, void *arg, struct err *err),
		struct err *err)
{
	int r;

	if (!s->begun)
		return 0;
	s->begun = false;
	r = vmm_call(s->vmm, by, s, err);
	if (r == -ESHUTDOWN)
		vmm_release(s->vmm);
	return r;
}

/* ---- the steps ---- */

static int introduce(struct send *s, struct err *err)
{
	_cleanup_free_ uint8_t *payload = malloc(WIRE_MAX_MACHINE);
	size_t bytes;
	int r;

	if (!payload)
		return err_set(err, ENOMEM, "out of memory");
	bytes = wire_put_machine(payload, &s->shape);
	r = link_put(&s->control, WIRE_MACHINE, payload, bytes, err);
	if (!r)
		r = send_begin_streams(s, err);
	return r ? r : link_get(&s->control, WIRE_ACCEPT, NULL, NULL, err);
}

static int start_pages(struct send *s, struct err *err)
{
	const struct send_pages_config cfg = {
		.ram = &s->machine->memory.ram,
		.dirty = s->machine->memory.dirty,
		.hints = s->machine->memory.hints,
		.disks = s->disks,
		.fds = s->fds + 1,
		.tls = s->tls + 1,
		.num = s->num_streams,
		.patience_ns = PATIENCE_PAGES_NS,
		.rate_bytes_per_s = s->req->rate_bytes_per_s,
		.pack = s->req->pack,
		.tick = tick,
		.ctx = s,
	};

	return send_pages_start(&s->pages, &cfg, err);
}

/* On the wire, had nothing been compressed: what is left is counted so. */
static uint64_t unpacked_bytes(const struct send_pages_count *c)
{
	return c->wire_bytes + c->pack_from_bytes - c->pack_to_bytes;
}

/*
 * What is still to be put in its place there, populated or mapped would have
 * the guest stand still for as long, were it stopped now; with the first round
 * that may be all of its memory.
 */
static int settle_round(struct send *s, struct err *err)
{
	int r;

	atomic_store(&s->control.patience_ns, PATIENCE_PAGES_NS);
	r = wait_landed(s, err);
	atomic_store(&s->control.patience_ns, SEND_PATIENCE_NS);
	return r;
}

static int send_round(struct send *s, bool last, struct err *err)
{
	struct send_pages_count before, after;
	uint64_t began = clock_now_ns();
	int r;

	s->rounds_begun++;
	send_pages_read(s->pages, &before);
	r = send_pages_round(s->pages, last, err);
	if (!r && !last)
		r = settle_round(s, err);
	if (!r && !last)
		r = dirty_harvest(s->machine->memory.dirty, NULL, err);
	if (r)
		return r;
	send_pages_read(s->pages, &after);
	if (last)
		s->result->last_bytes = after.wire_bytes - before.wire_bytes;
	else
		converge_round(&s->converge,
			       unpacked_bytes(&after) - unpacked_bytes(&before),
			       clock_now_ns() - began, bytes_waiting(s));
	return 0;
}

/* Post-copy sends nothing before, and a hybrid what pays. */
static bool is_time_to_stop(const struct send *s)
{
	switch (s->req->mode) {
	case MIGRATE_POSTCOPY:
	case MIGRATE_LOCAL:
		return true;
	case MIGRATE_HYBRID:
		return s->converge.rounds >= HYBRID_ROUNDS ||
		       converge_is_near(&s->converge);
	case MIGRATE_PRECOPY:
		break;
	}
	return converge_is_near(&s->converge);
}

/* It is mapped there while the guest runs here, and used by nobody yet. */
static int hand_memory_over(struct send *s, struct err *err)
{
	int r = link_put_fd(&s->control, WIRE_MEMORY, s->machine->memory.ram.fd,
			    err);

	s->phase = "hand-over";
	if (r)
		return r;
	atomic_store(&s->control.patience_ns, PATIENCE_PAGES_NS);
	r = link_get(&s->control, WIRE_ACCEPT, NULL, NULL, err);
	atomic_store(&s->control.patience_ns, SEND_PATIENCE_NS);
	return r;
}

/* The guest runs. */
static int send_beforehand(struct send *s, struct err *err)
{
	int r = vmm_call(s->vmm, begin, s, err);

	s->begun = !r;
	if (!r && copies_disks(s))
		r = vmm_call(s->vmm, track_disks, s, err);
	if (!r)
		r = start_pages(s, err);
	if (!r)
		r = send_throttle_begin(&s->throttle, s->machine,
					&s->req->throttle, err);
	if (!r && is_local(s))
		r = hand_memory_over(s, err);
	s->phase = "pre-copy";
	while (!r && !is_time_to_stop(s)) {
		r = send_round(s, false, err);
		if (!r && !is_time_to_stop(s))
			r = send_throttle_round(&s->throttle, &s->converge,
						err);
	}
	return r;
}

/* Of memory; the last one of pre-copy is that of the guest that stands still.
 */
static unsigned int num_rounds(const struct send *s)
{
	return s->converge.rounds + (s->req->mode == MIGRATE_PRECOPY);
}

static int send_ready(struct send *s, struct err *err)
{
	struct wire_ready ready = {
		.ran = s->stopped.ran,
		.rounds = num_rounds(s),
	};
	uint8_t payload[WIRE_READY_BYTES];

	send_pages_read(s->pages, &s->count);
	ready.page_bytes = s->count.page_bytes + s->count.disk_bytes;
	wire_put_ready(payload, &ready);
	return link_put(&s->control, WIRE_READY, payload, sizeof(payload), err);
}

/* The guest stands still. */
static int send_rest(struct send *s, struct err *err)
{
	int r = vmm_call(s->vmm, stop, s, err);

	send_throttle_end(&s->throttle);
	s->phase = "stopped";
	atomic_store(&s->control.patience_ns, SEND_PATIENCE_STILL_NS);
	send_pages_set_patience(s->pages, SEND_PATIENCE_STILL_NS);
	if (!r && send_follows(s))
		r = send_find_pending(s, err);
	else if (!r && !is_local(s))
		r = send_round(s, true, err);
	if (!r)
		r = send_pages_end(s->pages, err);
	if (!r)
		r = link_put(&s->control, WIRE_STATE, s->state.data,
			     s->state.bytes, err);
	if (!r && send_follows(s))
		r = send_pending(s, err);
	/*
	 * Images that were copied are nobody else's: what they lack on their
	 * medium is not waited for, and they stay locked as long as the guest
	 * may go on here.
	 */
	if (!r && !copies_disks(s))
		r = vmm_call(s->vmm, leave, s, err);
	if (!r && send_follows(s))
		r = send_start_push(s, err);
	if (!r)
		r = send_ready(s, err);
	if (!r)
		r = wait_landed(s, err); /* the last round */
	return r ? r : link_get(&s->control, WIRE_LOADED, NULL, NULL, err);
}

/*
 * The point of no return: once the kernel has all bytes of it they may arrive.
 * Without the last of them it is no COMMIT.
 */
static int commit(struct send *s, struct err *err)
{
	/* Whoever is gone by now is not given the VM. */
	int r = tick(s, err);

	return r ? r : link_put_at_once(&s->control, WIRE_COMMIT, err);
}

/* ---- the end ---- */

void send_close_all(struct send *s)
{
	while (s->num_fds) {
		s->num_fds--;
		tls_free(take_ptr(s->tls[s->num_fds]));
		close_fd(&s->fds[s->num_fds]);
	}
}

int send_ask_why(struct send *s, int r, struct err *err)
{
	struct err words = ERR_INIT;
	int w;

	if (r == -ECONNABORTED || r == -ECANCELED || s->control.fd < 0)
		return r;
	atomic_store(&s->control.patience_ns, LAST_WORDS_NS);
	s->control.until_ns = clock_now_ns() + LAST_WORDS_NS;
	if (r != -EPIPE && r != -ETIMEDOUT)
		return r;
	/* There may be some of these before. */
	w = wait_landed(s, &words);
	if (!w)
		w = link_get(&s->control, WIRE_LOADED, NULL, NULL, &words);
	if ((w == -ECONNABORTED || w == -EKEYREJECTED) && err)
		*err = words;
	return r;
}

/*
 * The destination may have locked the disks already, and gives them up when it
 * sees that it is over: not before we do, and only then may the guest go on.
 */
static void reclaim_disks(struct send *s)
{
	uint64_t began = clock_now_ns();

	while (s->begun && vmm_call(s->vmm, reclaim, s, NULL) == -EBUSY &&
	       clock_now_ns() - began < RECLAIM_NS)
		(void)!poll(NULL, 0, RECLAIM_SLICE_MS);
}

/* Nothing was committed: it goes on here. */
static int give_up(struct send *s, int r, struct err *err)
{
	struct err undone = ERR_INIT;

	r = send_ask_why(s, r, err);
	if (s->control.fd >= 0 && r != -ECONNABORTED)
		link_put_failure(&s->control, WIRE_ABORT, err);
	push_free(take_ptr(s->push));
	send_pages_free(take_ptr(s->pages));
	untrack_disks(s);
	send_throttle_end(&s->throttle);
	send_close_all(s);
	reclaim_disks(s);
	if (send_let_go(s, undo, &undone) && undone.text[0]) {
		log_error("migration: the VM stays paused: %s", undone.text);
		err_append(err, "the VM stays paused, since: ");
		err_append(err, undone.text);
	}
	return r;
}

/* It is no longer ours, whatever happens. */
static int hand_over(struct send *s, struct err *err)
{
	int r;

	/* There is nothing to give up any more. */
	s->control.given_up = NULL;
	s->control.until_ns = clock_now_ns() + SEND_PATIENCE_STILL_NS;
	r = link_get(&s->control, WIRE_RUNNING, NULL, NULL, err);
	s->control.until_ns = 0;
	s->result->downtime_ns = clock_now_ns() - s->stopped.paused_ns;
	s->result->total_ns = clock_now_ns() - s->began_ns;
	/* It has given the VM back. */
	if (r == -ECONNABORTED)
		return give_up(s, r, err);
	send_pages_free(take_ptr(s->pages));
	untrack_disks(s);
	if (!r && send_follows(s))
		return send_rest_after(s, err);
	push_free(take_ptr(s->push));
	send_close_all(s);
	if (!r) {
		(void)!send_let_go(s, send_done, NULL);
		return 0;
	}
	err_append(err, "the VM may run at the destination, and stays paused "
			"here; resume it only if it does not run there");
	if (send_follows(s)) {
		err_append(err, "if it does it needs memory that is still "
				"here: quire migrate --recover brings it");
		send_doubt_after(s);
	} else {
		(void)!send_let_go(s, doubt, NULL);
	}
	return -EREMOTEIO;
}

const char *const migrate_disks_names[MIGRATE_NUM_DISKS] = {
	"shared",
	"copy",
};

static int check_request(const struct migrate_send_request *req,
			 struct err *err)
{
	if (req->copies_disks && req->mode != MIGRATE_PRECOPY)
		return err_set(err, EINVAL,
			       "disks are copied in mode precopy only, not "
			       "%s: they are there before their VM",
			       migrate_mode_names[req->mode]);
	return 0;
}

static int migrate(struct send *s, struct err *err)
{
	int r = check_request(s->req, err);

	if (!r)
		r = send_open_all(s, err);
	if (!r)
		r = vmm_call(s->vmm, look_at, s, err);
	if (!r)
		r = introduce(s, err);
	if (!r)
		r = send_beforehand(s, err);
	if (!r)
		r = send_rest(s, err);
	if (!r)
		r = commit(s, err);
	if (r)
		return give_up(s, r, err);
	if (s->push)
		push_go(s->push);
	send_pages_read(s->pages, &s->count);
	s->result->page_bytes = s->count.page_bytes;
	s->result->zero_bytes = s->count.zero_bytes;
	s->result->disk_bytes = s->count.disk_bytes;
	s->result->disk_zero_bytes = s->count.disk_zero_bytes;
	s->result->wire_bytes = s->count.wire_bytes;
	s->result->pack_from_bytes = s->count.pack_from_bytes;
	s->result->pack_to_bytes = s->count.pack_to_bytes;
	s->result->rounds = num_rounds(s);
	s->result->throttle_percent = s->throttle.percent;
	return hand_over(s, err);
}

int migrate_send(struct vmm *v, const struct migrate_send_request *req,
		 struct migrate_send_result *ret, struct err *err)
{
	unsigned int downtime_ms = req->downtime_ms ? req->downtime_ms
						    : MIGRATE_DOWNTIME_MS;
	struct send s = {
		.vmm = v,
		.req = req,
		.result = ret,
		.session_fd = -1,
		.control.fd = -1,
		.began_ns = clock_now_ns(),
		.reported_ns = clock_now_ns(), /* what is short is not told */
	};
	struct err own = ERR_INIT;
	int r;

	memset(ret, 0, sizeof(*ret));
	converge_init(&s.converge, downtime_ms * NSEC_PER_MSEC);
	state_writer_init(&s.state);
	r = migrate(&s, err ? err : &own);
	state_writer_fini(&s.state);
	page_map_fini(&s.pending);
	tls_credentials_free(s.credentials);
	close_fd(&s.session_fd);
	return r;
}
