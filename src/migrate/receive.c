/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/receive.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "mem/populate.h"
#include "migrate/disks.h"
#include "migrate/follow.h"
#include "migrate/greet.h"
#include "migrate/handed.h"
#include "migrate/land.h"
#include "migrate/shape.h"

#define PATIENCE_NS (60 * NSEC_PER_SEC)
/* The source has its word ready, and its guest stands still without disks. */
#define COMMIT_NS	(10 * NSEC_PER_SEC)
#define CONNECTIONS_NS	(30 * NSEC_PER_SEC) /* until all are there */
#define LOOK_SLICES	5	   /* from one look at our VM to the next */
#define MAP_BYTES	(64 * MIB) /* of memory taken over, at once */
#define FREE_NS		(10 * NSEC_PER_SEC) /* for the source to know */
#define FOLLOW_SLICE_NS (100 * NSEC_PER_MSEC)
#define AGAIN_SLICE_MS	100

struct receive {
	struct vmm *vmm;
	struct greeter *greeter;
	struct wire_preface preface; /* of the control connection */
	/* By stream, and as the last the urgent one; -1: not there yet */
	int fds[MIGRATE_MAX_CONNECTIONS];
	struct tls *tls[MIGRATE_MAX_CONNECTIONS]; /* NULL: plain */
	struct link control;
	pthread_mutex_t saying; /* on it, while streams have something to say */
	struct wire_machine theirs;
	struct vmm_landing landing;
	struct migrate_disks disks; /* as the source numbers them */
	struct land *land;
	struct pager *pager;
	struct follow *follow; /* with post-copy; NULL: not yet */
	uint64_t mapped_bytes; /* in the second stage, of memory taken over */
	bool again;	       /* the VM is here, and waits for memory */
	uint64_t until_ns;     /* so long it does; 0: for ever */
	bool begun;	       /* held: go or drop has to follow */
};

#define URGENT (MIGRATE_MAX_CONNECTIONS - 1)

/* Who waits for memory again gives up when nobody wants it any more. */
static bool is_over(const struct receive *r)
{
	enum follow_state state = follow_look(r->follow, NULL);

	if (r->until_ns && clock_now_ns() > r->until_ns)
		return true;
	return state == FOLLOW_ENDED || (state == FOLLOW_BROKEN && !r->again);
}

static bool is_ending(void *ctx)
{
	struct receive *r = ctx;

	return vmm_is_ending(r->vmm) ||
	       (r->begun && vmm_hold_cancelled(r->vmm));
}

static bool is_given_up(void *ctx)
{
	struct receive *r = ctx;

	return is_ending(r) || (r->land && land_failed(r->land, NULL)) ||
	       (r->follow && is_over(r));
}

/* ---- connections ---- */

static bool follows(const struct receive *r)
{
	return r->theirs.features & WIRE_FEATURE_POSTCOPY;
}

static bool copies_disks(const struct receive *r)
{
	return r->theirs.features & WIRE_FEATURE_DISKS;
}

static unsigned int place_of(const struct wire_preface *p)
{
	return p->stream == WIRE_URGENT ? URGENT : p->stream;
}

static bool is_wanted(const struct receive *r, const struct wire_preface *p)
{
	/* The control connection comes first. */
	if (r->fds[0] < 0)
		return !p->stream && (!r->again || !memcmp(p->id, r->preface.id,
							   sizeof(p->id)));
	return p->stream && r->fds[place_of(p)] < 0 &&
	       (p->stream != WIRE_URGENT || follows(r)) &&
	       p->num_streams == r->preface.num_streams &&
	       !memcmp(p->id, r->preface.id, sizeof(p->id));
}

/* One that is not ours is let go, and said; anybody may connect. */
static int take_connection(struct receive *r)
{
	struct greeting g;
	int n = greeter_next(r->greeter, r->fds[0] < 0, &g);

	if (n <= 0)
		return n;
	if (!is_wanted(r, &g.preface)) {
		log_ratelimited(LOG_LEVEL_WARN,
				"migration: a connection is not taken: not one "
				"that is waited for");
		tls_free(g.tls);
		close_fd(&g.fd);
		return 0;
	}
	if (!g.preface.stream)
		r->preface = g.preface;
	r->fds[place_of(&g.preface)] = g.fd;
	r->tls[place_of(&g.preface)] = g.tls;
	return 0;
}

