/* SPDX-License-Identifier: Apache-2.0 */
#include "virtio/console/console_backend.h"

#include "base/cleanup.h"
#include "base/log.h"

int console_backend_open(struct console_backend *b, struct err *err)
{
	int r;

	if (b->chr)
		return 0;
	if (!b->loop) {
		r = evloop_new(&b->loop);
		if (r)
			return err_errno(err, -r, "--console");
	}
	return chardev_new(&b->chr, &b->cfg, err);
}

int console_backend_start(struct console_backend *b, struct err *err)
{
	int r;

	if (b->started)
		return 0;
	r = chardev_start(b->chr, b->loop, err);
	b->started = r == 0;
	return r;
}

static void close_chardev(struct console_backend *b)
{
	uint64_t lost = b->chr ? chardev_dropped(b->chr) : 0;

	if (lost)
		log_warn("%llu bytes of --console output were lost: its reader "
			 "was too slow or gone",
			 (unsigned long long)lost);
	chardev_free(take_ptr(b->chr));
	b->started = false;
}

void console_backend_release(struct console_backend *b)
{
	if (b->chr)
		chardev_set_client(b->chr, NULL);
	if (b->cfg.kind == CHARDEV_TTY)
		close_chardev(b);
}

void console_backend_close(struct console_backend *b)
{
	close_chardev(b);
	evloop_free(take_ptr(b->loop));
	chardev_config_fini(&b->cfg);
}
