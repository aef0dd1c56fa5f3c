/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Post-copy at the destination: the memory that is still to come while the VM
 * runs here. It is the pager's source, asks on the urgent connection for what
 * somebody waits for, and puts what comes into the pager.
 *
 *	new -> pager_new over follow_source() -> begin -> connect
 *		-> [disconnect -> connect]* -> unref
 *
 * When a connection breaks the others are of no use either; nothing is lost by
 * that: who touches what is not there waits until there are new ones. But until
 * follow_commit() nobody may be left waiting: memory is given up then
 * (pager_abandon()), and so is the VM.
 *
 * Threads: one drives it (begin to disconnect); the source's operations and
 * info from any. Who has it counts: the VM it is the memory of, and who drives.
 */
#ifndef QUIRE_MIGRATE_FOLLOW_H
#define QUIRE_MIGRATE_FOLLOW_H

#include <jansson.h>

#include "base/thread_class.h"
#include "mem/pager.h"
#include "migrate/link.h"
#include "migrate/page_map.h"

extern const struct thread_class migrate_follow_thread_class;

struct follow;

/* map: PENDING's payload. One reference, the caller's. */
__must_check int follow_new(struct follow **ret, struct ram *ram,
			    const uint8_t *map, size_t bytes, struct err *err);
void follow_ref(struct follow *f);
void follow_unref(void *follow);

const struct mem_source *follow_source(const struct follow *f);

/*
 * pager is over the source, and the VM's; the source's abort() ends that. What
 * came before and is not wanted any more goes, the rest is settled.
 */
__must_check int follow_begin(struct follow *f, struct pager *pager,
			      struct err *err);

/* They stay the caller's, and there until disconnect. */
struct follow_connections {
	const int *fds;		/* of the data streams */
	struct tls *const *tls; /* of fds, each may be NULL */
	unsigned int num;
	int urgent_fd;
	struct tls *urgent_tls; /* may be NULL */
	uint64_t features;	/* of the data streams: how pages may come */
	/* So long an answer may take at the most, until follow_commit(). */
	uint64_t patience_ns;
};

__must_check int follow_connect(struct follow *f,
				const struct follow_connections *c,
				struct err *err);
void follow_disconnect(struct follow *f);
/* A connection that is not follow's has failed, and with it all of them. */
void follow_break(struct follow *f, const struct err *err);

/* The VM is ours from now on. False: a connection has failed before. */
bool follow_commit(struct follow *f, struct err *err);

enum follow_state {
	FOLLOW_GOES_ON,
	FOLLOW_BROKEN,	 /* a connection: err says how */
	FOLLOW_COMPLETE, /* all has come */
	FOLLOW_ENDED,	 /* nobody wants the rest: the VM is gone */
};

enum follow_state follow_look(struct follow *f, struct err *err);
/* As long as it goes on, but not for longer than that. */
enum follow_state follow_wait(struct follow *f, uint64_t ns, struct err *err);

/* What has not come, for MISSING. */
const struct page_map *follow_pending(const struct follow *f);

/* A new reference: {"mode", "state", ...}, as in vm.info. Any thread. */
json_t *follow_info(void *follow);

#endif
