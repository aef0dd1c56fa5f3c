/* SPDX-License-Identifier: Apache-2.0 */
/* device/vmgenid.c: where the id is, that it changes, and who is told. */
#include "cmocka_all.h"

#include <errno.h>
#include <string.h>

#include "device/vmgenid.h"
#include "mem/ram.h"
#include "x86/e820.h"
#include "x86/layout.h"

struct guest {
	struct ram ram;
	unsigned int events;
	uint8_t at_event[VMGENID_BYTES];
};

static void read_id(const struct guest *guest, uint8_t id[VMGENID_BYTES])
{
	assert_int_equal(mem_read(&guest->ram, GPA(LAYOUT_VMGENID), id,
				  VMGENID_BYTES),
			 0);
}

static void on_event(void *ctx)
{
	struct guest *guest = ctx;

	guest->events++;
	read_id(guest, guest->at_event);
}

static void guest_make(struct guest *guest, uint64_t bytes)
{
	struct ram_config cfg = {
		.size_bytes = bytes,
		.hole_start = LAYOUT_HOLE_START,
		.hole_end = LAYOUT_HOLE_END,
		.page = RAM_PAGE_4K,
	};

	memset(guest, 0, sizeof(*guest));
	assert_int_equal(ram_init(&guest->ram, &cfg, NULL), 0);
}

static void test_renew(void **state)
{
	static const uint8_t zero[VMGENID_BYTES];
	struct guest guest;
	struct vmgenid_config cfg = {
		.ram = &guest.ram,
		.event = on_event,
		.ctx = &guest,
	};
	uint8_t first[VMGENID_BYTES], second[VMGENID_BYTES], rest[64];
	struct vmgenid *v;

	guest_make(&guest, 64 * MIB);
	assert_int_equal(vmgenid_new(&v, &cfg, NULL), 0);
	assert_int_equal(guest.events, 0);
	read_id(&guest, first);
	assert_memory_not_equal(first, zero, sizeof(zero));
	assert_int_equal(vmgenid_renew(v, NULL), 0);
	assert_int_equal(guest.events, 1);
	read_id(&guest, second);
	assert_memory_not_equal(second, first, sizeof(first));
	/* it was there before the guest was told */
	assert_memory_equal(guest.at_event, second, sizeof(second));
	/* 16 bytes, no more */
	assert_int_equal(mem_read(&guest.ram,
				  GPA(LAYOUT_VMGENID + VMGENID_BYTES), rest,
				  sizeof(rest)),
			 0);
	for (size_t i = 0; i < sizeof(rest); i++)
		assert_int_equal(rest[i], 0);
	vmgenid_free(v);
	ram_fini(&guest.ram);
}

/* Each boot has its own, and the page is no memory that the guest hands out. */
static void test_boots_differ_and_page_is_reserved(void **state)
{
	struct e820_entry map[E820_MAX_ENTRIES];
	struct guest guest;
	struct vmgenid_config cfg = { .ram = &guest.ram, .event = on_event };
	uint8_t ids[2][VMGENID_BYTES];
	bool reserved = false;
	unsigned int num;

	for (int i = 0; i < 2; i++) {
		struct vmgenid *v;

		guest_make(&guest, 64 * MIB);
		assert_int_equal(vmgenid_new(&v, &cfg, NULL), 0);
		read_id(&guest, ids[i]);
		vmgenid_free(v);
		num = e820_build(&guest.ram, map);
		ram_fini(&guest.ram);
	}
	assert_memory_not_equal(ids[0], ids[1], VMGENID_BYTES);
	for (unsigned int i = 0; i < num; i++) {
		uint64_t end = map[i].addr + map[i].size;

		if (map[i].addr >= LAYOUT_VMGENID + PAGE_4K ||
		    end <= LAYOUT_VMGENID)
			continue;
		assert_int_equal(map[i].type, E820_RESERVED);
		reserved = map[i].addr <= LAYOUT_VMGENID &&
			   end >= LAYOUT_VMGENID + PAGE_4K;
	}
	assert_true(reserved);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_renew),
		cmocka_unit_test(test_boots_differ_and_page_is_reserved),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
