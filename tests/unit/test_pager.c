/* SPDX-License-Identifier: Apache-2.0 */
#include "ram_present.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "mem/pager.h"
#include "mem/uffd.h"

#define LONG_NS (60 * NSEC_PER_SEC)

/*
 * A source with a word for each page, derived from its address. Of every four
 * units the first is zero and the second has zeroes in its odd pages; a GiB has
 * nothing beyond its first 128 MiB.
 */
struct fake {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	uint64_t fail_at;  /* -EIO for the page there; 0: never */
	bool fed;	   /* absent until put */
	_Atomic bool come; /* what was absent is zero */
	unsigned int hold; /* reads wait until so many do at once */
	bool aborted, held_back;
	uint64_t hold_below; /* reads below wait for release or abort */
	unsigned int inside;
	_Atomic uint64_t reads;
};

static bool is_zero_page(uint64_t gpa)
{
	uint64_t unit = gpa / PAGE_2M;

	return gpa % GIB >= 128 * MIB || unit % 4 == 0 ||
	       (unit % 4 == 1 && gpa / PAGE_4K % 2);
}

static uint64_t word(uint64_t gpa)
{
	return is_zero_page(gpa) ? 0 : (gpa / PAGE_4K + 1) * 0x9e3779b9ull;
}

static int fake_extent(void *ctx, struct gpa gpa, uint64_t len,
		       enum mem_content *ret_content, uint64_t *ret_len)
{
	struct fake *f = ctx;
	bool zero = is_zero_page(gpa.v);
	uint64_t at = gpa.v;

	if (f->fed) {
		*ret_content = atomic_load(&f->come) ? MEM_CONTENT_ZERO
						     : MEM_CONTENT_ABSENT;
		*ret_len = len;
		return 0;
	}
	while (at < gpa.v + len && is_zero_page(at) == zero)
		at += PAGE_4K;
	*ret_content = zero ? MEM_CONTENT_ZERO : MEM_CONTENT_DATA;
	*ret_len = at - gpa.v;
	return 0;
}

static int hold_back(struct fake *f, struct gpa gpa)
{
	int r = 0;

	pthread_mutex_lock(&f->lock);
	f->inside++;
	pthread_cond_broadcast(&f->changed);
	while (f->hold && f->inside < f->hold)
		pthread_cond_wait(&f->changed, &f->lock);
	if (f->inside == f->hold)
		f->hold = 0;
	while (f->held_back && gpa.v < f->hold_below && !f->aborted)
		pthread_cond_wait(&f->changed, &f->lock);
	f->inside--;
	if (f->aborted)
		r = -ECANCELED;
	pthread_mutex_unlock(&f->lock);
	return r;
}

static int fake_read(void *ctx, struct gpa gpa, void *buf, uint64_t len,
		     struct err *err)
{
	struct fake *f = ctx;
	int r = hold_back(f, gpa);

	atomic_fetch_add(&f->reads, 1);
	if (r)
		return err_set(err, -r, "aborted");
	if (f->fed)
		return -EAGAIN;
	pthread_mutex_lock(&f->lock);
	if (f->fail_at >= gpa.v && f->fail_at < gpa.v + len)
		r = err_set(err, EIO, "page at %#llx is broken",
			    (unsigned long long)f->fail_at);
	pthread_mutex_unlock(&f->lock);
	for (uint64_t off = 0; !r && off < len; off += PAGE_4K) {
		uint64_t *p = (uint64_t *)((char *)buf + off);

		memset(p, 0, PAGE_4K);
		p[0] = p[511] = word(gpa.v + off);
	}
	return r;
}

static void fake_abort(void *ctx)
{
	struct fake *f = ctx;

	pthread_mutex_lock(&f->lock);
	f->aborted = true;
	pthread_cond_broadcast(&f->changed);
	pthread_mutex_unlock(&f->lock);
}

static const struct mem_source_ops fake_ops = {
	.name = "fake",
	.extent = fake_extent,
	.read = fake_read,
	.abort = fake_abort,
};

/* ---- what a test has ---- */

struct rig {
	struct ram ram;
	struct fake fake;
	struct mem_source source;
	struct pager_config cfg;
	struct pager *pager;
	_Atomic unsigned int failed, ahead_done, all_done;
	_Atomic uint64_t filled;
	struct err err;
};

static void on_failed(void *ctx, const struct err *err)
{
	struct rig *rig = ctx;

	rig->err = *err;
	atomic_fetch_add(&rig->failed, 1);
}

static void on_ahead(void *ctx)
{
	struct rig *rig = ctx;

	atomic_fetch_add(&rig->ahead_done, 1);
}

static void on_all(void *ctx)
{
	struct rig *rig = ctx;

	atomic_fetch_add(&rig->all_done, 1);
}

