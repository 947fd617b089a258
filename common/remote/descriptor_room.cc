#include "common/remote/descriptor_room.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "common/base/fault.h"
#include "common/base/log.h"
#include "common/kernel/proc.h"

namespace godwit {
namespace {

constexpr rlim_t needed = 8;  // at a time: the executor's socketpair, then what a batch makes

// Below it as many numbers are free as are needed. `open` ascends.
rlim_t limit_for(const std::vector<int>& open) {
    rlim_t next = 0, free = 0;
    for (const int fd : open) {
        const auto number = static_cast<rlim_t>(fd);
        if (free + (number - next) >= needed) break;
        free += number - next;
        next = number + 1;
    }
    return next + needed - free;
}

struct Wish {
    rlimit now{};
    rlim_t wanted = 0;
    size_t open = 0;
};

Result<Wish> wish_for(pid_t pid) {
    Wish wish;
    const auto open = TRY(read_fd_numbers(pid));
    wish.open = open.size();
    wish.wanted = limit_for(open);
    // Where it cannot be asked whether there is room will show.
    if (::prlimit(pid, RLIMIT_NOFILE, nullptr, &wish.now) != 0) wish.now = {wish.wanted, wish.wanted};
    return wish;
}

Failure no_room(pid_t pid, const Wish& wish) {
    return unsupported(fmt::format("process {} has {} descriptors, its limit is {}, and that cannot be raised for a moment", pid, wish.open, wish.now.rlim_cur),
                       fmt::format("have it close some, raise its RLIMIT_NOFILE to {} (prlimit(1)), or run godwit with CAP_SYS_RESOURCE", wish.wanted));
}

}  // namespace

Result<DescriptorRoom> DescriptorRoom::make(pid_t pid) {
    const Wish wish = TRY(wish_for(pid));
    if (wish.now.rlim_cur >= wish.wanted) return DescriptorRoom(0, {});
    const rlimit raised{wish.wanted, std::max(wish.now.rlim_max, wish.wanted)};
    if (::prlimit(pid, RLIMIT_NOFILE, &raised, nullptr) != 0) return no_room(pid, wish);
    fault_point("remote:descriptor-room");
    return DescriptorRoom(pid, wish.now);
}

Result<void> DescriptorRoom::check(pid_t pid) {
    constexpr int sys_resource = 24;  // CAP_SYS_RESOURCE, capabilities(7)
    const Wish wish = TRY(wish_for(pid));
    if (wish.now.rlim_max >= wish.wanted) return {};
    const Status ours = TRY(read_status(::getpid(), ::getpid()));
    if ((status_hex(ours, "CapEff") >> sys_resource & 1) != 0) return {};
    return no_room(pid, wish);
}

DescriptorRoom::~DescriptorRoom() {
    if (pid_ != 0 && ::prlimit(pid_, RLIMIT_NOFILE, &before_, nullptr) != 0 && errno != ESRCH)
        spdlog::warn("the limit of descriptors of process {} stays raised", pid_);
}

}  // namespace godwit
