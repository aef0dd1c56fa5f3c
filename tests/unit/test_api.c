/* SPDX-License-Identifier: Apache-2.0 */
/*
 * src/api/ without a server: the table of routes, bodies, events, metrics, the
 * socket, the runtime directory, the client's reading of answers.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/body.h"
#include "api/client.h"
#include "api/events.h"
#include "api/metrics.h"
#include "api/route.h"
#include "api/rundir.h"
#include "base/unix_socket.h"
#include "fake_vmm.h"
#include "virtio/virtio.h"

/* ---- routes ---- */

static void every_route_is_whole_and_found(void **state)
{
	struct api_route r, found;
	size_t i;

	for (i = 0; api_route_get(i, &r); i++) {
		assert_int_equal(api_route_find(r.method, r.path, &found), 0);
		assert_string_equal(found.path, r.path);
		assert_int_equal(api_route_by_verb(api_route_verb(&r), &found),
				 0);
		assert_string_equal(found.path, r.path);
		assert_non_null(r.summary);
		assert_true(r.kind != API_VERB || r.handle);
		assert_true(r.changes == !strcmp(r.method, "PUT"));
		assert_true(!r.render || r.content_type);
	}
	assert_true(i > 15);
}

static void each_class_with_a_verb_has_a_route(void **state)
{
	char path[64];
	struct api_route r;

	for (size_t i = 0; virtio_classes[i]; i++) {
		if (!virtio_classes[i]->api_verb)
			continue;
		snprintf(path, sizeof(path), "/api/v1/vm.%s",
			 virtio_classes[i]->api_verb);
		assert_int_equal(api_route_find("PUT", path, &r), 0);
		assert_ptr_equal(r.cls, virtio_classes[i]);
	}
}

static void wrong_methods_and_paths_are_told_apart(void **state)
{
	struct api_route r;

	assert_int_equal(api_route_find("GET", "/api/v1/vm.pause", &r), -EPERM);
	assert_string_equal(r.method, "PUT");
	assert_int_equal(api_route_find("PUT", "/api/v1/vm.pauses", &r),
			 -ENOENT);
	assert_int_equal(api_route_find("PUT", "", &r), -ENOENT);
	assert_int_equal(api_route_by_verb("", &r), -ENOENT);
	assert_int_equal(api_route_by_verb("shutdown", &r), 0);
	assert_string_equal(r.path, "/api/v1/vm.shutdown");
	assert_int_equal(api_route_by_verb("ping", &r), 0);
	assert_string_equal(r.path, "/api/v1/vmm.ping");
	assert_int_equal(api_route_by_verb("metrics", &r), 0);
	assert_string_equal(r.path, "/metrics");
}

/* ---- bodies ---- */

static int parse(const char *path, const char *text, struct err *err)
{
	struct api_route r;
	json_t *body = NULL;
	int result;

	assert_int_equal(api_route_find("PUT", path, &r), 0);
	memset(err, 0, sizeof(*err));
	result = api_body_parse(&r, text, strlen(text), &body, err);
	assert_true(result ? !body : json_is_object(body));
	json_decref(body);
	return result;
}

