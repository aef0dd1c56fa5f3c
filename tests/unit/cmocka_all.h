/* SPDX-License-Identifier: Apache-2.0 */
/* cmocka needs these headers before its own, in this order. */
#ifndef QUIRE_TESTS_CMOCKA_ALL_H
#define QUIRE_TESTS_CMOCKA_ALL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#endif
