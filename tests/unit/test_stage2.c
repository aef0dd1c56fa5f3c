/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Filling the second stage of a real VM. What this machine's KVM offers decides
 * which of the methods can be tested; the lab has a KVM for each of them.
 */
#include "kvm_guest.h"

#include <errno.h>
#include <sys/mman.h>

#include "base/arith.h"
#include "base/clock.h"
#include "kvm/stats.h"
#include "mem/coverage.h"
#include "mem/keeper.h"
#include "probe/probe.h"
#include "stage2/detect.h"
#include "stage2/helpers.h"
#include "stage2/stage2.h"

#define TEST_BYTES (16 * MIB)
#define PATIENCE   (60 * NSEC_PER_SEC)

static struct probe *make(enum ram_page page)
{
	struct probe_config cfg = {
		.num_vcpus = 2,
		.test_bytes = TEST_BYTES,
		.guest_page = PROBE_GUEST_PAGE_2M,
		.page = page,
	};
	struct probe *probe = NULL;
	struct err err = ERR_INIT;

	kvm_guest_skip_without_kvm();
	assert_int_equal(probe_new(&probe, &cfg, &err), 0);
	return probe;
}

static bool has_tdp(const struct probe *probe)
{
	return stage2_detect(probe_vm(probe)->kvm) == SECOND_STAGE_TDP;
}

/* Write every page of the test area; how many faults did KVM see? */
static uint64_t faults_of_a_pass(struct probe *probe)
{
	const struct probe_command write = { .op = PROBE_OP_WRITE,
					     .len = TEST_BYTES,
					     .stride = PAGE_4K,
					     .seed = 7,
					     .passes = 1 };
	struct probe_counters before, after;
	struct err err = ERR_INIT;

	assert_int_equal(probe_warm_up(probe, &err), 0);
	if (probe_read_counters(probe, &before)) {
		print_message("skip: this KVM keeps no statistics\n");
		skip();
	}
	assert_int_equal(probe_run_all(probe, &write, PATIENCE, NULL, &err), 0);
	assert_int_equal(probe_read_counters(probe, &after), 0);
	return after.faults - before.faults;
}

static enum stage2_method populate(struct probe *probe,
				   enum stage2_method method)
{
	const struct probe_population how = { .mode = POPULATE_FULL,
					      .stage2 = method,
					      .threads = 2 };
	struct err err = ERR_INIT, reason = ERR_INIT;
	enum stage2_method used;

	assert_int_equal(
		probe_populate(probe, &how, NULL, &used, &reason, &err), 0);
	if (used == STAGE2_NONE)
		assert_true(strlen(reason.text) > 0);
	return used;
}

static void no_faults_by(enum stage2_method method)
{
	static const enum ram_page pages[] = { RAM_PAGE_4K, RAM_PAGE_THP };

	for (size_t i = 0; i < ARRAY_SIZE(pages); i++) {
		struct probe *probe = make(pages[i]);

		assert_int_equal(populate(probe, method), method);
		assert_int_equal(faults_of_a_pass(probe), 0);
		probe_free(probe);
	}
}

static bool works(enum stage2_method method)
{
	struct probe *probe = make(RAM_PAGE_4K);
	struct kvm_vcpu *vcpu = probe_vcpu(probe, 0);
	const struct stage2_env env = { .kvm = probe_vm(probe)->kvm,
					.ram = probe_ram(probe),
					.vcpus = &vcpu,
					.num_vcpus = 1 };
	struct stage2 *stage2 = NULL;
	struct err err = ERR_INIT;
	int r = stage2_open(&stage2, method, &env, &err);

	if (r) {
		assert_int_equal(r, -ENOTSUP);
		assert_true(strlen(err.text) > 0);
	}
	assert_int_equal(stage2_close(stage2, &err), 0);
	probe_free(probe);
	return !r;
}

static void test_ioctl_leaves_no_faults(void **state)
{
	if (!works(STAGE2_IOCTL)) {
		print_message("skip: no KVM_PRE_FAULT_MEMORY here\n");
		skip();
	}
	no_faults_by(STAGE2_IOCTL);
}

static void test_stub_leaves_no_faults(void **state)
{
	if (!works(STAGE2_STUB)) {
		print_message("skip: shadow paging here\n");
		skip();
	}
	no_faults_by(STAGE2_STUB);
}

/* The payload was loaded before: its code, stacks and registers are intact. */
static void test_stub_gives_everything_back(void **state)
{
	struct probe *probe = make(RAM_PAGE_4K);
	const struct ram *ram = probe_ram(probe);
	char before[64 * 1024], after[sizeof(before)];
	struct err err = ERR_INIT;

	if (!has_tdp(probe)) {
		probe_free(probe);
		print_message("skip: shadow paging here\n");
		skip();
	}
	memset(ram->base + MIB, 0xa5, sizeof(before));
	assert_int_equal(mem_read(ram, GPA(MIB), before, sizeof(before)), 0);
	assert_int_equal(populate(probe, STAGE2_STUB), STAGE2_STUB);
	assert_int_equal(mem_read(ram, GPA(MIB), after, sizeof(after)), 0);
	assert_memory_equal(before, after, sizeof(before));
	assert_int_equal(probe_warm_up(probe, &err), 0);
	probe_free(probe);
}

