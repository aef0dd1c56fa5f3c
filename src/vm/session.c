/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/session.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "kvm/vcpu.h"

/*
 * Theory of operation. vCPU threads never stop anything themselves: they post
 * the first reason the machine ended (under the lock; later ones lose) and stop
 * the event loop. The control thread then stops the vCPUs, takes the accounts,
 * frees the machine and, on a reboot that restarts, builds the next one. The
 * loop, the signals and the serial back end stay: a client of the console
 * socket sees one console, a console file is not begun anew.
 */
struct session {
	struct vm_config *cfg;
	struct vm_summary *summary;
	struct vm_result *result;
	struct evloop *loop;
	struct chardev *chardev;
	bool chardev_started;
	struct machine *machine;
	int signal_fd, deadline_fd;
	sigset_t signals;     /* that signal_fd takes */
	bool shutting_down;   /* the power button was pressed */
	pthread_mutex_t lock; /* result, until the vCPUs are joined */
};

static void post_end(void *ctx, enum machine_end end, unsigned int code,
		     const char *text)
{
	struct session *s = ctx;

	pthread_mutex_lock(&s->lock);
	if (s->result->end == MACHINE_END_NONE && !s->result->signal &&
	    !s->result->quit) {
		s->result->end = end;
		s->result->code = code;
		snprintf(s->result->text, sizeof(s->result->text), "%s", text);
	}
	pthread_mutex_unlock(&s->lock);
	evloop_stop(s->loop, 0);
}

static void post_stop(struct session *s, int sig, bool quit)
{
	pthread_mutex_lock(&s->lock);
	if (s->result->end == MACHINE_END_NONE) {
		s->result->signal = sig;
		s->result->quit = quit;
	}
	pthread_mutex_unlock(&s->lock);
	evloop_stop(s->loop, 0);
}

static void on_quit_key(void *ctx)
{
	post_stop(ctx, 0, true);
}

static void begin_shutdown(struct session *s)
{
	struct itimerspec at = {
		.it_value.tv_sec = s->cfg->shutdown_timeout_s,
	};

	s->shutting_down = true;
	platform_power_button(s->machine->platform);
	log_info("SIGTERM: asked the guest to power off; stopping it in %u s",
		 s->cfg->shutdown_timeout_s);
	if (timerfd_settime(s->deadline_fd, 0, &at, NULL))
		post_stop(s, SIGTERM, false);
}

static bool take_signal(struct session *s, int *ret_signal)
{
	struct signalfd_siginfo info;

	if (io_read_full(s->signal_fd, &info, sizeof(info)))
		return false;
	*ret_signal = (int)info.ssi_signo;
	return true;
}

/* For the long steps of building, when no event loop runs. */
static bool signal_waits(void *ctx)
{
	struct session *s = ctx;
	struct pollfd p = { .fd = s->signal_fd, .events = POLLIN };

	return poll(&p, 1, 0) == 1;
}

static void on_signal(void *ctx, uint32_t events)
{
	struct session *s = ctx;
	int sig;

	if (!take_signal(s, &sig))
		return;
	if (sig == SIGTERM && !s->shutting_down && s->cfg->shutdown_timeout_s)
		begin_shutdown(s);
	else
		post_stop(s, sig, false);
}

static void on_deadline(void *ctx, uint32_t events)
{
	struct session *s = ctx;

	io_eventfd_drain(s->deadline_fd);
	log_warn("the guest did not power off in %u s; stopping it",
		 s->cfg->shutdown_timeout_s);
	post_stop(s, SIGTERM, false);
}

/*
 * The signals that end a VM, but for those the parent had us ignore (nohup,
 * a shell's background job): they stay ignored.
 */
static void signals_to_handle(sigset_t *ret)
{
	static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
	struct sigaction old;

	sigemptyset(ret);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
		if (sigaction(signals[i], NULL, &old) ||
		    old.sa_handler != SIG_IGN)
			sigaddset(ret, signals[i]);
	}
}

static int open_signals(struct session *s, struct err *err)
{
	int r;

	signals_to_handle(&s->signals);
	pthread_sigmask(SIG_BLOCK, &s->signals, NULL);
	/* A reader that went away is an EPIPE for its chardev, no more. */
	signal(SIGPIPE, SIG_IGN);
	s->signal_fd = signalfd(-1, &s->signals, SFD_CLOEXEC | SFD_NONBLOCK);
	if (s->signal_fd < 0)
		return err_errno(err, errno, "signalfd");
	s->deadline_fd = timerfd_create(CLOCK_MONOTONIC,
					TFD_CLOEXEC | TFD_NONBLOCK);
	if (s->deadline_fd < 0)
		return err_errno(err, errno, "timerfd_create");
	r = kvm_vcpu_setup_kick();
	return r ? err_errno(err, -r, "sigaction") : 0;
}

