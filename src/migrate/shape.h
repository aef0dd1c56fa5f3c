/* SPDX-License-Identifier: Apache-2.0 */
/* What a machine is, as the other side is told. Control thread. */
#ifndef QUIRE_MIGRATE_SHAPE_H
#define QUIRE_MIGRATE_SHAPE_H

#include "migrate/wire.h"

struct machine;

void migrate_shape(const struct machine *m, struct wire_machine *ret);

#endif
