/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. Each vector has an eventfd and a GSI from creation on.
 * The kernel learns the route and the irqfd only when the vector is first
 * unmasked in effect (its own mask bit, the function mask and the enable bit
 * all allow it), because each change of the routing table costs a grace period:
 * a guest that writes address, data and mask bits of a masked entry one by one
 * pays once, and one that masks and unmasks an unchanged entry pays nothing.
 *
 * Whether a vector may fire is one atomic byte, so that raising it takes no
 * lock. BLOCKED: raise sets PENDING instead of signalling. Unblocking clears
 * both in one step and fires if PENDING was set; nothing falls between.
 *
 * Everything else is under the lock, which is taken by register accesses only.
 *
 * A source's eventfd is an irqfd of the vector's GSI while the vector may fire,
 * and is taken away from KVM otherwise: somebody who signals it cannot ask for
 * our state first. Taking away and giving back cost KVM a grace period each,
 * but a guest masks a vector in use only when it moves it to another CPU.
 */
#include "bus/msix.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/log.h"

#define MSIX_MAX_VECTORS 2048
#define MSIX_CAP_BYTES	 12

enum msix_vector_state {
	MSIX_VECTOR_BLOCKED = 1,
	MSIX_VECTOR_PENDING = 2,
};

struct msix_vector {
	uint8_t entry[PCI_MSIX_ENTRY_SIZE]; /* as the guest reads it */
	_Atomic uint8_t state;
	bool has_gsi;
	bool routed; /* the kernel has route_addr, route_data for gsi */
	bool bound;  /* fd is an irqfd for gsi */
	int fd;
	uint32_t gsi;
	uint64_t route_addr;
	uint32_t route_data;
};

struct msix {
	pthread_mutex_t lock;
	struct pci_dev *dev;
	struct irq_router *router;
	uint8_t cap; /* offset of the capability */
	_Atomic bool enabled;
	bool function_masked;
	struct msix_source *sources;
	unsigned int num;
	struct msix_vector vectors[];
};

uint32_t msix_table_bytes(unsigned int num_vectors)
{
	return num_vectors * PCI_MSIX_ENTRY_SIZE;
}

uint32_t msix_pba_bytes(unsigned int num_vectors)
{
	return (uint32_t)div_round_up(num_vectors, 64) * 8;
}

/* ---- life ---- */

static void vector_init(struct msix_vector *v)
{
	memset(v->entry, 0, sizeof(v->entry));
	v->entry[PCI_MSIX_ENTRY_VECTOR_CTRL] = PCI_MSIX_ENTRY_CTRL_MASKBIT;
	atomic_store(&v->state, MSIX_VECTOR_BLOCKED);
}

static int vector_open(struct msix *msix, struct msix_vector *v)
{
	int r = 0;

	v->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (v->fd < 0)
		return -errno;
	if (msix->router)
		r = irq_router_alloc_msi(msix->router, &v->gsi);
	v->has_gsi = msix->router && !r;
	return r;
}

static void vector_close(struct msix *msix, struct msix_vector *v)
{
	int r = 0;

	if (v->bound)
		r = irq_router_unbind_fd(msix->router, v->gsi, v->fd);
	if (!r && v->routed)
		r = irq_router_clear_msi(msix->router, v->gsi);
	if (r)
		log_debug("%s: taking down MSI-X vector of gsi %u: %s",
			  msix->dev->name, v->gsi, strerror(-r));
	if (v->has_gsi)
		irq_router_release_msi(msix->router, v->gsi);
	close_fd(&v->fd);
}

