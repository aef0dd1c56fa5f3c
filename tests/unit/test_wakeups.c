/* SPDX-License-Identifier: Apache-2.0 */
/*
 * No kick and no interrupt is lost: a virtio-blk device with its queue thread,
 * ring, block queue and MSI-X, and a driver on another thread that sleeps until
 * its interrupt comes. It does what Linux does and no more: it kicks only when
 * the ring says so, asks for interrupts only when it is about to sleep, and
 * looks at the ring only after one. A third thread masks and unmasks the vector
 * meanwhile, and now and then the driver resets the device in the middle.
 *
 * A lost wake-up on any of these ways leaves both sides asleep, which is what
 * fails the test. Data is checked too.
 */
#include "cmocka_all.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/pci_regs.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "bus/msix.h"
#include "no_uring.h"
#include "virtio/blk/blk.h"
#include "virtio/blk/blk_spec.h"
#include "virtio_fake.h"

#define RAM_BYTES   (8 * MIB)
#define IMAGE_BYTES (4 * MIB)
#define RING_BASE   0x10000
#define RING_SIZE   64ull
#define SLOTS	    20ull /* three descriptors each */
#define DATA_BYTES  4096ull
#define LOST_MS	    30000 /* nothing waits this long but for ever */
#define NO_STATUS   0xaa
#define VECTORS	    2
#define VECTOR	    1
#define NO_FEATURES 0ull

/* The router: the interrupt's eventfd is the driver's to sleep on. */
struct irq_router {
	uint32_t next_gsi;
	int fd[VECTORS];
};

int irq_router_alloc_msi(struct irq_router *router, uint32_t *ret_gsi)
{
	*ret_gsi = router->next_gsi++;
	return 0;
}

void irq_router_release_msi(struct irq_router *router, uint32_t gsi)
{
}

int irq_router_set_msi(struct irq_router *router, uint32_t gsi,
		       uint64_t address, uint32_t data)
{
	return 0;
}

int irq_router_clear_msi(struct irq_router *router, uint32_t gsi)
{
	return 0;
}

int irq_router_bind_fd(struct irq_router *router, uint32_t gsi, int fd)
{
	router->fd[gsi] = fd;
	return 0;
}

int irq_router_unbind_fd(struct irq_router *router, uint32_t gsi, int fd)
{
	return 0;
}

/* A request slot: descriptors 3 * n on, a sector and a page of its own. */
struct slot {
	uint64_t header, data, status; /* guest-physical */
	uint32_t type;
	uint32_t stamp; /* what its sector holds */
	bool busy;
};

struct machine {
	struct ram ram;
	char path[PATH_MAX];
	struct pci_dev pci;
	struct irq_router router;
	struct msix *msix;
	struct virtio_dev *dev;
	struct vring ring;
	struct slot slots[SLOTS];
	uint64_t data_base;
	uint64_t random;
	bool event_idx;
	uint16_t kicked; /* avail index at the last decision about a kick */
	unsigned int busy;
	uint64_t completed, kicks, interrupts;
	_Atomic bool stop_masking;
};

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static uint64_t pick(struct machine *m, uint64_t below)
{
	return next_random(&m->random) % below;
}

/* Somewhere between nothing and longer than a wake-up takes. */
static void dawdle(uint64_t *random)
{
	uint64_t turns = 1ull << (next_random(random) % 16);

	while (turns--)
		__asm__ volatile("" : : : "memory");
}

/* ---- interrupts ---- */

static void notify_queue(void *transport, unsigned int queue)
{
	struct machine *m = transport;

	msix_notify(m->msix, VECTOR);
}

static const struct virtio_transport_ops transport_ops = {
	.notify_queue = notify_queue,
	.notify_config = fake_notify_config,
	.needs_reset = fake_needs_reset,
};

static void set_mask(struct machine *m, bool masked)
{
	uint32_t value = masked;

	msix_table_write(m->msix,
			 VECTOR * PCI_MSIX_ENTRY_SIZE +
				 PCI_MSIX_ENTRY_VECTOR_CTRL,
			 &value, 4);
}

