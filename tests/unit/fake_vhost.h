/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A vhost-user back end in a thread, for tests: speaks the protocol on a
 * connected socket, honestly or not, and serves rings in the same struct ram
 * (the test is one process). Real requests of real guests are for virtiofsd;
 * this one is for what virtiofsd does not do.
 *
 * Every request is answered with four bytes of "len" and zeroes, see
 * fake_vhost_answer().
 */
#ifndef QUIRE_TESTS_FAKE_VHOST_H
#define QUIRE_TESTS_FAKE_VHOST_H

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "virtio/vhost_user/vhost_user_msg.h"
#include "virtio/virtio.h"

#define FAKE_FEATURES                                                       \
	(VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | \
	 VHOST_USER_F_PROTOCOL_FEATURES)
#define FAKE_QUEUES 4

/* How it misbehaves, when `at` is asked of it. */
enum fake_vice {
	FAKE_HONEST,
	FAKE_REFUSE,   /* an ack that says no */
	FAKE_MUTE,     /* no answer */
	FAKE_HANG_UP,  /* closes the connection instead */
	FAKE_VERSION,  /* flags of another version */
	FAKE_NO_REPLY, /* flags without the reply bit */
	FAKE_FLAGS,    /* unknown flags */
	FAKE_OTHER,    /* replies to another request */
	FAKE_LONG,     /* a payload too long */
	FAKE_SHORT,    /* a payload too short, then the end */
	FAKE_FDS,      /* descriptors nobody wants */
	FAKE_GARBAGE,  /* a payload of ones */
};

struct fake_vhost {
	int fd; /* the back end's end */
	const struct ram *ram;
	enum fake_vice vice;
	uint32_t at;
	uint64_t features, protocol;
	uint64_t queue_num;

	pthread_t thread;
	_Atomic unsigned int num_seen;
	_Atomic uint32_t seen[256]; /* requests in order */
	uint64_t got_features;
	struct vhost_user_memory memory;
	bool memory_ok; /* the memfd really holds guest memory */
	struct {
		struct vq_config cfg;
		struct virtqueue vq;
		int kick, call, err;
		bool enabled;
		uint16_t base;
	} queues[FAKE_QUEUES];
	/* Takes requests and leaves them unanswered, once set. */
	_Atomic bool swallow;
	/* Takes no more, but reports an error when kicked, once set. */
	_Atomic bool fails;
	_Atomic unsigned int served;
	struct vq_chain chain;
};

struct fake_message {
	struct vhost_user_header header;
	union {
		uint64_t u64;
		struct vhost_user_vring_state state;
		struct vhost_user_vring_addr addr;
		struct vhost_user_memory memory;
		uint8_t bytes[512];
	} p;
	int fds[VHOST_USER_MAX_FDS];
	unsigned int num_fds;
};

static inline bool fake_receive(struct fake_vhost *f, struct fake_message *m)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(m->fds))];
	struct iovec iov = { &m->header, sizeof(m->header) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};

	memset(m, 0, sizeof(*m));
	if (recvmsg(f->fd, &msg, MSG_WAITALL | MSG_CMSG_CLOEXEC) !=
	    sizeof(m->header))
		return false;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c;
	     c = CMSG_NXTHDR(&msg, c)) {
		m->num_fds = (unsigned int)((c->cmsg_len - CMSG_LEN(0)) /
					    sizeof(int));
		memcpy(m->fds, CMSG_DATA(c), m->num_fds * sizeof(int));
	}
	BUG_ON(m->header.size > sizeof(m->p));
	return !m->header.size || recv(f->fd, &m->p, m->header.size,
				       MSG_WAITALL) == (ssize_t)m->header.size;
}

