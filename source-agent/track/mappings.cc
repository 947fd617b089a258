#include "source-agent/track/mappings.h"

#include <fmt/format.h>

#include <cstdlib>

#include "common/base/file.h"

namespace godwit {
namespace {

// What a process gets between two refreshes beyond what it has: each growth of a mapping is one of its own until then.
constexpr size_t spare_mappings = 256;

void append_rest(std::vector<Vma>& out, Vma vma, uint64_t start, uint64_t end) {
    if (start >= end) return;
    if (vma.inode != 0) vma.offset += start - vma.start;
    vma.start = start;
    vma.end = end;
    out.push_back(std::move(vma));
}

}  // namespace

std::vector<Vma> trackable(const std::vector<Vma>& all) {
    std::vector<Vma> out;
    for (const Vma& vma : all)
        if (vma.path != "[vdso]" && vma.path != "[vsyscall]" && !vma.path.starts_with("[vvar")) out.push_back(vma);
    return out;
}

std::vector<Vma> without(const std::vector<Vma>& all, uint64_t start, uint64_t end) {
    std::vector<Vma> out;
    for (const Vma& vma : all) {
        if (vma.end <= start || vma.start >= end) {
            out.push_back(vma);
            continue;
        }
        append_rest(out, vma, vma.start, start);
        append_rest(out, vma, end, vma.end);
    }
    return out;
}

Result<void> check_own_userfaultfd(pid_t pid) {
    for (const int fd : TRY(read_fd_numbers(pid))) {
        const auto target = read_link(fmt::format("/proc/{}/fd/{}", pid, fd));
        if (target && *target == "anon_inode:[userfaultfd]")
            return unsupported(fmt::format("process {} uses userfaultfd itself (descriptor {})", pid, fd),
                               "it moves with --mode stop once it has closed that");
    }
    return {};
}

Result<void> check_mapping_count(pid_t pid, size_t mappings) {
    const size_t most = std::strtoull(TRY(read_file("/proc/sys/vm/max_map_count")).c_str(), nullptr, 10);
    if (mappings + spare_mappings <= most) return {};
    return unsupported(fmt::format("process {} has {} mappings of {} at most: too few are left to track its memory", pid, mappings, most),
                       "raise vm.max_map_count, or use --mode stop");
}

}  // namespace godwit
