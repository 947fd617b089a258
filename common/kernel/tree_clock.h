// The clocks of a process in a time namespace, read from outside (time_namespaces(7), Linux 5.6).
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "common/base/result.h"

namespace godwit {

// What `clock` (CLOCK_MONOTONIC or CLOCK_BOOTTIME) shows to the process now, in nanoseconds: ours and the difference of
// the offsets in /proc/PID/timens_offsets. Equal to ours where the kernel has no time namespaces.
Result<int64_t> tree_clock(pid_t pid, int clock);
// The clock as this process reads it.
int64_t own_clock(int clock);

}  // namespace godwit
