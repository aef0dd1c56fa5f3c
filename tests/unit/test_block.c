/* SPDX-License-Identifier: Apache-2.0 */
#include "cmocka_all.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/io.h"
#include "block/blockdev_priv.h"
#include "no_uring.h"

#define IMAGE_BYTES (8 * MIB)

struct image {
	char path[PATH_MAX];
	int fd; /* for looking at the file beside the device */
};

/* Page aligned; there is no test without memory. */
static void *__attribute__((returns_nonnull)) get_mem(size_t bytes)
{
	void *p = aligned_alloc(PAGE_4K, align_up(bytes, PAGE_4K));

	if (!p)
		abort();
	return p;
}

static int image_setup(void **state)
{
	const char *dir = getenv("TMPDIR");
	struct image *img = calloc(1, sizeof(*img));

	assert_non_null(img);
	snprintf(img->path, sizeof(img->path), "%s/quire-test-block-XXXXXX",
		 dir ? dir : "/tmp");
	img->fd = mkostemp(img->path, O_CLOEXEC);
	assert_true(img->fd >= 0);
	assert_int_equal(ftruncate(img->fd, (off_t)IMAGE_BYTES), 0);
	*state = img;
	return 0;
}

static int image_teardown(void **state)
{
	struct image *img = *state;

	close(img->fd);
	unlink(img->path);
	free(img);
	return 0;
}

static struct blockdev *open_image(const char *path, bool readonly, bool direct)
{
	struct blockdev_config cfg = { .path = path,
				       .readonly = readonly,
				       .direct = direct };
	struct blockdev *dev = NULL;
	struct err err = ERR_INIT;

	if (blockdev_open(&dev, &cfg, &err))
		fail_msg("%s", err.text);
	return dev;
}

static void refuse(const char *path, bool readonly, int code, const char *text)
{
	struct blockdev_config cfg = { .path = path, .readonly = readonly };
	struct blockdev *dev = NULL;
	struct err err = ERR_INIT;

	assert_int_equal(blockdev_open(&dev, &cfg, &err), -code);
	assert_null(dev);
	assert_int_equal(err.code, code);
	assert_non_null(strstr(err.text, path));
	if (!strstr(err.text, text))
		fail_msg("'%s' is not in: %s", text, err.text);
}

/* ---- opening ---- */

static void test_refused_files(void **state)
{
	struct image *img = *state;
	char path[PATH_MAX + 8];

	refuse("/nonexistent/a.img", false, ENOENT, "no such file");
	refuse("/tmp", false, EISDIR, "is a directory");
	refuse("/dev/null", false, EINVAL, "neither a regular file nor");
	snprintf(path, sizeof(path), "%s.fifo", img->path);
	assert_int_equal(mkfifo(path, 0600), 0);
	refuse(path, false, EINVAL, "neither a regular file nor");
	refuse(path, true, EINVAL, "neither a regular file nor");
	unlink(path);
}

static void test_sizes(void **state)
{
	struct image *img = *state;
	struct blockdev *dev;

	assert_int_equal(ftruncate(img->fd, 0), 0);
	refuse(img->path, false, EINVAL, "is empty");
	assert_int_equal(ftruncate(img->fd, 1000), 0);
	refuse(img->path, false, EINVAL, "truncate -s 1024");
	assert_int_equal(ftruncate(img->fd, 512), 0);
	dev = open_image(img->path, false, false);
	assert_int_equal(blockdev_size(dev), 512);
	assert_int_equal(blockdev_block_bytes(dev), 512);
	assert_false(blockdev_readonly(dev));
	blockdev_close(dev);
	blockdev_close(NULL);
}

/* Another process holds the image; returns when it does. */
static pid_t hold(const char *path, bool readonly, int *ret_release_fd)
{
	int ready[2], release[2];
	char c;
	pid_t pid;

	assert_int_equal(pipe(ready), 0);
	assert_int_equal(pipe(release), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct blockdev_config cfg = { .path = path,
					       .readonly = readonly };
		struct blockdev *dev;

		close(release[1]);
		if (blockdev_open(&dev, &cfg, NULL) ||
		    write(ready[1], "x", 1) != 1)
			_exit(1);
		(void)!read(release[0], &c, 1);
		_exit(0);
	}
	close(ready[1]);
	close(release[0]);
	assert_int_equal(read(ready[0], &c, 1), 1);
	close(ready[0]);
	*ret_release_fd = release[1];
	return pid;
}

static void let_go(pid_t pid, int release_fd)
{
	int status;

	close(release_fd);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void test_lock(void **state)
{
	struct image *img = *state;
	int release;
	pid_t pid = hold(img->path, false, &release);

	refuse(img->path, false, EBUSY, "in use by another quire");
	refuse(img->path, true, EBUSY, "in use by another quire");
	let_go(pid, release);

	/* The holder is gone: the lock too. Readers share. */
	pid = hold(img->path, true, &release);
	blockdev_close(open_image(img->path, true, false));
	refuse(img->path, false, EBUSY, "in use by another quire");
	let_go(pid, release);
	blockdev_close(open_image(img->path, false, false));
}

/* Killed with a ring open: the next one gets the image all the same. */
static void test_lock_after_kill(void **state)
{
	struct image *img = *state;
	int ready[2], status;
	pid_t pid;
	char c;

	assert_int_equal(pipe(ready), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct blockdev_config cfg = { .path = img->path };
		struct blockdev *dev;
		struct blockq *q;

		if (blockdev_open(&dev, &cfg, NULL) ||
		    blockq_new(&q, dev, 8, NULL) || blockq_poll(q) ||
		    write(ready[1], "x", 1) != 1)
			_exit(1);
		pause();
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &c, 1), 1);
	close(ready[0]);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	blockdev_close(open_image(img->path, false, false));
}

static void test_lock_twice_in_process(void **state)
{
	struct image *img = *state;
	struct blockdev *dev = open_image(img->path, false, false);

	refuse(img->path, false, EBUSY, "in use");
	blockdev_close(dev);
}