static void bodies_are_checked_against_the_table(void **state)
{
	static const struct {
		const char *path, *text;
		const char *error; /* NULL: fine */
	} cases[] = {
		{ "vm.pause", "", NULL },
		{ "vm.pause", " \r\n\t", NULL },
		{ "vm.pause", "{}", NULL },
		{ "vm.pause", "{\"now\":1}", "unknown field 'now'" },
		{ "vm.pause", "[]", "not a JSON object" },
		{ "vm.pause", "null", "line 1" },
		{ "vm.create", "", "wants a JSON object" },
		{ "vm.create", "{", "line 1" },
		{ "vm.create", "{} {}", "line 1" },
		{ "vm.create", "{\"a\":1,\"a\":2}", "duplicate" },
		{ "vm.create", "{\"a\":\"\\u0000\"}", "line 1" },
		{ "vm.create", "{\"a\":\"\xff\"}", "line 1" },
		{ "vm.create", "{\"what\":[{\"ever\":1}]}", NULL },
		{ "vm.remove-device", "", "'id' (a string) is missing" },
		{ "vm.remove-device", "{\"id\":1}", "not a string" },
		{ "vm.remove-device", "{\"id\":\"a\",\"x\":1}",
		  "unknown field 'x'; vm.remove-device takes: id" },
		{ "vm.remove-device", "{\"id\":\"a\"}", NULL },
		{ "vm.populate", "{\"range\":1}", "'range': not an object" },
		{ "vm.populate", "{\"range\":{}}", NULL },
	};
	char path[64];
	struct err err;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		snprintf(path, sizeof(path), "/api/v1/%s", cases[i].path);
		if (cases[i].error) {
			assert_int_equal(parse(path, cases[i].text, &err),
					 -EINVAL);
			assert_non_null(strstr(err.text, cases[i].error));
		} else {
			assert_int_equal(parse(path, cases[i].text, &err), 0);
		}
	}
}

static void nesting_is_limited(void **state)
{
	char text[256];
	struct err err;

	for (int depth = 1; depth < 100; depth++) {
		int n = 0;

		n += snprintf(text + n, sizeof(text) - (size_t)n, "{\"a\":");
		for (int i = 1; i < depth; i++)
			text[n++] = '[';
		/* brackets in strings are none */
		n += snprintf(text + n, sizeof(text) - (size_t)n, "%s",
			      "\"[[[{\\\"[[\"");
		for (int i = 1; i < depth; i++)
			text[n++] = ']';
		text[n++] = '}';
		text[n] = '\0';
		assert_int_equal(parse("/api/v1/vm.create", text, &err),
				 depth > API_MAX_DEPTH ? -EINVAL : 0);
	}
}

static void errors_are_json_whatever_they_say(void **state)
{
	char *text = api_body_error("a \"b\" \xff.img");
	json_t *root = json_loads(text, 0, NULL);

	assert_string_equal(json_string_value(json_object_get(root, "error")),
			    "a \"b\" ?.img");
	json_decref(root);
	free(text);
}

/* ---- events ---- */

static json_t *read_line(struct api_listener *l)
{
	char buf[4096];
	size_t n = 0;

	while (n < sizeof(buf) - 1 && api_listener_read(l, buf + n, 1) == 1 &&
	       buf[n] != '\n')
		n++;
	buf[n] = '\0';
	return json_loads(buf, 0, NULL);
}

static void assert_event(struct api_listener *l, const char *source,
			 const char *event)
{
	json_t *line = read_line(l);

	assert_non_null(line);
	assert_string_equal(json_string_value(json_object_get(line, "source")),
			    source);
	assert_string_equal(json_string_value(json_object_get(line, "event")),
			    event);
	assert_true(json_is_integer(
		json_object_get(json_object_get(line, "timestamp"), "nanos")));
	json_decref(line);
}

static void listeners_get_what_happens_after_they_came(void **state)
{
	json_t *properties = json_pack("{s:s}", "id", "_disk0");
	struct api_listener *a, *b;
	struct api_events *hub;
	char c;

	assert_int_equal(api_events_new(&hub), 0);
	assert_int_equal(api_listener_new(hub, &a), 0);
	assert_int_equal(api_listener_state(a), API_LISTENER_EMPTY);
	assert_int_equal(api_listener_read(a, &c, 1), 0);
	api_events_publish(hub, "vm", "booted", NULL);
	assert_int_equal(api_listener_state(a), API_LISTENER_READY);
	assert_int_equal(api_listener_new(hub, &b), 0);
	api_events_publish(hub, "device", "device-removed", properties);
	assert_event(a, "vm", "booted");
	assert_event(a, "device", "device-removed");
	assert_event(b, "device", "device-removed");
	api_events_end(hub);
	api_events_publish(hub, "vm", "late", NULL);
	assert_int_equal(api_listener_read(a, &c, 1), -ENODATA);
	api_listener_free(a);
	api_listener_free(b);
	api_events_free(hub);
	json_decref(properties);
}

