// Which system calls of this architecture a stop breaks off with a plain EINTR, and so need a fix-up.
#pragma once

#include <sys/syscall.h>

#include <cstdint>

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

}  // namespace godwit::executor
