/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quire fork: copies of a running VM that go on from one instant.
 *
 * A snapshot into a directory in memory, and as many `quire restore --memory
 * private` of it as there are to be copies; the directory goes once all of them
 * run, which have its files open. What two VMs cannot have both (names,
 * sockets, disks that are written, MAC addresses) is made anew for each, or as
 * --set says.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jansson.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/size.h"
#include "cli/ask.h"
#include "cli/commands.h"
#include "snapshot/dir.h"
#include "snapshot/reader.h"

#define MAX_COPIES   1000u
#define MAX_SETS     64u
#define MAX_ARGS     (16 + 2 * (MAX_SETS + 128))
#define DEFAULT_WAIT 60u
#define MEMORY_DIR   "/dev/shm"

struct copy {
	char name[64];
	pid_t pid;    /* 0: not started, or ended */
	int ready_fd; /* readable once it runs, or has ended */
	bool runs;
	double ready_s; /* since the first was started */
};

struct fork_args {
	const char *vm, *pattern, *dir, *disks, *log_dir;
	const char *sets[MAX_SETS];
	unsigned int num_sets;
	uint64_t count, wait_s;
	bool paused, json;
	char made[PATH_MAX];	 /* directory of this command's own; "" */
	char snapshot[PATH_MAX]; /* in it */
	json_t *taken;		 /* what vm.snapshot said */
	struct copy *copies;
	int signal_fd; /* -1: a signal was taken */
	int signal;    /* that one; 0: none */
	double snapshot_s, total_s;
};

static void help(void)
{
	printf("usage: quire fork NAME [OPTION...]\n"
	       "\n"
	       "Make copies of a running VM, which go on from one instant, "
	       "each in a quire of its\n"
	       "own; the VM itself goes on as well. What no copy writes, all "
	       "share.\n"
	       "\n"
	       "  --count N         how many (default 1)\n"
	       "  --as PATTERN      their names; {n} is the number (default "
	       "NAME-{n})\n"
	       "  --set ID.KEY=VALUE  as with quire restore; {n} is the "
	       "number, {name} the name\n"
	       "  --dir DIR         where memory is kept, and disks are "
	       "cloned (default: beside\n"
	       "                    the first disk that is written, else "
	       "/dev/shm)\n"
	       "  --disks POLICY    as with quire snapshot (default clone)\n"
	       "  --log-dir DIR     what the copies have to say is in NAME.log "
	       "there (default: they\n"
	       "                    say nothing once they run)\n"
	       "  --paused          do not let the copies go on yet\n"
	       "  --wait S          seconds until all of them must run "
	       "(default %u)\n"
	       "  --json            print what was done as JSON\n"
	       "  -h, --help        this text\n"
	       "\n"
	       "Exit status: 0 all copies run, 1 none is left running, 2 wrong "
	       "usage.\n"
	       "\n"
	       "example:\n"
	       "  quire fork web --count 4 --as 'web-test-{n}' --set "
	       "'_net0.tap=tap{n}'\n",
	       DEFAULT_WAIT);
}

static const struct option options[] = {
	{ "count", required_argument, NULL, 'c' },
	{ "as", required_argument, NULL, 'a' },
	{ "set", required_argument, NULL, 's' },
	{ "dir", required_argument, NULL, 'd' },
	{ "disks", required_argument, NULL, 'D' },
	{ "log-dir", required_argument, NULL, 'l' },
	{ "paused", no_argument, NULL, 'p' },
	{ "wait", required_argument, NULL, 'w' },
	{ "json", no_argument, NULL, 'j' },
	{ NULL, 0, NULL, 0 },
};

static int set_number(const char *option, const char *text, uint64_t max,
		      uint64_t *ret)
{
	if (size_parse_u64(text, ret) || !*ret || *ret > max)
		return cli_usage(&cmd_fork,
				 "%s %s: not a number from 1 to %llu", option,
				 text, (unsigned long long)max);
	return CLI_OK;
}

static int set_option(struct fork_args *a, int opt, const char *value)
{
	switch (opt) {
	case 'c':
		return set_number("--count", value, MAX_COPIES, &a->count);
	case 'w':
		return set_number("--wait", value, 86400, &a->wait_s);
	case 'a':
		a->pattern = value;
		break;
	case 's':
		if (a->num_sets == MAX_SETS)
			return cli_usage(&cmd_fork, "--set: more than %u",
					 MAX_SETS);
		a->sets[a->num_sets++] = value;
		break;
	case 'd':
		a->dir = value;
		break;
	case 'D':
		a->disks = value;
		break;
	case 'l':
		a->log_dir = value;
		break;
	case 'p':
		a->paused = true;
		break;
	default:
		a->json = true;
		break;
	}
	return CLI_OK;
}

