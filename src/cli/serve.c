/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/serve.h"

#include <errno.h>
#include <malloc.h>
#include <stdio.h>

#include "api/service.h"
#include "mem/ram.h"
#include "vm/summary.h"
#include "vm/vmm.h"

static int report(const struct cli_serve *s, const struct vm_result *res)
{
	if (res->signal)
		return 128 + res->signal;
	switch (res->end) {
	case MACHINE_END_DEBUG_EXIT:
		return (int)(res->code & 0xff);
	case MACHINE_END_CRASH:
	case MACHINE_END_PANIC:
	case MACHINE_END_WATCHDOG:
		fprintf(stderr, "quire %s: guest crash: %s\n", s->command->name,
			res->text);
		return CLI_FAILURE;
	case MACHINE_END_ERROR:
		fprintf(stderr,
			"quire %s: %s; `quire doctor` says whether this host "
			"runs Linux guests\n",
			s->command->name, res->text);
		return CLI_FAILURE;
	case MACHINE_END_NONE:
	case MACHINE_END_POWEROFF:
	case MACHINE_END_REBOOT:
		break;
	}
	return CLI_OK;
}

/* Have the VM, and serve until quire is to end. */
static int run_vmm(const struct cli_serve *s, struct vmm *vmm,
		   struct vm_result *ret, struct err *err)
{
	int r;

	/* Who drives quire over the API decides when it ends. */
	vmm_set_stays(vmm, s->api_socket != NULL);
	r = s->begin(s->ctx, vmm, err);
	/* The signal that ended the boot is waiting for the loop. */
	if (r == -ECANCELED)
		r = 0;
	/* What it took to build the VM serves no guest. */
	malloc_trim(0);
	return r ? r : vmm_run(vmm, ret, err);
}

static int run_and_account(const struct cli_serve *s, struct vmm *vmm)
{
	struct vm_result result;
	struct err err = ERR_INIT;
	int status;

	if (run_vmm(s, vmm, &result, &err))
		return cli_fail(s->command, &err);
	status = report(s, &result);
	if (s->print_summary)
		vm_summary_print(vmm_summary(vmm), stderr);
	if (s->summary_json &&
	    vm_summary_write_json(vmm_summary(vmm), s->summary_json, &err))
		return cli_fail(s->command, &err);
	return status;
}

/* In the order in which rights are given up. */
static int start(const struct cli_serve *s, struct vmm *vmm,
		 struct api_service **ret_api, struct err *err)
{
	/* Before the VM is built: a name that is taken is known at once. */
	int r = api_service_open(ret_api, vmm, s->name, s->api_socket, err);

	/* Not after hours of running. */
	if (!r && s->summary_json)
		r = vm_summary_check_path(s->summary_json, err);
	if (!r) {
		vmm_prepare_paging(vmm);
		r = s->confine(s, *ret_api, err);
	}
	return r ? r : api_service_serve(*ret_api, err);
}

int cli_serve_paths(const struct cli_serve *s, const struct api_service *api,
		    struct sandbox_paths *paths, struct err *err)
{
	int r = api_service_paths(api, paths, err);

	if (!r && s->api_socket)
		r = sandbox_paths_add_parent(paths, s->api_socket,
					     SANDBOX_REMOVE, true, err);
	if (!r && s->summary_json)
		r = sandbox_paths_add_parent(paths, s->summary_json,
					     SANDBOX_MAKE, false, err);
	return r;
}

int cli_serve(const struct cli_serve *s)
{
	struct api_service *api = NULL;
	struct err err = ERR_INIT;
	struct vmm *vmm;
	int status;

	/* With one thread it is free; with more it waits for all CPUs. */
	ram_dirty_prepare();
	if (vmm_new(&vmm, &err))
		return cli_fail(s->command, &err);
	status = start(s, vmm, &api, &err) ? cli_fail(s->command, &err)
					   : run_and_account(s, vmm);
	/* Whoever waits for the VM is told that it will not come. */
	vmm_interrupt_calls(vmm);
	if (s->end)
		s->end(s->ctx);
	api_service_stop(api);
	vmm_free(vmm);
	/* The last events went there. */
	api_service_free(api);
	return status;
}
