/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Saved state of devices: what one set saves another loads, says the same of
 * itself, and goes on from there. And what earlier versions saved is still
 * loaded: the files in golden/.
 *
 *	test_state_devices --write FILE
 *
 * writes the state that this version saves, for the next golden file: one is
 * added whenever a table has got another version, and none is ever changed.
 */
#include "cmocka_all.h"

#include <dirent.h>
#include <linux/pci_regs.h>
#include <linux/virtio_pci.h>
#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "state_devices.h"
#include "virtio/virtio.h"
#include "vring.h"

#ifndef GOLDEN_DIR
#error "GOLDEN_DIR: where the golden files are"
#endif

#define RINGS	  0x10000
#define RING_SIZE 16
#define MAX_FILE  (1 << 20)
#define BAR_AT	  (LAYOUT_PCI32_START + 0x100000)

/* The BAR of virtio/pci.c. */
#define COMMON 0x0000
#define MSIX   0x3000
#define NOTIFY 0x4000

/* ---- registers ---- */

static void out(struct sd *sd, uint16_t port, uint32_t value, uint32_t len)
{
	value = htole32(value);
	assert_true(iobus_write(sd->pio, port, &value, len));
}

static uint32_t in(struct sd *sd, uint16_t port, uint32_t len)
{
	uint32_t value = 0;

	assert_true(iobus_read(sd->pio, port, &value, len));
	return le32toh(value);
}

static void store(struct sd *sd, uint64_t addr, uint64_t value, uint32_t len)
{
	value = htole64(value);
	assert_true(iobus_write(sd->mmio, addr, &value, len));
}

static uint64_t load(struct sd *sd, uint64_t addr, uint32_t len)
{
	uint64_t value = 0;

	assert_true(iobus_read(sd->mmio, addr, &value, len));
	return le64toh(value);
}

static void ioapic_put(struct sd *sd, uint32_t reg, uint32_t value)
{
	store(sd, LAYOUT_IOAPIC, reg, 4);
	store(sd, LAYOUT_IOAPIC + 0x10, value, 4);
}

static uint32_t ioapic_get(struct sd *sd, uint32_t reg)
{
	store(sd, LAYOUT_IOAPIC, reg, 4);
	return (uint32_t)load(sd, LAYOUT_IOAPIC + 0x10, 4);
}

/* ---- a guest that has been at work ---- */

static void use_serial(struct sd *sd)
{
	static const uint8_t input[] = { 'x', 'y', 'z' };

	out(sd, PORT_SERIAL0 + 3, 0x83, 1); /* DLAB */
	out(sd, PORT_SERIAL0 + 0, 0x0c, 1);
	out(sd, PORT_SERIAL0 + 1, 0x01, 1);
	out(sd, PORT_SERIAL0 + 3, 0x03, 1);
	out(sd, PORT_SERIAL0 + 2, 0x41, 1); /* FIFOs, trigger at 4 */
	out(sd, PORT_SERIAL0 + 1, 0x05, 1);
	out(sd, PORT_SERIAL0 + 4, 0x0b, 1);
	out(sd, PORT_SERIAL0 + 7, 0xa5, 1);
	sd->chr.client.receive(sd->chr.client.ctx, input, sizeof(input));
}

static void use_timers(struct sd *sd)
{
	out(sd, PORT_RTC, 0x50, 1); /* RAM */
	out(sd, PORT_RTC + 1, 0x77, 1);
	out(sd, PORT_RTC, 0x05, 1); /* the alarm's hour */
	out(sd, PORT_RTC + 1, 0x23, 1);
	out(sd, PORT_RTC, 0x0b, 1);
	out(sd, PORT_RTC + 1, 0x22, 1);
	out(sd, PORT_RTC, 0x02, 1); /* the minute of now */
	out(sd, PORT_RTC + 1, 0x59, 1);
	sd->now_ns += 1234567890;
	out(sd, PORT_PM_BASE + 2, 0x0101, 2);
	out(sd, PORT_PM_BASE + 13, 0x0f, 1);
	pm_power_button(sd->pm);
	out(sd, PORT_WATCHDOG + 4, 100, 4);
	out(sd, PORT_WATCHDOG, 1, 4);
	sd->now_ns += 2500000000ull;
	rtc_poll(sd->rtc); /* as loading does */
	pci_hotplug_added(sd->hotplug, 7);
	pci_hotplug_request(sd->hotplug, 3);
}

