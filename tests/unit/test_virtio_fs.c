/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio/fs: what becomes of requests when the back end dies, returns, or was
 * never there; and the real virtiofsd from its start to its end.
 */
#include "cmocka_all.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "base/log.h"
#include "fake_vhost.h"
#include "virtio/fs/fs_priv.h"
#include "virtio_fake.h"

#define RAM_BYTES  (8 * MIB)
#define RING_SIZE  64
#define RING_BASE  0x10000
#define WAIT_MS	   20000 /* a hang, not a slow machine */
#define NUM_QUEUES 2
#define REQUESTS   1 /* the queue of ordinary requests */

struct fixture {
	struct ram ram;
	void *config;
	struct virtio_dev *dev;
	struct fake_transport transport;
	struct vring rings[NUM_QUEUES];
	struct fake_vhost fake;
	char dir[64], path[80];
	int listener;
	uint64_t unique;
};

static int setup(void **state)
{
	const struct ram_config cfg = {
		.size_bytes = RAM_BYTES,
		.hole_start = 3 * GIB,
		.hole_end = 4 * GIB,
		.shared = true,
	};
	struct fixture *f = calloc(1, sizeof(*f));

	if (!f || ram_init(&f->ram, &cfg, NULL))
		return -1;
	f->listener = -1;
	snprintf(f->dir, sizeof(f->dir), "/tmp/quire-test-fs-XXXXXX");
	if (!mkdtemp(f->dir))
		return -1;
	snprintf(f->path, sizeof(f->path), "%s/sock", f->dir);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	char command[100];

	close_fd(&f->listener);
	ram_fini(&f->ram);
	snprintf(command, sizeof(command), "rm -rf '%s'", f->dir);
	if (system(command))
		return -1;
	free(f);
	return 0;
}

/* ---- the device ---- */

static int parse(struct fixture *f, const char *options, struct err *err)
{
	const struct virtio_class *cls = &virtio_fs_class;
	int r;

	f->config = calloc(1, cls->config_bytes);
	assert_non_null(f->config);
	cls->config_defaults(f->config);
	r = kvlist_parse(cls->option, options, cls->first_key, cls->keys,
			 cls->num_keys, f->config, err);
	return r ? r : cls->config_check(f->config, err);
}

static void drop_config(struct fixture *f)
{
	virtio_fs_class.config_fini(f->config);
	free(take_ptr(f->config));
}

static void refuse(struct fixture *f, const char *options, const char *text)
{
	struct err err = ERR_INIT;
	struct virtio_dev *dev = NULL;
	int r = parse(f, options, &err);

	if (!r)
		r = virtio_fs_class.create(&dev, f->config, &f->ram, 1, 0,
					   &err);
	if (!r || dev || !strstr(err.text, text))
		fail_msg("%s: %d, '%s' is not in: %s", options, r, text,
			 err.text);
	drop_config(f);
}

static void create(struct fixture *f)
{
	struct err err = ERR_INIT;

	if (virtio_fs_class.create(&f->dev, f->config, &f->ram, 1, 0, &err))
		fail_msg("%s", err.text);
}

static void destroy(struct fixture *f)
{
	virtio_fs_class.destroy(take_ptr(f->dev));
}

static void activate(struct fixture *f)
{
	f->dev->transport = &fake_transport_ops;
	f->dev->transport_ctx = &f->transport;
	f->dev->features = VIRTIO_F_VERSION_1;
	for (unsigned int i = 0; i < NUM_QUEUES; i++) {
		struct vq_config cfg;

		vring_init(&f->rings[i], &f->ram, RING_SIZE,
			   RING_BASE + i * 0x10000ull);
		assert_int_equal(vq_start(&f->dev->queues[i].vq,
					  vring_config(&f->rings[i], &cfg)),
				 0);
	}
	assert_int_equal(virtio_fs_class.activate(f->dev), 0);
}

