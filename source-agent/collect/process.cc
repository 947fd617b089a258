// What a process holds besides memory and descriptors. dest-agent/restore/process is the other half.
#include <fmt/format.h>
#include <linux/prctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/base/file.h"
#include "common/kernel/machine.h"
#include "common/kernel/proc.h"
#include "source-agent/collect/checks.h"
#include "source-agent/collect/collect.h"
#include "source-agent/collect/task.h"
#include "source-agent/collect/timers.h"


namespace godwit {
namespace {

constexpr int last_signal = 64;

// What the distribution's headers lack.
constexpr int get_memory_merge = 68;          // prctl(2), Linux 6.4
constexpr int membarrier_registrations = 512; // membarrier(2), Linux 6.3
constexpr int get_cpuid = 0x1011;             // arch_prctl(2)
constexpr int get_untag_mask = 0x4001;        // arch_prctl(2), Linux 6.4

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

// What is refused but cannot be seen from outside, each with the value that a program starts with. A kernel that does
// not know a question knows no other value, but for the registrations of membarrier(2), which can only be asked for since
// Linux 6.3.
class InsideChecks {
  public:
    explicit InsideChecks(Batch& batch) : batch_(batch), untag_mask_(batch.out(sizeof(uint64_t))), ldt_(batch.out(8)) {
        ask("merges all its memory (PR_SET_MEMORY_MERGE)", 0, SYS_prctl, get_memory_merge, 0, 0, 0, 0);
        ask("has chosen how it hears of memory errors (PR_MCE_KILL)", PR_MCE_KILL_DEFAULT, SYS_prctl, PR_MCE_KILL_GET, 0, 0, 0, 0);
        ask("is part of the I/O path (PR_SET_IO_FLUSHER)", 0, SYS_prctl, PR_GET_IO_FLUSHER, 0, 0, 0, 0);
        ask("has registered for membarrier(2)", 0, SYS_membarrier, membarrier_registrations, 0, 0);
        ask("has made CPUID fail (ARCH_SET_CPUID)", 1, SYS_arch_prctl, get_cpuid, 0);
        ask("has segments of its own (modify_ldt)", 0, SYS_modify_ldt, 0, ldt_, 8);
        ask("", 0, SYS_arch_prctl, get_untag_mask, untag_mask_);
    }
    Result<void> judge(pid_t pid) const {
        for (const Question& question : questions_) {
            const int64_t result = batch_.result_of(question.call);
            if (result >= 0 && result != question.usual)
                return unsupported(fmt::format("pid {} {}", pid, question.what), "this is not carried yet");
        }
        const auto mask = batch_.read<uint64_t>(untag_mask_);
        if (batch_.result_of(questions_.back().call) == 0 && mask != UINT64_MAX)
            return unsupported(fmt::format("pid {} puts tags into addresses (ARCH_ENABLE_TAGGED_ADDR)", pid), "this is not carried yet");
        return {};
    }

  private:
    struct Question {
        const char* what;
        int64_t usual;
        Batch::Call call;
    };
    template <class... Arguments>
    void ask(const char* what, int64_t usual, long number, Arguments... arguments) {
        questions_.push_back({what, usual, batch_.call_may_fail(number, arguments...)});
    }

    Batch& batch_;
    Batch::Operand untag_mask_;
    Batch::Operand ldt_;
    std::vector<Question> questions_;
};

// prlimit(2) of another uid's task needs CAP_SYS_RESOURCE; the process asks for itself, which needs nothing.
Result<void> collect_inside(Subject& subject, image::Process& out) {
    const pid_t pid = subject.process->pid;
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
    const InsideChecks checks(batch);
    TRY(subject.remote->run(batch));
    TRY(checks.judge(pid));
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
    if (batch.result_of(thp) > 1)  // flags since Linux 6.18
        return unsupported(fmt::format("pid {} has disabled huge pages with exceptions (PR_SET_THP_DISABLE)", pid), "this is not carried yet");
    return {};
}

// What appeared since the survey. What a stopped tree cannot have got (a tracer, say) is not asked again.
Result<void> check_again(StoppedProcess& process) {
    Problems problems;
    const Stat stat = TRY(read_stat(process.pid));
    TRY(check_process(process.pid, stat, problems));
    for (const Tracee& task : process.tasks) {
        if (task.group_stopped())
            return unsupported(fmt::format("tid {} of pid {} is stopped", task.tid(), process.pid),
                               "let it go on first: kill -CONT " + std::to_string(process.pid));
        const Status status = TRY(read_status(process.pid, task.tid()));
        TRY(check_task(process.pid, task.tid(), status, problems));
    }
    if (!problems.empty()) return Failure(problems.front());
    return {};
}

// struct prctl_mm_map from proc(5): stat, auxv; the current end of the heap is known to the process alone.
Result<void> collect_memory_map(Subject& subject, image::MemoryMap& out) {
    const pid_t pid = subject.process->pid;
    const Stat stat = TRY(read_stat(pid));
    out.set_start_code(stat.start_code);
    out.set_end_code(stat.end_code);
    out.set_start_data(stat.start_data);
    out.set_end_data(stat.end_data);
    out.set_start_brk(stat.start_brk);
    out.set_brk(static_cast<uint64_t>(TRY(subject.remote->call(SYS_brk, 0))));
    out.set_start_stack(stat.start_stack);
    out.set_arg_start(stat.arg_start);
    out.set_arg_end(stat.arg_end);
    out.set_env_start(stat.env_start);
    out.set_env_end(stat.env_end);
    out.set_auxv(TRY(read_file(fmt::format("/proc/{}/auxv", pid))));
    return {};
}

Result<std::string> locked_memory(pid_t pid) { return status_value(TRY(read_status(pid, pid)), "VmLck"); }

// Nothing tells of mlockall(MCL_FUTURE) but what becomes of a page that is mapped now. If we die before it is unmapped, the
// executor does it.
Result<void> check_future_locks(Subject& subject) {
    constexpr uint64_t size = 4096;
    const pid_t pid = subject.process->pid;
    const std::string before = TRY(locked_memory(pid));
    const auto page = static_cast<uint64_t>(TRY(subject.remote->call(SYS_mmap, 0, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, static_cast<uint64_t>(-1), 0)));
    const int undo = TRY(subject.remote->undo_at_death(SYS_munmap, page, size));
    const std::string after = TRY(locked_memory(pid));
    TRY(subject.remote->forget_undo(undo));
    TRY(subject.remote->call(SYS_munmap, page, size));
    if (after == before) return {};
    return unsupported(fmt::format("pid {} locks all memory that it will map (mlockall, MCL_FUTURE)", pid), "this is not carried yet");
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
    TRY(check_again(*subject.process));
    TRY(collect_outside(subject.process->pid, out));
    TRY(collect_inside(subject, out));
    TRY(collect_memory_map(subject, *out.mutable_memory_map()));
    TRY(check_future_locks(subject));
    TRY(collect_timers(subject, out));
    for (Tracee& task : subject.process->tasks) *out.add_tasks() = TRY(collect_task(subject, task));
    return out;
}

Result<void> collect_stopped(StoppedProcess& process, image::Process& out) {
    for (image::SignalInfo& info : TRY(peek_signals(process.pid, process.pid, true))) *out.add_shared_pending() = std::move(info);
    for (size_t i = 0; i < process.tasks.size(); ++i)
        TRY(collect_stopped_task(process.pid, process.tasks[i], *out.mutable_tasks(static_cast<int>(i))));
    settle_timers(out, now_ns(CLOCK_MONOTONIC));
    return {};
}

}  // namespace godwit
