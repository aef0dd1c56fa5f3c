/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The probe guest at work: every command, on one and on several vCPUs, the
 * exact fault counts, and all the ways a payload can go wrong. Skips without
 * KVM.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/clock.h"
#include "probe/probe.h"
#include "stage2/detect.h"
#include "stage2/trial.h"

#define TIMEOUT (30 * NSEC_PER_SEC)
#define AREA	(16 * MIB)

static void need_kvm(void)
{
	if (access(KVM_DEVICE_PATH, R_OK | W_OK)) {
		print_message("skip: no usable " KVM_DEVICE_PATH "\n");
		skip();
	}
}

static struct probe *make(unsigned int vcpus, uint64_t bytes,
			  enum probe_guest_page page)
{
	struct probe_config cfg = {
		.num_vcpus = vcpus,
		.test_bytes = bytes,
		.guest_page = page,
		.page = RAM_PAGE_4K,
	};
	struct err err = ERR_INIT;
	struct probe *p = NULL;

	need_kvm();
	if (probe_new(&p, &cfg, &err))
		fail_msg("%s", err.text);
	return p;
}

static struct probe_command command(enum probe_op op, uint64_t start,
				    uint64_t len, uint64_t stride,
				    uint64_t seed)
{
	return (struct probe_command){ .op = op,
				       .start = start,
				       .len = len,
				       .stride = stride,
				       .seed = seed,
				       .passes = 1 };
}

static struct probe_outcome run(struct probe *p, unsigned int i,
				struct probe_command cmd)
{
	struct probe_outcome out = { 0 };
	struct err err = ERR_INIT;

	if (probe_run(p, i, &cmd, TIMEOUT, &out, &err))
		fail_msg("%s", err.text);
	return out;
}

static uint64_t host_word(struct probe *p, uint64_t offset)
{
	uint64_t v = 0;

	assert_int_equal(
		mem_read(probe_ram(p),
			 probe_layout_test_gpa(probe_layout(p), offset), &v,
			 sizeof(v)),
		0);
	return v;
}

static void host_write(struct probe *p, uint64_t offset, uint64_t v)
{
	assert_int_equal(
		mem_write(probe_ram(p),
			  probe_layout_test_gpa(probe_layout(p), offset), &v,
			  sizeof(v)),
		0);
}

static void touch_writes_and_reads(void **state)
{
	struct probe *p = make(1, AREA, PROBE_GUEST_PAGE_2M);
	struct probe_outcome out;

	out = run(p, 0,
		  command(PROBE_OP_WRITE, PAGE_4K, 10 * PAGE_4K, PAGE_4K, 7));
	assert_int_equal(out.guest.status, PROBE_DONE);
	assert_int_equal(out.guest.accesses, 10);
	assert_int_equal(out.guest.passes, 1);
	assert_true(out.guest.tsc_end > out.guest.tsc_start);
	assert_true(out.wall_ns > 0);
	assert_int_equal(host_word(p, 0), 0);
	for (uint64_t i = 1; i <= 10; i++) {
		assert_int_equal(host_word(p, i * PAGE_4K), 7);
		assert_int_equal(host_word(p, i * PAGE_4K + 8), 0);
	}
	assert_int_equal(host_word(p, 11 * PAGE_4K), 0);
	out = run(p, 0, command(PROBE_OP_READ, 0, AREA, PAGE_4K, 0));
	assert_int_equal(out.guest.accesses, AREA / PAGE_4K);
	assert_int_equal(out.guest.value, 70);
	probe_free(p);
}

/* A word counts if it lies wholly inside the range. */
static void ranges_are_exact(void **state)
{
	struct probe *p = make(1, AREA, PROBE_GUEST_PAGE_4K);

	assert_int_equal(
		run(p, 0, command(PROBE_OP_WRITE, 0, 7, 8, 1)).guest.accesses,
		0);
	assert_int_equal(
		run(p, 0, command(PROBE_OP_WRITE, 0, 8, 64, 1)).guest.accesses,
		1);
	assert_int_equal(
		run(p, 0, command(PROBE_OP_WRITE, 0, 71, 64, 1)).guest.accesses,
		1);
	assert_int_equal(
		run(p, 0, command(PROBE_OP_WRITE, 0, 72, 64, 1)).guest.accesses,
		2);
	assert_int_equal(host_word(p, 128), 0);
	assert_int_equal(run(p, 0, command(PROBE_OP_WRITE, AREA - 8, 8, 8, 9))
				 .guest.accesses,
			 1);
	assert_int_equal(host_word(p, AREA - 8), 9);
	probe_free(p);
}

