/* SPDX-License-Identifier: Apache-2.0 */
#include "virtio/net/net_config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/unix_socket.h"
#include "virtio/virtio.h"

#define MIN_QUEUE_SIZE	   16u
#define DEFAULT_QUEUE_SIZE 256u
/* An IPv4 link has 68 at least, an IP packet 65535 at most. */
#define MIN_MTU 68u
#define MAX_MTU 65535u

#define MAC_LOCAL     0x02
#define MAC_MULTICAST 0x01

static int set_mode(void *obj, const char *value, struct err *err)
{
	const char *names[8];
	size_t num = 0;

	while (num < ARRAY_SIZE(names) && net_backends[num]) {
		names[num] = net_backends[num]->name;
		num++;
	}
	return kvlist_enum(value, names, num, &((struct net_config *)obj)->mode,
			   err);
}

static int set_tap(void *obj, const char *value, struct err *err)
{
	/* A '%' would make the kernel number it; a '/' none can have. */
	if (strlen(value) >= IFNAMSIZ || strpbrk(value, "/% \t\n") ||
	    !strcmp(value, ".") || !strcmp(value, ".."))
		return err_set(err, EINVAL, "not the name of an interface");
	return kvlist_string(value, &((struct net_config *)obj)->tap, err);
}

static int set_socket(void *obj, const char *value, struct err *err)
{
	if (strlen(value) > UNIX_SOCKET_PATH_MAX)
		return err_set(err, ENAMETOOLONG,
			       "too long for a socket's path");
	return kvlist_string(value, &((struct net_config *)obj)->socket, err);
}

static int set_tcp_ports(void *obj, const char *value, struct err *err)
{
	return kvlist_string(value, &((struct net_config *)obj)->tcp_ports,
			     err);
}

static int set_udp_ports(void *obj, const char *value, struct err *err)
{
	return kvlist_string(value, &((struct net_config *)obj)->udp_ports,
			     err);
}

/* "7" or "7+8+9", in brackets or not ("[7,8]" as Cloud Hypervisor has it). */
static int set_fd(void *obj, const char *value, struct err *err)
{
	struct net_config *cfg = obj;
	const char *p = value + (*value == '[');
	unsigned int num = 0;

	for (;;) {
		char *end;
		unsigned long fd = strtoul(p, &end, 10);

		if (*p < '0' || *p > '9' || fd > INT32_MAX ||
		    num == NET_MAX_PAIRS)
			break;
		cfg->fds[num++] = (int)fd;
		p = end;
		if (*p == '+' || *p == ',') {
			p++;
			continue;
		}
		if (strcmp(p, *value == '[' ? "]" : "") != 0)
			break;
		cfg->num_fds = num;
		return 0;
	}
	return err_set(err, EINVAL,
		       "not descriptors, one for each pair of queues, as 7+8");
}

static int parse_mac(const char *value, uint8_t *ret, struct err *err)
{
	uint8_t mac[NET_MAC_BYTES];
	int end = 0;

	if (sscanf(value, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%n", &mac[0],
		   &mac[1], &mac[2], &mac[3], &mac[4], &mac[5], &end) != 6 ||
	    end != 17 || value[end])
		return err_set(err, EINVAL,
			       "not a MAC address, as 02:00:00:12:34:56");
	if ((mac[0] & MAC_MULTICAST) ||
	    !(mac[0] | mac[1] | mac[2] | mac[3] | mac[4] | mac[5]))
		return err_set(err, EINVAL, "not the address of one station");
	memcpy(ret, mac, NET_MAC_BYTES);
	return 0;
}

static int set_mac(void *obj, const char *value, struct err *err)
{
	struct net_config *cfg = obj;

	cfg->has_mac = true;
	return parse_mac(value, cfg->mac, err);
}

static int set_host_mac(void *obj, const char *value, struct err *err)
{
	struct net_config *cfg = obj;

	cfg->has_host_mac = true;
	return parse_mac(value, cfg->host_mac, err);
}

static int parse_ip(const char *value, uint32_t *ret, struct err *err)
{
	struct in_addr addr;

	if (inet_pton(AF_INET, value, &addr) != 1)
		return err_set(err, EINVAL, "not an IPv4 address");
	*ret = addr.s_addr;
	return 0;
}

