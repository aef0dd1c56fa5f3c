/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The writing guest: a kernel image for `quire run --kernel` that drives all
 * virtio-blk disks that it may write, in passes without end: each block is
 * read, compared with what the pass before left there, and given what this one
 * says; some are zeroed instead of written. A block that is lost, old or from
 * elsewhere is found in the pass after. User mode, see hostile_start.S; one CPU
 * works, others never start. It polls: there are no interrupts.
 *
 * Command line: "blocks=N" of 4 KiB on each disk (default 64), "step=N" KiB
 * from one to the next (default 4).
 *
 * On the console: "scribe: ready" when all have been written once, "scribe:
 * pass N", "scribe: BAD disk D block B in pass N has W", "scribe: FAILED ..."
 * where the device did.
 *
 * Source: virtio 1.2, sections 2.7, 3.1, 4.1, 5.2.
 */
#include <stdint.h>

#include "payload.h"
#include "x86/layout.h"

#define PORT_COM1 0x3f8

#define PCI_COMMAND	   0x04
#define PCI_BAR0	   0x10
#define PCI_CAP_POINTER	   0x34
#define COMMAND_MEM_MASTER 6
#define CAP_VENDOR	   0x09
#define CAP_COMMON	   1
#define CAP_NOTIFY	   2
#define ID_BLK		   0x10421af4u

/* Common configuration, offsets. */
#define C_DEVICE_FEATURE_SELECT 0x00
#define C_DEVICE_FEATURE	0x04
#define C_DRIVER_FEATURE_SELECT 0x08
#define C_DRIVER_FEATURE	0x0c
#define C_STATUS		0x14
#define C_QUEUE_SELECT		0x16
#define C_QUEUE_SIZE		0x18
#define C_QUEUE_ENABLE		0x1c
#define C_QUEUE_DESC		0x20
#define C_QUEUE_DRIVER		0x28
#define C_QUEUE_DEVICE		0x30

#define S_ACKNOWLEDGE 1
#define S_DRIVER      2
#define S_DRIVER_OK   4
#define S_FEATURES_OK 8

#define F_READ_ONLY    (1u << 5)
#define F_WRITE_ZEROES (1u << 14)
#define F_VERSION_1    1u /* of the second word */

#define T_READ	       0
#define T_WRITE	       1
#define T_WRITE_ZEROES 13

#define D_NEXT	1
#define D_WRITE 2

#define MAX_DISKS   4
#define QUEUE_SIZE  16
#define BLOCK	    4096u
#define BLOCK_WORDS (BLOCK / 8)

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

/* What one disk and we share. */
struct ring {
	struct desc desc[QUEUE_SIZE];
	volatile uint16_t avail[2 + QUEUE_SIZE + 1] __attribute__((aligned(2)));
	volatile uint16_t used_flags __attribute__((aligned(4)));
	volatile uint16_t used_idx;
	uint32_t used_ring[2 * QUEUE_SIZE];
	struct {
		uint32_t type, reserved;
		uint64_t sector;
	} header;
	struct {
		uint64_t sector;
		uint32_t num, flags;
	} range;
	volatile uint8_t status;
	volatile uint64_t data[BLOCK_WORDS] __attribute__((aligned(4096)));
};

struct disk {
	uint64_t common, notify;
	struct ring *ring;
};

extern uint32_t start_info;

void hostile_main(uint32_t index);

static struct ring rings[MAX_DISKS] __attribute__((aligned(4096)));
static struct disk disks[MAX_DISKS];
static unsigned int num_disks;
static uint64_t blocks, step;

static void print(const char *s)
{
	for (; *s; s++)
		port_out8(PORT_COM1, (uint8_t)*s);
}

static void print_number(uint64_t n)
{
	char digits[21], *p = digits + sizeof(digits) - 1;

	*p = '\0';
	do
		*--p = (char)('0' + n % 10);
	while (n /= 10);
	print(p);
}

static void print_with(const char *s, uint64_t n)
{
	print(s);
	print_number(n);
}

