/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Send the VM of this process to another (docs/migration-protocol.md): its
 * memory, and if asked its disks, while it runs, in rounds, until what is left
 * can be sent within the downtime that is allowed; then the rest, and the VM
 * itself.
 */
#ifndef QUIRE_MIGRATE_SEND_H
#define QUIRE_MIGRATE_SEND_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "migrate/hold_back.h"
#include "migrate/pack.h"

struct vmm;

#define MIGRATE_DOWNTIME_MS	300u /* by default, as with others */
#define MIGRATE_MIN_DOWNTIME_MS 10u
#define MIGRATE_MAX_DOWNTIME_MS 60000u

enum migrate_mode {
	MIGRATE_PRECOPY,  /* all of memory before the VM */
	MIGRATE_POSTCOPY, /* all of it after */
	MIGRATE_HYBRID,	  /* some rounds before, what was written since after */
	MIGRATE_LOCAL,	  /* it stays where it is, and is handed over */
};
#define MIGRATE_NUM_MODES 4

/* "precopy", "postcopy", "hybrid", "local" */
extern const char *const migrate_mode_names[MIGRATE_NUM_MODES];

/* "shared", "copy": migrate_send_request.copies_disks */
#define MIGRATE_NUM_DISKS 2
extern const char *const migrate_disks_names[MIGRATE_NUM_DISKS];

struct migrate_send_request {
	enum migrate_mode mode;
	/* The images of its disks are not where it goes: precopy only. */
	bool copies_disks;
	/*
	 * Where who asks hands over the connections (migrate/handed.h), or
	 * NULL: uri is connected to from here.
	 */
	const char *sockets;
	const char *uri;
	/*
	 * With TLS: a directory of credentials (migrate/tls.h), or NULL; who
	 * hands over the connections may do so with these instead. And whom the
	 * destination has to be; NULL: the host of uri.
	 */
	const char *tls_dir, *tls_hostname;
	unsigned int streams;	   /* without sockets; 0: 1 */
	unsigned int downtime_ms;  /* 0: MIGRATE_DOWNTIME_MS */
	uint64_t rate_bytes_per_s; /* 0: as fast as it goes */
	enum pack_method pack;	   /* how pages are compressed */
	/* Whether vCPUs that dirty memory too fast are held back. */
	struct hold_back throttle;
};

struct migrate_send_result {
	/* Until it is all there. What it had here is freed after that. */
	uint64_t total_ns;
	uint64_t downtime_ns; /* until the destination said that it runs */
	uint64_t page_bytes, zero_bytes, wire_bytes;
	uint64_t disk_bytes, disk_zero_bytes; /* of disks that went along */
	/* Of pages that were compressed: before, and on the wire. */
	uint64_t pack_from_bytes, pack_to_bytes;
	uint64_t last_bytes; /* of wire_bytes, while the guest stood still */
	unsigned int rounds, streams;
	unsigned int throttle_percent; /* that vCPUs were held back at last */
	/* Of page_bytes and the others, what followed the VM. */
	uint64_t followed_bytes, urgent_pages;
	bool ended_there; /* before all of its memory came */
};

/*
 * Any thread but the control thread. 0: it runs there, and is gone from here.
 * Otherwise it goes on here as before, or, as the text says, stays paused. As
 * snapshot_take(), -ECANCELED: quire or the guest is ending, or who asked has
 * gone. With post-copy, -EREMOTEIO: it may run there already, and the rest of
 * its memory is here: migrate_recover().
 */
__must_check int migrate_send(struct vmm *v,
			      const struct migrate_send_request *req,
			      struct migrate_send_result *ret, struct err *err);

/*
 * Go on where post-copy lost its connections, over new ones (of req: how, and
 * the rate). 0: the VM has all of its memory, and is gone from here. Otherwise
 * it can be tried again.
 */
__must_check int migrate_recover(struct vmm *v,
				 const struct migrate_send_request *req,
				 struct migrate_send_result *ret,
				 struct err *err);

#endif
