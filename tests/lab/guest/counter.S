# A guest that proves coherence of its RAM with its disks, in one boot sector.
#
# Boot:   print "B\n"; fill `fill_mib` MiB from 16 MiB upward with noise;
#         count = 0; write it to sector 1 of every disk the BIOS knows (4 at most).
# Tick:   (4.5 times a second: every fourth tick of the BIOS) read sector 1 of every
#         disk and compare it with
#         `count` in RAM. Equal: count++, write it to every disk, print 8 hex digits.
#         Not equal: print "!DD dddddddd rrrrrrrr" (drive, disk, RAM) and stop for good.
#         A failed BIOS disk call prints the same with "E" in front.
# Between ticks: hlt; or, with `dirty_mib`, rewrite one word in each 4 KiB page of
#         that many MiB from 16 MiB upward, over and over.
#
# Four times a second, since the guest is emulated in an emulated host: at every tick it
# would take most of a core, and each test with it.
#
# So RAM resumed on disks of another instant finds it out by itself, and a guest
# that was booted instead of resumed starts again at 1.
#
# Sector 1 holds: count (u32 LE), "ZVMC", zeros. The two parameters (u16 LE) lie at 0x1ba and
# 0x1bc; the partition table (0x1be..) stays empty, so that a host finds no partitions.
#
# as --32 counter.S -o counter.o && ld -m elf_i386 -Ttext=0x7c00 --oformat binary

	.code16
	.set	COM1, 0x3f8
	.set	BUFFER, 0x8000		# one sector
	.set	count, BUFFER + 512	# our variables, cleared with it
	.set	last_tick, BUFFER + 516
	.set	BDA_DISKS, 0x475	# BIOS data area: number of hard disks
	.set	BDA_TICKS, 0x46c	# and timer ticks since midnight
	.set	RAM_FROM, 16 << 20

	.text
	.globl	_start
_start:
	cli
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	$0x7000, %sp		# not in the page of this code: slow in emulation
	cld
	movw	$BUFFER, %di
	movw	$260, %cx
	rep stosw

	movb	$'B', %al
	call	putc
	call	newline

	inb	$0x92, %al		# A20 on
	orb	$2, %al
	outb	%al, $0x92

	movw	fill_mib, %cx
	movl	$RAM_FROM, %edi
	jcxz	filled
fill_one:
	pushw	%cx
	movl	$1 << 18, %ecx
	call	flat
fill_word:
	imull	$1664525, %eax
	addl	$1013904223, %eax
	movl	%eax, %fs:(%edi)
	addl	$4, %edi
	decl	%ecx
	jnz	fill_word
	sti
	popw	%cx
	loop	fill_one
filled:
	movl	$RAM_FROM, %edi
	call	write_all

tick:
	sti
	movw	dirty_mib, %cx
	jcxz	idle
	call	dirty
	jmp	check
idle:
	hlt
check:
	movw	BDA_TICKS, %ax
	shrw	$2, %ax
	cmpw	%ax, last_tick
	je	tick
	movw	%ax, last_tick

	movw	$compare, %bp
	call	each_disk
	incl	count
	call	write_all
	movl	count, %eax
	call	hex32
	call	newline
	jmp	tick

# Write `count` to every disk.
write_all:
	movl	count, %eax
	movl	%eax, BUFFER
	movl	$0x434d565a, BUFFER + 4	# "ZVMC"
	movw	$write, %bp
# Call %bp for every disk, its number in %dl. %edi survives.
each_disk:
	pushl	%edi
	movw	$0x80, %dx
1:	pushw	%dx
	pushw	%bp
	movw	$packet, %si
	call	*%bp
	popw	%bp
	popw	%dx
	incw	%dx
	movb	%dl, %al
	andb	$0x7f, %al
	cmpb	$4, %al
	je	2f
	cmpb	BDA_DISKS, %al
	jb	1b
2:	popl	%edi
	ret

write:
	movw	$0x4300, %ax
	int	$0x13
	jc	failed
	ret

compare:
	movb	$0x42, %ah
	int	$0x13
	jc	failed
	movl	BUFFER, %eax
	cmpl	%eax, count
	jne	mismatch
	ret

failed:
	movb	$'E', %al
	jmp	report
mismatch:
	movb	$'!', %al
report:
	popw	%bx			# return address
	popw	%bx			# %bp
	popw	%dx			# the drive, which the BIOS may have changed
	call	putc
	movl	%edx, %eax
	shll	$24, %eax
	movw	$2, %cx
	call	hex
	call	space
	movl	BUFFER, %eax
	call	hex32
	call	space
	movl	count, %eax
	call	hex32
	call	newline
	cli
1:	hlt
	jmp	1b

# Rewrite one word in each page of the MiB at %edi; go on to the next, round and round.
dirty:
	shll	$20, %ecx
	addl	$RAM_FROM, %ecx		# end of the dirtied RAM
	call	flat
	movw	$256, %bx
1:	incl	%fs:(%edi)
	addl	$4096, %edi
	decw	%bx
	jnz	1b
	cmpl	%ecx, %edi
	jb	2f
	movl	$RAM_FROM, %edi
2:	ret

# Interrupts off (the caller's loop allows them again) and %fs over all 4 GiB, until
# the next BIOS call or interrupt drops it. %eax survives.
flat:
	cli
	pushl	%eax
	lgdt	gdt_pointer
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	movw	$8, %bx
	movw	%bx, %fs
	andb	$0xfe, %al
	movl	%eax, %cr0
	popl	%eax
	ret

hex32:
	movw	$8, %cx
# Print the upper %cx digits of %eax.
hex:
	roll	$4, %eax
	pushl	%eax
	andb	$15, %al
	cmpb	$10, %al
	sbbb	$0x69, %al		# the digit, the classic way
	das
	orb	$0x20, %al		# lower case; digits have the bit already
	call	putc
	popl	%eax
	loop	hex
	ret

space:
	movb	$' ', %al
	jmp	putc
newline:
	movb	$'\n', %al
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

packet:		.byte	16, 0
		.word	1		# one sector
		.word	BUFFER, 0
		.quad	1		# sector 1
gdt_pointer:	.word	15		# lies in the null descriptor, which nobody reads
		.long	gdt_pointer
		.word	0
		.quad	0x00cf92000000ffff

	.org	0x1ba, 0
fill_mib:	.word	0
dirty_mib:	.word	0
	.org	0x1fe, 0
	.word	0xaa55
