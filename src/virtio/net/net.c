/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-net (virtio 1.2 section 5.1): this file is the device as the command
 * line and the driver's probe see it. Frames move in net_rx.c and net_tx.c,
 * commands in net_ctrl.c; where frames come from is net_backend.h.
 *
 * Offered: what the back end can of checksum and segmentation offload, merged
 * receive buffers, several pairs of queues, the link's status, MTU, and the
 * control queue with receive filters (accepted, not applied), MAC address,
 * pairs and receive offloads. Not offered: VLAN filter, announcement, RSS and
 * hash reports, notification coalescing, speed and duplex, standby.
 */
#include "virtio/net/net.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "virtio/net/net_config.h"
#include "virtio/net/net_priv.h"

#define PCI_CLASS 0x020000 /* Ethernet */

static struct net_dev *net_dev_of(struct virtio_dev *vdev)
{
	return container_of(vdev, struct net_dev, vdev);
}

/* ---- what the driver sees ---- */

static void net_config_read(struct virtio_dev *vdev, uint32_t offset,
			    void *data, uint32_t len)
{
	struct net_dev *dev = net_dev_of(vdev);
	uint64_t mac = atomic_load(&dev->mac);
	struct net_config_space c = {
		.status = htole16(
			atomic_load(&dev->backend->link) ? NET_S_LINK_UP : 0),
		.max_virtqueue_pairs = htole16((uint16_t)dev->max_pairs),
		.mtu = htole16(dev->mtu),
	};

	memcpy(c.mac, &mac, NET_MAC_BYTES);
	memcpy(data, (char *)&c + offset, len);
}

static uint64_t features_of(const struct net_config *cfg,
			    const struct net_backend *b)
{
	static const uint64_t tso = NET_F_HOST_TSO4 | NET_F_HOST_TSO6 |
				    NET_F_HOST_ECN | NET_F_GUEST_TSO4 |
				    NET_F_GUEST_TSO6 | NET_F_GUEST_ECN;
	uint64_t f = b->features;

	if (!cfg->offload_csum)
		f &= ~(NET_F_CSUM | NET_F_GUEST_CSUM);
	if (!cfg->offload_tso)
		f &= ~tso;
	if (!cfg->offload_ufo)
		f &= ~(NET_F_HOST_UFO | NET_F_GUEST_UFO);
	f |= NET_F_MAC | NET_F_STATUS | NET_F_MRG_RXBUF | NET_F_CTRL_VQ |
	     NET_F_CTRL_RX | NET_F_CTRL_MAC_ADDR;
	f = net_features_effective(f);
	if (f & NET_GUEST_OFFLOADS)
		f |= NET_F_CTRL_GUEST_OFFLOADS;
	if (b->num_pairs > 1)
		f |= NET_F_MQ;
	if (cfg->mtu)
		f |= NET_F_MTU;
	return f;
}

static void link_changed(void *ctx)
{
	struct net_dev *dev = ctx;

	virtio_config_changed(&dev->vdev);
}

/* ---- life ---- */

static void net_destroy(struct virtio_dev *vdev)
{
	struct net_dev *dev = net_dev_of(vdev);

	virtio_dev_fini(vdev);
	if (dev->backend && dev->owns_backend)
		dev->backend->ops->close(dev->backend);
	else if (dev->backend)
		dev->backend->link_changed = NULL;
	ratelimit_fini(&dev->rx_limit);
	ratelimit_fini(&dev->tx_limit);
	free(dev);
}

static int open_backend(struct net_dev *dev, const struct net_config *cfg,
			struct err *err)
{
	struct net_backend_config bcfg;
	int r = 0;

	dev->backend = cfg->opened;
	dev->owns_backend = !cfg->opened;
	if (dev->owns_backend) {
		net_config_backend(cfg, &bcfg);
		r = bcfg.ops->open(&dev->backend, &bcfg, err);
	}
	if (r) {
		err_prefix(err, "--net");
		return r;
	}
	dev->backend->link_changed = link_changed;
	dev->backend->link_ctx = dev;
	return 0;
}

