/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device/pci_hotplug.c on a real host bridge: what the guest's methods do with
 * its registers, and what a hostile guest does.
 */
#include "cmocka_all.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/evloop.h"
#include "bus/pci_host.h"
#include "device/pci_hotplug.h"
#include "x86/layout.h"

#define UP    (PORT_HOTPLUG + 0)
#define DOWN  (PORT_HOTPLUG + 4)
#define EJECT (PORT_HOTPLUG + 8)

#define BIT(slot) (1u << (slot))

struct fixture {
	struct iobus *pio, *mmio;
	struct pci_host *pci;
	struct pci_hotplug *hp;
	struct evloop *loop;
	struct pci_dev devs[PCI_HOST_SLOTS];
	_Atomic bool event;
	unsigned int ejects[PCI_HOST_SLOTS];
};

static void on_event(void *ctx, bool level)
{
	((struct fixture *)ctx)->event = level;
}

/* As the machine does. */
static void on_ejected(void *ctx, unsigned int slot)
{
	struct fixture *f = ctx;

	assert_in_range(slot, 1, PCI_HOST_SLOTS - 1);
	f->ejects[slot]++;
	pci_host_unplug(f->pci, &f->devs[slot]);
	if (f->loop)
		evloop_stop(f->loop, 0);
}

static void make(struct fixture *f, bool with_loop)
{
	struct pci_host_config pci = {
		.ecam_base = LAYOUT_ECAM_START,
		.window32_base = LAYOUT_PCI32_START,
		.window32_size = LAYOUT_PCI32_SIZE,
	};
	struct pci_hotplug_config cfg = {
		.event = on_event,
		.ejected = on_ejected,
		.ctx = f,
	};

	memset(f, 0, sizeof(*f));
	assert_int_equal(iobus_new(&f->pio), 0);
	assert_int_equal(iobus_new(&f->mmio), 0);
	if (with_loop)
		assert_int_equal(evloop_new(&f->loop), 0);
	pci.pio = cfg.pio = f->pio;
	pci.mmio = f->mmio;
	assert_int_equal(pci_host_new(&f->pci, &pci), 0);
	cfg.pci = f->pci;
	cfg.loop = f->loop;
	assert_int_equal(pci_hotplug_new(&f->hp, &cfg), 0);
}

static void unmake(struct fixture *f)
{
	pci_hotplug_free(f->hp);
	pci_host_free(f->pci);
	evloop_free(f->loop);
	iobus_free(f->mmio);
	iobus_free(f->pio);
}

static int setup(void **state)
{
	static struct fixture f;

	make(&f, false);
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	unmake(*state);
	return 0;
}

static void plug(struct fixture *f, unsigned int slot)
{
	static const struct pci_id id = { .vendor = 0x1234, .device = 1 };

	pci_dev_init(&f->devs[slot], "dev", &id);
	assert_int_equal(pci_host_plug(f->pci, &f->devs[slot], (int)slot), 0);
}

static bool present(struct fixture *f, unsigned int slot)
{
	return pci_host_config_read(f->pci, (uint8_t)(slot << 3), 0, 4) !=
	       UINT32_MAX;
}

static uint32_t in(struct fixture *f, uint64_t port)
{
	uint32_t v;

	assert_true(iobus_read(f->pio, port, &v, 4));
	return v;
}

static void out(struct fixture *f, uint64_t port, uint32_t v)
{
	assert_true(iobus_write(f->pio, port, &v, 4));
}

static void test_added(void **state)
{
	struct fixture *f = *state;

	assert_false(f->event);
	plug(f, 3);
	pci_hotplug_added(f->hp, 3);
	plug(f, 31);
	pci_hotplug_added(f->hp, 31);
	assert_true(f->event);
	assert_int_equal(in(f, UP), BIT(3) | BIT(31));
	assert_int_equal(in(f, UP), BIT(3) | BIT(31)); /* reading keeps them */
	out(f, UP, BIT(3));
	assert_int_equal(in(f, UP), BIT(31));
	assert_true(f->event);
	out(f, UP, BIT(31));
	assert_false(f->event);
	assert_int_equal(in(f, DOWN), 0);
}

static void test_removed(void **state)
{
	struct fixture *f = *state;

	plug(f, 4);
	pci_hotplug_request(f->hp, 4);
	assert_true(pci_hotplug_requested(f->hp, 4));
	assert_int_equal(in(f, DOWN), BIT(4));
	assert_true(f->event);
	out(f, DOWN, BIT(4));
	assert_false(f->event);
	assert_true(present(f, 4)); /* until the guest lets go */
	out(f, EJECT, BIT(4));
	assert_false(present(f, 4)); /* at once */
	assert_true(pci_hotplug_requested(f->hp, 4));
	assert_int_equal(f->ejects[4], 0); /* that is the control thread's */
	assert_int_equal(in(f, EJECT), 0);
	pci_hotplug_poll(f->hp);
	assert_int_equal(f->ejects[4], 1);
	assert_false(pci_hotplug_requested(f->hp, 4));
	pci_hotplug_poll(f->hp);
	assert_int_equal(f->ejects[4], 1);
	assert_int_equal(pci_hotplug_refused(f->hp), 0);
	plug(f, 4); /* the slot is free again */
}

