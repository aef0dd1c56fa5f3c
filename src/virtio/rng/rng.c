/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-rng (virtio 1.2 section 5.4): entropy for the guest, from the kernel's
 * generator (getrandom) or from a character device such as /dev/hwrng.
 *
 * One queue, one thread. A buffer is filled up to MAX_FILL bytes only, which
 * the specification allows, so that one request stays short. A source that has
 * nothing to give yet is waited for with the kick eventfd in the same poll(2),
 * so that deactivate() is never held up by it; a source that fails is replaced
 * by getrandom(), once and with a warning, for a driver cannot be told "none".
 */
#include "virtio/rng/rng.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/log.h"
#include "base/thread.h"

#define DEVICE_ID  4
#define PCI_CLASS  0xff0000 /* unassigned class */
#define QUEUE_SIZE 64
#define MAX_FILL   (64 * KIB)

/* The value of src= that names no file. */
#define KERNEL_SOURCE "kernel"

struct rng_config {
	char *src;
	int opened_fd; /* by config_open(); else -1 */
};

struct rng_dev {
	struct virtio_dev vdev;
	int src_fd; /* -1: getrandom() */
	pthread_t thread;
	bool running;
	_Atomic bool stop;
	struct vq_chain chain; /* the thread's */
};

static int set_src(void *obj, const char *value, struct err *err)
{
	return kvlist_string(value, &((struct rng_config *)obj)->src, err);
}

static const struct kvlist_key keys[] = {
	{ "src", set_src },
};

static void config_defaults(void *config)
{
	struct rng_config *cfg = config;

	cfg->opened_fd = -1;
}

static void config_fini(void *config)
{
	struct rng_config *cfg = config;

	free(take_ptr(cfg->src));
	close_fd(&cfg->opened_fd);
}

static int check_source(const char *path, const struct stat *st,
			struct err *err)
{
	if (S_ISCHR(st->st_mode))
		return 0;
	return err_set(err, EINVAL,
		       "--rng src=%s: not a character device; use "
		       "src=" KERNEL_SOURCE " or a device such as /dev/hwrng",
		       path);
}

/* As with disks: look first, opening alone may have effects; then again. */
static int open_source(const char *path, int *ret_fd, struct err *err)
{
	_cleanup_close_ int fd = -1;
	struct stat st;
	int r;

	if (stat(path, &st))
		return err_errno(err, errno,
				 "--rng src=%s (src=" KERNEL_SOURCE
				 " needs no file)",
				 path);
	r = check_source(path, &st, err);
	if (r)
		return r;
	fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0)
		return err_errno(err, errno, "--rng src=%s: cannot open", path);
	if (fstat(fd, &st))
		return err_errno(err, errno, "--rng src=%s", path);
	r = check_source(path, &st, err);
	if (r)
		return r;
	*ret_fd = take_fd(&fd);
	return 0;
}

static bool is_kernel_source(const struct rng_config *cfg)
{
	return !cfg->src || strcmp(cfg->src, KERNEL_SOURCE) == 0;
}

static int config_open(void *config, struct err *err)
{
	struct rng_config *cfg = config;

	if (is_kernel_source(cfg) || cfg->opened_fd >= 0)
		return 0;
	return open_source(cfg->src, &cfg->opened_fd, err);
}

static int take_source(const struct rng_config *cfg, int *ret_fd,
		       struct err *err)
{
	*ret_fd = -1;
	if (is_kernel_source(cfg))
		return 0;
	if (cfg->opened_fd < 0)
		return open_source(cfg->src, ret_fd, err);
	*ret_fd = fcntl(cfg->opened_fd, F_DUPFD_CLOEXEC, 0);
	return *ret_fd < 0 ? err_errno(err, errno, "--rng src=%s", cfg->src)
			   : 0;
}

