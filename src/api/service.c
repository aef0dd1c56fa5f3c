/* SPDX-License-Identifier: Apache-2.0 */
#include "api/service.h"

#include <errno.h>
#include <stdlib.h>

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
	r = api_server_start(&s->server, vmm, socket, err);
	if (r && !path)
		err_prefix(err, "%s", socket);
	return r;
}

int api_service_start(struct api_service **ret, struct vmm *vmm,
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
