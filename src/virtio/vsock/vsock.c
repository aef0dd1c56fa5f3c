/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-vsock (virtio 1.2 section 5.10): stream sockets between guest and
 * host, which has them as Unix sockets, by the convention that Firecracker and
 * Cloud Hypervisor share:
 *
 *	host to guest	connect to PATH, send "CONNECT <port>\n", read
 *			"OK <host port>\n"; then it is the connection. It is
 *			closed instead where nobody in the guest listens.
 *	guest to host	a connection to CID 2, port P, goes to whoever listens
 *			on PATH_P
 *
 * The guest's kernel needs no host kernel support (vhost-vsock) this way, and
 * several guests may have the same CID. Not offered: datagrams and SEQPACKET.
 *
 * This file is the device as the command line and the driver's probe see it;
 * one thread serves queues and sockets, see vsock_loop.c.
 */
#include "virtio/vsock/vsock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "virtio/vsock/vsock_priv.h"

#define PCI_CLASS  0x078000 /* communication controller, other */
#define QUEUE_SIZE 256
#define BACKLOG	   64
/* The longest suffix: "_4294967295". */
#define SUFFIX_BYTES 11u

struct vsock_config {
	uint32_t cid; /* 0: not given */
	char *socket;
};

static int set_cid(void *obj, const char *value, struct err *err)
{
	return kvlist_u32(value, VSOCK_CID_MIN, VSOCK_CID_MAX,
			  &((struct vsock_config *)obj)->cid, err);
}

static int set_socket(void *obj, const char *value, struct err *err)
{
	struct vsock_config *cfg = obj;

	if (!*value)
		return err_set(err, EINVAL, "the path is missing");
	if (strlen(value) + SUFFIX_BYTES > UNIX_SOCKET_PATH_MAX)
		return err_set(err, ENAMETOOLONG,
			       "the path is too long; with a port behind it, a "
			       "socket's may have %zu bytes, so this one %zu",
			       UNIX_SOCKET_PATH_MAX,
			       UNIX_SOCKET_PATH_MAX - SUFFIX_BYTES);
	return kvlist_string(value, &cfg->socket, err);
}

static const struct kvlist_key keys[] = {
	{ "cid", set_cid },
	{ "socket", set_socket },
};

static int config_check(const void *config, struct err *err)
{
	const struct vsock_config *cfg = config;

	if (!cfg->cid)
		return err_set(err, EINVAL, "cid=N is missing");
	if (!cfg->socket)
		return err_set(err, EINVAL, "socket=PATH is missing");
	return 0;
}

static void config_fini(void *config)
{
	struct vsock_config *cfg = config;

	free(take_ptr(cfg->socket));
}

static void vsock_destroy(struct virtio_dev *vdev)
{
	struct vsock_dev *dev = container_of(vdev, struct vsock_dev, vdev);

	virtio_dev_fini(vdev);
	unix_listener_close(&dev->listener);
	close_fd(&dev->epoll_fd);
	free(dev->path);
	free(dev);
}

static struct vsock_dev *alloc_dev(const struct vsock_config *cfg)
{
	struct vsock_dev *dev = calloc(1, sizeof(*dev));

	if (!dev)
		return NULL;
	dev->listener = (struct unix_listener)UNIX_LISTENER_INIT;
	dev->epoll_fd = -1;
	dev->guest_cid = cfg->cid;
	dev->vdev.offered = VSOCK_F_STREAM;
	TAILQ_INIT(&dev->conns);
	TAILQ_INIT(&dev->ready);
	TAILQ_INIT(&dev->dead);
	dev->path = strdup(cfg->socket);
	if (!dev->path)
		free(take_ptr(dev));
	return dev;
}

/* The socket is made for each machine; those of ports are others'. */
static int config_paths(const void *config, struct sandbox_paths *paths,
			struct err *err)
{
	const struct vsock_config *cfg = config;

	return sandbox_paths_add_parent(paths, cfg->socket,
					SANDBOX_READ | SANDBOX_MAKE, true, err);
}

