/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The lab's agent: PID 1 of the nested host after its init script.
 *
 * It talks to lab/run over one virtio-serial port in frames of
 * { type, 3 zero bytes, little-endian u32 length, payload }:
 *
 *   H  to the caller: ready; the payload is the uptime in seconds, as text
 *   R  from the caller: run this; NUL-ended strings: directory, number of
 *      arguments, arguments, environment
 *   O  E  to the caller: bytes of standard output, standard error
 *   A  to the caller, every ALIVE_MS while the command runs: it is alive
 *   X  to the caller: the command ended; the payload is its exit status as
 *      text, 128 + N where signal N killed it
 *
 * All output precedes X, and only X means that the command ended: a crash, a
 * hang and a closed port are all told apart from it.  One thread; after X it
 * only reaps until the caller kills the machine.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PORT	    "/dev/vport0p1"
#define REQUEST_MAX (4u << 20)
#define ARGS_MAX    65536
/* What a command leaves running may hold its output open: do not wait long. */
#define DRAIN_MS 300
#define ALIVE_MS 5000

struct frame {
	uint8_t type;
	uint8_t zero[3];
	uint32_t length;
};

struct request {
	char *text;
	const char *cwd;
	char **argv;
	char **envp;
};

/* Of linux/kvm.h, the one request used here. */
#define KVM_CREATE_VM 0xAE01

static int port = -1;

/* PID 1 that exits makes the kernel panic, which ends the machine. */
static _Noreturn void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fputs("lab agent: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
	_exit(1);
}

static void port_write(const void *data, size_t length)
{
	const char *at = data;

	while (length) {
		ssize_t n = write(port, at, length);

		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (n <= 0)
			die("write to %s: %s", PORT, strerror(errno));
		at += n;
		length -= (size_t)n;
	}
}

static void port_read(void *data, size_t length)
{
	static const struct timespec nap = { .tv_nsec = 5000000 };
	char *at = data;

	while (length) {
		ssize_t n = read(port, at, length);

		if (n < 0 && errno != EINTR && errno != EAGAIN)
			die("read from %s: %s", PORT, strerror(errno));
		if (n <= 0) {
			/* Zero: the caller has not opened its end yet. */
			nanosleep(&nap, NULL);
			continue;
		}
		at += n;
		length -= (size_t)n;
	}
}

static void frame_send(char type, const void *payload, size_t length)
{
	struct frame head = {
		.type = (uint8_t)type,
		.length = (uint32_t)length,
	};

	port_write(&head, sizeof(head));
	port_write(payload, length);
}

/* The next string of a request, or the end of the program. */
static char *next_string(char **at, const char *end)
{
	char *text = *at;
	char *stop = memchr(text, 0, (size_t)(end - text));

	if (stop)
		*at = stop + 1;
	else
		die("malformed request");
	return text;
}

static void request_read(struct request *req)
{
	struct frame head;
	char *at, *end;
	long count, i;

	port_read(&head, sizeof(head));
	if (head.type != 'R' || head.length > REQUEST_MAX)
		die("unexpected frame %d of %u bytes", head.type, head.length);
	req->text = malloc(head.length + 1);
	req->argv = calloc(ARGS_MAX + 1, sizeof(char *));
	req->envp = calloc(ARGS_MAX + 1, sizeof(char *));
	if (!req->text || !req->argv || !req->envp)
		die("no memory for a request of %u bytes", head.length);
	port_read(req->text, head.length);
	at = req->text;
	end = req->text + head.length;
	req->cwd = next_string(&at, end);
	count = strtol(next_string(&at, end), NULL, 10);
	if (count < 1 || count > ARGS_MAX)
		die("malformed request: %ld arguments", count);
	for (i = 0; i < count; i++)
		req->argv[i] = next_string(&at, end);
	for (i = 0; at < end && i < ARGS_MAX; i++)
		req->envp[i] = next_string(&at, end);
}

