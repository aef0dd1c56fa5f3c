/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The lab's guest tools: one static program, named by its links.
 *
 * One program rather than several because each static program would carry its
 * own copy of the C library into an initramfs whose size is boot time.  The
 * tools use nothing of the VMM, so that they judge it independently, and run
 * on the host too (blkverify checks an image file there).
 *
 * Every tool is an ordinary main(): arguments in, exit status out, results on
 * standard output.  Usage errors exit with 2.
 */
#ifndef QUIRE_GUEST_TOOLS_H
#define QUIRE_GUEST_TOOLS_H

#include <stdbool.h>
#include <stdint.h>

int init_main(int argc, char **argv);
int memtouch_main(int argc, char **argv);
int blkverify_main(int argc, char **argv);
int vsocktest_main(int argc, char **argv);
int nettest_main(int argc, char **argv);

/* A decimal number in [min, max], nothing after it; false if it is not. */
bool tools_number(const char *text, uint64_t min, uint64_t max,
		  uint64_t *ret_value);

/* Seconds of the monotonic clock. */
double tools_seconds(void);

#endif
