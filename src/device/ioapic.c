/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. A pin has a level that its device drives and a 64-bit
 * redirection entry that the guest programs. The entry, read as an MSI message,
 * is what gets sent to the LAPICs:
 *
 *	edge	a rising line sends one message; lost while masked, as the
 *		data sheet says
 *	level	a high line sends one message and sets Remote IRR; the
 *		guest's EOI clears it, and a line that is still high sends
 *		again
 *
 * KVM tells us of an EOI only for vectors that it finds in the routing table
 * under GSIs 0..23 with trigger mode level, so unmasked level entries are
 * mirrored there. Edge entries are not, for each change of the table costs an
 * SRCU grace period. A masked entry keeps its old route: the EOI of what was
 * sent before may be outstanding, and drivers mask and unmask a lot.
 *
 * A guest that does not quiet its device gets the interrupt again with each
 * acknowledgement, for ever, and never runs anything else. After STORM_EOIS
 * repetitions without a falling line the next message waits for STORM_PAUSE_NS,
 * as with KVM's IOAPIC.
 */
#include "device/ioapic.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/log.h"
#include "bus/iobus.h"
#include "device/timer.h"
#include "x86/layout.h"

/* MMIO offsets. */
#define IOAPIC_SELECT 0x00
#define IOAPIC_WINDOW 0x10
#define IOAPIC_EOI    0x40

/* Indirect registers. */
#define IOAPIC_REG_ID  0x00
#define IOAPIC_REG_VER 0x01
#define IOAPIC_REG_ARB 0x02
#define IOAPIC_REG_RTE 0x10 /* two for each pin, low half first */

#define IOAPIC_VERSION	0x20
#define IOAPIC_ID_MASK	0x0f000000u
#define IOAPIC_ID_SHIFT 24

#define RTE_VECTOR	 0xffull
#define RTE_DELIVERY	 0x700ull
#define RTE_DELIVERY_EXT 0x700ull /* ExtINT: from a PIC, and there is none */
#define RTE_LOGICAL	 (1ull << 11)
#define RTE_REMOTE_IRR	 (1ull << 14)
#define RTE_LEVEL	 (1ull << 15)
#define RTE_MASKED	 (1ull << 16)
/* Bits 49..55 are the destination's bits 8..14, see rte_address(). */
#define RTE_DEST     (0x7fffull << 49)
#define RTE_POLARITY (1ull << 13)
#define RTE_WRITABLE                                                          \
	(RTE_VECTOR | RTE_DELIVERY | RTE_LOGICAL | RTE_POLARITY | RTE_LEVEL | \
	 RTE_MASKED | RTE_DEST)

#define MSI_ADDRESS	0xfee00000ull
#define MSI_LOGICAL	(1u << 2)
#define MSI_DATA_ASSERT (1u << 14)
#define MSI_DATA_LEVEL	(1u << 15)

/* Those that rte_address() and rte_data() may set. */
#define MSI_ADDRESS_BITS 0xfffe4ull
#define MSI_DATA_BITS	 0xc7ffu

#define STORM_EOIS     10000
#define STORM_PAUSE_NS (NSEC_PER_SEC / 100)

struct ioapic_pin {
	uint64_t rte;
	bool line;   /* as driven by the device */
	bool routed; /* address and data are in the routing table */
	uint64_t route_address;
	uint32_t route_data;
	uint32_t eois; /* repeated while the line stayed high */
	bool held;     /* the next message waits for the timer */
};

struct ioapic {
	struct iobus *mmio;
	struct irq_router *router;
	struct dev_timer timer; /* ends the pause of all held pins */
	pthread_mutex_t lock;	/* everything below */
	uint8_t select;
	uint32_t id;
	struct ioapic_pin pins[IRQCHIP_NUM_PINS];
};

/*
 * An entry's upper half is laid out so that one shift makes the MSI address:
 * bits 56..63 become the destination at 12..19, and 49..55 the extended
 * destination at 5..11 (KVM_FEATURE_MSI_EXT_DEST_ID).
 */
static uint64_t rte_address(uint64_t rte)
{
	uint64_t mode = (rte & RTE_LOGICAL) ? MSI_LOGICAL : 0;

	return MSI_ADDRESS | (rte & RTE_DEST) >> 44 | mode;
}

static uint32_t rte_data(uint64_t rte)
{
	uint32_t data = (uint32_t)(rte & (RTE_VECTOR | RTE_DELIVERY));

	if (rte & RTE_LEVEL)
		data |= MSI_DATA_LEVEL | MSI_DATA_ASSERT;
	return data;
}

static bool rte_delivers(uint64_t rte)
{
	return !(rte & RTE_MASKED) && (rte & RTE_DELIVERY) != RTE_DELIVERY_EXT;
}