/* Host and guest fill the same pattern and see each other's damage. */
static void pattern_both_ways(void **state)
{
	struct probe *p = make(1, AREA, PROBE_GUEST_PAGE_2M);
	struct probe_outcome out;

	run(p, 0, command(PROBE_OP_FILL, 0, MIB, 8, 42));
	for (uint64_t off = 0; off < MIB; off += 8)
		assert_int_equal(host_word(p, off), probe_pattern(42, off));
	for (uint64_t off = MIB; off < 2 * MIB; off += 512)
		host_write(p, off, probe_pattern(42, off));
	out = run(p, 0, command(PROBE_OP_VERIFY, 0, MIB, 8, 42));
	assert_int_equal(out.guest.status, PROBE_DONE);
	assert_int_equal(out.guest.bad_words, 0);
	out = run(p, 0, command(PROBE_OP_VERIFY, MIB, MIB, 512, 42));
	assert_int_equal(out.guest.status, PROBE_DONE);

	host_write(p, 4096, 0);
	host_write(p, 8192, probe_pattern(42, 4096)); /* another page's word */
	out = run(p, 0, command(PROBE_OP_VERIFY, 0, MIB, 8, 42));
	assert_int_equal(out.guest.status, PROBE_MISMATCH);
	assert_int_equal(out.guest.bad_words, 2);
	assert_int_equal(out.guest.bad_offset, 4096);
	assert_int_equal(out.guest.bad_expected, probe_pattern(42, 4096));
	assert_int_equal(out.guest.bad_found, 0);
	out = run(p, 0, command(PROBE_OP_VERIFY, 0, MIB, 8, 43));
	assert_int_equal(out.guest.bad_words, MIB / 8);
	probe_free(p);
}

/* A walk of as many steps as nodes visits all of them: it is one cycle. */
static void walk_is_one_cycle(void **state)
{
	struct probe *p = make(1, AREA, PROBE_GUEST_PAGE_2M);
	struct probe_command walk = command(PROBE_OP_WALK, 0, AREA, PAGE_4K, 0);
	uint64_t nodes = AREA / PAGE_4K, returns = 0, at = 0;
	struct probe_outcome out;

	run(p, 0, command(PROBE_OP_LINK, 0, AREA, PAGE_4K, 5));
	for (uint64_t i = 0; i < nodes; i++) {
		at = host_word(p, at) - PROBE_VA_TEST;
		returns += at == 0;
	}
	assert_int_equal(at, 0);
	assert_int_equal(returns, 1);
	walk.passes = nodes;
	out = run(p, 0, walk);
	assert_int_equal(out.guest.status, PROBE_DONE);
	assert_int_equal(out.guest.accesses, nodes);
	assert_int_equal(out.guest.value, 0);
	walk.passes = 1;
	out = run(p, 0, walk);
	assert_int_equal(out.guest.value, host_word(p, 0) - PROBE_VA_TEST);

	host_write(p, 0, PROBE_VA_TEST + 8); /* not a node */
	walk.passes = nodes;
	out = run(p, 0, walk);
	assert_int_equal(out.guest.status, PROBE_MISMATCH);
	assert_int_equal(out.guest.bad_found, PROBE_VA_TEST + 8);
	probe_free(p);
}

/* Every node once, each inside its stride, not all at the same place in it. */
static void check_staggered(struct probe *p, uint64_t stride)
{
	struct probe_command cmd = command(PROBE_OP_LINK, 0, MIB + 8, stride,
					   5);
	uint64_t nodes = cmd.len / stride, at = 0, elsewhere = 0;
	uint8_t seen[MIB / 64] = { 0 };
	struct probe_outcome out;

	assert_true(nodes <= ARRAY_SIZE(seen));
	host_write(p, nodes * stride, 77); /* beyond the last node */
	cmd.flags = PROBE_F_STAGGER;
	run(p, 0, cmd);
	for (uint64_t i = 0; i < nodes; i++) {
		assert_int_equal(at % stride % 64, 0);
		assert_true(at / stride < nodes);
		assert_false(seen[at / stride]++);
		elsewhere += at % stride != 0;
		at = host_word(p, at) - PROBE_VA_TEST;
	}
	assert_int_equal(at, 0);
	assert_true(elsewhere > nodes / 2);
	assert_int_equal(host_word(p, nodes * stride), 77);
	cmd.op = PROBE_OP_WALK;
	cmd.passes = nodes;
	out = run(p, 0, cmd);
	assert_int_equal(out.guest.status, PROBE_DONE);
	assert_int_equal(out.guest.value, 0);
	/* The right node but another line of it. */
	host_write(p, 0, PROBE_VA_TEST + stride + 8);
	assert_int_equal(run(p, 0, cmd).guest.status, PROBE_MISMATCH);
}

