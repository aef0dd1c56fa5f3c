/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quire ctl: ask a running VM something, or tell it to do something, over its
 * control API (api/route.h).
 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "api/route.h"
#include "base/cleanup.h"
#include "base/size.h"
#include "cli/ask.h"
#include "cli/commands.h"
#include "virtio/virtio.h"

struct ctl {
	const char *name; /* of the VM, or the path of a socket */
	unsigned int timeout_s;
	struct api_route route;
	json_t *body; /* NULL: none */
};

static void help(void)
{
	printf("usage: quire ctl NAME VERB [KEY=VALUE... | JSON | @FILE]\n"
	       "       quire ctl --list [--json]\n"
	       "\n"
	       "Ask a running VM, or tell it to do something, over its control "
	       "API. NAME is\n"
	       "what quire ps shows, or the path of a socket (with a slash). A "
	       "verb is what\n"
	       "--list shows; \"vm.\" and \"vmm.\" may be left out. Its fields "
	       "are given as\n"
	       "KEY=VALUE, or KEY:=JSON for what is no string (a.b=... for "
	       "objects in objects),\n"
	       "or all at once as a JSON object; @FILE reads that from a file, "
	       "@- from standard\n"
	       "input.\n"
	       "\n"
	       "  --timeout SECONDS  wait this long for an answer (default 60; "
	       "0: for ever)\n"
	       "  --list      the verbs there are\n"
	       "  --json      with --list: as JSON\n"
	       "  -h, --help  this text\n"
	       "\n"
	       "Exit status: 0 done, 1 refused or failed (the answer says "
	       "why), "
	       "2 wrong usage.\n"
	       "\n"
	       "examples:\n"
	       "  quire ctl web pause\n"
	       "  quire ctl web add-disk path=/srv/data.img readonly=on\n"
	       "  quire ctl web events\n");
}

/* ---- the list of verbs ---- */

static const char *const type_names[] = { "string", "integer", "boolean",
					  "object" };

static void add_field(json_t *fields, const char *name, const char *type,
		      bool required)
{
	json_object_set_new(fields, name,
			    json_pack("{s:s, s:b}", "type", type, "required",
				      (int)required));
}

/* A device's fields are its option's keys, with '_' for '-'. */
static void add_keys(json_t *fields, const struct virtio_class *cls)
{
	char name[64];

	add_field(fields, "id", "scalar", false);
	for (size_t i = 0; i < cls->num_keys; i++) {
		snprintf(name, sizeof(name), "%s", cls->keys[i].name);
		for (char *c = name; *c; c++)
			if (*c == '-')
				*c = '_';
		add_field(fields, name, "scalar", false);
	}
}

static json_t *route_json(const struct api_route *r)
{
	json_t *fields = json_object();

	for (size_t i = 0; i < r->num_fields; i++)
		add_field(fields, r->fields[i].name,
			  type_names[r->fields[i].type], r->fields[i].required);
	if (r->cls)
		add_keys(fields, r->cls);
	return json_pack("{s:s, s:s, s:s, s:s, s:b, s:o}", "verb",
			 api_route_verb(r), "method", r->method, "path",
			 r->path, "summary", r->summary, "changes",
			 (int)r->changes, "fields", fields);
}

static int list_verbs(bool json)
{
	json_t *list = json_array();
	struct api_route r;
	int failed = 0;

	for (size_t i = 0; api_route_get(i, &r); i++) {
		if (json)
			json_array_append_new(list, route_json(&r));
		else
			printf("%-18s %-4s %s\n", api_route_verb(&r), r.method,
			       r.summary);
	}
	if (json)
		failed = json_dumpf(list, stdout, JSON_INDENT(1)) ||
			 putchar('\n') == EOF;
	json_decref(list);
	return failed ? CLI_FAILURE : CLI_OK;
}

/* ---- the body ---- */

static const struct api_field *find_field(const struct api_route *r,
					  const char *name)
{
	for (size_t i = 0; i < r->num_fields; i++) {
		if (!strcmp(r->fields[i].name, name))
			return &r->fields[i];
	}
	return NULL;
}

/* What the verb says is a number is one; all else is text, for the VM to read.
 */
static json_t *make_value(const struct ctl *c, const char *key,
			  const char *text, bool raw, struct err *err)
{
	const struct api_field *f = find_field(&c->route, key);
	json_error_t where;
	json_t *value;

	raw = raw || (f && f->type != API_STRING);
	value = raw ? json_loads(text, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES,
				 &where)
		    : json_string(text);
	if (!value)
		(void)err_set(err, EINVAL, "%s: '%s' is not %s", key, text,
			      raw ? "JSON" : "UTF-8");
	return value;
}

/* The object that "a.b.c" is in; *key becomes "c". */
static json_t *descend(json_t *object, char **key, struct err *err)
{
	char *dot;

	while ((dot = strchr(*key, '.'))) {
		json_t *inner;

		*dot = '\0';
		inner = json_object_get(object, *key);
		if (!inner) {
			inner = json_object();
			if (json_object_set_new(object, *key, inner)) {
				(void)err_set(err, EINVAL, "'%s' is no key",
					      *key);
				return NULL;
			}
		}
		if (!json_is_object(inner)) {
			(void)err_set(err, EINVAL,
				      "'%s' is an object and a value", *key);
			return NULL;
		}
		object = inner;
		*key = dot + 1;
	}
	return object;
}

/* key is cut at its dots. */
static int set_at(struct ctl *c, char *key, const char *text, bool raw,
		  struct err *err)
{
	json_t *object = descend(c->body, &key, err), *value;

