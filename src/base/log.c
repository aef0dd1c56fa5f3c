/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

#define RATELIMIT_BURST	    10
#define RATELIMIT_WINDOW_NS 1000000000ull

static _Atomic int log_level = LOG_LEVEL_WARN;
static _Atomic bool log_raw;

static const char *const level_names[] = {
	[LOG_LEVEL_ERROR] = "error: ",
	[LOG_LEVEL_WARN] = "warning: ",
	[LOG_LEVEL_INFO] = "",
	[LOG_LEVEL_DEBUG] = "debug: ",
};

void log_set_level(enum log_level level)
{
	atomic_store(&log_level, (int)level);
}

void log_set_raw_terminal(bool raw)
{
	atomic_store(&log_raw, raw);
}

void log_line(enum log_level level, const char *fmt, ...)
{
	int saved_errno = errno;
	char line[1024];
	va_list ap;
	size_t len;
	ssize_t n;

	if ((int)level > atomic_load_explicit(&log_level, memory_order_relaxed))
		return;
	len = (size_t)snprintf(line, sizeof(line), "quire: %s",
			       level_names[level]);
	va_start(ap, fmt);
	vsnprintf(line + len, sizeof(line) - len - 2, fmt, ap);
	va_end(ap);
	len = strlen(line);
	if (atomic_load_explicit(&log_raw, memory_order_relaxed))
		line[len++] = '\r';
	line[len++] = '\n';
	n = write(STDERR_FILENO, line, len);
	(void)n; /* there is nowhere left to report a broken stderr */
	errno = saved_errno;
}

bool log_ratelimit_allow(struct log_ratelimit *rl, uint32_t *ret_dropped)
{
	uint64_t now = clock_now_ns();
	uint64_t start = atomic_load(&rl->window_start_ns);

	*ret_dropped = 0;
	if (atomic_fetch_add(&rl->emitted, 1) < RATELIMIT_BURST)
		return true;
	if (now - start >= RATELIMIT_WINDOW_NS &&
	    atomic_compare_exchange_strong(&rl->window_start_ns, &start, now)) {
		*ret_dropped = atomic_exchange(&rl->dropped, 0);
		return true;
	}
	/* Saturate well away from wrap-around. */
	if (atomic_load(&rl->emitted) > 1000000)
		atomic_store(&rl->emitted, RATELIMIT_BURST + 1);
	atomic_fetch_add(&rl->dropped, 1);
	return false;
}
