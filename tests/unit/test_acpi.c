/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x86/acpi.c as a guest finds it: from the RSDP through the XSDT to every
 * table, with checksums, bounds, and the fields a kernel acts on.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "x86/acpi.h"
#include "x86/acpi_defs.h"
#include "x86/layout.h"

struct guest {
	struct ram ram;
	uint64_t rsdp;
};

static void guest_init(struct guest *guest)
{
	struct ram_config cfg = {
		.size_bytes = 64 * MIB,
		.hole_start = LAYOUT_HOLE_START,
		.hole_end = LAYOUT_HOLE_END,
		.page = RAM_PAGE_4K,
	};

	assert_int_equal(ram_init(&guest->ram, &cfg, NULL), 0);
}

static void guest_make(struct guest *guest, unsigned int num_cpus)
{
	struct acpi_config cfg = {
		.num_cpus = num_cpus,
		.pci64_start = 64 * GIB,
		.pci64_size = 64 * GIB,
		.has_pic = true,
	};

	guest_init(guest);
	assert_int_equal(
		acpi_write_tables(&guest->ram, &cfg, &guest->rsdp, NULL), 0);
}

static const void *at(const struct guest *guest, uint64_t gpa, uint64_t len)
{
	const void *p;

	assert_true(gpa >= LAYOUT_ACPI_START);
	assert_true(range_ok(gpa, len, LAYOUT_ACPI_END));
	p = mem_map_range(&guest->ram, GPA(gpa), len, MEM_READ);
	assert_non_null(p);
	return p;
}

static uint8_t sum(const void *p, size_t len)
{
	const uint8_t *bytes = p;
	uint8_t total = 0;

	for (size_t i = 0; i < len; i++)
		total = (uint8_t)(total + bytes[i]);
	return total;
}

/* A table by address: header read first, then all of it, checksum checked. */
static const void *table_at(const struct guest *guest, uint64_t gpa)
{
	const struct acpi_header *header = at(guest, gpa, sizeof(*header));

	header = at(guest, gpa, header->length);
	assert_int_equal(sum(header, header->length), 0);
	return header;
}

static const void *find(const struct guest *guest, const char *signature)
{
	const struct acpi_rsdp *rsdp = at(guest, guest->rsdp, sizeof(*rsdp));
	const struct acpi_header *xsdt = table_at(guest, rsdp->xsdt_address);
	const uint8_t *entry = (const uint8_t *)(xsdt + 1);
	const void *found = NULL;

	for (; entry < (const uint8_t *)xsdt + xsdt->length; entry += 8) {
		const void *table = table_at(guest, le64_load(entry));

		if (!memcmp(table, signature, 4)) {
			assert_null(found);
			found = table;
		}
	}
	return found;
}

static void test_rsdp_and_xsdt(void **state)
{
	struct guest guest;
	const struct acpi_rsdp *rsdp;
	const struct acpi_header *xsdt;

	guest_make(&guest, 2);
	/* Guests without a hint look on 16-byte borders from 0xe0000. */
	assert_in_range(guest.rsdp, 0xe0000, 0xfffff);
	assert_int_equal(guest.rsdp % 16, 0);
	rsdp = at(&guest, guest.rsdp, sizeof(*rsdp));
	assert_memory_equal(rsdp->signature, "RSD PTR ", 8);
	assert_int_equal(rsdp->revision, 2);
	assert_int_equal(sum(rsdp, 20), 0);
	assert_int_equal(sum(rsdp, 36), 0);
	xsdt = table_at(&guest, rsdp->xsdt_address);
	assert_memory_equal(xsdt->signature, "XSDT", 4);
	assert_int_equal(xsdt->length, sizeof(*xsdt) + 3 * 8);
	assert_non_null(find(&guest, "FACP"));
	assert_non_null(find(&guest, "APIC"));
	assert_non_null(find(&guest, "MCFG"));
	ram_fini(&guest.ram);
}

