/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. While all is well virtiofsd serves the rings and this
 * file has nothing to do but to watch the connection.
 *
 * When virtiofsd dies, its successor knows nothing of the session: the numbers
 * by which the guest calls files and handles mean nothing to it, or worse, some
 * other file. So requests are never handed on. Instead quire takes over the
 * rings and answers every request, those left unanswered first, with ENOTCONN:
 * processes in the guest get an error at once, none hangs.
 *
 * A virtiofsd that comes back (socket=) is connected to, with a growing pause
 * between attempts, and idles. It gets the rings with the first request of a
 * new session, FUSE_INIT, which the guest sends when the directory is mounted
 * anew, or when the driver resets the device (a reboot). That moment is exact:
 * the request is put back and virtiofsd finds it first.
 *
 * What was left unanswered is all behind the used index, because virtiofsd
 * serves each queue in order. One that was started with a thread pool does not;
 * its guest may be left with a request that is never answered.
 *
 * A virtiofsd that quire started is not started again before the guest reboots:
 * the device asks for a reset instead. Starting programs while a guest runs is
 * nothing the sandbox should have to allow.
 */
#include "virtio/fs/fs_priv.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "base/thread.h"
#include "virtio/fs/fs_req.h"

#define START_MS       10000
#define STOP_MS	       10000
#define BACKOFF_MIN_MS 100u
#define BACKOFF_MAX_MS 5000u
#define FIXED_FDS      4

/* ---- the rings ---- */

static void wake(struct fs_dev *dev)
{
	io_eventfd_signal(dev->wake_fd);
}

static bool connected(const struct fs_dev *dev)
{
	return dev->backend->vu.fd >= 0;
}

static void schedule_retry_locked(struct fs_dev *dev)
{
	dev->retry_ns = clock_now_ns() + dev->backoff_ms * NSEC_PER_MSEC;
	dev->backoff_ms = MIN(dev->backoff_ms * 2, BACKOFF_MAX_MS);
}

/*
 * The rings are ours now; the driver may have started them just now, too. What
 * is in them is looked at also without this kick: a back end that is going may
 * take it along.
 */
static void take_rings_locked(struct fs_dev *dev)
{
	for (unsigned int i = 0; i < dev->vdev.num_queues; i++) {
		struct virtio_queue *queue = &dev->vdev.queues[i];

		vq_adopt(&queue->vq);
		queue->vq.heads_only = true;
		io_eventfd_signal(queue->kick_fd);
	}
	dev->unseen = true;
	dev->server = FS_QUIRE;
	wake(dev);
}

/* The back end is of no use any more: say so once, and serve without it. */
static void lose_backend_locked(struct fs_dev *dev, const char *what)
{
	const char *how = "";
	bool ours = fs_backend_is_ours(dev->backend);

	while (dev->backend->log_fd >= 0) {
		struct pollfd pfd = { dev->backend->log_fd, POLLIN, 0 };

		if (poll(&pfd, 1, 0) <= 0)
			break;
		fs_backend_log(dev->backend, dev->vdev.id);
	}
	fs_backend_close(dev->backend, &how);
	log_error("%s: %s%s%s; the guest's requests fail until %s",
		  dev->vdev.id, what, *how ? ": " : "", how,
		  ours ? "it is reset"
		       : "virtiofsd is back and the guest mounts anew");
	dev->lost = true;
	dev->backoff_ms = BACKOFF_MIN_MS;
	schedule_retry_locked(dev);
	/* Held, too: who comes meanwhile knows nothing of the session. */
	if (dev->server == FS_BACKEND || dev->server == FS_HELD) {
		take_rings_locked(dev);
		if (ours)
			virtio_dev_needs_reset(&dev->vdev);
	}
	wake(dev);
}

static void give_rings_locked(struct fs_dev *dev)
{
	struct err err = ERR_INIT;
	char what[560];

	/* What was reported before is of the past. */
	io_eventfd_drain(dev->err_fd);
	if (vhost_user_start(&dev->backend->vu, &dev->vdev, dev->err_fd,
			     START_MS, &err)) {
		snprintf(what, sizeof(what), "virtiofsd failed (%s)", err.text);
		lose_backend_locked(dev, what);
		return;
	}
	dev->server = FS_BACKEND;
}

void fs_watch_activate(struct fs_dev *dev)
{
	pthread_mutex_lock(&dev->lock);
	if (connected(dev))
		give_rings_locked(dev);
	if (dev->server != FS_BACKEND)
		take_rings_locked(dev);
	wake(dev);
	pthread_mutex_unlock(&dev->lock);
}

