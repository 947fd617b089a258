// What can be said of a process without stopping it.
#include <fmt/format.h>
#include <unistd.h>

#include <set>

#include "common/base/file.h"
#include "common/base/text.h"
#include "common/kernel/proc.h"
#include "common/remote/descriptor_room.h"
#include "source-agent/collect/checks.h"
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

Result<void> survey_task(pid_t pid, pid_t tid, image::PlannedProcess& planned, std::set<uint32_t>& uids, std::set<uint32_t>& gids, Problems& problems) {
    const Status status = TRY(read_status(pid, tid));
    const std::string name = fmt::format("tid {} of pid {}", tid, pid);
    if (status_value(status, "State").starts_with("T")) refuse(problems, name + " is stopped", "let it go on first: kill -CONT " + std::to_string(pid));
    if (const std::string tracer = status_value(status, "TracerPid"); tracer != "0" && !tracer.empty())
        refuse(problems, fmt::format("{} is traced by pid {}", name, tracer), "end the debugger first");
    TRY(check_task(pid, tid, status, problems));
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
    const std::string name = process_name(pid, *stat);
    if (TRY(is_untouchable(pid, *stat, name, problems))) return {};
    image::PlannedProcess& planned = *plan.add_processes();
    TRY(check_process(pid, *stat, problems));
    if (auto room = DescriptorRoom::check(pid); !room) {
        if (room.error().code != ExitCode::unsupported) return room;
        problems.push_back(std::move(room.error()));
    }
    TRY(check_sharing_with_others(pid, problems));
    std::set<uint32_t> uids, gids;
    // Threads come and go: one that is gone is passed over, one that comes is seen under the freeze.
    for (const pid_t tid : TRY(read_tasks(pid))) {
        const auto surveyed = survey_task(pid, tid, planned, uids, gids, problems);
        if (!surveyed && (read_task_stat(pid, tid) || !read_stat(pid))) return surveyed;
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