static void name_device(struct net_dev *dev, unsigned int index,
			const uint8_t *mac)
{
	snprintf(dev->vdev.id, sizeof(dev->vdev.id),
		 "net%u (%s, %02x:%02x:%02x:%02x:%02x:%02x)", index,
		 dev->backend->label, mac[0], mac[1], mac[2], mac[3], mac[4],
		 mac[5]);
}

/* Names as in Cloud Hypervisor's vm.counters, and what was dropped. */
static void name_counters(struct net_dev *dev)
{
	const struct virtio_counter counters[NET_COUNTERS] = {
		{ "rx_frames", &dev->rx.frames },
		{ "rx_bytes", &dev->rx.bytes },
		{ "rx_dropped", &dev->rx.dropped },
		{ "tx_frames", &dev->tx.frames },
		{ "tx_bytes", &dev->tx.bytes },
		{ "tx_dropped", &dev->tx.dropped },
	};

	memcpy(dev->counters, counters, sizeof(counters));
	dev->vdev.counters = dev->counters;
	dev->vdev.num_counters = NET_COUNTERS;
}

static int net_create(struct virtio_dev **ret, const void *config,
		      const struct ram *ram, unsigned int num_cpus,
		      unsigned int index, struct err *err)
{
	const struct net_config *cfg = config;
	struct net_dev *dev = calloc(1, sizeof(*dev));
	uint64_t mac = 0, now = clock_now_ns();
	int r;

	if (!dev)
		return err_set(err, ENOMEM, "--net: out of memory");
	ratelimit_init(&dev->rx_limit, &cfg->limit, now);
	ratelimit_init(&dev->tx_limit, &cfg->limit, now);
	dev->max_pairs = net_config_pairs(cfg);
	dev->mtu = (uint16_t)cfg->mtu;
	memcpy(&mac, cfg->mac, NET_MAC_BYTES);
	atomic_init(&dev->mac, mac);
	memcpy(dev->own_mac, cfg->mac, NET_MAC_BYTES);
	dev->mac_given = cfg->has_mac;
	r = open_backend(dev, cfg, err);
	if (!r) {
		r = virtio_dev_init(&dev->vdev, &virtio_net_class, ram,
				    2 * dev->max_pairs + 1,
				    (uint16_t)cfg->queue_size);
		if (r)
			err_errno(err, -r, "--net: cannot set up its queues");
	}
	if (r) {
		net_destroy(&dev->vdev);
		return r;
	}
	name_device(dev, index, cfg->mac);
	name_counters(dev);
	dev->vdev.offered |= features_of(cfg, dev->backend);
	log_info("%s: %u pair%s of queues", dev->vdev.id, dev->max_pairs,
		 dev->max_pairs > 1 ? "s" : "");
	*ret = &dev->vdev;
	return 0;
}

static void net_deactivate(struct virtio_dev *vdev)
{
	struct net_dev *dev = net_dev_of(vdev);

	atomic_store_explicit(&dev->stop, true, memory_order_release);
	for (unsigned int i = 0; i < vdev->num_queues; i++)
		io_eventfd_signal(vdev->queues[i].kick_fd);
	for (unsigned int i = 0; i < dev->num_workers; i++)
		net_worker_stop(&dev->workers[i]);
	dev->num_workers = 0;
	free(take_ptr(dev->workers));
}

static int start_worker(struct net_dev *dev, struct net_worker *w,
			const char *kind, unsigned int number)
{
	char name[16];

	snprintf(name, sizeof(name), "%.4s-%s%u", dev->vdev.id, kind,
		 number % 100);
	return net_worker_start(w, dev, name);
}

/*
 * Queues the driver did not enable are not served. Sending goes first: what it
 * makes the other end answer is then received in the same turn.
 */
