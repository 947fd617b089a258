// The source's half of the commit: the moment of ownership.
//
//   prepare()   PLAN_REPLY was received       journal PREPARING, hold cgroup made, processes moved in; the tree runs on
//   commit()    the tree is stopped, STATE_END was sent
//       <- READY
//       journal COMMITTED (fsync), cgroup.freeze, wait for "frozen 1"
//       -> GO            from here on the tree is not ours to run until the destination says that it gave up
//       <- RUNNING       downtime ends
//       kill the frozen copy, journal DONE
//       -> DONE   <- DONE_REPLY, journal and cgroup removed
//   ~SourceCommit() without commit(): processes moved back, cgroup and journal removed
//
// If we die: before COMMITTED the tree runs on, in the hold cgroup, until `recover` tidies up; between COMMITTED and
// DONE it is held frozen until `recover`. If the link is lost after COMMITTED, commit() itself asks the destination
// over new connections (ROLE_RECOVER) for `settle_limit` and settles by common/recovery/table.h.
//
// Threads: the tracer's thread. Fault points: source.*
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/base/deadline.h"
#include "common/base/result.h"
#include "common/recovery/hold_cgroup.h"
#include "common/recovery/journal.h"
#include "common/remote/tracee.h"
#include "source-agent/dial.h"

namespace godwit {

struct SourceCommitOptions {
    std::string state_dir = default_state_dir;
    std::string migration_id;
    PeerAddress peer;                   // goes to the journal, for recover
    std::string peer_state_id;          // PlanReply.state_id
    Dial dial = dial_peer;              // a new ROLE_RECOVER connection to `peer`
    milliseconds ready_limit{120'000};  // READY: the destination restores and flushes before it
    milliseconds answer_limit{30'000};  // RUNNING, DONE_REPLY
    milliseconds settle_limit{10'000};  // asking again after a lost link
};

enum class SourceOutcome {
    done,       // the destination runs the tree; nothing of it is left here
    uncertain,  // exit 5: the tree is held frozen, the journal stays; problem() says what to do
};

// Times of the commit, for the report; CLOCK_MONOTONIC.
struct CommitTimes {
    Clock::time_point ready_received;
    Clock::time_point go_sent;
    Clock::time_point running_received;
    std::vector<std::pair<std::string, uint64_t>> destination_phases;  // name, microseconds; from READY and RUNNING
};

class SourceCommit {
  public:
    // Moves `pids` (the tree's processes, root first) into the hold cgroup; they run on. On failure nothing is left.
    static Result<SourceCommit> prepare(SourceCommitOptions options, const std::vector<pid_t>& pids);
    SourceCommit(SourceCommit&&) noexcept;
    SourceCommit& operator=(SourceCommit&&) = delete;
    ~SourceCommit();

    // `tree` is stopped, every executor has left, registers and masks are as at_stop(): what is resumed after a crash
    // resumes with them.
    //   done: the tracees are dead and forgotten.
    //   uncertain: the tracees are released but held by the freezer.
    //   a Problem: the tree is the source's; hold cgroup and journal are gone, the caller lets the tracees go.
    Result<SourceOutcome> commit(Channel& channel, std::vector<StoppedProcess>& tree);

    const CommitTimes& times() const { return times_; }
    // After `uncertain`: one line and the hint to run `godwit recover`; code 5.
    const Problem& problem() const { return problem_; }

  private:
    SourceCommit() = default;
    Result<void> reach_go(Channel& channel, const std::vector<StoppedProcess>& tree);
    Result<void> hand_over(Channel& channel);
    Result<void> finish(Channel& channel, std::vector<StoppedProcess>& tree);
    Result<SourceOutcome> settle_lost(Problem why, std::vector<StoppedProcess>& tree);
    void undo();

    SourceCommitOptions options_;
    HoldCgroup hold_;
    std::optional<Journal> journal_;
    CommitTimes times_;
    Problem problem_;
};

}  // namespace godwit
