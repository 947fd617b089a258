// Which pages hold content that the destination cannot know.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "common/base/file.h"
#include "common/kernel/pagemap.h"
#include "common/kernel/proc.h"
#include "source-agent/collect/collect.h"

namespace godwit {
namespace {

void append(std::vector<ByteRange>& ranges, ByteRange next) {
    if (!ranges.empty() && ranges.back().end == next.start)
        ranges.back().end = next.end;
    else
        ranges.push_back(next);
}

// Private memory: what is populated, but the kernel's page of zeros and clean pages of a file.
Result<void> add_private(const Pagemap& pagemap, const image::MappingRange& mapping, std::vector<ByteRange>& out) {
    for (const PageRegion& region : TRY(pagemap.populated(mapping.start(), mapping.end()))) {
        if ((region.categories & page_is_pfnzero) != 0) continue;
        if (mapping.kind() == image::MAPPING_FILE_PRIVATE && (region.categories & page_is_file) != 0) continue;
        append(out, {region.start, region.end});
    }
    return {};
}

// Parts of each shared object that an earlier mapping has told of: offsets, start → end, not overlapping.
using Covered = std::map<uint64_t, uint64_t>;

// [start, end) without what is covered; adds it to the covered.
std::vector<ByteRange> uncovered(Covered& covered, uint64_t start, uint64_t end) {
    std::vector<ByteRange> out;
    uint64_t at = start;
    for (const auto& [from, to] : covered) {
        if (to <= at) continue;
        if (from >= end) break;
        if (from > at) out.push_back({at, from});
        at = std::max(at, to);
    }
    if (at < end) out.push_back({at, end});
    for (const ByteRange& fresh : out) covered[fresh.start] = fresh.end;
    return out;
}

// A shared object's pages may be there without being in this process's page tables: the object itself is asked
// (lseek(2), SEEK_DATA; tmpfs knows it since Linux 3.1).
Result<void> add_object(int fd, const image::MappingRange& mapping, ByteRange offsets, std::vector<ByteRange>& out) {
    uint64_t at = offsets.start;
    while (at < offsets.end) {
        const off_t data = ::lseek(fd, static_cast<off_t>(at), SEEK_DATA);
        if (data < 0 && errno == ENXIO) return {};
        if (data < 0) return fail_errno(fmt::format("cannot find the content of shared object {}", mapping.shared_object()));
        const off_t hole = ::lseek(fd, data, SEEK_HOLE);
        if (hole < 0) return fail_errno(fmt::format("cannot find the holes of shared object {}", mapping.shared_object()));
        const uint64_t start = std::max<uint64_t>(at, static_cast<uint64_t>(data));
        const uint64_t end = std::min<uint64_t>(offsets.end, static_cast<uint64_t>(hole));
        if (start >= offsets.end) return {};
        append(out, {mapping.start() + start - mapping.offset(), mapping.start() + end - mapping.offset()});
        at = static_cast<uint64_t>(hole);
    }
    return {};
}

Result<void> add_shared(pid_t pid, const image::MappingRange& mapping, Covered& covered, std::vector<ByteRange>& out) {
    const UniqueFd fd = TRY(open_file(fmt::format("/proc/{}/map_files/{:x}-{:x}", pid, mapping.start(), mapping.end()), O_RDONLY));
    const uint64_t end = mapping.offset() + mapping.end() - mapping.start();
    for (const ByteRange& offsets : uncovered(covered, mapping.offset(), end)) TRY(add_object(fd.get(), mapping, offsets, out));
    return {};
}

// Mappings without a single page, by their start. Only where every entry of the page map would have to be read, which for a
// reservation of terabytes takes minutes.
Result<std::vector<Vma>> find_bare(pid_t pid, const Pagemap& pagemap) {
    if (TRY(pagemap.scans())) return {};
    auto bare = TRY(read_smaps(pid));
    std::erase_if(bare, [](const Vma& vma) { return vma.resident_kb != 0 || vma.swap_kb != 0; });
    return bare;
}

bool lies_in(const image::MappingRange& mapping, const std::vector<Vma>& bare) {
    return std::any_of(bare.begin(), bare.end(), [&](const Vma& vma) { return vma.start <= mapping.start() && mapping.end() <= vma.end; });
}

}  // namespace

Result<std::vector<ByteRange>> content_ranges(pid_t pid, const image::Layout& layout) {
    const Pagemap pagemap = TRY(Pagemap::open(pid));
    const std::vector<Vma> bare = TRY(find_bare(pid, pagemap));
    std::vector<ByteRange> out;
    std::map<uint64_t, Covered> objects;
    for (const image::MappingRange& mapping : layout.mappings()) {
        if (mapping.kind() != image::MAPPING_ANONYMOUS_SHARED && lies_in(mapping, bare)) continue;
        switch (mapping.kind()) {
            case image::MAPPING_ANONYMOUS:
            case image::MAPPING_FILE_PRIVATE:
                TRY(add_private(pagemap, mapping, out));
                break;
            case image::MAPPING_ANONYMOUS_SHARED:
                TRY(add_shared(pid, mapping, objects[mapping.shared_object()], out));
                break;
            default:  // files have their content, the vDSO is the destination's own
                break;
        }
    }
    return out;
}

}  // namespace godwit
