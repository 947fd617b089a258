// From the agent's descriptors to the numbers in a skeleton.
//
// The table is emptied first, so that what is sent lands on 0, 1, 2 ... in order. Descriptions go in the order of their
// lowest number: the i-th lands on i, never above its number, and moving from the highest down never meets another one.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/close_range.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <set>

#include "dest-agent/restore/files_internal.h"

namespace godwit::files {
namespace {

struct Place {
    int fd = -1;
    bool close_on_exec = false;
};

// The numbers of one description, ascending.
using Places = std::vector<Place>;

std::vector<std::pair<uint32_t, Places>> by_lowest_number(const image::DescriptorTable& table) {
    std::map<uint32_t, Places> places;
    for (const auto& one : table.descriptors()) places[one.description()].push_back({one.fd(), one.close_on_exec()});
    std::vector<std::pair<uint32_t, Places>> out(places.begin(), places.end());
    for (auto& one : out) std::sort(one.second.begin(), one.second.end(), [](Place a, Place b) { return a.fd < b.fd; });
    std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.second[0].fd < b.second[0].fd; });
    return out;
}

// A number for the executor's socket that nothing lands on: not one of the table's, not below the count.
int number_for_socket(const image::DescriptorTable& table, size_t count) {
    std::set<int> used;
    for (const auto& one : table.descriptors()) used.insert(one.fd());
    int number = static_cast<int>(count);
    while (used.contains(number)) ++number;
    return number;
}

// The numbers must be below the soft limit now; the program's own limits are set by restore_process() afterwards.
Result<void> raise_limit(pid_t pid, int highest) {
    const auto needed = static_cast<rlim_t>(highest) + 1;
    rlimit limit{};
    if (::prlimit(pid, RLIMIT_NOFILE, nullptr, &limit) != 0) return fail_errno(fmt::format("pid {}: cannot ask its limit of open files", pid));
    if (limit.rlim_cur >= needed) return {};
    const rlimit more{needed, std::max(needed, limit.rlim_max)};
    if (::prlimit(pid, RLIMIT_NOFILE, &more, nullptr) != 0)
        return fail_errno(errno, fmt::format("pid {}: fd {} is above the limit of open files here ({})", pid, highest, limit.rlim_max),
                          "raise the hard limit of `godwit serve` (ulimit -Hn) and fs.nr_open");
    return {};
}

Result<void> empty_table(Remote& remote, int socket) {
    Batch batch;
    if (remote.socket_number() > 0) batch.call(SYS_close_range, 0, remote.socket_number() - 1, 0);
    batch.call(SYS_close_range, remote.socket_number() + 1, ~0u, 0);
    TRY(remote.run(batch));
    return remote.move_socket(socket);
}

}  // namespace

Result<void> pass(Skeleton& skeleton, const image::DescriptorTable& table, const Made& made) {
    Remote& remote = skeleton.remote();
    const auto order = by_lowest_number(table);
    const int socket = number_for_socket(table, order.size());
    int highest = socket;
    for (const auto& one : table.descriptors()) highest = std::max(highest, one.fd());
    TRY(raise_limit(skeleton.pid(), highest));
    TRY(empty_table(remote, socket));

    std::vector<int> ours;
    for (const auto& [description, places] : order) ours.push_back(made.at(description).get());
    const std::vector<int> landed = TRY(remote.send_fds(ours));
    for (size_t i = 0; i < landed.size(); ++i)
        if (landed[i] != static_cast<int>(i))
            return fail(fmt::format("pid {}: a descriptor landed on {} instead of {}", skeleton.pid(), landed[i], i));

    Batch batch;
    for (size_t i = order.size(); i-- > 0;) {
        const Place& first = order[i].second[0];
        if (first.fd != static_cast<int>(i)) {
            batch.call(SYS_dup3, i, first.fd, first.close_on_exec ? O_CLOEXEC : 0);
            batch.call(SYS_close, i);
        } else {
            batch.call(SYS_fcntl, i, F_SETFD, first.close_on_exec ? FD_CLOEXEC : 0);
        }
    }
    for (const auto& [description, places] : order)
        for (size_t i = 1; i < places.size(); ++i)
            batch.call(SYS_dup3, places[0].fd, places[i].fd, places[i].close_on_exec ? O_CLOEXEC : 0);
    if (batch.empty()) return {};
    return remote.run(batch);
}

}  // namespace godwit::files