static void test_fadt(void **state)
{
	struct guest guest;
	const struct acpi_fadt *fadt;
	const struct acpi_facs *facs;
	const struct acpi_header *dsdt;

	guest_make(&guest, 1);
	fadt = find(&guest, "FACP");
	assert_int_equal(fadt->header.length, 276);
	assert_int_equal(fadt->header.revision, 6);
	assert_int_equal(fadt->sci_irq, 9);
	assert_int_equal(fadt->smi_command, 0);
	assert_int_equal(fadt->pm1a_event, 0x600);
	assert_int_equal(fadt->x_pm1a_event.address, 0x600);
	assert_int_equal(fadt->x_pm1a_event.bit_width, 32);
	assert_int_equal(fadt->pm1a_control, 0x604);
	assert_int_equal(fadt->x_pm1a_control.bit_width, 16);
	assert_int_equal(fadt->pm_timer, 0x608);
	assert_int_equal(fadt->x_pm_timer.bit_width, 32);
	assert_int_equal(fadt->gpe0, 0x60c);
	assert_int_equal(fadt->gpe0_length, 2);
	assert_int_equal(fadt->x_gpe0.address, 0x60c);
	assert_int_equal(fadt->x_gpe0.bit_width, 16);
	assert_int_equal(fadt->gpe1_length, 0);
	assert_int_equal(fadt->reset_register.space, 1);
	assert_int_equal(fadt->reset_register.bit_width, 8);
	assert_int_equal(fadt->reset_register.address, 0xcf9);
	assert_int_equal(fadt->reset_value, 6);
	assert_true(fadt->flags & 1u << 10);  /* reset register is there */
	assert_false(fadt->flags & 1u << 4);  /* fixed power button is there */
	assert_true(fadt->flags & 1u << 5);   /* no fixed sleep button */
	assert_false(fadt->flags & 1u << 20); /* not hardware-reduced */
	assert_false(fadt->boot_arch & 1u << 1); /* no 8042 */
	assert_true(fadt->boot_arch & 1u << 2);	 /* no VGA */
	assert_false(fadt->boot_arch & 1u << 3); /* MSI works */
	assert_false(fadt->boot_arch & 1u << 5); /* the RTC is there */

	/* Exactly one FACS pointer may be set. */
	assert_int_equal(fadt->x_facs, 0);
	assert_int_equal(fadt->facs % 64, 0);
	facs = at(&guest, fadt->facs, sizeof(*facs));
	assert_memory_equal(facs->signature, "FACS", 4);
	assert_int_equal(facs->length, 64);

	assert_int_equal(fadt->dsdt, fadt->x_dsdt);
	dsdt = table_at(&guest, fadt->x_dsdt);
	assert_memory_equal(dsdt->signature, "DSDT", 4);
	assert_true(dsdt->revision >= 2); /* 64-bit integers */
	ram_fini(&guest.ram);
}

/* Is this byte sequence in the DSDT? */
static bool dsdt_has(const struct guest *guest, const void *aml, size_t len)
{
	const struct acpi_fadt *fadt = find(guest, "FACP");
	const struct acpi_header *dsdt = table_at(guest, fadt->x_dsdt);

	return memmem(dsdt, dsdt->length, aml, len) != NULL;
}

static void test_dsdt_and_machine_info(void **state)
{
	/* Name (_S5_, Package (4) { 5, 5, 0, 0 }) */
	static const uint8_t s5[] = {
		0x08, '_',  'S',  '5',	'_',  0x12, 0x08,
		0x04, 0x0a, 0x05, 0x0a, 0x05, 0x00, 0x00
	};
	/* OperationRegion (MINF, SystemMemory, 0xe0040, 0x20) */
	uint8_t minf[] = { 0x5b, 0x80, 'M', 'I', 'N', 'F',  0x00,
			   0x0c, 0,    0,   0,	 0,   0x0a, 0x20 };
	/* EisaId PNP0A08, PNP0C02, PNP0501, PNP0B00 */
	static const uint8_t ids[][4] = { { 0x41, 0xd0, 0x0a, 0x08 },
					  { 0x41, 0xd0, 0x0c, 0x02 },
					  { 0x41, 0xd0, 0x05, 0x01 },
					  { 0x41, 0xd0, 0x0b, 0x00 } };
	const struct acpi_machine_info *info;
	struct guest guest;

	guest_make(&guest, 1);
	assert_true(dsdt_has(&guest, s5, sizeof(s5)));
	le32_store(minf + 8, LAYOUT_ACPI_INFO);
	assert_true(dsdt_has(&guest, minf, sizeof(minf)));
	for (size_t i = 0; i < ARRAY_SIZE(ids); i++)
		assert_true(dsdt_has(&guest, ids[i], sizeof(ids[i])));

	info = at(&guest, LAYOUT_ACPI_INFO, sizeof(*info));
	assert_int_equal(info->pci32_start, 0xc0000000);
	assert_int_equal(info->pci32_size, 512 * MIB);
	assert_int_equal(info->ecam_start, 0xe0000000);
	assert_int_equal(info->ecam_size, MIB);
	assert_int_equal(info->pci64_start, 64 * GIB);
	assert_int_equal(info->pci64_size, 64 * GIB);
	ram_fini(&guest.ram);
}

