// What the files_*.cc of this folder share: one descriptor as it was seen, and one pair of functions per group of kinds,
// check (what cannot be carried, by name) and collect (what is carried).
//
// Everything is asked through duplicates (pidfd_getfd(2), Linux 5.6), each closed right after: closing one of ours
// releases no lock of the program and wakes nobody. If we die, they are closed with us.
// Threads: one at a time per Looker.
#pragma once

#include <sys/stat.h>

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/base/unique_fd.h"
#include "common/image/files.pb.h"
#include "common/image/session.pb.h"
#include "common/kernel/unix_diag.h"
#include "source-agent/collect/collect.h"

namespace godwit::files {

enum class Kind { file, directory, memory_device, object, pipe, event_fd, epoll, timer_fd, signal_fd, unix_socket, tcp_socket, other };

// The name in Plan.object_kinds; also what a Problem calls it.
const char* kind_name(Kind kind);

// One descriptor of one process at one moment.
struct Seen {
    pid_t pid = 0;
    int fd = -1;
    Kind kind = Kind::other;
    std::string link;                // target of /proc/PID/fd/FD
    std::vector<std::string> info;   // /proc/PID/fdinfo/FD
    struct stat status {};
    uint32_t flags = 0;              // F_GETFL
    bool close_on_exec = false;
    int64_t position = 0;
    int owner = 0, owner_type = 0, owner_signal = 0;

    std::string who() const;  // "pid 7 fd 3"
    // Value of the fdinfo line "KEY:", without blanks around it; empty where there is none.
    std::string field(std::string_view key) const;
    std::string text() const;  // `info` in one piece, without position and flags
};

// A description held outside the tree.
struct Outsider {
    pid_t pid = 0;
    int fd = -1;
    std::string name;  // comm
};

// The descriptors of a tree and what is known around them.
struct Looker {
    std::vector<pid_t> pids;
    std::map<pid_t, int> skip;             // per process: the executor's socket
    CollectOptions options;
    std::map<pid_t, UniqueFd> handles;     // pidfds
    std::vector<Seen> seen;                // by process, then number
    std::map<std::pair<pid_t, int>, size_t> index;  // process and number → place in `seen`
    std::map<uint64_t, Outsider> outside;  // pipe and socket inodes (peers' too) that processes outside the tree hold
    std::map<uint64_t, UnixSocket> unix_sockets;  // those of the tree, by inode; what is missing is elsewhere

    // Fills `seen` and `outside`. A descriptor that vanishes meanwhile is passed over.
    Result<void> look();
    // A duplicate of the descriptor in this process.
    Result<UniqueFd> duplicate(const Seen& one) const;
    // A pid or tid of the tree as the program knows it; a Problem when it is not of the tree.
    Result<pid_t> inside(pid_t id) const;
    // The first descriptor of a pipe or socket inode that `wanted` accepts, or null.
    template <class Wanted>
    const Seen* find(uint64_t inode, Wanted wanted) const {
        for (const Seen& one : seen)
            if ((one.kind == Kind::pipe || one.kind == Kind::unix_socket) && one.status.st_ino == inode && wanted(one))
                return &one;
        return nullptr;
    }
    // The descriptor of this number, or null.
    const Seen* find(pid_t pid, int fd) const;
};

// ---- one per group of kinds. check_*: the Problem that names why this cannot be carried, or nothing; may be asked of a
// running process. collect_*: of a stopped one, after every check passed.
using Refusal = std::optional<Problem>;

Refusal check_file(const Seen& one);
void collect_file(const Seen& one, image::Description& out);

Refusal check_object(const Seen& one);  // a memfd, or other shared memory that is held open
void collect_object(const Seen& one, image::Description& out);

Refusal check_pipe(const Seen& one, const Looker& looker);
void collect_pipe(const Seen& one, image::Description& out);
// Capacities and contents of all pipes, each once.
Result<void> collect_pipe_contents(const Looker& looker, image::Files& out);

Refusal check_event(const Seen& one, const Looker& looker);  // eventfd, epoll, timerfd, signalfd
Result<void> collect_event(const Seen& one, const Looker& looker, image::Description& out);

Refusal check_unix(const Seen& one, const Looker& looker);
Result<void> collect_unix(const Seen& one, const Looker& looker, image::Description& out);

Refusal check_tcp(const Seen& one, const Looker& looker);
Result<void> collect_tcp(const Seen& one, const Looker& looker, image::Description& out);

// What of no carried kind is called, and what would help.
Problem refuse_other(const Seen& one, int duplicate);

// Makes a refusal: "pid 7 fd 3: WHAT", exit code unsupported.
Problem refuse(const Seen& one, const std::string& what, std::string hint);

// Every refusal of the tree.
Result<Problems> check_all(const Looker& looker);
// Groups `seen` into descriptions: element i is the index in `seen` of the first descriptor of the same description.
Result<std::vector<size_t>> share(const Looker& looker);

// pipe and socket inodes of `wanted` that processes which are not in `pids` hold.
Result<std::map<uint64_t, Outsider>> find_outside(const std::vector<pid_t>& pids, const std::set<uint64_t>& wanted);

// "127.0.0.1:6379", "[::1]:80"; for messages.
std::string address_text(const std::string& sockaddr_bytes);

}  // namespace godwit::files
