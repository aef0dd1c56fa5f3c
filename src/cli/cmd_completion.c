/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quire completion: a script that completes commands, options, their keys, VMs
 * and verbs in a shell. Made of the tables that the commands themselves are
 * made of; the names of VMs are asked for when they are needed.
 *
 * What a shell calls a word ends at "=" (COMP_WORDBREAKS), so "--disk path=a"
 * are four: the script looks back for the option it is in.
 */
#include <ctype.h>
#include <getopt.h>
#include <string.h>

#include "api/route.h"
#include "base/arith.h"
#include "cli/commands.h"

static void help(void)
{
	printf("usage: quire completion bash|zsh\n"
	       "\n"
	       "Print a script that lets the shell complete quire's commands, "
	       "options, running\n"
	       "VMs and verbs. `make install` puts it where bash finds it; "
	       "otherwise:\n"
	       "\n"
	       "  source <(quire completion bash)\n"
	       "\n"
	       "  -h, --help  this text\n");
}

/* Option i of a command, from whichever table it has. */
static bool option_at(const struct cli_command *cmd, size_t i,
		      struct cli_option *ret)
{
	if (cmd->option_at)
		return cmd->option_at(i, ret);
	if (!cmd->options || !cmd->options[i].name)
		return false;
	ret->name = cmd->options[i].name;
	ret->arg = cmd->options[i].has_arg == no_argument ? NULL : "";
	return true;
}

static void print_option_names(const struct cli_command *cmd)
{
	struct cli_option o;

	printf("--help");
	for (size_t i = 0; option_at(cmd, i, &o); i++) {
		if (strcmp(o.name, "help") != 0)
			printf(" --%s", o.name);
	}
}

/* Length of a word of keys and choices. */
static size_t word_length(const char *text)
{
	size_t n = 0;

	while (islower((unsigned char)text[n]) ||
	       isdigit((unsigned char)text[n]) || text[n] == '_' ||
	       text[n] == '-')
		n++;
	return n;
}

/* "path= readonly= " of "path=FILE[,readonly=on|off]", or "a b " of "a|b". */
static void print_values(const char *arg)
{
	bool keys = strchr(arg, '=') != NULL;

	while (*arg) {
		size_t n = word_length(arg);

		if (!n) {
			arg++;
			continue;
		}
		if (keys && arg[n] == '=')
			printf("%.*s= ", (int)n, arg);
		else if (!keys)
			printf("%.*s ", (int)n, arg);
		arg += n;
	}
}

/* One line of the case for each option that takes something. */
static void print_option_values(const struct cli_command *cmd)
{
	struct cli_option o;

	for (size_t i = 0; option_at(cmd, i, &o); i++) {
		if (!o.arg)
			continue;
		printf("\t\t--%s) values='", o.name);
		print_values(o.arg);
		printf("' ;;\n");
	}
}

static void print_options(const struct cli_command *cmd, const char *pattern)
{
	printf("\t%s)\n\t\toptions='", pattern);
	print_option_names(cmd);
	printf("'\n\t\tcase $option in\n");
	print_option_values(cmd);
	printf("\t\t'') ;;\n\t\t*) option= ;;\n\t\tesac\n\t\t;;\n");
}

/* "touch" of "bench touch" */
static const char *last_word(const char *name)
{
	const char *space = strrchr(name, ' ');

	return space ? space + 1 : name;
}

static void print_command(const struct cli_command *cmd)
{
	char pattern[64];

	snprintf(pattern, sizeof(pattern), "'%s'", cmd->name);
	print_options(cmd, pattern);
	for (size_t i = 0; cmd->sub && cmd->sub[i]; i++) {
		snprintf(pattern, sizeof(pattern), "'%s'", cmd->sub[i]->name);
		print_options(cmd->sub[i], pattern);
	}
}

static void print_verbs(void)
{
	struct api_route r;

	for (size_t i = 0; api_route_get(i, &r); i++) {
		const char *verb = api_route_verb(&r);
		struct api_route found;

		/* The short form where it means the same. */
		if (!strncmp(verb, "vm.", 3))
			verb += 3;
		else if (!strncmp(verb, "vmm.", 4) &&
			 !api_route_by_verb(verb + 4, &found) &&
			 !strcmp(found.path, r.path))
			verb += 4;
		printf("%s ", verb);
	}
}

static void print_vms(const struct cli_command *cmd)
{
	printf("\t%s,0) words=$(quire ps --quiet 2>/dev/null) ;;\n", cmd->name);
}

/* As word number index, unless it is an option or its value. */
static void print_dir(const struct cli_command *cmd, unsigned int index)
{
	printf("\t%s,%u)\n"
	       "\t\tcase $cur,$option$before in\n"
	       "\t\t-* | *,?*) ;;\n"
	       "\t\t*)\n"
	       "\t\t\tCOMPREPLY=($(compgen -d -- \"$cur\"))\n"
	       "\t\t\tcompopt -o filenames 2>/dev/null\n"
	       "\t\t\treturn\n"
	       "\t\t\t;;\n"
	       "\t\tesac\n"
	       "\t\t;;\n",
	       cmd->name, index);
}