void fs_watch_deactivate(struct fs_dev *dev)
{
	struct err err = ERR_INIT;
	char what[560];

	pthread_mutex_lock(&dev->lock);
	if (dev->server == FS_BACKEND &&
	    vhost_user_stop(&dev->backend->vu, &dev->vdev, STOP_MS, &err)) {
		/* Nobody is to serve them any more, ourselves included. */
		dev->server = FS_NOBODY;
		snprintf(what, sizeof(what), "virtiofsd does not stop (%s)",
			 err.text);
		lose_backend_locked(dev, what);
	}
	dev->server = FS_NOBODY;
	wake(dev);
	pthread_mutex_unlock(&dev->lock);
}

static void hold_locked(struct fs_dev *dev)
{
	struct err err = ERR_INIT;
	char what[560];

	if (vhost_user_stop(&dev->backend->vu, &dev->vdev, STOP_MS, &err)) {
		snprintf(what, sizeof(what), "virtiofsd does not stop (%s)",
			 err.text);
		lose_backend_locked(dev, what);
		return;
	}
	/* It has completed what it took: that is where it will go on. */
	for (unsigned int i = 0; i < dev->vdev.num_queues; i++)
		vq_adopt(&dev->vdev.queues[i].vq);
	dev->server = FS_HELD;
}

void fs_watch_hold(struct fs_dev *dev, bool held)
{
	pthread_mutex_lock(&dev->lock);
	if (held && dev->server == FS_BACKEND)
		hold_locked(dev);
	if (!held && dev->server == FS_HELD && connected(dev))
		give_rings_locked(dev);
	/* It is gone, since, or could not take them. */
	if (!held && dev->server == FS_HELD)
		take_rings_locked(dev);
	wake(dev);
	pthread_mutex_unlock(&dev->lock);
}

/* ---- answering without a back end ---- */

/*
 * At most a ring full of requests at a time, for the guest may make more as
 * fast as they are answered. Returns true where a new session begins that a
 * back end is there for: its first request is left in the ring.
 */
static bool fail_some_locked(struct fs_dev *dev, unsigned int index)
{
	struct virtio_queue *queue = &dev->vdev.queues[index];
	struct virtqueue *vq = &queue->vq;
	bool begins = false;
	int r = 0;

	vq_disable_kick(vq);
	for (unsigned int i = 0; i < vq->size && !begins; i++) {
		r = vq_pop(vq, &dev->chain);
		if (r <= 0)
			break;
		begins = connected(dev) && fs_req_is_init(&dev->chain);
		if (begins)
			vq_unpop(vq, 1);
		else
			vq_push(vq, &dev->chain, fs_req_fail(&dev->chain));
	}
	if (r < 0)
		virtio_dev_broken(&dev->vdev, "bad descriptor chain");
	virtio_queue_interrupt(&dev->vdev, index);
	if (r >= 0 && !begins && vq_enable_kick(vq))
		io_eventfd_signal(queue->kick_fd);
	return begins;
}

static void serve_locked(struct fs_dev *dev)
{
	bool begins = false, unseen = dev->unseen;

	dev->unseen = false;
	for (unsigned int i = 0; i < dev->vdev.num_queues; i++) {
		struct virtio_queue *queue = &dev->vdev.queues[i];

		if (!queue->vq.started || queue->vq.broken ||
		    (!io_eventfd_drain(queue->kick_fd) && !unseen))
			continue;
		begins |= fail_some_locked(dev, i);
	}
	if (!begins)
		return;
	log_warn("%s: a new session begins, with the new virtiofsd",
		 dev->vdev.id);
	give_rings_locked(dev);
}

/* ---- the connection ---- */

static void try_again_locked(struct fs_dev *dev)
{
	struct err err = ERR_INIT;
	int r;

	if (fs_backend_is_ours(dev->backend) || connected(dev) ||
	    clock_now_ns() < dev->retry_ns)
		return;
	r = fs_backend_reopen(dev->backend, dev->vdev.offered,
			      dev->vdev.num_queues, &err);
	if (r) {
		log_debug("%s: %s", dev->vdev.id, err.text);
		schedule_retry_locked(dev);
		return;
	}
	dev->lost = false;
	dev->backoff_ms = BACKOFF_MIN_MS;
	log_warn("%s: virtiofsd is back; the guest has to unmount and mount "
		 "to use it",
		 dev->vdev.id);
}

/*
 * An error counts while the back end has the rings. Otherwise it is late, from
 * one that gave them back or is gone; and the transport may be setting them up.
 */
static void look_locked(struct fs_dev *dev)
{
	struct err err = ERR_INIT;
	bool failed = io_eventfd_drain(dev->err_fd) &&
		      dev->server == FS_BACKEND;

	if (!connected(dev)) {
		try_again_locked(dev);
		return;
	}
	if (failed) {
		/* Orderly if it can, for its threads must not go on. */
		(void)!vhost_user_stop(&dev->backend->vu, &dev->vdev, STOP_MS,
				       &err);
		lose_backend_locked(dev, "virtiofsd reports an error");
	} else if (vhost_user_hung_up(&dev->backend->vu)) {
		lose_backend_locked(dev, "virtiofsd has gone");
	}
}

