/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Configuration space as saved state. What a guest cannot write has to be the
 * same on both sides, for it knows it already: identity, BAR sizes, where
 * capabilities are. The rest is put in as if it had been written, without the
 * effects of single writes.
 */
#include <errno.h>
#include <linux/pci_regs.h>
#include <string.h>

#include "base/arith.h"
#include "bus/pci_host_priv.h"

struct host_state {
	uint32_t cf8;
};

static const struct state_field host_fields[] = {
	STATE_FIELD_UINT(struct host_state, cf8, 1),
};

static const struct state_table host_table = {
	.section = "pci-host",
	.version = 1,
	.object_bytes = sizeof(struct host_state),
	.fields = host_fields,
	.num_fields = ARRAY_SIZE(host_fields),
};

struct function_state {
	uint8_t config[PCI_CONFIG_BYTES];
	uint64_t home[PCI_NUM_BARS];
	/* The live one's, to check against. */
	const struct pci_dev *dev;
	const struct pci_host *host;
};

static const struct state_field function_fields[] = {
	STATE_FIELD_BYTES(struct function_state, config, 1),
	STATE_FIELD_UINTS(struct function_state, home, 2),
};

/* Which bits of byte i may differ from what we have. */
static uint8_t free_bits(const struct pci_dev *dev, unsigned int i)
{
	return dev->wmask[i] | dev->w1cmask[i];
}

static int function_check(const struct state_check *c, const void *loaded,
			  const void *live)
{
	const struct function_state *s = loaded;
	const struct function_state *here = live;
	const struct pci_dev *dev = here->dev;

	for (unsigned int i = 0; i < PCI_CONFIG_BYTES; i++)
		if ((s->config[i] ^ dev->config[i]) & ~free_bits(dev, i))
			return state_refuse(
				c, "config",
				"byte %#x is %#x, here %#x: another kind of "
				"device, or of another version",
				i, s->config[i], dev->config[i]);
	for (unsigned int b = 0; b < PCI_NUM_BARS; b++) {
		uint64_t size = dev->bars[b].size;

		if (size ? !is_aligned(s->home[b], size) ||
				    !pci_host_in_windows(here->host, s->home[b],
							 size)
			 : s->home[b] != 0)
			return state_refuse(c, "home", "BAR %u at %#llx", b,
					    (unsigned long long)s->home[b]);
	}
	return 0;
}

static const struct state_table function_table = {
	.section = "pci-function",
	.version = 1,
	.object_bytes = sizeof(struct function_state),
	.fields = function_fields,
	.num_fields = ARRAY_SIZE(function_fields),
	.check = function_check,
};

#define BRIDGE_INSTANCE "host-bridge"

void pci_host_save(struct pci_host *host, struct state_writer *w)
{
	struct host_state s;

	pthread_mutex_lock(&host->lock);
	s.cf8 = host->cf8;
	pthread_mutex_unlock(&host->lock);
	state_save(w, &host_table, NULL, &s);
	pci_host_save_function(host, &host->bridge, BRIDGE_INSTANCE, w);
}

int pci_host_load(struct pci_host *host, struct state_reader *r,
		  struct err *err)
{
	struct host_state s = { .cf8 = 0 };
	int ret = state_load(r, &host_table, NULL, &s, err);

	if (ret)
		return ret;
	pthread_mutex_lock(&host->lock);
	host->cf8 = s.cf8;
	pthread_mutex_unlock(&host->lock);
	return pci_host_load_function(host, &host->bridge, BRIDGE_INSTANCE, r,
				      err);
}

void pci_host_save_function(struct pci_host *host, const struct pci_dev *dev,
			    const char *instance, struct state_writer *w)
{
	struct function_state s = { .dev = NULL };

	pthread_mutex_lock(&host->lock);
	memcpy(s.config, dev->config, sizeof(s.config));
	memcpy(s.home, host->slots[dev->devfn >> 3].home, sizeof(s.home));
	pthread_mutex_unlock(&host->lock);
	state_save(w, &function_table, instance, &s);
}

static void put_function_locked(struct pci_host *host, struct pci_dev *dev,
				const struct function_state *s)
{
	for (unsigned int i = 0; i < PCI_CONFIG_BYTES; i++) {
		uint8_t mask = free_bits(dev, i);

		dev->config[i] = (uint8_t)((dev->config[i] & ~mask) |
					   (s->config[i] & mask));
	}
	memcpy(host->slots[dev->devfn >> 3].home, s->home, sizeof(s->home));
	pci_host_sync_bars_locked(host, dev);
	if (dev->config_after_write)
		dev->config_after_write(dev, 0, PCI_CONFIG_BYTES);
}

int pci_host_load_function(struct pci_host *host, struct pci_dev *dev,
			   const char *instance, struct state_reader *r,
			   struct err *err)
{
	struct function_state s = { .dev = dev, .host = host };
	int ret;

	pthread_mutex_lock(&host->lock);
	ret = state_load(r, &function_table, instance, &s, err);
	if (!ret)
		put_function_locked(host, dev, &s);
	pthread_mutex_unlock(&host->lock);
	return ret;
}