	if (!object)
		return -EINVAL;
	if (json_object_get(object, key))
		return err_set(err, EINVAL, "'%s' is given twice", key);
	value = make_value(c, key, text, raw, err);
	if (!value)
		return -EINVAL;
	if (!*key || json_object_set_new(object, key, value))
		return err_set(err, EINVAL, "'%s' is no key", key);
	return 0;
}

static int add_pair(struct ctl *c, const char *arg, struct err *err)
{
	const char *equals = strchr(arg, '=');
	char *key;
	bool raw;
	int r;

	if (!equals || equals == arg)
		return err_set(err, EINVAL,
			       "'%s' is neither KEY=VALUE, nor a JSON object, "
			       "nor @FILE",
			       arg);
	raw = equals[-1] == ':';
	key = strndup(arg, (size_t)(equals - arg) - raw);
	if (!key)
		return err_set(err, ENOMEM, "out of memory");
	r = set_at(c, key, equals + 1, raw, err);
	free(key);
	return r;
}

static int load_whole(struct ctl *c, const char *arg, struct err *err)
{
	json_error_t where;

	if (arg[0] != '@')
		c->body = json_loads(arg, JSON_REJECT_DUPLICATES, &where);
	else if (!strcmp(arg, "@-"))
		c->body = json_loadf(stdin, JSON_REJECT_DUPLICATES, &where);
	else
		c->body = json_load_file(arg + 1, JSON_REJECT_DUPLICATES,
					 &where);
	if (!c->body)
		return err_set(err, EINVAL, "%.40s: line %d, column %d: %s",
			       arg, where.line, where.column, where.text);
	if (!json_is_object(c->body))
		return err_set(err, EINVAL, "%.40s: not a JSON object", arg);
	return 0;
}

static int make_body(struct ctl *c, int argc, char **argv, struct err *err)
{
	int r = 0;

	if (!argc)
		return 0;
	if (argv[0][0] == '@' || argv[0][0] == '{') {
		if (argc > 1)
			return err_set(err, EINVAL,
				       "'%s': nothing goes with a whole body",
				       argv[1]);
		return load_whole(c, argv[0], err);
	}
	c->body = json_object();
	for (int i = 0; !r && i < argc; i++)
		r = add_pair(c, argv[i], err);
	return r;
}

/* ---- asking ---- */

/* JSON for people, anything else as it is. */
static int print_answer(const struct api_answer *a)
{
	json_t *root = a->is_json && a->text ? json_loads(a->text, 0, NULL)
					     : NULL;
	int failed = 0;

	if (root)
		failed = json_dumpf(root, stdout, JSON_INDENT(2)) ||
			 putchar('\n') == EOF;
	else if (a->text)
		failed = fwrite(a->text, 1, a->len, stdout) != a->len;
	json_decref(root);
	return failed ? CLI_FAILURE : CLI_OK;
}

static int ask(const struct ctl *c)
{
	const struct cli_question q = {
		.command = &cmd_ctl,
		.vm = c->name,
		.route = &c->route,
		.body = c->body,
		.timeout_s = c->timeout_s,
	};
	struct api_answer a;
	int status = cli_ask(&q, &a);

	if (status != CLI_OK)
		return status;
	status = print_answer(&a);
	free(a.text);
	return status;
}

/* ---- the command ---- */

static const struct option options[] = {
	{ "timeout", required_argument, NULL, 't' },
	{ "list", no_argument, NULL, 'l' },
	{ "json", no_argument, NULL, 'j' },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

static int set_timeout(struct ctl *c, const char *text)
{
	uint64_t seconds;

	if (size_parse_u64(text, &seconds) || seconds > 86400)
		return cli_usage(&cmd_ctl,
				 "--timeout %s: not a number from 0 to 86400",
				 text);
	c->timeout_s = (unsigned int)seconds;
	return CLI_OK;
}

static int carry_out(struct ctl *c, int argc, char **argv)
{
	struct err err = ERR_INIT;
	int status;

	if (argc < 2)
		return cli_usage(&cmd_ctl, "a VM and a verb are needed");
	c->name = argv[0];
	if (!*c->name)
		return cli_usage(&cmd_ctl, "the VM's name is empty");
	if (api_route_by_verb(argv[1], &c->route))
		return cli_usage(&cmd_ctl,
				 "unknown verb '%s'; quire ctl --list shows "
				 "them",
				 argv[1]);
	if (make_body(c, argc - 2, argv + 2, &err)) {
		json_decref(c->body);
		return cli_usage(&cmd_ctl, "%s", err.text);
	}
	status = ask(c);
	json_decref(c->body);
	return status;
}

static int run(int argc, char **argv)
{
	struct ctl c = { .timeout_s = 60 };
	bool list = false, json = false;
	int opt;

	opterr = 0;
	/* "+": what follows the verb is the verb's. */
	while ((opt = getopt_long(argc, argv, "+:h", options, NULL)) != -1) {
		switch (opt) {
		case 't':
			if (set_timeout(&c, optarg))
				return CLI_USAGE;
			break;
		case 'l':
			list = true;
			break;
		case 'j':
			json = true;
			break;
		case 'h':
			help();
			return CLI_OK;
		default:
			return cli_bad_option(&cmd_ctl, argc, argv);
		}
	}
	if (list && optind == argc)
		return list_verbs(json);
	if (list || json)
		return cli_usage(&cmd_ctl, "--list and --json stand alone");
	return carry_out(&c, argc - optind, argv + optind);
}

const struct cli_command cmd_ctl = {
	.name = "ctl",
	.summary = "ask a running VM, or tell it to do something",
	.help = help,
	.run = run,
	.options = options,
	.words = CLI_WORDS_VM_VERB,
};
