/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control API: HTTP/1.1 and JSON on a Unix socket, for one VM. What can be
 * asked is in api/route.h; docs/api/ describes it for clients.
 *
 *	api_server_open -> api_server_serve -> vmm_run -> api_server_stop
 *		-> vmm_free -> api_server_free
 *
 * All on the control thread. The server has two threads of its own: one that
 * does all HTTP and never waits for the VM, and one that carries verbs to the
 * control thread (vmm_call()) and does.
 *
 * Whoever can connect to the socket is trusted with the VM, but not with the
 * process: what is sent is checked before it goes anywhere, and clients that
 * are slow, many or gone hold up nobody but themselves.
 */
#ifndef QUIRE_API_SERVER_H
#define QUIRE_API_SERVER_H

#include "base/err.h"

struct api_server;
struct vmm;

#define API_MAX_CONNECTIONS 64
#define API_MAX_DRAIN	    ((size_t)16 << 20) /* of a body that is refused */
#define API_READ_SECONDS    10 /* for a whole request; idle ones, too */
#define API_WRITE_SECONDS   10 /* for a whole answer; a late listener's rest */
#define API_DRAIN_SECONDS   1  /* at the end, for answers on their way */

/*
 * Listen, and start no thread yet. path: of the socket, which only its user
 * (and root) can connect to; err does not name it.
 */
__must_check int api_server_open(struct api_server **ret, struct vmm *vmm,
				 const char *path, struct err *err);

/* Answer. */
__must_check int api_server_serve(struct api_server *s, struct err *err);

/*
 * Verbs under way are finished or refused, answers sent as far as their readers
 * are quick, listeners of events get their last line. The socket and the
 * threads are gone then; vmm_run() has returned. NULL is fine.
 */
void api_server_stop(struct api_server *s);

/*
 * After vmm_free(): until then events still come here. Stops it if that was not
 * done. NULL is fine.
 */
void api_server_free(struct api_server *s);

#endif
