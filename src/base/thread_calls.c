/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The system calls of any thread, whatever it is for. What the C library does
 * before a thread's function runs (set_robust_list, rseq) is not here: the
 * filter is not there yet.
 */
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/thread_class.h"

/* No thread makes code of data. */
#define NOT_EXECUTABLE(name) CALL_MASK(name, 2, PROT_EXEC, 0, "not executable")

const struct thread_call thread_base_calls[] = {
	/* Locks, condition variables, joining. */
	CALL(futex),
	/* Eventfds: wake-ups of other threads and of the guest. The log. */
	CALL(write),
	CALL(read),
	/* malloc, and stacks of threads that were joined. */
	NOT_EXECUTABLE(mmap),
	CALL(munmap),
	NOT_EXECUTABLE(mprotect),
	RARE("a large block of memory grows", mremap),
	CALL(madvise),
	RARE("the first heap of the C library grows", brk),
	/* A vCPU is to leave the guest; abort(). */
	CALL_OWN_PID(tgkill, 0),
	/* Leaving: a thread, the process. */
	CALL(exit),
	CALL(rt_sigprocmask),
	RARE("the process ends", exit_group),
	RARE("a signal was handled", rt_sigreturn),
	/* abort() and the report of a forbidden call. */
	RARE("abort", rt_sigaction),
	RARE("abort", gettid),
	CALL(getpid),
	RARE("the C library reports a broken heap", writev),
	RARE_IOCTL("a dying thread gives the terminal back", TIOCGPGRP),
	RARE_IOCTL("a dying thread gives the terminal back", TCSETS),
	RARE("a dying thread gives the terminal back", getpgrp),
	/* Time, where the kernel's vDSO cannot tell it. */
	RARE("the host's clock source is not the TSC", clock_gettime),
	RARE("the host's clock source is not the TSC", gettimeofday),
	RARE("a call was interrupted by a stop", restart_syscall),
	/* Spinning locks of the C library. */
	RARE("a lock is contended", sched_yield),
};

const size_t num_thread_base_calls = ARRAY_SIZE(thread_base_calls);

/*
 * What the sanitizers' run time does besides, in any thread; a sanitized build
 * is for tests. To look for leaks it forks a tracer off, which would die in
 * silence of the filter and leave its parent waiting.
 */
#ifdef QUIRE_SANITIZE
static const struct thread_call sanitizer_calls[] = {
	RARE("sanitizer", sigaltstack),
	RARE("sanitizer", prctl),
	RARE("sanitizer", openat),
	RARE("sanitizer", open),
	RARE("sanitizer", close),
	RARE("sanitizer", readlink),
	RARE("sanitizer", readlinkat),
	RARE("sanitizer", newfstatat),
	RARE("sanitizer", fstat),
	RARE("sanitizer", stat),
	RARE("sanitizer", lseek),
	RARE("sanitizer", pipe),
	RARE("sanitizer", pipe2),
	RARE("sanitizer", clone),
	RARE("sanitizer", ptrace),
	RARE("sanitizer", wait4),
	RARE("sanitizer", kill),
	RARE("sanitizer", getppid),
	RARE("sanitizer", process_vm_readv),
	RARE("sanitizer", getrlimit),
	RARE("sanitizer", prlimit64),
	RARE("sanitizer", sched_getaffinity),
	RARE("sanitizer", getdents),
	RARE("sanitizer", getdents64),
	RARE("sanitizer", uname),
	RARE("sanitizer", dup),
	RARE("sanitizer", dup2),
	RARE("sanitizer", fork),
	RARE("sanitizer", execve),
	RARE("sanitizer", ioctl),
	RARE("sanitizer", nanosleep),
	RARE("sanitizer", clock_nanosleep),
	/* It starts a program that names places in the code. */
	RARE("symbolizer", mmap),
	RARE("symbolizer", mprotect),
	RARE("symbolizer", arch_prctl),
	RARE("symbolizer", set_tid_address),
	RARE("symbolizer", set_robust_list),
	RARE("symbolizer", rseq),
	RARE("symbolizer", access),
	RARE("symbolizer", getrandom),
	RARE("symbolizer", pread64),
};

const struct thread_call *const thread_sanitizer_calls = sanitizer_calls;
const size_t num_thread_sanitizer_calls = ARRAY_SIZE(sanitizer_calls);
#else
const struct thread_call *const thread_sanitizer_calls = NULL;
const size_t num_thread_sanitizer_calls = 0;
#endif