/* ---- names and values of each copy ---- */

/* pattern with {n} and {name} (NULL: not known yet) replaced. */
static char *expand(const char *pattern, unsigned int n, const char *name)
{
	char number[16], *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return NULL;
	snprintf(number, sizeof(number), "%u", n);
	for (const char *p = pattern; *p;) {
		if (!strncmp(p, "{n}", 3)) {
			fputs(number, f);
			p += 3;
		} else if (name && !strncmp(p, "{name}", 6)) {
			fputs(name, f);
			p += 6;
		} else {
			fputc(*p++, f);
		}
	}
	if (fclose(f)) {
		free(text);
		return NULL;
	}
	return text;
}

static int name_copies(struct fork_args *a)
{
	a->copies = calloc(a->count, sizeof(*a->copies));
	if (!a->copies)
		return CLI_FAILURE;
	for (unsigned int i = 0; i < a->count; i++) {
		struct copy *c = &a->copies[i];
		_cleanup_free_ char *name = expand(a->pattern, i + 1, NULL);

		c->ready_fd = -1;
		if (!name || strlen(name) >= sizeof(c->name))
			return cli_usage(&cmd_fork, "--as %s: too long",
					 a->pattern);
		snprintf(c->name, sizeof(c->name), "%s", name);
	}
	if (a->count > 1 && !strcmp(a->copies[0].name, a->copies[1].name))
		return cli_usage(&cmd_fork,
				 "--as %s: all copies would have one name; "
				 "{n} is the number",
				 a->pattern);
	return CLI_OK;
}

static int parse(struct fork_args *a, int argc, char **argv)
{
	static char pattern[80];
	int opt, status;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		if (opt == '?' || opt == ':')
			return cli_bad_option(&cmd_fork, argc, argv);
		status = set_option(a, opt, optarg);
		if (status != CLI_OK)
			return status;
	}
	if (optind + 1 != argc)
		return cli_usage(&cmd_fork, "a VM is needed");
	a->vm = argv[optind];
	if (!a->pattern && strchr(a->vm, '/'))
		return cli_usage(&cmd_fork,
				 "--as is needed where the VM has no name");
	snprintf(pattern, sizeof(pattern), "%.60s-{n}", a->vm);
	if (!a->pattern)
		a->pattern = pattern;
	return name_copies(a);
}

/* ---- signals ---- */

/* Until it is done nothing is to stay that was begun: no copy, no directory. */
static int take_signals(struct fork_args *a, struct err *err)
{
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	a->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	return a->signal_fd < 0 ? err_errno(err, errno, "signalfd") : 0;
}

/* The first is noted; a second one ends the process as usual. */
static bool is_interrupted(struct fork_args *a)
{
	struct signalfd_siginfo info;
	sigset_t none;

	if (a->signal)
		return true;
	if (read(a->signal_fd, &info, sizeof(info)) != sizeof(info))
		return false;
	a->signal = (int)info.ssi_signo;
	close_fd(&a->signal_fd);
	sigemptyset(&none);
	pthread_sigmask(SIG_SETMASK, &none, NULL);
	return true;
}

/* ---- the snapshot ---- */

static int ask_info(struct fork_args *a, json_t **ret)
{
	struct api_route route;
	const struct cli_question q = {
		.command = &cmd_fork,
		.vm = a->vm,
		.route = &route,
	};
	struct api_answer answer;
	int status = api_route_by_verb("vm.info", &route)
			     ? CLI_FAILURE
			     : cli_ask(&q, &answer);

	if (status != CLI_OK)
		return status;
	*ret = json_loads(answer.text ? answer.text : "", 0, NULL);
	free(answer.text);
	return CLI_OK;
}

static bool is_written(const json_t *disk)
{
	return !json_is_true(json_object_get(disk, "readonly"));
}

/* Where disks are is where they can be cloned to. */
static int choose_dir(struct fork_args *a, char *buf, size_t size)
{
	json_t *info = NULL, *disk;
	int status = a->dir ? CLI_OK : ask_info(a, &info);
	const char *path = a->dir ? a->dir : MEMORY_DIR;
	size_t i;

	snprintf(buf, size, "%s", path);
	json_array_foreach(json_object_get(json_object_get(info, "config"),
					   "disks"),
			   i, disk)
	{
		const char *image = json_string_value(
			json_object_get(disk, "path"));
		const char *slash = image ? strrchr(image, '/') : NULL;

		if (!is_written(disk) || !slash)
			continue;
		snprintf(buf, size, "%.*s", (int)(slash - image), image);
		break;
	}
	json_decref(info);
	return status;
}

