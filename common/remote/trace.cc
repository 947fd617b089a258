#include "common/remote/trace.h"

#include <fmt/format.h>
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <ctime>

#include "common/base/fault.h"
#include "common/base/file.h"

namespace godwit::trace {

Failure gone(pid_t tid) {
    return fail(fmt::format("task {} is gone", tid), "it was killed or ended while it was worked on");
}

Result<void> request(const char* name, int request, pid_t tid, uint64_t address, uint64_t data) {
    fault_point(name);
    if (::ptrace(static_cast<__ptrace_request>(request), tid, address, data) >= 0) return {};
    if (errno == ESRCH) return gone(tid);
    return fail_errno(fmt::format("{} of task {}", name, tid));
}

void bury(pid_t tid) {
    for (const Deadline deadline = Deadline::in(milliseconds(1000)); !deadline.passed(); ::sched_yield())
        if (peek(tid).kind == Stop::Kind::gone) return;
}

Stop peek(pid_t tid) {
    siginfo_t info{};
    if (::waitid(P_PID, static_cast<id_t>(tid), &info, WSTOPPED | WEXITED | WNOHANG | WNOWAIT | __WALL) != 0)
        return {Stop::Kind::gone, 0};
    if (info.si_pid == 0) return {};
    if (info.si_code != CLD_TRAPPED) {
        // A dead task stays in /proc, and its process a zombie, until its tracer takes the remains. The exit status of
        // a child of ours belongs to whoever forked it.
        if (status_field(tid, "PPid") != std::to_string(::getpid()) || status_field(tid, "Tgid") != std::to_string(tid))
            ::waitid(P_PID, static_cast<id_t>(tid), &info, WEXITED | WNOHANG | __WALL);
        return {Stop::Kind::gone, 0};
    }
    const int signal = info.si_status & 0xff;
    const int event = info.si_status >> 8;
    if (event == PTRACE_EVENT_STOP) return {signal == SIGTRAP ? Stop::Kind::interrupt : Stop::Kind::group, signal};
    if (event != 0) return {Stop::Kind::event, event};
    if (signal == (SIGTRAP | 0x80)) return {Stop::Kind::call, 0};
    return {Stop::Kind::signal, signal};
}

Result<Stop> wait(pid_t tid, Deadline deadline) {
    constexpr int busy_looks = 50;
    constexpr long longest = 1'000'000;
    long pause = 20'000;
    for (int looks = 0;; ++looks) {
        const Stop stop = peek(tid);
        if (stop.kind == Stop::Kind::gone) return gone(tid);
        if (stop.kind != Stop::Kind::running) return stop;
        if (looks < busy_looks) {
            ::sched_yield();
            continue;
        }
        if (deadline.passed()) {
            const std::string state = status_field(tid, "State").value_or("gone");
            return fail(fmt::format("task {} does not stop (state {})", tid, state),
                        state.starts_with("D")
                            ? "it waits in the kernel: for its vfork child, a disk or a network file system"
                            : "the host may be overloaded");
        }
        // A dead leader is reported only when its last thread was buried.
        if (pause == longest && status_field(tid, "State").value_or("X").find_first_of("ZX") == 0) return gone(tid);
        const timespec time{0, pause};
        ::nanosleep(&time, nullptr);
        pause = std::min(pause * 2, longest);
    }
}

std::optional<std::string> status_field(pid_t tid, const std::string& field) {
    const auto text = read_file(fmt::format("/proc/{}/status", tid));
    if (!text) return std::nullopt;
    const std::string key = "\n" + field + ":";
    size_t at = text->find(key);
    if (at == std::string::npos) return std::nullopt;
    at = text->find_first_not_of(" \t", at + key.size());
    return text->substr(at, text->find('\n', at) - at);
}

}  // namespace godwit::trace
