// What a process holds besides memory and descriptors. dest-agent/restore/process is the other half.
#include <fmt/format.h>
#include <linux/prctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstring>
#include <sstream>

#include "common/base/file.h"
#include "common/base/text.h"
#include "common/kernel/proc.h"
#include "source-agent/collect/collect.h"
#include "source-agent/collect/task.h"

#ifndef PR_GET_MDWE
#define PR_GET_MDWE 66  // Linux 6.3
#endif

namespace godwit {
namespace {

constexpr int last_signal = 64;
constexpr int64_t second_ns = 1'000'000'000;

// struct sigaction as the kernel has it on x86-64 (rt_sigaction(2)).
struct KernelAction {
    uint64_t handler, flags, restorer, mask;
};

void collect_actions(Batch& batch, std::vector<Batch::Operand>& actions) {
    for (int signal = 1; signal <= last_signal; ++signal) {
        actions.push_back(batch.out(sizeof(KernelAction)));
        batch.call(SYS_rt_sigaction, signal, 0, actions.back(), sizeof(uint64_t));
    }
}

void read_actions(const Batch& batch, const std::vector<Batch::Operand>& actions, image::Process& out) {
    for (int signal = 1; signal <= last_signal; ++signal) {
        const auto action = batch.read<KernelAction>(actions[static_cast<size_t>(signal) - 1]);
        if (action.handler == 0 && action.flags == 0 && action.mask == 0) continue;  // SIG_DFL
        image::SignalAction& entry = *out.add_actions();
        entry.set_signal(static_cast<uint32_t>(signal));
        entry.set_handler(action.handler);
        entry.set_flags(action.flags);
        entry.set_restorer(action.restorer);
        entry.set_mask(action.mask);
    }
}

// /proc/PID/timers (proc(5), Linux 3.10) tells of each POSIX timer all but its times.
Result<std::vector<image::PosixTimer>> list_timers(pid_t pid) {
    std::istringstream lines(TRY(read_file(fmt::format("/proc/{}/timers", pid))));
    std::vector<image::PosixTimer> out;
    for (std::string line; std::getline(lines, line);) {
        unsigned id = 0;
        int clock = 0;
        char how[32] = {};
        char whom[8] = {};
        int target = 0;
        if (std::sscanf(line.c_str(), "ID: %u", &id) == 1) {
            out.emplace_back().set_id(id);
            continue;
        }
        if (out.empty()) continue;
        int signal = 0;
        unsigned long value = 0;
        if (std::sscanf(line.c_str(), "signal: %d/%lx", &signal, &value) == 2) {
            out.back().set_signal(static_cast<uint32_t>(signal));
            out.back().set_value(value);
        } else if (std::sscanf(line.c_str(), "notify: %31[a-z]/%7[a-z].%d", how, whom, &target) == 3) {
            const std::string_view name = how;
            if (name != "signal" && name != "none" && name != "thread")
                return unsupported(fmt::format("POSIX timer {} of pid {} notifies by \"{}\", which is not known", out.back().id(), pid, name));
            const bool to_thread = std::string_view(whom) == "tid";
            out.back().set_notify(name == "none" ? SIGEV_NONE : to_thread ? SIGEV_THREAD_ID : name == "thread" ? SIGEV_THREAD : SIGEV_SIGNAL);
            out.back().set_thread(to_thread ? target : 0);
        } else if (std::sscanf(line.c_str(), "ClockID: %d", &clock) == 1) {
            out.back().set_clock(clock);
        }
    }
    return out;
}

int64_t nanoseconds(const timespec& time) {
    return time.tv_sec * second_ns + time.tv_nsec;
}

// Times are what is left: a timer set for a moment of CLOCK_REALTIME goes on by what was left of it.
Result<void> collect_timers(Subject& subject, image::Process& out) {
    std::vector<image::PosixTimer> timers = TRY(list_timers(subject.process->pid));
    Batch batch;
    std::vector<Batch::Operand> values;
    std::vector<Batch::Call> overruns;
    for (const image::PosixTimer& timer : timers) {
        values.push_back(batch.out(sizeof(itimerspec)));
        batch.call(SYS_timer_gettime, timer.id(), values.back());
        overruns.push_back(batch.call(SYS_timer_getoverrun, timer.id()));
    }
    std::array<Batch::Operand, 3> intervals{batch.out(sizeof(itimerval)), batch.out(sizeof(itimerval)), batch.out(sizeof(itimerval))};
    for (int which = 0; which < 3; ++which) batch.call(SYS_getitimer, which, intervals[static_cast<size_t>(which)]);
    TRY(subject.remote->run(batch));
    for (size_t i = 0; i < timers.size(); ++i) {
        const auto value = batch.read<itimerspec>(values[i]);
        timers[i].set_remaining_ns(nanoseconds(value.it_value));
        timers[i].set_interval_ns(nanoseconds(value.it_interval));
        timers[i].set_overrun(static_cast<uint32_t>(batch.result_of(overruns[i])));
        *out.add_posix_timers() = timers[i];
    }
    for (int which = 0; which < 3; ++which) {
        const auto value = batch.read<itimerval>(intervals[static_cast<size_t>(which)]);
        if (value.it_value.tv_sec == 0 && value.it_value.tv_usec == 0) continue;
        image::IntervalTimer& timer = *out.add_interval_timers();
        timer.set_which(static_cast<uint32_t>(which));
        timer.set_value_us(value.it_value.tv_sec * 1'000'000 + value.it_value.tv_usec);
        timer.set_interval_us(value.it_interval.tv_sec * 1'000'000 + value.it_interval.tv_usec);
    }
    return {};
}

// prlimit(2) of another uid's task needs CAP_SYS_RESOURCE; the process asks for itself, which needs nothing.
Result<void> collect_inside(Subject& subject, image::Process& out) {
    Batch batch;
    std::vector<Batch::Operand> actions;
    collect_actions(batch, actions);
    std::vector<Batch::Operand> limits;
    for (int resource = 0; resource < RLIM_NLIMITS; ++resource) {
        limits.push_back(batch.out(sizeof(rlimit)));
        batch.call(SYS_prlimit64, 0, resource, 0, limits.back());
    }
    const auto subreaper = batch.out(sizeof(int));
    const auto dumpable = batch.call(SYS_prctl, PR_GET_DUMPABLE);
    const auto personality = batch.call(SYS_personality, 0xffffffffu);
    batch.call(SYS_prctl, PR_GET_CHILD_SUBREAPER, subreaper);
    const auto thp = batch.call(SYS_prctl, PR_GET_THP_DISABLE, 0, 0, 0, 0);
    const auto mdwe = batch.call_may_fail(SYS_prctl, PR_GET_MDWE, 0, 0, 0, 0);
    TRY(subject.remote->run(batch));
    read_actions(batch, actions, out);
    for (int resource = 0; resource < RLIM_NLIMITS; ++resource) {
        const auto value = batch.read<rlimit>(limits[static_cast<size_t>(resource)]);
        image::Limit& limit = *out.add_limits();
        limit.set_resource(static_cast<uint32_t>(resource));
        limit.set_soft(value.rlim_cur);
        limit.set_hard(value.rlim_max);
    }
    out.set_dumpable(static_cast<uint32_t>(batch.result_of(dumpable)));
    out.set_personality(static_cast<uint64_t>(batch.result_of(personality)));
    out.set_child_subreaper(batch.read<int>(subreaper) != 0);
    out.set_thp_disabled(batch.result_of(thp) != 0);
    if (batch.result_of(mdwe) > 0)
        return unsupported(fmt::format("pid {} denies itself writable and executable memory (PR_SET_MDWE)", subject.process->pid),
                           "this is not carried yet");
    return {};
}

Result<void> collect_outside(pid_t pid, image::Process& out) {
    const Stat stat = TRY(read_stat(pid));
    out.set_ppid(0);  // the parent is outside the tree
    out.set_pgid(stat.pgid);
    out.set_sid(stat.sid);
    out.set_umask(static_cast<uint32_t>(std::strtoul(status_value(TRY(read_status(pid, pid)), "Umask").c_str(), nullptr, 8)));
    out.set_working_directory(TRY(read_link(fmt::format("/proc/{}/cwd", pid))));
    out.set_oom_score_adj(std::atoi(TRY(read_file(fmt::format("/proc/{}/oom_score_adj", pid))).c_str()));
    out.set_core_filter(static_cast<uint32_t>(std::strtoul(TRY(read_file(fmt::format("/proc/{}/coredump_filter", pid))).c_str(), nullptr, 16)));
    return {};
}

}  // namespace

Result<image::Process> collect_process(Subject& subject) {
    image::Process out;
    out.set_pid(subject.pid_inside);
    TRY(collect_outside(subject.process->pid, out));
    TRY(collect_inside(subject, out));
    TRY(collect_timers(subject, out));
    for (Tracee& task : subject.process->tasks) *out.add_tasks() = TRY(collect_task(subject, task));
    return out;
}

Result<void> collect_stopped(StoppedProcess& process, image::Process& out) {
    for (image::SignalInfo& info : TRY(peek_signals(process.pid, true))) *out.add_shared_pending() = std::move(info);
    for (size_t i = 0; i < process.tasks.size(); ++i)
        TRY(collect_stopped_task(process.tasks[i], *out.mutable_tasks(static_cast<int>(i))));
    return {};
}

}  // namespace godwit
