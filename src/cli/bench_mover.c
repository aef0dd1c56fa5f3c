/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench_mover.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/client.h"
#include "api/route.h"
#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"

#define START_NS (600 * NSEC_PER_SEC) /* a hang, not a slow machine */
#define RETRY_NS (5 * NSEC_PER_MSEC)
#define TSC_NS	 (50 * NSEC_PER_MSEC)
#define MAX_ARGS 40

static void path_in(const struct mover_place *p, const char *name,
		    const char *end, char ret[80])
{
	snprintf(ret, 80, "%s/%s%s", p->dir, name, end);
}

static void sleep_ns(uint64_t ns)
{
	const struct timespec time = {
		.tv_sec = (time_t)(ns / NSEC_PER_SEC),
		.tv_nsec = (long)(ns % NSEC_PER_SEC),
	};

	nanosleep(&time, NULL);
}

/* ---- the place ---- */

/* The guest's runs as fast as ours. */
static double measure_tsc(void)
{
	uint64_t began_ns = clock_now_ns();
	uint64_t began = __builtin_ia32_rdtsc();
	uint64_t ticks, ns;

	sleep_ns(TSC_NS);
	ticks = __builtin_ia32_rdtsc() - began;
	ns = clock_now_ns() - began_ns;
	return (double)ticks / clock_ns_to_s(ns);
}

int mover_place_init(struct mover_place *p, struct err *err)
{
	_cleanup_close_ int fd = -1;
	char path[80];

	snprintf(p->dir, sizeof(p->dir), "/tmp/quire-bench-XXXXXX");
	if (!mkdtemp(p->dir)) {
		p->dir[0] = '\0';
		return err_errno(err, errno, "a directory in /tmp");
	}
	p->tsc_hz = measure_tsc();
	path_in(p, "guest", ".elf", path);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return err_errno(err, errno, "%s", path);
	if (io_write_full(fd, bench_mover_image, bench_mover_image_size))
		return err_set(err, EIO, "%s: cannot be written", path);
	return 0;
}

void mover_place_fini(struct mover_place *p)
{
	static const char *const files[] = { "guest.elf", "client.log" };
	char path[80];

	if (!p->dir[0])
		return;
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		path_in(p, files[i], "", path);
		(void)unlink(path);
	}
	(void)rmdir(p->dir);
	p->dir[0] = '\0';
}

/* ---- processes ---- */

struct child {
	const char *argv[MAX_ARGS];
	unsigned int num;
};

static void add(struct child *c, const char *arg)
{
	BUG_ON(c->num + 1 >= MAX_ARGS);
	c->argv[c->num++] = arg;
}

/* Environment of ours, but for where VMs are found. */
static char **make_environment(const struct mover_place *p, char own[80])
{
	size_t num = 0, kept = 0;
	char **env;

	while (environ[num])
		num++;
	env = calloc(num + 2, sizeof(*env));
	snprintf(own, 80, "QUIRE_RUNTIME_DIR=%s", p->dir);
	for (size_t i = 0; env && i < num; i++) {
		if (strncmp(environ[i], own, strlen("QUIRE_RUNTIME_DIR=")) != 0)
			env[kept++] = environ[i];
	}
	if (env)
		env[kept] = own;
	return env;
}

/* In the child: whoever started it may be killed, and it goes, too. */
static void become(const struct child *c, const int fds[2], int log_fd,
		   char **env)
{
	if (!prctl(PR_SET_PDEATHSIG, SIGKILL) && dup2(fds[0], 0) >= 0 &&
	    dup2(fds[1], 1) >= 0 && dup2(log_fd, 2) >= 0)
		execve("/proc/self/exe", (char *const *)(uintptr_t)c->argv,
		       env);
	_exit(1);
}

/* fds[0]: its input; fds[1]: its output; log takes what it has to say. */
static int spawn_with(const struct mover_place *p, const struct child *c,
		      const int fds[2], const char *log, char **env,
		      pid_t *ret_pid)
{
	_cleanup_close_ int log_fd = -1;
	char path[80];
	pid_t pid;

	path_in(p, log, ".log", path);
	log_fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (log_fd < 0)
		return -errno;
	pid = fork();
	if (pid < 0)
		return -errno;
	if (!pid)
		become(c, fds, log_fd, env);
	*ret_pid = pid;
	return 0;
}

