/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/stream_out.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"

#define PACK_BYTES (256u << 10) /* are compressed together */

int stream_out_init(struct stream_out *o, enum pack_method pack)
{
	int r;

	o->pack = pack;
	if (pack == PACK_NONE)
		return 0;
	r = packer_new(&o->packer, pack);
	if (r)
		return r;
	o->copy = malloc(PACK_BYTES);
	o->packed = malloc(WIRE_UNIT_BYTES);
	return o->copy && o->packed ? 0 : -ENOMEM;
}

void stream_out_fini(struct stream_out *o)
{
	packer_free(o->packer);
	free(o->copy);
	free(o->packed);
}

void stream_out_begin(struct stream_out *o)
{
	o->num_iov = o->num_headers = 0;
	o->packed_len = 0;
}

bool stream_out_is_empty(const struct stream_out *o)
{
	return !o->num_iov;
}

void stream_out_put(struct stream_out *o, const struct wire_data_header *h,
		    const char *data, size_t len)
{
	uint8_t *out = o->headers[o->num_headers++];

	wire_put_data(out, h);
	o->iov[o->num_iov++] = (struct iovec){ out, WIRE_DATA_BYTES };
	if (len)
		o->iov[o->num_iov++] = (struct iovec){ (char *)data, len };
}

int stream_out_flush(struct stream_out *o, struct err *err)
{
	uint64_t bytes = 0;
	int r;

	for (unsigned int i = 0; i < o->num_iov; i++)
		bytes += o->iov[i].iov_len;
	r = link_send(&o->link, o->iov, o->num_iov);
	stream_out_begin(o);
	atomic_fetch_add(&o->wire_bytes, bytes);
	if (r == -EPIPE)
		return err_set(err, EPIPE, "the other side is gone");
	return r ? err_errno(err, -r, "sending memory and disks") : 0;
}

/*
 * False: it is not worth it. What is compressed is a copy: the guest may write
 * these pages meanwhile, and no compressor says what it does then.
 */
static bool put_packed(struct stream_out *o, uint64_t gpa, const char *from,
		       size_t len)
{
	struct wire_data_header h = {
		.type = o->pack == PACK_LZ4 ? WIRE_PAGES_LZ4 : WIRE_PAGES_ZSTD,
		.gpa = gpa,
		.len = len,
	};
	uint8_t *to = o->packed + o->packed_len;
	size_t n;

	memcpy(o->copy, from, len);
	n = packer_pack(o->packer, o->copy, len, to, len - len / 16);
	if (!n)
		return false;
	o->packed_len += n;
	h.packed = (uint32_t)n;
	stream_out_put(o, &h, (const char *)to, n);
	atomic_fetch_add(&o->pack_from, len);
	atomic_fetch_add(&o->pack_to, n);
	return true;
}

/* In pieces that fit into the copy. */
static int put_pages_packed(struct stream_out *o, uint64_t gpa,
			    const char *from, uint64_t len, struct err *err)
{
	int r = 0;

	for (uint64_t at = 0; !r && at < len; at += PACK_BYTES)
		r = stream_out_put_pages(o, gpa + at, from + at,
					 MIN(len - at, (uint64_t)PACK_BYTES),
					 err);
	return r;
}

int stream_out_put_pages(struct stream_out *o, uint64_t gpa, const char *from,
			 uint64_t len, struct err *err)
{
	const struct wire_data_header h = {
		.type = from ? WIRE_PAGES : WIRE_ZERO,
		.gpa = gpa,
		.len = len,
	};
	int r;

	if (o->packer && from && len > PACK_BYTES)
		return put_pages_packed(o, gpa, from, len, err);
	/* This one, and UNIT behind it. */
	r = o->num_iov + 3 > STREAM_OUT_IOV ? stream_out_flush(o, err) : 0;
	if (r)
		return r;
	atomic_fetch_add(from ? &o->page_bytes : &o->zero_bytes, len);
	if (!o->packer || !from || !put_packed(o, gpa, from, len))
		stream_out_put(o, &h, from, from ? len : 0);
	return 0;
}

int stream_out_mark(struct stream_out *o, enum wire_data type, uint64_t gpa,
		    uint64_t len, struct err *err)
{
	const struct wire_data_header h = { .type = type,
					    .gpa = gpa,
					    .len = len };

	stream_out_begin(o);
	stream_out_put(o, &h, NULL, 0);
	return stream_out_flush(o, err);
}
