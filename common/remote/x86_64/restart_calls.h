// Which system calls of this architecture a stop breaks off with a plain EINTR, and so need a fix-up.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>

#include <cstdint>

#include "common/remote/tracee.h"

namespace godwit::executor {

constexpr uint64_t syscall_size = 2;  // of the `syscall` instruction

// True for calls that wait, return EINTR for any stop although no signal is caught, and are right to be made again with
// the same arguments: those of signal(7), and reads, writes and connections of sockets with SO_RCVTIMEO or SO_SNDTIMEO.
// Not close(2), which has closed the descriptor, nor anything that changes names or files.
constexpr bool broken_off_by_stop(long number) {
    switch (number) {
        case SYS_epoll_wait:
        case SYS_epoll_pwait:
        case SYS_epoll_pwait2:
        case SYS_semop:
        case SYS_semtimedop:
        case SYS_rt_sigtimedwait:
        case SYS_io_getevents:
        case SYS_io_pgetevents:
        case SYS_io_uring_enter:
        case SYS_read:
        case SYS_readv:
        case SYS_write:
        case SYS_writev:
        case SYS_recvfrom:
        case SYS_recvmsg:
        case SYS_recvmmsg:
        case SYS_sendto:
        case SYS_sendmsg:
        case SYS_sendmmsg:
        case SYS_accept:
        case SYS_accept4:
        case SYS_connect:
            return true;
        default:
            return false;
    }
}

// True for a call with a restart block that waits as long when it is simply made again: without a timeout, or until a
// moment.
inline bool arguments_tell_all(const Registers& registers) {
    if (registers.orig_rax == SYS_poll) return static_cast<int32_t>(registers.rdx) < 0;
    if (registers.orig_rax == SYS_futex) return (registers.rsi & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET;
    return false;
}

}  // namespace godwit::executor
