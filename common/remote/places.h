// Where executors are, or were left, in a process: found by reading /proc/PID/maps and memory.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/remote/remote.h"
#include "common/remote/remote_ptr.h"

namespace godwit {

struct Range {
    RemotePtr start;
    uint64_t size = 0;
    bool holds(RemotePtr at) const { return at >= start && at.address() - start.address() < size; }
};

struct Region {
    Range range;
    std::array<pid_t, 2> owners{};  // tasks not yet out of it: host, visitor
};

struct Places {
    std::vector<Region> regions;
    std::vector<Range> boots;
    // True if the task, with this instruction pointer, is in executor code or has yet to return there from a handler.
    bool hold(pid_t tid, RemotePtr instruction) const;
};

Result<Places> find_executors(pid_t pid);

// Zero bytes at the end of the vDSO for the boot code, or what a killed agent left there longest ago.
struct BootPlace {
    RemotePtr at;
    uint64_t sequence = 0;
};
Result<BootPlace> find_boot_place(pid_t pid, const ProcessMemory& memory);

}  // namespace godwit
