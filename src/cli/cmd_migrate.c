/* SPDX-License-Identifier: Apache-2.0 */
/* quire migrate: have a running VM go on in another quire. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <jansson.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/cpus.h"
#include "base/size.h"
#include "cli/attend.h"
#include "cli/commands.h"
#include "migrate/handed.h"
#include "migrate/send.h"
#include "migrate/tls.h"
#include "migrate/uri.h"
#include "vm/throttle.h"

/* More bring nothing without being asked for: a thread each on both sides. */
#define MAX_AUTO_STREAMS 4u

struct migrate_args {
	const char *vm, *uri_text;
	struct migrate_uri uri;
	json_t *body;
	const char *tls_dir, *tls_hostname; /* NULL: not given */
	unsigned int streams; /* 0: as many as there are CPUs, to a limit */
	bool urgent;	      /* with post-copy: one more */
	bool local;	      /* no memory is sent */
	bool copies_disks;
	bool json;
};

static void help_options(void)
{
	printf("  --streams N     connections for memory, 1 to 64 (default: "
	       "one "
	       "per CPU, 4 at most)\n"
	       "  --downtime MS   stop the guest when what is left takes no "
	       "longer to send, 10 to\n"
	       "                  60000 (default 300)\n"
	       "  --bandwidth SIZE  bytes per second at the most, as 100M, "
	       "while the guest runs\n"
	       "  --mode MODE     when memory is sent: precopy, before the VM "
	       "(default); postcopy,\n"
	       "                  after it; hybrid, what is written meanwhile "
	       "after it\n"
	       "                  (local: on this host, a VM with shared "
	       "memory: it is handed over)\n"
	       "  --recover       bring the memory that an interrupted "
	       "postcopy or hybrid has left\n"
	       "                  here to the VM, which waits for it at URI\n"
	       "  --disks shared|copy  shared: the destination reaches their "
	       "images (default); copy:\n"
	       "                  into images of its own, of the same sizes, "
	       "overwriting them\n"
	       "  --compress none|lz4|zstd  pages, where it makes them smaller "
	       "(default none)\n"
	       "  --throttle off|auto|PERCENT  hold vCPUs back that write "
	       "memory faster than it is\n"
	       "                  sent (default off)\n"
	       "  --tls DIR       TLS only, with DIR's client-cert.pem, to who "
	       "its ca-cert.pem signed\n"
	       "  --tls-hostname NAME  whom the certificate there is for "
	       "(default: HOST)\n"
	       "  --json          print what was done as JSON\n"
	       "  -h, --help      this text\n"
	       "\n");
}

static void help(void)
{
	printf("usage: quire migrate NAME URI [OPTION...]\n"
	       "\n"
	       "Have a running VM go on in another quire, on this host or "
	       "another, which waits for\n"
	       "it: quire run --incoming URI, with the options that the VM has "
	       "here. URI is\n"
	       "tcp:HOST:PORT or unix:PATH. The guest runs while its memory is "
	       "sent, stands still\n"
	       "for the rest, and goes on there; this VM is gone then. "
	       "Whatever fails before, and\n"
	       "Ctrl-C, leave it running here. NAME is what quire ps shows, or "
	       "the path of a socket.\n"
	       "\n");
	help_options();
	printf("Progress is on standard error: a line on a terminal, lines of "
	       "JSON elsewhere.\n"
	       "Exit status: 0 it runs there, 1 refused or failed, 2 wrong "
	       "usage, 128+N stopped by\n"
	       "signal N.\n"
	       "\n"
	       "example:\n"
	       "  quire migrate web tcp:10.0.0.7:4444 --downtime 100\n");
}

static const struct option options[] = {
	{ "streams", required_argument, NULL, 's' },
	{ "downtime", required_argument, NULL, 'd' },
	{ "bandwidth", required_argument, NULL, 'b' },
	{ "mode", required_argument, NULL, 'm' },
	{ "disks", required_argument, NULL, 'i' },
	{ "compress", required_argument, NULL, 'c' },
	{ "throttle", required_argument, NULL, 'h' },
	{ "tls", required_argument, NULL, 't' },
	{ "tls-hostname", required_argument, NULL, 'n' },
	{ "recover", no_argument, NULL, 'r' },
	{ "json", no_argument, NULL, 'j' },
	{ NULL, 0, NULL, 0 },
};

static int set_streams(struct migrate_args *a, const char *text)
{
	uint64_t n;

	if (size_parse_u64(text, &n) || !n || n > WIRE_MAX_STREAMS)
		return cli_usage(&cmd_migrate,
				 "--streams %s: not a number from 1 to %u",
				 text, WIRE_MAX_STREAMS);
	a->streams = (unsigned int)n;
	return CLI_OK;
}