static int still_created(struct vmm *v, void *arg, struct err *err)
{
	return vmm_state(v) == VMM_CREATED
		       ? 0
		       : err_set(err, EBADFD,
				 "the VM that was created for it has been "
				 "deleted, or booted");
}

static int wait_control(struct receive *r, struct err *err)
{
	unsigned int slices = 0;
	int n = 0;

	while (!n && r->fds[0] < 0) {
		if (is_given_up(r))
			return err_set(err, ECANCELED, "cancelled");
		if (++slices % LOOK_SLICES == 0 && !r->again) {
			n = vmm_call(r->vmm, still_created, NULL, err);
			if (n)
				return n;
		}
		n = take_connection(r);
	}
	if (n)
		return err_errno(err, -n, "waiting for a VM");
	r->control.fd = r->fds[0];
	r->control.tls = r->tls[0];
	r->control.patience_ns = PATIENCE_NS;
	r->control.given_up = is_given_up;
	r->control.ctx = r;
	return 0;
}

static bool has_all(const struct receive *r)
{
	for (unsigned int i = 0; i <= r->preface.num_streams; i++) {
		if (r->fds[i] < 0)
			return false;
	}
	return !follows(r) || r->fds[URGENT] >= 0;
}

/* What else it has said is of no use without its data. */
static int last_words(struct receive *r, struct err *err)
{
	int n = link_get(&r->control, WIRE_STATE, NULL, NULL, err);

	return n == -ECONNABORTED ? n
				  : err_set(err, EPIPE, "the source is gone");
}

static int wait_streams(struct receive *r, struct err *err)
{
	uint64_t began = clock_now_ns();
	int n = 0;

	while (!n && !has_all(r)) {
		if (is_given_up(r))
			return err_set(err, ECANCELED, "cancelled");
		if (clock_now_ns() - began > CONNECTIONS_NS)
			return err_set(err, ETIMEDOUT,
				       "not all connections came");
		/* It may be about to try once more. */
		if (r->again && link_is_readable(&r->control))
			return err_set(err, EPIPE, "the source is gone");
		if (link_is_closed(&r->control))
			return last_words(r, err);
		n = take_connection(r);
	}
	return n ? err_errno(err, -n, "waiting for connections") : 0;
}

/* ---- on the control thread ---- */

static int begin(struct vmm *v, void *arg, struct err *err)
{
	struct receive *r = arg;
	struct wire_machine ours;
	struct migrate_disks all;
	int n;

	r->landing.follows = follows(r);
	r->landing.writes_disks = copies_disks(r);
	n = vmm_receive_begin(v, &r->landing, err);
	r->begun = !n;
	if (n)
		return n;
	migrate_shape(r->landing.machine, &ours);
	n = wire_machine_compare(&r->theirs, &ours, err);
	if (n || !copies_disks(r))
		return n;
	migrate_disks_of(r->landing.machine, &all);
	migrate_disks_arrange(&all, &ours, &r->theirs, &r->disks);
	return 0;
}

struct loading {
	const uint8_t *state;
	size_t bytes;
	struct vm_landed landed;
};

static int load(struct vmm *v, void *arg, struct err *err)
{
	struct loading *l = arg;

	return vmm_receive_load(v, l->state, l->bytes, &l->landed, err);
}

static int go(struct vmm *v, void *arg, struct err *err)
{
	const bool *run = arg;

	return vmm_receive_go(v, *run, err);
}

static int drop(struct vmm *v, void *arg, struct err *err)
{
	return vmm_receive_drop(v, err);
}

/* ---- the steps ---- */

/* Before it nothing has happened: another source may come. */
static int get_machine(struct receive *r, struct err *err)
{
	_cleanup_free_ uint8_t *payload = NULL;
	size_t bytes = 0;
	int n = link_get(&r->control, WIRE_MACHINE, &payload, &bytes, err);

	return n ? n : wire_parse_machine(payload, bytes, &r->theirs, err);
}

