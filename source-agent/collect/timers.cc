#include "source-agent/collect/timers.h"

#include <fmt/format.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstring>
#include <ctime>
#include <sstream>

#include "common/base/file.h"
#include "common/kernel/machine.h"
#include "common/kernel/proc.h"

namespace godwit {
namespace {

constexpr int64_t second_ns = 1'000'000'000;
constexpr int64_t second_us = 1'000'000;

int64_t nanoseconds(const timespec& time) {
    return time.tv_sec * second_ns + time.tv_nsec;
}

uint32_t notification(std::string_view how, bool to_thread) {
    if (how == "none") return SIGEV_NONE;
    if (how == "thread") return SIGEV_THREAD;
    if (how != "signal") return unknown_notification;
    return to_thread ? SIGEV_THREAD_ID : SIGEV_SIGNAL;
}

void parse_line(const std::string& line, image::PosixTimer& timer) {
    int signal = 0, clock = 0, target = 0;
    unsigned long value = 0;
    char how[32] = {}, whom[8] = {};
    if (std::sscanf(line.c_str(), "signal: %d/%lx", &signal, &value) == 2) {
        timer.set_signal(static_cast<uint32_t>(signal));
        timer.set_value(value);
    } else if (std::sscanf(line.c_str(), "notify: %31[a-z]/%7[a-z].%d", how, whom, &target) == 3) {
        const bool to_thread = std::string_view(whom) == "tid";
        timer.set_notify(notification(how, to_thread));
        timer.set_thread(to_thread ? target : 0);
    } else if (std::sscanf(line.c_str(), "ClockID: %d", &clock) == 1) {
        timer.set_clock(clock);
    }
}

void read_interval_timer(int which, const itimerval& value, image::Process& out) {
    const int64_t interval = value.it_interval.tv_sec * second_us + value.it_interval.tv_usec;
    int64_t left = value.it_value.tv_sec * second_us + value.it_value.tv_usec;
    // A periodic timer whose signal is pending stands still until that is delivered: it goes on by a whole interval.
    if (left == 0) left = interval;
    if (left == 0) return;
    image::IntervalTimer& timer = *out.add_interval_timers();
    timer.set_which(static_cast<uint32_t>(which));
    timer.set_value_us(left);
    timer.set_interval_us(interval);
}

std::vector<siginfo_t> all_pending(const image::Process& process) {
    std::vector<siginfo_t> out;
    const auto add = [&](const image::SignalInfo& info) {
        siginfo_t one{};
        std::memcpy(&one, info.siginfo().data(), std::min(info.siginfo().size(), sizeof one));
        out.push_back(one);
    };
    for (const auto& info : process.shared_pending()) add(info);
    for (const auto& task : process.tasks())
        for (const auto& info : task.pending()) add(info);
    return out;
}

}  // namespace

Result<std::vector<image::PosixTimer>> list_timers(pid_t pid) {
    std::istringstream lines(TRY(read_file(fmt::format("/proc/{}/timers", pid))));
    std::vector<image::PosixTimer> out;
    for (std::string line; std::getline(lines, line);) {
        unsigned id = 0;
        if (std::sscanf(line.c_str(), "ID: %u", &id) == 1) {
            out.emplace_back().set_id(id);
            out.back().set_notify(unknown_notification);
        } else if (!out.empty()) {
            parse_line(line, out.back());
        }
    }
    return out;
}

// Negative clocks hold a PID and a kind, or a descriptor and the number 3 (include/linux/posix-timers.h). Of CPU time only
// the tree's own exists at the destination, so another process's is refused.
std::optional<Problem> check_timer(pid_t pid, const image::PosixTimer& timer) {
    const auto refusal = [&](std::string_view why, const char* hint) {
        return Problem{fmt::format("POSIX timer {} of pid {} {}", timer.id(), pid, why), hint, ExitCode::unsupported, 0};
    };
    if (timer.notify() == unknown_notification) return refusal("notifies in a way that is not known", "it cannot be carried");
    if (timer.clock() >= 0) return {};
    constexpr int kind_mask = 7, descriptor_kind = 3, per_thread = 4;
    if ((timer.clock() & kind_mask & ~per_thread) == descriptor_kind) return refusal("uses the clock of a device", "it cannot be carried");
    const pid_t whose = ~(timer.clock() >> 3);
    if (whose == 0) return {};
    const auto tasks = read_tasks(pid);
    if (tasks && std::find(tasks->begin(), tasks->end(), whose) != tasks->end()) return {};
    return refusal(fmt::format("uses the CPU time of pid {}", whose), "it cannot be carried");
}

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
    out.set_timers_read_ns(now_ns(CLOCK_MONOTONIC));
    TRY(subject.remote->run(batch));
    for (size_t i = 0; i < timers.size(); ++i) {
        const auto value = batch.read<itimerspec>(values[i]);
        timers[i].set_remaining_ns(nanoseconds(value.it_value));
        timers[i].set_interval_ns(nanoseconds(value.it_interval));
        timers[i].set_overrun(static_cast<uint32_t>(batch.result_of(overruns[i])));
        *out.add_posix_timers() = timers[i];
    }
    for (int which = 0; which < 3; ++which)
        read_interval_timer(which, batch.read<itimerval>(intervals[static_cast<size_t>(which)]), out);
    return {};
}

void settle_timers(image::Process& process, int64_t now_ns) {
    const int64_t passed = now_ns - process.timers_read_ns();
    const auto pending = all_pending(process);
    // si_timerid names the timer.
    for (image::PosixTimer& timer : *process.mutable_posix_timers()) {
        const bool fired = std::any_of(pending.begin(), pending.end(), [&](const siginfo_t& info) {
            return info.si_code == SI_TIMER && info.si_timerid == static_cast<int>(timer.id());
        });
        if (fired && timer.interval_ns() == 0 && timer.remaining_ns() <= passed) timer.set_remaining_ns(0);
    }
    // SIGALRM from the kernel is the real-time timer's; the other two stand still while nothing runs.
    const bool alarm = std::any_of(pending.begin(), pending.end(),
                                   [](const siginfo_t& info) { return info.si_signo == SIGALRM && info.si_code == SI_KERNEL; });
    auto& timers = *process.mutable_interval_timers();
    for (int i = 0; alarm && i < timers.size(); ++i) {
        if (timers[i].which() != ITIMER_REAL || timers[i].value_us() * 1000 > passed) continue;
        if (timers[i].interval_us() != 0)
            timers[i].set_value_us(timers[i].interval_us());
        else
            timers.DeleteSubrange(i, 1);
        break;
    }
}

}  // namespace godwit
