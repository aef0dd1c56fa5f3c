/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-console (virtio 1.2 section 5.3): one port, which Linux has as hvc0.
 * Its host side is any chardev, as the serial port's.
 *
 * Compared with that a line costs the guest one kick instead of an exit for
 * each byte, and a window's size gets through. It is there later, though: not
 * before the guest's driver is.
 *
 * Threads. "console" lives as long as the device and runs the chardev's event
 * loop: keys are heard (Ctrl-A x) whether the driver is there or not. It also
 * owns the receive queue. "console-tx" serves the transmit queue while the
 * device is active, apart, because it waits for slow readers. activate() and
 * deactivate() do their work on the first (call()), so that what the loop
 * watches changes on no other thread, and threads descend from it alone.
 *
 * The chardev is started with the first driver: until then a terminal stays as
 * it is, so that Ctrl-C ends a guest that gets nowhere.
 *
 * Not offered: several ports with names (F_MULTIPORT), emergency write.
 */
#include "virtio/console/console.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "base/thread.h"
#include "virtio/console/console_backend.h"

#define DEVICE_ID  3
#define PCI_CLASS  0x078000 /* communication controller, other */
#define QUEUE_SIZE 64

/* 5.3.2, 5.3.3, 5.3.4 */
enum { QUEUE_RX = 0, QUEUE_TX = 1, NUM_QUEUES = 2 };
#define F_SIZE (1ull << 0)

/*
 * Linux reads the window's size only when it is told of a change, and drops
 * what it is told before its port is in place, which nothing shows. So it is
 * told when it starts, and with output that follows, at growing intervals:
 * 8 times, over 12 s.
 */
#define SIZE_NOTICES  8u
#define SIZE_FIRST_NS (NSEC_PER_SEC / 10)

struct config_space {
	uint16_t cols, rows;
	uint32_t max_nr_ports, emerg_wr;
};
_Static_assert(sizeof(struct config_space) == 12, "5.3.4");

struct console_dev {
	struct virtio_dev vdev;
	struct console_backend *backend;
	_Atomic uint32_t size; /* of the window: cols, rows in the upper half */

	pthread_t thread;
	bool running;
	/* A function for the thread; call_fd wakes it. */
	int call_fd;
	pthread_mutex_t call_lock; /* the next two */
	pthread_cond_t call_done;
	int (*call)(struct console_dev *dev); /* NULL: none, or done */
	int call_result;

	/* The thread's. */
	bool rx_active, rx_held;
	struct vq_chain rx_chain;

	pthread_t tx_thread;
	bool tx_running;
	_Atomic bool tx_stop;
	/* The transmit thread's. */
	struct vq_chain tx_chain;
	unsigned int size_notices;
	uint64_t size_next_ns; /* not before */
};

/* -- configuration -- */

struct console_config {
	bool has_mode;
	enum chardev_kind mode;
	char *file, *socket;
	/* On the heap: it goes from device to device. */
	struct console_backend *backend;
};

static int set_mode(void *obj, const char *value, struct err *err)
{
	static const struct {
		const char *name;
		enum chardev_kind kind;
	} modes[] = {
		{ "tty", CHARDEV_TTY },	  { "null", CHARDEV_NULL },
		{ "off", CHARDEV_NULL },  { "file", CHARDEV_FILE },
		{ "stdio", CHARDEV_TTY }, { "socket", CHARDEV_SOCKET },
	};
	struct console_config *cfg = obj;

	/* The API writes them as Cloud Hypervisor does: "Tty". */
	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		if (strcasecmp(modes[i].name, value) != 0)
			continue;
		cfg->has_mode = true;
		cfg->mode = modes[i].kind;
		return 0;
	}
	return err_set(err, EINVAL,
		       "'%s' is not one of tty, null, file=PATH, socket=PATH",
		       value);
}

static int set_path(char **dst, const char *value, struct err *err)
{
	if (!*value)
		return err_set(err, EINVAL, "the path is missing");
	return kvlist_string(value, dst, err);
}

