/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Receive a VM from another quire (docs/migration-protocol.md), into the one
 * that was created in this process: its memory lands while it still runs there,
 * and is mapped in the second stage as each unit is complete.
 */
#ifndef QUIRE_MIGRATE_RECEIVE_H
#define QUIRE_MIGRATE_RECEIVE_H

#include "base/err.h"
#include "base/thread_class.h"

struct tls_credentials;
struct vmm;

/* What migrate_receive() does, for a thread of its own. */
extern const struct thread_class migrate_receive_thread_class;

/*
 * Wait for a VM on listen_fd, non-blocking, and have it; with tls (NULL: none)
 * from nobody else than whom that lets in. Any thread but the control thread.
 * 0: it runs, or is paused as it was. Otherwise it never did,
 * and the VM is CREATED as before; -ECANCELED, -ESHUTDOWN: quire is ending.
 */
__must_check int migrate_receive(struct vmm *v, int listen_fd,
				 const struct tls_credentials *tls,
				 struct err *err);

#endif
