// Room for a few descriptors in a process whose table is full to its limit (RLIMIT_NOFILE).
//
// While this object lives the soft limit is raised a little where there is no room. The process may run meanwhile: it could then
// open a descriptor more than it was allowed. If we die, the raised limit stays; it harms nothing.
// Raising it for a process of another user, or above the hard limit, needs CAP_SYS_RESOURCE (prlimit(2)).
#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#include "common/base/result.h"

namespace godwit {

class DescriptorRoom {
  public:
    // A Problem (code unsupported) names a process whose table is full and whose limit cannot be raised.
    static Result<DescriptorRoom> make(pid_t pid);
    // Whether make() would work, without touching anything.
    static Result<void> check(pid_t pid);
    DescriptorRoom(DescriptorRoom&& other) noexcept : pid_(other.pid_), before_(other.before_) { other.pid_ = 0; }
    DescriptorRoom& operator=(DescriptorRoom&&) = delete;
    ~DescriptorRoom();

  private:
    DescriptorRoom(pid_t pid, rlimit before) : pid_(pid), before_(before) {}
    pid_t pid_ = 0;  // 0: nothing to undo
    rlimit before_{};
};

}  // namespace godwit
