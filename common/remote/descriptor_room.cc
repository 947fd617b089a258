#include "common/remote/descriptor_room.h"

#include <fmt/format.h>

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

}  // namespace

Result<DescriptorRoom> DescriptorRoom::make(pid_t pid) {
    rlimit limit{};
    if (::prlimit(pid, RLIMIT_NOFILE, nullptr, &limit) != 0) return DescriptorRoom(0, {});  // whether it suffices will show
    const auto open = TRY(read_fd_numbers(pid));
    const rlim_t wanted = limit_for(open);
    if (limit.rlim_cur >= wanted) return DescriptorRoom(0, {});
    const rlimit raised{wanted, std::max(limit.rlim_max, wanted)};
    if (::prlimit(pid, RLIMIT_NOFILE, &raised, nullptr) != 0)
        return unsupported(fmt::format("process {} has {} descriptors of {} at most, and the limit cannot be raised for a moment", pid, open.size(), limit.rlim_cur),
                           "raise its RLIMIT_NOFILE (prlimit(1)) by 8, or run godwit with CAP_SYS_RESOURCE");
    fault_point("remote:descriptor-room");
    return DescriptorRoom(pid, limit);
}

DescriptorRoom::~DescriptorRoom() {
    if (pid_ != 0 && ::prlimit(pid_, RLIMIT_NOFILE, &before_, nullptr) != 0 && errno != ESRCH)
        spdlog::warn("the limit of descriptors of process {} stays raised", pid_);
}

}  // namespace godwit
