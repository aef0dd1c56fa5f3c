/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What reaches the control thread by itself: signals, the deadline after
 * SIGTERM, the end of a machine, a panic of its guest, a device that the guest
 * let go, the end of background population, and of a restored VM's paging.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/log.h"
#include "device/pvpanic.h"
#include "vm/vmm_priv.h"

/* ---- ending ---- */

void vmm_begin_end(struct vmm *v, int signal, bool quit)
{
	if (!v->ending) {
		v->result.signal = signal;
		v->result.quit = quit;
	}
	v->ending = true;
	evloop_stop(v->loop, 0);
}

void vmm_begin_fail(struct vmm *v, int error, const struct err *text)
{
	if (!v->ending) {
		v->error = error;
		v->error_text = *text;
	}
	v->ending = true;
	evloop_stop(v->loop, 0);
}

/* ---- signals ---- */

static bool take_signal(struct vmm *v, int *ret_signal)
{
	struct signalfd_siginfo info;

	if (io_read_full(v->signal_fd, &info, sizeof(info)))
		return false;
	*ret_signal = (int)info.ssi_signo;
	return true;
}

/* For the long steps of building, when no event loop runs. */
bool vmm_signal_waits(void *vmm)
{
	struct vmm *v = vmm;
	struct pollfd p = { .fd = v->signal_fd, .events = POLLIN };

	return poll(&p, 1, 0) == 1;
}

static void ask_guest_to_end(struct vmm *v)
{
	struct itimerspec at = {
		.it_value.tv_sec = v->cfg.shutdown_timeout_s,
	};

	v->shutting_down = true;
	/* It is to power off here, and is no good to anybody elsewhere. */
	if (v->sending)
		vmm_sending_ended(v);
	platform_power_button(v->machine->platform);
	log_info("SIGTERM: asked the guest to power off; stopping it in %u s",
		 v->cfg.shutdown_timeout_s);
	if (timerfd_settime(v->deadline_fd, 0, &at, NULL))
		vmm_begin_end(v, SIGTERM, false);
}

/* Only a guest that runs can answer its power button. */
static void on_signal(void *ctx, uint32_t events)
{
	struct vmm *v = ctx;
	int sig;

	if (!take_signal(v, &sig))
		return;
	if (sig == SIGTERM && v->state == VMM_RUNNING && !v->shutting_down &&
	    v->cfg.shutdown_timeout_s)
		ask_guest_to_end(v);
	else
		vmm_begin_end(v, sig, false);
}

