/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole machine as saved state, but for guest memory and disks: what
 * snapshots and live migration share.
 *
 * The order, when saving: machine_pause(), machine_save(), and only then the
 * guest memory that has not been copied yet, for devices complete their
 * requests, in guest memory, until machine_save() returns. The machine can go
 * on with machine_resume(), as if nothing had been.
 *
 * When loading: machine_new() with an origin, which puts guest memory in its
 * place (or a pager behind it: KVM already wants the pages of its clocks when
 * MSRs are loaded), machine_load(), machine_start(), machine_resume(). quire
 * itself neither reads nor writes guest memory before machine_resume().
 *
 * Control thread only.
 */
#ifndef QUIRE_VM_MACHINE_STATE_H
#define QUIRE_VM_MACHINE_STATE_H

#include "state/state.h"
#include "vm/machine.h"

/* Requests that devices have taken get that long to complete. */
#define MACHINE_DRAIN_MS 10000u

/*
 * Append the sections of a paused machine; the writer is finished by the
 * caller, who may add sections of its own. -ENOTSUP: it has a device that
 * cannot be saved; -EBUSY: a device is just being removed; -ETIMEDOUT: a
 * request does not end.
 */
__must_check int machine_save(struct machine *m, struct state_writer *w,
			      struct err *err);

/* Would machine_save() refuse it for what it has? Running or not. */
__must_check int machine_check_saved(const struct machine *m, struct err *err);

/*
 * Load them into a machine of the same configuration that was built to be
 * restored and has not been started. It is paused then, at the instant at which
 * it was saved. Devices go to the PCI slots that they had. After a failure it
 * can only be freed.
 */
__must_check int machine_load(struct machine *m, struct state_reader *r,
			      struct err *err);

#endif
