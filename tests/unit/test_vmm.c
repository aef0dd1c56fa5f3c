/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vm/vmm.c: states, verbs in the right and the wrong one, the command queue,
 * signals; with /dev/kvm on a machine that counts until it is told to end.
 */
#include "cmocka_all.h"

#include <elf.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/io.h"
#include "base/log.h"
#include "vm/vmm.h"
#include "vm/vmm_priv.h"
#include "x86/layout.h"

/* ---- a kernel ---- */

#define LOAD_GPA  0x200000
#define COUNT_GPA 0x300000 /* counts all the time */
#define ORDER_GPA 0x300004 /* what it is to do: */
#define POWEROFF  1
#define RESET	  2
#define CRASH	  3

/* 32-bit protected mode; every turn leaves the guest through a port. */
static const uint8_t program[] = {
	0xff,
	0x05,
	0x00,
	0x00,
	0x30,
	0x00, /* inc dword [COUNT_GPA] */
	0xa1,
	0x04,
	0x00,
	0x30,
	0x00, /* mov eax, [ORDER_GPA] */
	0x83,
	0xf8,
	0x01,
	0x74,
	0x0e, /* cmp eax, 1; je 30 */
	0x83,
	0xf8,
	0x02,
	0x74,
	0x16, /* cmp eax, 2; je 43 */
	0x83,
	0xf8,
	0x03,
	0x74,
	0x18, /* cmp eax, 3; je 50 */
	0xe4,
	0x80,
	0xeb,
	0xe2, /* in al, 0x80; jmp 0 */
	0x66,
	0xba,
	(PORT_PM_BASE + 4) & 0xff,
	(PORT_PM_BASE + 4) >> 8,
	0x66,
	0xb8,
	0x00,
	0x34, /* mov ax, SLP_EN | S5 */
	0x66,
	0xef,
	0xf4,
	0xeb,
	0xfd, /* out dx, ax; hlt */
	0xb0,
	0xfe,
	0xe6,
	0x64, /* out 0x64, 0xfe */
	0xf4,
	0xeb,
	0xfd, /* hlt */
	0x0f,
	0x01,
	0x1d,
	0x00,
	0x10,
	0x30,
	0x00, /* lidt [zeroes] */
	0xcc,
	0xeb,
	0xfe, /* int3 */
};

struct kernel {
	Elf64_Ehdr ehdr;
	Elf64_Phdr load, note;
	struct {
		uint32_t namesz, descsz, type;
		char name[4];
		uint64_t entry;
	} pvh;
	uint8_t text[sizeof(program)];
};

static char kernel_path[64];

/* A shell's background job ignores SIGINT, and so would the vmm. */
static void default_signals(void)
{
	signal(SIGINT, SIG_DFL);
	signal(SIGTERM, SIG_DFL);
	signal(SIGHUP, SIG_DFL);
}

static int make_kernel(void **state)
{
	struct kernel k = {
		.ehdr = {
			.e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64,
				     ELFDATA2LSB, EV_CURRENT },
			.e_type = ET_EXEC,
			.e_machine = EM_X86_64,
			.e_version = EV_CURRENT,
			.e_entry = LOAD_GPA,
			.e_phoff = offsetof(struct kernel, load),
			.e_ehsize = sizeof(Elf64_Ehdr),
			.e_phentsize = sizeof(Elf64_Phdr),
			.e_phnum = 2,
		},
		.load = {
			.p_type = PT_LOAD,
			.p_flags = PF_R | PF_X,
			.p_offset = offsetof(struct kernel, text),
			.p_vaddr = LOAD_GPA,
			.p_paddr = LOAD_GPA,
			.p_filesz = sizeof(program),
			.p_memsz = sizeof(program),
		},
		.note = {
			.p_type = PT_NOTE,
			.p_offset = offsetof(struct kernel, pvh),
			.p_filesz = sizeof(k.pvh),
			.p_memsz = sizeof(k.pvh),
			.p_align = 4,
		},
		.pvh = { 4, 8, 18, "Xen", LOAD_GPA },
	};
	int fd;

	default_signals();
	memcpy(k.text, program, sizeof(program));
	snprintf(kernel_path, sizeof(kernel_path),
		 "/tmp/quire-test-kernel-XXXXXX");
	fd = mkstemp(kernel_path);
	if (fd < 0 || io_write_full(fd, &k, sizeof(k)))
		return -1;
	return close(fd);
}

