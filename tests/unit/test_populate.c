/* SPDX-License-Identifier: Apache-2.0 */
#include "ram_present.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/arith.h"
#include "mem/pagemap.h"
#include "mem/populate.h"

#define RAM_BYTES (48 * MIB)
#define NUM_PAGES (RAM_BYTES / PAGE_4K)

static void make(struct ram *ram)
{
	struct ram_config cfg = {
		.size_bytes = RAM_BYTES,
		.hole_start = 3 * GIB,
		.hole_end = 4 * GIB,
		.page = RAM_PAGE_4K,
	};
	struct err err = ERR_INIT;

	assert_int_equal(ram_init(ram, &cfg, &err), 0);
}

/* Two regions: 16 MiB below a hole at 1 GiB, 32 MiB above it. */
static void make_with_hole(struct ram *ram)
{
	struct ram_config cfg = {
		.size_bytes = GIB + 32 * MIB,
		.hole_start = GIB,
		.hole_end = 2 * GIB,
		.page = RAM_PAGE_4K,
	};
	struct err err = ERR_INIT;

	assert_int_equal(ram_init(ram, &cfg, &err), 0);
	assert_int_equal(ram->num_regions, 2);
}

/* A second stage that counts how often each page was filled. */
struct fake {
	const struct ram *ram;
	_Atomic unsigned int filled[NUM_PAGES];
	_Atomic unsigned int missing; /* filled before the host's page */
	_Atomic unsigned int in_use[4], clashes;
	int fail_with;
	uint64_t fail_at;
};

static int fake_fill(void *ctx, unsigned int port, struct gpa gpa, uint64_t len)
{
	struct fake *f = ctx;
	int r = 0;

	assert_true(port < ARRAY_SIZE(f->in_use));
	if (atomic_fetch_add(&f->in_use[port], 1))
		atomic_fetch_add(&f->clashes, 1);
	if (ram_present(f->ram, gpa.v, len) != len)
		atomic_fetch_add(&f->missing, 1);
	for (uint64_t at = gpa.v; at < gpa.v + len; at += PAGE_4K) {
		if (f->fail_with && at == f->fail_at)
			r = f->fail_with;
		atomic_fetch_add(&f->filled[at / PAGE_4K], 1);
	}
	atomic_fetch_sub(&f->in_use[port], 1);
	return r;
}

static struct second_stage_filler fake_filler(struct fake *f,
					      unsigned int ports)
{
	return (struct second_stage_filler){
		.name = "fake", .num_ports = ports, .fill = fake_fill, .ctx = f
	};
}

static void test_fills_exactly_the_range(void **state)
{
	struct populate_request req = { .gpa = GPA(20 * MIB),
					.len = 20 * MIB,
					.host = true,
					.threads = 2 };
	struct populate_result res;
	struct err err = ERR_INIT;
	struct ram ram;

	make(&ram);
	assert_int_equal(populate_run(&ram, &req, &res, &err), 0);
	assert_int_equal(res.host_bytes, 20 * MIB);
	assert_int_equal(res.second_stage_bytes, 0);
	assert_int_equal(ram_present(&ram, 20 * MIB, 20 * MIB), 20 * MIB);
	assert_int_equal(ram_present(&ram, 0, RAM_BYTES), 20 * MIB);
	ram_fini(&ram);
}

static void test_skips_the_hole(void **state)
{
	struct populate_request req = { .gpa = GPA(GIB - 8 * MIB),
					.len = GIB + 16 * MIB,
					.host = true,
					.threads = 3 };
	struct populate_result res;
	struct err err = ERR_INIT;
	struct ram ram;

	make_with_hole(&ram);
	assert_int_equal(populate_run(&ram, &req, &res, &err), 0);
	assert_int_equal(res.total_bytes, 16 * MIB);
	assert_int_equal(ram_present(&ram, GIB - 16 * MIB, 16 * MIB), 8 * MIB);
	assert_int_equal(ram_present(&ram, 2 * GIB, 32 * MIB), 8 * MIB);
	ram_fini(&ram);
}

/*
 * Whatever the mix of threads and ports: each page's second stage once, after
 * its host page, and never two threads on a port.
 */
static void test_pipeline(void **state)
{
	for (unsigned int threads = 1; threads <= 4; threads++) {
		for (unsigned int ports = 1; ports <= 4; ports++) {
			static struct fake f;
			struct second_stage_filler filler;
			struct populate_request req = { .len = RAM_BYTES,
							.host = true,
							.threads = threads };
			struct populate_result res;
			struct err err = ERR_INIT;
			struct ram ram;

			make(&ram);
			memset(&f, 0, sizeof(f));
			f.ram = &ram;
			filler = fake_filler(&f, ports);
			req.second_stage = &filler;
			assert_int_equal(populate_run(&ram, &req, &res, &err),
					 0);
			assert_int_equal(res.second_stage_bytes, RAM_BYTES);
			assert_int_equal(res.ports, MIN(threads, ports));
			assert_int_equal(f.missing, 0);
			assert_int_equal(f.clashes, 0);
			for (size_t i = 0; i < NUM_PAGES; i++)
				assert_int_equal(f.filled[i], 1);
			ram_fini(&ram);
		}
	}
}

