// Interval timers and POSIX timers. dest-agent/restore/timers is the other half.
//
// They run on while the tree is frozen. What is collected is what was left when they were asked: a timer set for a moment
// of CLOCK_REALTIME goes on by that, too.
#pragma once

#include <optional>
#include <vector>

#include "common/base/result.h"
#include "common/image/process.pb.h"
#include "source-agent/collect/collect.h"

namespace godwit {

// All of each POSIX timer but its times, from /proc/PID/timers (Linux 3.10). A notification that is not known stays in
// `notify` as unknown_notification.
inline constexpr uint32_t unknown_notification = UINT32_MAX;
Result<std::vector<image::PosixTimer>> list_timers(pid_t pid);

// Why this one is not carried, if so.
std::optional<Problem> check_timer(pid_t pid, const image::PosixTimer& timer);

// Asks the process for the times; notes the moment in timers_read_ns.
Result<void> collect_timers(Subject& subject, image::Process& out);

// Once the pending signals are known: a timer whose signal came between the two is not left to fire again.
// `now_ns` is CLOCK_MONOTONIC when the signals were read.
void settle_timers(image::Process& process, int64_t now_ns);

}  // namespace godwit