static int make_dir(struct fork_args *a)
{
	char dir[PATH_MAX - 64], real[PATH_MAX];
	struct err err = ERR_INIT;
	int status = choose_dir(a, dir, sizeof(dir));

	if (status != CLI_OK)
		return status;
	/* The VM has a working directory of its own. */
	if (!realpath(dir[0] ? dir : "/", real) ||
	    snprintf(a->made, sizeof(a->made), "%s/.quire-fork-XXXXXX", real) >=
		    (int)sizeof(a->made) - 16 ||
	    !mkdtemp(a->made)) {
		a->made[0] = '\0';
		(void)err_errno(&err, errno ? errno : ENAMETOOLONG, "%s", dir);
		return cli_fail(&cmd_fork, &err);
	}
	snprintf(a->snapshot, sizeof(a->snapshot), "%.*s/snapshot",
		 (int)sizeof(a->snapshot) - 10, a->made);
	return CLI_OK;
}

/* Its answer, JSON, or NULL. */
static json_t *read_answer(int fd)
{
	json_t *root;
	FILE *f = fdopen(fd, "r");

	if (!f) {
		close(fd);
		return NULL;
	}
	root = json_loadf(f, 0, NULL);
	fclose(f);
	return root;
}

/* Until there is an answer, or an end of it. A signal is passed on. */
static void wait_answer(struct fork_args *a, int fd, pid_t pid)
{
	struct pollfd fds[2] = {
		{ .fd = fd, .events = POLLIN },
		{ .fd = a->signal_fd, .events = POLLIN },
	};

	while (!fds[0].revents) {
		if (poll(fds, ARRAY_SIZE(fds), -1) < 0)
			continue;
		if (fds[1].revents && is_interrupted(a)) {
			kill(pid, a->signal);
			fds[1].fd = -1;
		}
	}
}

/* `quire snapshot`, which says itself what goes wrong. */
static int run_snapshot(struct fork_args *a)
{
	const char *argv[] = { "quire",	  "snapshot", a->vm,	a->snapshot,
			       "--disks", a->disks,   "--json", NULL };
	posix_spawn_file_actions_t files;
	int ends[2], status = -1, r;
	struct err err = ERR_INIT;
	pid_t pid;

	if (pipe2(ends, O_CLOEXEC)) {
		(void)err_errno(&err, errno, "pipe");
		return cli_fail(&cmd_fork, &err);
	}
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_adddup2(&files, ends[1], 1);
	r = posix_spawn(&pid, "/proc/self/exe", &files, NULL,
			(char *const *)argv, environ);
	posix_spawn_file_actions_destroy(&files);
	close(ends[1]);
	if (r) {
		close(ends[0]);
		(void)err_errno(&err, r, "starting quire snapshot");
		return cli_fail(&cmd_fork, &err);
	}
	wait_answer(a, ends[0], pid);
	a->taken = read_answer(ends[0]);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return WIFEXITED(status) && !WEXITSTATUS(status) && a->taken
		       ? CLI_OK
		       : CLI_FAILURE;
}

static int take_snapshot(struct fork_args *a)
{
	uint64_t began = clock_now_ns();
	int status = make_dir(a);

	if (status == CLI_OK)
		status = run_snapshot(a);
	a->snapshot_s = clock_ns_to_s(clock_now_ns() - began);
	return status;
}

/* The copies have its files open. */
static void remove_dir(const struct fork_args *a)
{
	if (!a->made[0])
		return;
	(void)snapshot_dir_remove(a->snapshot);
	(void)rmdir(a->made);
}

/* ---- what a copy has of its own ---- */

/* Arguments of one `quire restore`; all texts are its own. */
struct child_args {
	char *argv[MAX_ARGS];
	unsigned int num;
	bool failed;
};

static void add_arg(struct child_args *c, char *text)
{
	if (!text || c->num == MAX_ARGS - 1) {
		c->failed = true;
		free(text);
		return;
	}
	c->argv[c->num++] = text;
}

static void __printf_fmt(2, 3)
	add_text(struct child_args *c, const char *fmt, ...)
{
	char *text = NULL;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&text, fmt, ap);
	va_end(ap);
	add_arg(c, n < 0 ? NULL : text);
}