/* Shadow paging: said, and host pages are filled all the same. */
static void test_auto_degrades(void **state)
{
	struct probe *probe = make(RAM_PAGE_4K);
	struct coverage_table host;

	if (has_tdp(probe)) {
		assert_int_not_equal(populate(probe, STAGE2_AUTO), STAGE2_NONE);
	} else {
		assert_int_equal(populate(probe, STAGE2_AUTO), STAGE2_NONE);
		assert_int_equal(coverage_read_host(probe_ram(probe), &host),
				 0);
		assert_int_equal(coverage_total(&host),
				 ram_size(probe_ram(probe)));
	}
	probe_free(probe);
}

static void test_none_touches_no_vcpu(void **state)
{
	struct probe *probe = make(RAM_PAGE_4K);

	assert_int_equal(populate(probe, STAGE2_NONE), STAGE2_NONE);
	assert_true(faults_of_a_pass(probe) > 0);
	probe_free(probe);
}

/* A VM whose second vCPU spins in the guest, and helpers to fill through. */
struct running {
	struct probe *probe;
	struct stage2_helpers helpers;
	struct stage2 *stage2;
	struct keeper *keeper;
};

static void start_running(struct running *s, bool watch)
{
	const struct probe_command spin = { .op = PROBE_OP_SPIN };
	struct probe_counters counters;
	struct err err = ERR_INIT;

	s->probe = make(RAM_PAGE_4K);
	stage2_helpers_init(&s->helpers, probe_vm(s->probe),
			    probe_cpu_model(s->probe), 2, 2);
	assert_int_equal(s->helpers.num, 2);
	assert_int_equal(probe_warm_up(s->probe, &err), 0);
	/* Opens them all: the next one would wait for a vCPU that spins. */
	assert_int_equal(probe_read_counters(s->probe, &counters), 0);
	assert_int_equal(probe_start(s->probe, 1, &spin, &err), 0);
	{
		const struct stage2_env env = { .kvm = probe_vm(s->probe)->kvm,
						.ram = probe_ram(s->probe),
						.vcpus = s->helpers.list,
						.num_vcpus = 2 };
		const struct keeper_config cfg = {
			.ram = probe_ram(s->probe),
			.vm_fd = probe_vm(s->probe)->fd,
			.threads = 2,
			.watch = watch,
		};
		struct keeper_config filled = cfg;

		assert_int_equal(
			stage2_open(&s->stage2, STAGE2_IOCTL, &env, &err), 0);
		assert_true(stage2_works_while_running(s->stage2));
		filled.second_stage = stage2_filler(s->stage2);
		assert_int_equal(keeper_new(&s->keeper, &filled, &err), 0);
	}
}

static void end_running(struct running *s)
{
	struct err err = ERR_INIT;

	keeper_free(s->keeper);
	assert_int_equal(stage2_close(s->stage2, &err), 0);
	probe_stop(s->probe);
	assert_int_equal(probe_wait(s->probe, 1, PATIENCE, NULL, &err), 0);
	stage2_helpers_fini(&s->helpers);
	probe_free(s->probe);
}

/* Faults of vCPU 0 over the whole test area, while vCPU 1 spins. */
static uint64_t faults_beside(struct running *s)
{
	const struct probe_command write = { .op = PROBE_OP_WRITE,
					     .len = TEST_BYTES,
					     .stride = PAGE_4K,
					     .seed = 9,
					     .passes = 1 };
	struct probe_counters before, after;
	struct err err = ERR_INIT;

	assert_int_equal(probe_read_counters(s->probe, &before), 0);
	assert_int_equal(probe_run(s->probe, 0, &write, PATIENCE, NULL, &err),
			 0);
	assert_int_equal(probe_read_counters(s->probe, &after), 0);
	return after.faults - before.faults;
}

static uint64_t covered(struct running *s, struct coverage_table *ret)
{
	struct kvm_stats *stats;

	assert_int_equal(kvm_stats_open(probe_vm(s->probe)->fd, &stats), 0);
	assert_int_equal(coverage_read_second_stage(stats, ret), 0);
	kvm_stats_close(stats);
	return coverage_total(ret);
}

/* Unmaps nothing of the host's, but all of it from the second stage. */
static void zap(struct running *s, uint64_t gpa, uint64_t len)
{
	char *hva = probe_ram(s->probe)->base + gpa;

	assert_int_equal(mprotect(hva, len, PROT_READ), 0);
	assert_int_equal(mprotect(hva, len, PROT_READ | PROT_WRITE), 0);
}

