// The descriptors of a tree: restore_files() of restore.h.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>

#include <set>

#include "common/base/defer.h"
#include "dest-agent/restore/files_internal.h"
#include "dest-agent/restore/restore.h"

namespace godwit {
namespace files {

std::string who_holds(const image::Files& files, uint32_t description) {
    for (const auto& table : files.tables())
        for (const auto& descriptor : table.descriptors())
            if (descriptor.description() == description) return fmt::format("pid {} fd {}", table.pid(), descriptor.fd());
    return fmt::format("description {}", description);
}

Result<void> set_flags(int fd, const image::Description& description, const std::string& who) {
    const auto flags = static_cast<int>(description.flags());
    if (description.owner() != 0) {
        const f_owner_ex owner{static_cast<__pid_type>(description.owner_type()), description.owner()};
        if (::fcntl(fd, F_SETOWN_EX, &owner) != 0)
            return fail_errno(fmt::format("{}: cannot make {} the owner", who, description.owner()));
    }
    if (description.owner_signal() != 0 && ::fcntl(fd, F_SETSIG, static_cast<int>(description.owner_signal())) != 0)
        return fail_errno(who + ": cannot set the signal of its owner");
    constexpr int settable = O_APPEND | O_NONBLOCK | O_ASYNC | O_DIRECT | O_NOATIME;
    const int now = ::fcntl(fd, F_GETFL);
    if (now < 0) return fail_errno(who + ": cannot ask its flags");
    if ((now & settable) != (flags & settable) && ::fcntl(fd, F_SETFL, flags & settable) != 0)
        return fail_errno(fmt::format("{}: cannot set the flags {:#o}", who, flags));
    return {};
}

namespace {

Result<UniqueFd> make_one(const image::Description& description, const std::string& who, pid_t pid, MadeObjects* objects) {
    using Object = image::Description;
    switch (description.object_case()) {
        case Object::kFile: return open_file_again(description);
        case Object::kEventFd:
        case Object::kEpoll:
        case Object::kTimerFd:
        case Object::kSignalFd: return make_event(description, pid);
        case Object::kTcp: return make_tcp(description, who);
        case Object::kObjectFile: return open_object(description, objects);
        case Object::kPipeEnd:
        case Object::kSocketPair:
        case Object::OBJECT_NOT_SET: break;
    }
    return peer_failed(who + ": an object of a kind that is not known here", "both hosts need the same version of godwit");
}

// What a peer says is checked before anything is made: ids and numbers that are named once, tables of our skeletons.
Result<void> check(const std::vector<Skeleton*>& skeletons, const image::Files& files) {
    std::set<uint32_t> ids;
    for (const auto& description : files.descriptions())
        if (description.id() == 0 || !ids.insert(description.id()).second)
            return peer_failed(fmt::format("description {} came twice", description.id()));
    std::set<pid_t> pids;
    for (const auto& table : files.tables()) {
        std::set<int> numbers;
        bool known = false;
        for (const Skeleton* skeleton : skeletons) known |= skeleton->pid() == table.pid();
        if (!known || !pids.insert(table.pid()).second)
            return peer_failed(fmt::format("descriptors came for pid {}, which is not awaited", table.pid()));
        for (const auto& descriptor : table.descriptors())
            if (descriptor.fd() < 0 || !numbers.insert(descriptor.fd()).second || !ids.contains(descriptor.description()))
                return peer_failed(fmt::format("pid {} fd {}: does not fit the other descriptors", table.pid(), descriptor.fd()));
    }
    if (pids.size() != skeletons.size()) return peer_failed("the descriptors of some process did not come");
    return {};
}

// Every description is open in this agent at once.
Result<void> make_room(size_t descriptions, rlimit& before) {
    constexpr size_t others = 1024;  // ours, and intermediate ones
    if (::getrlimit(RLIMIT_NOFILE, &before) != 0) return fail_errno("cannot ask the limit of open files");
    if (before.rlim_cur >= descriptions + others) return {};
    const rlimit more{before.rlim_max, before.rlim_max};
    if (before.rlim_max < descriptions || ::setrlimit(RLIMIT_NOFILE, &more) != 0)
        return fail(fmt::format("the tree has {} open files, more than godwit may have ({})", descriptions, before.rlim_max),
                    "raise the limit of open files of `godwit serve` (ulimit -n)");
    return {};
}

}  // namespace
}  // namespace files

Result<void> restore_files(std::vector<Skeleton*>& skeletons, const image::Files& all, MadeObjects* objects) {
    TRY(files::check(skeletons, all));
    rlimit limit{};
    TRY(files::make_room(static_cast<size_t>(all.descriptions_size()), limit));
    const Undo lower([&] { ::setrlimit(RLIMIT_NOFILE, &limit); });

    files::Made made;
    TRY(files::make_pipes(all, made));
    TRY(files::make_socket_pairs(all, made));
    for (const auto& description : all.descriptions()) {
        if (made.contains(description.id())) continue;
        const std::string who = files::who_holds(all, description.id());
        auto one = files::make_one(description, who, skeletons.front()->pid(), objects);
        if (!one) {
            one.error().what = who + ": " + one.error().what;
            return Failure(std::move(one.error()));
        }
        made.emplace(description.id(), std::move(*one));
    }
    for (Skeleton* skeleton : skeletons)
        for (const auto& table : all.tables())
            if (table.pid() == skeleton->pid()) TRY(files::pass(*skeleton, table, made));
    for (Skeleton* skeleton : skeletons)
        for (const auto& table : all.tables())
            if (table.pid() == skeleton->pid()) TRY(files::add_epoll_items(*skeleton, table, all));
    for (const auto& description : all.descriptions())
        TRY(files::set_flags(made.at(description.id()).get(), description, files::who_holds(all, description.id())));
    return {};
}

}  // namespace godwit