static void deactivate(struct fixture *f)
{
	virtio_fs_class.deactivate(f->dev);
	for (unsigned int i = 0; i < NUM_QUEUES; i++)
		vq_stop(&f->dev->queues[i].vq);
}

/* ---- the guest's requests ---- */

struct request {
	uint64_t out, in; /* guest addresses */
	uint64_t unique;
	uint16_t head;
};

/* reply false: a request without one, as FORGET. */
static struct request send_request(struct fixture *f, uint32_t opcode,
				   bool reply)
{
	struct vring *ring = &f->rings[REQUESTS];
	struct {
		struct fuse_in_header in;
		struct fuse_init_in init;
	} message = {
		.in = {
			.len = sizeof(message),
			.opcode = opcode,
			.unique = ++f->unique,
			.nodeid = 1,
		},
		.init = {
			.major = FUSE_KERNEL_VERSION,
			.minor = FUSE_KERNEL_MINOR_VERSION,
		},
	};
	struct request req = {
		.out = vring_alloc(ring, sizeof(message), 16),
		.in = vring_alloc(ring, 256, 16),
		.unique = message.in.unique,
	};
	const struct vring_buf bufs[] = {
		{ req.out, sizeof(message), false },
		{ req.in, 256, true },
	};

	memcpy(vring_ptr(ring, req.out), &message, sizeof(message));
	req.head = vring_add(ring, bufs, reply ? 2 : 1);
	io_eventfd_signal(f->dev->queues[REQUESTS].kick_fd);
	return req;
}

static uint32_t wait_reply(struct fixture *f, const struct request *req)
{
	struct vring_used_elem used = { 0 };

	if (!vring_wait_used(&f->rings[REQUESTS], WAIT_MS, &used))
		fail_msg("no reply to request %llu",
			 (unsigned long long)req->unique);
	assert_int_equal(used.id, req->head);
	return used.len;
}

static void expect_not_connected(struct fixture *f, const struct request *req)
{
	struct fuse_out_header out;

	assert_int_equal(wait_reply(f, req), sizeof(out));
	memcpy(&out, vring_ptr(&f->rings[REQUESTS], req->in), sizeof(out));
	assert_int_equal(out.error, -ENOTCONN);
	assert_int_equal(out.len, sizeof(out));
	assert_int_equal(out.unique, req->unique);
}

static void expect_done(struct fixture *f, const struct request *req)
{
	assert_int_equal(wait_reply(f, req), 4);
	assert_memory_equal(vring_ptr(&f->rings[REQUESTS], req->in), "done", 4);
}

static void wait_until(bool (*fn)(struct fixture *), struct fixture *f)
{
	const struct timespec pause = { .tv_nsec = 1000000 };

	for (unsigned int i = 0; i < WAIT_MS; i++) {
		if (fn(f))
			return;
		nanosleep(&pause, NULL);
	}
	fail_msg("it does not come to pass");
}

/* ---- the back end's side ---- */

static void listen_at(struct fixture *f)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	unlink(f->path);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", f->path);
	f->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(f->listener, (void *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(f->listener, 4), 0);
}

static void *accept_main(void *arg)
{
	struct fixture *f = arg;

	f->fake.fd = accept(f->listener, NULL, NULL);
	return f->fake.fd < 0 ? NULL : fake_vhost_main(&f->fake);
}

static void start_fake(struct fixture *f)
{
	fake_vhost_init(&f->fake, &f->ram);
	listen_at(f);
	assert_int_equal(pthread_create(&f->fake.thread, NULL, accept_main, f),
			 0);
}

/* As when the process dies: nobody listens, the connection ends. */
static void kill_fake(struct fixture *f)
{
	unlink(f->path);
	close_fd(&f->listener);
	shutdown(f->fake.fd, SHUT_RDWR);
	fake_vhost_join(&f->fake);
}

static void parse_socket(struct fixture *f)
{
	struct err err = ERR_INIT;
	char options[120];

	snprintf(options, sizeof(options), "tag=home,socket=%s", f->path);
	if (parse(f, options, &err))
		fail_msg("%s", err.text);
}

