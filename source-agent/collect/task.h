// One task. dest-agent/restore/task is the other half.
#pragma once

#include "common/base/result.h"
#include "common/image/process.pb.h"
#include "source-agent/collect/collect.h"

namespace godwit {

// What the kernel and the task itself tell. `task` is one of subject.process->tasks.
Result<image::Task> collect_task(Subject& subject, Tracee& task);
// What ptrace tells of a task that is stopped, no executor in it: registers, vector state, rseq, pending signals.
Result<void> collect_stopped_task(pid_t pid, Tracee& task, image::Task& out);
// Signals pending for the task (or, `shared`, for its process), oldest first, none taken away (PTRACE_PEEKSIGINFO). A
// signal that the kernel had no room to describe (RLIMIT_SIGPENDING) is described as kill(2) from nobody.
Result<std::vector<image::SignalInfo>> peek_signals(pid_t pid, pid_t tid, bool shared);
// Runs a batch in a task: in the host task directly, in another by a visit.
Result<void> run_in_task(Subject& subject, Tracee& task, Batch& batch);

}  // namespace godwit
