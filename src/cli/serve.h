/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the commands that are a VM share: the control API and the name under
 * which it is found, the event loop, and how it ends.
 */
#ifndef QUIRE_CLI_SERVE_H
#define QUIRE_CLI_SERVE_H

#include <stdbool.h>

#include "cli/cli.h"

struct api_service;
struct sandbox_paths;
struct vmm;

struct cli_serve {
	const struct cli_command *command; /* for messages */
	const char *name;		   /* of the VM; may be NULL */
	/* Where the API listens, and whose client decides on the end; NULL. */
	const char *api_socket;
	bool print_summary;
	const char *summary_json; /* path or NULL */
	/*
	 * Enter the sandbox (vm/confine.h): after the API's socket is made,
	 * before anything else.
	 */
	int (*confine)(const struct cli_serve *serve,
		       const struct api_service *api, struct err *err);
	/* Have the VM; on the control thread, before the loop. */
	int (*begin)(void *ctx, struct vmm *vmm, struct err *err);
	/*
	 * The loop has ended, or it never came to that: vmm_call() fails. What
	 * begin() left behind is to end now. May be NULL.
	 */
	void (*end)(void *ctx);
	void *ctx;
};

/* For confine(): what serving needs by name when the process is confined. */
__must_check int cli_serve_paths(const struct cli_serve *serve,
				 const struct api_service *api,
				 struct sandbox_paths *paths, struct err *err);

/* Until the VM ends, or quire is to. Returns the exit status. */
int cli_serve(const struct cli_serve *serve);

#endif
