/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/kvlist.h"

#define RATELIMIT_BURST	    10
#define RATELIMIT_WINDOW_NS 1000000000ull

#define MESSAGE_BYTES 1000
/* A byte of the message becomes two at most. */
#define LINE_BYTES (2 * MESSAGE_BYTES + 200)

const char *const log_level_names[4] = {
	[LOG_LEVEL_ERROR] = "error",
	[LOG_LEVEL_WARN] = "warning",
	[LOG_LEVEL_INFO] = "info",
	[LOG_LEVEL_DEBUG] = "debug",
};

const char *const log_format_names[3] = {
	[LOG_FORMAT_AUTO] = "auto",
	[LOG_FORMAT_TEXT] = "text",
	[LOG_FORMAT_JSON] = "json",
};

/* The layers; scripts/check-layers compares. */
static const char *const modules[] = {
	"base",	 "kvm",	   "mem",     "x86",   "stage2",   "boot",  "bus",
	"block", "virtio", "device",  "vm",    "snapshot", "probe", "doctor",
	"api",	 "cli",	   "sandbox", "state", "migrate",
};

#define NUM_MODULES ARRAY_SIZE(modules)

_Atomic int log_max_level = LOG_LEVEL_WARN;

/* Of each module, and at the end of those that are none (tests). */
static _Atomic int levels[NUM_MODULES + 1] = {
	[0 ... NUM_MODULES] = LOG_LEVEL_WARN,
};
static _Atomic bool log_raw;
static int log_fd = STDERR_FILENO;
static bool log_json;

/* ---- settings ---- */

static void find_max_level(void)
{
	int max = 0;

	for (size_t i = 0; i <= NUM_MODULES; i++)
		if (atomic_load(&levels[i]) > max)
			max = atomic_load(&levels[i]);
	atomic_store(&log_max_level, max);
}

void log_set_level(enum log_level level)
{
	for (size_t i = 0; i <= NUM_MODULES; i++)
		atomic_store(&levels[i], (int)level);
	find_max_level();
}

/* name may be followed by more. */
static size_t module_index(const char *name, size_t len)
{
	size_t i = 0;

	while (i < NUM_MODULES && (strlen(modules[i]) != len ||
				   strncmp(modules[i], name, len) != 0))
		i++;
	return i;
}

/* "virtio=debug", or "info" where that is allowed. */
static int parse_level(char *item, bool first, struct err *err)
{
	char *eq = strchr(item, '=');
	size_t module;
	int level, r;

	r = kvlist_enum(eq ? eq + 1 : item, log_level_names,
			ARRAY_SIZE(log_level_names), &level, err);
	if (r)
		return r;
	if (!eq && !first)
		return err_set(err, EINVAL,
			       "'%s' is not the first: write MODULE=LEVEL",
			       item);
	if (!eq) {
		log_set_level((enum log_level)level);
		return 0;
	}
	module = module_index(item, (size_t)(eq - item));
	if (module == NUM_MODULES) {
		*eq = '\0';
		return err_set(err, EINVAL,
			       "unknown module '%s' (known: the layers of "
			       "quire: vm, virtio, mem, block, ...)",
			       item);
	}
	atomic_store(&levels[module], level);
	find_max_level();
	return 0;
}

int log_parse_levels(const char *text, struct err *err)
{
	char copy[256], *cursor = copy, *item;
	bool first = true;

	if (strlen(text) >= sizeof(copy))
		return err_set(err, EINVAL, "too long");
	memcpy(copy, text, strlen(text) + 1);
	while ((item = strsep(&cursor, ","))) {
		int r = parse_level(item, first, err);

		if (r)
			return r;
		first = false;
	}
	return 0;
}

int log_open_file(const char *path, struct err *err)
{
	int fd = open(path,
		      O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY,
		      0640);

	if (fd < 0)
		return err_errno(err, errno, "%s: cannot write", path);
	if (log_fd != STDERR_FILENO)
		close(log_fd);
	log_fd = fd;
	return 0;
}

void log_set_format(enum log_format format)
{
	log_json = format == LOG_FORMAT_JSON ||
		   (format == LOG_FORMAT_AUTO && isatty(log_fd) != 1);
}

void log_set_raw_terminal(bool raw)
{
	atomic_store(&log_raw, raw);
}

bool log_is_raw_terminal(void)
{
	return atomic_load(&log_raw);
}

/* ---- lines ---- */

/* "../src/virtio/rng/rng.c" is of module "virtio". */
static size_t module_of(const char *file)
{
	const char *at = file, *name = NULL;

	while ((at = strstr(at, "src/")))
		name = at += 4;
	return name ? module_index(name, strcspn(name, "/")) : NUM_MODULES;
}

static bool is_utf8(const char *text)
{
	json_t *value = json_string(text);

	json_decref(value);
	return value != NULL;
}

/*
 * A guest may have a part in the text. On a terminal, control characters would
 * be commands; bytes that are no UTF-8 would make JSON that is none.
 */
static size_t put_message(char *out, const char *message, bool json)
{
	bool ascii = json && !is_utf8(message);
	size_t len = 0;

	for (const char *c = message; *c; c++) {
		unsigned char byte = (unsigned char)*c;

		if (json && (byte == '"' || byte == '\\'))
			out[len++] = '\\';
		if (byte < 0x20 || byte == 0x7f || (ascii && byte >= 0x80))
			out[len++] = '?';
		else
			out[len++] = *c;
	}
	return len;
}

static size_t put_text(char *line, enum log_level level, const char *message)
{
	size_t len = (size_t)sprintf(
		line, "quire: %s%s",
		level == LOG_LEVEL_INFO ? "" : log_level_names[level],
		level == LOG_LEVEL_INFO ? "" : ": ");

	len += put_message(line + len, message, false);
	if (log_fd == STDERR_FILENO &&
	    atomic_load_explicit(&log_raw, memory_order_relaxed))
		line[len++] = '\r';
	return len;
}

/* RFC 3339, with milliseconds. */
static size_t put_time(char *out, size_t size)
{
	struct timespec now;
	struct tm tm;
	size_t len;

	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &tm);
	len = strftime(out, size, "%Y-%m-%dT%H:%M:%S", &tm);
	return len + (size_t)snprintf(out + len, size - len, ".%03ldZ",
				      now.tv_nsec / 1000000);
}

static size_t put_json(char *line, enum log_level level, size_t module,
		       const char *message)
{
	char time[64];
	size_t len;

	put_time(time, sizeof(time));
	len = (size_t)sprintf(line,
			      "{\"time\": \"%s\", \"level\": \"%s\", "
			      "\"module\": \"%s\", \"message\": \"",
			      time, log_level_names[level],
			      module < NUM_MODULES ? modules[module] : "quire");
	len += put_message(line + len, message, true);
	line[len++] = '"';
	line[len++] = '}';
	return len;
}

void log_line_from(const char *file, enum log_level level, const char *fmt, ...)
{
	int saved_errno = errno;
	size_t module = module_of(file);
	char message[MESSAGE_BYTES], line[LINE_BYTES];
	va_list ap;
	size_t len;
	ssize_t n;

	if ((int)level >
	    atomic_load_explicit(&levels[module], memory_order_relaxed))
		return;
	va_start(ap, fmt);
	vsnprintf(message, sizeof(message), fmt, ap);
	va_end(ap);
	len = log_json ? put_json(line, level, module, message)
		       : put_text(line, level, message);
	line[len++] = '\n';
	n = write(log_fd, line, len);
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
