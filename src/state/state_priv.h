/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The frame of a document, which docs/state-format.md specifies. All integers
 * are little-endian; nothing is aligned.
 */
#ifndef QUIRE_STATE_STATE_PRIV_H
#define QUIRE_STATE_STATE_PRIV_H

#include "state/state.h"

#define STATE_MAGIC	  "QUIRESTA"
#define STATE_MAGIC_BYTES 8u
#define STATE_VERSION	  1u

/* Header: magic, version, number of sections, bytes of the document. */
#define STATE_HEADER_BYTES    24u
#define STATE_HEADER_VERSION  8u
#define STATE_HEADER_SECTIONS 12u
#define STATE_HEADER_LENGTH   16u

/* Section header; name, instance and payload follow. */
#define STATE_SECTION_BYTES	   16u
#define STATE_SECTION_LENGTH	   0u /* of the payload */
#define STATE_SECTION_VERSION	   4u
#define STATE_SECTION_FLAGS	   6u
#define STATE_SECTION_NAME_LEN	   8u
#define STATE_SECTION_INSTANCE_LEN 9u
#define STATE_SECTION_FIELDS	   10u
#define STATE_SECTION_ZERO	   12u

/* Field header; the value follows. */
#define STATE_FIELD_HEADER_BYTES 8u
#define STATE_FIELD_TAG		 0u
#define STATE_FIELD_FLAGS	 2u
#define STATE_FIELD_LENGTH	 4u

/* In the flags of both. Other bits are zero. */
#define STATE_FLAG_SKIPPABLE 1u

/* Trailer: XXH64, seed 0, of all that is before it. */
#define STATE_TRAILER_BYTES 8u

#endif
