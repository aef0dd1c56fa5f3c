/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. A byte written to THR is handed to the chardev at once
 * and the transmitter is empty again: LSR always says THRE and TEMT. What is
 * left of it is the THRE interrupt, which is an event and not a state: it
 * becomes pending when THR empties (each write does that here) or when its
 * enable bit goes from 0 to 1 with THR empty, and is over when IIR reports it
 * or THR is written.
 *
 * COM1's interrupt is edge-triggered on a PC. The UART's output is a level, and
 * a new edge needs it to fall first. It does whenever no enabled source is
 * pending, and a THR write makes it fall and rise again, as a real FIFO that
 * drains would.
 *
 * The receiver timeout (data below the trigger level, line idle) counts no
 * character times: the line is always idle once the bytes are in the FIFO.
 *
 * Errors of received characters travel with them through the FIFO and appear in
 * LSR when the character becomes the next to be read.
 *
 * OUT2 gates no interrupt: that is board wiring, and no driver relies on it.
 */
#include "device/serial.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "bus/iobus.h"
#include "device/chardev.h"

/* Registers; DLAB selects the divisor latch in the first two. */
enum {
	UART_DATA = 0, /* RBR, THR; DLL */
	UART_IER = 1,  /* DLM */
	UART_IIR = 2,  /* FCR when written */
	UART_LCR = 3,
	UART_MCR = 4,
	UART_LSR = 5,
	UART_MSR = 6,
	UART_SCR = 7,
};

#define IER_RDA	 0x01
#define IER_THRE 0x02
#define IER_RLS	 0x04
#define IER_MS	 0x08
#define IER_MASK 0x0f

/* IIR codes, highest priority first. */
#define IIR_RLS	  0x06
#define IIR_RDA	  0x04
#define IIR_CTI	  0x0c
#define IIR_THRE  0x02
#define IIR_MS	  0x00
#define IIR_NONE  0x01
#define IIR_FIFOS 0xc0

#define FCR_ENABLE   0x01
#define FCR_CLEAR_RX 0x02
#define FCR_TRIGGER  0xc0

#define LCR_DLAB 0x80

#define MCR_DTR	 0x01
#define MCR_RTS	 0x02
#define MCR_OUT1 0x04
#define MCR_OUT2 0x08
#define MCR_LOOP 0x10
#define MCR_MASK 0x1f

#define LSR_DR	     0x01
#define LSR_OE	     0x02
#define LSR_BI	     0x10
#define LSR_CHAR_ERR 0x1c /* PE, FE, BI: belong to a character */
#define LSR_THRE     0x20
#define LSR_TEMT     0x40
#define LSR_FIFO_ERR 0x80

#define MSR_DCTS  0x01
#define MSR_DDSR  0x02
#define MSR_TERI  0x04
#define MSR_DDCD  0x08
#define MSR_DELTA 0x0f
#define MSR_CTS	  0x10
#define MSR_DSR	  0x20
#define MSR_RI	  0x40
#define MSR_DCD	  0x80

/* The other end of the cable is there and ready. */
#define MSR_CONNECTED (MSR_CTS | MSR_DSR | MSR_DCD)

struct serial {
	struct iobus *pio;
	uint16_t base;
	struct irq_line irq;
	struct chardev *chr;
	pthread_mutex_t lock; /* everything below */
	uint8_t ier, fcr, lcr, mcr, scr, dll, dlm;
	uint8_t lsr; /* OE, and the errors of the FIFO's first character */
	uint8_t msr;
	bool thre_pending;
	bool line; /* level of irq */
	uint8_t rx_data[SERIAL_FIFO_BYTES];
	uint8_t rx_errors[SERIAL_FIFO_BYTES]; /* LSR_CHAR_ERR bits */
	uint32_t rx_start, rx_len;
};

/* -- receiver -- */

static unsigned int rx_capacity(const struct serial *s)
{
	return s->fcr & FCR_ENABLE ? SERIAL_FIFO_BYTES : 1;
}

static unsigned int rx_trigger(const struct serial *s)
{
	static const uint8_t levels[] = { 1, 4, 8, 14 };

	return s->fcr & FCR_ENABLE ? levels[(s->fcr & FCR_TRIGGER) >> 6] : 1;
}

/* The first character's errors are reported from when it gets there. */
static void rx_reveal_locked(struct serial *s)
{
	if (s->rx_len) {
		s->lsr |= s->rx_errors[s->rx_start];
		s->rx_errors[s->rx_start] = 0;
	}
}

