/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A driver that knows virtio (1.2, sections 2.7, 3.1, 4.1, 5.1, 5.2, 5.4) and
 * breaks it. attack_driver() walks the proper initialisation with now and then
 * a wrong or missing step and leaves rings full of requests; attack_ring()
 * keeps changing them while the device works.
 */
#include "hostile.h"

/* Common configuration, offsets. */
#define C_DEVICE_FEATURE_SELECT 0x00
#define C_DEVICE_FEATURE	0x04
#define C_DRIVER_FEATURE_SELECT 0x08
#define C_DRIVER_FEATURE	0x0c
#define C_MSIX_CONFIG		0x10
#define C_STATUS		0x14
#define C_QUEUE_SELECT		0x16
#define C_QUEUE_SIZE		0x18
#define C_QUEUE_MSIX		0x1a
#define C_QUEUE_ENABLE		0x1c
#define C_QUEUE_DESC		0x20
#define C_QUEUE_DRIVER		0x28
#define C_QUEUE_DEVICE		0x30

#define S_ACKNOWLEDGE 1
#define S_DRIVER      2
#define S_DRIVER_OK   4
#define S_FEATURES_OK 8

#define D_NEXT	   1
#define D_WRITE	   2
#define D_INDIRECT 4

#define F_INDIRECT (1u << 28)

#define ID_NET 1
#define ID_BLK 2

/* Each queue of each device has 64 KiB of the arena, always the same. */
#define RING_BYTES   0x10000ull
#define RING_DESC    0x0000ull
#define RING_AVAIL   0x4000ull
#define RING_USED    0x5000ull
#define RING_HEADERS 0x8000ull /* request headers, indirect tables */
#define RING_MAX     1024u

static uint64_t ring_of(const struct device *d, unsigned int queue)
{
	uint64_t index = (uint64_t)(d - devices) * MAX_QUEUES + queue;

	return ARENA + index * RING_BYTES % ARENA_BYTES;
}

static void common_write(struct cpu *c, const struct device *d, uint32_t field,
			 uint64_t value, unsigned int len)
{
	if (!properly(c)) {
		if (rnd(c, 2))
			return; /* forgotten */
		value = rnd_value(c);
	}
	io_write(d->bar + d->common + field, value, len);
}

/* ---- requests ---- */

static void write_desc(uint64_t at, uint64_t addr, uint32_t len, uint16_t flags,
		       uint16_t next)
{
	io_write(at, addr, 8);
	io_write(at + 8, len, 4);
	io_write(at + 12, flags, 2);
	io_write(at + 14, next, 2);
}

static uint32_t rnd_length(struct cpu *c)
{
	if (!properly(c))
		return (uint32_t)rnd_value(c);
	return (uint32_t)(c->careless && rnd(c, 2) ? rnd(c, 65536)
						   : 512 * (1 + rnd(c, 16)));
}

/* Kinds of block request (virtio 1.2, 5.2.6), and who writes the data. */
static const struct {
	uint32_t type;
	uint16_t data_flags;
} blk_kinds[] = {
	{ 0, D_WRITE }, { 1, 0 },  { 0, D_WRITE }, { 1, 0 }, { 4, 0 },
	{ 8, D_WRITE }, { 11, 0 }, { 13, 0 },	   { 2, 0 },
};

/*
 * Header of a block request: type, reserved, sector. Returns the flags of its
 * data descriptors.
 */
static uint16_t write_blk_header(struct cpu *c, uint64_t at)
{
	uint64_t kind = rnd(c, sizeof(blk_kinds) / sizeof(blk_kinds[0]));

	io_write(at, properly(c) ? blk_kinds[kind].type : rnd_value(c), 4);
	io_write(at + 8, properly(c) ? rnd(c, 16000) : rnd_value(c), 8);
	return properly(c) ? blk_kinds[kind].data_flags : D_WRITE;
}

/* What a queue takes. */
enum shape {
	SHAPE_FILL, /* buffers for the device */
	SHAPE_BLK,  /* header, data, status */
	SHAPE_SEND, /* header, data */
	SHAPE_CTRL, /* header, data, answer */
};

static enum shape shape_of(const struct device *d, unsigned int queue)
{
	if (d->id == ID_BLK)
		return SHAPE_BLK;
	if (d->id != ID_NET)
		return SHAPE_FILL;
	/* Its last one; of an attacker's many, rarely. */
	if (queue + 1 == d->num_queues)
		return SHAPE_CTRL;
	return queue % 2 ? SHAPE_SEND : SHAPE_FILL;
}

/* Header of a frame: flags and types it has, or nothing but zeroes. */
static uint32_t write_net_header(struct cpu *c, uint64_t at)
{
	bool plain = rnd(c, 2);

	for (unsigned int i = 0; i < 12; i += 4)
		io_write(at + i, plain ? 0 : rnd_value(c), 4);
	if (!plain && properly(c)) {
		io_write(at, 1 | (rnd(c, 6) << 8) | (54u << 16), 4);
		io_write(at + 4, (34u << 16) | rnd(c, 1500), 4);
		io_write(at + 8, rnd(c, 20), 4);
	}
	return 12;
}

