/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The order of building matters, and is the order of the functions below:
 * VM, dirty log and irqchip before vCPUs (KVM wants that); RAM advised and its
 * slots registered before devices map anything; vCPUs with their CPUID before
 * population, which fills the second stage through them; devices before the
 * boot tables that describe them; vCPU state last.
 */
#include "vm/machine_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/cpus.h"
#include "base/log.h"
#include "boot/boot.h"
#include "device/pvpanic.h"
#include "device/vmgenid.h"
#include "device/watchdog.h"
#include "mem/dirty.h"
#include "x86/acpi.h"
#include "x86/cpu.h"
#include "x86/layout.h"

/* A pause looks so often whether memory that is waited for will not come. */
#define PAUSE_STEP_NS (100 * NSEC_PER_MSEC)

/*
 * By default deleting or moving any memslot zaps the whole second stage. quire
 * never deletes slots after population, but a later hot-plug may: take the
 * targeted zap where the kernel offers it.
 */
static void disable_slot_zap(const struct kvm_vm *vm)
{
	int quirks = kvm_cap(vm->fd, KVM_CAP_DISABLE_QUIRKS2);

	if ((quirks & KVM_X86_QUIRK_SLOT_ZAP_ALL) &&
	    kvm_vm_enable_cap(vm, KVM_CAP_DISABLE_QUIRKS2,
			      KVM_X86_QUIRK_SLOT_ZAP_ALL, 0) < 0)
		log_info("KVM keeps zapping all of the second stage when a "
			 "memslot goes");
}

/*
 * Above 255 CPUs wired interrupts need destinations that the in-kernel IOAPIC
 * has no bits for; ours takes the extended ones.
 */
static enum irqchip_kind irqchip_for(const struct vm_config *cfg)
{
	return cfg->num_cpus > 255 ? IRQCHIP_SPLIT : cfg->irqchip;
}

/*
 * Prepared in every machine, since rings cannot be had later. Where KVM has no
 * such log that is an error only if one was asked for by name.
 */
static int build_dirty_log(struct machine *m, struct err *err)
{
	const struct dirty_config cfg = {
		.method = m->cfg->dirty_log,
		.memory_bytes = m->cfg->memory_bytes,
		.ring_entries = m->cfg->dirty_ring,
	};
	int r = dirty_setup_vm(&m->memory.dirty, &m->vm, &cfg, err);

	return r == -ENOTSUP && cfg.method == DIRTY_AUTO ? 0 : r;
}

static int build_vm(struct machine *m, struct err *err)
{
	int r;

	r = kvm_open(&m->kvm, KVM_DEVICE_PATH, err);
	if (r)
		return r;
	if (m->cfg->num_cpus > kvm_max_vcpus(&m->kvm))
		return err_set(err, EINVAL,
			       "--cpus boot=%u: this KVM allows %u",
			       m->cfg->num_cpus, kvm_max_vcpus(&m->kvm));
	r = kvm_vm_create(&m->vm, &m->kvm, err);
	if (r)
		return r;
	disable_slot_zap(&m->vm);
	r = build_dirty_log(m, err);
	if (!r)
		r = kvm_vm_place_pages(&m->vm, LAYOUT_KVM_IDENTITY,
				       LAYOUT_KVM_TSS, err);
	if (r)
		return r;
	return irq_router_new(&m->router, &m->vm, irqchip_for(m->cfg), err);
}

static void pci64_window(const struct machine *m, uint64_t *ret_start,
			 uint64_t *ret_size)
{
	*ret_start = layout_pci64_start(m->memory.ram.span);
	*ret_size = LAYOUT_PCI64_SIZE;
}