static int start_pair(struct net_dev *dev, unsigned int pair)
{
	const struct virtio_queue *queue = &dev->vdev.queues[(size_t)2 * pair];
	struct net_worker *w = &dev->workers[dev->num_workers++];
	int r = 0;

	if (queue[1].vq.started)
		r = net_worker_add(w, net_tx_new(dev, pair));
	if (!r && queue[0].vq.started)
		r = net_worker_add(w, net_rx_new(dev, pair));
	return r ? r : start_worker(dev, w, "q", pair);
}

static int start_ctrl(struct net_dev *dev)
{
	/* Behind the pairs there may be, or the one there is (5.1.2). */
	unsigned int i = (dev->features & NET_F_MQ) ? 2 * dev->max_pairs : 2;
	struct net_worker *w;
	int r;

	if (!(dev->features & NET_F_CTRL_VQ) || !dev->vdev.queues[i].vq.started)
		return 0;
	w = &dev->workers[dev->num_workers++];
	r = net_worker_add(w, net_ctrl_new(dev, i));
	return r ? r : start_worker(dev, w, "c", 0);
}

static int settle_backend(struct net_dev *dev)
{
	struct net_backend *b = dev->backend;
	uint64_t offloads = dev->features & NET_GUEST_OFFLOADS;
	unsigned int pairs = 1; /* the others wait for the driver's command */
	int r = 0;

	if (dev->vdev.restored) {
		offloads &= dev->saved_offloads;
		pairs = dev->saved_pairs;
	}
	atomic_store(&dev->offloads, offloads);
	atomic_store(&dev->pairs, pairs);
	if (b->ops->set_offloads)
		r = b->ops->set_offloads(b, offloads);
	if (!r && b->ops->set_pairs)
		r = b->ops->set_pairs(b, pairs);
	return r;
}

static int net_activate(struct virtio_dev *vdev)
{
	struct net_dev *dev = net_dev_of(vdev);
	unsigned int pairs;
	int r;

	dev->features = net_features_effective(vdev->features);
	pairs = (dev->features & NET_F_MQ) ? dev->max_pairs : 1;
	atomic_store(&dev->stop, false);
	dev->workers = calloc(vdev->num_queues, sizeof(*dev->workers));
	if (!dev->workers)
		return -ENOMEM;
	r = settle_backend(dev);
	for (unsigned int i = 0; i < pairs && !r; i++)
		r = start_pair(dev, i);
	if (!r)
		r = start_ctrl(dev);
	if (r)
		net_deactivate(vdev);
	return r;
}

/* ---- saved state ---- */

struct net_state {
	uint8_t mac[NET_MAC_BYTES];
	uint64_t offloads;
	uint32_t pairs;
	uint32_t max_pairs;
	uint16_t mtu;
	uint8_t own_mac[NET_MAC_BYTES]; /* as configured */
};

#define F(kind, member, ...) \
	STATE_FIELD_##kind(struct net_state, member, __VA_ARGS__)

static const struct state_field state_fields[] = {
	F(BYTES, mac, 1),
	F(UINT, offloads, 2, .max = NET_GUEST_OFFLOADS),
	F(UINT, pairs, 3, .max = NET_MAX_PAIRS),
	F(UINT, max_pairs, 4, .max = NET_MAX_PAIRS),
	F(UINT, mtu, 5),
	F(BYTES, own_mac, 6, .since = 2),
};

static int state_check(const struct state_check *c, const void *loaded,
		       const void *live)
{
	const struct net_state *s = loaded, *here = live;

	if (s->max_pairs != here->max_pairs)
		return state_refuse(c, "max_pairs", "%u, here %u", s->max_pairs,
				    here->max_pairs);
	if (!s->pairs || s->pairs > s->max_pairs)
		return state_refuse(c, "pairs", "%u, of %u", s->pairs,
				    s->max_pairs);
	if (s->mtu != here->mtu)
		return state_refuse(c, "mtu", "%u, here %u", s->mtu, here->mtu);
	return 0;
}

