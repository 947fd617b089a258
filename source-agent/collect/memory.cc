// Mappings: survey and Layout. dest-agent/skeleton is the other half.
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

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
        case image::MAPPING_ANONYMOUS_SHARED:
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

// One entry per file of the plan; the use that can write it decides.
Result<void> add_file(const std::string& link, const std::string& path, bool writable, std::string used_by, image::Plan& plan) {
    struct stat info;
    if (::stat(link.c_str(), &info) != 0) return fail_errno("cannot look at " + link);
    for (image::FileIdentity& known : *plan.mutable_files())
        if (known.path() == path && known.inode() == info.st_ino && known.device() == info.st_dev) {
            if (writable) known.set_writable(true);
            return {};
        }
    image::FileIdentity identity = TRY(identify_file(link, path, writable));
    identity.set_used_by(std::move(used_by));
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

void set_flags(const Vma& vma, image::MappingRange& range) {
    range.set_grows_down(vma.has("gd"));
    range.set_no_reserve(vma.has("nr"));
    range.set_accounted(vma.has("ac") && (vma.protection & PROT_WRITE) == 0 && !vma.shared);
    range.set_locked(vma.has("lo"));
    range.set_lock_on_fault(vma.has("lf"));
    range.set_huge_page(vma.has("hg"));
    range.set_no_huge_page(vma.has("nh"));
    range.set_dont_fork(vma.has("dc"));
    range.set_wipe_on_fork(vma.has("wf"));
    range.set_dont_dump(vma.has("dd"));
    range.set_mergeable(vma.has("mg"));
    range.set_sequential(vma.has("sr"));
    range.set_random(vma.has("rr"));
}

uint32_t file_index(image::Layout& layout, const Vma& vma, const MappingClass& found) {
    const bool writable = writes_file(vma, found.kind);
    for (int i = 0; i < layout.files_size(); ++i) {
        image::MappedFile& file = *layout.mutable_files(i);
        if (file.path() == found.path && file.writable() == writable) return static_cast<uint32_t>(i) + 1;
    }
    image::MappedFile& file = *layout.add_files();
    file.set_path(found.path);
    file.set_writable(writable);
    file.set_device(found.device);
    file.set_inode(found.inode);
    return static_cast<uint32_t>(layout.files_size());
}

// The parts of a VMA outside [start, start + size): the executor's mapping may have merged with its neighbours.
std::vector<Vma> without(const Vma& vma, uint64_t start, uint64_t size) {
    const uint64_t end = start + size;
    if (vma.end <= start || vma.start >= end) return {vma};
    std::vector<Vma> out;
    if (vma.start < start) {
        out.push_back(vma);
        out.back().end = start;
    }
    if (vma.end > end) {
        out.push_back(vma);
        out.back().start = end;
        if (!vma.path.empty() && vma.path[0] == '/') out.back().offset += end - vma.start;
    }
    return out;
}

Result<void> add_mapping(const MappingClassifier& classifier, const Vma& vma, image::Layout& layout) {
    const MappingClass found = TRY(classifier.classify(vma));
    image::MappingRange& range = *layout.add_mappings();
    range.set_start(vma.start);
    range.set_end(vma.end);
    range.set_kind(found.kind);
    range.set_protection(vma.protection);
    if (found.kind == image::MAPPING_VDSO) layout.set_vdso(vma.start);
    if (found.kind == image::MAPPING_VDSO || found.kind == image::MAPPING_VVAR || found.kind == image::MAPPING_VSYSCALL) return {};
    set_flags(vma, range);
    range.set_name(found.name);
    if (found.kind == image::MAPPING_ANONYMOUS_SHARED) {
        range.set_shared_object(found.inode);
        range.set_offset(vma.offset);
    } else if (found.kind != image::MAPPING_ANONYMOUS) {
        range.set_file(file_index(layout, vma, found));
        range.set_offset(vma.offset);
    }
    return {};
}

// struct prctl_mm_map from proc(5): stat, auxv; the current end of the heap is known to the process alone.
Result<void> collect_memory_map(Subject& subject, image::MemoryMap& out) {
    const pid_t pid = subject.process->pid;
    const Stat stat = TRY(read_stat(pid));
    out.set_start_code(stat.start_code);
    out.set_end_code(stat.end_code);
    out.set_start_data(stat.start_data);
    out.set_end_data(stat.end_data);
    out.set_start_brk(stat.start_brk);
    out.set_brk(static_cast<uint64_t>(TRY(subject.remote->call(SYS_brk, 0))));
    out.set_start_stack(stat.start_stack);
    out.set_arg_start(stat.arg_start);
    out.set_arg_end(stat.arg_end);
    out.set_env_start(stat.env_start);
    out.set_env_end(stat.env_end);
    out.set_auxv(TRY(read_file(fmt::format("/proc/{}/auxv", pid))));
    return {};
}

// The executor's memory was mapped a moment ago, without MAP_LOCKED: if it is locked, so is all that will be mapped.
Result<void> check_future_locks(const Subject& subject, const Vma& vma) {
    const uint64_t executor = subject.remote->start().address();
    if (executor < vma.start || executor >= vma.end || !vma.has("lo")) return {};
    return unsupported(fmt::format("pid {} locks all memory that it will map (mlockall, MCL_FUTURE)", subject.process->pid), "this is not carried yet");
}

void mark_content(image::Layout& layout, const std::vector<ByteRange>& ranges) {
    auto range = ranges.begin();
    for (image::MappingRange& mapping : *layout.mutable_mappings()) {
        while (range != ranges.end() && range->end <= mapping.start()) ++range;
        mapping.set_has_content(range != ranges.end() && range->start < mapping.end());
    }
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

Result<image::Layout> collect_layout(Subject& subject) {
    const pid_t pid = subject.process->pid;
    const MappingClassifier classifier = TRY(MappingClassifier::make(pid));
    const Pagemap pagemap = TRY(Pagemap::open(pid));
    image::Layout layout;
    layout.set_pid(subject.pid_inside);
    TRY(collect_memory_map(subject, *layout.mutable_memory_map()));
    for (const Vma& vma : TRY(read_smaps(pid))) {
        TRY(check_future_locks(subject, vma));
        for (const Vma& part : without(vma, subject.remote->start().address(), subject.remote->size())) {
            TRY(add_mapping(classifier, part, layout));
            if (part.path != "[vsyscall]" && TRY(pagemap.has_guards(part.start, part.end)))
                return unsupported(classifier.describe(part) + " has guard pages (MADV_GUARD_INSTALL)", "they are not carried yet");
        }
    }
    layout.set_executable(TRY(read_link(fmt::format("/proc/{}/exe", pid))));
    for (const Tracee& task : subject.process->tasks) layout.add_tids(task.tid());
    layout.set_name(TRY(read_stat(pid)).name);
    mark_content(layout, TRY(content_ranges(pid, layout)));
    return layout;
}

}  // namespace godwit
