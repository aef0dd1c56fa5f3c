/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All that is counted, in the text format of Prometheus (exposition format
 * 0.0.4). The numbers are those of vm.counters and vm.memory-stats; this only
 * gives them names, types and units (seconds, bytes).
 */
#ifndef QUIRE_API_METRICS_H
#define QUIRE_API_METRICS_H

#include "api/route.h"

#define API_METRICS_TYPE "text/plain; version=0.0.4; charset=utf-8"

/*
 * {"state", "counters", "memory"}, all but the first optional, into text that
 * is the caller's. Any thread; pure. NULL: out of memory.
 */
char *api_metrics_text(const json_t *facts);

/* The same for the table: call->reply into call->text. */
int api_metrics_render(struct api_call *call);

#endif