static void a_slow_listener_loses_the_rest_and_is_told(void **state)
{
	struct api_listener *l;
	struct api_events *hub;
	size_t lines = 0;
	json_t *line;
	char c;

	assert_int_equal(api_events_new(&hub), 0);
	assert_int_equal(api_listener_new(hub, &l), 0);
	for (int i = 0; i < 10000; i++)
		api_events_publish(hub, "vm", "booted", NULL);
	assert_int_equal(api_listener_state(l), API_LISTENER_LATE);
	while ((line = read_line(l))) {
		const char *event = json_string_value(
			json_object_get(line, "event"));

		if (!strcmp(event, "dropped"))
			break;
		lines++;
		json_decref(line);
	}
	assert_non_null(line);
	assert_true(lines > 1000 && lines < 10000);
	/* Nothing is missing that is not counted. */
	assert_int_equal(json_integer_value(json_object_get(
				 json_object_get(line, "properties"), "lost")),
			 10000 - (long)lines);
	json_decref(line);
	api_events_publish(hub, "vm", "booted", NULL);
	assert_int_equal(api_listener_read(l, &c, 1), -ENODATA);
	api_listener_free(l);
	api_events_free(hub);
}

static void listeners_are_limited(void **state)
{
	struct api_listener *l[API_MAX_LISTENERS + 1];
	struct api_events *hub;

	assert_int_equal(api_events_new(&hub), 0);
	for (int i = 0; i < API_MAX_LISTENERS; i++)
		assert_int_equal(api_listener_new(hub, &l[i]), 0);
	assert_int_equal(api_listener_new(hub, &l[API_MAX_LISTENERS]), -EUSERS);
	api_listener_free(l[3]);
	assert_int_equal(api_listener_new(hub, &l[3]), 0);
	for (int i = 0; i < API_MAX_LISTENERS; i++)
		api_listener_free(l[i]);
	api_events_free(hub);
}

/* ---- metrics ---- */

static char *metrics_of(const char *facts)
{
	json_error_t where;
	json_t *root = json_loads(facts, 0, &where);
	char *text;

	assert_non_null(root);
	text = api_metrics_text(root);
	assert_non_null(text);
	json_decref(root);
	return text;
}

/* How many lines begin so. */
static unsigned int lines_with(const char *text, const char *start)
{
	unsigned int n = 0;

	for (; text; text = strchr(text, '\n')) {
		text += *text == '\n';
		n += !strncmp(text, start, strlen(start));
		if (!*text)
			break;
	}
	return n;
}

static void metrics_carry_the_numbers(void **state)
{
	char *text = metrics_of(
		"{\"state\":\"Running\",\"counters\":{"
		"\"_disk0\":{\"requests\":9007199254740993,\"kicks\":2},"
		"\"we\\\"ird\":{\"requests\":1},\"_vm\":{\"exits-pio\":7,"
		"\"boots\":3}},"
		"\"memory\":{\"size_bytes\":1073741824,\"coverage\":{\"host\":"
		"{\"4k_bytes\":4096,\"2m_bytes\":0,\"1g_bytes\":0},"
		"\"second_stage\":null},\"service\":{\"host_page\":{\"count\":"
		"3,"
		"\"mean_ns\":2000,\"buckets\":[{\"le_ns\":1000,\"count\":1},"
		"{\"le_ns\":4000,\"count\":2}]}},"
		"\"dirty_log\":{\"tracking\":true,\"rounds\":5},"
		"\"kvm\":{\"vm\":{\"pages_4k\":12},\"vcpus\":{}}}}");

	assert_non_null(strstr(text, "quire_vm_state{state=\"Running\"} 1\n"));
	assert_non_null(strstr(text, "quire_vm_state{state=\"Paused\"} 0\n"));
	assert_non_null(strstr(text, "\nquire_vm_boots_total 3\n"));
	/* in full, where a double would have lost the last digit */
	assert_non_null(strstr(text, "quire_device_requests_total{device=\""
				     "_disk0\"} 9007199254740993\n"));
	assert_non_null(strstr(text, "{device=\"we\\\"ird\"} 1\n"));
	assert_non_null(strstr(text, "\nquire_vm_exits_pio_total 7\n"));
	assert_non_null(strstr(text, "quire_memory_covered_bytes{table=\"host"
				     "\",page=\"4k\"} 4096\n"));
	assert_null(strstr(text, "second_stage\",page"));
	assert_non_null(strstr(text, "\nquire_dirty_tracking 1\n"));
	assert_non_null(strstr(text, "\nquire_dirty_rounds_total 5\n"));
	assert_non_null(strstr(text, "quire_kvm_vm{stat=\"pages_4k\"} 12\n"));
	assert_non_null(strstr(text, "_bucket{le=\"1e-06\"} 1\n"));
	assert_non_null(strstr(text, "_bucket{le=\"4e-06\"} 3\n"));
	assert_non_null(strstr(text, "_bucket{le=\"+Inf\"} 3\n"));
	assert_non_null(strstr(text, "host_page_seconds_sum 6e-06\n"));
	free(text);
}

