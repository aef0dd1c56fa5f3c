/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The walking guest: a kernel image for `quire run --kernel` that fills memory
 * with what its address and the pass say, and then, in passes without end,
 * checks each page and fills it for the next. A page that is lost, old or from
 * elsewhere is found in the pass after. User mode, see hostile_start.S.
 *
 * Command line: "mib=N" memory in all (default 16), shared by the CPUs;
 * "every=N": only each Nth page is walked, as a working set.
 *
 * On the console: "walker: ready", "walker: pass N" each time that all CPUs
 * have done one, "walker: BAD page A in pass N has W".
 */
#include <stdint.h>

#include "payload.h"
#include "x86/layout.h"

#define PORT_COM1     0x3f8
#define LAPIC_ICR_LOW (LAYOUT_LAPIC + 0x300)
#define ICR_INIT      0x000c4500 /* to all but this CPU */
#define ICR_SIPI      0x000c4600 /* | page number of the entry */
#define TRAMPOLINE    0x8000ull
#define START	      (32ull << 20)
#define PAGE	      4096ull
#define MAX_CPUS      8

extern uint32_t start_info, cpu_count;
extern const char ap_trampoline[], ap_trampoline_end[];

void hostile_main(uint32_t index);

static volatile uint64_t passes[MAX_CPUS];
static volatile uint32_t go, num_cpus, bad;
static uint64_t mib, every;

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

/* key is "mib=". */
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

static uint64_t word(uint64_t page, uint64_t pass)
{
	uint64_t state = page + pass;

	return rng_next(&state);
}

static void fill(uint64_t page, uint64_t pass)
{
	volatile uint64_t *p = (volatile uint64_t *)page;

	p[0] = p[255] = p[511] = word(page, pass);
}

static void check(uint64_t page, uint64_t pass)
{
	volatile uint64_t *p = (volatile uint64_t *)page;
	uint64_t want = word(page, pass);

	if (p[0] == want && p[255] == want && p[511] == want)
		return;
	if (__atomic_exchange_n(&bad, 1, __ATOMIC_SEQ_CST))
		return; /* one is enough */
	print("walker: BAD page ");
	print_number(page);
	print(" in pass ");
	print_number(pass);
	print(" has ");
	print_number(p[0]);
	print("\r\n");
}

static void walk(uint32_t index)
{
	uint64_t share = mib * (1ull << 20) / num_cpus / PAGE * PAGE;
	uint64_t start = START + index * share, pass = 1;

	for (uint64_t at = start; at < start + share; at += PAGE)
		fill(at, pass);
	passes[index] = pass;
	if (index == 0) {
		for (uint32_t i = 0; i < num_cpus; i++)
			while (!passes[i])
				cpu_pause();
		print("walker: ready\r\n");
	}
	/* Pages that are skipped keep what the first pass gave them. */
	for (;; pass++) {
		for (uint64_t at = start; at < start + share;
		     at += PAGE * every) {
			check(at, pass);
			fill(at, pass + 1);
		}
		passes[index] = pass;
		if (index)
			continue;
		for (uint32_t i = 0; i < num_cpus; i++)
			while (passes[i] < pass)
				cpu_pause();
		print("walker: pass ");
		print_number(pass);
		print("\r\n");
	}
}

static void delay(uint64_t ticks)
{
	uint64_t start = cpu_tsc();

	while (cpu_tsc() - start < ticks)
		cpu_pause();
}

static void wake_others(void)
{
	volatile uint32_t *icr = (volatile uint32_t *)LAPIC_ICR_LOW;
	volatile char *to = (volatile char *)TRAMPOLINE;

	for (const char *p = ap_trampoline; p < ap_trampoline_end; p++)
		*to++ = *p;
	*icr = ICR_INIT;
	delay(10000000);
	*icr = ICR_SIPI | TRAMPOLINE / PAGE;
	delay(100000000);
}

void hostile_main(uint32_t index)
{
	uint64_t cmdline;
	const char *text;

	if (index) {
		while (!go)
			cpu_pause();
		while (index >= num_cpus)
			cpu_pause();
		walk(index);
	}
	cmdline = *(volatile uint64_t *)(uintptr_t)(start_info + 24u);
	text = cmdline ? (const char *)cmdline : "";
	mib = option(text, "mib=", 16);
	every = option(text, "every=", 1);
	wake_others();
	num_cpus = cpu_count < MAX_CPUS ? cpu_count : MAX_CPUS;
	go = 1;
	walk(0);
}
