/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio/vhost_user: what an honest back end is told, and that one which is
 * not costs the connection, in time, and nothing else.
 */
#include "cmocka_all.h"

#include <stdlib.h>
#include <sys/eventfd.h>

#include "fake_vhost.h"
#include "virtio/vhost_user/vhost_user.h"
#include "virtio_fake.h"

#define RAM_BYTES  (8 * MIB)
#define RING_SIZE  16
#define RING_BASE  0x10000
#define TIMEOUT_MS 20000 /* a hang, not a slow machine */
#define SHORT_MS   50	 /* where it is to run out */
#define NUM_QUEUES 2

struct fixture {
	struct ram ram;
	struct virtio_dev dev;
	struct vring rings[NUM_QUEUES];
	struct vhost_user vu;
	struct fake_vhost fake;
	int err_fd;
};

static const struct virtio_class no_class = { .name = "none" };

static int setup(void **state)
{
	const struct ram_config cfg = {
		.size_bytes = RAM_BYTES,
		.hole_start = 3 * GIB,
		.hole_end = 4 * GIB,
		.shared = true,
	};
	struct fixture *f = calloc(1, sizeof(*f));

	if (!f || ram_init(&f->ram, &cfg, NULL) ||
	    virtio_dev_init(&f->dev, &no_class, &f->ram, NUM_QUEUES, RING_SIZE))
		return -1;
	f->err_fd = eventfd(0, EFD_CLOEXEC);
	for (unsigned int i = 0; i < NUM_QUEUES; i++) {
		struct vq_config vq;

		f->dev.queues[i].call_fd = eventfd(0, EFD_NONBLOCK);
		vring_init(&f->rings[i], &f->ram, RING_SIZE,
			   RING_BASE + i * 0x10000ull);
		if (vq_start(&f->dev.queues[i].vq,
			     vring_config(&f->rings[i], &vq)))
			return -1;
	}
	f->dev.features = VIRTIO_F_VERSION_1;
	vhost_user_init(&f->vu);
	fake_vhost_init(&f->fake, &f->ram);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	vhost_user_close(&f->vu);
	virtio_dev_fini(&f->dev);
	ram_fini(&f->ram);
	close(f->err_fd);
	free(f);
	return 0;
}

static int try_connect(struct fixture *f, unsigned int timeout_ms,
		       struct err *err)
{
	int fds[2];