static int set_downtime(struct migrate_args *a, const char *text)
{
	uint64_t n;

	if (size_parse_u64(text, &n) || n < MIGRATE_MIN_DOWNTIME_MS ||
	    n > MIGRATE_MAX_DOWNTIME_MS)
		return cli_usage(&cmd_migrate,
				 "--downtime %s: not a number of milliseconds "
				 "from %u to %u",
				 text, MIGRATE_MIN_DOWNTIME_MS,
				 MIGRATE_MAX_DOWNTIME_MS);
	json_object_set_new(a->body, "downtime_ms",
			    json_integer((json_int_t)n));
	return CLI_OK;
}

static int set_bandwidth(struct migrate_args *a, const char *text)
{
	uint64_t n;

	if (size_parse(text, &n) || !n || n > INT64_MAX)
		return cli_usage(&cmd_migrate,
				 "--bandwidth %s: not a size, as 100M", text);
	json_object_set_new(a->body, "bandwidth", json_integer((json_int_t)n));
	return CLI_OK;
}

static int set_compress(struct migrate_args *a, const char *text)
{
	for (int i = 0; i < PACK_NUM_METHODS; i++) {
		if (strcmp(text, pack_method_names[i]) != 0)
			continue;
		json_object_set_new(a->body, "compress", json_string(text));
		return CLI_OK;
	}
	return cli_usage(&cmd_migrate, "--compress %s: not none, lz4 or zstd",
			 text);
}

static int set_mode(struct migrate_args *a, const char *text)
{
	for (unsigned int i = 0; i < MIGRATE_NUM_MODES; i++) {
		if (strcmp(text, migrate_mode_names[i]) != 0)
			continue;
		a->urgent = i == MIGRATE_POSTCOPY || i == MIGRATE_HYBRID;
		a->local = i == MIGRATE_LOCAL;
		json_object_set_new(a->body, "mode", json_string(text));
		return CLI_OK;
	}
	return cli_usage(&cmd_migrate,
			 "--mode %s: not precopy, postcopy, hybrid or local",
			 text);
}

static int set_disks(struct migrate_args *a, const char *text)
{
	for (int i = 0; i < MIGRATE_NUM_DISKS; i++) {
		if (strcmp(text, migrate_disks_names[i]) != 0)
			continue;
		a->copies_disks = i;
		json_object_set_new(a->body, "disks", json_string(text));
		return CLI_OK;
	}
	return cli_usage(&cmd_migrate, "--disks %s: not shared or copy", text);
}

static int set_throttle(struct migrate_args *a, const char *text)
{
	struct hold_back plan;

	if (!hold_back_parse(text, &plan))
		return cli_usage(&cmd_migrate,
				 "--throttle %s: not off, auto, or a "
				 "percentage from 1 to %u",
				 text, THROTTLE_MAX_PERCENT);
	json_object_set_new(a->body, "throttle", json_string(text));
	return CLI_OK;
}

static int set_option(struct migrate_args *a, int opt, const char *value)
{
	switch (opt) {
	case 's':
		return set_streams(a, value);
	case 'd':
		return set_downtime(a, value);
	case 'b':
		return set_bandwidth(a, value);
	case 'm':
		return set_mode(a, value);
	case 'r':
		a->urgent = true;
		json_object_set_new(a->body, "recover", json_true());
		break;
	case 'i':
		return set_disks(a, value);
	case 'c':
		return set_compress(a, value);
	case 'h':
		return set_throttle(a, value);
	case 't':
		a->tls_dir = value;
		break;
	case 'n':
		a->tls_hostname = value;
		break;
	default:
		a->json = true;
		break;
	}
	return CLI_OK;
}

/*
 * Theory of operation. A VM's process is confined, and makes no network
 * connections. So this command makes them and hands them over a socket
 * (migrate/handed.h) while it attends to the VM (cli/attend.h); progress comes
 * the other way.
 */
struct migrating {
	struct migrate_args *args;
	struct attend attend;
	int fds[MIGRATE_MAX_CONNECTIONS];
	unsigned int num_fds;
	int files[TLS_NUM_FILES]; /* -1: no TLS */
	char line[1024];	  /* of progress, as far as it came */
	size_t line_len;
	bool shown; /* a line on the terminal that is to be ended */
};

/* ---- progress ---- */

static double number(const json_t *o, const char *field)
{
	return json_number_value(json_object_get(o, field));
}

static void print_time(const char *what, const json_t *ms)
{
	if (json_is_integer(ms))
		fprintf(stderr, ", %s %.3g s", what,
			(double)json_integer_value(ms) / 1000);
	else
		fprintf(stderr, ", %s never", what);
}

