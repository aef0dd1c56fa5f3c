/* SPDX-License-Identifier: Apache-2.0 */
/* The few machine primitives that payloads share. All are usable at CPL3. */
#ifndef QUIRE_GUEST_PROBE_PAYLOAD_H
#define QUIRE_GUEST_PROBE_PAYLOAD_H

#include "probe/protocol.h"

void payload_main(struct probe_slot *slot);

static inline void cpu_pause(void)
{
	__asm__ volatile("pause" ::: "memory");
}

/* Ordered on both sides, so that it times exactly what stands between two. */
static inline uint64_t cpu_tsc(void)
{
	uint32_t lo, hi;

	__asm__ volatile("lfence\n\trdtsc\n\tlfence"
			 : "=a"(lo), "=d"(hi)
			 :
			 : "memory");
	return (uint64_t)hi << 32 | lo;
}

static inline void port_out32(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port) : "memory");
}

static inline void port_out16(uint16_t port, uint16_t value)
{
	__asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port) : "memory");
}

static inline void port_out8(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port) : "memory");
}

/* len is 1, 2 or 4. */
static inline uint32_t port_in(uint16_t port, unsigned int len)
{
	uint32_t value = 0;

	if (len == 1)
		__asm__ volatile("inb %1, %b0" : "+a"(value) : "Nd"(port));
	else if (len == 2)
		__asm__ volatile("inw %1, %w0" : "+a"(value) : "Nd"(port));
	else
		__asm__ volatile("inl %1, %0" : "+a"(value) : "Nd"(port));
	return value;
}

/* splitmix64 */
static inline uint64_t rng_next(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

#endif