static int open_session(struct session *s, struct err *err)
{
	int r = open_signals(s, err);

	if (r)
		return r;
	r = evloop_new(&s->loop);
	if (!r)
		r = evloop_add(s->loop, s->signal_fd, EPOLLIN, on_signal, s);
	if (!r)
		r = evloop_add(s->loop, s->deadline_fd, EPOLLIN, on_deadline,
			       s);
	if (r)
		return err_errno(err, -r, "creating the event loop");
	return chardev_new(&s->chardev, &s->cfg->serial, err);
}

static void close_session(struct session *s)
{
	uint64_t lost = s->chardev ? chardev_dropped(s->chardev) : 0;

	if (lost)
		log_warn("%llu bytes of console output were lost: its reader "
			 "was too slow or gone",
			 (unsigned long long)lost);
	chardev_free(s->chardev);
	evloop_free(s->loop);
	close_fd(&s->signal_fd);
	close_fd(&s->deadline_fd);
}

static bool has_ended(struct session *s)
{
	bool ended;

	pthread_mutex_lock(&s->lock);
	ended = s->result->end != MACHINE_END_NONE || s->result->signal ||
		s->result->quit;
	pthread_mutex_unlock(&s->lock);
	return ended;
}

static bool restarts(const struct session *s)
{
	const struct vm_result *res = s->result;

	if (s->shutting_down)
		return false;
	return ((res->end == MACHINE_END_REBOOT ||
		 res->end == MACHINE_END_WATCHDOG) &&
		s->cfg->on_reboot == VM_ACTION_RESTART) ||
	       (res->end == MACHINE_END_CRASH &&
		s->cfg->on_crash == VM_ACTION_RESTART) ||
	       (res->end == MACHINE_END_PANIC &&
		s->cfg->on_panic == VM_PANIC_RESTART);
}

/* The machine is built: let it run until something ends it. */
static int run_machine(struct session *s, struct err *err)
{
	int r;

	chardev_set_waiting(s->chardev, true);
	/* Not before there is a machine: errors find a normal terminal. */
	if (!s->chardev_started) {
		r = chardev_start(s->chardev, s->loop, err);
		if (r)
			return r;
		s->chardev_started = true;
	}
	r = machine_start(s->machine, err);
	if (r)
		return r;
	/* A stop may be left over from a vCPU that posted late. */
	do
		r = evloop_run(s->loop);
	while (!r && !has_ended(s));
	chardev_set_waiting(s->chardev, false);
	/*
	 * A disk's last flush can take its time. Nobody reads signal_fd now, so
	 * another signal does what it does by default (the terminal is
	 * restored).
	 */
	if (!restarts(s))
		pthread_sigmask(SIG_UNBLOCK, &s->signals, NULL);
	machine_stop(s->machine);
	return r ? err_errno(err, -r, "event loop") : 0;
}

/* Build, run to the end, account, tear down one machine. */
static int run_once(struct session *s, struct err *err)
{
	struct machine_end_hooks hooks = {
		.ended = post_end,
		.interrupted = signal_waits,
		.ctx = s,
	};
	uint64_t built_at, start = clock_now_ns();
	int r;

	memset(s->result, 0, sizeof(*s->result));
	r = machine_new(&s->machine, s->cfg, s->chardev, s->loop, &hooks, err);
	/* A guest that has not started needs no power button. */
	if (signal_waits(s) && take_signal(s, &s->result->signal)) {
		machine_free(take_ptr(s->machine));
		return 0;
	}
	if (r)
		return r;
	built_at = clock_now_ns();
	r = run_machine(s, err);
	if (!r && s->summary)
		vm_summary_take(s->summary, s->machine, start, built_at);
	machine_free(take_ptr(s->machine));
	return r;
}

static int run_until_done(struct session *s, struct err *err)
{
	for (;;) {
		int r = run_once(s, err);

		if (r || !restarts(s))
			return r;
		log_info("%s %s; restarting",
			 s->result->end == MACHINE_END_REBOOT ? "guest reboot"
							      : "guest crash:",
			 s->result->text);
	}
}

int vm_session_run(struct vm_config *cfg, struct vm_summary *summary,
		   struct vm_result *ret, struct err *err)
{
	struct session s = {
		.cfg = cfg,
		.summary = summary,
		.result = ret,
		.signal_fd = -1,
		.deadline_fd = -1,
	};
	int r;

	pthread_mutex_init(&s.lock, NULL);
	cfg->serial.quit = on_quit_key;
	cfg->serial.quit_ctx = &s;
	r = open_session(&s, err);
	if (!r)
		r = run_until_done(&s, err);
	close_session(&s);
	cfg->serial.quit = NULL;
	pthread_mutex_destroy(&s.lock);
	return r;
}