static void rx_put_locked(struct serial *s, uint8_t data, uint8_t errors)
{
	unsigned int at;

	if (s->rx_len == rx_capacity(s)) {
		s->lsr |= LSR_OE;
		/* A full FIFO stays as it is; a lone RBR is overwritten. */
		if (s->fcr & FCR_ENABLE)
			return;
		s->rx_len = 0;
	}
	at = (s->rx_start + s->rx_len) % SERIAL_FIFO_BYTES;
	s->rx_data[at] = data;
	s->rx_errors[at] = errors;
	s->rx_len++;
	if (s->rx_len == 1)
		rx_reveal_locked(s);
}

static uint8_t rx_get_locked(struct serial *s)
{
	uint8_t data;

	if (!s->rx_len)
		return 0;
	data = s->rx_data[s->rx_start];
	s->rx_start = (s->rx_start + 1) % SERIAL_FIFO_BYTES;
	s->rx_len--;
	rx_reveal_locked(s);
	return data;
}

static void rx_clear_locked(struct serial *s)
{
	s->rx_len = 0;
	s->lsr &= (uint8_t)~LSR_CHAR_ERR;
}

/* -- interrupt -- */

/* The code of the most urgent enabled source, or IIR_NONE. */
static uint8_t iir_source(const struct serial *s)
{
	if ((s->ier & IER_RLS) && s->lsr)
		return IIR_RLS;
	if ((s->ier & IER_RDA) && s->rx_len >= rx_trigger(s))
		return IIR_RDA;
	if ((s->ier & IER_RDA) && s->rx_len)
		return IIR_CTI;
	if ((s->ier & IER_THRE) && s->thre_pending)
		return IIR_THRE;
	if ((s->ier & IER_MS) && (s->msr & MSR_DELTA))
		return IIR_MS;
	return IIR_NONE;
}

static void update_irq_locked(struct serial *s)
{
	bool level = iir_source(s) != IIR_NONE;

	if (level != s->line)
		irq_line_set(&s->irq, level);
	s->line = level;
}

/* -- modem lines -- */

/* The four inputs change; note what did. */
static void set_modem_inputs_locked(struct serial *s, uint8_t inputs)
{
	uint8_t changed = (s->msr ^ inputs) & ~MSR_DELTA;
	uint8_t delta = 0;

	if (changed & MSR_CTS)
		delta |= MSR_DCTS;
	if (changed & MSR_DSR)
		delta |= MSR_DDSR;
	if ((changed & MSR_RI) && !(inputs & MSR_RI))
		delta |= MSR_TERI; /* only its trailing edge */
	if (changed & MSR_DCD)
		delta |= MSR_DDCD;
	s->msr = inputs | (s->msr & MSR_DELTA) | delta;
}

/* In loopback the outputs are the inputs. */
static void update_modem_locked(struct serial *s)
{
	uint8_t inputs = 0;

	if (!(s->mcr & MCR_LOOP)) {
		set_modem_inputs_locked(s, MSR_CONNECTED);
		return;
	}
	if (s->mcr & MCR_RTS)
		inputs |= MSR_CTS;
	if (s->mcr & MCR_DTR)
		inputs |= MSR_DSR;
	if (s->mcr & MCR_OUT1)
		inputs |= MSR_RI;
	if (s->mcr & MCR_OUT2)
		inputs |= MSR_DCD;
	set_modem_inputs_locked(s, inputs);
}

/* -- registers -- */

static uint8_t read_lsr_locked(struct serial *s)
{
	uint8_t value = s->lsr | LSR_THRE | LSR_TEMT;

	if (s->rx_len)
		value |= LSR_DR;
	if ((s->fcr & FCR_ENABLE) && (s->lsr & LSR_CHAR_ERR))
		value |= LSR_FIFO_ERR;
	for (unsigned int i = 0; i < s->rx_len; i++) {
		if (s->rx_errors[(s->rx_start + i) % SERIAL_FIFO_BYTES])
			value |= LSR_FIFO_ERR;
	}
	s->lsr = 0;
	return value;
}

static uint8_t read_iir_locked(struct serial *s)
{
	uint8_t source = iir_source(s);

	if (source == IIR_THRE)
		s->thre_pending = false;
	return source | (s->fcr & FCR_ENABLE ? IIR_FIFOS : 0);
}