/* Somebody who locks whole files may read at the same time. */
static void test_lock_whole_file_reader(void **state)
{
	struct image *img = *state;
	struct flock fl = { .l_type = F_RDLCK, .l_whence = SEEK_SET };

	assert_int_equal(fcntl(img->fd, F_OFD_SETLK, &fl), 0);
	blockdev_close(open_image(img->path, true, false));
	refuse(img->path, false, EBUSY, "in use by another quire or QEMU");
}

/* ---- QEMU ---- */

/* qemu-io; gone when its standard input ends. Arguments up to a NULL. */
static pid_t spawn_qemu_io(const char *const *args, int in, int out)
{
	const char *argv[10] = { "qemu-io", "-f", "raw" };
	unsigned int num = 3;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid)
		return pid;
	while (*args && num < ARRAY_SIZE(argv) - 1)
		argv[num++] = *args++;
	argv[num] = NULL;
	dup2(in, STDIN_FILENO);
	dup2(out, STDOUT_FILENO);
	dup2(out, STDERR_FILENO);
	execvp(argv[0], (char **)argv);
	_exit(127);
}

/* Run one command; its exit status. */
static int qemu_io(const char *path, bool readonly, const char *command)
{
	const char *args[] = { "-c", command, path, readonly ? "-r" : NULL,
			       NULL };
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int status;
	pid_t pid;

	assert_true(null >= 0);
	pid = spawn_qemu_io(args, null, null);
	close(null);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

/* A QEMU that has the image open until *ret_release_fd is closed. */
static pid_t qemu_hold(const char *path, bool readonly, int *ret_release_fd)
{
	static const char ask[] = "read 0 512\n";
	const char *args[] = { path, readonly ? "-r" : NULL, NULL };
	char text[4096] = "";
	int in[2], out[2];
	size_t len = 0;
	pid_t pid;

	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	pid = spawn_qemu_io(args, in[0], out[1]);
	close(in[0]);
	close(out[1]);
	assert_int_equal(io_write_full(in[1], ask, sizeof(ask) - 1), 0);
	while (!strstr(text, "read 512/512")) {
		ssize_t n = read(out[0], text + len, sizeof(text) - 1 - len);

		if (n <= 0)
			fail_msg("qemu-io ended: %s", text);
		len += (size_t)n;
		text[len] = 0;
	}
	/* What it says later must not kill it. */
	*ret_release_fd = in[1];
	return pid;
}

static void test_lock_qemu(void **state)
{
	struct image *img = *state;
	struct blockdev *dev;
	int release;
	pid_t pid;

	if (qemu_io(img->path, true, "read 0 512") == 127) {
		print_message("no qemu-io here (package qemu-utils)\n");
		skip();
	}
	/* It has the image: a writer keeps out all, a reader writers. */
	pid = qemu_hold(img->path, false, &release);
	refuse(img->path, true, EBUSY, "may write to it");
	refuse(img->path, false, EBUSY, "in use by another quire or QEMU");
	close(release);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	pid = qemu_hold(img->path, true, &release);
	blockdev_close(open_image(img->path, true, false));
	refuse(img->path, false, EBUSY, "in use by another quire or QEMU");
	close(release);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	/* We have it: the same. */
	dev = open_image(img->path, false, false);
	assert_int_not_equal(qemu_io(img->path, false, "write 0 512"), 0);
	assert_int_not_equal(qemu_io(img->path, true, "read 0 512"), 0);
	blockdev_close(dev);
	dev = open_image(img->path, true, false);
	assert_int_not_equal(qemu_io(img->path, false, "write 0 512"), 0);
	assert_int_equal(qemu_io(img->path, true, "read 0 512"), 0);
	blockdev_close(dev);
	assert_int_equal(qemu_io(img->path, false, "write 0 512"), 0);
}

/* ---- requests ---- */

struct fixture {
	struct blockdev *dev;
	struct blockq *q;
	int wake_fd;
};

struct test_req {
	struct block_req req;
	struct iovec iov[4];
	int result;
	bool completed;
	unsigned int *counter;
};

static void on_done(struct block_req *req, int result)
{
	struct test_req *t = container_of(req, struct test_req, req);

	assert_false(t->completed);
	t->completed = true;
	t->result = result;
	if (t->counter)
		++*t->counter;
}

static void fixture_open(struct fixture *f, const char *path, bool readonly,
			 bool direct, unsigned int depth)
{
	struct err err = ERR_INIT;

	f->dev = open_image(path, readonly, direct);
	assert_int_equal(blockq_new(&f->q, f->dev, depth, &err), 0);
	f->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	assert_true(f->wake_fd >= 0);
}

static void fixture_close(struct fixture *f)
{
	assert_int_equal(blockq_inflight(f->q), 0);
	blockq_free(f->q);
	blockdev_close(f->dev);
	close(f->wake_fd);
}

static void drain(struct fixture *f)
{
	while (blockq_inflight(f->q))
		assert_true(blockq_wait(f->q, f->wake_fd) >= 0);
}

/* One request over one buffer (or none), to its end. */
static int run(struct fixture *f, enum block_op op, uint64_t offset,
	       uint64_t len, void *buf)
{
	struct test_req t = {
		.req = { .op = op,
			 .offset = offset,
			 .len = len,
			 .iov = t.iov,
			 .num_iov = buf ? 1 : 0,
			 .done = on_done },
		.iov = { { buf, len } },
	};

	blockq_submit(f->q, &t.req);
	drain(f);
	assert_true(t.completed);
	return t.result;
}

static void pattern(void *buf, size_t len, unsigned int seed)
{
	unsigned char *p = buf;

	for (size_t i = 0; i < len; i++)
		p[i] = (unsigned char)(i * 31 + i / 251 + seed);
}

static void expect_pattern(const void *buf, size_t len, unsigned int seed)
{
	unsigned char *want = get_mem(len);

	pattern(want, len, seed);
	assert_memory_equal(buf, want, len);
	free(want);
}

static void expect_zero(const unsigned char *p, size_t len)
{
	for (size_t i = 0; i < len; i++)
		assert_int_equal(p[i], 0);
}

static void check_roundtrip(struct image *img, bool direct, size_t misalign)
{
	const size_t len = 300 * 1024;
	unsigned char *mem = get_mem(MIB);
	unsigned char *buf = mem + misalign;
	struct fixture f;

	fixture_open(&f, img->path, false, direct, 16);
	pattern(buf, len, 7);
	assert_int_equal(run(&f, BLOCK_WRITE, 4096, len, buf), 0);
	assert_int_equal(run(&f, BLOCK_FLUSH, 0, 0, NULL), 0);
	memset(buf, 0xee, len);
	assert_int_equal(io_pread_full(img->fd, buf, len, 4096), 0);
	expect_pattern(buf, len, 7);
	memset(buf, 0xee, len);
	assert_int_equal(run(&f, BLOCK_READ, 4096, len, buf), 0);
	expect_pattern(buf, len, 7);
	assert_int_equal(run(&f, BLOCK_READ, 0, 0, NULL), 0);
	fixture_close(&f);
	free(mem);
}

static void test_roundtrip(void **state)
{
	check_roundtrip(*state, false, 0);
	check_roundtrip(*state, false, 3);
}

static bool direct_works(struct image *img)
{
	int fd = open(img->path, O_RDWR | O_DIRECT | O_CLOEXEC);

	if (fd < 0) {
		print_message("no direct I/O on the file system of %s\n",
			      img->path);
		return false;
	}
	close(fd);
	return true;
}

static void test_direct(void **state)
{
	if (!direct_works(*state))
		skip();
	check_roundtrip(*state, true, 0);
	/* Not even two bytes aligned: through the bounce buffer. */
	check_roundtrip(*state, true, 513);
}

/* Several at once that share one bounce buffer, with odd pieces. */
static void test_direct_bounce_many(void **state)
{
	enum { NUM = 12, LEN = 24 * 1024 };
	struct image *img = *state;
	unsigned int completed = 0;
	struct test_req t[NUM];
	unsigned char *mem;
	struct fixture f;

	if (!direct_works(img))
		skip();
	mem = get_mem(NUM * (LEN + 64));
	fixture_open(&f, img->path, false, true, NUM);
	for (unsigned int round = 0; round < 2; round++) {
		memset(t, 0, sizeof(t));
		completed = 0;
		for (unsigned int i = 0; i < NUM; i++) {
			unsigned char *p = mem + i * (LEN + 64) + 1;

			if (round == 0)
				pattern(p, LEN, i);
			else
				memset(p, 0xee, LEN);
			t[i].counter = &completed;
			t[i].iov[0] = (struct iovec){ p, 100 };
			t[i].iov[1] = (struct iovec){ p + 100, 5000 };
			t[i].iov[2] = (struct iovec){ p + 5100, LEN - 5100 };
			t[i].req = (struct block_req){
				.op = round ? BLOCK_READ : BLOCK_WRITE,
				.offset = i * 65536ull,
				.len = LEN,
				.iov = t[i].iov,
				.num_iov = 3,
				.done = on_done,
			};
			blockq_submit(f.q, &t[i].req);
		}
		drain(&f);
		assert_int_equal(completed, NUM);
		for (unsigned int i = 0; i < NUM; i++)
			assert_int_equal(t[i].result, 0);
	}
	for (unsigned int i = 0; i < NUM; i++)
		expect_pattern(mem + i * (LEN + 64) + 1, LEN, i);
	fixture_close(&f);
	free(mem);
}

/* More requests than the ring has entries, all in flight together. */
static void test_deep(void **state)
{
	enum { NUM = 700 };
	struct image *img = *state;
	struct test_req *t = calloc(NUM, sizeof(*t));
	unsigned char *mem = get_mem(NUM * 1024);
	unsigned int completed = 0;
	struct fixture f;

	assert_non_null(t);
	pattern(mem, NUM * 1024, 3);
	fixture_open(&f, img->path, false, false, NUM);
	for (unsigned int i = 0; i < NUM; i++) {
		t[i].counter = &completed;
		t[i].iov[0] = (struct iovec){ mem + i * 1024, 512 };
		t[i].iov[1] = (struct iovec){ mem + i * 1024 + 512, 512 };
		t[i].req = (struct block_req){
			.op = BLOCK_WRITE,
			.offset = i * 1024ull,
			.len = 1024,
			.iov = t[i].iov,
			.num_iov = 2,
			.done = on_done,
		};
		blockq_submit(f.q, &t[i].req);
	}
	assert_int_equal(blockq_poll(f.q), 0);
	drain(&f);
	assert_int_equal(completed, NUM);
	memset(mem, 0, NUM * 1024);
	assert_int_equal(run(&f, BLOCK_READ, 0, NUM * 1024, mem), 0);
	expect_pattern(mem, NUM * 1024, 3);
	fixture_close(&f);
	free(mem);
	free(t);
}

static void test_refused_requests(void **state)
{
	struct image *img = *state;
	unsigned char buf[1024] = { 0 };
	struct fixture f;

	fixture_open(&f, img->path, false, false, 4);
	assert_int_equal(run(&f, BLOCK_READ, IMAGE_BYTES, 512, buf), -EINVAL);
	assert_int_equal(run(&f, BLOCK_READ, IMAGE_BYTES - 512, 1024, buf),
			 -EINVAL);
	assert_int_equal(run(&f, BLOCK_WRITE, UINT64_MAX - 511, 512, buf),
			 -EINVAL);
	assert_int_equal(run(&f, BLOCK_WRITE, 0, 100, buf), -EINVAL);
	assert_int_equal(run(&f, BLOCK_WRITE, 7, 512, buf), -EINVAL);
	assert_int_equal(run(&f, BLOCK_DISCARD, 512, UINT64_MAX - 511, NULL),
			 -EINVAL);
	assert_int_equal(run(&f, BLOCK_READ, IMAGE_BYTES - 512, 512, buf), 0);
	fixture_close(&f);

	fixture_open(&f, img->path, true, false, 4);
	assert_true(blockdev_readonly(f.dev));
	assert_false(blockdev_can_discard(f.dev));
	assert_false(blockdev_can_write_zeroes(f.dev));
	assert_int_equal(run(&f, BLOCK_WRITE, 0, 512, buf), -EROFS);
	assert_int_equal(run(&f, BLOCK_DISCARD, 0, 512, NULL), -EROFS);
	assert_int_equal(run(&f, BLOCK_WRITE_ZEROES, 0, 512, NULL), -EROFS);
	assert_int_equal(run(&f, BLOCK_READ, 0, 512, buf), 0);
	assert_int_equal(run(&f, BLOCK_FLUSH, 0, 0, NULL), 0);
	fixture_close(&f);
}

static blkcnt_t blocks(struct image *img)
{
	struct stat st;

	assert_int_equal(fstat(img->fd, &st), 0);
	return st.st_blocks;
}

static void check_zeroing(struct image *img)
{
	const size_t len = 256 * 1024;
	unsigned char *buf = get_mem(len);
	struct fixture f;
	blkcnt_t full;

	fixture_open(&f, img->path, false, false, 4);
	static const enum block_op ops[] = { BLOCK_DISCARD, BLOCK_WRITE_ZEROES,
					     BLOCK_WRITE_ZEROES_NOMAP };
	for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
		if (ops[i] == BLOCK_DISCARD && !blockdev_can_discard(f.dev))
			continue;
		pattern(buf, len, 1);
		assert_int_equal(run(&f, BLOCK_WRITE, 0, len, buf), 0);
		assert_int_equal(run(&f, BLOCK_FLUSH, 0, 0, NULL), 0);
		full = blocks(img);
		/* Unaligned to pages on purpose: neighbours must survive. */
		assert_int_equal(run(&f, ops[i], 512, len - 1024, NULL), 0);
		if (ops[i] == BLOCK_WRITE_ZEROES_NOMAP)
			assert_true(blocks(img) >= full);
		else if (blockdev_can_discard(f.dev))
			assert_true(blocks(img) < full);
		assert_int_equal(run(&f, BLOCK_READ, 0, len, buf), 0);
		expect_pattern(buf, 512, 1);
		expect_zero(buf + 512, len - 1024);
		pattern(buf, len - 512, 1);
		assert_int_equal(pread(img->fd, buf + len - 512, 512,
				       (off_t)len - 512),
				 512);
		expect_pattern(buf, len, 1);
	}
	/* Nothing changed the size. */
	assert_int_equal(run(&f, BLOCK_WRITE_ZEROES_NOMAP, IMAGE_BYTES - 4096,
			     4096, NULL),
			 0);
	assert_int_equal(lseek(img->fd, 0, SEEK_END), (off_t)IMAGE_BYTES);
	fixture_close(&f);
	free(buf);
}

