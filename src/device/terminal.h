/* SPDX-License-Identifier: Apache-2.0 */
/*
 * This process's terminal in raw mode, and back again however the process ends:
 * by terminal_restore(), exit(), or any signal that kills by default and was
 * left at that (SIGKILL excepted). A stopped and continued process gets raw
 * mode back.
 *
 * There is one controlling terminal per process, so the state is global, and
 * there is one user of it at a time. Threads: the control thread; a dying one
 * in its signal handler.
 */
#ifndef QUIRE_DEVICE_TERMINAL_H
#define QUIRE_DEVICE_TERMINAL_H

#include <stdbool.h>

#include "base/compiler.h"

/*
 * Make the terminal behind in_fd raw. Output processing is turned off too if
 * out_fd is a terminal; if not, other programs may be writing to the screen and
 * rely on it. -ENOTTY when in_fd is no terminal, -EBUSY when already raw.
 */
__must_check int terminal_make_raw(int in_fd, int out_fd);

/* As it was before. Async-signal-safe; harmless when not raw. */
void terminal_restore(void);

/*
 * Add to an eventfd whenever the window's size changes (SIGWINCH). -1, on the
 * control thread, ends it; the eventfd may be closed then.
 */
void terminal_watch_size(int eventfd);

/*
 * What the key that stops the virtual machine does: fn, on the thread that
 * reads the terminal. NULL: nothing. Set while nobody reads it.
 */
void terminal_set_quit(void (*fn)(void *ctx), void *ctx);
/* That key was typed. */
void terminal_quit(void);

/*
 * Call fn from the handler of a signal that is about to kill the process, after
 * the terminal is restored; it may only do what is async-signal-safe. NULL ends
 * it.
 */
void terminal_set_last_words(void (*fn)(void *ctx), void *ctx);

#endif