static bool swallowed_three(struct fixture *f)
{
	return atomic_load(&f->fake.served) == 3;
}

static bool is_back(struct fixture *f)
{
	return fake_vhost_count(&f->fake, VHOST_USER_SET_OWNER) == 1;
}

static bool is_quires(struct fixture *f)
{
	struct fs_dev *dev = container_of(f->dev, struct fs_dev, vdev);
	bool quires;

	pthread_mutex_lock(&dev->lock);
	quires = dev->server == FS_QUIRE;
	pthread_mutex_unlock(&dev->lock);
	return quires;
}

/* The watch thread forgets it where the process ends. */
static pid_t daemon_pid(struct fixture *f)
{
	struct fs_dev *dev = container_of(f->dev, struct fs_dev, vdev);
	pid_t pid;

	pthread_mutex_lock(&dev->lock);
	pid = dev->backend->pid;
	pthread_mutex_unlock(&dev->lock);
	return pid;
}

/* A back end that is there, and a driver that has enabled the device. */
static void begin(struct fixture *f)
{
	start_fake(f);
	parse_socket(f);
	create(f);
	activate(f);
}

static void finish(struct fixture *f)
{
	deactivate(f);
	destroy(f);
	drop_config(f);
	fake_vhost_join(&f->fake);
}

/* ---- tests ---- */

static void test_options(void **state)
{
	struct fixture *f = *state;
	char with[160];

	refuse(f, "path=/tmp", "tag=");
	refuse(f, "tag=", "no value");
	refuse(f, "tag=1234567890123456789012345678901234567,path=/", "1 to");
	refuse(f, "tag=a", "socket=PATH");
	refuse(f, "tag=a,path=/tmp,socket=/tmp/x", "socket=PATH");
	refuse(f, "tag=a,socket=/tmp/x,readonly=on", "options of virtiofsd");
	refuse(f, "tag=a,socket=/tmp/x,cache=none", "options of virtiofsd");
	refuse(f, "tag=a,path=/tmp,cache=some", "cache");
	refuse(f, "tag=a,path=/tmp,,x", "comma");
	refuse(f, "tag=a,path=/nonexistent", "No such file");
	refuse(f, "tag=a,path=/proc/version", "not a directory");
	refuse(f, "tag=a,path=/tmp,daemon=/nonexistent", "daemon=/nonexistent");
	refuse(f, "tag=a,path=/tmp,num_queues=64", "num_queues");
	refuse(f, "tag=a,path=/tmp,queue_size=48", "power of two");
	snprintf(with, sizeof(with), "tag=a,socket=%0120d", 0);
	refuse(f, with, "bytes");
	/* a program that is no virtiofsd */
	refuse(f, "tag=a,path=/tmp,daemon=/bin/false", "/bin/false: it failed");
	/* one that has something to say */
	refuse(f, "tag=a,path=/tmp,daemon=/bin/ls", "--help");
}

static void test_private_memory(void **state)
{
	struct fixture *f = *state;

	ram_fini(&f->ram);
	assert_int_equal(fake_ram_init(&f->ram, RAM_BYTES), 0);
	refuse(f, "tag=a,path=/tmp", "--memory shared=on");
}

static void test_config_space(void **state)
{
	struct fixture *f = *state;
	char bytes[40];

	start_fake(f);
	parse_socket(f);
	create(f);
	assert_int_equal(virtio_fs_class.config_space_bytes, sizeof(bytes));
	virtio_fs_class.config_read(f->dev, 0, bytes, sizeof(bytes));
	assert_string_equal(bytes, "home");
	assert_int_equal(le32_load(bytes + 36), 1);
	assert_int_equal(f->dev->num_queues, NUM_QUEUES);
	destroy(f);
	drop_config(f);
	fake_vhost_join(&f->fake);
}