static int remove_kernel(void **state)
{
	return unlink(kernel_path);
}

/* ---- a vmm ---- */

struct seen {
	char events[512];
};

static void on_event(void *ctx, const char *source, const char *event,
		     const json_t *properties)
{
	struct seen *seen = ctx;
	size_t len = strlen(seen->events);

	snprintf(seen->events + len, sizeof(seen->events) - len, "%s%s",
		 len ? " " : "", event);
}

static struct vmm *new_vmm(struct seen *seen)
{
	struct err err = ERR_INIT;
	struct vmm *v;

	log_set_level(LOG_LEVEL_ERROR);
	assert_int_equal(vmm_new(&v, &err), 0);
	memset(seen, 0, sizeof(*seen));
	assert_int_equal(vmm_listen(v, on_event, seen), 0);
	return v;
}

static json_t *vm_config(const char *kernel)
{
	return json_pack("{s:{s:s}, s:{s:i}, s:{s:s}, s:{s:i}}", "payload",
			 "kernel", kernel, "memory", "size", 64 * 1024 * 1024,
			 "serial", "mode", "Null", "cpus", "boot_vcpus", 1);
}

static void create(struct vmm *v)
{
	struct err err = ERR_INIT;
	json_t *config = vm_config(kernel_path);
	int r = vmm_create(v, config, &err);

	json_decref(config);
	assert_int_equal(r, 0);
}

static void need_kvm(void)
{
	if (access(KVM_DEVICE_PATH, R_OK | W_OK) < 0) {
		print_message("skipped: no usable " KVM_DEVICE_PATH "\n");
		skip();
	}
}

static uint32_t *guest_word(struct vmm *v, uint64_t gpa)
{
	return (uint32_t *)(v->machine->memory.ram.base + gpa);
}

static uint32_t count_now(struct vmm *v)
{
	return __atomic_load_n(guest_word(v, COUNT_GPA), __ATOMIC_ACQUIRE);
}

static void order(struct vmm *v, uint32_t what)
{
	__atomic_store_n(guest_word(v, ORDER_GPA), what, __ATOMIC_RELEASE);
}

/* It runs: wait until it has counted on. */
static void wait_counting(struct vmm *v)
{
	uint32_t before = count_now(v);

	while (count_now(v) - before < 3)
		usleep(1000);
}

/* ---- tests without a machine ---- */

struct verb {
	const char *name;
	int (*fn)(struct vmm *v, struct err *err);
};

static const struct verb verbs[] = {
	{ "boot", vmm_boot },
	{ "pause", vmm_pause },
	{ "resume", vmm_resume },
	{ "reboot", vmm_reboot },
	{ "power-button", vmm_power_button },
	{ "shutdown", vmm_shutdown },
	{ "delete", vmm_delete },
};

/* All verbs but those in allowed are refused with code, and change nothing. */
static void assert_refused(struct vmm *v, int code, const char *allowed)
{
	enum vmm_state before = vmm_state(v);

	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		struct err err = ERR_INIT;

		if (strstr(allowed, verbs[i].name))
			continue;
		assert_int_equal(verbs[i].fn(v, &err), code);
		assert_non_null(strstr(err.text, verbs[i].name));
		assert_int_equal(vmm_state(v), before);
	}
}