static int build_buses(struct machine *m, struct err *err)
{
	struct pci_host_config cfg = {
		.ecam_base = LAYOUT_ECAM_START,
		.window32_base = LAYOUT_PCI32_START,
		.window32_size = LAYOUT_PCI32_SIZE,
	};
	int r = iobus_new(&m->pio);

	if (!r)
		r = iobus_new(&m->mmio);
	if (r)
		return err_errno(err, -r, "creating the buses");
	cfg.pio = m->pio;
	cfg.mmio = m->mmio;
	pci64_window(m, &cfg.window64_base, &cfg.window64_size);
	r = pci_host_new(&m->pci, &cfg);
	if (r)
		return err_errno(err, -r, "creating the PCI host bridge");
	r = milestone_attach(&m->milestone, m->pio);
	return r ? err_errno(err, -r, "creating the milestone port") : 0;
}

/*
 * Overcommitted when there are more vCPUs than CPUs this process may use: then
 * "dedicated" would make waiting vCPUs spin on the CPU their lock holder needs.
 */
static void cpu_config_fill(const struct vm_config *cfg, bool ext_dest,
			    struct cpu_config *ret)
{
	unsigned int host = cpus_allowed();

	*ret = (struct cpu_config){
		.num_cpus = cfg->num_cpus,
		.threads_per_core = cfg->threads_per_core,
		.overcommitted = cfg->num_cpus > host,
		.dedicated = cfg->dedicated_cpus,
		.msi_ext_dest_id = ext_dest,
	};
	if (ret->overcommitted && ret->dedicated) {
		log_warn("--cpus dedicated=on ignored: %u vCPUs on %u host "
			 "CPUs",
			 cfg->num_cpus, host);
		ret->dedicated = false;
	}
}

static void vcpu_ended(void *ctx, unsigned int id, enum vcpu_end end,
		       const char *text)
{
	static const enum machine_end map[] = {
		[VCPU_END_TRIPLE_FAULT] = MACHINE_END_CRASH,
		[VCPU_END_SYSTEM_RESET] = MACHINE_END_REBOOT,
		[VCPU_END_SYSTEM_SHUTDOWN] = MACHINE_END_POWEROFF,
		[VCPU_END_ERROR] = MACHINE_END_ERROR,
	};
	struct machine *m = ctx;
	char line[200];

	snprintf(line, sizeof(line), "vCPU %u: %s%s", id,
		 end == VCPU_END_TRIPLE_FAULT ? "triple fault " : "", text);
	m->hooks.ended(m->hooks.ctx, map[end], 0, line);
}

/*
 * A guest that has a crash kernel loaded deals with its panic itself, whatever
 * --on-panic says. Ending is posted; the guest may go on for a moment.
 */
static void guest_panicked(struct machine *m, unsigned int events)
{
	bool alone = events & PVPANIC_PANICKED;

	log_ratelimited(LOG_LEVEL_WARN, "the guest's kernel panicked%s",
			alone ? "" : "; it has a crash kernel loaded");
	if (m->hooks.panicked)
		m->hooks.panicked(m->hooks.ctx, events);
	if (alone && m->cfg->on_panic != VM_PANIC_CONTINUE)
		m->hooks.ended(m->hooks.ctx, MACHINE_END_PANIC, 0,
			       "the guest's kernel panicked");
}

static void platform_event(void *ctx, enum machine_event event,
			   unsigned int code)
{
	static const enum machine_end map[] = {
		[MACHINE_POWEROFF] = MACHINE_END_POWEROFF,
		[MACHINE_RESET] = MACHINE_END_REBOOT,
		[MACHINE_DEBUG_EXIT] = MACHINE_END_DEBUG_EXIT,
		[MACHINE_WATCHDOG] = MACHINE_END_WATCHDOG,
	};
	struct machine *m = ctx;

	if (event != MACHINE_PANIC)
		m->hooks.ended(m->hooks.ctx, map[event], code,
			       event == MACHINE_WATCHDOG
				       ? "the watchdog's time ran out"
				       : "");
	else
		guest_panicked(m, code);
}

