/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-blk (virtio 1.2 section 5.2): a disk out of a raw file or a block
 * device. This file is the device as the command line and the driver's probe
 * see it; requests are in blk_queue.c and blk_req.c.
 *
 * Offered: flush (the host's page cache is the disk's write cache), multiple
 * queues, discard and write zeroes (where the host can), read-only, block size
 * and topology. Not offered: switching the write cache (CONFIG_WCE), geometry,
 * size_max (a segment may have any size), secure erase, zones, lifetime.
 */
#include "virtio/blk/blk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/cpus.h"
#include "virtio/blk/blk_priv.h"

#define PCI_CLASS	   0x018000 /* mass storage, other */
#define MIN_QUEUE_SIZE	   16u
#define DEFAULT_QUEUE_SIZE 256u
/* More threads than this bring nothing without being asked for. */
#define MAX_AUTO_QUEUES 4u
/* Two descriptors for header and status, two where regions of RAM meet. */
#define SEG_MAX (VQ_MAX_IOV - 4u)

struct blk_config {
	char *path;
	bool readonly;
	bool direct;
	uint32_t num_queues; /* 0: by the number of CPUs */
	uint32_t queue_size;
	char serial[BLK_ID_BYTES + 1];
	struct blockdev *opened; /* by config_open() */
	bool expected;		 /* see virtio_class.config_expect */
};

static int set_path(void *obj, const char *value, struct err *err)
{
	return kvlist_string(value, &((struct blk_config *)obj)->path, err);
}

static int set_readonly(void *obj, const char *value, struct err *err)
{
	return kvlist_bool(value, &((struct blk_config *)obj)->readonly, err);
}

static int set_direct(void *obj, const char *value, struct err *err)
{
	return kvlist_bool(value, &((struct blk_config *)obj)->direct, err);
}

static int set_num_queues(void *obj, const char *value, struct err *err)
{
	return kvlist_u32(value, 1, VIRTIO_MAX_QUEUES,
			  &((struct blk_config *)obj)->num_queues, err);
}

static int set_queue_size(void *obj, const char *value, struct err *err)
{
	return kvlist_pow2(value, MIN_QUEUE_SIZE, VQ_MAX_SIZE,
			   &((struct blk_config *)obj)->queue_size, err);
}

static int set_serial(void *obj, const char *value, struct err *err)
{
	struct blk_config *cfg = obj;

	if (strlen(value) > BLK_ID_BYTES)
		return err_set(err, EINVAL, "longer than %u bytes",
			       BLK_ID_BYTES);
	memcpy(cfg->serial, value, strlen(value) + 1);
	return 0;
}

static const struct kvlist_key keys[] = {
	{ "path", set_path },
	{ "readonly", set_readonly },
	{ "direct", set_direct },
	{ "num_queues", set_num_queues },
	{ "queue_size", set_queue_size },
	{ "serial", set_serial },
};

static void config_defaults(void *config)
{
	struct blk_config *cfg = config;

	cfg->queue_size = DEFAULT_QUEUE_SIZE;
}

static int config_check(const void *config, struct err *err)
{
	const struct blk_config *cfg = config;

	if (!cfg->path)
		return err_set(err, EINVAL, "path=FILE is missing");
	return 0;
}

static void config_fini(void *config)
{
	struct blk_config *cfg = config;

	free(take_ptr(cfg->path));
	blockdev_close(take_ptr(cfg->opened));
}

static int open_image(const struct blk_config *cfg, struct blockdev **ret,
		      struct err *err)
{
	const struct blockdev_config bdev_cfg = {
		.path = cfg->path,
		.readonly = cfg->readonly,
		.direct = cfg->direct,
		.unlocked = cfg->expected,
	};

	return blockdev_open(ret, &bdev_cfg, err);
}

/* From here on the image stays open, and locked, whatever machines go. */
static int config_open(void *config, struct err *err)
{
	struct blk_config *cfg = config;

	return cfg->opened ? 0 : open_image(cfg, &cfg->opened, err);
}

static int config_image(const void *config)
{
	const struct blk_config *cfg = config;

	return cfg->opened ? blockdev_fd(cfg->opened) : -1;
}

static void config_expect(void *config, bool expected)
{
	((struct blk_config *)config)->expected = expected;
}

static int blk_hand_over(struct virtio_dev *vdev, bool take, struct err *err)
{
	struct blk_dev *dev = container_of(vdev, struct blk_dev, vdev);

	return take ? blockdev_lock(dev->bdev, err)
		    : blockdev_leave(dev->bdev, err);
}

static struct blockdev *blk_image(struct virtio_dev *vdev)
{
	return container_of(vdev, struct blk_dev, vdev)->bdev;
}

