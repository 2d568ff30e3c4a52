# A guest that proves that a processor, real or pretended, can run a kernel with a userspace.
#
# It takes the place of the firmware: the last 64 KiB below 4 GiB, entered in real mode at 0xfffffff0.
# It builds page tables, enters long mode, goes to ring 3, makes 10,000 system calls, counts them in ring 0,
# writes "ring 3 syscalls N\n" to port 0xe9 and ends the machine with code 33 through port 0xf4.
# Whatever goes wrong ends in a halt or a triple fault, and so never in that report.

        .set    SYSCALLS, 10000
        .set    PORT_TEXT, 0xe9
        .set    PORT_EXIT, 0xf4
        .set    EXIT_VALUE, 16                  # the monitor exits with 2 * value + 1

        .set    TABLES, 0x1000                  # PML4, PDPT, four page directories: 0x1000 to 0x6fff
        .set    HOME, 0x10000                   # where this code is copied to
        .set    USER_STACK, 0x20000
        .set    KERNEL_STACK, 0x30000

        .set    CODE32, 0x08
        .set    DATA32, 0x10
        .set    KERNEL_CODE, 0x18
        .set    USER_BASE, 0x28                 # sysret adds 16 for the code and 8 for the stack segment
        .set    USER_DATA, 0x30
        .set    USER_CODE, 0x38

        .set    EFER, 0xc0000080
        .set    STAR, 0xc0000081
        .set    LSTAR, 0xc0000082
        .set    FMASK, 0xc0000084

        .section .text, "ax"
rom:
        .code16
real:
        cli
        lgdtl   %cs:(gdt_pointer - rom)
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $CODE32, $protected

        .code32
protected:
        movw    $DATA32, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        cld

        # Copy this code into memory, so that what follows runs as any kernel does.
        movl    $rom, %esi
        movl    $HOME, %edi
        movl    $(rom_end - rom), %ecx
        rep movsb

        # Map the first 4 GiB onto themselves in pages of 2 MiB, open to ring 3.
        movl    $TABLES, %edi
        xorl    %eax, %eax
        movl    $(6 * 1024), %ecx
        rep stosl
        movl    $(TABLES + 0x1000 + 7), TABLES
        movl    $(TABLES + 0x2000 + 7), %eax
        movl    $(TABLES + 0x1000), %edi
        movl    $4, %ecx
1:      movl    %eax, (%edi)
        addl    $0x1000, %eax
        addl    $8, %edi
        loop    1b
        movl    $0x87, %eax
        movl    $(TABLES + 0x2000), %edi
        movl    $2048, %ecx
2:      movl    %eax, (%edi)
        addl    $0x200000, %eax
        addl    $8, %edi
        loop    2b

        # Long mode with system calls.
        movl    %cr4, %eax
        orl     $0x20, %eax                     # PAE
        movl    %eax, %cr4
        movl    $TABLES, %eax
        movl    %eax, %cr3
        movl    $EFER, %ecx
        rdmsr
        orl     $0x101, %eax                    # LME, SCE
        wrmsr
        movl    %cr0, %eax
        orl     $0x80000000, %eax               # PG
        movl    %eax, %cr0
        ljmpl   $KERNEL_CODE, $(HOME + long - rom)

        .code64
long:
        movl    $KERNEL_STACK, %esp
        movl    $STAR, %ecx
        xorl    %eax, %eax
        movl    $((USER_BASE | 3) << 16 | KERNEL_CODE), %edx
        wrmsr
        movl    $LSTAR, %ecx
        movl    $(HOME + system_call - rom), %eax
        xorl    %edx, %edx
        wrmsr
        movl    $FMASK, %ecx
        movl    $0x700, %eax                    # no interrupts, no single steps, upwards
        wrmsr
        xorl    %r8d, %r8d                      # how many system calls came from ring 3

        pushq   $(USER_DATA | 3)
        pushq   $USER_STACK
        pushq   $2
        pushq   $(USER_CODE | 3)
        pushq   $(HOME + user - rom)
        iretq

user:
        movl    $SYSCALLS, %ebx
3:      movl    %cs, %eax
        andl    $3, %eax                        # the ring that this runs in
        syscall
        decl    %ebx
        jnz     3b
        movl    $4, %eax                        # no ring: the work is done
        syscall
4:      jmp     4b

        # rax is the caller's ring, rcx its place, r11 its flags.
system_call:
        movq    %rsp, %r9
        movl    $KERNEL_STACK, %esp
        cmpl    $3, %eax
        jne     5f
        incl    %r8d
        movq    %r9, %rsp
        sysretq
5:      cmpl    $4, %eax
        jne     wrong

        leaq    text(%rip), %rsi
        movl    $(text_end - text), %ecx
6:      lodsb
        outb    %al, $PORT_TEXT
        loop    6b

        # The count in decimal: its digits go onto the stack, least first.
        movl    %r8d, %eax
        xorl    %ebp, %ebp
        movl    $10, %edi
7:      xorl    %edx, %edx
        divl    %edi
        addl    $'0', %edx
        pushq   %rdx
        incl    %ebp
        testl   %eax, %eax
        jnz     7b
8:      popq    %rax
        outb    %al, $PORT_TEXT
        decl    %ebp
        jnz     8b
        movb    $'\n', %al
        outb    %al, $PORT_TEXT
        movl    $EXIT_VALUE, %eax
        outl    %eax, $PORT_EXIT
wrong:
        hlt
        jmp     wrong

text:
        .ascii  "ring 3 syscalls "
text_end:

        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff              # CODE32
        .quad   0x00cf93000000ffff              # DATA32
        .quad   0x00af9b000000ffff              # KERNEL_CODE
        .quad   0x00cf93000000ffff              # kernel data, which syscall loads
        .quad   0                               # USER_BASE: user code of 32 bits, never used
        .quad   0x00cff3000000ffff              # USER_DATA
        .quad   0x00affb000000ffff              # USER_CODE
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt                             # as it lies in the ROM
rom_end:

        .section .reset, "ax"
        .code16
        jmp     real
        .balign 16, 0xf4