static void on_filled(void *ctx, struct gpa gpa, uint64_t len)
{
	struct rig *rig = ctx;

	atomic_fetch_add(&rig->filled, len);
}

static void rig_init(struct rig *rig, uint64_t size, enum ram_page page,
		     bool shared)
{
	const struct ram_config cfg = {
		.size_bytes = size,
		.hole_start = GIB,
		.hole_end = 2 * GIB,
		.page = page,
		.shared = shared,
	};
	struct err err = ERR_INIT;

	memset(rig, 0, sizeof(*rig));
	pthread_mutex_init(&rig->fake.lock, NULL);
	pthread_cond_init(&rig->fake.changed, NULL);
	rig->source = (struct mem_source){ &fake_ops, &rig->fake };
	if (ram_init(&rig->ram, &cfg, &err)) {
		print_message("skip: %s\n", err.text);
		skip();
	}
	rig->cfg = (struct pager_config){
		.ram = &rig->ram,
		.source = &rig->source,
		.handlers = 2,
		.fillers = 2,
		.uffds = 3,
		.filled = on_filled,
		.failed = on_failed,
		.ahead_done = on_ahead,
		.all_done = on_all,
		.ctx = rig,
	};
}

static void rig_start(struct rig *rig)
{
	struct err err = ERR_INIT;
	int fd = uffd_open(NULL, false, false, &err);

	if (fd < 0) {
		print_message("skip: %s\n", err.text);
		skip();
	}
	close(fd);
	if (pager_new(&rig->pager, &rig->cfg, &err)) {
		print_message("%s\n", err.text);
		fail();
	}
}

static void rig_end(struct rig *rig)
{
	pager_free(rig->pager);
	assert_null(rig->ram.behind);
	ram_fini(&rig->ram);
	pthread_cond_destroy(&rig->fake.changed);
	pthread_mutex_destroy(&rig->fake.lock);
}

static uint64_t load_word(const struct rig *rig, uint64_t gpa)
{
	return *(volatile uint64_t *)(rig->ram.base + gpa);
}

static uint64_t data_bytes(const struct rig *rig)
{
	uint64_t bytes = 0;

	for (unsigned int i = 0; i < rig->ram.num_regions; i++) {
		const struct ram_region *region = &rig->ram.regions[i];

		for (uint64_t off = 0; off < region->size; off += PAGE_4K)
			bytes += is_zero_page(region->base.v + off) ? 0
								    : PAGE_4K;
	}
	return bytes;
}

static void check_all(const struct rig *rig)
{
	for (unsigned int i = 0; i < rig->ram.num_regions; i++) {
		const struct ram_region *region = &rig->ram.regions[i];

		for (uint64_t off = 0; off < region->size; off += PAGE_4K) {
			uint64_t gpa = region->base.v + off;

			assert_int_equal(load_word(rig, gpa), word(gpa));
			assert_int_equal(load_word(rig, gpa + 4088), word(gpa));
		}
	}
}

static struct pager_stats stats(const struct rig *rig)
{
	struct pager_stats s;

	pager_read_stats(rig->pager, &s);
	return s;
}

static unsigned int inside(struct rig *rig)
{
	unsigned int n;

	pthread_mutex_lock(&rig->fake.lock);
	n = rig->fake.inside;
	pthread_mutex_unlock(&rig->fake.lock);
	return n;
}

/* Who waited goes on a little before the fault is counted. */
static struct pager_stats served(const struct rig *rig, uint64_t faults)
{
	while (stats(rig).faults < faults)
		usleep(1000);
	return stats(rig);
}

/* A thread that reads one word, which may take long. */
struct toucher {
	const struct rig *rig;
	uint64_t gpa, value;
	_Atomic bool done;
	pthread_t thread;
};

static void *touch(void *arg)
{
	struct toucher *t = arg;

	t->value = load_word(t->rig, t->gpa);
	atomic_store(&t->done, true);
	return NULL;
}

static void touch_start(struct toucher *t, const struct rig *rig, uint64_t gpa)
{
	*t = (struct toucher){ .rig = rig, .gpa = gpa };
	assert_int_equal(pthread_create(&t->thread, NULL, touch, t), 0);
}

static uint64_t touch_end(struct toucher *t)
{
	pthread_join(t->thread, NULL);
	return t->value;
}

#define wait_until(cond)              \
	do {                          \
		while (!(cond))       \
			usleep(1000); \
	} while (0)

/* ---- tests ---- */

