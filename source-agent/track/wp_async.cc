#include "source-agent/track/wp_async.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>

#include "common/base/file.h"
#include "source-agent/track/mappings.h"

namespace godwit {
namespace {

constexpr uint64_t page_size = 4096;
constexpr uint64_t block_size = 512 * page_size;  // what one page table maps

// Blocks that are content throughout.
Ranges full_blocks(const Ranges& content) {
    Ranges out;
    for (const ByteRange& range : content) append(out, {(range.start + block_size - 1) / block_size * block_size, range.end / block_size * block_size});
    return out;
}

bool skips_file_pages(const Vma& vma) {
    return !vma.shared && vma.inode != 0;
}

// To look at some pages too many costs less than another call.
Ranges joined(const Ranges& ranges) {
    constexpr uint64_t worth_a_call = 128 * page_size;
    Ranges out;
    for (const ByteRange& range : ranges) {
        if (!out.empty() && range.start - out.back().end <= worth_a_call)
            out.back().end = range.end;
        else
            out.push_back(range);
    }
    return out;
}

// The addresses in `among` where the object mapped by `vma` holds data (lseek(2), SEEK_DATA; tmpfs knows since Linux 3.1).
Result<Ranges> data_in(int fd, const Vma& vma, const Ranges& among) {
    const uint64_t to_offset = vma.offset - vma.start;  // wraps around
    Ranges out;
    for (const ByteRange& range : among) {
        const uint64_t end = range.end + to_offset;
        for (uint64_t at = range.start + to_offset; at < end;) {
            const off_t data = ::lseek(fd, static_cast<off_t>(at), SEEK_DATA);
            if (data < 0 && errno == ENXIO) break;
            const off_t hole = data < 0 ? -1 : ::lseek(fd, data, SEEK_HOLE);
            if (hole < 0) return fail_errno(fmt::format("cannot find the content of inode {}, mapped at {:x}", vma.inode, vma.start));
            // A file may end within a page.
            const uint64_t last = (static_cast<uint64_t>(hole) + page_size - 1) / page_size * page_size;
            append(out, {static_cast<uint64_t>(data) / page_size * page_size - to_offset, std::min(end, last) - to_offset});
            at = last;
        }
    }
    return out;
}

bool is_on_tmpfs(int fd) {
    struct statfs system {};
    return ::fstatfs(fd, &system) == 0 && system.f_type == TMPFS_MAGIC;
}

// Entries that are neither pages nor swapped pages but look swapped: the protection of a page that is gone, a guard
// (include/linux/swapops.h, SWP_PTE_MARKER: the last of 32 types since Linux 5.19).
bool is_marker(uint64_t entry) {
    constexpr uint64_t type_mask = 31;
    return (entry & entry_is_present) == 0 && (entry & type_mask) == type_mask;
}

}  // namespace

Result<void> WpAsyncTracker::start(Remote& remote) {
    TRY(check_own_userfaultfd(pid_));
    const size_t mappings = TRY(read_maps(pid_)).size();
    TRY(check_mapping_count(pid_, mappings));
    pagemap_ = TRY(Pagemap::open(pid_));
    // Ours alone from here on: to close it undoes all of the rest.
    userfaultfd_ = TRY(Userfaultfd::make(remote));
    return {};
}

Result<void> WpAsyncTracker::refresh(const std::vector<Vma>& now) {
    TRY(check_alive());
    TRY(check_mapping_count(pid_, now.size()));
    mappings_ = trackable(now);
    return {};
}

Result<MemoryChanges> WpAsyncTracker::collect() {
    TRY(check_alive());
    MemoryChanges changes;
    Ranges content;
    for (const Vma& vma : mappings_) {
        const Ranges before = clip(content_, vma.start, vma.end);
        // The first time nothing is ours: what looks registered is so with another userfaultfd.
        Scan found = TRY(first_ ? scan_new(vma, before) : scan(vma, before));
        append(changes.dropped, subtract(before, found.content));
        // Content that the caller has not, whatever the reason, is new to it.
        append(changes.written, unite(found.written, subtract(found.content, before)));
        append(content, found.content);
    }
    // Pages of a process that ended meanwhile look dropped.
    TRY(check_alive());
    content_ = std::move(content);
    first_ = false;
    return changes;
}

Result<WpAsyncTracker::Scan> WpAsyncTracker::scan(const Vma& vma, const Ranges& before) const {
    // In file and shared mappings a page that goes leaves a marker, which the fast scan takes for a protected page.
    const Ranges full = !vma.shared && vma.inode == 0 ? full_blocks(before) : Ranges{};
    Scan out;
    uint64_t at = vma.start;
    for (const ByteRange& blocks : full) {
        const bool registered = TRY(scan_part(vma, {at, blocks.start}, out)) && TRY(scan_full_blocks(blocks, out));
        if (!registered) return scan_new(vma, before);
        at = blocks.end;
    }
    if (!TRY(scan_part(vma, {at, vma.end}, out))) return scan_new(vma, before);
    if (vma.shared) TRY(add_unmapped(vma, before, out));
    return out;
}

// What left the page tables may still be in the object; only tmpfs can tell that it is not. If it was protected it left a mark;
// without one it was written first (MADV_DONTNEED, reclaim).
Result<void> WpAsyncTracker::add_unmapped(const Vma& vma, const Ranges& before, Scan& out) const {
    const Ranges left = subtract(before, out.content);
    if (left.empty()) return {};
    const UniqueFd object = TRY(open_object(vma));
    if (!object || !is_on_tmpfs(object.get())) {
        out.content = unite(out.content, left);
        return {};
    }
    const Ranges data = TRY(data_in(object.get(), vma, left));
    const Ranges written = subtract(data, out.marked);
    out.content = unite(out.content, data);
    out.written = unite(out.written, written);
    return protect(written);
}

Result<void> WpAsyncTracker::protect(const Ranges& ranges) const {
    for (const ByteRange& range : ranges) TRY(userfaultfd_->protect(range.start, range.end));
    return {};
}

Result<bool> WpAsyncTracker::scan_part(const Vma& vma, ByteRange part, Scan& out) const {
    if (part.start == part.end) return true;
    const auto regions = TRY(pagemap_.take_written(part.start, part.end, skips_file_pages(vma)));
    if (!regions) return false;
    for (const PageRegion& region : *regions) {
        const Ranges content = TRY(content_of(region, vma.shared));
        append(out.content, content);
        if (vma.shared) append(out.marked, {region.start, region.end});
        if ((region.categories & page_is_written) == 0) continue;
        // On its way from one page frame to another it is not present either.
        append(out.written, vma.shared ? Ranges{{region.start, region.end}} : content);
    }
    return true;
}

// All of it had content. What the scan does not tell of is still so, unless a whole page table went. A page that comes
// or goes after the scan is unprotected or missing, and told by the next.
Result<bool> WpAsyncTracker::scan_full_blocks(ByteRange blocks, Scan& out) const {
    const auto regions = TRY(pagemap_.take_written_or_missing(blocks.start, blocks.end));
    if (!regions) return false;
    Ranges taken;
    for (const PageRegion& region : *regions) append(taken, {region.start, region.end});
    const Ranges doubtful = unite(taken, TRY(without_page_table(blocks)));
    Ranges content;
    for (const ByteRange& range : joined(doubtful))
        for (const PageRegion& region : TRY(pagemap_.populated(range.start, range.end, false))) append(content, TRY(content_of(region, false)));
    append(out.content, unite(subtract({blocks}, doubtful), content));
    append(out.written, intersect(content, taken));
    return true;
}

// Blocks whose first page is missing: among them all that have no page table.
Result<Ranges> WpAsyncTracker::without_page_table(ByteRange blocks) const {
    Ranges out;
    for (uint64_t at = blocks.start; at < blocks.end; at += block_size)
        if ((TRY(pagemap_.entry(at)) & (entry_is_present | entry_is_swapped)) == 0) append(out, {at, at + block_size});
    return out;
}

// The mapping may have gone or changed once more since the list was read, or be of a kind that cannot be registered (MAP_DROPPABLE).
// Then what is populated is told, and it is not registered: the next collect() finds it new again.
Result<WpAsyncTracker::Scan> WpAsyncTracker::scan_new(const Vma& vma, const Ranges& before) const {
    const auto registered = TRY(userfaultfd_->add(vma.start, vma.end));
    if (registered == Userfaultfd::Registered::never_write) {
        // Where the list is older than the mappings, part of it may be registered, and what the scan took of that is lost.
        const bool in_part = TRY(pagemap_.take_written(vma.start, vma.start + page_size, false)).has_value();
        return in_part ? scan_populated(vma) : Scan{before, {}, {}};
    }
    UniqueFd object;
    if (vma.shared) {
        object = TRY(open_object(vma));
        if (!object) {
            TRY(userfaultfd_->remove(vma.start, vma.end));
            return scan_populated(vma);
        }
    }
    const auto regions = TRY(pagemap_.take_written(vma.start, vma.end, skips_file_pages(vma)));
    if (!regions) return scan_populated(vma);
    Scan out;
    for (const PageRegion& region : *regions) {
        // Before Linux 6.13 mremap left the mark of protection on pages that it moved to where nothing is
        // registered, and there they became writable.
        if ((region.categories & page_is_written) == 0) TRY(userfaultfd_->protect(region.start, region.end));
        append(out.content, TRY(content_of(region, vma.shared)));
        append(out.marked, {region.start, region.end});
    }
    const bool on_tmpfs = object && is_on_tmpfs(object.get());
    if (on_tmpfs) {
        const Ranges data = TRY(data_in(object.get(), vma, {{vma.start, vma.end}}));
        out.content = unite(out.content, data);
        TRY(protect(subtract(data, out.marked)));
    }
    out.written = out.content;
    if (vma.shared && !on_tmpfs) out.content = unite(out.content, before);
    return out;
}

Result<WpAsyncTracker::Scan> WpAsyncTracker::scan_populated(const Vma& vma) const {
    Scan out;
    for (const PageRegion& region : TRY(pagemap_.populated(vma.start, vma.end))) {
        if (skips_file_pages(vma) && (region.categories & page_is_file) != 0) continue;
        append(out.content, TRY(content_of(region, vma.shared)));
    }
    out.written = out.content;
    return out;
}

// In a shared mapping what is not present is a marker, wherever its page is. In a private one the page of zeros is no content.
Result<Ranges> WpAsyncTracker::content_of(const PageRegion& region, bool shared) const {
    if ((region.categories & page_is_present) != 0) {
        const bool zeros = !shared && (region.categories & page_is_pfnzero) != 0;
        return zeros ? Ranges{} : Ranges{{region.start, region.end}};
    }
    Ranges out;
    if (shared) return out;
    TRY(pagemap_.entries(region.start, region.end, [&](uint64_t at, std::span<const uint64_t> entries) -> Result<void> {
        for (const uint64_t entry : entries) {
            if (!is_marker(entry)) append(out, {at, at + page_size});
            at += page_size;
        }
        return {};
    }));
    return out;
}

Result<UniqueFd> WpAsyncTracker::open_object(const Vma& vma) const {
    auto fd = open_file(fmt::format("/proc/{}/map_files/{:x}-{:x}", pid_, vma.start, vma.end), O_RDONLY);
    if (!fd && fd.error().error == ENOENT) return UniqueFd();
    return fd;
}

Result<void> WpAsyncTracker::check_alive() const {
    if (pagemap_.alive()) return {};
    return fail_errno(ESRCH, fmt::format("process {} exited or executed another program while it was tracked", pid_));
}

}  // namespace godwit