static void use_ioapic(struct sd *sd)
{
	ioapic_put(sd, 0x00, 0x05000000);
	ioapic_put(sd, 0x11 + 2 * IRQ_SCI, 0x03000000);
	ioapic_put(sd, 0x10 + 2 * IRQ_SCI, 0xa029); /* level, unmasked */
	ioapic_put(sd, 0x11 + 2 * 14, 0x01000000);
	ioapic_put(sd, 0x10 + 2 * 14, 0x0042);
	store(sd, LAYOUT_IOAPIC, 0x01, 4);
}

static void set_up_queue(struct sd *sd, const struct vring *ring)
{
	store(sd, BAR_AT + VIRTIO_PCI_COMMON_Q_SELECT, 0, 2);
	store(sd, BAR_AT + VIRTIO_PCI_COMMON_Q_SIZE, RING_SIZE, 2);
	store(sd, BAR_AT + VIRTIO_PCI_COMMON_Q_MSIX, 1, 2);
	store(sd, BAR_AT + VIRTIO_PCI_COMMON_Q_DESCLO, ring->desc, 8);
	store(sd, BAR_AT + VIRTIO_PCI_COMMON_Q_AVAILLO, ring->avail, 8);
	store(sd, BAR_AT + VIRTIO_PCI_COMMON_Q_USEDLO, ring->used, 8);
	store(sd, BAR_AT + VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2);
}

/* As far as FEATURES_OK, with the BAR moved and MSI-X on. */
static void probe(struct sd *sd)
{
	uint8_t devfn = virtio_pci_devfn(sd->rng);
	uint32_t cap = pci_host_config_read(sd->pci, devfn, PCI_CAPABILITY_LIST,
					    1);

	pci_host_config_write(sd->pci, devfn, PCI_BASE_ADDRESS_0, BAR_AT, 4);
	pci_host_config_write(sd->pci, devfn, PCI_BASE_ADDRESS_1, 0, 4);
	pci_host_config_write(sd->pci, devfn, PCI_COMMAND, 0x406, 2);
	pci_host_config_write(sd->pci, devfn, PCI_CACHE_LINE_SIZE, 0x10, 1);
	while (pci_host_config_read(sd->pci, devfn, cap, 1) != PCI_CAP_ID_MSIX)
		cap = pci_host_config_read(sd->pci, devfn, cap + 1, 1);
	store(sd, BAR_AT + MSIX + 16, 0xfee01000, 4); /* vector 1 */
	store(sd, BAR_AT + MSIX + 24, 0x4031, 4);
	store(sd, BAR_AT + MSIX + 28, 0, 4);
	pci_host_config_write(sd->pci, devfn, cap + PCI_MSIX_FLAGS, 0x8000, 2);
	store(sd, BAR_AT + VIRTIO_PCI_COMMON_STATUS, 3, 1);
	store(sd, BAR_AT + VIRTIO_PCI_COMMON_GFSELECT, 0, 4);
	store(sd, BAR_AT + VIRTIO_PCI_COMMON_GF, 1u << 29, 4);
	store(sd, BAR_AT + VIRTIO_PCI_COMMON_GFSELECT, 1, 4);
	store(sd, BAR_AT + VIRTIO_PCI_COMMON_GF, 1, 4);
	store(sd, BAR_AT + VIRTIO_PCI_COMMON_STATUS, 11, 1);
	store(sd, BAR_AT + VIRTIO_PCI_COMMON_MSIX, 0, 2);
}

static void kick(struct sd *sd)
{
	store(sd, BAR_AT + NOTIFY, 0, 2);
}

/* A buffer for the device; wait until it has filled it. */
static void ask(struct sd *sd, struct vring *ring, uint32_t len)
{
	const struct vring_buf buf = { vring_alloc(ring, len, 16), len, true };
	struct vring_used_elem elem;
	uint16_t head = vring_add(ring, &buf, 1);

	kick(sd);
	assert_true(vring_wait_used(ring, 20000, &elem));
	assert_int_equal(elem.id, head);
	assert_int_equal(elem.len, len);
}

