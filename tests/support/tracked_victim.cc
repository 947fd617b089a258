#include "tests/support/tracked_victim.h"

namespace godwit::tracked {

uint64_t carry_out(const Command& command, int socket) {
    const uint64_t* a = command.arguments;
    switch (command.kind) {
        case Command::call: {
            const long result = ::syscall(static_cast<long>(command.number), a[0], a[1], a[2], a[3], a[4], a[5]);
            return static_cast<uint64_t>(result < 0 ? -errno : result);
        }
        case Command::write_byte:
            *reinterpret_cast<volatile char*>(a[0]) = static_cast<char>(a[1]);
            return 0;
        case Command::read_byte:
            return static_cast<uint64_t>(*reinterpret_cast<volatile unsigned char*>(a[0]));
        case Command::write_at_stack: {
            // The kernel grows the stack for a write anywhere below, within its limit.
            const uint64_t at = (reinterpret_cast<uint64_t>(__builtin_frame_address(0)) - a[0]) & ~(page - 1);
            *reinterpret_cast<volatile char*>(at) = 1;
            return at;
        }
        case Command::fork_and_write: {
            const pid_t child = ::fork();
            if (child == 0) {
                *reinterpret_cast<volatile char*>(a[0]) = 1;
                ::_exit(0);
            }
            int status = 0;
            ::waitpid(child, &status, 0);
            return static_cast<uint64_t>(status);
        }
        case Command::execute:
            ::execl("/bin/sleep", "sleep", "1000", nullptr);
            return static_cast<uint64_t>(-errno);
        case Command::run_free:
            for (uint64_t i = 1;; ++i) {
                *reinterpret_cast<volatile uint64_t*>(a[0]) = i;
                *reinterpret_cast<volatile uint64_t*>(a[0] + page) = i;
                char byte = 0;
                if (::recv(socket, &byte, 1, MSG_DONTWAIT | MSG_PEEK) > 0) return i;
                ::usleep(100);
            }
        case Command::churn:
            // Writes all over a[1] pages, and now and then gives one back.
            for (uint64_t i = 1;; ++i) {
                const uint64_t at = a[0] + i * 7919 % a[1] * page;
                if (i % 61 == 0)
                    ::madvise(reinterpret_cast<void*>(at), page, MADV_DONTNEED);
                else
                    *reinterpret_cast<volatile uint64_t*>(at) = i;
                char byte = 0;
                if (i % 64 == 0 && ::recv(socket, &byte, 1, MSG_DONTWAIT | MSG_PEEK) > 0) return i;
            }
    }
    return 0;
}

}  // namespace godwit::tracked
