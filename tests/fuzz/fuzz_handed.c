/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that one process makes for another (snapshot/handed.h), the other side
 * of it hostile: as one who asks, with whatever bytes and descriptors; as one
 * who answers, likewise. Nothing stays open, what is handed over is an empty
 * regular file, and what is made is a file in that directory.
 *
 * Input: a byte that says which side, then messages: a byte of flags, one of a
 * length, and so many bytes.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/compiler.h"
#include "snapshot/handed.h"

#define MAX_MESSAGES 16
#define MAX_FDS	     3

static char dir[] = "/tmp/quire-fuzz-handed-XXXXXX";
static int dir_fd = -1;

/* What may be handed over; of each kind one, for ever. */
enum kind { EMPTY_FILE, FULL_FILE, DIRECTORY, PIPE, DEVICE, SOCKET, NUM_KINDS };
static int kinds[NUM_KINDS];

static void clean_up(void)
{
	(void)rmdir(dir);
}

static void set_up(void)
{
	int fds[2];

	BUG_ON(!mkdtemp(dir));
	atexit(clean_up);
	dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	kinds[EMPTY_FILE] = open("/tmp", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	kinds[FULL_FILE] = open("/tmp", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	BUG_ON(write(kinds[FULL_FILE], "x", 1) != 1);
	kinds[DIRECTORY] = dup(dir_fd);
	BUG_ON(pipe(fds));
	kinds[PIPE] = fds[0];
	kinds[DEVICE] = open("/dev/zero", O_RDWR | O_CLOEXEC);
	kinds[SOCKET] = socket(AF_UNIX, SOCK_STREAM, 0);
	for (int i = 0; i < NUM_KINDS; i++)
		BUG_ON(kinds[i] < 0);
}

/* Descriptors are the lowest that are free: few of them leave none above. */
static int count_open(void)
{
	int num = 0;

	for (int fd = 0; fd < 64; fd++)
		num += fcntl(fd, F_GETFD) >= 0;
	return num;
}

/* flags: how many descriptors go along, and of which kind the first is. */
static void send_message(int fd, uint8_t flags, const uint8_t *bytes,
			 size_t len)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
	} control = { .bytes = { 0 } };
	struct iovec iov = { (void *)bytes, len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	unsigned int num = flags % (MAX_FDS + 1);
	int fds[MAX_FDS];

	for (unsigned int i = 0; i < num; i++)
		fds[i] = kinds[(flags / 4 + i) % NUM_KINDS];
	if (num) {
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(num * sizeof(int));
		control.header = (struct cmsghdr){
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS,
			.cmsg_len = CMSG_LEN(num * sizeof(int)),
		};
		memcpy(CMSG_DATA(&control.header), fds, num * sizeof(int));
	}
	(void)!sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Returns how many bytes there were, at most. */
static size_t send_all(int fd, const uint8_t *data, size_t size)
{
	size_t sent = 0;

	for (int i = 0; size > 2 && i < MAX_MESSAGES; i++) {
		size_t len = MIN((size_t)data[1] + 1, size - 2);

		send_message(fd, data[0], data + 2, len);
		data += 2 + len;
		size -= 2 + len;
		sent += len;
	}
	/* No more will come: nobody waits for it. */
	(void)shutdown(fd, SHUT_WR);
	return sent;
}

/* ---- who is handed files ---- */

static void check_file(int fd)
{
	struct stat st;

	BUG_ON(fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size);
	BUG_ON(!(fcntl(fd, F_GETFD) & FD_CLOEXEC));
	close(fd);
}

/*
 * Each takes a byte at least, or finds that no more will come. What was asked
 * is read, by nobody: without room for it nothing would be taken.
 */
static void ask_all(int fd, int peer, size_t bytes)
{
	char asked[HANDED_NAME_BYTES];
	int r;

	do {
		r = handed_ask(fd, "memory");
		(void)!recv(peer, asked, sizeof(asked), MSG_DONTWAIT);
		if (r >= 0)
			check_file(r);
		BUG_ON(!bytes && r != -EPIPE);
		bytes -= bytes > 0;
	} while (r != -EPIPE);
	BUG_ON(!handed_is_over(fd));
}

/* ---- who makes them ---- */

static void remove_made(void)
{
	DIR *list = fdopendir(openat(dir_fd, ".", O_RDONLY | O_CLOEXEC));
	struct dirent *entry;
	struct stat st;

	BUG_ON(!list);
	while ((entry = readdir(list))) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		BUG_ON(entry->d_name[0] == '.');
		BUG_ON(fstatat(dir_fd, entry->d_name, &st,
			       AT_SYMLINK_NOFOLLOW) ||
		       !S_ISREG(st.st_mode) || st.st_size);
		BUG_ON(unlinkat(dir_fd, entry->d_name, 0));
	}
	closedir(list);
}

static void serve_all(int fd)
{
	int r;

	do {
		r = handed_serve(fd, dir_fd, -1);
	} while (!r);
	BUG_ON(r != -EPIPE && r != -EPROTO);
	remove_made();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int before, ends[2];
	size_t bytes;

	if (dir_fd < 0)
		set_up();
	if (!size)
		return 0;
	before = count_open();
	BUG_ON(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends));
	bytes = send_all(ends[1], data + 1, size - 1);
	if (data[0] % 2)
		serve_all(ends[0]);
	else
		ask_all(ends[0], ends[1], bytes);
	close(ends[0]);
	close(ends[1]);
	/* What was handed over and is not wanted is closed. */
	BUG_ON(count_open() != before);
	return 0;
}
