/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Back end: a tap interface of the host.
 *
 * Each pair of queues is one file on /dev/net/tun (IFF_MULTI_QUEUE beyond one).
 * The header in front of each frame is virtio's own, of 12 bytes, little-endian
 * whatever the host, so that frames pass without being touched: a checksum or a
 * segmentation that the guest left open is done by the host's stack, or by
 * nobody where the frame stays in memory.
 *
 * Files of pairs that the driver does not use are detached, or the kernel would
 * steer flows to where nobody reads.
 *
 * On the host nothing is set but what ip=, mask=, host_mac= and mtu= ask for;
 * an interface that is made here, or gets an address, is brought up.
 *
 * Source: Documentation/networking/tuntap.rst, linux/if_tun.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/thread.h"
#include "virtio/net/net_backend.h"

#define TUN_PATH "/dev/net/tun"

struct tap {
	struct net_backend b;
	char name[IFNAMSIZ];
	bool created; /* the interface was not there before */
	bool multi;
	unsigned int num_attached; /* of multi: these first ones are */
	int fds[NET_MAX_PAIRS];
};

static struct tap *tap_of(struct net_backend *b)
{
	return container_of(b, struct tap, b);
}

/* ---- opening ---- */

static int tap_error(struct err *err, int code, const char *name)
{
	const char *shown = *name ? name : "(any)";

	switch (code) {
	case EPERM:
	case EACCES:
		return err_set(err, code,
			       "tap %s: not permitted; make it beforehand (ip "
			       "tuntap add mode tap user NAME)%s",
			       shown,
			       thread_is_caged()
				       ? ", or name it when quire is started: "
					 "later it has no capabilities"
				       : " or run with CAP_NET_ADMIN");
	case EBUSY:
		return err_set(err, code, "tap %s: in use by another process",
			       shown);
	case EINVAL:
		return err_set(err, code,
			       "tap %s: no tap interface with as many queues "
			       "(more than one wants a tap made with "
			       "multi_queue)",
			       shown);
	default:
		return err_errno(err, code, "tap %s", shown);
	}
}

static int open_tun(int *ret_fd, struct err *err)
{
	int fd = open(TUN_PATH, O_RDWR | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0)
		return err_errno(err, errno, "%s%s", TUN_PATH,
				 (errno == ENOENT || errno == ENODEV) &&
						 !thread_is_caged()
					 ? " (modprobe tun)"
					 : "");
	*ret_fd = fd;
	return 0;
}

/* Attach fd to the interface; its name, if it had none, comes back. */
static int attach(int fd, char name[IFNAMSIZ], bool multi)
{
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };

	if (multi)
		ifr.ifr_flags |= IFF_MULTI_QUEUE;
	memcpy(ifr.ifr_name, name, IFNAMSIZ);
	if (ioctl(fd, TUNSETIFF, &ifr))
		return -errno;
	memcpy(name, ifr.ifr_name, IFNAMSIZ);
	return 0;
}

static int open_named(struct tap *tap, const struct net_backend_config *cfg,
		      struct err *err)
{
	int r;

	if (cfg->tap)
		strncpy(tap->name, cfg->tap, IFNAMSIZ - 1);
	tap->created = !cfg->tap || !if_nametoindex(cfg->tap);
	tap->multi = cfg->num_pairs > 1;
	for (unsigned int i = 0; i < cfg->num_pairs; i++) {
		r = open_tun(&tap->fds[i], err);
		if (r)
			return r;
		r = attach(tap->fds[i], tap->name, tap->multi);
		if (r == -EINVAL && !tap->multi) {
			/* Made with multi_queue: that serves one as well. */
			tap->multi = true;
			r = attach(tap->fds[i], tap->name, true);
		}
		if (r)
			return tap_error(err, -r, tap->name);
	}
	return 0;
}

/* The caller's descriptors stay the caller's: for the next machine. */
static int open_fds(struct tap *tap, const struct net_backend_config *cfg,
		    struct err *err)
{
	const short want = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;

	for (unsigned int i = 0; i < cfg->num_fds; i++) {
		struct ifreq ifr = { .ifr_flags = 0 };
		int fd = fcntl(cfg->fds[i], F_DUPFD_CLOEXEC, 0), flags;

		if (fd < 0)
			return err_errno(err, errno, "fd=%d", cfg->fds[i]);
		tap->fds[i] = fd;
		if (ioctl(fd, TUNGETIFF, &ifr))
			return err_set(err, EINVAL,
				       "fd=%d: not an open tap interface",
				       cfg->fds[i]);
		if ((ifr.ifr_flags & want) != want)
			return err_set(err, EINVAL,
				       "fd=%d: not opened with IFF_TAP, "
				       "IFF_NO_PI and IFF_VNET_HDR",
				       cfg->fds[i]);
		if (i && strncmp(ifr.ifr_name, tap->name, IFNAMSIZ) != 0)
			return err_set(err, EINVAL,
				       "fd=%d: not of the same interface as "
				       "fd=%d",
				       cfg->fds[i], cfg->fds[0]);
		memcpy(tap->name, ifr.ifr_name, IFNAMSIZ);
		tap->multi = ifr.ifr_flags & IFF_MULTI_QUEUE;
		flags = fcntl(fd, F_GETFL);
		if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) ||
		    fcntl(cfg->fds[i], F_SETFD, FD_CLOEXEC))
			return err_errno(err, errno, "fd=%d", cfg->fds[i]);
	}
	return 0;
}

