/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the PVH entry (32-bit, no paging) to hostile_main() in long mode at CPL3
 * with every I/O port open, on the boot CPU and on each CPU woken later.
 *
 * Kernel mode is left as early as can be: where KVM emulates it, it is a
 * thousand times slower. There is no IDT, so any exception is a triple fault;
 * with PAYLOAD_SLEEPS there is one for the timer of the boot CPU's APIC, and for
 * an interrupt by which the payload has that CPU sleep until the timer fires.
 * Sources: Xen docs/misc/pvh.pandoc; AMD64 APM volume 2, chapters 4, 5, 14.
 */
#define MAX_CPUS    8
#define STACK_SHIFT 14
#define TRAMPOLINE  0x8000

#define SEL_CODE32    0x08
#define SEL_CODE64    0x10
#define SEL_DATA      0x18
#define SEL_USER_DATA 0x20
#define SEL_USER_CODE 0x28
#define SEL_TSS	      0x30

#define VECTOR_TIMER 0x20
#define VECTOR_SLEEP 0x21
#define LAPIC_EOI    0xfee000b0

#ifdef PAYLOAD_SLEEPS
#define USER_FLAGS 0x3202	/* IOPL 3 */
#else
#define USER_FLAGS 0x3002	/* and no interrupts */
#endif

#define PDE_TABLE 0x67		/* present, write, user, accessed, dirty */
#define PDE_2M	  0xe7		/* and page size */

	.section .note.pvh, "a", @note
	.long	4, 4, 18		/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.long	pvh_entry

	.text
	.code32
	.globl	pvh_entry
pvh_entry:
	cld
	movl	%ebx, start_info
	lgdt	gdt_pointer

	/* Base of the TSS into its descriptor. */
	movl	$tss, %eax
	movw	%ax, gdt + SEL_TSS + 2
	shrl	$16, %eax
	movb	%al, gdt + SEL_TSS + 4
	movb	%ah, gdt + SEL_TSS + 7

	/* One to one: 4 GiB, and 1 GiB of the PCI window at 64 GiB. */
	movl	$(pdpt + PDE_TABLE), pml4
	movl	$(pds + 0x0000 + PDE_TABLE), pdpt
	movl	$(pds + 0x1000 + PDE_TABLE), pdpt + 8
	movl	$(pds + 0x2000 + PDE_TABLE), pdpt + 16
	movl	$(pds + 0x3000 + PDE_TABLE), pdpt + 24
	movl	$(pds + 0x4000 + PDE_TABLE), pdpt + 64 * 8
	movl	$pds, %edi
	movl	$PDE_2M, %eax
	movl	$(4 * 512), %ecx
1:	movl	%eax, (%edi)
	addl	$8, %edi
	addl	$0x200000, %eax
	loop	1b
	movl	$PDE_2M, %eax
	movl	$512, %ecx
2:	movl	%eax, (%edi)
	movl	$0x10, 4(%edi)
	addl	$8, %edi
	addl	$0x200000, %eax
	loop	2b

enter_long:				/* application processors join here */
	movl	$SEL_DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	$pml4, %eax
	movl	%eax, %cr3
	movl	%cr4, %eax
	orl	$0x20, %eax		/* PAE */
	movl	%eax, %cr4
	movl	$0xc0000080, %ecx	/* EFER */
	rdmsr
	orl	$0x100, %eax		/* LME */
	wrmsr
	movl	%cr0, %eax
	andl	$0x9fffffff, %eax	/* CD, NW off */
	orl	$0x80000001, %eax	/* PG, PE */
	movl	%eax, %cr0
	ljmpl	$SEL_CODE64, $enter_user

	.code64
enter_user:
	movl	$1, %edi
	lock xaddl %edi, cpu_count	/* my number, the first argument */
	cmpl	$MAX_CPUS, %edi
	jae	park
	leal	1(%rdi), %eax
	shll	$STACK_SHIFT, %eax
	leaq	stacks(%rax), %rsp

3:	lock btsl $0, tss_lock
	jc	3b
	movb	$0x89, gdt + SEL_TSS + 5 /* available again */
	movl	$SEL_TSS, %eax
	ltr	%ax
	movl	$0, tss_lock

#ifdef PAYLOAD_SLEEPS
	movl	$on_timer, %eax
	movw	%ax, idt + VECTOR_TIMER * 16
	shrl	$16, %eax
	movw	%ax, idt + VECTOR_TIMER * 16 + 6
	movl	$on_sleep, %eax
	movw	%ax, idt + VECTOR_SLEEP * 16
	shrl	$16, %eax
	movw	%ax, idt + VECTOR_SLEEP * 16 + 6
	lidt	idt_pointer
#endif

	leaq	-8(%rsp), %rax		/* as after a call */
	pushq	$(SEL_USER_DATA + 3)
	pushq	%rax
	pushq	$USER_FLAGS
	pushq	$(SEL_USER_CODE + 3)
	pushq	$hostile_main
	iretq
park:
	cli
	hlt
	jmp	park

#ifdef PAYLOAD_SLEEPS
on_sleep:
	pushq	%rax
	movl	$LAPIC_EOI, %eax
	movl	$0, (%rax)
	sti
	hlt
	cli
	incl	times_slept
	popq	%rax
	iretq
on_timer:
	pushq	%rax
	movl	$LAPIC_EOI, %eax
	movl	$0, (%rax)
	popq	%rax
	iretq
#endif

	/* Copied to TRAMPOLINE; entered there in real mode by SIPI. */
	.code16
	.globl	ap_trampoline, ap_trampoline_end
ap_trampoline:
	cli
	cld
	xorw	%ax, %ax
	movw	%ax, %ds
	lgdtl	TRAMPOLINE + ap_gdt_pointer - ap_trampoline
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$SEL_CODE32, $enter_long
ap_gdt_pointer:
	.word	gdt_end - gdt - 1
	.long	gdt
ap_trampoline_end:

	.data
	.balign	8
gdt:
	.quad	0
	.quad	0x00cf9b000000ffff
	.quad	0x00af9b000000ffff
	.quad	0x00cf93000000ffff
	.quad	0x00cff3000000ffff
	.quad	0x00affb000000ffff
	.word	tss_end - tss - 1, 0
	.byte	0, 0x89, 0, 0
	.quad	0
gdt_end:
gdt_pointer:
	.word	gdt_end - gdt - 1
	.long	gdt

	.balign	8
tss:					/* with leave to use every port */
	.long	0
	.quad	kernel_stack_end	/* RSP0 */
	.fill	90
	.word	104
	.fill	8192
	.byte	0xff
tss_end:

#ifdef PAYLOAD_SLEEPS
	.balign	16
idt:
	.fill	VECTOR_TIMER * 16
	.word	0, SEL_CODE64
	.byte	0, 0x8e			/* interrupt gate */
	.fill	10
	.word	0, SEL_CODE64
	.byte	0, 0x8e
	.fill	10
idt_end:
idt_pointer:
	.word	idt_end - idt - 1
	.quad	idt
	.globl	times_slept
times_slept:	.long 0
#endif

	.globl	start_info
start_info:	.long 0
tss_lock:	.long 0
	.globl	cpu_count
cpu_count:	.long 0

	.bss
	.balign	4096
pml4:	.skip	0x1000
pdpt:	.skip	0x1000
pds:	.skip	0x5000
stacks:	.skip	MAX_CPUS << STACK_SHIFT
	.skip	0x1000
kernel_stack_end:

	.section .note.GNU-stack, "", @progbits
