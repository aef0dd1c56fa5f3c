/* SPDX-License-Identifier: Apache-2.0 */
/* vm/config_json.c: the JSON form, both ways, and what is refused. */
#include "cmocka_all.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "vm/config_json.h"

static int read_text(struct vm_config *cfg, const char *text, struct err *err)
{
	json_t *doc = vm_config_parse_text(text, strlen(text), err);
	int r;

	if (!doc)
		return -EINVAL;
	r = vm_config_from_json(cfg, doc, NULL, err);
	json_decref(doc);
	return r;
}

static void test_fields(void **state)
{
	struct err err = ERR_INIT;
	struct vm_config cfg;

	vm_config_init(&cfg);
	assert_int_equal(
		read_text(&cfg,
			  "{\"name\": \"web-1\","
			  " \"payload\": {\"kernel\": \"/k\","
			  "  \"initramfs\": null, \"cmdline\": \"\"},"
			  " \"cpus\": {\"boot_vcpus\": 4, \"max_vcpus\": 4,"
			  "  \"threads\": 2, \"dedicated\": true},"
			  " \"memory\": {\"size\": 2147483648,"
			  "  \"hugepages\": true, \"hugepage_size\": \"1G\","
			  "  \"shared\": true, \"populate\": \"full\","
			  "  \"populate_threads\": 3, \"numa\": \"bind:0+2\","
			  "  \"background_rate\": \"64M\","
			  "  \"dirty_log\": \"ring\", \"dirty_ring\": 1024},"
			  " \"serial\": {\"mode\": \"Socket\","
			  "  \"file\": null, \"socket\": \"/s=1,2\"},"
			  " \"disks\": [{\"path\": \"/a\"},"
			  "  {\"path\": \"/b\", \"readonly\": true,"
			  "   \"num_queues\": 2, \"id\": \"second\"}],"
			  " \"rng\": {\"src\": \"/dev/hwrng\"},"
			  " \"irqchip\": \"split\", \"on_reboot\": \"stop\","
			  " \"on_crash\": \"restart\", \"on_panic\": \"stop\","
			  " \"watchdog\": true, \"shutdown_timeout\": 5, "
			  "\"debug_exit\": true}",
			  &err),
		0);
	assert_string_equal(cfg.name, "web-1");
	assert_string_equal(cfg.kernel, "/k");
	assert_null(cfg.initramfs);
	assert_string_equal(cfg.cmdline, "");
	assert_int_equal(cfg.num_cpus, 4);
	assert_int_equal(cfg.threads_per_core, 2);
	assert_true(cfg.dedicated_cpus);
	assert_int_equal(cfg.memory_bytes, 2 * GIB);
	assert_int_equal(cfg.page, RAM_PAGE_1G);
	assert_true(cfg.shared);
	assert_int_equal(cfg.populate, POPULATE_FULL);
	assert_int_equal(cfg.populate_threads, 3);
	assert_int_equal(cfg.numa.policy, NUMA_BIND);
	assert_int_equal(cfg.background_rate, 64 * MIB);
	assert_int_equal(cfg.dirty_ring, 1024);
	assert_int_equal(cfg.serial.kind, CHARDEV_SOCKET);
	assert_string_equal(cfg.serial.path, "/s=1,2");
	assert_int_equal(cfg.irqchip, IRQCHIP_SPLIT);
	assert_int_equal(cfg.on_reboot, VM_ACTION_STOP);
	assert_int_equal(cfg.on_crash, VM_ACTION_RESTART);
	assert_int_equal(cfg.on_panic, VM_PANIC_STOP);
	assert_true(cfg.watchdog);
	assert_int_equal(cfg.shutdown_timeout_s, 5);
	assert_true(cfg.debug_exit);
	assert_int_equal(cfg.num_devices, 3);
	assert_string_equal(cfg.devices[0].id, "_disk0");
	assert_string_equal(cfg.devices[1].id, "second");
	assert_string_equal(cfg.devices[2].cls->name, "rng");
	assert_int_equal(vm_config_check(&cfg, &err), 0);
	vm_config_fini(&cfg);
}