static int set_ip(void *obj, const char *value, struct err *err)
{
	struct net_config *cfg = obj;

	cfg->has_ip = true;
	return parse_ip(value, &cfg->ip, err);
}

static int set_mask(void *obj, const char *value, struct err *err)
{
	struct net_config *cfg = obj;
	int r = parse_ip(value, &cfg->mask, err);
	uint32_t zeroes = ~ntohl(cfg->mask);

	cfg->has_mask = true;
	if (!r && (zeroes & (zeroes + 1)))
		return err_set(err, EINVAL, "not a network mask");
	return r;
}

static int set_num_queues(void *obj, const char *value, struct err *err)
{
	uint32_t num;
	int r = kvlist_u32(value, 2, 2 * NET_MAX_PAIRS, &num, err);

	if (!r && num % 2)
		return err_set(err, EINVAL,
			       "odd; queues come in pairs, one for each "
			       "direction");
	if (!r)
		((struct net_config *)obj)->num_queues = num;
	return r;
}

static int set_queue_size(void *obj, const char *value, struct err *err)
{
	return kvlist_pow2(value, MIN_QUEUE_SIZE, VQ_MAX_SIZE,
			   &((struct net_config *)obj)->queue_size, err);
}

static int set_mtu(void *obj, const char *value, struct err *err)
{
	return kvlist_u32(value, MIN_MTU, MAX_MTU,
			  &((struct net_config *)obj)->mtu, err);
}

#define DEFINE_BOOL(name)                                                    \
	static int set_##name(void *obj, const char *value, struct err *err) \
	{                                                                    \
		return kvlist_bool(value, &((struct net_config *)obj)->name, \
				   err);                                     \
	}
DEFINE_BOOL(offload_tso)
DEFINE_BOOL(offload_ufo)
DEFINE_BOOL(offload_csum)
#undef DEFINE_BOOL

/* Times are numbers of milliseconds, the others take 10M as well. */
#define DEFINE_LIMIT(name, field)                                              \
	static int set_##name(void *obj, const char *value, struct err *err)   \
	{                                                                      \
		return kvlist_size(                                            \
			value, &((struct net_config *)obj)->limit.field, err); \
	}
DEFINE_LIMIT(bw_size, bw.size)
DEFINE_LIMIT(bw_one_time_burst, bw.one_time_burst)
DEFINE_LIMIT(bw_refill_time, bw.refill_ms)
DEFINE_LIMIT(ops_size, ops.size)
DEFINE_LIMIT(ops_one_time_burst, ops.one_time_burst)
DEFINE_LIMIT(ops_refill_time, ops.refill_ms)
#undef DEFINE_LIMIT

const struct kvlist_key net_config_keys[] = {
	{ "mode", set_mode },
	{ "tap", set_tap },
	{ "fd", set_fd },
	{ "socket", set_socket },
	{ "mac", set_mac },
	{ "host_mac", set_host_mac },
	{ "ip", set_ip },
	{ "mask", set_mask },
	{ "mtu", set_mtu },
	{ "num_queues", set_num_queues },
	{ "queue_size", set_queue_size },
	{ "offload_tso", set_offload_tso },
	{ "offload_ufo", set_offload_ufo },
	{ "offload_csum", set_offload_csum },
	{ "tcp_ports", set_tcp_ports },
	{ "udp_ports", set_udp_ports },
	{ "bw_size", set_bw_size },
	{ "bw_one_time_burst", set_bw_one_time_burst },
	{ "bw_refill_time", set_bw_refill_time },
	{ "ops_size", set_ops_size },
	{ "ops_one_time_burst", set_ops_one_time_burst },
	{ "ops_refill_time", set_ops_refill_time },
};
_Static_assert(ARRAY_SIZE(net_config_keys) == NET_CONFIG_KEYS, "all named");

void net_config_defaults(void *config)
{
	struct net_config *cfg = config;

	cfg->mode = -1;
	cfg->queue_size = DEFAULT_QUEUE_SIZE;
	cfg->offload_tso = cfg->offload_ufo = cfg->offload_csum = true;
	/* Without entropy, very early on a host, it is a constant one. */
	if (getrandom(cfg->mac, sizeof(cfg->mac), GRND_NONBLOCK) < 0)
		memset(cfg->mac, 0, sizeof(cfg->mac));
	cfg->mac[0] = (uint8_t)((cfg->mac[0] & ~MAC_MULTICAST) | MAC_LOCAL);
}

