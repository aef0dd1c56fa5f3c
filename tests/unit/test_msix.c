/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bus/msix.c against a router that only records: when routes are set, that
 * masked vectors wait, and that nothing is lost between the two.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/io.h"
#include "bus/msix.h"

#define VECTORS	  3
#define TABLE	  0x3000
#define PBA	  0x3800
#define FIRST_GSI 24

/* The router: only what msix uses, instead of kvm/irq.c. */
struct irq_router {
	uint32_t next_gsi, max_gsi;
	unsigned int sets, binds, unbinds, clears, releases;
	uint64_t address[64];
	uint32_t data[64];
	int fd[64];
	int source_fd; /* an eventfd that is not msix's own; -1: not bound */
	int fail_set;
};

int irq_router_alloc_msi(struct irq_router *router, uint32_t *ret_gsi)
{
	if (router->next_gsi == router->max_gsi)
		return -ENOSPC;
	*ret_gsi = router->next_gsi++;
	return 0;
}

void irq_router_release_msi(struct irq_router *router, uint32_t gsi)
{
	router->releases++;
}

int irq_router_set_msi(struct irq_router *router, uint32_t gsi,
		       uint64_t address, uint32_t data)
{
	if (router->fail_set)
		return router->fail_set;
	router->sets++;
	router->address[gsi] = address;
	router->data[gsi] = data;
	return 0;
}

int irq_router_clear_msi(struct irq_router *router, uint32_t gsi)
{
	router->clears++;
	return 0;
}

int irq_router_bind_fd(struct irq_router *router, uint32_t gsi, int fd)
{
	router->binds++;
	if (router->fd[gsi] >= 0)
		router->source_fd = fd;
	else
		router->fd[gsi] = fd;
	return 0;
}

int irq_router_unbind_fd(struct irq_router *router, uint32_t gsi, int fd)
{
	if (fd == router->source_fd)
		router->source_fd = -1;
	else
		assert_int_equal(router->fd[gsi], fd);
	router->unbinds++;
	return 0;
}

struct box {
	struct pci_dev pci;
	struct irq_router router;
	struct msix *msix;
	uint8_t cap;
};

static void box_init(struct box *box)
{
	static const struct pci_id id = { .vendor = 1, .device = 2 };

	memset(box, 0, sizeof(*box));
	box->router.next_gsi = FIRST_GSI;
	box->router.max_gsi = 64;
	box->router.source_fd = -1;
	memset(box->router.fd, 0xff, sizeof(box->router.fd)); /* -1: none */
	pci_dev_init(&box->pci, "box", &id);
	assert_int_equal(msix_new(&box->msix, &box->pci, &box->router, VECTORS,
				  4, TABLE, PBA),
			 0);
	box->cap = box->pci.config[PCI_CAPABILITY_LIST];
}

static void set_control(struct box *box, uint16_t flags)
{
	uint8_t *p = box->pci.config + box->cap + PCI_MSIX_FLAGS;

	le16_store(p,
		   (uint16_t)((le16_load(p) & PCI_MSIX_FLAGS_QSIZE) | flags));
	msix_config_written(box->msix, box->cap + PCI_MSIX_FLAGS, 2);
}

static void set32(struct box *box, unsigned int vector, uint32_t reg,
		  uint32_t value)
{
	msix_table_write(box->msix, vector * PCI_MSIX_ENTRY_SIZE + reg, &value,
			 4);
}

static uint32_t get32(struct box *box, unsigned int vector, uint32_t reg)
{
	uint32_t value;

	msix_table_read(box->msix, vector * PCI_MSIX_ENTRY_SIZE + reg, &value,
			4);
	return value;
}

static void program(struct box *box, unsigned int vector, uint32_t addr,
		    uint32_t data)
{
	set32(box, vector, PCI_MSIX_ENTRY_LOWER_ADDR, addr);
	set32(box, vector, PCI_MSIX_ENTRY_UPPER_ADDR, 0);
	set32(box, vector, PCI_MSIX_ENTRY_DATA, data);
}

static void mask(struct box *box, unsigned int vector, bool masked)
{
	set32(box, vector, PCI_MSIX_ENTRY_VECTOR_CTRL, masked);
}

