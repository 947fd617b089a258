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
using Files = std::map<std::string, uint64_t>;

// The first use of each object. A process that is gone uses nothing.
Users users_of(pid_t pid, uint64_t device, const Files& files) {
    Users out;
    if (const auto held = held_objects(pid, files))
        for (const HeldObject& one : *held) out.emplace(one.id, fmt::format("pid {} fd {}", pid, one.fd));
    if (const auto mappings = read_maps(pid))
        for (const Vma& vma : *mappings) {
            const auto file = files.find(vma.path);
            const uint64_t id = shared_object_id(vma.device, vma.inode);
            if (vma.inode == 0 || (vma.device != device && (file == files.end() || file->second != id))) continue;
            out.emplace(id,
                        fmt::format("mapping {:x}-{:x} {} of pid {}", vma.start, vma.end, printable(vma.path), pid));
        }
    return out;
}

bool is_memfd(const std::string& user) {
    return user.find(" fd ") != std::string::npos || user.find("/memfd:") != std::string::npos;
}

// A file may be the same for both hosts: then it does not move, and nobody is in the way. The destination knows.
bool tell_of_file(uint64_t id, const std::string& other, image::Plan& plan) {
    bool any = false;
    for (image::FileIdentity& file : *plan.mutable_files()) {
        if (!file.memory() || shared_object_id(file.device(), file.inode()) != id) continue;
        file.set_held_outside(other);
        any = true;
    }
    return any;
}

}  // namespace

Result<void> survey_objects(const Tree& tree, image::Plan& plan, Problems& problems) {
    const uint64_t device = TRY(shared_memory_device());
    Files files;
    for (const image::FileIdentity& file : plan.files())
        if (file.memory()) files[file.path()] = shared_object_id(file.device(), file.inode());
    Users ours;
    for (const pid_t pid : tree.pids) ours.merge(users_of(pid, device, files));
    if (ours.empty()) return {};
    if (std::any_of(ours.begin(), ours.end(), [](const auto& user) { return is_memfd(user.second); }))
        plan.add_object_kinds("memfd");
    for (const pid_t pid : TRY(read_processes())) {
        if (std::find(tree.pids.begin(), tree.pids.end(), pid) != tree.pids.end()) continue;
        for (const auto& [id, user] : users_of(pid, device, files)) {
            const auto shared = ours.find(id);
            if (shared == ours.end()) continue;
            const auto stat = read_stat(pid);
            const std::string other = fmt::format("{} ({})", user, stat ? printable(stat->name) : "ended");
            if (!tell_of_file(id, other, plan))
                problems.push_back(
                    {fmt::format("{}: its memory is shared with {}, which is not of the tree", shared->second, other),
                     "end the other program, or have one of them let it go", ExitCode::unsupported, 0});
        }
    }
    return {};
}

}  // namespace godwit