static int set_file(void *obj, const char *value, struct err *err)
{
	return set_path(&((struct console_config *)obj)->file, value, err);
}

static int set_socket(void *obj, const char *value, struct err *err)
{
	return set_path(&((struct console_config *)obj)->socket, value, err);
}

static const struct kvlist_key keys[] = {
	{ "mode", set_mode },
	{ "file", set_file },
	{ "socket", set_socket },
};

static void config_defaults(void *config)
{
	struct console_config *cfg = config;

	cfg->backend = calloc(1, sizeof(*cfg->backend));
}

static enum chardev_kind kind_of(const struct console_config *cfg)
{
	if (cfg->has_mode)
		return cfg->mode;
	return cfg->file ? CHARDEV_FILE : CHARDEV_SOCKET;
}

static int config_check(const void *config, struct err *err)
{
	const struct console_config *cfg = config;
	enum chardev_kind kind = kind_of(cfg);

	if (!cfg->backend)
		return err_set(err, ENOMEM, "out of memory");
	if (!cfg->has_mode && !cfg->file && !cfg->socket)
		return err_set(err, EINVAL,
			       "one of tty, null, file=PATH, socket=PATH is "
			       "missing");
	if ((kind == CHARDEV_FILE) != (cfg->file != NULL) ||
	    (kind == CHARDEV_SOCKET) != (cfg->socket != NULL))
		return err_set(err, EINVAL,
			       "takes one of tty, null, file=PATH, "
			       "socket=PATH; mode= has to agree with it");
	return 0;
}

static void config_fini(void *config)
{
	struct console_config *cfg = config;

	if (cfg->backend)
		console_backend_close(cfg->backend);
	free(take_ptr(cfg->backend));
	free(take_ptr(cfg->file));
	free(take_ptr(cfg->socket));
}

static bool wants_terminal(const void *config)
{
	const struct console_config *cfg = config;

	return cfg->has_mode && cfg->mode == CHARDEV_TTY;
}

/* -- on the device's thread, from another -- */

static void on_call(void *ctx, uint32_t events)
{
	struct console_dev *dev = ctx;
	int (*fn)(struct console_dev * d);
	int r;

	io_eventfd_drain(dev->call_fd);
	pthread_mutex_lock(&dev->call_lock);
	fn = dev->call;
	pthread_mutex_unlock(&dev->call_lock);
	if (!fn)
		return;
	r = fn(dev);
	pthread_mutex_lock(&dev->call_lock);
	dev->call_result = r;
	dev->call = NULL;
	pthread_cond_signal(&dev->call_done);
	pthread_mutex_unlock(&dev->call_lock);
}

/* Run fn there and wait for it. One caller at a time (the transport's lock). */
static int call(struct console_dev *dev, int (*fn)(struct console_dev *dev))
{
	int r;

	pthread_mutex_lock(&dev->call_lock);
	dev->call = fn;
	io_eventfd_signal(dev->call_fd);
	while (dev->call)
		pthread_cond_wait(&dev->call_done, &dev->call_lock);
	r = dev->call_result;
	pthread_mutex_unlock(&dev->call_lock);
	return r;
}

/*
 * system calls of this thread: epoll_wait, epoll_ctl, read, write, accept4,
 * shutdown, close, eventfd2, timerfd_settime, fcntl, ftruncate, unlink, ioctl
 * (TCGETS, TCSETS, TIOCGWINSZ, TIOCGPGRP), getpgrp, rt_sigaction,
 * rt_sigprocmask; and clone and its kind for those it starts: the chardev's
 * writer (write, sendto, clock_nanosleep) and console-tx (poll, read, write).
 */
static void *console_main(void *arg)
{
	struct console_dev *dev = arg;
	int r = evloop_run(dev->backend->loop);

	if (r < 0)
		log_error("%s: event loop: %s", dev->vdev.id, strerror(-r));
	return NULL;
}

/* -- to the guest; all on the device's thread -- */

static struct virtio_queue *rx_queue(struct console_dev *dev)
{
	return &dev->vdev.queues[QUEUE_RX];
}

