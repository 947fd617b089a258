#include "common/kernel/pagemap.h"

#include <fmt/format.h>
#include <sys/ioctl.h>

#include <algorithm>

#include "common/base/file.h"

namespace godwit {
namespace {

constexpr uint64_t page_size = 4096;

// Linux 6.7, include/uapi/linux/fs.h.
struct ScanArgument {
    uint64_t size;
    uint64_t flags;
    uint64_t start;
    uint64_t end;
    uint64_t walk_end;
    uint64_t vec;
    uint64_t vec_len;
    uint64_t max_pages;
    uint64_t category_inverted;
    uint64_t category_mask;
    uint64_t category_anyof_mask;
    uint64_t return_mask;
};
constexpr unsigned long pagemap_scan = _IOWR('f', 16, ScanArgument);
constexpr uint64_t scan_protects_matching = 1;     // PM_SCAN_WP_MATCHING
constexpr uint64_t scan_fails_if_unregistered = 2;  // PM_SCAN_CHECK_WPASYNC: else such ranges are passed over in silence

void append(std::vector<PageRegion>& regions, const PageRegion& next) {
    if (!regions.empty() && regions.back().end == next.start && regions.back().categories == next.categories)
        regions.back().end = next.end;
    else
        regions.push_back(next);
}

// Calls `take` with each region that has one of the categories; false where the kernel does not know the call.
template <class Take>
Result<bool> scan(int fd, pid_t pid, uint64_t start, uint64_t end, uint64_t any_of, uint64_t wanted, const Take& take) {
    PageRegion found[512];
    ScanArgument argument{};
    argument.size = sizeof argument;
    argument.start = start;
    argument.end = end;
    argument.vec = reinterpret_cast<uint64_t>(found);
    argument.vec_len = std::size(found);
    argument.category_anyof_mask = any_of;
    argument.return_mask = wanted;
    while (argument.start < end) {
        const int count = ::ioctl(fd, pagemap_scan, &argument);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0 && (errno == ENOTTY || errno == EINVAL)) return false;
        if (count < 0) return fail_errno(fmt::format("cannot scan the pages of pid {} at {:#x}", pid, argument.start));
        for (int i = 0; i < count; ++i) take(found[i]);
        argument.start = argument.walk_end;
    }
    return true;
}

}  // namespace

Result<Pagemap> Pagemap::open(pid_t pid) {
    Pagemap out;
    out.fd_ = TRY(open_file(fmt::format("/proc/{}/pagemap", pid), O_RDONLY));
    out.pid_ = pid;
    return out;
}

Result<std::vector<PageRegion>> Pagemap::populated(uint64_t start, uint64_t end, bool tell_file) const {
    std::vector<PageRegion> regions;
    const bool known = TRY(scan(fd_.get(), pid_, start, end, page_is_present | page_is_swapped,
                                page_is_present | page_is_swapped | page_is_pfnzero | (tell_file ? page_is_file : 0),
                                [&](const PageRegion& region) { append(regions, region); }));
    if (known) return regions;
    return read_entries(start, end);
}

Result<bool> Pagemap::scans() const {
    return scan(fd_.get(), pid_, 0, page_size, page_is_present, page_is_present, [](const PageRegion&) {});
}

Result<bool> Pagemap::has_guards(uint64_t start, uint64_t end) const {
    bool found = false;
    TRY(scan(fd_.get(), pid_, start, end, page_is_guard, page_is_guard, [&](const PageRegion&) { found = true; }));
    return found;
}

// Holes do not match, so the kernel makes no page tables for them.
Result<std::optional<std::vector<PageRegion>>> Pagemap::take_written(uint64_t start, uint64_t end, bool skip_file) const {
    const uint64_t file = skip_file ? page_is_file : 0;
    return take(start, end, {file, file, page_is_present | page_is_swapped,
                             page_is_written | page_is_present | page_is_swapped | page_is_pfnzero});
}

// Exactly this selection has a loop of its own in the kernel (pagemap_scan_pmd_entry), which takes whatever is not protected.
Result<std::optional<std::vector<PageRegion>>> Pagemap::take_written_or_missing(uint64_t start, uint64_t end) const {
    return take(start, end, {0, page_is_written, 0, page_is_written});
}

Result<std::optional<std::vector<PageRegion>>> Pagemap::take(uint64_t start, uint64_t end, const Selection& selection) const {
    std::vector<PageRegion> regions;
    PageRegion found[1024];
    ScanArgument argument{};
    argument.size = sizeof argument;
    argument.flags = scan_protects_matching | scan_fails_if_unregistered;
    argument.start = start;
    argument.end = end;
    argument.vec = reinterpret_cast<uint64_t>(found);
    argument.vec_len = std::size(found);
    argument.category_inverted = selection.inverted;
    argument.category_mask = selection.all_of;
    argument.category_anyof_mask = selection.any_of;
    argument.return_mask = selection.told;
    while (argument.start < end) {
        const int count = ::ioctl(fd_.get(), pagemap_scan, &argument);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0 && errno == EPERM) return std::nullopt;
        if (count < 0) return fail_errno(fmt::format("cannot scan and protect the pages of pid {} at {:#x}", pid_, argument.start));
        for (int i = 0; i < count; ++i) append(regions, found[i]);
        argument.start = argument.walk_end;
    }
    return regions;
}

bool Pagemap::alive() const {
    uint64_t entry = 0;
    return ::pread(fd_.get(), &entry, sizeof entry, 0) == sizeof entry;
}

Result<uint64_t> Pagemap::entry(uint64_t address) const {
    uint64_t entry = 0;
    const ssize_t got = ::pread(fd_.get(), &entry, sizeof entry, static_cast<off_t>(address / page_size * sizeof entry));
    if (got == sizeof entry) return entry;
    return fail_errno(got < 0 ? errno : ENODATA, fmt::format("cannot read the page map of pid {} at {:#x}", pid_, address));
}

Result<void> Pagemap::entries(uint64_t start, uint64_t end,
                              const std::function<Result<void>(uint64_t, std::span<const uint64_t>)>& take) const {
    std::vector<uint64_t> entries(std::min<uint64_t>(65536, (end - start) / page_size));
    for (uint64_t at = start; at < end;) {
        const uint64_t count = std::min<uint64_t>(entries.size(), (end - at) / page_size);
        const ssize_t got = ::pread(fd_.get(), entries.data(), count * sizeof(uint64_t), static_cast<off_t>(at / page_size * sizeof(uint64_t)));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return fail_errno(got == 0 ? ENODATA : errno, fmt::format("cannot read the page map of pid {} at {:#x}", pid_, at));
        const size_t whole = static_cast<size_t>(got) / sizeof(uint64_t);
        TRY(take(at, std::span(entries).first(whole)));
        at += whole * page_size;
    }
    return {};
}

Result<std::vector<PageRegion>> Pagemap::read_entries(uint64_t start, uint64_t end) const {
    std::vector<PageRegion> regions;
    TRY(entries(start, end, [&](uint64_t at, std::span<const uint64_t> some) -> Result<void> {
        for (const uint64_t entry : some) {
            const uint64_t categories = ((entry & entry_is_present) != 0 ? page_is_present : 0) |
                                        ((entry & entry_is_swapped) != 0 ? page_is_swapped : 0) |
                                        ((entry & entry_is_file) != 0 ? page_is_file : 0);
            if ((entry & (entry_is_present | entry_is_swapped)) != 0) append(regions, {at, at + page_size, categories});
            at += page_size;
        }
        return {};
    }));
    return regions;
}

}  // namespace godwit
