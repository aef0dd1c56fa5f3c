/* SPDX-License-Identifier: Apache-2.0 */
#include "block/track.h"

#include <errno.h>
#include <stdlib.h>

#include "base/arith.h"
#include "base/compiler.h"

#define WORD_BITS 64u

static uint64_t num_words(const struct block_track *t)
{
	return div_round_up(t->clusters, WORD_BITS);
}

/* The bits of word i that stand for clusters. */
static uint64_t whole_word(const struct block_track *t, uint64_t i)
{
	uint64_t left = t->clusters - i * WORD_BITS;

	return left < WORD_BITS ? (1ull << left) - 1 : ~0ull;
}

int block_track_start(struct block_track *t, uint64_t bytes)
{
	uint64_t clusters = div_round_up(bytes, BLOCK_CLUSTER_BYTES);

	BUG_ON(!bytes || (t->words && t->clusters != clusters));
	if (!t->words) {
		t->clusters = clusters;
		t->words = calloc(num_words(t), sizeof(t->words[0]));
	}
	if (!t->words)
		return -ENOMEM;
	for (uint64_t i = 0; i < num_words(t); i++)
		atomic_store_explicit(&t->words[i], whole_word(t, i),
				      memory_order_relaxed);
	/*
	 * Pairs with the fence of block_track_set(). And before anything of the
	 * image is read: a write that was not noted was in it by then.
	 */
	atomic_store(&t->on, true);
	return 0;
}

void block_track_stop(struct block_track *t)
{
	atomic_store_explicit(&t->on, false, memory_order_relaxed);
}

void block_track_fini(struct block_track *t)
{
	free(t->words);
	t->words = NULL;
}

void block_track_set(struct block_track *t, uint64_t offset, uint64_t len)
{
	uint64_t at = offset / BLOCK_CLUSTER_BYTES;
	uint64_t end = div_round_up(offset + len, BLOCK_CLUSTER_BYTES);

	atomic_thread_fence(memory_order_acquire);
	while (at < end) {
		uint64_t first = at % WORD_BITS;
		uint64_t num = MIN(end - at, WORD_BITS - first);
		uint64_t bits = num < WORD_BITS ? (1ull << num) - 1 : ~0ull;

		/* What was written is there for who sees the bit. */
		atomic_fetch_or_explicit(&t->words[at / WORD_BITS],
					 bits << first, memory_order_release);
		at += num;
	}
}

uint64_t block_track_take(struct block_track *t, uint64_t first, uint64_t num,
			  uint64_t *bits)
{
	uint64_t sum = 0;

	BUG_ON(first % WORD_BITS || !range_ok(first, num, t->clusters));
	for (uint64_t i = 0; i < div_round_up(num, WORD_BITS); i++) {
		_Atomic uint64_t *word = &t->words[first / WORD_BITS + i];
		uint64_t left = num - i * WORD_BITS, mask;

		mask = left < WORD_BITS ? (1ull << left) - 1 : ~0ull;
		bits[i] = 0;
		/* Of a large image most are clean, and cost a look. */
		if (!atomic_load_explicit(word, memory_order_relaxed))
			continue;
		bits[i] = atomic_fetch_and_explicit(word, ~mask,
						    memory_order_acquire) &
			  mask;
		sum += (uint64_t)__builtin_popcountll(bits[i]);
	}
	return sum;
}

uint64_t block_track_count(const struct block_track *t)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; t->words && i < num_words(t); i++)
		sum += (uint64_t)__builtin_popcountll(atomic_load_explicit(
			&t->words[i], memory_order_relaxed));
	return sum;
}
