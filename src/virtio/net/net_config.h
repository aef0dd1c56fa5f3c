/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What --net asks for: its keys and their checks. The names are Cloud
 * Hypervisor's where it has the same.
 */
#ifndef QUIRE_VIRTIO_NET_CONFIG_H
#define QUIRE_VIRTIO_NET_CONFIG_H

#include "base/kvlist.h"
#include "sandbox/paths.h"
#include "virtio/net/net_backend.h"
#include "virtio/ratelimit.h"

struct net_config {
	int mode; /* index into net_backends[], -1: by what else is given */
	char *tap, *socket, *tcp_ports, *udp_ports;
	unsigned int num_fds;
	int fds[NET_MAX_PAIRS];
	uint8_t mac[NET_MAC_BYTES], host_mac[NET_MAC_BYTES];
	bool has_mac, has_host_mac, has_ip, has_mask;
	uint32_t ip, mask;   /* network byte order */
	uint32_t num_queues; /* 0: not given */
	uint32_t queue_size;
	uint32_t mtu; /* 0: not given */
	bool offload_tso, offload_ufo, offload_csum;
	struct ratelimit_config limit;
	/* By net_config_open(): it outlasts machines, which take turns. */
	struct net_backend *opened;
};

#define NET_CONFIG_KEYS 22

extern const struct kvlist_key net_config_keys[NET_CONFIG_KEYS];

/* The MAC address is chosen here, so that a restart of the machine keeps it. */
void net_config_defaults(void *config);
int net_config_check(const void *config, struct err *err);
void net_config_fini(void *config);
/* Open the back end, once and for all machines to come. */
int net_config_open(void *config, struct err *err);
int net_config_paths(const void *config, struct sandbox_paths *paths,
		     struct err *err);

/* Of a checked one: pairs of queues, and what the back end needs. */
unsigned int net_config_pairs(const struct net_config *cfg);
void net_config_backend(const struct net_config *cfg,
			struct net_backend_config *ret);

#endif