static void show_on_terminal(struct migrating *m, const json_t *o)
{
	fprintf(stderr,
		"\r\033[Kmigrate: %.0f MiB sent, %.0f MiB left, round %.0f, "
		"%.0f MiB/s",
		number(o, "sent_bytes") / 0x1p20,
		number(o, "remaining_bytes") / 0x1p20, number(o, "rounds") + 1,
		number(o, "rate_bytes_per_s") / 0x1p20);
	if (number(o, "rounds") > 0) {
		print_time("downtime",
			   json_object_get(o, "predicted_downtime_ms"));
		print_time("stop in", json_object_get(o, "eta_ms"));
	}
	if (number(o, "throttle_percent") > 0)
		fprintf(stderr, ", vCPUs held back by %.0f %%",
			number(o, "throttle_percent"));
	fflush(stderr);
	m->shown = true;
}

/* From a process that may be of another user: JSON, or nothing. */
static void show_line(struct migrating *m)
{
	json_t *o = json_loadb(m->line, m->line_len, 0, NULL);

	if (o && isatty(STDERR_FILENO)) {
		show_on_terminal(m, o);
	} else if (o) {
		json_dumpf(o, stderr, JSON_COMPACT);
		fputc('\n', stderr);
	}
	json_decref(o);
}

static void end_line(struct migrating *m)
{
	if (m->shown)
		fputc('\n', stderr);
	m->shown = false;
}

static int take_progress(void *ctx, int conn_fd)
{
	struct migrating *m = ctx;
	char buf[512];
	ssize_t n = recv(conn_fd, buf, sizeof(buf), MSG_DONTWAIT);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (!n)
		return -EPIPE;
	for (ssize_t i = 0; i < n; i++) {
		if (buf[i] == '\n') {
			show_line(m);
			m->line_len = 0;
		} else if (m->line_len < sizeof(m->line)) {
			m->line[m->line_len++] = buf[i];
		}
	}
	return 0;
}

/* ---- asking ---- */

/* What was handed over is the other process's alone. */
static void close_connections(struct migrating *m)
{
	while (m->num_fds)
		close_fd(&m->fds[--m->num_fds]);
	tls_files_close(m->files);
}

static int hand_connections(void *ctx, int conn_fd)
{
	struct migrating *m = ctx;
	int r = migrate_handed_give(conn_fd, m->fds, m->num_fds,
				    m->files[0] < 0 ? NULL : m->files);

	close_connections(m);
	return r;
}

/* With the rights of who asks; the keys are read where they are used. */
static int open_credentials(struct migrating *m, struct err *err)
{
	return m->args->tls_dir ? tls_files_open(m->files, m->args->tls_dir,
						 TLS_SOURCE, err)
				: 0;
}

static int connect_all(struct migrating *m, struct err *err)
{
	unsigned int num = m->args->streams;
	int r = 0;

	if (!num)
		num = m->args->local ? 1
				     : MIN(cpus_allowed(), MAX_AUTO_STREAMS);
	while (!r && m->num_fds < num + 1 + m->args->urgent) {
		r = migrate_uri_connect(&m->args->uri, &m->fds[m->num_fds],
					err);
		m->num_fds += !r;
	}
	return r;
}

/* A signal that came too late has changed nothing. */
static int finish(const struct attend *a)
{
	if (a->status != CLI_OK && a->signal)
		return 128 + a->signal;
	return a->status;
}

static int migrate(struct migrating *m)
{
	struct err err = ERR_INIT;
	int r = open_credentials(m, &err);

	if (!r)
		r = connect_all(m, &err);
	if (!r)
		r = attend_open(&m->attend, &err);
	if (!r)
		r = attend_run(&m->attend, &err);
	if (r)
		return cli_fail(&cmd_migrate, &err);
	end_line(m);
	return finish(&m->attend);
}

static void print_sent(const struct migrate_args *a, const json_t *root)
{
	double followed = number(root, "followed_bytes");

	if (json_object_get(a->body, "recover"))
		printf("%s: all of its memory is at %s: %.1f MiB sent over "
		       "%.0f connections",
		       a->vm, a->uri_text, number(root, "wire_bytes") / 0x1p20,
		       number(root, "connections"));
	else
		printf("%s: runs at %s: %.1f MiB sent in %.0f rounds over "
		       "%.0f connections, guest stopped for %.3f s",
		       a->vm, a->uri_text, number(root, "wire_bytes") / 0x1p20,
		       number(root, "rounds"), number(root, "connections"),
		       number(root, "downtime_us") / 1e6);
	if (followed > 0)
		printf(", %.1f MiB after it, of which it waited for %.0f "
		       "pages",
		       followed / 0x1p20, number(root, "urgent_pages"));
	printf(", done after %.3f s\n", number(root, "total_us") / 1e6);
	if (json_is_true(json_object_get(root, "ended_there")))
		printf("%s: it ended there before all of its memory came\n",
		       a->vm);
}