/* As KVM sees it; what is signalled before the irqfd is bound counts later. */
static uint64_t fired(struct box *box, unsigned int vector)
{
	return io_eventfd_drain(box->router.fd[FIRST_GSI + vector]);
}

static uint64_t pba(struct box *box)
{
	uint64_t bits;

	msix_pba_read(box->msix, 0, &bits, 8);
	return bits;
}

static void test_capability(void **state)
{
	struct box box;

	box_init(&box);
	assert_int_equal(box.pci.config[box.cap], PCI_CAP_ID_MSIX);
	assert_int_equal(le16_load(box.pci.config + box.cap + 2), VECTORS - 1);
	assert_int_equal(le32_load(box.pci.config + box.cap + 4), TABLE | 4);
	assert_int_equal(le32_load(box.pci.config + box.cap + 8), PBA | 4);
	assert_int_equal(le16_load(box.pci.wmask + box.cap + 2), 0xc000);
	assert_int_equal(msix_table_bytes(3), 48);
	assert_int_equal(msix_pba_bytes(3), 8);
	assert_int_equal(msix_pba_bytes(65), 16);
	for (unsigned int i = 0; i < VECTORS; i++)
		assert_int_equal(get32(&box, i, PCI_MSIX_ENTRY_VECTOR_CTRL), 1);
	msix_free(box.msix);
	assert_int_equal(box.router.releases, VECTORS);
}

