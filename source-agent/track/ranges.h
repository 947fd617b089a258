// Sets of pages as ascending, disjoint, merged byte ranges.
#pragma once

#include <vector>

#include "source-agent/collect/collect.h"

namespace godwit {

using Ranges = std::vector<ByteRange>;

// `next` starts at or after the end of the last.
void append(Ranges& to, ByteRange next);
void append(Ranges& to, const Ranges& next);
// The part of `set` inside [start, end).
Ranges clip(const Ranges& set, uint64_t start, uint64_t end);
Ranges subtract(const Ranges& set, const Ranges& without);
Ranges intersect(const Ranges& a, const Ranges& b);
Ranges unite(const Ranges& a, const Ranges& b);

}  // namespace godwit
