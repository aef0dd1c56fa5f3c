/* SPDX-License-Identifier: Apache-2.0 */
/*
 * snapshot/writer_serve.c: what somebody waited for is in the snapshot. The
 * disk is slow for the threads that serve, and for them only.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/thread.h"
#include "mem/uffd.h"
#include "mem/window.h"
#include "no_uring.h"
#include "snapshot_kit.h"

#define SIZE   (16 * MIB)
#define AT     (5 * PAGE_2M + 3 * PAGE_4K) /* in a unit with data */
#define LATE_S 1

static _Atomic bool is_late, fails;

/* In the place of the C library's. */
ssize_t pwrite64(int fd, const void *buf, size_t n, off64_t offset)
{
	if (!strcmp(thread_own_name(), "snapshot-window") &&
	    !atomic_exchange(&is_late, true)) {
		sleep(LATE_S);
		if (atomic_load(&fails)) {
			errno = ENOSPC;
			return -1;
		}
	}
	return syscall(SYS_pwrite64, fd, buf, n, offset);
}

/*
 * As a guest does: the fault has it wait until the unit is copied, which no
 * sanitizer knows.
 */
static void *write_there(void *arg)
{
	char *at = arg;

	__asm__ volatile("movb $1, %0" : "=m"(*at));
	return NULL;
}

struct live {
	struct kit kit;
	struct ram ram;
	int uffd;
	bool all_kinds;
	struct write_window *window;
	struct snapshot_writer *w;
	pthread_t guest;
};

/* A guest waits, and who lets it go has the unit copied but not yet written. */
static void start(struct live *l)
{
	struct err err = ERR_INIT;
	struct snapshot_memory_request req = { .ram = &l->ram, .threads = 1 };

	l->uffd = uffd_open_protecting(NULL, &l->all_kinds, &err);
	if (l->uffd < 0) {
		print_message("skip: %s\n", err.text);
		skip();
	}
	kit_start(&l->kit);
	kit_ram(&l->ram, SIZE, RAM_PAGE_4K, false);
	kit_fill_all(&l->ram, 1);
	assert_int_equal(write_window_open(&l->window, &l->ram, l->uffd,
					   l->all_kinds, &err),
			 0);
	req.window = l->window;
	l->w = kit_writer(
		&(struct snapshot_writer_config){ .path = l->kit.path[0] });
	assert_int_equal(snapshot_writer_prepare_memory(l->w, &req, &err), 0);
	assert_int_equal(write_window_arm(l->window, &err), 0);
	atomic_store(&is_late, false);
	assert_int_equal(pthread_create(&l->guest, NULL, write_there,
					l->ram.base + AT),
			 0);
	pthread_join(l->guest, NULL);
}

static void end(struct live *l)
{
	snapshot_writer_free(l->w);
	write_window_close(l->window);
	ram_fini(&l->ram);
	close(l->uffd);
	kit_end(&l->kit);
}

static void test_late_units_are_waited_for(void **state)
{
	struct live l = { 0 };
	struct snapshot_memory_result result;
	const struct snapshot_memory_request req = { .ram = &l.ram };
	struct err err = ERR_INIT;
	struct snapshot_reader *reader;
	struct ram again;

	start(&l);
	assert_int_equal(snapshot_writer_put_memory(l.w, &req, &result, &err),
			 0);
	assert_int_equal(result.waited_units, 1);
	assert_int_equal(snapshot_writer_commit(l.w, &err), 0);
	reader = kit_open(l.kit.path[0]);
	assert_int_equal(snapshot_reader_verify(reader, 1, NULL, &err), 0);
	kit_ram(&again, SIZE, RAM_PAGE_4K, false);
	assert_int_equal(snapshot_reader_map(reader, &again, &err), 0);
	kit_check_all(&again, 1);
	ram_fini(&again);
	snapshot_reader_free(reader);
	end(&l);
}

/* And so is their failure. */
static void test_late_failure(void **state)
{
	struct live l = { 0 };
	const struct snapshot_memory_request req = { .ram = &l.ram };
	struct err err = ERR_INIT;

	atomic_store(&fails, true);
	start(&l);
	assert_int_equal(snapshot_writer_put_memory(l.w, &req, NULL, &err),
			 -ENOSPC);
	atomic_store(&fails, false);
	end(&l);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(test_late_units_are_waited_for),
	cmocka_unit_test(test_late_failure),
};

static void test_all(void **state)
{
	/* So that it is pwrite() that writes. */
	run_without_io_uring("live", tests);
}

int main(void)
{
	const struct CMUnitTest all[] = { cmocka_unit_test(test_all) };

	return cmocka_run_group_tests(all, NULL, NULL);
}
