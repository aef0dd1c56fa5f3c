/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What kind of thread it is, and which system calls that kind makes.
 *
 * A class stands beside the code of its threads, and lists each call with what
 * of it is needed there. sandbox/ turns the list into a seccomp filter. To the
 * list of a class come thread_base_calls, which the C library and the log need
 * in any thread.
 *
 * A call is allowed as a whole (CALL), only with some value in an argument
 * (CALL_ARG, CALL_MASK), or only for certain requests of ioctl and commands of
 * fcntl (CALL_IOCTL, CALL_FCNTL). Kernels compare numbers, not what pointers
 * point to. RARE in front says that a call belongs to a case which an ordinary
 * run does not come to (the text names it); tests hold that all others are
 * used.
 */
#ifndef QUIRE_BASE_THREAD_CLASS_H
#define QUIRE_BASE_THREAD_CLASS_H

#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>

#include "base/compiler.h"

struct thread_call {
	int nr;
	unsigned int arg; /* 1 for the first argument; 0: whatever they are */
	uint64_t mask, value; /* (argument & mask) == value */
	bool own_pid;	      /* value is the number of this process */
	const char *text;     /* the value in words; NULL without one */
	const char *rare;     /* when it happens, if it is rare */
};

#define CALL(name)                           \
	{                                    \
		.nr = SYS_##name, .text = "" \
	}
#define CALL_MASK(name, index, m, v, words)                         \
	{                                                           \
		.nr = SYS_##name, .arg = (index) + 1u, .mask = (m), \
		.value = (uint64_t)(v), .text = (words)             \
	}
/* Arguments that are 32 bits wide: the rest of the register is not looked at.
 */
#define CALL_VALUE(name, index, v, words) \
	CALL_MASK(name, index, UINT32_MAX, (uint32_t)(v), words)
/* Each names v by itself: in a macro further down it would be a number. */
#define CALL_ARG(name, index, v) CALL_VALUE(name, index, v, #v)
#define CALL_IOCTL(request)	 CALL_VALUE(ioctl, 1, request, #request)
#define CALL_FCNTL(command)	 CALL_VALUE(fcntl, 1, command, #command)

#define RARE(when, name)                                      \
	{                                                     \
		.nr = SYS_##name, .text = "", .rare = (when), \
	}
#define RARE_VALUE(when, name, index, v, words)                            \
	{                                                                  \
		.nr = SYS_##name, .arg = (index) + 1u, .mask = UINT32_MAX, \
		.value = (uint32_t)(v), .text = (words), .rare = (when),   \
	}
#define RARE_ARG(when, name, index, v) RARE_VALUE(when, name, index, v, #v)
#define RARE_IOCTL(when, request)      RARE_VALUE(when, ioctl, 1, request, #request)
#define RARE_FCNTL(when, command)      RARE_VALUE(when, fcntl, 1, command, #command)

/* Signals of threads to each other; to no other process. */
#define CALL_OWN_PID(name, index)                                          \
	{                                                                  \
		.nr = SYS_##name, .arg = (index) + 1u, .mask = UINT32_MAX, \
		.own_pid = true, .text = "own"                             \
	}

/* openat(2) that neither writes nor makes anything. */
#define RARE_READ_ONLY(when)                                              \
	{                                                                 \
		.nr = SYS_openat, .arg = 3,                               \
		.mask = O_ACCMODE | O_CREAT | O_TRUNC, .value = O_RDONLY, \
		.text = "O_RDONLY", .rare = (when),                       \
	}

struct thread_class {
	const char *name; /* "vcpu" */
	const char *what; /* one line for people: "runs the guest's CPU" */
	const struct thread_call *calls;
	size_t num_calls;
	/* What thread_spec.prepare makes besides; not allowed afterwards. */
	const struct thread_call *prepare_calls;
	size_t num_prepare_calls;
	/* Another class whose work these threads do as well. May be NULL. */
	const struct thread_class *also;
};

#define THREAD_CALLS(array) .calls = (array), .num_calls = ARRAY_SIZE(array)

/* What every thread may do: the C library's own needs, and the log. */
extern const struct thread_call thread_base_calls[];
extern const size_t num_thread_base_calls;

/* And what a sanitized build does in any thread; NULL in others. */
extern const struct thread_call *const thread_sanitizer_calls;
extern const size_t num_thread_sanitizer_calls;

/*
 * Threads of measuring tools (bench, probe), which are never confined; cannot
 * be started in a process that is.
 */
extern const struct thread_class thread_class_tool;

#endif
