/* SPDX-License-Identifier: Apache-2.0 */
/* bzImage files: setup header, payload, placement, zero page. */
#include "fuzz_boot.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct fuzz_boot fuzz;

	if (!fuzz.ram.base)
		fuzz_boot_start(&fuzz);
	fuzz_boot_run(&fuzz, data, size);
	return 0;
}