/* A control command: class and command, then data of up to 8 bytes. */
static uint32_t write_ctrl(struct cpu *c, uint64_t at)
{
	io_write(at, rnd(c, 6) | rnd(c, 2) << 8, 2);
	io_write(at + 2, properly(c) ? rnd(c, 4) : rnd_value(c), 8);
	return 3 + (uint32_t)rnd(c, 8);
}

/* The first descriptor's bytes; returns how many. */
static uint32_t write_header(struct cpu *c, enum shape shape, uint64_t at,
			     uint16_t *ret_data_flags)
{
	*ret_data_flags = 0;
	switch (shape) {
	case SHAPE_BLK:
		*ret_data_flags = write_blk_header(c, at);
		return 16;
	case SHAPE_SEND:
		return write_net_header(c, at);
	case SHAPE_CTRL:
		*ret_data_flags = D_WRITE;
		return write_ctrl(c, at);
	case SHAPE_FILL:
	default:
		return 0;
	}
}

/*
 * A chain of up to 8 descriptors from table entry `head` on, in the shape that
 * the queue expects.
 */
static void write_chain(struct cpu *c, enum shape shape, uint64_t table,
			uint64_t headers, uint32_t head, uint32_t size)
{
	uint32_t n = 1 + (uint32_t)rnd(c, 8), i, at;
	bool out = shape != SHAPE_FILL;
	uint64_t header = headers + head * 16 % 0x4000;
	uint16_t data = D_WRITE, flags;
	uint64_t addr;
	uint32_t len, header_len;

	if (out && n < 3)
		n = 3;
	if (n > size && properly(c))
		n = size;
	for (i = 0; i < n; i++) {
		at = (head + i) % size;
		addr = rnd_address(c);
		len = rnd_length(c);
		flags = out ? data : D_WRITE;
		if (out && i == 0) {
			header_len = write_header(c, shape, header, &data);
			addr = properly(c) ? header : addr;
			len = properly(c) ? header_len : len;
			flags = 0;
		} else if (shape == SHAPE_BLK && i == n - 1) {
			len = properly(c) ? 1 : len;
			flags = D_WRITE;
		}
		if (i + 1 < n)
			flags |= D_NEXT;
		if (!properly(c))
			flags = (uint16_t)rnd_value(c);
		write_desc(table + at * 16, addr, len, flags,
			   (uint16_t)(properly(c) ? (head + i + 1) % size
						  : rnd_value(c)));
	}
}

static void write_request(struct cpu *c, const struct device *d,
			  unsigned int queue, uint32_t head, uint32_t size)
{
	enum shape shape = shape_of(d, queue);
	uint64_t ring = ring_of(d, queue);
	uint64_t table = ring + RING_HEADERS + 0x4000 + rnd(c, 16) * 0x400;
	uint32_t entries = c->careless ? 1 + (uint32_t)rnd(c, 32) : 8;

	if (rnd(c, 3) || (!d->indirect && properly(c))) {
		write_chain(c, shape, ring + RING_DESC, ring + RING_HEADERS,
			    head, size);
		return;
	}
	write_chain(c, shape, table, ring + RING_HEADERS, 0, 64);
	write_desc(ring + RING_DESC + head * 16,
		   properly(c) ? table : rnd_address(c),
		   properly(c) ? entries * 16 : rnd_length(c),
		   properly(c) ? D_INDIRECT : (uint16_t)rnd_value(c), 0);
}

/* Publish some requests the way a driver does, or nearly. */
static void publish(struct cpu *c, const struct device *d, unsigned int queue)
{
	uint64_t ring = ring_of(d, queue), avail = ring + RING_AVAIL;
	uint32_t size = d->queue_size[queue];
	uint16_t idx = (uint16_t)io_read(avail + 2, 2);
	uint32_t n = 1 + (uint32_t)rnd(c, 8), head;

	if (!size || size > RING_MAX)
		size = RING_MAX;
	for (uint32_t i = 0; i < n; i++, idx++) {
		head = (uint32_t)rnd(c, size);
		if (properly(c))
			head &= ~7u; /* so that chains do not overlap */
		write_request(c, d, queue, head, size);
		io_write(avail + 4 + idx % size * 2,
			 properly(c) ? head : rnd_value(c), 2);
	}
	if (!properly(c))
		idx = (uint16_t)rnd_value(c);
	io_write(avail + 2, idx, 2);
	io_write(avail, rnd(c, 8) == 0, 2);		 /* NO_INTERRUPT */
	io_write(avail + 4 + size * 2, rnd_value(c), 2); /* used_event */
}

static void notify(struct cpu *c, const struct device *d, unsigned int queue)
{
	io_write(d->bar + d->notify + (uint64_t)queue * d->notify_mult,
		 properly(c) ? queue : rnd_value(c), properly(c) ? 2 : 4);
}

/* ---- set-up ---- */