static void test_zeroing(void **state)
{
	check_zeroing(*state);
}

/* The file gets shorter behind our back: an error, no hang, no stale iov. */
static void test_truncated_file(void **state)
{
	struct image *img = *state;
	unsigned char buf[8192];
	struct test_req t = {
		.req = { .op = BLOCK_READ,
			 .len = 8192,
			 .iov = t.iov,
			 .num_iov = 2,
			 .done = on_done },
		.iov = { { buf, 5000 }, { buf + 5000, 3192 } },
	};
	struct fixture f;

	fixture_open(&f, img->path, false, false, 4);
	assert_int_equal(ftruncate(img->fd, 6000), 0);
	blockq_submit(f.q, &t.req);
	drain(&f);
	assert_int_equal(t.result, -EIO);
	assert_ptr_equal(t.iov[1].iov_base, buf + 5000);
	assert_int_equal(t.iov[1].iov_len, 3192);
	fixture_close(&f);
}

static void test_wake(void **state)
{
	struct image *img = *state;
	struct fixture f;

	fixture_open(&f, img->path, false, false, 4);
	/* Before the first wait, and again and again. */
	for (unsigned int i = 0; i < 5; i++) {
		uint64_t end = clock_now_ns() + 60 * NSEC_PER_SEC;
		int r = 0;

		io_eventfd_signal(f.wake_fd);
		while (r == 0 && clock_now_ns() < end)
			r = blockq_wait(f.q, f.wake_fd);
		assert_int_equal(r, 1);
	}
	fixture_close(&f);
}

