/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the benches of `quire bench` share: the list of them, how their options
 * are read, what they ask of the host and how they print. One thread.
 */
#ifndef QUIRE_CLI_BENCH_H
#define QUIRE_CLI_BENCH_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/histogram.h"
#include "cli/cli.h"
#include "mem/hostmem.h"
#include "mem/ram.h"
#include "stage2/detect.h"

struct option;

extern const struct cli_command cmd_bench_dirty;
extern const struct cli_command cmd_bench_migrate;
extern const struct cli_command cmd_bench_pager;
extern const struct cli_command cmd_bench_populate;
extern const struct cli_command cmd_bench_restore;
extern const struct cli_command cmd_bench_snapshot;
extern const struct cli_command cmd_bench_touch;
extern const struct cli_command cmd_bench_walk;

/*
 * Options. A bench hands over its getopt_long() table and a function that takes
 * one option (the `val` of its entry) with its value; -errno and an err from
 * there are a usage error. Returns an enum cli_status.
 */
int bench_read_options(const struct cli_command *cmd, int argc, char **argv,
		       const struct option *options,
		       int (*set)(void *ctx, int option, const char *value,
				  struct err *err),
		       void *ctx);

/* For set(): option ("--page") is for the message; *ret is untouched on
 * failure. */

/* A whole number from 1 to max. */
__must_check int bench_parse_number(const char *option, const char *text,
				    uint64_t max, uint64_t *ret,
				    struct err *err);

#define BENCH_MAX_CHOICES 8

/* Several of them, "16,64,256", in the order given. */
struct bench_numbers {
	uint64_t values[BENCH_MAX_CHOICES];
	unsigned int num;
};

__must_check int bench_parse_numbers(const char *option, const char *text,
				     uint64_t max, struct bench_numbers *ret,
				     struct err *err);

/* A choice of several values out of a table of names, in the order given. */
struct bench_choice {
	int values[BENCH_MAX_CHOICES];
	unsigned int num;
};

/* Parse "a,b,c", each one of names and none twice. */
__must_check int bench_parse_choice(const char *option, const char *text,
				    const char *const *names, size_t num_names,
				    struct bench_choice *ret, struct err *err);

/* The same for an option that takes one value. */
__must_check int bench_parse_one(const char *option, const char *text,
				 const char *const *names, size_t num_names,
				 int *ret, struct err *err);

/* The host pages that benches offer, indexed by enum ram_page: no 1g. */
#define BENCH_NUM_PAGES 3
extern const char *const bench_page_names[BENCH_NUM_PAGES];

/*
 * Will there be this much memory of that kind? Asked before anything is
 * started; the err says what to do.
 */
__must_check int bench_check_page(const struct hostmem *host,
				  enum ram_page page, uint64_t bytes,
				  struct err *err);

/* How this KVM translates guest addresses; opens /dev/kvm for it. */
__must_check int bench_detect_stage(enum second_stage *ret, struct err *err);
/* In words. */
const char *bench_stage_text(enum second_stage stage);

/* The most runs or rounds that a bench offers. */
#define BENCH_MAX_RUNS 99u

/* Ascending. */
void bench_sort(double *values, size_t num);
/* Of 1 to BENCH_MAX_RUNS values, which stay in their order. */
double bench_median(const double *values, size_t num);

/* "1.2 us": a duration with a unit that suits it. Returns buf. */
const char *bench_format_ns(uint64_t ns, char *buf, size_t buf_size);

/*
 * Print the one object of --json, and free it. NULL: making it failed. Returns
 * an enum cli_status.
 */
int bench_print_json(const struct cli_command *cmd, json_t *root);

#endif