/* Only what is touched comes, and each page of it once. */
static void test_faults(void **state)
{
	struct rig rig;
	struct pager_stats s;

	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	rig_start(&rig);
	assert_ptr_equal(rig.ram.behind, &rig.source);
	for (uint64_t gpa = 4 * MIB; gpa < 6 * MIB; gpa += 4 * PAGE_4K)
		assert_int_equal(load_word(&rig, gpa), word(gpa));
	s = served(&rig, 128);
	assert_int_equal(s.faults, 128);
	assert_int_equal(s.bytes[PAGER_FAULT], 128 * PAGE_4K);
	assert_int_equal(s.bytes[PAGER_SWEEP], 0);
	assert_int_equal(s.service.count, 128);
	assert_int_equal(s.total_bytes, 48 * MIB);
	assert_int_equal(s.zero_bytes, 12 * MIB);
	assert_int_equal(s.settled_bytes, 12 * MIB + 128 * PAGE_4K);
	assert_int_equal(ram_present(&rig.ram, 0, 48 * MIB), 128 * PAGE_4K);
	assert_false(pager_is_complete(rig.pager));
	assert_int_equal(pager_wait_complete(rig.pager, 0), -ETIMEDOUT);
	rig_end(&rig);
}

/* A system call that reads guest memory faults in the kernel, as KVM does. */
static void test_kernel_faults(void **state)
{
	struct rig rig;
	uint64_t value;
	int fds[2];

	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	rig_start(&rig);
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(write(fds[1], rig.ram.base + 36 * MIB, 8), 8);
	assert_int_equal(read(fds[0], &value, 8), 8);
	assert_int_equal(value, word(36 * MIB));
	assert_int_equal(served(&rig, 1).faults, 1);
	close(fds[0]);
	close(fds[1]);
	rig_end(&rig);
}

/* Faults alone complete a block, and it leaves. */
static void test_faults_complete(void **state)
{
	struct rig rig;

	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	rig_start(&rig);
	check_all(&rig);
	assert_int_equal(pager_wait_complete(rig.pager, LONG_NS), 0);
	assert_int_equal(stats(&rig).blocks_done, 3);
	assert_int_equal(stats(&rig).settled_bytes, 48 * MIB);
	assert_int_equal(stats(&rig).bytes[PAGER_FAULT], data_bytes(&rig));
	rig_end(&rig);
}

static void test_zeroes(void **state)
{
	struct rig rig;
	struct pager_stats s;

	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	rig_start(&rig);
	/* Before the first data of its block: never registered. */
	assert_int_equal(load_word(&rig, 0), 0);
	assert_int_equal(stats(&rig).faults, 0);
	/* Between data: the first touch takes the unit out. */
	for (uint64_t gpa = 8 * MIB; gpa < 10 * MIB; gpa += PAGE_4K)
		assert_int_equal(load_word(&rig, gpa), 0);
	s = served(&rig, 1);
	assert_int_equal(s.faults, 1);
	assert_int_equal(s.zero_faults, 1);
	assert_int_equal(s.released_units, 1);
	/* Zero pages in a unit with data, read and written. */
	assert_int_equal(load_word(&rig, 2 * MIB + PAGE_4K), 0);
	*(volatile uint64_t *)(rig.ram.base + 2 * MIB + 3 * PAGE_4K) = 7;
	assert_int_equal(load_word(&rig, 2 * MIB + 3 * PAGE_4K), 7);
	s = served(&rig, 3);
	assert_int_equal(s.faults, 3);
	assert_int_equal(s.zero_faults, 3);
	assert_int_equal(s.bytes[PAGER_FAULT], 0);
	assert_int_equal(atomic_load(&rig.fake.reads), 0);
	rig_end(&rig);
}

static void sweep(uint64_t size, enum ram_page page, bool shared)
{
	struct rig rig;
	struct pager_stats s;

	rig_init(&rig, size, page, shared);
	rig.cfg.sweep = true;
	rig_start(&rig);
	assert_int_equal(pager_wait_complete(rig.pager, LONG_NS), 0);
	wait_until(atomic_load(&rig.all_done));
	s = stats(&rig);
	assert_int_equal(s.faults, 0);
	assert_int_equal(s.blocks_done, s.blocks);
	assert_int_equal(s.settled_bytes, size);
	assert_true(atomic_load(&rig.filled) >= data_bytes(&rig));
	if (page == RAM_PAGE_4K) {
		assert_int_equal(s.bytes[PAGER_SWEEP], data_bytes(&rig));
		assert_int_equal(ram_present(&rig.ram, 0,
					     rig.ram.regions[0].size),
				 rig.ram.num_regions == 1
					 ? data_bytes(&rig)
					 : ram_present(&rig.ram, 0, GIB));
	}
	check_all(&rig);
	assert_int_equal(stats(&rig).faults, 0);
	assert_int_equal(atomic_load(&rig.all_done), 1);
	assert_int_equal(atomic_load(&rig.failed), 0);
	rig_end(&rig);
}

static void test_sweep(void **state)
{
	sweep(48 * MIB, RAM_PAGE_4K, false);
	sweep(47 * MIB + 12 * KIB, RAM_PAGE_4K, false);
	sweep(48 * MIB, RAM_PAGE_4K, true);
}