/* A request from within done(), as a flush after a write. */
struct follow_up {
	struct block_req req;
	struct blockq *q;
	unsigned int left;
	int result;
};

static void follow_up_done(struct block_req *req, int result)
{
	struct follow_up *f = container_of(req, struct follow_up, req);

	f->result = result;
	if (!result && f->left--) {
		req->op = BLOCK_FLUSH;
		blockq_submit(f->q, req);
	}
}

static void test_submit_from_done(void **state)
{
	struct image *img = *state;
	unsigned char buf[512] = { 1 };
	struct iovec iov = { buf, sizeof(buf) };
	struct follow_up fu = { .left = 3 };
	struct fixture f;

	fixture_open(&f, img->path, false, false, 1);
	fu.q = f.q;
	fu.req = (struct block_req){ .op = BLOCK_WRITE,
				     .len = 512,
				     .iov = &iov,
				     .num_iov = 1,
				     .done = follow_up_done };
	blockq_submit(f.q, &fu.req);
	drain(&f);
	assert_int_equal(fu.result, 0);
	assert_int_equal((int)fu.left, -1);
	fixture_close(&f);
}

/* ---- an early end ---- */

#define HUGE_BYTES GIB
#define HUGE_NUM   256

struct huge {
	struct image img;
	struct test_req *t;
	char *mem; /* HUGE_BYTES, of which little is touched */
	unsigned int completed;
};

