/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fastest of each: what is saved on the wire must not be lost waiting for
 * it. A migration packs while the guest runs, on CPUs that it shares.
 *
 * Source: lz4.h (LZ4_decompress_safe() neither reads nor writes outside its
 * buffers, whatever the input), zstd.h (one pass into a buffer of known size
 * uses that as its window).
 */
#include "migrate/pack.h"

#include <errno.h>
#include <lz4.h>
#include <stdlib.h>
#include <zstd.h>

#define ZSTD_LEVEL 1
#define LZ4_SPEED  1

const char *const pack_method_names[PACK_NUM_METHODS] = {
	[PACK_NONE] = "none",
	[PACK_LZ4] = "lz4",
	[PACK_ZSTD] = "zstd",
};

struct packer {
	enum pack_method method;
	void *lz4;
	ZSTD_CCtx *zstd;
};

struct unpacker {
	ZSTD_DCtx *zstd;
};

int packer_new(struct packer **ret, enum pack_method method)
{
	struct packer *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	p->method = method;
	if (method == PACK_LZ4)
		p->lz4 = malloc((size_t)LZ4_sizeofState());
	else
		p->zstd = ZSTD_createCCtx();
	if (p->lz4 || p->zstd) {
		*ret = p;
		return 0;
	}
	packer_free(p);
	return -ENOMEM;
}

void packer_free(struct packer *p)
{
	if (!p)
		return;
	free(p->lz4);
	ZSTD_freeCCtx(p->zstd);
	free(p);
}

size_t packer_pack(struct packer *p, const void *in, size_t len, void *out,
		   size_t size)
{
	size_t n;
	int bytes;

	if (p->method == PACK_LZ4) {
		bytes = LZ4_compress_fast_extState(p->lz4, in, out, (int)len,
						   (int)size, LZ4_SPEED);
		return bytes > 0 ? (size_t)bytes : 0;
	}
	n = ZSTD_compressCCtx(p->zstd, out, size, in, len, ZSTD_LEVEL);
	return ZSTD_isError(n) ? 0 : n;
}

int unpacker_new(struct unpacker **ret)
{
	struct unpacker *u = calloc(1, sizeof(*u));

	if (!u)
		return -ENOMEM;
	u->zstd = ZSTD_createDCtx();
	if (!u->zstd) {
		free(u);
		return -ENOMEM;
	}
	*ret = u;
	return 0;
}

void unpacker_free(struct unpacker *u)
{
	if (!u)
		return;
	ZSTD_freeDCtx(u->zstd);
	free(u);
}

int unpacker_unpack(struct unpacker *u, enum pack_method method, const void *in,
		    size_t bytes, void *out, size_t len)
{
	size_t n = 0;
	int got;

	if (method == PACK_LZ4) {
		got = LZ4_decompress_safe(in, out, (int)bytes, (int)len);
		n = got > 0 ? (size_t)got : 0;
	} else if (method == PACK_ZSTD) {
		n = ZSTD_decompressDCtx(u->zstd, out, len, in, bytes);
	}
	return n == len ? 0 : -EBADMSG;
}