/* On a stream's thread. */
static int say_landed(void *ctx, struct err *err)
{
	struct receive *r = ctx;
	int n;

	pthread_mutex_lock(&r->saying);
	n = link_put_at_once(&r->control, WIRE_LANDED, err);
	pthread_mutex_unlock(&r->saying);
	return n;
}

/* A source that does not wait for it may be at its rounds already. */
static int say_accept(struct receive *r, struct err *err)
{
	int n;

	pthread_mutex_lock(&r->saying);
	n = link_put(&r->control, WIRE_ACCEPT, NULL, 0, err);
	pthread_mutex_unlock(&r->saying);
	return n;
}

static void say_failed(struct receive *r, const struct err *err)
{
	pthread_mutex_lock(&r->saying);
	link_put_failure(&r->control, WIRE_FAILED, err);
	pthread_mutex_unlock(&r->saying);
}

static int start_landing(struct receive *r, struct err *err)
{
	const struct land_config cfg = {
		.landing = r->landing,
		.disks = r->disks,
		.fds = r->fds + 1,
		.tls = r->tls + 1,
		.num = r->preface.num_streams,
		.features = r->theirs.features,
		.patience_ns = PATIENCE_NS,
		.given_up = is_ending,
		.landed = say_landed,
		.ctx = r,
	};

	return land_start(&r->land, &cfg, err);
}

static int get_ready(struct receive *r, struct wire_ready *ret, struct err *err)
{
	_cleanup_free_ uint8_t *payload = NULL;
	int n = link_get(&r->control, WIRE_READY, &payload, NULL, err);

	return n ? n : wire_parse_ready(payload, ret, err);
}

static int check_total(const struct vm_landed *landed,
		       const struct wire_ready *ready, struct err *err)
{
	uint64_t came = landed->page_bytes + landed->disk_bytes;

	if (landed->rounds == ready->rounds && came == ready->page_bytes)
		return 0;
	return err_set(err, EBADMSG,
		       "READY: %llu bytes in %llu rounds, %llu in %llu came",
		       (unsigned long long)ready->page_bytes,
		       (unsigned long long)ready->rounds,
		       (unsigned long long)came,
		       (unsigned long long)landed->rounds);
}

static int page(struct vmm *v, void *arg, struct err *err)
{
	struct receive *r = arg;
	const struct vmm_origin origin = {
		.memory = { .source = follow_source(r->follow) },
		.release = follow_unref,
		.describe = follow_info,
		.ctx = r->follow,
	};

	follow_ref(r->follow);
	return vmm_receive_page(v, &origin, &r->pager, err);
}

static int connect_follow(struct receive *r, uint64_t features, struct err *err)
{
	const struct follow_connections c = {
		.fds = r->fds + 1,
		.tls = r->tls + 1,
		.num = r->preface.num_streams,
		.urgent_fd = r->fds[URGENT],
		.urgent_tls = r->tls[URGENT],
		.features = features & WIRE_FEATURES_PACKED,
		.patience_ns = PATIENCE_NS,
	};

	return follow_connect(r->follow, &c, err);
}

/* The memory that came is in its place, for what is to follow to be missing. */
static int start_following(struct receive *r, const uint8_t *map, size_t bytes,
			   struct err *err)
{
	int n = follow_new(&r->follow, (struct ram *)r->landing.ram, map, bytes,
			   err);

	if (!n)
		n = vmm_call(r->vmm, page, r, err);
	if (!n)
		n = follow_begin(r->follow, r->pager, err);
	return n ? n : connect_follow(r, r->theirs.features, err);
}

static int take_memory(struct vmm *v, void *arg, struct err *err)
{
	const int *fd = arg;

	return vmm_receive_memory(v, *fd, err);
}

