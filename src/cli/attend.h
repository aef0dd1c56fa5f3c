/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ask a running VM for what its process cannot do alone: it is confined, makes
 * neither files nor network connections, and is handed these. So while a second
 * thread asks over the control API and waits for the answer, the command
 * attends to that process on a socket of its own, whose path goes with the
 * question. SIGINT, SIGTERM or SIGHUP closes the socket: the other process then
 * gives up, if it still can, the guest goes on, and its answer says so.
 *
 * The command's main thread; signals stay blocked in it until one was taken.
 */
#ifndef QUIRE_CLI_ATTEND_H
#define QUIRE_CLI_ATTEND_H

#include <pthread.h>

#include <jansson.h>

#include "base/err.h"
#include "base/unix_socket.h"
#include "cli/ask.h"

struct attend {
	/* The command's to set; all of it outlives the end. */
	const struct cli_command *command;
	const char *vm;	   /* as cli_question has it */
	const char *verb;  /* "vm.snapshot" */
	json_t *body;	   /* of the question */
	const char *field; /* of body, that gets the path of the socket */
	/*
	 * The VM's process has connected, once at the most; NULL: nothing is to
	 * be done. And: it has something to say, or has hung up. conn_fd stays
	 * ours, and is closed if they do not return 0.
	 */
	int (*connected)(void *ctx, int conn_fd);
	int (*readable)(void *ctx, int conn_fd);
	void *ctx;

	/* What came of it, after attend_run(). */
	int status;		  /* of cli_ask() */
	int signal;		  /* that ended it; 0: none did */
	struct api_answer answer; /* with CLI_OK; the text: attend_end()'s */

	/* Private. */
	char dir[40];
	struct unix_listener listener;
	int conn_fd; /* of the VM's process; -1: not yet, not any more */
	int signal_fd;
	int done_fd; /* eventfd: there is an answer */
	pthread_t asker;
};

/* Nothing is open; before anything else. The fields to set stay as they are. */
void attend_init(struct attend *a);
/* The socket, and its path in the question. */
__must_check int attend_open(struct attend *a, struct err *err);
/* Ask, and attend until there is an answer. An error: nothing was asked. */
__must_check int attend_run(struct attend *a, struct err *err);
/* All is closed and removed, the answer freed. */
void attend_end(struct attend *a);

#endif
