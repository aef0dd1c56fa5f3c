/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest-physical and port map of a quire machine: every fixed address in
 * one place. ACPI (x86/acpi/), the boot loaders and the devices take theirs
 * from here.
 *
 *	0x00000000_00000000  RAM (low), conventional memory up to LAYOUT_EBDA
 *	0x00000000_000e0000  ACPI tables (reserved in the memory map), to
 *0xff000 0x00000000_000ff000  VM generation id (reserved too)
 *	0x00000000_00100000  RAM (low) continues, to 3 GiB at most
 *	0x00000000_c0000000  PCI memory window below 4 GiB
 *	0x00000000_e0000000  ECAM, bus 0
 *	0x00000000_fec00000  IOAPIC, LAPIC and what KVM keeps for itself
 *	0x00000001_00000000  RAM (high)
 *	end of RAM, aligned  PCI memory window above 4 GiB
 */
#ifndef QUIRE_X86_LAYOUT_H
#define QUIRE_X86_LAYOUT_H

#include "base/arith.h"

/* RAM below 4 GiB ends here at the latest, and goes on above the hole. */
#define LAYOUT_HOLE_START (3 * GIB)
#define LAYOUT_HOLE_END	  (4 * GIB)

/* Boot structures, all below 640 KiB, only until the kernel copied them. */
#define LAYOUT_GDT	   0x0500ull
#define LAYOUT_PVH_START   0x6000ull
#define LAYOUT_ZERO_PAGE   0x7000ull
#define LAYOUT_BOOT_STACK  0x8ff0ull
#define LAYOUT_BOOT_PML4   0x9000ull /* PML4, PDPT, then four PDs */
#define LAYOUT_CMDLINE	   0x20000ull
#define LAYOUT_CMDLINE_MAX 0x10000ull
#define LAYOUT_EBDA	   0x9fc00ull
#define LAYOUT_ACPI_START  0xe0000ull /* RSDP first: guests scan from here */
#define LAYOUT_ACPI_INFO   0xe0040ull /* machine info, read by the DSDT */
#define LAYOUT_VMGENID                                        \
	0xff000ull /* a page of its own, see device/vmgenid.h \
		    */
#define LAYOUT_ACPI_END 0x100000ull
#define LAYOUT_HIGH_RAM 0x100000ull /* where kernels may be loaded */

#define LAYOUT_PCI32_START (3 * GIB)
#define LAYOUT_PCI32_SIZE  (512 * MIB)
#define LAYOUT_ECAM_START  0xe0000000ull
/*
 * One bus. With more announced, Linux probes every slot of every one by ports:
 * 8,192 configuration reads, two exits each, for buses that are not there.
 */
#define LAYOUT_ECAM_SIZE MIB
#define LAYOUT_IOAPIC	 0xfec00000ull
#define LAYOUT_LAPIC	 0xfee00000ull
/* Intel hosts: KVM_SET_IDENTITY_MAP_ADDR, KVM_SET_TSS_ADDR (3 pages). */
#define LAYOUT_KVM_IDENTITY 0xfffbc000ull
#define LAYOUT_KVM_TSS	    0xfffbd000ull

#define LAYOUT_PCI64_SIZE (64 * GIB)

/* First address of the high PCI window, given the end of guest RAM. */
static inline uint64_t layout_pci64_start(uint64_t ram_end)
{
	return align_up(MAX(ram_end, 4 * GIB), LAYOUT_PCI64_SIZE);
}

/* Ports. */
#define PORT_SERIAL0	0x3f8 /* 8 ports */
#define PORT_RTC	0x70  /* index, data */
#define RTC_CENTURY	0x32  /* its register that the FADT names */
#define PORT_I8042	0x60  /* 0x60, 0x64: reset only */
#define PORT_PCI_CONFIG 0xcf8 /* address; data at 0xcfc */
#define PORT_RESET	0xcf9
#define PORT_PM_BASE	0x600 /* see device/pm.h; 14 ports */
#define PORT_HOTPLUG	0x610 /* see device/pci_hotplug.h; 12 ports */
#define PORT_WATCHDOG	0x620 /* see device/watchdog.h; 12 ports */
#define PORT_PVPANIC	0x505 /* as QEMU's */
#define PORT_DEBUG_EXIT 0xf4  /* 4 ports, as QEMU's isa-debug-exit */
#define PORT_MILESTONE	0xf8  /* see device/milestone.h */

/* General-purpose events; the DSDT has a method for each. */
#define GPE_HOTPLUG 1 /* level */
#define GPE_VMGENID 2 /* edge */

/* IOAPIC pins. */
#define IRQ_SERIAL0 4
#define IRQ_RTC	    8
#define IRQ_SCI	    9

#endif
