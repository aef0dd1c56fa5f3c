/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/receive.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "mem/populate.h"
#include "migrate/greet.h"
#include "migrate/handed.h"
#include "migrate/land.h"
#include "migrate/shape.h"

#define PATIENCE_NS (60 * NSEC_PER_SEC)
/* The source has its word ready, and its guest stands still without disks. */
#define COMMIT_NS      (10 * NSEC_PER_SEC)
#define CONNECTIONS_NS (30 * NSEC_PER_SEC) /* until all are there */
#define LOOK_SLICES    5 /* from one look at our VM to the next */

struct receive {
	struct vmm *vmm;
	struct greeter *greeter;
	struct wire_preface preface;	  /* of the control connection */
	int fds[MIGRATE_MAX_CONNECTIONS]; /* by stream; -1: not there yet */
	struct tls *tls[MIGRATE_MAX_CONNECTIONS]; /* NULL: plain */
	struct link control;
	struct wire_machine theirs;
	struct vmm_landing landing;
	struct land *land;
	bool begun; /* held: go or drop has to follow */
};

static bool is_ending(void *ctx)
{
	struct receive *r = ctx;

	return vmm_is_ending(r->vmm) ||
	       (r->begun && vmm_hold_cancelled(r->vmm));
}

static bool is_given_up(void *ctx)
{
	struct receive *r = ctx;

	return is_ending(r) || (r->land && land_failed(r->land, NULL));
}

/* ---- connections ---- */

static bool is_wanted(const struct receive *r, const struct wire_preface *p)
{
	/* The control connection comes first. */
	if (r->fds[0] < 0)
		return !p->stream;
	return p->stream && r->fds[p->stream] < 0 &&
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
	r->fds[g.preface.stream] = g.fd;
	r->tls[g.preface.stream] = g.tls;
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
		if (++slices % LOOK_SLICES == 0) {
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
	return true;
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
		n = take_connection(r);
	}
	return n ? err_errno(err, -n, "waiting for connections") : 0;
}

/* ---- on the control thread ---- */

static int begin(struct vmm *v, void *arg, struct err *err)
{
	struct receive *r = arg;
	struct wire_machine ours;
	int n = vmm_receive_begin(v, &r->landing, err);

	r->begun = !n;
	if (n)
		return n;
	migrate_shape(r->landing.machine, &ours);
	return wire_machine_compare(&r->theirs, &ours, err);
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

static int start_landing(struct receive *r, struct err *err)
{
	const struct land_config cfg = {
		.landing = r->landing,
		.fds = r->fds + 1,
		.tls = r->tls + 1,
		.num = r->preface.num_streams,
		.features = r->theirs.features,
		.patience_ns = PATIENCE_NS,
		.given_up = is_ending,
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
	if (landed->rounds == ready->rounds &&
	    landed->page_bytes == ready->page_bytes)
		return 0;
	return err_set(err, EBADMSG,
		       "READY: %llu bytes in %llu rounds, %llu in %llu came",
		       (unsigned long long)ready->page_bytes,
		       (unsigned long long)ready->rounds,
		       (unsigned long long)landed->page_bytes,
		       (unsigned long long)landed->rounds);
}

static int receive_all(struct receive *r, struct wire_ready *ready,
		       struct err *err)
{
	_cleanup_free_ uint8_t *state = NULL;
	struct loading loading = { .bytes = 0 };
	int n;

	/* As long as it takes to send memory; land.c sees to silence. */
	atomic_store(&r->control.patience_ns, UINT64_MAX);
	n = link_get(&r->control, WIRE_STATE, &state, &loading.bytes, err);
	atomic_store(&r->control.patience_ns, PATIENCE_NS);
	if (!n)
		n = get_ready(r, ready, err);
	if (!n)
		n = land_finish(r->land, &loading.landed, err);
	if (!n)
		n = check_total(&loading.landed, ready, err);
	loading.state = state;
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
	struct wire_ready ready;
	int n = wait_streams(r, err);

	if (!n)
		n = vmm_call(r->vmm, begin, r, err);
	if (!n)
		n = start_landing(r, err);
	if (!n)
		n = link_put(&r->control, WIRE_ACCEPT, NULL, 0, err);
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
}

/* A stream's failure is why the control connection was given up. */
static int find_cause(struct receive *r, int n, struct err *err)
{
	if (n == -ECANCELED && r->land && land_failed(r->land, err))
		return -err->code;
	return n;
}

static int give_up(struct receive *r, int n, struct err *err)
{
	n = find_cause(r, n, err);
	if (n != -ECONNABORTED && r->control.fd >= 0)
		link_put_failure(&r->control, WIRE_FAILED, err);
	land_free(take_ptr(r->land));
	close_all(r);
	if (r->begun && vmm_call(r->vmm, drop, r, NULL) == -ESHUTDOWN)
		vmm_release(r->vmm);
	return n;
}

static void init(struct receive *r, struct vmm *v, struct greeter *greeter)
{
	*r = (struct receive){
		.vmm = v,
		.greeter = greeter,
		.control.fd = -1,
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
		land_free(r.land);
		close_all(&r);
	}
	greeter_free(greeter);
	return n;
}

static const struct thread_call receive_calls[] = {
	CALL(poll),
	CALL(accept4),
	CALL(recvfrom),
	CALL(sendmsg),
	RARE("it fails", sendto),
	RARE("with TLS", getrandom),
	RARE("a connection is refused", shutdown),
};

const struct thread_class migrate_receive_thread_class = {
	.name = "migrate-receive",
	.what = "waits for a VM from another host",
	THREAD_CALLS(receive_calls),
	.also = &populate_thread_class, /* how much memory the host has */
};