static void test_sweep_two_regions(void **state)
{
	sweep(GIB + 48 * MIB, RAM_PAGE_4K, false);
}

static void test_sweep_thp(void **state)
{
	sweep(48 * MIB, RAM_PAGE_THP, false);
}

static void sweep_thp(struct rig *rig)
{
	rig_init(rig, 48 * MIB, RAM_PAGE_THP, false);
	rig->cfg.sweep = true;
	rig_start(rig);
	assert_int_equal(pager_wait_complete(rig->pager, LONG_NS), 0);
}

static void test_collapse(void **state)
{
	struct rig rig;
	struct pagemap pm;
	int huge;

	sweep_thp(&rig);
	/* A kernel that could may say "not now" of one or another. */
	for (int i = 0; i < 4 && stats(&rig).collapsed_units < 18; i++) {
		rig_end(&rig);
		sweep_thp(&rig);
	}
	if (!stats(&rig).collapsed_units) {
		rig_end(&rig);
		print_message("skip: this kernel collapses nothing\n");
		skip();
	}
	/* Three of four units have data, half of it in one. */
	assert_int_equal(stats(&rig).collapsed_units, 18);
	assert_int_equal(pagemap_open(&pm), 0);
	huge = pagemap_is_huge(&pm, &rig.ram, GPA(4 * MIB), PAGE_2M);
	pagemap_close(&pm);
	assert_true(huge == 1 || huge == -ENOTTY);
	check_all(&rig);
	rig_end(&rig);
}

static void hugetlb(bool shared)
{
	struct rig rig;
	struct pager_stats s;

	rig_init(&rig, 24 * MIB, RAM_PAGE_2M, shared);
	rig_start(&rig);
	assert_int_equal(load_word(&rig, 2 * MIB + 2 * PAGE_4K),
			 word(2 * MIB + 2 * PAGE_4K));
	assert_int_equal(load_word(&rig, 2 * MIB + PAGE_4K), 0);
	assert_int_equal(load_word(&rig, 8 * MIB), 0);
	s = served(&rig, 2);
	assert_int_equal(s.faults, 2);
	assert_int_equal(s.bytes[PAGER_FAULT], 2 * MIB);
	check_all(&rig);
	assert_int_equal(pager_wait_complete(rig.pager, LONG_NS), 0);
	rig_end(&rig);
	sweep(24 * MIB, RAM_PAGE_2M, shared);
}

/* A pool of the test's own size, if there may be one. */
static void test_hugetlb(void **state)
{
	static const char path[] = "/proc/sys/vm/nr_hugepages";
	uint64_t before = 0;
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	char text[32];

	if (fd < 0 || io_read_u64(path, &before)) {
		print_message("skip: no hugetlb pool can be made\n");
		skip();
	}
	snprintf(text, sizeof(text), "%llu", (unsigned long long)before + 16);
	assert_true(pwrite(fd, text, strlen(text), 0) > 0);
	hugetlb(false);
	hugetlb(true);
	snprintf(text, sizeof(text), "%llu", (unsigned long long)before);
	assert_true(pwrite(fd, text, strlen(text), 0) > 0);
	close(fd);
}

static void test_1g_refused(void **state)
{
	struct rig rig;
	struct err err = ERR_INIT;

	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	rig.ram.page = RAM_PAGE_1G;
	assert_int_equal(pager_new(&rig.pager, &rig.cfg, &err), -ENOTSUP);
	rig.ram.page = RAM_PAGE_4K;
	rig_end(&rig);
}

/* ---- priorities ---- */

/* Handlers serve while all fillers wait for the source. */
static void test_fault_overtakes(void **state)
{
	struct rig rig;

	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	rig.cfg.sweep = true;
	rig.cfg.fillers = rig.cfg.sweepers = 2;
	rig.fake.held_back = true;
	rig.fake.hold_below = 32 * MIB;
	rig_start(&rig);
	wait_until(inside(&rig) == 2);
	assert_int_equal(load_word(&rig, 44 * MIB), word(44 * MIB));
	assert_int_equal(served(&rig, 1).faults, 1);
	pthread_mutex_lock(&rig.fake.lock);
	rig.fake.held_back = false;
	pthread_cond_broadcast(&rig.fake.changed);
	pthread_mutex_unlock(&rig.fake.lock);
	assert_int_equal(pager_wait_complete(rig.pager, LONG_NS), 0);
	check_all(&rig);
	rig_end(&rig);
}

