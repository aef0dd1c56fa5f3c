/* SPDX-License-Identifier: Apache-2.0 */
/* CPUs of the host, as far as this process may use them. Any thread. */
#ifndef QUIRE_BASE_CPUS_H
#define QUIRE_BASE_CPUS_H

/* How many CPUs the calling thread may run on; at least 1. */
unsigned int cpus_allowed(void);

#endif