/* tmpfs punches holes and knows no zero range: zeroes have to be written. */
static void huge_init(struct huge *h)
{
	memset(h, 0, sizeof(*h));
	snprintf(h->img.path, sizeof(h->img.path),
		 "/dev/shm/quire-test-block-XXXXXX");
	h->img.fd = mkostemp(h->img.path, O_CLOEXEC);
	if (h->img.fd < 0) {
		print_message("no /dev/shm: %s\n", strerror(errno));
		skip();
	}
	assert_int_equal(ftruncate(h->img.fd, (off_t)HUGE_BYTES), 0);
	h->t = calloc(HUGE_NUM, sizeof(*h->t));
	h->mem = mmap(NULL, HUGE_BYTES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_non_null(h->t);
	assert_ptr_not_equal(h->mem, MAP_FAILED);
}

static void huge_fini(struct huge *h)
{
	munmap(h->mem, HUGE_BYTES);
	free(h->t);
	close(h->img.fd);
	unlink(h->img.path);
}

/* 256 requests for 1 GiB each, all at the same place. */
static void huge_submit(struct huge *h, struct blockq *q, enum block_op op)
{
	for (unsigned int i = 0; i < HUGE_NUM; i++) {
		struct test_req *t = &h->t[i];

		memset(t, 0, sizeof(*t));
		t->counter = &h->completed;
		t->iov[0] = (struct iovec){ h->mem, HUGE_BYTES };
		t->req = (struct block_req){ .op = op,
					     .len = HUGE_BYTES,
					     .iov = t->iov,
					     .num_iov = 1,
					     .done = on_done };
		blockq_submit(q, &t->req);
	}
}

static void huge_check(const struct huge *h)
{
	assert_int_equal(h->completed, HUGE_NUM);
	for (unsigned int i = 0; i < HUGE_NUM; i++) {
		assert_int_equal(h->t[i].result, -ECANCELED);
		assert_ptr_equal(h->t[i].iov[0].iov_base, h->mem);
		assert_int_equal(h->t[i].iov[0].iov_len, HUGE_BYTES);
	}
}

/* Once cancelled, always: also a flush that had nothing to do. */
static void expect_refusal(struct fixture *f)
{
	char buf[512] = "";

	assert_true(blockq_cancelled(f->q));
	assert_int_equal(run(f, BLOCK_FLUSH, 0, 0, NULL), -ECANCELED);
	assert_int_equal(run(f, BLOCK_WRITE, 0, 512, buf), -ECANCELED);
	/* Nothing to wait for, and nobody to wake it. */
	assert_true(blockq_wait(f->q, f->wake_fd) >= 0);
}

static void need_io_uring(void)
{
	if (syscall(SYS_io_uring_setup, 0, NULL) < 0 &&
	    (errno == ENOSYS || errno == EPERM)) {
		print_message("no io_uring here: %s\n", strerror(errno));
		skip();
	}
}

static void check_cancel(enum block_op op)
{
	enum { POLLS = 4 };
	struct test_req late = { 0 };
	struct blockq_counts before, after;
	struct fixture f;
	struct huge h;

	need_io_uring();
	huge_init(&h);
	fixture_open(&f, h.img.path, false, false, HUGE_NUM);
	huge_submit(&h, f.q, op);
	for (unsigned int i = 0; i < POLLS; i++)
		assert_int_equal(blockq_poll(f.q), 0);
	assert_int_equal(h.completed, 0);
	blockq_counts(f.q, &before);
	assert_true(before.steps > 0);
	blockq_cancel(f.q);
	/* At once, though many wait before it. */
	late.req = (struct block_req){ .op = BLOCK_FLUSH, .done = on_done };
	blockq_submit(f.q, &late.req);
	assert_true(late.completed);
	assert_int_equal(late.result, -ECANCELED);
	drain(&f);
	blockq_counts(f.q, &after);
	huge_check(&h);
	/* Not a step more, and few before: 256 GiB were asked for. */
	assert_int_equal(after.steps, before.steps);
	assert_true(after.peak_bytes <= 16 * MIB + BLOCK_STEP_BYTES);
	assert_true(after.peak_range_steps <= 4);
	assert_true(after.bytes <= (POLLS + 1) * 18 * MIB);
	expect_refusal(&f);
	blockq_counts(f.q, &after);
	assert_int_equal(after.steps, before.steps);
	fixture_close(&f);
	huge_fini(&h);
}

static void test_cancel_reads(void **state)
{
	check_cancel(BLOCK_READ);
}

static void test_cancel_zero_writes(void **state)
{
	check_cancel(BLOCK_WRITE_ZEROES_NOMAP);
}

static void test_cancel_punches(void **state)
{
	check_cancel(BLOCK_WRITE_ZEROES);
}

/* Those that wait for the bounce buffer never get it. */
static void test_cancel_bounced(void **state)
{
	enum { NUM = 12, LEN = 1024 * 1024 };
	struct image *img = *state;
	struct blockq_counts counts;
	struct test_req t[NUM] = { 0 };
	unsigned int completed = 0;
	unsigned char *mem;
	struct fixture f;

	need_io_uring();
	if (!direct_works(img))
		skip();
	mem = get_mem(LEN + PAGE_4K);
	memset(mem, 1, LEN + PAGE_4K);
	fixture_open(&f, img->path, false, true, NUM);
	for (unsigned int i = 0; i < NUM; i++) {
		t[i].counter = &completed;
		t[i].iov[0] = (struct iovec){ mem + 1, LEN };
		t[i].req = (struct block_req){ .op = BLOCK_WRITE,
					       .len = LEN,
					       .iov = t[i].iov,
					       .num_iov = 1,
					       .done = on_done };
		blockq_submit(f.q, &t[i].req);
	}
	blockq_cancel(f.q);
	/* They are not waiting for the one that has it. */
	assert_int_equal(blockq_poll(f.q), 0);
	assert_in_range(completed, NUM - 1, NUM);
	drain(&f);
	assert_int_equal(completed, NUM);
	for (unsigned int i = 0; i < NUM; i++)
		assert_int_equal(t[i].result, -ECANCELED);
	blockq_counts(f.q, &counts);
	assert_int_equal(counts.steps, 1);
	fixture_close(&f);
	free(mem);
}

/*
 * More than the kernel has threads for: what no thread has begun is dropped.
 * Those that were begun have dirty data to write, which takes them a while.
 */
static void test_cancel_in_kernel(void **state)
{
	enum { NUM = 100 };
	struct image *img = *state;
	struct test_req t[NUM] = { 0 };
	unsigned int dropped = 0;
	struct fixture f;
	struct statfs fs;
	void *mem;

	need_io_uring();
	assert_int_equal(fstatfs(img->fd, &fs), 0);
	if (fs.f_type == TMPFS_MAGIC) {
		print_message("%s: tmpfs has nothing to flush\n", img->path);
		skip();
	}
	mem = get_mem(IMAGE_BYTES);
	pattern(mem, IMAGE_BYTES, 5);
	fixture_open(&f, img->path, false, false, NUM);
	assert_int_equal(run(&f, BLOCK_WRITE, 0, IMAGE_BYTES, mem), 0);
	for (unsigned int i = 0; i < NUM; i++) {
		t[i].req = (struct block_req){ .op = BLOCK_FLUSH,
					       .done = on_done };
		blockq_submit(f.q, &t[i].req);
	}
	blockq_cancel(f.q);
	drain(&f);
	for (unsigned int i = 0; i < NUM; i++) {
		assert_true(t[i].completed);
		assert_true(t[i].result <= 0);
		dropped += t[i].result == -ECANCELED;
	}
	assert_in_range(dropped, 1, NUM);
	fixture_close(&f);
	free(mem);
}

/* A small request does not wait until large ones are done. */
static void test_lanes(void **state)
{
	struct test_req small = { 0 };
	struct blockq_counts counts;
	char buf[512];
	struct fixture f;
	struct huge h;

	need_io_uring();
	huge_init(&h);
	fixture_open(&f, h.img.path, false, false, HUGE_NUM);
	huge_submit(&h, f.q, BLOCK_WRITE_ZEROES_NOMAP);
	small.iov[0] = (struct iovec){ buf, sizeof(buf) };
	small.req = (struct block_req){ .op = BLOCK_READ,
					.len = sizeof(buf),
					.iov = small.iov,
					.num_iov = 1,
					.done = on_done };
	blockq_submit(f.q, &small.req);
	while (!small.completed)
		assert_true(blockq_wait(f.q, f.wake_fd) >= 0);
	assert_int_equal(small.result, 0);
	/* Not even for one step of each. */
	blockq_counts(f.q, &counts);
	assert_in_range(counts.steps, 2, HUGE_NUM / 4);
	blockq_cancel(f.q);
	drain(&f);
	huge_check(&h);
	fixture_close(&f);
	huge_fini(&h);
}

/*
 * Without io_uring requests run inside blockq_submit(), so only another thread
 * can cancel. Here it is the system call, which is ours: the third one does.
 */
static struct blockq *cancel_in_call;
static unsigned int num_calls;

static void count_call(void)
{
	if (cancel_in_call && ++num_calls == 3)
		blockq_cancel(cancel_in_call);
}

ssize_t pwritev(int fd, const struct iovec *iov, int num, off_t offset)
{
	count_call();
	return syscall(SYS_pwritev, fd, iov, num, offset, 0);
}

ssize_t preadv(int fd, const struct iovec *iov, int num, off_t offset)
{
	count_call();
	return syscall(SYS_preadv, fd, iov, num, offset, 0);
}

static void check_cancel_sync(enum block_op op)
{
	struct blockq_counts counts;
	struct fixture f;
	struct huge h;

	huge_init(&h);
	fixture_open(&f, h.img.path, false, false, HUGE_NUM);
	cancel_in_call = f.q;
	num_calls = 0;
	huge_submit(&h, f.q, op);
	drain(&f);
	cancel_in_call = NULL;
	huge_check(&h);
	assert_int_equal(num_calls, 3);
	blockq_counts(f.q, &counts);
	assert_true(counts.bytes <= 3 * BLOCK_STEP_BYTES);
	expect_refusal(&f);
	fixture_close(&f);
	huge_fini(&h);
}

static void check_cancel_sync_reads(void **state)
{
	check_cancel_sync(BLOCK_READ);
}

static void check_cancel_sync_zero_writes(void **state)
{
	check_cancel_sync(BLOCK_WRITE_ZEROES_NOMAP);
}

/* ---- without io_uring ---- */

/* Its own test program run, in a child that lost io_uring. */
static void test_synchronous(void **state)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_roundtrip, image_setup,
						image_teardown),
		cmocka_unit_test_setup_teardown(test_direct, image_setup,
						image_teardown),
		cmocka_unit_test_setup_teardown(test_direct_bounce_many,
						image_setup, image_teardown),
		cmocka_unit_test_setup_teardown(test_deep, image_setup,
						image_teardown),
		cmocka_unit_test_setup_teardown(test_refused_requests,
						image_setup, image_teardown),
		cmocka_unit_test_setup_teardown(test_zeroing, image_setup,
						image_teardown),
		cmocka_unit_test_setup_teardown(test_truncated_file,
						image_setup, image_teardown),
		cmocka_unit_test_setup_teardown(test_wake, image_setup,
						image_teardown),
		cmocka_unit_test_setup_teardown(test_submit_from_done,
						image_setup, image_teardown),
		cmocka_unit_test(check_cancel_sync_reads),
		cmocka_unit_test(check_cancel_sync_zero_writes),
	};

	run_without_io_uring("synchronous", tests);
}