static void use_rng(struct sd *sd, struct vring *ring)
{
	probe(sd);
	vring_init(ring, &sd->ram, RING_SIZE, RINGS);
	set_up_queue(sd, ring);
	store(sd, BAR_AT + VIRTIO_PCI_COMMON_STATUS, 15, 1);
	for (unsigned int i = 0; i < 3; i++)
		ask(sd, ring, 100);
}

static void use_all(struct sd *sd, struct vring *ring)
{
	use_serial(sd);
	use_timers(sd);
	use_ioapic(sd);
	out(sd, PORT_PCI_CONFIG, 0x80000804, 4);
	use_rng(sd, ring);
}

static void quiet(struct sd *sd)
{
	struct err err = ERR_INIT;

	virtio_dev_hold(sd->dev, true);
	assert_int_equal(virtio_dev_drain(sd->dev,
					  clock_now_ns() + 20 * NSEC_PER_SEC,
					  &err),
			 0);
}

static void save_all(struct sd *sd, struct state_writer *w)
{
	struct err err = ERR_INIT;

	quiet(sd);
	state_writer_init(w);
	assert_int_equal(sd_save(sd, w, &err), 0);
	assert_int_equal(state_writer_finish(w), 0);
}

static int load_all(struct sd *sd, const void *data, size_t bytes,
		    struct err *err)
{
	struct state_reader r;
	int ret = state_reader_init(&r, data, bytes, err);

	if (ret)
		return ret;
	virtio_dev_hold(sd->dev, true);
	ret = sd_load(sd, &r, err);
	state_reader_fini(&r);
	return ret;
}

static void go_on(struct sd *sd)
{
	watchdog_resume(sd->watchdog);
	virtio_dev_hold(sd->dev, false);
}

/* ---- what the guest finds ---- */

static void check_serial(struct sd *sd)
{
	assert_int_equal(in(sd, PORT_SERIAL0 + 7, 1), 0xa5);
	assert_int_equal(in(sd, PORT_SERIAL0 + 1, 1), 0x05);
	assert_int_equal(in(sd, PORT_SERIAL0 + 4, 1), 0x0b);
	assert_int_equal(in(sd, PORT_SERIAL0 + 2, 1), 0xcc); /* timeout */
	assert_int_equal(in(sd, PORT_SERIAL0, 1), 'x');
	assert_int_equal(in(sd, PORT_SERIAL0, 1), 'y');
	assert_int_equal(in(sd, PORT_SERIAL0, 1), 'z');
	assert_int_equal(in(sd, PORT_SERIAL0 + 5, 1), 0x60);
	assert_false(sd->line[IRQ_SERIAL0]);
	out(sd, PORT_SERIAL0 + 3, 0x83, 1);
	assert_int_equal(in(sd, PORT_SERIAL0, 1), 0x0c);
	assert_int_equal(in(sd, PORT_SERIAL0 + 1, 1), 0x01);
}

static void check_timers(struct sd *sd)
{
	out(sd, PORT_RTC, 0x50, 1);
	assert_int_equal(in(sd, PORT_RTC + 1, 1), 0x77);
	out(sd, PORT_RTC, 0x05, 1);
	assert_int_equal(in(sd, PORT_RTC + 1, 1), 0x23);
	out(sd, PORT_RTC, 0x0b, 1);
	assert_int_equal(in(sd, PORT_RTC + 1, 1), 0x22);
	out(sd, PORT_RTC, 0x02, 1);
	assert_int_equal(in(sd, PORT_RTC + 1, 1), 0x59);
	assert_int_equal(in(sd, PORT_PM_BASE + 2, 2), 0x0101);
	assert_int_equal(in(sd, PORT_PM_BASE, 2) & 0x0100, 0x0100);
	assert_int_equal(in(sd, PORT_PM_BASE + 13, 1), 0x0f);
	/* 3.734567890 s at 3579545 Hz, of which 24 bits are shown. */
	assert_int_equal(in(sd, PORT_PM_BASE + 8, 4), 13368053 & 0xffffff);
	assert_int_equal(in(sd, PORT_WATCHDOG, 4), 1);
	assert_int_equal(in(sd, PORT_WATCHDOG + 4, 4), 100);
	assert_int_equal(in(sd, PORT_WATCHDOG + 8, 4), 75);
	assert_int_equal(in(sd, PORT_HOTPLUG, 4), 1u << 7);
	assert_int_equal(in(sd, PORT_HOTPLUG + 4, 4), 1u << 3);
	assert_true(pci_hotplug_requested(sd->hotplug, 3));
	assert_true(sd->line[IRQ_SCI]);
}

