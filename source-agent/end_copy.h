// The end of the source's frozen copy, once the destination owns the tree.
#pragma once

#include "common/base/result.h"
#include "common/recovery/hold_cgroup.h"
#include "common/recovery/journal.h"

namespace godwit {

// Has established TCP connections reset their peers (--tcp-close), then kills what is in the hold cgroup and removes it.
// A connection that could not be reached ends in order instead, with a warning. May be called again after a crash at any line.
Result<void> end_copy(const HoldCgroup& hold, const Journal& journal);

}  // namespace godwit
