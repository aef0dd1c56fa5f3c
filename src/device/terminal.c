/* SPDX-License-Identifier: Apache-2.0 */
#include "device/terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

#include "base/io.h"
#include "base/log.h"

/* signal(7): all others end a process by default, the real-time ones too. */
static const int harmless_signals[] = {
	SIGCHLD, SIGCONT, SIGURG,  SIGWINCH, /* ignored, or continue */
	SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU,  /* stop */
};

/*
 * Written by the control thread before is_raw or has_words is set, read by a
 * handler after it saw them set.
 */
static struct {
	atomic_bool is_raw;
	int fd;
	struct termios saved, raw;
	atomic_bool has_words;
	void (*words)(void *ctx);
	void *words_ctx;
	bool hooked;
	atomic_int resize_fd; /* plus 1; 0: nobody is interested */
	bool resize_hooked;
	void (*quit)(void *ctx);
	void *quit_ctx;
} terminal;

void terminal_restore(void)
{
	sigset_t ttou, old;

	if (!atomic_exchange(&terminal.is_raw, false))
		return;
	/*
	 * In the background it is not our terminal to set, and trying would
	 * stop the process (SIGTTOU), with its disks locked. Blocked, the
	 * signal is not even raised, should we be put there just now.
	 */
	sigemptyset(&ttou);
	sigaddset(&ttou, SIGTTOU);
	pthread_sigmask(SIG_BLOCK, &ttou, &old);
	if (tcgetpgrp(terminal.fd) == getpgrp())
		tcsetattr(terminal.fd, TCSANOW, &terminal.saved);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	log_set_raw_terminal(false);
}

static void restore_at_exit(void)
{
	terminal_restore();
}

static void on_fatal(int sig)
{
	int saved_errno = errno;

	terminal_restore();
	if (atomic_exchange(&terminal.has_words, false))
		terminal.words(terminal.words_ctx);
	errno = saved_errno;
	/* SA_RESETHAND made it the default again: this time it kills. */
	raise(sig);
}

static void on_continue(int sig)
{
	int saved_errno = errno;

	/* A shell may have changed the terminal while we were stopped. */
	if (atomic_load(&terminal.is_raw) &&
	    tcgetpgrp(terminal.fd) == getpgrp())
		tcsetattr(terminal.fd, TCSANOW, &terminal.raw);
	errno = saved_errno;
}

/* Leaves alone what the program handles or ignores itself. */
static void catch_if_default(int sig, void (*handler)(int sig), int flags)
{
	struct sigaction sa = { .sa_handler = handler, .sa_flags = flags };
	struct sigaction old;

	sigemptyset(&sa.sa_mask);
	if (!sigaction(sig, NULL, &old) && !(old.sa_flags & SA_SIGINFO) &&
	    old.sa_handler == SIG_DFL)
		sigaction(sig, &sa, NULL);
}

static bool is_harmless(int sig)
{
	for (size_t i = 0; i < ARRAY_SIZE(harmless_signals); i++)
		if (harmless_signals[i] == sig)
			return true;
	return false;
}

static void hook_exits(void)
{
	if (terminal.hooked)
		return;
	terminal.hooked = true;
	atexit(restore_at_exit);
	/* SIGKILL, and what the C library keeps for itself, is refused. */
	for (int sig = 1; sig <= SIGRTMAX; sig++)
		if (!is_harmless(sig))
			catch_if_default(sig, on_fatal,
					 (int)SA_RESETHAND | SA_NODEFER);
	catch_if_default(SIGCONT, on_continue, SA_RESTART);
}

int terminal_make_raw(int in_fd, int out_fd)
{
	struct termios raw;

	if (atomic_load(&terminal.is_raw))
		return -EBUSY;
	if (tcgetattr(in_fd, &terminal.saved))
		return -errno;
	raw = terminal.saved;
	raw.c_iflag &= ~(tcflag_t)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR |
				   IGNCR | ICRNL | IXON);
	raw.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON | IEXTEN | ISIG);
	raw.c_cflag &= ~(tcflag_t)(CSIZE | PARENB);
	raw.c_cflag |= CS8;
	raw.c_cc[VMIN] = 1;
	raw.c_cc[VTIME] = 0;
	if (isatty(out_fd))
		raw.c_oflag &= ~(tcflag_t)OPOST;

	terminal.fd = in_fd;
	terminal.raw = raw;
	hook_exits();
	atomic_store(&terminal.is_raw, true);
	if (tcsetattr(in_fd, TCSANOW, &raw)) {
		int r = -errno;

		atomic_store(&terminal.is_raw, false);
		return r;
	}
	log_set_raw_terminal(!(raw.c_oflag & OPOST));
	return 0;
}

static void on_resize(int sig)
{
	int saved_errno = errno;
	int fd = atomic_load(&terminal.resize_fd) - 1;

	if (fd >= 0)
		io_eventfd_signal(fd);
	errno = saved_errno;
}

void terminal_watch_size(int eventfd)
{
	/*
	 * No handler is under way when this returns: signals come to the
	 * control thread (the others block them), which is where it ends.
	 */
	atomic_store(&terminal.resize_fd, eventfd + 1);
	if (eventfd >= 0 && !terminal.resize_hooked) {
		terminal.resize_hooked = true;
		catch_if_default(SIGWINCH, on_resize, SA_RESTART);
	}
}

void terminal_set_quit(void (*fn)(void *ctx), void *ctx)
{
	terminal.quit = fn;
	terminal.quit_ctx = ctx;
}

void terminal_quit(void)
{
	if (terminal.quit)
		terminal.quit(terminal.quit_ctx);
}

void terminal_set_last_words(void (*fn)(void *ctx), void *ctx)
{
	atomic_store(&terminal.has_words, false);
	if (!fn)
		return;
	terminal.words = fn;
	terminal.words_ctx = ctx;
	hook_exits();
	atomic_store(&terminal.has_words, true);
}
