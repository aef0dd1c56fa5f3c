/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ACPI tables: RSDP, XSDT, FADT, MADT, MCFG, WDAT, DSDT (from ASL, compiled by
 * iasl at build time). What differs between VMs (CPU count, windows) reaches
 * the DSDT through a small machine-info block that its methods read. Source:
 * ACPI 6.5.
 */
#ifndef QUIRE_X86_ACPI_H
#define QUIRE_X86_ACPI_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "mem/ram.h"

struct acpi_config {
	unsigned int num_cpus; /* APIC ids 0..num_cpus - 1 */
	/* PCI window above 4 GiB; size 0: there is none. */
	uint64_t pci64_start, pci64_size;
	/* An 8259 pair answers its ports (IRQCHIP_KERNEL, not SPLIT). */
	bool has_pic;
	/* WDAT for the timer at PORT_WATCHDOG; period_ms 0: there is none. */
	struct {
		uint32_t period_ms, max_count;
	} watchdog;
};

/*
 * Write all tables into [LAYOUT_ACPI_START, LAYOUT_ACPI_END); *ret_rsdp is the
 * address of the RSDP.
 */
__must_check int acpi_write_tables(const struct ram *ram,
				   const struct acpi_config *cfg,
				   uint64_t *ret_rsdp, struct err *err);

#endif
