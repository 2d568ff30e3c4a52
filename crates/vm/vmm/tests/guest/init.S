# The first program of a test guest. It shows on the console what the machine has, in lines "name: content", and then does
# what the letter in its last argument says: h hangs, p powers off, r resets,
# a greets on the agent's port and sends back whatever comes from there.

        .set    SYS_READ, 0
        .set    SYS_WRITE, 1
        .set    SYS_OPEN, 2
        .set    SYS_PAUSE, 34
        .set    SYS_MOUNT, 165
        .set    SYS_REBOOT, 169

        .globl  _start
        .text
_start:
        movq    (%rsp), %rax
        movq    (%rsp,%rax,8), %r15             # the last argument: kernels pass on what they do not know
        leaq    devtmpfs(%rip), %rdi
        leaq    dev(%rip), %rsi
        call    mount
        leaq    sysfs(%rip), %rdi
        leaq    sys(%rip), %rsi
        call    mount

        # The number of the port's device depends on which devices came before it.
        movb    $'0', %bl
6:      movb    %bl, port_digit(%rip)
        leaq    port_label(%rip), %rdi
        leaq    port_file(%rip), %rsi
        call    show
        testl   %eax, %eax
        jns     7f
        incb    %bl
        cmpb    $'8', %bl
        jne     6b
7:      movb    %bl, device_digit(%rip)
        leaq    serial_label(%rip), %rdi
        leaq    serial_file(%rip), %rsi
        call    show
        leaq    disk_label(%rip), %rdi
        leaq    disk_file(%rip), %rsi
        call    show
        leaq    second_label(%rip), %rdi
        leaq    second_file(%rip), %rsi
        call    show
        leaq    ready(%rip), %rdi
        call    print

        movb    (%r15), %al
        cmpb    $'a', %al
        je      agent
        movl    $0x4321fedc, %edx               # RB_POWER_OFF
        cmpb    $'p', %al
        je      reboot
        movl    $0x01234567, %edx               # RB_AUTOBOOT
        cmpb    $'r', %al
        je      reboot
hang:   movl    $SYS_PAUSE, %eax
        syscall
        jmp     hang

reboot: movl    $0xfee1dead, %edi
        movl    $672274793, %esi
        movl    $SYS_REBOOT, %eax
        syscall
        jmp     hang

agent:  leaq    port_device(%rip), %rdi
        movl    $2, %esi                        # O_RDWR
        movl    $SYS_OPEN, %eax
        syscall
        movl    %eax, %r14d
        leaq    hello(%rip), %rsi
        movl    $6, %edx
1:      movl    %r14d, %edi
        movl    $SYS_WRITE, %eax
        syscall
2:      movl    %r14d, %edi
        leaq    buffer(%rip), %rsi
        movl    $64, %edx
        movl    $SYS_READ, %eax
        syscall
        cmpq    $0, %rax
        jle     2b                              # nobody is connected
        movq    %rax, %rdx
        jmp     1b

# rdi: the filesystem, rsi: where
mount:  movq    %rdi, %rdx
        xorl    %r10d, %r10d
        xorl    %r8d, %r8d
        movl    $SYS_MOUNT, %eax
        syscall
        ret

# rdi: a label, rsi: a file; what cannot be opened is not shown; eax: negative where it cannot be opened
show:   movq    %rdi, %r12
        movq    %rsi, %rdi
        xorl    %esi, %esi
        movl    $SYS_OPEN, %eax
        syscall
        testl   %eax, %eax
        js      3f
        movl    %eax, %r13d
        movq    %r12, %rdi
        call    print
        movl    %r13d, %edi
        leaq    buffer(%rip), %rsi
        movl    $64, %edx
        movl    $SYS_READ, %eax
        syscall
        testq   %rax, %rax
        js      3f
        movq    %rax, %rdx
        movl    $1, %edi
        leaq    buffer(%rip), %rsi
        movl    $SYS_WRITE, %eax
        syscall
        leaq    newline(%rip), %rdi
        call    print
        xorl    %eax, %eax
3:      ret

# rdi: a text that ends with a zero
print:  movq    %rdi, %rsi
        xorl    %edx, %edx
4:      cmpb    $0, (%rsi,%rdx)
        je      5f
        incl    %edx
        jmp     4b
5:      movl    $1, %edi
        movl    $SYS_WRITE, %eax
        syscall
        ret

        .section .rodata
devtmpfs:       .asciz "devtmpfs"
sysfs:          .asciz "sysfs"
dev:            .asciz "/dev"
sys:            .asciz "/sys"
port_label:     .asciz "agent port: "
serial_label:   .asciz "disk serial: "
serial_file:    .asciz "/sys/block/vda/serial"
disk_label:     .asciz "disk begins: "
disk_file:      .asciz "/dev/vda"
second_label:   .asciz "second disk begins: "
second_file:    .asciz "/dev/vdb"
ready:   .asciz "init is ready\n"
hello:          .asciz "hello\n"
newline:        .asciz "\n"

        .data
port_file:      .ascii "/sys/class/virtio-ports/vport"
port_digit:     .asciz "0p1/name"
port_device:    .ascii "/dev/vport"
device_digit:   .asciz "0p1"

        .bss
buffer: .skip   64
