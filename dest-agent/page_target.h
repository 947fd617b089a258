// Where pages that arrive are written: a process by address (Skeleton), a shared object by offset.
#pragma once

#include <cstddef>
#include <span>

#include "common/base/result.h"
#include "transport/frame.h"

namespace godwit {

// Threads: several at a time, for ranges that do not overlap. What is behind it is not changed meanwhile.
// Errors: ranges that the target does not have are a Problem of the peer's, before any of the call's ranges was written.
class PageTarget {
  public:
    virtual ~PageTarget() = default;
    // Ascending, not overlapping, whole pages; PageRange::zero means nothing here. `content` is theirs, one after the other.
    virtual Result<void> write(std::span<const PageRange> ranges, const std::byte* content) = 0;
    // Ranges of any length. What was never written may be left as it is where that is zero.
    virtual Result<void> zero(std::span<const PageRange> ranges) = 0;
};

}  // namespace godwit