/* ---- offloads ---- */

static unsigned int tun_offloads(uint64_t features)
{
	unsigned int tun = 0;

	if (features & NET_F_GUEST_CSUM)
		tun |= TUN_F_CSUM;
	if (features & NET_F_GUEST_TSO4)
		tun |= TUN_F_TSO4;
	if (features & NET_F_GUEST_TSO6)
		tun |= TUN_F_TSO6;
	if (features & NET_F_GUEST_ECN)
		tun |= TUN_F_TSO_ECN;
	if (features & NET_F_GUEST_UFO)
		tun |= TUN_F_UFO;
	return tun;
}

static int tap_set_offloads(struct net_backend *b, uint64_t offloads)
{
	struct tap *tap = tap_of(b);

	if (ioctl(tap->fds[0], TUNSETOFFLOAD, tun_offloads(offloads)))
		return -errno;
	return 0;
}

static int set_up_header(struct tap *tap, struct err *err)
{
	static const uint64_t most = NET_GUEST_OFFLOADS;
	int bytes = NET_HDR_BYTES, on = 1;

	for (unsigned int i = 0; i < tap->b.num_pairs; i++) {
		if (ioctl(tap->fds[i], TUNSETVNETHDRSZ, &bytes))
			return err_errno(err, errno,
					 "tap %s: headers of 12 bytes",
					 tap->name);
		/* Refused where it is so anyway. */
		if (ioctl(tap->fds[i], TUNSETVNETLE, &on) && errno != EINVAL &&
		    errno != ENOTTY)
			return err_errno(err, errno, "tap %s: byte order",
					 tap->name);
	}
	tap->b.features = NET_F_CSUM | NET_F_HOST_TSO4 | NET_F_HOST_TSO6 |
			  NET_F_HOST_ECN | NET_F_HOST_UFO | most;
	if (!tap_set_offloads(&tap->b, most))
		return 0;
	/* Some kernels have no UFO. */
	tap->b.features &= ~(NET_F_HOST_UFO | NET_F_GUEST_UFO);
	if (!tap_set_offloads(&tap->b, most & ~NET_F_GUEST_UFO))
		return 0;
	tap->b.features = NET_F_CSUM | NET_F_GUEST_CSUM;
	return 0;
}

/* ---- the interface, as far as asked ---- */

static int if_ioctl(const struct tap *tap, int sock, unsigned long request,
		    struct ifreq *ifr, const char *what, struct err *err)
{
	memcpy(ifr->ifr_name, tap->name, IFNAMSIZ);
	if (ioctl(sock, request, ifr))
		return err_errno(err, errno, "tap %s: %s", tap->name, what);
	return 0;
}

static int set_address(const struct tap *tap, int sock, unsigned long request,
		       uint32_t addr, const char *what, struct err *err)
{
	struct sockaddr_in in = { .sin_family = AF_INET };
	struct ifreq ifr = { .ifr_flags = 0 };

	in.sin_addr.s_addr = addr;
	memcpy(&ifr.ifr_addr, &in, sizeof(in));
	return if_ioctl(tap, sock, request, &ifr, what, err);
}

static int bring_up(const struct tap *tap, int sock, struct err *err)
{
	struct ifreq ifr = { .ifr_flags = 0 };
	int r = if_ioctl(tap, sock, SIOCGIFFLAGS, &ifr, "flags", err);

	if (r || (ifr.ifr_flags & IFF_UP))
		return r;
	ifr.ifr_flags |= IFF_UP;
	return if_ioctl(tap, sock, SIOCSIFFLAGS, &ifr, "bringing it up", err);
}

/* An interface that others have set up gets no MTU from us. */
static int set_mtu(const struct tap *tap, int sock, uint32_t mtu, bool ours,
		   struct err *err)
{
	struct ifreq ifr = { .ifr_flags = 0 };
	int r;

	if (ours) {
		ifr.ifr_mtu = (int)mtu;
		return if_ioctl(tap, sock, SIOCSIFMTU, &ifr, "mtu=", err);
	}
	r = if_ioctl(tap, sock, SIOCGIFMTU, &ifr, "its MTU", err);
	if (!r && ifr.ifr_mtu < (int)mtu)
		log_warn("--net mtu=%u: the MTU of %s is only %d", mtu,
			 tap->name, ifr.ifr_mtu);
	return r;
}