/* Four faults are in the source at the same time, or this never ends. */
static void test_handlers_in_parallel(void **state)
{
	struct rig rig;
	struct toucher t[4];

	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	rig.cfg.handlers = 4;
	rig.cfg.uffds = 1;
	rig.fake.hold = 4;
	rig_start(&rig);
	for (unsigned int i = 0; i < 4; i++)
		touch_start(&t[i], &rig, (4 + 8 * i) * MIB);
	for (unsigned int i = 0; i < 4; i++)
		assert_int_equal(touch_end(&t[i]), word((4 + 8 * i) * MIB));
	assert_int_equal(served(&rig, 4).faults, 4);
	rig_end(&rig);
}

/* Both kinds of source of a page, and a guest that writes meanwhile. */
struct writer {
	const struct rig *rig;
	unsigned int index;
	pthread_t thread;
};

static void *write_pages(void *arg)
{
	struct writer *w = arg;
	uint64_t size = w->rig->ram.regions[0].size;

	for (uint64_t gpa = w->index * 8 * PAGE_4K; gpa < size;
	     gpa += 32 * PAGE_4K)
		*(volatile uint64_t *)(w->rig->ram.base + gpa) = gpa + 1;
	return NULL;
}

static void test_writes_stay(void **state)
{
	struct rig rig;
	struct writer w[4];

	rig_init(&rig, 96 * MIB, RAM_PAGE_THP, false);
	rig.cfg.sweep = true;
	rig_start(&rig);
	for (unsigned int i = 0; i < 4; i++) {
		w[i] = (struct writer){ .rig = &rig, .index = i };
		assert_int_equal(pthread_create(&w[i].thread, NULL, write_pages,
						&w[i]),
				 0);
	}
	for (unsigned int i = 0; i < 4; i++)
		pthread_join(w[i].thread, NULL);
	assert_int_equal(pager_wait_complete(rig.pager, LONG_NS), 0);
	for (uint64_t gpa = 0; gpa < 96 * MIB; gpa += PAGE_4K) {
		bool written = gpa / PAGE_4K % 8 == 0;

		assert_int_equal(load_word(&rig, gpa),
				 written ? gpa + 1 : word(gpa));
		assert_int_equal(load_word(&rig, gpa + 4088), word(gpa));
	}
	rig_end(&rig);
}

/* ---- working set ---- */

/* Of the set's first unit its second page is kept; of the second, nothing. */
struct kept {
	_Atomic unsigned int reads;
	bool damaged;
};

#define KEPT_WORD 0x6b657074ull

static int read_kept(void *ctx, uint64_t i, void *buf,
		     uint64_t ret_pages[WORKING_SET_WORDS], struct err *err)
{
	struct kept *kept = ctx;
	uint64_t *words = buf;

	atomic_fetch_add(&kept->reads, 1);
	if (kept->damaged)
		return err_set(err, EBADMSG, "damaged");
	if (i)
		return 0;
	memset(ret_pages, 0, WORKING_SET_WORDS * sizeof(*ret_pages));
	bitmap_set(ret_pages, 7);
	words[0] = KEPT_WORD;
	return 1;
}

/* What is kept comes from there, and what is not from the source. */
static void test_kept_set(void **state)
{
	struct working_set_unit units[] = {
		{ .gpa = 20 * MIB, .pages = { 1 << 3 | 1 << 7 } },
		{ .gpa = 4 * MIB, .pages = { 1 << 2 } },
	};
	const struct working_set set = { .num = 2, .units = units };

	for (int damaged = 0; damaged < 2; damaged++) {
		struct kept kept = { .damaged = damaged };
		const struct working_set_store store = { read_kept, &kept };
		struct rig rig;
		struct pager_stats s;

		rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
		rig.cfg.ahead = &set;
		rig.cfg.store = &store;
		rig_start(&rig);
		assert_int_equal(pager_wait_ahead(rig.pager, LONG_NS), 0);
		assert_int_equal(load_word(&rig, 20 * MIB + 7 * PAGE_4K),
				 damaged ? word(20 * MIB + 7 * PAGE_4K)
					 : KEPT_WORD);
		/* In the set and not kept: zero. */
		assert_int_equal(load_word(&rig, 20 * MIB + 3 * PAGE_4K),
				 damaged ? word(20 * MIB + 3 * PAGE_4K) : 0);
		assert_int_equal(load_word(&rig, 4 * MIB + 2 * PAGE_4K),
				 word(4 * MIB + 2 * PAGE_4K));
		s = stats(&rig);
		assert_int_equal(s.bytes[PAGER_WORKING_SET],
				 (damaged ? 3 : 2) * PAGE_4K);
		/* The first failure is the last: nobody asks again. */
		assert_in_range(atomic_load(&kept.reads), 1, 2);
		rig_end(&rig);
	}
}

static void test_sweepers(void **state)
{
	assert_int_equal(pager_sweepers(2, 1), 1);
	assert_int_equal(pager_sweepers(2, 4), 1);
	assert_int_equal(pager_sweepers(16, 4), 12);
}

