/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-fs (virtio 1.2 section 5.11): a directory of the host as a file system
 * of the guest. The requests are FUSE and go straight from the guest's rings to
 * virtiofsd, through the vhost-user protocol; this file is the device as the
 * command line and the driver's probe see it. fs_watch.c tells who serves the
 * rings when virtiofsd does not.
 *
 * Not offered: notifications (no driver has them) and the DAX window.
 */
#include "virtio/fs/fs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/unix_socket.h"
#include "virtio/fs/fs_priv.h"

#define DEVICE_ID	   26
#define PCI_CLASS	   0x018000 /* mass storage, other */
#define MIN_QUEUE_SIZE	   16u
#define DEFAULT_QUEUE_SIZE 1024u /* requests of 1 MiB need 260 entries */
#define HIPRIO_QUEUES	   1u

struct fs_config {
	char tag[FS_TAG_BYTES + 1];
	uint32_t num_queues;
	uint32_t queue_size;
	struct fs_backend *backend; /* one reference; NULL: out of memory */
};

static int out_of_memory(struct err *err)
{
	return err_set(err, ENOMEM, "out of memory");
}

static int set_tag(void *obj, const char *value, struct err *err)
{
	struct fs_config *cfg = obj;

	if (!*value || strlen(value) > FS_TAG_BYTES)
		return err_set(err, EINVAL, "not 1 to %d bytes", FS_TAG_BYTES);
	memcpy(cfg->tag, value, strlen(value) + 1);
	return 0;
}

static int set_path(void *obj, const char *value, struct err *err)
{
	struct fs_config *cfg = obj;

	if (!cfg->backend)
		return out_of_memory(err);
	/* They separate and quote options of virtiofsd. */
	if (strpbrk(value, ",\\"))
		return err_set(err, EINVAL,
			       "virtiofsd takes no comma or backslash");
	return kvlist_string(value, &cfg->backend->path, err);
}

static int set_socket(void *obj, const char *value, struct err *err)
{
	struct fs_config *cfg = obj;

	if (!cfg->backend)
		return out_of_memory(err);
	if (!*value || strlen(value) > UNIX_SOCKET_PATH_MAX)
		return err_set(err, EINVAL, "not 1 to %zu bytes",
			       UNIX_SOCKET_PATH_MAX);
	return kvlist_string(value, &cfg->backend->socket, err);
}

static int set_daemon(void *obj, const char *value, struct err *err)
{
	struct fs_config *cfg = obj;

	return cfg->backend ? kvlist_string(value, &cfg->backend->daemon, err)
			    : out_of_memory(err);
}

static int set_cache(void *obj, const char *value, struct err *err)
{
	struct fs_config *cfg = obj;
	int v, r = kvlist_enum(value, fs_cache_names,
			       ARRAY_SIZE(fs_cache_names), &v, err);

	if (!r && cfg->backend)
		cfg->backend->cache = (enum fs_cache)v;
	return r;
}

static int set_sandbox(void *obj, const char *value, struct err *err)
{
	struct fs_config *cfg = obj;
	int v, r = kvlist_enum(value, fs_sandbox_names,
			       ARRAY_SIZE(fs_sandbox_names), &v, err);

	if (!r && cfg->backend)
		cfg->backend->sandbox = (enum fs_sandbox)v;
	return r;
}

static int set_readonly(void *obj, const char *value, struct err *err)
{
	struct fs_config *cfg = obj;

	return cfg->backend ? kvlist_bool(value, &cfg->backend->readonly, err)
			    : out_of_memory(err);
}

static int set_xattr(void *obj, const char *value, struct err *err)
{
	struct fs_config *cfg = obj;

	return cfg->backend ? kvlist_bool(value, &cfg->backend->xattr, err)
			    : out_of_memory(err);
}

static int set_num_queues(void *obj, const char *value, struct err *err)
{
	return kvlist_u32(value, 1, VIRTIO_MAX_QUEUES - HIPRIO_QUEUES,
			  &((struct fs_config *)obj)->num_queues, err);
}