static int spawn(const struct mover_place *p, const struct child *c,
		 const int fds[2], const char *log, pid_t *ret_pid)
{
	char own[80];
	char **env = make_environment(p, own);
	int r = env ? spawn_with(p, c, fds, log, env, ret_pid) : -ENOMEM;

	free(env);
	return r;
}

/* Its last line that is not progress. */
static int failed(const struct mover_place *p, const char *log,
		  const char *what, struct err *err)
{
	_cleanup_fclose_ FILE *f = NULL;
	char path[80], line[400], last[400] = "it does not say why";

	path_in(p, log, ".log", path);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = '\0';
		if (line[0] != '{' || !strstr(line, "\"phase\""))
			snprintf(last, sizeof(last), "%s", line);
	}
	return err_set(err, ECHILD, "%s: %s", what, last);
}

/* ---- the console ---- */

static void heard(struct mover *m, uint64_t now)
{
	struct mover_silence *s = m->silence;

	if (!s)
		return;
	if (s->last_ns)
		s->longest_ns = MAX(s->longest_ns, now - s->last_ns);
	s->last_ns = now;
}

static void take_line(struct mover *m)
{
	unsigned long long ticks, bad;

	m->line[m->line_len] = '\0';
	m->line_len = 0;
	if (!strcmp(m->line, "mover: ready"))
		m->ready = true;
	if (sscanf(m->line, "pass %llu %llu", &ticks, &bad) == 2) {
		m->passes++;
		m->pass_ticks = ticks;
		m->pass_bad = bad;
	}
}

/* What is there. -EPIPE: its end. */
static int take_console(struct mover *m)
{
	char buf[4096];
	ssize_t n = read(m->out_fd, buf, sizeof(buf));
	uint64_t now = clock_now_ns();

	if (n <= 0)
		return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0
								    : -EPIPE;
	for (ssize_t i = 0; i < n; i++) {
		if (buf[i] == '.')
			heard(m, now);
		else if (buf[i] == '\n')
			take_line(m);
		else if (m->line_len < sizeof(m->line) - 1)
			m->line[m->line_len++] = buf[i];
	}
	return 0;
}

/* Until at the latest; more than a slice is not waited. */
static int wait_console(struct mover *m, uint64_t at)
{
	struct pollfd pfd = { .fd = m->out_fd, .events = POLLIN };
	uint64_t now = clock_now_ns();
	int ms = now < at ? (int)MIN((at - now) / NSEC_PER_MSEC + 1,
				     (uint64_t)1000)
			  : 0;

	return poll(&pfd, 1, ms) > 0 ? take_console(m) : 0;
}

static int ended(const struct mover *m, struct err *err)
{
	return failed(m->place, m->name, "the guest has ended", err);
}

int mover_listen(struct mover *m, uint64_t ns, struct err *err)
{
	uint64_t end = clock_now_ns() + ns;
	int r = 0;

	while (!r && clock_now_ns() < end)
		r = wait_console(m, end);
	return r ? ended(m, err) : 0;
}

int mover_pass(struct mover *m, double *ret_s, struct err *err)
{
	uint64_t end = clock_now_ns() + START_NS;
	unsigned int before = m->passes;
	int r = io_write_full(m->in_fd, "p", 1);

	while (!r && m->passes == before) {
		r = wait_console(m, end);
		if (!r && clock_now_ns() > end)
			return err_set(err, ETIMEDOUT,
				       "the guest does not come to the end of "
				       "a pass");
	}
	if (r)
		return ended(m, err);
	if (m->pass_bad)
		return err_set(err, EIO,
			       "%llu pages of the guest's memory are not what "
			       "they were",
			       (unsigned long long)m->pass_bad);
	*ret_s = (double)m->pass_ticks / m->place->tsc_hz;
	return 0;
}

/* ---- asking ---- */

/* -ENOENT, -ECONNREFUSED: nobody listens yet. */
static int ask(const struct mover *m, const char *verb, struct api_answer *ret,
	       struct err *err)
{
	char socket[80];
	struct api_route route;
	struct api_client_request request = { .socket = socket };
	int r = api_route_by_verb(verb, &route);