static void test_working_set(void **state)
{
	static const uint64_t order[] = { 20 * MIB, 4 * MIB, 34 * MIB };
	struct rig rig;
	struct working_set set;
	struct pager_stats s;

	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	rig.cfg.record = true;
	rig.cfg.sweep = true;
	rig_start(&rig);
	for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
		(void)load_word(&rig, order[i] + 2 * PAGE_4K);
		(void)load_word(&rig, order[i] + 100 * PAGE_4K);
	}
	(void)load_word(&rig, 20 * MIB);
	/* Nothing but faults while it is recorded. */
	(void)served(&rig, 7);
	assert_int_equal(stats(&rig).settled_bytes - stats(&rig).zero_bytes,
			 7 * PAGE_4K);
	assert_int_equal(pager_end_recording(rig.pager, &set), 0);
	assert_int_equal(pager_wait_complete(rig.pager, LONG_NS), 0);
	rig_end(&rig);

	assert_int_equal(set.num, 3);
	assert_int_equal(working_set_pages(&set), 7);
	for (size_t i = 0; i < ARRAY_SIZE(order); i++)
		assert_int_equal(set.units[i].gpa, order[i]);
	assert_true(bitmap_test(set.units[0].pages, 0));
	assert_true(bitmap_test(set.units[1].pages, 100));

	/* Played back: exactly these, ahead, and the guest sees no fault. */
	set.units[2].gpa = 1ull << 40; /* what is not RAM is left out */
	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	rig.cfg.ahead = &set;
	rig_start(&rig);
	assert_int_equal(pager_wait_ahead(rig.pager, LONG_NS), 0);
	working_set_fini(&set);
	wait_until(atomic_load(&rig.ahead_done));
	assert_int_equal(load_word(&rig, 20 * MIB), word(20 * MIB));
	assert_int_equal(load_word(&rig, 4 * MIB + 100 * PAGE_4K),
			 word(4 * MIB + 100 * PAGE_4K));
	s = stats(&rig);
	assert_int_equal(s.faults, 0);
	assert_int_equal(s.bytes[PAGER_WORKING_SET], 5 * PAGE_4K);
	assert_int_equal(ram_present(&rig.ram, 0, 48 * MIB), 5 * PAGE_4K);
	assert_int_equal(atomic_load(&rig.ahead_done), 1);
	rig_end(&rig);
}

/* ---- failing ---- */

static void set_fail_at(struct rig *rig, uint64_t gpa)
{
	pthread_mutex_lock(&rig->fake.lock);
	rig->fake.fail_at = gpa;
	pthread_mutex_unlock(&rig->fake.lock);
}

/* Who checks a unit as a whole has read it: one fault brings all of it. */
static void test_fault_brings_its_unit(void **state)
{
	struct mem_source_ops by_unit = fake_ops;
	struct rig rig;
	struct pager_stats stats;
	uint64_t page = 5 * PAGE_4K;

	by_unit.by_unit = true;
	rig_init(&rig, 16 * MIB, RAM_PAGE_4K, false);
	rig.source.ops = &by_unit;
	rig.cfg.sweep = true;
	rig.cfg.fillers = 1;
	rig.cfg.sweep_bytes_per_s = 1; /* one unit, and no other */
	rig_start(&rig);
	wait_until(atomic_load(&rig.fake.reads) == 1);
	while (is_zero_page(8 * MIB + page))
		page += PAGE_4K;
	assert_int_equal(load_word(&rig, 8 * MIB + page), word(8 * MIB + page));
	/* Its neighbours, without another read. */
	for (uint64_t at = 8 * MIB; at < 10 * MIB; at += PAGE_4K)
		assert_int_equal(load_word(&rig, at),
				 is_zero_page(at) ? 0 : word(at));
	assert_int_equal(atomic_load(&rig.fake.reads), 2);
	pager_read_stats(rig.pager, &stats);
	assert_true(stats.bytes[PAGER_FAULT] < 2 * MIB);
	rig_end(&rig);
}

static void test_failing_fault(void **state)
{
	struct rig rig;
	struct toucher t;

	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	set_fail_at(&rig, 36 * MIB);
	rig_start(&rig);
	touch_start(&t, &rig, 36 * MIB);
	wait_until(atomic_load(&rig.failed) == 1);
	assert_string_equal(rig.err.text, "page at 0x2400000 is broken");
	assert_int_equal(rig.err.code, EIO);
	assert_int_equal(pager_wait_complete(rig.pager, LONG_NS), -EIO);
	/* Others are served meanwhile. */
	assert_int_equal(load_word(&rig, 4 * MIB), word(4 * MIB));
	assert_false(atomic_load(&t.done));
	/* In vain: told again. */
	pager_retry(rig.pager);
	wait_until(atomic_load(&rig.failed) == 2);
	assert_false(atomic_load(&t.done));
	set_fail_at(&rig, 0);
	pager_retry(rig.pager);
	assert_int_equal(touch_end(&t), word(36 * MIB));
	assert_int_equal(atomic_load(&rig.failed), 2);
	assert_int_equal(stats(&rig).failures, 2);
	rig_end(&rig);
}

