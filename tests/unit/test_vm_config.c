/* SPDX-License-Identifier: Apache-2.0 */
/* vm/config.c: options into a configuration, and what is refused. */
#include "cmocka_all.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "vm/config.h"

/* A class of the test's own: one key, and a check that wants it. */
struct toy_config {
	char name[16];
	int finis;
};

static int toy_inits, toy_finis;

static int toy_set_name(void *obj, const char *value, struct err *err)
{
	struct toy_config *toy = obj;

	snprintf(toy->name, sizeof(toy->name), "%s", value);
	return 0;
}

static int toy_check(const void *config, struct err *err)
{
	const struct toy_config *toy = config;

	return toy->name[0] ? 0 : err_set(err, EINVAL, "name= is missing");
}

static void toy_defaults(void *config)
{
	toy_inits++;
}

static void toy_fini(void *config)
{
	toy_finis++;
}

static const struct kvlist_key toy_keys[] = { { "name", toy_set_name } };

static const struct virtio_class toy_class = {
	.name = "toy",
	.option = "--toy",
	.first_key = "name",
	.keys = toy_keys,
	.num_keys = 1,
	.single = true,
	.config_bytes = sizeof(struct toy_config),
	.config_defaults = toy_defaults,
	.config_check = toy_check,
	.config_fini = toy_fini,
};

static bool toy_wants_terminal(const void *config)
{
	return strcmp(((const struct toy_config *)config)->name, "tty") == 0;
}

static const struct virtio_class toy_console_class = {
	.name = "toyconsole",
	.option = "--toy-console",
	.first_key = "name",
	.keys = toy_keys,
	.num_keys = 1,
	.config_bytes = sizeof(struct toy_config),
	.wants_terminal = toy_wants_terminal,
};

/* Options as they come, then the check. */
static int check_terminals(const char *const *consoles, const char *serial,
			   enum chardev_kind *ret_serial, struct err *err)
{
	struct vm_config cfg;
	int r = 0;

	vm_config_init(&cfg);
	cfg.kernel = strdup("kernel");
	if (serial)
		r = chardev_config_parse(&cfg.serial, "--serial", serial, err);
	for (; *consoles && !r; consoles++)
		r = vm_config_add_device(&cfg, &toy_console_class, *consoles,
					 err);
	if (!r)
		r = vm_config_check(&cfg, err);
	*ret_serial = cfg.serial.kind;
	vm_config_fini(&cfg);
	return r;
}

static void test_one_terminal(void **state)
{
	static const char *const none[] = { NULL },
				 *const null[] = { "null", NULL },
				 *const tty[] = { "tty", NULL },
				 *const two[] = { "tty", "tty", NULL };
	struct err err = ERR_INIT;
	enum chardev_kind serial;

	assert_int_equal(check_terminals(none, NULL, &serial, &err), 0);
	assert_int_equal(serial, CHARDEV_TTY);
	assert_int_equal(check_terminals(null, NULL, &serial, &err), 0);
	assert_int_equal(serial, CHARDEV_TTY);
	/* The default gives way, what was said does not. */
	assert_int_equal(check_terminals(tty, NULL, &serial, &err), 0);
	assert_int_equal(serial, CHARDEV_NULL);
	assert_int_equal(check_terminals(tty, "file=x", &serial, &err), 0);
	assert_int_equal(serial, CHARDEV_FILE);
	assert_int_equal(check_terminals(tty, "tty", &serial, &err), -EINVAL);
	assert_non_null(strstr(err.text, "--serial and --toy-console both"));
	assert_int_equal(check_terminals(two, "null", &serial, &err), -EINVAL);
	assert_int_equal(check_terminals(null, "tty", &serial, &err), 0);
}

static void test_defaults(void **state)
{
	struct err err = ERR_INIT;
	struct vm_config cfg;

	vm_config_init(&cfg);
	assert_int_equal(cfg.num_cpus, 1);
	assert_int_equal(cfg.memory_bytes, 512 * MIB);
	assert_int_equal(cfg.page, RAM_PAGE_THP);
	/* no kernel: not runnable, and the message says what to do */
	assert_int_equal(vm_config_check(&cfg, &err), -EINVAL);
	assert_non_null(strstr(err.text, "--kernel"));
	vm_config_fini(&cfg);
}