/* What Linux does: enable with all masked, program, unmask each. */
static void test_one_route_for_each_unmask(void **state)
{
	struct box box;

	box_init(&box);
	set_control(&box, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
	for (unsigned int i = 0; i < VECTORS; i++)
		mask(&box, i, true);
	set_control(&box, PCI_MSIX_FLAGS_ENABLE);
	for (unsigned int i = 0; i < VECTORS; i++)
		program(&box, i, 0xfee00000 + i * 0x1000, 0x40 + i);
	assert_int_equal(box.router.sets, 0);
	for (unsigned int i = 0; i < VECTORS; i++)
		mask(&box, i, false);
	assert_int_equal(box.router.sets, VECTORS);
	assert_int_equal(box.router.binds, VECTORS);
	assert_int_equal(box.router.address[25], 0xfee01000);
	assert_int_equal(box.router.data[25], 0x41);

	/* masking and unmasking an unchanged entry costs nothing */
	mask(&box, 1, true);
	program(&box, 1, 0xfee01000, 0x41);
	mask(&box, 1, false);
	assert_int_equal(box.router.sets, VECTORS);
	/* another CPU: one call, at the unmask */
	mask(&box, 1, true);
	program(&box, 1, 0xfee02000, 0x51);
	assert_int_equal(box.router.sets, VECTORS);
	mask(&box, 1, false);
	assert_int_equal(box.router.sets, VECTORS + 1);
	assert_int_equal(box.router.binds, VECTORS);
	assert_int_equal(box.router.address[25], 0xfee02000);
	/* changed while unmasked: followed */
	set32(&box, 1, PCI_MSIX_ENTRY_DATA, 0x52);
	assert_int_equal(box.router.data[25], 0x52);
	msix_free(box.msix);
	assert_int_equal(box.router.unbinds, VECTORS);
	assert_int_equal(box.router.clears, VECTORS);
}

static void test_masked_is_pending(void **state)
{
	struct box box;

	box_init(&box);
	set_control(&box, PCI_MSIX_FLAGS_ENABLE);
	program(&box, 2, 0xfee00000, 0x30);
	msix_notify(box.msix, 2);
	msix_notify(box.msix, 2);
	assert_int_equal(fired(&box, 2), 0);
	assert_int_equal(pba(&box), 4);
	mask(&box, 2, false);
	assert_int_equal(fired(&box, 2), 1);
	assert_int_equal(pba(&box), 0);
	msix_notify(box.msix, 2);
	assert_int_equal(fired(&box, 2), 1);

	/* the function mask works on all, and leaves the vectors' own */
	set_control(&box, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
	msix_notify(box.msix, 2);
	msix_notify(box.msix, 1);
	assert_int_equal(pba(&box), 6);
	set_control(&box, PCI_MSIX_FLAGS_ENABLE);
	assert_int_equal(fired(&box, 2), 1);
	assert_int_equal(fired(&box, 1), 0);
	assert_int_equal(pba(&box), 2);

	/* out of range */
	msix_notify(box.msix, VECTORS);
	msix_notify(box.msix, 0xffff);
	msix_free(box.msix);
}

static void test_disabled_is_silent(void **state)
{
	struct box box;

	box_init(&box);
	program(&box, 0, 0xfee00000, 0x30);
	mask(&box, 0, false);
	assert_false(msix_enabled(box.msix));
	assert_int_equal(box.router.sets, 0);
	msix_notify(box.msix, 0);
	assert_int_equal(fired(&box, 0), 0);
	set_control(&box, PCI_MSIX_FLAGS_ENABLE);
	assert_true(msix_enabled(box.msix));
	assert_int_equal(box.router.sets, 1);
	assert_int_equal(fired(&box, 0), 1);
	/* a write elsewhere in configuration space changes nothing */
	msix_config_written(box.msix, box.cap + 4u, 4);
	msix_config_written(box.msix, box.cap, 2);
	assert_int_equal(box.router.sets, 1);
	msix_free(box.msix);
}

static void test_table_access_widths(void **state)
{
	struct box box;
	uint64_t value = 0x1122334455667788, got;
	uint8_t byte = 0xee;

	box_init(&box);
	msix_table_write(box.msix, 16, &value, 8);
	assert_int_equal(get32(&box, 1, 0), 0x55667788);
	assert_int_equal(get32(&box, 1, 4), 0x11223344);
	/* data and control at once; only the mask bit of control is real */
	value = 0xfffffffe00000099;
	msix_table_write(box.msix, 24, &value, 8);
	assert_int_equal(get32(&box, 1, PCI_MSIX_ENTRY_DATA), 0x99);
	assert_int_equal(get32(&box, 1, PCI_MSIX_ENTRY_VECTOR_CTRL), 0);
	/* over two entries, bytes, and past the end */
	value = 0xaaaaaaaa00000001;
	msix_table_write(box.msix, 12, &value, 8);
	assert_int_equal(get32(&box, 0, PCI_MSIX_ENTRY_VECTOR_CTRL), 1);
	assert_int_equal(get32(&box, 1, 0), 0xaaaaaaaa);
	msix_table_write(box.msix, 17, &byte, 1);
	assert_int_equal(get32(&box, 1, 0), 0xaaaaeeaa);
	msix_table_write(box.msix, 44, &value, 8);
	assert_int_equal(get32(&box, 2, PCI_MSIX_ENTRY_VECTOR_CTRL), 1);
	msix_table_read(box.msix, 44, &got, 8);
	assert_int_equal(got, 1);
	msix_table_read(box.msix, 48, &got, 8);
	assert_int_equal(got, 0);
	msix_pba_read(box.msix, UINT64_MAX - 1, &got, 8);
	assert_int_equal(got, 0);
	msix_free(box.msix);
}

/* KVM refuses a message: the vector stays silent until it is a good one. */
static void test_refused_route(void **state)
{
	struct box box;

	box_init(&box);
	set_control(&box, PCI_MSIX_FLAGS_ENABLE);
	box.router.fail_set = -EINVAL;
	program(&box, 0, 0x1000, 0);
	mask(&box, 0, false);
	msix_notify(box.msix, 0);
	assert_int_equal(fired(&box, 0), 0);
	assert_int_equal(pba(&box), 1);
	box.router.fail_set = 0;
	set32(&box, 0, PCI_MSIX_ENTRY_LOWER_ADDR, 0xfee00000);
	assert_int_equal(box.router.address[24], 0xfee00000);
	assert_int_equal(fired(&box, 0), 1);
	msix_free(box.msix);
}

static void test_creation_limits(void **state)
{
	static const struct pci_id id = { .vendor = 1, .device = 2 };
	struct irq_router router = { .next_gsi = 24, .max_gsi = 26 };
	struct msix *msix;
	struct pci_dev pci;

	pci_dev_init(&pci, "box", &id);
	assert_int_equal(msix_new(&msix, &pci, &router, 3, 0, 0, 0x800),
			 -ENOSPC);
	assert_int_equal(router.releases, 2);
	assert_int_equal(msix_new(&msix, &pci, NULL, 0, 0, 0, 0x800), -EINVAL);
	assert_int_equal(msix_new(&msix, &pci, NULL, 2049, 0, 0, 0x8000),
			 -EINVAL);
	assert_int_equal(pci.last_cap, 0);
}

/*
 * Somebody else's eventfd: KVM has it while the vector may fire, and what was
 * signalled in between is there then, once.
 */
static void test_source(void **state)
{
	struct msix_source src = { .fd = -1 }, none = { .fd = -1 };
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct box box;

	box_init(&box);
	set_control(&box, PCI_MSIX_FLAGS_ENABLE);
	program(&box, 1, 0xfee00000, 0x30);
	msix_source_attach(box.msix, &src, 1, fd);
	assert_int_equal(box.router.source_fd, -1);
	io_eventfd_signal(fd);
	assert_int_equal(pba(&box), 2);
	mask(&box, 1, false);
	assert_int_equal(box.router.source_fd, fd);
	assert_int_equal(pba(&box), 0); /* KVM's matter now */
	assert_int_equal(io_eventfd_drain(fd), 1);
	/* msix's own way works beside it */
	msix_notify(box.msix, 1);
	assert_int_equal(fired(&box, 1), 1);

	/* nothing was signalled: nothing fires */
	mask(&box, 1, true);
	assert_int_equal(box.router.source_fd, -1);
	mask(&box, 1, false);
	assert_int_equal(io_eventfd_drain(fd), 0);

	set_control(&box, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
	assert_int_equal(box.router.source_fd, -1);
	io_eventfd_signal(fd);
	io_eventfd_signal(fd);
	set_control(&box, PCI_MSIX_FLAGS_ENABLE);
	assert_int_equal(box.router.source_fd, fd);
	assert_int_equal(io_eventfd_drain(fd), 1);

	/* attached to a vector that may fire: at once; to none: never */
	msix_source_detach(box.msix, &src);
	assert_int_equal(box.router.source_fd, -1);
	msix_source_attach(box.msix, &src, 1, fd);
	assert_int_equal(box.router.source_fd, fd);
	msix_source_attach(box.msix, &none, VECTORS, fd);
	assert_false(none.attached);
	msix_source_detach(box.msix, &none);
	msix_free(box.msix);
	assert_int_equal(box.router.source_fd, -1);
	close(fd);
}

/* One thread raises, another masks and unmasks: every raise shows. */
static void *raiser(void *arg)
{
	struct box *box = arg;

	for (int i = 0; i < 20000; i++)
		msix_notify(box->msix, 0);
	return NULL;
}

static void test_mask_race(void **state)
{
	struct box box;
	pthread_t thread;
	uint64_t seen = 0;

	box_init(&box);
	set_control(&box, PCI_MSIX_FLAGS_ENABLE);
	assert_int_equal(pthread_create(&thread, NULL, raiser, &box), 0);
	for (int i = 0; i < 20000; i++) {
		mask(&box, 0, i & 1);
		seen += fired(&box, 0);
	}
	pthread_join(thread, NULL);
	mask(&box, 0, false);
	seen += fired(&box, 0);
	/* the last raise came before this unmask, so it is not pending */
	assert_int_equal(pba(&box), 0);
	assert_true(seen >= 1 && seen <= 20000);
	mask(&box, 0, true);
	msix_notify(box.msix, 0);
	mask(&box, 0, false);
	assert_int_equal(fired(&box, 0), 1);
	msix_free(box.msix);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_capability),
		cmocka_unit_test(test_one_route_for_each_unmask),
		cmocka_unit_test(test_masked_is_pending),
		cmocka_unit_test(test_disabled_is_silent),
		cmocka_unit_test(test_table_access_widths),
		cmocka_unit_test(test_refused_route),
		cmocka_unit_test(test_creation_limits),
		cmocka_unit_test(test_source),
		cmocka_unit_test(test_mask_race),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
