/* SPDX-License-Identifier: Apache-2.0 */
/* base/log.c: levels, formats, and what must not get into a line. */
#include "cmocka_all.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

static char path[64];
static char line[8192];

static int setup(void **state)
{
	struct err err = ERR_INIT;
	int fd;

	snprintf(path, sizeof(path), "/tmp/quire-test-log-XXXXXX");
	fd = mkstemp(path);
	if (fd < 0)
		return -1;
	close(fd);
	log_set_level(LOG_LEVEL_WARN);
	return log_open_file(path, &err);
}

static int teardown(void **state)
{
	return unlink(path);
}

/* What was logged since the last time. */
static const char *logged(void)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	ssize_t n = read(fd, line, sizeof(line) - 1);

	assert_true(n >= 0);
	line[n] = '\0';
	assert_int_equal(ftruncate(fd, 0), 0);
	close(fd);
	return line;
}

/* The only line there is, as JSON. */
static json_t *logged_json(void)
{
	json_error_t error;
	json_t *o;

	logged();
	assert_non_null(strchr(line, '\n'));
	assert_null(strchr(strchr(line, '\n') + 1, '\n'));
	o = json_loads(line, JSON_REJECT_DUPLICATES, &error);
	assert_non_null(o);
	return o;
}

static void test_text(void **state)
{
	log_set_format(LOG_FORMAT_TEXT);
	log_warn("one %d", 1);
	assert_string_equal(logged(), "quire: warning: one 1\n");
	log_error("two");
	assert_string_equal(logged(), "quire: error: two\n");
	log_info("three");
	assert_string_equal(logged(), "");
	log_set_level(LOG_LEVEL_INFO);
	log_info("three");
	assert_string_equal(logged(), "quire: three\n");
	/* a guest's text is no command to a terminal */
	log_warn("a\033[2Jb\r\nc");
	assert_string_equal(logged(), "quire: warning: a?[2Jb??c\n");
}

static void test_json(void **state)
{
	const char *time;
	json_t *o;

	/* a file is no terminal */
	log_set_format(LOG_FORMAT_AUTO);
	log_warn("say \"hi\" to \\ and \t, \xc3\xa4");
	o = logged_json();
	assert_int_equal(json_object_size(o), 4);
	assert_string_equal(json_string_value(json_object_get(o, "level")),
			    "warning");
	assert_string_equal(json_string_value(json_object_get(o, "module")),
			    "quire");
	assert_string_equal(json_string_value(json_object_get(o, "message")),
			    "say \"hi\" to \\ and ?, \xc3\xa4");
	time = json_string_value(json_object_get(o, "time"));
	/* 2026-01-02T03:04:05.678Z */
	assert_int_equal(strlen(time), 24);
	assert_true(time[10] == 'T' && time[19] == '.' && time[23] == 'Z');
	json_decref(o);
	log_warn("not UTF-8: \xff\xfe");
	o = logged_json();
	assert_string_equal(json_string_value(json_object_get(o, "message")),
			    "not UTF-8: ??");
	json_decref(o);
}

static void test_long(void **state)
{
	char text[4000];
	json_t *o;

	memset(text, '"', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	log_set_format(LOG_FORMAT_JSON);
	log_warn("%s", text);
	o = logged_json();
	assert_int_equal(json_string_length(json_object_get(o, "message")),
			 999);
	json_decref(o);
}

static void test_modules(void **state)
{
	struct err err = ERR_INIT;
	json_t *o;

	log_set_format(LOG_FORMAT_JSON);
	assert_int_equal(log_parse_levels("error,virtio=debug,vm=info", &err),
			 0);
	log_line_from("../src/virtio/rng/rng.c", LOG_LEVEL_DEBUG, "x");
	o = logged_json();
	assert_string_equal(json_string_value(json_object_get(o, "module")),
			    "virtio");
	json_decref(o);
	/* only the last src/ counts */
	log_line_from("/home/src/mem/quire/src/vm/vmm.c", LOG_LEVEL_INFO, "x");
	o = logged_json();
	assert_string_equal(json_string_value(json_object_get(o, "module")),
			    "vm");
	json_decref(o);
	log_line_from("../src/vm/vmm.c", LOG_LEVEL_DEBUG, "x");
	log_line_from("../src/mem/ram.c", LOG_LEVEL_WARN, "x");
	log_warn("of no module");
	assert_string_equal(logged(), "");
	log_line_from("../src/mem/ram.c", LOG_LEVEL_ERROR, "x");
	json_decref(logged_json());
}

static void test_bad_levels(void **state)
{
	static const struct {
		const char *text, *needle;
	} cases[] = {
		{ "", "not one of error, warning, info, debug" },
		{ "loud", "not one of" },
		{ "info,debug", "not the first" },
		{ "vm=", "not one of" },
		{ "cellar=info", "unknown module 'cellar'" },
		{ "=info", "unknown module" },
		{ "info,", "not one of" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct err err = ERR_INIT;

		assert_int_equal(log_parse_levels(cases[i].text, &err),
				 -EINVAL);
		assert_non_null(strstr(err.text, cases[i].needle));
	}
}

static void test_errno_is_kept(void **state)
{
	errno = ENOSPC;
	log_warn("x");
	assert_int_equal(errno, ENOSPC);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_text, setup, teardown),
		cmocka_unit_test_setup_teardown(test_json, setup, teardown),
		cmocka_unit_test_setup_teardown(test_long, setup, teardown),
		cmocka_unit_test_setup_teardown(test_modules, setup, teardown),
		cmocka_unit_test(test_bad_levels),
		cmocka_unit_test_setup_teardown(test_errno_is_kept, setup,
						teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