/* In the child: become the command. */
static _Noreturn void command_exec(const struct request *req, int out, int err)
{
	struct rlimit files = { .rlim_cur = 1024, .rlim_max = 1048576 };
	sigset_t none;
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	dup2(null, 0);
	dup2(out, 1);
	dup2(err, 2);
	setrlimit(RLIMIT_NOFILE, &files);
	if (chdir(req->cwd)) {
		fprintf(stderr, "lab: %s: %s\n", req->cwd, strerror(errno));
		_exit(126);
	}
	/* The search for the program uses the path that it will see itself. */
	environ = req->envp;
	execvp(req->argv[0], req->argv);
	fprintf(stderr, "lab: %s: %s\n", req->argv[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

/* Pass on what a pipe has; false at its end. */
static int pump(int fd, char type)
{
	char buffer[32768];
	ssize_t n = read(fd, buffer, sizeof(buffer));

	if (n < 0)
		return errno == EINTR || errno == EAGAIN;
	if (n > 0)
		frame_send(type, buffer, (size_t)n);
	return n > 0;
}

/* Reap what ended; true when the command itself did. */
static int reap(pid_t command, int *ret_status)
{
	int status, found = 0;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (pid != command)
			continue;
		*ret_status = WIFSIGNALED(status) ? 128 + WTERMSIG(status)
						  : WEXITSTATUS(status);
		found = 1;
	}
	return found;
}

static long long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

static int command_follow(pid_t command, int signals, int out, int err)
{
	struct pollfd fds[3] = {
		{ .fd = out, .events = POLLIN },
		{ .fd = err, .events = POLLIN },
		{ .fd = signals, .events = POLLIN },
	};
	long long deadline = 0, alive = now_ms() + ALIVE_MS;
	int status = 125;

	for (;;) {
		long long left = (deadline ? deadline : alive) - now_ms();
		struct signalfd_siginfo info;
		int i;

		if (deadline && (left <= 0 || (fds[0].fd < 0 && fds[1].fd < 0)))
			return status;
		if (poll(fds, 3, left > 0 ? (int)left : 0) < 0 &&
		    errno != EINTR)
			die("poll: %s", strerror(errno));
		if (now_ms() >= alive) {
			frame_send('A', "", 0);
			alive = now_ms() + ALIVE_MS;
		}
		for (i = 0; i < 2; i++)
			if (fds[i].revents && !pump(fds[i].fd, "OE"[i]))
				fds[i].fd = -1;
		if (!fds[2].revents)
			continue;
		if (read(signals, &info, sizeof(info)) < 0 && errno != EAGAIN)
			die("signalfd: %s", strerror(errno));
		if (reap(command, &status))
			deadline = now_ms() + DRAIN_MS;
	}
}

static int command_run(const struct request *req, int signals)
{
	int out[2], err[2], status;
	pid_t pid;

	if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
		die("pipe: %s", strerror(errno));
	pid = fork();
	if (pid < 0)
		die("fork: %s", strerror(errno));
	if (!pid)
		command_exec(req, out[1], err[1]);
	close(out[1]);
	close(err[1]);
	status = command_follow(pid, signals, out[0], err[0]);
	close(out[0]);
	close(err[0]);
	return status;
}

/* What was written through shared mappings has to reach the machine too. */
static void out_flush(const struct request *req)
{
	char **var;

	for (var = req->envp; *var; var++) {
		int fd;

		if (strncmp(*var, "LAB_OUT=", 8))
			continue;
		fd = open(*var + 8, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (syncfs(fd))
			perror("lab agent: syncfs");
		close(fd);
	}
}

/*
 * Keep one empty virtual machine.  The first VM of a host and the end of its
 * last one rewrite instructions in the scheduler (KVM's static keys), and the
 * emulator below can lose such a change when another CPU runs that code.  With
 * this one in place no VM is ever first or last.
 */
static void vm_hold(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0 || ioctl(kvm, KVM_CREATE_VM, 0) < 0)
		perror("lab agent: /dev/kvm");
	if (kvm >= 0)
		close(kvm);
}

static void say_ready(void)
{
	struct timespec up;
	char text[32];
	int n;

	clock_gettime(CLOCK_BOOTTIME, &up);
	n = snprintf(text, sizeof(text), "%lld.%02ld", (long long)up.tv_sec,
		     up.tv_nsec / 10000000);
	frame_send('H', text, (size_t)n);
}

int main(void)
{
	struct request req = { 0 };
	char text[16];
	sigset_t child;
	int signals, n;

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	signals = signalfd(-1, &child, SFD_CLOEXEC);
	port = open(PORT, O_RDWR | O_CLOEXEC);
	if (port < 0 || signals < 0)
		die("%s: %s", PORT, strerror(errno));
	vm_hold();
	say_ready();
	request_read(&req);
	n = snprintf(text, sizeof(text), "%d", command_run(&req, signals));
	out_flush(&req);
	frame_send('X', text, (size_t)n);
	for (;;)
		if (wait(NULL) < 0)
			pause();
}
