/* SPDX-License-Identifier: Apache-2.0 */
#include "probe/layout.h"

#include <errno.h>
#include <string.h>

#include "base/arith.h"
#include "x86/layout.h"
#include "x86/start.h"

const char *const probe_guest_page_names[2] = {
	[PROBE_GUEST_PAGE_4K] = "4k",
	[PROBE_GUEST_PAGE_2M] = "2m",
};

/* Page-table entry bits; AMD64 APM volume 2, section 5.3. */
#define PTE_P  (1ull << 0)
#define PTE_W  (1ull << 1)
#define PTE_U  (1ull << 2)
#define PTE_A  (1ull << 5)
#define PTE_D  (1ull << 6)
#define PTE_PS (1ull << 7)

#define PTE_READ  (PTE_P | PTE_U | PTE_A | PTE_D)
#define PTE_WRITE (PTE_READ | PTE_W)

#define ENTRIES	  512ull
#define SPAN_PT	  PAGE_2M /* mapped by one page table */
#define SPAN_PD	  PAGE_1G /* by one page directory */
#define SPAN_PDPT (ENTRIES * SPAN_PD)

#define STACK_STEP (PAGE_4K + PROBE_STACK_BYTES)

_Static_assert(PROBE_VA_GDT + START_FLAT64_BYTES <= PROBE_VA_CODE, "room");

static uint64_t slots_bytes(unsigned int num_vcpus)
{
	return align_up(num_vcpus * (uint64_t)PROBE_SLOT_BYTES, PAGE_4K);
}

/*
 * Number of table pages: the root, then for control and test area each their
 * PDPTs, PDs and (4K pages) PTs. The control area holds the tables themselves,
 * so its own PTs are sized by the test area: one PT maps 2 MiB, hence the small
 * fixpoint.
 */
static uint64_t count_tables(uint64_t control_bytes, uint64_t test_bytes,
			     enum probe_guest_page guest_page)
{
	uint64_t n = 1;

	n += 1 + div_round_up(control_bytes, SPAN_PD) +
	     div_round_up(control_bytes, SPAN_PT);
	n += div_round_up(test_bytes, SPAN_PDPT) +
	     div_round_up(test_bytes, SPAN_PD);
	if (guest_page == PROBE_GUEST_PAGE_4K)
		n += div_round_up(test_bytes, SPAN_PT);
	return n;
}

int probe_layout_compute(struct probe_layout *layout, unsigned int num_vcpus,
			 enum probe_guest_page guest_page, uint64_t test_bytes,
			 struct err *err)
{
	struct probe_layout l = { .num_vcpus = num_vcpus,
				  .guest_page = guest_page };
	uint64_t base;

	if (!num_vcpus || num_vcpus > PROBE_MAX_VCPUS)
		return err_set(
			err, EINVAL,
			"probe guest: %u vCPUs asked; 1 to %u can be had",
			num_vcpus, PROBE_MAX_VCPUS);
	if (!test_bytes || test_bytes > 32 * TIB)
		return err_set(err, EINVAL,
			       "probe guest: a test area of %llu bytes asked; "
			       "1 byte to 32 TiB can be had",
			       (unsigned long long)test_bytes);
	l.test_bytes = align_up(test_bytes, PAGE_2M);
	l.times = PROBE_VA_SLOTS + slots_bytes(num_vcpus);
	l.stacks = align_up(l.times + num_vcpus * (uint64_t)PROBE_TIMES_BYTES,
			    PAGE_4K);
	l.tables = l.stacks + num_vcpus * STACK_STEP;
	base = align_up(l.tables + PAGE_4K, PAGE_2M);
	do {
		l.test_base = base;
		l.tables_bytes = PAGE_4K *
				 count_tables(base, l.test_bytes, guest_page);
		base = align_up(l.tables + l.tables_bytes, PAGE_2M);
	} while (base > l.test_base);
	if (l.test_base >= LAYOUT_HOLE_START)
		return err_set(err, EINVAL,
			       "probe guest: the page tables for %llu MiB in "
			       "%s pages do not fit below 3 GiB",
			       (unsigned long long)(l.test_bytes / MIB),
			       probe_guest_page_names[guest_page]);
	l.ram_bytes = l.test_base + l.test_bytes;
	*layout = l;
	return 0;
}