struct madt_count {
	unsigned int cpus, ioapics, overrides, nmis;
	bool seen[4096];
};

static void count_cpu(struct madt_count *count, uint32_t id, uint32_t flags)
{
	assert_true(id < ARRAY_SIZE(count->seen));
	assert_false(count->seen[id]);
	assert_int_equal(flags, 1);
	count->seen[id] = true;
	count->cpus++;
}

static void count_entry(struct madt_count *count, const uint8_t *e)
{
	switch (e[0]) {
	case 0: /* LAPIC */
		assert_int_equal(e[1], 8);
		assert_int_equal(e[2], e[3]);
		assert_true(e[3] < 255);
		count_cpu(count, e[3], le32_load(e + 4));
		break;
	case 1: /* IOAPIC */
		assert_int_equal(e[1], 12);
		assert_int_equal(le32_load(e + 4), 0xfec00000);
		assert_int_equal(le32_load(e + 8), 0);
		count->ioapics++;
		break;
	case 2: /* interrupt source override */
		assert_int_equal(e[1], 10);
		assert_int_equal(e[2], 0);
		if (e[3] == 0) {
			assert_int_equal(le32_load(e + 4), 2);
			assert_int_equal(le16_load(e + 8), 0);
		} else {
			assert_int_equal(e[3], 9);
			assert_int_equal(le32_load(e + 4), 9);
			assert_int_equal(le16_load(e + 8), 0xd);
		}
		count->overrides++;
		break;
	case 4: /* LAPIC NMI: all, LINT1 */
		assert_int_equal(e[1], 6);
		assert_int_equal(e[2], 0xff);
		assert_int_equal(e[5], 1);
		count->nmis++;
		break;
	case 9: /* x2APIC */
		assert_int_equal(e[1], 16);
		assert_int_equal(le32_load(e + 4), le32_load(e + 12));
		assert_true(le32_load(e + 4) >= 255);
		count_cpu(count, le32_load(e + 4), le32_load(e + 8));
		break;
	case 10: /* x2APIC NMI */
		assert_int_equal(e[1], 12);
		assert_int_equal(le32_load(e + 4), 0xffffffff);
		assert_int_equal(e[8], 1);
		count->nmis++;
		break;
	default:
		fail_msg("MADT entry of type %u", e[0]);
	}
}

static void check_madt(unsigned int num_cpus)
{
	struct madt_count *count = calloc(1, sizeof(*count));
	const struct acpi_madt *madt;
	const uint8_t *e, *end;
	struct guest guest;

	assert_non_null(count);
	guest_make(&guest, num_cpus);
	madt = find(&guest, "APIC");
	assert_int_equal(madt->lapic_address, 0xfee00000);
	assert_int_equal(madt->flags, 1);
	e = (const uint8_t *)(madt + 1);
	end = (const uint8_t *)madt + madt->header.length;
	while (e < end) {
		assert_true(e[1] >= 2 && e[1] <= end - e);
		count_entry(count, e);
		e += e[1];
	}
	assert_int_equal(count->cpus, num_cpus);
	for (unsigned int i = 0; i < num_cpus; i++)
		assert_true(count->seen[i]);
	assert_int_equal(count->ioapics, 1);
	assert_int_equal(count->overrides, 2);
	assert_int_equal(count->nmis, num_cpus > 255 ? 2 : 1);
	ram_fini(&guest.ram);
	free(count);
}

