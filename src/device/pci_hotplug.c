/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. A slot's removal goes through sets of slots: asked (the
 * host wants it), leaving (the guest let it go; its vCPU's thread has the
 * bridge withdraw it), leaving and ejected (that is done), and none, just
 * before the control thread takes the device apart. A bit leaves asked before
 * the bridge is called, so two vCPUs that eject one slot at once withdraw it
 * once, and a request that comes while it is leaving does not stick to the next
 * device in the slot.
 */
#include "device/pci_hotplug.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/evloop.h"
#include "base/io.h"
#include "base/log.h"
#include "bus/pci_host.h"
#include "x86/layout.h"

enum {
	HP_UP = 0,
	HP_DOWN = 4,
	HP_EJECT = 8,
};

struct pci_hotplug {
	struct pci_hotplug_config cfg;
	int event_fd; /* ejected has become non-empty */
	bool watched; /* by the loop */
	pthread_mutex_t lock;
	uint32_t up, down;
	uint32_t asked, leaving, ejected;
	uint64_t refused;
};

static void update_locked(struct pci_hotplug *hp)
{
	hp->cfg.event(hp->cfg.ctx, (hp->up | hp->down) != 0);
}

static void hotplug_read(void *dev, uint64_t offset, void *data, uint32_t len)
{
	struct pci_hotplug *hp = dev;
	uint8_t regs[HOTPLUG_PORTS] = { 0 };

	pthread_mutex_lock(&hp->lock);
	le32_store(regs + HP_UP, hp->up);
	le32_store(regs + HP_DOWN, hp->down);
	pthread_mutex_unlock(&hp->lock);
	memcpy(data, regs + offset, len);
}

static void clear(struct pci_hotplug *hp, uint32_t *events, uint32_t bits)
{
	pthread_mutex_lock(&hp->lock);
	*events &= ~bits;
	update_locked(hp);
	pthread_mutex_unlock(&hp->lock);
}

/* The slots of these that may go; they are the caller's from now on. */
static uint32_t claim(struct pci_hotplug *hp, uint32_t slots)
{
	uint32_t granted;

	pthread_mutex_lock(&hp->lock);
	granted = slots & hp->asked;
	hp->asked &= ~granted;
	hp->leaving |= granted;
	hp->down &= ~granted;
	if (slots != granted)
		hp->refused++;
	update_locked(hp);
	pthread_mutex_unlock(&hp->lock);
	return granted;
}

static void eject(struct pci_hotplug *hp, uint32_t slots)
{
	uint32_t granted = claim(hp, slots);

	if (granted != slots)
		log_ratelimited(LOG_LEVEL_WARN,
				"hot-plug: the guest ejected slots %#x, which "
				"nobody asked for; they stay",
				slots & ~granted);
	if (!granted)
		return;
	for (unsigned int slot = 0; slot < PCI_HOST_SLOTS; slot++)
		if (granted & 1u << slot)
			(void)pci_host_withdraw(hp->cfg.pci, slot);
	pthread_mutex_lock(&hp->lock);
	hp->ejected |= granted;
	pthread_mutex_unlock(&hp->lock);
	io_eventfd_signal(hp->event_fd);
}

static void hotplug_write(void *dev, uint64_t offset, const void *data,
			  uint32_t len)
{
	struct pci_hotplug *hp = dev;
	uint32_t bits;

	if (len != 4)
		return;
	bits = le32_load(data);
	switch (offset) {
	case HP_UP:
		clear(hp, &hp->up, bits);
		break;
	case HP_DOWN:
		clear(hp, &hp->down, bits);
		break;
	case HP_EJECT:
		eject(hp, bits);
		break;
	default:
		break; /* not aligned */
	}
}

static const struct iobus_ops hotplug_ops = {
	.name = "pci-hotplug",
	.read = hotplug_read,
	.write = hotplug_write,
};

static void on_ejected(void *ctx, uint32_t events)
{
	pci_hotplug_poll(ctx);
}

static int watch(struct pci_hotplug *hp)
{
	int r;

	hp->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (hp->event_fd < 0)
		return -errno;
	if (!hp->cfg.loop)
		return 0;
	r = evloop_add(hp->cfg.loop, hp->event_fd, EPOLLIN, on_ejected, hp);
	hp->watched = !r;
	return r;
}

