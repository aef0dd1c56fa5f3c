/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The devices of a machine: those it is built with, and those that come and go
 * while it runs.
 *
 * Removal takes three steps: machine_request_removal() has the guest asked
 * (device/pci_hotplug.h); the guest's eject makes the function vanish from its
 * sight, on the vCPU's thread; machine_device_ejected() takes the device apart
 * on the control thread, with the vCPUs running on (pci_host_unplug() waits for
 * those that are still in the device's code).
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "device/pci_hotplug.h"
#include "vm/machine_priv.h"

static unsigned int slot_of(const struct virtio_pci *vpci)
{
	return virtio_pci_devfn(vpci) >> 3;
}

/* VM_MAX_DEVICES: there is none. */
static unsigned int find(const struct machine *m, const char *id)
{
	for (unsigned int i = 0; i < m->num_devices; i++)
		if (!strcmp(virtio_pci_dev(m->devices[i])->config_id, id))
			return i;
	return VM_MAX_DEVICES;
}

/* The lowest number that no device of the class has. */
static unsigned int free_index(const struct machine *m,
			       const struct virtio_class *cls)
{
	bool used[VM_MAX_DEVICES] = { false };
	unsigned int index = 0;

	for (unsigned int i = 0; i < m->num_devices; i++)
		if (virtio_pci_dev(m->devices[i])->cls == cls)
			used[m->device_index[i]] = true;
	while (index < VM_MAX_DEVICES - 1 && used[index])
		index++;
	return index;
}

static int build_device(struct machine *m, const struct vm_device_config *cfg,
			struct err *err)
{
	unsigned int index = free_index(m, cfg->cls);
	struct virtio_dev *dev;
	int r;

	if (m->num_devices == VM_MAX_DEVICES)
		return err_set(err, ENOSPC,
			       "the machine has %d devices already, and no "
			       "PCI slot for more",
			       VM_MAX_DEVICES);
	r = cfg->cls->create(&dev, cfg->config, &m->memory.ram,
			     m->cfg->num_cpus, index, err);
	if (r)
		return r;
	snprintf(dev->config_id, sizeof(dev->config_id), "%s", cfg->id);
	/* It begins to serve when the others go on. */
	if (m->paused)
		virtio_dev_hold(dev, true);
	r = virtio_pci_new(&m->devices[m->num_devices], dev, m->pci, &m->vm,
			   m->router, err);
	if (!r)
		m->device_index[m->num_devices++] = index;
	return r;
}

int machine_build_devices(struct machine *m, struct err *err)
{
	for (unsigned int i = 0; i < m->cfg->num_devices; i++) {
		int r = build_device(m, &m->cfg->devices[i], err);

		if (r)
			return r;
	}
	return 0;
}

void machine_free_devices(struct machine *m)
{
	while (m->num_devices > 0)
		virtio_pci_free(m->devices[--m->num_devices]);
}

int machine_add_device(struct machine *m, const struct vm_device_config *dev,
		       uint8_t *ret_devfn, struct err *err)
{
	struct virtio_pci *vpci;
	int r = build_device(m, dev, err);

	if (r)
		return r;
	vpci = m->devices[m->num_devices - 1];
	pci_hotplug_added(platform_hotplug(m->platform), slot_of(vpci));
	*ret_devfn = virtio_pci_devfn(vpci);
	log_info("%s: added in PCI slot %u", virtio_pci_dev(vpci)->id,
		 slot_of(vpci));
	return 0;
}

int machine_request_removal(struct machine *m, const char *id, struct err *err)
{
	unsigned int i = find(m, id);

	if (i == VM_MAX_DEVICES)
		return err_set(err, ENOENT, "there is no device %s", id);
	pci_hotplug_request(platform_hotplug(m->platform),
			    slot_of(m->devices[i]));
	return 0;
}

bool machine_removal_requested(const struct machine *m, unsigned int i)
{
	return pci_hotplug_requested(platform_hotplug(m->platform),
				     slot_of(m->devices[i]));
}

void machine_device_count(const struct virtio_dev *dev,
			  struct machine_gone_devices *sum)
{
	sum->num++;
	sum->errors += atomic_load(&dev->errors);
	for (unsigned int i = 0; i < dev->num_queues; i++) {
		const struct virtio_queue *q = &dev->queues[i];

		sum->requests += atomic_load(&q->requests);
		sum->kicks += atomic_load(&q->kicks);
		sum->interrupts += atomic_load(&q->interrupts);
	}
}

static void forget(struct machine *m, unsigned int i)
{
	unsigned int after = m->num_devices - i - 1;

	memmove(&m->devices[i], &m->devices[i + 1],
		after * sizeof(struct virtio_pci *));
	memmove(&m->device_index[i], &m->device_index[i + 1],
		after * sizeof(m->device_index[0]));
	m->num_devices--;
}

static void remove_device(struct machine *m, unsigned int i)
{
	struct virtio_pci *vpci = m->devices[i];
	const struct virtio_dev *dev = virtio_pci_dev(vpci);
	char id[sizeof(dev->config_id)];

	memcpy(id, dev->config_id, sizeof(id));
	log_info("%s: removed", dev->id);
	machine_device_count(dev, &m->gone);
	forget(m, i);
	virtio_pci_free(vpci);
	if (m->hooks.removed)
		m->hooks.removed(m->hooks.ctx, id);
}

void machine_device_ejected(void *ctx, unsigned int slot)
{
	struct machine *m = ctx;

	for (unsigned int i = 0; i < m->num_devices; i++) {
		if (slot_of(m->devices[i]) == slot) {
			remove_device(m, i);
			return;
		}
	}
}

static int hand_over(struct virtio_pci *vpci, bool take, struct err *err)
{
	struct virtio_dev *dev = virtio_pci_dev(vpci);

	return dev->cls->hand_over ? dev->cls->hand_over(dev, take, err) : 0;
}

int machine_hand_over(struct machine *m, bool take, struct err *err)
{
	unsigned int done = 0;
	int r = 0;

	while (!r && done < m->num_devices) {
		r = hand_over(m->devices[done], take, err);
		done += !r;
	}
	if (!r)
		return 0;
	while (done)
		(void)!hand_over(m->devices[--done], !take, NULL);
	return r;
}

void machine_announce(const struct machine *m)
{
	for (unsigned int i = 0; i < m->num_devices; i++) {
		struct virtio_dev *dev = virtio_pci_dev(m->devices[i]);

		if (dev->cls->announce)
			dev->cls->announce(dev);
	}
}
