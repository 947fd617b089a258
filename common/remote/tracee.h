// One task under ptrace, by PTRACE_SEIZE.
//
// Threads: ptrace belongs to one thread; a Tracee is used on the thread that seized it.
// If we die at any line, the kernel detaches the task: it runs on with the registers it has at that
// moment, which is why nothing here makes a state that could not run on (see remote.h). If the task dies,
// calls fail with a Problem that says so; that is an ordinary outcome.
// Exception: some calls (epoll_wait, semtimedop, sigtimedwait; signal(7)) end with EINTR by any stop. wait_stopped()
// makes them restart; if we die between interrupt() and that, they return EINTR. Nothing here makes SIGTRAP stops
// (single-step, int3): those kill the task when the agent dies.
#pragma once

#include <sys/types.h>
#include <sys/user.h>

#include <cstdint>
#include <string>
#include <vector>

#include "common/base/deadline.h"
#include "common/base/result.h"
#include "common/remote/remote_ptr.h"

namespace godwit {

using Registers = user_regs_struct;

class Tracee {
  public:
    // PTRACE_SEIZE; the task goes on running. `options` are PTRACE_O_* bits besides TRACESYSGOOD.
    static Result<Tracee> seize(pid_t tid, unsigned long options = 0);
    // A task that is ours already and stopped or about to stop: a new thread under PTRACE_O_TRACECLONE or a
    // skeleton that was forked under PTRACE_O_TRACEFORK.
    static Tracee adopt(pid_t tid);

    Tracee(Tracee&& other) noexcept;
    Tracee& operator=(Tracee&& other) noexcept;
    // Detaches if still attached: a stopped task runs on with the registers it has.
    ~Tracee();

    pid_t tid() const { return tid_; }

    // PTRACE_INTERRUPT without waiting, so that a thousand threads stop together.
    Result<void> interrupt();
    // Waits for the stop that interrupt() asked for. Signal-delivery stops before it are let through with their
    // signal (peeked with waitid(WNOWAIT), continued with it), none is swallowed; a group-stopped task counts
    // as stopped. Then saves at_stop(). Gives up at the deadline (a task in D, a vfork parent).
    Result<void> wait_stopped(Deadline deadline);
    bool stopped() const { return stopped_; }
    // True when the task was group-stopped (SIGSTOP and friends): it must be so again when it is let go.
    bool group_stopped() const { return group_stopped_; }

    // State as it was when wait_stopped() returned, before anything was changed. Registers have had the fix-ups
    // that make them safe to resume with *in this kernel, from this task* (a system call that PTRACE_INTERRUPT
    // broke off restarts; a restartable sequence under way has its abort taken).
    const Registers& at_stop() const { return at_stop_; }
    uint64_t mask_at_stop() const { return mask_at_stop_; }

    Result<Registers> registers() const;
    Result<void> set_registers(const Registers& registers);
    Result<std::string> xstate() const;  // NT_X86_XSTATE
    Result<void> set_xstate(const std::string& xstate);
    Result<uint64_t> signal_mask() const;
    Result<void> set_signal_mask(uint64_t mask);

    // interrupt() and waits for that stop again, from wherever the task is; at_stop() stays as it is.
    Result<void> stop_again(Deadline deadline);
    // Lets the task run, with signals delivered, to the end of its next system call `number`; registers as they are
    // there. For what comes next the kernel restarts no call until stop_again().
    Result<Registers> run_to_call_exit(long number, Deadline deadline);
    // For whoever lets the task run by cont() and waits for something else: lets signals and group stops through that
    // stopped it meanwhile. Returns the new task or process of a PTRACE_EVENT_{CLONE,FORK,VFORK}, 0 when there was
    // none; a Problem when the task died.
    Result<pid_t> serve();
    // PTRACE_CONT with a signal to deliver (0: none).
    Result<void> cont(int signal = 0);
    // One system call by PTRACE_SYSCALL: `instruction` is the address of a `syscall` instruction that is mapped in the
    // task (its vDSO has some). Returns the raw kernel result (negative errno). Registers are left as after the call.
    // For what the executor cannot do: its own bootstrap, a full descriptor table, the last munmap.
    Result<int64_t> inject(RemotePtr instruction, long number, const uint64_t (&arguments)[6]);
    // Registers and mask as at_stop(), then PTRACE_DETACH: the task runs on as if nothing had happened.
    Result<void> release();
    // PTRACE_DETACH alone.
    Result<void> detach();
    // The task is gone or somebody else's: forget it without a system call.
    void forget() { tid_ = 0; }

  private:
    explicit Tracee(pid_t tid) : tid_(tid) {}
    Result<void> save_state();

    pid_t tid_ = 0;
    bool stopped_ = false;
    bool at_interrupt_ = false;  // stopped where the kernel still restarts a call that was broken off
    bool group_stopped_ = false;
    Registers at_stop_{};
    uint64_t mask_at_stop_ = 0;
};

// All tasks of one process, leader first, then ascending; seized and stopped.
struct StoppedProcess {
    pid_t pid = 0;
    std::vector<Tracee> tasks;
};

// Seizes and stops every task of `pid`, reading /proc/PID/task until the set is stable: threads born
// meanwhile are found. All are interrupted first and waited for then. On failure all run on.
Result<StoppedProcess> seize_process(pid_t pid, Deadline deadline, unsigned long options = 0);
// release() for every task. Best effort: tasks that died are passed over.
void release_process(StoppedProcess& process);

}  // namespace godwit