/* A guest that acknowledges and does nothing is asked again. */
static void test_ignored_request_is_repeated(void **state)
{
	struct fixture *f = *state;

	plug(f, 1);
	for (int i = 0; i < 3; i++) {
		pci_hotplug_request(f->hp, 1);
		assert_true(f->event);
		assert_int_equal(in(f, DOWN), BIT(1));
		out(f, DOWN, BIT(1));
		assert_false(f->event);
	}
	out(f, EJECT, BIT(1));
	pci_hotplug_poll(f->hp);
	assert_int_equal(f->ejects[1], 1);
}

static void test_ejects_that_nobody_asked_for(void **state)
{
	struct fixture *f = *state;

	plug(f, 1);
	plug(f, 2);
	out(f, EJECT, UINT32_MAX); /* the bridge and empty slots as well */
	pci_hotplug_poll(f->hp);
	assert_true(present(f, 0) && present(f, 1) && present(f, 2));
	assert_int_equal(pci_hotplug_refused(f->hp), 1);
	/* among them one that was asked for */
	pci_hotplug_request(f->hp, 2);
	out(f, EJECT, UINT32_MAX);
	assert_int_equal(pci_hotplug_refused(f->hp), 2);
	assert_true(present(f, 0) && present(f, 1) && !present(f, 2));
	out(f, EJECT, BIT(2)); /* twice */
	assert_int_equal(pci_hotplug_refused(f->hp), 3);
	/* asking for one that is leaving must not stick to its successor */
	pci_hotplug_request(f->hp, 2);
	assert_int_equal(in(f, DOWN), 0);
	pci_hotplug_poll(f->hp);
	assert_int_equal(f->ejects[2], 1);
	plug(f, 2);
	assert_false(pci_hotplug_requested(f->hp, 2));
	out(f, EJECT, BIT(2));
	pci_hotplug_poll(f->hp);
	assert_true(present(f, 2));
	assert_int_equal(f->ejects[2], 1);
}

static void test_gone_before_it_was_seen(void **state)
{
	struct fixture *f = *state;

	plug(f, 9);
	pci_hotplug_added(f->hp, 9);
	pci_hotplug_request(f->hp, 9);
	out(f, EJECT, BIT(9));
	pci_hotplug_poll(f->hp);
	assert_int_equal(in(f, UP), 0);
	assert_false(f->event);
}

static void test_odd_accesses(void **state)
{
	struct fixture *f = *state;
	uint8_t bytes[8];

	plug(f, 8);
	pci_hotplug_added(f->hp, 8);
	pci_hotplug_request(f->hp, 8);
	assert_true(iobus_read(f->pio, UP + 1, bytes, 1));
	assert_int_equal(bytes[0], 1);
	assert_true(iobus_read(f->pio, UP, bytes, 8));
	assert_memory_equal(bytes, "\0\1\0\0\0\1\0\0", 8);
	memset(bytes, 0xff, sizeof(bytes));
	for (uint64_t port = UP; port < UP + HOTPLUG_PORTS; port++) {
		iobus_write(f->pio, port, bytes, 1);
		iobus_write(f->pio, port, bytes, 2);
		iobus_write(f->pio, port, bytes, 8);
		if (port % 4)
			iobus_write(f->pio, port, bytes, 4);
	}
	assert_int_equal(in(f, UP), BIT(8));
	assert_int_equal(in(f, DOWN), BIT(8));
	assert_true(present(f, 8));
	assert_int_equal(pci_hotplug_refused(f->hp), 0);
}

static void test_the_loop_is_told(void **state)
{
	static struct fixture f;

	make(&f, true);
	plug(&f, 7);
	pci_hotplug_request(f.hp, 7);
	out(&f, EJECT, BIT(7));
	assert_int_equal(evloop_run(f.loop), 0);
	assert_int_equal(f.ejects[7], 1);
	unmake(&f);
}

struct vcpus {
	struct fixture *f;
	_Atomic bool stop;
};

static void *eject_all(void *arg)
{
	struct vcpus *vcpus = arg;

	while (!atomic_load(&vcpus->stop)) {
		out(vcpus->f, UP, in(vcpus->f, UP));
		out(vcpus->f, DOWN, in(vcpus->f, DOWN));
		out(vcpus->f, EJECT, UINT32_MAX);
	}
	return NULL;
}

/* Two vCPUs eject everything all the time: each request is one removal. */
static void test_vcpus_at_once(void **state)
{
	struct fixture *f = *state;
	struct vcpus vcpus = { .f = f };
	pthread_t threads[2];

	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, eject_all,
						&vcpus),
				 0);
	for (unsigned int i = 0; i < 62; i++) {
		unsigned int slot = 1 + i % 31, before = f->ejects[slot];

		plug(f, slot);
		pci_hotplug_added(f->hp, slot);
		pci_hotplug_request(f->hp, slot);
		while (f->ejects[slot] == before)
			pci_hotplug_poll(f->hp);
		assert_int_equal(f->ejects[slot], before + 1);
		assert_false(present(f, slot));
	}
	atomic_store(&vcpus.stop, true);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_added),
		T(test_removed),
		T(test_ignored_request_is_repeated),
		T(test_ejects_that_nobody_asked_for),
		T(test_gone_before_it_was_seen),
		T(test_odd_accesses),
		cmocka_unit_test(test_the_loop_is_told),
		T(test_vcpus_at_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