static void push_rx(struct console_dev *dev, uint32_t written)
{
	vq_push(&rx_queue(dev)->vq, &dev->rx_chain, written);
	dev->rx_held = false;
	virtio_queue_interrupt(&dev->vdev, QUEUE_RX);
}

static int pop_rx(struct console_dev *dev)
{
	struct virtqueue *vq = &rx_queue(dev)->vq;
	int r = vq_pop(vq, &dev->rx_chain);

	if (r == 0 && vq_enable_kick(vq))
		r = vq_pop(vq, &dev->rx_chain);
	return r;
}

/* Held: give the buffer back. It is asked for again when that ends. */
static void be_quiet(struct console_dev *dev)
{
	if (dev->rx_held)
		vq_unpop(&rx_queue(dev)->vq, 1);
	dev->rx_held = false;
	(void)vq_take_hold(&rx_queue(dev)->vq);
}

/* A buffer to fill, if the guest has given one. */
static bool hold_buffer(struct console_dev *dev)
{
	/* Not active: the queue is not this thread's to look at. */
	if (dev->rx_active && vq_is_held(&rx_queue(dev)->vq)) {
		be_quiet(dev);
		return false;
	}
	/* A driver may put in empty ones as fast as they are taken. */
	for (unsigned int i = 0; i < QUEUE_SIZE && dev->rx_active; i++) {
		int r;

		if (dev->rx_held && dev->rx_chain.in_bytes)
			return true;
		if (dev->rx_held)
			push_rx(dev, 0);
		r = pop_rx(dev);
		if (r == 0)
			return false;
		if (r > 0) {
			dev->rx_held = true;
			continue;
		}
		dev->rx_active = false;
		virtio_dev_broken(&dev->vdev, "bad descriptor chain");
	}
	return false;
}

static size_t console_room(void *ctx)
{
	struct console_dev *dev = ctx;

	return hold_buffer(dev) ? (size_t)dev->rx_chain.in_bytes : 0;
}

static void console_receive(void *ctx, const uint8_t *data, size_t len)
{
	struct console_dev *dev = ctx;
	size_t n;

	if (!dev->rx_held)
		return;
	n = vq_chain_write(&dev->rx_chain, 0, data, len);
	atomic_fetch_add_explicit(&rx_queue(dev)->requests, 1,
				  memory_order_relaxed);
	push_rx(dev, (uint32_t)n);
}

static void on_rx_kick(void *ctx, uint32_t events)
{
	struct console_dev *dev = ctx;
	struct virtio_queue *queue = rx_queue(dev);

	io_eventfd_drain(queue->kick_fd);
	atomic_fetch_add_explicit(&queue->kicks, 1, memory_order_relaxed);
	if (vq_is_held(&queue->vq))
		be_quiet(dev);
	else
		chardev_resume_input(dev->backend->chr);
}

/* -- the window -- */

static void note_size(struct console_dev *dev)
{
	uint16_t cols = 0, rows = 0;

	if (!chardev_size(dev->backend->chr, &cols, &rows))
		atomic_store(&dev->size, cols | (uint32_t)rows << 16);
}

static void console_resized(void *ctx)
{
	struct console_dev *dev = ctx;

	note_size(dev);
	if (dev->rx_active && dev->vdev.features & F_SIZE)
		virtio_config_changed(&dev->vdev);
}

static void console_config_read(struct virtio_dev *vdev, uint32_t offset,
				void *data, uint32_t len)
{
	struct console_dev *dev = container_of(vdev, struct console_dev, vdev);
	uint32_t size = atomic_load(&dev->size);
	const struct config_space space = {
		.cols = htole16((uint16_t)size),
		.rows = htole16((uint16_t)(size >> 16)),
	};

	memcpy(data, (const char *)&space + offset, len);
}

/* -- from the guest -- */

static bool tx_stopping(struct console_dev *dev)
{
	/* Pairs with the store in stop_serving(), before its wake-up. */
	return atomic_load_explicit(&dev->tx_stop, memory_order_acquire);
}

