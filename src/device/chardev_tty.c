/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chardev "tty": standard input and output. Input from a terminal is raw,
 * with these keys kept for ourselves (the same as QEMU's):
 *
 *	Ctrl-A x	stop the virtual machine
 *	Ctrl-A b	send a break (Linux: magic SysRq)
 *	Ctrl-A h	help
 *	Ctrl-A Ctrl-A	send Ctrl-A
 *
 * Input that is not a terminal goes to the guest as it is. Its end ends nothing
 * but the input.
 *
 * Descriptors 0 and 1 stay blocking: their open file is shared with whoever
 * started us, and O_NONBLOCK would be too.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/evloop.h"
#include "base/io.h"
#include "base/log.h"
#include "device/chardev_priv.h"
#include "device/inpump.h"
#include "device/outq.h"
#include "device/terminal.h"

#define ESCAPE_KEY 0x01 /* Ctrl-A */

struct tty {
	struct chardev chr;
	struct outq *out;
	struct inpump in;
	struct evloop *loop; /* of resize_fd, if that is watched */
	int resize_fd;
	bool is_terminal;
	bool escaped; /* the last key was ESCAPE_KEY */
};

static struct tty *to_tty(struct chardev *chr)
{
	return container_of(chr, struct tty, chr);
}

static int tty_sink(void *ctx, const uint8_t *data, size_t len)
{
	int r = io_write_full(STDOUT_FILENO, data, len);

	/* A full disk may get room again; anything else is for good. */
	return r == 0 || r == -ENOSPC || r == -EDQUOT ? r : -EPIPE;
}

static void print_help(struct tty *tty)
{
	static const char text[] = "\r\n"
				   "Ctrl-A x       stop the virtual machine\r\n"
				   "Ctrl-A b       send a break\r\n"
				   "Ctrl-A h       this help\r\n"
				   "Ctrl-A Ctrl-A  send Ctrl-A\r\n";

	/* The control thread must not wait for a terminal that is stuck. */
	outq_put(tty->out, (const uint8_t *)text, strlen(text), false);
}

/* The key after ESCAPE_KEY. Returns whether it is for the guest. */
static bool escape_key(struct tty *tty, uint8_t key)
{
	switch (key) {
	case ESCAPE_KEY:
		return true;
	case 'x':
	case 'X':
		terminal_quit();
		return false;
	case 'b':
	case 'B':
		chardev_receive_break(&tty->chr);
		return false;
	case 'h':
	case 'H':
	case '?':
		print_help(tty);
		return false;
	default:
		return false;
	}
}

static size_t tty_filter(void *ctx, uint8_t *data, size_t len)
{
	struct tty *tty = ctx;
	size_t kept = 0;

	if (!tty->is_terminal)
		return len;
	for (size_t i = 0; i < len; i++) {
		bool keep = true;

		if (tty->escaped) {
			tty->escaped = false;
			keep = escape_key(tty, data[i]);
		} else if (data[i] == ESCAPE_KEY) {
			tty->escaped = true;
			keep = false;
		}
		if (keep)
			data[kept++] = data[i];
	}
	return kept;
}

static void tty_input_end(void *ctx, int error)
{
	/* A script's input is over, or the terminal is gone: go on without. */
}

static void tty_last_words(void *ctx)
{
	struct tty *tty = ctx;

	outq_last_words(tty->out, STDOUT_FILENO);
}

static void on_resize(void *ctx, uint32_t events)
{
	struct tty *tty = ctx;

	io_eventfd_drain(tty->resize_fd);
	chardev_resized(&tty->chr);
}

static int watch_size(struct tty *tty, struct evloop *loop)
{
	int r;

	if (!isatty(STDOUT_FILENO))
		return 0;
	tty->resize_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (tty->resize_fd < 0)
		return -errno;
	r = evloop_add(loop, tty->resize_fd, EPOLLIN, on_resize, tty);
	if (r)
		return r;
	tty->loop = loop;
	terminal_watch_size(tty->resize_fd);
	return 0;
}

static void unwatch_size(struct tty *tty)
{
	if (tty->loop) {
		terminal_watch_size(-1);
		evloop_del(tty->loop, tty->resize_fd);
	}
	close_fd(&tty->resize_fd);
}

static int tty_start(struct chardev *chr, struct evloop *loop, struct err *err)
{
	struct tty *tty = to_tty(chr);
	struct inpump_ops ops = {
		.filter = tty_filter,
		.end = tty_input_end,
		.ctx = tty,
	};
	int r;

	tty->is_terminal = isatty(STDIN_FILENO);
	ops.drops = tty->is_terminal;
	r = inpump_init(&tty->in, chr, loop, &ops);
	if (!r)
		r = watch_size(tty, loop);
	if (!r)
		r = outq_start(tty->out);
	if (r)
		return err_errno(err, -r, "console on the terminal");
	terminal_set_last_words(tty_last_words, tty);
	if (fcntl(STDIN_FILENO, F_GETFD) < 0)
		return 0; /* started with it closed: no input */
	if (tty->is_terminal) {
		r = terminal_make_raw(STDIN_FILENO, STDOUT_FILENO);
		if (r)
			return err_errno(err, -r,
					 "cannot make the terminal raw");
	}
	r = inpump_open(&tty->in, STDIN_FILENO);
	return r ? err_errno(err, -r, "cannot watch standard input") : 0;
}

static void tty_write(struct chardev *chr, const uint8_t *data, size_t len)
{
	outq_put(to_tty(chr)->out, data, len, true);
}

static void tty_resume_input(struct chardev *chr)
{
	inpump_resume(&to_tty(chr)->in);
}

static int tty_flush(struct chardev *chr, uint64_t stall_ns)
{
	return outq_flush(to_tty(chr)->out, stall_ns);
}

static void tty_set_waiting(struct chardev *chr, bool waiting)
{
	outq_set_waiting(to_tty(chr)->out, waiting);
}

static uint64_t tty_dropped(struct chardev *chr)
{
	return outq_dropped(to_tty(chr)->out);
}

static int tty_size(struct chardev *chr, uint16_t *ret_cols, uint16_t *ret_rows)
{
	struct winsize size;

	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size))
		return -ENOTTY;
	*ret_cols = size.ws_col;
	*ret_rows = size.ws_row;
	return 0;
}