static void print_result(const struct migrate_args *a,
			 const struct api_answer *answer)
{
	json_t *root = json_loads(answer->text ? answer->text : "", 0, NULL);

	if (a->json) {
		json_dumpf(root, stdout, JSON_INDENT(2));
		putchar('\n');
	} else {
		print_sent(a, root);
	}
	json_decref(root);
}

static int migrate_and_tell(struct migrate_args *a)
{
	struct migrating m = {
		.args = a,
		.attend = {
			.command = &cmd_migrate,
			.vm = a->vm,
			.verb = "vm.send-migration",
			.body = a->body,
			.field = "sockets",
			.connected = hand_connections,
			.readable = take_progress,
			.ctx = &m,
		},
		.files = { -1, -1, -1 },
	};
	int status;

	attend_init(&m.attend);
	status = migrate(&m);
	close_connections(&m);
	if (status == CLI_OK) {
		print_result(a, &m.attend.answer);
		status = fflush(stdout) ? CLI_FAILURE : CLI_OK;
	}
	attend_end(&m.attend);
	return status;
}

static int check_tls(struct migrate_args *a)
{
	size_t len = a->tls_hostname ? strlen(a->tls_hostname) : 0;

	if (a->tls_hostname && !a->tls_dir)
		return cli_usage(&cmd_migrate, "--tls-hostname goes with "
					       "--tls");
	if (!a->tls_dir)
		return CLI_OK;
	if (!a->tls_hostname && a->uri.kind == MIGRATE_UNIX)
		return cli_usage(&cmd_migrate,
				 "--tls over a Unix socket needs "
				 "--tls-hostname, the name that the "
				 "certificate there is for");
	if (a->tls_hostname &&
	    (!len || len > TLS_MAX_NAME ||
	     json_object_set_new(a->body, "tls_hostname",
				 json_string(a->tls_hostname))))
		return cli_usage(&cmd_migrate, "--tls-hostname %.80s: no name",
				 a->tls_hostname);
	return CLI_OK;
}

static int parse(struct migrate_args *a, int argc, char **argv)
{
	struct err err = ERR_INIT;
	int opt, status;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		if (opt == '?' || opt == ':')
			return cli_bad_option(&cmd_migrate, argc, argv);
		status = set_option(a, opt, optarg);
		if (status != CLI_OK)
			return status;
	}
	if (optind + 2 != argc)
		return cli_usage(&cmd_migrate, "a VM and a URI are needed");
	if (json_object_get(a->body, "recover") &&
	    (json_object_get(a->body, "mode") ||
	     json_object_get(a->body, "disks") ||
	     json_object_get(a->body, "downtime_ms")))
		return cli_usage(&cmd_migrate,
				 "--recover goes on with what was begun: no "
				 "--mode, --disks or --downtime");
	if (a->copies_disks && (a->urgent || a->local))
		return cli_usage(&cmd_migrate,
				 "--disks copy: in --mode precopy only");
	a->vm = argv[optind];
	a->uri_text = argv[optind + 1];
	if (migrate_uri_parse(&a->uri, a->uri_text, &err))
		return cli_usage(&cmd_migrate, "%s", err.text);
	if (a->local && (a->uri.kind != MIGRATE_UNIX || a->tls_dir))
		return cli_usage(&cmd_migrate,
				 "--mode local: through a Unix socket "
				 "(unix:PATH) only, without --tls");
	if (json_object_set_new(a->body, "destination_url",
				json_string(a->uri_text)))
		return cli_usage(&cmd_migrate, "%s: not UTF-8", a->uri_text);
	return check_tls(a);
}

static int run(int argc, char **argv)
{
	struct migrate_args a = { .body = json_object() };
	int status = parse(&a, argc, argv);

	if (status == CLI_OK)
		status = migrate_and_tell(&a);
	json_decref(a.body);
	return status;
}

static bool option_at(size_t i, struct cli_option *ret)
{
	if (!options[i].name)
		return false;
	*ret = (struct cli_option){ .name = options[i].name };
	if (options[i].has_arg != no_argument)
		ret->arg = "";
	return true;
}

const struct cli_command cmd_migrate = {
	.name = "migrate",
	.summary = "have a running VM go on in another quire",
	.help = help,
	.run = run,
	.option_at = option_at,
	.words = CLI_WORDS_VM,
};
