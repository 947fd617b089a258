// Layout of one process. dest-agent/skeleton is the other half.
#include "source-agent/collect/layout.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>

#include "common/base/text.h"
#include "common/kernel/identity.h"
#include "common/kernel/pagemap.h"
#include "source-agent/collect/shared_objects.h"

namespace godwit {
namespace {

constexpr size_t page_size = 4096;
constexpr int guard_install = 102;  // madvise(2), Linux 6.13

bool is_gone(const Problem& problem) { return problem.error == ENOENT || problem.error == ESRCH; }

bool writes_file(const Vma& vma, image::MappingKind kind) { return kind == image::MAPPING_FILE_SHARED && vma.has("mw"); }

// Whether `now` is `then`, perhaps grown: mappings merge only where their flags are the same.
bool contains(const Vma& now, const Vma& then) {
    const bool backed = now.inode != 0;
    return now.start <= then.start && now.end >= then.end && now.protection == then.protection && now.shared == then.shared &&
           now.device == then.device && now.inode == then.inode && now.path == then.path &&
           (!backed || now.offset - now.start == then.offset - then.start);
}

// How this kernel tells of guard pages: Linux 6.13 has them, PAGEMAP_SCAN tells since 6.15, VmFlags since 6.18.
enum class Guards { none, in_pagemap, in_flags };
Guards find_out_guards() {
    void* at = ::mmap(nullptr, page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return Guards::in_pagemap;
    const Mapping page(at, page_size);
    if (::madvise(at, page_size, guard_install) != 0) return Guards::none;
    const auto mappings = read_smaps(::getpid());
    const auto start = reinterpret_cast<uint64_t>(at);
    const bool told = mappings && std::any_of(mappings->begin(), mappings->end(), [&](const Vma& vma) {
        return vma.start <= start && start < vma.end && vma.has("gu");
    });
    return told ? Guards::in_flags : Guards::in_pagemap;
}

Guards how_guards_are_told() {
    static const Guards guards = find_out_guards();
    return guards;
}

// Of a process that runs the list is read in pieces: a mapping that grows meanwhile may be told twice.
void cut_overlaps(std::vector<Vma>& mappings) {
    uint64_t end = 0;
    for (Vma& vma : mappings) {
        if (vma.start < end) {
            const uint64_t cut = std::min(end, vma.end) - vma.start;
            if (vma.inode != 0) vma.offset += cut;
            vma.start += cut;
        }
        end = std::max(end, vma.end);
    }
    std::erase_if(mappings, [](const Vma& vma) { return vma.start >= vma.end; });
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
    for (int i = layout.files_size(); i-- > 0;) {  // mappings of one file stand together
        const image::MappedFile& file = layout.files(i);
        if (file.path() == found.path && file.writable() == writable && file.inode() == found.inode) return static_cast<uint32_t>(i) + 1;
    }
    image::MappedFile& file = *layout.add_files();
    file.set_path(found.path);
    file.set_writable(writable);
    file.set_device(found.device);
    file.set_inode(found.inode);
    return static_cast<uint32_t>(layout.files_size());
}

std::string file_key(const std::string& path, uint64_t device, uint64_t inode, bool writable) {
    return fmt::format("{}:{}:{}:{}", device, inode, writable, path);
}

}  // namespace

Result<LayoutReader> LayoutReader::make(pid_t pid, pid_t pid_inside, const image::Plan& plan, const CollectOptions& options) {
    (void)how_guards_are_told();  // found out now, not in the freeze
    LayoutReader out(TRY(MappingClassifier::make(pid)));
    out.pid_ = pid;
    out.pid_inside_ = pid_inside;
    out.moving_files_ = options.moving_files;
    for (const image::FileIdentity& file : plan.files()) {
        out.files_.insert(file_key(file.path(), file.device(), file.inode(), file.writable()));
        // Whoever may write it was checked more strictly than who only reads.
        if (file.writable()) out.files_.insert(file_key(file.path(), file.device(), file.inode(), false));
    }
    return out;
}

Result<image::Layout> LayoutReader::begin() const {
    image::Layout layout;
    layout.set_pid(pid_inside_);
    layout.set_executable(TRY(read_link(fmt::format("/proc/{}/exe", pid_))));
    for (const pid_t tid : TRY(read_tasks(pid_))) layout.add_tids(tid);
    layout.set_name(TRY(read_stat(pid_)).name);
    return layout;
}

Result<MappingClass> LayoutReader::classify(const Vma& vma) const {
    const auto at = std::lower_bound(known_.begin(), known_.end(), vma.start, [](const Known& known, uint64_t start) { return known.vma.start < start; });
    if (at != known_.end() && at->vma.start == vma.start && at->vma.end == vma.end && contains(vma, at->vma) && at->vma.flags == vma.flags)
        return at->found;
    MappingClass found = TRY(classifier_.classify(vma));
    if (!found.path.empty() && moving_files_.contains(shared_object_id(found.device, found.inode))) {
        found.path.clear();
        found.kind = vma.shared ? image::MAPPING_OBJECT_SHARED : image::MAPPING_OBJECT_PRIVATE;
    }
    return found;
}

Result<image::Layout> LayoutReader::read_running() {
    image::Layout layout = TRY(begin());
    std::vector<Vma> now = TRY(list_with_flags());
    cut_overlaps(now);
    std::vector<Vma> kept;
    std::vector<Known> known;
    for (Vma& vma : now) {
        const auto found = classify(vma);
        if (!found && (is_gone(found.error()) || found.error().code == ExitCode::unsupported)) continue;
        if (!found) return Failure(found.error());
        const auto added = add(vma, *found, layout);
        if (!added && is_gone(added.error())) continue;
        TRY(added);
        known.push_back({vma, *found});
        kept.push_back(std::move(vma));
    }
    add_new_files(layout);
    mappings_ = std::move(kept);
    known_ = std::move(known);
    return layout;
}

Result<std::vector<Vma>> LayoutReader::list_with_flags() const {
    std::vector<Vma> mappings = TRY(read_smaps(pid_));
    if (tracked_)
        for (Vma& vma : mappings) std::erase(vma.flags, "uw");
    return mappings;
}

Result<std::vector<Vma>> LayoutReader::list_stopped() const {
    std::vector<Vma> now = TRY(read_maps(pid_));
    auto then = known_.begin();
    for (Vma& vma : now) {
        while (then != known_.end() && then->vma.end <= vma.start) ++then;
        auto same = then;
        while (same != known_.end() && same->vma.start < vma.end && !contains(vma, same->vma)) ++same;
        if (same == known_.end() || same->vma.start >= vma.end) return list_with_flags();
        vma.flags = same->vma.flags;
        vma.protection_key = same->vma.protection_key;
    }
    return now;
}

Result<image::Layout> LayoutReader::read_stopped() {
    image::Layout layout = TRY(begin());
    layout.set_last(true);
    mappings_ = TRY(list_stopped());
    for (const Vma& vma : mappings_) {
        TRY(check_guards(vma));
        const MappingClass found = TRY(classify(vma));
        TRY(add(vma, found, layout));
    }
    add_new_files(layout);
    return layout;
}

Result<void> LayoutReader::check_guards(const Vma& vma) const {
    const Guards guards = how_guards_are_told();
    if (guards == Guards::none || vma.path == "[vsyscall]" || (guards == Guards::in_flags && !vma.has("gu"))) return {};
    const Pagemap pagemap = TRY(Pagemap::open(pid_));
    if (!TRY(pagemap.has_guards(vma.start, vma.end))) return {};
    return unsupported(classifier_.describe(vma) + " has guard pages (MADV_GUARD_INSTALL)", "they are not carried yet");
}

Result<void> LayoutReader::add(const Vma& vma, const MappingClass& found, image::Layout& layout) {
    if (!found.path.empty()) TRY(add_file(vma, found));
    image::MappingRange& range = *layout.add_mappings();
    range.set_start(vma.start);
    range.set_end(vma.end);
    range.set_kind(found.kind);
    range.set_protection(vma.protection);
    if (found.kind == image::MAPPING_VDSO) layout.set_vdso(vma.start);
    if (found.kind == image::MAPPING_VDSO || found.kind == image::MAPPING_VVAR || found.kind == image::MAPPING_VSYSCALL) return {};
    set_flags(vma, range);
    range.set_name(found.name);
    if (found.kind == image::MAPPING_OBJECT_SHARED || found.kind == image::MAPPING_OBJECT_PRIVATE) {
        range.set_shared_object(shared_object_id(found.device, found.inode));
        range.set_offset(vma.offset);
        range.set_may_write(vma.has("mw"));
    } else if (found.kind != image::MAPPING_ANONYMOUS) {
        range.set_file(file_index(layout, vma, found));
        range.set_offset(vma.offset);
    }
    return {};
}

// A file that is mapped since the survey: the destination compares it with its own before it maps it.
Result<void> LayoutReader::add_file(const Vma& vma, const MappingClass& found) {
    const bool writable = writes_file(vma, found.kind);
    std::string key = file_key(found.path, found.device, found.inode, writable);
    if (files_.contains(key) || untold_.contains(key)) return {};
    image::FileIdentity identity = TRY(identify_file(classifier_.link_of(vma), found.path, writable));
    if (identity.device() != found.device || identity.inode() != found.inode)
        return fail_errno(ENOENT, classifier_.describe(vma) + " is of another file now");
    identity.set_used_by(fmt::format("pid {} mapping {:x}-{:x}", pid_inside_, vma.start, vma.end));
    untold_.emplace(std::move(key), std::move(identity));
    return {};
}

void LayoutReader::add_new_files(image::Layout& layout) const {
    for (const image::MappedFile& file : layout.files()) {
        const auto found = untold_.find(file_key(file.path(), file.device(), file.inode(), file.writable()));
        if (found != untold_.end()) *layout.add_new_files() = found->second;
    }
}

void LayoutReader::told(const image::Layout& layout) {
    for (const image::FileIdentity& file : layout.new_files()) {
        std::string key = file_key(file.path(), file.device(), file.inode(), file.writable());
        untold_.erase(key);
        files_.insert(std::move(key));
    }
}

}  // namespace godwit
