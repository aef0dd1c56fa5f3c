/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bytes of a migration (docs/migration-protocol.md): made and, before
 * anything uses them, checked. All of what a peer sends goes through the
 * wire_parse_*() here and nothing else looks at its bytes; what they return may
 * be relied on.
 *
 * No I/O, no state: any thread. -EBADMSG: breaks the protocol; -ENOTSUP: of a
 * version or with features that are not known; the text says which.
 */
#ifndef QUIRE_MIGRATE_WIRE_H
#define QUIRE_MIGRATE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "mem/ram.h"
#include "migrate/page_map.h"
#include "vm/config.h"

#define WIRE_VERSION	   1u
#define WIRE_MAX_STREAMS   64u
#define WIRE_ID_BYTES	   16
#define WIRE_UNIT_BYTES	   (2ull << 20)
#define WIRE_UNIT_PAGES	   512u
#define WIRE_CLUSTER_BYTES (64ull << 10) /* of an image */

/* ---- how each connection begins ---- */

#define WIRE_PREFACE_BYTES 32

/* The connection of pages that somebody waits for, with post-copy. */
#define WIRE_URGENT 0xffffu

struct wire_preface {
	unsigned int stream;	  /* 0: control; WIRE_URGENT */
	unsigned int num_streams; /* of data, 1 to WIRE_MAX_STREAMS */
	uint8_t id[WIRE_ID_BYTES];
};

void wire_put_preface(uint8_t out[WIRE_PREFACE_BYTES],
		      const struct wire_preface *p);
__must_check int wire_parse_preface(const uint8_t in[WIRE_PREFACE_BYTES],
				    struct wire_preface *ret, struct err *err);

/* ---- control ---- */

enum wire_control {
	WIRE_MACHINE = 1,
	WIRE_ACCEPT,
	WIRE_STATE,
	WIRE_READY,
	WIRE_LOADED,
	WIRE_COMMIT,
	WIRE_RUNNING,
	WIRE_FAILED,
	WIRE_ABORT,
	/* With post-copy. */
	WIRE_PENDING,
	WIRE_COMPLETE,
	WIRE_AGAIN,
	WIRE_MISSING,
	WIRE_FREE,
	WIRE_MEMORY,
	/* Of each round, by the destination. */
	WIRE_LANDED,
};

#define WIRE_CONTROL_BYTES  16
#define WIRE_MAX_TEXT	    400u
#define WIRE_MAX_MACHINE    (64u << 10)
#define WIRE_MAX_STATE	    (256ull << 20)
#define WIRE_MAX_MAP	    (256ull << 20)
#define WIRE_READY_BYTES    24
#define WIRE_COMPLETE_BYTES 8
#define WIRE_AGAIN_BYTES    8

/* "MACHINE"; "?" for what there is not. */
const char *wire_control_name(uint32_t type);

struct wire_control_header {
	enum wire_control type;
	uint64_t bytes; /* of the payload, within the limits of the type */
};

void wire_put_control(uint8_t out[WIRE_CONTROL_BYTES], enum wire_control type,
		      uint64_t bytes);
/*
 * Of a peer that is the source, or the destination, and is to send wanted now:
 * that, or FAILED or ABORT. Anything else is refused.
 */
__must_check int wire_parse_control(const uint8_t in[WIRE_CONTROL_BYTES],
				    enum wire_control wanted,
				    struct wire_control_header *ret,
				    struct err *err);

/* Why the other gave up, as it may be shown: printable, with an end. */
void wire_parse_text(const uint8_t *in, size_t bytes,
		     char out[WIRE_MAX_TEXT + 1]);

struct wire_range {
	uint64_t start, len;
};

/*
 * Memory may follow its VM, or is handed over; disks come, too; pages may come
 * compressed.
 */
#define WIRE_FEATURE_POSTCOPY (1ull << 0)
#define WIRE_FEATURE_LOCAL    (1ull << 1)
#define WIRE_FEATURE_DISKS    (1ull << 2)
#define WIRE_FEATURE_LZ4      (1ull << 8)
#define WIRE_FEATURE_ZSTD     (1ull << 9)
#define WIRE_FEATURES_PACKED  (WIRE_FEATURE_LZ4 | WIRE_FEATURE_ZSTD)
#define WIRE_FEATURES                                                      \
	(WIRE_FEATURE_POSTCOPY | WIRE_FEATURE_LOCAL | WIRE_FEATURE_DISKS | \
	 WIRE_FEATURES_PACKED)

struct wire_device {
	char cls[16];
	char id[VM_MAX_NAME];
};

/* The image of a disk that is written: its device, and its size. */
struct wire_disk {
	unsigned int device; /* its place in wire_machine.devices */
	uint64_t bytes;
};

/* What the two machines have to have in common before memory is sent. */
struct wire_machine {
	uint64_t
		features; /* WIRE_FEATURE_*, that the destination has to know */
	uint64_t memory_bytes;
	uint32_t num_cpus, threads_per_core;
	uint8_t irqchip;
	unsigned int num_regions, num_devices;
	struct wire_range regions[RAM_MAX_REGIONS];
	struct wire_device devices[VM_MAX_DEVICES];
	/* On the wire with WIRE_FEATURE_DISKS, at least one; ascending. */
	unsigned int num_disks;
	struct wire_disk disks[VM_MAX_DEVICES];
};

