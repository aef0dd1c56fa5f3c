/* SPDX-License-Identifier: Apache-2.0 */
#include "virtio/blk/blk_poll.h"

#include "base/arith.h"

/* Polling has to save a fifth of a request's time to be worth a CPU. */
#define WORTH_NUM 4
#define WORTH_DEN 5

void blk_poll_init(struct blk_poll *p, bool allowed)
{
	*p = (struct blk_poll){ .allowed = allowed };
}

static bool saves(uint64_t with_ns, uint64_t without_ns)
{
	return with_ns * WORTH_DEN < without_ns * WORTH_NUM;
}

/* Is polling still no worse than the trial was without it? */
static bool holds(const struct blk_poll *p, uint64_t cost_ns)
{
	return !p->on || cost_ns < MAX(p->cost_ns[0], p->cost_ns[3]);
}

static void end_epoch(struct blk_poll *p, uint64_t cost_ns)
{
	if (p->epoch < BLK_POLL_TRIAL)
		p->cost_ns[p->epoch] = cost_ns;
	else if (!holds(p, cost_ns))
		p->epoch = BLK_POLL_TRIAL + BLK_POLL_HOLD_EPOCHS - 1;
	p->epoch++;
	if (p->epoch == BLK_POLL_TRIAL + BLK_POLL_HOLD_EPOCHS)
		p->epoch = 0;
	if (p->epoch < BLK_POLL_TRIAL)
		p->on = p->epoch == 1 || p->epoch == 2;
	else if (p->epoch == BLK_POLL_TRIAL)
		p->on = saves(p->cost_ns[1], p->cost_ns[0]) &&
			saves(p->cost_ns[2], p->cost_ns[3]);
}

uint64_t blk_poll_idle(struct blk_poll *p, uint64_t now_ns, uint64_t requests)
{
	uint64_t done = requests - p->start_requests;

	if (!p->allowed)
		return 0;
	if (p->running && done >= BLK_POLL_EPOCH)
		end_epoch(p, (now_ns - p->start_ns) / done);
	if (!p->running || done >= BLK_POLL_EPOCH) {
		p->running = true;
		p->start_ns = now_ns;
		p->start_requests = requests;
	}
	return p->on && !p->paused ? BLK_POLL_NS : 0;
}

void blk_poll_work(struct blk_poll *p, uint64_t idle_ns)
{
	p->paused = idle_ns > BLK_POLL_NS;
	/* An epoch is as if the pause had not been. */
	if (p->paused)
		p->start_ns += idle_ns;
}