static void rng_destroy(struct virtio_dev *vdev)
{
	struct rng_dev *dev = container_of(vdev, struct rng_dev, vdev);

	virtio_dev_fini(vdev);
	close_fd(&dev->src_fd);
	free(dev);
}

static int rng_create(struct virtio_dev **ret, const void *config,
		      const struct ram *ram, unsigned int num_cpus,
		      unsigned int index, struct err *err)
{
	const struct rng_config *cfg = config;
	struct rng_dev *dev = calloc(1, sizeof(*dev));
	int r;

	if (!dev)
		return err_set(err, ENOMEM, "--rng: out of memory");
	r = take_source(cfg, &dev->src_fd, err);
	if (!r) {
		r = virtio_dev_init(&dev->vdev, &virtio_rng_class, ram, 1,
				    QUEUE_SIZE);
		if (r)
			err_errno(err, -r, "--rng: cannot set up its queue");
	}
	if (r) {
		rng_destroy(&dev->vdev);
		return r;
	}
	snprintf(dev->vdev.id, sizeof(dev->vdev.id), "rng");
	*ret = &dev->vdev;
	return 0;
}

static bool stopping(struct rng_dev *dev)
{
	/* Pairs with the store in rng_deactivate(), before its wake-up. */
	return atomic_load_explicit(&dev->stop, memory_order_acquire);
}

/* Sleep until there is a kick, or until the source (unless -1) is readable. */
static void wait_for(struct rng_dev *dev, int src_fd)
{
	struct virtio_queue *queue = &dev->vdev.queues[0];
	struct pollfd pfds[] = {
		{ .fd = queue->kick_fd, .events = POLLIN },
		{ .fd = src_fd, .events = POLLIN },
	};

	if (poll(pfds, ARRAY_SIZE(pfds), -1) > 0 && pfds[0].revents) {
		io_eventfd_drain(queue->kick_fd);
		atomic_fetch_add_explicit(&queue->kicks, 1,
					  memory_order_relaxed);
	}
}

static void drop_source(struct rng_dev *dev, const char *why)
{
	log_warn("%s: its source failed (%s); the kernel's generator takes "
		 "over",
		 dev->vdev.id, why);
	close_fd(&dev->src_fd);
}

/*
 * Some bytes, at least one; 0 only when the device is being stopped, or has to
 * be quiet while a slow source keeps it waiting.
 */
static size_t get_entropy(struct rng_dev *dev, void *buf, size_t len)
{
	ssize_t n;

	while (dev->src_fd >= 0 && !stopping(dev)) {
		n = read(dev->src_fd, buf, len);
		if (n > 0)
			return (size_t)n;
		if (n == 0)
			drop_source(dev, "end of file");
		else if (errno == EAGAIN && vq_is_held(&dev->vdev.queues[0].vq))
			return 0;
		else if (errno == EAGAIN)
			wait_for(dev, dev->src_fd);
		else if (errno != EINTR)
			drop_source(dev, strerror(errno));
	}
	while (!stopping(dev)) {
		n = getrandom(buf, len, 0);
		if (n > 0)
			return (size_t)n;
	}
	return 0;
}

/*
 * Fill the chain. A source that gives little at a time ends the request early:
 * the driver asks again.
 */
static void serve_chain(struct rng_dev *dev)
{
	struct vq_chain *chain = &dev->chain;
	uint64_t written = 0;

	for (unsigned int i = 0; i < chain->num_in && written < MAX_FILL; i++) {
		const struct iovec *iov = &chain->iov[chain->num_out + i];
		size_t want = MIN(iov->iov_len, MAX_FILL - written);
		size_t n = get_entropy(dev, iov->iov_base, want);

		written += n;
		if (n < iov->iov_len)
			break;
	}
	/* Held before there was anything: it is asked for again then. */
	if (!written && chain->num_in && !stopping(dev))
		vq_unpop(&dev->vdev.queues[0].vq, 1);
	else
		vq_push(&dev->vdev.queues[0].vq, chain, (uint32_t)written);
}

