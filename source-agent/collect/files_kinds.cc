// What is refused by name, and which descriptors are one description.
#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cstring>

#include "common/base/text.h"
#include "common/kernel/kcmp.h"
#include "common/kernel/proc.h"
#include "source-agent/collect/files_internal.h"

namespace godwit::files {
namespace {

constexpr uint32_t kernel_large_file = 0100000;  // O_LARGEFILE, which glibc defines as 0 on x86-64
constexpr uint32_t known_flags = O_ACCMODE | O_APPEND | O_NONBLOCK | O_SYNC | O_ASYNC | O_DIRECT | kernel_large_file |
                                 O_DIRECTORY | O_NOFOLLOW | O_NOATIME;
constexpr uint32_t tmpfile_bit = O_TMPFILE & ~O_DIRECTORY;

constexpr const char* close_it = "have the program close it, then try again";
constexpr const char* not_yet = "this kind is not carried yet: have the program close it, then try again";

struct Named {
    const char* prefix;
    const char* what;
};

constexpr Named anonymous[] = {
    {"anon_inode:inotify", "an inotify instance"},
    {"anon_inode:[fanotify]", "a fanotify group"},
    {"anon_inode:[io_uring]", "an io_uring instance"},
    {"anon_inode:[userfaultfd]", "a userfaultfd"},
    {"anon_inode:[perf_event]", "a perf event"},
    {"anon_inode:[pidfd]", "a pidfd"},
    {"pidfd:[", "a pidfd"},
    {"anon_inode:bpf", "a BPF object"},
    {"anon_inode:kvm", "a KVM object"},
    {"anon_inode:[fscontext]", "a file system context (fsopen)"},
    {"anon_inode:[landlock-ruleset]", "a landlock ruleset"},
    {"anon_inode:seccomp notify", "a seccomp listener"},
    {"mnt:[", "a mount namespace"},
    {"net:[", "a network namespace"},
    {"pid:[", "a PID namespace"},
    {"user:[", "a user namespace"},
    {"uts:[", "a UTS namespace"},
    {"ipc:[", "an IPC namespace"},
    {"cgroup:[", "a cgroup namespace"},
    {"time:[", "a time namespace"},
};

const char* family_name(int family) {
    switch (family) {
        case AF_INET: return "IPv4";
        case AF_INET6: return "IPv6";
        case AF_NETLINK: return "netlink";
        case AF_PACKET: return "packet";
        case AF_VSOCK: return "vsock";
        case AF_ALG: return "kernel cryptography (AF_ALG)";
        case AF_XDP: return "XDP";
        case AF_BLUETOOTH: return "bluetooth";
        case AF_CAN: return "CAN";
        case AF_KEY: return "IPsec key";
        case AF_TIPC: return "TIPC";
        default: return nullptr;
    }
}

int socket_number(int fd, int name) {
    int value = 0;
    socklen_t size = sizeof value;
    return ::getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
}

std::string socket_name(int duplicate) {
    const int family = socket_number(duplicate, SO_DOMAIN);
    const int type = socket_number(duplicate, SO_TYPE);
    const int protocol = socket_number(duplicate, SO_PROTOCOL);
    if (family == AF_INET || family == AF_INET6) {
        sockaddr_storage address{};
        socklen_t size = sizeof address;
        std::string where;
        if (::getsockname(duplicate, reinterpret_cast<sockaddr*>(&address), &size) == 0)
            where = " " + address_text(std::string(reinterpret_cast<const char*>(&address), size));
        if (type == SOCK_DGRAM && protocol == IPPROTO_UDP) return "a UDP socket" + where;
        if (type == SOCK_RAW) return fmt::format("a raw {} socket of protocol {}", family_name(family), protocol);
        if (protocol == IPPROTO_MPTCP) return "an MPTCP socket" + where;
        if (protocol == IPPROTO_SCTP) return "an SCTP socket" + where;
    }
    if (const char* name = family_name(family))
        return fmt::format("a {} socket (type {}, protocol {})", name, type, protocol);
    return fmt::format("a socket of family {} (type {}, protocol {})", family, type, protocol);
}

bool is_terminal(const struct stat& status) {
    const unsigned number = major(status.st_rdev);
    return number == 4 || number == 5 || (number >= 128 && number <= 143);  // tty, console and ptmx, pty masters and slaves
}

Refusal check_lock(const Seen& one) {
    const std::string lock = one.field("lock");  // "1: POSIX  ADVISORY  WRITE 77 08:01:99 0 EOF"
    if (lock.empty()) return {};
    std::string kind = lock.substr(std::min(lock.size(), lock.find(':') + 1));
    kind.erase(0, kind.find_first_not_of(' '));
    const std::string word = kind.substr(0, kind.find(' '));
    const char* what = word == "FLOCK"    ? "a flock lock"
                       : word == "POSIX"  ? "a POSIX lock"
                       : word == "OFDLCK" ? "an open file description lock"
                       : word == "LEASE"  ? "a lease"
                                          : nullptr;
    return refuse(one, fmt::format("{} is held on {}", what != nullptr ? what : "a lock (" + printable(word) + ")", printable(one.link)),
                  "file locks (--file-locks) are not carried yet: have the program release it, then try again");
}

Refusal check_owner(const Seen& one, const Looker& looker) {
    if (one.owner == 0) {
        if ((one.flags & O_ASYNC) != 0)
            return refuse(one, "signals for it (O_ASYNC) go to a process that is gone", "have the program clear O_ASYNC");
        return {};
    }
    // A directory's owner is set by fcntl(F_NOTIFY), and what it watches for cannot be asked.
    if (one.kind == Kind::directory) return refuse(one, "directory notification (dnotify) on " + printable(one.link), not_yet);
    if (one.owner_type == F_OWNER_PGRP) {
        const auto stat = read_stat(one.owner);
        if (stat && stat->pgid == one.owner && looker.inside(one.owner)) return {};
        return refuse(one, fmt::format("its signals go to process group {}, which is not led by the tree", one.owner),
                      "start the program as leader of its own process group (setsid)");
    }
    if (looker.inside(one.owner)) return {};
    return refuse(one, fmt::format("its signals (F_SETOWN) go to {}, which is not of the tree", one.owner),
                  "have the program set another owner");
}

Refusal check_flags(const Seen& one) {
    if ((one.flags & tmpfile_bit) != 0) return refuse(one, "a file made with O_TMPFILE", not_yet);
    const uint32_t unknown = one.flags & ~known_flags;
    if (unknown != 0) return refuse(one, fmt::format("opened with flags {:#o}, which are not known here", unknown), close_it);
    return {};
}

Refusal check_kind(const Seen& one, const Looker& looker) {
    switch (one.kind) {
        case Kind::file:
        case Kind::directory: return check_file(one);
        case Kind::memory_device: return {};
        case Kind::object: return check_object(one);
        case Kind::pipe: return check_pipe(one, looker);
        case Kind::event_fd:
        case Kind::epoll:
        case Kind::timer_fd:
        case Kind::signal_fd: return check_event(one, looker);
        case Kind::unix_socket: return check_unix(one, looker);
        case Kind::tcp_socket: return check_tcp(one, looker);
        case Kind::other: break;
    }
    const auto duplicate = looker.duplicate(one);
    return refuse_other(one, duplicate ? duplicate->get() : -1);
}

// The key by which descriptors that cannot be one description are told apart without asking the kernel pair by pair.
std::string key_of(const Seen& one) {
    const std::string key =
        fmt::format("{}/{}/{}/{}/{}", one.status.st_dev, one.status.st_ino, one.flags, one.position, one.link);
    return one.kind == Kind::timer_fd ? key : key + one.text();  // what is left of a timer changes while we read
}

}  // namespace

Problem refuse(const Seen& one, const std::string& what, std::string hint) {
    return Problem{one.who() + ": " + what, std::move(hint), ExitCode::unsupported, 0};
}

Problem refuse_other(const Seen& one, int duplicate) {
    const std::string link = printable(one.link);
    if ((one.flags & O_PATH) != 0) return refuse(one, "opened with O_PATH: " + link, not_yet);
    for (const Named& named : anonymous)
        if (one.link.starts_with(named.prefix)) return refuse(one, fmt::format("{} ({})", named.what, link), not_yet);
    if (S_ISCHR(one.status.st_mode) && is_terminal(one.status))
        return refuse(one, "the terminal " + link,
                      "terminals (--shell-job) are not carried yet: start the program with setsid and its input and output in files");
    if (S_ISCHR(one.status.st_mode) || S_ISBLK(one.status.st_mode))
        return refuse(one, fmt::format("the {} device {} ({}:{})", S_ISCHR(one.status.st_mode) ? "character" : "block", link,
                                       major(one.status.st_rdev), minor(one.status.st_rdev)),
                      "devices stay on their host: " + std::string(close_it));
    if (S_ISFIFO(one.status.st_mode)) return refuse(one, "the FIFO " + link, not_yet);
    if (S_ISSOCK(one.status.st_mode) && duplicate >= 0) return refuse(one, socket_name(duplicate), not_yet);
    return refuse(one, fmt::format("an object of a kind that is not known here: {} (mode {:#o})", link, one.status.st_mode), close_it);
}

Result<Problems> check_all(const Looker& looker) {
    Problems problems;
    for (size_t i = 1; i < looker.pids.size(); ++i)
        if (kcmp_tables(looker.pids[0], looker.pids[i]) == 0)
            problems.push_back({fmt::format("pid {}: shares its descriptor table with pid {}", looker.pids[i], looker.pids[0]),
                                "processes that share a table (CLONE_FILES) are not carried", ExitCode::unsupported, 0});
    for (const pid_t pid : looker.pids)
        for (const pid_t tid : TRY(read_tasks(pid)))
            if (tid != pid && kcmp_tables(pid, tid) > 0)
                problems.push_back({fmt::format("pid {} tid {}: has a descriptor table of its own", pid, tid),
                                    "threads that left the table of their process (unshare) are not carried",
                                    ExitCode::unsupported, 0});
    for (const Seen& one : looker.seen) {
        // Of an object that is not carried at all, flags and locks are of no interest.
        auto refusal = check_kind(one, looker);
        if (!refusal) refusal = check_lock(one);
        if (!refusal) refusal = check_flags(one);
        if (!refusal) refusal = check_owner(one, looker);
        if (refusal) problems.push_back(std::move(*refusal));
    }
    return problems;
}

Result<std::vector<size_t>> share(const Looker& looker) {
    std::map<std::string, std::vector<size_t>> candidates;
    for (size_t i = 0; i < looker.seen.size(); ++i) candidates[key_of(looker.seen[i])].push_back(i);

    std::vector<size_t> first(looker.seen.size());
    for (auto& [key, group] : candidates) {
        int error = 0;
        const auto compare = [&](size_t a, size_t b) {
            const Seen& one = looker.seen[a];
            const Seen& other = looker.seen[b];
            const int order = kcmp_files(one.pid, one.fd, other.pid, other.fd);
            if (order < 0 || order == 3) error = order < 0 ? errno : ENOSYS;
            return order;
        };
        // The order of kcmp is total and stands still while the kernel runs, so equal ones end side by side.
        std::sort(group.begin(), group.end(), [&](size_t a, size_t b) { return compare(a, b) == 1; });
        for (size_t i = 0, head = 0; i < group.size(); ++i) {
            if (i > 0 && compare(group[head], group[i]) != 0) head = i;
            first[group[i]] = group[head];
        }
        if (error != 0)
            return fail_errno(error, looker.seen[group[0]].who() + ": cannot compare descriptors", "the kernel needs CONFIG_KCMP");
    }
    // The first one by process and number stands for its description.
    std::map<size_t, size_t> lowest;
    for (size_t i = 0; i < first.size(); ++i) lowest.emplace(first[i], i);
    for (size_t& one : first) one = lowest.at(one);
    return first;
}

std::string address_text(const std::string& bytes) {
    char text[INET6_ADDRSTRLEN] = "?";
    sockaddr_storage address{};
    std::memcpy(&address, bytes.data(), std::min(bytes.size(), sizeof address));
    if (address.ss_family == AF_INET) {
        const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
        ::inet_ntop(AF_INET, &v4.sin_addr, text, sizeof text);
        return fmt::format("{}:{}", text, ntohs(v4.sin_port));
    }
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
    ::inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof text);
    return fmt::format("[{}]:{}", text, ntohs(v6.sin6_port));
}

}  // namespace godwit::files
