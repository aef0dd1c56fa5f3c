/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/kvlist.h"
#include "sandbox/sandbox.h"

/* The greatest but one: (uid_t)-1 means "leave it" to system calls. */
#define MAX_ID (UINT32_MAX - 1)

void sandbox_config_init(struct sandbox_config *cfg)
{
	*cfg = (struct sandbox_config){
		.seccomp = SANDBOX_SECCOMP_ON,
		.landlock = SANDBOX_LANDLOCK_AUTO,
	};
}

void sandbox_config_fini(struct sandbox_config *cfg)
{
	sandbox_paths_fini(&cfg->rules);
	free(take_ptr(cfg->chroot));
}

/* Cloud Hypervisor's words are taken, too. */
int sandbox_set_seccomp(struct sandbox_config *cfg, const char *text,
			struct err *err)
{
	int i, r;

	if (!strcmp(text, "true"))
		text = "on";
	if (!strcmp(text, "false"))
		text = "off";
	r = kvlist_enum(text, sandbox_seccomp_names,
			ARRAY_SIZE(sandbox_seccomp_names), &i, err);
	if (!r)
		cfg->seccomp = (enum sandbox_seccomp)i;
	return r;
}

int sandbox_set_landlock(struct sandbox_config *cfg, const char *text,
			 struct err *err)
{
	static const char *const names[] = {
		[SANDBOX_LANDLOCK_AUTO] = "auto",
		[SANDBOX_LANDLOCK_ON] = "on",
		[SANDBOX_LANDLOCK_OFF] = "off",
	};
	int i, r = kvlist_enum(text, names, ARRAY_SIZE(names), &i, err);

	if (!r)
		cfg->landlock = (enum sandbox_landlock)i;
	return r;
}

struct rule {
	char *path;
	unsigned int access;
};

static int set_path(void *obj, const char *value, struct err *err)
{
	struct rule *rule = obj;

	if (!*value)
		return err_set(err, EINVAL, "empty");
	return kvlist_string(value, &rule->path, err);
}

/* A snapshot is a directory. */
#define WRITE (SANDBOX_WRITE | SANDBOX_MAKE | SANDBOX_MKDIR | SANDBOX_RMDIR)

static int set_access(void *obj, const char *value, struct err *err)
{
	static const char *const names[] = { "r", "w", "rw" };
	static const unsigned int access[] = {
		SANDBOX_READ,
		WRITE,
		SANDBOX_READ | WRITE,
	};
	struct rule *rule = obj;
	int i, r = kvlist_enum(value, names, ARRAY_SIZE(names), &i, err);

	if (!r)
		rule->access = access[i] | SANDBOX_IOCTL;
	return r;
}

int sandbox_add_landlock_rules(struct sandbox_config *cfg, const char *text,
			       struct err *err)
{
	static const struct kvlist_key keys[] = {
		{ "path", set_path },
		{ "access", set_access },
	};
	struct rule rule = { .path = NULL };
	int r = kvlist_parse("--landlock-rules", text, "path", keys,
			     ARRAY_SIZE(keys), &rule, err);

	if (!r && (!rule.path || !rule.access))
		r = err_set(err, EINVAL,
			    "--landlock-rules: path=PATH,access=r|w|rw");
	if (!r)
		r = sandbox_paths_add(&cfg->rules, rule.path, rule.access,
				      false, err);
	free(rule.path);
	return r;
}

static int set_jail_on(void *obj, const char *value, struct err *err)
{
	return kvlist_bool(value, &((struct sandbox_config *)obj)->jail, err);
}

static int set_uid(void *obj, const char *value, struct err *err)
{
	struct sandbox_config *cfg = obj;

	cfg->has_uid = true;
	return kvlist_u32(value, 1, MAX_ID, &cfg->uid, err);
}

static int set_gid(void *obj, const char *value, struct err *err)
{
	struct sandbox_config *cfg = obj;

	cfg->has_gid = true;
	return kvlist_u32(value, 1, MAX_ID, &cfg->gid, err);
}

static int set_chroot(void *obj, const char *value, struct err *err)
{
	struct sandbox_config *cfg = obj;

	if (*value != '/')
		return err_set(err, EINVAL, "not an absolute path");
	return kvlist_string(value, &cfg->chroot, err);
}

int sandbox_set_jail(struct sandbox_config *cfg, const char *text,
		     struct err *err)
{
	static const struct kvlist_key keys[] = {
		{ "jail", set_jail_on },
		{ "uid", set_uid },
		{ "gid", set_gid },
		{ "chroot", set_chroot },
	};

	cfg->jail = true;
	return kvlist_parse("--jail", text, "jail", keys, ARRAY_SIZE(keys), cfg,
			    err);
}
