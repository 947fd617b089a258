// Socketpairs, with what was under way in them.
#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/kernel/socket_options.h"
#include "dest-agent/restore/files_internal.h"

#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72  // Linux 5.14
#endif

namespace godwit::files {
namespace {

struct End {
    const image::SocketPair* pair = nullptr;
    uint32_t description = 0;
    UniqueFd fd;
};

// Large enough for whatever was queued when the program's own limit was larger once.
Result<void> widen(int socket) {
    constexpr int size = 64 << 20;
    if (::setsockopt(socket, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) != 0)
        return fail_errno(errno, "cannot widen a unix socket", "godwit needs CAP_NET_ADMIN");
    return {};
}

// What `to` has not read yet is sent again by its peer, message by message.
Result<void> fill(int from, const image::SocketPair& to) {
    int before = 0;
    socklen_t size = sizeof before;
    if (::getsockopt(from, SOL_SOCKET, SO_SNDBUF, &before, &size) != 0) return fail_errno("cannot ask the size of a unix socket");
    if (to.queue_size() > 0) TRY(widen(from));
    for (const auto& message : to.queue()) {
        size_t sent = 0;
        while (sent < message.data().size()) {
            const ssize_t done = ::send(from, message.data().data() + sent, message.data().size() - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (done <= 0) return fail_errno(fmt::format("cannot queue a message of {} bytes in a unix socket", message.data().size()));
            sent += static_cast<size_t>(done);
        }
    }
    const int half = before / 2;
    if (to.queue_size() == 0) return {};
    if (::setsockopt(from, SOL_SOCKET, SO_SNDBUFFORCE, &half, sizeof half) != 0)
        return fail_errno("cannot set the size of a unix socket");
    // The size counts as set by the program now. A kernel without the option cannot show that either.
    const int unlocked = 0;
    (void)::setsockopt(from, SOL_SOCKET, SO_BUF_LOCK, &unlocked, sizeof unlocked);
    return {};
}

Result<void> finish(const End& end, const std::string& who) {
    if (end.pair->write_shut() && ::shutdown(end.fd.get(), SHUT_WR) != 0) return fail_errno(who + ": cannot shut it");
    if (end.pair->read_shut() && ::shutdown(end.fd.get(), SHUT_RD) != 0) return fail_errno(who + ": cannot shut it");
    if ((end.pair->uid() != 0 || end.pair->gid() != 0) && ::fchown(end.fd.get(), end.pair->uid(), end.pair->gid()) != 0)
        return fail_errno(fmt::format("{}: cannot give it to uid {}", who, end.pair->uid()));
    return {};
}

Result<void> make_pair(End& one, End& other) {
    const int type = one.pair->type();
    if (type != other.pair->type() || (type != SOCK_STREAM && type != SOCK_DGRAM && type != SOCK_SEQPACKET))
        return peer_failed(fmt::format("a unix socket pair of types {} and {}", type, other.pair->type()));
    int fds[2];
    if (::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds) != 0) return fail_errno("cannot make a socket pair");
    one.fd.reset(fds[0]);
    other.fd.reset(fds[1]);
    return {};
}

}  // namespace

Result<void> make_socket_pairs(const image::Files& files, Made& made) {
    std::map<uint64_t, End> ends;
    for (const auto& description : files.descriptions())
        if (description.has_socket_pair() &&
            !ends.emplace(description.socket_pair().inode(), End{&description.socket_pair(), description.id(), {}}).second)
            return peer_failed(fmt::format("unix socket {} came twice", description.socket_pair().inode()));
    for (auto& [inode, end] : ends) {
        const auto peer = ends.find(end.pair->peer());
        if (peer == ends.end() || peer->first == inode || peer->second.pair->peer() != inode)
            return peer_failed(fmt::format("unix socket {} came without its other end", inode));
        if (!end.fd) TRY(make_pair(end, peer->second));
    }
    for (auto& [inode, end] : ends) TRY(fill(ends.at(end.pair->peer()).fd.get(), *end.pair));
    // Options last: a size or SO_PASSCRED must not stand in the way of the queue.
    for (auto& [inode, end] : ends) {
        const std::string who = who_holds(files, end.description);
        TRY(set_socket_options(end.fd.get(), end.pair->options(), who));
        TRY(finish(end, who));
    }
    for (auto& [inode, end] : ends) made.emplace(end.description, std::move(end.fd));
    return {};
}

}  // namespace godwit::files
