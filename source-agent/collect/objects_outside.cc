// Who else uses the shared memory of a tree. What two trees share cannot move with one of them: refused by name, before
// anything is touched. The kernel has no index for it.
//
// Not seen: a memfd that is on its way in a unix socket, or that somebody in another PID namespace holds; what is
// passed on between the survey and the freeze.
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>

#include "common/base/text.h"
#include "common/kernel/proc.h"
#include "source-agent/collect/collect.h"
#include "source-agent/collect/shared_objects.h"

namespace godwit {
namespace {

// "pid 7 fd 3", "mapping 7f..-7f.. of pid 7"
using Users = std::map<uint64_t, std::string>;

// The first use of each object. A process that is gone uses nothing.
Users users_of(pid_t pid, uint64_t device) {
    Users out;
    if (const auto held = held_objects(pid))
        for (const HeldObject& one : *held) out.emplace(one.id, fmt::format("pid {} fd {}", pid, one.fd));
    if (const auto mappings = read_maps(pid))
        for (const Vma& vma : *mappings)
            if (vma.inode != 0 && vma.device == device)
                out.emplace(
                    shared_object_id(device, vma.inode),
                    fmt::format("mapping {:x}-{:x} {} of pid {}", vma.start, vma.end, printable(vma.path), pid));
    return out;
}

bool is_memfd(const std::string& user) {
    return user.find(" fd ") != std::string::npos || user.find("/memfd:") != std::string::npos;
}

}  // namespace

Result<void> survey_objects(const Tree& tree, image::Plan& plan, Problems& problems) {
    const uint64_t device = TRY(shared_memory_device());
    Users ours;
    for (const pid_t pid : tree.pids) ours.merge(users_of(pid, device));
    if (ours.empty()) return {};
    if (std::any_of(ours.begin(), ours.end(), [](const auto& user) { return is_memfd(user.second); }))
        plan.add_object_kinds("memfd");
    for (const pid_t pid : TRY(read_processes())) {
        if (std::find(tree.pids.begin(), tree.pids.end(), pid) != tree.pids.end()) continue;
        for (const auto& [id, user] : users_of(pid, device)) {
            const auto shared = ours.find(id);
            if (shared == ours.end()) continue;
            const auto stat = read_stat(pid);
            problems.push_back({fmt::format("{}: its memory is shared with {} ({}), which is not of the tree",
                                            shared->second, user, stat ? printable(stat->name) : "ended"),
                                "end the other program, or have one of them let it go", ExitCode::unsupported, 0});
        }
    }
    return {};
}

}  // namespace godwit
