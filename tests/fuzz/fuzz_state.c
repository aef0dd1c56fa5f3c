/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A saved state into devices: serial, RTC, power management, watchdog, PCI,
 * hot-plug, IOAPIC and a virtio device.
 *
 * Input: a document. Its length and checksum are made right, for a mutation
 * finds neither. Checked: whatever it is, it is refused with words or loaded;
 * what was refused has changed nothing of its device; and devices can be used,
 * saved again and freed afterwards. What was loaded and is saved again is
 * loaded.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../unit/state_devices.h"
#include "base/clock.h"
#include "base/compiler.h"
#include "base/log.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* As a guest that goes on would; nothing of it may end badly. */
static void use(struct sd *sd)
{
	uint32_t value;

	for (uint16_t port = 0; port < 16; port++) {
		(void)!iobus_read(sd->pio, PORT_SERIAL0 + (port & 7), &value,
				  1);
		(void)!iobus_read(sd->pio, PORT_PM_BASE + (port & 14) % 12,
				  &value, 2);
		(void)!iobus_read(sd->pio, PORT_WATCHDOG + (port & 8), &value,
				  4);
	}
	sd->now_ns += 3 * NSEC_PER_SEC;
	rtc_poll(sd->rtc);
	pm_poll(sd->pm);
	for (uint8_t reg = 0; reg < 14; reg++) {
		(void)!iobus_write(sd->pio, PORT_RTC, &reg, 1);
		(void)!iobus_read(sd->pio, PORT_RTC + 1, &value, 1);
	}
	for (unsigned int vector = 0; vector < 256; vector++)
		ioapic_eoi(sd->ioapic, (uint8_t)vector);
}

/* The pages that were loaded are loaded again. */
static void save_again(struct sd *sd)
{
	struct state_writer w;
	struct state_reader r;
	struct err err = ERR_INIT;
	struct sd other;

	state_writer_init(&w);
	if (virtio_dev_drain(sd->dev, clock_now_ns() + NSEC_PER_SEC, &err) ||
	    sd_save(sd, &w, &err)) {
		state_writer_fini(&w);
		return;
	}
	BUG_ON(state_writer_finish(&w));
	BUG_ON(state_reader_init(&r, w.data, w.bytes, &err));
	sd_make(&other);
	virtio_dev_hold(other.dev, true);
	BUG_ON(sd_load(&other, &r, &err));
	sd_free(&other);
	state_reader_fini(&r);
	state_writer_fini(&w);
}

static void load_parts(struct sd *sd, struct state_reader *r)
{
	bool all = true;

	/* One refusal does not keep the others from being tried. */
	for (unsigned int part = 0; part < SD_PARTS; part++) {
		struct err err = ERR_INIT;

		if (sd_load_one(sd, part, r, &err)) {
			BUG_ON(!err.text[0]);
			all = false;
		}
	}
	use(sd);
	if (all)
		save_again(sd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct err err = ERR_INIT;
	struct state_reader r;
	uint8_t *copy;
	struct sd sd;

	atomic_store(&log_max_level, LOG_LEVEL_ERROR);
	if (size < 32)
		return 0;
	copy = malloc(size);
	BUG_ON(!copy);
	memcpy(copy, data, size);
	le64_store(copy + 16, size);
	state_fix_checksum(copy, size);
	if (state_reader_init(&r, copy, size, &err)) {
		BUG_ON(!err.text[0]);
		free(copy);
		return 0;
	}
	sd_make(&sd);
	virtio_dev_hold(sd.dev, true);
	load_parts(&sd, &r);
	(void)!state_reader_finish(&r, &err);
	sd_free(&sd);
	state_reader_fini(&r);
	free(copy);
	return 0;
}