static int vsock_create(struct virtio_dev **ret, const void *config,
			const struct ram *ram, unsigned int num_cpus,
			unsigned int index, struct err *err)
{
	const struct vsock_config *cfg = config;
	struct vsock_dev *dev = alloc_dev(cfg);
	int r;

	if (!dev)
		return err_set(err, ENOMEM, "--vsock: out of memory");
	snprintf(dev->vdev.id, sizeof(dev->vdev.id), "vsock (cid %u)",
		 cfg->cid);
	r = unix_listener_open(&dev->listener, cfg->socket, BACKLOG, err);
	if (r)
		err_prefix(err, "--vsock socket=%s", cfg->socket);
	if (!r) {
		r = virtio_dev_init(&dev->vdev, &virtio_vsock_class, ram,
				    VSOCK_NUM_QUEUES, QUEUE_SIZE);
		if (!r)
			r = vsock_loop_init(dev);
		if (r)
			err_errno(err, -r, "--vsock: cannot set it up");
	}
	if (r) {
		vsock_destroy(&dev->vdev);
		return r;
	}
	*ret = &dev->vdev;
	return 0;
}

static void vsock_config_read(struct virtio_dev *vdev, uint32_t offset,
			      void *data, uint32_t len)
{
	struct vsock_dev *dev = container_of(vdev, struct vsock_dev, vdev);
	const struct vsock_config_space space = {
		.guest_cid = htole64(dev->guest_cid),
	};

	memcpy(data, (const char *)&space + offset, len);
}

static int vsock_activate(struct virtio_dev *vdev)
{
	struct vsock_dev *dev = container_of(vdev, struct vsock_dev, vdev);

	/* The event queue is the guest's to fill and rest. */
	if (!vdev->queues[VSOCK_QUEUE_RX].vq.started ||
	    !vdev->queues[VSOCK_QUEUE_TX].vq.started)
		return 0;
	return vsock_loop_start(dev);
}

static void vsock_deactivate(struct virtio_dev *vdev)
{
	vsock_loop_stop(container_of(vdev, struct vsock_dev, vdev));
}

struct vsock_saved {
	uint64_t guest_cid;
};

static const struct state_field state_fields[] = {
	STATE_FIELD_UINT(struct vsock_saved, guest_cid, 1),
};

static const struct state_table state_table = {
	.section = "virtio-vsock",
	.version = 1,
	.object_bytes = sizeof(struct vsock_saved),
	.fields = state_fields,
	.num_fields = ARRAY_SIZE(state_fields),
};

/*
 * Connections are not saved: their other ends are programs of this host. The
 * guest is told by the next activate().
 */
static int vsock_save(struct virtio_dev *vdev, struct state_writer *w,
		      struct err *err)
{
	const struct vsock_dev *dev = container_of(vdev, struct vsock_dev,
						   vdev);
	const struct vsock_saved s = { .guest_cid = dev->guest_cid };

	state_save(w, &state_table, vdev->config_id, &s);
	return 0;
}

/* Another CID is fine: the driver asks for it after the reset. */
static int vsock_load(struct virtio_dev *vdev, struct state_reader *r,
		      struct err *err)
{
	struct vsock_saved s = { .guest_cid = 0 };

	return state_load(r, &state_table, vdev->config_id, &s, err);
}

const struct virtio_class virtio_vsock_class = {
	.name = "vsock",
	.device_id = VSOCK_DEVICE_ID,
	.pci_class = PCI_CLASS,
	.option = "--vsock",
	.option_args = "cid=N,socket=PATH",
	.option_help = "sockets between guest and host: Unix sockets at PATH "
		       "and PATH_PORT",
	.keys = keys,
	.num_keys = ARRAY_SIZE(keys),
	.single = true,
	.api_field = "vsock",
	.api_verb = "add-vsock",
	.config_bytes = sizeof(struct vsock_config),
	.config_check = config_check,
	.config_fini = config_fini,
	.create = vsock_create,
	.destroy = vsock_destroy,
	.config_space_bytes = sizeof(struct vsock_config_space),
	.config_read = vsock_config_read,
	.activate = vsock_activate,
	.deactivate = vsock_deactivate,
	.thread_classes = vsock_thread_classes,
	.vcpu_calls = &vsock_vcpu_calls,
	.config_paths = config_paths,
	.save = vsock_save,
	.load = vsock_load,
};