static int build_vcpus(struct machine *m, const struct cpu_model *model,
		       struct err *err)
{
	struct vcpu_env env = {
		.pio = m->pio,
		.mmio = m->mmio,
		.ioapic = platform_ioapic(m->platform),
		.dirty = m->memory.dirty,
		.ended = vcpu_ended,
		.ctx = m,
	};

	m->vcpus = calloc(m->cfg->num_cpus, sizeof(struct vcpu *));
	if (!m->vcpus)
		return err_set(err, ENOMEM, "out of memory");
	for (unsigned int i = 0; i < m->cfg->num_cpus; i++) {
		int r = vcpu_new(&m->vcpus[i], &m->vm, i, &env, err);

		if (r)
			return r;
		m->num_vcpus++;
		r = cpu_model_apply(model, vcpu_kvm(m->vcpus[i]), true, err);
		if (r)
			return r;
	}
	return 0;
}

static int build_cpus(struct machine *m, struct err *err)
{
	struct cpu_config cfg;
	struct cpu_model *model;
	uint64_t start, size;
	int r;

	cpu_config_fill(m->cfg, irq_router_has_ext_dest(m->router), &cfg);
	r = cpu_model_new(&model, &m->kvm, &cfg, err);
	if (r)
		return r;
	pci64_window(m, &start, &size);
	if (start + size > 1ull << cpu_model_phys_bits(model))
		r = err_set(err, ENOMEM,
			    "the guest CPU addresses only %u bits: too few for "
			    "this --memory size and the PCI window of 64 GiB "
			    "above it",
			    cpu_model_phys_bits(model));
	else
		r = build_vcpus(m, model, err);
	if (!r)
		r = vm_memory_prepare_keeper(&m->memory, model, m->num_vcpus,
					     err);
	cpu_model_free(model);
	return r;
}

static bool populate_poll(void *ctx, const struct populate_progress *p)
{
	struct machine *m = ctx;

	progress_update(&m->progress, p->done_bytes, p->total_bytes,
			p->elapsed_ns);
	return m->hooks.interrupted(m->hooks.ctx);
}

static int populate(struct machine *m, struct err *err)
{
	const struct populate_watch watch = { .poll = populate_poll, .ctx = m };
	struct kvm_vcpu **vcpus = calloc(m->num_vcpus,
					 sizeof(struct kvm_vcpu *));
	int r;

	if (!vcpus)
		return err_set(err, ENOMEM, "out of memory");
	for (unsigned int i = 0; i < m->num_vcpus; i++)
		vcpus[i] = vcpu_kvm(m->vcpus[i]);
	progress_init(&m->progress, "populate");
	r = vm_memory_populate(&m->memory, vcpus, m->num_vcpus, &watch, err);
	progress_end(&m->progress);
	free(vcpus);
	return r;
}

static int load_kernel(struct machine *m, struct err *err)
{
	struct acpi_config acpi = {
		.num_cpus = m->cfg->num_cpus,
		.has_pic = irq_router_kind(m->router) == IRQCHIP_KERNEL,
	};
	struct boot_config boot = {
		.kernel = m->cfg->kernel,
		.initramfs = m->cfg->initramfs,
		.cmdline = m->cfg->cmdline ? m->cfg->cmdline : "",
		.files = m->cfg->files,
	};
	struct start_state start;
	int r;

	if (m->cfg->watchdog) {
		acpi.watchdog.period_ms = WATCHDOG_UNIT_MS;
		acpi.watchdog.max_count = WATCHDOG_MAX_UNITS;
	}
	pci64_window(m, &acpi.pci64_start, &acpi.pci64_size);
	r = acpi_write_tables(&m->memory.ram, &acpi, &boot.rsdp, err);
	if (r)
		return r;
	r = boot_load(&m->memory.ram, &boot, &start, err);
	if (r)
		return r;
	r = start_load(vcpu_kvm(m->vcpus[0]), &start);
	return r ? err_errno(err, -r, "loading the boot vCPU") : 0;
}