static void each_family_has_one_head(void **state)
{
	char *text = metrics_of(
		"{\"state\":\"Paused\",\"counters\":{\"a\":{\"x\":1,\"y\":2},"
		"\"b\":{\"y\":3,\"x\":4}}}");

	assert_int_equal(lines_with(text, "# TYPE quire_device_x_total "), 1);
	assert_int_equal(lines_with(text, "# HELP quire_device_x_total "), 1);
	assert_int_equal(lines_with(text, "quire_device_x_total{"), 2);
	assert_int_equal(lines_with(text, "# TYPE quire_device_y_total "), 1);
	free(text);
	/* no VM: still something to scrape */
	text = metrics_of("{\"state\":\"Empty\"}");
	assert_int_equal(lines_with(text, "quire_vm_state{"), 5);
	assert_int_equal(lines_with(text, "quire_memory"), 0);
	free(text);
}

/* ---- the socket ---- */

static char folder[] = "/tmp/quire-test-XXXXXX";

static int make_folder(void **state)
{
	return mkdtemp(folder) ? setenv("QUIRE_RUNTIME_DIR", folder, 1) : -1;
}

static int remove_folder(void **state)
{
	return rmdir(folder);
}

static const char *in_folder(const char *name)
{
	static char path[100];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	return path;
}