static void staggered_walk_is_one_cycle(void **state)
{
	struct probe *p = make(1, AREA, PROBE_GUEST_PAGE_4K);

	check_staggered(p, PAGE_4K);
	check_staggered(p, 192);
	check_staggered(p, 1000);
	probe_free(p);
}

/* Every word is 0 or one of the values that may be at its place. */
static void scatter_describes_itself(void **state)
{
	struct probe *p = make(1, AREA, PROBE_GUEST_PAGE_2M);
	struct probe_command cmd = command(PROBE_OP_SCATTER, 0, MIB, PAGE_4K,
					   1000);
	uint64_t written = 0;

	cmd.passes = 100;
	assert_int_equal(run(p, 0, cmd).guest.accesses, 100);
	for (uint64_t off = 0; off < AREA; off += PAGE_4K) {
		uint64_t word = host_word(p, off);
		bool known = !word;

		for (uint64_t n = 0; n < 100 && !known; n++)
			known = word == probe_pattern(1000 + n, off);
		assert_true(known);
		assert_true(!word || off < MIB);
		written += word != 0;
	}
	/* 100 of 256 places: not one after the other, and not one for all */
	assert_in_range(written, 50, 99);
	cmd.len = 0; /* nowhere */
	cmd.passes = 0;
	assert_int_equal(run(p, 0, cmd).guest.accesses, 0);
	probe_free(p);
}

static void shares_cover_the_range(void **state)
{
	struct probe_command fill = command(PROBE_OP_FILL, 0, AREA, 8, 3);
	struct probe *p = make(3, AREA, PROBE_GUEST_PAGE_2M);
	struct probe_outcome outs[3];
	struct err err = ERR_INIT;
	uint64_t sum = 0;

	assert_int_equal(probe_run_all(p, &fill, TIMEOUT, outs, &err), 0);
	for (unsigned int i = 0; i < 3; i++)
		sum += outs[i].guest.accesses;
	assert_int_equal(sum, AREA / 8);
	assert_int_equal(
		run(p, 0, command(PROBE_OP_VERIFY, 0, AREA, 8, 3)).guest.status,
		PROBE_DONE);
	probe_free(p);
}

/* Nobody passes the barrier before the last one has arrived. */
static void barrier_holds_back(void **state)
{
	struct probe_command spin = { .op = PROBE_OP_SPIN,
				      .seed = 1,
				      .flags = PROBE_F_BARRIER,
				      .barrier_count = 2 };
	struct probe *p = make(2, AREA, PROBE_GUEST_PAGE_2M);
	struct probe_outcome first, second;
	struct err err = ERR_INIT;

	assert_int_equal(probe_start(p, 0, &spin, &err), 0);
	usleep(100000);
	assert_int_equal(probe_start(p, 0, &spin, &err), -EBUSY);
	assert_int_equal(probe_start(p, 1, &spin, &err), 0);
	assert_int_equal(probe_wait(p, 0, TIMEOUT, &first, &err), 0);
	assert_int_equal(probe_wait(p, 1, TIMEOUT, &second, &err), 0);
	assert_true(first.wall_ns >= 100000000);
	assert_int_equal(first.guest.status, PROBE_DONE);
	assert_int_equal(second.guest.status, PROBE_DONE);
	/* the wait is not the command's time */
	assert_true(first.guest_ns < first.wall_ns);
	probe_free(p);
}

/* One that has done something by then, however late its vCPU's thread is. */
static void stop_endless(struct probe *p, const struct probe_command *cmd)
{
	struct err err = ERR_INIT;
	struct probe_outcome out;
	useconds_t us = 20000;

	do {
		assert_int_equal(probe_start(p, 1, cmd, &err), 0);
		usleep(us);
		probe_stop(p);
		assert_int_equal(probe_wait(p, 1, TIMEOUT, &out, &err), 0);
		assert_int_equal(out.guest.status, PROBE_STOPPED);
		us *= 2;
	} while (!out.guest.passes && us < 60000000);
	assert_true(out.guest.passes > 0);
}