/* A reboot: another device with the same options, on the same connection. */
static void test_reboot(void **state)
{
	struct fixture *f = *state;
	struct request req;

	start_fake(f);
	parse_socket(f);
	create(f);
	/* virtiofsd takes one connection in its life */
	unlink(f->path);
	for (int i = 0; i < 3; i++) {
		activate(f);
		req = send_request(f, FUSE_INIT, true);
		expect_done(f, &req);
		deactivate(f);
		destroy(f);
		create(f);
	}
	assert_int_equal(fake_vhost_count(&f->fake, VHOST_USER_SET_OWNER), 1);
	destroy(f);
	drop_config(f);
	fake_vhost_join(&f->fake);
}

static void test_death_and_return(void **state)
{
	struct fixture *f = *state;
	struct request req[3], one;

	begin(f);
	one = send_request(f, FUSE_INIT, true);
	expect_done(f, &one);

	/* taken, never answered; then it dies */
	atomic_store(&f->fake.swallow, true);
	atomic_store(&f->fake.served, 0);
	for (int i = 0; i < 3; i++)
		req[i] = send_request(f, FUSE_LOOKUP, true);
	wait_until(swallowed_three, f);
	kill_fake(f);
	for (int i = 0; i < 3; i++)
		expect_not_connected(f, &req[i]);
	assert_true(atomic_load(&f->transport.queue_interrupts) > 0);
	/* the driver need not do a thing for a new session */
	assert_int_equal(atomic_load(&f->transport.needs_reset), 0);

	/* new ones, a mount among them; and one without a reply */
	one = send_request(f, FUSE_INIT, true);
	expect_not_connected(f, &one);
	one = send_request(f, FUSE_FORGET, false);
	assert_int_equal(wait_reply(f, &one), 0);

	/* back, but only a new session is for it */
	start_fake(f);
	wait_until(is_back, f);
	one = send_request(f, FUSE_LOOKUP, true);
	expect_not_connected(f, &one);
	assert_int_equal(atomic_load(&f->fake.served), 0);
	one = send_request(f, FUSE_INIT, true);
	expect_done(f, &one);
	one = send_request(f, FUSE_LOOKUP, true);
	expect_done(f, &one);
	assert_int_equal(atomic_load(&f->fake.served), 2);

	finish(f);
}

struct thief {
	int fd;
	_Atomic bool stop;
};

static void *steal_kicks(void *arg)
{
	struct thief *t = arg;

	while (!atomic_load(&t->stop))
		io_eventfd_drain(t->fd);
	return NULL;
}

/* A back end that goes may still read what it was kicked with. */
static void test_kicks_go_along(void **state)
{
	struct fixture *f = *state;
	struct request req[3];
	struct thief thief = { .fd = -1 };
	pthread_t thread;

	begin(f);
	atomic_store(&f->fake.swallow, true);
	for (int i = 0; i < 3; i++)
		req[i] = send_request(f, FUSE_LOOKUP, true);
	wait_until(swallowed_three, f);
	thief.fd = f->dev->queues[REQUESTS].kick_fd;
	assert_int_equal(pthread_create(&thread, NULL, steal_kicks, &thief), 0);
	kill_fake(f);
	for (int i = 0; i < 3; i++)
		expect_not_connected(f, &req[i]);
	atomic_store(&thief.stop, true);
	pthread_join(thread, NULL);
	deactivate(f);
	destroy(f);
	drop_config(f);
}

/* A reset of the device begins anew, too. */
static void test_return_and_reset(void **state)
{
	struct fixture *f = *state;
	struct request req;

	begin(f);
	kill_fake(f);
	wait_until(is_quires, f);
	start_fake(f);
	wait_until(is_back, f);
	deactivate(f);
	activate(f);
	req = send_request(f, FUSE_LOOKUP, true);
	expect_done(f, &req);
	finish(f);
}