static void check_ioapic(struct sd *sd)
{
	assert_int_equal(load(sd, LAYOUT_IOAPIC + 0x10, 4), 0x00170020);
	assert_int_equal(ioapic_get(sd, 0x00), 0x05000000);
	/* The SCI was sent before and is not acknowledged: Remote IRR. */
	assert_int_equal(ioapic_get(sd, 0x10 + 2 * IRQ_SCI), 0xe029);
	assert_int_equal(ioapic_get(sd, 0x11 + 2 * IRQ_SCI), 0x03000000);
	assert_int_equal(ioapic_get(sd, 0x10 + 2 * 14), 0x0042);
	assert_int_equal(ioapic_get(sd, 0x10 + 2 * 15), 0x10000);
	assert_true(sd->router.routed[IRQ_SCI]);
	assert_false(sd->router.routed[14]);
	assert_int_equal(sd->router.messages, 0);
}

static void check_rng(struct sd *sd)
{
	uint8_t devfn = virtio_pci_devfn(sd->rng);

	assert_int_equal(in(sd, PORT_PCI_CONFIG, 4), 0x80000804);
	assert_int_equal(pci_host_config_read(sd->pci, devfn, PCI_COMMAND, 2),
			 0x406);
	assert_int_equal(pci_host_config_read(sd->pci, devfn,
					      PCI_CACHE_LINE_SIZE, 1),
			 0x10);
	assert_int_equal(load(sd, BAR_AT + VIRTIO_PCI_COMMON_STATUS, 1), 15);
	assert_int_equal(load(sd, BAR_AT + VIRTIO_PCI_COMMON_GF, 4), 1);
	assert_int_equal(load(sd, BAR_AT + VIRTIO_PCI_COMMON_MSIX, 2), 0);
	assert_int_equal(load(sd, BAR_AT + VIRTIO_PCI_COMMON_Q_SIZE, 2),
			 RING_SIZE);
	assert_int_equal(load(sd, BAR_AT + VIRTIO_PCI_COMMON_Q_MSIX, 2), 1);
	assert_int_equal(load(sd, BAR_AT + VIRTIO_PCI_COMMON_Q_ENABLE, 2), 1);
	assert_int_equal(load(sd, BAR_AT + VIRTIO_PCI_COMMON_Q_DESCLO, 8),
			 RINGS);
	assert_int_equal(load(sd, BAR_AT + MSIX + 16, 4), 0xfee01000);
	assert_int_equal(load(sd, BAR_AT + MSIX + 24, 4), 0x4031);
	assert_int_equal(load(sd, BAR_AT + MSIX + 28, 4), 0);
	assert_int_equal(load(sd, BAR_AT + MSIX + 12, 4), 1); /* masked */
}

static void check_all(struct sd *sd)
{
	check_ioapic(sd);
	check_serial(sd);
	check_timers(sd);
	check_rng(sd);
}

/* ---- tests ---- */

static void test_round_trip(void **state)
{
	struct sd a, b;
	struct vring ring;
	struct state_writer wa, wb;
	struct err err = ERR_INIT;

	sd_make(&a);
	use_all(&a, &ring);
	save_all(&a, &wa);
	sd_make(&b);
	/* Another host's clock. */
	b.now_ns = a.now_ns;
	memcpy(b.ram.base, a.ram.base, SD_RAM);
	if (load_all(&b, wa.data, wa.bytes, &err))
		fail_msg("%s", err.text);
	save_all(&b, &wb);
	assert_int_equal(wa.bytes, wb.bytes);
	assert_memory_equal(wa.data, wb.data, wa.bytes);
	go_on(&b);
	check_all(&b);
	/* The driver goes on with the ring as it was. */
	ring.ram = &b.ram;
	for (unsigned int i = 0; i < 2 * RING_SIZE; i++)
		ask(&b, &ring, 64);
	/* So does the first one: saving has changed nothing. */
	go_on(&a);
	ring = (struct vring){ .ram = NULL };
	check_serial(&a);
	state_writer_fini(&wa);
	state_writer_fini(&wb);
	sd_free(&a);
	sd_free(&b);
}

