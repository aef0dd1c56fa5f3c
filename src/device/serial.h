/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A 16550A UART: 16-byte receive FIFO, all interrupt sources, modem status,
 * loopback. Bytes leave at once, so the transmitter is always empty; line
 * speed, parity and word length are stored but mean nothing.
 *
 * Source: PC16550D data sheet (National Semiconductor, 1995).
 *
 * Threads: the ports from any vCPU, input from the control thread; own mutex.
 */
#ifndef QUIRE_DEVICE_SERIAL_H
#define QUIRE_DEVICE_SERIAL_H

#include <stdint.h>

#include "base/compiler.h"
#include "kvm/irq.h"
#include "state/state.h"

struct chardev;
struct iobus;
struct serial;

#define SERIAL_PORTS	  8
#define SERIAL_FIFO_BYTES 16

struct serial_config {
	struct iobus *pio;
	uint16_t base;	     /* PORT_SERIAL0 */
	struct irq_line irq; /* high while an interrupt is pending */
	struct chardev *chr; /* borrowed; outlives the port */
};

/* Claims the ports and becomes the chardev's client. */
__must_check int serial_new(struct serial **ret,
			    const struct serial_config *cfg);
void serial_free(struct serial *serial);

/*
 * Section "serial" of a saved state: registers and what was received and not
 * read. Where the port leads to is configuration. Loading drives the line.
 */
void serial_save(struct serial *serial, struct state_writer *w);
__must_check int serial_load(struct serial *serial, struct state_reader *r,
			     struct err *err);

#endif