uint64_t probe_layout_stack_top(const struct probe_layout *layout,
				unsigned int i)
{
	return layout->stacks + (i + 1) * STACK_STEP;
}

struct gpa probe_layout_test_gpa(const struct probe_layout *layout,
				 uint64_t offset)
{
	uint64_t gpa = layout->test_base + offset;

	if (gpa >= LAYOUT_HOLE_START)
		gpa += LAYOUT_HOLE_END - LAYOUT_HOLE_START;
	return GPA(gpa);
}

/* Takes table pages off [next, end) in order. */
struct builder {
	const struct ram *ram;
	uint64_t next, end;
};

static uint64_t *table_at(const struct builder *b, uint64_t gpa)
{
	return mem_map_range(b->ram, GPA(gpa), PAGE_4K, MEM_WRITE);
}

static uint64_t table_new(struct builder *b)
{
	uint64_t gpa = b->next;

	BUG_ON(gpa + PAGE_4K > b->end);
	b->next += PAGE_4K;
	return gpa;
}

/* The table below entry `index` of `table`; made if it is not there. */
static uint64_t descend(struct builder *b, uint64_t table, uint64_t index)
{
	uint64_t *entries = table_at(b, table);

	if (!entries[index])
		entries[index] = table_new(b) | PTE_WRITE;
	return align_down(entries[index], PAGE_4K);
}

static uint64_t index_of(uint64_t va, uint64_t span)
{
	return va / span % ENTRIES;
}

static void map_page(struct builder *b, uint64_t root, uint64_t va,
		     struct gpa gpa, uint64_t flags, enum probe_guest_page page)
{
	uint64_t pdpt = descend(b, root, index_of(va, SPAN_PDPT));
	uint64_t pd = descend(b, pdpt, index_of(va, SPAN_PD)), pt;

	if (page == PROBE_GUEST_PAGE_2M) {
		table_at(b, pd)[index_of(va, PAGE_2M)] = gpa.v | flags | PTE_PS;
		return;
	}
	pt = descend(b, pd, index_of(va, PAGE_2M));
	table_at(b, pt)[index_of(va, PAGE_4K)] = gpa.v | flags;
}

/* One to one, 4K pages. */
static void map_control(struct builder *b, uint64_t root, uint64_t start,
			uint64_t bytes, uint64_t flags)
{
	for (uint64_t va = start; va < start + bytes; va += PAGE_4K)
		map_page(b, root, va, GPA(va), flags, PROBE_GUEST_PAGE_4K);
}

static void write_tables(const struct probe_layout *l, const struct ram *ram,
			 size_t image_bytes)
{
	struct builder b = { .ram = ram,
			     .next = l->tables,
			     .end = l->tables + l->tables_bytes };
	uint64_t root = table_new(&b);
	uint64_t step = l->guest_page == PROBE_GUEST_PAGE_2M ? PAGE_2M
							     : PAGE_4K;

	map_control(&b, root, PROBE_VA_GDT,
		    align_up(START_FLAT64_BYTES, PAGE_4K), PTE_READ & ~PTE_U);
	map_control(&b, root, PROBE_VA_CODE, align_up(image_bytes, PAGE_4K),
		    PTE_READ);
	map_control(&b, root, PROBE_VA_SHARED, l->stacks - PROBE_VA_SHARED,
		    PTE_WRITE);
	for (unsigned int i = 0; i < l->num_vcpus; i++)
		map_control(&b, root,
			    probe_layout_stack_top(l, i) - PROBE_STACK_BYTES,
			    PROBE_STACK_BYTES, PTE_WRITE);
	map_control(&b, root, l->tables, l->tables_bytes, PTE_READ);
	for (uint64_t off = 0; off < l->test_bytes; off += step)
		map_page(&b, root, PROBE_VA_TEST + off,
			 probe_layout_test_gpa(l, off), PTE_WRITE,
			 l->guest_page);
}

int probe_layout_write(const struct probe_layout *layout, const struct ram *ram,
		       const void *image, size_t image_bytes)
{
	if (!image_bytes || image_bytes > PROBE_CODE_MAX)
		return -E2BIG;
	if (ram_size(ram) < layout->ram_bytes)
		return -EINVAL;
	write_tables(layout, ram, image_bytes);
	return mem_write(ram, GPA(PROBE_VA_CODE), image, image_bytes);
}
