// The executor: integer instructions and no stack. Nothing here touches vector state, segment bases or
// memory of the task; every register, the flags and the signal mask come back from a SavedTask.
//
// Wherever the agent dies, the code below goes on by itself to a LEAVE.

#include <asm/unistd_64.h>

#include "common/remote/x86_64/layout.h"

#define EINTR 4
#define FIRST_ERROR -4095
#define SA_RESTART 0x10000000
#define MSG_CMSG_CLOEXEC 0x40000000
#define MSG_NOSIGNAL 0x4000

// A word of the SavedTask `task`, reached without any register.
#define WORD(task, offset) (task + offset)(%rip)

// Gives the task back. %r9 holds the address of the tail that ends it. The flags come first because computing
// would change them; the mask comes late because a handler must find the task's own stack pointer: what it then
// interrupts are plain loads, which it may do at any instruction. After the pop no instruction changes flags.
.macro LEAVE task
    lea WORD(\task, GW_EFLAGS), %rsp
    popfq
    mov WORD(\task, GW_RSP), %rsp
    mov WORD(\task, GW_R15), %r15
    mov WORD(\task, GW_R14), %r14
    mov WORD(\task, GW_R13), %r13
    mov WORD(\task, GW_R12), %r12
    mov WORD(\task, GW_RBP), %rbp
    mov WORD(\task, GW_RBX), %rbx
    mov WORD(\task, GW_R8), %r8
    mov $2, %edi                        // SIG_SETMASK
    lea WORD(\task, GW_MASK), %rsi
    mov $0, %edx
    mov $8, %r10d
    mov $__NR_rt_sigprocmask, %eax
    syscall
    mov WORD(\task, GW_R10), %r10
    mov WORD(\task, GW_RDX), %rdx
    mov WORD(\task, GW_RSI), %rsi
    mov WORD(\task, GW_RDI), %rdi
    mov WORD(\task, GW_RCX), %rcx
    mov WORD(\task, GW_R11), %r11
    mov %r9, %rax
    mov WORD(\task, GW_R9), %r9
    jmp *%rax
.endm

.section .rodata
.globl godwit_boot_begin, godwit_boot_end, godwit_boot_unmap
.globl godwit_executor_begin, godwit_executor_end, godwit_executor_host, godwit_executor_visit, godwit_executor_retire

// Boot: maps the region; at the exit of that mmap the agent writes executor and slots and marks them ready.
.balign 64
godwit_boot_begin:
boot:
    .quad GW_MAGIC
    .fill GW_BOOT_CODE - 8, 1, 0        // sequence, SavedTask, parameters
    mov (boot + GW_BOOT_AT)(%rip), %rdi
    mov $GW_REGION_SIZE, %esi
    mov $3, %edx                        // PROT_READ | PROT_WRITE
    mov (boot + GW_BOOT_MAP_FLAGS)(%rip), %r10
    mov $-1, %r8
    mov $0, %r9d
    mov $__NR_mmap, %eax
    syscall
    xor %r14d, %r14d
    cmp $FIRST_ERROR, %rax
    jae boot_leave
    mov %rax, %r12
    cmpq $1, (GW_HOST_SLOT + GW_READY)(%r12)
    jne boot_unmap
    mov %r12, %rdi
    mov $GW_CODE_SIZE, %esi
    mov $5, %edx                        // PROT_READ | PROT_EXEC
    mov $__NR_mprotect, %eax
    syscall
    test %rax, %rax
    jnz boot_unmap
    lea GW_HOST_SLOT(%r12), %rbx
    lea (godwit_executor_host - godwit_executor_begin)(%r12), %rax
    jmp *%rax

// %r12: the region. Ends everything: no region, no socket, the task as it was.
godwit_boot_unmap:
boot_unmap:
    xor %r14d, %r14d
    cmpq $0, WORD(boot + GW_BOOT_TASK, GW_INTERRUPTING)
    je 1f
    lea (GW_HOST_SLOT + GW_PENDING)(%r12), %rdi
    mov $8, %esi
    mov $__NR_rt_sigpending, %eax
    syscall
    mov (GW_HOST_SLOT + GW_PENDING)(%r12), %r14
    and WORD(boot + GW_BOOT_TASK, GW_INTERRUPTING), %r14
