/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtio device model: what a device type (class) declares, what one device
 * (struct virtio_dev) carries, and what the transport does for it.
 *
 * Adding a device: a folder with a const struct virtio_class, and one line in
 * virtio/registry.c. Option parsing (quire run --disk ...), help text, PCI
 * identity, queues and reset all follow from the class.
 *
 * Life: create() -> [activate() -> deactivate()]* -> destroy().
 *
 * Threads: create/destroy on the control thread. activate() and deactivate()
 * come from a vCPU thread under the transport's lock, never concurrently.
 * Between them the device owns its queues and serves them on its own threads,
 * one per queue as a rule, each sleeping on that queue's kick_fd (the transport
 * points the ioeventfd there). deactivate() returns when no thread of the
 * device touches a queue or guest memory any more and every chain it popped has
 * been completed; the threads are gone.
 *
 * Source: Virtual I/O Device (VIRTIO) 1.2.
 */
#ifndef QUIRE_VIRTIO_VIRTIO_H
#define QUIRE_VIRTIO_VIRTIO_H

#include <stdatomic.h>

#include "base/err.h"
#include "base/kvlist.h"
#include "base/thread_class.h"
#include "mem/ram.h"
#include "sandbox/paths.h"
#include "state/state.h"
#include "virtio/queue.h"

#define VIRTIO_MAX_QUEUES 64

/* Feature bits of the transport and ring (virtio 1.2 section 6). */
#define VIRTIO_F_INDIRECT_DESC (1ull << 28)
#define VIRTIO_F_EVENT_IDX     (1ull << 29)
#define VIRTIO_F_VERSION_1     (1ull << 32)

struct blockdev;
struct virtio_dev;

struct virtio_class {
	const char *name;   /* "blk": folder and log name */
	uint16_t device_id; /* virtio 1.2 section 5 */
	uint32_t pci_class; /* 24-bit class code */

	/* Command line: "--disk" and its keys. NULL option: not configurable.
	 */
	const char *option;
	const char *option_args; /* "path=FILE[,readonly=on]" for --help */
	const char *option_help; /* one line */
	const char *first_key;	 /* see kvlist_parse(); may be NULL */
	const struct kvlist_key *keys;
	size_t num_keys;
	bool single; /* the option may be given once only */

	/*
	 * In the API's VmConfig: the field that holds these devices ("disks"),
	 * an array unless single, and the verb that adds one ("add-disk", as
	 * vm.add-disk) or NULL. Keys are the fields, '-' written as '_'.
	 */
	const char *api_field;
	const char *api_verb;
	/*
	 * Guest RAM is to be in a memfd, --memory shared=on, which a back end
	 * can map.
	 */
	bool needs_shared_memory;

	/* The parsed option: zeroed memory of this size, defaults, check. */
	size_t config_bytes;
	void (*config_defaults)(void *config);
	/* After all keys: is it complete and consistent? */
	int (*config_check)(const void *config, struct err *err);
	void (*config_fini)(void *config); /* frees what setters allocated */
	/*
	 * Does it want this process's terminal, which only one may have?
	 * NULL: no.
	 */
	bool (*wants_terminal)(const void *config);

	/*
	 * num_cpus lets a device choose its number of queues; index is its
	 * place among the devices of its class, for the id.
	 */
	int (*create)(struct virtio_dev **ret, const void *config,
		      const struct ram *ram, unsigned int num_cpus,
		      unsigned int index, struct err *err);
	void (*destroy)(struct virtio_dev *dev);

	/* Device configuration space; offset + len is within
	 * config_space_bytes. */
	uint32_t config_space_bytes;
	void (*config_read)(struct virtio_dev *dev, uint32_t offset, void *data,
			    uint32_t len);
	/* NULL: read-only. */
	void (*config_write)(struct virtio_dev *dev, uint32_t offset,
			     const void *data, uint32_t len);

	/*
	 * DRIVER_OK: dev->features is what was negotiated, enabled queues are
	 * started. A failure leaves the device needing reset.
	 */
	int (*activate)(struct virtio_dev *dev);
	void (*deactivate)(struct virtio_dev *dev);
	/*
	 * Its part of virtio_dev_hold(), where queues are served by somebody
	 * whom vq_hold() does not reach. NULL: there is none.
	 */
	void (*hold)(struct virtio_dev *dev, bool held);

	/*
	 * Sandbox. The classes of the threads that it starts; ends with NULL,
	 * is NULL without any.
	 */
	const struct thread_class *const *thread_classes;
	/* What its hooks above do on a vCPU's thread. May be NULL. */
	const struct thread_class *vcpu_calls;
	/* What they do on the control thread that it has no list for yet:
	 * where a device is added later, or goes. May be NULL. */
	const struct thread_class *control_calls;
	/*
	 * Open what create() will need, into config, which owns it: called
	 * once, with all privileges there are, before the process confines
	 * itself; create() may come several times and finds no way to it any
	 * more. Not called for devices that are added later, which find what
	 * their user may reach. May be NULL.
	 */
	int (*config_open)(void *config, struct err *err);
	/*
	 * The image that config_open() opened, for a snapshot to read once the
	 * device is held; -1: none is open. It stays config's. May be NULL.
	 */
	int (*config_image)(const void *config);
	/*
	 * Migration. What config_open() or create() opens next is in use by the
	 * process that the VM comes from, and is not locked until hand_over();
	 * or (false) it is not. May be NULL.
	 */
	void (*config_expect)(void *config, bool expected);
	/*
	 * The VM goes to another process, or (take) is taken over from one, or
	 * back: give up what only one may have, durably, or have it. Control
	 * thread, the device held and drained. May be NULL.
	 */
	int (*hand_over)(struct virtio_dev *dev, bool take, struct err *err);
	/*
	 * Its image, for a migration to copy; the device's. Control thread. May
	 * be NULL.
	 */
	struct blockdev *(*image)(struct virtio_dev *dev);
	/*
	 * The VM has come from another process: as soon as the device is not
	 * held, others outside are to know that it is here. Control thread. May
	 * be NULL.
	 */
	void (*announce)(struct virtio_dev *dev);
	/*
	 * The paths that remain to be opened by name (a socket that is
	 * connected to again). May be NULL.
	 */
	int (*config_paths)(const void *config, struct sandbox_paths *paths,
			    struct err *err);