/* key is "blocks=". */
static uint64_t option(const char *p, const char *key, uint64_t value)
{
	for (; *p; p++) {
		unsigned int i = 0;

		while (key[i] && p[i] == key[i])
			i++;
		if (key[i])
			continue;
		value = 0;
		for (p += i; *p >= '0' && *p <= '9'; p++)
			value = value * 10 + (uint64_t)(*p - '0');
		return value;
	}
	return value;
}

static void stop(void)
{
	for (;;)
		cpu_pause();
}

/* ---- the device ---- */

static uint32_t peek(uint64_t addr)
{
	return *(volatile uint32_t *)addr;
}

static void poke8(uint64_t addr, uint8_t value)
{
	*(volatile uint8_t *)addr = value;
}

static void poke16(uint64_t addr, uint16_t value)
{
	*(volatile uint16_t *)addr = value;
}

static void poke32(uint64_t addr, uint32_t value)
{
	*(volatile uint32_t *)addr = value;
}

static void poke_address(uint64_t addr, volatile void *what)
{
	poke32(addr, (uint32_t)(uintptr_t)what);
	poke32(addr + 4, 0);
}

/* Its capabilities say where in its BAR, number 0, which registers are. */
static void find_registers(struct disk *d, uint64_t ecam)
{
	uint64_t bar = (uint64_t)peek(ecam + PCI_BAR0 + 4) << 32 |
		       (peek(ecam + PCI_BAR0) & ~15u);
	uint32_t cap = peek(ecam + PCI_CAP_POINTER) & 0xff;

	while (cap) {
		uint32_t head = peek(ecam + cap);

		if ((head & 0xff) == CAP_VENDOR && head >> 24 == CAP_COMMON)
			d->common = bar + peek(ecam + cap + 8);
		if ((head & 0xff) == CAP_VENDOR && head >> 24 == CAP_NOTIFY)
			d->notify = bar + peek(ecam + cap + 8);
		cap = head >> 8 & 0xff;
	}
}

static void start_disk(struct disk *d)
{
	struct ring *r = d->ring;
	uint64_t c = d->common;
	uint8_t status = S_ACKNOWLEDGE | S_DRIVER;

	poke8(c + C_STATUS, 0);
	poke8(c + C_STATUS, status);
	poke32(c + C_DRIVER_FEATURE_SELECT, 0);
	poke32(c + C_DRIVER_FEATURE, F_WRITE_ZEROES);
	poke32(c + C_DRIVER_FEATURE_SELECT, 1);
	poke32(c + C_DRIVER_FEATURE, F_VERSION_1);
	poke8(c + C_STATUS, status |= S_FEATURES_OK);
	r->avail[0] = 1; /* no interrupts */
	poke16(c + C_QUEUE_SELECT, 0);
	poke16(c + C_QUEUE_SIZE, QUEUE_SIZE);
	poke_address(c + C_QUEUE_DESC, r->desc);
	poke_address(c + C_QUEUE_DRIVER, r->avail);
	poke_address(c + C_QUEUE_DEVICE, (volatile void *)&r->used_flags);
	poke16(c + C_QUEUE_ENABLE, 1);
	poke8(c + C_STATUS, status | S_DRIVER_OK);
}

static int is_read_only(const struct disk *d)
{
	poke32(d->common + C_DEVICE_FEATURE_SELECT, 0);
	return (peek(d->common + C_DEVICE_FEATURE) & F_READ_ONLY) != 0;
}

static void find_disks(void)
{
	for (unsigned int slot = 0; slot < 32 && num_disks < MAX_DISKS;
	     slot++) {
		uint64_t ecam = LAYOUT_ECAM_START + ((uint64_t)slot << 15);
		struct disk *d = &disks[num_disks];

		if (peek(ecam) != ID_BLK)
			continue;
		find_registers(d, ecam);
		poke16(ecam + PCI_COMMAND, COMMAND_MEM_MASTER);
		if (is_read_only(d))
			continue;
		d->ring = &rings[num_disks++];
		start_disk(d);
	}
}

