// One descriptor as it is seen from outside.
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <charconv>

#include "common/kernel/proc.h"
#include "source-agent/collect/files_internal.h"
#include "source-agent/collect/shared_objects.h"

namespace godwit::files {
namespace {

constexpr unsigned memory_major = 1;

// /dev/null, zero, full, random, urandom (Documentation/admin-guide/devices.txt).
bool is_memory_device(const struct stat& status) {
    if (!S_ISCHR(status.st_mode) || major(status.st_rdev) != memory_major) return false;
    const unsigned number = minor(status.st_rdev);
    return number == 3 || number == 5 || number == 7 || number == 8 || number == 9;
}

int socket_number(int fd, int name) {
    int value = 0;
    socklen_t size = sizeof value;
    return ::getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
}

Kind kind_of_socket(int duplicate) {
    const int domain = socket_number(duplicate, SO_DOMAIN);
    if (domain == AF_UNIX) return Kind::unix_socket;
    const bool tcp = socket_number(duplicate, SO_TYPE) == SOCK_STREAM && socket_number(duplicate, SO_PROTOCOL) == IPPROTO_TCP;
    return (domain == AF_INET || domain == AF_INET6) && tcp ? Kind::tcp_socket : Kind::other;
}

Kind kind_of(const Seen& one, int duplicate) {
    if ((one.flags & O_PATH) != 0) return Kind::other;
    if (one.link == "anon_inode:[eventfd]") return Kind::event_fd;
    if (one.link == "anon_inode:[eventpoll]") return Kind::epoll;
    if (one.link == "anon_inode:[timerfd]") return Kind::timer_fd;
    if (one.link == "anon_inode:[signalfd]") return Kind::signal_fd;
    if (one.link.starts_with("pipe:[") && S_ISFIFO(one.status.st_mode)) return Kind::pipe;
    if (S_ISSOCK(one.status.st_mode)) return kind_of_socket(duplicate);
    if (one.link.empty() || one.link.front() != '/') return Kind::other;
    if (S_ISREG(one.status.st_mode) && one.status.st_nlink == 0 && one.link.starts_with("/memfd:")) return Kind::object;
    if (S_ISREG(one.status.st_mode)) return Kind::file;
    if (S_ISDIR(one.status.st_mode)) return Kind::directory;
    return is_memory_device(one.status) ? Kind::memory_device : Kind::other;
}

bool is_gone(const Problem& problem) {
    return problem.error == ENOENT || problem.error == ESRCH || problem.error == EBADF;
}

uint64_t number(const std::string& text, int base) {
    uint64_t value = 0;
    std::from_chars(text.data(), text.data() + text.size(), value, base);
    return value;
}

// Fills `one`, whose pid and fd are set. A number may be closed and opened again while we read: a Problem with
// EAGAIN when what was read is not of one description.
Result<void> look_at(Seen& one, const Looker& looker) {
    const UniqueFd duplicate = TRY(looker.duplicate(one));
    one.link = TRY(read_link(fmt::format("/proc/{}/fd/{}", one.pid, one.fd)));
    one.info = TRY(read_fdinfo(one.pid, one.fd));
    if (::fstat(duplicate.get(), &one.status) != 0) return fail_errno(one.who() + ": cannot look at it");
    const std::string inode = one.field("ino");  // since Linux 5.14
    if (!inode.empty() && number(inode, 10) != one.status.st_ino) return fail_errno(EAGAIN, one.who());
    const uint64_t flags = number(one.field("flags"), 8);
    one.close_on_exec = (flags & O_CLOEXEC) != 0;
    one.flags = static_cast<uint32_t>(flags & ~static_cast<uint64_t>(O_CLOEXEC));
    one.position = static_cast<int64_t>(number(one.field("pos"), 10));
    if ((one.flags & O_PATH) == 0) {
        f_owner_ex owner{};
        if (::fcntl(duplicate.get(), F_GETOWN_EX, &owner) == 0) {
            one.owner = owner.pid;
            one.owner_type = owner.type;
        }
        one.owner_signal = std::max(0, ::fcntl(duplicate.get(), F_GETSIG));
    }
    one.kind = kind_of(one, duplicate.get());
    const uint64_t id = shared_object_id(one.status.st_dev, one.status.st_ino);
    if (one.kind == Kind::file && looker.options.moving_files.contains(id)) one.kind = Kind::object;
    return {};
}

Result<void> look_at_process(pid_t pid, Looker& looker) {
    const int handle = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
    if (handle < 0) return fail_errno(fmt::format("pid {}: cannot get a handle of the process", pid));
    looker.handles[pid] = UniqueFd(handle);
    const auto skip = looker.skip.find(pid);
    for (const int fd : TRY(read_fd_numbers(pid))) {
        if (skip != looker.skip.end() && skip->second == fd) continue;
        constexpr int tries = 5;
        for (int i = 0; i < tries; ++i) {
            Seen one;
            one.pid = pid;
            one.fd = fd;
            const auto done = look_at(one, looker);
            if (done) looker.seen.push_back(std::move(one));
            if (done || is_gone(done.error())) break;
            if (done.error().error != EAGAIN) return Failure(done.error());
        }
    }
    return {};
}

}  // namespace

const char* kind_name(Kind kind) {
    switch (kind) {
        case Kind::file: return "regular file";
        case Kind::directory: return "directory";
        case Kind::memory_device: return "memory device";
        case Kind::object: return "memfd";
        case Kind::pipe: return "pipe";
        case Kind::event_fd: return "eventfd";
        case Kind::epoll: return "epoll";
        case Kind::timer_fd: return "timerfd";
        case Kind::signal_fd: return "signalfd";
        case Kind::unix_socket: return "unix socket pair";
        case Kind::tcp_socket: return "TCP socket";
        case Kind::other: break;
    }
    return "other";
}

std::string Seen::who() const {
    return fmt::format("pid {} fd {}", pid, fd);
}

std::string Seen::field(std::string_view key) const {
    for (const std::string& line : info) {
        if (!line.starts_with(key) || line.size() <= key.size() || line[key.size()] != ':') continue;
        const size_t from = line.find_first_not_of(" \t", key.size() + 1);
        if (from == std::string::npos) return {};
        return line.substr(from, line.find_last_not_of(" \t") + 1 - from);
    }
    return {};
}

std::string Seen::text() const {
    std::string out;
    for (const std::string& line : info)
        if (!line.starts_with("flags:") && !line.starts_with("pos:")) out += line + '\n';
    return out;
}

Result<void> Looker::look() {
    for (const pid_t pid : pids) TRY(look_at_process(pid, *this));

    for (size_t i = 0; i < seen.size(); ++i) index[{seen[i].pid, seen[i].fd}] = i;

    std::set<uint64_t> shared;
    std::optional<UnixDiag> diag;
    for (const Seen& one : seen) {
        const uint64_t inode = one.status.st_ino;
        if (one.kind == Kind::pipe) shared.insert(inode);
        if (one.kind != Kind::unix_socket || unix_sockets.contains(inode)) continue;
        if (!diag) diag = TRY(UnixDiag::open());
        const auto found = TRY(diag->find(static_cast<uint32_t>(inode)));
        if (!found) continue;
        unix_sockets[inode] = *found;
        shared.insert({inode, found->peer});
    }
    if (shared.empty()) return {};
    auto found = find_outside(pids, shared);
    if (!found) return Failure(std::move(found.error()));
    outside = std::move(*found);
    return {};
}

Result<UniqueFd> Looker::duplicate(const Seen& one) const {
    const int fd = static_cast<int>(::syscall(SYS_pidfd_getfd, handles.at(one.pid).get(), one.fd, 0));
    if (fd < 0) return fail_errno(one.who() + ": cannot duplicate the descriptor");
    return UniqueFd(fd);
}

Result<pid_t> Looker::inside(pid_t id) const {
    const auto status = TRY(read_status(id, id));
    const auto process = status_ids(status, "Tgid");
    const auto ids = status_ids(status, "NSpid");
    if (process.empty() || ids.empty() || std::find(pids.begin(), pids.end(), process.front()) == pids.end())
        return fail(fmt::format("{} is not a task of the tree", id));
    return ids.back();
}

const Seen* Looker::find(pid_t pid, int fd) const {
    const auto found = index.find({pid, fd});
    return found == index.end() ? nullptr : &seen[found->second];
}

}  // namespace godwit::files