static uint8_t add_capability(struct pci_dev *dev, unsigned int num,
			      unsigned int bar, uint32_t table_offset,
			      uint32_t pba_offset)
{
	uint8_t body[MSIX_CAP_BYTES - 2];
	uint8_t cap;

	le16_store(body, (uint16_t)(num - 1));
	le32_store(body + PCI_MSIX_TABLE - 2, table_offset | bar);
	le32_store(body + PCI_MSIX_PBA - 2, pba_offset | bar);
	cap = pci_dev_add_cap(dev, PCI_CAP_ID_MSIX, body, MSIX_CAP_BYTES);
	le16_store(dev->wmask + cap + PCI_MSIX_FLAGS,
		   PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
	return cap;
}

int msix_new(struct msix **ret, struct pci_dev *dev, struct irq_router *router,
	     unsigned int num_vectors, unsigned int bar, uint32_t table_offset,
	     uint32_t pba_offset)
{
	struct msix *msix;
	int r = 0;

	BUG_ON(!is_aligned(table_offset | pba_offset, 8) ||
	       bar >= PCI_NUM_BARS);
	if (!num_vectors || num_vectors > MSIX_MAX_VECTORS)
		return -EINVAL;
	msix = calloc(1, sizeof(*msix) + num_vectors * sizeof(*msix->vectors));
	if (!msix)
		return -ENOMEM;
	pthread_mutex_init(&msix->lock, NULL);
	msix->dev = dev;
	msix->router = router;
	msix->num = num_vectors;
	for (unsigned int i = 0; i < num_vectors; i++) {
		vector_init(&msix->vectors[i]);
		msix->vectors[i].fd = -1;
	}
	for (unsigned int i = 0; !r && i < num_vectors; i++)
		r = vector_open(msix, &msix->vectors[i]);
	if (r) {
		msix_free(msix);
		return r;
	}
	msix->cap = add_capability(dev, num_vectors, bar, table_offset,
				   pba_offset);
	*ret = msix;
	return 0;
}

void msix_free(struct msix *msix)
{
	if (!msix)
		return;
	while (msix->sources)
		msix_source_detach(msix, msix->sources);
	for (unsigned int i = 0; i < msix->num; i++)
		vector_close(msix, &msix->vectors[i]);
	pthread_mutex_destroy(&msix->lock);
	free(msix);
}

/* ---- masking and routes ---- */

static bool vector_masked_locked(const struct msix *msix,
				 const struct msix_vector *v)
{
	return !atomic_load_explicit(&msix->enabled, memory_order_relaxed) ||
	       msix->function_masked ||
	       (v->entry[PCI_MSIX_ENTRY_VECTOR_CTRL] &
		PCI_MSIX_ENTRY_CTRL_MASKBIT);
}

/* Make the kernel's route and irqfd what the entry says. */
static int vector_route_locked(struct msix *msix, struct msix_vector *v)
{
	uint64_t addr = le64_load(v->entry + PCI_MSIX_ENTRY_LOWER_ADDR);
	uint32_t data = le32_load(v->entry + PCI_MSIX_ENTRY_DATA);
	int r;

	if (!msix->router)
		return 0;
	if (!v->routed || v->route_addr != addr || v->route_data != data) {
		r = irq_router_set_msi(msix->router, v->gsi, addr, data);
		if (r)
			return r;
		v->routed = true;
		v->route_addr = addr;
		v->route_data = data;
	}
	if (!v->bound) {
		r = irq_router_bind_fd(msix->router, v->gsi, v->fd);
		if (r)
			return r;
		v->bound = true;
	}
	return 0;
}

static void source_unbind_locked(struct msix *msix, struct msix_source *src)
{
	int r;

	if (!src->bound)
		return;
	src->bound = false;
	r = irq_router_unbind_fd(msix->router, msix->vectors[src->vector].gsi,
				 src->fd);
	if (r)
		log_ratelimited(LOG_LEVEL_WARN,
				"%s: MSI-X vector %u cannot be masked: %s",
				msix->dev->name, src->vector, strerror(-r));
}

/*
 * What was signalled while nobody listened is signalled again, now to KVM. It
 * would find such a count by itself, but not take it: each unmasking after
 * that would fire.
 */
static void source_bind_locked(struct msix *msix, struct msix_source *src)
{
	bool pending;
	int r;

	if (src->bound || !msix->router)
		return;
	pending = io_eventfd_drain(src->fd);
	r = irq_router_bind_fd(msix->router, msix->vectors[src->vector].gsi,
			       src->fd);
	src->bound = !r;
	if (r)
		log_ratelimited(LOG_LEVEL_WARN,
				"%s: MSI-X vector %u stays silent: %s",
				msix->dev->name, src->vector, strerror(-r));
	if (pending)
		io_eventfd_signal(src->fd);
}

static void vector_block_locked(struct msix *msix, struct msix_vector *v)
{
	atomic_fetch_or(&v->state, MSIX_VECTOR_BLOCKED);
	for (struct msix_source *s = msix->sources; s; s = s->next)
		if (&msix->vectors[s->vector] == v)
			source_unbind_locked(msix, s);
}

/* Bring the vector in line with its entry and the message control. */
static void vector_update_locked(struct msix *msix, struct msix_vector *v)
{
	int r;

	if (vector_masked_locked(msix, v)) {
		vector_block_locked(msix, v);
		return;
	}
	r = vector_route_locked(msix, v);
	if (r) {
		/* KVM refuses some addresses; such a vector stays silent. */
		log_ratelimited(LOG_LEVEL_WARN,
				"%s: MSI-X vector %u cannot be routed: %s",
				msix->dev->name,
				(unsigned int)(v - msix->vectors),
				strerror(-r));
		vector_block_locked(msix, v);
		return;
	}
	for (struct msix_source *s = msix->sources; s; s = s->next)
		if (&msix->vectors[s->vector] == v)
			source_bind_locked(msix, s);
	if (atomic_exchange(&v->state, 0) & MSIX_VECTOR_PENDING)
		io_eventfd_signal(v->fd);
}

void msix_notify(struct msix *msix, unsigned int vector)
{
	struct msix_vector *v;
	uint8_t state;

	if (vector >= msix->num)
		return;
	v = &msix->vectors[vector];
	state = atomic_load(&v->state);
	while (state & MSIX_VECTOR_BLOCKED)
		if (atomic_compare_exchange_weak(&v->state, &state,
						 state | MSIX_VECTOR_PENDING))
			return;
	io_eventfd_signal(v->fd);
}

void msix_source_attach(struct msix *msix, struct msix_source *src,
			unsigned int vector, int fd)
{
	if (vector >= msix->num || src->attached)
		return;
	pthread_mutex_lock(&msix->lock);
	*src = (struct msix_source){
		.next = msix->sources,
		.fd = fd,
		.vector = vector,
		.attached = true,
	};
	msix->sources = src;
	vector_update_locked(msix, &msix->vectors[vector]);
	pthread_mutex_unlock(&msix->lock);
}

void msix_source_detach(struct msix *msix, struct msix_source *src)
{
	struct msix_source **link = &msix->sources;

	if (!src->attached)
		return;
	pthread_mutex_lock(&msix->lock);
	source_unbind_locked(msix, src);
	while (*link != src)
		link = &(*link)->next;
	*link = src->next;
	src->attached = false;
	pthread_mutex_unlock(&msix->lock);
}

static bool source_pending_locked(const struct msix *msix, uint64_t vector)
{
	for (const struct msix_source *s = msix->sources; s; s = s->next) {
		struct pollfd pfd = { .fd = s->fd, .events = POLLIN };

		if (s->vector == vector && !s->bound && poll(&pfd, 1, 0) > 0)
			return true;
	}
	return false;
}

bool msix_enabled(const struct msix *msix)
{
	return atomic_load_explicit(&msix->enabled, memory_order_relaxed);
}

/* ---- registers ---- */

void msix_table_read(struct msix *msix, uint64_t offset, void *data,
		     uint32_t len)
{
	char *out = data;

	memset(data, 0, len);
	pthread_mutex_lock(&msix->lock);
	for (uint32_t i = 0;
	     i < len && offset + i < msix_table_bytes(msix->num); i++)
		out[i] = (char)msix->vectors[(offset + i) / PCI_MSIX_ENTRY_SIZE]
				 .entry[(offset + i) % PCI_MSIX_ENTRY_SIZE];
	pthread_mutex_unlock(&msix->lock);
}

void msix_table_write(struct msix *msix, uint64_t offset, const void *data,
		      uint32_t len)
{
	const uint8_t *in = data;
	uint64_t end;

	if (!range_ok(offset, len, msix_table_bytes(msix->num)))
		return;
	end = offset + len;
	pthread_mutex_lock(&msix->lock);
	/* Entry by entry; a guest writes part of one as a rule. */
	while (offset < end) {
		struct msix_vector *v =
			&msix->vectors[offset / PCI_MSIX_ENTRY_SIZE];
		uint32_t at = offset % PCI_MSIX_ENTRY_SIZE;
		uint32_t n = (uint32_t)MIN(end - offset,
					   (uint64_t)PCI_MSIX_ENTRY_SIZE - at);

		memcpy(v->entry + at, in, n);
		/* All of vector control but the mask bit is reserved. */
		le32_store(v->entry + PCI_MSIX_ENTRY_VECTOR_CTRL,
			   le32_load(v->entry + PCI_MSIX_ENTRY_VECTOR_CTRL) &
				   PCI_MSIX_ENTRY_CTRL_MASKBIT);
		vector_update_locked(msix, v);
		in += n;
		offset += n;
	}
	pthread_mutex_unlock(&msix->lock);
}

static bool pending_locked(const struct msix *msix, uint64_t vector)
{
	return (atomic_load(&msix->vectors[vector].state) &
		MSIX_VECTOR_PENDING) ||
	       source_pending_locked(msix, vector);
}

void msix_pba_read(struct msix *msix, uint64_t offset, void *data, uint32_t len)
{
	uint64_t first, vector;
	uint8_t *out = data;

	memset(data, 0, len);
	if (!mul_u64(offset, 8, &first))
		return;
	pthread_mutex_lock(&msix->lock);
	for (uint64_t i = 0; i < 8ull * len; i++)
		if (add_u64(first, i, &vector) && vector < msix->num &&
		    pending_locked(msix, vector))
			out[i / 8] |= (uint8_t)(1u << (i % 8));
	pthread_mutex_unlock(&msix->lock);
}

void msix_config_written(struct msix *msix, uint32_t offset, uint32_t len)
{
	uint32_t at = msix->cap + PCI_MSIX_FLAGS;
	bool enabled, masked;
	uint16_t flags;

	if (offset >= at + 2 || at >= offset + len)
		return;
	flags = le16_load(msix->dev->config + at);
	enabled = flags & PCI_MSIX_FLAGS_ENABLE;
	masked = flags & PCI_MSIX_FLAGS_MASKALL;
	pthread_mutex_lock(&msix->lock);
	if (enabled != msix_enabled(msix) || masked != msix->function_masked) {
		atomic_store(&msix->enabled, enabled);
		msix->function_masked = masked;
		for (unsigned int i = 0; i < msix->num; i++)
			vector_update_locked(msix, &msix->vectors[i]);
	}
	pthread_mutex_unlock(&msix->lock);
}

/* ---- saved state ---- */

struct msix_state {
	struct state_blob table;   /* PCI_MSIX_ENTRY_SIZE for each vector */
	struct state_blob pending; /* a byte for each vector: 0 or 1 */
};

static const struct state_field state_fields[] = {
	STATE_FIELD_BLOB(struct msix_state, table, 1,
			 (uint64_t)MSIX_MAX_VECTORS *PCI_MSIX_ENTRY_SIZE),
	STATE_FIELD_BLOB(struct msix_state, pending, 2, MSIX_MAX_VECTORS),
};

static int state_check(const struct state_check *c, const void *loaded,
		       const void *live)
{
	const struct msix_state *s = loaded;

	if (s->table.bytes != s->pending.bytes * PCI_MSIX_ENTRY_SIZE)
		return state_refuse(c, "table", "%zu bytes for %zu vectors",
				    s->table.bytes, s->pending.bytes);
	return 0;
}

static const struct state_table state_table = {
	.section = "msix",
	.version = 1,
	.object_bytes = sizeof(struct msix_state),
	.fields = state_fields,
	.num_fields = ARRAY_SIZE(state_fields),
	.check = state_check,
};

static void msix_state_fini(struct msix_state *s)
{
	state_blob_fini(&s->table);
	state_blob_fini(&s->pending);
}

static void collect_locked(const struct msix *msix, struct msix_state *s)
{
	s->table.bytes = msix_table_bytes(msix->num);
	s->pending.bytes = msix->num;
	for (unsigned int i = 0; i < msix->num; i++) {
		memcpy(s->table.data + (size_t)i * PCI_MSIX_ENTRY_SIZE,
		       msix->vectors[i].entry, PCI_MSIX_ENTRY_SIZE);
		s->pending.data[i] = pending_locked(msix, i);
	}
}

int msix_save(struct msix *msix, const char *instance, struct state_writer *w,
	      struct err *err)
{
	struct msix_state s = {
		.table.data = calloc(1, msix_table_bytes(msix->num)),
		.pending.data = calloc(1, msix->num),
	};
	int r = 0;

	if (s.table.data && s.pending.data) {
		pthread_mutex_lock(&msix->lock);
		collect_locked(msix, &s);
		pthread_mutex_unlock(&msix->lock);
		state_save(w, &state_table, instance, &s);
	} else {
		r = err_set(err, ENOMEM, "out of memory");
	}
	msix_state_fini(&s);
	return r;
}

static void put_vector_locked(struct msix *msix, unsigned int i,
			      const struct msix_state *s)
{
	struct msix_vector *v = &msix->vectors[i];
	const uint8_t *entry = s->table.data + (size_t)i * PCI_MSIX_ENTRY_SIZE;
	uint32_t ctrl = le32_load(entry + PCI_MSIX_ENTRY_VECTOR_CTRL);

	memcpy(v->entry, entry, PCI_MSIX_ENTRY_SIZE);
	le32_store(v->entry + PCI_MSIX_ENTRY_VECTOR_CTRL,
		   ctrl & PCI_MSIX_ENTRY_CTRL_MASKBIT);
	if (s->pending.data[i])
		atomic_fetch_or(&v->state,
				MSIX_VECTOR_BLOCKED | MSIX_VECTOR_PENDING);
	vector_update_locked(msix, v);
}

int msix_load(struct msix *msix, const char *instance, struct state_reader *r,
	      struct err *err)
{
	struct msix_state s = { .table.data = NULL };
	int ret = state_load(r, &state_table, instance, &s, err);

	if (!ret && s.pending.bytes != msix->num)
		ret = err_set(err, EINVAL,
			      "saved state: '%s' has %zu MSI-X vectors, here "
			      "it has %u: give it as many queues "
			      "(num_queues=), each has one",
			      instance, s.pending.bytes, msix->num);
	if (!ret) {
		pthread_mutex_lock(&msix->lock);
		for (unsigned int i = 0; i < msix->num; i++)
			put_vector_locked(msix, i, &s);
		pthread_mutex_unlock(&msix->lock);
	}
	msix_state_fini(&s);
	return ret;
}