static void test_refused(void **state)
{
	static const struct {
		const char *text, *needle;
	} cases[] = {
		{ "", "line 1" },
		{ "[]", "not a JSON object" },
		{ "\"x\"", "not JSON" },
		{ "{\"payload\": {\"kernel\": \"k\"}", "line 1" },
		{ "{} {}", "not JSON" },
		{ "{\"cpus\": {}, \"cpus\": {}}", "duplicate" },
		{ "{\"memory\": {\"page\": \"4k\", \"page\": \"4k\"}}",
		  "duplicate" },
		{ "{\"colour\": 1}", "colour: unknown field" },
		{ "{\"co\\nl\\u001b\": 1}", "co?l?: unknown field" },
		{ "{\"kernel\": \"k\"}", "kernel: unknown field" },
		{ "{\"payload\": \"k\"}", "payload: not an object" },
		{ "{\"payload\": {\"firmware\": \"f\"}}",
		  "payload.firmware: unknown field" },
		{ "{\"payload\": {\"kernel\": [\"k\"]}}",
		  "payload.kernel: neither a string" },
		{ "{\"payload\": {\"kernel\": \"a\\u0000b\"}}", "not JSON" },
		{ "{\"cpus\": 4}", "cpus: not an object" },
		{ "{\"cpus\": {\"boot_vcpus\": 0}}",
		  "cpus.boot_vcpus: not a number from 1" },
		{ "{\"cpus\": {\"boot_vcpus\": 1.5}}",
		  "cpus.boot_vcpus: neither a string" },
		{ "{\"cpus\": {\"boot\": 1, \"boot_vcpus\": 1}}",
		  "given twice, under two names" },
		{ "{\"memory\": {\"page\": \"3k\"}}",
		  "memory.page: not one of 4k" },
		{ "{\"memory\": {\"size\": -1}}", "memory.size: not a size" },
		{ "{\"memory\": {\"size\": \"\"}}", "memory.size: empty" },
		{ "{\"memory\": {\"shared\": \"maybe\"}}",
		  "memory.shared: neither on nor off" },
		{ "{\"memory\": {\"populate-threads\": 1}}",
		  "memory.populate-threads: unknown field" },
		{ "{\"memory\": {\"page\": \"thp\", \"hugepages\": true}}",
		  "memory: page=thp" },
		{ "{\"serial\": \"tty\"}", "serial: not an object" },
		{ "{\"serial\": {\"mode\": \"Pigeon\"}}", "pigeon" },
		{ "{\"serial\": {\"mode\": \"File\"}}", "serial: " },
		{ "{\"serial\": {\"mode\": \"Tty\", \"file\": \"f\"}}",
		  "serial: file wants that mode" },
		{ "{\"serial\": {\"mode\": 3}}", "mode is not a string" },
		{ "{\"serial\": {\"speed\": 9600}}", "unknown field" },
		{ "{\"disks\": {\"path\": \"a\"}}", "disks: not an array" },
		{ "{\"disks\": [\"a\"]}", "disks[0]: not an object" },
		{ "{\"disks\": [{\"path\": \"a\"}, {}]}",
		  "disks[1]: path=FILE is missing" },
		{ "{\"disks\": [{\"path\": \"a\", \"colour\": 1}]}",
		  "disks[0].colour: unknown field" },
		{ "{\"disks\": [{\"path\": {\"a\": 1}}]}",
		  "disks[0].path: neither a string" },
		{ "{\"disks\": [{\"path\": \"a\", \"queue_size\": 17}]}",
		  "disks[0].queue_size: not a power of two" },
		{ "{\"disks\": [{\"path\": \"a\", \"id\": \"x\"},"
		  " {\"path\": \"b\", \"id\": \"x\"}]}",
		  "the id 'x' already" },
		{ "{\"rng\": [{}]}", "rng: not an object" },
		{ "{\"on_crash\": \"cry\"}", "on_crash: not one of restart" },
		{ "{\"on-crash\": \"stop\"}", "on-crash: unknown field" },
		{ "{\"name\": \"../x\"}", "name: not a name" },
		{ "{\"on_panic\": \"cry\"}", "on_panic: not one of continue" },
		{ "{\"watchdog\": \"maybe\"}", "watchdog: neither on nor off" },
		{ "{\"debug_exit\": 2}", "debug_exit: neither on nor off" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct err err = ERR_INIT;
		struct vm_config cfg;

		vm_config_init(&cfg);
		assert_int_not_equal(read_text(&cfg, cases[i].text, &err), 0);
		if (!strstr(err.text, cases[i].needle))
			fail_msg("%s: %s", cases[i].text, err.text);
		vm_config_fini(&cfg);
	}
}

static void test_size_and_depth(void **state)
{
	static char text[VM_CONFIG_MAX_BYTES + 2];
	struct err err = ERR_INIT;
	json_t *doc;

	memset(text, ' ', sizeof(text));
	text[0] = '{';
	text[VM_CONFIG_MAX_BYTES - 1] = '}';
	doc = vm_config_parse_text(text, VM_CONFIG_MAX_BYTES, &err);
	assert_non_null(doc);
	json_decref(doc);
	assert_null(vm_config_parse_text(text, VM_CONFIG_MAX_BYTES + 1, &err));
	assert_int_equal(err.code, EFBIG);

	memset(text, '[', VM_CONFIG_MAX_BYTES);
	assert_null(vm_config_parse_text(text, VM_CONFIG_MAX_BYTES, &err));
	assert_non_null(strstr(err.text, "16 levels deep"));
	/* brackets in strings are none */
	snprintf(text, sizeof(text), "[\"\\\"[[[[[[[[[[[[[[[[[[[[[[\"]");
	doc = vm_config_parse_text(text, strlen(text), &err);
	assert_non_null(doc);
	json_decref(doc);
}

static const struct virtio_class *class_named(const char *name)
{
	size_t i = 0;

	while (strcmp(virtio_classes[i]->name, name) != 0)
		i++;
	return virtio_classes[i];
}

/* Options as on a command line -> JSON -> the same configuration. */
static void test_round_trip(void **state)
{
	static const struct {
		const char *option, *text;
	} options[] = {
		{ "name", "vm.1" },
		{ "kernel", "/boot/vmlinuz" },
		{ "initramfs", "/boot/initrd" },
		{ "cmdline", "console=ttyS0 \"quoted\" a,b=c" },
		{ "cpus", "boot=6,threads=2" },
		{ "memory", "size=4G,hugepages=on,populate=background,"
			    "repair=off,coalesce=on,background-rate=0,"
			    "numa=split:0-1+3,dirty-log=ring,dirty-ring=256,"
			    "populate-threads=7,stage2=ioctl,shared=on" },
		{ "serial", "file=/tmp/console" },
		{ "irqchip", "split" },
		{ "on-reboot", "stop" },
		{ "on-crash", "restart" },
		{ "on-panic", "stop" },
		{ "watchdog", NULL },
		{ "shutdown-timeout", "0" },
		{ "debug-exit", NULL },
	};
	struct err err = ERR_INIT;
	struct vm_config cfg, again;
	json_t *doc, *doc2, *disk;
	size_t set = 0;

	vm_config_init(&cfg);
	vm_config_init(&again);
	for (size_t i = 0; i < vm_num_options; i++)
		for (size_t j = 0; j < ARRAY_SIZE(options); j++)
			if (!strcmp(vm_options[i].name, options[j].option)) {
				assert_int_equal(
					vm_option_set(&cfg, &vm_options[i],
						      options[j].text, &err),
					0);
				set++;
			}
	/* an option that is added has to be added here */
	assert_int_equal(set, vm_num_options);
	/* devices in an order that is not the registry's */
	assert_int_equal(vm_config_add_device(&cfg, class_named("rng"),
					      "src=/dev/hwrng", &err),
			 0);
	assert_int_equal(
		vm_config_add_device(&cfg, class_named("blk"),
				     "/1,readonly=on,num_queues=3,serial=123",
				     &err),
		0);
	assert_int_equal(vm_config_add_device(&cfg, class_named("blk"),
					      "path=on,id=root", &err),
			 0);

	doc = vm_config_to_json(&cfg);
	disk = json_array_get(json_object_get(doc, "disks"), 0);
	/* typed, as programs expect it; text stays text */
	assert_true(json_is_true(json_object_get(disk, "readonly")));
	assert_int_equal(
		json_integer_value(json_object_get(disk, "num_queues")), 3);
	assert_string_equal(json_string_value(json_object_get(disk, "serial")),
			    "123");
	disk = json_array_get(json_object_get(doc, "disks"), 1);
	assert_string_equal(json_string_value(json_object_get(disk, "path")),
			    "on");

	assert_int_equal(vm_config_from_json(&again, doc, NULL, &err), 0);
	assert_string_equal(again.cmdline, cfg.cmdline);
	assert_int_equal(again.page, RAM_PAGE_2M);
	assert_int_equal(again.background_rate, 0);
	assert_memory_equal(&again.numa, &cfg.numa, sizeof(cfg.numa));
	assert_int_equal(again.num_devices, 3);
	for (unsigned int i = 0; i < 3; i++) {
		assert_ptr_equal(again.devices[i].cls, cfg.devices[i].cls);
		assert_string_equal(again.devices[i].id, cfg.devices[i].id);
	}
	doc2 = vm_config_to_json(&again);
	assert_true(json_equal(doc, doc2));
	json_decref(doc);
	json_decref(doc2);
	vm_config_fini(&cfg);
	vm_config_fini(&again);
}

static void test_defaults_round_trip(void **state)
{
	struct err err = ERR_INIT;
	struct vm_config cfg, again;
	json_t *doc, *doc2;

	vm_config_init(&cfg);
	vm_config_init(&again);
	doc = vm_config_to_json(&cfg);
	assert_int_equal(vm_config_from_json(&again, doc, NULL, &err), 0);
	doc2 = vm_config_to_json(&again);
	assert_true(json_equal(doc, doc2));
	json_decref(doc);
	json_decref(doc2);
	vm_config_fini(&cfg);
	vm_config_fini(&again);
}

/* A file name is any bytes; JSON that is none would be worse than a '?'. */
static void test_not_utf8(void **state)
{
	struct err err = ERR_INIT;
	struct vm_config cfg;
	json_t *doc;
	char *text;

	vm_config_init(&cfg);
	cfg.kernel = strdup("/boot/\xff");
	assert_int_equal(vm_config_add_device(&cfg, class_named("blk"), "/\xfe",
					      &err),
			 0);
	doc = vm_config_to_json(&cfg);
	text = json_dumps(doc, 0);
	assert_non_null(strstr(text, "/boot/?"));
	free(text);
	json_decref(doc);
	vm_config_fini(&cfg);
}

struct others {
	char field[32], text[32];
};

static int set_other(void *ctx, const char *field, const char *text,
		     struct err *err)
{
	struct others *o = ctx;

	if (strcmp(field, "verbose") != 0)
		return -ENOENT;
	snprintf(o->field, sizeof(o->field), "%s", field);
	snprintf(o->text, sizeof(o->text), "%s", text);
	return 0;
}

static void load(const char *content, struct vm_config *cfg, int want,
		 struct others *o, struct err *err)
{
	char path[] = "/tmp/quire-test-config-XXXXXX";
	const struct vm_config_others others = { set_other, o };
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, content, strlen(content)),
			 (int)strlen(content));
	close(fd);
	assert_int_equal(vm_config_load(cfg, path, &others, err), want);
	unlink(path);
}