/* A device that was not touched is loaded as one. */
static void test_untouched(void **state)
{
	struct sd a, b;
	struct state_writer wa, wb;
	struct err err = ERR_INIT;

	sd_make(&a);
	sd_make(&b);
	save_all(&a, &wa);
	if (load_all(&b, wa.data, wa.bytes, &err))
		fail_msg("%s", err.text);
	save_all(&b, &wb);
	assert_int_equal(wa.bytes, wb.bytes);
	assert_memory_equal(wa.data, wb.data, wa.bytes);
	assert_int_equal(b.router.messages, 0);
	state_writer_fini(&wa);
	state_writer_fini(&wb);
	sd_free(&a);
	sd_free(&b);
}

/* The clock of the PM timer is the host's: another epoch does not show. */
static void test_other_clock(void **state)
{
	struct sd a, b;
	struct vring ring;
	struct state_writer w;
	struct err err = ERR_INIT;

	sd_make(&a);
	use_all(&a, &ring);
	save_all(&a, &w);
	sd_make(&b);
	b.now_ns = 5000000000ull;
	if (load_all(&b, w.data, w.bytes, &err))
		fail_msg("%s", err.text);
	assert_int_equal(in(&b, PORT_PM_BASE + 8, 4), 13368053);
	assert_int_equal(in(&b, PORT_WATCHDOG + 4, 4), 100);
	b.now_ns += 60ull * NSEC_PER_SEC;
	watchdog_resume(b.watchdog);
	assert_int_equal(in(&b, PORT_WATCHDOG + 8, 4), 75);
	state_writer_fini(&w);
	sd_free(&a);
	sd_free(&b);
}

/* What was pending at a masked vector fires when it is unmasked. */
static void test_pending_vector(void **state)
{
	struct sd a, b;
	struct vring ring;
	struct state_writer w;
	struct err err = ERR_INIT;

	sd_make(&a);
	probe(&a);
	store(&a, BAR_AT + MSIX + 28, 1, 4);
	vring_init(&ring, &a.ram, RING_SIZE, RINGS);
	set_up_queue(&a, &ring);
	store(&a, BAR_AT + VIRTIO_PCI_COMMON_STATUS, 15, 1);
	ask(&a, &ring, 8);
	save_all(&a, &w);
	assert_int_equal(load(&a, BAR_AT + MSIX + 0x800, 8), 2);
	sd_make(&b);
	memcpy(b.ram.base, a.ram.base, SD_RAM);
	if (load_all(&b, w.data, w.bytes, &err))
		fail_msg("%s", err.text);
	assert_int_equal(load(&b, BAR_AT + MSIX + 0x800, 8), 2);
	store(&b, BAR_AT + MSIX + 28, 0, 4);
	assert_int_equal(load(&b, BAR_AT + MSIX + 0x800, 8), 0);
	state_writer_fini(&w);
	sd_free(&a);
	sd_free(&b);
}

/* What no guest can bring about: the host bridge may be asked to leave. */
static void test_host_bridge_stays(void **state)
{
	struct slots {
		uint32_t up, down, asked;
	};
	static const struct state_field fields[] = {
		STATE_FIELD_UINT(struct slots, up, 1),
		STATE_FIELD_UINT(struct slots, down, 2),
		STATE_FIELD_UINT(struct slots, asked, 3),
	};
	static const struct state_table table = {
		.section = "pci-hotplug",
		.version = 1,
		.object_bytes = sizeof(struct slots),
		.fields = fields,
		.num_fields = ARRAY_SIZE(fields),
	};
	const struct slots slots = { .asked = 0x9 };
	struct state_writer w;
	struct state_reader r;
	struct err err = ERR_INIT;
	struct sd sd;

	state_writer_init(&w);
	state_save(&w, &table, NULL, &slots);
	assert_int_equal(state_writer_finish(&w), 0);
	assert_int_equal(state_reader_init(&r, w.data, w.bytes, &err), 0);
	sd_make(&sd);
	assert_int_equal(pci_hotplug_load(sd.hotplug, &r, &err), -EINVAL);
	assert_non_null(strstr(err.text, "host bridge"));
	assert_false(pci_hotplug_requested(sd.hotplug, 0));
	assert_false(pci_hotplug_requested(sd.hotplug, 3));
	sd_free(&sd);
	state_reader_fini(&r);
	state_writer_fini(&w);
}

