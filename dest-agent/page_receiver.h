// Takes the pages of one migration off its data connections and writes them into the skeletons, in place.
//
// One thread per data connection, each with one buffer of max_page_bytes: that is all the memory it takes, whatever
// the tree's size. No thread here uses ptrace.
// Errors: the first one, from any connection, ends all of them and is what wait() returns.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "common/base/deadline.h"
#include "common/base/result.h"
#include "common/image/session.pb.h"
#include <functional>
#include "dest-agent/page_target.h"
#include "dest-agent/skeleton.h"
#include "transport/channel.h"

namespace godwit {

class PageReceiver {
  public:
    // `skeletons` by pid; they outlive this object. Starts at once.
    PageReceiver(std::vector<std::unique_ptr<Channel>> channels, std::function<PageTarget*(uint32_t, uint64_t)> find);
    void open_round(uint32_t round);
    ~PageReceiver();  // shuts the connections down and joins
    PageReceiver(const PageReceiver&) = delete;
    PageReceiver& operator=(const PageReceiver&) = delete;

    // Waits until every connection has brought the frames that `end` counts, all of them written.
    Result<bool> wait(const image::RoundEnd& end, Deadline deadline);
    // From any thread: the connections end.
    void shut_down();
    uint64_t bytes() const { return bytes_; }

  private:
    void receive(size_t stream);
    Result<void> receive_frame(Channel& channel, std::byte* buffer);

    std::vector<std::unique_ptr<Channel>> channels_;
    std::function<PageTarget*(uint32_t, uint64_t)> find_;
    int64_t open_ = -1;
    std::mutex lock_;
    std::condition_variable changed_;
    std::vector<uint64_t> frames_;
    std::optional<Problem> problem_;
    std::atomic<uint64_t> bytes_ = 0;
    bool stopping_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace godwit