/* Returns the bytes; out has room for WIRE_MAX_MACHINE. */
size_t wire_put_machine(uint8_t *out, const struct wire_machine *m);
__must_check int wire_parse_machine(const uint8_t *in, size_t bytes,
				    struct wire_machine *ret, struct err *err);
/* -EINVAL, with the first difference, in words of the destination. */
__must_check int wire_machine_compare(const struct wire_machine *theirs,
				      const struct wire_machine *ours,
				      struct err *err);
/* The same ids and sizes, in the same order. */
bool wire_machine_same_disks(const struct wire_machine *a,
			     const struct wire_machine *b);

struct wire_ready {
	bool ran; /* the guest, and is to run */
	uint64_t rounds, page_bytes;
};

void wire_put_ready(uint8_t out[WIRE_READY_BYTES], const struct wire_ready *r);
__must_check int wire_parse_ready(const uint8_t in[WIRE_READY_BYTES],
				  struct wire_ready *ret, struct err *err);

/*
 * A map of pages: of PENDING, what is still to come, and of MISSING, what has
 * not come. Of the map's memory, word by word; map is of this VM.
 */
size_t wire_map_bytes(const struct page_map *map);
void wire_put_map(uint8_t *out, const struct page_map *map);
__must_check int wire_parse_map(const uint8_t *in, size_t bytes,
				struct page_map *map, struct err *err);

/* What the pages may be that come after AGAIN: of WIRE_FEATURES_PACKED. */
void wire_put_again(uint8_t out[WIRE_AGAIN_BYTES], uint64_t features);
__must_check int wire_parse_again(const uint8_t in[WIRE_AGAIN_BYTES],
				  uint64_t *ret, struct err *err);

/* Why no more memory is wanted: all has come, or the VM has ended. */
enum wire_complete { WIRE_ALL_CAME = 1, WIRE_VM_ENDED };

void wire_put_complete(uint8_t out[WIRE_COMPLETE_BYTES],
		       enum wire_complete how);
__must_check int wire_parse_complete(const uint8_t in[WIRE_COMPLETE_BYTES],
				     enum wire_complete *ret, struct err *err);

/* ---- data ---- */

enum wire_data {
	WIRE_PAGES = 1,
	WIRE_ZERO,
	WIRE_UNIT,
	WIRE_ROUND,
	WIRE_END,
	/* With post-copy. */
	WIRE_REQUEST,
	WIRE_DONE,
	/* With disks. */
	WIRE_DISK,
	WIRE_DISK_ZERO,
	/* Compressed. */
	WIRE_PAGES_LZ4 = 16,
	WIRE_PAGES_ZSTD,
};

#define WIRE_DATA_BYTES 24

struct wire_data_header {
	enum wire_data type;
	/* Of disks: offset in the image. Of END: rounds, bytes of content. */
	uint64_t gpa, len;
	uint32_t packed; /* bytes that follow, of compressed pages; below len */
	uint32_t disk;	 /* of disks: which, of wire_machine.disks */
};

/* What is known about a data stream, and what it has said so far. */
struct wire_stream {
	unsigned int index, num; /* 1 to num; or WIRE_URGENT */
	struct wire_range regions[RAM_MAX_REGIONS];
	unsigned int num_regions;
	uint64_t disk_bytes[VM_MAX_DEVICES]; /* their sizes */
	unsigned int num_disks;
	uint64_t features;	     /* that were announced */
	uint64_t rounds, page_bytes; /* with those of disks */
	bool ended;
};

/* On which of num streams the unit at gpa travels: 1 to num. */
unsigned int wire_stream_of(uint64_t gpa, unsigned int num);

void wire_put_data(uint8_t out[WIRE_DATA_BYTES],
		   const struct wire_data_header *h);
/*
 * The next header on s, which is brought up to date. A range that is returned
 * is whole pages in one unit and one region, or whole clusters (or up to the
 * end) in 2 MiB of one image, and belongs on this stream.
 */
__must_check int wire_parse_data(const uint8_t in[WIRE_DATA_BYTES],
				 struct wire_stream *s,
				 struct wire_data_header *ret, struct err *err);

/*
 * After END, with post-copy, on a data stream or the urgent connection: PAGES,
 * compressed or not, or ZERO of pages that PENDING named, or on a data stream
 * DONE.
 */
__must_check int wire_parse_follow(const uint8_t in[WIRE_DATA_BYTES],
				   struct wire_stream *s,
				   const struct page_map *pending,
				   struct wire_data_header *ret,
				   struct err *err);
/*
 * What the destination asks for on the urgent connection: a page of pending
 * that it has not asked for on this connection, which asked says and is told.
 */
__must_check int wire_parse_request(const uint8_t in[WIRE_DATA_BYTES],
				    const struct page_map *pending,
				    struct page_map *asked,
				    struct wire_data_header *ret,
				    struct err *err);

#endif