/* What the guest ever touched, while it still runs at the source. */
static int map_data(struct receive *r, const struct ram_region *region,
		    uint64_t offset, struct err *err)
{
	const struct second_stage_filler *f = r->landing.second_stage;
	int fd = r->landing.ram->fd, n = 0;
	off_t at = (off_t)offset, end = (off_t)(offset + region->size);

	while (!n && (at = lseek(fd, at, SEEK_DATA)) >= 0 && at < end) {
		off_t to = lseek(fd, at, SEEK_HOLE);
		uint64_t from = align_down((uint64_t)at, PAGE_4K);
		uint64_t len;

		to = to < at ? end : MIN(to, end);
		/* Some at a time: it may be given up meanwhile. */
		len = MIN(align_up((uint64_t)to, PAGE_4K) - from, MAP_BYTES);
		if (is_given_up(r))
			return err_set(err, ECANCELED, "cancelled");
		n = f->fill(f->ctx, 0, GPA(region->base.v + from - offset),
			    len);
		r->mapped_bytes += len;
		at = (off_t)(from + len);
	}
	return n ? err_errno(err, -n,
			     "mapping guest memory in the second stage")
		 : 0;
}

static int map_ahead(struct receive *r, struct err *err)
{
	const struct ram *ram = r->landing.ram;
	uint64_t offset = 0;
	int n = 0;

	for (unsigned int i = 0;
	     r->landing.second_stage && !n && i < ram->num_regions; i++) {
		n = map_data(r, &ram->regions[i], offset, err);
		offset += ram->regions[i].size;
	}
	return n;
}

/* Another process's memory becomes ours as well; then it hears of it. */
static int take_over_memory(struct receive *r, struct err *err)
{
	_cleanup_close_ int fd = -1;
	int n = link_get_fd(&r->control, WIRE_MEMORY, &fd, err);

	if (!n)
		n = vmm_call(r->vmm, take_memory, &fd, err);
	if (n)
		return n;
	fd = -1; /* it is RAM's */
	n = map_ahead(r, err);
	/* Not before: the streams have nothing to say while that takes. */
	if (!n)
		n = start_landing(r, err);
	return n ? n : say_accept(r, err);
}

static int receive_all(struct receive *r, struct wire_ready *ready,
		       struct err *err)
{
	_cleanup_free_ uint8_t *state = NULL, *map = NULL;
	struct loading loading = { .bytes = 0 };
	size_t map_bytes = 0;
	int n;

	/* As long as it takes to send memory; land.c sees to silence. */
	atomic_store(&r->control.patience_ns, UINT64_MAX);
	n = link_get(&r->control, WIRE_STATE, &state, &loading.bytes, err);
	atomic_store(&r->control.patience_ns, PATIENCE_NS);
	if (!n && follows(r))
		n = link_get(&r->control, WIRE_PENDING, &map, &map_bytes, err);
	if (!n)
		n = get_ready(r, ready, err);
	if (!n)
		n = land_finish(r->land, &loading.landed, err);
	if (!n)
		n = check_total(&loading.landed, ready, err);
	if (!n && follows(r))
		n = start_following(r, map, map_bytes, err);
	loading.state = state;
	loading.landed.second_stage_bytes += r->mapped_bytes;
	return n ? n : vmm_call(r->vmm, load, &loading, err);
}

/* From COMMIT on it is ours. */
static int take_over(struct receive *r, const struct wire_ready *ready,
		     struct err *err)
{
	bool run = ready->ran;
	int n = link_put(&r->control, WIRE_LOADED, NULL, 0, err);

	atomic_store(&r->control.patience_ns, COMMIT_NS);
	if (!n)
		n = link_get(&r->control, WIRE_COMMIT, NULL, NULL, err);
	/* Not without memory: the source hears of it, and has it still. */
	if (!n && r->follow && !follow_commit(r->follow, err))
		n = -EPIPE;
	if (!n)
		n = vmm_call(r->vmm, go, &run, err);
	if (n)
		return n;
	r->begun = false;
	/* It runs, whether or not the source hears of it. */
	if (link_put(&r->control, WIRE_RUNNING, NULL, 0, NULL))
		log_warn("migration: the VM runs here, but its source is gone "
			 "and was not told");
	return 0;
}

static int receive(struct receive *r, struct err *err)
{
	bool local = r->theirs.features & WIRE_FEATURE_LOCAL;
	struct wire_ready ready;
	int n = wait_streams(r, err);

	if (!n)
		n = vmm_call(r->vmm, begin, r, err);
	if (!n && !local)
		n = start_landing(r, err);
	if (!n)
		n = say_accept(r, err);
	if (!n && local)
		n = take_over_memory(r, err);
	if (!n)
		n = receive_all(r, &ready, err);
	return n ? n : take_over(r, &ready, err);
}

