/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Take io_uring away from this process for good, as a container or a sysctl
 * would: for tests of the fallback, in a child of their own.
 */
#ifndef QUIRE_TESTS_NO_URING_H
#define QUIRE_TESTS_NO_URING_H

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/compiler.h"
#include "base/log.h"

static inline void forbid_io_uring(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
			 offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { ARRAY_SIZE(code), code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))
		_exit(2);
}

/* Run a group of tests in a child without io_uring; all must pass. */
#define run_without_io_uring(name, tests)                                    \
	do {                                                                 \
		pid_t _pid = fork();                                         \
		int _status;                                                 \
                                                                             \
		assert_true(_pid >= 0);                                      \
		if (_pid == 0) {                                             \
			log_set_level(LOG_LEVEL_ERROR);                      \
			forbid_io_uring();                                   \
			_exit(cmocka_run_group_tests_name(name, tests, NULL, \
							  NULL));            \
		}                                                            \
		assert_int_equal(waitpid(_pid, &_status, 0), _pid);          \
		assert_int_equal(_status, 0);                                \
	} while (0)

#endif