static void tell_size(struct console_dev *dev)
{
	uint64_t now;

	if (!(dev->vdev.features & F_SIZE) || dev->size_notices == SIZE_NOTICES)
		return;
	now = clock_now_ns();
	if (now < dev->size_next_ns)
		return;
	dev->size_next_ns = now + (SIZE_FIRST_NS << dev->size_notices++);
	virtio_config_changed(&dev->vdev);
}

static void write_chain(struct console_dev *dev)
{
	const struct vq_chain *chain = &dev->tx_chain;

	for (unsigned int i = 0; i < chain->num_out && !tx_stopping(dev); i++)
		chardev_write(dev->backend->chr, chain->iov[i].iov_base,
			      chain->iov[i].iov_len);
	vq_push(&dev->vdev.queues[QUEUE_TX].vq, chain, 0);
}

/* Serve all there is; false when the ring is broken. */
static bool serve_tx(struct console_dev *dev)
{
	struct virtio_queue *queue = &dev->vdev.queues[QUEUE_TX];
	int r = 0;

	do {
		vq_disable_kick(&queue->vq);
		while (!tx_stopping(dev) &&
		       (r = vq_pop(&queue->vq, &dev->tx_chain)) > 0) {
			write_chain(dev);
			atomic_fetch_add_explicit(&queue->requests, 1,
						  memory_order_relaxed);
			/* Its writer may wait for each: tell it at once. */
			virtio_queue_interrupt(&dev->vdev, QUEUE_TX);
			tell_size(dev);
		}
		if (r < 0)
			virtio_dev_broken(&dev->vdev, "bad descriptor chain");
		virtio_queue_interrupt(&dev->vdev, QUEUE_TX);
	} while (r >= 0 && !tx_stopping(dev) && vq_enable_kick(&queue->vq));
	return r >= 0;
}

static const struct thread_call tx_calls[] = {
	CALL(poll),
};

static const struct thread_class tx_class = {
	.name = "console-tx",
	.what = "takes the output of a virtio console from the guest",
	THREAD_CALLS(tx_calls),
};

/* Its event loop, and the chardev that lives on it. */
static const struct thread_call main_calls[] = {
	CALL(epoll_wait),
	CALL(epoll_ctl),
	RARE("a client of --console socket=", accept4),
	RARE("a client of --console socket=", shutdown),
	RARE("a client of --console socket=", close),
	RARE("a client of --console socket=", timerfd_settime),
	RARE("a client of --console socket=", timerfd_create),
	RARE("--console file=", ftruncate),
	RARE("input that epoll cannot watch, and resuming it", eventfd2),
	RARE_FCNTL("--console tty", F_GETFD),
	RARE_IOCTL("--console tty", TCGETS),
	RARE_IOCTL("--console tty", TIOCGWINSZ),
};

static const struct thread_class main_class = {
	.name = "console",
	.what = "the host's side of a virtio console",
	THREAD_CALLS(main_calls),
};

static const struct thread_class *const thread_classes[] = {
	&tx_class,
	&main_class,
	NULL,
};

static void *tx_main(void *arg)
{
	struct console_dev *dev = arg;
	struct virtio_queue *queue = &dev->vdev.queues[QUEUE_TX];
	struct pollfd pfd = { .fd = queue->kick_fd, .events = POLLIN };
	bool working = true;

	tell_size(dev);
	while (!tx_stopping(dev)) {
		if (working)
			working = serve_tx(dev);
		else
			(void)vq_take_hold(&queue->vq);
		if (!tx_stopping(dev) && poll(&pfd, 1, -1) > 0) {
			io_eventfd_drain(queue->kick_fd);
			atomic_fetch_add_explicit(&queue->kicks, 1,
						  memory_order_relaxed);
		}
	}
	return NULL;
}

/* -- life -- */

static int start_rx(struct console_dev *dev)
{
	int r = evloop_add(dev->backend->loop, rx_queue(dev)->kick_fd, EPOLLIN,
			   on_rx_kick, dev);

	if (r)
		return r;
	dev->rx_active = true;
	chardev_resume_input(dev->backend->chr);
	return 0;
}