/* ---- the end ---- */

static void close_all(struct receive *r)
{
	for (size_t i = 0; i < ARRAY_SIZE(r->fds); i++) {
		tls_free(take_ptr(r->tls[i]));
		close_fd(&r->fds[i]);
	}
	r->control.fd = -1;
	r->control.tls = NULL;
	r->control.is_stuck = false;
}

/* A stream's failure is why the control connection was given up. */
static int find_cause(struct receive *r, int n, struct err *err)
{
	if (n == -ECANCELED && r->follow &&
	    follow_look(r->follow, err) == FOLLOW_BROKEN)
		return -EPIPE;
	if (n == -ECANCELED && r->land && land_failed(r->land, err))
		return -err->code;
	return n;
}

static int give_up(struct receive *r, int n, struct err *err)
{
	n = find_cause(r, n, err);
	if (n != -ECONNABORTED && r->control.fd >= 0)
		say_failed(r, err);
	if (r->land && r->disks.num)
		err_append(err, "what the images of the VM's disks have here "
				"now is good for nothing");
	land_free(take_ptr(r->land));
	if (r->follow)
		follow_disconnect(r->follow);
	close_all(r);
	if (r->begun && vmm_call(r->vmm, drop, r, NULL) == -ESHUTDOWN)
		vmm_release(r->vmm);
	follow_unref(take_ptr(r->follow));
	return n;
}

static void init(struct receive *r, struct vmm *v, struct greeter *greeter)
{
	*r = (struct receive){
		.vmm = v,
		.greeter = greeter,
		.control.fd = -1,
		.saying = PTHREAD_MUTEX_INITIALIZER,
	};
	for (size_t i = 0; i < ARRAY_SIZE(r->fds); i++)
		r->fds[i] = -1;
}

/* One that says something else than what it is to say is not waited for. */
static int wait_source(struct receive *r, struct err *err)
{
	struct vmm *v = r->vmm;
	struct greeter *greeter = r->greeter;

	for (;;) {
		int n = wait_control(r, err);

		if (n)
			return n;
		n = get_machine(r, err);
		if (!n || is_given_up(r))
			return n;
		log_warn("migration: a source is not taken: %s", err->text);
		link_put_failure(&r->control, WIRE_FAILED, err);
		close_all(r);
		init(r, v, greeter);
	}
}

/* ---- memory that follows ---- */

/* The source has nothing to say on it: what is there to read is its end. */
static enum follow_state follow_until(struct receive *r, struct err *err)
{
	enum follow_state state;

	do {
		state = follow_wait(r->follow, FOLLOW_SLICE_NS, err);
		if (state != FOLLOW_GOES_ON)
			return state;
		if (vmm_is_ending(r->vmm))
			return FOLLOW_ENDED;
	} while (!link_is_readable(&r->control));
	(void)err_set(err, EPIPE, "the source is gone (control)");
	follow_break(r->follow, err);
	return FOLLOW_BROKEN;
}

static int send_missing(struct receive *r, struct err *err)
{
	const struct page_map *map = follow_pending(r->follow);
	size_t bytes = wire_map_bytes(map);
	_cleanup_free_ uint8_t *payload = malloc(bytes);

	if (!payload)
		return err_set(err, ENOMEM, "out of memory");
	wire_put_map(payload, map);
	return link_put(&r->control, WIRE_MISSING, payload, bytes, err);
}

static int get_again(struct receive *r, uint64_t *ret, struct err *err)
{
	_cleanup_free_ uint8_t *payload = NULL;
	int n = link_get(&r->control, WIRE_AGAIN, &payload, NULL, err);

	return n ? n : wire_parse_again(payload, ret, err);
}

static int follow_again(struct receive *r, struct err *err)
{
	uint64_t features = 0;
	int n = wait_control(r, err);

	if (!n)
		n = get_again(r, &features, err);
	if (!n)
		n = wait_streams(r, err);
	/* Before it the source takes no requests, of which there may be many.
	 */
	if (!n)
		n = send_missing(r, err);
	return n ? n : connect_follow(r, features, err);
}