/* Hangs up where the rings are handed over: the guest gets errors. */
static void test_fails_to_start(void **state)
{
	struct fixture *f = *state;
	struct request req;

	start_fake(f);
	f->fake.vice = FAKE_HANG_UP;
	f->fake.at = VHOST_USER_SET_VRING_KICK;
	parse_socket(f);
	create(f);
	close_fd(&f->listener);
	activate(f);
	req = send_request(f, FUSE_INIT, true);
	expect_not_connected(f, &req);
	finish(f);
}

/* A bad chain while quire answers breaks the queue, and that is all. */
static void test_bad_chain(void **state)
{
	struct fixture *f = *state;
	const struct vring_buf buf = { RAM_BYTES, 64, false };
	struct vring_used_elem used;

	begin(f);
	kill_fake(f);
	wait_until(is_quires, f);
	vring_add(&f->rings[REQUESTS], &buf, 1);
	io_eventfd_signal(f->dev->queues[REQUESTS].kick_fd);
	assert_true(vring_wait_used(&f->rings[REQUESTS], WAIT_MS, &used));
	assert_int_equal(used.len, 0);
	deactivate(f); /* orders what the thread did before what we look at */
	assert_int_equal(atomic_load(&f->transport.needs_reset), 1);
	destroy(f);
	drop_config(f);
}

/* An error eventfd that fires: served no more by the back end. */
static void test_error_eventfd(void **state)
{
	struct fixture *f = *state;
	struct request req;

	start_fake(f);
	parse_socket(f);
	create(f);
	close_fd(&f->listener);
	activate(f);
	/* It does so itself, for its descriptors are its thread's to close. */
	atomic_store(&f->fake.fails, true);
	for (int i = 0; i < 2; i++) {
		req = send_request(f, FUSE_LOOKUP, true);
		expect_not_connected(f, &req);
	}
	assert_true(is_quires(f));
	finish(f);
}

static bool error_was_seen(struct fixture *f)
{
	struct fs_dev *dev = container_of(f->dev, struct fs_dev, vdev);
	struct pollfd pfd = { .fd = dev->err_fd, .events = POLLIN };

	return !poll(&pfd, 1, 0);
}

static void report_late(struct fixture *f)
{
	struct fs_dev *dev = container_of(f->dev, struct fs_dev, vdev);

	io_eventfd_signal(dev->err_fd);
	wait_until(error_was_seen, f);
}

/* An error from one without rings is not for its next use, or successor. */
static void test_late_error(void **state)
{
	struct fixture *f = *state;
	struct request req;

	begin(f);
	deactivate(f);
	report_late(f);
	activate(f);
	req = send_request(f, FUSE_LOOKUP, true);
	expect_done(f, &req);

	/* and nobody waits for it in a circle */
	kill_fake(f);
	wait_until(is_quires, f);
	report_late(f);
	start_fake(f);
	wait_until(is_back, f);
	req = send_request(f, FUSE_INIT, true);
	expect_done(f, &req);
	finish(f);
}

/* A paused machine: requests wait, and are answered when it goes on. */
static void test_hold(void **state)
{
	struct fixture *f = *state;
	struct vring_used_elem used;
	struct request req;

	start_fake(f);
	parse_socket(f);
	create(f);
	virtio_dev_hold(f->dev, true); /* before there is a driver */
	virtio_dev_hold(f->dev, false);
	activate(f);
	req = send_request(f, FUSE_INIT, true);
	expect_done(f, &req);
	for (int i = 0; i < 3; i++) {
		virtio_dev_hold(f->dev, true);
		req = send_request(f, FUSE_LOOKUP, true);
		/* it gave both queues back, so there is nobody to take it */
		assert_int_equal(fake_vhost_count(&f->fake,
						  VHOST_USER_GET_VRING_BASE),
				 NUM_QUEUES * (i + 1));
		assert_false(vring_take_used(&f->rings[REQUESTS], &used));
		virtio_dev_hold(f->dev, false);
		expect_done(f, &req);
	}
	assert_int_equal(atomic_load(&f->fake.served), 4);

	/* it dies meanwhile */
	virtio_dev_hold(f->dev, true);
	req = send_request(f, FUSE_LOOKUP, true);
	kill_fake(f);
	virtio_dev_hold(f->dev, false);
	expect_not_connected(f, &req);
	deactivate(f);
	destroy(f);
	drop_config(f);
}