static void put_desc(struct ring *r, unsigned int i, volatile void *what,
		     uint32_t len, unsigned int flags)
{
	r->desc[i] = (struct desc){
		.addr = (uint64_t)(uintptr_t)what,
		.len = len,
		.flags = (uint16_t)flags,
		.next = (uint16_t)(i + 1),
	};
}

/* What moves is data, or of zeroing the range. */
static void request(struct disk *d, uint32_t type, uint64_t block)
{
	struct ring *r = d->ring;
	uint16_t next = (uint16_t)(r->avail[1] + 1);

	r->header.type = type;
	r->header.sector = type == T_WRITE_ZEROES ? 0 : block * step * 2;
	r->range.sector = block * step * 2;
	r->range.num = BLOCK / 512;
	r->status = 0xff;
	put_desc(r, 0, &r->header, sizeof(r->header), D_NEXT);
	if (type == T_WRITE_ZEROES)
		put_desc(r, 1, &r->range, sizeof(r->range), D_NEXT);
	else
		put_desc(r, 1, r->data, BLOCK,
			 D_NEXT | (type == T_READ ? D_WRITE : 0));
	put_desc(r, 2, &r->status, 1, D_WRITE);
	r->avail[2 + r->avail[1] % QUEUE_SIZE] = 0;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	r->avail[1] = next;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	poke16(d->notify, 0);
	while (r->used_idx != next)
		cpu_pause();
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!r->status)
		return;
	print_with("scribe: FAILED request ", type);
	print_with(" block ", block);
	print_with(" status ", r->status);
	print("\r\n");
	stop();
}

/* ---- passes ---- */

/* Word i of a block; those of each eighth block are zero, another each time. */
static uint64_t word(uint64_t disk, uint64_t block, uint64_t pass, uint64_t i)
{
	uint64_t state = (disk << 48 | block << 24 | pass) + i * BLOCK;

	return (block + pass) % 8 ? rng_next(&state) : 0;
}

static void check(uint64_t disk, uint64_t block, uint64_t pass)
{
	const struct ring *r = disks[disk].ring;

	for (uint64_t i = 0; i < BLOCK_WORDS; i++) {
		if (r->data[i] == word(disk, block, pass, i))
			continue;
		print_with("scribe: BAD disk ", disk);
		print_with(" block ", block);
		print_with(" in pass ", pass);
		print_with(" has ", r->data[i]);
		print("\r\n");
		stop();
	}
}

static void write_block(uint64_t disk, uint64_t block, uint64_t pass)
{
	struct ring *r = disks[disk].ring;

	if (!((block + pass) % 8)) {
		request(&disks[disk], T_WRITE_ZEROES, block);
		return;
	}
	for (uint64_t i = 0; i < BLOCK_WORDS; i++)
		r->data[i] = word(disk, block, pass, i);
	request(&disks[disk], T_WRITE, block);
}

static void pass_over(uint64_t pass)
{
	for (uint64_t block = 0; block < blocks; block++) {
		for (unsigned int i = 0; i < num_disks; i++) {
			if (pass) {
				request(&disks[i], T_READ, block);
				check(i, block, pass - 1);
			}
			write_block(i, block, pass);
		}
	}
}

void hostile_main(uint32_t index)
{
	uint64_t cmdline;
	const char *text;

	while (index) /* nobody woke it */
		cpu_pause();
	cmdline = *(volatile uint64_t *)(uintptr_t)(start_info + 24u);
	text = cmdline ? (const char *)cmdline : "";
	blocks = option(text, "blocks=", 64);
	step = option(text, "step=", 4);
	find_disks();
	pass_over(0);
	print_with("scribe: ready, disks ", num_disks);
	print("\r\n");
	for (uint64_t pass = 1;; pass++) {
		pass_over(pass);
		print_with("scribe: pass ", pass);
		print("\r\n");
	}
}