/* ---- steps: what the kernel may answer, without a kernel ---- */

static void step_fixture(struct blockdev *dev, bool direct)
{
	*dev = (struct blockdev){
		.size = IMAGE_BYTES,
		.direct = direct,
		.block_bytes = 512,
		.mem_align = direct ? 512 : 1,
	};
}

static void test_step_short_transfers(void **state)
{
	struct block_caps caps = { 0 };
	struct iovec iov[3] = { { (void *)0x1000, 512 },
				{ (void *)0x3000, 1024 },
				{ (void *)0x9000, 512 } };
	struct block_req req = { .op = BLOCK_READ,
				 .offset = 4096,
				 .len = 2048,
				 .iov = iov,
				 .num_iov = 3 };
	struct block_step step;
	struct blockdev dev;

	step_fixture(&dev, false);
	assert_int_equal(block_step_init(&dev, &caps, &req), 0);
	block_step_prepare(&dev, &req, NULL, &step);
	assert_int_equal(step.num_iov, 3);
	assert_int_equal(step.offset, 4096);
	assert_int_equal(step.len, 2048);
	/* Into the second entry, one byte. */
	assert_int_equal(block_step_result(&dev, &caps, &req, NULL, 513), 1);
	block_step_prepare(&dev, &req, NULL, &step);
	assert_int_equal(step.num_iov, 2);
	assert_int_equal(step.offset, 4096 + 513);
	assert_int_equal(step.len, 1535);
	assert_int_equal((uintptr_t)step.iov[0].iov_base, 0x3001);
	assert_int_equal(step.iov[0].iov_len, 1023);
	/* Nothing, for now; the same step again, by a thread. */
	assert_int_equal(block_step_result(&dev, &caps, &req, NULL, -EAGAIN),
			 1);
	block_step_prepare(&dev, &req, NULL, &step);
	assert_true(step.force_async);
	assert_int_equal((uintptr_t)step.iov[0].iov_base, 0x3001);
	/* Still inside the second entry, then to its end, then all. */
	assert_int_equal(block_step_result(&dev, &caps, &req, NULL, 23), 1);
	block_step_prepare(&dev, &req, NULL, &step);
	assert_false(step.force_async);
	assert_int_equal(step.iov[0].iov_len, 1000);
	assert_int_equal(block_step_result(&dev, &caps, &req, NULL, 1000), 1);
	block_step_prepare(&dev, &req, NULL, &step);
	assert_int_equal(step.num_iov, 1);
	assert_int_equal(step.iov[0].iov_len, 512);
	assert_int_equal(block_step_result(&dev, &caps, &req, NULL, 512), 0);
	/* As the caller made it. */
	assert_int_equal((uintptr_t)iov[1].iov_base, 0x3000);
	assert_int_equal(iov[1].iov_len, 1024);
}

