#include "source-agent/collect/checks.h"

#include <elf.h>
#include <fmt/format.h>
#include <linux/kcmp.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <memory>

#include "common/base/file.h"
#include "common/base/text.h"
#include "source-agent/collect/timers.h"

namespace godwit {
namespace {

void refuse(Problems& problems, std::string what, std::string hint) {
    problems.push_back({std::move(what), std::move(hint), ExitCode::unsupported, 0});
}

bool is_gone(int error) {
    return error == ENOENT || error == ESRCH;
}

void check_family(pid_t pid, const Stat& stat, const std::vector<pid_t>& children, const std::string& name, Problems& problems) {
    for (const pid_t child : children)
        refuse(problems, fmt::format("{} has a child, pid {}", name, child), "trees of several processes are not carried yet");
    if (stat.sid != pid)
        refuse(problems, fmt::format("{} is not the leader of its session, which is {}", name, stat.sid), "start it with setsid(1)");
    else if (stat.pgid != pid)
        refuse(problems, fmt::format("{} is not the leader of its process group, which is {}", name, stat.pgid), "start it with setsid(1)");
    if (stat.tty != 0)
        refuse(problems, name + " has a controlling terminal", "start it with setsid(1), its streams on files or /dev/null");
    if (stat.exit_signal != SIGCHLD)
        refuse(problems, fmt::format("{} tells its parent of its end by signal {}, not SIGCHLD", name, stat.exit_signal), "this is not carried yet");
}

// A kernel without that kind of namespace has no such link: nothing can differ.
Result<bool> differs(pid_t a, const char* kind_a, pid_t b, const char* kind_b) {
    if (::access(fmt::format("/proc/self/ns/{}", kind_a).c_str(), F_OK) != 0) return false;
    return TRY(namespace_inode(a, kind_a)) != TRY(namespace_inode(b, kind_b));
}

Result<void> check_namespaces(pid_t pid, const std::string& name, Problems& problems) {
    for (const char* kind : {"mnt", "net", "uts", "ipc", "user", "pid"})
        if (TRY(differs(pid, kind, ::getpid(), kind)))
            refuse(problems, fmt::format("{} is in another {} namespace than godwit", name, kind),
                   "run godwit inside that namespace; containers are not carried yet");
    return {};
}

// What unshare(2) and setns(2) change for one thread alone.
Result<void> check_task_namespaces(pid_t pid, pid_t tid, const std::string& name, Problems& problems) {
    // Before its first process such a namespace has no link to look at.
    const auto children = namespace_inode(tid, "pid_for_children");
    const bool unborn = !children && children.error().error == ENOENT && namespace_inode(tid, "pid");
    if (unborn || TRY(children) != TRY(namespace_inode(tid, "pid")))
        refuse(problems, name + " has made a PID namespace for its children", "containers are not carried yet");
    if (TRY(differs(tid, "time_for_children", tid, "time")))
        refuse(problems, name + " has made a time namespace for its children", "containers are not carried yet");
    if (tid == pid) return {};
    for (const char* kind : {"net", "uts", "ipc", "cgroup"})
        if (TRY(differs(tid, kind, pid, kind)))
            refuse(problems, fmt::format("{} is in another {} namespace than its process", name, kind), "containers are not carried yet");
    return {};
}

// The link of /proc/PID leads to what its name leads to; elsewhere only the name is known.
Result<bool> name_leads_there(pid_t pid, const char* what, const std::string& path) {
    const std::string link = fmt::format("/proc/{}/{}", pid, what);
    struct stat there, named;
    if (::stat(link.c_str(), &there) != 0) return fail_errno("cannot look at " + link);
    return ::stat(path.c_str(), &named) == 0 && there.st_dev == named.st_dev && there.st_ino == named.st_ino;
}

Result<void> check_paths(pid_t pid, const std::string& name, Problems& problems) {
    if (!TRY(name_leads_there(pid, "root", "/"))) refuse(problems, name + " has another root directory (chroot)", "run godwit inside it");
    const std::string directory = TRY(read_link(fmt::format("/proc/{}/cwd", pid)));
    if (!TRY(name_leads_there(pid, "cwd", directory)))
        refuse(problems, fmt::format("{}: its working directory {} was deleted or replaced", name, printable(directory)),
               "make it change to a folder that exists");
    const std::string executable = TRY(read_link(fmt::format("/proc/{}/exe", pid)));
    if (!TRY(name_leads_there(pid, "exe", executable)))
        refuse(problems, fmt::format("{}: its executable {} was deleted or replaced", name, printable(executable)),
               "restart the program after an upgrade");
    const UniqueFd file = TRY(open_file(fmt::format("/proc/{}/exe", pid), O_RDONLY));
    char header[EI_NIDENT] = {};
    if (::pread(file.get(), header, sizeof header, 0) == sizeof header && header[EI_CLASS] != ELFCLASS64)
        refuse(problems, name + " is a 32-bit program", "only 64-bit programs are carried");
    return {};
}

// kcmp(2): 0 is the same, -1 an error.
Result<bool> is_shared(pid_t a, pid_t b, int type) {
    const long order = ::syscall(SYS_kcmp, a, b, type, 0, 0);
    if (order < 0) return fail_errno(errno, fmt::format("cannot compare pid {} with pid {}", a, b), "the kernel needs CONFIG_KCMP");
    return order == 0;
}

Result<void> check_sharing(pid_t pid, pid_t tid, const std::string& name, Problems& problems) {
    if (!TRY(is_shared(pid, tid, KCMP_FILES)))
        refuse(problems, name + " has a descriptor table of its own", "threads that called unshare(CLONE_FILES) are not carried yet");
    if (!TRY(is_shared(pid, tid, KCMP_FS)))
        refuse(problems, name + " has a working directory of its own", "threads that called unshare(CLONE_FS) are not carried yet");
    return {};
}

// PR_SET_SPECULATION_CTRL as /proc/PID/status tells it: what the task asked for, not what the CPU is like.
void check_speculation(const Status& status, const std::string& name, Problems& problems) {
    for (const char* key : {"Speculation_Store_Bypass", "SpeculationIndirectBranch"}) {
        const std::string value = status_value(status, key);
        if (value.find("mitigated") == std::string::npos && value.find("disabled") == std::string::npos) continue;
        if (!value.starts_with("thread") && !value.starts_with("conditional")) continue;  // the whole machine's
        refuse(problems, fmt::format("{} has limited its speculation ({}: {})", name, key, value), "prctl(PR_SET_SPECULATION_CTRL) is not carried yet");
    }
}

Result<void> check_policy(pid_t tid, const std::string& name, Problems& problems) {
    constexpr int deadline_policy = 6;
    constexpr int reset_on_fork = 0x40000000;
    const int policy = ::sched_getscheduler(tid);
    if (policy < 0) return fail_errno(fmt::format("cannot read the scheduling of tid {}", tid));
    switch (policy & ~reset_on_fork) {
        case SCHED_OTHER:
        case SCHED_BATCH:
        case SCHED_IDLE:
        case SCHED_FIFO:
        case SCHED_RR:
            break;
        case deadline_policy:
            refuse(problems, name + " is scheduled by SCHED_DEADLINE", "change it with chrt(1) first");
            break;
        default:
            refuse(problems, fmt::format("{} has scheduling policy {}, which is not known", name, policy), "change it with chrt(1) first");
    }
    return {};
}

}  // namespace

std::string process_name(pid_t pid, const Stat& stat) {
    return fmt::format("pid {} ({})", pid, printable(stat.name));
}

Result<std::vector<pid_t>> find_children(pid_t pid) {
    if (::access(fmt::format("/proc/{}/task/{}/children", pid, pid).c_str(), F_OK) == 0) return read_children(pid);
    std::vector<pid_t> out;
    for (const pid_t other : TRY(read_processes()))
        if (const auto stat = read_stat(other); stat && stat->ppid == pid) out.push_back(other);
    return out;
}

Result<void> check_process(pid_t pid, const Stat& stat, Problems& problems) {
    const std::string name = process_name(pid, stat);
    check_family(pid, stat, TRY(find_children(pid)), name, problems);
    TRY(check_namespaces(pid, name, problems));
    TRY(check_paths(pid, name, problems));
    if (status_value(TRY(read_status(pid, pid)), "CoreDumping") == "1")
        refuse(problems, name + " is writing its core dump", "it is ending");
    for (const image::PosixTimer& timer : TRY(list_timers(pid)))
        if (auto refusal = check_timer(pid, timer)) problems.push_back(std::move(*refusal));
    return {};
}

Result<void> check_task(pid_t pid, pid_t tid, const Status& status, Problems& problems) {
    const std::string name = fmt::format("tid {} of pid {}", tid, pid);
    if (const std::string mode = status_value(status, "Seccomp"); !mode.empty() && mode != "0")
        refuse(problems, name + (mode == "1" ? " is in seccomp strict mode" : " has a seccomp filter"), "seccomp is not carried yet");
    check_speculation(status, name, problems);
    TRY(check_task_namespaces(pid, tid, name, problems));
    if (tid != pid) TRY(check_sharing(pid, tid, name, problems));
    return check_policy(tid, name, problems);
}

Result<void> check_sharing_with_others(pid_t pid, Problems& problems) {
    struct What {
        int type;
        const char* name;
    };
    const auto tasks = TRY(read_tasks(pid));
    for (const pid_t other : TRY(read_processes())) {
        if (other == pid) continue;
        for (const What& what : {What{KCMP_VM, "memory"}, What{KCMP_FILES, "descriptor table"}, What{KCMP_FS, "working directory"}}) {
            const auto shared = is_shared(pid, other, what.type);
            // It ended; or something (LSM) hides it from root, and then it hides from the program, too.
            if (!shared && (is_gone(shared.error().error) || shared.error().error == EPERM)) break;
            if (TRY(shared))
                refuse(problems, fmt::format("pid {} shares its {} with pid {}", pid, what.name, other), "processes made by clone(2) like that are not carried");
        }
        const auto status = read_status(other, other);
        const pid_t tracer = status ? std::atoi(status_value(*status, "TracerPid").c_str()) : 0;
        if (tracer != 0 && std::find(tasks.begin(), tasks.end(), tracer) != tasks.end())
            refuse(problems, fmt::format("tid {} of pid {} traces pid {}", tracer, pid, other), "debuggers are not carried: let it detach first");
    }
    return {};
}

}  // namespace godwit
