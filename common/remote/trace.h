// ptrace(2) and waitid(2) in the form that Tracee needs: every request passes a fault point, every stop is peeked.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "common/base/deadline.h"
#include "common/base/result.h"

namespace godwit::trace {

// One request. `name` is what the fault point and the Problem call it ("ptrace:cont"). ESRCH, which means that the task
// died (or is not stopped), becomes a Problem that says so.
Result<void> request(const char* name, int request, pid_t tid, uint64_t address, uint64_t data);

struct Stop {
    enum class Kind {
        running,    // no stop
        interrupt,  // PTRACE_INTERRUPT, or the birth of a task
        group,      // SIGSTOP and friends
        signal,     // about to get `number`
        call,       // PTRACE_SYSCALL
        event,      // PTRACE_EVENT_`number`
        gone,
    };
    Kind kind = Kind::running;
    int number = 0;
};
// What `tid` does now. The stop is not taken (WNOWAIT): a signal-delivery stop that is, loses its signal if we die.
// The remains of a dead task are taken.
Stop peek(pid_t tid);
// For a task that was found dying (ESRCH): waits a moment for its end and takes the remains.
void bury(pid_t tid);
// Waits until it is not running. There is no descriptor that reports stops, so this looks again in growing intervals of
// at most 1 ms.
Result<Stop> wait(pid_t tid, Deadline deadline);

// A field of /proc/TID/status ("TracerPid"), without white space around; nothing when the task is gone.
std::optional<std::string> status_field(pid_t tid, const std::string& field);
// Why the task does not stop or cannot be seized, for people.
Failure gone(pid_t tid);

}  // namespace godwit::trace
