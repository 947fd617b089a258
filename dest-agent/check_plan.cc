#include "dest-agent/check_plan.h"

#include <fmt/format.h>
#include <fnmatch.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "common/base/file.h"
#include "common/base/text.h"
#include "common/kernel/identity.h"
#include "common/kernel/machine.h"
#include "dest-agent/skeleton.h"

namespace godwit {
namespace {

constexpr uint32_t most_streams = 16;

// Kinds of objects that restoring knows; source-agent/collect names them in the plan.
constexpr std::array<std::string_view, 18> known_kinds{
    "anonymous memory", "shared memory", "memfd", "file mapping", "threads", "signals", "interval timer", "POSIX timer",
    "regular file", "directory", "memory device", "pipe", "eventfd", "epoll", "timerfd", "signalfd", "unix socket pair",
    "TCP socket",
};

Problem refusal(std::string what, std::string hint) {
    return {std::move(what), std::move(hint), ExitCode::unsupported, 0};
}

std::string name_of(const image::PlannedProcess& process) {
    return fmt::format("pid {} ({})", process.pid().id().empty() ? 0 : *process.pid().id().rbegin(), printable(process.name()));
}

// Memory that the kernel thinks it can give without swapping, in bytes; /proc/meminfo counts in KiB.
uint64_t available_memory() {
    const auto text = read_file("/proc/meminfo");
    if (!text) return UINT64_MAX;
    const size_t at = text->find("MemAvailable:");
    return at == std::string::npos ? UINT64_MAX : std::strtoull(text->c_str() + at + 13, nullptr, 10) * 1024;
}

void check_memory(const image::Plan& plan, std::vector<Problem>& problems) {
    uint64_t wanted = 0;
    for (const auto& process : plan.processes()) wanted += process.resident_bytes();
    const uint64_t available = available_memory();
    if (wanted > available)
        problems.push_back(refusal(fmt::format("the tree holds {} MiB and this host has {} MiB available", wanted >> 20, available >> 20),
                                   "free memory here, or migrate to a larger host"));
}

void check_credentials(const image::Plan& plan, const CredentialPolicy& policy, std::vector<Problem>& problems) {
    for (const auto& process : plan.processes()) {
        const std::set<uint32_t> uids(process.uids().begin(), process.uids().end());
        const std::set<uint32_t> gids(process.gids().begin(), process.gids().end());
        for (Problem& problem : policy.check(name_of(process), uids, gids, process.capabilities()))
            problems.push_back(std::move(problem));
    }
}

bool is_trusted(const image::Plan& plan, const std::string& path) {
    return std::any_of(plan.trusted_files().begin(), plan.trusted_files().end(),
                       [&](const std::string& pattern) { return ::fnmatch(pattern.c_str(), path.c_str(), 0) == 0; });
}

}  // namespace

std::set<std::string> files_to_come(const image::Plan& plan) {
    std::set<std::string> out;
    for (const image::FileIdentity& file : plan.files()) {
        const std::string& path = file.path();
        const size_t slash = path.rfind('/');
        if (!file.memory() || !path.starts_with("/") || path.find('\0') != std::string::npos) continue;
        struct stat there {};
        struct statfs folder {};
        if (::lstat(path.c_str(), &there) == 0 || errno != ENOENT) continue;
        if (::statfs(path.substr(0, slash + 1).c_str(), &folder) == 0 && folder.f_type == TMPFS_MAGIC) out.insert(path);
    }
    return out;
}

std::vector<Problem> check_file(const image::FileIdentity& theirs, const image::Plan& plan, const std::string& boot_id) {
    const std::string name = fmt::format("{} ({})", printable(theirs.path()), printable(theirs.used_by()));
    const auto ours = identify_file(theirs.path(), theirs.path(), theirs.writable());
    if (!ours) {
        if (ours.error().error == ENOENT || ours.error().error == ENOTDIR)
            return {refusal("no file " + name + " here", "put the same file there")};
        return {refusal("cannot look at file " + name + " here: " + ours.error().what, "make it readable for godwit")};
    }
    if ((theirs.mode() & S_IFMT) != (ours->mode() & S_IFMT))
        return {refusal("file " + name + " is of another kind here", "put the same file there")};
    // One kernel, one file: hosts that share a kernel (namespaces, containers).
    const bool same_file = plan.machine().boot_id() == boot_id && theirs.device() == ours->device() && theirs.inode() == ours->inode();
    if (same_file || !S_ISREG(theirs.mode()) || is_trusted(plan, theirs.path())) return {};
    if (theirs.writable()) {
        const bool same_storage = theirs.file_system() != 0 && theirs.file_system() == ours->file_system() && theirs.inode() == ours->inode();
        if (same_storage) return {};
        return {refusal("file " + name + " is written by the tree and is not the same file here",
                        "use storage that both hosts share, or --trust-files PATTERN if you know better")};
    }
    const bool same_build = !theirs.build_id().empty() && theirs.build_id() == ours->build_id();
    const bool same_content = theirs.size() == ours->size() && theirs.content_hash() != 0 && theirs.content_hash() == ours->content_hash();
    if (same_build || same_content) return {};
    return {refusal("file " + name + " has another content here",
                    "install the same version, or --trust-files PATTERN if you know better")};
}

void CheckedFiles::add(const image::FileIdentity& file) {
    files_.emplace(file.path(), file.device(), file.inode(), false);
    // Whoever may write it was checked more strictly than who only reads.
    if (file.writable()) files_.emplace(file.path(), file.device(), file.inode(), true);
}

Result<void> CheckedFiles::require(const image::Layout& layout) const {
    for (const image::MappedFile& file : layout.files())
        if (!files_.contains({file.path(), file.device(), file.inode(), file.writable()}))
            return peer_failed(fmt::format("the layout of pid {} maps {}, which was not compared", layout.pid(), printable(file.path())),
                               "the source is broken or hostile");
    return {};
}

std::vector<Problem> check_plan(const image::Plan& plan, const CredentialPolicy& policy) {
    std::vector<Problem> problems;
    if (plan.mode() != image::MODE_STOP && plan.mode() != image::MODE_PRE_COPY)
        problems.push_back(refusal("this host takes trees in the modes stop and pre-copy only", "use --mode pre-copy"));
    if (plan.processes_size() != 1)
        problems.push_back(refusal(fmt::format("the plan holds {} processes, this host takes one", plan.processes_size()),
                                   "trees of several processes are not carried yet"));
    if (plan.streams() < 1 || plan.streams() > most_streams)
        problems.push_back(refusal(fmt::format("{} data connections are wanted, this host takes 1 to {}", plan.streams(), most_streams), "use fewer --streams"));
    for (const std::string& kind : plan.object_kinds())
        if (std::find(known_kinds.begin(), known_kinds.end(), kind) == known_kinds.end())
            problems.push_back(refusal("this host does not know how to restore: " + printable(kind), "use the same godwit on both hosts"));
    const auto machine = this_machine();
    if (!machine) {
        problems.push_back(machine.error());
        return problems;
    }
    for (Problem& problem : compare_machines(plan.machine(), *machine)) problems.push_back(std::move(problem));
    for (Problem& problem : check_pids(plan)) problems.push_back(std::move(problem));
    check_memory(plan, problems);
    check_credentials(plan, policy, problems);
    const std::set<std::string> to_come = files_to_come(plan);
    for (const image::FileIdentity& file : plan.files())
        if (to_come.contains(file.path())) {
            if (!file.held_outside().empty())
                problems.push_back(refusal(fmt::format("file {} is memory that would move with the tree, and is used by {}, which is not of it",
                                                       printable(file.path()), printable(file.held_outside())),
                                           "end the other program, or use storage that both hosts share"));
        } else for (Problem& problem : check_file(file, plan, machine->boot_id())) problems.push_back(std::move(problem));
    return problems;
}

}  // namespace godwit
