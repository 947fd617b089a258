// The destination's half of the commit.
//
//   prepare()   PLAN was accepted             journal PREPARING, hold cgroup made
//   adopt()     per skeleton, while it is built: into the hold cgroup (or clone3 with CLONE_INTO_CGROUP and
//   cgroup_fd()) commit()    everything is restored, registers are set, tasks are in ptrace stops under
//   PTRACE_O_EXITKILL
//       cgroup.freeze, wait for "frozen 1", journal READY (fsync)
//       -> READY
//       <- GO
//       drop EXITKILL on every task, detach every task (the freezer holds them), journal OWNED (fsync)
//       thaw: one write starts every task
//       -> RUNNING       journal RUNNING
//       the tree moves from the hold cgroup to <topmost cgroup>/godwit-tree-<uuid>
//       <- DONE, journal removed   -> DONE_REPLY
//   ~DestCommit() without OWNED: skeletons killed, cgroup and journal removed
//
// If we die: while EXITKILL is set the kernel kills the skeletons; from its dropping to the thaw the freezer holds them
// and `recover` decides; after the thaw they run. Freezing before READY means that whatever can fail for want of time
// or memory fails while the source can still run on: after GO there are only ptrace calls, one fsync and one write.
//
// Threads: the tracer's thread. Fault points: dest.*
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

namespace godwit {

class Channel;

struct DestCommitOptions {
    std::string state_dir = default_state_dir;
    std::string migration_id;
    std::string peer_state_id;                             // Plan.state_id: who may ask about this migration later
    milliseconds go_limit{60'000};                         // GO after READY
    milliseconds done_limit{30'000};                       // DONE after RUNNING; not needed for the tree to run
    std::vector<std::pair<std::string, uint64_t>> phases;  // name, microseconds; sent with READY
};

enum class DestOutcome {
    done,     // the tree runs here and the source has said that its copy is gone
    running,  // the tree runs here; DONE did not come: the journal stays until the source's recover
};

class DestCommit {
  public:
    static Result<DestCommit> prepare(DestCommitOptions options);
    DestCommit(DestCommit&&) noexcept;
    DestCommit& operator=(DestCommit&&) = delete;
    ~DestCommit();

    const Cgroup& hold_cgroup() const { return hold_.cgroup(); }
    // Moves one skeleton process (all its tasks) into the hold cgroup.
    Result<void> adopt(pid_t pid);

    // `tree` is under ptrace with EXITKILL, stopped, ready to run. After success its tracees are detached and
    // forgotten. On failure before OWNED the skeletons are dead and forgotten, and journal and cgroup are gone. Failure
    // to thaw after OWNED has code uncertain: the tree is held.
    Result<DestOutcome> commit(Channel& channel, std::vector<StoppedProcess>& tree);
    // Phase times added to what READY carries.
    void add_phase(std::string name, uint64_t microseconds) {
        options_.phases.emplace_back(std::move(name), microseconds);
    }

  private:
    DestCommit() = default;
    Result<void> reach_go(Channel& channel, const std::vector<StoppedProcess>& tree);
    Result<void> own(std::vector<StoppedProcess>& tree);
    Result<void> hear_done(Channel& channel);
    void discard();

    DestCommitOptions options_;
    HoldCgroup hold_;
    std::optional<Journal> journal_;
};

}  // namespace godwit
