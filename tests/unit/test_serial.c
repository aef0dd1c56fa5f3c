/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device/serial.c against the PC16550D data sheet: FIFO and trigger levels,
 * interrupt priorities and what clears each, THRE edges, loopback, modem
 * status.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "base/compiler.h"
#include "bus/iobus.h"
#include "device/chardev.h"
#include "device/serial.h"

#define BASE 0x3f8

enum { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR, FCR = 2, DLL = 0, DLM = 1 };

/* A chardev that keeps what is sent and counts the calls. */
struct fake {
	struct chardev chr;
	uint8_t out[64];
	size_t out_len;
	int resumes;
};

struct fixture {
	struct fake fake;
	struct iobus *pio;
	struct serial *serial;
	bool line;
	int edges;
};

static void fake_write(struct chardev *chr, const uint8_t *data, size_t len)
{
	struct fake *fake = container_of(chr, struct fake, chr);

	assert_true(fake->out_len + len <= sizeof(fake->out));
	memcpy(fake->out + fake->out_len, data, len);
	fake->out_len += len;
}

static void fake_resume(struct chardev *chr)
{
	container_of(chr, struct fake, chr)->resumes++;
}

static const struct chardev_ops fake_ops = {
	.write = fake_write,
	.resume_input = fake_resume,
};

static void line_set(void *ctx, uint32_t gsi, bool level)
{
	struct fixture *f = ctx;

	assert_int_equal(gsi, 4);
	assert_true(level != f->line); /* only changes are passed on */
	if (level)
		f->edges++;
	f->line = level;
}

static int setup(void **state)
{
	static struct fixture f;
	struct serial_config cfg = {
		.base = BASE,
		.irq = { .set = line_set, .ctx = &f, .gsi = 4 },
		.chr = &f.fake.chr,
	};

	memset(&f, 0, sizeof(f));
	f.fake.chr.ops = &fake_ops;
	assert_int_equal(iobus_new(&f.pio), 0);
	cfg.pio = f.pio;
	assert_int_equal(serial_new(&f.serial, &cfg), 0);
	assert_int_equal(f.fake.resumes, 1); /* input may have waited for it */
	f.fake.resumes = 0;
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	serial_free(f->serial);
	assert_null(f->fake.chr.client.receive);
	iobus_free(f->pio);
	return 0;
}

static uint8_t in(struct fixture *f, int reg)
{
	uint8_t v;

	assert_true(iobus_read(f->pio, (uint64_t)(BASE + reg), &v, 1));
	return v;
}

static void out(struct fixture *f, int reg, uint8_t v)
{
	assert_true(iobus_write(f->pio, (uint64_t)(BASE + reg), &v, 1));
}

static size_t room(struct fixture *f)
{
	return f->fake.chr.client.room(f->fake.chr.client.ctx);
}

static void receive(struct fixture *f, const char *text)
{
	f->fake.chr.client.receive(f->fake.chr.client.ctx,
				   (const uint8_t *)text, strlen(text));
}

static void receive_break(struct fixture *f)
{
	f->fake.chr.client.receive_break(f->fake.chr.client.ctx);
}

static void test_reset_state(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(in(f, IER), 0x00);
	assert_int_equal(in(f, IIR), 0x01);
	assert_int_equal(in(f, LCR), 0x00);
	assert_int_equal(in(f, MCR), 0x00);
	assert_int_equal(in(f, LSR), 0x60);
	assert_int_equal(in(f, MSR), 0xb0); /* CTS, DSR, DCD; no deltas */
	assert_false(f->line);
	assert_int_equal(room(f), 1);
}

static void test_scratch_and_divisor_latch(void **state)
{
	struct fixture *f = *state;

	out(f, SCR, 0xa5);
	assert_int_equal(in(f, SCR), 0xa5);
	out(f, IER, 0xff);
	assert_int_equal(in(f, IER), 0x0f);
	out(f, LCR, 0x83);
	out(f, DLL, 0x0c);
	out(f, DLM, 0x34);
	assert_int_equal(in(f, DLL), 0x0c);
	assert_int_equal(in(f, DLM), 0x34);
	out(f, LCR, 0x03);
	assert_int_equal(in(f, IER), 0x0f); /* untouched by the divisor */
	assert_int_equal(f->fake.out_len, 0);
	out(f, LCR, 0x83);
	assert_int_equal(in(f, DLL), 0x0c);
}

static void test_wide_access_is_split(void **state)
{
	struct fixture *f = *state;
	uint16_t v = 0x0283; /* LCR = 0x83, MCR = 0x02 */

	assert_true(iobus_write(f->pio, BASE + LCR, &v, 2));
	assert_int_equal(in(f, LCR), 0x83);
	assert_int_equal(in(f, MCR), 0x02);
	v = 0;
	assert_true(iobus_read(f->pio, BASE + LCR, &v, 2));
	assert_int_equal(v, 0x0283);
}

