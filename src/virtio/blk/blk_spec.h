/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What virtio 1.2 section 5.2 defines for block devices: feature bits, request
 * types, and the layouts the driver sees. All fields are little-endian.
 */
#ifndef QUIRE_VIRTIO_BLK_SPEC_H
#define QUIRE_VIRTIO_BLK_SPEC_H

#include <stdint.h>

#define BLK_DEVICE_ID 2

/* 5.2.3 */
#define BLK_F_SEG_MAX	   (1ull << 2)
#define BLK_F_RO	   (1ull << 5)
#define BLK_F_BLK_SIZE	   (1ull << 6)
#define BLK_F_FLUSH	   (1ull << 9)
#define BLK_F_TOPOLOGY	   (1ull << 10)
#define BLK_F_MQ	   (1ull << 12)
#define BLK_F_DISCARD	   (1ull << 13)
#define BLK_F_WRITE_ZEROES (1ull << 14)

/* 5.2.4 */
struct blk_config_space {
	uint64_t capacity; /* in sectors of 512 bytes, whatever blk_size is */
	uint32_t size_max;
	uint32_t seg_max;
	uint16_t cylinders;
	uint8_t heads;
	uint8_t sectors;
	uint32_t blk_size;
	uint8_t physical_block_exp;
	uint8_t alignment_offset;
	uint16_t min_io_size;
	uint32_t opt_io_size;
	uint8_t writeback;
	uint8_t unused0;
	uint16_t num_queues;
	uint32_t max_discard_sectors;
	uint32_t max_discard_seg;
	uint32_t discard_sector_alignment;
	uint32_t max_write_zeroes_sectors;
	uint32_t max_write_zeroes_seg;
	uint8_t write_zeroes_may_unmap;
	uint8_t unused1[3];
};
_Static_assert(sizeof(struct blk_config_space) == 64, "padded to 8 bytes");

/* Without the padding: up to the fields of features not offered. */
#define BLK_CONFIG_BYTES 60

/* 5.2.6 */
#define BLK_T_IN	   0
#define BLK_T_OUT	   1
#define BLK_T_FLUSH	   4
#define BLK_T_GET_ID	   8
#define BLK_T_DISCARD	   11
#define BLK_T_WRITE_ZEROES 13

struct blk_header {
	uint32_t type;
	uint32_t reserved;
	uint64_t sector;
};
_Static_assert(sizeof(struct blk_header) == 16, "5.2.6");

struct blk_segment {
	uint64_t sector;
	uint32_t num_sectors;
	uint32_t flags;
};
_Static_assert(sizeof(struct blk_segment) == 16, "5.2.6");

#define BLK_SEGMENT_UNMAP 1u

/* The status byte. */
enum blk_status {
	BLK_S_OK = 0,
	BLK_S_IOERR = 1,
	BLK_S_UNSUPP = 2,
};

#define BLK_ID_BYTES 20u

#endif
