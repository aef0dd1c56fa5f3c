/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device/ioapic.c against the 82093AA data sheet, with the interrupt router
 * replaced by one that notes messages and routes.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "base/evloop.h"
#include "bus/iobus.h"
#include "device/ioapic.h"
#include "x86/layout.h"

#define MASKED (1u << 16)
#define LEVEL  (1u << 15)
#define IRR    (1u << 14)

struct irq_router {
	int messages;
	uint64_t address;
	uint32_t data;
	int refuse; /* errno of the next signals */
	int route_calls;
	bool routed[IRQCHIP_NUM_PINS];
	uint32_t route_data[IRQCHIP_NUM_PINS];
	struct evloop *stop; /* when a message is sent */
};

struct fixture {
	struct iobus *mmio;
	struct irq_router router;
	struct ioapic *ioapic;
};

int irq_router_signal_msi(struct irq_router *router, uint64_t address,
			  uint32_t data)
{
	if (router->refuse)
		return -router->refuse;
	router->messages++;
	router->address = address;
	router->data = data;
	if (router->stop)
		evloop_stop(router->stop, 7);
	return 0;
}

int irq_router_set_msi(struct irq_router *router, uint32_t gsi,
		       uint64_t address, uint32_t data)
{
	assert_true(gsi < IRQCHIP_NUM_PINS);
	router->route_calls++;
	router->routed[gsi] = true;
	router->route_data[gsi] = data;
	return 0;
}

int irq_router_clear_msi(struct irq_router *router, uint32_t gsi)
{
	assert_true(gsi < IRQCHIP_NUM_PINS);
	router->route_calls++;
	router->routed[gsi] = false;
	return 0;
}

static int setup_with(struct fixture *f, struct evloop *loop)
{
	struct ioapic_config cfg = { .router = &f->router, .loop = loop };

	memset(f, 0, sizeof(*f));
	assert_int_equal(iobus_new(&f->mmio), 0);
	cfg.mmio = f->mmio;
	assert_int_equal(ioapic_new(&f->ioapic, &cfg), 0);
	return 0;
}

static int setup(void **state)
{
	static struct fixture f;

	*state = &f;
	return setup_with(&f, NULL);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	ioapic_free(f->ioapic);
	iobus_free(f->mmio);
	return 0;
}

static void select_reg(struct fixture *f, uint32_t reg)
{
	assert_true(iobus_write(f->mmio, LAYOUT_IOAPIC, &reg, 4));
}

static uint32_t get(struct fixture *f, uint32_t reg)
{
	uint32_t v;

	select_reg(f, reg);
	assert_true(iobus_read(f->mmio, LAYOUT_IOAPIC + 0x10, &v, 4));
	return v;
}

static void put(struct fixture *f, uint32_t reg, uint32_t v)
{
	select_reg(f, reg);
	assert_true(iobus_write(f->mmio, LAYOUT_IOAPIC + 0x10, &v, 4));
}

/* As drivers do: the destination first, then the half that unmasks. */
static void program(struct fixture *f, uint32_t pin, uint32_t low,
		    uint32_t high)
{
	put(f, 0x11 + 2 * pin, high);
	put(f, 0x10 + 2 * pin, low);
}

static void drive(struct fixture *f, uint32_t pin, bool level)
{
	struct irq_line line = ioapic_line(f->ioapic, pin);

	irq_line_set(&line, level);
}

static void test_registers(void **state)
{
	struct fixture *f = *state;
	uint8_t v8 = 0;
	uint64_t v64 = 0;

	assert_int_equal(get(f, 0x01), 0x00170020); /* 24 pins, version 2.0 */
	assert_int_equal(get(f, 0x00), 0);
	put(f, 0x00, 0xffffffff);
	assert_int_equal(get(f, 0x00), 0x0f000000);
	assert_int_equal(get(f, 0x02), 0x0f000000);
	put(f, 0x01, 0);
	assert_int_equal(get(f, 0x01), 0x00170020);
	for (uint32_t pin = 0; pin < 24; pin++)
		assert_int_equal(get(f, 0x10 + 2 * pin), MASKED);
	assert_int_equal(get(f, 0x40), 0); /* past the last pin */
	put(f, 0x40, 0xffffffff);
	assert_int_equal(get(f, 0xff), 0);

	/* Status bits are read only, reserved ones zero. */
	put(f, 0x10, 0xffffffff);
	assert_int_equal(get(f, 0x10), 0x0001afff);
	put(f, 0x11, 0xffffffff);
	assert_int_equal(get(f, 0x11), 0xfffe0000);

	/* Other widths: the select register is 8 bits. */
	select_reg(f, 0xffffff01);
	assert_true(iobus_read(f->mmio, LAYOUT_IOAPIC, &v8, 1));
	assert_int_equal(v8, 0x01);
	assert_true(iobus_read(f->mmio, LAYOUT_IOAPIC + 0x10, &v64, 8));
	assert_int_equal(v64, 0x00170020);
}