static void stop_ends_endless_commands(void **state)
{
	static const enum probe_op ops[] = { PROBE_OP_WRITE, PROBE_OP_READ,
					     PROBE_OP_WALK, PROBE_OP_SPIN,
					     PROBE_OP_SCATTER };
	struct probe *p = make(2, AREA, PROBE_GUEST_PAGE_2M);
	struct err err = ERR_INIT;
	struct probe_outcome out;

	for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
		struct probe_command cmd = command(ops[i], 0, AREA, PAGE_4K, 0);

		run(p, 0, command(PROBE_OP_LINK, 0, AREA, PAGE_4K, 1));
		cmd.passes = 0;
		stop_endless(p, &cmd);
	}
	/* And one that waits at a barrier nobody else comes to. */
	struct probe_command lone = { .op = PROBE_OP_NOP,
				      .flags = PROBE_F_BARRIER,
				      .barrier_count = 2 };

	assert_int_equal(probe_start(p, 0, &lone, &err), 0);
	usleep(20000);
	probe_stop(p);
	assert_int_equal(probe_wait(p, 0, TIMEOUT, &out, &err), 0);
	assert_int_equal(out.guest.status, PROBE_STOPPED);
	assert_int_equal(probe_run_all(p, &lone, TIMEOUT, NULL, &err), 0);
	probe_free(p);
}

/* One fault per 4K page the first time, none the second. */
static void faults_are_exact(void **state)
{
	struct probe_command write = command(PROBE_OP_WRITE, 0, AREA, PAGE_4K,
					     1);
	struct probe *p = make(2, AREA, PROBE_GUEST_PAGE_2M);
	struct probe_counters a, b, c;
	struct err err = ERR_INIT;
	int r;

	if (probe_warm_up(p, &err))
		fail_msg("%s", err.text);
	r = probe_read_counters(p, &a);
	if (r == -ENOTTY || r == -ENOENT) {
		probe_free(p);
		print_message("skip: this KVM counts no faults\n");
		skip();
	}
	assert_int_equal(r, 0);
	assert_int_equal(probe_run_all(p, &write, TIMEOUT, NULL, &err), 0);
	assert_int_equal(probe_read_counters(p, &b), 0);
	assert_int_equal(probe_run_all(p, &write, TIMEOUT, NULL, &err), 0);
	assert_int_equal(probe_read_counters(p, &c), 0);
	assert_int_equal(b.faults - a.faults, AREA / PAGE_4K);
	assert_int_equal(c.faults - b.faults, 0);
	if (b.has_pages)
		assert_true(b.pages_4k >= AREA / PAGE_4K);
	probe_free(p);
}

/* Every access is in the histogram once, and costs no faults of its own. */
static void timed_accesses_are_counted(void **state)
{
	struct probe_command write = command(PROBE_OP_WRITE, 0, AREA, PAGE_4K,
					     9);
	struct probe *p = make(2, AREA, PROBE_GUEST_PAGE_2M);
	struct probe_counters before, after;
	struct probe_outcome out[2];
	struct histogram_snapshot s;
	struct err err = ERR_INIT;
	bool counted;

	write.flags = PROBE_F_TIMED;
	if (probe_warm_up(p, &err))
		fail_msg("%s", err.text);
	probe_read_times(p, 0, &s);
	assert_int_equal(s.count, 0);
	counted = !probe_read_counters(p, &before);
	assert_int_equal(probe_run_all(p, &write, TIMEOUT, out, &err), 0);
	if (counted) {
		assert_int_equal(probe_read_counters(p, &after), 0);
		assert_int_equal(after.faults - before.faults, AREA / PAGE_4K);
	}
	for (unsigned int i = 0; i < 2; i++) {
		probe_read_times(p, i, &s);
		assert_int_equal(s.count, AREA / PAGE_4K / 2);
		assert_int_equal(out[i].guest.accesses, s.count);
		assert_true(s.min <= s.max && s.max <= s.sum);
		assert_true(s.sum <= out[i].guest_ns);
	}
	for (uint64_t off = 0; off < AREA; off += PAGE_4K)
		assert_int_equal(host_word(p, off), 9);
	/* A timed command starts anew, an untimed one changes nothing. */
	write = command(PROBE_OP_READ, 0, 10 * PAGE_4K, PAGE_4K, 0);
	write.flags = PROBE_F_TIMED;
	write.passes = 3;
	assert_int_equal(run(p, 1, write).guest.value, 10 * 3 * 9);
	run(p, 1, command(PROBE_OP_READ, 0, AREA, PAGE_4K, 0));
	probe_read_times(p, 1, &s);
	assert_int_equal(s.count, 30);
	probe_free(p);
}