/* ---- the thread ---- */

/* What to wait for; returns how many. */
static unsigned int collect_locked(struct fs_dev *dev, struct pollfd *pfds)
{
	unsigned int num = FIXED_FDS;

	pfds[0] = (struct pollfd){ dev->wake_fd, POLLIN, 0 };
	pfds[1] = (struct pollfd){ dev->err_fd, POLLIN, 0 };
	/* Negative ones are ignored by poll(2). */
	pfds[2] = (struct pollfd){ dev->backend->vu.fd, POLLRDHUP, 0 };
	pfds[3] = (struct pollfd){ dev->backend->log_fd, POLLIN, 0 };
	for (unsigned int i = 0;
	     dev->server == FS_QUIRE && i < dev->vdev.num_queues; i++) {
		const struct virtio_queue *queue = &dev->vdev.queues[i];

		if (queue->vq.started && !queue->vq.broken)
			pfds[num++] = (struct pollfd){ queue->kick_fd, POLLIN,
						       0 };
	}
	return num;
}

static int timeout_locked(const struct fs_dev *dev)
{
	uint64_t now = clock_now_ns();

	if (connected(dev) || fs_backend_is_ours(dev->backend))
		return -1;
	return now >= dev->retry_ns
		       ? 0
		       : (int)((dev->retry_ns - now) / NSEC_PER_MSEC + 1);
}

static const struct thread_call watch_calls[] = {
	CALL(poll),
	RARE("virtiofsd comes back, or goes", close),
	RARE("virtiofsd comes back, or goes", sendmsg),
	RARE("virtiofsd comes back, or goes", recvmsg),
	RARE("socket=, and virtiofsd comes back", connect),
	RARE_ARG("socket=, and virtiofsd comes back", socket, 0, AF_UNIX),
	RARE("a virtiofsd of ours goes", waitid),
	RARE("a virtiofsd of ours hangs", pidfd_send_signal),
};

static const struct thread_class watch_class = {
	.name = "fs-watch",
	.what = "watches the connection to virtiofsd",
	THREAD_CALLS(watch_calls),
};

const struct thread_class *const fs_thread_classes[] = {
	&watch_class,
	NULL,
};

/* Rings are given to virtiofsd, and taken back, on a vCPU. */
static const struct thread_call vcpu_calls[] = {
	RARE("--fs", sendmsg),
	RARE("--fs", recvmsg),
	RARE("--fs", poll),
	RARE("--fs, and virtiofsd goes", waitid),
	RARE("--fs, and virtiofsd hangs", pidfd_send_signal),
};

const struct thread_class fs_vcpu_calls = {
	.name = "vcpu+fs",
	.what = "when a driver enables a file system",
	THREAD_CALLS(vcpu_calls),
};

static const struct thread_call fs_control_calls_list[] = {
	RARE("--fs", sendmsg),
	RARE("--fs", recvmsg),
	RARE("the end of a virtiofsd of ours", waitid),
	RARE("a virtiofsd of ours that hangs", pidfd_send_signal),
};

const struct thread_class fs_control_calls = {
	.name = "control+fs",
	.what = "when a file system is set up, or goes",
	THREAD_CALLS(fs_control_calls_list),
};

static void *watch_main(void *arg)
{
	struct fs_dev *dev = arg;
	struct pollfd pfds[FIXED_FDS + VIRTIO_MAX_QUEUES];

	/* Pairs with the store in fs_watch_stop(), before its wake-up. */
	while (!atomic_load_explicit(&dev->stop, memory_order_acquire)) {
		unsigned int num;
		int timeout;

		pthread_mutex_lock(&dev->lock);
		num = collect_locked(dev, pfds);
		timeout = timeout_locked(dev);
		pthread_mutex_unlock(&dev->lock);
		if (poll(pfds, num, timeout) < 0)
			continue;
		if (pfds[0].revents)
			io_eventfd_drain(dev->wake_fd);
		pthread_mutex_lock(&dev->lock);
		if (pfds[3].revents && pfds[3].fd == dev->backend->log_fd)
			fs_backend_log(dev->backend, dev->vdev.id);
		look_locked(dev);
		if (dev->server == FS_QUIRE)
			serve_locked(dev);
		pthread_mutex_unlock(&dev->lock);
	}
	return NULL;
}

int fs_watch_start(struct fs_dev *dev)
{
	int r = thread_start(&dev->thread, &watch_class, "fs-watch", watch_main,
			     dev);

	dev->running = !r;
	return r;
}

void fs_watch_stop(struct fs_dev *dev)
{
	if (!dev->running)
		return;
	atomic_store_explicit(&dev->stop, true, memory_order_release);
	wake(dev);
	pthread_join(dev->thread, NULL);
	dev->running = false;
}
