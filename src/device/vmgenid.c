/* SPDX-License-Identifier: Apache-2.0 */
#include "device/vmgenid.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "mem/ram.h"
#include "x86/layout.h"

struct vmgenid {
	struct vmgenid_config cfg;
};

static int write_id(struct vmgenid *v, struct err *err)
{
	uint8_t id[VMGENID_BYTES];
	int r;

	/* Up to 256 bytes come whole, if not before the host has entropy. */
	if (getrandom(id, sizeof(id), 0) != sizeof(id))
		return err_errno(err, errno, "VM generation id: getrandom");
	r = mem_write(v->cfg.ram, GPA(LAYOUT_VMGENID), id, sizeof(id));
	return r < 0 ? err_errno(err, -r,
				 "VM generation id: guest memory at %#llx",
				 LAYOUT_VMGENID)
		     : 0;
}

int vmgenid_new(struct vmgenid **ret, const struct vmgenid_config *cfg,
		struct err *err)
{
	struct vmgenid *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return err_set(err, ENOMEM, "out of memory");
	v->cfg = *cfg;
	r = cfg->keep ? 0 : write_id(v, err);
	if (r) {
		free(v);
		return r;
	}
	*ret = v;
	return 0;
}

void vmgenid_free(struct vmgenid *v)
{
	free(v);
}

int vmgenid_renew(struct vmgenid *v, struct err *err)
{
	int r = write_id(v, err);

	if (!r)
		v->cfg.event(v->cfg.ctx);
	return r;
}