static void test_empty(void **state)
{
	struct err err = ERR_INIT;
	struct seen seen;
	struct vmm *v = new_vmm(&seen);
	json_t *info = NULL;

	assert_int_equal(vmm_state(v), VMM_EMPTY);
	assert_refused(v, -ENOENT, "");
	assert_int_equal(vmm_remove_device(v, "x", &err), -ENOENT);
	assert_int_equal(vmm_populate(v, NULL, &err), -ENOENT);
	assert_int_equal(vmm_add_device(v, virtio_classes[0], NULL, &info,
					&err),
			 -ENOENT);
	assert_null(vmm_info(v));
	assert_null(vmm_counters(v));
	assert_null(vmm_memory_stats(v));
	assert_string_equal(seen.events, "");
	vmm_free(v);
}

static void test_created(void **state)
{
	struct err err = ERR_INIT;
	struct seen seen;
	struct vmm *v = new_vmm(&seen);
	json_t *config = vm_config("/nonexistent/kernel"), *o;

	assert_int_equal(vmm_create(v, config, &err), 0);
	assert_int_equal(vmm_state(v), VMM_CREATED);
	assert_int_equal(vmm_create(v, config, &err), -EEXIST);
	json_decref(config);
	assert_refused(v, -EBADFD, "boot delete");
	assert_int_equal(vmm_populate(v, NULL, &err), -EBADFD);
	o = vmm_info(v);
	assert_string_equal(json_string_value(json_object_get(o, "state")),
			    "Created");
	assert_int_equal(
		json_integer_value(json_object_get(o, "memory_actual_size")),
		64 * MIB);
	assert_non_null(
		json_object_get(json_object_get(o, "config"), "payload"));
	json_decref(o);
	o = vmm_counters(v);
	assert_int_equal(json_object_size(o), 0);
	json_decref(o);
	o = vmm_memory_stats(v);
	assert_int_equal(json_object_size(o), 0);
	json_decref(o);
	/* what fails leaves it created */
	assert_true(vmm_boot(v, &err) < 0);
	assert_int_equal(vmm_state(v), VMM_CREATED);
	assert_int_equal(vmm_delete(v, &err), 0);
	assert_int_equal(vmm_state(v), VMM_EMPTY);
	assert_string_equal(seen.events, "created deleted");
	vmm_free(v);
}

static void test_bad_config(void **state)
{
	struct err err = ERR_INIT;
	struct seen seen;
	struct vmm *v = new_vmm(&seen);
	json_t *config = json_pack("{s:{s:s}}", "memory", "size", "1G");

	assert_int_equal(vmm_create(v, config, &err), -EINVAL);
	assert_non_null(strstr(err.text, "payload.kernel"));
	json_object_set_new(config, "colour", json_integer(1));
	assert_int_equal(vmm_create(v, config, &err), -EINVAL);
	assert_non_null(strstr(err.text, "colour: unknown field"));
	json_decref(config);
	assert_int_equal(vmm_state(v), VMM_EMPTY);
	vmm_free(v);
}

/* Before the machine runs, devices come and go in the configuration only. */
static void test_devices_of_created(void **state)
{
	struct err err = ERR_INIT;
	struct seen seen;
	struct vmm *v = new_vmm(&seen);
	json_t *disk = json_pack("{s:s, s:s}", "path", "/a", "id", "d");
	json_t *info = disk;

	create(v);
	assert_int_equal(
		vmm_add_device(v, virtio_classes[0], disk, &info, &err), 0);
	assert_null(info);
	assert_int_equal(vmm_add_device(v, virtio_classes[0], disk, &info,
					&err),
			 -EEXIST);
	assert_int_equal(v->cfg.num_devices, 1);
	assert_int_equal(vmm_remove_device(v, "e", &err), -ENOENT);
	assert_int_equal(vmm_remove_device(v, NULL, &err), -EINVAL);
	assert_int_equal(vmm_remove_device(v, "d", &err), 0);
	assert_int_equal(v->cfg.num_devices, 0);
	assert_string_equal(seen.events, "created device-added device-removed");
	json_decref(disk);
	vmm_free(v);
}

