// Which numbers of a tree are taken here.
#include <dirent.h>
#include <fmt/format.h>

#include <csignal>
#include <memory>

#include "common/base/file.h"
#include "common/base/text.h"
#include "common/kernel/proc.h"
#include "dest-agent/skeleton.h"

namespace godwit {
namespace {

std::set<pid_t> groups_and_sessions() {
    std::set<pid_t> numbers;
    const auto close = [](DIR* folder) { ::closedir(folder); };
    const std::unique_ptr<DIR, decltype(close)> folder(::opendir("/proc"), close);
    while (const dirent* entry = folder ? ::readdir(folder.get()) : nullptr) {
        const pid_t pid = std::atoi(entry->d_name);
        if (pid == 0) continue;
        if (const auto stat = read_stat(pid)) numbers.insert({stat->pgid, stat->sid});
    }
    return numbers;
}

}  // namespace

std::vector<Problem> check_pids(const image::Plan& plan) {
    std::vector<Problem> problems;
    const auto text = read_file("/proc/sys/kernel/pid_max");
    const int limit = text ? std::atoi(text->c_str()) : 0;
    // A number stays taken while a group or session has it, even when no process does.
    const std::set<pid_t> groups = groups_and_sessions();
    std::set<pid_t> seen;
    const auto check = [&](const image::NsId& id) {
        const pid_t number = id.id_size() == 0 ? 0 : id.id(id.id_size() - 1);
        if (!seen.insert(number).second) return;
        if (number <= 1 || number >= limit) {
            problems.push_back({fmt::format("pid {} is not possible here, where they end at {}", number, limit - 1),
                                "raise kernel.pid_max; the init of a PID namespace cannot be migrated", ExitCode::unsupported});
        } else if (::kill(number, 0) == 0 || errno != ESRCH || groups.count(number) != 0) {
            const auto stat = read_stat(number);
            problems.push_back({fmt::format("pid {} is in use here ({})", number, stat ? printable(stat->name) : "a process group or session"),
                                "start the destination in a PID namespace of its own", ExitCode::unsupported});
        }
    };
    for (const auto& process : plan.processes()) {
        check(process.pid());
        for (const auto& tid : process.tids()) check(tid);
    }
    return problems;
}

}  // namespace godwit