static void offer(struct blk_dev *dev, unsigned int num_queues)
{
	uint64_t features = BLK_F_SEG_MAX | BLK_F_BLK_SIZE | BLK_F_TOPOLOGY |
			    BLK_F_FLUSH;

	if (num_queues > 1)
		features |= BLK_F_MQ;
	if (blockdev_readonly(dev->bdev))
		features |= BLK_F_RO;
	if (blockdev_can_discard(dev->bdev))
		features |= BLK_F_DISCARD;
	if (blockdev_can_write_zeroes(dev->bdev))
		features |= BLK_F_WRITE_ZEROES;
	dev->vdev.offered |= features;
}

static void fill_config(struct blk_dev *dev, unsigned int num_queues,
			uint32_t queue_size)
{
	struct blk_config_space *c = &dev->config;
	uint32_t block = blockdev_block_bytes(dev->bdev);
	uint32_t physical = blockdev_physical_bytes(dev->bdev);
	uint32_t discard = blockdev_discard_bytes(dev->bdev);

	c->capacity = htole64(blockdev_size(dev->bdev) / BLK_SECTOR_BYTES);
	c->seg_max = htole32(MIN(queue_size - 2, SEG_MAX));
	c->blk_size = htole32(block);
	c->physical_block_exp = (uint8_t)__builtin_ctz(physical / block);
	c->min_io_size = htole16((uint16_t)(physical / block));
	c->num_queues = htole16((uint16_t)num_queues);
	c->max_discard_sectors = htole32(BLK_MAX_RANGE_SECTORS);
	c->max_discard_seg = htole32(BLK_MAX_SEGMENTS);
	c->discard_sector_alignment = htole32(discard / BLK_SECTOR_BYTES);
	c->max_write_zeroes_sectors = htole32(BLK_MAX_RANGE_SECTORS);
	c->max_write_zeroes_seg = htole32(BLK_MAX_SEGMENTS);
	c->write_zeroes_may_unmap = 1;
}

static void blk_destroy(struct virtio_dev *vdev)
{
	struct blk_dev *dev = container_of(vdev, struct blk_dev, vdev);

	virtio_dev_fini(vdev);
	if (dev->owns_bdev)
		blockdev_close(dev->bdev);
	free(dev);
}

static int blk_create(struct virtio_dev **ret, const void *config,
		      const struct ram *ram, unsigned int num_cpus,
		      unsigned int index, struct err *err)
{
	const struct blk_config *cfg = config;
	unsigned int num_queues = cfg->num_queues;
	const char *slash = strrchr(cfg->path, '/');
	struct blk_dev *dev;
	int r;

	if (!num_queues)
		num_queues = MIN(MAX(num_cpus, 1u), MAX_AUTO_QUEUES);
	dev = calloc(1, sizeof(*dev));
	if (!dev)
		return err_set(err, ENOMEM, "disk %s: out of memory",
			       cfg->path);
	/* Through the page cache requests often complete at once: see
	 * blk_poll.h. */
	dev->may_poll = cfg->direct && cpus_allowed() > num_cpus;
	dev->bdev = cfg->opened;
	dev->owns_bdev = !cfg->opened;
	r = dev->bdev ? 0 : open_image(cfg, &dev->bdev, err);
	if (!r) {
		r = virtio_dev_init(&dev->vdev, &virtio_blk_class, ram,
				    num_queues, (uint16_t)cfg->queue_size);
		if (r)
			err_errno(err, -r, "disk %s: cannot set up its queues",
				  cfg->path);
	}
	if (r) {
		blk_destroy(&dev->vdev);
		return r;
	}
	snprintf(dev->vdev.id, sizeof(dev->vdev.id), "disk%u (%s)", index,
		 slash ? slash + 1 : cfg->path);
	memcpy(dev->serial, cfg->serial, sizeof(dev->serial));
	offer(dev, num_queues);
	fill_config(dev, num_queues, cfg->queue_size);
	*ret = &dev->vdev;
	return 0;
}

static void blk_config_read(struct virtio_dev *vdev, uint32_t offset,
			    void *data, uint32_t len)
{
	struct blk_dev *dev = container_of(vdev, struct blk_dev, vdev);

	memcpy(data, (char *)&dev->config + offset, len);
}

static void blk_deactivate(struct virtio_dev *vdev)
{
	struct blk_dev *dev = container_of(vdev, struct blk_dev, vdev);

	if (!dev->queues)
		return;
	/* All at once: their last operations run side by side. */
	for (unsigned int i = 0; i < vdev->num_queues; i++)
		blk_queue_cancel(&dev->queues[i]);
	for (unsigned int i = 0; i < vdev->num_queues; i++)
		blk_queue_stop(&dev->queues[i]);
	free(take_ptr(dev->queues));
}

