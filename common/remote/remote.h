// The resident executor: some integer-only code in a target that makes the system calls of a Batch, told
// over a socketpair whose other end this agent holds.
//
// What happens if we die: the socket reports end-of-file; the executor makes the calls of its undo list,
// restores every register and the signal mask of its task from a table written beforehand and jumps back; the
// task runs on as if nothing had happened. Bootstrap obeys this too: code and table are written where nothing
// executes, one register write is the only change. Vector state is never touched. At most an inert mapping stays,
// which the next attach() or clean_leftover() removes.
// What happens if the target dies: calls fail with a Problem that says so.
//
// Threads: the thread that seized the tasks. One Remote per process, resident in one task (the host task).
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/base/unique_fd.h"
#include "common/remote/batch.h"
#include "common/remote/remote_ptr.h"
#include "common/remote/tracee.h"

namespace godwit {

struct RemoteOptions {
    RemotePtr at;  // where to map the executor (MAP_FIXED_NOREPLACE); 0: anywhere
};

class Remote {
  public:
    // `task` is stopped. On failure the task is as it was.
    static Result<Remote> attach(Tracee& task, const RemoteOptions& options = {});
    Remote(Remote&&) noexcept;
    Remote& operator=(Remote&&) noexcept;
    // leave() if nothing else was done.
    ~Remote();

    pid_t pid() const;
    // The Tracee that attach() was given is another object now.
    void host_moved(Tracee& task);
    // Runs a batch in the host task. Batches of any size are cut to what the executor's memory holds.
    Result<void> run(Batch& batch);
    // Runs a batch in another stopped task of the same process: what is per thread (alternate stack, tid address,
    // credentials, robust list, rseq) is asked of that thread by the same code. The task is stopped again, with its
    // registers and mask as before, when this returns; if we die meanwhile it runs on as from at_stop().
    Result<void> run_in(Tracee& task, Batch& batch);
    // Tasks that PTRACE_EVENT_{CLONE,FORK,VFORK} reported during run() and run_in() since the last time this was asked,
    // as numbered in our PID namespace, in order of birth. A batch that makes tasks needs those options set: a new task
    // must start stopped, since it is born inside the executor.
    std::vector<pid_t> take_new_tasks();
    // A call that the executor makes, after the last batch, if we die: what a later batch would have undone (a close
    // after an open). Returns its handle for forget_undo(). At most 16 at a time.
    Result<int> undo_at_death(long number, uint64_t a = 0, uint64_t b = 0, uint64_t c = 0, uint64_t d = 0,
                              uint64_t e = 0, uint64_t f = 0);
    Result<void> forget_undo(int handle);
    // One call, for convenience: the raw result or a Problem naming call and pid.
    Result<int64_t> call(long number, uint64_t a = 0, uint64_t b = 0, uint64_t c = 0, uint64_t d = 0, uint64_t e = 0,
                         uint64_t f = 0);

    // Sends descriptors of ours into the target (SCM_RIGHTS over the executor's socket). Returns the numbers they got
    // there: the lowest free ones. Close-on-exec.
    Result<std::vector<int>> send_fds(std::span<const int> fds);
    // The number that the executor's own socket has in the target; never part of what is dumped.
    int socket_number() const;
    // Moves the executor's socket to another number in the target (dup3), out of the way of what is restored.
    Result<void> move_socket(int number);

    // The range that the executor occupies; never part of what is dumped.
    RemotePtr start() const;
    uint64_t size() const;

    // Ends the executor: its mapping is gone, the host task is stopped by ptrace with registers and mask as at_stop().
    Result<void> leave();
    // For a skeleton: the same, but the last munmap is injected by the `syscall` instruction at `instruction` (in the
    // restored vDSO) and the task is left stopped with registers that the caller overwrites.
    Result<void> retire(RemotePtr instruction);

  private:
    struct State;
    explicit Remote(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

// Refuses processes in which a task has a seccomp filter or strict mode (/proc/PID/task/TID/status): the executor's
// calls could kill it. For callers of seize_process() to ask first.
Result<void> check_seccomp(pid_t pid);
// Removes executor mappings that a killed agent left in the (stopped) process; returns how many. Called by
// attach() too.
Result<int> clean_leftover(Tracee& task);
// True if `task`, stopped, is inside executor code of an earlier agent: detach and try again shortly.
Result<bool> inside_executor(const Tracee& task);
// Address of a `syscall` instruction in the process's vDSO.
Result<RemotePtr> find_syscall_instruction(pid_t pid);

// Memory of another process through /proc/PID/mem: any protection, no permission of the mapping is asked.
class ProcessMemory {
  public:
    static Result<ProcessMemory> open(pid_t pid);
    Result<void> read(RemotePtr from, void* to, size_t size) const;
    Result<void> write(RemotePtr to, const void* from, size_t size) const;
    int fd() const { return fd_.get(); }

  private:
    UniqueFd fd_;
    pid_t pid_ = 0;
};

}  // namespace godwit
