#include <dirent.h>
#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <ctime>
#include <memory>
#include <unordered_set>

#include "common/base/fault.h"
#include "common/remote/places.h"
#include "common/remote/remote.h"
#include "common/remote/trace.h"
#include "common/remote/x86_64/image.h"

namespace godwit {
namespace {

Result<std::vector<pid_t>> task_list(pid_t pid) {
    const auto close = [](DIR* folder) { ::closedir(folder); };
    const std::unique_ptr<DIR, decltype(close)> folder(::opendir(fmt::format("/proc/{}/task", pid).c_str()), close);
    if (!folder) return fail(fmt::format("process {} does not exist", pid));
    std::vector<pid_t> tids;
    while (const dirent* entry = ::readdir(folder.get()))
        if (entry->d_name[0] != '.') tids.push_back(static_cast<pid_t>(std::atoi(entry->d_name)));
    std::stable_partition(tids.begin(), tids.end(), [&](pid_t tid) { return tid == pid; });
    return tids;
}

// Seizes and interrupts one task. False: it ended, which only the leader may not.
Result<bool> take(StoppedProcess& process, pid_t tid, unsigned long options) {
    auto task = Tracee::seize(tid, options);
    if (!task) {
        // Born of a task of ours under PTRACE_O_TRACECLONE, it is ours and stops by itself.
        if (trace::status_field(tid, "TracerPid") == std::to_string(::gettid())) {
            process.tasks.push_back(Tracee::adopt(tid));
            return true;
        }
        const auto state = trace::status_field(tid, "State");
        if (tid != process.pid && (!state || state->starts_with("X") || state->starts_with("Z"))) return false;
        return Failure(task.error());
    }
    process.tasks.push_back(std::move(*task));
    const auto interrupted = process.tasks.back().interrupt();
    if (!interrupted && tid == process.pid) return Failure(interrupted.error());
    return true;
}

Result<void> wait_for_all(StoppedProcess& process, Deadline deadline) {
    for (size_t i = 0; i < process.tasks.size();) {
        Tracee& task = process.tasks[i];
        const auto stopped = task.wait_stopped(deadline);
        if (stopped) {
            ++i;
            continue;
        }
        // A thread other than the leader may end meanwhile; its remains are taken by then.
        const bool ended =
            ::kill(task.tid(), 0) != 0 || trace::status_field(task.tid(), "Tgid") != std::to_string(process.pid);
        if (task.tid() == process.pid || !ended) return stopped;
        task.forget();
        process.tasks.erase(process.tasks.begin() + static_cast<std::ptrdiff_t>(i));
    }
    return {};
}

Result<StoppedProcess> seize_once(pid_t pid, Deadline deadline, unsigned long options) {
    StoppedProcess process;
    process.pid = pid;
    for (bool grown = true; grown;) {
        grown = false;
        std::unordered_set<pid_t> ours;
        for (const Tracee& task : process.tasks) ours.insert(task.tid());
        for (const pid_t tid : TRY(task_list(pid))) {
            if (ours.contains(tid)) continue;
            if (TRY(take(process, tid, options))) grown = true;
        }
        // Threads that run can make threads: the list counts only when all that it has are stopped.
        TRY(wait_for_all(process, deadline));
    }
    if (process.tasks.empty() || process.tasks.front().tid() != pid)
        return fail(fmt::format("process {} is gone", pid));
    // The order that /proc lists tasks in, whenever they were found.
    std::sort(process.tasks.begin() + 1, process.tasks.end(), [](const Tracee& a, const Tracee& b) { return a.tid() < b.tid(); });
    return process;
}

Result<bool> any_inside_executor(const StoppedProcess& process) {
    const Places places = TRY(find_executors(process.pid));
    return std::any_of(process.tasks.begin(), process.tasks.end(), [&](const Tracee& task) {
        return places.hold(task.tid(), executor::instruction_pointer(task.at_stop()));
    });
}

}  // namespace

Result<StoppedProcess> seize_process(pid_t pid, Deadline deadline, unsigned long options) {
    if (const auto tgid = trace::status_field(pid, "Tgid"); tgid && *tgid != std::to_string(pid))
        return fail(fmt::format("{} is a thread of process {}", pid, *tgid), "give the number of the process");
    for (;;) {
        StoppedProcess process = TRY(seize_once(pid, deadline, options));
        if (!TRY(any_inside_executor(process))) return process;
        release_process(process);
        if (deadline.passed())
            return fail(fmt::format("process {} is still busy with an earlier, killed migration", pid), "try again");
        // An executor whose agent died is on its way out; nothing reports its end.
        constexpr timespec moment{0, 1'000'000};
        ::nanosleep(&moment, nullptr);
    }
}

void release_process(StoppedProcess& process) {
    // The leader last: its end is reported only when all its threads were buried.
    while (!process.tasks.empty()) {
        Tracee& task = process.tasks.back();
        const pid_t tid = task.tid();
        if (tid != 0 && !task.release()) {
            task.forget();
            trace::bury(tid);
        }
        process.tasks.pop_back();
    }
}

Result<void> check_seccomp(pid_t pid) {
    for (const pid_t tid : TRY(task_list(pid))) {
        const auto mode = trace::status_field(tid, "Seccomp");
        if (mode && *mode != "0")
            return unsupported(fmt::format("task {} has a seccomp {}", tid, *mode == "1" ? "strict mode" : "filter"),
                               "start it without seccomp (containers: --security-opt seccomp=unconfined)");
    }
    return {};
}

}  // namespace godwit
