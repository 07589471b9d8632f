# A guest that proves coherence of its RAM with its disks.
#
# Boot:   print "B\n"; fill `fill_mib` MiB from 16 MiB upward with noise; write counts
#         -1 and 0 to every disk (of virtio, on the first PCI bus; 4 at most).
# Tick:   (4.5 times a second: every fourth tick of the BIOS) read the last two counts
#         from every disk and compare them with `count` in RAM.
#         Equal: count++, write it to every disk, print 8 hex digits.
#         Not equal: print "!DD dddddddd rrrrrrrr" (drive, disk, RAM) and stop for good.
#         A request that failed prints the same with "E" in front.
# Between ticks: hlt; or, with `dirty_mib`, rewrite one word in each 4 KiB page of
#         that many MiB from 16 MiB upward, over and over.
#
# So RAM resumed on disks of another instant finds it out by itself, and a guest
# that was booted instead of resumed starts again at 1. Two counts, since RAM may have
# been saved between comparing and writing: it goes on by writing a count, and hides what
# was in that place, but not the count before it.
#
# Four times a second, and with a driver of its own that sleeps until its disks have answered,
# since the guest is emulated in an emulated host: the BIOS's driver waits busily, on a stack
# that lies in a page of its code, which took 0.3 of a core.
#
# Disk: sector 0  this, first half. Two parameters (u16 LE) lie at 0x1ba and 0x1bc;
#                 the partition table (0x1be..) stays empty: a host finds no partitions
#       sector 1  the last even count (u32 LE), "ZVMC", zeros
#       sector 2  the last odd count, likewise
#       sector 3  this, the rest of it
#
# as --32 counter.S -o counter.o && ld -m elf_i386 -Ttext=0x7c00 --oformat binary

	.code16
	.set	COM1, 0x3f8
	.set	BDA_TICKS, 0x46c	# BIOS data area: timer ticks since midnight
	.set	RAM_FROM, 16 << 20
	# Nothing is written in the pages of this code: that is slow in emulation.
	.set	STACK, 0x7000
	.set	REST_SECTORS, 3

	.set	count, 0x9000		# all of this is cleared at boot
	.set	expected, 0x9004
	.set	last_tick, 0x9008
	.set	disks, 0x900a		# twice as many as there are
	.set	ports, 0x900c		# a word for each of them
	.set	packet, 0x9014		# of a BIOS disk call
	.set	CLEARED_END, 0x9024

	# Each disk has a segment, in which lie its queue, and what it is asked and answers.
	.set	FIRST_SEGMENT, 0x2000
	.set	MAX_QUEUE, 1024
	.set	HEADER, 0x8000
	.set	STATUS, 0x8010
	.set	available_index, 0x8012	# where that is
	.set	used_index, 0x8014
	.set	READ_BUFFER, 0x8200	# two sectors
	.set	WRITE_BUFFER, 0x8600	# one sector
	.set	SEGMENT_WORDS, 0x4400

	# virtio of old: ports, from that of the device on.
	.set	FEATURES, 4
	.set	QUEUE_PAGE, 8
	.set	QUEUE_LENGTH, 12
	.set	QUEUE_SELECT, 14
	.set	QUEUE_NOTIFY, 16
	.set	DEVICE_STATUS, 18
	.set	VIRTIO_BLOCK, 0x10011af4	# device and vendor

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
	movw	$count, %di
	movw	$(CLEARED_END - count) / 2, %cx
	rep stosw
	sti

	# The BIOS says in %dl what it booted from.
	movw	$16, packet
	movw	$REST_SECTORS, packet + 2
	movw	$rest, packet + 4
	movw	$3, packet + 8
	movw	$packet, %si
	movb	$0x42, %ah
	int	$0x13
	jc	halt

	movb	$'B', %al
	call	putc
	call	newline

	inb	$0x92, %al		# A20 on
	orb	$2, %al
	outb	%al, $0x92

	call	fill
	call	find_disks
	movl	$RAM_FROM, %edi		# where `dirty` goes on
	decl	count
	call	write
	incl	count
	call	write

tick:
	call	doze
	movw	BDA_TICKS, %ax
	shrw	$2, %ax
	cmpw	%ax, last_tick
	je	tick
	movw	%ax, last_tick

	call	compare
	incl	count
	call	write
	movl	count, %eax
	call	hex32
	call	newline
	jmp	tick

halt:
	cli
1:	hlt
	jmp	1b

# Until the next tick; or, with `dirty_mib`, for a short while.
doze:
	sti
	cmpw	$0, dirty_mib
	jne	dirty
	hlt
	ret

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

	.org	0x1ba, 0
fill_mib:	.word	0
dirty_mib:	.word	0
	.org	0x1fe, 0
	.word	0xaa55

rest:
# -- disks: %si is 0 for the first, 2 for the second ...

# Find them, in the order of their slots, and make their queues.
find_disks:
	movl	$0x80000000, %ebx
1:	movl	%ebx, %eax
	call	pci_register
	cmpl	$VIRTIO_BLOCK, %eax
	jne	2f
	movl	%ebx, %eax
	movb	$0x10, %al		# its first range, of ports
	call	pci_register
	andw	$0xfffc, %ax
	movw	disks, %si
	movw	%ax, ports(%si)
	pushl	%ebx
	call	make_queue
	popl	%ebx
	addw	$2, disks
	cmpw	$8, disks
	je	3f
2:	addl	$1 << 11, %ebx
	cmpl	$0x80010000, %ebx
	jb	1b
3:	ret

