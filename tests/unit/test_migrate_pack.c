/* SPDX-License-Identifier: Apache-2.0 */
/* Pages made smaller, and back (migrate/pack.c). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/pack.h"

#define LEN   (64u << 10)
#define GUARD 0xa5

static const enum pack_method methods[] = { PACK_LZ4, PACK_ZSTD };

static void fill(uint8_t *p, size_t len, unsigned int noise)
{
	uint64_t n = 1;

	for (size_t i = 0; i < len; i++) {
		n = n * 6364136223846793005ull + 1442695040888963407ull;
		p[i] = i % 128 < 16 * noise ? (uint8_t)(n >> 56) : 7;
	}
}

static void test_there_and_back(void **state)
{
	static uint8_t in[LEN], packed[LEN], out[LEN];

	for (size_t m = 0; m < 2; m++) {
		struct packer *p;
		struct unpacker *u;
		size_t n;

		assert_int_equal(packer_new(&p, methods[m]), 0);
		assert_int_equal(unpacker_new(&u), 0);
		for (unsigned int noise = 0; noise < 4; noise++) {
			fill(in, LEN, noise);
			n = packer_pack(p, in, LEN, packed, LEN);
			assert_in_range(n, 1, LEN - 1);
			memset(out, GUARD, LEN);
			assert_int_equal(unpacker_unpack(u, methods[m], packed,
							 n, out, LEN),
					 0);
			assert_memory_equal(in, out, LEN);
			/* Where there is no room it says so. */
			assert_int_equal(packer_pack(p, in, LEN, packed, n / 2),
					 0);
		}
		packer_free(p);
		unpacker_free(u);
	}
}

/* Cut, of the other method, longer or shorter than said. */
static void test_refused(void **state)
{
	static uint8_t in[LEN], packed[LEN], out[LEN + 64];

	fill(in, LEN, 0);
	for (size_t m = 0; m < 2; m++) {
		struct packer *p;
		struct unpacker *u;
		size_t n;

		assert_int_equal(packer_new(&p, methods[m]), 0);
		assert_int_equal(unpacker_new(&u), 0);
		n = packer_pack(p, in, LEN, packed, LEN);
		assert_true(n > 0);
		for (size_t cut = 0; cut < n; cut++)
			assert_int_equal(unpacker_unpack(u, methods[m], packed,
							 cut, out, LEN),
					 -EBADMSG);
		assert_int_equal(unpacker_unpack(u, methods[!m], packed, n, out,
						 LEN),
				 -EBADMSG);
		assert_int_equal(unpacker_unpack(u, PACK_NONE, packed, n, out,
						 LEN),
				 -EBADMSG);
		assert_int_equal(unpacker_unpack(u, methods[m], packed, n, out,
						 LEN + 1),
				 -EBADMSG);
		packer_free(p);
		unpacker_free(u);
	}
}

/* A lot in a little: no more is written than there is room for. */
static void test_bomb(void **state)
{
	const size_t big = 32u << 20;
	uint8_t *zeroes = calloc(1, big), *packed = malloc(1 << 20);
	uint8_t out[4096 + 64];

	assert_non_null(zeroes);
	assert_non_null(packed);
	for (size_t m = 0; m < 2; m++) {
		struct packer *p;
		struct unpacker *u;
		size_t n;

		assert_int_equal(packer_new(&p, methods[m]), 0);
		assert_int_equal(unpacker_new(&u), 0);
		n = packer_pack(p, zeroes, big, packed, 1 << 20);
		assert_true(n > 0);
		memset(out, GUARD, sizeof(out));
		assert_int_equal(unpacker_unpack(u, methods[m], packed, n, out,
						 4096),
				 -EBADMSG);
		for (size_t i = 4096; i < sizeof(out); i++)
			assert_int_equal(out[i], GUARD);
		packer_free(p);
		unpacker_free(u);
	}
	free(zeroes);
	free(packed);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_there_and_back),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_bomb),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
