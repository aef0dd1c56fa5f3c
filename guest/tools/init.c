/* SPDX-License-Identifier: Apache-2.0 */
/*
 * init of the lab's Linux guests: does what the kernel command line asks for
 * and ends the guest.
 *
 *   quire.run=TEXT      shell command, with %XX for bytes that a kernel
 *                       command line cannot hold (space is %20)
 *   quire.run64=TEXT    the same in base64
 *   quire.shell         a shell on the console, after the command if any
 *   quire.end=VERB      poweroff (default), reboot, halt, panic, triple, stay,
 *                       debug (7 to the debug-exit port)
 *   quire.modules=LIST  load these instead of what the devices need; "none"
 *   quire.root=WHAT     go on as the system there: virtiofs:TAG, or a disk with
 *                       ext4 as /dev/vda; nothing of the above but modules then
 *   quire_milestones=off  leave quire's milestone port alone
 *
 * It prints "quire-guest: init SECONDS" as its first act, because benchmarks
 * take that line as the moment the guest is up, and "quire-guest: exit STATUS"
 * when the command is done, which is how a test knows that neither a crash nor
 * silence ended it.
 *
 * In C rather than shell: every process a script starts costs milliseconds in
 * a guest nested in an emulated host, and boot time is a figure we publish.
 * For the same reason only drivers of devices that are present are loaded.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "tools.h"

#define VIRTIO_PCI_VENDOR 0x1af4
#define MILESTONE_PORT	  0xf8
#define MILESTONE_INIT	  1
#define DEBUG_EXIT_PORT	  0xf4
#define DEBUG_EXIT_CODE	  7

struct asked {
	char *command;
	const char *end;
	char *modules;
	const char *root;
	bool shell;
};

/* The drivers by virtio device type (virtio 1.2, section 5). */
static const struct {
	unsigned long type;
	const char *module;
} drivers[] = {
	{ 1, "virtio_net" },	 { 2, "virtio_blk" },
	{ 3, "virtio_console" }, { 4, "virtio_rng" },
	{ 5, "virtio_balloon" }, { 19, "vmw_vsock_virtio_transport" },
	{ 24, "virtio_mem" },	 { 26, "virtiofs" },
	{ 27, "virtio_pmem" },
};

/* One write per line, so that kernel messages cannot split it. */
static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void say(const char *format, ...)
{
	char text[512] = "quire-guest: ";
	size_t used = strlen(text);
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(text + used, sizeof(text) - used - 1, format, args);
	va_end(args);
	if (n < 0)
		return;
	used += (size_t)n;
	if (used > sizeof(text) - 2)
		used = sizeof(text) - 2;
	text[used++] = '\n';
	if (write(STDOUT_FILENO, text, used) < 0)
		return; /* without a console there is nobody to tell */
}

/*
 * quire's milestone port: it stamps the moment with the host's clock for its
 * exit summary. Other VMMs have nothing there, and ignore it; but under the
 * lab's emulator the write may fault (lab/README.md, "No ports for programs").
 *
 * Nothing is mounted yet that /proc/cmdline could be read from. Of words that
 * it does not know the kernel makes init's environment, if they have no dot.
 */
static void stamp_started(void)
{
	const char *milestones = getenv("quire_milestones");

	if (milestones && !strcmp(milestones, "off"))
		return;
	if (!ioperm(MILESTONE_PORT, 1, 1)) {
		outb(MILESTONE_INIT, MILESTONE_PORT);
		ioperm(MILESTONE_PORT, 1, 0);
	}
}

static void say_started(void)
{
	struct timespec up;

	stamp_started();
	clock_gettime(CLOCK_BOOTTIME, &up);
	say("init %lld.%03ld", (long long)up.tv_sec, up.tv_nsec / 1000000);
}

/* A small file's text, NUL-ended; caller frees; NULL where there is none. */
static char *file_text(const char *path)
{
	size_t used = 0, room = 4096;
	char *text = malloc(room + 1);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = -1;

	while (fd >= 0 && text &&
	       (n = read(fd, text + used, room - used)) > 0) {
		used += (size_t)n;
		if (used == room) {
			char *more = realloc(text, room * 2 + 1);

			if (!more)
				break;
			text = more;
			room *= 2;
		}
	}
	if (fd >= 0)
		close(fd);
	if (fd < 0 || !text || n < 0) {
		free(text);
		return NULL;
	}
	text[used] = '\0';
	return text;
}

