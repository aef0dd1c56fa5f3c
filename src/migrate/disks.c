/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/disks.h"

#include <errno.h>
#include <string.h>

#include "vm/machine.h"

struct blockdev *migrate_disk_of(const struct machine *m, unsigned int i)
{
	struct virtio_dev *dev = virtio_pci_dev(m->devices[i]);
	struct blockdev *image = dev->cls->image ? dev->cls->image(dev) : NULL;

	return image && !blockdev_readonly(image) ? image : NULL;
}

void migrate_disks_of(const struct machine *m, struct migrate_disks *ret)
{
	ret->num = 0;
	for (unsigned int i = 0; i < m->num_devices; i++) {
		struct blockdev *image = migrate_disk_of(m, i);

		if (image)
			ret->list[ret->num++] = image;
	}
}

void migrate_disks_arrange(const struct migrate_disks *ours,
			   const struct wire_machine *shape,
			   const struct wire_machine *theirs,
			   struct migrate_disks *ret)
{
	ret->num = theirs->num_disks;
	for (unsigned int i = 0; i < theirs->num_disks; i++) {
		const struct wire_disk *d = &theirs->disks[i];
		const char *id = theirs->devices[d->device].id;
		unsigned int k = 0;

		while (strcmp(shape->devices[shape->disks[k].device].id, id) !=
		       0) {
			k++;
			BUG_ON(k >= shape->num_disks); /* was compared */
		}
		ret->list[i] = ours->list[k];
	}
}

/* Asked for, a device goes when its guest likes. */
static int check_stays(const struct machine *m, struct err *err)
{
	for (unsigned int i = 0; i < m->num_devices; i++) {
		if (migrate_disk_of(m, i) && machine_removal_requested(m, i))
			return err_set(
				err, EBUSY,
				"the guest was asked to let disk '%s' go, and "
				"has not yet: it cannot be copied",
				virtio_pci_dev(m->devices[i])->config_id);
	}
	return 0;
}

int migrate_disks_track(const struct machine *m,
			const struct migrate_disks *disks, struct err *err)
{
	int r = check_stays(m, err);

	if (r)
		return r;
	for (unsigned int i = 0; !r && i < disks->num; i++)
		r = block_track_start(blockdev_track(disks->list[i]),
				      blockdev_size(disks->list[i]));
	if (!r)
		return 0;
	migrate_disks_untrack(disks);
	return err_errno(err, -r, "noting what is written to disks");
}

void migrate_disks_untrack(const struct migrate_disks *disks)
{
	for (unsigned int i = 0; i < disks->num; i++)
		block_track_stop(blockdev_track(disks->list[i]));
}

uint64_t migrate_disks_dirty(const struct migrate_disks *disks)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < disks->num; i++)
		sum += block_track_count(blockdev_track(disks->list[i]));
	return sum * BLOCK_CLUSTER_BYTES;
}
