/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. The tables are laid out in a heap image of the ACPI
 * area, in the order in which they refer to each other backwards, and copied
 * to guest memory at once:
 *
 *	RSDP, machine info (both at fixed places), FACS, DSDT, FADT, MADT, MCFG,
 *	WDAT if there is a watchdog, XSDT
 *
 * This is "ACPI hardware", not the hardware-reduced model: PM1a registers give
 * power-off and the power button as fixed features, which need no AML and no
 * driver beyond what every ACPI kernel has. There is no SMI command port, so
 * ACPI mode is always on.
 */
#include "x86/acpi.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "x86/acpi_defs.h"
#include "x86/layout.h"

/* unsigned char dsdt_aml_code[], from acpi/dsdt.asl */
#include "dsdt.hex"

/* What dsdt.asl spells out. */
static_assert(LAYOUT_ACPI_INFO == 0xe0040, "OperationRegion MINF");
static_assert(sizeof(struct acpi_machine_info) == 0x20, "MINF's length");
static_assert(PORT_PCI_CONFIG == 0xcf8, "_CRS of PCI0");
static_assert(PORT_PM_BASE == 0x600, "_CRS of MRES");
static_assert(PORT_HOTPLUG == 0x610, "_CRS of MRES, HPRG");
static_assert(LAYOUT_VMGENID == 0xff000, "ADDR of VGEN");
static_assert(PORT_PVPANIC == 0x505, "_CRS of PEVT");
static_assert(GPE_HOTPLUG == 1 && GPE_VMGENID == 2, "_L01, _E02");
static_assert(PORT_SERIAL0 == 0x3f8 && IRQ_SERIAL0 == 4, "_CRS of COM1");
static_assert(PORT_RTC == 0x70 && IRQ_RTC == 8, "_CRS of RTC0");

static_assert(sizeof(struct acpi_rsdp) == 36, "RSDP revision 2");
static_assert(sizeof(struct acpi_fadt) == 276, "FADT revision 6");
static_assert(sizeof(struct acpi_facs) == 64, "FACS");
static_assert(sizeof(struct acpi_wdat) == 68, "WDAT");
static_assert(sizeof(struct acpi_wdat_entry) == 24, "entry of WDAT");

#define ACPI_AREA_BYTES (LAYOUT_VMGENID - LAYOUT_ACPI_START)

#define RESET_VALUE	6 /* to PORT_RESET: full reset */
#define PM1_EVENT_LEN	4 /* status and enable */
#define PM1_CONTROL_LEN 2
#define PM_TIMER_LEN	4
#define GPE0_LEN	2 /* status and enable */

/* 32 devices of 8 functions, a page each. */
#define ECAM_BUS_BYTES (256 * PAGE_4K)

struct acpi_image {
	uint8_t *bytes; /* ACPI_AREA_BYTES */
	size_t used;
};

static uint64_t image_gpa(size_t offset)
{
	return LAYOUT_ACPI_START + offset;
}

/* Append zeros; NULL when the area is full. */
static void *image_add(struct acpi_image *image, size_t len, size_t align)
{
	size_t start = align_up(image->used, align);

	if (!range_ok(start, len, ACPI_AREA_BYTES))
		return NULL;
	image->used = start + len;
	return image->bytes + start;
}

static uint64_t image_address(const struct acpi_image *image, const void *p)
{
	return image_gpa((size_t)((const uint8_t *)p - image->bytes));
}

/* What makes the sum of all bytes zero. */
static uint8_t checksum(const void *table, size_t len)
{
	const uint8_t *bytes = table;
	uint8_t sum = 0;

	for (size_t i = 0; i < len; i++)
		sum = (uint8_t)(sum + bytes[i]);
	return (uint8_t)-sum;
}