static bool file_put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) > 0;

	if (fd >= 0)
		close(fd);
	return ok;
}

/* Undo %XX in place. */
static void percent_decode(char *text)
{
	char *to = text;

	for (; *text; text++) {
		char hex[3] = { 0 };

		if (text[0] == '%' && text[1] && text[2]) {
			char *end;
			unsigned long byte;

			memcpy(hex, text + 1, 2);
			byte = strtoul(hex, &end, 16);
			if (end == hex + 2 && byte) {
				*to++ = (char)byte;
				text += 2;
				continue;
			}
		}
		*to++ = *text;
	}
	*to = '\0';
}

/* Undo base64 in place; stops at the first character that is none. */
static void base64_decode(char *text)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
				     "abcdefghijklmnopqrstuvwxyz0123456789+/";
	unsigned int bits = 0, held = 0;
	char *to = text;

	for (; *text; text++) {
		const char *digit = strchr(digits, *text);

		if (!digit)
			break;
		held = held << 6 | (unsigned int)(digit - digits);
		bits += 6;
		if (bits >= 8) {
			bits -= 8;
			*to++ = (char)(held >> bits);
			held &= (1u << bits) - 1;
		}
	}
	*to = '\0';
}

static char *value_of(char *word, const char *name)
{
	size_t length = strlen(name);

	return strncmp(word, name, length) ? NULL : word + length;
}

/* What the command line asks for; points into its text, which stays. */
static void asked_read(struct asked *asked)
{
	char *text = file_text("/proc/cmdline"), *rest = text, *word;

	asked->end = "poweroff";
	if (!text)
		return;
	while ((word = strsep(&rest, " \n"))) {
		char *value;

		if ((value = value_of(word, "quire.run="))) {
			percent_decode(value);
			asked->command = value;
		} else if ((value = value_of(word, "quire.run64="))) {
			base64_decode(value);
			asked->command = value;
		} else if ((value = value_of(word, "quire.end="))) {
			asked->end = value;
		} else if ((value = value_of(word, "quire.modules="))) {
			asked->modules = value;
		} else if ((value = value_of(word, "quire.root="))) {
			asked->root = value;
		} else if (!strcmp(word, "quire.shell")) {
			asked->shell = true;
		}
	}
}

static void mounts_make(void)
{
	static const struct {
		const char *type, *where;
	} mounts[] = {
		{ "proc", "/proc" },
		{ "sysfs", "/sys" },
		{ "devtmpfs", "/dev" },
	};
	size_t i;

	for (i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++)
		if (mount(mounts[i].type, mounts[i].where, mounts[i].type, 0,
			  NULL) &&
		    errno != EBUSY)
			say("mount %s: %s", mounts[i].where, strerror(errno));
}

static void module_insert(const char *directory, const char *file)
{
	char path[512];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", directory, file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
		say("module %s: %s", file, strerror(errno));
	if (fd >= 0)
		close(fd);
}

/*
 * Load a module after what it needs.  A line of modules.dep is "file: needed
 * ..." and names what must be loaded first last.  A name that has no line is
 * built in.
 */
static void module_load(const char *directory, const char *deps,
			const char *name)
{
	char *files[32], *line, *word, *rest;
	size_t n = 0, length = strlen(name);
	const char *at = deps;

	while (strncmp(at, name, length) || strncmp(at + length, ".ko:", 4)) {
		at = strchr(at, '\n');
		if (!at || !*++at)
			return;
	}
	line = strndup(at, strcspn(at, "\n"));
	if (!line)
		return;
	rest = line;
	while ((word = strsep(&rest, " :")))
		if (*word && n < sizeof(files) / sizeof(files[0]))
			files[n++] = word;
	while (n)
		module_insert(directory, files[--n]);
	free(line);
}

/* The number in a one-line file such as sysfs has; 0 where there is none. */
static unsigned long file_number(const char *directory, const char *entry,
				 const char *file)
{
	char path[512], text[32];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/%s/%s", directory, entry, file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[n > 0 ? n : 0] = '\0';
	return strtoul(text, NULL, 0);
}