/* Each bit of it: refused, or loaded into devices that can be used and freed.
 */
static void test_bit_flips(void **state)
{
	unsigned int refused = 0, loaded = 0;
	struct sd a;
	struct vring ring;
	struct state_writer w;

	sd_make(&a);
	use_all(&a, &ring);
	save_all(&a, &w);
	for (size_t bit = 24 * 8; bit < 8 * (w.bytes - 8); bit += 5) {
		struct err err = ERR_INIT;
		struct sd b;

		w.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
		state_fix_checksum(w.data, w.bytes);
		sd_make(&b);
		if (load_all(&b, w.data, w.bytes, &err)) {
			assert_true(strlen(err.text) > 0);
			refused++;
		} else {
			loaded++;
		}
		go_on(&b);
		in(&b, PORT_PM_BASE + 8, 4);
		rtc_poll(b.rtc);
		pm_poll(b.pm);
		sd_free(&b);
		w.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	assert_true(refused > 500);
	assert_true(loaded > 100);
	state_writer_fini(&w);
	sd_free(&a);
}

/* ---- golden files ---- */

static uint8_t *read_file(const char *path, size_t *ret_bytes)
{
	FILE *f = fopen(path, "r");
	uint8_t *data = malloc(MAX_FILE);

	assert_non_null(f);
	assert_non_null(data);
	*ret_bytes = fread(data, 1, MAX_FILE, f);
	fclose(f);
	return data;
}

static void check_golden(const char *path)
{
	struct err err = ERR_INIT;
	size_t bytes;
	uint8_t *data = read_file(path, &bytes);
	struct vring ring;
	struct sd sd;

	sd_make(&sd);
	sd.now_ns += 3734567890ull;
	/* The rings that the file's guest had, after three requests. */
	vring_init(&ring, &sd.ram, RING_SIZE, RINGS);
	ring.avail_idx = ring.used_idx = ring.next_desc = 3;
	*vring_u16(&ring, ring.avail + 2) = htole16(3);
	*vring_u16(&ring, ring.used + 2) = htole16(3);
	if (load_all(&sd, data, bytes, &err))
		fail_msg("%s: %s", path, err.text);
	go_on(&sd);
	check_all(&sd);
	ask(&sd, &ring, 10);
	sd_free(&sd);
	free(data);
}

static void test_golden(void **state)
{
	DIR *dir = opendir(GOLDEN_DIR);
	unsigned int num = 0;
	struct dirent *e;

	assert_non_null(dir);
	while ((e = readdir(dir))) {
		char path[512];

		if (!strstr(e->d_name, "devices-") ||
		    !strstr(e->d_name, ".state"))
			continue;
		snprintf(path, sizeof(path), "%s/%s", GOLDEN_DIR, e->d_name);
		check_golden(path);
		num++;
	}
	closedir(dir);
	assert_true(num >= 1);
}

static int write_golden(const char *path)
{
	struct state_writer w;
	struct vring ring;
	struct sd sd;
	FILE *f;

	sd_make(&sd);
	use_all(&sd, &ring);
	save_all(&sd, &w);
	f = fopen(path, "w");
	if (!f || fwrite(w.data, 1, w.bytes, f) != w.bytes || fclose(f)) {
		perror(path);
		return 1;
	}
	state_writer_fini(&w);
	sd_free(&sd);
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_untouched),
		cmocka_unit_test(test_other_clock),
		cmocka_unit_test(test_pending_vector),
		cmocka_unit_test(test_host_bridge_stays),
		cmocka_unit_test(test_bit_flips),
		cmocka_unit_test(test_golden),
	};

	if (argc == 3 && strcmp(argv[1], "--write") == 0)
		return write_golden(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