	assert_int_equal(
		socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	fake_vhost_start(&f->fake, fds[1]);
	return vhost_user_connect(&f->vu, fds[0], VIRTIO_F_VERSION_1,
				  NUM_QUEUES, timeout_ms, err);
}

static void must(int r, const struct err *err)
{
	if (r)
		fail_msg("%s", err->text);
}

static void finish(struct fixture *f)
{
	vhost_user_close(&f->vu);
	fake_vhost_join(&f->fake);
}

static void test_honest(void **state)
{
	static const uint32_t queue_requests[] = {
		VHOST_USER_SET_VRING_NUM,    VHOST_USER_SET_VRING_BASE,
		VHOST_USER_SET_VRING_ADDR,   VHOST_USER_SET_VRING_ERR,
		VHOST_USER_SET_VRING_CALL,   VHOST_USER_SET_VRING_KICK,
		VHOST_USER_SET_VRING_ENABLE, VHOST_USER_GET_VRING_BASE,
	};
	struct fixture *f = *state;
	struct err err = ERR_INIT;
	struct vring_used_elem used;
	struct vring_buf buf;
	uint16_t head;

	must(try_connect(f, TIMEOUT_MS, &err), &err);
	assert_true(f->vu.reply_ack);
	assert_int_equal(f->vu.max_queues, FAKE_QUEUES);
	/* one request is there before the start, and was never kicked */
	buf = (struct vring_buf){ vring_alloc(&f->rings[1], 16, 16), 16, true };
	head = vring_add(&f->rings[1], &buf, 1);
	must(vhost_user_start(&f->vu, &f->dev, f->err_fd, TIMEOUT_MS, &err),
	     &err);
	assert_true(vring_wait_used(&f->rings[1], TIMEOUT_MS, &used));
	assert_int_equal(used.id, head);
	assert_memory_equal(vring_ptr(&f->rings[1], buf.gpa), "done", 4);
	must(vhost_user_stop(&f->vu, &f->dev, TIMEOUT_MS, &err), &err);
	/* the fake is idle now, and its fields can be read */
	assert_true(f->fake.memory_ok);
	assert_int_equal(f->fake.memory.num_regions, 1);
	assert_int_equal(f->fake.memory.regions[0].size, RAM_BYTES);
	assert_int_equal(f->fake.got_features,
			 VIRTIO_F_VERSION_1 | VHOST_USER_F_PROTOCOL_FEATURES);
	assert_int_equal(f->fake.queues[1].cfg.desc, f->rings[1].desc);
	assert_int_equal(f->fake.queues[1].cfg.used, f->rings[1].used);
	for (size_t i = 0; i < ARRAY_SIZE(queue_requests); i++)
		assert_int_equal(fake_vhost_count(&f->fake, queue_requests[i]),
				 NUM_QUEUES);
	assert_true(io_eventfd_drain(f->dev.queues[1].call_fd) > 0);
	/* it goes on where it was told to */
	f->dev.queues[1].vq.last_avail = 1;
	must(vhost_user_start(&f->vu, &f->dev, f->err_fd, TIMEOUT_MS, &err),
	     &err);
	must(vhost_user_stop(&f->vu, &f->dev, TIMEOUT_MS, &err), &err);
	assert_int_equal(atomic_load(&f->fake.served), 1);
	assert_false(vhost_user_hung_up(&f->vu));
	finish(f);
}

/* Without REPLY_ACK and MQ: a barrier instead, and no limit of queues. */
static void test_plain_protocol(void **state)
{
	struct fixture *f = *state;
	struct err err = ERR_INIT;

	f->fake.protocol = 0;
	must(try_connect(f, TIMEOUT_MS, &err), &err);
	assert_false(f->vu.reply_ack);
	must(vhost_user_start(&f->vu, &f->dev, f->err_fd, TIMEOUT_MS, &err),
	     &err);
	assert_int_equal(fake_vhost_count(&f->fake, VHOST_USER_GET_FEATURES),
			 2);
	must(vhost_user_stop(&f->vu, &f->dev, TIMEOUT_MS, &err), &err);
	finish(f);

	fake_vhost_init(&f->fake, &f->ram);
	f->fake.features = VIRTIO_F_VERSION_1; /* no protocol features at all */
	must(try_connect(f, TIMEOUT_MS, &err), &err);
	must(vhost_user_start(&f->vu, &f->dev, f->err_fd, TIMEOUT_MS, &err),
	     &err);
	must(vhost_user_stop(&f->vu, &f->dev, TIMEOUT_MS, &err), &err);
	assert_int_equal(
		fake_vhost_count(&f->fake, VHOST_USER_SET_VRING_ENABLE), 0);
	finish(f);
}

static void test_reset_device(void **state)
{
	struct fixture *f = *state;
	struct err err = ERR_INIT;

	f->fake.protocol |= VHOST_USER_PROTOCOL_F_RESET_DEVICE;
	must(try_connect(f, TIMEOUT_MS, &err), &err);
	must(vhost_user_start(&f->vu, &f->dev, f->err_fd, TIMEOUT_MS, &err),
	     &err);
	must(vhost_user_stop(&f->vu, &f->dev, TIMEOUT_MS, &err), &err);
	assert_int_equal(fake_vhost_count(&f->fake, VHOST_USER_RESET_DEVICE),
			 1);
	finish(f);
}

static void test_poor_back_end(void **state)
{
	struct fixture *f = *state;
	struct err err = ERR_INIT;

	f->fake.features = VHOST_USER_F_PROTOCOL_FEATURES;
	assert_int_equal(try_connect(f, TIMEOUT_MS, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "0x100000000"));
	assert_int_equal(f->vu.fd, -1);
	finish(f);

	fake_vhost_init(&f->fake, &f->ram);
	f->fake.queue_num = 1;
	assert_int_equal(try_connect(f, TIMEOUT_MS, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "1 queues"));
	finish(f);
}

struct place {
	uint32_t request;
	const char *name;
	int stage; /* 0: connect, 1: start, 2: stop */
};

/* A back end with a vice at a place; what comes of it within ms there. */
static int meet(struct fixture *f, enum fake_vice vice,
		const struct place *place, unsigned int ms, struct err *err)
{
	int r;

	fake_vhost_init(&f->fake, &f->ram);
	f->fake.vice = vice;
	f->fake.at = place->request;
	r = try_connect(f, place->stage ? TIMEOUT_MS : ms, err);
	if (place->stage > 0) {
		must(r, err);
		r = vhost_user_start(&f->vu, &f->dev, f->err_fd,
				     place->stage > 1 ? TIMEOUT_MS : ms, err);
	}
	if (place->stage > 1) {
		must(r, err);
		r = vhost_user_stop(&f->vu, &f->dev, ms, err);
	}
	assert_int_equal(f->vu.fd, -1);
	finish(f);
	return r;
}

/*
 * The time for an answer is that of a stage, and the machine may be too slow
 * for the requests before the one that gets none: then with more time.
 */
static int meet_mute(struct fixture *f, const struct place *place,
		     struct err *err)
{
	int r = 0;