static void print_words(const struct cli_command *cmd)
{
	switch (cmd->words) {
	case CLI_WORDS_NONE:
		return;
	case CLI_WORDS_VM_VERB:
		print_vms(cmd);
		printf("\t%s,1) words='", cmd->name);
		print_verbs();
		break;
	case CLI_WORDS_VM:
		print_vms(cmd);
		return;
	case CLI_WORDS_VM_DIR:
		print_vms(cmd);
		print_dir(cmd, 1);
		return;
	case CLI_WORDS_DIR:
		print_dir(cmd, 0);
		return;
	case CLI_WORDS_SHELL:
		printf("\t%s,0) words='bash zsh", cmd->name);
		break;
	case CLI_WORDS_SUB:
		printf("\t%s,0) words='", cmd->name);
		for (size_t i = 0; cmd->sub && cmd->sub[i]; i++)
			printf("%s ", last_word(cmd->sub[i]->name));
		break;
	}
	printf("' ;;\n");
}

/* Which command this is, which option the cursor is in, how many words. */
static const char prologue[] =
	"# Completion for quire; made by `quire completion`.\n"
	"_quire()\n"
	"{\n"
	"\tlocal cur=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]}\n"
	"\tlocal options= values= words= option= before= count=0 i word\n"
	"\tCOMPREPLY=()\n"
	"\t[ \"$cur\" != = ] || cur=\n"
	"\tif [ \"$COMP_CWORD\" -eq 1 ]; then\n"
	"\t\tCOMPREPLY=($(compgen -W \"$commands\" -- \"$cur\"))\n"
	"\t\treturn\n"
	"\tfi\n"
	"\tfor ((i = 2; i < COMP_CWORD; i++)); do\n"
	"\t\tword=${COMP_WORDS[i]}\n"
	"\t\tcase $word in\n"
	"\t\t--*) option=$word ;;\n"
	"\t\t=) ;;\n"
	"\t\t*) [ -n \"$option\" ] || count=$((count + 1)) ;;\n"
	"\t\tesac\n"
	"\tdone\n"
	"\t# In an option's value only as long as nothing else began.\n"
	"\t[ \"${COMP_WORDS[COMP_CWORD - 1]}\" = = ] && before==\n"
	"\t[ \"${COMP_WORDS[COMP_CWORD]}\" = = ] && before==\n"
	"\tcase ${COMP_WORDS[COMP_CWORD - 1]} in\n"
	"\t--* | =) ;;\n"
	"\t*) [ -n \"$before\" ] || option= ;;\n"
	"\tesac\n";

static const char epilogue[] =
	"\tif [ -n \"$option\" ]; then\n"
	"\t\tcase $cur in\n"
	"\t\t*,*)\n"
	"\t\t\tbefore=${cur%,*},\n"
	"\t\t\tCOMPREPLY=($(compgen -P \"$before\" -W \"$values\" -- "
	"\"${cur##*,}\"))\n"
	"\t\t\tcompopt -o nospace 2>/dev/null\n"
	"\t\t\treturn\n"
	"\t\t\t;;\n"
	"\t\tesac\n"
	"\t\tif [ -z \"$before\" ] && [ -n \"$values\" ]; then\n"
	"\t\t\tCOMPREPLY=($(compgen -W \"$values\" -- \"$cur\"))\n"
	"\t\t\tcase $values in *=*) compopt -o nospace 2>/dev/null ;; esac\n"
	"\t\telse\n"
	"\t\t\tCOMPREPLY=($(compgen -f -- \"$cur\"))\n"
	"\t\t\tcompopt -o filenames 2>/dev/null\n"
	"\t\tfi\n"
	"\t\treturn\n"
	"\tfi\n"
	"\tcase $cur in\n"
	"\t-*) words=$options ;;\n"
	"\tesac\n"
	"\tif [ -n \"$before\" ]; then\n"
	"\t\tCOMPREPLY=($(compgen -f -- \"$cur\"))\n"
	"\t\tcompopt -o filenames 2>/dev/null\n"
	"\t\treturn\n"
	"\tfi\n"
	"\tCOMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
	"}\n"
	"complete -F _quire quire\n";

static void print_script(void)
{
	const char *at = strstr(prologue, "$commands");

	printf("%.*s", (int)(at - prologue), prologue);
	for (size_t i = 0; cli_commands[i]; i++)
		printf("%s ", cli_commands[i]->name);
	printf("--help --version%s", at + strlen("$commands"));
	/* Benches have options of their own, behind the bench's name. */
	printf("\tcase $command in\n");
	for (size_t i = 0; cli_commands[i]; i++) {
		if (cli_commands[i]->sub)
			printf("\t%s) command=\"$command ${COMP_WORDS[2]}\" "
			       ";;\n",
			       cli_commands[i]->name);
	}
	printf("\tesac\n\tcase $command in\n");
	for (size_t i = 0; cli_commands[i]; i++)
		print_command(cli_commands[i]);
	printf("\t*) option= ;;\n\tesac\n\tcase ${COMP_WORDS[1]},$count in\n");
	for (size_t i = 0; cli_commands[i]; i++)
		print_words(cli_commands[i]);
	printf("\tesac\n%s", epilogue);
}

static int run(int argc, char **argv)
{
	if (argc != 2)
		return cli_usage(&cmd_completion, "one shell has to be named");
	if (!strcmp(argv[1], "zsh"))
		printf("#compdef quire\n"
		       "autoload -U +X bashcompinit && bashcompinit\n");
	else if (strcmp(argv[1], "bash") != 0)
		return cli_usage(&cmd_completion,
				 "'%s': only bash and zsh are known", argv[1]);
	print_script();
	return CLI_OK;
}

const struct cli_command cmd_completion = {
	.name = "completion",
	.summary = "print a script that completes quire's words in a shell",
	.help = help,
	.run = run,
	.words = CLI_WORDS_SHELL,
};
