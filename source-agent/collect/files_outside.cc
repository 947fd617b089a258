// Who else holds an end of the tree's pipes and sockets. The kernel has no index for it: all of /proc is read once.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "common/kernel/proc.h"
#include "source-agent/collect/files_internal.h"

namespace godwit::files {
namespace {

// The inode of "pipe:[N]" and "socket:[N]", else 0.
uint64_t inode_of(std::string_view link) {
    const size_t open = link.find(":[");
    if (open == std::string_view::npos || (link.substr(0, open) != "pipe" && link.substr(0, open) != "socket")) return 0;
    uint64_t inode = 0;
    std::from_chars(link.data() + open + 2, link.data() + link.size(), inode);
    return inode;
}

}  // namespace

Result<std::map<uint64_t, Outsider>> find_outside(const std::vector<pid_t>& pids, const std::set<uint64_t>& wanted) {
    std::map<uint64_t, Outsider> out;
    for (const pid_t pid : TRY(read_processes())) {
        if (std::find(pids.begin(), pids.end(), pid) != pids.end()) continue;
        const auto numbers = read_fd_numbers(pid);  // fails when the process is gone
        if (!numbers) continue;
        for (const int fd : *numbers) {
            const auto link = read_link(fmt::format("/proc/{}/fd/{}", pid, fd));
            const uint64_t inode = link ? inode_of(*link) : 0;
            if (inode == 0 || !wanted.contains(inode)) continue;
            const auto stat = read_stat(pid);
            out.emplace(inode, Outsider{pid, fd, stat ? stat->name : std::string()});
        }
    }
    return out;
}

}  // namespace godwit::files