static void memory_above_4g_is_reached(void **state)
{
	struct probe *p = make(1, 5 * GIB, PROBE_GUEST_PAGE_2M);
	struct probe_outcome out;

	run(p, 0, command(PROBE_OP_FILL, 0, 5 * GIB, 64 * MIB, 11));
	for (uint64_t off = 0; off < 5 * GIB; off += 64 * MIB)
		assert_int_equal(host_word(p, off), probe_pattern(11, off));
	host_write(p, 5 * GIB - 8, 123);
	out = run(p, 0, command(PROBE_OP_READ, 5 * GIB - 8, 8, 8, 0));
	assert_int_equal(out.guest.value, 123);
	probe_free(p);
}

static void assert_fails(struct probe *p, unsigned int i,
			 struct probe_command cmd, uint64_t timeout, int code,
			 const char *text)
{
	struct err err = ERR_INIT;

	assert_int_equal(probe_run(p, i, &cmd, timeout, NULL, &err), -code);
	if (!strstr(err.text, text))
		fail_msg("'%s' lacks '%s'", err.text, text);
	assert_non_null(strstr(err.text, "RIP 0x1"));
}

static struct probe_command fault_at(uint64_t va)
{
	return (struct probe_command){ .op = PROBE_OP_FAULT,
				       .flags = PROBE_F_ABSOLUTE,
				       .start = va };
}

/* A failed vCPU stays failed; the other one and the host go on. */
static void faulting_payload_is_an_error(void **state)
{
	struct probe *p = make(2, AREA, PROBE_GUEST_PAGE_2M);
	struct probe_command nop = { .op = PROBE_OP_NOP };
	struct err err = ERR_INIT;

	assert_fails(p, 0, fault_at(0x8), TIMEOUT, EIO, "vCPU 0: triple fault");
	assert_int_equal(probe_start(p, 0, &nop, &err), -EIO);
	assert_non_null(strstr(err.text, "triple fault"));
	run(p, 1, nop);
	/* The control area's supervisor pages are as good as not there. */
	assert_fails(p, 1, fault_at(PROBE_VA_GDT), TIMEOUT, EIO,
		     "vCPU 1: triple fault");
	probe_free(p);
}

static void hanging_payload_is_an_error(void **state)
{
	struct probe_command hang = { .op = PROBE_OP_HANG };
	struct probe_command nop = { .op = PROBE_OP_NOP };
	struct probe *p = make(2, AREA, PROBE_GUEST_PAGE_2M);
	uint64_t began = clock_now_ns();
	struct err err = ERR_INIT;

	assert_fails(p, 0, hang, NSEC_PER_SEC / 5, ETIMEDOUT,
		     "vCPU 0: still busy");
	assert_true(clock_now_ns() - began < 60 * NSEC_PER_SEC);
	/* The barrier would wait for the failed one: an error, not a hang. */
	assert_int_equal(probe_run_all(p, &nop, TIMEOUT, NULL, &err),
			 -ETIMEDOUT);
	run(p, 1, nop);
	probe_free(p);
}

static void free_stops_a_running_guest(void **state)
{
	struct probe_command hang = { .op = PROBE_OP_HANG };
	struct probe *p = make(2, AREA, PROBE_GUEST_PAGE_2M);
	struct err err = ERR_INIT;

	assert_int_equal(probe_start(p, 0, &hang, &err), 0);
	assert_int_equal(probe_start(p, 1, &hang, &err), 0);
	usleep(10000);
	probe_free(p);
}

static void exit_is_for_good(void **state)
{
	struct probe_command leave = { .op = PROBE_OP_EXIT };
	struct probe_command nop = { .op = PROBE_OP_NOP };
	struct probe *p = make(1, AREA, PROBE_GUEST_PAGE_2M);
	struct err err = ERR_INIT;

	run(p, 0, nop);
	run(p, 0, leave);
	assert_int_equal(probe_start(p, 0, &nop, &err), -EIO);
	assert_non_null(strstr(err.text, "has left"));
	probe_free(p);
}

