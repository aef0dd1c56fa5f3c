/* SPDX-License-Identifier: Apache-2.0 */
#include "base/progress.h"

#include <unistd.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/size.h"

#define FIRST_NS	 NSEC_PER_SEC
#define TERMINAL_STEP_NS (NSEC_PER_SEC / 5)
#define JSON_STEP_NS	 NSEC_PER_SEC

void progress_init(struct progress *p, const char *what)
{
	*p = (struct progress){
		.what = what,
		.out = stderr,
		.terminal = isatty(STDERR_FILENO) == 1,
		.next_ns = FIRST_NS,
	};
}

static void show_terminal(struct progress *p, uint64_t done, uint64_t total,
			  uint64_t per_s, uint64_t eta_s)
{
	char have[32], all[32], rate[32];

	fprintf(p->out, "\r%s: %3.0f %%  %s of %s, %s/s, %llu s left \033[K",
		p->what, 100.0 * (double)done / (double)total,
		size_format(done, have, sizeof(have)),
		size_format(total, all, sizeof(all)),
		size_format(per_s, rate, sizeof(rate)),
		(unsigned long long)eta_s);
	fflush(p->out);
	p->shown = true;
}

void progress_update(struct progress *p, uint64_t done, uint64_t total,
		     uint64_t elapsed_ns)
{
	uint64_t per_s, eta_s;

	if (elapsed_ns < p->next_ns || !total)
		return;
	p->next_ns = elapsed_ns +
		     (p->terminal ? TERMINAL_STEP_NS : JSON_STEP_NS);
	per_s = (uint64_t)((double)done * 1e9 / (double)elapsed_ns);
	eta_s = per_s ? div_round_up(total - MIN(done, total), per_s) : 0;
	if (p->terminal)
		show_terminal(p, done, total, per_s, eta_s);
	else
		fprintf(p->out,
			"{\"progress\": \"%s\", \"done_bytes\": %llu, "
			"\"total_bytes\": %llu, \"bytes_per_s\": %llu, "
			"\"eta_s\": %llu}\n",
			p->what, (unsigned long long)done,
			(unsigned long long)total, (unsigned long long)per_s,
			(unsigned long long)eta_s);
}

void progress_end(struct progress *p)
{
	if (p->shown)
		fprintf(p->out, "\r\033[K");
	p->shown = false;
}