static int start_tx(struct console_dev *dev)
{
	int r;

	atomic_store(&dev->tx_stop, false);
	dev->size_notices = 0;
	dev->size_next_ns = 0;
	chardev_set_waiting(dev->backend->chr, true);
	r = thread_start(&dev->tx_thread, &tx_class, "console-tx", tx_main,
			 dev);
	dev->tx_running = r == 0;
	return r;
}

static int stop_serving(struct console_dev *dev)
{
	if (dev->tx_running) {
		atomic_store_explicit(&dev->tx_stop, true,
				      memory_order_release);
		chardev_set_waiting(dev->backend->chr, false);
		io_eventfd_signal(dev->vdev.queues[QUEUE_TX].kick_fd);
		pthread_join(dev->tx_thread, NULL);
		dev->tx_running = false;
	}
	if (dev->rx_held)
		push_rx(dev, 0);
	evloop_del(dev->backend->loop, rx_queue(dev)->kick_fd);
	dev->rx_active = false;
	return 0;
}

static int start_serving(struct console_dev *dev)
{
	struct err err = ERR_INIT;
	int r = console_backend_start(dev->backend, &err);

	if (r)
		log_error("%s: %s", dev->vdev.id, err.text);
	note_size(dev);
	if (!r && rx_queue(dev)->vq.started)
		r = start_rx(dev);
	if (!r && dev->vdev.queues[QUEUE_TX].vq.started)
		r = start_tx(dev);
	if (r)
		stop_serving(dev);
	return r;
}

static int console_activate(struct virtio_dev *vdev)
{
	return call(container_of(vdev, struct console_dev, vdev),
		    start_serving);
}

static void console_deactivate(struct virtio_dev *vdev)
{
	/* It has nothing to report. */
	(void)call(container_of(vdev, struct console_dev, vdev), stop_serving);
}

static void console_destroy(struct virtio_dev *vdev)
{
	struct console_dev *dev = container_of(vdev, struct console_dev, vdev);

	if (dev->running) {
		evloop_stop(dev->backend->loop, 0);
		pthread_join(dev->thread, NULL);
	}
	if (dev->backend->loop && dev->call_fd >= 0)
		evloop_del(dev->backend->loop, dev->call_fd);
	console_backend_release(dev->backend);
	close_fd(&dev->call_fd);
	pthread_cond_destroy(&dev->call_done);
	pthread_mutex_destroy(&dev->call_lock);
	virtio_dev_fini(vdev);
	free(dev);
}

static int set_up(struct console_dev *dev, const struct ram *ram)
{
	const struct chardev_client client = {
		.room = console_room,
		.receive = console_receive,
		.resized = console_resized,
		.ctx = dev,
	};
	int r = virtio_dev_init(&dev->vdev, &virtio_console_class, ram,
				NUM_QUEUES, QUEUE_SIZE);

	if (r)
		return r;
	dev->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (dev->call_fd < 0)
		return -errno;
	r = evloop_add(dev->backend->loop, dev->call_fd, EPOLLIN, on_call, dev);
	if (r)
		return r;
	chardev_set_client(dev->backend->chr, &client);
	note_size(dev);
	if (atomic_load(&dev->size))
		dev->vdev.offered |= F_SIZE;
	r = thread_start(&dev->thread, &main_class, "console", console_main,
			 dev);
	dev->running = r == 0;
	return r;
}

/* The chardev wants to know its kind and path in its own words. */
static int fill_backend(const struct console_config *cfg, struct err *err)
{
	struct chardev_config *chr = &cfg->backend->cfg;
	const char *path = cfg->file ? cfg->file : cfg->socket;

	if (chr->option)
		return 0; /* by the machine before this one */
	chr->kind = kind_of(cfg);
	chr->option = "--console";
	if (!path)
		return 0;
	chr->path = strdup(path);
	return chr->path ? 0 : err_set(err, ENOMEM, "--console: out of memory");
}

static int config_open(void *config, struct err *err)
{
	struct console_config *cfg = config;
	int r = fill_backend(cfg, err);

	return r ? r : console_backend_open(cfg->backend, err);
}