static void test_madt(void **state)
{
	static const unsigned int cpus[] = {
		1, 2, 4, 254, 255, 256, 1024, 4096
	};

	for (size_t i = 0; i < ARRAY_SIZE(cpus); i++)
		check_madt(cpus[i]);
}

static void test_mcfg(void **state)
{
	const struct acpi_mcfg *mcfg;
	struct guest guest;

	guest_make(&guest, 1);
	mcfg = find(&guest, "MCFG");
	assert_int_equal(mcfg->header.length, 60);
	assert_int_equal(mcfg->base, 0xe0000000);
	assert_int_equal(mcfg->segment, 0);
	assert_int_equal(mcfg->first_bus, 0);
	assert_int_equal(mcfg->last_bus, 0);
	ram_fini(&guest.ram);
}

static void test_split_irqchip_has_no_pic(void **state)
{
	struct acpi_config cfg = { .num_cpus = 1 };
	const struct acpi_machine_info *info;
	const struct acpi_madt *madt;
	struct guest guest;

	guest_init(&guest);
	assert_int_equal(acpi_write_tables(&guest.ram, &cfg, &guest.rsdp, NULL),
			 0);
	madt = find(&guest, "APIC");
	assert_int_equal(madt->flags, 0);
	info = at(&guest, LAYOUT_ACPI_INFO, sizeof(*info));
	assert_int_equal(info->pci64_size, 0);
	ram_fini(&guest.ram);
}

static void test_too_many_cpus(void **state)
{
	struct acpi_config cfg = { .num_cpus = 100000 };
	struct err err = ERR_INIT;
	struct guest guest = { .rsdp = 1 };

	guest_init(&guest);
	assert_int_equal(acpi_write_tables(&guest.ram, &cfg, &guest.rsdp, &err),
			 -E2BIG);
	assert_non_null(strstr(err.text, "100000 CPUs"));
	assert_int_equal(guest.rsdp, 1);
	ram_fini(&guest.ram);
}

/* The watchdog's table only with a watchdog, its registers on its ports. */
static void test_wdat(void **state)
{
	struct acpi_config cfg = {
		.num_cpus = 1,
		.watchdog = { .period_ms = 100, .max_count = 5000 },
	};
	const struct acpi_wdat_entry *entry;
	const struct acpi_wdat *wdat;
	struct guest guest;
	uint32_t seen = 0;

	guest_make(&guest, 1);
	assert_null(find(&guest, "WDAT"));
	ram_fini(&guest.ram);

	guest_init(&guest);
	assert_int_equal(acpi_write_tables(&guest.ram, &cfg, &guest.rsdp, NULL),
			 0);
	wdat = find(&guest, "WDAT");
	assert_non_null(wdat);
	assert_int_equal(wdat->header.length,
			 sizeof(*wdat) + 8 * sizeof(*entry));
	assert_int_equal(wdat->watchdog_header_length, 32);
	assert_int_equal(wdat->period_ms, 100);
	assert_int_equal(wdat->max_count, 5000);
	assert_int_equal(wdat->flags, 1);
	assert_int_equal(wdat->num_entries, 8);
	entry = (const struct acpi_wdat_entry *)(wdat + 1);
	for (unsigned int i = 0; i < wdat->num_entries; i++, entry++) {
		seen |= 1u << entry->action;
		assert_int_equal(entry->reg.space, ACPI_GAS_IO);
		assert_int_equal(entry->reg.bit_width, 32);
		assert_int_equal(entry->reg.access, 3);
		assert_in_range(entry->reg.address, 0x620, 0x628);
		assert_int_equal(entry->reg.address % 4, 0);
	}
	/* all that a driver must have: reset, count, run and stop */
	assert_int_equal(seen, 0xf72);
	ram_fini(&guest.ram);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rsdp_and_xsdt),
		cmocka_unit_test(test_fadt),
		cmocka_unit_test(test_dsdt_and_machine_info),
		cmocka_unit_test(test_madt),
		cmocka_unit_test(test_mcfg),
		cmocka_unit_test(test_split_irqchip_has_no_pic),
		cmocka_unit_test(test_too_many_cpus),
		cmocka_unit_test(test_wdat),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
