/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ACPI tables' bytes as packed structs, for acpi.c and its test. All fields
 * are little-endian, which is what quire's only architecture has anyway.
 * Source: ACPI 6.5 chapter 5 (section numbers beside the structs); MCFG: PCI
 * Firmware 3.3 section 4.1.2.
 */
#ifndef QUIRE_X86_ACPI_DEFS_H
#define QUIRE_X86_ACPI_DEFS_H

#include <stdint.h>

#include "base/compiler.h"

struct acpi_rsdp { /* 5.2.5.3 */
	char signature[8];
	uint8_t checksum; /* of the first 20 bytes */
	char oem_id[6];
	uint8_t revision;
	uint32_t rsdt_address;
	uint32_t length;
	uint64_t xsdt_address;
	uint8_t extended_checksum;
	uint8_t reserved[3];
} __packed_struct;

struct acpi_header { /* 5.2.6 */
	char signature[4];
	uint32_t length;
	uint8_t revision;
	uint8_t checksum;
	char oem_id[6];
	char oem_table_id[8];
	uint32_t oem_revision;
	char creator_id[4];
	uint32_t creator_revision;
} __packed_struct;

struct acpi_gas {      /* 5.2.3.2 */
	uint8_t space; /* 1: system I/O */
	uint8_t bit_width, bit_offset;
	uint8_t access; /* 1 byte, 2 word, 3 dword */
	uint64_t address;
} __packed_struct;

#define ACPI_GAS_IO 1

struct acpi_facs { /* 5.2.10 */
	char signature[4];
	uint32_t length;
	uint32_t hardware_signature;
	uint32_t waking_vector;
	uint32_t global_lock;
	uint32_t flags;
	uint64_t x_waking_vector;
	uint8_t version;
	uint8_t reserved[3];
	uint32_t ospm_flags;
	uint8_t reserved2[24];
} __packed_struct;

struct acpi_fadt { /* 5.2.9 */
	struct acpi_header header;
	uint32_t facs, dsdt;
	uint8_t reserved0;
	uint8_t preferred_profile;
	uint16_t sci_irq;
	uint32_t smi_command;
	uint8_t acpi_enable, acpi_disable, s4bios_req, pstate_control;
	uint32_t pm1a_event, pm1b_event;
	uint32_t pm1a_control, pm1b_control;
	uint32_t pm2_control, pm_timer;
	uint32_t gpe0, gpe1;
	uint8_t pm1_event_length, pm1_control_length;
	uint8_t pm2_control_length, pm_timer_length;
	uint8_t gpe0_length, gpe1_length, gpe1_base;
	uint8_t cst_control;
	uint16_t c2_latency, c3_latency;
	uint16_t flush_size, flush_stride;
	uint8_t duty_offset, duty_width;
	uint8_t day_alarm, month_alarm, century;
	uint16_t boot_arch;
	uint8_t reserved1;
	uint32_t flags;
	struct acpi_gas reset_register;
	uint8_t reset_value;
	uint16_t arm_boot_arch;
	uint8_t minor_revision;
	uint64_t x_facs, x_dsdt;
	struct acpi_gas x_pm1a_event, x_pm1b_event;
	struct acpi_gas x_pm1a_control, x_pm1b_control;
	struct acpi_gas x_pm2_control, x_pm_timer;
	struct acpi_gas x_gpe0, x_gpe1;
	struct acpi_gas sleep_control, sleep_status;
	uint64_t hypervisor_id;
} __packed_struct;

#define ACPI_PROFILE_ENTERPRISE_SERVER 4

#define ACPI_BOOT_LEGACY_DEVICES (1u << 0)
#define ACPI_BOOT_NO_VGA	 (1u << 2)
#define ACPI_BOOT_NO_ASPM	 (1u << 4)

#define ACPI_FADT_WBINVD	  (1u << 0)
#define ACPI_FADT_PROC_C1	  (1u << 2)
#define ACPI_FADT_NO_SLEEP_BUTTON (1u << 5) /* as a fixed feature */
#define ACPI_FADT_NO_FIXED_RTC	  (1u << 6)
#define ACPI_FADT_RESET_REGISTER  (1u << 10)
#define ACPI_FADT_HEADLESS	  (1u << 12)

