/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a migration is compared with: memory copied through stream sockets by
 * as many threads on each side as there are streams, into memory that is fresh,
 * in units of 2 MiB that are dealt out to the streams in turn. No protocol, no
 * log of what is written, no VM.
 */
#ifndef QUIRE_CLI_BENCH_COPY_H
#define QUIRE_CLI_BENCH_COPY_H

#include "base/err.h"
#include "mem/ram.h"
#include "migrate/uri.h"

#define BENCH_COPY_MAX_STREAMS 64u

/*
 * bytes, a multiple of 2 MiB, over connections on this host. *ret_s counts from
 * the start of the threads to the last byte.
 */
__must_check int bench_copy(enum migrate_uri_kind kind, unsigned int streams,
			    uint64_t bytes, enum ram_page page, double *ret_s,
			    struct err *err);

/* A TCP port of 127.0.0.1 that nobody has right now. */
__must_check int bench_free_port(unsigned int *ret, struct err *err);

#endif
