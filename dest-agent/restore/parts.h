// The pieces of restore_process(), one file each. All run on the tracer thread, in a skeleton whose tasks block every signal.
#pragma once

#include <string>

#include "common/base/result.h"
#include "common/image/process.pb.h"
#include "dest-agent/named_calls.h"
#include "dest-agent/skeleton.h"

namespace godwit {

// timers.cc: interval timers and POSIX timers with their ids. They tick from here on; what they send waits.
Result<void> restore_timers(Remote& remote, const image::Process& process);

// task.cc: scheduling from outside, then what a task must ask for itself. `process` tells what the leader has on top.
Result<void> restore_task(Skeleton& skeleton, Tracee& task, const image::Process& process, const image::Task& wanted);

// credentials.cc: adds the calls by which a task that holds all the agent's privileges gives up what `wanted` has not.
Result<void> add_credentials(NamedCalls& calls, pid_t tid, const image::Credentials& wanted);

}  // namespace godwit
