/* SPDX-License-Identifier: Apache-2.0 */
#include "api/service.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/rundir.h"
#include "api/server.h"
#include "base/log.h"

struct api_service {
	struct rundir_claim *claim;
	struct api_server *server;
};

static int start(struct api_service *s, struct vmm *vmm, const char *name,
		 const char *path, struct err *err)
{
	const char *socket = path;
	int r = rundir_claim(&s->claim, name, err);

	/* With a path it can be reached all the same. */
	if (r && path && !name) {
		log_info("not listed in quire ps: %s", err->text);
		r = 0;
	}
	if (r)
		return r;
	if (!socket)
		socket = rundir_claim_socket(s->claim);
	else if (s->claim)
		r = rundir_claim_link(s->claim, path, err);
	if (r)
		return r;
	r = api_server_open(&s->server, vmm, socket, err);
	if (r && !path)
		err_prefix(err, "%s", socket);
	return r;
}

int api_service_open(struct api_service **ret, struct vmm *vmm,
		     const char *name, const char *path, struct err *err)
{
	struct api_service *s = calloc(1, sizeof(*s));
	int r;

	*ret = NULL;
	if (!s)
		return err_set(err, ENOMEM, "out of memory");
	r = start(s, vmm, name, path, err);
	if (!r) {
		*ret = s;
		return 0;
	}
	api_service_free(s);
	if (name || path) {
		err_prefix(err, "%s %s", path ? "--api-socket" : "--name",
			   path ? path : name);
		return r;
	}
	log_info("without a control API: %s", err->text);
	return 0;
}

int api_service_serve(struct api_service *s, struct err *err)
{
	return s ? api_server_serve(s->server, err) : 0;
}

int api_service_paths(const struct api_service *s, struct sandbox_paths *paths,
		      struct err *err)
{
	char dir[RUNDIR_MAX_PATH];
	int r;

	if (!s || !s->claim)
		return 0;
	snprintf(dir, sizeof(dir), "%s", rundir_claim_socket(s->claim));
	/* The entry, and the folder that it is removed from. */
	*strrchr(dir, '/') = '\0';
	r = sandbox_paths_add(paths, dir, SANDBOX_REMOVE | SANDBOX_RMDIR, true,
			      err);
	if (r)
		return r;
	*strrchr(dir, '/') = '\0';
	return sandbox_paths_add(paths, dir, SANDBOX_RMDIR, true, err);
}

void api_service_stop(struct api_service *s)
{
	if (!s)
		return;
	api_server_stop(s->server);
	rundir_release(s->claim);
	s->claim = NULL;
}

void api_service_free(struct api_service *s)
{
	if (!s)
		return;
	api_service_stop(s);
	api_server_free(s->server);
	free(s);
}