void net_config_fini(void *config)
{
	struct net_config *cfg = config;

	free(take_ptr(cfg->tap));
	free(take_ptr(cfg->socket));
	free(take_ptr(cfg->tcp_ports));
	free(take_ptr(cfg->udp_ports));
	if (cfg->opened)
		cfg->opened->ops->close(cfg->opened);
	cfg->opened = NULL;
}

int net_config_open(void *config, struct err *err)
{
	struct net_config *cfg = config;
	struct net_backend_config bcfg;
	int r;

	if (cfg->opened)
		return 0;
	net_config_backend(cfg, &bcfg);
	r = bcfg.ops->open(&cfg->opened, &bcfg, err);
	if (r)
		err_prefix(err, "--net");
	return r;
}

/* A stream's socket is connected to again. */
int net_config_paths(const void *config, struct sandbox_paths *paths,
		     struct err *err)
{
	const struct net_config *cfg = config;

	if (!cfg->socket)
		return 0;
	return sandbox_paths_add_parent(paths, cfg->socket, SANDBOX_READ, true,
					err);
}

static const struct net_backend_ops *backend_ops(const struct net_config *cfg)
{
	if (cfg->mode >= 0)
		return net_backends[cfg->mode];
	return cfg->socket ? &net_stream_ops : &net_tap_ops;
}

unsigned int net_config_pairs(const struct net_config *cfg)
{
	if (cfg->num_queues)
		return cfg->num_queues / 2;
	return MAX(cfg->num_fds, 1u);
}

/* Keys of one back end are nonsense with another. */
static int check_mode(const struct net_config *cfg,
		      const struct net_backend_ops *ops, struct err *err)
{
	bool tap = cfg->tap || cfg->num_fds || cfg->has_ip || cfg->has_mask ||
		   cfg->has_host_mac;

	if (ops != &net_tap_ops && tap)
		return err_set(err, EINVAL,
			       "tap=, fd=, ip=, mask= and host_mac= are for "
			       "mode=tap, not mode=%s",
			       ops->name);
	if (ops != &net_tap_ops && net_config_pairs(cfg) > 1)
		return err_set(err, EINVAL, "mode=%s has one pair of queues",
			       ops->name);
	if ((ops == &net_stream_ops) != !!cfg->socket)
		return err_set(err, EINVAL,
			       cfg->socket ? "socket= is for mode=socket"
					   : "mode=socket wants socket=PATH");
	if (ops != &net_passt_ops && (cfg->tcp_ports || cfg->udp_ports))
		return err_set(err, EINVAL,
			       "tcp_ports= and udp_ports= are for mode=passt");
	return 0;
}

int net_config_check(const void *config, struct err *err)
{
	const struct net_config *cfg = config;
	int r = check_mode(cfg, backend_ops(cfg), err);

	if (r)
		return r;
	if (cfg->tap && cfg->num_fds)
		return err_set(err, EINVAL, "either tap= or fd=");
	if (cfg->num_fds && net_config_pairs(cfg) != cfg->num_fds)
		return err_set(err, EINVAL,
			       "num_queues=%u wants %u descriptors in fd=",
			       cfg->num_queues, cfg->num_queues / 2);
	if (cfg->has_mask && !cfg->has_ip)
		return err_set(err, EINVAL, "mask= wants ip=");
	r = ratelimit_check_bucket(&cfg->limit.bw, "bw", err);
	if (!r)
		r = ratelimit_check_bucket(&cfg->limit.ops, "ops", err);
	return r;
}

void net_config_backend(const struct net_config *cfg,
			struct net_backend_config *ret)
{
	*ret = (struct net_backend_config){
		.ops = backend_ops(cfg),
		.num_pairs = net_config_pairs(cfg),
		.mtu = cfg->mtu,
		.tap = cfg->tap,
		.num_fds = cfg->num_fds,
		.has_ip = cfg->has_ip,
		.has_mask = cfg->has_mask,
		.has_host_mac = cfg->has_host_mac,
		.ip = cfg->ip,
		.mask = cfg->mask,
		.socket = cfg->socket,
		.tcp_ports = cfg->tcp_ports,
		.udp_ports = cfg->udp_ports,
	};
	memcpy(ret->fds, cfg->fds, sizeof(ret->fds));
	memcpy(ret->host_mac, cfg->host_mac, NET_MAC_BYTES);
}
