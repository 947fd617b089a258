// Unix sockets made by socketpair(2) whose both ends the tree holds.
#include <fmt/format.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "common/base/defer.h"
#include "common/base/text.h"
#include "common/kernel/socket_options.h"
#include "source-agent/collect/files_internal.h"

namespace godwit::files {
namespace {

constexpr size_t longest_message = 1u << 20;
constexpr size_t longest_queue = 16u << 20;
constexpr const char* only_pairs = "only socketpairs within the tree are carried: have the program close it, then try again";

// "/run/x.sock", "@name", "without a name"
std::string name_text(const std::string& name) {
    if (name.empty()) return "without a name";
    if (name.front() == '\0') return printable("@" + name.substr(1));
    return printable(name.substr(0, name.find('\0')));
}

std::string peer_name(int socket) {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    if (::getpeername(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0 || size <= sizeof(sa_family_t)) return {};
    return std::string(reinterpret_cast<const char*>(&address) + sizeof(sa_family_t), size - sizeof(sa_family_t));
}

bool has_urgent_data(int socket) {
    pollfd waited{socket, POLLPRI, 0};
    return ::poll(&waited, 1, 0) == 1 && (waited.revents & POLLPRI) != 0;
}

Refusal check_peer(const Seen& one, const UnixSocket& socket, const Looker& looker, int duplicate) {
    if (socket.peer == 0) {
        sockaddr_storage nobody{};
        socklen_t size = sizeof nobody;
        if (::getpeername(duplicate, reinterpret_cast<sockaddr*>(&nobody), &size) != 0)
            return refuse(one, "a unix socket that is not connected", only_pairs);
        return refuse(one, "a unix socket whose other end is closed (half-open)", "have the program close it, then try again");
    }
    if (looker.unix_sockets.contains(socket.peer)) return {};
    const std::string peer = peer_name(duplicate);
    const std::string where = peer.empty() ? std::string() : " (" + name_text(peer) + ")";
    const auto holder = looker.outside.find(socket.peer);
    if (holder == looker.outside.end())
        return refuse(one, fmt::format("a unix socket whose other end{} is outside the tree", where), only_pairs);
    return refuse(one, fmt::format("a unix socket connected to pid {} ({}) fd {}{}", holder->second.pid, holder->second.name,
                                   holder->second.fd, where),
                  "external unix sockets (--ext-unix-sk) are not carried yet: have the program close it");
}

struct Control {
    alignas(cmsghdr) char bytes[4096];
};

// Closes descriptors that came with a peeked message; true when there was anything besides data.
bool drop_ancillary(msghdr& message) {
    bool any = false;
    for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
        any = true;
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
        for (size_t i = 0; i < (part->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
            ::close(fd);
        }
    }
    return any || (message.msg_flags & MSG_CTRUNC) != 0;
}

// One MSG_PEEK into `data`: how much it got; nothing when the queue (from the peek offset on) is empty.
Result<std::optional<size_t>> peek(const Seen& one, int socket, std::string& data) {
    Control control;
    iovec vector{data.data(), data.size()};
    msghdr message{};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof control.bytes;
    const ssize_t got = ::recvmsg(socket, &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC | MSG_TRUNC);
    if (got < 0 && errno == EAGAIN) return std::optional<size_t>();
    if (got < 0) return fail_errno(one.who() + ": cannot look into the queue of the unix socket");
    if (drop_ancillary(message))
        return unsupported(one.who() + ": descriptors or credentials are under way in the unix socket",
                           "these are not carried yet: try again when the program has received them");
    if (static_cast<size_t>(got) > data.size())
        return unsupported(fmt::format("{}: a message of {} bytes is under way in the unix socket", one.who(), got),
                           "try again when the program has received it");
    return std::optional<size_t>(static_cast<size_t>(got));
}

bool set_peek_offset(int socket, int offset) {
    return ::setsockopt(socket, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset) == 0;
}

// Reads all messages by moving the peek offset, which belongs to the socket and is put back. If we die before that, it
// stays: only a program that itself peeks at this socket could tell, and its next real receive takes it back.
Result<void> peek_messages(const Seen& one, int socket, image::SocketPair& out) {
    int before = -1;
    socklen_t size = sizeof before;
    if (::getsockopt(socket, SOL_SOCKET, SO_PEEK_OFF, &before, &size) != 0)
        return fail_errno(one.who() + ": cannot ask the peek offset of the unix socket");
    if (!set_peek_offset(socket, 0)) return fail_errno(one.who() + ": cannot move the peek offset of the unix socket");
    const Undo restore([&] { set_peek_offset(socket, before); });
    std::string buffer(longest_message, '\0');
    // An empty message does not move the offset, so it would be seen for ever.
    for (size_t all = 0; all <= longest_queue;) {
        const auto size_got = TRY(peek(one, socket, buffer));
        if (!size_got) return {};
        if (*size_got == 0 && out.read_shut()) return {};  // how the end of what a shut peer sent reads
        if (*size_got == 0)
            return unsupported(one.who() + ": an empty message is under way in the unix socket", "try again when the program has received it");
        all += *size_got;
        out.add_queue()->set_data(buffer.substr(0, *size_got));
    }
    return unsupported(fmt::format("{}: more than {} bytes wait in the unix socket", one.who(), longest_queue),
                       "try again when the program has received them");
}

Result<void> collect_queue(const Seen& one, int socket, image::SocketPair& out) {
    int waiting = 0;
    if (::ioctl(socket, FIONREAD, &waiting) != 0) return fail_errno(one.who() + ": cannot ask how much the unix socket holds");
    pollfd readable{socket, POLLIN, 0};
    ::poll(&readable, 1, 0);
    if ((readable.revents & POLLIN) == 0) return {};
    if (out.type() != SOCK_STREAM) {
        return peek_messages(one, socket, out);
    }
    // A stream is peeked at as a whole, without touching its peek offset.
    int offset = -1;
    socklen_t size = sizeof offset;
    if (::getsockopt(socket, SOL_SOCKET, SO_PEEK_OFF, &offset, &size) == 0 && offset >= 0)
        return unsupported(one.who() + ": a unix stream in the middle of peeking (SO_PEEK_OFF)", "have the program set it to -1");
    if (waiting == 0) return {};
    std::string data(static_cast<size_t>(waiting), '\0');
    const auto got = TRY(peek(one, socket, data));
    if (!got || *got != data.size())
        return fail(fmt::format("{}: only {} of {} bytes in the unix socket can be read", one.who(), got.value_or(0), waiting));
    out.add_queue()->set_data(std::move(data));
    return {};
}

}  // namespace

Refusal check_unix(const Seen& one, const Looker& looker) {
    const auto found = looker.unix_sockets.find(one.status.st_ino);
    if (found == looker.unix_sockets.end())
        return refuse(one, "a unix socket of another network namespace", "start godwit in the program's network namespace");
    const UnixSocket& socket = found->second;
    if (socket.listening) return refuse(one, "a listening unix socket, " + name_text(socket.name), only_pairs);
    const auto duplicate = looker.duplicate(one);
    if (!duplicate) return {};  // vanished
    if (auto refusal = check_peer(one, socket, looker, duplicate->get())) return refusal;
    if (!socket.name.empty()) return refuse(one, "a unix socket bound to " + name_text(socket.name), only_pairs);
    const auto outsider = looker.outside.find(one.status.st_ino);
    if (outsider != looker.outside.end())
        return refuse(one, fmt::format("a unix socket that pid {} ({}) outside the tree holds too, fd {}", outsider->second.pid,
                                       outsider->second.name, outsider->second.fd),
                      "migrate both, or have one close it");
    const auto peer = looker.unix_sockets.find(socket.peer);
    if (peer == looker.unix_sockets.end() || peer->second.peer != socket.inode)
        return refuse(one, "a unix socket whose other end is connected elsewhere", only_pairs);
    if (has_urgent_data(duplicate->get()))
        return refuse(one, "urgent data (MSG_OOB) is under way in the unix socket", "try again when the program has received it");
    if (const std::string extra = uncarried_option(duplicate->get()); !extra.empty())
        return refuse(one, "a unix socket with " + extra, "have the program close it, then try again");
    return {};
}

Result<void> collect_unix(const Seen& one, const Looker& looker, image::Description& out) {
    const UniqueFd duplicate = TRY(looker.duplicate(one));
    const UnixSocket& socket = looker.unix_sockets.at(one.status.st_ino);
    auto* pair = out.mutable_socket_pair();
    pair->set_inode(socket.inode);
    pair->set_peer(socket.peer);
    pair->set_type(socket.type);
    pair->set_read_shut(socket.read_shut);
    pair->set_write_shut(socket.write_shut);
    pair->set_uid(one.status.st_uid);
    pair->set_gid(one.status.st_gid);
    TRY(read_socket_options(duplicate.get(), *pair->mutable_options()));
    return collect_queue(one, duplicate.get(), *pair);
}

}  // namespace godwit::files
