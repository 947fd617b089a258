// Restartable sequences (rseq(2)) of a stopped task.
#pragma once

#include "common/base/result.h"
#include "common/remote/tracee.h"

namespace godwit {

// If the task stopped inside a critical section: the registers that take its abort. The kernel would do so when the
// task goes on, but forgets the section as soon as other code (the executor) runs in between.
// Linux 5.13 (PTRACE_GET_RSEQ_CONFIGURATION); before, no rseq area is known and the registers stay as they are.
Result<Registers> leave_critical_section(pid_t tid, const Registers& registers);

// The pure part: abort address if `rip` is inside.
Registers leave_critical_section(const Registers& registers, uint64_t start, uint64_t length, uint64_t abort);

}  // namespace godwit