static void test_signals_without_machine(void **state)
{
	static const int signals[] = { SIGTERM, SIGINT, SIGHUP };

	for (size_t i = 0; i < 2 * ARRAY_SIZE(signals); i++) {
		struct err err = ERR_INIT;
		struct vm_result result = { .signal = 0 };
		struct seen seen;
		struct vmm *v = new_vmm(&seen);

		if (i % 2)
			create(v);
		vmm_set_stays(v, true);
		kill(getpid(), signals[i / 2]);
		assert_int_equal(vmm_run(v, &result, &err), 0);
		assert_int_equal(result.signal, signals[i / 2]);
		vmm_free(v);
	}
}

/* ---- the command queue ---- */

#define CALLERS 8
#define CALLS	200

struct caller {
	struct vmm *vmm;
	pthread_t thread;
	int *shared; /* the control thread's, without a lock */
	int mistakes;
	bool to_the_end; /* goes on until it is refused */
};

static int add_one(struct vmm *v, void *arg, struct err *err)
{
	int *shared = arg;

	(*shared)++;
	return *shared % 3 ? *shared : err_set(err, EBADFD, "a third");
}

static void *call_often(void *arg)
{
	struct caller *c = arg;

	for (int i = 0; i < CALLS; i++) {
		struct err err = ERR_INIT;
		int r = vmm_call(c->vmm, add_one, c->shared, &err);

		c->mistakes += r == 0 || (r > 0 && r % 3 == 0) ||
			       (r < 0 && strcmp(err.text, "a third") != 0);
	}
	return NULL;
}

static void *call_until_refused(void *arg)
{
	struct caller *c = arg;
	struct err err = ERR_INIT;

	while (vmm_call(c->vmm, add_one, c->shared, &err) != -ESHUTDOWN)
		;
	c->mistakes += strcmp(err.text, "quire is ending") != 0;
	return NULL;
}

static int end_it(struct vmm *v, void *arg, struct err *err)
{
	return vmm_end(v, err);
}

static void *join_and_end(void *arg)
{
	struct caller *callers = arg;
	struct err err = ERR_INIT;

	for (int i = 0; i < CALLERS; i++)
		pthread_join(callers[i].thread, NULL);
	vmm_call(callers[0].vmm, end_it, NULL, &err);
	return NULL;
}

static void test_calls(void **state)
{
	struct caller callers[CALLERS];
	struct err err = ERR_INIT;
	struct vm_result result;
	struct seen seen;
	struct vmm *v = new_vmm(&seen);
	pthread_t joiner;
	int shared = 0;

	for (int i = 0; i < CALLERS; i++) {
		callers[i] = (struct caller){ .vmm = v, .shared = &shared };
		assert_int_equal(pthread_create(&callers[i].thread, NULL,
						call_often, &callers[i]),
				 0);
	}
	assert_int_equal(pthread_create(&joiner, NULL, join_and_end, callers),
			 0);
	assert_int_equal(vmm_run(v, &result, &err), 0);
	assert_true(result.quit);
	pthread_join(joiner, NULL);
	assert_int_equal(shared, CALLERS * CALLS);
	for (int i = 0; i < CALLERS; i++)
		assert_int_equal(callers[i].mistakes, 0);
	/* from the control thread: at once */
	shared = 0;
	assert_int_equal(vmm_call(v, add_one, &shared, &err), 1);
	vmm_free(v);
}

/* Nobody hangs in the queue when quire ends. */
static void test_calls_at_the_end(void **state)
{
	struct caller callers[CALLERS];
	struct err err = ERR_INIT;
	struct vm_result result;
	struct seen seen;
	struct vmm *v = new_vmm(&seen);
	int shared = 0;

	for (int i = 0; i < CALLERS; i++) {
		callers[i] = (struct caller){ .vmm = v, .shared = &shared };
		assert_int_equal(pthread_create(&callers[i].thread, NULL,
						call_until_refused,
						&callers[i]),
				 0);
	}
	kill(getpid(), SIGINT);
	assert_int_equal(vmm_run(v, &result, &err), 0);
	for (int i = 0; i < CALLERS; i++) {
		pthread_join(callers[i].thread, NULL);
		assert_int_equal(callers[i].mistakes, 0);
	}
	vmm_free(v);
}

