/* SPDX-License-Identifier: Apache-2.0 */
#include "virtio/blk/blk_poll.h"

/* Polling has to save a fifth of a request's time to be worth a CPU. */
#define WORTH_NUM 4
#define WORTH_DEN 5

void blk_poll_init(struct blk_poll *p, bool allowed)
{
	*p = (struct blk_poll){ .allowed = allowed };
}

/* What the epoch that begins now is to be. */
static void choose(struct blk_poll *p)
{
	if (p->epoch == BLK_POLL_TRIAL + BLK_POLL_HOLD_EPOCHS) {
		p->epoch = 0;
		p->cost_ns[0] = p->cost_ns[1] = 0;
	}
	if (p->epoch < BLK_POLL_TRIAL)
		p->on = p->epoch % 2;
	else if (p->epoch == BLK_POLL_TRIAL)
		p->on = p->cost_ns[1] * WORTH_DEN < p->cost_ns[0] * WORTH_NUM;
}

static void end_epoch(struct blk_poll *p, uint64_t now_ns, uint64_t requests)
{
	if (p->epoch < BLK_POLL_TRIAL)
		p->cost_ns[p->on] += (now_ns - p->start_ns) /
				     (requests - p->start_requests);
	p->epoch++;
	p->start_ns = now_ns;
	p->start_requests = requests;
	choose(p);
}

uint64_t blk_poll_idle(struct blk_poll *p, uint64_t now_ns, uint64_t requests)
{
	if (!p->allowed)
		return 0;
	if (!p->running) {
		p->running = true;
		p->start_ns = now_ns;
		p->start_requests = requests;
	} else if (requests - p->start_requests >= BLK_POLL_EPOCH) {
		end_epoch(p, now_ns, requests);
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
