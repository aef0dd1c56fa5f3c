/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memtouch: how long does a guest need to use memory for the first time?
 *
 * N threads each map fresh anonymous memory and write one word per 4 KiB page,
 * all starting together; then once more.  The first pass pays for the guest's
 * own page faults and for whatever the host has to do; the second pays for
 * neither, so their difference is what population should remove.  Huge pages
 * of the guest are off unless asked for, else it would touch one in 512 pages.
 *
 * With --fresh each pass maps its memory anew and has it unmapped before the
 * next, so that all pay for the guest's own faults.  The guest's kernel hands
 * out the pages that were freed last, so only the first pass pays the host, and
 * passes differ by that alone.  Mapping is timed in every pass, unmapping in
 * none.
 *
 * With --ask a pass after the first begins when a line has come on standard
 * input: what the host did to the memory in between is then the pass's to find.
 * A rehearsal on a little memory of its own, which is not timed, comes before:
 * the pass is to tell of its memory, not of code that has not run for a while.
 * With the line "cold" the memory is first moved to other addresses, which
 * takes all of it out of the guest's TLB and faults nothing in. (What the CPU
 * keeps of the second stage alone may stay; after a migration it does not.)
 * With --write-rate too, one more thread writes to memory of its own for as
 * long as a line is waited for, evenly: a load for whoever moves the guest
 * meanwhile.
 *
 * The result is one line of JSON, on standard output.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "tools.h"

#define PAGE_BYTES  4096u
#define THREADS_MAX 256u
#define PASSES_MAX  16u
#define WRITE_MIB   16u /* that --write-rate goes round and round in */
#define TICK_US	    10000u
#define LATE_S	    0.1
#define REHEARSAL_S 0.3 /* in which the timer ticks: that code is cold, too */

struct run {
	uint64_t threads;
	uint64_t mib;
	uint64_t passes;
	bool huge;
	bool fresh;
	bool progress;
	bool ask;
	uint64_t write_rate; /* MiB a second; 0: nobody writes */
	atomic_bool writes, ended;
	bool cold; /* the next pass; between barriers */
	pthread_barrier_t barrier;
	/* Written by the first thread only, between barriers. */
	double seconds[PASSES_MAX];
	atomic_int failed;
	unsigned char rehearsal[16 * PAGE_BYTES];
};

struct worker {
	pthread_t thread;
	struct run *run;
	unsigned int index;
};

static void touch(volatile unsigned char *at, size_t bytes, uint64_t value)
{
	size_t i;

	for (i = 0; i < bytes; i += PAGE_BYTES)
		*(volatile uint64_t *)(at + i) = value + i;
}

/* More threads than CPUs is the caller's choice; then nothing is pinned. */
static void pin(unsigned int index)
{
	cpu_set_t all, one;
	int cpu, seen = 0;

	if (sched_getaffinity(0, sizeof(all), &all))
		return;
	for (cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &all) || seen++ != (int)index)
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		sched_setaffinity(0, sizeof(one), &one);
		return;
	}
}

/*
 * NULL on failure.  The passes then go on without this thread's memory: to
 * leave early would keep the others waiting at the barrier.
 */
static void *map_memory(struct run *run, size_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED) {
		atomic_store(&run->failed, errno);
		return NULL;
	}
	if (madvise(at, bytes, run->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) &&
	    errno != EINVAL)
		atomic_store(&run->failed, errno);
	return at;
}