static void free_args(struct child_args *c)
{
	while (c->num)
		free(c->argv[--c->num]);
}

/* Has --set something to say about this field? Then it is as that says. */
static bool is_set(const struct fork_args *a, const char *id, const char *key)
{
	char prefix[160];
	int n = snprintf(prefix, sizeof(prefix), "%s.%s=", id, key);

	for (unsigned int i = 0; i < a->num_sets; i++)
		if (!strncmp(a->sets[i], prefix, (size_t)n))
			return true;
	return false;
}

static void set_own(const struct fork_args *a, struct child_args *args,
		    const char *id, const char *key, const char *value)
{
	if (is_set(a, id, key))
		return;
	add_text(args, "--set");
	add_text(args, "%s.%s=%s", id, key, value);
}

/* "/run/web.sock" becomes "/run/web.sock.web-1". */
static void set_own_path(const struct fork_args *a, struct child_args *args,
			 const char *id, const json_t *device, const char *key,
			 const char *name)
{
	const char *path = json_string_value(json_object_get(device, key));
	char own[PATH_MAX + 80];

	if (!path)
		return;
	snprintf(own, sizeof(own), "%s.%s", path, name);
	set_own(a, args, id, key, own);
}

static void set_own_mac(const struct fork_args *a, struct child_args *args,
			const char *id)
{
	uint8_t b[5];
	char mac[24];

	if (getrandom(b, sizeof(b), 0) != sizeof(b)) {
		args->failed = true;
		return;
	}
	/* Locally administered. */
	snprintf(mac, sizeof(mac), "02:%02x:%02x:%02x:%02x:%02x", b[0], b[1],
		 b[2], b[3], b[4]);
	set_own(a, args, id, "mac", mac);
}

/* A terminal can be no copy's, a file's or socket's path not everybody's. */
static void set_own_console(const struct fork_args *a, struct child_args *args,
			    const char *id, const json_t *device,
			    const char *name)
{
	const char *mode = json_string_value(json_object_get(device, "mode"));

	if (!mode || !strcasecmp(mode, "tty") || !strcasecmp(mode, "stdio"))
		set_own(a, args, id, "mode", "Null");
	set_own_path(a, args, id, device, "file", name);
	set_own_path(a, args, id, device, "socket", name);
}

static void set_own_device(const struct fork_args *a, struct child_args *args,
			   const char *field, const json_t *device,
			   const char *name)
{
	const char *id = json_string_value(json_object_get(device, "id"));

	if (!id)
		id = field;
	if (!strcmp(field, "disks")) {
		if (is_written(device) && strcmp(a->disks, "reference") != 0)
			set_own_path(a, args, id, device, "path", name);
	} else if (!strcmp(field, "net")) {
		set_own_mac(a, args, id);
	} else if (!strcmp(field, "vsock")) {
		set_own_path(a, args, id, device, "socket", name);
	} else if (!strcmp(field, "serial") || !strcmp(field, "console")) {
		set_own_console(a, args, id, device, name);
	}
}

static void set_all_own(const struct fork_args *a, struct child_args *args,
			const json_t *config, const char *name)
{
	const char *field;
	json_t *value, *device;
	size_t i;

	json_object_foreach((json_t *)config, field, value)
	{
		if (json_is_object(value))
			set_own_device(a, args, field, value, name);
		json_array_foreach(value, i, device)
		{
			set_own_device(a, args, field, device, name);
		}
	}
}

/* What cannot be mapped from a file, each copy reads, and has for itself. */
static bool is_mapped(const json_t *config)
{
	const json_t *memory = json_object_get(config, "memory");

	return !json_is_true(json_object_get(memory, "hugepages")) &&
	       !json_is_true(json_object_get(memory, "shared"));
}

static void make_args(const struct fork_args *a, const struct copy *c,
		      unsigned int n, const json_t *config,
		      struct child_args *args)
{
	add_text(args, "quire");
	add_text(args, "restore");
	add_text(args, "%s", a->snapshot);
	add_text(args, "--as");
	add_text(args, "%s", c->name);
	add_text(args, "--ready-fd");
	add_text(args, "%d", c->ready_fd);
	add_text(args, "--memory");
	add_text(args, is_mapped(config) ? "private" : "eager");
	if (a->paused)
		add_text(args, "--paused");
	set_all_own(a, args, config, c->name);
	for (unsigned int i = 0; i < a->num_sets; i++) {
		add_text(args, "--set");
		add_arg(args, expand(a->sets[i], n, c->name));
	}
}