static void set_control(struct machine *m, uint16_t flags)
{
	uint8_t cap = m->pci.config[PCI_CAPABILITY_LIST];
	uint8_t *p = m->pci.config + cap + PCI_MSIX_FLAGS;

	le16_store(p,
		   (uint16_t)((le16_load(p) & PCI_MSIX_FLAGS_QSIZE) | flags));
	msix_config_written(m->msix, cap + PCI_MSIX_FLAGS, 2);
}

static void *mask_thread(void *arg)
{
	struct machine *m = arg;
	uint64_t random = 88172645463325252ull;

	while (!atomic_load(&m->stop_masking)) {
		bool function = next_random(&random) % 4 == 0;

		if (function)
			set_control(m, PCI_MSIX_FLAGS_ENABLE |
					       PCI_MSIX_FLAGS_MASKALL);
		else
			set_mask(m, true);
		dawdle(&random);
		if (function)
			set_control(m, PCI_MSIX_FLAGS_ENABLE);
		else
			set_mask(m, false);
		usleep((useconds_t)(next_random(&random) % 200));
	}
	return NULL;
}

/* ---- the driver ---- */

static void slot_init(struct machine *m, unsigned int i)
{
	struct slot *s = &m->slots[i];
	uint16_t desc = (uint16_t)(3 * i);

	s->busy = false;
	s->header = m->data_base + 2 * i * PAGE_4K;
	s->status = s->header + 16;
	s->data = s->header + PAGE_4K;
	vring_set_desc(&m->ring, m->ring.desc, desc, s->header, 16, VRING_NEXT,
		       desc + 1);
	vring_set_desc(&m->ring, m->ring.desc, desc + 2, s->status, 1,
		       VRING_WRITE, 0);
}

static void fill(struct machine *m, const struct slot *s, uint32_t stamp)
{
	char *p = vring_ptr(&m->ring, s->data);

	for (unsigned int i = 0; i < DATA_BYTES; i += 4)
		le32_store(p + i, stamp + i);
}

static void slot_add(struct machine *m, unsigned int i)
{
	static const uint32_t types[] = { BLK_T_IN, BLK_T_OUT, BLK_T_FLUSH };
	struct slot *s = &m->slots[i];
	char *header = vring_ptr(&m->ring, s->header);
	uint16_t desc = (uint16_t)(3 * i);
	uint16_t flags = VRING_NEXT;

	s->type = types[pick(m, 8) ? pick(m, 2) : 2];
	le32_store(header, s->type);
	le32_store(header + 4, 0);
	le64_store(header + 8,
		   s->type == BLK_T_FLUSH ? 0 : i * (DATA_BYTES / 512));
	*(uint8_t *)vring_ptr(&m->ring, s->status) = NO_STATUS;
	if (s->type == BLK_T_IN)
		flags |= VRING_WRITE;
	if (s->type == BLK_T_OUT)
		s->stamp = (uint32_t)next_random(&m->random);
	fill(m, s, s->type == BLK_T_IN ? ~s->stamp : s->stamp);
	vring_set_desc(&m->ring, m->ring.desc, desc, s->header, 16, VRING_NEXT,
		       s->type == BLK_T_FLUSH ? desc + 2 : desc + 1);
	vring_set_desc(&m->ring, m->ring.desc, desc + 1, s->data, DATA_BYTES,
		       flags, desc + 2);
	s->busy = true;
	m->busy++;
	vring_publish(&m->ring, desc);
}

/* Does the device want to hear of what was added since the last time? */
static void kick_if_wanted(struct machine *m)
{
	uint16_t now = m->ring.avail_idx, old = m->kicked;
	bool wanted;

	m->kicked = now;
	__sync_synchronize();
	if (m->event_idx)
		wanted = (uint16_t)(now - vring_avail_event(&m->ring) - 1) <
			 (uint16_t)(now - old);
	else
		wanted = !vring_used_flags(&m->ring);
	if (!wanted)
		return;
	m->kicks++;
	io_eventfd_signal(m->dev->queues[0].kick_fd);
}

static void interrupts_off(struct machine *m)
{
	if (m->event_idx)
		vring_set_used_event(&m->ring, 0); /* as Linux does */
	else
		vring_set_no_interrupt(&m->ring, true);
}

