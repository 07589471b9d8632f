# A guest that proves coherence of its RAM with its disks.
#
# Boot:   print "B\n"; fill `fill_mib` MiB from 16 MiB upward with noise; write counts
#         -1 and 0 to every disk the BIOS knows (4 at most).
# Tick:   (4.5 times a second: every fourth tick of the BIOS) read the last two counts
#         from every disk and compare them with `count` in RAM.
#         Equal: count++, write it to every disk, print 8 hex digits.
#         Not equal: print "!DD dddddddd rrrrrrrr" (drive, disk, RAM) and stop for good.
#         A failed BIOS disk call prints the same with "E" in front.
# Between ticks: hlt; or, with `dirty_mib`, rewrite one word in each 4 KiB page of
#         that many MiB from 16 MiB upward, over and over.
#
# So RAM resumed on disks of another instant finds it out by itself, and a guest
# that was booted instead of resumed starts again at 1. Two counts, since RAM may have
# been saved between comparing and writing: it goes on by writing a count, and hides what
# was in that place, but not the count before it.
#
# Four times a second, since the guest is emulated in an emulated host: at every tick it
# would take most of a core, and each test with it.
#
# Disk: sector 0  this, first half. Two parameters (u16 LE) lie at 0x1ba and 0x1bc;
#                 the partition table (0x1be..) stays empty: a host finds no partitions
#       sector 1  the last even count (u32 LE), "ZVMC", zeros
#       sector 2  the last odd count, likewise
#       sector 3  this, second half
#
# as --32 counter.S -o counter.o && ld -m elf_i386 -Ttext=0x7c00 --oformat binary

	.code16
	.set	COM1, 0x3f8
	.set	BDA_DISKS, 0x475	# BIOS data area: number of hard disks
	.set	BDA_TICKS, 0x46c	# and timer ticks since midnight
	.set	RAM_FROM, 16 << 20
	# Nothing is written in the pages of this code: that is slow in emulation.
	.set	STACK, 0x7000

	.set	READ_BUFFER, 0x8000	# two sectors; all of this is cleared at boot
	.set	WRITE_BUFFER, 0x8400	# one sector
	.set	count, 0x8600
	.set	expected, 0x8604
	.set	last_tick, 0x8608
	.set	drive, 0x860a
	.set	packet, 0x8610		# of a BIOS disk call
	.set	packet_sectors, packet + 2
	.set	packet_buffer, packet + 4
	.set	packet_sector, packet + 8
	.set	CLEARED_END, 0x8620

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
	movw	$READ_BUFFER, %di
	movw	$(CLEARED_END - READ_BUFFER) / 2, %cx
	rep stosw
	sti

	movb	%dl, drive		# the BIOS says what it booted from
	movw	$16, packet
	movw	$1, packet_sectors
	movw	$second_half, packet_buffer
	movw	$3, packet_sector
	movb	$0x42, %ah
	call	disk_call

	movb	$'B', %al
	call	putc
	call	newline

	inb	$0x92, %al		# A20 on
	orb	$2, %al
	outb	%al, $0x92

	call	fill
	movl	$RAM_FROM, %edi		# where `dirty` goes on
	movl	$0x434d565a, WRITE_BUFFER + 4	# "ZVMC"
	decl	count
	call	write_all
	incl	count
	call	write_all

tick:
	sti
	cmpw	$0, dirty_mib
	je	idle
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
	movl	%eax, WRITE_BUFFER
	movw	$write, %bp
# Call %bp for every disk, its number in `drive`.
each_disk:
	movb	$0x80, drive
1:	call	*%bp
	incb	drive
	movb	drive, %al
	andb	$0x7f, %al
	cmpb	$4, %al
	je	2f
	cmpb	BDA_DISKS, %al
	jb	1b
2:	ret

write:
	movw	count, %ax
	andw	$1, %ax
	incw	%ax
	movw	%ax, packet_sector
	movw	$1, packet_sectors
	movw	$WRITE_BUFFER, packet_buffer
	movb	$0x43, %ah
	jmp	disk_call

compare:
	movw	$1, packet_sector
	movw	$2, packet_sectors
	movw	$READ_BUFFER, packet_buffer
	movb	$0x42, %ah
	call	disk_call
	movl	count, %eax
	call	compare_one
	decl	%eax
compare_one:
	movl	%eax, expected
	movw	%ax, %bx
	andw	$1, %bx
	shlw	$9, %bx
	cmpl	READ_BUFFER(%bx), %eax
	jne	mismatch
	ret

# BIOS disk call %ah on `drive` with `packet`. %edi and %bp survive.
disk_call:
	pushl	%edi
	pushw	%bp
	xorb	%al, %al
	movb	drive, %dl
	movw	$packet, %si
	int	$0x13
	popw	%bp
	popl	%edi
	jc	failed
	ret

	.org	0x1ba, 0
fill_mib:	.word	0
dirty_mib:	.word	0
	.org	0x1fe, 0
	.word	0xaa55

second_half:
failed:
	movb	$'E', %al
	jmp	report
mismatch:
	movb	$'!', %al
report:
	call	putc
	movb	drive, %al
	shll	$24, %eax
	movw	$2, %cx
	call	hex
	call	space
	movl	READ_BUFFER(%bx), %eax
	call	hex32
	call	space
	movl	expected, %eax
	call	hex32
	call	newline
	cli
1:	hlt
	jmp	1b

# Fill RAM with noise that does not compress.
fill:
	movw	fill_mib, %cx
	movl	$RAM_FROM, %edi
	jcxz	3f
1:	pushw	%cx
	call	flat
	movl	$1 << 18, %ecx
2:	imull	$1664525, %eax
	addl	$1013904223, %eax
	movl	%eax, %fs:(%edi)
	addl	$4, %edi
	decl	%ecx
	jnz	2b
	sti
	popw	%cx
	loop	1b
3:	ret

# Rewrite one word in each page of the MiB at %edi; go on to the next, round and round.
dirty:
	movzwl	dirty_mib, %ecx
	shll	$20, %ecx
	addl	$RAM_FROM, %ecx		# end of the dirtied RAM
	call	flat
	movw	$256, %bx
1:	incl	%fs:(%edi)
	addl	$4096, %edi
	decw	%bx
	jnz	1b
	sti
	cmpl	%ecx, %edi
	jb	2f
	movl	$RAM_FROM, %edi
2:	ret

# Interrupts off and %fs over all 4 GiB, until the next BIOS call or interrupt
# drops it; so the caller does not allow interrupts before it is done. %eax survives.
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
	addb	$'0', %al
	cmpb	$'9', %al
	jbe	1f
	addb	$'a' - '9' - 1, %al
1:	call	putc
	popl	%eax
	loop	hex
	ret

space:
	movb	$' ', %al
	jmp	putc
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

	.balign	8
gdt:		.quad	0
		.quad	0x00cf92000000ffff
gdt_pointer:	.word	gdt_pointer - gdt - 1
		.long	gdt

	.org	0x400, 0
