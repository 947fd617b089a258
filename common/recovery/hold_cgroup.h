// A cgroup of ours that holds one tree of one migration, and survives any agent.
//
// Source: `<cgroup of the tree's first process>/godwit-<uuid>-source`: a child, so that the limits of the tree's own
// cgroup go on counting. Destination: `<topmost visible cgroup>/godwit-<uuid>-destination`, so that a service manager
// which stops `godwit serve` does not take the tree along; after the commit the tree moves on to
// `<topmost>/godwit-tree-<uuid>`, which goes when a later migration or `recover` finds it empty.
//
// If we die, the tree stays in the cgroup, running or frozen as it was; the journal names it and `recover` undoes it.
#pragma once

#include <string>
#include <vector>

#include "common/kernel/cgroup.h"
#include "common/recovery/journal.h"

namespace godwit {

// Limit of what waits for the kernel's cgroup locks, which take seconds on a loaded machine.
inline constexpr milliseconds cgroup_limit{30'000};

class HoldCgroup {
  public:
    HoldCgroup() = default;

    // Where the cgroup will be: known before it is made, so that the journal names it first.
    static Result<HoldCgroup> for_source(const std::string& migration_id, pid_t root);
    static Result<HoldCgroup> for_destination(const std::string& migration_id);
    // What a journal names.
    static HoldCgroup of(const JournalEntry& entry);

    const Cgroup& cgroup() const { return hold_; }
    const Cgroup& home() const { return home_; }

    // mkdir (EEXIST: one that a dead agent left is used again).
    Result<void> make() const;
    Result<void> move_in(pid_t pid) const { return hold_.move_in(pid); }
    Result<void> freeze() const { return hold_.freeze(Deadline::in(cgroup_limit)); }
    Result<void> thaw() const { return hold_.thaw(); }
    // Thaws, moves every process to where `processes` says it was (home() when it is not named or that is gone),
    // removes the cgroup. Missing: done.
    Result<void> give_back(const std::vector<JournalProcess>& processes) const;
    // Destination, after the commit: the tree goes on in home(), which is made; the hold cgroup is removed.
    Result<void> move_home() const;
    // Kills what is in it and removes it; also home() if that is an empty godwit-tree cgroup. Missing: done.
    Result<void> destroy() const;

  private:
    Cgroup hold_;
    Cgroup home_;
};

// pid, start time and cgroup of a process, for the journal.
Result<JournalProcess> describe_process(pid_t pid);
// Removes godwit-* cgroups below the topmost visible one and our own that hold no process and that no journal in
// `state_dir` names. Returns their paths.
Result<std::vector<std::string>> remove_stray_cgroups(const std::string& state_dir);
// Removes the cgroups of trees that came here and have ended: cheap enough to be called every second.
Result<void> remove_ended_trees();

}  // namespace godwit