/* false: the connection is to end. */
static inline bool fake_reply(struct fake_vhost *f, uint32_t request,
			      const void *payload, bool ack)
{
	struct vhost_user_header h = {
		.request = request,
		.flags = VHOST_USER_VERSION | VHOST_USER_REPLY,
		.size = VHOST_USER_REPLY_BYTES,
	};
	uint8_t bytes[sizeof(h) + 16] = { 0 };
	size_t len = sizeof(h) + VHOST_USER_REPLY_BYTES;
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { bytes, 0 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	enum fake_vice vice = f->at == request ? f->vice : FAKE_HONEST;
	uint64_t refused = 1;

	if (vice == FAKE_VERSION)
		h.flags ^= 3;
	if (vice == FAKE_NO_REPLY)
		h.flags &= ~VHOST_USER_REPLY;
	if (vice == FAKE_FLAGS)
		h.flags |= 1u << 30;
	if (vice == FAKE_OTHER)
		h.request++;
	if (vice == FAKE_LONG)
		h.size = UINT32_MAX;
	memcpy(bytes, &h, sizeof(h));
	memcpy(bytes + sizeof(h),
	       vice == FAKE_REFUSE && ack ? &refused : payload,
	       VHOST_USER_REPLY_BYTES);
	if (vice == FAKE_GARBAGE)
		memset(bytes + sizeof(h), 0xff, VHOST_USER_REPLY_BYTES);
	if (vice == FAKE_SHORT)
		len -= 3;
	if (vice == FAKE_FDS) {
		struct cmsghdr *c;

		msg.msg_control = control;
		msg.msg_controllen = sizeof(control);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &f->fd, sizeof(int));
	}
	iov.iov_len = len;
	if (vice == FAKE_HANG_UP)
		return false;
	if (vice != FAKE_MUTE &&
	    sendmsg(f->fd, &msg, MSG_NOSIGNAL) != (ssize_t)len)
		return false;
	return vice != FAKE_SHORT;
}

static inline void fake_take_fd(int *to, struct fake_message *m)
{
	close_fd(to);
	*to = m->num_fds == 1 ? m->fds[0] : -1;
	m->num_fds = 0;
}

/* Is what the descriptor holds what is at the same place of f->ram? */
static inline void fake_take_memory(struct fake_vhost *f,
				    struct fake_message *m)
{
	const struct vhost_user_region *r = m->p.memory.regions;
	char *mine;

	f->memory = m->p.memory;
	f->memory_ok = m->num_fds == f->memory.num_regions;
	for (unsigned int i = 0; i < m->num_fds; i++, r++) {
		mine = mmap(NULL, r->size, PROT_READ | PROT_WRITE, MAP_SHARED,
			    m->fds[i], (off_t)r->mmap_offset);
		if (mine == MAP_FAILED) {
			f->memory_ok = false;
			continue;
		}
		f->ram->base[r->gpa + 64] = 'q';
		f->memory_ok &= mine[64] == 'q';
		f->ram->base[r->gpa + 64] = 0;
		f->memory_ok &= mine[64] == 0;
		munmap(mine, r->size);
	}
}

static inline uint64_t fake_gpa(struct fake_vhost *f, uint64_t user)
{
	for (unsigned int i = 0; i < f->memory.num_regions; i++) {
		const struct vhost_user_region *r = &f->memory.regions[i];

		if (user >= r->user_addr && user - r->user_addr < r->size)
			return r->gpa + user - r->user_addr;
	}
	return UINT64_MAX;
}

static inline void fake_start_ring(struct fake_vhost *f, unsigned int i)
{
	struct virtqueue *vq = &f->queues[i].vq;

	vq_init(vq, i, VQ_MAX_SIZE, f->ram);
	f->queues[i].cfg.indirect = true;
	if (vq_start(vq, &f->queues[i].cfg))
		return;
	vq_adopt(vq);
	vq->last_avail = vq->avail_seen = f->queues[i].base;
}

static inline bool fake_handle(struct fake_vhost *f, struct fake_message *m)
{
	uint32_t request = m->header.request;
	uint32_t i = m->p.state.index % FAKE_QUEUES;
	struct vhost_user_vring_state state = { i, f->queues[i].vq.last_avail };
	uint64_t zero = 0;

	switch (request) {
	case VHOST_USER_GET_FEATURES:
		return fake_reply(f, request, &f->features, false);
	case VHOST_USER_GET_PROTOCOL_FEATURES:
		return fake_reply(f, request, &f->protocol, false);
	case VHOST_USER_GET_QUEUE_NUM:
		return fake_reply(f, request, &f->queue_num, false);
	case VHOST_USER_GET_VRING_BASE:
		vq_stop(&f->queues[i].vq);
		return fake_reply(f, request, &state, false);
	case VHOST_USER_SET_FEATURES:
		f->got_features = m->p.u64;
		break;
	case VHOST_USER_SET_MEM_TABLE:
		fake_take_memory(f, m);
		break;
	case VHOST_USER_SET_VRING_NUM:
		f->queues[i].cfg.size = (uint16_t)m->p.state.num;
		break;
	case VHOST_USER_SET_VRING_BASE:
		f->queues[i].base = (uint16_t)m->p.state.num;
		break;
	case VHOST_USER_SET_VRING_ADDR:
		f->queues[i].cfg.desc = fake_gpa(f, m->p.addr.desc);
		f->queues[i].cfg.avail = fake_gpa(f, m->p.addr.avail);
		f->queues[i].cfg.used = fake_gpa(f, m->p.addr.used);
		break;
	case VHOST_USER_SET_VRING_KICK:
		fake_take_fd(&f->queues[i].kick, m);
		fake_start_ring(f, i);
		break;
	case VHOST_USER_SET_VRING_CALL:
		fake_take_fd(&f->queues[i].call, m);
		break;
	case VHOST_USER_SET_VRING_ERR:
		fake_take_fd(&f->queues[i].err, m);
		break;
	case VHOST_USER_SET_VRING_ENABLE:
		f->queues[i].enabled = m->p.state.num;
		break;
	default:
		break;
	}
	if (m->header.flags & VHOST_USER_NEED_REPLY)
		return fake_reply(f, request, &zero, true);
	return f->at != request || f->vice != FAKE_HANG_UP;
}

