/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tools.h"

static const struct tool {
	const char *name;
	int (*main)(int argc, char **argv);
} tools[] = {
	{ "init", init_main },		 { "memtouch", memtouch_main },
	{ "blkverify", blkverify_main }, { "vsocktest", vsocktest_main },
	{ "nettest", nettest_main },
};

bool tools_number(const char *text, uint64_t min, uint64_t max,
		  uint64_t *ret_value)
{
	unsigned long long value;
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno || *end || value < min || value > max)
		return false;
	*ret_value = value;
	return true;
}

double tools_seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static const struct tool *tool_find(const char *path)
{
	const char *name = strrchr(path, '/');
	size_t i;

	name = name ? name + 1 : path;
	for (i = 0; i < sizeof(tools) / sizeof(tools[0]); i++)
		if (!strcmp(tools[i].name, name))
			return &tools[i];
	return NULL;
}

int main(int argc, char **argv)
{
	const struct tool *tool = argc > 0 ? tool_find(argv[0]) : NULL;

	if (!tool && argc > 1) {
		argc--;
		argv++;
		tool = tool_find(argv[0]);
	}
	if (!tool) {
		fputs("usage: quire-tools init|memtouch|blkverify|vsocktest|"
		      "nettest ...\n",
		      stderr);
		return 2;
	}
	return tool->main(argc, argv);
}