static void tty_free(struct chardev *chr)
{
	struct tty *tty = to_tty(chr);

	unwatch_size(tty);
	inpump_fini(&tty->in);
	/* A failure means lost output, which outq_dropped() would count. */
	(void)outq_flush(tty->out, CHARDEV_FINAL_STALL_NS);
	terminal_set_last_words(NULL, NULL);
	terminal_restore();
	if (tty->in.dropped)
		log_warn("console: %llu bytes were typed at a guest that took "
			 "no input; they are lost",
			 (unsigned long long)tty->in.dropped);
	if (outq_free(tty->out) == 0)
		free(tty); /* else its thread still uses it, see outq.h */
}

static const struct chardev_ops tty_ops = {
	.start = tty_start,
	.write = tty_write,
	.resume_input = tty_resume_input,
	.flush = tty_flush,
	.set_waiting = tty_set_waiting,
	.dropped = tty_dropped,
	.size = tty_size,
	.free = tty_free,
};

int chardev_tty_new(struct chardev **ret, const struct chardev_config *cfg,
		    struct err *err)
{
	struct tty *tty;
	int r;

	if (fcntl(STDOUT_FILENO, F_GETFD) < 0)
		return err_set(err, EBADF,
			       "%s tty: standard output is closed; use null, "
			       "file=PATH or socket=PATH",
			       cfg->option);
	tty = calloc(1, sizeof(*tty));
	if (!tty)
		return err_set(err, ENOMEM, "%s tty: out of memory",
			       cfg->option);
	r = outq_new(&tty->out, OUTQ_WAIT, tty_sink, tty);
	if (r) {
		free(tty);
		return err_errno(err, -r, "%s tty", cfg->option);
	}
	tty->chr.ops = &tty_ops;
	tty->resize_fd = -1;
	*ret = &tty->chr;
	return 0;
}