/* Serve all there is; false when the ring is broken. */
static bool serve(struct rng_dev *dev)
{
	struct virtio_queue *queue = &dev->vdev.queues[0];
	int r = 0;

	do {
		vq_disable_kick(&queue->vq);
		while (!stopping(dev) &&
		       (r = vq_pop(&queue->vq, &dev->chain)) > 0) {
			serve_chain(dev);
			atomic_fetch_add_explicit(&queue->requests, 1,
						  memory_order_relaxed);
		}
		if (r < 0)
			virtio_dev_broken(&dev->vdev, "bad descriptor chain");
		/* For what was completed before a bad chain, too. */
		virtio_queue_interrupt(&dev->vdev, 0);
	} while (r >= 0 && !stopping(dev) && vq_enable_kick(&queue->vq));
	return r >= 0;
}

static const struct thread_call rng_calls[] = {
	CALL(poll), /* kicks, and a source that has nothing yet */
	CALL(getrandom),
	RARE("--rng src=PATH fails", close),
};

static const struct thread_class rng_thread_class = {
	.name = "rng",
	.what = "fills the guest's requests for entropy",
	THREAD_CALLS(rng_calls),
};

static const struct thread_class *const rng_thread_classes[] = {
	&rng_thread_class,
	NULL,
};

static void *rng_main(void *arg)
{
	struct rng_dev *dev = arg;
	bool working = true;

	while (!stopping(dev)) {
		if (working)
			working = serve(dev);
		else
			(void)vq_take_hold(&dev->vdev.queues[0].vq);
		if (!stopping(dev))
			wait_for(dev, -1);
	}
	return NULL;
}

static int rng_activate(struct virtio_dev *vdev)
{
	struct rng_dev *dev = container_of(vdev, struct rng_dev, vdev);
	int r;

	if (!vdev->queues[0].vq.started)
		return 0;
	atomic_store(&dev->stop, false);
	r = thread_start(&dev->thread, &rng_thread_class, "rng-q0", rng_main,
			 dev);
	if (!r)
		dev->running = true;
	return r;
}

static void rng_deactivate(struct virtio_dev *vdev)
{
	struct rng_dev *dev = container_of(vdev, struct rng_dev, vdev);

	if (!dev->running)
		return;
	atomic_store_explicit(&dev->stop, true, memory_order_release);
	io_eventfd_signal(vdev->queues[0].kick_fd);
	pthread_join(dev->thread, NULL);
	dev->running = false;
}

/* All there is to say is that there was such a device. */
static const struct state_table state_table = {
	.section = "virtio-rng",
	.version = 1,
};

static int rng_save(struct virtio_dev *vdev, struct state_writer *w,
		    struct err *err)
{
	state_save(w, &state_table, vdev->config_id, vdev);
	return 0;
}

static int rng_load(struct virtio_dev *vdev, struct state_reader *r,
		    struct err *err)
{
	return state_load(r, &state_table, vdev->config_id, vdev, err);
}

const struct virtio_class virtio_rng_class = {
	.name = "rng",
	.device_id = DEVICE_ID,
	.pci_class = PCI_CLASS,
	.option = "--rng",
	.option_args = "src=kernel|PATH",
	.option_help = "entropy for the guest from the kernel's generator "
		       "(src=kernel) or a file",
	.first_key = "src",
	.keys = keys,
	.num_keys = ARRAY_SIZE(keys),
	.single = true,
	.api_field = "rng",
	.config_bytes = sizeof(struct rng_config),
	.config_defaults = config_defaults,
	.config_fini = config_fini,
	.config_open = config_open,
	.create = rng_create,
	.destroy = rng_destroy,
	.activate = rng_activate,
	.deactivate = rng_deactivate,
	.thread_classes = rng_thread_classes,
	.save = rng_save,
	.load = rng_load,
};
