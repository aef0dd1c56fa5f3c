/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench_option.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

#define HELP_COLUMN 24

static int set(const struct bench_option *o, const char *text, void *args,
	       struct err *err)
{
	void *to = (char *)args + o->offset;
	char name[40];

	snprintf(name, sizeof(name), "--%s", o->name);
	switch (o->kind) {
	case BENCH_OPTION_FLAG:
		*(bool *)to = true;
		break;
	case BENCH_OPTION_TEXT:
		*(const char **)to = text;
		break;
	case BENCH_OPTION_NUMBER:
		return bench_parse_number(name, text, o->max, to, err);
	case BENCH_OPTION_NUMBERS:
		return bench_parse_numbers(name, text, o->max, to, err);
	case BENCH_OPTION_CHOICE:
		return bench_parse_choice(name, text, o->names, o->num_names,
					  to, err);
	}
	return 0;
}

static int read_with(const struct option *table, const struct cli_command *cmd,
		     const struct bench_option *options, int argc, char **argv,
		     void *args)
{
	struct err err = ERR_INIT;
	int opt, i = 0;

	opterr = 0;
	optind = 1;
	while ((opt = getopt_long(argc, argv, ":", table, &i)) != -1) {
		if (opt == '?' || opt == ':')
			return cli_bad_option(cmd, argc, argv);
		if (set(&options[i], optarg, args, &err))
			return cli_usage(cmd, "%s", err.text);
	}
	if (optind < argc)
		return cli_usage(cmd, "unexpected argument '%s'", argv[optind]);
	return CLI_OK;
}

int bench_option_read(const struct cli_command *cmd,
		      const struct bench_option *options, size_t num, int argc,
		      char **argv, void *args)
{
	struct option *table = calloc(num + 1, sizeof(*table));
	struct err err = ERR_INIT;
	int status;

	if (!table) {
		err_set(&err, ENOMEM, "out of memory");
		return cli_fail(cmd, &err);
	}
	for (size_t k = 0; k < num; k++)
		table[k] = (struct option){
			.name = options[k].name,
			.has_arg = options[k].arg ? required_argument
						  : no_argument,
			.val = 'x',
		};
	status = read_with(table, cmd, options, argc, argv, args);
	free(table);
	return status;
}

static void print_text(const char *text)
{
	for (; *text; text++) {
		putchar(*text);
		if (*text == '\n')
			printf("%*s", HELP_COLUMN, "");
	}
	putchar('\n');
}

void bench_option_help(const struct bench_option *options, size_t num)
{
	for (size_t i = 0; i < num; i++) {
		const struct bench_option *o = &options[i];
		int used = printf("  --%s%s%s", o->name, o->arg ? " " : "",
				  o->arg ? o->arg : "");

		printf("%*s", used < HELP_COLUMN ? HELP_COLUMN - used : 1, "");
		print_text(o->help);
	}
}

bool bench_option_at(const struct bench_option *options, size_t num, size_t i,
		     struct cli_option *ret)
{
	if (i >= num)
		return false;
	*ret = (struct cli_option){
		.name = options[i].name,
		.arg = options[i].arg,
	};
	return true;
}