/* ---- with a machine ---- */

static void test_pause(void **state)
{
	struct err err = ERR_INIT;
	struct seen seen;
	struct vmm *v;

	need_kvm();
	v = new_vmm(&seen);
	create(v);
	assert_int_equal(vmm_boot(v, &err), 0);
	assert_refused(v, -EBADFD, "pause reboot power-button shutdown delete");
	/* often, since it interrupts at random places */
	for (int i = 0; i < 50; i++) {
		uint32_t paused_at;

		wait_counting(v);
		assert_int_equal(vmm_pause(v, &err), 0);
		paused_at = count_now(v);
		if (i == 0) {
			assert_refused(v, -EBADFD,
				       "resume reboot shutdown delete");
			usleep(50000);
		}
		assert_int_equal(count_now(v), paused_at);
		assert_int_equal(vmm_resume(v, &err), 0);
	}
	wait_counting(v);
	vmm_free(v);
}

static void test_shutdown_and_boot_again(void **state)
{
	struct err err = ERR_INIT;
	struct seen seen;
	struct vmm *v;
	json_t *o;

	need_kvm();
	v = new_vmm(&seen);
	create(v);
	for (int i = 1; i <= 3; i++) {
		assert_int_equal(vmm_boot(v, &err), 0);
		wait_counting(v);
		if (i == 2)
			assert_int_equal(vmm_pause(v, &err), 0);
		assert_int_equal(vmm_shutdown(v, &err), 0);
		assert_int_equal(vmm_state(v), VMM_SHUTDOWN);
		assert_refused(v, -EBADFD, "boot delete");
		/* the account of the last machine stays */
		o = vmm_counters(v);
		assert_int_equal(json_integer_value(json_object_get(
					 json_object_get(o, "_vm"), "boots")),
				 i);
		json_decref(o);
	}
	assert_int_equal(vmm_delete(v, &err), 0);
	assert_string_equal(seen.events,
			    "created booted shutdown booted paused shutdown "
			    "booted shutdown deleted");
	vmm_free(v);
}

static void test_reboot(void **state)
{
	struct err err = ERR_INIT;
	struct seen seen;
	struct vmm *v;
	json_t *o;

	need_kvm();
	v = new_vmm(&seen);
	create(v);
	assert_int_equal(vmm_boot(v, &err), 0);
	wait_counting(v);
	assert_int_equal(vmm_reboot(v, &err), 0);
	wait_counting(v);
	assert_int_equal(vmm_pause(v, &err), 0);
	assert_int_equal(vmm_reboot(v, &err), 0);
	assert_int_equal(vmm_state(v), VMM_RUNNING);
	wait_counting(v);
	o = vmm_info(v);
	assert_int_equal(json_integer_value(json_object_get(o, "boots")), 3);
	assert_string_equal(json_string_value(json_object_get(o, "state")),
			    "Running");
	json_decref(o);
	o = vmm_memory_stats(v);
	assert_int_equal(json_integer_value(json_object_get(o, "size_bytes")),
			 64 * MIB);
	json_decref(o);
	/* from RUNNING straight to nothing */
	assert_int_equal(vmm_delete(v, &err), 0);
	vmm_free(v);
}

/*
 * Plugged in while it runs; the guest, which knows no hot-plug, keeps it when
 * asked to let it go, until its machine ends.
 */
