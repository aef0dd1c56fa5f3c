/* SPDX-License-Identifier: Apache-2.0 */
#include "device/chardev.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "device/chardev_priv.h"

void chardev_config_init(struct chardev_config *cfg)
{
	*cfg = (struct chardev_config){
		.kind = CHARDEV_TTY,
		.option = "--serial",
	};
}

void chardev_config_fini(struct chardev_config *cfg)
{
	free(cfg->path);
	cfg->path = NULL;
}

static const struct {
	const char *name;
	enum chardev_kind kind;
} chardev_names[] = {
	{ "tty", CHARDEV_TTY },	  { "stdio", CHARDEV_TTY },
	{ "null", CHARDEV_NULL }, { "off", CHARDEV_NULL },
	{ "file", CHARDEV_FILE }, { "socket", CHARDEV_SOCKET },
};

int chardev_config_parse(struct chardev_config *cfg, const char *option,
			 const char *text, struct err *err)
{
	size_t len = strcspn(text, "=");
	const char *value = text[len] ? text + len + 1 : NULL;
	enum chardev_kind kind = CHARDEV_NULL;
	bool known = false, wants_path;
	char *path = NULL;

	for (size_t i = 0; i < ARRAY_SIZE(chardev_names) && !known; i++) {
		kind = chardev_names[i].kind;
		known = strlen(chardev_names[i].name) == len &&
			!strncmp(chardev_names[i].name, text, len);
	}
	wants_path = kind == CHARDEV_FILE || kind == CHARDEV_SOCKET;
	if (!known || wants_path != (value != NULL))
		return err_set(err, EINVAL,
			       "%s %s: not one of tty, null, file=PATH, "
			       "socket=PATH",
			       option, text);
	if (wants_path && !*value)
		return err_set(err, EINVAL, "%s %s: the path is missing",
			       option, text);
	if (wants_path) {
		path = strdup(value);
		if (!path)
			return err_set(err, ENOMEM, "%s: out of memory",
				       option);
	}
	chardev_config_fini(cfg);
	cfg->kind = kind;
	cfg->path = path;
	cfg->option = option;
	cfg->given = true;
	return 0;
}

static void null_free(struct chardev *chr)
{
	free(chr);
}

static const struct chardev_ops null_ops = {
	.free = null_free,
};

static int null_new(struct chardev **ret)
{
	struct chardev *chr = calloc(1, sizeof(*chr));

	if (!chr)
		return -ENOMEM;
	chr->ops = &null_ops;
	*ret = chr;
	return 0;
}

int chardev_new(struct chardev **ret, const struct chardev_config *cfg,
		struct err *err)
{
	int r = -EINVAL;

	switch (cfg->kind) {
	case CHARDEV_TTY:
		return chardev_tty_new(ret, cfg, err);
	case CHARDEV_FILE:
		return chardev_file_new(ret, cfg, err);
	case CHARDEV_SOCKET:
		return chardev_socket_new(ret, cfg, err);
	case CHARDEV_NULL:
		r = null_new(ret);
		break;
	}
	return r ? err_errno(err, -r, "%s null", cfg->option) : 0;
}

void chardev_free(struct chardev *chr)
{
	if (chr)
		chr->ops->free(chr);
}

void chardev_set_client(struct chardev *chr,
			const struct chardev_client *client)
{
	chr->client = client ? *client : (struct chardev_client){ .ctx = NULL };
}

int chardev_start(struct chardev *chr, struct evloop *loop, struct err *err)
{
	return chr->ops->start ? chr->ops->start(chr, loop, err) : 0;
}

void chardev_write(struct chardev *chr, const uint8_t *data, size_t len)
{
	if (chr->ops->write)
		chr->ops->write(chr, data, len);
}

void chardev_resume_input(struct chardev *chr)
{
	if (chr->ops->resume_input)
		chr->ops->resume_input(chr);
}

int chardev_flush(struct chardev *chr, uint64_t stall_ns)
{
	return chr->ops->flush ? chr->ops->flush(chr, stall_ns) : 0;
}

void chardev_set_waiting(struct chardev *chr, bool waiting)
{
	if (chr->ops->set_waiting)
		chr->ops->set_waiting(chr, waiting);
}

uint64_t chardev_dropped(struct chardev *chr)
{
	return chr->ops->dropped ? chr->ops->dropped(chr) : 0;
}

int chardev_size(struct chardev *chr, uint16_t *ret_cols, uint16_t *ret_rows)
{
	return chr->ops->size ? chr->ops->size(chr, ret_cols, ret_rows)
			      : -ENOTTY;
}

/* -- what the implementations share -- */

size_t chardev_room(const struct chardev *chr)
{
	return chr->client.room ? chr->client.room(chr->client.ctx) : 0;
}

void chardev_receive(const struct chardev *chr, const uint8_t *data, size_t len)
{
	if (len && chr->client.receive)
		chr->client.receive(chr->client.ctx, data, len);
}

void chardev_receive_break(const struct chardev *chr)
{
	if (chr->client.receive_break)
		chr->client.receive_break(chr->client.ctx);
}

void chardev_resized(const struct chardev *chr)
{
	if (chr->client.resized)
		chr->client.resized(chr->client.ctx);
}