/* Send the pin's message. A level pin then waits for its EOI. */
static void send_locked(struct ioapic *ioapic, uint32_t pin)
{
	struct ioapic_pin *p = &ioapic->pins[pin];
	int r = irq_router_signal_msi(ioapic->router, rte_address(p->rte),
				      rte_data(p->rte));

	/* Nobody took it: no EOI will come, so do not wait for one. */
	if (r < 0)
		log_ratelimited(LOG_LEVEL_DEBUG,
				"ioapic: pin %u: no CPU takes vector %#x", pin,
				(unsigned int)(p->rte & RTE_VECTOR));
	else if (p->rte & RTE_LEVEL)
		p->rte |= RTE_REMOTE_IRR;
}

/* Send a level pin's message if it is due. */
static void service_level_locked(struct ioapic *ioapic, uint32_t pin)
{
	struct ioapic_pin *p = &ioapic->pins[pin];

	if (p->line && !p->held && (p->rte & RTE_LEVEL) &&
	    !(p->rte & RTE_REMOTE_IRR) && rte_delivers(p->rte))
		send_locked(ioapic, pin);
}

/* Have KVM report this pin's EOIs, see the top of the file. */
static void update_route_locked(struct ioapic *ioapic, uint32_t pin)
{
	struct ioapic_pin *p = &ioapic->pins[pin];
	uint64_t address = rte_address(p->rte);
	uint32_t data = rte_data(p->rte);
	int r;

	if (!rte_delivers(p->rte))
		return;
	if (!(p->rte & RTE_LEVEL)) {
		if (!p->routed)
			return;
		r = irq_router_clear_msi(ioapic->router, pin);
		p->routed = false;
	} else {
		if (p->routed && p->route_address == address &&
		    p->route_data == data)
			return;
		r = irq_router_set_msi(ioapic->router, pin, address, data);
		p->routed = r == 0;
		p->route_address = address;
		p->route_data = data;
	}
	if (r < 0)
		log_ratelimited(LOG_LEVEL_WARN,
				"ioapic: pin %u: cannot set its route: %d", pin,
				r);
}

static void write_rte_locked(struct ioapic *ioapic, uint32_t pin, bool high,
			     uint32_t value)
{
	struct ioapic_pin *p = &ioapic->pins[pin];
	uint64_t half = high ? 0xffffffffull << 32 : 0xffffffffull;
	uint64_t wide = high ? (uint64_t)value << 32 : value;

	p->rte = (p->rte & ~(half & RTE_WRITABLE)) |
		 (wide & half & RTE_WRITABLE);
	/* Drivers without the EOI register clear Remote IRR this way. */
	if (!(p->rte & RTE_LEVEL))
		p->rte &= ~RTE_REMOTE_IRR;
	update_route_locked(ioapic, pin);
	service_level_locked(ioapic, pin);
}

static void eoi_pin_locked(struct ioapic *ioapic, uint32_t pin)
{
	struct ioapic_pin *p = &ioapic->pins[pin];

	p->rte &= ~RTE_REMOTE_IRR;
	if (!p->line) {
		p->eois = 0;
		return;
	}
	if (++p->eois >= STORM_EOIS && ioapic->timer.loop) {
		p->eois = 0;
		p->held = true;
		dev_timer_arm(&ioapic->timer, clock_now_ns() + STORM_PAUSE_NS);
		return;
	}
	service_level_locked(ioapic, pin);
}

static void eoi_locked(struct ioapic *ioapic, uint8_t vector)
{
	for (uint32_t pin = 0; pin < IRQCHIP_NUM_PINS; pin++) {
		uint64_t rte = ioapic->pins[pin].rte;

		if ((rte & RTE_VECTOR) == vector && (rte & RTE_REMOTE_IRR))
			eoi_pin_locked(ioapic, pin);
	}
}

void ioapic_eoi(struct ioapic *ioapic, uint8_t vector)
{
	pthread_mutex_lock(&ioapic->lock);
	eoi_locked(ioapic, vector);
	pthread_mutex_unlock(&ioapic->lock);
}

static void storm_over(void *ctx)
{
	struct ioapic *ioapic = ctx;

	pthread_mutex_lock(&ioapic->lock);
	for (uint32_t pin = 0; pin < IRQCHIP_NUM_PINS; pin++) {
		if (!ioapic->pins[pin].held)
			continue;
		ioapic->pins[pin].held = false;
		service_level_locked(ioapic, pin);
	}
	pthread_mutex_unlock(&ioapic->lock);
}

