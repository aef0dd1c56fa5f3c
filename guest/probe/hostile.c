/* SPDX-License-Identifier: Apache-2.0 */
#include "hostile.h"

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define PORT_COM1     0x3f8
#define LAPIC_ICR_LOW (LAYOUT_LAPIC + 0x300)
#define ICR_INIT      0x000c4500 /* to all but this CPU */
#define ICR_SIPI      0x000c4600 /* | page number of the entry */
#define TRAMPOLINE    0x8000ull

/* One line of progress for so many actions of all CPUs. */
#define REPORT_EVERY 100

extern uint32_t start_info, cpu_count;
extern const char ap_trampoline[], ap_trampoline_end[];

struct device devices[MAX_DEVICES];
unsigned int num_devices;
uint64_t ram_end;

static struct cpu cpus[MAX_CPUS];
static uint64_t seed;

/* ---- random choices ---- */

uint64_t rnd(struct cpu *c, uint64_t below)
{
	return below ? rng_next(&c->rng) % below : 0;
}

uint64_t rnd_value(struct cpu *c)
{
	static const uint64_t edges[] = {
		0,	    1,		2,
		3,	    4,		7,
		8,	    0x10,	0x7f,
		0x80,	    0xfe,	0xff,
		0x100,	    0x3ff,	0x400,
		0x401,	    0x7fff,	0x8000,
		0xffff,	    0x10000,	0x7fffffff,
		0x80000000, 0xffffffff, 0x100000000,
		1ull << 63, ~0ull,	~0ull - 4095,
	};
	uint64_t v = rng_next(&c->rng);

	if (v % 4)
		return edges[(v >> 8) % ARRAY_SIZE(edges)];
	return rng_next(&c->rng) >> (v >> 8) % 64;
}

/* A careful action makes requests that are served; a careless one slips. */
int properly(struct cpu *c)
{
	return !c->careless || rnd(c, 32) != 0;
}

uint64_t rnd_address(struct cpu *c)
{
	uint64_t kind = c->careless ? rnd(c, 1000) : 0;

	if (kind < 900)
		return ARENA + rnd(c, ARENA_BYTES / 16) * 16;
	if (kind < 930)
		return ARENA + rnd(c, ARENA_BYTES); /* unaligned */
	if (kind < 931)
		return rnd(c, ram_end); /* may well be ourselves */
	if (kind < 960)
		return ram_end - rnd(c, 0x2000);
	if (kind < 970)
		return LAYOUT_HOLE_START + rnd(c, GIB);
	if (kind < 980 && num_devices)
		return devices[rnd(c, num_devices)].bar + rnd(c, 0x8000);
	return rnd_value(c);
}

/* ---- access ---- */

void io_write(uint64_t addr, uint64_t value, unsigned int len)
{
	switch (len) {
	case 1:
		*(volatile uint8_t *)addr = (uint8_t)value;
		break;
	case 2:
		*(volatile uint16_t *)addr = (uint16_t)value;
		break;
	case 4:
		*(volatile uint32_t *)addr = (uint32_t)value;
		break;
	default:
		*(volatile uint64_t *)addr = value;
		break;
	}
}

uint64_t io_read(uint64_t addr, unsigned int len)
{
	switch (len) {
	case 1:
		return *(volatile uint8_t *)addr;
	case 2:
		return *(volatile uint16_t *)addr;
	case 4:
		return *(volatile uint32_t *)addr;
	default:
		return *(volatile uint64_t *)addr;
	}
}

/* ---- console ---- */

static void serial_reset(void)
{
	port_out8(PORT_COM1 + 3, 3); /* 8n1, no divisor latch */
	port_out8(PORT_COM1 + 1, 0);
	port_out8(PORT_COM1 + 2, 0);
	port_out8(PORT_COM1 + 4, 3); /* no loopback */
}

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

static void report(uint64_t total)
{
	serial_reset();
	print("hostile: actions ");
	print_number(total);
	print(" cpus ");
	print_number(cpu_count);
	print(" devices ");
	print_number(num_devices);
	print("\r\n");
}

/* ---- ports ---- */

struct port_range {
	uint16_t base, len;
};

/* Platform devices and their neighbourhood; PCI's ports twice as often. */
static const struct port_range port_ranges[] = {
	{ PORT_SERIAL0, 8 },
	{ PORT_RTC, 2 },
	{ PORT_I8042, 5 },
	{ PORT_PCI_CONFIG, 8 },
	{ PORT_PCI_CONFIG, 8 },
	{ PORT_PM_BASE, 16 },
	{ PORT_HOTPLUG, 12 },
	{ PORT_PVPANIC, 1 },
	{ PORT_WATCHDOG, 12 },
	{ 0x20, 2 },
	{ 0xa0, 2 },
	{ 0x40, 4 },
	{ 0x4d0, 2 },
	{ 0x92, 1 },
	{ 0, 0xffff },
};

/*
 * Two writes end the attack rather than further it: power-off, and resets more
 * often than now and then (about one in ten thousand actions).
 */
static int port_write_allowed(struct cpu *c, uint16_t port, unsigned int len)
{
	unsigned int end = port + len;

	if (port < PORT_PM_BASE + 6 && end > PORT_PM_BASE + 4)
		return 0;
	if ((port <= PORT_RESET && end > PORT_RESET) ||
	    (port <= PORT_I8042 + 4 && end > PORT_I8042 + 4) || port == 0x92)
		return rnd(c, 2) == 0;
	return 1;
}