/* One that dies and returns in a pause gets no session that it never saw. */
static void test_return_while_held(void **state)
{
	struct fixture *f = *state;
	struct request req;

	begin(f);
	req = send_request(f, FUSE_INIT, true);
	expect_done(f, &req);
	virtio_dev_hold(f->dev, true);
	req = send_request(f, FUSE_LOOKUP, true);
	kill_fake(f);
	start_fake(f);
	wait_until(is_back, f);
	virtio_dev_hold(f->dev, false);
	expect_not_connected(f, &req);
	assert_int_equal(atomic_load(&f->fake.served), 0);
	req = send_request(f, FUSE_INIT, true);
	expect_done(f, &req);
	finish(f);
}

static void skip_without_virtiofsd(void)
{
	if (access("/usr/lib/qemu/virtiofsd", X_OK) || geteuid()) {
		print_message("skip: needs root and /usr/lib/qemu/virtiofsd\n");
		skip();
	}
}

/* The real one: it starts, answers FUSE_INIT, dies, and leaves no process. */
static void test_virtiofsd(void **state)
{
	struct fixture *f = *state;
	struct fuse_out_header out;
	struct err err = ERR_INIT;
	struct request req;
	char options[160];
	pid_t pid;

	skip_without_virtiofsd();
	snprintf(options, sizeof(options),
		 "tag=real,path=%s,sandbox=chroot,daemon=%s", f->dir,
		 "/usr/lib/qemu/virtiofsd");
	if (parse(f, options, &err))
		fail_msg("%s", err.text);
	create(f);
	activate(f);
	for (int i = 0; i < 2; i++) {
		req = send_request(f, FUSE_INIT, true);
		assert_true(wait_reply(f, &req) > sizeof(out));
		memcpy(&out, vring_ptr(&f->rings[REQUESTS], req.in),
		       sizeof(out));
		assert_int_equal(out.error, 0);
		assert_int_equal(out.unique, req.unique);
		if (i)
			break;
		/* rings come back and go again */
		deactivate(f);
		activate(f);
	}
	/* paused and let go on: the session stands */
	virtio_dev_hold(f->dev, true);
	req = send_request(f, FUSE_STATFS, true);
	virtio_dev_hold(f->dev, false);
	assert_true(wait_reply(f, &req) > sizeof(out));
	memcpy(&out, vring_ptr(&f->rings[REQUESTS], req.in), sizeof(out));
	assert_int_equal(out.error, 0);
	pid = daemon_pid(f);
	assert_int_equal(kill(pid, SIGKILL), 0);
	wait_until(is_quires, f);
	assert_int_equal(kill(pid, 0), -1);
	assert_int_equal(atomic_load(&f->transport.needs_reset), 1);
	req = send_request(f, FUSE_LOOKUP, true);
	expect_not_connected(f, &req);
	deactivate(f);
	destroy(f);
	/* the next machine starts another, which ends with the options */
	create(f);
	pid = daemon_pid(f);
	assert_int_equal(kill(pid, 0), 0);
	destroy(f);
	assert_int_equal(kill(pid, 0), 0);
	drop_config(f);
	assert_int_equal(kill(pid, 0), -1);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_options),	      TEST(test_private_memory),
		TEST(test_config_space),      TEST(test_reboot),
		TEST(test_death_and_return),  TEST(test_kicks_go_along),
		TEST(test_return_and_reset),  TEST(test_fails_to_start),
		TEST(test_bad_chain),	      TEST(test_error_eventfd),
		TEST(test_late_error),	      TEST(test_hold),
		TEST(test_return_while_held), TEST(test_virtiofsd),
	};

	/* What is provoked here is reported on purpose. */
	log_set_level(LOG_LEVEL_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
