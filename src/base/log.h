/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log lines on stderr: "quire: warning: text". Any thread; a line is one
 * write(2) and never interleaves.
 *
 * Library code returns errors; the boundary that handles one logs it once.
 * Whatever a guest can trigger goes through log_ratelimited(), so a hostile
 * guest cannot fill a disk.
 */
#ifndef QUIRE_BASE_LOG_H
#define QUIRE_BASE_LOG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"

enum log_level {
	LOG_LEVEL_ERROR,
	LOG_LEVEL_WARN,
	LOG_LEVEL_INFO,
	LOG_LEVEL_DEBUG,
};

/* Lines above this level are dropped. Default: warn. Set before threads. */
void log_set_level(enum log_level level);

/* While set, lines end in "\r\n": the terminal is raw (serial on stdio). */
void log_set_raw_terminal(bool raw);

void log_line(enum log_level level, const char *fmt, ...) __printf_fmt(2, 3);

#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...)  log_line(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...)  log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

/* Burst of 10 lines, then one per second per place, with a count of dropped. */
struct log_ratelimit {
	_Atomic uint64_t window_start_ns;
	_Atomic uint32_t emitted;
	_Atomic uint32_t dropped;
};

bool log_ratelimit_allow(struct log_ratelimit *rl, uint32_t *ret_dropped);

#define log_ratelimited(level, fmt, ...)                                     \
	do {                                                                 \
		static struct log_ratelimit _rl;                             \
		uint32_t _dropped;                                           \
                                                                             \
		if (log_ratelimit_allow(&_rl, &_dropped)) {                  \
			if (_dropped)                                        \
				log_line(level, fmt " (%u alike not shown)", \
					 ##__VA_ARGS__, _dropped);           \
			else                                                 \
				log_line(level, fmt, ##__VA_ARGS__);         \
		}                                                            \
	} while (0)

#endif