/* Answer what is in the ring: "done" into the first bytes of the in-part. */
static inline void fake_serve(struct fake_vhost *f, unsigned int i)
{
	struct virtqueue *vq = &f->queues[i].vq;

	io_eventfd_drain(f->queues[i].kick);
	if (atomic_load(&f->fails)) {
		io_eventfd_signal(f->queues[i].err);
		return;
	}
	while (f->queues[i].enabled && vq_pop(vq, &f->chain) > 0) {
		atomic_fetch_add(&f->served, 1);
		if (atomic_load(&f->swallow))
			continue;
		vq_push(vq, &f->chain,
			(uint32_t)vq_chain_write(&f->chain, 0, "done", 4));
		io_eventfd_signal(f->queues[i].call);
	}
}

static inline void *fake_vhost_main(void *arg)
{
	struct fake_vhost *f = arg;
	struct fake_message m;
	bool alive = true;

	while (alive) {
		struct pollfd pfds[1 + FAKE_QUEUES] = {
			{ f->fd, POLLIN, 0 },
		};

		for (unsigned int i = 0; i < FAKE_QUEUES; i++)
			pfds[1 + i] = (struct pollfd){
				f->queues[i].vq.started ? f->queues[i].kick
							: -1,
				POLLIN, 0
			};
		if (poll(pfds, ARRAY_SIZE(pfds), -1) < 0)
			continue;
		for (unsigned int i = 0; i < FAKE_QUEUES; i++)
			if (pfds[1 + i].revents)
				fake_serve(f, i);
		if (!pfds[0].revents)
			continue;
		alive = fake_receive(f, &m);
		if (alive) {
			unsigned int n = atomic_load(&f->num_seen);

			atomic_store(&f->seen[n % ARRAY_SIZE(f->seen)],
				     m.header.request);
			atomic_store(&f->num_seen, n + 1);
			alive = fake_handle(f, &m);
		}
		for (unsigned int i = 0; i < m.num_fds; i++)
			close(m.fds[i]);
	}
	for (unsigned int i = 0; i < FAKE_QUEUES; i++) {
		close_fd(&f->queues[i].kick);
		close_fd(&f->queues[i].call);
		close_fd(&f->queues[i].err);
	}
	/* Closed by who joins: others may still shut it down. */
	shutdown(f->fd, SHUT_RDWR);
	return NULL;
}

static inline void fake_vhost_init(struct fake_vhost *f, const struct ram *ram)
{
	memset(f, 0, sizeof(*f));
	f->fd = -1;
	f->ram = ram;
	f->features = FAKE_FEATURES;
	f->protocol = VHOST_USER_PROTOCOL_F_MQ |
		      VHOST_USER_PROTOCOL_F_REPLY_ACK | 1ull << 20;
	f->queue_num = FAKE_QUEUES;
	for (unsigned int i = 0; i < FAKE_QUEUES; i++)
		f->queues[i].kick = f->queues[i].call = f->queues[i].err = -1;
}

/* Serve fd in a thread, which ends with the connection. */
static inline void fake_vhost_start(struct fake_vhost *f, int fd)
{
	f->fd = fd;
	BUG_ON(pthread_create(&f->thread, NULL, fake_vhost_main, f));
}

static inline void fake_vhost_join(struct fake_vhost *f)
{
	pthread_join(f->thread, NULL);
	close_fd(&f->fd);
}

/* How often was request seen? */
static inline unsigned int fake_vhost_count(struct fake_vhost *f,
					    uint32_t request)
{
	unsigned int num = atomic_load(&f->num_seen), n = 0;

	for (unsigned int i = 0; i < num && i < ARRAY_SIZE(f->seen); i++)
		n += atomic_load(&f->seen[i]) == request;
	return n;
}

#endif