static void test_edge(void **state)
{
	struct fixture *f = *state;

	program(f, 4, 0x31, 0x05000000);
	drive(f, 4, true);
	assert_int_equal(f->router.messages, 1);
	assert_int_equal(f->router.address, 0xfee05000);
	assert_int_equal(f->router.data, 0x31);
	drive(f, 4, true); /* no edge */
	assert_int_equal(f->router.messages, 1);
	drive(f, 4, false);
	drive(f, 4, true);
	assert_int_equal(f->router.messages, 2);
	assert_int_equal(get(f, 0x18) & IRR, 0);
	/* Edge pins cost no routing table updates. */
	assert_int_equal(f->router.route_calls, 0);
}

static void test_masked_edge_is_lost(void **state)
{
	struct fixture *f = *state;

	program(f, 4, 0x31 | MASKED, 0);
	drive(f, 4, true);
	program(f, 4, 0x31, 0);
	assert_int_equal(f->router.messages, 0);
	drive(f, 4, false);
	drive(f, 4, true);
	assert_int_equal(f->router.messages, 1);
}

static void test_message_fields(void **state)
{
	struct fixture *f = *state;

	/* Logical, lowest priority, to 0xff. */
	program(f, 1, 0x0900 | 0x44, 0xff000000);
	drive(f, 1, true);
	assert_int_equal(f->router.address, 0xfeeff004);
	assert_int_equal(f->router.data, 0x0144);
	/* Extended destination 0x1234: low 8 bits, then 7 more below. */
	program(f, 2, 0x55, 0x34000000 | 0x12 << 17);
	drive(f, 2, true);
	assert_int_equal(f->router.address, 0xfee34000 | 0x12 << 5);
	/* NMI goes through, ExtINT has no PIC behind it. */
	program(f, 3, 0x0400, 0);
	drive(f, 3, true);
	assert_int_equal(f->router.data, 0x0400);
	assert_int_equal(f->router.messages, 3);
	program(f, 0, 0x0700, 0);
	drive(f, 0, true);
	assert_int_equal(f->router.messages, 3);
}

static void test_level_waits_for_eoi(void **state)
{
	struct fixture *f = *state;

	program(f, 9, 0x62 | LEVEL, 0);
	assert_true(f->router.routed[9]); /* or KVM would not tell of the EOI */
	assert_int_equal(f->router.route_data[9], 0xc062);
	drive(f, 9, true);
	assert_int_equal(f->router.messages, 1);
	assert_int_equal(f->router.data, 0xc062);
	assert_int_equal(get(f, 0x22), 0x62 | LEVEL | IRR);
	/* Nothing new before the EOI, whatever the line does. */
	drive(f, 9, false);
	drive(f, 9, true);
	assert_int_equal(f->router.messages, 1);
	/* Another vector's EOI is not ours. */
	ioapic_eoi(f->ioapic, 0x63);
	assert_int_equal(get(f, 0x22), 0x62 | LEVEL | IRR);
	/* Still asserted: again. */
	ioapic_eoi(f->ioapic, 0x62);
	assert_int_equal(f->router.messages, 2);
	assert_int_equal(get(f, 0x22), 0x62 | LEVEL | IRR);
	drive(f, 9, false);
	ioapic_eoi(f->ioapic, 0x62);
	assert_int_equal(f->router.messages, 2);
	assert_int_equal(get(f, 0x22), 0x62 | LEVEL);
	ioapic_eoi(f->ioapic, 0x62); /* one too many */
	assert_int_equal(f->router.messages, 2);
}

static void test_level_masked(void **state)
{
	struct fixture *f = *state;

	program(f, 9, 0x62 | LEVEL | MASKED, 0);
	drive(f, 9, true);
	assert_int_equal(f->router.messages, 0);
	put(f, 0x22, 0x62 | LEVEL); /* the line is remembered */
	assert_int_equal(f->router.messages, 1);
	put(f, 0x22, 0x62 | LEVEL | MASKED);
	ioapic_eoi(f->ioapic, 0x62);
	assert_int_equal(f->router.messages, 1);
	put(f, 0x22, 0x62 | LEVEL);
	assert_int_equal(f->router.messages, 2);
	/* Masking and unmasking alike entries moves no route. */
	assert_int_equal(f->router.route_calls, 1);
	put(f, 0x22, 0x63 | LEVEL);
	assert_int_equal(f->router.route_calls, 2);
	assert_int_equal(f->router.route_data[9], 0xc063);
	put(f, 0x22, 0x63);
	assert_false(f->router.routed[9]);
}