static void ioapic_set(void *ctx, uint32_t gsi, bool level)
{
	struct ioapic *ioapic = ctx;
	struct ioapic_pin *p;
	bool rising;

	if (gsi >= IRQCHIP_NUM_PINS)
		return;
	pthread_mutex_lock(&ioapic->lock);
	p = &ioapic->pins[gsi];
	rising = level && !p->line;
	p->line = level;
	if (!level)
		p->eois = 0;
	if (p->rte & RTE_LEVEL)
		service_level_locked(ioapic, gsi);
	else if (rising && rte_delivers(p->rte))
		send_locked(ioapic, gsi);
	pthread_mutex_unlock(&ioapic->lock);
}

struct irq_line ioapic_line(struct ioapic *ioapic, uint32_t gsi)
{
	return (struct irq_line){
		.set = ioapic_set,
		.ctx = ioapic,
		.gsi = gsi,
	};
}

/* -- saved state -- */

struct ioapic_state {
	uint8_t select;
	uint32_t id;
	uint64_t rte[IRQCHIP_NUM_PINS];
	/* The messages that KVM tells of the EOIs of. */
	bool routed[IRQCHIP_NUM_PINS];
	uint64_t route_address[IRQCHIP_NUM_PINS];
	uint32_t route_data[IRQCHIP_NUM_PINS];
};

#define F(kind, member, ...) \
	STATE_FIELD_##kind(struct ioapic_state, member, __VA_ARGS__)

static const struct state_field state_fields[] = {
	F(UINT, select, 1), F(UINT, id, 2, .max = 15),	F(UINTS, rte, 3),
	F(BOOL, routed, 4), F(UINTS, route_address, 5), F(UINTS, route_data, 6),
};

static int state_check(const struct state_check *c, const void *loaded,
		       const void *live)
{
	const struct ioapic_state *s = loaded;

	for (uint32_t pin = 0; pin < IRQCHIP_NUM_PINS; pin++) {
		if (s->rte[pin] & ~(RTE_WRITABLE | RTE_REMOTE_IRR))
			return state_refuse(c, "rte", "pin %u: %#llx", pin,
					    (unsigned long long)s->rte[pin]);
		if (!s->routed[pin])
			continue;
		if ((s->route_address[pin] & ~MSI_ADDRESS_BITS) != MSI_ADDRESS)
			return state_refuse(
				c, "route_address", "pin %u: %#llx", pin,
				(unsigned long long)s->route_address[pin]);
		if ((s->route_data[pin] & ~MSI_DATA_BITS) ||
		    !(s->route_data[pin] & MSI_DATA_LEVEL))
			return state_refuse(c, "route_data", "pin %u: %#x", pin,
					    s->route_data[pin]);
	}
	return 0;
}

static const struct state_table state_table = {
	.section = "ioapic",
	.version = 1,
	.object_bytes = sizeof(struct ioapic_state),
	.fields = state_fields,
	.num_fields = ARRAY_SIZE(state_fields),
	.check = state_check,
};

void ioapic_save(struct ioapic *ioapic, struct state_writer *w)
{
	struct ioapic_state s = { .select = 0 };

	pthread_mutex_lock(&ioapic->lock);
	s.select = ioapic->select;
	s.id = ioapic->id;
	for (uint32_t pin = 0; pin < IRQCHIP_NUM_PINS; pin++) {
		const struct ioapic_pin *p = &ioapic->pins[pin];

		s.rte[pin] = p->rte;
		s.routed[pin] = p->routed;
		s.route_address[pin] = p->route_address;
		s.route_data[pin] = p->route_data;
	}
	pthread_mutex_unlock(&ioapic->lock);
	state_save(w, &state_table, NULL, &s);
}

/*
 * The route of a pin may be an older one than its entry says: the EOI of what
 * was sent by it is outstanding.
 */
static int load_pin_locked(struct ioapic *ioapic, uint32_t pin,
			   const struct ioapic_state *s)
{
	struct ioapic_pin *p = &ioapic->pins[pin];

	int r;

	*p = (struct ioapic_pin){ .rte = s->rte[pin] };
	if (s->routed[pin]) {
		p->routed = true;
		p->route_address = s->route_address[pin];
		p->route_data = s->route_data[pin];
		r = irq_router_set_msi(ioapic->router, pin, p->route_address,
				       p->route_data);
		if (r)
			return r;
	}
	/* Nothing to do, if the entry and its route belong together. */
	update_route_locked(ioapic, pin);
	return 0;
}

