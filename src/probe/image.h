/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The payload images, built from guest/probe/ and embedded by the build. Each
 * is loaded at PROBE_VA_CODE and entered at its first byte.
 */
#ifndef QUIRE_PROBE_IMAGE_H
#define QUIRE_PROBE_IMAGE_H

#include <stddef.h>
#include <stdint.h>

extern const uint8_t probe_payload[];
extern const size_t probe_payload_size;

#endif