static void test_step_direct_rounds_down(void **state)
{
	struct block_caps caps = { 0 };
	struct iovec iov = { (void *)0x1000, 2048 };
	struct block_req req = {
		.op = BLOCK_WRITE, .len = 2048, .iov = &iov, .num_iov = 1
	};
	struct block_step step;
	struct blockdev dev;

	step_fixture(&dev, true);
	assert_int_equal(block_step_init(&dev, &caps, &req), 0);
	assert_false(req.bounced);
	block_step_prepare(&dev, &req, NULL, &step);
	assert_int_equal(block_step_result(&dev, &caps, &req, NULL, 1100), 1);
	block_step_prepare(&dev, &req, NULL, &step);
	assert_int_equal(step.offset, 1024);
	assert_int_equal(step.len, 1024);
	/* Less than a block: no progress is an error, not a loop. */
	assert_int_equal(block_step_result(&dev, &caps, &req, NULL, 511), -EIO);
	assert_int_equal(iov.iov_len, 2048);
}

/* One entry is cut at both its ends, and whole again afterwards. */
static void test_step_is_bounded(void **state)
{
	struct block_caps caps = { 0 };
	struct iovec iov[2] = { { (char *)MIB, 5 * MIB },
				{ (char *)(64 * MIB), 2 * MIB } };
	struct block_req req = {
		.op = BLOCK_READ, .len = 7 * MIB, .iov = iov, .num_iov = 2
	};
	struct block_step step;
	struct blockdev dev;

	step_fixture(&dev, false);
	assert_int_equal(block_step_init(&dev, &caps, &req), 0);
	for (unsigned int i = 0; i < 2; i++) {
		block_step_prepare(&dev, &req, NULL, &step);
		assert_int_equal(step.len, 2 * MIB);
		assert_int_equal(step.offset, i * 2 * MIB);
		assert_int_equal(step.num_iov, 1);
		assert_int_equal((uintptr_t)step.iov[0].iov_base,
				 (1 + i * 2) * MIB);
		assert_int_equal(step.iov[0].iov_len, 2 * MIB);
		assert_int_equal(
			block_step_result(&dev, &caps, &req, NULL, 2 * MIB), 1);
		assert_int_equal((uintptr_t)iov[0].iov_base, MIB);
		assert_int_equal(iov[0].iov_len, 5 * MIB);
	}
	block_step_prepare(&dev, &req, NULL, &step);
	assert_int_equal(step.len, 2 * MIB);
	assert_int_equal(step.num_iov, 2);
	assert_int_equal(step.iov[0].iov_len, MIB);
	assert_int_equal(step.iov[1].iov_len, MIB);
	assert_int_equal(block_step_result(&dev, &caps, &req, NULL, 2 * MIB),
			 1);
	block_step_prepare(&dev, &req, NULL, &step);
	assert_int_equal(step.len, MIB);
	assert_int_equal((uintptr_t)step.iov[0].iov_base, 65 * MIB);
	assert_int_equal(block_step_result(&dev, &caps, &req, NULL, MIB), 0);
	assert_int_equal(iov[0].iov_len, 5 * MIB);
	assert_int_equal((uintptr_t)iov[1].iov_base, 64 * MIB);
	assert_int_equal(iov[1].iov_len, 2 * MIB);
}

/* All steps of a range; returns their number. */
static unsigned int range_steps(const struct blockdev *dev,
				struct block_req *req, uint64_t most,
				uint64_t unit)
{
	struct block_caps caps = { .no_punch = dev->is_bdev };
	uint64_t at = req->offset, end = req->offset + req->len;
	struct block_step step;
	unsigned int num = 0;

	assert_int_equal(block_step_init(dev, &caps, req), 0);
	for (int r = 1; r; num++) {
		block_step_prepare(dev, req, NULL, &step);
		assert_int_equal(step.offset, at);
		assert_in_range(step.len, 1, most);
		at += step.len;
		assert_true(at == end || at % unit == 0);
		r = block_step_result(dev, &caps, req, NULL, 0);
		assert_true(r == 0 || r == 1);
	}
	assert_int_equal(at, end);
	return num;
}

static void test_step_ranges(void **state)
{
	struct block_req req = { .op = BLOCK_DISCARD,
				 .offset = MIB - 512,
				 .len = 640 * MIB };
	struct blockdev dev;

	step_fixture(&dev, false);
	dev.size = GIB;
	dev.discard_bytes = 4096;
	assert_int_equal(range_steps(&dev, &req, 64 * MIB, 4096), 11);
	/* What is freed in one piece is not cut, even if it is large. */
	dev.discard_bytes = 96 * MIB;
	assert_int_equal(range_steps(&dev, &req, 96 * MIB, 96 * MIB), 7);
	/* A device that may have to write each zero. */
	dev.is_bdev = true;
	req.op = BLOCK_WRITE_ZEROES_NOMAP;
	assert_int_equal(range_steps(&dev, &req, 2 * MIB, 2 * MIB), 321);
}

