// Takes the pages of one migration off its data connections and writes them where they belong.
//
// One thread per data connection, each with one DataFrame (2 MiB and some): that is all the memory it takes, whatever the tree's
// size. No thread here uses ptrace.
// Rounds: a connection that received ROUND_BEGIN n goes on only after open_round(n), which the tracer calls when the layout of
// round n is in place; and wait() closes the round when every connection has brought all of it. So a page of one round is never
// written after one of the next, and nothing is written while the tracer changes layouts.
// Errors: the first one, from any connection, ends all of them and is what wait() returns.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "common/base/deadline.h"
#include "common/base/result.h"
#include "common/image/session.pb.h"
#include "dest-agent/page_target.h"
#include "transport/channel.h"

namespace godwit {

class PageReceiver {
  public:
    // The target of a process, or of an object (pid 0); null: not known. Called by several threads, only while a round is open;
    // targets outlive this object.
    using Find = std::function<PageTarget*(uint32_t pid, uint64_t object)>;

    // Starts at once; pages are written when their round is opened.
    PageReceiver(std::vector<std::unique_ptr<Channel>> channels, Find find);
    ~PageReceiver();  // shuts the connections down and joins
    PageReceiver(const PageReceiver&) = delete;
    PageReceiver& operator=(const PageReceiver&) = delete;

    // The layouts of this round are in place: its pages may be written. Rounds are 0, 1, 2 ...; that of `end` before.
    void open_round(uint32_t round);
    // Waits until every connection has brought the frames that `end` counts, all of them written, and closes the round. False:
    // the deadline passed before that.
    Result<bool> wait(const image::RoundEnd& end, Deadline deadline);
    // What went wrong so far.
    Result<void> check();
    // From any thread: the connections end.
    void shut_down();
    uint64_t bytes() const { return bytes_; }  // of pages, before compression

  private:
    struct Stream {
        std::unique_ptr<Channel> channel;
        uint64_t frames = 0;         // written, and beginnings of rounds
        std::optional<uint32_t> round;  // that its latest ROUND_BEGIN named
        bool writing = false;
    };

    void receive(Stream& stream);
    Result<void> receive_frame(Stream& stream, DataFrame& frame);
    Result<void> begin_round(Stream& stream, uint32_t round);
    Result<void> write(const DataFrame& frame);

    std::vector<Stream> streams_;
    const Find find_;
    std::mutex lock_;
    std::condition_variable changed_;
    std::optional<uint32_t> open_;  // the round whose pages may be written
    std::optional<Problem> problem_;
    std::atomic<uint64_t> bytes_ = 0;
    bool stopping_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace godwit