/* ---- starting them ---- */

static int log_path(const struct fork_args *a, const struct copy *c, char *buf,
		    size_t size)
{
	int n = snprintf(buf, size, "%s/%s.log",
			 a->log_dir ? a->log_dir : a->made, c->name);

	return n >= (int)size ? -ENAMETOOLONG : 0;
}

/* What copies said, of which one could not be started. */
static void pass_on_logs(const struct fork_args *a)
{
	char path[PATH_MAX], line[512];

	for (unsigned int i = 0; i < a->count; i++) {
		_cleanup_fclose_ FILE *f = NULL;

		if (log_path(a, &a->copies[i], path, sizeof(path)))
			continue;
		f = fopen(path, "re");
		while (f && fgets(line, sizeof(line), f))
			fprintf(stderr, "%s: %s", a->copies[i].name, line);
	}
}

/* Logs that nobody asked for have no name any more. */
static void remove_logs(const struct fork_args *a)
{
	char path[PATH_MAX];

	for (unsigned int i = 0; !a->log_dir && i < a->count; i++)
		if (!log_path(a, &a->copies[i], path, sizeof(path)))
			(void)unlink(path);
}

static int spawn(const struct fork_args *a, struct copy *c,
		 struct child_args *args)
{
	char log[PATH_MAX];

	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	sigset_t none;
	int r = -log_path(a, c, log, sizeof(log));

	if (!r)
		r = posix_spawn_file_actions_init(&files);
	if (r)
		return -r;
	sigemptyset(&none);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setflags(&attr,
				 POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK);
	posix_spawnattr_setsigmask(&attr, &none);
	r = posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDWR, 0);
	if (!r)
		r = posix_spawn_file_actions_adddup2(&files, 0, 1);
	if (!r)
		r = posix_spawn_file_actions_addopen(
			&files, 2, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
	/* The same number: no longer closed on exec. */
	if (!r)
		r = posix_spawn_file_actions_adddup2(&files, c->ready_fd,
						     c->ready_fd);
	if (!r)
		r = posix_spawn(&c->pid, "/proc/self/exe", &files, &attr,
				args->argv, environ);
	if (r)
		c->pid = 0;
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&files);
	return -r;
}

static int start_copy(struct fork_args *a, unsigned int i, const json_t *config,
		      struct err *err)
{
	struct child_args args = { .num = 0 };
	struct copy *c = &a->copies[i];
	int ends[2], r;

	if (pipe2(ends, O_CLOEXEC))
		return err_errno(err, errno, "pipe");
	c->ready_fd = ends[1];
	make_args(a, c, i + 1, config, &args);
	r = args.failed ? -ENOMEM : spawn(a, c, &args);
	free_args(&args);
	close(ends[1]);
	c->ready_fd = ends[0];
	return r ? err_errno(err, -r, "starting %s", c->name) : 0;
}

/* 1: it runs; 0: not yet; -EPIPE: it ended. */
static int read_ready(struct copy *c)
{
	char byte;
	ssize_t n = read(c->ready_fd, &byte, 1);

	if (n < 0 && errno == EINTR)
		return 0;
	if (n != 1)
		return -EPIPE;
	c->runs = true;
	close_fd(&c->ready_fd);
	return 1;
}

static int wait_some(struct fork_args *a, struct pollfd *fds, uint64_t began,
		     unsigned int *left, struct err *err)
{
	uint64_t now = clock_now_ns(), end = began + a->wait_s * NSEC_PER_SEC;
	int r = now < end ? poll(fds, a->count + 1,
				 (int)((end - now) / NSEC_PER_MSEC + 1))
			  : 0;

	if (is_interrupted(a))
		return err_set(err, EINTR, "interrupted");
	if (!r)
		return err_set(err, ETIMEDOUT,
			       "%u of %llu copies do not run after %llu s",
			       *left, (unsigned long long)a->count,
			       (unsigned long long)a->wait_s);
	for (unsigned int i = 0; r > 0 && i < a->count; i++) {
		struct copy *c = &a->copies[i];

		if (!fds[i].revents)
			continue;
		r = read_ready(c);
		if (r < 0)
			return err_set(err, ECHILD, "%s could not be started",
				       c->name);
		if (!c->runs)
			continue;
		c->ready_s = clock_ns_to_s(clock_now_ns() - began);
		fds[i].fd = -1;
		(*left)--;
	}
	return 0;
}