1:  mov %r12, %rdi
    mov $GW_REGION_SIZE, %esi
    mov $__NR_munmap, %eax
    syscall
boot_leave:
    lea boot_tail(%rip), %r9
    test %r14, %r14
    jz 1f
    lea boot_interrupted(%rip), %r9
1:  LEAVE boot + GW_BOOT_TASK
boot_tail:
    mov WORD(boot + GW_BOOT_TASK, GW_RAX), %rax
    jmp *WORD(boot + GW_BOOT_TASK, GW_RIP)
boot_interrupted:
    mov $-EINTR, %rax
    jmp *WORD(boot + GW_BOOT_TASK, GW_INTERRUPTED_RIP)
godwit_boot_end:

// Executor. %rbx: the slot, everywhere.
.balign 64
godwit_executor_begin:
executor:
    .quad GW_MAGIC
    .quad GW_REGION_SIZE

godwit_executor_host:
    mov GW_TID(%rbx), %eax
    mov %rax, GW_OWNER(%rbx)
    mov $1, %edi                        // AF_UNIX
    mov $(5 | 02000000), %esi           // SOCK_SEQPACKET | SOCK_CLOEXEC
    mov $0, %edx
    lea GW_PAIR(%rbx), %r10
    mov $__NR_socketpair, %eax
    syscall                             // at its exit the agent takes the other end
    test %rax, %rax
    jnz settle
    mov GW_PAIR(%rbx), %eax
    mov %eax, GW_SOCKET(%rbx)
    mov (GW_PAIR + 4)(%rbx), %edi
    movl $-1, (GW_PAIR + 4)(%rbx)
    mov $__NR_close, %eax
    syscall                             // from here the agent's end is the last one

next_batch:
    mov GW_SOCKET(%rbx), %edi
    lea GW_MSGHDR(%rbx), %rsi
    movq $GW_CONTROL_SIZE, (GW_MSGHDR + 40)(%rbx)
    mov $MSG_CMSG_CLOEXEC, %edx
    mov $__NR_recvmsg, %eax
    syscall
    cmp $-EINTR, %rax
    je next_batch
    cmp $24, %rax                       // a header; at end-of-file 0
    jne abandoned

run_batch:
    mov GW_CALLS_AT(%rbx), %r12
    mov GW_RESULTS_AT(%rbx), %r13
    mov GW_COUNT(%rbx), %r14
    xor %r15d, %r15d
next_call:
    cmp %r14, %r15
    je batch_done
    mov GW_CALL_FLAGS(%r12), %rbp
.macro ARGUMENT index, register
    mov (8 + 8 * \index)(%r12), \register
    bt $(GW_RESULT_SHIFT + \index), %ebp
    jnc 1f
    mov (%r13, \register, 8), \register // the number is the index of an earlier call
1:
.endm
    ARGUMENT 0, %rdi
    ARGUMENT 1, %rsi
    ARGUMENT 2, %rdx
    ARGUMENT 3, %r10
    ARGUMENT 4, %r8
    ARGUMENT 5, %r9
    mov (%r12), %rax
    syscall
    mov %rax, (%r13, %r15, 8)
    cmp $FIRST_ERROR, %rax
    jb 1f
    test $GW_MAY_FAIL, %ebp
    jz batch_done
1:  inc %r15
    add $64, %r12
    jmp next_call

batch_done:
    mov %r15, GW_REPLY(%rbx)
    mov GW_SOCKET(%rbx), %edi
    lea GW_REPLY(%rbx), %rsi
    mov $8, %edx
    mov $MSG_NOSIGNAL, %r10d
    mov $0, %r8d
    mov $0, %r9d
    mov $__NR_sendto, %eax
    syscall
    cmpq $0, GW_VISITOR(%rbx)
    je next_batch

