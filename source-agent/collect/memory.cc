// What can be said of a process's mappings while it runs. Their layout: layout.cc.
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#include <algorithm>
#include <optional>

#include "common/base/file.h"
#include "common/base/text.h"
#include "common/kernel/identity.h"
#include "common/kernel/pagemap.h"
#include "common/kernel/proc.h"
#include "source-agent/collect/classify.h"
#include "source-agent/collect/collect.h"

namespace godwit {
namespace {

bool is_gone(const Problem& problem) {
    return problem.error == ENOENT || problem.error == ESRCH;
}

const char* kind_name(image::MappingKind kind) {
    switch (kind) {
        case image::MAPPING_FILE_PRIVATE:
        case image::MAPPING_FILE_SHARED:
            return "file mapping";
        case image::MAPPING_OBJECT_SHARED:
        case image::MAPPING_OBJECT_PRIVATE:
            return "shared memory";
        default:
            return "anonymous memory";
    }
}

void add_kind(image::Plan& plan, const char* kind) {
    const auto& kinds = plan.object_kinds();
    if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) plan.add_object_kinds(kind);
}

bool writes_file(const Vma& vma, image::MappingKind kind) {
    return kind == image::MAPPING_FILE_SHARED && vma.has("mw");
}

// Memory by another name: POSIX shared memory and the like. A file of several names would lose one of them.
bool is_memory(const std::string& link) {
    struct statfs system {};
    struct stat info {};
    return ::statfs(link.c_str(), &system) == 0 && system.f_type == TMPFS_MAGIC && ::stat(link.c_str(), &info) == 0 && info.st_nlink == 1;
}

// One entry per file of the plan; the use that can write it decides.
Result<void> add_file(const std::string& link, const std::string& path, bool writable, std::string used_by, image::Plan& plan) {
    struct stat info;
    if (::stat(link.c_str(), &info) != 0) return fail_errno("cannot look at " + link);
    const bool memory = writable && is_memory(link);
    for (image::FileIdentity& known : *plan.mutable_files())
        if (known.path() == path && known.inode() == info.st_ino && known.device() == info.st_dev) {
            if (writable) known.set_writable(true);
            if (memory) known.set_memory(true);
            return {};
        }
    image::FileIdentity identity = TRY(identify_file(link, path, writable));
    identity.set_used_by(std::move(used_by));
    identity.set_memory(memory);
    *plan.add_files() = std::move(identity);
    return {};
}

// What must be found at the destination though no mapping may name it. Deleted ones are named by check_process().
Result<void> add_links(pid_t pid, image::Plan& plan) {
    for (const auto& [what, name] : {std::pair{"exe", "executable"}, std::pair{"cwd", "working directory"}}) {
        const std::string link = fmt::format("/proc/{}/{}", pid, what);
        const std::string path = TRY(read_link(link));
        struct stat info;
        if (::stat(path.c_str(), &info) == 0) TRY(add_file(link, path, false, fmt::format("pid {} {}", pid, name), plan));
    }
    return {};
}

bool same_mapping(const Vma& a, const Vma& b) {
    return a.start == b.start && a.end == b.end && a.offset == b.offset && a.device == b.device && a.inode == b.inode &&
           a.path == b.path && a.shared == b.shared && a.flags == b.flags;
}

// The process runs on: between the line of smaps and the look at its file, the mapping may have become another one. What is
// refused must be the same, and refused, each time. Nothing: it is not there any more; the freeze will show what is.
Result<std::optional<Problem>> confirm(pid_t pid, const MappingClassifier& classifier, const Vma& vma, Problem first) {
    for (int again = 0; again < 2; ++again) {
        const auto now = TRY(read_smaps(pid));
        if (std::none_of(now.begin(), now.end(), [&](const Vma& other) { return same_mapping(vma, other); })) return std::nullopt;
        auto found = classifier.classify(vma);
        if (found || is_gone(found.error())) return std::nullopt;
        first = std::move(found.error());
    }
    return first;
}

}  // namespace

Result<void> survey_memory(pid_t pid, const CollectOptions&, image::Plan& plan, Problems& problems) {
    const MappingClassifier classifier = TRY(MappingClassifier::make(pid));
    const Pagemap pagemap = TRY(Pagemap::open(pid));
    uint64_t resident = 0;
    // The process runs on: a mapping that is gone when it is looked at was unmapped, moved or split. What it became is
    // looked at again under the freeze.
    for (const Vma& vma : TRY(read_smaps(pid))) {
        resident += vma.resident_kb * 1024;
        auto found = classifier.classify(vma);
        if (!found) {
            if (is_gone(found.error())) continue;
            if (auto refusal = TRY(confirm(pid, classifier, vma, std::move(found.error())))) problems.push_back(std::move(*refusal));
            continue;
        }
        if (found->kind == image::MAPPING_VDSO || found->kind == image::MAPPING_VVAR || found->kind == image::MAPPING_VSYSCALL) continue;
        add_kind(plan, kind_name(found->kind));
        if (TRY(pagemap.has_guards(vma.start, vma.end)))
            problems.push_back({classifier.describe(vma) + " has guard pages (MADV_GUARD_INSTALL)", "they are not carried yet",
                                ExitCode::unsupported, 0});
        if (found->path.empty()) continue;
        if (const auto added = add_file(classifier.link_of(vma), found->path, writes_file(vma, found->kind),
                                        fmt::format("pid {} mapping {:x}-{:x}", pid, vma.start, vma.end), plan);
            !added && !is_gone(added.error()))
            problems.push_back(added.error());
    }
    TRY(add_links(pid, plan));
    if (plan.processes_size() > 0) plan.mutable_processes(plan.processes_size() - 1)->set_resident_bytes(resident);
    return {};
}

}  // namespace godwit
