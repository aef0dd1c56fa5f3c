/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The report for people and for programs.
 *
 * The table has the columns status, name, fact and consequence. Where the
 * terminal is too narrow for four, the consequence goes below the fact. Both
 * are wrapped at blanks; only the verdict, always the last line, is not.
 */
#include "doctor/doctor.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>

#include "base/arith.h"

#define TABLE_INDENT	   2
#define TABLE_GAP	   2
#define TABLE_STATUS_WIDTH 8 /* "degraded" */
#define TABLE_MIN_TEXT	   24
#define TABLE_SPLIT_TEXT   66 /* room for two text columns from here on */

struct table {
	FILE *out;
	bool colour;
	unsigned int name_width;
	unsigned int fact_width;
	unsigned int then_width; /* 0: below the fact */
};

/*
 * Length of the first line of text wrapped at width. A word that is longer than
 * a line stays whole: paths and commands are there to be copied.
 */
static unsigned int line_length(const char *text, unsigned int width)
{
	size_t len = strlen(text), cut = width;

	if (len <= width)
		return (unsigned int)len;
	while (cut > 0 && text[cut] != ' ')
		cut--;
	if (!cut)
		cut = strcspn(text, " ");
	return (unsigned int)cut;
}

/* Print the next line of *text, padded to width if pad; move *text behind it.
 */
static void put_line(FILE *out, const char **text, unsigned int width, bool pad)
{
	unsigned int len = line_length(*text, width);

	fprintf(out, "%.*s", (int)len, *text);
	*text += len;
	*text += strspn(*text, " ");
	if (pad)
		fprintf(out, "%*s", (int)(MAX(width, len) - len + TABLE_GAP),
			"");
}

static unsigned int text_column(const struct table *t)
{
	return TABLE_INDENT + TABLE_STATUS_WIDTH + TABLE_GAP + t->name_width +
	       TABLE_GAP;
}

static void put_head(const struct table *t, const struct doctor_row *row)
{
	static const char *const colours[] = {
		[DOCTOR_OK] = "\033[32m",
		[DOCTOR_DEGRADED] = "\033[33m",
		[DOCTOR_MISSING] = "\033[31m",
	};

	fprintf(t->out, "%*s%s%-*s%s%*s%-*s%*s", TABLE_INDENT, "",
		t->colour ? colours[row->status] : "", TABLE_STATUS_WIDTH,
		doctor_status_names[row->status], t->colour ? "\033[0m" : "",
		TABLE_GAP, "", (int)t->name_width, row->name, TABLE_GAP, "");
}

/* fact and consequence side by side */
static void put_wide(const struct table *t, const struct doctor_row *row)
{
	const char *fact = row->fact, *then = row->consequence;

	while (*fact || *then) {
		put_line(t->out, &fact, t->fact_width, *then);
		put_line(t->out, &then, t->then_width, false);
		fputc('\n', t->out);
		if (*fact || *then)
			fprintf(t->out, "%*s", (int)text_column(t), "");
	}
}

static void put_narrow(const struct table *t, const struct doctor_row *row)
{
	const char *fact = row->fact, *then = row->consequence;
	const char *mark = "> ";

	put_line(t->out, &fact, t->fact_width, false);
	fputc('\n', t->out);
	while (*fact) {
		fprintf(t->out, "%*s", (int)text_column(t), "");
		put_line(t->out, &fact, t->fact_width, false);
		fputc('\n', t->out);
	}
	while (*then) {
		fprintf(t->out, "%*s%s", (int)text_column(t), "", mark);
		put_line(t->out, &then, t->fact_width - 2, false);
		fputc('\n', t->out);
		mark = "  ";
	}
}

static void plan_columns(struct table *t, const struct doctor_report *report,
			 unsigned int width)
{
	unsigned int room;

	for (size_t i = 0; i < report->num_rows; i++)
		t->name_width = MAX(t->name_width,
				    (unsigned int)strlen(report->rows[i].name));
	room = width > text_column(t) ? width - text_column(t) : 0;
	if (room < TABLE_SPLIT_TEXT) {
		t->fact_width = MAX(room, (unsigned int)TABLE_MIN_TEXT);
		return;
	}
	t->fact_width = (room - TABLE_GAP) * 45 / 100;
	t->then_width = room - TABLE_GAP - t->fact_width;
}

static void put_verdict(FILE *out, const struct doctor_report *report)
{
	if (report->can_run_linux)
		fprintf(out, "quire run: works here\n");
	else if (report->can_run)
		fprintf(out,
			"quire run: Linux guests do not work here: %s; "
			"use lab/run or another host\n",
			report->reason);
	else
		fprintf(out, "quire run: does not work here: %s\n",
			report->reason);
}

void doctor_print_table(FILE *out, const struct doctor_report *report,
			unsigned int width, bool colour)
{
	struct table t = { .out = out, .colour = colour };
	const char *group = NULL;

	plan_columns(&t, report, width);
	for (size_t i = 0; i < report->num_rows; i++) {
		const struct doctor_row *row = &report->rows[i];

		if (!group || strcmp(group, row->group) != 0) {
			fprintf(out, "%s%s%s%s\n", group ? "\n" : "",
				colour ? "\033[1m" : "", row->group,
				colour ? "\033[0m" : "");
			group = row->group;
		}
		put_head(&t, row);
		if (t.then_width)
			put_wide(&t, row);
		else
			put_narrow(&t, row);
	}
	fputc('\n', out);
	put_verdict(out, report);
}

static json_t *row_json(const struct doctor_row *row)
{
	return json_pack("{s:s, s:s, s:s, s:s, s:s}", "group", row->group,
			 "name", row->name, "status",
			 doctor_status_names[row->status], "fact", row->fact,
			 "consequence", row->consequence);
}

int doctor_print_json(FILE *out, const struct doctor_report *report)
{
	json_t *checks = json_array(), *root;
	int r = checks ? 0 : -1;

	for (size_t i = 0; !r && i < report->num_rows; i++)
		r = json_array_append_new(checks, row_json(&report->rows[i]));
	if (r) {
		json_decref(checks);
		return -ENOMEM;
	}
	/* "o" takes the reference to checks. */
	root = json_pack("{s:o, s:b, s:b}", "checks", checks, "can_run",
			 report->can_run, "can_run_linux",
			 report->can_run_linux);
	if (!root)
		return -ENOMEM;
	r = json_dumpf(root, out, JSON_INDENT(2)) ? -EIO : 0;
	json_decref(root);
	fputc('\n', out);
	return r;
}
