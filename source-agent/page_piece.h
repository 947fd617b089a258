// Some pages on their way from a job to a page frame: read, without zeros, perhaps compressed.
#pragma once

#include <cstddef>
#include <vector>

#include "source-agent/page_streams.h"

namespace godwit {

// Used again for one piece after the other. Threads: one.
class PagePiece {
  public:
    // Fetches the ranges, at most max_page_bytes in all. Where the job may vanish, pages that are gone are left out.
    Result<void> read(const PageJob& job, std::span<const ByteRange> ranges);
    // lz4 of the content as one block; empty when it does not get shorter by a sixteenth.
    std::span<const std::byte> compress(size_t most_bytes = max_page_bytes);

    std::span<const PageRange> ranges() const { return ranges_; }
    std::span<const std::byte> content() const { return {content_.data(), size_}; }
    uint64_t pages() const { return size_ / page_bytes; }  // with content
    uint64_t zero_pages() const { return zero_pages_; }    // in ranges(), or left out

    static constexpr size_t page_bytes = 4096;

  private:
    Result<void> read_what_is_there(const PageJob& job, std::span<const ByteRange> ranges);
    void sort_out(bool drop_zeros);
    void append(uint64_t address, bool zero);

    std::vector<ByteRange> there_;  // what was read
    std::vector<PageRange> ranges_;
    std::vector<std::byte> content_ = std::vector<std::byte>(max_page_bytes);
    std::vector<std::byte> packed_;
    size_t size_ = 0;
    uint64_t zero_pages_ = 0;
};

}  // namespace godwit