	/*
	 * What the device has to say beyond transport and queues in a saved
	 * state: a section whose instance is dev->config_id. Control thread,
	 * the device held and drained. save() may refuse.
	 *
	 * load() comes before activate(), if the driver had got that far, with
	 * dev->features as negotiated; the next activate() goes on from what
	 * was loaded, those after it begin anew. Guest memory may not be there
	 * yet: neither of the two touches it. NULL: machines with such a device
	 * are not saved; not_saved says why, in words that go behind its name.
	 */
	int (*save)(struct virtio_dev *dev, struct state_writer *w,
		    struct err *err);
	int (*load)(struct virtio_dev *dev, struct state_reader *r,
		    struct err *err);
	const char *not_saved;
	/*
	 * Features that depend on the host's moment (a terminal's size) and
	 * that a restored guest may go on with where they are not offered now.
	 */
	uint64_t kept_features;
};

/* One queue as device and transport share it. */
struct virtio_queue {
	struct virtqueue vq;
	int kick_fd; /* eventfd, non-blocking; driver notifications */
	/*
	 * -1: the device interrupts through virtio_queue_interrupt(). Otherwise
	 * an eventfd, made in create() and closed by virtio_dev_fini(), that a
	 * back end in another process signals: the transport has KVM listen to
	 * it directly. virtio_queue_interrupt() works all the same.
	 */
	int call_fd;
	/* Counters for the exit summary and the API. */
	_Atomic uint64_t kicks, interrupts, requests;
};

/* What the transport offers to a device; set before activate(). */
struct virtio_transport_ops {
	void (*notify_queue)(void *transport, unsigned int queue);
	void (*notify_config)(void *transport);
	void (*needs_reset)(void *transport);
};

#define VIRTIO_MAX_COUNTERS 8

/* A count of a device's own, for the API: "rx_bytes". */
struct virtio_counter {
	const char *name; /* a literal: it outlives the device */
	const _Atomic uint64_t *value;
};

/* Embedded first in each device's own struct. */
struct virtio_dev {
	const struct virtio_class *cls;
	const struct ram *ram;
	char id[64];	    /* for messages: "disk0 (a.img)" */
	char config_id[64]; /* its id= in the configuration: "_disk0" */
	uint64_t offered;   /* feature bits, device-specific ones included */
	uint64_t features;  /* negotiated */
	unsigned int num_queues;
	struct virtio_queue *queues;
	/* Set by load(), for the next activate() to look at and clear. */
	bool restored;
	const struct virtio_transport_ops *transport;
	void *transport_ctx;
	_Atomic uint64_t errors; /* guest misbehaviour and failed requests */
	/*
	 * Beyond those of the queues, VIRTIO_MAX_COUNTERS at most; set by
	 * create(), then fixed.
	 */
	const struct virtio_counter *counters;
	unsigned int num_counters;
};

/*
 * For create(): set the common fields, make the queues and their eventfds;
 * adds VERSION_1, INDIRECT_DESC and EVENT_IDX to offered.
 */
__must_check int virtio_dev_init(struct virtio_dev *dev,
				 const struct virtio_class *cls,
				 const struct ram *ram, unsigned int num_queues,
				 uint16_t queue_size);
/* For destroy(). Fine on a zeroed struct. */
void virtio_dev_fini(struct virtio_dev *dev);

/*
 * After pushing to queue q: interrupt the driver if it wants one. Call from the
 * queue's thread.
 */
void virtio_queue_interrupt(struct virtio_dev *dev, unsigned int queue);

/*
 * Nothing new is taken from the device's queues until it is let go on. For
 * pausing a machine, while no vCPU runs; any thread.
 */
void virtio_dev_hold(struct virtio_dev *dev, bool held);

/*
 * Held: wait until all that was taken from the queues is completed and the
 * device's threads leave guest memory alone. -ETIMEDOUT: something takes longer
 * than until until_ns (clock_now_ns()). Any thread but the device's.
 */
__must_check int virtio_dev_drain(struct virtio_dev *dev, uint64_t until_ns,
				  struct err *err);

/* Can it be saved and loaded? -ENOTSUP says why not. Any thread. */
__must_check int virtio_dev_check_saved(const struct virtio_dev *dev,
					struct err *err);

/* The configuration space changed (capacity, link...). Any thread. */
void virtio_config_changed(struct virtio_dev *dev);

/*
 * The driver broke the rules: set DEVICE_NEEDS_RESET, count, log once in a
 * while. The calling thread then stops serving until deactivate().
 */
void virtio_dev_broken(struct virtio_dev *dev, const char *why);

/*
 * The device cannot go on, and not by the driver's fault: DEVICE_NEEDS_RESET
 * and the count. Who calls has said why.
 */
void virtio_dev_needs_reset(struct virtio_dev *dev);

/* All classes, in the order devices are documented; ends with NULL. */
extern const struct virtio_class *const virtio_classes[];

#endif