static bool pci_has_virtio(void)
{
	static const char devices[] = "/sys/bus/pci/devices";
	DIR *dir = opendir(devices);
	struct dirent *entry;
	bool found = false;

	while (dir && !found && (entry = readdir(dir)))
		found = entry->d_name[0] != '.' &&
			file_number(devices, entry->d_name, "vendor") ==
				VIRTIO_PCI_VENDOR;
	if (dir)
		closedir(dir);
	return found;
}

static bool acpi_has_virtio(void)
{
	DIR *dir = opendir("/sys/bus/acpi/devices");
	struct dirent *entry;
	bool found = false;

	while (dir && !found && (entry = readdir(dir)))
		found = !strncmp(entry->d_name, "LNRO0005", 8);
	if (dir)
		closedir(dir);
	return found;
}

/* Drivers of the devices that the transports have found. */
static void modules_load_drivers(const char *directory, const char *deps)
{
	static const char devices[] = "/sys/bus/virtio/devices";
	DIR *dir = opendir(devices);
	uint64_t loaded = 0;
	struct dirent *entry;
	size_t i;

	while (dir && (entry = readdir(dir))) {
		unsigned long type = 0;

		if (entry->d_name[0] != '.')
			type = file_number(devices, entry->d_name, "device");
		for (i = 0; i < sizeof(drivers) / sizeof(drivers[0]); i++) {
			if (drivers[i].type != type || loaded & 1ull << i)
				continue;
			loaded |= 1ull << i;
			module_load(directory, deps, drivers[i].module);
		}
	}
	if (dir)
		closedir(dir);
}

static void modules_load(char *list)
{
	char directory[128], path[160], *deps, *name;
	struct utsname uts;

	if (uname(&uts) || (list && !strcmp(list, "none")))
		return;
	snprintf(directory, sizeof(directory), "/lib/modules/%s", uts.release);
	snprintf(path, sizeof(path), "%s/modules.dep", directory);
	deps = file_text(path);
	if (!deps) {
		say("no modules for kernel %s in this initramfs", uts.release);
		return;
	}
	if (list) {
		while ((name = strsep(&list, ",")))
			module_load(directory, deps, name);
	} else {
		if (pci_has_virtio())
			module_load(directory, deps, "virtio_pci");
		if (acpi_has_virtio())
			module_load(directory, deps, "virtio_mmio");
		modules_load_drivers(directory, deps);
	}
	free(deps);
}

/*
 * A virtio console is there only now, since its driver is a module: where the
 * kernel was told to use it, /dev/console means it from here on, and what was
 * opened before does not.
 */
static void console_reopen(void)
{
	int fd, i;

	if (access("/dev/hvc0", F_OK))
		return;
	fd = open("/dev/console", O_RDWR | O_NOCTTY);
	if (fd < 0)
		return;
	for (i = 0; i <= STDERR_FILENO; i++)
		if (i != fd)
			dup2(fd, i);
	if (fd > STDERR_FILENO)
		close(fd);
}

/* Run a shell to its end; the status as a shell would report it. */
static int shell_run(const char *command, bool terminal)
{
	pid_t pid = fork(), ended;
	int status;

	if (!pid) {
		setsid();
		if (terminal)
			ioctl(STDIN_FILENO, TIOCSCTTY, 1);
		if (command)
			execl("/bin/sh", "sh", "-c", command, NULL);
		else
			execl("/bin/sh", "sh", "-i", NULL);
		say("/bin/sh: %s", strerror(errno));
		_exit(127);
	}
	if (pid < 0) {
		say("fork: %s", strerror(errno));
		return 126;
	}
	/* Others end here too: an orphan's parent is PID 1. */
	while ((ended = wait(&status)) != pid)
		if (ended < 0 && errno != EINTR)
			return 126;
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status)
				   : WEXITSTATUS(status);
}

