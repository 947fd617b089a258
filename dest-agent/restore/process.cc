#include <fcntl.h>
#include <fmt/format.h>
#include <linux/prctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <csignal>

#include "common/base/file.h"
#include "common/base/text.h"
#include "common/kernel/proc.h"
#include "dest-agent/restore/parts.h"
#include "dest-agent/restore/restore.h"

namespace godwit {
namespace {

constexpr int last_signal = 64;

// rt_sigaction(2) as the kernel has it, not the C library.
struct KernelSigaction {
    uint64_t handler;
    uint64_t flags;
    uint64_t restorer;
    uint64_t mask;
};

Failure bad(const Skeleton& skeleton, const std::string& what) {
    return peer_failed(fmt::format("state of process {}: {}", skeleton.pid(), what), "the source is broken or hostile");
}

// The pages went by the layout: the rest must be about the same tasks.
Result<void> check_tasks(Skeleton& skeleton, const image::Process& process) {
    if (process.pid() != skeleton.pid()) return bad(skeleton, fmt::format("it is of process {}", process.pid()));
    const auto& tids = skeleton.layout().tids();
    if (process.tasks_size() != tids.size()) return bad(skeleton, fmt::format("{} tasks instead of {}", process.tasks_size(), tids.size()));
    for (int i = 0; i < tids.size(); ++i) {
        const image::Task& task = process.tasks(i);
        if (task.tid() != tids[i]) return bad(skeleton, fmt::format("task {} instead of {}", task.tid(), tids[i]));
        if (task.registers().size() != sizeof(Registers)) return bad(skeleton, fmt::format("registers of task {}", task.tid()));
    }
    return {};
}

// Signals that the message does not name have their default action. The skeleton may have been born with other ones: what
// an agent's parent ignored stays ignored over exec, and the C library keeps signals 32 and 33 to itself.
void add_actions(NamedCalls& calls, const image::Process& process) {
    const KernelSigaction standard{};
    for (int signal = 1; signal <= last_signal; ++signal)
        if (signal != SIGKILL && signal != SIGSTOP)
            calls.call(fmt::format("reset the action of signal {}", signal), SYS_rt_sigaction, signal,
                       calls.batch().bytes(&standard, sizeof standard), 0, sizeof standard.mask);
    for (const image::SignalAction& action : process.actions()) {
        const KernelSigaction wanted{action.handler(), action.flags(), action.restorer(), action.mask()};
        calls.call(fmt::format("set the action of signal {}", action.signal()), SYS_rt_sigaction, action.signal(),
                   calls.batch().bytes(&wanted, sizeof wanted), 0, sizeof wanted.mask);
    }
}

// prctl(PR_SET_MM_MAP): what /proc/PID/stat, cmdline, environ and auxv show. It asks that the addresses are within mappings.
Result<void> restore_memory_map(Skeleton& skeleton, const image::MemoryMap& from) {
    if (from.auxv().size() % 16 != 0) return bad(skeleton, "its auxiliary vector is cut");
    Remote& remote = skeleton.remote();
    const std::string& executable = skeleton.layout().executable();
    NamedCalls open;
    const auto opened = open.call("open the executable " + printable(executable), SYS_openat, AT_FDCWD, open.batch().text(executable), O_RDONLY | O_CLOEXEC);
    TRY(open.run(remote));
    prctl_mm_map map{};
    map.start_code = from.start_code();
    map.end_code = from.end_code();
    map.start_data = from.start_data();
    map.end_data = from.end_data();
    map.start_brk = from.start_brk();
    map.brk = from.brk();
    map.start_stack = from.start_stack();
    map.arg_start = from.arg_start();
    map.arg_end = from.arg_end();
    map.env_start = from.env_start();
    map.env_end = from.env_end();
    map.auxv_size = static_cast<uint32_t>(from.auxv().size());
    map.exe_fd = static_cast<uint32_t>(open.batch().result_of(opened));
    NamedCalls set;
    const auto memory_map = set.batch().bytes(&map, sizeof map);
    if (!from.auxv().empty())
        set.batch().point(memory_map, offsetof(prctl_mm_map, auxv), set.batch().bytes(from.auxv().data(), from.auxv().size()));
    set.call("set the memory map (PR_SET_MM_MAP)", SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, memory_map, sizeof map, 0);
    set.call("close the executable", SYS_close, map.exe_fd);
    return set.run(remote);
}

Result<void> restore_shared(Remote& remote, const image::Process& process) {
    NamedCalls calls;
    add_actions(calls, process);
    calls.call("change to the folder " + printable(process.working_directory()), SYS_chdir, calls.batch().text(process.working_directory()));
    calls.call("set the umask", SYS_umask, process.umask());
    calls.call("set PR_SET_CHILD_SUBREAPER", SYS_prctl, PR_SET_CHILD_SUBREAPER, process.child_subreaper() ? 1 : 0, 0, 0, 0);
    calls.call("set PR_SET_THP_DISABLE", SYS_prctl, PR_SET_THP_DISABLE, process.thp_disabled() ? 1 : 0, 0, 0, 0);
    return calls.run(remote);
}

// Files of /proc that only differ when somebody wanted them to: the kernel asks for privileges at each write.
Result<void> restore_proc_file(const std::string& path, int64_t wanted, int base) {
    const std::string now = TRY(read_file(path));
    if (std::strtoll(now.c_str(), nullptr, base) == wanted) return {};
    return write_once(path, base == 16 ? fmt::format("{:#x}", wanted) : fmt::format("{}", wanted));
}

constexpr const char* limit_names[] = {"cpu",     "fsize",  "data",  "stack",      "core",     "rss",  "nproc",  "nofile",
                                       "memlock", "as",     "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime"};

// Last of all but the credentials: a low limit could stop us. Without CAP_SYS_RESOURCE the kernel lets root's process have no
// hard limit above the one that it inherited from this agent.
Result<void> restore_limits(pid_t pid, const image::Process& process) {
    for (const image::Limit& limit : process.limits()) {
        if (limit.resource() >= std::size(limit_names)) return peer_failed(fmt::format("process {} has a limit {}", pid, limit.resource()));
        const rlimit64 wanted{limit.soft(), limit.hard()};
        rlimit64 now{};
        if (::syscall(SYS_prlimit64, pid, limit.resource(), nullptr, &now) != 0) return fail_errno(fmt::format("limits of process {}", pid));
        if (now.rlim_cur == wanted.rlim_cur && now.rlim_max == wanted.rlim_max) continue;
        if (::syscall(SYS_prlimit64, pid, limit.resource(), &wanted, nullptr) != 0)
            return fail_errno(errno, fmt::format("cannot set limit {} of process {} to {}:{}", limit_names[limit.resource()], pid,
                                                 wanted.rlim_cur, wanted.rlim_max),
                              fmt::format("start the destination with at least that hard limit (here {}), or with CAP_SYS_RESOURCE", now.rlim_max));
    }
    return {};
}

// The kernel takes an xstate of the size it gives.
Result<void> seal_task(Tracee& task, const image::Task& wanted) {
    const size_t size = TRY(task.xstate()).size();
    if (size != wanted.xstate().size())
        return unsupported(fmt::format("task {}: its vector state has {} bytes, here it has {}", task.tid(), wanted.xstate().size(), size),
                           "the CPUs of both hosts must have the same vector extensions");
    TRY(task.set_xstate(wanted.xstate()));
    Registers registers{};
    __builtin_memcpy(&registers, wanted.registers().data(), sizeof registers);
    // In no system call: what restarts was decided at the source, and the kernel must not do it once more.
    registers.orig_rax = ~0ull;
    TRY(task.set_registers(registers));
    return task.set_signal_mask(wanted.signal_mask());
}

}  // namespace

Result<void> restore_process(Skeleton& skeleton, const image::Process& process) {
    TRY(check_tasks(skeleton, process));
    const pid_t pid = skeleton.pid();
    TRY(restore_memory_map(skeleton, process.memory_map()));
    TRY(restore_shared(skeleton.remote(), process));
    TRY(restore_proc_file(fmt::format("/proc/{}/oom_score_adj", pid), process.oom_score_adj(), 10));
    TRY(restore_proc_file(fmt::format("/proc/{}/coredump_filter", pid), process.core_filter(), 16));
    TRY(restore_timers(skeleton.remote(), process));
    TRY(restore_limits(pid, process));
    // The leader comes last: each change of credentials makes the whole process undumpable, which it then settles.
    auto& tasks = skeleton.tasks();
    for (size_t i = tasks.size(); i-- > 0;) TRY(restore_task(skeleton, tasks[i], process, process.tasks(static_cast<int>(i))));
    return {};
}

Result<void> seal(Skeleton& skeleton, const image::Process& process) {
    TRY(check_tasks(skeleton, process));
    const RemotePtr instruction = TRY(find_syscall_instruction(skeleton.pid()));
    TRY(skeleton.remote().retire(instruction));
    auto& tasks = skeleton.tasks();
    for (size_t i = 0; i < tasks.size(); ++i) TRY(seal_task(tasks[i], process.tasks(static_cast<int>(i))));
    return {};
}

}  // namespace godwit