/* ret_drained: the receiver has room again that it had not. */
static uint8_t read_locked(struct serial *s, unsigned int reg,
			   bool *ret_drained)
{
	bool dlab = s->lcr & LCR_DLAB;
	uint8_t value;

	switch (reg) {
	case UART_DATA:
		if (dlab)
			return s->dll;
		*ret_drained = true;
		return rx_get_locked(s);
	case UART_IER:
		return dlab ? s->dlm : s->ier;
	case UART_IIR:
		return read_iir_locked(s);
	case UART_LCR:
		return s->lcr;
	case UART_MCR:
		return s->mcr;
	case UART_LSR:
		return read_lsr_locked(s);
	case UART_MSR:
		value = s->msr;
		s->msr &= (uint8_t)~MSR_DELTA;
		return value;
	default:
		return s->scr;
	}
}

static void write_ier_locked(struct serial *s, uint8_t value)
{
	if ((value & ~s->ier) & IER_THRE)
		s->thre_pending = true;
	s->ier = value & IER_MASK;
}

static void write_fcr_locked(struct serial *s, uint8_t value)
{
	/* The other bits are not programmed unless bit 0 is written as 1. */
	if (!(value & FCR_ENABLE))
		value = 0;
	/* Switching the FIFOs on or off clears them. */
	if ((value ^ s->fcr) & FCR_ENABLE || value & FCR_CLEAR_RX)
		rx_clear_locked(s);
	s->fcr = value & (FCR_ENABLE | FCR_TRIGGER);
}

/* Returns whether the byte is for the chardev. */
static bool write_thr_locked(struct serial *s, uint8_t value)
{
	s->thre_pending = false;
	update_irq_locked(s);
	s->thre_pending = true;
	if (!(s->mcr & MCR_LOOP))
		return true;
	rx_put_locked(s, value, 0);
	return false;
}

/* ret_drained as above; ret_sent: value goes to the chardev. */
static void write_locked(struct serial *s, unsigned int reg, uint8_t value,
			 bool *ret_drained, bool *ret_sent)
{
	bool dlab = s->lcr & LCR_DLAB;

	switch (reg) {
	case UART_DATA:
		if (dlab)
			s->dll = value;
		else
			*ret_sent = write_thr_locked(s, value);
		break;
	case UART_IER:
		if (dlab)
			s->dlm = value;
		else
			write_ier_locked(s, value);
		break;
	case UART_IIR:
		write_fcr_locked(s, value);
		*ret_drained = true;
		break;
	case UART_LCR:
		s->lcr = value;
		break;
	case UART_MCR:
		s->mcr = value & MCR_MASK;
		update_modem_locked(s);
		*ret_drained = true; /* loopback may have ended */
		break;
	case UART_SCR:
		s->scr = value;
		break;
	default: /* LSR and MSR: factory test only */
		break;
	}
}

/* The UART is 8 bits wide: wider accesses come as several, in order. */
static void serial_read(void *dev, uint64_t offset, void *data, uint32_t len)
{
	struct serial *s = dev;
	uint8_t *bytes = data;
	bool drained = false;

	pthread_mutex_lock(&s->lock);
	for (uint32_t i = 0; i < len; i++) {
		bytes[i] = read_locked(s, (unsigned int)offset + i, &drained);
		update_irq_locked(s);
	}
	pthread_mutex_unlock(&s->lock);
	if (drained)
		chardev_resume_input(s->chr);
}

static void serial_write(void *dev, uint64_t offset, const void *data,
			 uint32_t len)
{
	struct serial *s = dev;
	const uint8_t *bytes = data;

	for (uint32_t i = 0; i < len; i++) {
		bool drained = false, sent = false;

		pthread_mutex_lock(&s->lock);
		write_locked(s, (unsigned int)offset + i, bytes[i], &drained,
			     &sent);
		update_irq_locked(s);
		pthread_mutex_unlock(&s->lock);
		/* May wait for a slow reader, so not under the lock. */
		if (sent)
			chardev_write(s->chr, &bytes[i], 1);
		if (drained)
			chardev_resume_input(s->chr);
	}
}

static const struct iobus_ops serial_ops = {
	.name = "serial",
	.read = serial_read,
	.write = serial_write,
};

/* -- the chardev's side -- */

