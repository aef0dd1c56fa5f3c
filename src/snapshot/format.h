/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A snapshot is a directory of plain files; docs/snapshot-format.md has them
 * byte by byte. What is here is shared by those that write and read them.
 */
#ifndef QUIRE_SNAPSHOT_FORMAT_H
#define QUIRE_SNAPSHOT_FORMAT_H

#define SNAPSHOT_FORMAT	 "quire-snapshot"
#define SNAPSHOT_VERSION 1

#define SNAPSHOT_MANIFEST    "manifest.json"
#define SNAPSHOT_CONFIG	     "config.json"
#define SNAPSHOT_STATE	     "state"
#define SNAPSHOT_MEMORY	     "memory"
#define SNAPSHOT_SUMS	     "memory.sums"
#define SNAPSHOT_MAP	     "memory.map"
#define SNAPSHOT_WORKING_SET "working-set"
#define SNAPSHOT_SET_PAGES   "working-set.pages"

/* Caps on what is read whole. */
#define SNAPSHOT_MAX_MANIFEST_BYTES (1u << 20)
#define SNAPSHOT_MAX_CONFIG_BYTES   (4u << 20)
#define SNAPSHOT_MAX_STATE_BYTES    (256u << 20)
#define SNAPSHOT_MAX_MAP_BYTES	    (256u << 20)

/* Deltas upon deltas, the whole snapshot at the bottom among them. */
#define SNAPSHOT_MAX_CHAIN 16

#endif
