// Which mappings of a process a tracker follows, and what stands against tracking it.
#pragma once

#include <sys/types.h>

#include <vector>

#include "common/base/result.h"
#include "common/kernel/proc.h"

namespace godwit {

// Without those that the kernel made (vDSO, vvar, vsyscall): the destination has its own.
std::vector<Vma> trackable(const std::vector<Vma>& all);
// Without [start, end), which may be a part of one.
std::vector<Vma> without(const std::vector<Vma>& all, uint64_t start, uint64_t end);

// Refuses a process with a userfaultfd of its own, open or not: it may register any of its mappings at any time.
Result<void> check_own_userfaultfd(pid_t pid);
// Refuses a process that is close to vm.max_map_count.
Result<void> check_mapping_count(pid_t pid, size_t mappings);

}  // namespace godwit