/* Repair maps what the host has, and brings nothing back. */
static void test_present_only(void **state)
{
	static struct fake f;
	struct second_stage_filler filler = fake_filler(&f, 2);
	struct populate_request req = { .len = RAM_BYTES,
					.second_stage = &filler,
					.present_only = true };
	struct err err = ERR_INIT;
	struct ram ram;

	make(&ram);
	f.ram = &ram;
	ram.base[5 * PAGE_4K] = 1;
	memset(ram.base + 7 * MIB, 1, 3 * PAGE_4K);
	memset(ram.base + 40 * MIB - PAGE_4K, 1, 2 * PAGE_4K);
	assert_int_equal(populate_run(&ram, &req, NULL, &err), 0);
	assert_int_equal(ram_present(&ram, 0, RAM_BYTES), 6 * PAGE_4K);
	for (size_t i = 0; i < NUM_PAGES; i++) {
		bool there = i == 5 || (i >= 1792 && i < 1795) || i == 10239 ||
			     i == 10240;

		assert_int_equal(f.filled[i], there);
	}
	assert_int_equal(f.missing, 0);
	ram_fini(&ram);
}

static void test_second_stage_failure_names_range(void **state)
{
	static struct fake f;
	struct second_stage_filler filler = fake_filler(&f, 1);
	struct populate_request req = { .len = RAM_BYTES,
					.host = true,
					.threads = 3,
					.second_stage = &filler };
	struct err err = ERR_INIT;
	struct ram ram;

	make(&ram);
	f.ram = &ram;
	f.fail_with = -EIO;
	f.fail_at = 9 * MIB;
	assert_int_equal(populate_run(&ram, &req, NULL, &err), -EIO);
	assert_non_null(strstr(err.text, "guest memory 0x800000-0xa00000"));
	assert_non_null(strstr(err.text, "fake"));
	ram_fini(&ram);
}

/* A page whose fault ends in SIGBUS, as a poisoned or unbacked one's does. */
static int break_page(char *at)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_SIGBUS };
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)at, .len = PAGE_4K },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) ||
	    ioctl(fd, UFFDIO_REGISTER, &reg)) {
		print_message("skip: no userfaultfd with SIGBUS here\n");
		skip();
	}
	return fd;
}

static void test_failing_page_is_named(void **state)
{
	struct populate_request req = { .len = RAM_BYTES,
					.host = true,
					.threads = 2 };
	struct populate_result res;
	struct err err = ERR_INIT;
	struct ram ram;
	int fd;

	make(&ram);
	fd = break_page(ram.base + 17 * MIB + 3 * PAGE_4K);
	assert_int_equal(populate_run(&ram, &req, &res, &err), -EFAULT);
	assert_non_null(strstr(err.text, "guest memory 0x1103000-0x1104000"));
	assert_true(res.host_bytes < RAM_BYTES);
	close(fd);
	ram_fini(&ram);
}

struct poller {
	unsigned int calls, give_up_at;
	uint64_t done;
};

static bool poll(void *ctx, const struct populate_progress *p)
{
	struct poller *poller = ctx;

	assert_int_equal(p->total_bytes, RAM_BYTES);
	assert_true(p->done_bytes >= poller->done);
	poller->done = p->done_bytes;
	return ++poller->calls == poller->give_up_at;
}

static void test_cancel(void **state)
{
	struct poller poller = { .give_up_at = 2 };
	struct populate_watch watch = { .poll = poll, .ctx = &poller };
	struct populate_request req = {
		.len = RAM_BYTES, .host = true, .threads = 1, .watch = &watch
	};
	struct populate_result res;
	struct err err = ERR_INIT;
	struct ram ram;

	make(&ram);
	assert_int_equal(populate_run(&ram, &req, &res, &err), -ECANCELED);
	assert_int_equal(poller.calls, 2);
	assert_true(res.host_bytes > 0 && res.host_bytes < RAM_BYTES);
	ram_fini(&ram);
}

static void test_refuses_while_logged(void **state)
{
	static _Atomic uint64_t map[NUM_PAGES / 64];
	static struct fake f;
	struct second_stage_filler filler = fake_filler(&f, 1);
	struct populate_request req = { .len = RAM_BYTES,
					.host = true,
					.second_stage = &filler };
	struct err err = ERR_INIT;
	struct ram ram;

	make(&ram);
	f.ram = &ram;
	atomic_store(&ram.regions[0].dirty, map);
	assert_int_equal(populate_run(&ram, &req, NULL, &err), -EBUSY);
	req.second_stage = NULL;
	assert_int_equal(populate_run(&ram, &req, NULL, &err), 0);
	ram_fini(&ram);
}

static void test_bad_ranges(void **state)
{
	static const struct {
		uint64_t gpa, len;
	} bad[] = { { 1, PAGE_4K }, { 0, 1 }, { PAGE_4K, UINT64_MAX - 4095 } };
	struct populate_request req = { .host = true };
	struct populate_result res;
	struct err err = ERR_INIT;
	struct ram ram;

	make(&ram);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		req.gpa = GPA(bad[i].gpa);
		req.len = bad[i].len;
		assert_int_equal(populate_run(&ram, &req, NULL, &err), -EINVAL);
	}
	/* Nothing of RAM in it is nothing to do. */
	req.gpa = GPA(GIB);
	req.len = GIB;
	assert_int_equal(populate_run(&ram, &req, &res, &err), 0);
	assert_int_equal(res.total_bytes, 0);
	assert_int_equal(ram_present(&ram, 0, RAM_BYTES), 0);
	ram_fini(&ram);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fills_exactly_the_range),
		cmocka_unit_test(test_skips_the_hole),
		cmocka_unit_test(test_pipeline),
		cmocka_unit_test(test_present_only),
		cmocka_unit_test(test_second_stage_failure_names_range),
		cmocka_unit_test(test_failing_page_is_named),
		cmocka_unit_test(test_cancel),
		cmocka_unit_test(test_refuses_while_logged),
		cmocka_unit_test(test_bad_ranges),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
