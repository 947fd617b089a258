// The destination's stopped, empty copy of one process: its final PID and TIDs, its mappings, nothing that runs.
//
// Life: Skeleton::build() → write(), zero() → [ correct() → write(), zero() ] ... → finish_memory() → restore_files(),
// restore_process() → seal(): executor gone, every task stopped by ptrace with its final registers → commit, which makes it run by Tracee::detach() (not release(): what
// at_stop() holds are the stub's registers).
//
// What happens if we die: PTRACE_O_EXITKILL kills every task of it until the commit clears that.
// What happens if it dies: calls fail with a Problem that names it.
// Threads: one tracer thread for all skeletons of a tree; any for write() and zero().
#pragma once

#include <sys/types.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/base/unique_fd.h"
#include "common/image/process.pb.h"
#include "common/image/session.pb.h"
#include "common/remote/remote.h"
#include "dest-agent/page_target.h"

namespace godwit {

// Makes processes with chosen PIDs in a time namespace of their own. A separate, single-threaded program
// (`godwit --skeleton-spawner`, told over a socketpair), because the agent has threads and a time namespace is entered
// by children only, its offsets being set before the first one (time_namespaces(7)).
class Spawner {
  public:
    // Starts the helper. `clocks`: what CLOCK_MONOTONIC and CLOCK_BOOTTIME shall show in the tree, at the local
    // CLOCK_MONOTONIC time `arrived_ns`; the offsets are computed against the host, never nested. `program` is the godwit binary.
    static Result<Spawner> start(const image::Clocks& clocks, int64_t arrived_ns, const std::string& program = "/proc/self/exe");
    Spawner(Spawner&&) noexcept;
    Spawner& operator=(Spawner&&) noexcept;
    ~Spawner();  // ends the helper

    // clone3(set_tid = pid) + exec of a minimal stub that waits; the new process is the leader of a session and
    // process group of its own and its parent is the init of this PID namespace (or the nearest sub-reaper).
    // Returns it seized by the calling thread, stopped, with EXITKILL and TRACECLONE. Whoever drops it must kill it first: a
    // detached stub waits for ever.
    Result<Tracee> spawn(pid_t pid);

  private:
    struct State;
    explicit Spawner(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

// The main() of `godwit --skeleton-spawner FD`.
int run_skeleton_spawner(int socket);

// A problem for each PID, TID of the plan that is in use here.
std::vector<Problem> check_pids(const image::Plan& plan);

class MadeObjects;

class Skeleton : public PageTarget {
  public:
    // Process, executor resident outside the ranges of `layout`, its stub's own mappings gone, VMAs of the layout made,
    // threads made (clone3 set_tid), each stopped. `objects`, which outlives it, has what the layout maps of shared memory.
    static Result<Skeleton> build(Spawner& spawner, const image::Layout& layout, MadeObjects* objects = nullptr);
    Skeleton(Skeleton&&) noexcept;
    Skeleton& operator=(Skeleton&&) noexcept;
    // Kills the process unless release() was called and waits for that end as its tracer; its parent reaps it.
    ~Skeleton() override;

    pid_t pid() const;
    const image::Layout& layout() const;
    Remote& remote();
    std::vector<Tracee>& tasks();  // leader first, in the order of layout().tids()

    // Makes it what a later layout says: mappings and threads that came or went, protections, advice, dropped pages. Memory that
    // is the same in both layouts keeps its content. After a Problem only its end makes sense.
    Result<void> correct(image::Layout next);

    // Pages by address, in place, whatever their mapping's protection. From any thread, while no layout is being corrected.
    Result<void> write(std::span<const PageRange> ranges, const std::byte* content) override;
    Result<void> zero(std::span<const PageRange> ranges) override;
    // Called once when all pages have arrived: protections become those of the layout. Until then memory that was not
    // written may be unreadable (page_filler.h).
    Result<void> finish_memory();
    // From now on its end is nobody's but the commit's.
    void release();

  private:
    struct State;
    explicit Skeleton(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

}  // namespace godwit