/* As often as it takes; until nobody waits for memory any more. */
static void find_source(struct receive *r)
{
	struct err err = ERR_INIT;

	r->again = true;
	follow_disconnect(r->follow);
	close_all(r);
	while (!is_given_up(r) && follow_again(r, &err)) {
		if (!is_given_up(r))
			log_warn("migration: no memory from this source: %s",
				 err.text);
		if (r->control.fd >= 0)
			link_put_failure(&r->control, WIRE_FAILED, &err);
		follow_disconnect(r->follow);
		close_all(r);
		/* Whatever it is, it is not tried without a rest. */
		(void)!poll(NULL, 0, AGAIN_SLICE_MS);
	}
}

/*
 * Until the source has said that it knows. A connection that breaks just now is
 * waited for a while, for the sake of a source that would keep memory nobody
 * needs.
 */
static int put_complete(struct receive *r, enum wire_complete how,
			struct err *err)
{
	uint8_t payload[WIRE_COMPLETE_BYTES];
	int n;

	wire_put_complete(payload, how);
	atomic_store(&r->control.patience_ns, FREE_NS);
	n = link_put(&r->control, WIRE_COMPLETE, payload, sizeof(payload), err);
	return n || how == WIRE_VM_ENDED
		       ? n
		       : link_get(&r->control, WIRE_FREE, NULL, NULL, err);
}

static void tell_complete(struct receive *r)
{
	struct err err = ERR_INIT;

	r->until_ns = clock_now_ns() + PATIENCE_NS;
	while (r->control.fd >= 0 && put_complete(r, WIRE_ALL_CAME, &err)) {
		find_source(r);
		if (r->control.fd < 0)
			log_warn("migration: all memory is here, but the "
				 "source does not know: %s",
				 err.text);
	}
}

static void follow_to_end(struct receive *r)
{
	enum follow_state state;
	struct err err = ERR_INIT;

	while ((state = follow_until(r, &err)) == FOLLOW_BROKEN) {
		log_error("migration: memory does not follow any more: %s; who "
			  "needs it waits until its source connects again",
			  err.text);
		find_source(r);
	}
	if (state == FOLLOW_COMPLETE)
		tell_complete(r);
	else if (r->control.fd >= 0)
		(void)!put_complete(r, WIRE_VM_ENDED, &err);
	follow_disconnect(r->follow);
	follow_unref(take_ptr(r->follow));
}

int migrate_receive(struct vmm *v, int listen_fd,
		    const struct tls_credentials *tls, struct err *err)
{
	struct greeter *greeter;
	struct receive r;
	int n = greeter_new(&greeter, listen_fd, tls, err);

	if (n)
		return n;
	init(&r, v, greeter);
	n = wait_source(&r, err);
	if (!n)
		n = receive(&r, err);
	if (n) {
		n = give_up(&r, n, err);
	} else {
		land_free(take_ptr(r.land));
		if (r.follow)
			follow_to_end(&r);
		close_all(&r);
	}
	greeter_free(greeter);
	pthread_mutex_destroy(&r.saying);
	return n;
}

static const struct thread_call receive_calls[] = {
	CALL(poll),
	CALL(accept4),
	CALL(recvfrom),
	CALL(sendmsg),
	RARE("it fails", sendto),
	RARE("memory is handed over", recvmsg),
	RARE("memory is handed over", getsockopt),
	RARE("memory is handed over", lseek),
	RARE("with TLS", getrandom),
	RARE("a connection is refused", shutdown),
	RARE_IOCTL("memory follows the VM", UFFDIO_WAKE),
	RARE_IOCTL("it cannot be asked for before the VM is here",
		   UFFDIO_UNREGISTER),
	RARE("shared memory came that is to come again", fallocate),
};

const struct thread_class migrate_receive_thread_class = {
	.name = "migrate-receive",
	.what = "waits for a VM from another host",
	THREAD_CALLS(receive_calls),
	.also = &populate_thread_class, /* how much memory the host has */
};