static void fill_header(struct acpi_header *header, const char *signature,
			uint8_t revision)
{
	memcpy(header->signature, signature, 4);
	header->revision = revision;
	memcpy(header->oem_id, "QUIRE ", 6);
	memcpy(header->oem_table_id, "QUIREVM ", 8);
	header->oem_revision = 1;
	memcpy(header->creator_id, "QUIR", 4);
	header->creator_revision = 1;
}

/* Length and checksum of a table that ends where the image ends now. */
static void seal(const struct acpi_image *image, struct acpi_header *header)
{
	header->length = (uint32_t)(image->bytes + image->used -
				    (const uint8_t *)header);
	header->checksum = 0;
	header->checksum = checksum(header, header->length);
}

static struct acpi_gas io_register(uint16_t port, unsigned int bytes)
{
	return (struct acpi_gas){
		.space = ACPI_GAS_IO,
		.bit_width = (uint8_t)(bytes * 8),
		.access = bytes == 1   ? 1
			  : bytes == 2 ? 2
				       : 3,
		.address = port,
	};
}

/* ---- tables ---- */

static struct acpi_facs *add_facs(struct acpi_image *image)
{
	struct acpi_facs *facs = image_add(image, sizeof(*facs), 64);

	if (!facs)
		return NULL;
	memcpy(facs->signature, "FACS", 4);
	facs->length = sizeof(*facs);
	facs->version = 2;
	return facs;
}

static void *add_dsdt(struct acpi_image *image)
{
	void *dsdt = image_add(image, sizeof(dsdt_aml_code), 16);

	if (dsdt)
		memcpy(dsdt, dsdt_aml_code, sizeof(dsdt_aml_code));
	return dsdt;
}

static void fill_pm_registers(struct acpi_fadt *fadt)
{
	const uint16_t event = PORT_PM_BASE;
	const uint16_t control = PORT_PM_BASE + 4;
	const uint16_t timer = PORT_PM_BASE + 8;
	const uint16_t gpe = PORT_PM_BASE + 12;

	fadt->pm1a_event = event;
	fadt->pm1_event_length = PM1_EVENT_LEN;
	fadt->x_pm1a_event = io_register(event, PM1_EVENT_LEN);
	fadt->x_pm1a_event.access = 2; /* two 16-bit registers */
	fadt->pm1a_control = control;
	fadt->pm1_control_length = PM1_CONTROL_LEN;
	fadt->x_pm1a_control = io_register(control, PM1_CONTROL_LEN);
	/* 24 bits wide as far as the guest is told: every driver masks so. */
	fadt->pm_timer = timer;
	fadt->pm_timer_length = PM_TIMER_LEN;
	fadt->x_pm_timer = io_register(timer, PM_TIMER_LEN);
	fadt->gpe0 = gpe;
	fadt->gpe0_length = GPE0_LEN;
	fadt->x_gpe0 = io_register(gpe, GPE0_LEN);
	fadt->x_gpe0.access = 1; /* two 8-bit registers */
}

static struct acpi_fadt *add_fadt(struct acpi_image *image, uint64_t facs,
				  uint64_t dsdt)
{
	struct acpi_fadt *fadt = image_add(image, sizeof(*fadt), 16);

	if (!fadt)
		return NULL;
	fill_header(&fadt->header, "FACP", 6);
	fadt->minor_revision = 5;
	fadt->facs = (uint32_t)facs;
	fadt->dsdt = (uint32_t)dsdt;
	fadt->x_dsdt = dsdt; /* x_facs stays 0: only one of the two is set */
	fadt->preferred_profile = ACPI_PROFILE_ENTERPRISE_SERVER;
	fadt->sci_irq = IRQ_SCI;
	fill_pm_registers(fadt);
	fadt->c2_latency = 101; /* above 100 and 1000 us: no C2, no C3 */
	fadt->c3_latency = 1001;
	fadt->century = RTC_CENTURY;
	/* No 8042 bit: guests need not wait for a keyboard that is not there.
	 */
	fadt->boot_arch = ACPI_BOOT_LEGACY_DEVICES | ACPI_BOOT_NO_VGA |
			  ACPI_BOOT_NO_ASPM;
	fadt->flags = ACPI_FADT_WBINVD | ACPI_FADT_PROC_C1 |
		      ACPI_FADT_NO_SLEEP_BUTTON | ACPI_FADT_NO_FIXED_RTC |
		      ACPI_FADT_RESET_REGISTER | ACPI_FADT_HEADLESS;
	fadt->reset_register = io_register(PORT_RESET, 1);
	fadt->reset_value = RESET_VALUE;
	memcpy(&fadt->hypervisor_id, "QUIREVMM", sizeof(fadt->hypervisor_id));
	seal(image, &fadt->header);
	return fadt;
}

