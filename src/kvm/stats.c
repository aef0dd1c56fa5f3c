/* SPDX-License-Identifier: Apache-2.0 */
#include "kvm/stats.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "kvm/kvm.h"

/*
 * The stats file is header, id string, descriptors, data. Descriptors never
 * change while the fd lives, so they are read once; a read of a value is one
 * pread of eight bytes.
 */
struct kvm_stats {
	int fd;
	struct kvm_stats_header header;
	size_t desc_bytes; /* one descriptor with its name */
	char *descs;	   /* header.num_desc of them */
};

/* The kernel's own bound is far below; a larger one is not a stats file. */
#define STATS_MAX_DESC 1024
#define STATS_MAX_NAME 256

static const struct kvm_stats_desc *desc_at(const struct kvm_stats *stats,
					    uint32_t i)
{
	return (const void *)(stats->descs + i * stats->desc_bytes);
}

static int load_descs(struct kvm_stats *stats)
{
	struct kvm_stats_header *h = &stats->header;
	int r = io_pread_full(stats->fd, h, sizeof(*h), 0);

	if (r)
		return r;
	if (h->num_desc > STATS_MAX_DESC || h->name_size > STATS_MAX_NAME ||
	    h->name_size == 0)
		return -EPROTO;
	stats->desc_bytes = sizeof(struct kvm_stats_desc) + h->name_size;
	stats->descs = calloc(h->num_desc, stats->desc_bytes);
	if (!stats->descs)
		return -ENOMEM;
	r = io_pread_full(stats->fd, stats->descs,
			  h->num_desc * stats->desc_bytes, h->desc_offset);
	if (r)
		return r;
	for (uint32_t i = 0; i < h->num_desc; i++) {
		char *name = (char *)desc_at(stats, i)->name;

		name[h->name_size - 1] = '\0';
	}
	return 0;
}

/* Takes fd, which may be -errno. */
static int open_taking(int fd, struct kvm_stats **ret)
{
	struct kvm_stats *stats;
	int r;

	if (fd < 0)
		return fd;
	stats = calloc(1, sizeof(*stats));
	if (!stats) {
		close(fd);
		return -ENOMEM;
	}
	stats->fd = fd;
	r = load_descs(stats);
	if (r) {
		kvm_stats_close(stats);
		return r;
	}
	*ret = stats;
	return 0;
}

int kvm_stats_fd(int vm_or_vcpu_fd)
{
	return kvm_ioctl_val(vm_or_vcpu_fd, KVM_GET_STATS_FD, 0);
}

int kvm_stats_open(int vm_or_vcpu_fd, struct kvm_stats **ret)
{
	return open_taking(kvm_stats_fd(vm_or_vcpu_fd), ret);
}

int kvm_stats_open_fd(int stats_fd, struct kvm_stats **ret)
{
	int fd = fcntl(stats_fd, F_DUPFD_CLOEXEC, 0);

	return open_taking(fd < 0 ? -errno : fd, ret);
}

void kvm_stats_close(struct kvm_stats *stats)
{
	if (!stats)
		return;
	close_fd(&stats->fd);
	free(stats->descs);
	free(stats);
}

static int read_value(struct kvm_stats *stats, const struct kvm_stats_desc *d,
		      uint64_t *ret)
{
	return io_pread_full(stats->fd, ret, sizeof(*ret),
			     stats->header.data_offset + d->offset);
}

int kvm_stats_read(struct kvm_stats *stats, const char *name,
		   uint64_t *ret_value)
{
	for (uint32_t i = 0; i < stats->header.num_desc; i++) {
		const struct kvm_stats_desc *d = desc_at(stats, i);

		if (d->size == 1 && !strcmp(d->name, name))
			return read_value(stats, d, ret_value);
	}
	return -ENOENT;
}

int kvm_stats_each(struct kvm_stats *stats,
		   void (*fn)(void *ctx, const char *name, uint64_t value),
		   void *ctx)
{
	for (uint32_t i = 0; i < stats->header.num_desc; i++) {
		const struct kvm_stats_desc *d = desc_at(stats, i);
		uint64_t value;
		int r;

		if (d->size != 1)
			continue;
		r = read_value(stats, d, &value);
		if (r)
			return r;
		fn(ctx, d->name, value);
	}
	return 0;
}
