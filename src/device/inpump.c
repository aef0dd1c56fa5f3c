/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. Two steps, each of which may be stopped: descriptor to
 * ring (stops when the ring is full, unless it drops: the descriptor is then
 * watched for a hang-up only) and ring to client (stops when the client has no
 * room: waiting is set).
 *
 * The race to get right is in the second: the guest empties its FIFO between
 * our seeing it full and our going to sleep. So the control thread first sets
 * waiting, then asks for room once more; the guest's side first makes room,
 * then tests and clears waiting. One of the two sees the other.
 */
#include "device/inpump.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/evloop.h"
#include "base/io.h"
#include "device/chardev_priv.h"

#define INPUMP_CHUNK 512

static void on_ready(void *ctx, uint32_t events);

/* -- the descriptor -- */

static int watched_fd(const struct inpump *pump)
{
	return pump->always_fd >= 0 ? pump->always_fd : pump->fd;
}

static int watch(struct inpump *pump, uint32_t events)
{
	return evloop_add(pump->loop, watched_fd(pump), events, on_ready, pump);
}

static void unwatch(struct inpump *pump)
{
	if (pump->fd >= 0)
		evloop_del(pump->loop, watched_fd(pump));
	pump->watching = false;
}

static void end(struct inpump *pump, int error)
{
	inpump_close(pump);
	pump->ops.end(pump->ops.ctx, error);
}

/* Go on watching for input, or only for a hang-up. */
static void set_watching(struct inpump *pump, bool input)
{
	int r;

	if (pump->fd < 0 || pump->watching == input)
		return;
	unwatch(pump);
	pump->watching = input;
	if (!input && (pump->always_fd >= 0 || pump->hung_up))
		return;
	r = watch(pump, input ? EPOLLIN : 0);
	if (r)
		end(pump, -r);
}

/* -- the ring -- */

static bool wants_input(const struct inpump *pump)
{
	return pump->ops.drops || pump->len < INPUMP_BYTES;
}

/* What does not fit is dropped. */
static void hold(struct inpump *pump, const uint8_t *data, size_t len)
{
	uint32_t at = (pump->start + pump->len) % INPUMP_BYTES;
	size_t room = INPUMP_BYTES - pump->len, first;

	if (len > room) {
		pump->dropped += len - room;
		len = room;
	}
	first = MIN(len, (size_t)(INPUMP_BYTES - at));
	memcpy(pump->held + at, data, first);
	memcpy(pump->held, data + first, len - first);
	pump->len += (uint32_t)len;
}

/* How much the client takes; 0 after having arranged to be told. */
static size_t room_or_wait(struct inpump *pump)
{
	size_t room = chardev_room(pump->chr);

	if (room)
		return room;
	atomic_store(&pump->waiting, true);
	room = chardev_room(pump->chr);
	if (room)
		atomic_store(&pump->waiting, false);
	return room;
}

static void deliver(struct inpump *pump)
{
	while (pump->len) {
		uint32_t whole = MIN(pump->len, INPUMP_BYTES - pump->start);
		size_t n = room_or_wait(pump);

		if (!n)
			break;
		n = MIN(n, (size_t)whole);
		chardev_receive(pump->chr, pump->held + pump->start, n);
		pump->start = (pump->start + (uint32_t)n) % INPUMP_BYTES;
		pump->len -= (uint32_t)n;
	}
	set_watching(pump, wants_input(pump));
}

static void read_some(struct inpump *pump)
{
	uint8_t buf[INPUMP_CHUNK];
	size_t len = sizeof(buf);
	ssize_t n;

	if (!pump->ops.drops)
		len = MIN(len, (size_t)(INPUMP_BYTES - pump->len));
	n = read(pump->fd, buf, len);
	if (n <= 0) {
		if (n == 0 || (errno != EAGAIN && errno != EINTR))
			end(pump, n ? errno : 0);
		return;
	}
	len = (size_t)n;
	if (pump->ops.filter)
		len = pump->ops.filter(pump->ops.ctx, buf, len);
	hold(pump, buf, len);
	deliver(pump);
}

static void on_ready(void *ctx, uint32_t events)
{
	struct inpump *pump = ctx;

	if (pump->watching) {
		read_some(pump);
		return;
	}
	/* A hang-up with the ring full; it would be reported for ever. */
	unwatch(pump);
	pump->hung_up = true;
	if (pump->ops.hangup)
		pump->ops.hangup(pump->ops.ctx);
}

static void on_resume(void *ctx, uint32_t events)
{
	struct inpump *pump = ctx;

	io_eventfd_drain(pump->resume_fd);
	deliver(pump);
}

void inpump_resume(struct inpump *pump)
{
	if (atomic_load(&pump->waiting) &&
	    atomic_exchange(&pump->waiting, false))
		io_eventfd_signal(pump->resume_fd);
}

/* -- life -- */

int inpump_init(struct inpump *pump, struct chardev *chr, struct evloop *loop,
		const struct inpump_ops *ops)
{
	int r;

	pump->ops = *ops;
	pump->chr = chr;
	pump->fd = -1;
	pump->always_fd = -1;
	pump->watching = false;
	pump->start = pump->len = 0;
	pump->dropped = 0;
	atomic_store(&pump->waiting, false);
	pump->resume_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (pump->resume_fd < 0)
		return -errno;
	r = evloop_add(loop, pump->resume_fd, EPOLLIN, on_resume, pump);
	if (r) {
		close_fd(&pump->resume_fd);
		return r;
	}
	pump->loop = loop;
	return 0;
}

void inpump_fini(struct inpump *pump)
{
	if (!pump->loop)
		return;
	inpump_close(pump);
	evloop_del(pump->loop, pump->resume_fd);
	close_fd(&pump->resume_fd);
	pump->loop = NULL;
}

int inpump_open(struct inpump *pump, int fd)
{
	bool input = wants_input(pump);
	int r;

	pump->fd = fd;
	pump->hung_up = false;
	/* With a full ring only for the hang-up; deliver() will ask for more.
	 */
	r = watch(pump, input ? EPOLLIN : 0);
	if (r == -EPERM) {
		pump->always_fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
		r = pump->always_fd < 0 ? -errno : watch(pump, EPOLLIN);
	}
	if (r) {
		close_fd(&pump->always_fd);
		pump->fd = -1;
		return r;
	}
	pump->watching = input;
	return 0;
}

void inpump_close(struct inpump *pump)
{
	unwatch(pump);
	close_fd(&pump->always_fd);
	pump->fd = -1;
}
