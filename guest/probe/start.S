/* SPDX-License-Identifier: Apache-2.0 */
/*
 * First instruction of a payload. The host sets RSP to the top of this vCPU's
 * stack, 16-byte aligned, and RDI to the argument.
 */
	.section .text.start, "ax"
	.globl _start
_start:
	xorl	%ebp, %ebp
	call	payload_main
	ud2				/* it does not return */

	.section .note.GNU-stack, "", @progbits