static void on_deadline(void *ctx, uint32_t events)
{
	struct vmm *v = ctx;

	io_eventfd_drain(v->deadline_fd);
	log_warn("the guest did not power off in %u s; stopping it",
		 v->cfg.shutdown_timeout_s);
	vmm_begin_end(v, SIGTERM, false);
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

/* ---- population in the background ---- */

/* On the keeper's thread. */
static void post_idle(void *ctx)
{
	struct vmm *v = ctx;

	io_eventfd_signal(v->populated_fd);
}

/* Whatever else the keeper does is of no interest. */
static void on_idle(void *ctx, uint32_t events)
{
	struct vmm *v = ctx;

	io_eventfd_drain(v->populated_fd);
	if (!v->machine || !v->populating ||
	    !vm_memory_is_idle(&v->machine->memory))
		return;
	v->populating = false;
	vmm_emit(v, "vm", "populated", NULL);
}

/* ---- memory that comes while the guest runs ---- */

/* On a pager's thread. */
static void post_paging(void *ctx)
{
	struct vmm *v = ctx;

	io_eventfd_signal(v->paging_fd);
}

static void on_paging(void *ctx, uint32_t events)
{
	struct vmm *v = ctx;

	io_eventfd_drain(v->paging_fd);
	if (v->machine)
		vmm_look_at_paging(v);
}

/* ---- what the guest does ---- */

/* On a vCPU's thread. */
static void post_panic(void *ctx, unsigned int events)
{
	struct vmm *v = ctx;

	atomic_fetch_or(&v->panic.events, events);
	io_eventfd_signal(v->panic.event_fd);
}

/* Once for each kind and machine: a guest can panic as often as it likes. */
static void on_panic(void *ctx, uint32_t events)
{
	struct vmm *v = ctx;
	unsigned int new;

	io_eventfd_drain(v->panic.event_fd);
	new = atomic_load(&v->panic.events) & ~v->panic.told;
	v->panic.told |= new;
	if (new && v->machine)
		vmm_emit(v, "vm", "panic",
			 json_pack("{s:b}", "crash_loaded",
				   !(new &PVPANIC_PANICKED)));
}

static void device_removed(void *ctx, const char *id)
{
	struct vmm *v = ctx;

	vmm_emit(v, "device", "device-removed", json_pack("{s:s}", "id", id));
	vm_config_remove_device(&v->cfg, id);
}

/* What a guest was asked for and did not let go ends with its machine. */
void vmm_forget_asked_devices(struct vmm *v)
{
	unsigned int i = 0;

	while (i < v->cfg.num_devices) {
		char id[VM_MAX_NAME];

		if (!v->cfg.devices[i].leaving) {
			i++;
			continue;
		}
		snprintf(id, sizeof(id), "%s", v->cfg.devices[i].id);
		device_removed(v, id);
	}
}

/* ---- the end of a machine ---- */

/* On a vCPU's thread. The first reason counts. */
static void post_end(void *ctx, enum machine_end end, unsigned int code,
		     const char *text)
{
	struct vmm *v = ctx;

	pthread_mutex_lock(&v->ended.lock);
	if (v->ended.end == MACHINE_END_NONE) {
		v->ended.end = end;
		v->ended.code = code;
		snprintf(v->ended.text, sizeof(v->ended.text), "%s", text);
	}
	pthread_mutex_unlock(&v->ended.lock);
	io_eventfd_signal(v->ended.event_fd);
}

static void take_end(struct vmm *v, struct vm_result *ret)
{
	io_eventfd_drain(v->ended.event_fd);
	pthread_mutex_lock(&v->ended.lock);
	*ret = (struct vm_result){
		.end = v->ended.end,
		.code = v->ended.code,
	};
	memcpy(ret->text, v->ended.text, sizeof(ret->text));
	v->ended.end = MACHINE_END_NONE;
	pthread_mutex_unlock(&v->ended.lock);
}

struct machine_end_hooks vmm_loop_hooks(struct vmm *v)
{
	struct vm_result stale;

	take_end(v, &stale);
	atomic_store(&v->panic.events, 0);
	v->panic.told = 0;
	return (struct machine_end_hooks){
		.ended = post_end,
		.interrupted = vmm_signal_waits,
		.keeper_idle = post_idle,
		.paging_event = post_paging,
		.panicked = post_panic,
		.removed = device_removed,
		.ctx = v,
	};
}

static bool restarts(const struct vmm *v, const struct vm_result *res)
{
	if (v->shutting_down)
		return false;
	return ((res->end == MACHINE_END_REBOOT ||
		 res->end == MACHINE_END_WATCHDOG) &&
		v->cfg.on_reboot == VM_ACTION_RESTART) ||
	       (res->end == MACHINE_END_CRASH &&
		v->cfg.on_crash == VM_ACTION_RESTART) ||
	       (res->end == MACHINE_END_PANIC &&
		v->cfg.on_panic == VM_PANIC_RESTART);
}

static const char *reason_of(enum machine_end end)
{
	switch (end) {
	case MACHINE_END_CRASH:
		return "crash";
	case MACHINE_END_PANIC:
		return "panic";
	case MACHINE_END_WATCHDOG:
		return "watchdog";
	case MACHINE_END_NONE:
	case MACHINE_END_POWEROFF:
	case MACHINE_END_REBOOT:
	case MACHINE_END_DEBUG_EXIT:
	case MACHINE_END_ERROR:
		break;
	}
	return "guest";
}

/* A new machine in the place of the one that ended by itself. */
static void restart(struct vmm *v, const struct vm_result *res)
{
	struct err err = ERR_INIT;
	int r;

	log_info("%s %s; restarting",
		 res->end == MACHINE_END_REBOOT ? "guest reboot"
						: "guest crash:",
		 res->text);
	vmm_stop_machine(v);
	r = vmm_start_machine(v, &err);
	if (!r) {
		vmm_emit(v, "vm", "rebooted",
			 json_pack("{s:s}", "reason", reason_of(res->end)));
		return;
	}
	v->state = VMM_SHUTDOWN;
	/* A signal that came meanwhile: its handler is next. */
	if (r == -ECANCELED)
		return;
	vmm_emit(v, "vm", "failed", json_pack("{s:s}", "error", err.text));
	if (v->stays)
		log_error("restarting the VM: %s", err.text);
	else
		vmm_begin_fail(v, r, &err);
}

static const char *event_of(enum machine_end end)
{
	switch (end) {
	case MACHINE_END_CRASH:
	case MACHINE_END_PANIC:
	case MACHINE_END_WATCHDOG:
		return "crashed";
	case MACHINE_END_ERROR:
		return "failed";
	case MACHINE_END_NONE:
	case MACHINE_END_POWEROFF:
	case MACHINE_END_REBOOT:
	case MACHINE_END_DEBUG_EXIT:
		break;
	}
	return "shutdown";
}

static json_t *end_properties(const struct vm_result *res)
{
	switch (res->end) {
	case MACHINE_END_CRASH:
	case MACHINE_END_PANIC:
	case MACHINE_END_WATCHDOG:
	case MACHINE_END_ERROR:
		return json_pack("{s:s}", "error", res->text);
	case MACHINE_END_DEBUG_EXIT:
		return json_pack("{s:s, s:i}", "reason", "guest", "status",
				 (int)(res->code & 0xff));
	case MACHINE_END_NONE:
	case MACHINE_END_POWEROFF:
	case MACHINE_END_REBOOT:
		break;
	}
	return json_pack("{s:s}", "reason", "guest");
}

static void on_ended(void *ctx, uint32_t events)
{
	struct vmm *v = ctx;
	struct vm_result res;

	/*
	 * Whoever paused the VM finds it so until it is resumed, and who is
	 * about to save it, until he has. Who sends it to another process may
	 * take long to come to that: he is told.
	 */
	if (v->state == VMM_PAUSED || vmm_holds_end(v)) {
		io_eventfd_drain(v->ended.event_fd);
		if (v->sending && v->state == VMM_RUNNING)
			vmm_sending_ended(v);
		return;
	}
	take_end(v, &res);
	/* Left over from a machine that a verb ended just then. */
	if (res.end == MACHINE_END_NONE || !v->machine)
		return;
	if (restarts(v, &res)) {
		restart(v, &res);
		return;
	}
	if (v->stays && !v->shutting_down && !v->ending) {
		vmm_stop_machine(v);
		v->state = VMM_SHUTDOWN;
		if (res.end == MACHINE_END_CRASH ||
		    res.end == MACHINE_END_PANIC ||
		    res.end == MACHINE_END_WATCHDOG ||
		    res.end == MACHINE_END_ERROR)
			log_error("the VM ended: %s", res.text);
	} else if (!v->ending) {
		v->result = res;
		v->ending = true;
		evloop_stop(v->loop, 0);
	}
	vmm_emit(v, "vm", event_of(res.end), end_properties(&res));
}

/* ---- opening and closing ---- */

static int open_fds(struct vmm *v, struct err *err)
{
	signals_to_handle(&v->signals);
	pthread_sigmask(SIG_BLOCK, &v->signals, NULL);
	/* A reader that went away is an EPIPE for its chardev, no more. */
	signal(SIGPIPE, SIG_IGN);
	v->signal_fd = signalfd(-1, &v->signals, SFD_CLOEXEC | SFD_NONBLOCK);
	if (v->signal_fd < 0)
		return err_errno(err, errno, "signalfd");
	v->deadline_fd = timerfd_create(CLOCK_MONOTONIC,
					TFD_CLOEXEC | TFD_NONBLOCK);
	if (v->deadline_fd < 0)
		return err_errno(err, errno, "timerfd_create");
	v->ended.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	v->populated_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	v->panic.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	v->paging_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	v->recording_fd = timerfd_create(CLOCK_MONOTONIC,
					 TFD_CLOEXEC | TFD_NONBLOCK);
	if (v->ended.event_fd < 0 || v->populated_fd < 0 ||
	    v->panic.event_fd < 0 || v->paging_fd < 0 || v->recording_fd < 0)
		return err_errno(err, errno, "eventfd");
	return 0;
}

int vmm_loop_open(struct vmm *v, struct err *err)
{
	const struct {
		int *fd;
		evloop_fn fn;
	} watched[] = {
		{ &v->signal_fd, on_signal },
		{ &v->deadline_fd, on_deadline },
		{ &v->ended.event_fd, on_ended },
		{ &v->populated_fd, on_idle },
		{ &v->panic.event_fd, on_panic },
		{ &v->paging_fd, on_paging },
		{ &v->recording_fd, vmm_on_recorded },
	};
	int r = open_fds(v, err);

	if (r)
		return r;
	r = evloop_new(&v->loop);
	for (size_t i = 0; !r && i < ARRAY_SIZE(watched); i++)
		r = evloop_add(v->loop, *watched[i].fd, EPOLLIN, watched[i].fn,
			       v);
	return r ? err_errno(err, -r, "creating the event loop") : 0;
}

void vmm_loop_close(struct vmm *v)
{
	evloop_free(v->loop);
	close_fd(&v->signal_fd);
	close_fd(&v->deadline_fd);
	close_fd(&v->ended.event_fd);
	close_fd(&v->populated_fd);
	close_fd(&v->panic.event_fd);
	close_fd(&v->paging_fd);
	close_fd(&v->recording_fd);
}
