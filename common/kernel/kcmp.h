// kcmp(2): whether two processes' descriptors name one open file description (CONFIG_KCMP, Linux 3.5).
#pragma once

#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

namespace godwit {

// 0: one; 1, 2: less, greater in an order of the kernel's own; 3: not equal; -1 with errno.
inline int kcmp_files(pid_t a, int fd_a, pid_t b, int fd_b) {
    return static_cast<int>(::syscall(SYS_kcmp, a, b, KCMP_FILE, fd_a, fd_b));
}

// 0: both tasks use one descriptor table.
inline int kcmp_tables(pid_t a, pid_t b) {
    return static_cast<int>(::syscall(SYS_kcmp, a, b, KCMP_FILES, 0, 0));
}

// 0: the `nth` item that was added to `epoll` of the process under number `watched` still is what `fd` names.
inline int kcmp_epoll(pid_t pid, int fd, int epoll, int watched, unsigned nth) {
    kcmp_epoll_slot slot{static_cast<__u32>(epoll), static_cast<__u32>(watched), nth};
    return static_cast<int>(::syscall(SYS_kcmp, pid, pid, KCMP_EPOLL_TFD, fd, &slot));
}

}  // namespace godwit
