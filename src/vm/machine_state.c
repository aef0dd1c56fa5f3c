/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. Section "machine" says what the machine is made of, a
 * "device" for each virtio device where it is plugged; both are compared with
 * the machine that is to be loaded, before anything of that is changed. The
 * parts save and load themselves.
 *
 * The order of loading: vCPUs with their LAPICs, then what sends interrupts to
 * them (irqchip, platform, PCI devices). Time stands still while a machine is
 * paused (machine.c): what is saved is what the clocks were at the pause, and
 * loading makes it a machine that was paused just now.
 */
#include "vm/machine_state.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "base/clock.h"
#include "kvm/irq_state.h"
#include "vm/machine_priv.h"
#include "x86/cpu_state.h"

/* ---- what it is made of ---- */

#define CLASS_BYTES 16

struct machine_state {
	uint32_t num_cpus, threads_per_core;
	uint64_t memory_bytes;
	uint8_t irqchip;
	uint8_t num_devices;
	bool has_kvmclock;
	uint64_t kvmclock_ns;
};

#define M(kind, member, ...) \
	STATE_FIELD_##kind(struct machine_state, member, __VA_ARGS__)

static const struct state_field machine_fields[] = {
	M(UINT, num_cpus, 1),	  M(UINT, threads_per_core, 2),
	M(UINT, memory_bytes, 3), M(UINT, irqchip, 4),
	M(UINT, num_devices, 5),  M(BOOL, has_kvmclock, 6),
	M(UINT, kvmclock_ns, 7),
};

static const char *irqchip_name(uint8_t kind)
{
	return kind == IRQCHIP_KERNEL ? "kernel" : "split";
}

static int machine_check(const struct state_check *c, const void *loaded,
			 const void *live)
{
	const struct machine_state *s = loaded, *here = live;

	if (s->num_cpus != here->num_cpus)
		return state_refuse(c, "num_cpus",
				    "saved with %u CPUs, this machine has %u",
				    s->num_cpus, here->num_cpus);
	if (s->threads_per_core != here->threads_per_core)
		return state_refuse(c, "threads_per_core",
				    "saved with %u, this machine has %u",
				    s->threads_per_core,
				    here->threads_per_core);
	if (s->memory_bytes != here->memory_bytes)
		return state_refuse(
			c, "memory_bytes",
			"saved with %llu MiB of memory, this machine has %llu",
			(unsigned long long)(s->memory_bytes / MIB),
			(unsigned long long)(here->memory_bytes / MIB));
	if (s->irqchip != here->irqchip)
		return state_refuse(c, "irqchip",
				    "saved with irqchip %s, this machine has "
				    "%s",
				    irqchip_name(s->irqchip),
				    irqchip_name(here->irqchip));
	if (s->num_devices != here->num_devices)
		return state_refuse(c, "num_devices",
				    "saved with %u devices, this machine has "
				    "%u",
				    s->num_devices, here->num_devices);
	return 0;
}

static const struct state_table machine_table = {
	.section = "machine",
	.version = 1,
	.object_bytes = sizeof(struct machine_state),
	.fields = machine_fields,
	.num_fields = ARRAY_SIZE(machine_fields),
	.check = machine_check,
};

static struct machine_state machine_state_of(const struct machine *m)
{
	return (struct machine_state){
		.num_cpus = m->num_vcpus,
		.threads_per_core = m->cfg->threads_per_core,
		.memory_bytes = ram_size(&m->memory.ram),
		.irqchip = (uint8_t)irq_router_kind(m->router),
		.num_devices = (uint8_t)m->num_devices,
		.has_kvmclock = m->clocks.has_kvmclock,
		.kvmclock_ns = m->clocks.kvmclock_ns,
	};
}

/* ---- where its devices are ---- */

struct device_state {
	char cls[CLASS_BYTES]; /* padded with zeroes */
	uint8_t slot;
};

static const struct state_field device_fields[] = {
	STATE_FIELD_BYTES(struct device_state, cls, 1),
	STATE_FIELD_UINT(struct device_state, slot, 2,
			 .max = PCI_HOST_SLOTS - 1),
};

static int device_check(const struct state_check *c, const void *loaded,
			const void *live)
{
	const struct device_state *s = loaded, *here = live;

	if (memcmp(s->cls, here->cls, CLASS_BYTES) != 0)
		return state_refuse(c, "cls",
				    "not a virtio-%.*s device, as it is in "
				    "this machine",
				    CLASS_BYTES, here->cls);
	if (!s->slot)
		return state_refuse(c, "slot", "0 is the host bridge's");
	return 0;
}

static const struct state_table device_table = {
	.section = "device",
	.version = 1,
	.object_bytes = sizeof(struct device_state),
	.fields = device_fields,
	.num_fields = ARRAY_SIZE(device_fields),
	.check = device_check,
};

static struct device_state device_state_of(struct virtio_pci *vpci)
{
	struct device_state s = {
		.slot = virtio_pci_devfn(vpci) >> 3,
	};

	strncpy(s.cls, virtio_pci_dev(vpci)->cls->name, CLASS_BYTES - 1);
	return s;
}

static const char *device_id(const struct machine *m, unsigned int i)
{
	return virtio_pci_dev(m->devices[i])->config_id;
}

