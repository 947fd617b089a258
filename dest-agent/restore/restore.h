// Gives a skeleton everything but its memory. The halves of source-agent/collect, with the same names.
//
// If anything here fails, or we die, the skeletons are killed (EXITKILL) and the source's tree runs on: no step here has an
// effect outside the skeletons. No socket path is unlinked or bound here.
// Threads: the tracer thread.
#pragma once

#include <functional>
#include <vector>

#include "common/base/result.h"
#include "common/image/files.pb.h"
#include "common/image/process.pb.h"
#include "dest-agent/skeleton.h"

namespace godwit {

// Makes every open file description once, in this agent, and passes it to the skeletons that hold it; what belongs to
// the process itself (epoll items) is a batch in it. Before restore_process: credentials come last.
Result<void> restore_files(std::vector<Skeleton*>& skeletons, const image::Files& files, MadeObjects* objects = nullptr);

// Signal actions, timers, limits, working directory, umask, scheduling, then per task: name, alternate stack, robust list,
// rseq, tid address, pending signals, mask, credentials. No registers yet.
Result<void> restore_process(Skeleton& skeleton, const image::Process& process);

// The last step before READY: the executor goes away (the last munmap is made from the restored vDSO), comm, dumpable and
// registers with xstate are set, pending signals queued. Every task is stopped by ptrace and would run on when detached.
Result<void> seal(Skeleton& skeleton, const image::Process& process);

}  // namespace godwit
