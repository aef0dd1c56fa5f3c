/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/perf, with events that the kernel counts itself: hardware counters are
 * rarely there in a VM. Skips where the kernel lets nobody count.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/perf.h"

#define PAGES	   64u
#define PAGE_BYTES 4096u

static void fault_in_pages(void)
{
	char *at = mmap(NULL, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(at, MAP_FAILED);
	madvise(at, PAGES * PAGE_BYTES, MADV_NOHUGEPAGE);
	for (unsigned int i = 0; i < PAGES; i++)
		*(volatile char *)(at + i * PAGE_BYTES) = 1;
	munmap(at, PAGES * PAGE_BYTES);
}

static int open_faults(pid_t tid)
{
	int fd = perf_open(PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS, tid,
			   false);

	if (fd == -EACCES || fd == -EPERM || fd == -ENOSYS) {
		print_message("skip: perf_event_open: errno %d\n", -fd);
		skip();
	}
	assert_true(fd >= 0);
	return fd;
}

static void events_of_this_thread_are_counted(void **state)
{
	uint64_t before = 0, after = 0;
	int fd = open_faults(0);

	assert_int_equal(perf_read(fd, &before), 0);
	fault_in_pages();
	assert_int_equal(perf_read(fd, &after), 0);
	assert_true(after - before >= PAGES);
	close(fd);
}

struct other {
	pthread_barrier_t step;
	pid_t tid;
};

static void *faulting_thread(void *arg)
{
	struct other *other = arg;

	other->tid = gettid();
	pthread_barrier_wait(&other->step); /* tid is known */
	pthread_barrier_wait(&other->step); /* the counter counts */
	fault_in_pages();
	return NULL;
}

/* What the caller does meanwhile is not counted. */
static void events_of_another_thread_are_counted(void **state)
{
	struct other other;
	uint64_t idle = 0, busy = 0;
	pthread_t thread;
	int fd;

	close(open_faults(0)); /* skip before there is a thread */
	pthread_barrier_init(&other.step, NULL, 2);
	assert_int_equal(pthread_create(&thread, NULL, faulting_thread, &other),
			 0);
	pthread_barrier_wait(&other.step);
	fd = perf_open(PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS, other.tid,
		       false);
	assert_true(fd >= 0);
	fault_in_pages();
	assert_int_equal(perf_read(fd, &idle), 0);
	assert_true(idle < PAGES);
	pthread_barrier_wait(&other.step);
	pthread_join(thread, NULL);
	assert_int_equal(perf_read(fd, &busy), 0);
	assert_true(busy >= PAGES);
	close(fd);
	pthread_barrier_destroy(&other.step);
}

static void errors_are_errnos(void **state)
{
	uint64_t value = 77;

	close(open_faults(0));
	assert_int_equal(perf_open(PERF_TYPE_SOFTWARE, UINT64_MAX, 0, false),
			 -ENOENT);
	assert_int_equal(perf_open(PERF_TYPE_SOFTWARE,
				   PERF_COUNT_SW_PAGE_FAULTS, INT32_MAX, false),
			 -ESRCH);
	assert_int_equal(perf_read(-1, &value), -EBADF);
	assert_int_equal(value, 77);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(events_of_this_thread_are_counted),
		cmocka_unit_test(events_of_another_thread_are_counted),
		cmocka_unit_test(errors_are_errnos),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