/* False: something was used meanwhile. */
static bool interrupts_on(struct machine *m)
{
	if (m->event_idx)
		vring_set_used_event(&m->ring, m->ring.used_idx);
	else
		vring_set_no_interrupt(&m->ring, false);
	__sync_synchronize();
	return le16toh(atomic_load(vring_u16(&m->ring, m->ring.used + 2))) ==
	       m->ring.used_idx;
}

static void slot_done(struct machine *m, const struct vring_used_elem *used)
{
	struct slot *s = &m->slots[used->id / 3];
	const char *p;

	assert_true(used->id % 3 == 0 && used->id / 3 < SLOTS && s->busy);
	s->busy = false;
	m->busy--;
	m->completed++;
	assert_int_equal(*(uint8_t *)vring_ptr(&m->ring, s->status), 0);
	if (s->type != BLK_T_IN)
		return;
	p = vring_ptr(&m->ring, s->data);
	for (unsigned int i = 0; i < DATA_BYTES; i += 4)
		assert_int_equal(le32_load(p + i), s->stamp + i);
}

static void handle_interrupt(struct machine *m)
{
	struct vring_used_elem used;

	do {
		interrupts_off(m);
		while (vring_take_used(&m->ring, &used))
			slot_done(m, &used);
		/* With more to come, the last of it comes just now. */
		if (m->busy)
			dawdle(&m->random);
	} while (!interrupts_on(m));
}

static void sleep_until_interrupt(struct machine *m)
{
	struct pollfd pfd = { .fd = m->router.fd[VECTOR], .events = POLLIN };
	int r = poll(&pfd, 1, LOST_MS);

	if (r != 1)
		fail_msg("asleep with %u requests: added %u, popped %u (kick "
			 "at %u), used %u, taken %u (interrupt at %u)",
			 m->busy, m->ring.avail_idx,
			 m->dev->queues[0].vq.last_avail,
			 vring_avail_event(&m->ring),
			 m->dev->queues[0].vq.used_idx, m->ring.used_idx,
			 le16_load(vring_ptr(&m->ring, m->ring.avail + 4 +
							       2 * RING_SIZE)));
	io_eventfd_drain(pfd.fd);
	m->interrupts++;
	handle_interrupt(m);
}

/* Depth 1 is where both sides fall asleep each time. */
static void drive(struct machine *m, unsigned int requests)
{
	unsigned int depth = 1;

	while (requests) {
		if (pick(m, 32) == 0)
			depth = pick(m, 2) ? 1 : 1 + (unsigned)pick(m, SLOTS);
		for (unsigned int i = 0; i < SLOTS && requests; i++) {
			if (m->busy >= depth || m->slots[i].busy)
				continue;
			slot_add(m, i);
			requests--;
			if (pick(m, 2))
				kick_if_wanted(m);
			if (pick(m, 4) == 0)
				dawdle(&m->random);
		}
		kick_if_wanted(m);
		if (pick(m, 4) == 0)
			dawdle(&m->random);
		if (m->busy)
			sleep_until_interrupt(m);
	}
}

static void drain(struct machine *m)
{
	while (m->busy)
		sleep_until_interrupt(m);
}

/* ---- rounds ---- */

static void machine_init(struct machine *m, const char *options)
{
	static const struct pci_id id = { .vendor = 1, .device = 2 };
	const char *dir = getenv("TMPDIR");
	char words[PATH_MAX + 64];
	struct err err = ERR_INIT;
	int fd;

	*m = (struct machine){ .random = 0x9e3779b97f4a7c15ull };
	assert_int_equal(fake_ram_init(&m->ram, RAM_BYTES), 0);
	snprintf(m->path, sizeof(m->path), "%s/quire-test-wakeups-XXXXXX",
		 dir ? dir : "/tmp");
	fd = mkostemp(m->path, O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, IMAGE_BYTES), 0);
	close(fd);
	snprintf(words, sizeof(words), "path=%s%s", m->path, options);
	if (fake_create(&m->dev, &virtio_blk_class, words, &m->ram, 1, &err))
		fail_msg("%s", err.text);
	pci_dev_init(&m->pci, "box", &id);
	assert_int_equal(msix_new(&m->msix, &m->pci, &m->router, VECTORS, 0,
				  0x3000, 0x3800),
			 0);
	set_control(m, PCI_MSIX_FLAGS_ENABLE);
	set_mask(m, false);
}

