#include "common/image/layout_changes.h"

#include <algorithm>

namespace godwit {
namespace {

using image::Layout;
using image::MappingRange;

bool same_file(const Layout& a, uint32_t file_of_a, const Layout& b, uint32_t file_of_b) {
    if (file_of_a == 0 || file_of_b == 0) return file_of_a == file_of_b;
    const image::MappedFile& x = a.files(static_cast<int>(file_of_a) - 1);
    const image::MappedFile& y = b.files(static_cast<int>(file_of_b) - 1);
    return x.path() == y.path() && x.device() == y.device() && x.inode() == y.inode() && x.writable() == y.writable();
}

// MADV_HUGEPAGE and MADV_NOHUGEPAGE can be changed for one another, but never be taken back.
bool loses_huge_advice(const MappingRange& have, const MappingRange& want) {
    return (have.huge_page() || have.no_huge_page()) && !want.huge_page() && !want.no_huge_page();
}

// Whether both describe the same memory wherever they overlap.
bool same_memory(const Layout& a, const MappingRange& have, const Layout& b, const MappingRange& want) {
    const bool has_offset = want.kind() != image::MAPPING_ANONYMOUS;
    return have.kind() == want.kind() && same_file(a, have.file(), b, want.file()) && have.shared_object() == want.shared_object() &&
           (!has_offset || have.offset() - have.start() == want.offset() - want.start()) && have.grows_down() == want.grows_down() &&
           have.no_reserve() == want.no_reserve() && have.may_write() == want.may_write() && !loses_huge_advice(have, want);
}

bool same_treatment(const MappingRange& have, const MappingRange& want) {
    return have.protection() == want.protection() && have.accounted() == want.accounted() && have.huge_page() == want.huge_page() &&
           have.no_huge_page() == want.no_huge_page() && have.dont_fork() == want.dont_fork() &&
           have.wipe_on_fork() == want.wipe_on_fork() && have.dont_dump() == want.dont_dump() && have.mergeable() == want.mergeable() &&
           have.sequential() == want.sequential() && have.random() == want.random() && have.name() == want.name();
}

void add_span(std::vector<LayoutChanges::Span>& spans, uint64_t start, uint64_t end) {
    if (!spans.empty() && spans.back().end == start)
        spans.back().end = end;
    else
        spans.push_back({start, end});
}

void add_part(std::vector<LayoutChanges::Part>& parts, LayoutChanges::Part part) {
    if (!parts.empty() && parts.back().end == part.start && parts.back().want == part.want && parts.back().have == part.have)
        parts.back().end = part.end;
    else
        parts.push_back(part);
}

// Walks the mappings of one layout, passing over the kernel's own.
class Walk {
  public:
    explicit Walk(const Layout& layout) : mappings_(layout.mappings()) { skip(); }
    // The mapping that holds `at`, or nothing; `at` never goes back.
    const MappingRange* at(uint64_t address) {
        while (index_ < mappings_.size() && mappings_[index_].end() <= address) {
            ++index_;
            skip();
        }
        return index_ < mappings_.size() && mappings_[index_].start() <= address ? &mappings_[index_] : nullptr;
    }
    // The first start or end of a mapping above `address`.
    uint64_t next_edge(uint64_t address) {
        if (const MappingRange* here = at(address)) return here->end();
        return index_ < mappings_.size() ? mappings_[index_].start() : UINT64_MAX;
    }

  private:
    void skip() {
        while (index_ < mappings_.size() && is_kernels(mappings_[index_])) ++index_;
    }
    const google::protobuf::RepeatedPtrField<MappingRange>& mappings_;
    int index_ = 0;
};

}  // namespace

bool is_kernels(const MappingRange& range) {
    return range.kind() == image::MAPPING_VDSO || range.kind() == image::MAPPING_VVAR || range.kind() == image::MAPPING_VSYSCALL;
}

bool takes_pages(const MappingRange& range) {
    return range.kind() == image::MAPPING_ANONYMOUS || range.kind() == image::MAPPING_FILE_PRIVATE ||
           range.kind() == image::MAPPING_OBJECT_PRIVATE;
}

bool same_vdso(const Layout& have, const Layout& want) {
    const auto next = [](const Layout& layout, int& index) -> const MappingRange* {
        while (index < layout.mappings_size()) {
            const MappingRange& range = layout.mappings(index++);
            if (range.kind() == image::MAPPING_VDSO || range.kind() == image::MAPPING_VVAR) return &range;
        }
        return nullptr;
    };
    int i = 0, j = 0;
    for (;;) {
        const MappingRange* a = next(have, i);
        const MappingRange* b = next(want, j);
        if (a == nullptr || b == nullptr) return a == b;
        if (a->start() != b->start() || a->end() != b->end() || a->kind() != b->kind()) return false;
    }
}

LayoutChanges compare(const Layout& have, const Layout& want) {
    LayoutChanges out;
    Walk before(have), after(want);
    for (uint64_t at = std::min(before.next_edge(0), after.next_edge(0)); at != UINT64_MAX;) {
        const uint64_t end = std::min(before.next_edge(at), after.next_edge(at));
        const MappingRange* old = before.at(at);
        const MappingRange* now = after.at(at);
        if (old != nullptr && now != nullptr && same_memory(have, *old, want, *now)) {
            if (!same_treatment(*old, *now)) add_part(out.adjust, {at, end, old, now});
        } else {
            if (old != nullptr) add_span(out.unmap, at, end);
            if (now != nullptr) add_part(out.map, {at, end, nullptr, now});
        }
        at = end;
    }
    return out;
}

}  // namespace godwit
