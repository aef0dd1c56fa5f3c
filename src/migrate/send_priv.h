/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the sending side share: send.c has the steps up to the
 * hand-over, send_after.c what follows it with post-copy.
 */
#ifndef QUIRE_MIGRATE_SEND_PRIV_H
#define QUIRE_MIGRATE_SEND_PRIV_H

#include "base/clock.h"
#include "migrate/converge.h"
#include "migrate/disks.h"
#include "migrate/handed.h"
#include "migrate/push.h"
#include "migrate/send.h"
#include "migrate/send_pages.h"
#include "migrate/send_throttle.h"
#include "state/state.h"
#include "vm/vmm.h"

/* Nothing moves for so long: it is given up. */
#define SEND_PATIENCE_NS (30 * NSEC_PER_SEC)
/* The same while the guest stands still. */
#define SEND_PATIENCE_STILL_NS (10 * NSEC_PER_SEC)

struct send {
	struct vmm *vmm;
	const struct migrate_send_request *req;
	struct migrate_send_result *result;

	int fds[MIGRATE_MAX_CONNECTIONS]; /* the first is for control */
	unsigned int num_fds;
	unsigned int num_streams; /* of data, which come next */
	unsigned int urgent;	  /* with post-copy, the last; 0: none */
	struct tls_credentials *credentials;	  /* NULL: no TLS */
	struct tls *tls[MIGRATE_MAX_CONNECTIONS]; /* of fds */
	char host[TLS_MAX_NAME + 3];
	uint8_t id[WIRE_ID_BYTES];
	int session_fd; /* who asked; -1: nobody listens */
	struct link control;

	struct wire_machine shape;
	const struct machine *machine;
	struct migrate_disks disks; /* that go along */
	bool tracks;		    /* what is written to them */
	struct send_pages *pages;
	struct send_pages_count count; /* of pages, once they are gone */
	/* That were begun, and that are in their place at the destination. */
	unsigned int rounds_begun, rounds_landed;
	struct converge converge;
	struct send_throttle throttle;
	struct state_writer state;
	struct vmm_stopped stopped;
	struct page_map pending; /* what follows the VM */
	struct push *push;
	const char *phase;
	uint64_t began_ns, reported_ns;
	bool in_doubt; /* again: whether the destination has the VM */
	bool begun;    /* held: done, undo, doubt or left has to follow */
};

static inline bool send_follows(const struct send *s)
{
	return s->req->mode == MIGRATE_POSTCOPY ||
	       s->req->mode == MIGRATE_HYBRID;
}

/* ---- send.c ---- */

bool send_is_given_up(void *send);
/* Tell how it goes, not too often. */
void send_report(struct send *s);
/* That the destination has to know, for how pages are compressed. */
uint64_t send_pack_features(const struct send *s);
/*
 * All connections; that of control begins, with s->id, or a new one if that is
 * zero.
 */
__must_check int send_open_all(struct send *s, struct err *err);
/* The others begin: the destination has heard who it is. */
__must_check int send_begin_streams(struct send *s, struct err *err);
/*
 * Instead of r, with which it failed: what broke here may be for something that
 * broke there, which its words say better: they may be just behind.
 */
int send_ask_why(struct send *s, int r, struct err *err);
void send_close_all(struct send *s);
/* By done, undo, doubt or left; once. When quire ends nothing is left to do. */
int send_let_go(struct send *s,
		int (*by)(struct vmm *v, void *arg, struct err *err),
		struct err *err);
/* Run by send_let_go(): the VM is gone. arg: unused. */
int send_done(struct vmm *v, void *arg, struct err *err);

/* ---- send_after.c ---- */

/* The guest stands still: s->pending is what the destination has not got. */
__must_check int send_find_pending(struct send *s, struct err *err);
__must_check int send_pending(struct send *s, struct err *err);
/* What is asked for is answered from now on. */
__must_check int send_start_push(struct send *s, struct err *err);
/*
 * The VM runs there: until it has all of its memory. Otherwise it is left here
 * for migrate_recover(): -EREMOTEIO.
 */
__must_check int send_rest_after(struct send *s, struct err *err);
/* As hand_over() where nobody knows whether it runs there. */
void send_doubt_after(struct send *s);

#endif