/* End the guest the way that was asked for; returns where that fails. */
static void guest_end(const char *verb)
{
	tcdrain(STDOUT_FILENO);
	if (!strcmp(verb, "panic")) {
		file_put("/proc/sysrq-trigger", "c");
		return;
	}
	if (!strcmp(verb, "stay"))
		for (;;)
			pause();
	sync();
	if (!strcmp(verb, "reboot")) {
		reboot(RB_AUTOBOOT);
	} else if (!strcmp(verb, "triple")) {
		if (!file_put("/sys/kernel/reboot/type", "triple"))
			say("this kernel does not let me choose triple faults");
		reboot(RB_AUTOBOOT);
	} else if (!strcmp(verb, "halt")) {
		reboot(RB_HALT_SYSTEM);
	} else if (!strcmp(verb, "debug")) {
		/* These kernels have no /dev/port to do it from a shell. */
		if (!ioperm(DEBUG_EXIT_PORT, 1, 1))
			outb(DEBUG_EXIT_CODE, DEBUG_EXIT_PORT);
	} else {
		if (strcmp(verb, "poweroff"))
			say("quire.end=%s is unknown: powering off", verb);
		reboot(RB_POWER_OFF);
	}
	say("end %s: %s", verb, strerror(errno));
}

/*
 * Remove what the initramfs holds, which is memory. Only files of its own file
 * system: what is mounted below is another.
 */
static void rootfs_clear(int dir_fd, dev_t device)
{
	DIR *dir = fdopendir(dir_fd);
	struct dirent *entry;
	struct stat st;

	if (!dir) {
		close(dir_fd);
		return;
	}
	while ((entry = readdir(dir))) {
		const char *name = entry->d_name;
		int fd;

		if (!strcmp(name, ".") || !strcmp(name, "..") ||
		    fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) ||
		    st.st_dev != device)
			continue;
		if (S_ISDIR(st.st_mode)) {
			fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY);
			if (fd >= 0)
				rootfs_clear(fd, device);
		}
		unlinkat(dir_fd, name, S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0);
	}
	closedir(dir);
}

static bool root_mount(const char *root, const char *where)
{
	const char *tag = value_of((char *)(uintptr_t)root, "virtiofs:");
	const char *source = tag ? tag : root;
	const char *type = tag ? "virtiofs" : "ext4";
	int tries;

	if (mkdir(where, 0755) && errno != EEXIST)
		return false;
	/* A disk takes a moment after its driver. */
	for (tries = 0; mount(source, where, type, 0, NULL); tries++) {
		if (errno != ENOENT || tag || tries == 50) {
			say("mount %s as %s: %s", source, type,
			    strerror(errno));
			return false;
		}
		usleep(100000);
	}
	return true;
}

/* Become the init of another root; returns where that fails. */
static void root_switch(const char *root)
{
	static const char *const moved[] = { "/proc", "/sys", "/dev" };
	static const char where[] = "/newroot";
	char *const argv[] = { "/sbin/init", NULL };
	char path[32];
	struct stat st;
	size_t i;
	int old;

	if (!root_mount(root, where))
		return;
	for (i = 0; i < sizeof(moved) / sizeof(moved[0]); i++) {
		snprintf(path, sizeof(path), "%s%s", where, moved[i]);
		if (mount(moved[i], path, NULL, MS_MOVE, NULL))
			say("move %s: %s", moved[i], strerror(errno));
	}
	say("root %s", root);
	old = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (chdir(where) || mount(".", "/", NULL, MS_MOVE, NULL) ||
	    chroot(".") || chdir("/")) {
		say("switch to %s: %s", root, strerror(errno));
		return;
	}
	if (old >= 0 && !fstat(old, &st))
		rootfs_clear(old, st.st_dev);
	execv(argv[0], argv);
	say("%s: %s", argv[0], strerror(errno));
}

int init_main(int argc, char **argv)
{
	struct asked asked = { 0 };

	(void)argc;
	(void)argv;
	if (getpid() != 1) {
		fputs("init: this is for PID 1 of a guest\n", stderr);
		return 2;
	}
	say_started();
	mounts_make();
	asked_read(&asked);
	modules_load(asked.modules);
	console_reopen();
	if (asked.root) {
		root_switch(asked.root);
		asked.end = "poweroff";
		asked.command = NULL;
		asked.shell = false;
	}
	setenv("PATH", "/bin", 1);
	setenv("HOME", "/root", 1);
	if (asked.command)
		say("exit %d", shell_run(asked.command, false));
	if (asked.shell) {
		if (isatty(STDIN_FILENO))
			shell_run(NULL, true);
		else
			say("quire.shell: the console is no terminal");
	}
	guest_end(asked.end);
	for (;;)
		pause();
}
