/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/size.h"
#include "kvm/kvm.h"

const char *const bench_page_names[BENCH_NUM_PAGES] = {
	[RAM_PAGE_4K] = "4k",
	[RAM_PAGE_THP] = "thp",
	[RAM_PAGE_2M] = "2m",
};

int bench_read_options(const struct cli_command *cmd, int argc, char **argv,
		       const struct option *options,
		       int (*set)(void *ctx, int option, const char *value,
				  struct err *err),
		       void *ctx)
{
	struct err err = ERR_INIT;
	int option;

	opterr = 0;
	optind = 1;
	while ((option = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		if (option == '?' || option == ':')
			return cli_bad_option(cmd, argc, argv);
		if (set(ctx, option, optarg, &err))
			return cli_usage(cmd, "%s", err.text);
	}
	if (optind < argc)
		return cli_usage(cmd, "unexpected argument '%s'", argv[optind]);
	return CLI_OK;
}

int bench_parse_number(const char *option, const char *text, uint64_t max,
		       uint64_t *ret, struct err *err)
{
	uint64_t value = 0;

	if (size_parse_u64(text, &value) || !value || value > max)
		return err_set(err, EINVAL,
			       "%s %s: not a whole number from 1 to %llu",
			       option, text, (unsigned long long)max);
	*ret = value;
	return 0;
}

int bench_parse_numbers(const char *option, const char *text, uint64_t max,
			struct bench_numbers *ret, struct err *err)
{
	struct bench_numbers list = { .num = 0 };
	const char *word = text;
	char one[32];
	int r;

	for (;;) {
		size_t len = strcspn(word, ",");

		if (list.num == BENCH_MAX_CHOICES)
			return err_set(err, EINVAL, "%s: more than %d numbers",
				       option, BENCH_MAX_CHOICES);
		if (len >= sizeof(one))
			return err_set(err, EINVAL, "%s: %.32s... is no number",
				       option, word);
		memcpy(one, word, len);
		one[len] = '\0';
		r = bench_parse_number(option, one, max, &list.values[list.num],
				       err);
		if (r)
			return r;
		list.num++;
		if (!word[len])
			break;
		word += len + 1;
	}
	*ret = list;
	return 0;
}

static int find_name(const char *word, size_t len, const char *const *names,
		     size_t num_names)
{
	for (size_t i = 0; i < num_names; i++) {
		if (names[i] && strlen(names[i]) == len &&
		    !memcmp(names[i], word, len))
			return (int)i;
	}
	return -1;
}

static int unknown_choice(const char *option, const char *word, size_t len,
			  const char *const *names, size_t num_names,
			  struct err *err)
{
	char known[160] = "";

	for (size_t i = 0; i < num_names; i++) {
		size_t at = strlen(known);

		if (names[i])
			snprintf(known + at, sizeof(known) - at, "%s%s",
				 at ? ", " : "", names[i]);
	}
	return err_set(err, EINVAL, "%s: unknown value '%.*s'; known: %s",
		       option, (int)MIN(len, (size_t)64), word, known);
}

int bench_parse_choice(const char *option, const char *text,
		       const char *const *names, size_t num_names,
		       struct bench_choice *ret, struct err *err)
{
	struct bench_choice choice = { .num = 0 };
	const char *word = text;

	for (;;) {
		size_t len = strcspn(word, ",");
		int value = find_name(word, len, names, num_names);

		if (value < 0)
			return unknown_choice(option, word, len, names,
					      num_names, err);
		for (unsigned int i = 0; i < choice.num; i++) {
			if (choice.values[i] == value)
				return err_set(err, EINVAL,
					       "%s: '%s' is there twice",
					       option, names[value]);
		}
		BUG_ON(choice.num == BENCH_MAX_CHOICES);
		choice.values[choice.num++] = value;
		if (!word[len])
			break;
		word += len + 1;
	}
	*ret = choice;
	return 0;
}

int bench_parse_one(const char *option, const char *text,
		    const char *const *names, size_t num_names, int *ret,
		    struct err *err)
{
	struct bench_choice one = { .num = 0 };
	int r = bench_parse_choice(option, text, names, num_names, &one, err);

	if (r)
		return r;
	if (one.num != 1)
		return err_set(err, EINVAL, "%s: one value", option);
	*ret = one.values[0];
	return 0;
}

int bench_check_page(const struct hostmem *host, enum ram_page page,
		     uint64_t bytes, struct err *err)
{
	if (page == RAM_PAGE_THP && host->thp_never)
		return err_set(err, ENOTSUP,
			       "--page thp: transparent huge pages are off; as "
			       "root: echo madvise > "
			       "/sys/kernel/mm/transparent_hugepage/enabled");
	return hostmem_check(host, page, bytes, err);
}

int bench_detect_stage(enum second_stage *ret, struct err *err)
{
	struct kvm kvm;
	int r = kvm_open(&kvm, KVM_DEVICE_PATH, err);

	if (r)
		return r;
	*ret = stage2_detect(&kvm);
	kvm_close(&kvm);
	return 0;
}

const char *bench_stage_text(enum second_stage stage)
{
	switch (stage) {
	case SECOND_STAGE_SHADOW:
		return "shadow paging (no EPT or NPT)";
	case SECOND_STAGE_TDP:
		return "TDP (EPT or NPT)";
	case SECOND_STAGE_UNKNOWN:
		break;
	}
	return "kind of second stage unknown";
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

void bench_sort(double *values, size_t num)
{
	qsort(values, num, sizeof(*values), compare);
}

double bench_median(const double *values, size_t num)
{
	double sorted[BENCH_MAX_RUNS];

	BUG_ON(!num || num > BENCH_MAX_RUNS);
	memcpy(sorted, values, num * sizeof(*values));
	bench_sort(sorted, num);
	return (sorted[(num - 1) / 2] + sorted[num / 2]) / 2;
}

const char *bench_format_ns(uint64_t ns, char *buf, size_t buf_size)
{
	static const char *const units[] = { "ns", "us", "ms", "s" };
	double value = (double)ns;
	unsigned int i = 0;

	for (; value >= 999.5 && i + 1 < ARRAY_SIZE(units); i++)
		value /= 1000;
	snprintf(buf, buf_size, "%.*f %s", i && value < 99.95 ? 1 : 0, value,
		 units[i]);
	return buf;
}

int bench_print_json(const struct cli_command *cmd, json_t *root)
{
	struct err err = ERR_INIT;
	int r = root ? json_dumpf(root, stdout,
				  JSON_INDENT(2) | JSON_REAL_PRECISION(9))
		     : -1;

	json_decref(root);
	printf("\n");
	if (!r)
		return CLI_OK;
	err_set(&err, EIO, "cannot write the result");
	return cli_fail(cmd, &err);
}