int pci_hotplug_new(struct pci_hotplug **ret,
		    const struct pci_hotplug_config *cfg)
{
	struct pci_hotplug *hp = calloc(1, sizeof(*hp));
	int r;

	if (!hp)
		return -ENOMEM;
	pthread_mutex_init(&hp->lock, NULL);
	hp->cfg = *cfg;
	r = watch(hp);
	if (!r)
		r = iobus_add(cfg->pio, PORT_HOTPLUG, HOTPLUG_PORTS,
			      &hotplug_ops, hp);
	if (r) {
		pci_hotplug_free(hp);
		return r;
	}
	*ret = hp;
	return 0;
}

void pci_hotplug_free(struct pci_hotplug *hp)
{
	if (!hp)
		return;
	iobus_remove(hp->cfg.pio, PORT_HOTPLUG, hp);
	if (hp->watched)
		evloop_del(hp->cfg.loop, hp->event_fd);
	close_fd(&hp->event_fd);
	pthread_mutex_destroy(&hp->lock);
	free(hp);
}

void pci_hotplug_added(struct pci_hotplug *hp, unsigned int slot)
{
	BUG_ON(slot >= PCI_HOST_SLOTS);
	pthread_mutex_lock(&hp->lock);
	hp->up |= 1u << slot;
	update_locked(hp);
	pthread_mutex_unlock(&hp->lock);
}

void pci_hotplug_request(struct pci_hotplug *hp, unsigned int slot)
{
	BUG_ON(slot >= PCI_HOST_SLOTS);
	pthread_mutex_lock(&hp->lock);
	if (!(hp->leaving & 1u << slot)) {
		hp->asked |= 1u << slot;
		hp->down |= 1u << slot;
		update_locked(hp);
	}
	pthread_mutex_unlock(&hp->lock);
}

bool pci_hotplug_requested(struct pci_hotplug *hp, unsigned int slot)
{
	bool requested;

	BUG_ON(slot >= PCI_HOST_SLOTS);
	pthread_mutex_lock(&hp->lock);
	requested = ((hp->asked | hp->leaving) & 1u << slot) != 0;
	pthread_mutex_unlock(&hp->lock);
	return requested;
}

#define F(member, ...) STATE_FIELD_UINT(struct pci_hotplug, member, __VA_ARGS__)

static const struct state_field state_fields[] = {
	F(up, 1),
	F(down, 2),
	F(asked, 3),
};

/* The host bridge came with the machine and stays with it. */
#define STATE_BRIDGE 1u

static int state_check(const struct state_check *c, const void *loaded,
		       const void *live)
{
	const struct pci_hotplug *hp = loaded;

	return (hp->up | hp->down | hp->asked) & STATE_BRIDGE
		       ? state_refuse(c, "asked", "slot 0 is the host bridge's")
		       : 0;
}

static const struct state_table state_table = {
	.section = "pci-hotplug",
	.version = 1,
	.object_bytes = sizeof(struct pci_hotplug),
	.fields = state_fields,
	.num_fields = ARRAY_SIZE(state_fields),
	.check = state_check,
};

int pci_hotplug_save(struct pci_hotplug *hp, struct state_writer *w,
		     struct err *err)
{
	uint32_t leaving;

	pthread_mutex_lock(&hp->lock);
	leaving = hp->leaving;
	if (!leaving)
		state_save(w, &state_table, NULL, hp);
	pthread_mutex_unlock(&hp->lock);
	if (!leaving)
		return 0;
	return err_set(err, EBUSY,
		       "the device in PCI slot %d is being removed just now; "
		       "try again",
		       __builtin_ctz(leaving));
}

int pci_hotplug_load(struct pci_hotplug *hp, struct state_reader *r,
		     struct err *err)
{
	int ret;

	pthread_mutex_lock(&hp->lock);
	ret = state_load(r, &state_table, NULL, hp, err);
	if (!ret)
		update_locked(hp);
	pthread_mutex_unlock(&hp->lock);
	return ret;
}

uint64_t pci_hotplug_refused(struct pci_hotplug *hp)
{
	uint64_t refused;

	pthread_mutex_lock(&hp->lock);
	refused = hp->refused;
	pthread_mutex_unlock(&hp->lock);
	return refused;
}

void pci_hotplug_poll(struct pci_hotplug *hp)
{
	uint32_t ejected;

	io_eventfd_drain(hp->event_fd);
	pthread_mutex_lock(&hp->lock);
	ejected = hp->ejected;
	hp->ejected = 0;
	hp->leaving &= ~ejected;
	/* A device that came and went unseen is no news. */
	hp->up &= ~ejected;
	update_locked(hp);
	pthread_mutex_unlock(&hp->lock);
	for (unsigned int slot = 0; slot < PCI_HOST_SLOTS; slot++)
		if (ejected & 1u << slot)
			hp->cfg.ejected(hp->cfg.ctx, slot);
}