/* Memory wants more than the file: a step never starts in between. */
static void test_step_direct_memory_unit(void **state)
{
	struct block_caps caps = { 0 };
	struct iovec iov[2] = { { (void *)0x1000, 8192 },
				{ (void *)0x8000, 8192 } };
	struct block_req req = {
		.op = BLOCK_READ, .len = 16384, .iov = iov, .num_iov = 2
	};
	struct block_step step;
	struct blockdev dev;

	step_fixture(&dev, true);
	dev.mem_align = 4096;
	assert_int_equal(block_step_init(&dev, &caps, &req), 0);
	assert_false(req.bounced);
	block_step_prepare(&dev, &req, NULL, &step);
	assert_int_equal(block_step_result(&dev, &caps, &req, NULL, 5632), 1);
	block_step_prepare(&dev, &req, NULL, &step);
	assert_int_equal(step.offset, 4096);
	assert_int_equal((uintptr_t)step.iov[0].iov_base, 0x2000);
	assert_int_equal(block_step_result(&dev, &caps, &req, NULL, 8192 - 512),
			 1);
	block_step_prepare(&dev, &req, NULL, &step);
	assert_int_equal((uintptr_t)step.iov[0].iov_base, 0x8000);
	assert_int_equal(block_step_result(&dev, &caps, &req, NULL, 8192), 0);
	/* Aligned bases, but the second entry would start in between. */
	iov[0].iov_len = 512;
	iov[1].iov_len = 16384 - 512;
	assert_int_equal(block_step_init(&dev, &caps, &req), 0);
	assert_true(req.bounced);
}

static void test_step_gives_up(void **state)
{
	struct block_caps caps = { 0 };
	struct block_req req = { .op = BLOCK_FLUSH };
	struct block_step step;
	struct blockdev dev;
	unsigned int steps = 0;
	int r;

	step_fixture(&dev, false);
	assert_int_equal(block_step_init(&dev, &caps, &req), 0);
	do {
		block_step_prepare(&dev, &req, NULL, &step);
		r = block_step_result(&dev, &caps, &req, NULL, -EINTR);
		assert_true(++steps < 1000);
	} while (r == 1);
	assert_int_equal(r, -EINTR);
}

static void test_step_fallbacks(void **state)
{
	struct block_caps caps = { 0 };
	struct block_req req = { .op = BLOCK_WRITE_ZEROES, .len = 100 * 1024 };
	struct block_step step;
	struct blockdev dev;

	step_fixture(&dev, false);
	assert_int_equal(block_step_init(&dev, &caps, &req), 0);
	block_step_prepare(&dev, &req, NULL, &step);
	assert_int_equal(step.method, METHOD_PUNCH);
	assert_int_equal(
		block_step_result(&dev, &caps, &req, NULL, -EOPNOTSUPP), 1);
	block_step_prepare(&dev, &req, NULL, &step);
	assert_int_equal(step.method, METHOD_ZERO_RANGE);
	assert_int_equal(
		block_step_result(&dev, &caps, &req, NULL, -EOPNOTSUPP), 1);
	block_step_prepare(&dev, &req, NULL, &step);
	assert_int_equal(step.method, METHOD_ZERO_WRITE);
	assert_int_equal(step.len, 64 * 1024);
	assert_int_equal(step.num_iov, 1);
	assert_int_equal(step.iov[0].iov_len, 64 * 1024);
	expect_zero(step.iov[0].iov_base, 64 * 1024);
	assert_int_equal(block_step_result(&dev, &caps, &req, NULL, 64 * 1024),
			 1);
	block_step_prepare(&dev, &req, NULL, &step);
	assert_int_equal(step.offset, 64 * 1024);
	assert_int_equal(step.len, 36 * 1024);
	assert_null(step.iov);
	expect_zero(step.buf, 36 * 1024);
	assert_int_equal(block_step_result(&dev, &caps, &req, NULL, 36 * 1024),
			 0);
	/* The next one starts with what is known to work. */
	assert_int_equal(block_step_init(&dev, &caps, &req), 0);
	assert_int_equal(req.method, METHOD_ZERO_WRITE);
	/* A discard cannot be replaced on a file; on a device it can. */
	req.op = BLOCK_DISCARD;
	assert_int_equal(block_step_init(&dev, &caps, &req), 0);
	assert_int_equal(block_step_result(&dev, &caps, &req, NULL,
					   -EOPNOTSUPP),
			 -EOPNOTSUPP);
	dev.is_bdev = true;
	assert_int_equal(block_step_init(&dev, &caps, &req), 0);
	assert_int_equal(req.method, METHOD_DISCARD);
}

#define IMAGE_TEST(fn) \
	cmocka_unit_test_setup_teardown(fn, image_setup, image_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		IMAGE_TEST(test_refused_files),
		IMAGE_TEST(test_sizes),
		IMAGE_TEST(test_lock),
		IMAGE_TEST(test_lock_after_kill),
		IMAGE_TEST(test_lock_twice_in_process),
		IMAGE_TEST(test_lock_whole_file_reader),
		IMAGE_TEST(test_lock_qemu),
		IMAGE_TEST(test_roundtrip),
		IMAGE_TEST(test_direct),
		IMAGE_TEST(test_direct_bounce_many),
		IMAGE_TEST(test_deep),
		IMAGE_TEST(test_refused_requests),
		IMAGE_TEST(test_zeroing),
		IMAGE_TEST(test_truncated_file),
		IMAGE_TEST(test_wake),
		IMAGE_TEST(test_submit_from_done),
		cmocka_unit_test(test_cancel_reads),
		cmocka_unit_test(test_cancel_zero_writes),
		cmocka_unit_test(test_cancel_punches),
		IMAGE_TEST(test_cancel_bounced),
		IMAGE_TEST(test_cancel_in_kernel),
		cmocka_unit_test(test_lanes),
		cmocka_unit_test(test_synchronous),
		cmocka_unit_test(test_step_short_transfers),
		cmocka_unit_test(test_step_direct_rounds_down),
		cmocka_unit_test(test_step_is_bounded),
		cmocka_unit_test(test_step_ranges),
		cmocka_unit_test(test_step_direct_memory_unit),
		cmocka_unit_test(test_step_gives_up),
		cmocka_unit_test(test_step_fallbacks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
