/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The API's server with a vmm that has no machine: what it answers, and that no
 * client holds up another, the VM or the end.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/client.h"
#include "api/events.h"
#include "api/server.h"
#include "base/unix_socket.h"
#include "fake_vmm.h"

static char folder[] = "/tmp/quire-test-XXXXXX";
static char path[100];

struct fixture {
	struct vmm vmm;
	struct api_server *server;
};

static int start(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct err err = ERR_INIT;
	int r;

	if (!f)
		return -1;
	f->vmm = (struct vmm)FAKE_VMM_INIT;
	*state = f;
	r = api_server_open(&f->server, &f->vmm, path, &err);
	return r ? r : api_server_serve(f->server, &err);
}

static int stop(void **state)
{
	struct fixture *f = *state;

	api_server_stop(f->server);
	api_server_free(f->server);
	free(f);
	return access(path, F_OK) ? 0 : -1;
}

static int make_folder(void **state)
{
	if (!mkdtemp(folder))
		return -1;
	snprintf(path, sizeof(path), "%s/s", folder);
	return 0;
}

static int remove_folder(void **state)
{
	return rmdir(folder);
}

/* ---- clients ---- */

static unsigned int ask(const char *method, const char *verb, const char *body,
			char *text, size_t size)
{
	char url[64];
	struct api_client_request q = {
		.socket = path,
		.method = method,
		.path = url,
		.body = body,
		.timeout_s = 60,
	};
	struct err err = ERR_INIT;
	struct api_answer a;

	snprintf(url, sizeof(url), "%s%s", *verb == '/' ? "" : "/api/v1/",
		 verb);
	assert_int_equal(api_client_ask(&q, &a, &err), 0);
	if (text)
		snprintf(text, size, "%s", a.text ? a.text : "");
	free(a.text);
	return a.status;
}

static int dial(void)
{
	int fd;

	assert_int_equal(unix_socket_connect(path, 0, &fd), 0);
	return fd;
}

static void say(int fd, const char *text)
{
	assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL),
			 strlen(text));
}

/* Read until needle has come; the rest of what came is dropped. */
static void expect(int fd, const char *needle)
{
	char buf[8192];
	size_t len = 0;

	do {
		ssize_t n = recv(fd, buf + len, sizeof(buf) - 1 - len, 0);

		assert_true(n > 0);
		len += (size_t)n;
		buf[len] = '\0';
	} while (!strstr(buf, needle));
}

static int listen_for_events(void)
{
	int fd = dial();

	say(fd, "GET /api/v1/vm.events HTTP/1.1\r\nHost: x\r\n\r\n");
	expect(fd, "\r\n\r\n");
	return fd;
}

static void publish(struct fixture *f, const char *event)
{
	f->vmm.listen(f->vmm.listen_ctx, "vm", event, NULL);
}

/* ---- tests ---- */

static void verbs_reach_the_vmm(void **state)
{
	struct fixture *f = *state;
	char text[512];

	assert_int_equal(ask("GET", "vmm.ping", NULL, text, sizeof(text)), 200);
	assert_non_null(strstr(text, "\"version\""));
	assert_int_equal(ask("GET", "vm.info", NULL, text, sizeof(text)), 404);
	assert_non_null(strstr(text, "{\"error\":"));
	assert_int_equal(ask("PUT", "vm.create", "{\"a\":1}", NULL, 0), 204);
	assert_string_equal(f->vmm.last, "vmm_create");
	assert_int_equal(ask("PUT", "vm.pause", NULL, text, sizeof(text)), 409);
	assert_non_null(strstr(text, "not running"));
	assert_int_equal(ask("PUT", "vm.boot", NULL, NULL, 0), 204);
	assert_int_equal(ask("GET", "vm.info", NULL, text, sizeof(text)), 200);
	assert_non_null(strstr(text, "Created"));
	assert_int_equal(ask("PUT", "vm.remove-device", "{\"id\":\"no\"}", text,
			     sizeof(text)),
			 404);
	assert_int_equal(ask("GET", "/metrics", NULL, text, sizeof(text)), 200);
	assert_non_null(strstr(text, "# TYPE quire_info gauge"));
	assert_int_equal(f->vmm.verbs, 2);
}

static void nonsense_is_refused(void **state)
{
	struct fixture *f = *state;
	char text[512];

	assert_int_equal(ask("POST", "vm.pause", NULL, text, sizeof(text)),
			 405);
	assert_int_equal(ask("PUT", "vm.fly", NULL, NULL, 0), 404);
	assert_int_equal(ask("GET", "/", NULL, NULL, 0), 404);
	assert_int_equal(ask("PUT", "vm.boot?force=1", NULL, NULL, 0), 400);
	assert_int_equal(ask("PUT", "vm.boot", "{\"force\":1}", NULL, 0), 400);
	assert_int_equal(ask("PUT", "vm.create", "{", NULL, 0), 400);
	assert_int_equal(f->vmm.verbs, 0);
}

static void bodies_have_a_limit(void **state)
{
	size_t sizes[] = { 1 << 20, (1 << 20) + 1, 10 << 20, 15 << 20 };
	unsigned int status[] = { 204, 413, 413, 413 };

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		char *body = malloc(sizes[i] + 1);

		memset(body, ' ', sizes[i]);
		memcpy(body, "{}", 2);
		body[sizes[i]] = '\0';
		assert_int_equal(ask("PUT", "vm.create", body, NULL, 0),
				 status[i]);
		free(body);
	}
}

