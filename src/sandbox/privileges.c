/* SPDX-License-Identifier: Apache-2.0 */
#include "sandbox/privileges.h"

#include <errno.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* 64 bits, so that two of the kernel's structs hold them. */
#define MAX_CAPABILITIES 64

static int set_capabilities(const struct __user_cap_data_struct data[2])
{
	struct __user_cap_header_struct head = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};

	return syscall(SYS_capset, &head, data) ? -errno : 0;
}

/* Needs CAP_SETPCAP; without it there is no way back to a capability anyhow. */
static void empty_bounding_set(void)
{
	for (int cap = 0; cap < MAX_CAPABILITIES; cap++)
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0))
			return;
}

int sandbox_drop_capabilities(struct err *err)
{
	static const struct __user_cap_data_struct none[2];
	int r;

	empty_bounding_set();
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) &&
	    errno != EINVAL)
		return err_errno(err, errno, "dropping ambient capabilities");
	r = set_capabilities(none);
	return r ? err_errno(err, -r, "dropping capabilities") : 0;
}

int sandbox_raise_capabilities(void)
{
	struct __user_cap_header_struct head = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &head, data))
		return -errno;
	for (int i = 0; i < 2; i++)
		data[i].effective = data[i].permitted;
	return set_capabilities(data);
}

int sandbox_set_no_new_privs(struct err *err)
{
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		       ? err_errno(err, errno, "no_new_privs")
		       : 0;
}
