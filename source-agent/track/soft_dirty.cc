#include "source-agent/track/soft_dirty.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "common/base/fault.h"
#include "common/base/file.h"
#include "source-agent/track/mappings.h"

namespace godwit {
namespace {

constexpr uint64_t page_size = 4096;

// /proc/kpageflags, KPF_ZERO_PAGE (Linux 3.19): the page of zeros, small or huge.
constexpr uint64_t frame_is_zero = 1ull << 24;

// Neighbouring pages often share one frame of zeros: the last answer is kept.
IsZeroFrame zero_frames(const UniqueFd& flags) {
    return [fd = flags.get(), last = UINT64_MAX, answer = false](uint64_t frame) mutable {
        if (frame == last) return answer;
        uint64_t bits = 0;
        last = frame;
        answer = ::pread(fd, &bits, sizeof bits, static_cast<off_t>(frame * sizeof bits)) == sizeof bits && (bits & frame_is_zero) != 0;
        return answer;
    };
}

const Vma* find_around(const std::vector<Vma>& sorted, const Vma& vma) {
    auto at = std::upper_bound(sorted.begin(), sorted.end(), vma.start, [](uint64_t value, const Vma& other) { return value < other.end; });
    return at != sorted.end() && at->start <= vma.start && vma.end <= at->end ? &*at : nullptr;
}

}  // namespace

void add_soft_dirty(uint64_t start, std::span<const uint64_t> entries, bool skip_file, bool shared, const IsZeroFrame& is_zero,
                    SoftDirtyPages& pages) {
    uint64_t at = start;
    for (const uint64_t entry : entries) {
        const ByteRange page{at, at + page_size};
        at += page_size;
        const bool present = (entry & entry_is_present) != 0;
        // What was written and then taken from the page tables (MADV_DONTNEED, reclaim) has left no bit.
        if (!present && shared) append(pages.written, page);
        if (!present && (shared || (entry & entry_is_swapped) == 0)) continue;
        if (skip_file && (entry & entry_is_file) != 0) continue;
        const bool may_be_zero = present && !shared && (entry & (entry_is_exclusive | entry_is_file)) == 0;
        if (may_be_zero && is_zero(entry & entry_frame)) continue;
        append(pages.content, page);
        if ((entry & entry_is_soft_dirty) != 0) append(pages.written, page);
    }
}

// A page just written to in a mapping just made has the bit wherever there is one.
Result<bool> SoftDirtyTracker::available() {
    void* at = ::mmap(nullptr, page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return fail_errno("cannot map a page to look for soft-dirty bits");
    const Mapping page(at, page_size);
    *reinterpret_cast<volatile char*>(page.data()) = 1;
    const Pagemap pagemap = TRY(Pagemap::open(::getpid()));
    bool dirty = false;
    const auto start = reinterpret_cast<uint64_t>(page.data());
    TRY(pagemap.entries(start, start + page_size, [&](uint64_t, std::span<const uint64_t> entries) -> Result<void> {
        dirty = (entries[0] & entry_is_soft_dirty) != 0;
        return {};
    }));
    return dirty;
}

Result<void> SoftDirtyTracker::start(Remote&) {
    pagemap_ = TRY(Pagemap::open(pid_));
    forgotten_ = {{0, UINT64_MAX}};
    return {};
}

void SoftDirtyTracker::forget(uint64_t start, uint64_t end) {
    content_ = subtract(content_, {{start, end}});
    forgotten_ = unite(forgotten_, {{start, end}});
}

Result<void> SoftDirtyTracker::refresh(const std::vector<Vma>& now) {
    TRY(check_alive());
    mappings_ = trackable(now);
    return {};
}

// Huge reservations are not read: smaps says that nothing is populated there.
Result<MemoryChanges> SoftDirtyTracker::collect() {
    TRY(check_alive());
    const UniqueFd flags = TRY(open_file("/proc/kpageflags", O_RDONLY));
    const IsZeroFrame is_zero = zero_frames(flags);
    const std::vector<Vma> sizes = TRY(read_smaps(pid_));
    MemoryChanges changes;
    Ranges content;
    for (const Vma& vma : mappings_) {
        const Vma* known = find_around(sizes, vma);
        SoftDirtyPages pages;
        if (known == nullptr || known->resident_kb + known->swap_kb != 0)
            pages = TRY(read(vma, is_zero));
        else if (vma.shared)
            pages.written = {{vma.start, vma.end}};
        const Ranges before = clip(content_, vma.start, vma.end);
        const Ranges unknown = vma.shared ? intersect(pages.content, forgotten_) : subtract(pages.content, before);
        append(changes.written, unite(pages.written, unknown));
        if (vma.shared) continue;
        append(changes.dropped, subtract(before, pages.content));
        append(content, pages.content);
    }
    // If we die between reading and clearing, the bits stay set; they mean nothing to anybody else.
    fault_point("track:clear-refs");
    TRY(write_once(fmt::format("/proc/{}/clear_refs", pid_), "4"));
    TRY(check_alive());
    content_ = std::move(content);
    forgotten_.clear();
    return changes;
}

Result<SoftDirtyPages> SoftDirtyTracker::read(const Vma& vma, const IsZeroFrame& is_zero) const {
    SoftDirtyPages pages;
    const bool skip_file = !vma.shared && vma.inode != 0;
    TRY(pagemap_.entries(vma.start, vma.end, [&](uint64_t at, std::span<const uint64_t> entries) -> Result<void> {
        add_soft_dirty(at, entries, skip_file, vma.shared, is_zero, pages);
        return {};
    }));
    return pages;
}

Result<void> SoftDirtyTracker::check_alive() const {
    if (pagemap_.alive()) return {};
    return fail_errno(ESRCH, fmt::format("process {} exited or executed another program while it was tracked", pid_));
}

}  // namespace godwit
