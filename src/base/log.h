/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log lines, for people ("quire: warning: text") or for programs: an object of
 * JSON a line, with time, level, module and message. Any thread; a line is one
 * write(2) and never interleaves.
 *
 * The module is the layer: the folder under src/ that the caller was compiled
 * from.
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
#include "base/err.h"

enum log_level {
	LOG_LEVEL_ERROR,
	LOG_LEVEL_WARN,
	LOG_LEVEL_INFO,
	LOG_LEVEL_DEBUG,
};

enum log_format {
	LOG_FORMAT_AUTO, /* text on a terminal, else JSON */
	LOG_FORMAT_TEXT,
	LOG_FORMAT_JSON,
};

extern const char *const log_level_names[4];  /* "error", "warning", ... */
extern const char *const log_format_names[3]; /* "auto", "text", "json" */

/*
 * All that can be set is set before there are threads. Lines above the level
 * are dropped; the default is warning, text, on standard error.
 */
void log_set_level(enum log_level level);
/* "info", or "info,virtio=debug,vm=error": for all, and for single modules. */
__must_check int log_parse_levels(const char *text, struct err *err);
/* Lines go to the end of a file, which is made where it is missing. */
__must_check int log_open_file(const char *path, struct err *err);
/* After log_open_file(): AUTO looks at where the lines go. */
void log_set_format(enum log_format format);

/*
 * While set, text lines on standard error end in "\r\n": the terminal is raw
 * (serial on stdio). Any time.
 */
void log_set_raw_terminal(bool raw);
bool log_is_raw_terminal(void);

/* The highest level any module logs at: what is above costs no call. */
extern _Atomic int log_max_level;

/* file: the caller's __FILE__, which tells the module. */
void log_line_from(const char *file, enum log_level level, const char *fmt, ...)
	__printf_fmt(3, 4);

#define log_line(level, ...)                                         \
	do {                                                         \
		if ((int)(level) <=                                  \
		    atomic_load_explicit(&log_max_level,             \
					 memory_order_relaxed))      \
			log_line_from(__FILE__, level, __VA_ARGS__); \
	} while (0)

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
