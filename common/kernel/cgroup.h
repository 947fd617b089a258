// The cgroup v2 hierarchy: where it is mounted, where processes are in it, and its freezer.
//
// Sources: cgroup-v2 documentation of the kernel; cgroup.freeze since Linux 5.2, cgroup.kill since 5.14 (SIGKILL
// by pidfd is used where it is missing). Paths are paths in the file system of the caller. Moving processes takes a
// system-wide write lock that may wait long on a loaded machine: nothing here is called under a tight limit.
// Threads: any. If we die at any line, what was written stays: a frozen cgroup stays frozen, which is its purpose.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "common/base/deadline.h"
#include "common/base/result.h"

namespace godwit {

class Cgroup {
  public:
    Cgroup() = default;
    explicit Cgroup(std::string path) : path_(std::move(path)) {}

    // The cgroup of a process, seen from our cgroup namespace and mounts.
    static Result<Cgroup> of(pid_t pid);
    // The topmost cgroup that this process can see.
    static Result<Cgroup> top();

    const std::string& path() const { return path_; }
    bool exists() const;
    // "domain", "threaded", "domain threaded", "domain invalid"; "root" for the root of the hierarchy.
    Result<std::string> type() const;

    // mkdir. Refuses a parent that is or would become threaded, naming it; EEXIST is a failure.
    Result<Cgroup> make_child(const std::string& name) const;
    // All processes, also of cgroups below.
    Result<std::vector<pid_t>> processes() const;
    Result<bool> populated() const;
    Result<void> move_in(pid_t pid) const;

    // Returns when every task is frozen ("frozen 1"; tasks in a ptrace stop count). At the deadline it names the tasks
    // that are not, and leaves the freeze asked for.
    Result<void> freeze(Deadline deadline) const;
    Result<bool> frozen() const;        // all tasks are
    Result<bool> freeze_asked() const;  // cgroup.freeze is 1
    Result<void> thaw() const;          // one write; does not wait
    // SIGKILL to every process, which also ends frozen ones, and waits until none is left (zombies are not counted).
    Result<void> kill(Deadline deadline) const;
    // rmdir, cgroups below first; retried until the deadline while the kernel still tears down dead processes. Missing:
    // done.
    Result<void> remove(Deadline deadline) const;

  private:
    Result<void> kill_all(Deadline deadline) const;
    std::string path_;
};

}  // namespace godwit
