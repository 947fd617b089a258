// Where the program has one mapping and the skeleton has several, alike, side by side.
//
// The kernel merges neighbours only when their pages have one origin (anon_vma), and what was mapped piece by piece, round after
// round, may have several. To the program the difference is real: mremap(2) of a range that spans two mappings fails. So the
// whole is made anew: a fresh mapping takes the content and moves to its place.
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>

#include "common/base/fault.h"
#include "common/base/log.h"
#include "common/kernel/pagemap.h"
#include "common/kernel/proc.h"
#include "dest-agent/named_calls.h"
#include "dest-agent/skeleton_state.h"

namespace godwit {
namespace {

constexpr size_t copy_step = 1 << 20;

std::vector<Span> taken_by(const std::vector<Vma>& mappings, const image::Layout& layout) {
    std::vector<Span> taken = spans_of(layout);
    for (const Vma& vma : mappings) taken.push_back({vma.start, vma.end});
    return taken;
}

}  // namespace

Result<void> Skeleton::State::close_seams() {
    const std::vector<Vma> mappings = TRY(read_maps(layout.pid()));
    auto at = mappings.begin();
    for (const image::MappingRange& range : layout.mappings()) {
        while (at != mappings.end() && at->end <= range.start()) ++at;
        const bool seam = at != mappings.end() && at->end < range.end();
        if (range.kind() != image::MAPPING_ANONYMOUS || !seam) continue;
        const uint64_t place = TRY(free_range(taken_by(mappings, layout), range.end() - range.start()));
        TRY(make_whole(range, place));
    }
    return {};
}

// If we die in here the skeleton dies, too.
Result<void> Skeleton::State::make_whole(const image::MappingRange& range, uint64_t place) {
    fault_point("skeleton:make-whole");
    spdlog::debug("process {}: {} was in pieces", layout.pid(), range_name(range));
    const uint64_t size = range.end() - range.start();
    NamedCalls make;
    make.call(fmt::format("map {} bytes", size), SYS_mmap, place, size, PROT_READ | PROT_WRITE,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | (range.no_reserve() ? MAP_NORESERVE : 0) | (range.grows_down() ? MAP_GROWSDOWN : 0), -1, 0);
    TRY(make.run(*remote));
    const Pagemap pagemap = TRY(Pagemap::open(layout.pid()));
    std::vector<std::byte> buffer(copy_step);
    for (const PageRegion& region : TRY(pagemap.populated(range.start(), range.end(), false)))
        for (uint64_t from = region.start; from < region.end; from += copy_step) {
            const size_t length = std::min<uint64_t>(copy_step, region.end - from);
            TRY(memory.read(RemotePtr(from), buffer.data(), length));
            TRY(memory.write(RemotePtr(place + from - range.start()), buffer.data(), length));
        }
    NamedCalls move;
    if (first_protection(range) != (PROT_READ | PROT_WRITE))
        move.call("protect " + range_name(range), SYS_mprotect, place, size, first_protection(range));
    move.call("move " + range_name(range), SYS_mremap, place, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, range.start());
    TRY(move.run(*remote));
    return advise({{range.start(), range.end(), nullptr, &range}});
}

}  // namespace godwit