static void a_socket_is_private_and_goes(void **state)
{
	const char *path = in_folder("s");
	struct unix_listener s;
	struct stat st;
	struct err err;
	int fd;

	assert_int_equal(unix_listener_open_private(&s, path, 1, &err), 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(unix_socket_connect(path, 0, &fd), 0);
	close(fd);
	unix_listener_close(&s);
	assert_int_equal(access(path, F_OK), -1);
	assert_int_equal(unix_socket_connect(path, 0, &fd), -ENOENT);
	/* Who asks over it is told which socket. */
	assert_int_equal(api_client_ask(
				 &(struct api_client_request){
					 .socket = path,
					 .method = "GET",
					 .path = "/",
				 },
				 &(struct api_answer){ .status = 0 }, &err),
			 -ENOENT);
	assert_non_null(strstr(err.text, path));
}

/* ---- the runtime directory ---- */

static void names_are_checked(void **state)
{
	static const char *const good[] = { "a", "Web-1.example_2", "0" };
	static const char *const bad[] = { "",	  ".",	  "..",	      "-a",
					   "a/b", "a b",  "\xc3\xa4", "_x",
					   "a\n", ".lock" };
	char name[70];

	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		assert_true(rundir_name_ok(good[i]));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_false(rundir_name_ok(bad[i]));
	memset(name, 'x', sizeof(name));
	name[63] = '\0';
	assert_true(rundir_name_ok(name));
	name[63] = 'x';
	name[64] = '\0';
	assert_false(rundir_name_ok(name));
}

static size_t count_vms(void)
{
	struct rundir_entry *list = NULL;
	struct err err;
	size_t num = 0;

	assert_int_equal(rundir_list(&list, &num, &err), 0);
	free(list);
	return num;
}

static void a_name_is_had_once(void **state)
{
	struct rundir_claim *b, *a, *other;
	struct rundir_entry *list, e;
	struct err err;
	size_t num;

	assert_int_equal(count_vms(), 0);
	assert_int_equal(rundir_claim(&b, "b", &err), 0);
	assert_int_equal(rundir_claim(&a, "a", &err), 0);
	assert_int_equal(rundir_claim(&other, "b", &err), -EEXIST);
	assert_non_null(strstr(err.text, "'b' is running"));
	assert_int_equal(rundir_claim(&other, "b/c", &err), -EINVAL);
	assert_int_equal(rundir_list(&list, &num, &err), 0);
	assert_int_equal(num, 2);
	assert_string_equal(list[0].name, "a");
	assert_string_equal(list[1].name, "b");
	assert_int_equal(list[0].pid, getpid());
	assert_string_equal(list[1].socket, rundir_claim_socket(b));
	free(list);
	assert_int_equal(rundir_find("b", &e, &err), 0);
	assert_int_equal(rundir_find("c", &e, &err), -ENOENT);
	assert_non_null(strstr(err.text, "a, b"));
	rundir_release(a);
	rundir_release(b);
	assert_int_equal(count_vms(), 0);
	assert_int_equal(rundir_find("b", &e, &err), -ENOENT);
	assert_non_null(strstr(err.text, "none is running"));
	assert_int_equal(rundir_claim(&a, NULL, &err), 0);
	assert_int_equal(strncmp(rundir_claim_name(a), "vm-", 3), 0);
	rundir_release(a);
}

/* A process that claims name, listens, and is killed. */
static void die_with(const char *name)
{
	struct rundir_claim *c;
	struct unix_listener s;
	struct err err;
	int status;
	pid_t pid = fork();

	if (!pid) {
		if (rundir_claim(&c, name, &err) ||
		    unix_listener_open(&s, rundir_claim_socket(c), 1, &err))
			_exit(1);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void stale_entries_are_removed_or_taken_over(void **state)
{
	struct rundir_claim *c;
	struct unix_listener s;
	struct err err;

	die_with("dead");
	assert_int_equal(access(in_folder("dead/api.sock"), F_OK), 0);
	assert_int_equal(count_vms(), 0);
	assert_int_equal(access(in_folder("dead"), F_OK), -1);
	die_with("dead");
	assert_int_equal(rundir_claim(&c, "dead", &err), 0);
	assert_int_equal(
		unix_listener_open(&s, rundir_claim_socket(c), 1, &err), 0);
	assert_int_equal(count_vms(), 1);
	unix_listener_close(&s);
	rundir_release(c);
	/* half made */
	mkdir(in_folder("half"), 0700);
	assert_int_equal(count_vms(), 0);
	assert_int_equal(access(in_folder("half"), F_OK), -1);
}

static void a_socket_elsewhere_is_linked_to(void **state)
{
	struct rundir_claim *c;
	struct unix_listener s;
	struct err err;
	int fd;

	assert_int_equal(rundir_claim(&c, "x", &err), 0);
	assert_int_equal(unix_listener_open(&s, in_folder("other"), 1, &err),
			 0);
	assert_int_equal(rundir_claim_link(c, in_folder("other"), &err), 0);
	assert_int_equal(unix_socket_connect(rundir_claim_socket(c), 0, &fd),
			 0);
	close(fd);
	unix_listener_close(&s);
	rundir_release(c);
	assert_int_equal(access(in_folder("x"), F_OK), -1);
}

static void an_open_folder_is_refused(void **state)
{
	struct rundir_claim *c;
	struct err err;

	assert_int_equal(chmod(folder, 0755), 0);
	assert_int_equal(rundir_claim(&c, "x", &err), -EPERM);
	assert_non_null(strstr(err.text, "0700"));
	assert_int_equal(chmod(folder, 0700), 0);
}

/* Two dozen processes want one name, over and over: one at a time has it. */
static void one_of_many_gets_the_name(void **state)
{
	enum { PROCESSES = 24, ROUNDS = 20 };
	const char *mark = in_folder("mark");
	int status, bad = 0;

	for (int i = 0; i < PROCESSES; i++) {
		if (fork())
			continue;
		for (int n = 0; n < ROUNDS; n++) {
			struct rundir_claim *c;
			struct err err;
			int fd;

			if (rundir_claim(&c, "one", &err))
				continue;
			fd = open(mark, O_CREAT | O_EXCL | O_WRONLY, 0600);
			if (fd < 0)
				_exit(1); /* somebody else has it, too */
			close(fd);
			unlink(mark);
			/* half of them die with it */
			if (n % 2)
				rundir_release(c);
			else
				_exit(0);
		}
		_exit(0);
	}
	for (int i = 0; i < PROCESSES; i++) {
		wait(&status);
		bad += status != 0;
	}
	assert_int_equal(bad, 0);
	assert_int_equal(count_vms(), 0);
}

/* ---- the client's reading ---- */

static ssize_t parse_head(const char *text, struct api_answer *a)
{
	*a = (struct api_answer){ .status = 0 };
	return api_client_parse_head(text, strlen(text), a);
}

static void heads_are_read_strictly(void **state)
{
	static const char good[] = "HTTP/1.1 200 OK\r\nA: b\r\nCONTENT-Type: "
				   "application/json; x\r\n\r\n";
	struct api_answer a;
	char text[128];

	snprintf(text, sizeof(text), "%s{}", good);
	assert_int_equal(parse_head(text, &a), sizeof(good) - 1);
	assert_int_equal(a.status, 200);
	assert_true(a.is_json);
	assert_int_equal(parse_head("HTTP/1.0 404 No\n\n", &a), 17);
	assert_int_equal(a.status, 404);
	assert_false(a.is_json);
	assert_int_equal(parse_head("HTTP/1.1 200 OK\r\nA: b\r\n", &a), 0);
	assert_int_equal(parse_head("", &a), 0);
	assert_int_equal(parse_head("HTTP/1.1", &a), 0);
	assert_int_equal(parse_head("SSH-2.0-OpenSSH\r\n", &a), -EPROTO);
	assert_int_equal(parse_head("HTTP/1.1 2x0 OK\r\n\r\n", &a), -EPROTO);
	assert_int_equal(parse_head("HTTP/1.1 099 OK\r\n\r\n", &a), -EPROTO);
	assert_int_equal(parse_head("\r\n\r\n", &a), -EPROTO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_route_is_whole_and_found),
		cmocka_unit_test(each_class_with_a_verb_has_a_route),
		cmocka_unit_test(wrong_methods_and_paths_are_told_apart),
		cmocka_unit_test(bodies_are_checked_against_the_table),
		cmocka_unit_test(nesting_is_limited),
		cmocka_unit_test(errors_are_json_whatever_they_say),
		cmocka_unit_test(listeners_get_what_happens_after_they_came),
		cmocka_unit_test(a_slow_listener_loses_the_rest_and_is_told),
		cmocka_unit_test(listeners_are_limited),
		cmocka_unit_test(metrics_carry_the_numbers),
		cmocka_unit_test(each_family_has_one_head),
		cmocka_unit_test(a_socket_is_private_and_goes),
		cmocka_unit_test(names_are_checked),
		cmocka_unit_test(a_name_is_had_once),
		cmocka_unit_test(stale_entries_are_removed_or_taken_over),
		cmocka_unit_test(a_socket_elsewhere_is_linked_to),
		cmocka_unit_test(an_open_folder_is_refused),
		cmocka_unit_test(one_of_many_gets_the_name),
		cmocka_unit_test(heads_are_read_strictly),
	};

	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
