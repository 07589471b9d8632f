# One of a pair of guests that pass a token to and fro on a disk that they share.
#
# Tick: (18 times a second) read the token from sector 1 of the second disk.
#       Its last bit is `role`: it is our turn. Add 1, write it, print 8 hex digits.
#       In RAM is what we wrote last. On the disk must be just that, or, if it is our turn,
#       just one more; else print "! dddddddd rrrrrrrr" (disk, RAM) and stop for good.
#       After a boot any token will do.
#
# So a pair whose RAM and disks are not all of one instant finds it out by itself.
#
# Disk: sector 0 of the first disk  this; `role` (u16 LE) at 0x1ba
#       sector 1 of the second      the token (u32 LE)
#
# as --32 token.S -o token.o && ld -m elf_i386 -Ttext=0x7c00 --oformat binary

	.code16
	.set	COM1, 0x3f8
	.set	SHARED, 0x81
	.set	STACK, 0x7000
	.set	BUFFER, 0x8000
	.set	last, 0x8400
	.set	packet, 0x8410

	.text
	.globl	_start
_start:
	cli
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	$STACK, %sp
	cld
	movw	$BUFFER, %di
	movw	$0x300, %cx
	rep stosw
	sti
	movw	$16, packet
	movw	$1, packet + 2
	movw	$BUFFER, packet + 4
	movw	$1, packet + 8
	movb	$'B', %al
	call	putc
	call	newline

tick:
	sti
	hlt
	movb	$0x42, %ah
	call	disk_call
	movl	BUFFER, %eax
	movl	last, %ebx
	movw	%ax, %dx
	xorw	role, %dx
	testw	$1, %dx
	jnz	theirs
	testl	%ebx, %ebx
	jz	ours
	incl	%ebx
	cmpl	%ebx, %eax
	jne	mismatch
ours:
	incl	%eax
	movl	%eax, last
	movl	%eax, BUFFER
	movb	$0x43, %ah
	call	disk_call
	movl	last, %eax
	call	hex32
	call	newline
	jmp	tick
theirs:
	testl	%ebx, %ebx
	jz	tick
	cmpl	%ebx, %eax
	je	tick
mismatch:
	pushl	last
	pushl	%eax
	movb	$'!', %al
	call	putc
	movb	$' ', %al
	call	putc
	popl	%eax
	call	hex32
	movb	$' ', %al
	call	putc
	popl	%eax
	call	hex32
	call	newline
stop:	cli
	hlt
	jmp	stop

# BIOS disk call %ah on the shared disk.
disk_call:
	xorb	%al, %al
	movb	$SHARED, %dl
	movw	$packet, %si
	int	$0x13
	jnc	1f
	movb	$'E', %al
	call	putc
	call	newline
	jmp	stop
1:	ret

hex32:
	movw	$8, %cx
1:	roll	$4, %eax
	pushl	%eax
	andb	$15, %al
	addb	$'0', %al
	cmpb	$'9', %al
	jbe	2f
	addb	$'a' - '9' - 1, %al
2:	call	putc
	popl	%eax
	loop	1b
	ret

newline:
	movb	$'\n', %al
# Print %al.
putc:
	pushw	%dx
	pushw	%ax
	movw	$COM1 + 5, %dx
1:	inb	%dx, %al
	testb	$0x20, %al
	jz	1b
	popw	%ax
	movw	$COM1, %dx
	outb	%al, %dx
	popw	%dx
	ret

	.org	0x1ba, 0
role:	.word	0
	.org	0x1fe, 0
	.word	0xaa55
