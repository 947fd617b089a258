#include <fmt/format.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <csignal>
#include <cstring>

#include "dest-agent/restore/parts.h"

namespace godwit {
namespace {

constexpr uint32_t deadline_policy = 6;

// sched_setattr(2), first version.
struct SchedulingAttributes {
    uint32_t size;
    uint32_t policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

std::string cpu_list(const std::string& cpus) {
    std::string text;
    for (size_t cpu = 0; cpu < cpus.size() * 8; ++cpu)
        if ((cpus[cpu / 8] >> (cpu % 8)) & 1) text += fmt::format("{}{}", text.empty() ? "" : ",", cpu);
    return text;
}

// The kernel cuts a wish down to the CPUs that are there; a program that asked for certain ones must have all.
Result<void> restore_affinity(pid_t tid, const std::string& wanted) {
    if (wanted.empty()) return {};
    std::string now(std::max<size_t>(wanted.size(), 8192 / 8), '\0');
    const auto get = [&] {
        const long size = ::syscall(SYS_sched_getaffinity, tid, now.size(), now.data());
        if (size >= 0) std::fill(now.begin() + size, now.end(), '\0');
        return size >= 0;
    };
    if (!get()) return fail_errno(fmt::format("affinity of task {}", tid));
    std::string padded = wanted;
    padded.resize(now.size(), '\0');
    if (now == padded) return {};
    const bool set = ::syscall(SYS_sched_setaffinity, tid, wanted.size(), wanted.data()) == 0;
    if (!set && errno != EINVAL) return fail_errno(fmt::format("cannot set the affinity of task {}", tid));
    if (!get()) return fail_errno(fmt::format("affinity of task {}", tid));
    if (now == padded) return {};
    for (size_t i = 0; i < padded.size(); ++i) padded[i] = static_cast<char>(padded[i] & ~now[i]);
    return unsupported(fmt::format("task {} is bound to CPUs that it cannot have here: {}", tid, cpu_list(padded)),
                       "change it with taskset before, or the destination's cpuset");
}

Result<void> restore_scheduling(pid_t tid, const image::Scheduling& wanted) {
    TRY(restore_affinity(tid, wanted.affinity()));
    if (wanted.policy() == deadline_policy)
        return unsupported(fmt::format("task {} has the scheduling policy SCHED_DEADLINE", tid), "change it with chrt before");
    if (::setpriority(PRIO_PROCESS, static_cast<id_t>(tid), wanted.nice()) != 0)
        return fail_errno(errno, fmt::format("cannot set the nice value of task {}", tid), "it needs CAP_SYS_NICE");
    if (wanted.policy() != SCHED_NORMAL || wanted.reset_on_fork()) {
        const SchedulingAttributes attributes{sizeof attributes, wanted.policy(), wanted.reset_on_fork() ? SCHED_FLAG_RESET_ON_FORK : 0u,
                                              wanted.nice(), wanted.priority(), 0, 0, 0};
        if (::syscall(SYS_sched_setattr, tid, &attributes, 0) != 0)
            return fail_errno(errno, fmt::format("cannot give task {} scheduling policy {}", tid, wanted.policy()), "it needs CAP_SYS_NICE");
    }
    constexpr int one_task = 1;  // IOPRIO_WHO_PROCESS
    if (wanted.io_priority() != 0 && ::syscall(SYS_ioprio_set, one_task, tid, wanted.io_priority()) != 0)
        return fail_errno(fmt::format("cannot set the I/O priority of task {}", tid));
    return {};
}

void add_own(NamedCalls& calls, const image::Process& process, const image::Task& wanted) {
    calls.call("set the name", SYS_prctl, PR_SET_NAME, calls.batch().text(wanted.name().substr(0, 15)));
    calls.call("set the personality", SYS_personality, process.personality());
    calls.call("set the tid address", SYS_set_tid_address, wanted.clear_child_tid());
    if (wanted.robust_list() != 0)
        calls.call("set the robust list", SYS_set_robust_list, wanted.robust_list(), wanted.robust_list_size());
    if (wanted.rseq() != 0)
        calls.call("register rseq", SYS_rseq, wanted.rseq(), wanted.rseq_size(), wanted.rseq_flags(), wanted.rseq_signature());
    if (wanted.scheduling().timer_slack_ns() != 0)
        calls.call("set the timer slack", SYS_prctl, PR_SET_TIMERSLACK, wanted.scheduling().timer_slack_ns());
    if ((wanted.alternate_stack_flags() & SS_DISABLE) == 0 && wanted.alternate_stack_size() != 0) {
        stack_t stack{};
        stack.ss_sp = reinterpret_cast<void*>(wanted.alternate_stack());
        // That it is in use is what the stack pointer says.
        stack.ss_flags = static_cast<int>(wanted.alternate_stack_flags() & ~static_cast<uint32_t>(SS_ONSTACK));
        stack.ss_size = wanted.alternate_stack_size();
        calls.call("set the alternate signal stack", SYS_sigaltstack, calls.batch().bytes(&stack, sizeof stack), 0);
    }
}

// A task may tell itself anything about a signal; others may not claim to be the kernel. SIGKILL and SIGSTOP cannot be blocked and
// so are never left pending in a task that was stopped by us.
Result<void> add_pending(NamedCalls& calls, pid_t tid, const google::protobuf::RepeatedPtrField<image::SignalInfo>& pending, bool shared,
                         pid_t pid) {
    for (const image::SignalInfo& signal : pending) {
        siginfo_t info{};
        if (signal.siginfo().size() != sizeof info) return peer_failed(fmt::format("a pending signal of task {} has no siginfo_t", tid));
        std::memcpy(&info, signal.siginfo().data(), sizeof info);
        if (info.si_signo < 1 || info.si_signo >= NSIG || info.si_signo == SIGKILL || info.si_signo == SIGSTOP)
            return peer_failed(fmt::format("signal {} is pending in task {}", info.si_signo, tid));
        const auto content = calls.batch().bytes(&info, sizeof info);
        const std::string what = fmt::format("queue signal {}", info.si_signo);
        if (shared)
            calls.call(what, SYS_rt_sigqueueinfo, pid, info.si_signo, content);
        else
            calls.call(what, SYS_rt_tgsigqueueinfo, pid, tid, info.si_signo, content);
    }
    return {};
}

}  // namespace

Result<void> restore_task(Skeleton& skeleton, Tracee& task, const image::Process& process, const image::Task& wanted) {
    const pid_t tid = task.tid();
    TRY(restore_scheduling(tid, wanted.scheduling()));
    NamedCalls calls;
    add_own(calls, process, wanted);
    TRY(add_pending(calls, tid, wanted.pending(), false, process.pid()));
    if (tid == process.pid()) TRY(add_pending(calls, tid, process.shared_pending(), true, process.pid()));
    TRY(add_credentials(calls, tid, wanted.credentials()));
    // Both are reset by a change of credentials.
    calls.call("set the parent death signal", SYS_prctl, PR_SET_PDEATHSIG, wanted.parent_death_signal());
    if (tid == process.pid()) calls.call("set PR_SET_DUMPABLE", SYS_prctl, PR_SET_DUMPABLE, process.dumpable() == 1 && !process.not_dumpable() ? 1 : 0, 0, 0, 0);
    return calls.run_in(skeleton.remote(), task);
}

}  // namespace godwit