/* Entry of one type, with its type and length filled in. */
static void *add_madt_entry(struct acpi_image *image, enum acpi_madt_type type,
			    size_t len)
{
	uint8_t *entry = image_add(image, len, 1);

	if (entry) {
		entry[0] = (uint8_t)type;
		entry[1] = (uint8_t)len;
	}
	return entry;
}

/* The xAPIC form where the id fits (255 is broadcast), as 5.2.12.12 wants. */
static bool add_madt_cpu(struct acpi_image *image, unsigned int id)
{
	if (id < 255) {
		struct acpi_madt_lapic *lapic = add_madt_entry(
			image, ACPI_MADT_LAPIC, sizeof(*lapic));

		if (!lapic)
			return false;
		lapic->uid = lapic->apic_id = (uint8_t)id;
		lapic->flags = 1;
	} else {
		struct acpi_madt_x2apic *x2apic = add_madt_entry(
			image, ACPI_MADT_X2APIC, sizeof(*x2apic));

		if (!x2apic)
			return false;
		x2apic->uid = x2apic->apic_id = id;
		x2apic->flags = 1;
	}
	return true;
}

static bool add_madt_override(struct acpi_image *image, uint8_t irq,
			      uint32_t gsi, uint16_t flags)
{
	struct acpi_madt_override *o = add_madt_entry(image, ACPI_MADT_OVERRIDE,
						      sizeof(*o));

	if (!o)
		return false;
	o->irq = irq;
	o->gsi = gsi;
	o->flags = flags;
	return true;
}

/* LINT1 of every CPU is NMI, as cpu_reset() sets it. */
static bool add_madt_nmi(struct acpi_image *image, unsigned int num_cpus)
{
	struct acpi_madt_lapic_nmi *nmi = add_madt_entry(
		image, ACPI_MADT_LAPIC_NMI, sizeof(*nmi));
	struct acpi_madt_x2apic_nmi *x2nmi;

	if (!nmi)
		return false;
	nmi->uid = 0xff;
	nmi->lint = 1;
	if (num_cpus <= 255)
		return true;
	x2nmi = add_madt_entry(image, ACPI_MADT_X2APIC_NMI, sizeof(*x2nmi));
	if (!x2nmi)
		return false;
	x2nmi->uid = 0xffffffff;
	x2nmi->lint = 1;
	return true;
}

static struct acpi_madt *add_madt(struct acpi_image *image,
				  const struct acpi_config *cfg)
{
	struct acpi_madt *madt = image_add(image, sizeof(*madt), 16);
	struct acpi_madt_ioapic *ioapic;
	bool ok = madt != NULL;

	for (unsigned int id = 0; ok && id < cfg->num_cpus; id++)
		ok = add_madt_cpu(image, id);
	if (!ok)
		return NULL;
	ioapic = add_madt_entry(image, ACPI_MADT_IOAPIC, sizeof(*ioapic));
	if (!ioapic)
		return NULL;
	ioapic->address = LAYOUT_IOAPIC;
	/*
	 * The PIT's IRQ 0 is wired to pin 2, where the router of the in-kernel
	 * irqchip (kvm/irq.c) sends it; without a PIT nothing uses the entry.
	 */
	if (!add_madt_override(image, 0, 2, 0) ||
	    !add_madt_override(image, IRQ_SCI, IRQ_SCI,
			       ACPI_INTI_LEVEL | ACPI_INTI_ACTIVE_HIGH) ||
	    !add_madt_nmi(image, cfg->num_cpus))
		return NULL;
	fill_header(&madt->header, "APIC", 5);
	madt->lapic_address = LAYOUT_LAPIC;
	madt->flags = cfg->has_pic ? ACPI_MADT_PCAT_COMPAT : 0;
	seal(image, &madt->header);
	return madt;
}