int ioapic_load(struct ioapic *ioapic, struct state_reader *r, struct err *err)
{
	struct ioapic_state s = { .select = 0 };
	int ret = state_load(r, &state_table, NULL, &s, err);

	if (ret)
		return ret;
	pthread_mutex_lock(&ioapic->lock);
	ioapic->select = s.select;
	ioapic->id = s.id;
	for (uint32_t pin = 0; pin < IRQCHIP_NUM_PINS && !ret; pin++)
		ret = load_pin_locked(ioapic, pin, &s);
	pthread_mutex_unlock(&ioapic->lock);
	return ret ? err_errno(err, -ret, "IOAPIC: setting routes") : 0;
}

/* -- registers -- */

static bool select_rte(uint8_t select, uint32_t *ret_pin, bool *ret_high)
{
	if (select < IOAPIC_REG_RTE ||
	    select >= IOAPIC_REG_RTE + 2 * IRQCHIP_NUM_PINS)
		return false;
	*ret_pin = (select - IOAPIC_REG_RTE) / 2;
	*ret_high = select & 1;
	return true;
}

static uint32_t window_read_locked(const struct ioapic *ioapic)
{
	uint32_t pin;
	bool high;

	if (select_rte(ioapic->select, &pin, &high))
		return (uint32_t)(ioapic->pins[pin].rte >> (high ? 32 : 0));
	switch (ioapic->select) {
	case IOAPIC_REG_ID:
	case IOAPIC_REG_ARB: /* there is no APIC bus: same as the ID */
		return ioapic->id << IOAPIC_ID_SHIFT;
	case IOAPIC_REG_VER:
		return (IRQCHIP_NUM_PINS - 1) << 16 | IOAPIC_VERSION;
	default:
		return 0;
	}
}

static void window_write_locked(struct ioapic *ioapic, uint32_t value)
{
	uint32_t pin;
	bool high;

	if (select_rte(ioapic->select, &pin, &high))
		write_rte_locked(ioapic, pin, high, value);
	else if (ioapic->select == IOAPIC_REG_ID)
		ioapic->id = (value & IOAPIC_ID_MASK) >> IOAPIC_ID_SHIFT;
}

static void ioapic_read(void *dev, uint64_t offset, void *data, uint32_t len)
{
	struct ioapic *ioapic = dev;
	uint8_t bytes[8] = { 0 };

	pthread_mutex_lock(&ioapic->lock);
	if (offset == IOAPIC_SELECT)
		bytes[0] = ioapic->select;
	else if (offset == IOAPIC_WINDOW)
		le32_store(bytes, window_read_locked(ioapic));
	pthread_mutex_unlock(&ioapic->lock);
	memcpy(data, bytes, len);
}

static void ioapic_write(void *dev, uint64_t offset, const void *data,
			 uint32_t len)
{
	struct ioapic *ioapic = dev;
	uint8_t bytes[8] = { 0 };

	/* Narrow writes are zero-extended, the upper half of wide ones lost. */
	memcpy(bytes, data, len);
	pthread_mutex_lock(&ioapic->lock);
	switch (offset) {
	case IOAPIC_SELECT:
		ioapic->select = bytes[0];
		break;
	case IOAPIC_WINDOW:
		window_write_locked(ioapic, le32_load(bytes));
		break;
	case IOAPIC_EOI:
		eoi_locked(ioapic, bytes[0]);
		break;
	default:
		break;
	}
	pthread_mutex_unlock(&ioapic->lock);
}

static const struct iobus_ops ioapic_ops = {
	.name = "ioapic",
	.read = ioapic_read,
	.write = ioapic_write,
};

/* -- life -- */

int ioapic_new(struct ioapic **ret, const struct ioapic_config *cfg)
{
	struct ioapic *ioapic = calloc(1, sizeof(*ioapic));
	int r;

	if (!ioapic)
		return -ENOMEM;
	pthread_mutex_init(&ioapic->lock, NULL);
	ioapic->mmio = cfg->mmio;
	ioapic->router = cfg->router;
	r = dev_timer_init(&ioapic->timer, cfg->loop, CLOCK_MONOTONIC,
			   storm_over, ioapic);
	for (uint32_t pin = 0; pin < IRQCHIP_NUM_PINS; pin++)
		ioapic->pins[pin].rte = RTE_MASKED;
	if (!r)
		r = iobus_add(ioapic->mmio, LAYOUT_IOAPIC, IOAPIC_SIZE,
			      &ioapic_ops, ioapic);
	if (r) {
		ioapic_free(ioapic);
		return r;
	}
	*ret = ioapic;
	return 0;
}

void ioapic_free(struct ioapic *ioapic)
{
	if (!ioapic)
		return;
	iobus_remove(ioapic->mmio, LAYOUT_IOAPIC, ioapic);
	dev_timer_fini(&ioapic->timer);
	pthread_mutex_destroy(&ioapic->lock);
	free(ioapic);
}