static void test_failing_sweep(void **state)
{
	struct rig rig;

	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	rig.cfg.sweep = true;
	set_fail_at(&rig, 36 * MIB);
	rig_start(&rig);
	assert_int_equal(pager_wait_complete(rig.pager, LONG_NS), -EIO);
	wait_until(atomic_load(&rig.failed) == 1);
	assert_false(pager_is_complete(rig.pager));
	set_fail_at(&rig, 0);
	pager_retry(rig.pager);
	assert_int_equal(pager_wait_complete(rig.pager, LONG_NS), 0);
	/* What two fillers did at once counts once. */
	wait_until(stats(&rig).bytes[PAGER_SWEEP] >= data_bytes(&rig));
	assert_int_equal(stats(&rig).bytes[PAGER_SWEEP], data_bytes(&rig));
	check_all(&rig);
	rig_end(&rig);
}

/* The end comes while somebody waits, for a source that never answers. */
static void test_free_wakes(void **state)
{
	struct rig rig;
	struct toucher t[2];

	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	rig.cfg.sweep = true;
	rig.cfg.fillers = rig.cfg.sweepers = 2;
	rig.fake.held_back = true;
	rig.fake.hold_below = UINT64_MAX;
	rig_start(&rig);
	touch_start(&t[0], &rig, 36 * MIB);
	touch_start(&t[1], &rig, 20 * MIB);
	wait_until(inside(&rig) == 4);
	pager_free(rig.pager);
	rig.pager = NULL;
	assert_int_equal(touch_end(&t[0]), 0);
	assert_int_equal(touch_end(&t[1]), 0);
	rig_end(&rig);
}

static void test_free_after_failure(void **state)
{
	struct rig rig;
	struct toucher t;

	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	set_fail_at(&rig, 36 * MIB);
	rig_start(&rig);
	touch_start(&t, &rig, 36 * MIB);
	wait_until(atomic_load(&rig.failed) == 1);
	pager_free(rig.pager);
	rig.pager = NULL;
	assert_int_equal(touch_end(&t), 0);
	rig_end(&rig);
}

/* Nobody waits for what failed; handlers stay, for who comes late. */
static void test_abandon(void **state)
{
	struct rig rig;
	struct toucher t;

	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	set_fail_at(&rig, 36 * MIB);
	rig_start(&rig);
	assert_true(mem_await(&rig.ram, rig.ram.base + 4 * MIB, 8));
	touch_start(&t, &rig, 36 * MIB);
	wait_until(atomic_load(&rig.failed) == 1);
	assert_false(atomic_load(&t.done));
	pager_abandon(rig.pager);
	assert_int_equal(touch_end(&t), 0);
	assert_false(mem_await(&rig.ram, rig.ram.base + 36 * MIB, 8));
	/* What was there is still what it was. */
	assert_int_equal(load_word(&rig, 4 * MIB), word(4 * MIB));
	for (uint64_t gpa = 37 * MIB; gpa < 38 * MIB; gpa += PAGE_4K)
		assert_int_equal(load_word(&rig, gpa), 0);
	pager_abandon(rig.pager);
	rig_end(&rig);
}

static void test_impatient(void **state)
{
	struct rig rig;
	struct toucher t;

	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	rig.cfg.impatient = true;
	set_fail_at(&rig, 36 * MIB);
	rig_start(&rig);
	touch_start(&t, &rig, 36 * MIB);
	assert_int_equal(touch_end(&t), 0);
	wait_until(atomic_load(&rig.failed) == 1);
	assert_true(atomic_load(&rig.ram.lost));
	rig_end(&rig);

	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	rig.cfg.impatient = true;
	set_fail_at(&rig, 36 * MIB);
	rig_start(&rig);
	pager_be_patient(rig.pager);
	touch_start(&t, &rig, 36 * MIB);
	wait_until(atomic_load(&rig.failed) == 1);
	assert_false(atomic_load(&rig.ram.lost));
	set_fail_at(&rig, 0);
	pager_retry(rig.pager);
	assert_int_equal(touch_end(&t), word(36 * MIB));
	rig_end(&rig);
}