	if (r)
		return err_errno(err, -r, "%s", verb);
	path_in(m->place, m->name, "/api.sock", socket);
	request.method = route.method;
	request.path = route.path;
	r = api_client_ask(&request, ret, err);
	if (r || ret->status < 300)
		return r;
	free(take_ptr(ret->text));
	return err_set(err, EIO, "%s: HTTP status %u", verb, ret->status);
}

static int ask_of_migration(const struct mover *m, const char *verb,
			    json_t **ret, struct err *err)
{
	struct api_answer answer = { 0 };
	json_t *root;
	int r = ask(m, verb, &answer, err);

	if (r)
		return r;
	root = json_loads(answer.text ? answer.text : "", 0, NULL);
	*ret = json_incref(json_object_get(root, "migration"));
	json_decref(root);
	free(answer.text);
	return *ret ? 0
		    : err_set(err, EPROTO, "%s tells of no migration", verb);
}

int mover_landed(const struct mover *m, json_t **ret, struct err *err)
{
	return ask_of_migration(m, "vm.memory-stats", ret, err);
}

int mover_followed(const struct mover *m, json_t **ret, struct err *err)
{
	return ask_of_migration(m, "vm.info", ret, err);
}

/* It answers once it listens for a source, too. */
static int wait_answer(struct mover *m, struct err *err)
{
	uint64_t end = clock_now_ns() + START_NS;
	struct api_answer answer = { 0 };
	int status, r;

	while ((r = ask(m, "vm.info", &answer, err)) != 0) {
		if (waitpid(m->pid, &status, WNOHANG) == m->pid) {
			m->pid = 0;
			return ended(m, err);
		}
		if ((r != -ENOENT && r != -ECONNREFUSED) ||
		    clock_now_ns() > end)
			return r;
		sleep_ns(RETRY_NS);
	}
	free(answer.text);
	return 0;
}

static int wait_ready(struct mover *m, struct err *err)
{
	uint64_t end = clock_now_ns() + START_NS;

	while (!m->ready) {
		if (wait_console(m, end))
			return ended(m, err);
		if (clock_now_ns() > end)
			return err_set(err, ETIMEDOUT,
				       "the guest does not fill its memory");
	}
	return 0;
}

/* ---- starting ---- */

/* Ticks of the TSC from one page to the next. */
static uint64_t page_ticks(const struct mover_place *p, uint64_t write_mib)
{
	double pages = (double)write_mib * (double)MIB / (double)PAGE_4K;

	return write_mib ? MAX((uint64_t)(p->tsc_hz / pages), (uint64_t)1) : 0;
}

static int start_process(struct mover *m, const struct mover_config *cfg)
{
	char kernel[80], memory[120], cmdline[100], cpus[24];
	int in[2], out[2], ends[2], r;
	struct child c = { .num = 0 };

	path_in(m->place, "guest", ".elf", kernel);
	snprintf(memory, sizeof(memory), "size=%lluM%s",
		 (unsigned long long)cfg->mib, cfg->memory);
	snprintf(cmdline, sizeof(cmdline), "mib=%llu tick=%llu every=%llu",
		 (unsigned long long)cfg->used_mib,
		 (unsigned long long)(cfg->tick_ms * NSEC_PER_MSEC),
		 (unsigned long long)page_ticks(m->place, cfg->write_mib));
	snprintf(cpus, sizeof(cpus), "boot=%u", cfg->vcpus);
	for (const char *const *arg =
		     (const char *const[]){ "quire", "run", "--kernel", kernel,
					    "--cmdline", cmdline, "--memory",
					    memory, "--cpus", cpus, "--serial",
					    "tty", "--name", cfg->name, NULL };
	     *arg; arg++)
		add(&c, *arg);
	if (cfg->incoming) {
		add(&c, "--incoming");
		add(&c, cfg->incoming);
	}
	if (pipe2(in, O_CLOEXEC))
		return -errno;
	if (pipe2(out, O_CLOEXEC)) {
		r = -errno;
		close(in[0]);
		close(in[1]);
		return r;
	}
	m->in_fd = in[1];
	m->out_fd = out[0];
	ends[0] = in[0];
	ends[1] = out[1];
	r = spawn(m->place, &c, ends, m->name, &m->pid);
	close(in[0]);
	close(out[1]);
	return r ? r : -(fcntl(m->out_fd, F_SETFL, O_NONBLOCK) ? errno : 0);
}