static void skip_without_ioctl(void)
{
	if (!works(STAGE2_IOCTL)) {
		print_message("skip: no KVM_PRE_FAULT_MEMORY here\n");
		skip();
	}
}

static void test_populate_beside_the_guest(void **state)
{
	struct running s;

	skip_without_ioctl();
	start_running(&s, false);
	keeper_request(s.keeper, KEEPER_POPULATE, GPA(0),
		       probe_ram(s.probe)->span);
	assert_int_equal(keeper_wait_idle(s.keeper, PATIENCE), 0);
	assert_int_equal(faults_beside(&s), 0);
	end_running(&s);
}

/* What tells nobody is seen in KVM's counts, and put right unasked. */
static void test_watch_repairs(void **state)
{
	struct coverage_table t;
	struct keeper_stats stats;
	struct running s;
	uint64_t full;

	skip_without_ioctl();
	start_running(&s, true);
	keeper_request(s.keeper, KEEPER_POPULATE, GPA(0),
		       probe_ram(s.probe)->span);
	assert_int_equal(keeper_wait_idle(s.keeper, PATIENCE), 0);
	full = covered(&s, &t);
	zap(&s, 4 * MIB, 8 * MIB);
	assert_true(covered(&s, &t) <= full - 8 * MIB);
	for (int i = 0; i < 600 && covered(&s, &t) < full; i++)
		usleep(100000);
	assert_int_equal(covered(&s, &t), full);
	assert_int_equal(keeper_wait_idle(s.keeper, PATIENCE), 0);
	keeper_read_stats(s.keeper, &stats);
	assert_int_equal(stats.zaps_seen, 1);
	assert_true(stats.zapped_bytes >= 8 * MIB);
	assert_int_equal(faults_beside(&s), 0);
	end_running(&s);
}

/* What the keeper itself does twice, or maps by another kind of work, is no
 * loss. */
static void test_own_work_is_no_zap(void **state)
{
	struct keeper_stats stats;
	struct running s;
	uint64_t span;

	skip_without_ioctl();
	start_running(&s, true);
	span = probe_ram(s.probe)->span;
	keeper_read_stats(s.keeper, &stats);
	for (int i = 0; i < 20 || stats.works[KEEPER_POPULATE].runs < 2; i++) {
		keeper_request(s.keeper, KEEPER_POPULATE, GPA(0), span);
		usleep(1000);
		keeper_read_stats(s.keeper, &stats);
	}
	assert_int_equal(keeper_wait_idle(s.keeper, PATIENCE), 0);
	keeper_request(s.keeper, KEEPER_COALESCE, GPA(0), span);
	assert_int_equal(keeper_wait_idle(s.keeper, PATIENCE), 0);
	keeper_request(s.keeper, KEEPER_REPAIR, GPA(0), span);
	assert_int_equal(keeper_wait_idle(s.keeper, PATIENCE), 0);
	keeper_read_stats(s.keeper, &stats);
	assert_true(stats.works[KEEPER_POPULATE].runs > 1);
	assert_true(stats.coalesced_units > 0);
	assert_int_equal(stats.zaps_seen, 0);
	end_running(&s);
}

/* 4K everywhere, then 2M in both tables, and still no fault. */
static void test_coalesce_both_tables(void **state)
{
	struct coverage_table host, second;
	struct keeper_stats stats;
	struct running s;

	skip_without_ioctl();
	start_running(&s, false);
	keeper_request(s.keeper, KEEPER_POPULATE, GPA(0),
		       probe_ram(s.probe)->span);
	keeper_request(s.keeper, KEEPER_COALESCE, GPA(4 * MIB), 8 * MIB);
	assert_int_equal(keeper_wait_idle(s.keeper, PATIENCE), 0);
	keeper_read_stats(s.keeper, &stats);
	assert_int_equal(stats.coalesced_units + stats.refused_units, 4);
	assert_true(stats.coalesced_units > 0);
	assert_int_equal(coverage_read_host(probe_ram(s.probe), &host), 0);
	covered(&s, &second);
	assert_int_equal(host.by_2m, stats.coalesced_units * PAGE_2M);
	assert_int_equal(second.by_2m, host.by_2m);
	assert_int_equal(faults_beside(&s), 0);
	end_running(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ioctl_leaves_no_faults),
		cmocka_unit_test(test_stub_leaves_no_faults),
		cmocka_unit_test(test_stub_gives_everything_back),
		cmocka_unit_test(test_auto_degrades),
		cmocka_unit_test(test_none_touches_no_vcpu),
		cmocka_unit_test(test_populate_beside_the_guest),
		cmocka_unit_test(test_watch_repairs),
		cmocka_unit_test(test_own_work_is_no_zap),
		cmocka_unit_test(test_coalesce_both_tables),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