static struct acpi_mcfg *add_mcfg(struct acpi_image *image)
{
	struct acpi_mcfg *mcfg = image_add(image, sizeof(*mcfg), 16);

	if (!mcfg)
		return NULL;
	fill_header(&mcfg->header, "MCFG", 1);
	mcfg->base = LAYOUT_ECAM_START;
	mcfg->last_bus = LAYOUT_ECAM_SIZE / ECAM_BUS_BYTES - 1;
	seal(image, &mcfg->header);
	return mcfg;
}

static bool add_wdat_entry(struct acpi_image *image,
			   enum acpi_wdat_action action,
			   enum acpi_wdat_instruction instruction, uint16_t reg,
			   uint32_t value, uint32_t mask)
{
	struct acpi_wdat_entry *e = image_add(image, sizeof(*e), 1);

	if (!e)
		return false;
	e->action = (uint8_t)action;
	e->instruction = (uint8_t)instruction;
	e->reg = io_register((uint16_t)(PORT_WATCHDOG + reg), 4);
	e->value = value;
	e->mask = mask;
	return true;
}

/* Registers as in device/watchdog.h. */
static struct acpi_wdat *add_wdat(struct acpi_image *image,
				  const struct acpi_config *cfg)
{
	static const struct {
		enum acpi_wdat_action action;
		enum acpi_wdat_instruction instruction;
		uint16_t reg;
		uint32_t value, mask;
	} entries[] = {
		{ ACPI_WDAT_RESET, ACPI_WDAT_WRITE_VALUE, 8, 1, UINT32_MAX },
		{ ACPI_WDAT_GET_LEFT, ACPI_WDAT_READ_COUNT, 8, 0, UINT32_MAX },
		{ ACPI_WDAT_GET_PERIOD, ACPI_WDAT_READ_COUNT, 4, 0,
		  UINT32_MAX },
		{ ACPI_WDAT_SET_PERIOD, ACPI_WDAT_WRITE_COUNT, 4, 0,
		  UINT32_MAX },
		{ ACPI_WDAT_IS_RUNNING, ACPI_WDAT_READ_VALUE, 0, 1, 1 },
		{ ACPI_WDAT_RUN, ACPI_WDAT_WRITE_VALUE, 0, 1, UINT32_MAX },
		{ ACPI_WDAT_IS_STOPPED, ACPI_WDAT_READ_VALUE, 0, 0, 1 },
		{ ACPI_WDAT_STOP, ACPI_WDAT_WRITE_VALUE, 0, 0, UINT32_MAX },
	};
	struct acpi_wdat *wdat = image_add(image, sizeof(*wdat), 16);
	bool ok = wdat != NULL;

	for (size_t i = 0; ok && i < ARRAY_SIZE(entries); i++)
		ok = add_wdat_entry(image, entries[i].action,
				    entries[i].instruction, entries[i].reg,
				    entries[i].value, entries[i].mask);
	if (!ok)
		return NULL;
	fill_header(&wdat->header, "WDAT", 1);
	wdat->watchdog_header_length = sizeof(*wdat) - sizeof(wdat->header);
	wdat->pci_segment = UINT16_MAX;
	wdat->pci_bus = wdat->pci_device = wdat->pci_function = UINT8_MAX;
	wdat->period_ms = cfg->watchdog.period_ms;
	wdat->max_count = cfg->watchdog.max_count;
	wdat->min_count = 1;
	wdat->flags = 1;
	wdat->num_entries = ARRAY_SIZE(entries);
	seal(image, &wdat->header);
	return wdat;
}

