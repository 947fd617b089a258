// Remote and descriptors: sending ours, moving the executor's own.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <cstring>

#include "common/base/fault.h"
#include "common/kernel/abi.h"
#include "common/remote/state.h"

namespace godwit {
namespace {

using executor::Slot;

union ControlBuffer {
    cmsghdr align;
    char bytes[CMSG_SPACE(kernel::most_descriptors_in_message * sizeof(int))];
};

}  // namespace

static_assert(sizeof(ControlBuffer) <= GW_CONTROL_SIZE);

// An empty batch with descriptors: the executor receives them like any other and replies.
Result<std::vector<int>> Remote::send_fds(std::span<const int> fds) {
    State& s = *state_;
    const RemotePtr control_at = s.host_slot() + offsetof(Slot, control);
    std::vector<int> numbers;
    while (numbers.size() < fds.size()) {
        const auto part = fds.subspan(
            numbers.size(), std::min<size_t>(fds.size() - numbers.size(), kernel::most_descriptors_in_message));
        ControlBuffer control{};
        TRY(s.memory.write(control_at, control.bytes, sizeof control.bytes));

        executor::Header header{};
        iovec vector{&header, sizeof header};
        msghdr message{};
        message.msg_iov = &vector;
        message.msg_iovlen = 1;
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(part.size_bytes());
        cmsghdr* head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(part.size_bytes());
        std::memcpy(CMSG_DATA(head), part.data(), part.size_bytes());
        fault_point("remote:send-fds");
        if (::sendmsg(s.socket.get(), &message, MSG_NOSIGNAL) < 0)
            return fail_errno(fmt::format("cannot send {} descriptors to process {}", part.size(), s.pid));
        TRY(s.await_reply(*s.host));

        TRY(s.memory.read(control_at, control.bytes, sizeof control.bytes));
        const size_t had = numbers.size();
        const size_t got =
            control.align.cmsg_len < CMSG_LEN(0) ? 0 : (control.align.cmsg_len - CMSG_LEN(0)) / sizeof(int);
        numbers.resize(had + std::min(got, part.size()));
        std::memcpy(numbers.data() + had, control.bytes + CMSG_LEN(0), (numbers.size() - had) * sizeof(int));
        if (numbers.size() - had == part.size()) continue;

        Batch undo;
        for (const int number : numbers) undo.call_may_fail(SYS_close, number);
        TRY(run(undo));
        return fail(fmt::format("process {} took only {} of {} descriptors", s.pid, numbers.size(), fds.size()),
                    "raise its limit of open files (ulimit -n)");
    }
    return numbers;
}

// The slot's second descriptor number is closed along with the socket if we die: at most a close-on-exec
// descriptor is left, and nothing of the target's is closed.
Result<void> Remote::move_socket(int number) {
    State& s = *state_;
    const int old = s.socket_number;
    if (number == old) return {};
    const RemotePtr second_at = s.host_slot() + offsetof(Slot, pair) + sizeof(int32_t);
    const int32_t none = -1;
    {
        Batch batch;
        batch.call(SYS_dup3, old, number, O_CLOEXEC);
        TRY(run(batch));
    }
    const int32_t both[4] = {number, s.host->tid(), number, old};  // socket, tid, pair
    static_assert(offsetof(Slot, pair) == offsetof(Slot, socket) + 8);
    TRY(s.memory.write(s.host_slot() + offsetof(Slot, socket), both, sizeof both));
    s.socket_number = number;
    TRY(s.memory.write(second_at, &none, sizeof none));
    Batch batch;
    batch.call(SYS_close, old);
    return run(batch);
}

}  // namespace godwit
