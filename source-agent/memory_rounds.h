// The memory of a tree, sent round after round.
//
//   add() for each process
//   [ track() ]   stopped for a moment: the tracker moves in           mode pre-copy
//   [ scan_running() → send_running() ] ...                            the tree runs on
//   scan_stopped() → begin_last() → finish_last()                      the tree is frozen
//
// What the destination has is, after every round, what the layouts and pages sent so far say. What a scan found and
// was not sent stays pending, whatever the next scan finds.
//
// What happens if we die: trackers end with us, the processes run on. If a process exits or executes another program: a Problem
// that names it.
// Threads: the tracer thread; pages are read and sent by threads of PageStreams.
#pragma once

#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "source-agent/collect/layout.h"
#include "source-agent/collect/shared_objects.h"
#include "source-agent/page_streams.h"
#include "source-agent/track/dirty_tracker.h"
#include "source-agent/track/ranges.h"

namespace godwit {

class MemoryRounds {
  public:
    // Both outlive this object. `tick` is called when a round begins and some ten times a second while it is being sent.
    MemoryRounds(Channel& control, PageStreams& streams, std::function<void()> tick);
    ~MemoryRounds();

    Result<void> add(pid_t pid, pid_t pid_inside, const image::Plan& plan, const CollectOptions& options = {});
    // The processes are stopped while this runs and let go at its end.
    Result<void> track(TrackerBackend backend);
    // "wp-async" or "soft-dirty"; empty without a tracker.
    std::string backend() const;
    // That go with the tree; paths and ids (shared_object_id()).
    const std::map<std::string, uint64_t>& moved_files() const { return objects_.files(); }

    Result<void> scan_running();
    Result<void> send_running();

    // Every task is stopped, nothing of ours is in any process.
    Result<void> scan_stopped();
    // Sends the last layouts, then pages by other threads; finish_last() waits for them and says so to the destination.
    Result<void> begin_last();
    // A destination that takes longer than `limit` for them is given up.
    Result<void> finish_last(std::optional<milliseconds> limit);

    uint64_t pending_bytes() const;  // found by the last scan and before, not sent yet
    // Of the round that is being sent.
    uint64_t pages_of_round() const { return pages_of_round_; }
    uint64_t pages_done() const;
    std::optional<double> bytes_per_second() const;

    // Of the round that was sent last.
    struct Round {
        uint32_t number = 0;
        SentPages sent;
        uint64_t dropped_pages = 0;
        double milliseconds = 0;
    };
    const Round& last_round() const { return round_; }

  private:
    struct Member;
    Result<void> scan(Member& member, image::Layout layout);
    Result<void> scan_stopped_for_a_moment(Member& member);
    Result<void> send_layouts(bool last);
    std::vector<PageJob> make_jobs() const;
    Result<void> send_pages(bool last);
    image::RoundEnd round_end() const;
    Result<std::future<Result<SentPages>>> start_sending(const std::vector<PageJob>& jobs);

    Channel& control_;
    PageStreams& streams_;
    std::function<void()> tick_;
    std::vector<std::unique_ptr<Member>> members_;
    SharedObjects objects_;  // of all members
    uint32_t next_round_ = 0;
    Round round_;
    uint64_t pages_of_round_ = 0, pages_before_ = 0, bytes_before_ = 0;
    Clock::time_point round_begun_{};
    std::vector<PageJob> last_jobs_;
    std::future<Result<SentPages>> last_pages_;
};

}  // namespace godwit
