/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/shape.h"

#include <stdio.h>
#include <string.h>

#include "migrate/disks.h"
#include "vm/machine.h"

static void list_disks(const struct machine *m, struct wire_machine *ret)
{
	for (unsigned int i = 0; i < m->num_devices; i++) {
		struct blockdev *image = migrate_disk_of(m, i);

		if (image)
			ret->disks[ret->num_disks++] = (struct wire_disk){
				.device = i,
				.bytes = blockdev_size(image),
			};
	}
}

void migrate_shape(const struct machine *m, struct wire_machine *ret)
{
	const struct ram *ram = &m->memory.ram;

	memset(ret, 0, sizeof(*ret));
	ret->memory_bytes = ram_size(ram);
	ret->num_cpus = m->num_vcpus;
	ret->threads_per_core = m->cfg->threads_per_core;
	ret->irqchip = (uint8_t)irq_router_kind(m->router);
	ret->num_regions = ram->num_regions;
	for (unsigned int i = 0; i < ram->num_regions; i++)
		ret->regions[i] = (struct wire_range){
			.start = ram->regions[i].base.v,
			.len = ram->regions[i].size,
		};
	ret->num_devices = m->num_devices;
	for (unsigned int i = 0; i < m->num_devices; i++) {
		const struct virtio_dev *dev = virtio_pci_dev(m->devices[i]);
		struct wire_device *d = &ret->devices[i];

		snprintf(d->cls, sizeof(d->cls), "%s", dev->cls->name);
		snprintf(d->id, sizeof(d->id), "%s", dev->config_id);
	}
	list_disks(m, ret);
}