pci_register:
	movw	$0xcf8, %dx
	outl	%eax, %dx
	movw	$0xcfc, %dx
	inl	%dx, %eax
	ret

# %es is the disk's segment, and %eax where that is in RAM.
segment:
	movw	%si, %ax
	shlw	$11, %ax
	addw	$FIRST_SEGMENT, %ax
	movw	%ax, %es
	movzwl	%ax, %eax
	shll	$4, %eax
	ret

# Three descriptors, always the same: header, buffer, status.
make_queue:
	call	segment
	pushl	%eax
	xorw	%di, %di
	xorw	%ax, %ax
	movw	$SEGMENT_WORDS, %cx
	rep stosw
	popl	%eax
	leal	HEADER(%eax), %ecx
	movl	%ecx, %es:0
	movl	$16, %es:8
	movl	$0x00010001, %es:12	# goes on, with descriptor 1
	leal	STATUS(%eax), %ecx
	movl	%ecx, %es:32
	movl	$1, %es:40
	movw	$2, %es:44		# is written by the device
	movl	$0x434d565a, %es:WRITE_BUFFER + 4	# "ZVMC"

	pushl	%eax
	movb	$0, %al			# reset, as the BIOS had it; seen, and known
	call	device_status
	movb	$1, %al
	call	device_status
	movb	$3, %al
	call	device_status
	xorl	%eax, %eax
	movw	$FEATURES, %dx
	addw	ports(%si), %dx
	outl	%eax, %dx
	movw	$QUEUE_SELECT, %dx
	addw	ports(%si), %dx
	outw	%ax, %dx
	movw	$QUEUE_LENGTH, %dx
	addw	ports(%si), %dx
	inw	%dx, %ax
	cmpw	$MAX_QUEUE, %ax
	ja	failed
	movw	%ax, %bx		# descriptors, what is available; on a page of its own, used
	shlw	$4, %bx
	movw	$1, %es:(%bx)		# no interrupts
	addw	$2, %bx
	movw	%bx, %es:available_index
	addw	%ax, %bx
	addw	%ax, %bx
	addw	$4 + 0xfff, %bx
	andw	$0xf000, %bx
	addw	$2, %bx
	movw	%bx, %es:used_index
	popl	%eax
	shrl	$12, %eax
	movw	$QUEUE_PAGE, %dx
	addw	ports(%si), %dx
	outl	%eax, %dx
	movb	$7, %al			# driven
device_status:
	movw	$DEVICE_STATUS, %dx
	addw	ports(%si), %dx
	outb	%al, %dx
	ret

# Write `count` to every disk, all at the same time.
write:
	xorw	%si, %si
1:	call	segment
	movl	count, %ecx
	movl	%ecx, %es:WRITE_BUFFER
	movl	$1, %es:HEADER
	andl	$1, %ecx
	incl	%ecx
	movl	%ecx, %es:HEADER + 8	# sector 1 or 2
	addl	$WRITE_BUFFER, %eax
	movl	$512, %ecx
	movl	$0x00020001, %edx	# goes on, with descriptor 2
	call	ask
	jb	1b
	jmp	answers

# Read the last two counts from every disk, all at the same time, and compare them with RAM.
compare:
	xorw	%si, %si
1:	call	segment
	movl	$0, %es:HEADER
	movl	$1, %es:HEADER + 8
	addl	$READ_BUFFER, %eax
	movl	$1024, %ecx
	movl	$0x00020003, %edx	# and is written by the device
	call	ask
	jb	1b
	call	answers
	xorw	%si, %si
2:	call	segment
	movl	count, %eax
	call	compare_one
	decl	%eax
	call	compare_one
	call	next
	jb	2b
	ret
compare_one:
	movl	%eax, expected
	movw	%ax, %bx
	andw	$1, %bx
	shlw	$9, %bx
	cmpl	%es:READ_BUFFER(%bx), %eax
	jne	mismatch
	ret

# Ask a disk for %ecx bytes at %eax, %edx of the descriptor; go on to the next: below, if any.
ask:
	movl	%eax, %es:16
	movl	%ecx, %es:24
	movl	%edx, %es:28
	movb	$0xff, %es:STATUS
	movw	%es:available_index, %bx
	incw	%es:(%bx)
	movw	$QUEUE_NOTIFY, %dx
	addw	ports(%si), %dx
	xorw	%ax, %ax
	outw	%ax, %dx
next:
	addw	$2, %si
	cmpw	disks, %si
	ret

# Sleep until every disk has answered.
answers:
	call	doze
	xorw	%si, %si
1:	call	segment
	movw	%es:used_index, %bx
	movw	%es:(%bx), %ax
	movw	%es:available_index, %bx
	cmpw	%es:(%bx), %ax
	jne	answers
	cmpb	$0, %es:STATUS
	jne	failed
	call	next
	jb	1b
	ret

failed:
	movb	$'E', %al
	jmp	report
mismatch:
	movb	$'!', %al
report:
	call	putc
	movw	%si, %ax
	shrw	$1, %ax
	addb	$0x80, %al
	shll	$24, %eax
	movw	$2, %cx
	call	hex
	call	space
	movl	%es:READ_BUFFER(%bx), %eax
	call	hex32
	call	space
	movl	expected, %eax
	call	hex32
	call	newline
	jmp	halt

# -- RAM

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

	.balign	8
gdt:		.quad	0
		.quad	0x00cf92000000ffff
gdt_pointer:	.word	gdt_pointer - gdt - 1
		.long	gdt

	.org	512 * (1 + REST_SECTORS), 0