/* All out of their slots first: they may have to change places. */
static int move_devices(struct machine *m, const uint8_t *slots,
			struct err *err)
{
	bool moves[VM_MAX_DEVICES];
	int r = 0;

	for (unsigned int i = 0; i < m->num_devices; i++) {
		moves[i] = slots[i] != virtio_pci_devfn(m->devices[i]) >> 3;
		if (moves[i])
			virtio_pci_unplug(m->devices[i]);
	}
	for (unsigned int i = 0; i < m->num_devices && !r; i++) {
		r = moves[i] ? virtio_pci_plug(m->devices[i], slots[i]) : 0;
		if (r)
			err_errno(err, -r, "%s: PCI slot %u", device_id(m, i),
				  slots[i]);
	}
	return r;
}

static int load_places(struct machine *m, struct state_reader *r,
		       struct err *err)
{
	uint8_t slots[VM_MAX_DEVICES];

	for (unsigned int i = 0; i < m->num_devices; i++) {
		struct device_state s = device_state_of(m->devices[i]);
		int ret;

		if (!state_has(r, device_table.section, device_id(m, i)))
			return err_set(err, EINVAL,
				       "the saved machine has no device '%s', "
				       "as this one has",
				       device_id(m, i));
		ret = state_load(r, &device_table, device_id(m, i), &s, err);
		if (ret)
			return ret;
		slots[i] = s.slot;
	}
	return move_devices(m, slots, err);
}

/* ---- saving ---- */

static int drain(struct machine *m, struct err *err)
{
	uint64_t until = clock_now_ns() + MACHINE_DRAIN_MS * NSEC_PER_MSEC;

	for (unsigned int i = 0; i < m->num_devices; i++) {
		int r = virtio_dev_drain(virtio_pci_dev(m->devices[i]), until,
					 err);

		if (r)
			return r;
	}
	return 0;
}

/* Asked before anything is waited for. */
int machine_check_saved(const struct machine *m, struct err *err)
{
	for (unsigned int i = 0; i < m->num_devices; i++) {
		int r = virtio_dev_check_saved(virtio_pci_dev(m->devices[i]),
					       err);

		if (r)
			return r;
	}
	return 0;
}

static int save_vcpus(struct machine *m, struct state_writer *w,
		      struct err *err)
{
	for (unsigned int i = 0; i < m->num_vcpus; i++) {
		int r = cpu_state_save(vcpu_kvm(m->vcpus[i]),
				       m->clocks.host_tsc, w, err);

		if (r)
			return r;
	}
	return irq_router_kind(m->router) == IRQCHIP_KERNEL
		       ? irq_state_save(&m->vm, w, err)
		       : 0;
}

static int save_devices(struct machine *m, struct state_writer *w,
			struct err *err)
{
	pci_host_save(m->pci, w);
	for (unsigned int i = 0; i < m->num_devices; i++) {
		struct device_state s = device_state_of(m->devices[i]);
		int r;

		state_save(w, &device_table, device_id(m, i), &s);
		r = virtio_pci_save(m->devices[i], w, err);
		if (r)
			return r;
	}
	return 0;
}

int machine_save(struct machine *m, struct state_writer *w, struct err *err)
{
	const struct machine_state s = machine_state_of(m);
	int r;

	if (!m->paused)
		return err_set(err, EBADFD, "the machine is not paused");
	r = machine_check_saved(m, err);
	if (!r)
		r = drain(m, err);
	if (r)
		return r;
	state_save(w, &machine_table, NULL, &s);
	r = save_vcpus(m, w, err);
	if (!r)
		r = platform_save(m->platform, m->clocks.host_ns, w, err);
	return r ? r : save_devices(m, w, err);
}

/* ---- loading ---- */

static int load_vcpus(struct machine *m, struct state_reader *r,
		      struct err *err)
{
	for (unsigned int i = 0; i < m->num_vcpus; i++) {
		int ret = cpu_state_load(vcpu_kvm(m->vcpus[i]),
					 m->clocks.host_tsc, r, err);

		if (ret)
			return ret;
	}
	return irq_router_kind(m->router) == IRQCHIP_KERNEL
		       ? irq_state_load(&m->vm, r, err)
		       : 0;
}

static int load_devices(struct machine *m, struct state_reader *r,
			struct err *err)
{
	int ret = pci_host_load(m->pci, r, err);

	for (unsigned int i = 0; i < m->num_devices && !ret; i++)
		ret = virtio_pci_load(m->devices[i], r, err);
	return ret;
}

int machine_load(struct machine *m, struct state_reader *r, struct err *err)
{
	struct machine_state s = machine_state_of(m);
	int ret;

	BUG_ON(!m->restore || m->paused);
	ret = state_load(r, &machine_table, NULL, &s, err);
	if (!ret)
		ret = load_places(m, r, err);
	if (ret)
		return ret;
	machine_begin_paused(m, s.has_kvmclock, s.kvmclock_ns);
	ret = load_vcpus(m, r, err);
	if (!ret)
		ret = platform_load(m->platform, m->clocks.host_ns, r, err);
	if (!ret)
		ret = load_devices(m, r, err);
	if (!ret)
		ret = state_reader_finish(r, err);
	if (ret)
		return ret;
	for (unsigned int i = 0; i < m->num_devices; i++)
		virtio_pci_interrupt_all(m->devices[i]);
	return 0;
}
