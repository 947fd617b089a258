#include "source-agent/track/ranges.h"

#include <algorithm>

namespace godwit {

void append(Ranges& to, ByteRange next) {
    if (next.start >= next.end) return;
    if (!to.empty() && to.back().end >= next.start)
        to.back().end = std::max(to.back().end, next.end);
    else
        to.push_back(next);
}

void append(Ranges& to, const Ranges& next) {
    for (const ByteRange& range : next) append(to, range);
}

Ranges clip(const Ranges& set, uint64_t start, uint64_t end) {
    Ranges out;
    auto at = std::upper_bound(set.begin(), set.end(), start, [](uint64_t value, const ByteRange& range) { return value < range.end; });
    for (; at != set.end() && at->start < end; ++at) append(out, {std::max(at->start, start), std::min(at->end, end)});
    return out;
}

Ranges subtract(const Ranges& set, const Ranges& without) {
    Ranges out;
    auto hole = without.begin();
    for (const ByteRange& range : set) {
        uint64_t at = range.start;
        while (hole != without.end() && hole->end <= at) ++hole;
        for (auto next = hole; next != without.end() && next->start < range.end; ++next) {
            append(out, {at, std::min(next->start, range.end)});
            at = std::max(at, next->end);
        }
        append(out, {at, range.end});
    }
    return out;
}

Ranges intersect(const Ranges& a, const Ranges& b) {
    return subtract(a, subtract(a, b));
}

Ranges unite(const Ranges& a, const Ranges& b) {
    Ranges sorted(a.size() + b.size());
    std::merge(a.begin(), a.end(), b.begin(), b.end(), sorted.begin(),
               [](const ByteRange& x, const ByteRange& y) { return x.start < y.start; });
    Ranges out;
    append(out, sorted);
    return out;
}

}  // namespace godwit