static int wait_all(struct fork_args *a, uint64_t began, struct err *err)
{
	struct pollfd *fds = reallocarray(NULL, a->count + 1, sizeof(*fds));
	unsigned int left = (unsigned int)a->count;
	int r = 0;

	BUG_ON(!a->copies);
	if (!fds)
		return err_set(err, ENOMEM, "out of memory");
	for (unsigned int i = 0; i < a->count; i++)
		fds[i] = (struct pollfd){ .fd = a->copies[i].ready_fd,
					  .events = POLLIN };
	fds[a->count] = (struct pollfd){ .fd = a->signal_fd, .events = POLLIN };
	while (!r && left)
		r = wait_some(a, fds, began, &left, err);
	free(fds);
	return r;
}

/* All or none. */
static void end_copies(struct fork_args *a)
{
	for (unsigned int i = 0; i < a->count; i++)
		if (a->copies[i].pid)
			kill(a->copies[i].pid, SIGINT);
	for (unsigned int i = 0; i < a->count; i++) {
		if (a->copies[i].pid)
			waitpid(a->copies[i].pid, NULL, 0);
		a->copies[i].pid = 0;
	}
}

static int start_all(struct fork_args *a, struct err *err)
{
	struct snapshot_reader *reader = NULL;
	uint64_t began = clock_now_ns();
	int r = snapshot_reader_open(&reader, a->snapshot, err);

	for (unsigned int i = 0; !r && i < a->count; i++)
		r = start_copy(a, i, snapshot_reader_config(reader), err);
	snapshot_reader_free(reader);
	if (!r)
		r = wait_all(a, began, err);
	if (r)
		end_copies(a);
	if (r && !a->signal)
		pass_on_logs(a);
	remove_logs(a);
	for (unsigned int i = 0; i < a->count; i++)
		close_fd(&a->copies[i].ready_fd);
	return r;
}

/* ---- output ---- */

static void print_json(const struct fork_args *a)
{
	json_t *list = json_array();
	json_t *root;

	for (unsigned int i = 0; i < a->count; i++)
		json_array_append_new(list, json_pack("{s:s, s:i, s:f}", "name",
						      a->copies[i].name, "pid",
						      (int)a->copies[i].pid,
						      "ready_s",
						      a->copies[i].ready_s));
	root = json_pack("{s:o, s:O?, s:f, s:f}", "copies", list, "snapshot",
			 a->taken, "snapshot_s", a->snapshot_s, "total_s",
			 a->total_s);
	json_dumpf(root, stdout, JSON_INDENT(2));
	putchar('\n');
	json_decref(root);
}

static int print_result(const struct fork_args *a)
{
	json_int_t pause = json_integer_value(
		json_object_get(a->taken, "pause_us"));

	if (a->json)
		print_json(a);
	else
		printf("%llu cop%s of %s, %s%s%s, after %.3f s; %s was paused "
		       "for %.3f s\n",
		       (unsigned long long)a->count,
		       a->count == 1 ? "y" : "ies", a->vm, a->copies[0].name,
		       a->count > 1 ? " to " : "",
		       a->count > 1 ? a->copies[a->count - 1].name : "",
		       a->total_s, a->vm, (double)pause / 1e6);
	return fflush(stdout) ? CLI_FAILURE : CLI_OK;
}

static int run_fork(struct fork_args *a)
{
	struct err err = ERR_INIT;
	uint64_t began = clock_now_ns();
	int status;

	if (take_signals(a, &err))
		return cli_fail(&cmd_fork, &err);
	status = take_snapshot(a);
	if (status == CLI_OK && !is_interrupted(a) && start_all(a, &err))
		status = a->signal ? CLI_FAILURE : cli_fail(&cmd_fork, &err);
	a->total_s = clock_ns_to_s(clock_now_ns() - began);
	remove_dir(a);
	close_fd(&a->signal_fd);
	if (a->signal)
		return 128 + a->signal;
	return status == CLI_OK ? print_result(a) : status;
}

static int run(int argc, char **argv)
{
	struct fork_args a = {
		.count = 1,
		.wait_s = DEFAULT_WAIT,
		.disks = "clone",
		.signal_fd = -1,
	};
	int status = parse(&a, argc, argv);

	if (status == CLI_OK)
		status = run_fork(&a);
	json_decref(a.taken);
	free(a.copies);
	return status;
}

const struct cli_command cmd_fork = {
	.name = "fork",
	.summary = "copies of a running VM that go on from one instant",
	.help = help,
	.run = run,
	.options = options,
};
