// Sends the pages of a round over one or more data connections, in parallel.
//
// One thread per connection takes pieces of at most max_page_bytes from the common list of jobs, reads each, takes out its zero
// pages, compresses where that pays, and sends it as one page frame: pages that lie apart travel together.
//
// Memory: 3 MiB per connection, whatever the size of the tree, besides the jobs' own ranges.
// Errors: the first Problem of any connection ends all of them and is what send() returns.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/image/session.pb.h"
#include "source-agent/collect/collect.h"
#include "transport/channel.h"

namespace godwit {

inline constexpr uint32_t most_streams = 16;

// lz4 only where the peer knows it. automatic: what is faster, by measurement (compression_choice.h).
enum class Compression { none, lz4, automatic };

// Where content is read: a process by address, a shared object by offset. Threads: any number at a time.
class PageSource {
  public:
    virtual ~PageSource() = default;
    // Reads whole ranges one after the other into `to`. A range that is not there any more (the process unmapped it) is a
    // Problem with error EFAULT; a process that is gone one with ESRCH.
    virtual Result<void> read(std::span<const ByteRange> ranges, std::byte* to) const = 0;
};

std::unique_ptr<PageSource> process_pages(pid_t pid);

struct PageJob {
    uint32_t pid = 0;     // in the tree's namespace; 0: a shared object's pages
    uint64_t object = 0;
    const PageSource* source = nullptr;
    std::vector<ByteRange> ranges;  // ascending, of whole pages
    bool zeros_there = false;       // the destination's pages are zero already: zero pages need not be told
    bool may_vanish = false;        // the tree runs: a range that is gone is passed over; the next round tells of it
};

struct SentPages {
    uint64_t pages = 0;       // whose content was sent
    uint64_t zero_pages = 0;  // told as zero, or left out
    uint64_t bytes = 0;       // over the links
};

class PageStreams {
  public:
    // The connections have been greeted.
    PageStreams(std::vector<std::unique_ptr<Channel>> channels, Compression compression);
    ~PageStreams();
    PageStreams(const PageStreams&) = delete;
    PageStreams& operator=(const PageStreams&) = delete;

    // Announces the round on every connection (ROUND_BEGIN) and returns when all pages were handed to the links, or with the
    // first Problem, after which no more can be sent. Fault points: pages:begin, pages:middle (half of the pages were sent),
    // pages:end.
    Result<SentPages> send(uint32_t round, const std::vector<PageJob>& jobs);
    // Frames (ROUND_BEGIN and PAGES) and bytes of every connection so far, over all rounds, for ROUND_END.
    void count(image::RoundEnd& end) const;
    // Any thread, also while send() goes on. Pages: of all rounds, with those that were zero or gone.
    uint64_t pages_done() const;
    uint64_t bytes_sent() const;
    // Any thread; a send() that is under way ends with a Problem.
    void shut_down();

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace godwit