/* Elsewhere, by the guest's page tables alone. */
static void *move_memory(struct run *run, void *at, size_t bytes)
{
	void *to = mmap(NULL, bytes, PROT_NONE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	void *moved = to == MAP_FAILED
			      ? to
			      : mremap(at, bytes, bytes,
				       MREMAP_MAYMOVE | MREMAP_FIXED, to);

	if (moved == MAP_FAILED) {
		atomic_store(&run->failed, errno);
		return at;
	}
	return moved;
}

/* The first thread keeps the time, which ends when the last one is done. */
static void end_pass(struct run *run, unsigned int pass, double began)
{
	run->seconds[pass] = tools_seconds() - began;
	if (run->progress)
		fprintf(stderr, "memtouch: pass %u took %.6f s\n", pass + 1,
			run->seconds[pass]);
}

static void rehearse(struct run *run)
{
	double until = tools_seconds() + REHEARSAL_S;

	while (tools_seconds() < until)
		touch(run->rehearsal, sizeof(run->rehearsal), 1);
}

/* The others wait at the barrier. */
static void wait_line(struct run *run)
{
	char *line = NULL;
	size_t room = 0;

	atomic_store(&run->writes, true);
	if (getline(&line, &room, stdin) < 0)
		atomic_store(&run->failed, EPIPE);
	atomic_store(&run->writes, false);
	run->cold = line && !strcmp(line, "cold\n");
	free(line);
	rehearse(run);
}

/* A guest that stood still does not make up for that. */
static void *keep_writing(void *arg)
{
	struct run *run = arg;
	size_t bytes = (size_t)WRITE_MIB << 20, at = 0, due;
	double last = tools_seconds(), now;
	unsigned char *memory = map_memory(run, bytes);

	while (memory && !atomic_load(&run->ended)) {
		usleep(TICK_US);
		now = tools_seconds();
		due = (size_t)((now - last < LATE_S ? now - last : LATE_S) *
			       (double)(run->write_rate << 8));
		if (!due)
			continue; /* less than a page yet */
		last = now;
		if (!atomic_load(&run->writes))
			continue;
		for (; due; due--, at = (at + PAGE_BYTES) % bytes)
			touch(memory + at, PAGE_BYTES, at ^ (uint64_t)due);
	}
	if (memory)
		munmap(memory, bytes);
	return NULL;
}

static void *work(void *arg)
{
	struct worker *worker = arg;
	struct run *run = worker->run;
	size_t bytes = (size_t)run->mib << 20;
	double began = 0;
	unsigned int pass;
	void *at = NULL;

	pin(worker->index);
	if (run->ask && !worker->index)
		rehearse(run); /* so that it finds its memory later */
	if (!run->fresh)
		at = map_memory(run, bytes);
	for (pass = 0; pass < run->passes; pass++) {
		if (run->ask && pass && !worker->index)
			wait_line(run);
		pthread_barrier_wait(&run->barrier);
		if (run->cold && at)
			at = move_memory(run, at, bytes);
		pthread_barrier_wait(&run->barrier);
		if (!worker->index)
			began = tools_seconds();
		if (run->fresh)
			at = map_memory(run, bytes);
		if (at)
			/* Never 0: a page of zeroes is none to who moves it. */
			touch(at, bytes, (uint64_t)(pass + 1) << 56);
		pthread_barrier_wait(&run->barrier);
		if (!worker->index)
			end_pass(run, pass, began);
		if (run->fresh && at) {
			munmap(at, bytes);
			at = NULL;
		}
	}
	if (at)
		munmap(at, bytes);
	return NULL;
}

static int run_all(struct run *run)
{
	struct worker *workers = calloc(run->threads, sizeof(*workers));
	pthread_t writer;
	unsigned int i;
	int err;

	if (!workers)
		return ENOMEM;
	pthread_barrier_init(&run->barrier, NULL, (unsigned int)run->threads);
	err = run->write_rate ? pthread_create(&writer, NULL, keep_writing, run)
			      : 0;
	if (err) {
		free(workers);
		return err;
	}
	for (i = 0; i < run->threads; i++) {
		workers[i].run = run;
		workers[i].index = i;
		err = pthread_create(&workers[i].thread, NULL, work,
				     &workers[i]);
		if (err) {
			/* The others wait for this one: there is no way on. */
			fprintf(stderr, "memtouch: thread: %s\n",
				strerror(err));
			exit(1);
		}
	}
	for (i = 0; i < run->threads; i++)
		pthread_join(workers[i].thread, NULL);
	atomic_store(&run->ended, true);
	if (run->write_rate)
		pthread_join(writer, NULL);
	pthread_barrier_destroy(&run->barrier);
	free(workers);
	return atomic_load(&run->failed);
}

static void print_result(const struct run *run)
{
	unsigned int pass;

	printf("{\"threads\": %llu, \"mib_per_thread\": %llu, "
	       "\"huge\": %s, \"fresh\": %s, \"first_pass_s\": %.6f, "
	       "\"second_pass_s\": %.6f, \"passes_s\": [",
	       (unsigned long long)run->threads, (unsigned long long)run->mib,
	       run->huge ? "true" : "false", run->fresh ? "true" : "false",
	       run->seconds[0], run->seconds[1]);
	for (pass = 0; pass < run->passes; pass++)
		printf("%s%.6f", pass ? ", " : "", run->seconds[pass]);
	puts("]}");
}

static int usage(void)
{
	fputs("usage: memtouch [--threads N] [--mib M] [--passes P] [--huge]\n"
	      "                [--fresh] [--progress] [--ask]\n"
	      "                [--write-rate R]\n"
	      "  N threads (2) each write M MiB (256) of fresh memory,\n"
	      "  one write per 4 KiB page, P times (2); with --fresh each\n"
	      "  pass maps it anew.  --progress: a line after each pass, on\n"
	      "  standard error; --ask: a pass after the first waits for a\n"
	      "  line on standard input, \"cold\" for one with an empty TLB;\n"
	      "  --write-rate: until it comes R MiB a second are written as\n"
	      "  well\n",
	      stderr);
	return 2;
}

int memtouch_main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "threads", required_argument, NULL, 't' },
		{ "mib", required_argument, NULL, 'm' },
		{ "passes", required_argument, NULL, 'p' },
		{ "huge", no_argument, NULL, 'h' },
		{ "fresh", no_argument, NULL, 'f' },
		{ "progress", no_argument, NULL, 'v' },
		{ "ask", no_argument, NULL, 'a' },
		{ "write-rate", required_argument, NULL, 'w' },
		{ 0 },
	};
	struct run run = { .threads = 2, .mib = 256, .passes = 2 };
	bool ok = true;
	int opt, err;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (opt == 't')
			ok &= tools_number(optarg, 1, THREADS_MAX,
					   &run.threads);
		else if (opt == 'm')
			ok &= tools_number(optarg, 1, 1u << 20, &run.mib);
		else if (opt == 'p')
			ok &= tools_number(optarg, 2, PASSES_MAX, &run.passes);
		else if (opt == 'h')
			run.huge = true;
		else if (opt == 'f')
			run.fresh = true;
		else if (opt == 'v')
			run.progress = true;
		else if (opt == 'a')
			run.ask = true;
		else if (opt == 'w')
			ok &= tools_number(optarg, 1, 1u << 20,
					   &run.write_rate);
		else
			ok = false;
	}
	if (!ok || optind != argc || (run.write_rate && !run.ask))
		return usage();
	if (!run.huge)
		prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	err = run_all(&run);
	if (err) {
		fprintf(stderr, "memtouch: %llu MiB: %s\n",
			(unsigned long long)run.mib, strerror(err));
		return 1;
	}
	print_result(&run);
	return 0;
}
