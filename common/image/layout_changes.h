// What turns one layout of a process into a later one.
//
// Both agents compute it: the destination corrects its skeleton by it, the source learns by it where the destination starts
// from fresh memory, so that everything there is to be told again.
#pragma once

#include <cstdint>
#include <vector>

#include "common/image/process.pb.h"

namespace godwit {

struct LayoutChanges {
    struct Span {
        uint64_t start = 0;
        uint64_t end = 0;
    };
    // [start, end) of `want`, or of a mapping that stays (`have` and `want` describe the same memory there).
    struct Part {
        uint64_t start = 0;
        uint64_t end = 0;
        const image::MappingRange* have = nullptr;  // in the earlier layout; nullptr where fresh memory is mapped
        const image::MappingRange* want = nullptr;  // in the later one
    };
    std::vector<Span> unmap;    // first of all
    std::vector<Part> map;      // fresh memory
    std::vector<Part> adjust;   // stays, but protection, advice or name differ

    bool empty() const { return unmap.empty() && map.empty() && adjust.empty(); }
};

// Both layouts passed check_layout() or come from collect; they outlive the result. Everything ascending and disjoint.
// vDSO, vvar and vsyscall are left out: they stay where they are (same_vdso()).
LayoutChanges compare(const image::Layout& have, const image::Layout& want);
bool same_vdso(const image::Layout& have, const image::Layout& want);

// Mappings whose pages are sent by address: private memory.
bool takes_pages(const image::MappingRange& range);
// Made by the kernel, at a place that the program does not choose.
bool is_kernels(const image::MappingRange& range);

}  // namespace godwit
