// Reads the pages of one shared object, and remembers what it read where that may have to be compared.
//
// write(2) to a memfd or a file on tmpfs leaves no trace in any page table. Where an object is written that way its
// pages are compared with what was sent, by a hash of each (transport/page_hash.h). Memory: 16 bytes for each page read
// since remember(), 4 MiB for each GiB.
//
// Threads: read() by any number at a time, of different pages; nothing else at the same time.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "common/base/unique_fd.h"

#include "source-agent/page_streams.h"
#include "source-agent/track/ranges.h"
#include "transport/page_hash.h"

namespace godwit {

class ObjectPages final : public PageSource {
  public:
    // `fd` is open for reading as long as this lives; nothing else uses its position. `name` is for messages.
    ObjectPages(int fd, std::string name);

    // Offsets. A page that begins beyond the object's end is gone (EFAULT); what is behind the end in the last page
    // reads as zeros.
    Result<void> read(std::span<const ByteRange> ranges, std::byte* to) const override;

    // From now on hashes of what is read are kept; what was read before is not known.
    void remember() { remembers_ = true; }
    bool remembers() const { return remembers_; }
    // Pages of `among` whose content is not what read() gave out last, or was not read since remember(), or is gone.
    Result<Ranges> differing(const Ranges& among) const;

    // Pages of `among` that are zero. What madvise(MADV_REMOVE) took and a read brought back looks like any page that nobody has
    // written: only its content tells. One word of each page is looked at, some 25 ms for each GiB. Not for objects that may
    // shrink meanwhile (one that the tree holds a descriptor of): the look would be our end.
    Result<Ranges> zeros_among(const Ranges& among);

  private:
    static constexpr size_t block_pages = 512;
    using Block = std::array<PageHash, block_pages>;  // all zero: not known

    Result<void> read_range(ByteRange range, std::byte* to) const;
    Block& block_of(uint64_t offset) const;

    const int fd_;
    const std::string name_;
    Mapping mapped_;  // kept, once it was needed: its page tables cost more than the look
    std::atomic<bool> remembers_ = false;
    mutable std::mutex lock_;  // of the map; the hashes of a page are its reader's
    mutable std::map<uint64_t, std::unique_ptr<Block>> blocks_;
};

}  // namespace godwit
