/* SPDX-License-Identifier: Apache-2.0 */
#include "sandbox/trap.h"

#include <errno.h>
#include <seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/log.h"
#include "base/thread.h"

/* Above the newest call by far; x32 and the like are no calls of ours. */
#define MAX_CALLS 512

#ifndef SYS_SECCOMP /* of siginfo_t.si_code; <asm/siginfo.h> */
#define SYS_SECCOMP 1
#endif

/* Filled before there are filters, for looking names up allocates. */
static struct {
	char names[MAX_CALLS][32];
	void (*dying)(void);
} trap;

/* Text in a bounded buffer without the C library: this is a signal handler. */
struct text {
	char buf[320];
	size_t len;
};

static void add(struct text *t, const char *s)
{
	while (*s && t->len < sizeof(t->buf) - 1)
		t->buf[t->len++] = *s++;
}

static void add_number(struct text *t, uint64_t v, unsigned int base)
{
	char digits[24];
	size_t i = sizeof(digits) - 1;

	digits[i] = '\0';
	do
		digits[--i] = "0123456789abcdef"[v % base];
	while ((v /= base));
	add(t, digits + i);
}

const char *sandbox_call_name(int nr)
{
	if (nr < 0 || nr >= MAX_CALLS || !trap.names[nr][0])
		return NULL;
	return trap.names[nr];
}

static void describe(struct text *t, const siginfo_t *info,
		     const ucontext_t *context)
{
	const char *name = sandbox_call_name(info->si_syscall);

	add(t, "\r\nquire: thread ");
	add(t, thread_own_name());
	add(t, ": system call ");
	add(t, name ? name : "?");
	add(t, " (");
	add_number(t, (uint32_t)info->si_syscall, 10);
	if (info->si_syscall == SYS_ioctl || info->si_syscall == SYS_fcntl) {
		add(t, ", request 0x");
		add_number(t, (uint32_t)context->uc_mcontext.gregs[REG_RSI],
			   16);
	}
	add(t, ") is not allowed and ends quire; please report it as a bug "
	       "(quire run --seccomp log or off works around it)\r\n");
}

static void on_sigsys(int sig, siginfo_t *info, void *context)
{
	struct sigaction by_default = { .sa_handler = SIG_DFL };
	struct text text = { .len = 0 };
	sigset_t set;
	ssize_t n;

	if (info->si_code == SYS_SECCOMP) {
		describe(&text, info, context);
		/* Plain lines where the terminal is not raw. */
		n = log_is_raw_terminal() ? 0 : 2;
		if (n)
			text.buf[text.len - 2] = '\n';
		n = write(STDERR_FILENO, text.buf + n, text.len - (n ? 3 : 0));
		(void)n;
	}
	if (trap.dying)
		trap.dying();
	sigaction(SIGSYS, &by_default, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGSYS);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	raise(sig);
}

int sandbox_trap_init(void (*dying)(void), struct err *err)
{
	struct sigaction sa = {
		.sa_sigaction = on_sigsys,
		.sa_flags = SA_SIGINFO,
	};
	sigset_t set;

	for (int nr = 0; nr < MAX_CALLS; nr++) {
		char *name = seccomp_syscall_resolve_num_arch(SCMP_ARCH_X86_64,
							      nr);

		if (name)
			strncpy(trap.names[nr], name,
				sizeof(trap.names[nr]) - 1);
		free(name);
	}
	trap.dying = dying;
	sigemptyset(&sa.sa_mask);
	sigemptyset(&set);
	sigaddset(&set, SIGSYS);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	return sigaction(SIGSYS, &sa, NULL)
		       ? err_errno(err, errno, "sigaction(SIGSYS)")
		       : 0;
}
