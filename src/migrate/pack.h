/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages made smaller for the wire, and back. What a packer makes is one block
 * of LZ4, or one frame of zstd, of a length that goes along; unpacking writes
 * exactly that many bytes, or fails: it takes no memory by what the bytes say.
 *
 * One thread uses a packer or unpacker at a time.
 */
#ifndef QUIRE_MIGRATE_PACK_H
#define QUIRE_MIGRATE_PACK_H

#include <stddef.h>

#include "base/compiler.h"

enum pack_method { PACK_NONE, PACK_LZ4, PACK_ZSTD };

/* "none", "lz4", "zstd", indexed by enum pack_method. */
#define PACK_NUM_METHODS 3
extern const char *const pack_method_names[PACK_NUM_METHODS];

struct packer;

/* Not PACK_NONE. -ENOMEM. */
__must_check int packer_new(struct packer **ret, enum pack_method method);
/* NULL is fine. */
void packer_free(struct packer *p);

/*
 * len bytes, which nobody changes meanwhile, to out. Returns how many these
 * are; 0: they do not fit into size.
 */
__must_check size_t packer_pack(struct packer *p, const void *in, size_t len,
				void *out, size_t size);

struct unpacker;

__must_check int unpacker_new(struct unpacker **ret);
void unpacker_free(struct unpacker *u);

/*
 * in, which may be anything, to len bytes at out. -EBADMSG: it is not of the
 * method, or of another length; out holds something then.
 */
__must_check int unpacker_unpack(struct unpacker *u, enum pack_method method,
				 const void *in, size_t bytes, void *out,
				 size_t len);

#endif