static void test_hotplug(void **state)
{
	struct err err = ERR_INIT;
	struct seen seen;
	struct vmm *v;
	json_t *config, *info = NULL;
	const struct virtio_class *rng = virtio_classes[0];

	need_kvm();
	for (size_t i = 0; virtio_classes[i]; i++)
		if (!strcmp(virtio_classes[i]->name, "rng"))
			rng = virtio_classes[i];
	v = new_vmm(&seen);
	create(v);
	assert_int_equal(vmm_boot(v, &err), 0);
	config = json_pack("{s:s, s:s}", "id", "r", "src", "kernel");
	assert_int_equal(vmm_add_device(v, rng, config, &info, &err), 0);
	assert_string_equal(json_string_value(json_object_get(info, "id")),
			    "r");
	assert_int_equal(json_string_length(json_object_get(info, "bdf")), 12);
	json_decref(info);
	json_decref(config);
	/* what cannot be made is not in the configuration either */
	config = json_pack("{s:s}", "src", "/nonexistent");
	assert_true(vmm_add_device(v, rng, config, &info, &err) < 0);
	json_decref(config);
	assert_int_equal(v->cfg.num_devices, 1);
	assert_int_equal(vmm_remove_device(v, "r", &err), 0);
	assert_int_equal(v->cfg.num_devices, 1);
	assert_int_equal(vmm_reboot(v, &err), 0);
	assert_int_equal(v->cfg.num_devices, 0);
	assert_string_equal(seen.events, "created booted device-added "
					 "device-removed rebooted");
	vmm_free(v);
}

/* What the guest does by itself, with and without somebody who stays. */
static int step(struct vmm *v, void *arg, struct err *err)
{
	enum vmm_state *ret = arg;

	*ret = vmm_state(v);
	return 0;
}

static void *wait_shutdown_and_end(void *arg)
{
	struct vmm *v = arg;
	struct err err = ERR_INIT;
	enum vmm_state seen = VMM_EMPTY;

	while (seen != VMM_SHUTDOWN && !vmm_call(v, step, &seen, &err))
		usleep(1000);
	vmm_call(v, end_it, NULL, &err);
	return NULL;
}

static void run_guest_end(uint32_t what, bool stays, enum machine_end end,
			  const char *events)
{
	struct err err = ERR_INIT;
	struct vm_result result = { .signal = 0 };
	struct seen seen;
	struct vmm *v = new_vmm(&seen);
	pthread_t waiter;

	create(v);
	v->cfg.on_reboot = VM_ACTION_STOP;
	vmm_set_stays(v, stays);
	assert_int_equal(vmm_boot(v, &err), 0);
	wait_counting(v);
	order(v, what);
	if (stays)
		assert_int_equal(pthread_create(&waiter, NULL,
						wait_shutdown_and_end, v),
				 0);
	assert_int_equal(vmm_run(v, &result, &err), 0);
	if (stays)
		pthread_join(waiter, NULL);
	assert_int_equal(result.end, stays ? MACHINE_END_NONE : end);
	assert_string_equal(seen.events, events);
	vmm_free(v);
}

static void test_guest_ends(void **state)
{
	need_kvm();
	run_guest_end(POWEROFF, false, MACHINE_END_POWEROFF,
		      "created booted shutdown ended");
	run_guest_end(POWEROFF, true, MACHINE_END_POWEROFF,
		      "created booted shutdown ended");
	run_guest_end(RESET, false, MACHINE_END_REBOOT,
		      "created booted shutdown ended");
}

static int resume_it(struct vmm *v, void *arg, struct err *err)
{
	return vmm_resume(v, err);
}

struct paused {
	struct vmm *vmm;
	enum vmm_state state;
};

/* By the second call the loop has seen all that was there before the first. */
static void *look_then_resume(void *arg)
{
	struct paused *p = arg;
	struct err err = ERR_INIT;

	for (int i = 0; i < 3; i++)
		vmm_call(p->vmm, step, &p->state, &err);
	vmm_call(p->vmm, resume_it, NULL, &err);
	return NULL;
}