static void machine_fini(struct machine *m)
{
	m->dev->cls->destroy(m->dev);
	msix_free(m->msix);
	ram_fini(&m->ram);
	unlink(m->path);
}

static void activate(struct machine *m, uint64_t features)
{
	struct vq_config cfg;

	vring_init(&m->ring, &m->ram, RING_SIZE, RING_BASE);
	m->data_base = align_up(m->ring.data, PAGE_4K);
	m->busy = 0;
	m->kicked = 0;
	m->event_idx = features & VIRTIO_F_EVENT_IDX;
	for (unsigned int i = 0; i < SLOTS; i++)
		slot_init(m, i);
	m->dev->transport = &transport_ops;
	m->dev->transport_ctx = m;
	m->dev->features = m->dev->offered &
			   (features | BLK_F_FLUSH | VIRTIO_F_VERSION_1);
	vring_config(&m->ring, &cfg);
	cfg.event_idx = m->event_idx;
	assert_int_equal(vq_start(&m->dev->queues[0].vq, &cfg), 0);
	assert_int_equal(m->dev->cls->activate(m->dev), 0);
}

/* Stamps are only known while no write is cut off: settle them first. */
static void forget_data(struct machine *m)
{
	char sector[DATA_BYTES] = { 0 };
	int fd = open(m->path, O_WRONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	for (unsigned int i = 0; i < SLOTS; i++) {
		m->slots[i].stamp = 0;
		for (unsigned int k = 0; k < DATA_BYTES; k += 4)
			le32_store(sector + k, k);
		assert_int_equal(io_pwrite_full(fd, sector, DATA_BYTES,
						i * DATA_BYTES),
				 0);
	}
	close(fd);
}

static void run(uint64_t features, const char *options, unsigned int rounds,
		unsigned int requests)
{
	pthread_t masker;
	struct machine m;
	uint64_t popped;

	machine_init(&m, options);
	assert_int_equal(pthread_create(&masker, NULL, mask_thread, &m), 0);
	for (unsigned int i = 0; i < rounds; i++) {
		forget_data(&m);
		activate(&m, features);
		drive(&m, requests);
		/* Every other time the reset comes in the middle. */
		if (i % 2)
			drain(&m);
		fake_deactivate(m.dev);
	}
	atomic_store(&m.stop_masking, true);
	pthread_join(masker, NULL);
	popped = atomic_load(&m.dev->queues[0].requests);
	assert_true(m.completed <= popped);
	assert_true(popped <= (uint64_t)rounds * requests);
	assert_true(m.completed + rounds * SLOTS >=
		    (uint64_t)rounds * requests);
	/* Both are asked for only when needed. */
	assert_true(m.interrupts <= m.completed + rounds * SLOTS);
	assert_true(atomic_load(&m.dev->queues[0].kicks) <= m.kicks + rounds);
	machine_fini(&m);
}

static void test_event_idx(void **state)
{
	run(VIRTIO_F_EVENT_IDX, "", 20, 1000);
}

/* With room on the host, the thread of a direct disk polls in half a trial. */
static void test_direct(void **state)
{
	const char *dir = getenv("TMPDIR");
	int fd = open(dir ? dir : "/tmp",
		      O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);

	if (fd < 0) {
		print_message("no direct I/O in the temporary directory\n");
		skip();
	}
	close(fd);
	run(VIRTIO_F_EVENT_IDX, ",direct=on", 8, 1000);
	run(NO_FEATURES, ",direct=on", 3, 1000);
}

static void test_flags(void **state)
{
	run(NO_FEATURES, "", 20, 1000);
}

/* Longer than the indexes go: they wrap. */
static void test_event_idx_wraps(void **state)
{
	run(VIRTIO_F_EVENT_IDX, "", 1, 70000);
}

static void test_sync_event_idx(void **state)
{
	run(VIRTIO_F_EVENT_IDX, "", 10, 1000);
}

static void test_without_io_uring(void **state)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sync_event_idx),
	};

	run_without_io_uring("synchronous", tests);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_event_idx),
		cmocka_unit_test(test_flags),
		cmocka_unit_test(test_direct),
		cmocka_unit_test(test_event_idx_wraps),
		cmocka_unit_test(test_without_io_uring),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