/* Bytes that leave the VM are waited for, and known to be there. */
static void test_await(void **state)
{
	struct rig rig;

	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	assert_true(mem_await(&rig.ram, rig.ram.base, 48 * MIB));
	assert_int_equal(ram_present(&rig.ram, 0, 48 * MIB), 0);
	rig.cfg.sweep = true;
	rig_start(&rig);
	/* From one page into the next. */
	assert_true(mem_await(&rig.ram, rig.ram.base + 5 * MIB - 4, 8));
	assert_int_equal(ram_present(&rig.ram, 5 * MIB - PAGE_4K, 2 * PAGE_4K),
			 2 * PAGE_4K);
	assert_int_equal(pager_wait_complete(rig.pager, LONG_NS), 0);
	assert_true(mem_await(&rig.ram, rig.ram.base, 48 * MIB));
	pager_free(rig.pager);
	rig.pager = NULL;
	assert_false(atomic_load(&rig.ram.lost));
	assert_false(atomic_load(&rig.ram.paged));
	rig_end(&rig);
}

/* Asked for before, used after; also by several pagers in turn. */
static void test_opener(void **state)
{
	struct uffd_opener opener;
	struct err err = ERR_INIT;
	struct rig rig;

	assert_int_equal(uffd_opener_init(&opener, &err), 0);
	for (int i = 0; i < 2; i++) {
		rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
		rig.cfg.opener = &opener;
		rig_start(&rig);
		assert_int_equal(load_word(&rig, 36 * MIB), word(36 * MIB));
		rig_end(&rig);
	}
	uffd_opener_fini(&opener);
	uffd_opener_fini(&opener);
	assert_int_equal(uffd_open(&opener, false, false, &err), -EMFILE);
}

/* ---- a source that is fed ---- */

static void test_put(void **state)
{
	struct rig rig;
	struct toucher data, zero;
	char *unit = aligned_alloc(PAGE_4K, 4 * MIB);

	assert_non_null(unit);
	memset(unit, 0x33, 4 * MIB);
	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	rig.fake.fed = true;
	rig_start(&rig);
	touch_start(&data, &rig, 9 * MIB);
	touch_start(&zero, &rig, 30 * MIB);
	wait_until(atomic_load(&rig.fake.reads) == 2);
	assert_false(atomic_load(&data.done));
	assert_int_equal(pager_put(rig.pager, GPA(7 * MIB), unit, 4 * MIB), 0);
	assert_int_equal(touch_end(&data), 0x3333333333333333ull);
	assert_false(atomic_load(&zero.done));
	atomic_store(&rig.fake.come, true);
	assert_int_equal(pager_put(rig.pager, GPA(0), NULL, 7 * MIB), 0);
	assert_int_equal(pager_put(rig.pager, GPA(11 * MIB), NULL, 37 * MIB),
			 0);
	assert_int_equal(touch_end(&zero), 0);
	assert_int_equal(pager_wait_complete(rig.pager, LONG_NS), 0);
	assert_int_equal(stats(&rig).bytes[PAGER_PUT], 4 * MIB);
	assert_int_equal(load_word(&rig, 10 * MIB), 0x3333333333333333ull);
	assert_int_equal(load_word(&rig, 11 * MIB), 0);
	assert_int_equal(atomic_load(&rig.failed), 0);
	free(unit);
	rig_end(&rig);
}

static void test_rate(void **state)
{
	struct rig rig;

	/* Held at 1 MiB/s, so that it cannot be done; the end is not held. */
	rig_init(&rig, 48 * MIB, RAM_PAGE_4K, false);
	rig.cfg.sweep = true;
	rig.cfg.sweep_bytes_per_s = MIB;
	rig_start(&rig);
	wait_until(stats(&rig).bytes[PAGER_SWEEP]);
	assert_false(pager_is_complete(rig.pager));
	rig_end(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_faults),
		cmocka_unit_test(test_kernel_faults),
		cmocka_unit_test(test_faults_complete),
		cmocka_unit_test(test_zeroes),
		cmocka_unit_test(test_sweep),
		cmocka_unit_test(test_sweep_two_regions),
		cmocka_unit_test(test_sweep_thp),
		cmocka_unit_test(test_collapse),
		cmocka_unit_test(test_hugetlb),
		cmocka_unit_test(test_1g_refused),
		cmocka_unit_test(test_fault_overtakes),
		cmocka_unit_test(test_handlers_in_parallel),
		cmocka_unit_test(test_writes_stay),
		cmocka_unit_test(test_working_set),
		cmocka_unit_test(test_kept_set),
		cmocka_unit_test(test_sweepers),
		cmocka_unit_test(test_fault_brings_its_unit),
		cmocka_unit_test(test_failing_fault),
		cmocka_unit_test(test_failing_sweep),
		cmocka_unit_test(test_free_wakes),
		cmocka_unit_test(test_free_after_failure),
		cmocka_unit_test(test_abandon),
		cmocka_unit_test(test_impatient),
		cmocka_unit_test(test_await),
		cmocka_unit_test(test_opener),
		cmocka_unit_test(test_put),
		cmocka_unit_test(test_rate),
	};

	return cmocka_run_group_tests_name("pager", tests, NULL, NULL);
}
