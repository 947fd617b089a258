#include "source-agent/page_piece.h"

#include <lz4.h>

#include <cstring>

namespace godwit {
namespace {

bool is_zero(const std::byte* page) {
    // The first word decides nearly always; then the page is compared with itself, shifted by one word.
    uint64_t first;
    std::memcpy(&first, page, sizeof first);
    return first == 0 && std::memcmp(page, page + sizeof first, PagePiece::page_bytes - sizeof first) == 0;
}

}  // namespace

Result<void> PagePiece::read(const PageJob& job, std::span<const ByteRange> ranges) {
    there_.assign(ranges.begin(), ranges.end());
    if (auto whole = job.source->read(ranges, content_.data()); !whole) {
        if (!job.may_vanish || whole.error().error != EFAULT) return whole;
        TRY(read_what_is_there(job, ranges));
    }
    sort_out(job.zeros_there);
    return {};
}

Result<void> PagePiece::read_what_is_there(const PageJob& job, std::span<const ByteRange> ranges) {
    there_.clear();
    std::byte* to = content_.data();
    const auto take = [&](ByteRange range) -> Result<bool> {
        if (auto got = job.source->read({&range, 1}, to); !got) {
            if (got.error().error == EFAULT) return false;
            return Failure(std::move(got.error()));
        }
        there_.push_back(range);
        to += range.end - range.start;
        return true;
    };
    for (const ByteRange& range : ranges) {
        if (TRY(take(range))) continue;
        for (uint64_t at = range.start; at < range.end; at += page_bytes) (void)TRY(take({at, at + page_bytes}));
    }
    return {};
}

// Moves the pages that are not zero together at the front of the content.
void PagePiece::sort_out(bool drop_zeros) {
    ranges_.clear();
    size_ = 0;
    zero_pages_ = 0;
    const std::byte* from = content_.data();
    for (const ByteRange& range : there_) {
        for (uint64_t at = range.start; at < range.end; at += page_bytes, from += page_bytes) {
            const bool zero = is_zero(from);
            if (zero) ++zero_pages_;
            if (zero && drop_zeros) continue;
            append(at, zero);
            if (zero) continue;
            std::byte* to = content_.data() + size_;
            if (to != from) std::memcpy(to, from, page_bytes);
            size_ += page_bytes;
        }
    }
}

void PagePiece::append(uint64_t address, bool zero) {
    if (!ranges_.empty() && ranges_.back().zero == zero && ranges_.back().address + ranges_.back().length == address)
        ranges_.back().length += page_bytes;
    else
        ranges_.push_back({address, page_bytes, zero});
}

std::span<const std::byte> PagePiece::compress(size_t most_bytes) {
    const size_t size = std::min(size_, most_bytes);
    packed_.resize(max_page_bytes);
    const int packed = ::LZ4_compress_default(reinterpret_cast<const char*>(content_.data()), reinterpret_cast<char*>(packed_.data()),
                                              static_cast<int>(size), static_cast<int>(size - size / 16));
    return {packed_.data(), packed > 0 ? static_cast<size_t>(packed) : 0};
}

}  // namespace godwit