/* A file, and options after it: they win, and devices are added. */
static void test_file(void **state)
{
	struct err err = ERR_INIT;
	struct others o = { .field = "" };
	struct vm_config cfg;

	vm_config_init(&cfg);
	load("{\"verbose\": true, \"rng\": {\"src\": \"/dev/a\"},"
	     " \"disks\": [{\"path\": \"a\"}],"
	     " \"memory\": {\"size\": \"1G\", \"page\": \"4k\"}}",
	     &cfg, 0, &o, &err);
	assert_string_equal(o.text, "on");
	assert_int_equal(vm_config_set_memory(&cfg, "size=2G", &err), 0);
	assert_int_equal(cfg.memory_bytes, 2 * GIB);
	assert_int_equal(cfg.page, RAM_PAGE_4K);
	assert_int_equal(
		vm_config_add_device(&cfg, class_named("blk"), "b", &err), 0);
	/* the one rng there can be is replaced, once */
	assert_int_equal(vm_config_add_device(&cfg, class_named("rng"),
					      "kernel", &err),
			 0);
	assert_int_equal(cfg.num_devices, 3);
	assert_string_equal(json_string_value(json_object_get(
				    cfg.devices[2].fields, "src")),
			    "kernel");
	assert_int_equal(vm_config_add_device(&cfg, class_named("rng"),
					      "kernel", &err),
			 -EINVAL);
	vm_config_fini(&cfg);

	vm_config_init(&cfg);
	load("{\"loud\": true}", &cfg, -EINVAL, &o, &err);
	assert_non_null(strstr(err.text, "loud: unknown field"));
	assert_int_equal(vm_config_load(&cfg, "/nonexistent/x", NULL, &err),
			 -ENOENT);
	assert_int_equal(vm_config_load(&cfg, "/", NULL, &err), -EISDIR);
	assert_int_equal(vm_config_load(&cfg, "/dev/zero", NULL, &err),
			 -EINVAL);
	assert_non_null(strstr(err.text, "more than"));
	vm_config_fini(&cfg);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fields),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_size_and_depth),
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_defaults_round_trip),
		cmocka_unit_test(test_not_utf8),
		cmocka_unit_test(test_file),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