static struct acpi_header *add_xsdt(struct acpi_image *image,
				    const void *const *tables, size_t num)
{
	struct acpi_header *xsdt;
	uint8_t *entries;

	xsdt = image_add(image, sizeof(*xsdt) + num * 8, 16);
	if (!xsdt)
		return NULL;
	fill_header(xsdt, "XSDT", 1);
	entries = (uint8_t *)(xsdt + 1);
	for (size_t i = 0; i < num; i++)
		le64_store(entries + i * 8, image_address(image, tables[i]));
	seal(image, xsdt);
	return xsdt;
}

static void fill_rsdp(struct acpi_rsdp *rsdp, uint64_t xsdt)
{
	memcpy(rsdp->signature, "RSD PTR ", 8);
	memcpy(rsdp->oem_id, "QUIRE ", 6);
	rsdp->revision = 2;
	rsdp->length = sizeof(*rsdp);
	rsdp->xsdt_address = xsdt;
	rsdp->checksum = checksum(rsdp, 20);
	rsdp->extended_checksum = checksum(rsdp, sizeof(*rsdp));
}

static void fill_info(struct acpi_machine_info *info,
		      const struct acpi_config *cfg)
{
	*info = (struct acpi_machine_info){
		.pci32_start = LAYOUT_PCI32_START,
		.pci32_size = LAYOUT_PCI32_SIZE,
		.ecam_start = LAYOUT_ECAM_START,
		.ecam_size = LAYOUT_ECAM_SIZE,
		.pci64_start = cfg->pci64_start,
		.pci64_size = cfg->pci64_size,
	};
}

static bool build(struct acpi_image *image, const struct acpi_config *cfg)
{
	struct acpi_rsdp *rsdp = image_add(image, sizeof(*rsdp), 16);
	struct acpi_machine_info *info = image_add(image, sizeof(*info), 64);
	struct acpi_facs *facs = add_facs(image);
	void *dsdt = add_dsdt(image);
	const void *tables[4];
	struct acpi_header *xsdt;
	size_t num = 3;

	if (!rsdp || !info || !facs || !dsdt)
		return false;
	BUG_ON(image_address(image, info) != LAYOUT_ACPI_INFO);
	fill_info(info, cfg);
	tables[0] = add_fadt(image, image_address(image, facs),
			     image_address(image, dsdt));
	tables[1] = tables[0] ? add_madt(image, cfg) : NULL;
	tables[2] = tables[1] ? add_mcfg(image) : NULL;
	if (!tables[2])
		return false;
	if (cfg->watchdog.period_ms) {
		tables[num] = add_wdat(image, cfg);
		if (!tables[num++])
			return false;
	}
	xsdt = add_xsdt(image, tables, num);
	if (!xsdt)
		return false;
	fill_rsdp(rsdp, image_address(image, xsdt));
	return true;
}

int acpi_write_tables(const struct ram *ram, const struct acpi_config *cfg,
		      uint64_t *ret_rsdp, struct err *err)
{
	_cleanup_free_ uint8_t *bytes = calloc(1, ACPI_AREA_BYTES);
	struct acpi_image image = { .bytes = bytes };
	int r;

	if (!bytes)
		return err_set(err, ENOMEM, "out of memory");
	if (!build(&image, cfg))
		return err_set(err, E2BIG,
			       "%u CPUs: the ACPI tables have no room for so "
			       "many",
			       cfg->num_cpus);
	r = mem_write(ram, GPA(LAYOUT_ACPI_START), bytes, image.used);
	if (r < 0)
		return err_errno(err, -r,
				 "writing ACPI tables to guest memory at %#llx",
				 LAYOUT_ACPI_START);
	*ret_rsdp = LAYOUT_ACPI_START;
	return 0;
}
