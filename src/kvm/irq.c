/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. KVM_SET_GSI_ROUTING replaces the whole table, so the
 * router keeps it and hands it over on each change. The call waits for an SRCU
 * grace period, which is most of what programming a vector costs: unchanged
 * entries are therefore not sent again.
 *
 * A guest has a dozen MSI sources of the thousand there may be, so routes grow
 * with the highest one and the table is made anew for each call.
 *
 * The table holds the wired pins (in-kernel irqchip: PIC 0..15 and IOAPIC
 * 0..23, as KVM's own default; split: whatever the user-space IOAPIC programs)
 * followed by one slot for each MSI source in use.
 */
#include "kvm/irq.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/bitmap.h"
#include "base/log.h"

#define ROUTER_MAX_GSI 1024
#define ROUTES_GROW    32

struct msi_route {
	bool set;
	uint64_t address;
	uint32_t data;
};

struct irq_router {
	struct kvm_vm *vm;
	enum irqchip_kind kind;
	bool ext_dest;	      /* KVM_CAP_X2APIC_API is on */
	pthread_mutex_t lock; /* everything below */
	uint32_t max_gsi;
	uint64_t used[BITMAP_WORDS(ROUTER_MAX_GSI)]; /* allocated MSI GSIs */
	struct msi_route *routes; /* by GSI; none from num_routes on */
	uint32_t num_routes;
};

/* PIC master, slave and IOAPIC entries for the in-kernel irqchip. */
#define ROUTER_WIRED_ENTRIES (16 + IRQCHIP_NUM_PINS)

static void add_entry(struct kvm_irq_routing *table, uint32_t gsi,
		      uint32_t irqchip, uint32_t pin)
{
	table->entries[table->nr++] = (struct kvm_irq_routing_entry){
		.gsi = gsi,
		.type = KVM_IRQ_ROUTING_IRQCHIP,
		.u.irqchip = { .irqchip = irqchip, .pin = pin },
	};
}

static void add_wired(struct kvm_irq_routing *table)
{
	for (uint32_t pin = 0; pin < IRQCHIP_NUM_PINS; pin++) {
		if (pin < 8)
			add_entry(table, pin, KVM_IRQCHIP_PIC_MASTER, pin);
		else if (pin < 16)
			add_entry(table, pin, KVM_IRQCHIP_PIC_SLAVE, pin - 8);
		/*
		 * The PIT's GSI 0 arrives at IOAPIC pin 2, as the MADT's
		 * interrupt source override says; pin 2 has no other source.
		 */
		if (pin == 0)
			add_entry(table, 0, KVM_IRQCHIP_IOAPIC, 2);
		else if (pin != 2)
			add_entry(table, pin, KVM_IRQCHIP_IOAPIC, pin);
	}
}

/*
 * Bits 14:8 of the destination: from address bits 11:5, where the guest has
 * room for them, to the high word's bits 14:8, where KVM expects them.
 */
#define MSI_EXT_DEST_MASK  0xfe0u
#define MSI_EXT_DEST_SHIFT 3

static uint32_t msi_low(const struct irq_router *router, uint64_t address)
{
	uint32_t low = (uint32_t)address;

	return router->ext_dest ? low & ~MSI_EXT_DEST_MASK : low;
}

static uint32_t msi_high(const struct irq_router *router, uint64_t address)
{
	uint32_t high = (uint32_t)(address >> 32);

	if (!router->ext_dest)
		return high;
	return high | ((uint32_t)address & MSI_EXT_DEST_MASK)
			      << MSI_EXT_DEST_SHIFT;
}

static int commit_locked(struct irq_router *router)
{
	struct kvm_irq_routing *table = calloc(
		1,
		sizeof(*table) + (ROUTER_WIRED_ENTRIES + router->num_routes) *
					 sizeof(table->entries[0]));
	int r;

	if (!table)
		return -ENOMEM;
	if (router->kind == IRQCHIP_KERNEL)
		add_wired(table);
	for (uint32_t gsi = 0; gsi < router->num_routes; gsi++) {
		const struct msi_route *route = &router->routes[gsi];

		if (!route->set)
			continue;
		table->entries[table->nr++] = (struct kvm_irq_routing_entry){
			.gsi = gsi,
			.type = KVM_IRQ_ROUTING_MSI,
			.u.msi = {
				.address_lo = msi_low(router, route->address),
				.address_hi = msi_high(router, route->address),
				.data = route->data,
			},
		};
	}
	r = kvm_ioctl(router->vm->fd, KVM_SET_GSI_ROUTING, table);
	free(table);
	return r;
}

static int create_kernel_chip(struct kvm_vm *vm)
{
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	int r = kvm_ioctl_val(vm->fd, KVM_CREATE_IRQCHIP, 0);

	if (r < 0)
		return r;
	/* Kernels time the TSC and test IRQ 0 with it while they boot. */
	r = kvm_ioctl(vm->fd, KVM_CREATE_PIT2, &pit);
	return r < 0 ? r : 0;
}

static int create_chip(struct irq_router *router, enum irqchip_kind kind,
		       struct err *err)
{
	struct kvm_vm *vm = router->vm;
	int r;

	if (kind == IRQCHIP_KERNEL && kvm_cap(vm->fd, KVM_CAP_IRQCHIP) &&
	    kvm_cap(vm->fd, KVM_CAP_PIT2)) {
		r = create_kernel_chip(vm);
		if (r)
			return err_errno(err, -r, "KVM_CREATE_IRQCHIP");
		router->kind = IRQCHIP_KERNEL;
		return 0;
	}
	if (kind == IRQCHIP_KERNEL)
		log_info("this KVM has no in-kernel IOAPIC; using the split "
			 "irqchip");
	r = kvm_vm_enable_cap(vm, KVM_CAP_SPLIT_IRQCHIP, IRQCHIP_NUM_PINS, 0);
	if (r < 0)
		return err_errno(err, -r,
				 "KVM has neither an in-kernel irqchip nor the "
				 "split one (KVM_CAP_SPLIT_IRQCHIP)");
	router->kind = IRQCHIP_SPLIT;
	return 0;
}

/*
 * Destinations beyond 255; a kernel without it just has fewer CPUs. Only with
 * the split irqchip: the in-kernel IOAPIC has no such destinations, so a guest
 * must not be told of them.
 */
static void enable_ext_dest(struct irq_router *router)
{
	uint64_t flags = KVM_X2APIC_API_USE_32BIT_IDS |
			 KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
	uint64_t have = (uint64_t)kvm_cap(router->vm->fd, KVM_CAP_X2APIC_API);

	router->ext_dest = (have & flags) == flags &&
			   kvm_vm_enable_cap(router->vm, KVM_CAP_X2APIC_API,
					     flags, 0) >= 0;
}

int irq_router_new(struct irq_router **ret, struct kvm_vm *vm,
		   enum irqchip_kind kind, struct err *err)
{
	struct irq_router *router = calloc(1, sizeof(*router));
	int r, max;

	if (!router)
		return err_set(err, ENOMEM, "out of memory");
	pthread_mutex_init(&router->lock, NULL);
	router->vm = vm;
	router->kind = IRQCHIP_NONE;
	max = kvm_cap(vm->fd, KVM_CAP_IRQ_ROUTING);
	router->max_gsi = max < ROUTER_MAX_GSI ? (uint32_t)max : ROUTER_MAX_GSI;
	r = kind == IRQCHIP_NONE ? 0 : create_chip(router, kind, err);
	if (!r && router->kind == IRQCHIP_SPLIT)
		enable_ext_dest(router);
	if (!r && router->kind == IRQCHIP_KERNEL) {
		r = commit_locked(router);
		if (r)
			r = err_errno(err, -r, "KVM_SET_GSI_ROUTING");
	}
	if (r) {
		irq_router_free(router);
		return r;
	}
	*ret = router;
	return 0;
}

void irq_router_free(struct irq_router *router)
{
	if (!router)
		return;
	pthread_mutex_destroy(&router->lock);
	free(router->routes);
	free(router);
}

enum irqchip_kind irq_router_kind(const struct irq_router *router)
{
	return router->kind;
}

bool irq_router_has_ext_dest(const struct irq_router *router)
{
	return router->ext_dest;
}

int irq_router_alloc_msi(struct irq_router *router, uint32_t *ret_gsi)
{
	int r = -ENOSPC;

	pthread_mutex_lock(&router->lock);
	for (uint32_t gsi = IRQCHIP_NUM_PINS; gsi < router->max_gsi; gsi++) {
		if (bitmap_test(router->used, gsi))
			continue;
		bitmap_set(router->used, gsi);
		*ret_gsi = gsi;
		r = 0;
		break;
	}
	pthread_mutex_unlock(&router->lock);
	return r;
}

void irq_router_release_msi(struct irq_router *router, uint32_t gsi)
{
	pthread_mutex_lock(&router->lock);
	if (gsi >= IRQCHIP_NUM_PINS && gsi < ROUTER_MAX_GSI) {
		bitmap_clear(router->used, gsi);
		if (gsi < router->num_routes)
			router->routes[gsi].set = false;
	}
	pthread_mutex_unlock(&router->lock);
}

static int have_routes(struct irq_router *router, uint32_t num)
{
	struct msi_route *routes;

	if (num <= router->num_routes)
		return 0;
	num = (uint32_t)align_up(num, ROUTES_GROW);
	routes = realloc(router->routes, num * sizeof(*routes));
	if (!routes)
		return -ENOMEM;
	memset(routes + router->num_routes, 0,
	       (num - router->num_routes) * sizeof(*routes));
	router->routes = routes;
	router->num_routes = num;
	return 0;
}

static int change_locked(struct irq_router *router, uint32_t gsi,
			 const struct msi_route *route)
{
	struct msi_route *cur, old;
	int r;

	/* Taking away what there never was needs no room. */
	if (!route->set && gsi >= router->num_routes)
		return 0;
	r = have_routes(router, gsi + 1);
	if (r)
		return r;
	cur = &router->routes[gsi];
	if (cur->set == route->set && cur->address == route->address &&
	    cur->data == route->data)
		return 0;
	old = *cur;
	*cur = *route;
	r = commit_locked(router);
	if (r < 0)
		*cur = old;
	return r;
}

static int set_route(struct irq_router *router, uint32_t gsi,
		     const struct msi_route *route)
{
	int r;

	if (gsi >= router->max_gsi)
		return -EINVAL;
	pthread_mutex_lock(&router->lock);
	r = change_locked(router, gsi, route);
	pthread_mutex_unlock(&router->lock);
	return r < 0 ? r : 0;
}

int irq_router_set_msi(struct irq_router *router, uint32_t gsi,
		       uint64_t address, uint32_t data)
{
	struct msi_route route = {
		.set = true,
		.address = address,
		.data = data,
	};

	return set_route(router, gsi, &route);
}

int irq_router_clear_msi(struct irq_router *router, uint32_t gsi)
{
	struct msi_route route = { .set = false };

	return set_route(router, gsi, &route);
}

static int irqfd(struct irq_router *router, uint32_t gsi, int fd,
		 uint32_t flags)
{
	struct kvm_irqfd irqfd = {
		.fd = (uint32_t)fd,
		.gsi = gsi,
		.flags = flags,
	};
	int r = kvm_ioctl(router->vm->fd, KVM_IRQFD, &irqfd);

	return r < 0 ? r : 0;
}

int irq_router_bind_fd(struct irq_router *router, uint32_t gsi, int fd)
{
	return irqfd(router, gsi, fd, 0);
}

int irq_router_unbind_fd(struct irq_router *router, uint32_t gsi, int fd)
{
	return irqfd(router, gsi, fd, KVM_IRQFD_FLAG_DEASSIGN);
}

int irq_router_signal_msi(struct irq_router *router, uint64_t address,
			  uint32_t data)
{
	struct kvm_msi msi = {
		.address_lo = msi_low(router, address),
		.address_hi = msi_high(router, address),
		.data = data,
	};
	int r = kvm_ioctl(router->vm->fd, KVM_SIGNAL_MSI, &msi);

	return r < 0 ? r : 0;
}

static void kernel_line_set(void *ctx, uint32_t gsi, bool level)
{
	struct irq_router *router = ctx;
	struct kvm_irq_level irq = { .irq = gsi, .level = level };
	int r = kvm_ioctl(router->vm->fd, KVM_IRQ_LINE, &irq);

	/* Only a wrong pin number or a VM being torn down can fail here. */
	if (r < 0)
		log_ratelimited(LOG_LEVEL_WARN, "KVM_IRQ_LINE gsi %u: %d", gsi,
				r);
}

struct irq_line irq_router_line(struct irq_router *router, uint32_t gsi)
{
	return (struct irq_line){
		.set = kernel_line_set,
		.ctx = router,
		.gsi = gsi,
	};
}