/* The guest has ended just when the pause comes: it is paused all the same. */
static void test_pause_after_the_end(void **state)
{
	struct err err = ERR_INIT;
	struct vm_result result = { .signal = 0 };
	struct paused p = { .state = VMM_EMPTY };
	struct seen seen;
	pthread_t thread;

	need_kvm();
	p.vmm = new_vmm(&seen);
	create(p.vmm);
	assert_int_equal(vmm_boot(p.vmm, &err), 0);
	wait_counting(p.vmm);
	order(p.vmm, POWEROFF);
	while (!io_eventfd_drain(p.vmm->ended.event_fd))
		usleep(1000);
	assert_int_equal(vmm_pause(p.vmm, &err), 0);
	io_eventfd_signal(p.vmm->ended.event_fd);
	assert_int_equal(pthread_create(&thread, NULL, look_then_resume, &p),
			 0);
	assert_int_equal(vmm_run(p.vmm, &result, &err), 0);
	pthread_join(thread, NULL);
	assert_int_equal(p.state, VMM_PAUSED);
	assert_int_equal(result.end, MACHINE_END_POWEROFF);
	assert_string_equal(seen.events,
			    "created booted paused resumed shutdown ended");
	vmm_free(p.vmm);
}

/* The first reset restarts it, and the second machine is powered off. */
static int poweroff_second(struct vmm *v, void *arg, struct err *err)
{
	if (!strstr(((struct seen *)arg)->events, "rebooted"))
		return 1;
	wait_counting(v);
	order(v, POWEROFF);
	return 0;
}

struct watcher {
	struct vmm *vmm;
	struct seen *seen;
};

static void *wait_rebooted(void *arg)
{
	struct watcher *w = arg;
	struct err err = ERR_INIT;

	while (vmm_call(w->vmm, poweroff_second, w->seen, &err) == 1)
		usleep(1000);
	return NULL;
}

static void test_guest_reboots(void **state)
{
	struct err err = ERR_INIT;
	struct vm_result result;
	struct seen seen;
	struct watcher w = { .seen = &seen };
	pthread_t thread;

	need_kvm();
	w.vmm = new_vmm(&seen);
	create(w.vmm);
	assert_int_equal(vmm_boot(w.vmm, &err), 0);
	wait_counting(w.vmm);
	order(w.vmm, RESET);
	assert_int_equal(pthread_create(&thread, NULL, wait_rebooted, &w), 0);
	assert_int_equal(vmm_run(w.vmm, &result, &err), 0);
	pthread_join(thread, NULL);
	assert_int_equal(result.end, MACHINE_END_POWEROFF);
	assert_int_equal(vmm_summary(w.vmm)->boots, 2);
	assert_string_equal(seen.events,
			    "created booted rebooted shutdown ended");
	vmm_free(w.vmm);
}

static void test_sigterm(void **state)
{
	struct err err = ERR_INIT;
	struct vm_result result;
	struct seen seen;
	struct vmm *v;

	need_kvm();
	/* running, a guest that does not listen: the deadline ends it */
	v = new_vmm(&seen);
	create(v);
	v->cfg.shutdown_timeout_s = 1;
	assert_int_equal(vmm_boot(v, &err), 0);
	wait_counting(v);
	kill(getpid(), SIGTERM);
	assert_int_equal(vmm_run(v, &result, &err), 0);
	assert_true(v->shutting_down);
	assert_int_equal(result.signal, SIGTERM);
	vmm_free(v);

	/* paused, shut down: at once, whatever the deadline */
	for (int i = 0; i < 2; i++) {
		v = new_vmm(&seen);
		create(v);
		vmm_set_stays(v, true);
		v->cfg.shutdown_timeout_s = 86400;
		assert_int_equal(vmm_boot(v, &err), 0);
		assert_int_equal(i ? vmm_shutdown(v, &err) : vmm_pause(v, &err),
				 0);
		kill(getpid(), SIGTERM);
		assert_int_equal(vmm_run(v, &result, &err), 0);
		assert_false(v->shutting_down);
		assert_int_equal(result.signal, SIGTERM);
		vmm_free(v);
	}
}