static int configure(const struct tap *tap,
		     const struct net_backend_config *cfg, struct err *err)
{
	_cleanup_close_ int sock = -1;
	bool ours = tap->created || cfg->has_ip;
	struct ifreq ifr = { .ifr_flags = 0 };
	int r = 0;

	if (!ours && !cfg->mtu && !cfg->has_host_mac)
		return 0;
	if ((ours || cfg->has_host_mac) && thread_is_caged())
		return err_set(err, EPERM,
			       "tap %s: ip=, mask= and host_mac= take "
			       "privileges that quire has given up; set it up "
			       "beforehand",
			       tap->name);
	/* To ask, any family will do; a confined quire has but this one. */
	sock = socket(thread_is_caged() ? AF_UNIX : AF_INET,
		      SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return err_errno(err, errno, "tap %s: socket", tap->name);
	if (cfg->has_host_mac) {
		ifr.ifr_hwaddr.sa_family = ARPHRD_ETHER;
		memcpy(ifr.ifr_hwaddr.sa_data, cfg->host_mac, NET_MAC_BYTES);
		r = if_ioctl(tap, sock, SIOCSIFHWADDR, &ifr, "host_mac=", err);
	}
	if (!r && cfg->mtu)
		r = set_mtu(tap, sock, cfg->mtu, ours, err);
	if (!r && cfg->has_ip)
		r = set_address(tap, sock, SIOCSIFADDR, cfg->ip, "ip=", err);
	if (!r && cfg->has_mask)
		r = set_address(tap, sock, SIOCSIFNETMASK, cfg->mask,
				"mask=", err);
	if (!r && ours)
		r = bring_up(tap, sock, err);
	return r;
}

/* ---- life ---- */

static void tap_close(struct net_backend *b)
{
	struct tap *tap = tap_of(b);

	for (unsigned int i = 0; i < NET_MAX_PAIRS; i++)
		close_fd(&tap->fds[i]);
	free(tap);
}

static int tap_open(struct net_backend **ret,
		    const struct net_backend_config *cfg, struct err *err)
{
	struct tap *tap = calloc(1, sizeof(*tap));
	int r;

	if (!tap)
		return err_set(err, ENOMEM, "out of memory");
	tap->b.ops = &net_tap_ops;
	tap->b.num_pairs = cfg->num_pairs;
	atomic_init(&tap->b.link, true);
	for (unsigned int i = 0; i < NET_MAX_PAIRS; i++)
		tap->fds[i] = -1;
	r = cfg->num_fds ? open_fds(tap, cfg, err) : open_named(tap, cfg, err);
	if (!r)
		r = set_up_header(tap, err);
	if (!r)
		r = configure(tap, cfg, err);
	if (r) {
		tap_close(&tap->b);
		return r;
	}
	tap->num_attached = cfg->num_pairs;
	snprintf(tap->b.label, sizeof(tap->b.label), "%s", tap->name);
	*ret = &tap->b;
	return 0;
}

static int tap_set_pairs(struct net_backend *b, unsigned int num)
{
	struct tap *tap = tap_of(b);

	while (b->num_pairs > 1 && tap->num_attached != num) {
		bool more = tap->num_attached < num;
		unsigned int i = tap->num_attached - !more;
		struct ifreq ifr = { .ifr_flags = IFF_DETACH_QUEUE };

		if (more)
			ifr.ifr_flags = IFF_ATTACH_QUEUE;
		if (ioctl(tap->fds[i], TUNSETQUEUE, &ifr))
			return -errno;
		tap->num_attached = more ? i + 1 : i;
	}
	return 0;
}

/* ---- frames ---- */

static ssize_t tap_recv(struct net_backend *b, unsigned int pair,
			const struct iovec *iov, unsigned int num)
{
	ssize_t n = readv(tap_of(b)->fds[pair], iov, (int)num);

	if (n < 0)
		return errno == EINTR ? -EAGAIN : -errno;
	return n < (ssize_t)NET_HDR_BYTES ? -EBADMSG
					  : n - (ssize_t)NET_HDR_BYTES;
}

static int tap_recv_wait(struct net_backend *b, unsigned int pair,
			 struct pollfd *pfd)
{
	pfd->fd = tap_of(b)->fds[pair];
	pfd->events = POLLIN;
	return -1;
}

static int tap_send(struct net_backend *b, unsigned int pair, struct iovec *iov,
		    unsigned int num, uint32_t bytes)
{
	ssize_t n;

	do {
		n = writev(tap_of(b)->fds[pair], iov, (int)num);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

static int tap_send_fd(struct net_backend *b, unsigned int pair)
{
	return tap_of(b)->fds[pair];
}

const struct net_backend_ops net_tap_ops = {
	.name = "tap",
	.open = tap_open,
	.close = tap_close,
	.set_offloads = tap_set_offloads,
	.set_pairs = tap_set_pairs,
	.recv = tap_recv,
	.recv_wait = tap_recv_wait,
	.send = tap_send,
	.send_fd = tap_send_fd,
};