/* One asks a VM that does not answer; the other gets its answers all the same.
 */
static void a_stuck_verb_holds_up_no_other_client(void **state)
{
	struct fixture *f = *state;
	int fd = dial();

	fake_vmm_hold(&f->vmm, true);
	say(fd, "PUT /api/v1/vm.boot HTTP/1.1\r\nHost: x\r\n\r\n");
	fake_vmm_wait_for_calls(&f->vmm, 1);
	for (int i = 0; i < 100; i++)
		assert_int_equal(ask("GET", "vmm.ping", NULL, NULL, 0), 200);
	fake_vmm_hold(&f->vmm, false);
	expect(fd, "204 No Content");
	/* and the connection goes on */
	say(fd, "GET /api/v1/vmm.ping HTTP/1.1\r\nHost: x\r\n\r\n");
	expect(fd, "\"pid\"");
	close(fd);
}

/* A client that asks and goes: the verb is done, its answer thrown away. */
static void a_client_may_leave(void **state)
{
	struct fixture *f = *state;

	fake_vmm_hold(&f->vmm, true);
	for (int i = 0; i < 20; i++) {
		int fd = dial();

		say(fd, "PUT /api/v1/vm.boot HTTP/1.1\r\nHost: x\r\n\r\n");
		if (!i)
			fake_vmm_wait_for_calls(&f->vmm, 1);
		close(fd);
	}
	fake_vmm_hold(&f->vmm, false);
	for (int i = 0; i < 10; i++)
		assert_int_equal(ask("PUT", "vm.boot", NULL, NULL, 0), 204);
	assert_true(f->vmm.verbs >= 11);
}

static void listeners_get_events(void **state)
{
	struct fixture *f = *state;
	int a = listen_for_events(), b = listen_for_events();

	publish(f, "booted");
	expect(a, "\"booted\"");
	expect(b, "\"booted\"");
	publish(f, "paused");
	expect(b, "\"paused\"");
	expect(a, "\"paused\"");
	close(a);
	publish(f, "resumed");
	expect(b, "\"resumed\"");
	close(b);
}

/* The server sees in its own time that somebody left, and there is room. */
static int listen_once_there_is_room(void)
{
	char text[256];
	ssize_t n;
	int fd;

	for (;;) {
		fd = dial();
		say(fd, "GET /api/v1/vm.events HTTP/1.1\r\nHost: x\r\n\r\n");
		n = recv(fd, text, sizeof(text) - 1, 0);
		assert_true(n > 0);
		text[n] = '\0';
		if (!strstr(text, " 429 "))
			break;
		close(fd);
	}
	assert_non_null(strstr(text, " 200 "));
	return fd;
}

/* Hanging up is seen without an event: their places are free again. */
static void listeners_that_leave_make_room(void **state)
{
	int fds[API_MAX_LISTENERS];
	char text[256];

	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < API_MAX_LISTENERS; i++)
			fds[i] = listen_once_there_is_room();
		assert_int_equal(
			ask("GET", "vm.events", NULL, text, sizeof(text)), 429);
		for (int i = 0; i < API_MAX_LISTENERS; i++)
			close(fds[i]);
	}
}

/* Publishing never waits, however little a listener reads. */
static void a_listener_that_does_not_read_is_dropped(void **state)
{
	struct fixture *f = *state;
	int fd = listen_for_events();

	for (int i = 0; i < 20000; i++)
		publish(f, "booted");
	expect(fd, "booted");
	/* all there is, then the line, then the end of the answer */
	for (;;) {
		static char buf[1 << 16];
		ssize_t n = recv(fd, buf, sizeof(buf) - 1, 0);

		assert_true(n > 0);
		buf[n] = '\0';
		if (strstr(buf, "\"dropped\""))
			break;
	}
	close(fd);
}

/* The end comes while a verb waits, a listener listens, a client dawdles. */
static void the_end_waits_for_nobody(void **state)
{
	struct fixture *f = *state;
	int verb = dial(), listener = listen_for_events(), slow = dial();
	char buf[4096];

	say(slow, "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Le");
	fake_vmm_hold(&f->vmm, true);
	say(verb, "PUT /api/v1/vm.boot HTTP/1.1\r\nHost: x\r\n\r\n");
	fake_vmm_wait_for_calls(&f->vmm, 1);
	publish(f, "ended");
	pthread_mutex_lock(&f->vmm.lock);
	f->vmm.ending = true;
	pthread_cond_broadcast(&f->vmm.changed);
	pthread_mutex_unlock(&f->vmm.lock);
	api_server_stop(f->server);
	expect(verb, "503 ");
	expect(listener, "\"ended\"");
	while (recv(listener, buf, sizeof(buf), 0) > 0)
		;
	assert_true(recv(slow, buf, sizeof(buf), 0) <= 0);
	close(verb);
	close(listener);
	close(slow);
	/* events between the stop and the end of the vmm go nowhere */
	publish(f, "late");
}

#define SERVED(test) cmocka_unit_test_setup_teardown(test, start, stop)

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(verbs_reach_the_vmm),
		SERVED(nonsense_is_refused),
		SERVED(bodies_have_a_limit),
		SERVED(a_stuck_verb_holds_up_no_other_client),
		SERVED(a_client_may_leave),
		SERVED(listeners_get_events),
		SERVED(listeners_that_leave_make_room),
		SERVED(a_listener_that_does_not_read_is_dropped),
		SERVED(the_end_waits_for_nobody),
	};

	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