static void test_signal_while_building(void **state)
{
	struct err err = ERR_INIT;
	struct vm_result result;
	struct seen seen;
	struct vmm *v;

	need_kvm();
	v = new_vmm(&seen);
	create(v);
	kill(getpid(), SIGTERM);
	assert_int_equal(vmm_boot(v, &err), -ECANCELED);
	assert_int_equal(vmm_state(v), VMM_CREATED);
	assert_int_equal(vmm_run(v, &result, &err), 0);
	assert_int_equal(result.signal, SIGTERM);
	assert_int_equal(vmm_summary(v)->boots, 0);
	vmm_free(v);
}

/* ---- population on request ---- */

static int ask_populate(struct vmm *v, void *arg, struct err *err)
{
	json_t *request = json_pack("{s:{s:i, s:i}}", "range", "start", 0,
				    "size", 16 * 1024 * 1024);
	int r = vmm_populate(v, request, err);

	json_decref(request);
	return r;
}

static int has_populated(struct vmm *v, void *arg, struct err *err)
{
	return strstr(((struct seen *)arg)->events, "populated") ? 0 : 1;
}

static void *populate_and_end(void *arg)
{
	struct watcher *w = arg;
	struct err err = ERR_INIT;

	if (!vmm_call(w->vmm, ask_populate, NULL, &err))
		while (vmm_call(w->vmm, has_populated, w->seen, &err) == 1)
			usleep(1000);
	vmm_call(w->vmm, end_it, NULL, &err);
	return NULL;
}

static void test_populate(void **state)
{
	static const char *const bad[] = {
		"[]",
		"{\"mode\": 3}",
		"{\"mode\": \"all\"}",
		"{\"range\": 1}",
		"{\"range\": {\"start\": -1}}",
		"{\"range\": {\"start\": 67108864}}",
		"{\"range\": {\"size\": 0}}",
		"{\"range\": {\"end\": 4}}",
		"{\"extent\": {}}",
	};
	struct err err = ERR_INIT;
	struct vm_result result;
	struct seen seen;
	struct watcher w = { .seen = &seen };
	pthread_t thread;

	need_kvm();
	w.vmm = new_vmm(&seen);
	create(w.vmm);
	vmm_set_stays(w.vmm, true);
	assert_int_equal(vmm_boot(w.vmm, &err), 0);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		json_t *request = json_loads(bad[i], 0, NULL);

		assert_int_equal(vmm_populate(w.vmm, request, &err), -EINVAL);
		json_decref(request);
	}
	assert_int_equal(pthread_create(&thread, NULL, populate_and_end, &w),
			 0);
	assert_int_equal(vmm_run(w.vmm, &result, &err), 0);
	pthread_join(thread, NULL);
	assert_string_equal(seen.events, "created booted populated ended");
	assert_int_equal(
		vmm_summary(w.vmm)->memory.keeper.works[KEEPER_POPULATE].bytes,
		16 * MIB);
	vmm_free(w.vmm);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_empty),
		cmocka_unit_test(test_created),
		cmocka_unit_test(test_bad_config),
		cmocka_unit_test(test_devices_of_created),
		cmocka_unit_test(test_signals_without_machine),
		cmocka_unit_test(test_calls),
		cmocka_unit_test(test_calls_at_the_end),
		cmocka_unit_test(test_pause),
		cmocka_unit_test(test_shutdown_and_boot_again),
		cmocka_unit_test(test_reboot),
		cmocka_unit_test(test_hotplug),
		cmocka_unit_test(test_guest_ends),
		cmocka_unit_test(test_pause_after_the_end),
		cmocka_unit_test(test_guest_reboots),
		cmocka_unit_test(test_sigterm),
		cmocka_unit_test(test_signal_while_building),
		cmocka_unit_test(test_populate),
	};

	return cmocka_run_group_tests(tests, make_kernel, remove_kernel);
}
