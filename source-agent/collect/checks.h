// What keeps a process or one of its tasks from being carried, as far as it can be seen from outside. The survey asks
// while it runs; collect_process() asks again under the freeze.
//
// Neither carried nor refused, mostly since the kernel tells nobody: docs/kernel-requirements.md.
#pragma once

#include <sys/types.h>

#include <string>

#include "common/base/result.h"
#include "common/kernel/proc.h"
#include "source-agent/collect/collect.h"

namespace godwit {

// "pid 7 (redis-server)"
std::string process_name(pid_t pid, const Stat& stat);

// Children, session, process group, terminal, root, working directory, executable, POSIX timers. The Result is a Problem
// only when /proc cannot be read, which mostly means that the process is gone.
Result<void> check_process(pid_t pid, const Stat& stat, Problems& problems);
// One task: seccomp, speculation, namespaces, what it shares with the leader, scheduling. ENOENT or ESRCH: it is gone.
Result<void> check_task(pid_t pid, pid_t tid, const Status& status, Problems& problems);
// Looks at every process that /proc shows: none may share memory, descriptors or directories with this one or be traced
// by it. While the tree runs: it takes some 50 µs for each process of the host.
Result<void> check_sharing_with_others(pid_t pid, Problems& problems);

// Children of all tasks, zombies too. Where the kernel lacks /proc/PID/task/TID/children (CONFIG_PROC_CHILDREN) every
// process is asked for its parent.
Result<std::vector<pid_t>> find_children(pid_t pid);

}  // namespace godwit
