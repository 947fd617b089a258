#include "dest-agent/layout.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <set>

namespace godwit {
namespace {

using image::MappingRange;

Failure bad(const image::Layout& layout, const std::string& what) {
    return peer_failed(fmt::format("layout of process {}: {}", layout.pid(), what), "the source is broken or hostile");
}

Result<void> check_bounds(const image::Layout& layout, const MappingRange& range, uint64_t previous_end) {
    if (range.start() >= range.end() || range.start() % page_size != 0 || range.end() % page_size != 0)
        return bad(layout, fmt::format("{} is no range of pages", range_name(range)));
    if (range.end() > address_limit) return bad(layout, fmt::format("{} is beyond the address space", range_name(range)));
    if (range.start() < previous_end) return bad(layout, fmt::format("{} overlaps the mapping before it", range_name(range)));
    if (range.offset() % page_size != 0 || range.offset() > uint64_t{1} << 62)
        return bad(layout, fmt::format("{} has offset {:#x}", range_name(range), range.offset()));
    if ((range.protection() & ~static_cast<uint32_t>(PROT_READ | PROT_WRITE | PROT_EXEC)) != 0)
        return bad(layout, fmt::format("{} has protection {:#x}", range_name(range), range.protection()));
    return {};
}

Result<void> check_kind(const image::Layout& layout, const MappingRange& range) {
    const bool of_file = range.kind() == image::MAPPING_FILE_PRIVATE || range.kind() == image::MAPPING_FILE_SHARED;
    if (of_file != (range.file() != 0) || range.file() > static_cast<uint32_t>(layout.files_size()))
        return bad(layout, fmt::format("{} maps file {} of {}", range_name(range), range.file(), layout.files_size()));
    const bool of_object = range.kind() == image::MAPPING_OBJECT_SHARED || range.kind() == image::MAPPING_OBJECT_PRIVATE;
    if (of_object != (range.shared_object() != 0))
        return bad(layout, fmt::format("{} maps shared object {}", range_name(range), range.shared_object()));
    switch (range.kind()) {
        case image::MAPPING_ANONYMOUS:
        case image::MAPPING_FILE_PRIVATE:
        case image::MAPPING_FILE_SHARED:
        case image::MAPPING_OBJECT_SHARED:
        case image::MAPPING_OBJECT_PRIVATE:
        case image::MAPPING_VDSO:
        case image::MAPPING_VVAR:
            return {};
        default:
            return bad(layout, fmt::format("{} is of kind {}", range_name(range), static_cast<int>(range.kind())));
    }
}

Result<void> check_vdso(const image::Layout& layout) {
    uint64_t expected = vdso_start(layout);
    int count = 0;
    for (const MappingRange& range : layout.mappings()) {
        if (range.kind() != image::MAPPING_VDSO && range.kind() != image::MAPPING_VVAR) continue;
        if (range.start() != expected || count != 0) return bad(layout, fmt::format("{} is not beside the vDSO", range_name(range)));
        expected = range.end();
        if (range.kind() != image::MAPPING_VDSO) continue;
        if (range.start() != layout.vdso()) return bad(layout, fmt::format("the vDSO is not at {:#x}", layout.vdso()));
        ++count;
    }
    if (count == 1) return {};
    return unsupported(fmt::format("process {} has no vDSO", layout.pid()), "it was started with vdso=0, or unmapped it");
}

Result<void> check_tasks(const image::Layout& layout) {
    if (layout.tids_size() == 0 || layout.tids(0) != layout.pid()) return bad(layout, "its first task is not the leader");
    std::set<int32_t> seen;
    for (const int32_t tid : layout.tids())
        if (tid <= 1 || !seen.insert(tid).second) return bad(layout, fmt::format("task id {}", tid));
    return {};
}

}  // namespace

Result<void> check_layout(const image::Layout& layout) {
    TRY(check_tasks(layout));
    uint64_t end = 0;
    for (const MappingRange& range : layout.mappings()) {
        if (range.kind() == image::MAPPING_VSYSCALL) continue;  // the kernel's own, in every process
        TRY(check_bounds(layout, range, end));
        TRY(check_kind(layout, range));
        end = range.end();
    }
    TRY(check_vdso(layout));
    return {};
}

Result<uint64_t> free_range(std::vector<Span> taken, uint64_t size) {
    // Clear of what a null pointer reaches and of what may grow down.
    constexpr uint64_t first = 0x1000000;
    constexpr uint64_t distance = 0x100000;
    std::sort(taken.begin(), taken.end(), [](const Span& a, const Span& b) { return a.start < b.start; });
    uint64_t at = first;
    for (const Span& span : taken) {
        if (span.start > at && span.start - at >= size + distance) return at;
        if (span.end > at) at = span.end + distance;
    }
    if (at < address_limit && address_limit - at >= size + distance) return at;
    return fail(fmt::format("no {} bytes of address space are free", size));
}

std::vector<Span> spans_of(const image::Layout& layout) {
    std::vector<Span> spans;
    for (const MappingRange& range : layout.mappings())
        if (range.kind() != image::MAPPING_VSYSCALL) spans.push_back({range.start(), range.end()});
    return spans;
}

std::string range_name(const MappingRange& range) { return fmt::format("{:x}-{:x}", range.start(), range.end()); }

uint64_t vdso_start(const image::Layout& layout) {
    for (const MappingRange& range : layout.mappings())
        if (range.kind() == image::MAPPING_VVAR || range.kind() == image::MAPPING_VDSO) return range.start();
    return 0;
}

}  // namespace godwit