static int set_queue_size(void *obj, const char *value, struct err *err)
{
	return kvlist_pow2(value, MIN_QUEUE_SIZE, VQ_MAX_SIZE,
			   &((struct fs_config *)obj)->queue_size, err);
}

static const struct kvlist_key keys[] = {
	{ "tag", set_tag },
	{ "path", set_path },
	{ "socket", set_socket },
	{ "readonly", set_readonly },
	{ "cache", set_cache },
	{ "xattr", set_xattr },
	{ "sandbox", set_sandbox },
	{ "daemon", set_daemon },
	{ "num_queues", set_num_queues },
	{ "queue_size", set_queue_size },
};

static void config_defaults(void *config)
{
	struct fs_config *cfg = config;

	cfg->num_queues = 1;
	cfg->queue_size = DEFAULT_QUEUE_SIZE;
	cfg->backend = fs_backend_new();
}

static int config_check(const void *config, struct err *err)
{
	const struct fs_config *cfg = config;
	const struct fs_backend *b = cfg->backend;

	if (!b)
		return out_of_memory(err);
	if (!*cfg->tag)
		return err_set(err, EINVAL,
			       "tag=NAME is missing, by which the guest mounts "
			       "it");
	if (!b->path == !b->socket)
		return err_set(err, EINVAL,
			       "one of path=DIR (quire starts virtiofsd) and "
			       "socket=PATH (of a virtiofsd that runs) is "
			       "wanted");
	if (b->socket &&
	    (b->readonly || b->xattr || b->daemon || b->cache || b->sandbox))
		return err_set(err, EINVAL,
			       "with socket= these are options of virtiofsd: "
			       "readonly, cache, xattr, sandbox, daemon");
	return 0;
}

static void config_fini(void *config)
{
	struct fs_config *cfg = config;

	fs_backend_unref(take_ptr(cfg->backend));
}

/* virtiofsd starts before quire confines itself; no other can afterwards. */
static int config_open(void *config, struct err *err)
{
	struct fs_config *cfg = config;
	int r = fs_backend_open(cfg->backend, VIRTIO_F_VERSION_1,
				HIPRIO_QUEUES + cfg->num_queues, err);

	if (r)
		err_prefix(err, "--fs tag=%s", cfg->tag);
	return r;
}

static int config_paths(const void *config, struct sandbox_paths *paths,
			struct err *err)
{
	const struct fs_config *cfg = config;

	if (!cfg->backend->socket)
		return 0;
	return sandbox_paths_add_parent(paths, cfg->backend->socket,
					SANDBOX_READ, true, err);
}

static void fs_destroy(struct virtio_dev *vdev)
{
	struct fs_dev *dev = container_of(vdev, struct fs_dev, vdev);

	fs_watch_stop(dev);
	virtio_dev_fini(vdev);
	close_fd(&dev->wake_fd);
	close_fd(&dev->err_fd);
	fs_backend_unref(dev->backend);
	pthread_mutex_destroy(&dev->lock);
	free(dev);
}

static int make_queues(struct fs_dev *dev, const struct fs_config *cfg,
		       const struct ram *ram)
{
	unsigned int num = HIPRIO_QUEUES + cfg->num_queues;
	int r = virtio_dev_init(&dev->vdev, &virtio_fs_class, ram, num,
				(uint16_t)cfg->queue_size);

	dev->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	dev->err_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!r && (dev->wake_fd < 0 || dev->err_fd < 0))
		r = -errno;
	for (unsigned int i = 0; i < num && !r; i++) {
		struct virtio_queue *queue = &dev->vdev.queues[i];

		queue->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (queue->call_fd < 0)
			r = -errno;
	}
	return r;
}