static int build(struct machine *m, const struct vm_memory_origin *origin,
		 struct chardev *chardev, struct evloop *loop, struct err *err)
{
	struct platform_config platform = {
		.loop = loop,
		.chardev = chardev,
		.debug_exit = m->cfg->debug_exit,
		.watchdog = m->cfg->watchdog,
		.hooks = { .event = platform_event, .ctx = m },
		.ejected = machine_device_ejected,
		.ram = &m->memory.ram,
		.restore = m->restore,
	};
	int r = build_vm(m, err);

	if (!r)
		r = vm_memory_map(&m->memory, m->cfg, origin, &m->vm, err);
	if (!r)
		r = build_buses(m, err);
	if (r)
		return r;
	platform.pio = m->pio;
	platform.mmio = m->mmio;
	platform.pci = m->pci;
	platform.router = m->router;
	r = platform_new(&m->platform, &platform, err);
	if (!r)
		r = machine_build_devices(m, err);
	if (!r)
		r = build_cpus(m, err);
	if (!r && !m->restore)
		r = populate(m, err);
	if (!r && !m->restore)
		r = load_kernel(m, err);
	return r;
}

int machine_new(struct machine **ret, const struct vm_config *cfg,
		const struct vm_memory_origin *origin, struct chardev *chardev,
		struct evloop *loop, const struct machine_end_hooks *hooks,
		struct err *err)
{
	struct machine *m = calloc(1, sizeof(*m));
	int r;

	if (!m)
		return err_set(err, ENOMEM, "out of memory");
	m->cfg = cfg;
	m->restore = origin != NULL;
	m->hooks = *hooks;
	m->memory.idle = hooks->keeper_idle;
	m->memory.paging_event = hooks->paging_event;
	m->memory.idle_ctx = hooks->ctx;
	m->kvm.fd = -1;
	m->vm.fd = -1;
	r = build(m, origin, chardev, loop, err);
	if (r) {
		machine_free(m);
		return r;
	}
	*ret = m;
	return 0;
}

void machine_free(struct machine *m)
{
	if (!m)
		return;
	/* A device's thread may wait for memory that does not come. */
	vm_paging_stop(&m->memory.paging);
	machine_free_devices(m);
	vm_memory_stop(&m->memory);
	platform_free(m->platform);
	for (unsigned int i = 0; i < m->num_vcpus; i++)
		vcpu_free(m->vcpus[i]);
	free(m->vcpus);
	pci_host_free(m->pci);
	iobus_free(m->mmio);
	iobus_free(m->pio);
	irq_router_free(m->router);
	kvm_vm_close(&m->vm);
	kvm_close(&m->kvm);
	vm_memory_fini(&m->memory);
	free(m);
}

int machine_start(struct machine *m, struct err *err)
{
	int started = vm_memory_start(&m->memory, err);

	if (started)
		return started;
	pci_host_set_live(m->pci);
	for (unsigned int i = 0; i < m->num_vcpus; i++) {
		int r = vcpu_start(m->vcpus[i]);

		if (r) {
			machine_stop(m);
			return err_errno(err, -r, "starting vCPU %u", i);
		}
	}
	return 0;
}

static void hold_devices(struct machine *m, bool held)
{
	for (unsigned int i = 0; i < m->num_devices; i++)
		virtio_dev_hold(virtio_pci_dev(m->devices[i]), held);
}

static void stop_clocks(struct machine *m)
{
	struct machine_clocks *c = &m->clocks;

	c->host_ns = clock_now_ns();
	c->host_tsc = __builtin_ia32_rdtsc();
	c->has_kvmclock = kvm_vm_get_clock(&m->vm, &c->kvmclock_ns) >= 0;
}

/*
 * The TSC was not set by writing it, so KVM keeps the vCPUs' in step: the same
 * is taken off each. Guest and host tick alike, for the guest's frequency is
 * never set. A kernel that has no such offset lets the TSC go on; the guests
 * that care are told to use kvmclock.
 */
