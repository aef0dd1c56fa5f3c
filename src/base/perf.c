/* SPDX-License-Identifier: Apache-2.0 */
#include "base/perf.h"

#include <errno.h>
#include <linux/perf_event.h>
#include <sys/syscall.h>
#include <unistd.h>

int perf_open(uint32_t type, uint64_t config, pid_t tid, bool guest_only)
{
	struct perf_event_attr attr = {
		.type = type,
		.size = sizeof(attr),
		.config = config,
		.read_format = PERF_FORMAT_TOTAL_TIME_ENABLED |
			       PERF_FORMAT_TOTAL_TIME_RUNNING,
		.exclude_host = guest_only,
	};
	long fd = syscall(SYS_perf_event_open, &attr, tid, -1, -1,
			  PERF_FLAG_FD_CLOEXEC);

	return fd < 0 ? -errno : (int)fd;
}

int perf_read(int fd, uint64_t *ret)
{
	struct {
		uint64_t value, enabled, running;
	} got;
	ssize_t n = read(fd, &got, sizeof(got));

	if (n < 0)
		return -errno;
	if (n != sizeof(got))
		return -EIO;
	if (got.running >= got.enabled) {
		*ret = got.value;
		return 0;
	}
	if (!got.running)
		return -ENODATA;
	*ret = (uint64_t)((unsigned __int128)got.value * got.enabled /
			  got.running);
	return 0;
}
