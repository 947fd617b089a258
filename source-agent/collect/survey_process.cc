// What can be said of a process without stopping it.
#include <elf.h>
#include <fmt/format.h>
#include <linux/kcmp.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "common/base/file.h"
#include "common/base/text.h"
#include "common/kernel/machine.h"
#include "common/kernel/proc.h"
#include "source-agent/collect/collect.h"

namespace godwit {
namespace {

constexpr uint64_t kernel_thread_flag = 0x00200000;  // PF_KTHREAD

void refuse(Problems& problems, std::string what, std::string hint) {
    problems.push_back({std::move(what), std::move(hint), ExitCode::unsupported, 0});
}

// The process itself is not one that may be looked into further.
Result<bool> is_untouchable(pid_t pid, const Stat& stat, const std::string& name, Problems& problems) {
    const size_t before = problems.size();
    if ((stat.flags & kernel_thread_flag) != 0) refuse(problems, name + " is a kernel thread", "give the PID of a program");
    if (pid == 1) refuse(problems, name + " is the init of this PID namespace", "give the PID of a program that it started");
    for (pid_t ancestor = ::getpid(); ancestor > 0;) {
        if (ancestor == pid) refuse(problems, name + " is godwit itself or one of its ancestors", "run godwit from another session");
        const auto above = read_stat(ancestor);
        if (!above) break;
        ancestor = above->ppid;
    }
    if (stat.state == 'Z' || stat.state == 'X')
        refuse(problems, name + " has ended or its first thread has: only a zombie is left of it", "wait until its parent has reaped it");
    const auto ids = status_ids(TRY(read_status(pid, pid)), "Tgid");
    if (!ids.empty() && ids.front() != pid)
        refuse(problems, fmt::format("{} is a thread of pid {}", name, ids.front()), "give the PID of the process");
    return problems.size() != before;
}

void check_family(pid_t pid, const Stat& stat, const std::string& name, Problems& problems) {
    if (const auto children = read_children(pid); children && !children->empty())
        for (const pid_t child : *children)
            refuse(problems, fmt::format("{} has a child, pid {}", name, child), "trees of several processes are not carried yet");
    if (stat.sid != pid) refuse(problems, fmt::format("{} is not the leader of its session, which is {}", name, stat.sid), "start it with setsid(1)");
    if (stat.sid == pid && stat.pgid != pid)
        refuse(problems, fmt::format("{} is not the leader of its process group, which is {}", name, stat.pgid), "start it with setsid(1)");
    if (stat.tty != 0) refuse(problems, name + " has a controlling terminal", "start it with setsid(1), its streams on files or /dev/null");
    if (stat.exit_signal != 17)
        refuse(problems, fmt::format("{} tells its parent of its end by signal {}, not SIGCHLD", name, stat.exit_signal), "this is not carried yet");
}

Result<void> check_namespaces(pid_t pid, const std::string& name, Problems& problems) {
    for (const char* kind : {"mnt", "net", "uts", "ipc", "user", "pid"})
        if (TRY(namespace_inode(pid, kind)) != TRY(namespace_inode(::getpid(), kind)))
            refuse(problems, fmt::format("{} is in another {} namespace than godwit", name, kind), "run godwit inside that namespace; containers are not carried yet");
    if (TRY(namespace_inode(pid, "pid_for_children")) != TRY(namespace_inode(pid, "pid")))
        refuse(problems, name + " has made a PID namespace for its children", "containers are not carried yet");
    if (const auto offsets = time_offsets_of(pid); !offsets) problems.push_back(offsets.error());
    struct stat theirs, ours;
    const std::string root = fmt::format("/proc/{}/root", pid);
    if (::stat(root.c_str(), &theirs) != 0 || ::stat("/", &ours) != 0) return fail_errno("cannot look at " + root);
    if (theirs.st_dev != ours.st_dev || theirs.st_ino != ours.st_ino)
        refuse(problems, name + " has another root directory (chroot)", "run godwit inside it");
    return {};
}

// A working directory that is gone, or an executable that was replaced, cannot be found by name.
Result<void> check_paths(pid_t pid, const std::string& name, Problems& problems) {
    for (const char* what : {"cwd", "exe"}) {
        const std::string link = fmt::format("/proc/{}/{}", pid, what);
        const std::string path = TRY(read_link(link));
        struct stat there, named;
        if (::stat(link.c_str(), &there) != 0) return fail_errno("cannot look at " + link);
        if (::stat(path.c_str(), &named) != 0 || there.st_dev != named.st_dev || there.st_ino != named.st_ino)
            refuse(problems, fmt::format("{}: its {} {} was deleted or replaced", name, std::strcmp(what, "cwd") == 0 ? "working directory" : "executable", printable(path)),
                   std::strcmp(what, "cwd") == 0 ? "make it change to a folder that exists" : "restart the program after an upgrade");
    }
    const UniqueFd executable = TRY(open_file(fmt::format("/proc/{}/exe", pid), O_RDONLY));
    char header[EI_NIDENT] = {};
    if (::pread(executable.get(), header, sizeof header, 0) == sizeof header && header[EI_CLASS] != ELFCLASS64)
        refuse(problems, name + " is a 32-bit program", "only 64-bit programs are carried");
    return {};
}

void check_sharing(pid_t pid, pid_t tid, Problems& problems) {
    const auto differs = [&](int type) { return ::syscall(SYS_kcmp, pid, tid, type, 0, 0) > 0; };
    if (differs(KCMP_FILES)) refuse(problems, fmt::format("tid {} of pid {} has a descriptor table of its own", tid, pid), "threads that called unshare(CLONE_FILES) are not carried yet");
    if (differs(KCMP_FS)) refuse(problems, fmt::format("tid {} of pid {} has a working directory of its own", tid, pid), "threads that called unshare(CLONE_FS) are not carried yet");
}

Result<void> survey_task(pid_t pid, pid_t tid, image::PlannedProcess& planned, std::set<uint32_t>& uids, std::set<uint32_t>& gids, Problems& problems) {
    const Status status = TRY(read_status(pid, tid));
    const std::string name = fmt::format("tid {} of pid {}", tid, pid);
    const std::string state = status_value(status, "State");
    if (state.starts_with("T")) refuse(problems, name + " is stopped", "let it go on first: kill -CONT " + std::to_string(pid));
    if (const std::string tracer = status_value(status, "TracerPid"); tracer != "0" && !tracer.empty())
        refuse(problems, fmt::format("{} is traced by pid {}", name, tracer), "end the debugger first");
    if (status_value(status, "Seccomp") != "0") refuse(problems, name + " has a seccomp filter", "seccomp is not carried yet");
    check_sharing(pid, tid, problems);
    image::NsId& id = *planned.add_tids();
    for (const int level : status_ids(status, "NSpid")) id.add_id(level);
    for (const int uid : status_ids(status, "Uid")) uids.insert(static_cast<uint32_t>(uid));
    for (const char* key : {"Gid", "Groups"})
        for (const int gid : status_ids(status, key)) gids.insert(static_cast<uint32_t>(gid));
    planned.set_capabilities(planned.capabilities() | status_hex(status, "CapPrm") | status_hex(status, "CapInh") | status_hex(status, "CapAmb"));
    return {};
}

std::string cgroup_of(pid_t pid) {
    const auto text = read_file(fmt::format("/proc/{}/cgroup", pid));
    const size_t at = text ? text->find("0::") : std::string::npos;
    if (at == std::string::npos) return {};
    return text->substr(at + 3, text->find('\n', at) - at - 3);
}

}  // namespace

Result<void> survey_process(pid_t pid, const CollectOptions&, image::Plan& plan, Problems& problems) {
    const auto stat = read_stat(pid);
    if (!stat) return fail(fmt::format("no process with pid {} here", pid), "give the PID as this PID namespace numbers it");
    const std::string name = fmt::format("pid {} ({})", pid, printable(stat->name));
    if (TRY(is_untouchable(pid, *stat, name, problems))) return {};
    image::PlannedProcess& planned = *plan.add_processes();
    check_family(pid, *stat, name, problems);
    TRY(check_namespaces(pid, name, problems));
    TRY(check_paths(pid, name, problems));
    std::set<uint32_t> uids, gids;
    // Threads come and go: one that is gone is passed over, one that comes is seen under the freeze.
    for (const pid_t tid : TRY(read_tasks(pid))) {
        const auto surveyed = survey_task(pid, tid, planned, uids, gids, problems);
        if (!surveyed && surveyed.error().error != ENOENT && surveyed.error().error != ESRCH) return surveyed;
    }
    for (const int level : status_ids(TRY(read_status(pid, pid)), "NSpid")) planned.mutable_pid()->add_id(level);
    planned.mutable_uids()->Add(uids.begin(), uids.end());
    planned.mutable_gids()->Add(gids.begin(), gids.end());
    planned.set_cgroup(cgroup_of(pid));
    planned.set_executable(TRY(read_link(fmt::format("/proc/{}/exe", pid))));
    planned.set_name(stat->name);
    for (const char* kind : {"threads", "signals", "interval timer", "POSIX timer"}) plan.add_object_kinds(kind);
    return {};
}

}  // namespace godwit
