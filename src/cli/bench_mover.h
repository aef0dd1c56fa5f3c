/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The moving guest (guest/probe/mover.c) in quire processes of its own, for
 * quire bench migrate: started, listened to on its console, told to pass over
 * its memory, moved by `quire migrate`. One thread.
 *
 * All of it lives in one directory, which is the processes' runtime directory
 * as well, so that names are nobody else's.
 */
#ifndef QUIRE_CLI_BENCH_MOVER_H
#define QUIRE_CLI_BENCH_MOVER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

extern const uint8_t bench_mover_image[];
extern const size_t bench_mover_image_size;

struct mover_place {
	char dir[40]; /* "": none */
	double tsc_hz;
};

__must_check int mover_place_init(struct mover_place *p, struct err *err);
/* Its VMs are gone. Fine on a zeroed struct. */
void mover_place_fini(struct mover_place *p);

/* How long the guest was not heard of. */
struct mover_silence {
	uint64_t last_ns; /* when it was heard; 0: not yet */
	uint64_t longest_ns;
};

/* A quire process with the guest, or one that waits for it. */
struct mover {
	const struct mover_place *place;
	const char *name; /* "source"; borrowed */
	pid_t pid;	  /* 0: none */
	int in_fd, out_fd;
	struct mover_silence *silence;
	char line[64];
	size_t line_len;
	bool ready;
	unsigned int passes; /* that it told of, and the last one: */
	uint64_t pass_ticks, pass_bad;
};

struct mover_config {
	const char *name;
	uint64_t mib, used_mib;
	const char *memory; /* more keys for --memory, as ",page=4k" */
	unsigned int vcpus;
	uint64_t tick_ms;
	uint64_t write_mib;   /* per second; 0: it does not write */
	const char *incoming; /* URI; NULL: it boots */
	struct mover_silence *silence;
};

/*
 * Returns when memory is filled, or when it can be connected to. Fails with
 * what the process had to say.
 */
__must_check int mover_start(struct mover *m, const struct mover_place *place,
			     const struct mover_config *cfg, struct err *err);
/* Kills it. Fine on a zeroed struct. */
void mover_end(struct mover *m);

/* Listen for so long. */
__must_check int mover_listen(struct mover *m, uint64_t ns, struct err *err);

/*
 * One pass over memory that it uses: seconds. Memory that is not what it was is
 * an error.
 */
__must_check int mover_pass(struct mover *m, double *ret_s, struct err *err);

/*
 * Move the guest of from to to by `quire migrate` with these arguments more
 * (NULL ends them), listening to both. *ret is what --json printed, the
 * caller's to free.
 */
__must_check int mover_migrate(struct mover *from, struct mover *to,
			       const char *uri, const char *const *more,
			       json_t **ret, struct err *err);

/* The object "migration" of vm.memory-stats; the caller's to free. */
__must_check int mover_landed(const struct mover *m, json_t **ret,
			      struct err *err);
/* And of vm.info: what followed the VM. */
__must_check int mover_followed(const struct mover *m, json_t **ret,
				struct err *err);

#endif