static void skip_tsc(const struct machine *m)
{
	uint64_t cycles = __builtin_ia32_rdtsc() - m->clocks.host_tsc;

	for (unsigned int i = 0; i < m->num_vcpus; i++) {
		struct kvm_vcpu *vcpu = vcpu_kvm(m->vcpus[i]);
		uint64_t offset;

		if (kvm_vcpu_get_tsc_offset(vcpu, &offset) < 0 ||
		    kvm_vcpu_set_tsc_offset(vcpu, offset - cycles) < 0)
			return;
	}
}

static void go_on_clocks(struct machine *m)
{
	const struct machine_clocks *c = &m->clocks;
	int r = 0;

	skip_tsc(m);
	if (c->has_kvmclock)
		r = kvm_vm_set_clock(&m->vm, c->kvmclock_ns);
	if (r < 0)
		log_warn("the guest's clock jumps by the time it was paused: "
			 "KVM_SET_CLOCK: %s",
			 strerror(-r));
	platform_skip_time(m->platform, clock_now_ns() - c->host_ns);
	for (unsigned int i = 0; i < m->num_vcpus; i++)
		/* Refused where the guest does not use it. */
		(void)!kvm_vcpu_tell_paused(vcpu_kvm(m->vcpus[i]));
}

/*
 * A vCPU that waits in the kernel for memory whose source failed, or is away,
 * stands still as well as one that is parked. False: there is such a one.
 */
static bool wait_paused(struct machine *m)
{
	struct vm_paging *paging = &m->memory.paging;
	bool all = true;

	for (unsigned int i = 0; i < m->num_vcpus; i++) {
		bool stuck = false, out = false;

		while (!out && !stuck) {
			stuck = vm_paging_is_stuck(paging);
			out = vcpu_wait_paused_until(
				m->vcpus[i], clock_now_ns() + PAUSE_STEP_NS);
		}
		all &= out;
	}
	return all;
}

void machine_pause(struct machine *m)
{
	if (m->paused)
		return;
	for (unsigned int i = 0; i < m->num_vcpus; i++)
		vcpu_request_pause(m->vcpus[i]);
	(void)wait_paused(m);
	hold_devices(m, true);
	stop_clocks(m);
	platform_pause(m->platform);
	m->paused = true;
}

void machine_begin_paused(struct machine *m, bool has_kvmclock,
			  uint64_t kvmclock_ns)
{
	hold_devices(m, true);
	for (unsigned int i = 0; i < m->num_vcpus; i++)
		vcpu_request_pause(m->vcpus[i]);
	m->clocks = (struct machine_clocks){
		.host_ns = clock_now_ns(),
		.host_tsc = __builtin_ia32_rdtsc(),
		.has_kvmclock = has_kvmclock,
		.kvmclock_ns = kvmclock_ns,
	};
	m->paused = true;
}

bool machine_resume(struct machine *m)
{
	if (!m->paused)
		return true;
	/* KVM lets nobody at the clock of a vCPU that is in KVM_RUN. */
	if (!wait_paused(m))
		return false;
	go_on_clocks(m);
	platform_resume(m->platform);
	hold_devices(m, false);
	for (unsigned int i = 0; i < m->num_vcpus; i++)
		vcpu_resume(m->vcpus[i]);
	m->paused = false;
	return true;
}

/* Those that wait for memory wait until the pager is gone. */
void machine_stop(struct machine *m)
{
	for (unsigned int i = 0; i < m->num_vcpus; i++)
		vcpu_request_stop(m->vcpus[i]);
	if (vm_paging_is_active(&m->memory.paging))
		hold_devices(m, true);
	vm_memory_stop(&m->memory);
	for (unsigned int i = 0; i < m->num_vcpus; i++)
		vcpu_join(m->vcpus[i]);
}

int machine_renew_generation_id(struct machine *m, struct err *err)
{
	return vmgenid_renew(platform_vmgenid(m->platform), err);
}