struct acpi_madt { /* 5.2.12 */
	struct acpi_header header;
	uint32_t lapic_address;
	uint32_t flags;
} __packed_struct;

#define ACPI_MADT_PCAT_COMPAT (1u << 0)

enum acpi_madt_type {
	ACPI_MADT_LAPIC = 0,
	ACPI_MADT_IOAPIC = 1,
	ACPI_MADT_OVERRIDE = 2,
	ACPI_MADT_LAPIC_NMI = 4,
	ACPI_MADT_X2APIC = 9,
	ACPI_MADT_X2APIC_NMI = 10,
};

struct acpi_madt_lapic { /* 5.2.12.2 */
	uint8_t type, length;
	uint8_t uid, apic_id;
	uint32_t flags; /* 1: enabled */
} __packed_struct;

struct acpi_madt_ioapic { /* 5.2.12.3 */
	uint8_t type, length;
	uint8_t id, reserved;
	uint32_t address, gsi_base;
} __packed_struct;

struct acpi_madt_override { /* 5.2.12.5 */
	uint8_t type, length;
	uint8_t bus, irq; /* bus 0: ISA */
	uint32_t gsi;
	uint16_t flags;
} __packed_struct;

#define ACPI_INTI_ACTIVE_HIGH 0x1
#define ACPI_INTI_LEVEL	      0xc

struct acpi_madt_lapic_nmi { /* 5.2.12.7 */
	uint8_t type, length;
	uint8_t uid; /* 0xff: all */
	uint16_t flags;
	uint8_t lint;
} __packed_struct;

struct acpi_madt_x2apic { /* 5.2.12.12 */
	uint8_t type, length;
	uint16_t reserved;
	uint32_t apic_id;
	uint32_t flags; /* 1: enabled */
	uint32_t uid;
} __packed_struct;

struct acpi_madt_x2apic_nmi { /* 5.2.12.13 */
	uint8_t type, length;
	uint16_t flags;
	uint32_t uid; /* 0xffffffff: all */
	uint8_t lint;
	uint8_t reserved[3];
} __packed_struct;

struct acpi_mcfg { /* one segment */
	struct acpi_header header;
	uint64_t reserved;
	uint64_t base;
	uint16_t segment;
	uint8_t first_bus, last_bus;
	uint32_t reserved2;
} __packed_struct;

/* Microsoft, Hardware Watchdog Timers Design Specification, section 4. */
struct acpi_wdat {
	struct acpi_header header;
	uint32_t watchdog_header_length; /* what follows, up to the entries */
	uint16_t pci_segment; /* ff.. in all of these: no PCI device */
	uint8_t pci_bus, pci_device, pci_function, reserved[3];
	uint32_t period_ms, max_count, min_count;
	uint8_t flags; /* 1: enabled */
	uint8_t reserved2[3];
	uint32_t num_entries;
} __packed_struct;

enum acpi_wdat_action {
	ACPI_WDAT_RESET = 1,
	ACPI_WDAT_GET_LEFT = 4,
	ACPI_WDAT_GET_PERIOD = 5,
	ACPI_WDAT_SET_PERIOD = 6,
	ACPI_WDAT_IS_RUNNING = 8,
	ACPI_WDAT_RUN = 9,
	ACPI_WDAT_IS_STOPPED = 10,
	ACPI_WDAT_STOP = 11,
};

enum acpi_wdat_instruction {
	ACPI_WDAT_READ_VALUE = 0, /* does the register have value? */
	ACPI_WDAT_READ_COUNT = 1,
	ACPI_WDAT_WRITE_VALUE = 2,
	ACPI_WDAT_WRITE_COUNT = 3,
};

struct acpi_wdat_entry {
	uint8_t action, instruction;
	uint16_t reserved;
	struct acpi_gas reg;
	uint32_t value, mask;
} __packed_struct;

/* Not ACPI's: what the DSDT reads at LAYOUT_ACPI_INFO; same fields there. */
struct acpi_machine_info {
	uint32_t pci32_start, pci32_size;
	uint32_t ecam_start, ecam_size;
	uint64_t pci64_start, pci64_size;
} __packed_struct;

#endif