	for (unsigned int ms = SHORT_MS; ms < 2 * TIMEOUT_MS; ms *= 8) {
		*err = (struct err)ERR_INIT;
		r = meet(f, FAKE_MUTE, place, ms, err);
		if (r != -ETIMEDOUT || strstr(err->text, place->name))
			break;
	}
	return r;
}

/* Each vice at a request of each kind: an error, and no connection. */
static void test_vices(void **state)
{
	static const struct {
		enum fake_vice vice;
		int error;
		const char *text;
	} vices[] = {
		{ FAKE_VERSION, -EPROTO, "version" },
		{ FAKE_NO_REPLY, -EPROTO, "no reply" },
		{ FAKE_FLAGS, -EPROTO, "flags" },
		{ FAKE_OTHER, -EPROTO, "something else" },
		{ FAKE_LONG, -EPROTO, "size" },
		{ FAKE_SHORT, -ECONNRESET, "" },
		{ FAKE_HANG_UP, -ECONNRESET, "" },
		{ FAKE_FDS, -EPROTO, "descriptors" },
		{ FAKE_MUTE, -ETIMEDOUT, "does not answer" },
	};
	static const struct place places[] = {
		{ VHOST_USER_GET_FEATURES, "GET_FEATURES", 0 },
		{ VHOST_USER_GET_PROTOCOL_FEATURES, "GET_PROTOCOL", 0 },
		{ VHOST_USER_SET_OWNER, "SET_OWNER", 0 },
		{ VHOST_USER_SET_MEM_TABLE, "SET_MEM_TABLE", 1 },
		{ VHOST_USER_SET_VRING_KICK, "SET_VRING_KICK", 1 },
		{ VHOST_USER_GET_VRING_BASE, "GET_VRING_BASE", 2 },
	};
	struct fixture *f = *state;

	for (size_t v = 0; v < ARRAY_SIZE(vices); v++) {
		for (size_t p = 0; p < ARRAY_SIZE(places); p++) {
			struct err err = ERR_INIT;
			int r = vices[v].vice == FAKE_MUTE
					? meet_mute(f, &places[p], &err)
					: meet(f, vices[v].vice, &places[p],
					       TIMEOUT_MS, &err);

			if (r != vices[v].error ||
			    !strstr(err.text, places[p].name) ||
			    !strstr(err.text, vices[v].text))
				fail_msg("vice %zu at %s: %d, %s", v,
					 places[p].name, r, err.text);
		}
	}
}

static void test_refusal(void **state)
{
	struct fixture *f = *state;
	struct err err = ERR_INIT;

	f->fake.vice = FAKE_REFUSE;
	f->fake.at = VHOST_USER_SET_MEM_TABLE;
	must(try_connect(f, TIMEOUT_MS, &err), &err);
	assert_int_equal(vhost_user_start(&f->vu, &f->dev, f->err_fd,
					  TIMEOUT_MS, &err),
			 -EREMOTEIO);
	assert_non_null(strstr(err.text, "SET_MEM_TABLE"));
	assert_int_equal(f->vu.fd, -1);
	/* and nothing works without a connection */
	assert_int_equal(vhost_user_start(&f->vu, &f->dev, f->err_fd, 1, &err),
			 -ENOTCONN);
	assert_int_equal(vhost_user_stop(&f->vu, &f->dev, 1, &err), -ENOTCONN);
	finish(f);
}

/* Values that no honest back end sends. */
static void test_garbage(void **state)
{
	struct fixture *f = *state;
	struct err err = ERR_INIT;

	f->fake.vice = FAKE_GARBAGE;
	f->fake.at = VHOST_USER_GET_QUEUE_NUM;
	assert_int_equal(try_connect(f, TIMEOUT_MS, &err), -EPROTO);
	finish(f);
	fake_vhost_init(&f->fake, &f->ram);
	f->fake.vice = FAKE_GARBAGE;
	f->fake.at = VHOST_USER_GET_VRING_BASE;
	must(try_connect(f, TIMEOUT_MS, &err), &err);
	must(vhost_user_start(&f->vu, &f->dev, f->err_fd, TIMEOUT_MS, &err),
	     &err);
	assert_int_equal(vhost_user_stop(&f->vu, &f->dev, TIMEOUT_MS, &err),
			 -EPROTO);
	finish(f);
}

/* Somebody with a part of the memory file cannot take the rest away. */
static void test_sealed_memory(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(ftruncate(f->ram.fd, 4096), -1);
	assert_int_equal(errno, EPERM);
	f->ram.base[RAM_BYTES - 1] = 1;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_honest, setup, teardown),
		cmocka_unit_test_setup_teardown(test_plain_protocol, setup,
						teardown),
		cmocka_unit_test_setup_teardown(test_reset_device, setup,
						teardown),
		cmocka_unit_test_setup_teardown(test_poor_back_end, setup,
						teardown),
		cmocka_unit_test_setup_teardown(test_vices, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refusal, setup, teardown),
		cmocka_unit_test_setup_teardown(test_garbage, setup, teardown),
		cmocka_unit_test_setup_teardown(test_sealed_memory, setup,
						teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