static size_t serial_room(void *ctx)
{
	struct serial *s = ctx;
	size_t room = 0;

	pthread_mutex_lock(&s->lock);
	/* In loopback the receiver is disconnected: let the input wait. */
	if (!(s->mcr & MCR_LOOP) && s->rx_len < rx_capacity(s))
		room = rx_capacity(s) - s->rx_len;
	pthread_mutex_unlock(&s->lock);
	return room;
}

static void serial_receive(void *ctx, const uint8_t *data, size_t len)
{
	struct serial *s = ctx;

	pthread_mutex_lock(&s->lock);
	for (size_t i = 0; i < len; i++)
		rx_put_locked(s, data[i], 0);
	update_irq_locked(s);
	pthread_mutex_unlock(&s->lock);
}

static void serial_receive_break(void *ctx)
{
	struct serial *s = ctx;

	pthread_mutex_lock(&s->lock);
	if (!(s->mcr & MCR_LOOP))
		rx_put_locked(s, 0, LSR_BI);
	update_irq_locked(s);
	pthread_mutex_unlock(&s->lock);
}

/* -- saved state -- */

#define F(kind, member, ...) \
	STATE_FIELD_##kind(struct serial, member, __VA_ARGS__)

static const struct state_field state_fields[] = {
	F(UINT, ier, 1, .max = IER_MASK),
	F(UINT, fcr, 2),
	F(UINT, lcr, 3),
	F(UINT, mcr, 4, .max = MCR_MASK),
	F(UINT, scr, 5),
	F(UINT, dll, 6),
	F(UINT, dlm, 7),
	F(UINT, lsr, 8, .max = LSR_CHAR_ERR | LSR_OE),
	F(UINT, msr, 9),
	F(BOOL, thre_pending, 10),
	F(BYTES, rx_data, 11),
	F(UINTS, rx_errors, 12, .max = LSR_CHAR_ERR),
	F(UINT, rx_start, 13, .max = SERIAL_FIFO_BYTES - 1),
	F(UINT, rx_len, 14, .max = SERIAL_FIFO_BYTES),
};

static int state_check(const struct state_check *c, const void *loaded,
		       const void *live)
{
	const struct serial *s = loaded;

	if (s->fcr & ~(FCR_ENABLE | FCR_TRIGGER))
		return state_refuse(c, "fcr", "%#x", s->fcr);
	if (s->rx_len > rx_capacity(s))
		return state_refuse(c, "rx_len", "%u, at most %u", s->rx_len,
				    rx_capacity(s));
	return 0;
}

static const struct state_table state_table = {
	.section = "serial",
	.version = 1,
	.object_bytes = sizeof(struct serial),
	.fields = state_fields,
	.num_fields = ARRAY_SIZE(state_fields),
	.check = state_check,
};

void serial_save(struct serial *s, struct state_writer *w)
{
	pthread_mutex_lock(&s->lock);
	state_save(w, &state_table, NULL, s);
	pthread_mutex_unlock(&s->lock);
}

int serial_load(struct serial *s, struct state_reader *r, struct err *err)
{
	int ret;

	pthread_mutex_lock(&s->lock);
	ret = state_load(r, &state_table, NULL, s, err);
	if (!ret) {
		s->line = false;
		update_irq_locked(s);
	}
	pthread_mutex_unlock(&s->lock);
	if (!ret)
		chardev_resume_input(s->chr);
	return ret;
}

/* -- life -- */

int serial_new(struct serial **ret, const struct serial_config *cfg)
{
	struct serial *s = calloc(1, sizeof(*s));
	struct chardev_client client = {
		.room = serial_room,
		.receive = serial_receive,
		.receive_break = serial_receive_break,
		.ctx = s,
	};
	int r;

	if (!s)
		return -ENOMEM;
	pthread_mutex_init(&s->lock, NULL);
	s->pio = cfg->pio;
	s->base = cfg->base;
	s->irq = cfg->irq;
	s->chr = cfg->chr;
	s->msr = MSR_CONNECTED;
	r = iobus_add(s->pio, s->base, SERIAL_PORTS, &serial_ops, s);
	if (r) {
		pthread_mutex_destroy(&s->lock);
		free(s);
		return r;
	}
	chardev_set_client(s->chr, &client);
	chardev_resume_input(s->chr); /* it may have waited for a client */
	*ret = s;
	return 0;
}

void serial_free(struct serial *s)
{
	if (!s)
		return;
	iobus_remove(s->pio, s->base, s);
	chardev_set_client(s->chr, NULL);
	pthread_mutex_destroy(&s->lock);
	free(s);
}
