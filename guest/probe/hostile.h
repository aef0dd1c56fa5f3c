/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hostile guest: an ordinary kernel image for `quire run --kernel` that
 * knows the machine well and does everything it should not. It is fast (user
 * mode, see hostile_start.S) and half valid on purpose: random bytes alone
 * never get past the first check of a device.
 *
 * Command line: "seed=N" repeats a run as far as timing allows (without it each
 * boot takes its own seed and prints it).
 *
 * Each CPU has a struct cpu and its own random numbers. Devices, found by CPU
 * 0, are shared: that CPUs fight over them is part of the attack.
 */
#ifndef QUIRE_GUEST_PROBE_HOSTILE_H
#define QUIRE_GUEST_PROBE_HOSTILE_H

#include <stdint.h>

#include "payload.h"
#include "x86/layout.h"

/* Rings and buffers lie here: memory whose loss does not hurt us. */
#define ARENA	    (32 * MIB)
#define ARENA_BYTES (16 * MIB)

#define MAX_CPUS    8
#define MAX_DEVICES 32
#define MAX_QUEUES  4 /* of a device that we use */

struct cpu {
	uint32_t index;
	uint64_t rng;
	int careless; /* this action; else it goes by the book as it can */
	volatile uint64_t actions;
};

/* One virtio function; written by CPU 0 before the others start. */
struct device {
	uint8_t devfn;
	uint8_t msix_cap;    /* offset in configuration space, 0: none */
	uint8_t pci_cfg_cap; /* VIRTIO_PCI_CAP_PCI_CFG */
	uint16_t id;	     /* virtio device id */
	uint64_t bar;	     /* where its BAR was at boot */
	uint64_t bar_bytes;
	uint32_t common, notify, isr, config; /* offsets in the BAR */
	uint32_t notify_mult;
	uint32_t num_queues;
	int indirect; /* accepted the last time, by any CPU */
	uint32_t queue_size[MAX_QUEUES]; /* as last asked for, by any CPU */
};

extern struct device devices[MAX_DEVICES];
extern unsigned int num_devices;
extern uint64_t ram_end;

/* hostile.c */
void hostile_main(uint32_t index);
uint64_t rnd(struct cpu *c, uint64_t below);
uint64_t rnd_value(struct cpu *c);   /* any 64 bits, edge cases preferred */
uint64_t rnd_address(struct cpu *c); /* for DMA; mostly in the arena */
int properly(struct cpu *c);	     /* shall this step be done right? */
void io_write(uint64_t addr, uint64_t value, unsigned int len);
uint64_t io_read(uint64_t addr, unsigned int len);

/* hostile_pci.c */
void pci_scan(void);
uint32_t pci_read(uint8_t devfn, uint32_t offset, unsigned int len);
void pci_write(uint8_t devfn, uint32_t offset, uint32_t value,
	       unsigned int len);
/* Decoding on, BAR back where it was, so that the next attack arrives. */
void pci_repair(const struct device *d);
void attack_pci(struct cpu *c);

/* hostile_virtio.c */
void attack_driver(struct cpu *c); /* a whole life as a bad driver */
void attack_ring(struct cpu *c);   /* change a ring under a device's feet */
void attack_registers(struct cpu *c);

#endif
