// The program that a skeleton starts as: an ELF file of one page, written by hand, that waits for ever. It needs no stack, no
// memory and no library, so that all its mappings can be taken away under a resident executor.
    .section .rodata
    .balign 16
    .global godwit_stub_begin
    .global godwit_stub_end
    .hidden godwit_stub_begin
    .hidden godwit_stub_end

godwit_stub_begin:
    .byte 0x7f, 'E', 'L', 'F', 2, 1, 1, 0           // 64-bit, little-endian, System V
    .quad 0
    .short 2, 62                                    // ET_EXEC, EM_X86_64
    .long 1
    .quad stub_base + (wait_for_ever - godwit_stub_begin)
    .quad program_headers - godwit_stub_begin
    .quad 0                                         // no section headers
    .long 0
    .short 64, 56, 2, 0, 0, 0
program_headers:
    .long 1, 5                                      // PT_LOAD, r-x
    .quad 0, stub_base, stub_base
    .quad godwit_stub_end - godwit_stub_begin, godwit_stub_end - godwit_stub_begin, 0x1000
    .long 0x6474e551, 6                             // PT_GNU_STACK, rw-
    .quad 0, 0, 0, 0, 0, 16
wait_for_ever:
    mov $34, %eax                                   // pause
    syscall
    jmp wait_for_ever
godwit_stub_end:
    .set stub_base, 0x10000

    .section .note.GNU-stack, "", @progbits