int mover_start(struct mover *m, const struct mover_place *place,
		const struct mover_config *cfg, struct err *err)
{
	int r;

	*m = (struct mover){
		.place = place,
		.name = cfg->name,
		.in_fd = -1,
		.out_fd = -1,
		.silence = cfg->silence,
	};
	r = start_process(m, cfg);
	if (r)
		r = err_errno(err, -r, "starting quire run");
	else
		r = cfg->incoming ? wait_answer(m, err) : wait_ready(m, err);
	if (r)
		mover_end(m);
	return r;
}

void mover_end(struct mover *m)
{
	static const char *const files[] = { ".log", ".in", "/api.sock",
					     "/lock" };
	char path[80];

	if (!m->name)
		return;
	if (m->pid) {
		kill(m->pid, SIGKILL);
		while (waitpid(m->pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	close_fd(&m->in_fd);
	close_fd(&m->out_fd);
	/* A process that was killed leaves its name behind. */
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		path_in(m->place, m->name, files[i], path);
		(void)unlink(path);
	}
	path_in(m->place, m->name, "", path);
	(void)rmdir(path);
	*m = (struct mover){ .pid = 0 };
}

/* ---- moving ---- */

struct client {
	pid_t pid;
	int fd;
	char text[4096]; /* what it printed */
	size_t len;
};

static int start_client(struct client *c, const struct mover *from,
			const char *uri, const char *const *more)
{
	struct child child = { .argv = { "quire", "migrate", from->name, uri,
					 "--json" },
			       .num = 5 };
	int out[2], ends[2], r;

	for (; *more; more++)
		add(&child, *more);
	if (pipe2(out, O_CLOEXEC))
		return -errno;
	ends[0] = from->in_fd; /* it reads nothing */
	ends[1] = out[1];
	r = spawn(from->place, &child, ends, "client", &c->pid);
	close(out[1]);
	c->fd = out[0];
	return r;
}

/* -EPIPE: its end. */
static int take_client(struct client *c)
{
	ssize_t n = read(c->fd, c->text + c->len, sizeof(c->text) - 1 - c->len);

	if (n < 0 && errno == EINTR)
		return 0;
	if (n <= 0)
		return -EPIPE;
	c->len += (size_t)n;
	return 0;
}

/* Its output ends with it. The consoles' ends are no news here. */
static void listen_to_all(struct client *c, struct mover *from,
			  struct mover *to)
{
	struct pollfd fds[3] = {
		{ .fd = c->fd, .events = POLLIN },
		{ .fd = from->out_fd, .events = POLLIN },
		{ .fd = to->out_fd, .events = POLLIN },
	};

	for (;;) {
		if (poll(fds, ARRAY_SIZE(fds), -1) < 0)
			continue;
		if (fds[1].revents && take_console(from))
			fds[1].fd = -1;
		if (fds[2].revents && take_console(to))
			fds[2].fd = -1;
		if (fds[0].revents && take_client(c))
			break;
	}
}

int mover_migrate(struct mover *from, struct mover *to, const char *uri,
		  const char *const *more, json_t **ret, struct err *err)
{
	struct client c = { .fd = -1 };
	int status = 0, r = start_client(&c, from, uri, more);

	if (r) {
		close_fd(&c.fd);
		return err_errno(err, -r, "starting quire migrate");
	}
	listen_to_all(&c, from, to);
	close_fd(&c.fd);
	while (waitpid(c.pid, &status, 0) < 0 && errno == EINTR)
		;
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		return failed(from->place, "client", "the migration failed",
			      err);
	c.text[c.len] = '\0';
	*ret = json_loads(c.text, 0, NULL);
	return *ret ? 0
		    : err_set(err, EPROTO, "quire migrate: not JSON: %.100s",
			      c.text);
}
