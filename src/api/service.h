/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM that can be found and talked to: its entry in the runtime directory
 * (api/rundir.h) and the server behind it (api/server.h). Control thread; the
 * same order of calls as for the server.
 */
#ifndef QUIRE_API_SERVICE_H
#define QUIRE_API_SERVICE_H

#include "base/thread_class.h"
#include "sandbox/paths.h"

struct api_service;
struct vmm;

/*
 * name: of the entry, NULL: "vm-PID". path: where the socket is to be, NULL: in
 * the entry. What was asked for by name or path has to work. When neither was,
 * the VM is more important: without a usable runtime directory it goes
 * unlisted, which is said once, and *ret is NULL.
 */
__must_check int api_service_open(struct api_service **ret, struct vmm *vmm,
				  const char *name, const char *path,
				  struct err *err);
/* Answer; starts threads. NULL is fine. */
__must_check int api_service_serve(struct api_service *s, struct err *err);

/* What has to be reached by name at the end. NULL is fine. */
__must_check int api_service_paths(const struct api_service *s,
				   struct sandbox_paths *paths,
				   struct err *err);

/* Of the threads that it starts, those of its work among them; ends with NULL.
 */
extern const struct thread_class *const api_thread_classes[];

/* vmm_run() has returned. Nobody finds the VM any more. NULL is fine. */
void api_service_stop(struct api_service *s);
/* vmm_free() has been called. NULL is fine. */
void api_service_free(struct api_service *s);

#endif
