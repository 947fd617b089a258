// What becomes of a system call that a stop broke off: pure functions on registers.
//
// A task that stops for PTRACE_INTERRUPT inside a blocking call shows -ERESTART* in rax and the number of the call in
// orig_rax; the kernel restarts the call when the task goes on without a caught signal (arch_do_signal_or_restart).
// Some calls return a plain EINTR instead (signal(7), "Interruption of system calls and library functions by stop
// signals"), which no signal caused: those are made to restart as well.
#pragma once

#include <cstdint>

#include "common/remote/tracee.h"

namespace godwit {

// What to resume with in this very task: EINTR of a call that only the stop broke off becomes -ERESTARTNOHAND, so
// that the kernel restarts the call, or lets it end with EINTR when a caught signal is pending. A timeout given as a
// duration starts over. Only for a task in PTRACE_EVENT_STOP.
Registers for_same_task(const Registers& stopped);

// What to resume with in a new process, perhaps on another host, without the kernel's help (orig_rax is -1).
//   -ERESTARTSYS, -ERESTARTNOINTR, -ERESTARTNOHAND: the call is made again: as fresh, pause() and read() go on.
//   -ERESTART_RESTARTBLOCK: the restart block, which holds what is left of the time, does not travel.
//     clock_nanosleep with TIMER_ABSTIME never gets here, its arguments say all (it is -ERESTARTNOHAND).
//     poll without a timeout, futex(FUTEX_WAIT_BITSET), whose timeout is absolute: made again.
//     poll with a timeout, futex(FUTEX_WAIT): EINTR; to wait the whole time again would double it.
//     nanosleep, relative clock_nanosleep: EINTR, the kernel wrote what is left to `rem` already, if there is one.
//     others: EINTR.
Registers for_elsewhere(const Registers& stopped);

// The same for this task when it must go on without the kernel's restart logic, from plain code (the executor):
// as for_elsewhere(), but a restart block is still there and restart_syscall() uses it. `stopped` has been through
// for_same_task().
Registers for_plain_jump(const Registers& stopped);

// How a caught signal that arrives meanwhile changes that.
enum class Interruptible {
    no,       // nothing to restart, or -ERESTARTNOINTR
    handler,  // a caught signal makes it EINTR
    restart,  // -ERESTARTSYS: the same unless the handler has SA_RESTART
};
Interruptible interruptible(const Registers& stopped);

}  // namespace godwit