static int build(struct fs_dev *dev, const struct fs_config *cfg,
		 const struct ram *ram, struct err *err)
{
	int r;

	if (ram->fd < 0)
		return err_set(err, EINVAL,
			       "guest memory is not shared; it has to be from "
			       "the start: --memory shared=on");
	r = make_queues(dev, cfg, ram);
	if (r)
		return err_errno(err, -r, "cannot set up its queues");
	r = fs_backend_open(dev->backend, VIRTIO_F_VERSION_1,
			    dev->vdev.num_queues, err);
	if (r)
		return r;
	/* Of the ring's features only what both sides know. */
	dev->vdev.offered &= dev->backend->vu.features;
	r = fs_watch_start(dev);
	return r ? err_errno(err, -r, "cannot start its thread") : 0;
}

static int fs_create(struct virtio_dev **ret, const void *config,
		     const struct ram *ram, unsigned int num_cpus,
		     unsigned int index, struct err *err)
{
	const struct fs_config *cfg = config;
	struct fs_dev *dev = calloc(1, sizeof(*dev));
	int r;

	if (!dev)
		return err_set(err, ENOMEM, "--fs tag=%s: out of memory",
			       cfg->tag);
	dev->wake_fd = dev->err_fd = -1;
	pthread_mutex_init(&dev->lock, NULL);
	dev->backend = fs_backend_ref(cfg->backend);
	memcpy(dev->config.tag, cfg->tag, sizeof(dev->config.tag));
	dev->config.num_request_queues = htole32(cfg->num_queues);
	snprintf(dev->vdev.id, sizeof(dev->vdev.id), "fs%u (%s)", index,
		 cfg->tag);
	r = build(dev, cfg, ram, err);
	if (r) {
		err_prefix(err, "--fs tag=%s", cfg->tag);
		fs_destroy(&dev->vdev);
		return r;
	}
	*ret = &dev->vdev;
	return 0;
}

static void fs_config_read(struct virtio_dev *vdev, uint32_t offset, void *data,
			   uint32_t len)
{
	struct fs_dev *dev = container_of(vdev, struct fs_dev, vdev);

	memcpy(data, (char *)&dev->config + offset, len);
}

static int fs_activate(struct virtio_dev *vdev)
{
	fs_watch_activate(container_of(vdev, struct fs_dev, vdev));
	return 0;
}

static void fs_deactivate(struct virtio_dev *vdev)
{
	fs_watch_deactivate(container_of(vdev, struct fs_dev, vdev));
}

static void fs_hold(struct virtio_dev *vdev, bool held)
{
	fs_watch_hold(container_of(vdev, struct fs_dev, vdev), held);
}

const struct virtio_class virtio_fs_class = {
	.name = "fs",
	.device_id = DEVICE_ID,
	.pci_class = PCI_CLASS,
	.option = "--fs",
	.option_args = "tag=NAME,path=DIR|socket=PATH[,readonly=on]"
		       "[,cache=auto|none|always][,xattr=on]"
		       "[,sandbox=namespace|chroot][,daemon=PROGRAM]"
		       "[,num_queues=N][,queue_size=N]",
	.option_help = "a directory of the host in the guest, through "
		       "virtiofsd",
	.keys = keys,
	.num_keys = ARRAY_SIZE(keys),
	.api_field = "fs",
	.api_verb = "add-fs",
	.needs_shared_memory = true,
	.config_bytes = sizeof(struct fs_config),
	.config_defaults = config_defaults,
	.config_check = config_check,
	.config_fini = config_fini,
	.config_open = config_open,
	.config_paths = config_paths,
	.create = fs_create,
	.destroy = fs_destroy,
	.config_space_bytes = sizeof(struct fs_config_space),
	.config_read = fs_config_read,
	.activate = fs_activate,
	.deactivate = fs_deactivate,
	.hold = fs_hold,
	.thread_classes = fs_thread_classes,
	.vcpu_calls = &fs_vcpu_calls,
	.control_calls = &fs_control_calls,
	.not_saved = " while the guest may have it mounted, for what is open "
		     "is known to virtiofsd alone; remove it first",
};
