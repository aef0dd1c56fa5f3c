/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the fixed platform devices may ask of the machine, passed to those that
 * need it. Callbacks come from vCPU threads, but for the watchdog's, and only
 * post a request.
 *
 * Lock order among the devices: a device's own mutex, then the power
 * management's (for those with a general-purpose event), the IOAPIC's (through
 * an irq_line), the interrupt router's.
 */
#ifndef QUIRE_DEVICE_DEVICE_H
#define QUIRE_DEVICE_DEVICE_H

enum machine_event {
	MACHINE_POWEROFF,   /* ACPI S5 */
	MACHINE_RESET,	    /* 0xcf9, i8042, FADT reset register */
	MACHINE_DEBUG_EXIT, /* debug exit port; code = value written */
	MACHINE_WATCHDOG,   /* its period ended; from the control thread */
	MACHINE_PANIC,	    /* pvpanic; code = its events; does not end it */
};

struct machine_hooks {
	void (*event)(void *ctx, enum machine_event event, unsigned int code);
	void *ctx;
};

#endif