static const struct state_table state_table = {
	.section = "virtio-net",
	.version = 2,
	.object_bytes = sizeof(struct net_state),
	.fields = state_fields,
	.num_fields = ARRAY_SIZE(state_fields),
	.check = state_check,
};

static struct net_state net_state_of(struct net_dev *dev)
{
	uint64_t mac = atomic_load(&dev->mac);
	unsigned int pairs = atomic_load(&dev->pairs);
	struct net_state s = {
		.offloads = atomic_load(&dev->offloads),
		.pairs = pairs ? pairs : 1, /* 0: never active */
		.max_pairs = dev->max_pairs,
		.mtu = dev->mtu,
	};

	memcpy(s.mac, &mac, NET_MAC_BYTES);
	memcpy(s.own_mac, dev->own_mac, NET_MAC_BYTES);
	return s;
}

/* Filters are accepted and not applied: there are none to save. */
static int net_save(struct virtio_dev *vdev, struct state_writer *w,
		    struct err *err)
{
	const struct net_state s = net_state_of(net_dev_of(vdev));

	state_save(w, &state_table, vdev->config_id, &s);
	return 0;
}

/*
 * The address is the saved guest's, which may have been set by its driver,
 * unless who restores it has given another than it was started with.
 */
static int net_load(struct virtio_dev *vdev, struct state_reader *r,
		    struct err *err)
{
	struct net_dev *dev = net_dev_of(vdev);
	struct net_state s = net_state_of(dev);
	int ret = state_load(r, &state_table, vdev->config_id, &s, err);
	uint64_t mac = 0;

	if (ret)
		return ret;
	if (!dev->mac_given ||
	    !memcmp(s.own_mac, dev->own_mac, NET_MAC_BYTES)) {
		memcpy(&mac, s.mac, NET_MAC_BYTES);
		atomic_store(&dev->mac, mac);
	}
	dev->saved_offloads = s.offloads;
	dev->saved_pairs = s.pairs;
	return 0;
}

/* Its thread sends it, when the device is not held any more. */
static void net_announce(struct virtio_dev *vdev)
{
	struct net_dev *dev = net_dev_of(vdev);

	atomic_store(&dev->announce, true);
	io_eventfd_signal(vdev->queues[1].kick_fd);
}

const struct virtio_class virtio_net_class = {
	.name = "net",
	.device_id = NET_DEVICE_ID,
	.pci_class = PCI_CLASS,
	.option = "--net",
	.option_args =
		"mode=tap|passt|socket[,tap=NAME][,fd=N+N...][,socket=PATH]"
		"[,mac=ADDR][,mtu=N][,num_queues=N][,queue_size=N][,ip=ADDR]"
		"[,mask=ADDR][,host_mac=ADDR][,tcp_ports=SPEC]"
		"[,udp_ports=SPEC][,offload_tso=on|off][,offload_ufo=on|off]"
		"[,offload_csum=on|off][,bw_size=BYTES][,bw_refill_time=MS]"
		"[,bw_one_time_burst=BYTES][,ops_size=N][,ops_refill_time=MS]"
		"[,ops_one_time_burst=N]",
	.option_help = "a network interface: a tap of the host (tap=NAME), "
		       "passt, or a stream socket",
	.first_key = "mode",
	.keys = net_config_keys,
	.num_keys = NET_CONFIG_KEYS,
	.api_field = "net",
	.api_verb = "add-net",
	.config_bytes = sizeof(struct net_config),
	.config_defaults = net_config_defaults,
	.config_check = net_config_check,
	.config_fini = net_config_fini,
	.config_open = net_config_open,
	.config_paths = net_config_paths,
	.create = net_create,
	.destroy = net_destroy,
	.announce = net_announce,
	.config_space_bytes = sizeof(struct net_config_space),
	.config_read = net_config_read,
	.activate = net_activate,
	.deactivate = net_deactivate,
	.thread_classes = net_thread_classes,
	.vcpu_calls = &net_vcpu_calls,
	.control_calls = &net_control_calls,
	.save = net_save,
	.load = net_load,
};