static void test_memory(void **state)
{
	static const struct {
		const char *text, *needle; /* NULL: accepted */
	} cases[] = {
		{ "64M", NULL },
		{ "size=6G,page=4k,populate=host", NULL },
		{ "size=2G,shared=on,page=2m", NULL },
		{ "1G,numa=bind:0,populate=host", NULL },
		{ "1G,numa=bind:", "'' names no nodes" },
		{ "1G,numa=random", "not one of none, bind" },
		{ "size=63M", "not between 64M and 8T" },
		{ "size=9T", "not between" },
		{ "size=65M", "not a multiple of 2M" },
		{ "size=1G,page=16k", "not one of 4k, thp, 2m, 1g" },
		{ "size=1G,populate=full,stage2=stub", NULL },
		{ "size=1G,populate=background,background-rate=0,repair=off",
		  NULL },
		{ "size=1G,populate=all",
		  "not one of none, host, full, background" },
		{ "size=1G,stage2=tdp", "not one of auto, ioctl, stub, none" },
		{ "size=1G,populate-threads=0", "populate-threads" },
		{ "size=1G,coalesce=maybe", "coalesce" },
		{ "size=1G,dirty-log=bitmap", NULL },
		{ "size=1G,dirty-log=ring,dirty-ring=1024", NULL },
		{ "size=1G,dirty-log=pml", "not one of auto, bitmap, ring" },
		{ "size=1G,dirty-ring=1000", "not a power of two" },
		{ "size=1G,dirty-ring=131072", "dirty-ring" },
		{ "size=1G,hugepages=on,hugepage_size=1G", NULL },
		{ "size=1G,page=1g,hugepages=on", NULL },
		{ "size=1G,page=thp,hugepages=on", "contradict each other" },
		{ "size=1G,page=2m,hugepages=off", "contradict each other" },
		{ "size=1G,page=2m,hugepage_size=1G", "contradict each other" },
		{ "size=1G,hugepage_size=1G,hugepages=off",
		  "wants hugepages on" },
		{ "size=1G,hugepage_size=4M", "neither 2M nor 1G" },
		{ "size=1G,hotplug_size=1G", "unknown key 'hotplug_size'" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct err err = ERR_INIT;
		struct vm_config cfg;
		int r;

		vm_config_init(&cfg);
		r = vm_config_set_memory(&cfg, cases[i].text, &err);
		assert_int_equal(r == 0, cases[i].needle == NULL);
		if (cases[i].needle)
			assert_non_null(strstr(err.text, cases[i].needle));
		vm_config_fini(&cfg);
	}
}

static void test_memory_numa(void **state)
{
	struct err err = ERR_INIT;
	struct vm_config cfg;

	vm_config_init(&cfg);
	assert_int_equal(cfg.numa.policy, NUMA_NONE);
	assert_int_equal(vm_config_set_memory(&cfg, "1G,numa=split:1+3", &err),
			 0);
	assert_int_equal(cfg.numa.policy, NUMA_SPLIT);
	assert_true(cfg.numa.has_nodes);
	assert_int_equal(numa_nodes_count(&cfg.numa.nodes), 2);
	vm_config_fini(&cfg);
}

static void test_memory_words(void **state)
{
	struct err err = ERR_INIT;
	struct vm_config cfg;

	vm_config_init(&cfg);
	/* what another VMM calls it */
	assert_int_equal(
		vm_config_set_memory(&cfg, "2G,hugepages=on,prefault=on", &err),
		0);
	assert_int_equal(cfg.page, RAM_PAGE_2M);
	assert_int_equal(cfg.populate, POPULATE_HOST);
	/* a later word for the same starts afresh */
	assert_int_equal(vm_config_set_memory(&cfg, "page=thp", &err), 0);
	assert_int_equal(cfg.page, RAM_PAGE_THP);
	assert_int_equal(vm_config_set_memory(&cfg, "hugepage_size=1G", &err),
			 0);
	assert_int_equal(cfg.page, RAM_PAGE_1G);
	assert_int_equal(vm_config_set_memory(&cfg, "hugepages=off", &err), 0);
	assert_int_equal(cfg.page, RAM_PAGE_THP);
	vm_config_fini(&cfg);
}

static void test_memory_shared(void **state)
{
	struct virtio_class needy = toy_class;
	struct err err = ERR_INIT;
	struct vm_config cfg;
	const char *why;

	needy.needs_shared_memory = true;
	vm_config_init(&cfg);
	cfg.kernel = strdup("k");
	assert_false(vm_config_shared(&cfg, &why));
	assert_null(why);
	assert_int_equal(vm_config_add_device(&cfg, &needy, "a", &err), 0);
	assert_true(vm_config_shared(&cfg, &why));
	assert_string_equal(why, "toy");
	assert_int_equal(vm_config_check(&cfg, &err), 0);
	assert_int_equal(vm_config_set_memory(&cfg, "shared=off", &err), 0);
	assert_int_equal(vm_config_check(&cfg, &err), -EINVAL);
	assert_non_null(strstr(err.text, "the toy device needs shared"));
	vm_config_fini(&cfg);
}

static void test_cpus(void **state)
{
	struct err err = ERR_INIT;
	struct vm_config cfg;

	vm_config_init(&cfg);
	cfg.kernel = strdup("k");
	assert_int_equal(vm_config_set_cpus(&cfg, "boot=3,threads=2", &err), 0);
	assert_int_equal(vm_config_check(&cfg, &err), -EINVAL);
	assert_non_null(strstr(err.text, "not a multiple of threads=2"));
	assert_int_equal(vm_config_set_cpus(&cfg, "4", &err), 0);
	assert_int_equal(cfg.num_cpus, 4);
	assert_int_equal(vm_config_check(&cfg, &err), 0);
	assert_int_equal(vm_config_set_cpus(&cfg, "boot=4,max=4", &err), 0);
	assert_int_equal(vm_config_check(&cfg, &err), 0);
	assert_int_equal(vm_config_set_cpus(&cfg, "max=8", &err), 0);
	assert_int_equal(vm_config_check(&cfg, &err), -EINVAL);
	assert_non_null(strstr(err.text, "max=8"));
	assert_true(vm_config_set_cpus(&cfg, "boot=0", &err) < 0);
	assert_true(vm_config_set_cpus(&cfg, "boot=4097", &err) < 0);
	vm_config_fini(&cfg);
}

static void test_devices(void **state)
{
	struct err err = ERR_INIT;
	struct vm_config cfg;

	toy_inits = toy_finis = 0;
	vm_config_init(&cfg);
	/* incomplete: refused, and nothing of it stays */
	assert_true(vm_config_add_device(&cfg, &toy_class, "", &err) < 0);
	assert_string_equal(err.text, "--toy: name= is missing");
	assert_int_equal(cfg.num_devices, 0);
	assert_int_equal(toy_finis, 1);
	assert_int_equal(vm_config_add_device(&cfg, &toy_class, "a", &err), 0);
	assert_string_equal(((struct toy_config *)cfg.devices[0].config)->name,
			    "a");
	assert_true(vm_config_add_device(&cfg, &toy_class, "b", &err) < 0);
	assert_non_null(strstr(err.text, "only once"));
	/* what is there, and nothing else: setters may be tried out */
	assert_int_equal(toy_inits - toy_finis, 1);
	vm_config_fini(&cfg);
	assert_int_equal(toy_inits, toy_finis);
}

static void test_device_ids(void **state)
{
	struct virtio_class many = toy_class;
	struct err err = ERR_INIT;
	struct vm_config cfg;

	many.single = false;
	vm_config_init(&cfg);
	assert_int_equal(vm_config_add_device(&cfg, &many, "a", &err), 0);
	assert_string_equal(cfg.devices[0].id, "_toy0");
	/* the next number is taken: the one after it */
	assert_int_equal(vm_config_add_device(&cfg, &many, "b,id=_toy2", &err),
			 0);
	assert_int_equal(vm_config_add_device(&cfg, &many, "c", &err), 0);
	assert_string_equal(cfg.devices[2].id, "_toy3");
	assert_int_equal(vm_config_add_device(&cfg, &many, "d,id=_toy0", &err),
			 -EEXIST);
	assert_int_equal(vm_config_add_device(&cfg, &many, "d,id=a b", &err),
			 -EINVAL);
	assert_int_equal(vm_config_add_device(&cfg, &many, "d,id=_vm", &err),
			 -EINVAL);
	assert_int_equal(vm_config_add_device(&cfg, &many, "d,id=x,id=y", &err),
			 -EINVAL);
	assert_int_equal(cfg.num_devices, 3);
	vm_config_remove_device(&cfg, "_toy0");
	assert_null(vm_config_device(&cfg, "_toy0"));
	assert_non_null(vm_config_device(&cfg, "_toy3"));
	assert_int_equal(cfg.num_devices, 2);
	vm_config_fini(&cfg);
}

static void test_device_limit(void **state)
{
	struct virtio_class many = toy_class;
	struct err err = ERR_INIT;
	struct vm_config cfg;

	many.single = false;
	vm_config_init(&cfg);
	for (int i = 0; i < VM_MAX_DEVICES; i++)
		assert_int_equal(vm_config_add_device(&cfg, &many, "x", &err),
				 0);
	assert_int_equal(vm_config_add_device(&cfg, &many, "x", &err), -ENOSPC);
	vm_config_fini(&cfg);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_one_terminal),
		cmocka_unit_test(test_memory),
		cmocka_unit_test(test_memory_numa),
		cmocka_unit_test(test_memory_words),
		cmocka_unit_test(test_memory_shared),
		cmocka_unit_test(test_cpus),
		cmocka_unit_test(test_devices),
		cmocka_unit_test(test_device_ids),
		cmocka_unit_test(test_device_limit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
