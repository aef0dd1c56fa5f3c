/* SPDX-License-Identifier: Apache-2.0 */
/* quire ps: the VMs that run, from the runtime directory (api/rundir.h). */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "api/client.h"
#include "api/route.h"
#include "api/rundir.h"
#include "base/size.h"
#include "cli/commands.h"

#define ASK_SECONDS 2 /* a VM that does not answer is shown as such */

/* What a VM says about itself. */
struct vm_facts {
	char state[24];
	json_int_t vcpus, memory_bytes; /* 0: not known */
};

static void help(void)
{
	printf("usage: quire ps [--json|--quiet]\n"
	       "\n"
	       "List the VMs of this user that run on this host. Entries that "
	       "a quire left\n"
	       "behind when it was killed are removed.\n"
	       "\n"
	       "  --json      an array of objects instead of the table\n"
	       "  --quiet     only the names, one a line; asks the VMs "
	       "nothing\n"
	       "  -h, --help  this text\n"
	       "\n"
	       "Exit status: 0 (no VM is no failure), 1 the runtime directory "
	       "cannot be read, 2\n"
	       "wrong usage.\n");
}

static void read_info(const json_t *info, struct vm_facts *f)
{
	const json_t *config = json_object_get(info, "config");
	const json_t *cpus = json_object_get(config, "cpus");
	const char *state = json_string_value(json_object_get(info, "state"));

	snprintf(f->state, sizeof(f->state), "%s", state ? state : "?");
	f->vcpus = json_integer_value(json_object_get(cpus, "boot_vcpus"));
	f->memory_bytes = json_integer_value(
		json_object_get(info, "memory_actual_size"));
}

static void ask(const struct rundir_entry *e, struct vm_facts *f)
{
	struct api_client_request q = {
		.socket = e->socket,
		.method = "GET",
		.path = API_PREFIX "vm.info",
		.timeout_s = ASK_SECONDS,
	};
	struct err err = ERR_INIT;
	struct api_answer a;
	json_t *info;

	*f = (struct vm_facts){ .state = "unreachable" };
	if (api_client_ask(&q, &a, &err))
		return;
	info = a.text ? json_loads(a.text, 0, NULL) : NULL;
	if (a.status == 200 && info)
		read_info(info, f);
	else if (a.status == 404)
		snprintf(f->state, sizeof(f->state), "Empty");
	json_decref(info);
	free(a.text);
}

static int print_quiet(const struct rundir_entry *list, size_t num)
{
	for (size_t i = 0; i < num; i++)
		printf("%s\n", list[i].name);
	return CLI_OK;
}

static int print_table(const struct rundir_entry *list, size_t num)
{
	char memory[32], vcpus[32];
	struct vm_facts f;

	printf("%-20s %8s %-12s %5s %8s  %s\n", "NAME", "PID", "STATE", "VCPUS",
	       "MEMORY", "SOCKET");
	for (size_t i = 0; i < num; i++) {
		ask(&list[i], &f);
		snprintf(memory, sizeof(memory), "-");
		snprintf(vcpus, sizeof(vcpus), "-");
		if (f.memory_bytes > 0)
			size_format((uint64_t)f.memory_bytes, memory,
				    sizeof(memory));
		if (f.vcpus > 0)
			snprintf(vcpus, sizeof(vcpus), "%lld",
				 (long long)f.vcpus);
		printf("%-20s %8d %-12s %5s %8s  %s\n", list[i].name,
		       (int)list[i].pid, f.state, vcpus, memory,
		       list[i].socket);
	}
	return CLI_OK;
}

static json_t *number_or_null(json_int_t value)
{
	return value > 0 ? json_integer(value) : json_null();
}

static int print_json(const struct rundir_entry *list, size_t num)
{
	json_t *array = json_array();
	struct vm_facts f;
	int failed;

	for (size_t i = 0; i < num; i++) {
		ask(&list[i], &f);
		json_array_append_new(
			array,
			json_pack("{s:s, s:i, s:s, s:o, s:o, s:s}", "name",
				  list[i].name, "pid", (int)list[i].pid,
				  "state", f.state, "vcpus",
				  number_or_null(f.vcpus), "memory_bytes",
				  number_or_null(f.memory_bytes), "socket",
				  list[i].socket));
	}
	failed = json_dumpf(array, stdout, JSON_INDENT(1)) ||
		 putchar('\n') == EOF;
	json_decref(array);
	return failed ? CLI_FAILURE : CLI_OK;
}

static const struct option options[] = {
	{ "json", no_argument, NULL, 'j' },
	{ "quiet", no_argument, NULL, 'q' },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

static int run(int argc, char **argv)
{
	int (*print)(const struct rundir_entry *list, size_t num) = NULL;
	struct rundir_entry *list;
	struct err err = ERR_INIT;
	int opt, status;
	size_t num;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
		if (opt == 'h') {
			help();
			return CLI_OK;
		}
		if (opt != 'j' && opt != 'q')
			return cli_bad_option(&cmd_ps, argc, argv);
		if (print)
			return cli_usage(&cmd_ps, "only one of --json and "
						  "--quiet");
		print = opt == 'j' ? print_json : print_quiet;
	}
	if (optind < argc)
		return cli_usage(&cmd_ps, "\"%s\": no argument is expected",
				 argv[optind]);
	if (rundir_list(&list, &num, &err))
		return cli_fail(&cmd_ps, &err);
	status = (print ? print : print_table)(list, num);
	free(list);
	return status;
}

const struct cli_command cmd_ps = {
	.name = "ps",
	.summary = "list the VMs that run",
	.help = help,
	.run = run,
	.options = options,
};
