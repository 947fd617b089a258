#include "source-agent/collect/task.h"

#include <fmt/format.h>
#include <linux/prctl.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <bit>
#include <csignal>

#include "common/base/fault.h"
#include "common/base/file.h"
#include "common/kernel/abi.h"
#include "common/kernel/proc.h"
#include "common/remote/syscall_restart.h"

namespace godwit {
namespace {

constexpr int io_priority_who_process = 1;  // ioprio_get(2)
constexpr uint64_t user_code_segment = 0x33;  // of 64-bit code
constexpr uint64_t user_data_segment = 0x2b;

// Segments other than the kernel's own for 64-bit code come from set_thread_area(2) or modify_ldt(2).
bool has_own_segments(const Registers& registers) {
    const auto flat = [](uint64_t selector) { return selector == 0 || selector == user_data_segment; };
    return !flat(registers.ds) || !flat(registers.es) || registers.fs != 0 || registers.gs != 0;
}

Result<void> collect_registers(Tracee& task, image::Task& out) {
    const Registers registers = for_elsewhere(task.at_stop());
    if (task.at_stop().cs != user_code_segment)
        return unsupported(fmt::format("tid {} runs 32-bit code", task.tid()), "only 64-bit programs are carried");
    if (has_own_segments(registers))
        return unsupported(fmt::format("tid {} uses segments of its own", task.tid()), "only plain 64-bit programs are carried");
    out.set_registers(&registers, sizeof registers);
    out.set_fs_base(registers.fs_base);
    out.set_gs_base(registers.gs_base);
    out.set_xstate(TRY(task.xstate()));
    out.set_signal_mask(task.mask_at_stop());
    return {};
}

Result<void> collect_robust_list(pid_t tid, image::Task& out) {
    uint64_t head = 0;
    size_t size = 0;
    if (::syscall(SYS_get_robust_list, tid, &head, &size) != 0) return fail_errno(fmt::format("cannot read the robust list of tid {}", tid));
    out.set_robust_list(head);
    out.set_robust_list_size(size);
    return {};
}

Result<void> collect_rseq(const Tracee& task, image::Task& out) {
    kernel::RseqConfiguration rseq{};
    fault_point("ptrace:rseq");
    if (::ptrace(static_cast<__ptrace_request>(kernel::PTRACE_GET_RSEQ_CONFIGURATION_), task.tid(), sizeof rseq, &rseq) < 0)
        return fail_errno(fmt::format("cannot read the rseq registration of tid {}", task.tid()));
    out.set_rseq(rseq.rseq_abi_pointer);
    out.set_rseq_size(rseq.rseq_abi_size);
    out.set_rseq_signature(rseq.signature);
    out.set_rseq_flags(rseq.flags);
    return {};
}

// ptrace(2), Linux 6.4: PR_SET_SYSCALL_USER_DISPATCH. Before, it cannot be seen.
struct SyscallDispatch {
    uint64_t mode, selector, offset, size;
};
constexpr long get_syscall_dispatch = 0x4211;
constexpr long io_permissions = 0x201;  // NT_386_IOPERM, of ioperm(2)

// What is refused but only ptrace shows.
Result<void> check_with_ptrace(const Tracee& task) {
    SyscallDispatch dispatch{};
    fault_point("ptrace:dispatch");
    if (::ptrace(static_cast<__ptrace_request>(get_syscall_dispatch), task.tid(), sizeof dispatch, &dispatch) == 0 && dispatch.mode != 0)
        return unsupported(fmt::format("tid {} catches its own system calls (PR_SET_SYSCALL_USER_DISPATCH)", task.tid()), "this is not carried yet");
    std::vector<std::byte> ports(65536 / 8);
    iovec area{ports.data(), ports.size()};
    fault_point("ptrace:ioperm");
    if (::ptrace(PTRACE_GETREGSET, task.tid(), io_permissions, &area) == 0 && area.iov_len != 0)
        return unsupported(fmt::format("tid {} may use I/O ports (ioperm)", task.tid()), "this is not carried yet");
    return {};
}

// What only the task itself can tell.
// An io_uring that has neither descriptor nor mapping: registered with the task by its number (Linux 5.18; without ever having had
// a descriptor since 6.5). To enter it with nothing to do has no effect.
constexpr unsigned most_registered_rings = 16;
Batch::Call enter_ring(Batch& batch, unsigned number) {
    constexpr unsigned by_registered_number = 1u << 4;  // IORING_ENTER_REGISTERED_RING
    return batch.call_may_fail(SYS_io_uring_enter, number, 0, 0, by_registered_number, 0, 0);
}

// `first`: what entering ring 0 gave. EINVAL: the task has never used io_uring, or the kernel does not know the flag.
Result<void> check_rings(Subject& subject, Tracee& task, int64_t first) {
    if (first == -EINVAL || first == -ENOSYS || first == -EPERM) return {};
    bool found = first != -EBADF;
    Batch batch;
    for (unsigned number = 1; number < most_registered_rings; ++number) enter_ring(batch, number);
    if (!found) TRY(run_in_task(subject, task, batch));
    for (unsigned i = 0; !found && i < batch.size(); ++i) found = batch.result_of(i) != -EBADF;
    if (!found) return {};
    return unsupported(fmt::format("tid {} of pid {} has a registered io_uring instance", task.tid(), subject.process->pid),
                       "this kind is not carried yet: have the program close it");
}

Result<void> collect_from_inside(Subject& subject, Tracee& task, image::Task& out, image::Credentials& credentials) {
    Batch batch;
    const auto stack = batch.out(sizeof(stack_t));
    const auto tid_address = batch.out(sizeof(uint64_t));
    const auto death_signal = batch.out(sizeof(int));
    const auto time_stamp = batch.out(sizeof(int));
    batch.call(SYS_sigaltstack, 0, stack);
    batch.call(SYS_prctl, PR_GET_TID_ADDRESS, tid_address);
    batch.call(SYS_prctl, PR_GET_PDEATHSIG, death_signal);
    const auto securebits = batch.call(SYS_prctl, PR_GET_SECUREBITS);
    batch.call(SYS_prctl, PR_GET_TSC, time_stamp);
    const auto ring = enter_ring(batch, 0);
    TRY(run_in_task(subject, task, batch));
    TRY(check_rings(subject, task, batch.result_of(ring)));
    const auto alternate = batch.read<stack_t>(stack);
    out.set_alternate_stack(reinterpret_cast<uint64_t>(alternate.ss_sp));
    out.set_alternate_stack_size(alternate.ss_size);
    // Whether it is on that stack follows from its stack pointer and cannot be set.
    out.set_alternate_stack_flags(static_cast<uint32_t>(alternate.ss_flags) & ~static_cast<uint32_t>(SS_ONSTACK));
    out.set_clear_child_tid(batch.read<uint64_t>(tid_address));
    out.set_parent_death_signal(static_cast<uint32_t>(batch.read<int>(death_signal)));
    credentials.set_securebits(static_cast<uint32_t>(batch.result_of(securebits)));
    if (batch.read<int>(time_stamp) != PR_TSC_ENABLE)
        return unsupported(fmt::format("tid {} has made RDTSC fail (PR_SET_TSC)", task.tid()), "this is not carried yet");
    return {};
}

Result<void> collect_credentials(pid_t tid, const Status& status, image::Credentials& out) {
    const auto uids = status_ids(status, "Uid");
    const auto gids = status_ids(status, "Gid");
    if (uids.size() != 4 || gids.size() != 4) return fail(fmt::format("cannot read the credentials of tid {}", tid));
    out.set_uid(static_cast<uint32_t>(uids[0]));
    out.set_euid(static_cast<uint32_t>(uids[1]));
    out.set_suid(static_cast<uint32_t>(uids[2]));
    out.set_fsuid(static_cast<uint32_t>(uids[3]));
    out.set_gid(static_cast<uint32_t>(gids[0]));
    out.set_egid(static_cast<uint32_t>(gids[1]));
    out.set_sgid(static_cast<uint32_t>(gids[2]));
    out.set_fsgid(static_cast<uint32_t>(gids[3]));
    for (const int group : status_ids(status, "Groups")) out.add_groups(static_cast<uint32_t>(group));
    out.set_inheritable(status_hex(status, "CapInh"));
    out.set_permitted(status_hex(status, "CapPrm"));
    out.set_effective(status_hex(status, "CapEff"));
    out.set_bounding(status_hex(status, "CapBnd"));
    out.set_ambient(status_hex(status, "CapAmb"));
    out.set_no_new_privileges(status_value(status, "NoNewPrivs") == "1");
    return {};
}

// sched_setattr(2), Linux 3.14.
struct SchedulingAttributes {
    uint32_t size;
    uint32_t policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

Result<void> collect_scheduling(pid_t tid, image::Scheduling& out) {
    SchedulingAttributes attributes{};
    if (::syscall(SYS_sched_getattr, tid, &attributes, sizeof attributes, 0) != 0)
        return fail_errno(fmt::format("cannot read the scheduling of tid {}", tid));
    out.set_policy(attributes.policy);
    out.set_nice(attributes.nice);
    out.set_priority(attributes.priority);
    out.set_reset_on_fork((attributes.flags & 1) != 0);
    char cpus[1024];
    const long size = ::syscall(SYS_sched_getaffinity, tid, sizeof cpus, cpus);
    if (size < 0) return fail_errno(fmt::format("cannot read the CPU affinity of tid {}", tid));
    // A task that may use every CPU of this host is not bound to them: another host has others.
    long allowed = 0;
    for (long i = 0; i < size; ++i) allowed += std::popcount(static_cast<unsigned char>(cpus[i]));
    if (allowed < ::sysconf(_SC_NPROCESSORS_ONLN)) out.set_affinity(cpus, static_cast<size_t>(size));
    const long priority = ::syscall(SYS_ioprio_get, io_priority_who_process, tid);
    if (priority < 0) return fail_errno(fmt::format("cannot read the I/O priority of tid {}", tid));
    out.set_io_priority(static_cast<uint32_t>(priority));
    const std::string slack = TRY(read_file(fmt::format("/proc/{}/timerslack_ns", tid)));
    out.set_timer_slack_ns(std::strtoull(slack.c_str(), nullptr, 10));
    return {};
}

}  // namespace

Result<std::vector<image::SignalInfo>> peek_signals(pid_t pid, pid_t tid, bool shared) {
    std::vector<image::SignalInfo> out;
    uint64_t undescribed = status_hex(TRY(read_status(pid, tid)), shared ? "ShdPnd" : "SigPnd");
    siginfo_t found[32];
    for (;;) {
        __ptrace_peeksiginfo_args arguments{out.size(), shared ? static_cast<unsigned>(PTRACE_PEEKSIGINFO_SHARED) : 0u, std::size(found)};
        fault_point("ptrace:peeksiginfo");
        const long count = ::ptrace(PTRACE_PEEKSIGINFO, tid, &arguments, found);
        if (count < 0) return fail_errno(fmt::format("cannot read the pending signals of tid {}", tid));
        for (long i = 0; i < count; ++i) {
            out.emplace_back().set_siginfo(&found[i], sizeof found[i]);
            undescribed &= ~(1ull << (found[i].si_signo - 1));
        }
        if (count < static_cast<long>(std::size(found))) break;
    }
    for (int signal = 1; signal <= 64; ++signal) {
        if (((undescribed >> (signal - 1)) & 1) == 0) continue;
        siginfo_t info{};
        info.si_signo = signal;
        info.si_code = SI_USER;
        out.emplace_back().set_siginfo(&info, sizeof info);
    }
    return out;
}

Result<void> run_in_task(Subject& subject, Tracee& task, Batch& batch) {
    if (task.tid() == subject.process->tasks.front().tid()) return subject.remote->run(batch);
    return subject.remote->run_in(task, batch);
}

Result<void> collect_stopped_task(pid_t pid, Tracee& task, image::Task& out) {
    TRY(check_with_ptrace(task));
    TRY(collect_registers(task, out));
    TRY(collect_rseq(task, out));
    for (image::SignalInfo& info : TRY(peek_signals(pid, task.tid(), false))) *out.add_pending() = std::move(info);
    return {};
}

Result<image::Task> collect_task(Subject& subject, Tracee& task) {
    const pid_t pid = subject.process->pid;
    image::Task out;
    out.set_tid(task.tid());
    out.set_name(TRY(read_task_stat(pid, task.tid())).name);
    const Status status = TRY(read_status(pid, task.tid()));
    image::Credentials& credentials = *out.mutable_credentials();
    TRY(collect_credentials(task.tid(), status, credentials));
    TRY(collect_robust_list(task.tid(), out));
    TRY(collect_from_inside(subject, task, out, credentials));
    TRY(collect_scheduling(task.tid(), *out.mutable_scheduling()));
    return out;
}

}  // namespace godwit