/* Queues the driver did not enable get no thread. */
static int blk_activate(struct virtio_dev *vdev)
{
	struct blk_dev *dev = container_of(vdev, struct blk_dev, vdev);
	int r = 0;

	dev->queues = calloc(vdev->num_queues, sizeof(*dev->queues));
	if (!dev->queues)
		return -ENOMEM;
	for (unsigned int i = 0; i < vdev->num_queues && !r; i++)
		if (vdev->queues[i].vq.started)
			r = blk_queue_start(&dev->queues[i], dev, i);
	if (r)
		blk_deactivate(vdev);
	return r;
}

static const struct thread_call control_calls_list[] = {
	RARE_FCNTL("a disk is added", F_OFD_SETLK),
	RARE_FCNTL("a disk is added", F_OFD_GETLK),
	RARE("the VM goes to another process", fsync),
	RARE("a disk is added", fallocate),
	RARE("a disk with direct=on is added", statx),
	RARE_IOCTL("a block device is added", BLKGETSIZE64),
	RARE_IOCTL("a block device is added", BLKSSZGET),
	RARE_IOCTL("a block device is added", BLKPBSZGET),
};

static const struct thread_class control_calls = {
	.name = "control+disk",
	.what = "when a disk is added later, or goes to another process",
	THREAD_CALLS(control_calls_list),
};

struct blk_state {
	uint64_t capacity; /* sectors */
	uint32_t block_bytes, physical_bytes;
};

static const struct state_field state_fields[] = {
	STATE_FIELD_UINT(struct blk_state, capacity, 1),
	STATE_FIELD_UINT(struct blk_state, block_bytes, 2),
	STATE_FIELD_UINT(struct blk_state, physical_bytes, 3),
};

/* Requests are complete, so this is all: is it such a disk? */
static int state_check(const struct state_check *c, const void *loaded,
		       const void *live)
{
	const struct blk_state *s = loaded, *here = live;

	if (s->capacity != here->capacity)
		return state_refuse(
			c, "capacity",
			"the disk had %llu bytes, here it has %llu",
			(unsigned long long)s->capacity * BLK_SECTOR_BYTES,
			(unsigned long long)here->capacity * BLK_SECTOR_BYTES);
	/* Requests in smaller units than the host takes would fail. */
	if (s->block_bytes != here->block_bytes)
		return state_refuse(c, "block_bytes",
				    "the disk had blocks of %u bytes, here "
				    "they have %u",
				    s->block_bytes, here->block_bytes);
	return 0;
}

static const struct state_table state_table = {
	.section = "virtio-blk",
	.version = 1,
	.object_bytes = sizeof(struct blk_state),
	.fields = state_fields,
	.num_fields = ARRAY_SIZE(state_fields),
	.check = state_check,
};

static struct blk_state blk_state_of(const struct virtio_dev *vdev)
{
	const struct blk_dev *dev = container_of(vdev, struct blk_dev, vdev);

	return (struct blk_state){
		.capacity = blockdev_size(dev->bdev) / BLK_SECTOR_BYTES,
		.block_bytes = blockdev_block_bytes(dev->bdev),
		.physical_bytes = blockdev_physical_bytes(dev->bdev),
	};
}

static int blk_save(struct virtio_dev *vdev, struct state_writer *w,
		    struct err *err)
{
	const struct blk_state s = blk_state_of(vdev);

	state_save(w, &state_table, vdev->config_id, &s);
	return 0;
}

static int blk_load(struct virtio_dev *vdev, struct state_reader *r,
		    struct err *err)
{
	struct blk_state s = blk_state_of(vdev);

	return state_load(r, &state_table, vdev->config_id, &s, err);
}

const struct virtio_class virtio_blk_class = {
	.name = "blk",
	.device_id = BLK_DEVICE_ID,
	.pci_class = PCI_CLASS,
	.option = "--disk",
	.option_args = "path=FILE[,readonly=on][,direct=on][,num_queues=N]"
		       "[,queue_size=N][,serial=TEXT]",
	.option_help = "a raw image file or a block device as a virtio disk",
	.first_key = "path",
	.keys = keys,
	.num_keys = ARRAY_SIZE(keys),
	.api_field = "disks",
	.api_verb = "add-disk",
	.config_bytes = sizeof(struct blk_config),
	.config_defaults = config_defaults,
	.config_check = config_check,
	.config_fini = config_fini,
	.config_open = config_open,
	.config_image = config_image,
	.config_expect = config_expect,
	.hand_over = blk_hand_over,
	.image = blk_image,
	.create = blk_create,
	.destroy = blk_destroy,
	.config_space_bytes = BLK_CONFIG_BYTES,
	.config_read = blk_config_read,
	.activate = blk_activate,
	.deactivate = blk_deactivate,
	.thread_classes = blk_thread_classes,
	.control_calls = &control_calls,
	.save = blk_save,
	.load = blk_load,
};
