// A layout as a peer sent it: nothing of it is believed before check_layout().
#pragma once

#include <cstdint>
#include <vector>

#include "common/base/result.h"
#include "common/image/process.pb.h"

namespace godwit {

// First address that is no program's (x86-64, four levels of page tables).
constexpr uint64_t address_limit = 0x7ffffffff000;
constexpr uint64_t page_size = 4096;

// Ranges are whole pages below address_limit, ascending and apart from each other; kinds, files and protections are known ones;
// the vDSO is there with its data right before it; task ids are positive, different, leader first.
Result<void> check_layout(const image::Layout& layout);

struct Span {
    uint64_t start = 0;
    uint64_t end = 0;
};
// Start of the lowest free range of `size` bytes beside `taken`, in any order.
Result<uint64_t> free_range(std::vector<Span> taken, uint64_t size);
// The ranges that the mappings of a layout take; [vsyscall] is none.
std::vector<Span> spans_of(const image::Layout& layout);

// "7f12a000-7f12b000"
std::string range_name(const image::MappingRange& range);
// Where [vvar] starts, which is what the kernel wants to know to map both.
uint64_t vdso_start(const image::Layout& layout);

}  // namespace godwit