static void bad_commands_are_refused(void **state)
{
	struct probe *p = make(1, AREA, PROBE_GUEST_PAGE_2M);
	struct probe_command bad[] = {
		command(PROBE_OP_WRITE, AREA, 8, 8, 0),
		command(PROBE_OP_WRITE, 8, AREA, 8, 0),
		command(PROBE_OP_WRITE, UINT64_MAX - 7, 16, 8, 0),
		command(PROBE_OP_WRITE, 4, 16, 8, 0),
		command(PROBE_OP_WRITE, 0, 16, 12, 0),
		command(PROBE_OP_SCATTER + 1, 0, 0, 0, 0),
		{ .op = PROBE_OP_WRITE,
		  .flags = PROBE_F_ABSOLUTE,
		  .start = PROBE_VA_TEST,
		  .len = 8 },
		{ .op = PROBE_OP_FILL, .flags = PROBE_F_TIMED, .len = 8 },
	};
	struct err err = ERR_INIT;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(probe_start(p, 0, &bad[i], &err), -EINVAL);
		assert_int_equal(probe_run_all(p, &bad[i], TIMEOUT, NULL, &err),
				 -EINVAL);
	}
	run(p, 0, command(PROBE_OP_NOP, 0, 0, 0, 0));
	probe_free(p);
}

static int refuse_setup(void *ctx, const struct kvm_vm *vm, struct err *err)
{
	return err_set(err, ENOTSUP, "not today");
}

static void half_built_probes_go_away(void **state)
{
	struct probe_config cfg = { .num_vcpus = 2, .test_bytes = MIB };
	struct err err = ERR_INIT;
	struct probe *p = NULL;

	cfg.kvm_path = "/dev/null";
	assert_int_not_equal(probe_new(&p, &cfg, &err), 0);
	cfg.kvm_path = "/nonexistent";
	assert_int_equal(probe_new(&p, &cfg, &err), -ENOENT);
	need_kvm();
	cfg.kvm_path = NULL;
	cfg.vm_setup = refuse_setup;
	assert_int_equal(probe_new(&p, &cfg, &err), -ENOTSUP);
	assert_string_equal(err.text, "not today");
	assert_null(p);
	probe_free(NULL);
}

/* What the tries say of this host's KVM is one story, whoever asks. */
static void second_stage_is_measured(void **state)
{
	struct second_stage_evidence ev;
	struct err err = ERR_INIT;
	struct trial trial;
	uint64_t faults;
	struct kvm kvm;

	need_kvm();
	assert_int_equal(kvm_open(&kvm, KVM_DEVICE_PATH, &err), 0);
	if (trial_start(&trial, &kvm, &err))
		fail_msg("%s", err.text);
	second_stage_gather(&trial, "/nonexistent", &ev);
	assert_int_equal(ev.module, SECOND_STAGE_UNKNOWN);
	if (ev.prefault != SECOND_STAGE_UNKNOWN &&
	    ev.faults != SECOND_STAGE_UNKNOWN)
		assert_int_equal(ev.prefault, ev.faults);
	if (ev.faults != SECOND_STAGE_UNKNOWN) {
		/* and again: the trial can be run more than once */
		assert_int_equal(trial_guest_faults(&trial, &faults), 0);
		assert_int_equal(ev.faults, faults ? SECOND_STAGE_SHADOW
						   : SECOND_STAGE_TDP);
		assert_int_equal(stage2_detect(&kvm), second_stage_judge(&ev));
	}
	trial_stop(&trial);
	kvm_close(&kvm);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(touch_writes_and_reads),
		cmocka_unit_test(ranges_are_exact),
		cmocka_unit_test(pattern_both_ways),
		cmocka_unit_test(walk_is_one_cycle),
		cmocka_unit_test(staggered_walk_is_one_cycle),
		cmocka_unit_test(scatter_describes_itself),
		cmocka_unit_test(shares_cover_the_range),
		cmocka_unit_test(barrier_holds_back),
		cmocka_unit_test(stop_ends_endless_commands),
		cmocka_unit_test(faults_are_exact),
		cmocka_unit_test(timed_accesses_are_counted),
		cmocka_unit_test(memory_above_4g_is_reached),
		cmocka_unit_test(faulting_payload_is_an_error),
		cmocka_unit_test(hanging_payload_is_an_error),
		cmocka_unit_test(free_stops_a_running_guest),
		cmocka_unit_test(exit_is_for_good),
		cmocka_unit_test(bad_commands_are_refused),
		cmocka_unit_test(half_built_probes_go_away),
		cmocka_unit_test(second_stage_is_measured),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
