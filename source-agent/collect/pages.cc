// Which pages hold content that the destination cannot know.

#include <algorithm>

#include "common/image/layout_changes.h"
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
        if (mapping.kind() != image::MAPPING_ANONYMOUS && (region.categories & page_is_file) != 0) continue;
        append(out, {region.start, region.end});
    }
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
    for (const image::MappingRange& mapping : layout.mappings()) {
        // Files have their content, shared objects are told by offset, the vDSO is the destination's own.
        if (takes_pages(mapping) && !lies_in(mapping, bare)) TRY(add_private(pagemap, mapping, out));
    }
    return out;
}

}  // namespace godwit