static void test_remote_irr_cleared_by_edge_mode(void **state)
{
	struct fixture *f = *state;

	program(f, 9, 0x62 | LEVEL, 0);
	drive(f, 9, true);
	put(f, 0x22, 0x62 | MASKED);
	assert_int_equal(get(f, 0x22), 0x62 | MASKED);
	put(f, 0x22, 0x62 | LEVEL);
	assert_int_equal(f->router.messages, 2);
}

static void test_eoi_register(void **state)
{
	struct fixture *f = *state;
	uint32_t vector = 0x62;

	program(f, 9, 0x62 | LEVEL, 0);
	drive(f, 9, true);
	drive(f, 9, false);
	assert_true(iobus_write(f->mmio, LAYOUT_IOAPIC + 0x40, &vector, 4));
	assert_int_equal(get(f, 0x22), 0x62 | LEVEL);
}

static void test_two_pins_one_vector(void **state)
{
	struct fixture *f = *state;

	program(f, 9, 0x62 | LEVEL, 0);
	program(f, 10, 0x62 | LEVEL, 0);
	drive(f, 9, true);
	drive(f, 10, true);
	drive(f, 9, false);
	ioapic_eoi(f->ioapic, 0x62);
	assert_int_equal(f->router.messages, 3);
	assert_int_equal(get(f, 0x22), 0x62 | LEVEL);
	assert_int_equal(get(f, 0x24), 0x62 | LEVEL | IRR);
}

static void test_undeliverable_level_does_not_jam(void **state)
{
	struct fixture *f = *state;

	f->router.refuse = EPERM;
	program(f, 9, 0x62 | LEVEL, 0xee000000);
	drive(f, 9, true);
	assert_int_equal(get(f, 0x22), 0x62 | LEVEL);
	f->router.refuse = 0;
	put(f, 0x23, 0); /* a CPU that exists */
	assert_int_equal(f->router.messages, 1);
}

static void test_pin_out_of_range(void **state)
{
	struct fixture *f = *state;

	drive(f, 24, true);
	drive(f, 0xffffffff, true);
	assert_int_equal(f->router.messages, 0);
}

static void test_storm_is_held_back(void **state)
{
	struct fixture f;
	struct fixture *fp = &f;
	struct evloop *loop;

	assert_int_equal(evloop_new(&loop), 0);
	setup_with(&f, loop);
	program(&f, 9, 0x62 | LEVEL, 0);
	drive(&f, 9, true);
	for (int i = 0; i < 9999; i++)
		ioapic_eoi(f.ioapic, 0x62);
	assert_int_equal(f.router.messages, 10000);
	ioapic_eoi(f.ioapic, 0x62); /* the 10000th in a row */
	assert_int_equal(f.router.messages, 10000);
	drive(&f, 9, true); /* holds, whatever happens to the pin */
	put(&f, 0x22, 0x62 | LEVEL);
	assert_int_equal(f.router.messages, 10000);
	f.router.stop = loop;
	assert_int_equal(evloop_run(loop), 7); /* 10 ms later */
	assert_int_equal(f.router.messages, 10001);
	assert_int_equal(get(&f, 0x22), 0x62 | LEVEL | IRR);
	teardown((void **)&fp);
	evloop_free(loop);
}

static void test_line_that_falls_is_no_storm(void **state)
{
	struct fixture f;
	struct fixture *fp = &f;
	struct evloop *loop;

	assert_int_equal(evloop_new(&loop), 0);
	setup_with(&f, loop);
	program(&f, 9, 0x62 | LEVEL, 0);
	for (int i = 0; i < 20001; i++) {
		drive(&f, 9, true);
		drive(&f, 9, false);
		ioapic_eoi(f.ioapic, 0x62);
	}
	assert_int_equal(f.router.messages, 20001);
	teardown((void **)&fp);
	evloop_free(loop);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_registers),
		T(test_edge),
		T(test_masked_edge_is_lost),
		T(test_message_fields),
		T(test_level_waits_for_eoi),
		T(test_level_masked),
		T(test_remote_irr_cleared_by_edge_mode),
		T(test_eoi_register),
		T(test_two_pins_one_vector),
		T(test_undeliverable_level_does_not_jam),
		T(test_pin_out_of_range),
		cmocka_unit_test(test_storm_is_held_back),
		cmocka_unit_test(test_line_that_falls_is_no_storm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