static void negotiate(struct cpu *c, struct device *d)
{
	uint32_t half, offered;

	for (half = 0; half < 2; half++) {
		io_write(d->bar + d->common + C_DEVICE_FEATURE_SELECT, half, 4);
		offered = (uint32_t)io_read(
			d->bar + d->common + C_DEVICE_FEATURE, 4);
		if (rnd(c, 2))
			offered &= (uint32_t)rng_next(&c->rng);
		if (half && properly(c))
			offered |= 1; /* VERSION_1 */
		if (!half)
			d->indirect = (offered & F_INDIRECT) != 0;
		common_write(c, d, C_DRIVER_FEATURE_SELECT, half, 4);
		common_write(c, d, C_DRIVER_FEATURE, offered, 4);
	}
}

static void clear_ring(uint64_t ring)
{
	for (uint64_t at = RING_AVAIL; at < RING_HEADERS; at += 8)
		io_write(ring + at, 0, 8);
}

static void set_up_queue(struct cpu *c, struct device *d, unsigned int queue)
{
	uint64_t ring = ring_of(d, queue);
	uint32_t size = 1u << rnd(c, 10), max;

	clear_ring(ring);
	common_write(c, d, C_QUEUE_SELECT, queue, 2);
	max = (uint32_t)io_read(d->bar + d->common + C_QUEUE_SIZE, 2);
	while (size > max && size > 1 && properly(c))
		size >>= 1;
	d->queue_size[queue] = size;
	common_write(c, d, C_QUEUE_SIZE, size, 2);
	common_write(c, d, C_QUEUE_MSIX, rnd(c, 4), 2);
	common_write(c, d, C_QUEUE_DESC,
		     properly(c) ? ring + RING_DESC : rnd_address(c), 8);
	common_write(c, d, C_QUEUE_DRIVER,
		     properly(c) ? ring + RING_AVAIL : rnd_address(c), 8);
	common_write(c, d, C_QUEUE_DEVICE,
		     properly(c) ? ring + RING_USED : rnd_address(c), 8);
	if (rnd(c, 2))
		publish(c, d, queue);
	common_write(c, d, C_QUEUE_ENABLE, 1, 2);
}

/*
 * A vector of the table: an address KVM knows, mostly a fixed or lowest
 * priority interrupt (our flag is off, nobody takes it).
 */
static void program_vectors(struct cpu *c, const struct device *d)
{
	uint64_t table = d->bar +
			 (pci_read(d->devfn, d->msix_cap + 4u, 4) & ~7u);

	if (!d->msix_cap)
		return;
	for (unsigned int i = 0; i < 4; i++, table += 16) {
		io_write(table,
			 properly(c) ? LAYOUT_LAPIC | rnd(c, 4) << 12
				     : rnd_value(c),
			 4);
		io_write(table + 4, properly(c) ? 0 : rnd_value(c), 4);
		io_write(table + 8, 32 + rnd(c, 224), 4);
		io_write(table + 12, rnd(c, 4) == 0, 4);
	}
	pci_write(d->devfn, d->msix_cap + 2u, 0x8000, 2);
}

void attack_driver(struct cpu *c)
{
	struct device *d = &devices[rnd(c, num_devices)];
	unsigned int status = S_ACKNOWLEDGE, q;

	if (!num_devices)
		return;
	pci_repair(d);
	common_write(c, d, C_STATUS, 0, 1);
	common_write(c, d, C_STATUS, status, 1);
	common_write(c, d, C_STATUS, status |= S_DRIVER, 1);
	negotiate(c, d);
	common_write(c, d, C_STATUS, status |= S_FEATURES_OK, 1);
	if (rnd(c, 4) == 0)
		program_vectors(c, d);
	common_write(c, d, C_MSIX_CONFIG, rnd(c, 4), 2);
	for (q = 0; q < d->num_queues; q++)
		set_up_queue(c, d, q);
	common_write(c, d, C_STATUS, status | S_DRIVER_OK, 1);
	for (q = 0; q < d->num_queues; q++)
		notify(c, d, q);
}

void attack_ring(struct cpu *c)
{
	const struct device *d = &devices[rnd(c, num_devices)];
	unsigned int queue = (unsigned int)rnd(c, properly(c) ? d->num_queues
							      : MAX_QUEUES);
	uint64_t ring = ring_of(d, queue);

	if (!num_devices)
		return;
	if (properly(c))
		publish(c, d, queue);
	else
		for (unsigned int i = 0; i < 64; i++)
			io_write(ring + rnd(c, RING_BYTES / 8) * 8,
				 rnd_value(c), 8);
	notify(c, d, queue);
}

void attack_registers(struct cpu *c)
{
	const struct device *d = &devices[rnd(c, num_devices)];
	unsigned int len = 1u << rnd(c, 4);
	uint64_t offset = rnd(c, d->bar_bytes);

	if (!num_devices)
		return;
	if (rnd(c, 2)) /* the first bytes of one of the structures */
		offset = (rnd(c, 2) ? d->common : d->config) + rnd(c, 0x40);
	if (properly(c))
		offset &= ~(uint64_t)(len - 1);
	if (rnd(c, 2))
		io_read(d->bar + offset, len);
	else
		io_write(d->bar + offset, rnd_value(c), len);
}