static void test_output_in_order(void **state)
{
	struct fixture *f = *state;

	for (const char *p = "hello"; *p; p++) {
		assert_int_equal(in(f, LSR), 0x60);
		out(f, DATA, (uint8_t)*p);
	}
	assert_int_equal(f->fake.out_len, 5);
	assert_memory_equal(f->fake.out, "hello", 5);
	assert_int_equal(f->edges, 0); /* polled: no interrupts */
}

static void test_thre_interrupt(void **state)
{
	struct fixture *f = *state;

	/* Enabled with THR empty: pending at once, gone when IIR says so. */
	out(f, IER, 0x02);
	assert_true(f->line);
	assert_int_equal(in(f, IIR), 0x02);
	assert_false(f->line);
	assert_int_equal(in(f, IIR), 0x01);
	/* Writing IER again with the bit still set is not a new event. */
	out(f, IER, 0x02);
	assert_false(f->line);
	/* But off and on is (Linux tests for that). */
	out(f, IER, 0x00);
	out(f, IER, 0x02);
	assert_true(f->line);
	assert_int_equal(in(f, IIR), 0x02);
	/* A byte written empties THR again. */
	f->edges = 0;
	out(f, DATA, 'x');
	assert_true(f->line);
	assert_int_equal(f->edges, 1);
}

static void test_thr_write_is_a_new_edge(void **state)
{
	struct fixture *f = *state;

	/* A handler may write THR instead of reading IIR to acknowledge. */
	out(f, IER, 0x02);
	f->edges = 0;
	for (int i = 1; i <= 3; i++) {
		out(f, DATA, 'x');
		assert_true(f->line);
		assert_int_equal(f->edges, i);
	}
	/* Disabled: the line falls, nothing is pending for IIR. */
	out(f, IER, 0x00);
	assert_false(f->line);
	assert_int_equal(in(f, IIR), 0x01);
}

static void test_rx_without_fifo(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(room(f), 1);
	out(f, IER, 0x01);
	receive(f, "a");
	assert_int_equal(room(f), 0);
	assert_true(f->line);
	assert_int_equal(in(f, IIR), 0x04);
	assert_int_equal(in(f, LSR), 0x61);
	assert_int_equal(in(f, DATA), 'a');
	assert_false(f->line);
	assert_int_equal(in(f, LSR), 0x60);
	assert_int_equal(f->fake.resumes, 1);
	/* Overrun replaces the character and is said once. */
	receive(f, "bc");
	assert_int_equal(in(f, LSR), 0x63);
	assert_int_equal(in(f, LSR), 0x61);
	assert_int_equal(in(f, DATA), 'c');
}

static void test_rx_fifo(void **state)
{
	static const struct {
		uint8_t fcr;
		int level;
	} triggers[] = { { 0x01, 1 }, { 0x41, 4 }, { 0x81, 8 }, { 0xc1, 14 } };
	struct fixture *f = *state;

	out(f, IER, 0x01);
	for (size_t i = 0; i < ARRAY_SIZE(triggers); i++) {
		out(f, FCR, triggers[i].fcr | 0x02);
		assert_int_equal(room(f), 16);
		for (int n = 1; n <= 16; n++) {
			receive(f, "z");
			/* Timeout below the level, data available from it. */
			assert_int_equal(in(f, IIR),
					 n < triggers[i].level ? 0xcc : 0xc4);
		}
		assert_int_equal(room(f), 0);
		out(f, FCR, triggers[i].fcr | 0x02);
		assert_int_equal(in(f, IIR), 0xc1);
		assert_int_equal(in(f, LSR), 0x60);
		assert_false(f->line);
	}
}

static void test_rx_fifo_order_and_overrun(void **state)
{
	struct fixture *f = *state;

	out(f, FCR, 0x01);
	receive(f, "0123456789abcdef");
	assert_int_equal(in(f, LSR), 0x61);
	receive(f, "X"); /* more than there is room for: the newest is lost */
	assert_int_equal(in(f, LSR), 0x63);
	for (const char *p = "0123456789abcdef"; *p; p++)
		assert_int_equal(in(f, DATA), *p);
	assert_int_equal(in(f, LSR), 0x60);
	assert_int_equal(in(f, DATA), 0);
}

static void test_fcr_needs_bit_zero(void **state)
{
	struct fixture *f = *state;

	out(f, FCR, 0xc0);
	assert_int_equal(in(f, IIR), 0x01); /* no FIFOs */
	out(f, FCR, 0xc1);
	assert_int_equal(in(f, IIR), 0xc1);
	receive(f, "abc");
	out(f, FCR, 0xc1); /* the same again clears nothing */
	assert_int_equal(in(f, LSR), 0x61);
	out(f, FCR, 0x00); /* but switching them off does */
	assert_int_equal(in(f, LSR), 0x60);
	assert_int_equal(in(f, IIR), 0x01);
}