static void attack_ports(struct cpu *c)
{
	const struct port_range *r =
		&port_ranges[rnd(c, ARRAY_SIZE(port_ranges))];
	uint16_t port = (uint16_t)(r->base + rnd(c, r->len));
	unsigned int len = 1u << rnd(c, 3);
	uint32_t value = (uint32_t)rnd_value(c);

	if (rnd(c, 3) == 0) {
		port_in(port, len);
		return;
	}
	if (!port_write_allowed(c, port, len))
		return;
	if (len == 1)
		port_out8(port, (uint8_t)value);
	else if (len == 2)
		port_out16(port, (uint16_t)value);
	else
		port_out32(port, value);
}

/* ---- MMIO that no device may claim, and the IOAPIC ---- */

static void attack_mmio(struct cpu *c)
{
	uint64_t addr = LAYOUT_HOLE_START + rnd(c, GIB);
	uint64_t value = rnd_value(c);
	unsigned int len = 1u << rnd(c, 4);

	switch (rnd(c, 4)) {
	case 0:
		/* No NMI, INIT or SMI for ourselves: fixed delivery only. */
		addr = LAYOUT_IOAPIC + rnd(c, 0x20);
		value &= ~0x700ull;
		break;
	case 1:
		addr = LAYOUT_ECAM_START + rnd(c, LAYOUT_ECAM_SIZE);
		break;
	case 2:
		addr = 64 * GIB + rnd(c, GIB - 8);
		break;
	default:
		break;
	}
	/* The local APIC is KVM's: an INIT to ourselves would end the fun. */
	if (addr >= LAYOUT_LAPIC - 8 && addr < LAYOUT_LAPIC + 0x1000)
		return;
	if (addr > 4 * GIB - 8 && addr < 4 * GIB)
		return;
	if (rnd(c, 2))
		io_read(addr, len);
	else
		io_write(addr, value, len);
}

static void attack(struct cpu *c)
{
	/* Pull the rug now and then: the VM is rebuilt under load. */
	if (rnd(c, 4000) == 0)
		port_out8(PORT_RESET, 6);
	/* Let go of everything that it may have been asked for, and more. */
	if (rnd(c, 100) == 0)
		port_out32(PORT_HOTPLUG + 8, UINT32_MAX);
	c->careless = rnd(c, 2) != 0;
	switch (rnd(c, 16)) {
	case 0:
	case 1:
		attack_pci(c);
		break;
	case 2:
	case 3:
		attack_ports(c);
		break;
	case 4:
		attack_mmio(c);
		break;
	case 5:
	case 6:
		attack_registers(c);
		break;
	case 7:
	case 8:
		attack_driver(c);
		break;
	default:
		attack_ring(c);
		break;
	}
	c->actions++;
}

/* ---- start ---- */

static void delay(uint64_t ticks)
{
	uint64_t start = cpu_tsc();

	while (cpu_tsc() - start < ticks)
		cpu_pause();
}

/* "seed=123" in the command line, else 0. */
static uint64_t parse_seed(const char *p)
{
	static const char key[] = "seed=";
	uint64_t value = 0;

	for (; *p; p++) {
		unsigned int i = 0;

		while (key[i] && p[i] == key[i])
			i++;
		if (key[i])
			continue;
		for (p += i; *p >= '0' && *p <= '9'; p++)
			value = value * 10 + (uint64_t)(*p - '0');
		return value;
	}
	return 0;
}

/* Fields of struct hvm_start_info (Xen docs/misc/pvh.pandoc). */
static void read_start_info(void)
{
	uint64_t info = start_info, cmdline, map, entries, end;

	cmdline = io_read(info + 24, 8);
	map = io_read(info + 40, 8);
	entries = io_read(info + 48, 4);
	for (uint64_t i = 0; i < entries; i++) {
		if (io_read(map + i * 24 + 16, 4) != 1)
			continue;
		end = io_read(map + i * 24, 8) + io_read(map + i * 24 + 8, 8);
		if (end > ram_end && end <= LAYOUT_HOLE_START)
			ram_end = end;
	}
	seed = cmdline ? parse_seed((const char *)cmdline) : 0;
	if (!seed)
		seed = cpu_tsc();
}

static void start_other_cpus(void)
{
	uint64_t bytes = (uint64_t)(ap_trampoline_end - ap_trampoline);

	for (uint64_t i = 0; i < bytes; i++)
		io_write(TRAMPOLINE + i, (uint8_t)ap_trampoline[i], 1);
	io_write(LAPIC_ICR_LOW, ICR_INIT, 4);
	delay(20000000);
	io_write(LAPIC_ICR_LOW, ICR_SIPI | TRAMPOLINE >> 12, 4);
	delay(20000000);
}

static void boot(void)
{
	serial_reset();
	read_start_info();
	print("hostile: seed ");
	print_number(seed);
	print("\r\n");
	pci_scan();
	report(0);
	for (unsigned int i = 0; i < MAX_CPUS; i++) {
		cpus[i].index = i;
		cpus[i].rng = seed * (2 * i + 3);
	}
	start_other_cpus();
}

void hostile_main(uint32_t index)
{
	struct cpu *c = &cpus[index];
	uint64_t next = REPORT_EVERY, total;

	if (index == 0)
		boot();
	for (;;) {
		attack(c);
		if (index)
			continue;
		total = 0;
		for (unsigned int i = 0; i < MAX_CPUS; i++)
			total += cpus[i].actions;
		if (total < next)
			continue;
		report(total);
		next = total + REPORT_EVERY;
	}
}