/* To remove a socket, or a file that was made for nothing. */
static int config_paths(const void *config, struct sandbox_paths *paths,
			struct err *err)
{
	const struct console_config *cfg = config;
	const char *path = cfg->file ? cfg->file : cfg->socket;

	return path ? sandbox_paths_add_parent(paths, path, SANDBOX_REMOVE,
					       true, err)
		    : 0;
}

static int console_create(struct virtio_dev **ret, const void *config,
			  const struct ram *ram, unsigned int num_cpus,
			  unsigned int index, struct err *err)
{
	const struct console_config *cfg = config;
	struct console_dev *dev;
	int r = fill_backend(cfg, err);

	if (!r)
		r = console_backend_open(cfg->backend, err);
	if (r)
		return r;
	dev = calloc(1, sizeof(*dev));
	if (!dev)
		return err_set(err, ENOMEM, "--console: out of memory");
	dev->backend = cfg->backend;
	dev->call_fd = -1;
	pthread_mutex_init(&dev->call_lock, NULL);
	pthread_cond_init(&dev->call_done, NULL);
	snprintf(dev->vdev.id, sizeof(dev->vdev.id), "console");
	r = set_up(dev, ram);
	if (r) {
		console_destroy(&dev->vdev);
		return err_errno(err, -r, "--console: cannot set it up");
	}
	*ret = &dev->vdev;
	return 0;
}

static const struct thread_call control_calls_list[] = {
	RARE_IOCTL("--console tty", TIOCGWINSZ),
};

static const struct thread_class control_calls = {
	.name = "control+console",
	.what = "when a virtio console is set up",
	THREAD_CALLS(control_calls_list),
};

/* -- saved state -- */

struct console_state {
	uint32_t size; /* of the window, as the driver knows it */
};

static const struct state_field state_fields[] = {
	STATE_FIELD_UINT(struct console_state, size, 1),
};

static const struct state_table state_table = {
	.section = "virtio-console",
	.version = 1,
	.object_bytes = sizeof(struct console_state),
	.fields = state_fields,
	.num_fields = ARRAY_SIZE(state_fields),
};

static int console_save(struct virtio_dev *vdev, struct state_writer *w,
			struct err *err)
{
	struct console_dev *dev = container_of(vdev, struct console_dev, vdev);
	const struct console_state s = { .size = atomic_load(&dev->size) };

	state_save(w, &state_table, vdev->config_id, &s);
	return 0;
}

/* A terminal that is there has a size of its own, and the driver is told. */
static int console_load(struct virtio_dev *vdev, struct state_reader *r,
			struct err *err)
{
	struct console_dev *dev = container_of(vdev, struct console_dev, vdev);
	struct console_state s = { .size = 0 };
	int ret = state_load(r, &state_table, vdev->config_id, &s, err);

	if (!ret && !atomic_load(&dev->size))
		atomic_store(&dev->size, s.size);
	return ret;
}

const struct virtio_class virtio_console_class = {
	.name = "console",
	.device_id = DEVICE_ID,
	.pci_class = PCI_CLASS,
	.api_field = "console",
	.option = "--console",
	.option_args = "tty|null|file=PATH|socket=PATH",
	.option_help = "a virtio console (hvc0) instead of, or beside, the "
		       "serial port",
	.first_key = "mode",
	.keys = keys,
	.num_keys = ARRAY_SIZE(keys),
	.single = true,
	.config_bytes = sizeof(struct console_config),
	.config_defaults = config_defaults,
	.config_check = config_check,
	.config_fini = config_fini,
	.config_open = config_open,
	.config_paths = config_paths,
	.wants_terminal = wants_terminal,
	.create = console_create,
	.destroy = console_destroy,
	.config_space_bytes = sizeof(struct config_space),
	.config_read = console_config_read,
	.activate = console_activate,
	.deactivate = console_deactivate,
	.thread_classes = thread_classes,
	.control_calls = &control_calls,
	.save = console_save,
	.load = console_load,
	.kept_features = F_SIZE,
};