static void test_interrupt_priorities(void **state)
{
	struct fixture *f = *state;

	out(f, FCR, 0x01);
	out(f, MCR, 0x10); /* loopback drops CTS, DSR, DCD: deltas */
	out(f, MCR, 0x00);
	out(f, IER, 0x0f);
	receive(f, "0123456789abcdefX");
	assert_int_equal(in(f, IIR), 0xc6); /* overrun */
	assert_int_equal(in(f, IIR), 0xc6); /* reading IIR does not clear it */
	assert_int_equal(in(f, LSR) & 0x02, 0x02);
	assert_int_equal(in(f, IIR), 0xc4); /* data */
	for (int i = 0; i < 16; i++)
		in(f, DATA);
	assert_int_equal(in(f, IIR), 0xc2); /* transmitter */
	assert_int_equal(in(f, IIR), 0xc0); /* modem status */
	assert_true(f->line);
	assert_int_equal(in(f, MSR) & 0x0f, 0x0b);
	assert_int_equal(in(f, IIR), 0xc1);
	assert_false(f->line);
	assert_int_equal(f->edges, 1); /* it stayed up all the time */
}

static void test_break(void **state)
{
	struct fixture *f = *state;

	out(f, FCR, 0x01);
	out(f, IER, 0x05);
	receive(f, "a");
	receive_break(f);
	receive(f, "b");
	/* Not the first character's: only the summary bit. */
	assert_int_equal(in(f, LSR), 0xe1);
	assert_int_equal(in(f, IIR), 0xc4);
	assert_int_equal(in(f, DATA), 'a');
	assert_int_equal(in(f, IIR), 0xc6);
	assert_int_equal(in(f, LSR), 0xf1);
	assert_int_equal(in(f, LSR), 0x61);
	assert_int_equal(in(f, DATA), 0);
	assert_int_equal(in(f, DATA), 'b');
	assert_int_equal(in(f, LSR), 0x60);
}

static void test_loopback(void **state)
{
	struct fixture *f = *state;

	out(f, FCR, 0x01);
	out(f, MCR, 0x1a); /* what Linux uses to find a UART */
	assert_int_equal(in(f, MSR) & 0xf0, 0x90);
	out(f, MCR, 0x15);
	assert_int_equal(in(f, MSR) & 0xf0, 0x60);
	out(f, MCR, 0x10);
	assert_int_equal(in(f, MSR) & 0x0f, 0x06); /* TERI, DDSR */
	assert_int_equal(in(f, MSR), 0x00);

	assert_int_equal(room(f), 0); /* the outside waits */
	for (int i = 0; i < 17; i++)
		out(f, DATA, (uint8_t)('a' + i));
	assert_int_equal(f->fake.out_len, 0);
	assert_int_equal(in(f, LSR), 0x63);
	for (int i = 0; i < 16; i++)
		assert_int_equal(in(f, DATA), 'a' + i);
	assert_int_equal(in(f, LSR), 0x60);

	f->fake.resumes = 0;
	out(f, MCR, 0x0b);
	assert_int_equal(f->fake.resumes, 1);
	assert_int_equal(room(f), 16);
	assert_int_equal(in(f, MSR), 0xbb);
	assert_int_equal(in(f, MSR), 0xb0);
}

static void test_loopback_interrupts(void **state)
{
	struct fixture *f = *state;

	out(f, IER, 0x01);
	out(f, MCR, 0x10);
	out(f, DATA, 'q');
	assert_true(f->line);
	assert_int_equal(in(f, IIR), 0x04);
	assert_int_equal(in(f, DATA), 'q');
	assert_false(f->line);
}

static void test_ports_are_claimed_once(void **state)
{
	struct fixture *f = *state;
	struct serial_config cfg = {
		.pio = f->pio,
		.base = BASE + 4,
		.chr = &f->fake.chr,
	};
	struct serial *other;

	assert_int_equal(serial_new(&other, &cfg), -EEXIST);
	assert_non_null(f->fake.chr.client.receive);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_reset_state),
		T(test_scratch_and_divisor_latch),
		T(test_wide_access_is_split),
		T(test_output_in_order),
		T(test_thre_interrupt),
		T(test_thr_write_is_a_new_edge),
		T(test_rx_without_fifo),
		T(test_rx_fifo),
		T(test_rx_fifo_order_and_overrun),
		T(test_fcr_needs_bit_zero),
		T(test_interrupt_priorities),
		T(test_break),
		T(test_loopback),
		T(test_loopback_interrupts),
		T(test_ports_are_claimed_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
