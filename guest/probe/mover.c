/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The moving guest of `quire bench migrate`: a kernel image that fills memory,
 * and then sleeps between the ticks of its timer. Each tick it says on the
 * console that it runs, writes as many pages as are due, and does what it was
 * told there. User mode, see hostile_start.S; one CPU works, others never
 * start.
 *
 * Command line: "mib=N" memory, from START on, that is filled and used;
 * "tick=N" nanoseconds; "every=N" ticks of the TSC between two pages that it
 * writes, 0: none.
 *
 * On the console: "mover: ready" when memory is filled, "." for each tick; for
 * each "p" that is typed a pass over all of the memory, and then "pass TICKS
 * BAD": the ticks of the TSC that it took, the pages that are not what they
 * were.
 */
#include <stdint.h>

#include "payload.h"
#include "x86/layout.h"

#define PORT_COM1 0x3f8
#define PORT_LSR  (PORT_COM1 + 5)
#define LSR_INPUT 1

#define LAPIC_SPURIOUS	    (LAYOUT_LAPIC + 0xf0)
#define LAPIC_TIMER	    (LAYOUT_LAPIC + 0x320)
#define LAPIC_TIMER_INITIAL (LAYOUT_LAPIC + 0x380)
#define LAPIC_TIMER_DIVIDE  (LAYOUT_LAPIC + 0x3e0)
#define LAPIC_ON	    0x1ff
#define LAPIC_PERIODIC	    0x20000
#define LAPIC_BY_ONE	    0xb
#define LAPIC_ICR_LOW	    (LAYOUT_LAPIC + 0x300)
#define ICR_TO_SELF	    0x44000
#define VECTOR_TIMER	    0x20 /* hostile_start.S */
#define VECTOR_SLEEP	    0x21

#define START	   (32ull << 20)
#define PAGE	   4096ull
#define PAGE_WORDS 512u

extern uint32_t start_info;
extern volatile uint32_t times_slept;

void hostile_main(uint32_t index);

static uint64_t num_pages;

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

/* The first word of a page is free for all to write; the others stay. */
static void fill(uint64_t page)
{
	volatile uint64_t *p = (volatile uint64_t *)page;
	uint64_t state = page;

	for (unsigned int i = 0; i < PAGE_WORDS; i++)
		p[i] = rng_next(&state);
}

/* Word i that fill() put there. */
static uint64_t word(uint64_t page, uint64_t i)
{
	uint64_t state = page + i * 0x9e3779b97f4a7c15ull;

	return rng_next(&state);
}

static int is_bad(uint64_t page)
{
	const volatile uint64_t *p = (const volatile uint64_t *)page;

	return p[PAGE_WORDS / 2] != word(page, PAGE_WORDS / 2) ||
	       p[PAGE_WORDS - 1] != word(page, PAGE_WORDS - 1);
}

/* To each page: check it and write it. */
static void pass(void)
{
	uint64_t began = cpu_tsc(), bad = 0;

	for (uint64_t i = 0; i < num_pages; i++) {
		uint64_t page = START + i * PAGE;

		bad += (uint64_t)is_bad(page);
		*(volatile uint64_t *)page = i;
	}
	began = cpu_tsc() - began;
	print("\npass ");
	print_number(began);
	print(" ");
	print_number(bad);
	print("\n");
}

/* One page after the other, over and over. More than all of them is no more. */
static void write_due(uint64_t due)
{
	static uint64_t at;

	for (due = due < num_pages ? due : num_pages; due; due--) {
		*(volatile uint64_t *)(START + at * PAGE) = due;
		at = at + 1 < num_pages ? at + 1 : 0;
	}
}

static void poke(uint64_t where, uint32_t value)
{
	*(volatile uint32_t *)where = value;
}

static void start_timer(uint64_t ns)
{
	poke(LAPIC_SPURIOUS, LAPIC_ON);
	poke(LAPIC_TIMER_DIVIDE, LAPIC_BY_ONE);
	poke(LAPIC_TIMER, LAPIC_PERIODIC | VECTOR_TIMER);
	poke(LAPIC_TIMER_INITIAL, (uint32_t)ns); /* KVM's runs at 1 GHz */
}

/* Until the timer fires, now or soon. */
static void sleep(void)
{
	uint32_t before = times_slept;

	poke(LAPIC_ICR_LOW, ICR_TO_SELF | VECTOR_SLEEP);
	while (times_slept == before)
		cpu_pause();
}

static void run(uint64_t every)
{
	uint64_t last = cpu_tsc();

	for (;;) {
		sleep();
		port_out8(PORT_COM1, '.');
		if (every) {
			uint64_t due = (cpu_tsc() - last) / every;

			last += due * every;
			write_due(due);
		}
		if (port_in(PORT_LSR, 1) & LSR_INPUT &&
		    port_in(PORT_COM1, 1) == 'p') {
			pass();
			last = cpu_tsc();
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
	num_pages = option(text, "mib=", 16) * ((1ull << 20) / PAGE);
	for (uint64_t i = 0; i < num_pages; i++)
		fill(START + i * PAGE);
	start_timer(option(text, "tick=", 1000000));
	print("mover: ready\n");
	run(option(text, "every=", 0));
}
