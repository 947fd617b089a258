#include "transport/listener.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/stat.h>

#include <utility>

#include "transport/socket.h"

namespace godwit {
namespace {

constexpr int queue_length = 64;

Failure cannot_listen(const Address& address, int error) {
    return fail_errno(error, "cannot listen on " + address.text(),
                      error == EADDRINUSE
                          ? "another program, maybe another `godwit serve`, has this address: choose another"
                      : error == EADDRNOTAVAIL ? "the address must be one of this host's own"
                                               : "");
}

UniqueFd stream_socket(int family) { return UniqueFd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)); }

Result<UniqueFd> listen_tcp(const Address& address) {
    const AddressList list = TRY(resolve(address, true, ExitCode::usage));
    UniqueFd socket = stream_socket(list->ai_family);
    if (!socket) return cannot_listen(address, errno);
    const int one = 1;  // else a restart within a minute finds the address taken by connections of the dead
    (void)::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (::bind(socket.get(), list->ai_addr, list->ai_addrlen) != 0 || ::listen(socket.get(), queue_length) != 0)
        return cannot_listen(address, errno);
    return socket;
}

// Whether the file is a socket on which nobody listens any more.
bool is_left_over(const Address& address) {
    struct stat status {};
    if (::lstat(address.path.c_str(), &status) != 0 || !S_ISSOCK(status.st_mode)) return false;
    const UniqueFd probe = stream_socket(AF_UNIX);
    sockaddr_storage name;
    const socklen_t size = unix_sockaddr(address, name);
    return ::connect(probe.get(), reinterpret_cast<sockaddr*>(&name), size) != 0 && errno == ECONNREFUSED;
}

Result<UniqueFd> listen_unix(const Address& address) {
    UniqueFd socket = stream_socket(AF_UNIX);
    if (!socket) return cannot_listen(address, errno);
    // The file takes its mode from the socket when it is bound, so there is no moment at which others could connect.
    if (::fchmod(socket.get(), 0600) != 0) return cannot_listen(address, errno);
    sockaddr_storage name;
    const socklen_t size = unix_sockaddr(address, name);
    const auto bind_it = [&] { return ::bind(socket.get(), reinterpret_cast<sockaddr*>(&name), size) == 0; };
    // The probe is a connection that a live listener sees end at once, so it is made only when the name is taken.
    int error = bind_it() ? 0 : errno;
    if (error == EADDRINUSE && is_left_over(address) && ::unlink(address.path.c_str()) == 0)
        error = bind_it() ? 0 : errno;
    if (error != 0) return cannot_listen(address, error);
    if (::listen(socket.get(), queue_length) != 0) return cannot_listen(address, errno);
    return socket;
}

uint16_t port_of(int fd) {
    sockaddr_storage name{};
    socklen_t size = sizeof name;
    if (::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &size) != 0) return 0;
    if (name.ss_family == AF_INET) return ntohs(reinterpret_cast<sockaddr_in&>(name).sin_port);
    if (name.ss_family == AF_INET6) return ntohs(reinterpret_cast<sockaddr_in6&>(name).sin6_port);
    return 0;
}

}  // namespace

Result<Listener> Listener::open(const Address& address, const Security& security) {
    const bool local = address.kind == Address::Kind::unix_socket;
    if (local != (security.kind == Security::Kind::unix_socket))
        return fail("a unix socket's security does not fit " + address.text(), {}, ExitCode::usage);
    if (security.kind == Security::Kind::tls) TRY(check_keys(security.keys_dir));
    Listener listener(local ? TRY(listen_unix(address)) : TRY(listen_tcp(address)), security);
    listener.port_ = port_of(listener.socket_.get());
    listener.unlink_path_ = address.path;
    return listener;
}

Listener::~Listener() {
    if (socket_ && !unlink_path_.empty()) ::unlink(unlink_path_.c_str());
}

Result<std::optional<PendingLink>> Listener::accept(Deadline deadline) {
    for (;;) {
        sockaddr_storage name{};
        socklen_t size = sizeof name;
        UniqueFd socket(::accept4(fd(), reinterpret_cast<sockaddr*>(&name), &size, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (socket) {
            if (security_.kind != Security::Kind::unix_socket) tune_tcp(socket.get());
            const std::string peer = unlink_path_.empty() ? text_of(name) : "unix:" + unlink_path_;
            return PendingLink(std::move(socket), peer, security_);
        }
        // accept(2): errors of the new connection come here too, and mean that this one is gone, not the listener.
        if (errno == EINTR || errno == ECONNABORTED || errno == EPROTO || errno == ENETDOWN || errno == EHOSTUNREACH)
            continue;
        if (errno != EAGAIN) return fail_errno("cannot accept a connection");
        pollfd entry{fd(), POLLIN, 0};
        if (::poll(&entry, 1, deadline.poll_timeout()) == 0) return std::nullopt;
    }
}

Result<std::unique_ptr<Link>> PendingLink::finish(Deadline deadline) {
    switch (security_.kind) {
        case Security::Kind::tls:
            return tls_link(std::move(socket_), peer_, security_.keys_dir, TlsEnd::server, deadline);
        case Security::Kind::unix_socket:
            TRY(require_root_peer(socket_.get(), peer_));
            break;
        case Security::Kind::insecure:
            break;
    }
    return plain_link(std::move(socket_), peer_);
}

Result<std::unique_ptr<Link>> connect_link(const Address& address, const Security& security, Deadline deadline) {
    const bool local = address.kind == Address::Kind::unix_socket;
    if (local != (security.kind == Security::Kind::unix_socket))
        return fail("a unix socket's security does not fit " + address.text(), {}, ExitCode::usage);
    if (security.kind == Security::Kind::tls) TRY(check_keys(security.keys_dir));
    UniqueFd socket = TRY(connect_socket(address, deadline));
    if (security.kind == Security::Kind::tls)
        return tls_link(std::move(socket), address.text(), security.keys_dir, TlsEnd::client, deadline);
    if (local) TRY(require_root_peer(socket.get(), address.text()));
    return plain_link(std::move(socket), address.text());
}

}  // namespace godwit