// A visitor waits to be fetched: ppoll asked for nothing returns when the agent's end is closed. (poll would
// overwrite the restart block of the call that the task was stopped in.)
parked:
    lea GW_POLL(%rbx), %rdi
    mov $1, %esi
    mov $0, %edx
    mov $0, %r10d
    mov $8, %r8d
    mov $__NR_ppoll, %eax
    syscall
    cmp $-EINTR, %rax
    je parked
    jmp settle
godwit_executor_visit:
    mov GW_TID(%rbx), %eax
    mov %rax, GW_OWNER(%rbx)
    jmp run_batch

// The agent is gone.
abandoned:
    lea GW_UNDO(%rbx), %r12
    mov GW_UNDO_COUNT(%rbx), %r14
1:  test %r14, %r14
    jz 2f
    mov (%r12), %rax
    mov 8(%r12), %rdi
    mov 16(%r12), %rsi
    mov 24(%r12), %rdx
    mov 32(%r12), %r10
    mov 40(%r12), %r8
    mov 48(%r12), %r9
    syscall
    add $56, %r12
    dec %r14
    jmp 1b
2:  lea settle(%rip), %r15
    jmp close_socket

// The agent makes the host task go here when it leaves; the region goes too.
godwit_executor_retire:
    lea 1f(%rip), %r15
    jmp close_socket
1:  lea executor(%rip), %r12
    jmp *GW_UNMAP(%rbx)

close_socket:                           // returns to %r15
    mov (GW_PAIR + 4)(%rbx), %edi
    cmp $-1, %edi
    je 1f
    mov $__NR_close, %eax
    syscall
1:  mov GW_SOCKET(%rbx), %edi
    mov $__NR_close, %eax
    syscall
    jmp *%r15

// Decides how the call that the task was stopped in ends. A caught signal that came meanwhile would have broken it
// off: then EINTR, unless the call restarts for SA_RESTART (GW_ASK_RESTART) and every such signal has it.
settle:
    xor %r14d, %r14d
    cmpq $0, GW_INTERRUPTING(%rbx)
    je settled
    lea GW_PENDING(%rbx), %rdi
    mov $8, %esi
    mov $__NR_rt_sigpending, %eax
    syscall
    mov GW_PENDING(%rbx), %r14
    and GW_INTERRUPTING(%rbx), %r14
    cmpq $0, GW_ASK_RESTART(%rbx)
    je settled
    mov %r14, %r12
1:  xor %r14d, %r14d
    bsf %r12, %rdi
    jz settled
    btr %rdi, %r12
    inc %edi
    mov $0, %esi
    lea GW_SIGACTION(%rbx), %rdx
    mov $8, %r10d
    mov $__NR_rt_sigaction, %eax
    syscall
    mov $1, %r14d
    testl $SA_RESTART, (GW_SIGACTION + 8)(%rbx)
    jnz 1b
settled:
    cmpq $0, GW_VISITOR(%rbx)
    jne leave_visitor
    lea host_tail(%rip), %r9
    test %r14, %r14
    jz 1f
    lea host_interrupted(%rip), %r9
1:  LEAVE executor + GW_HOST_SLOT
leave_visitor:
    lea visitor_tail(%rip), %r9
    test %r14, %r14
    jz 1f
    lea visitor_interrupted(%rip), %r9
1:  LEAVE executor + GW_VISITOR_SLOT

// The owner is taken out last: while it stands, a handler may still have to return to the loads above.
.macro TAIL slot
    mov WORD(\slot, GW_RAX), %rax
    movq $0, WORD(\slot, GW_OWNER)
    jmp *WORD(\slot, GW_RIP)
.endm
.macro INTERRUPTED_TAIL slot
    mov $-EINTR, %rax
    movq $0, WORD(\slot, GW_OWNER)
    jmp *WORD(\slot, GW_INTERRUPTED_RIP)
.endm
host_tail:
    TAIL executor + GW_HOST_SLOT
host_interrupted:
    INTERRUPTED_TAIL executor + GW_HOST_SLOT
visitor_tail:
    TAIL executor + GW_VISITOR_SLOT
visitor_interrupted:
    INTERRUPTED_TAIL executor + GW_VISITOR_SLOT
godwit_executor_end:

.section .note.GNU-stack, "", @progbits
