#include "transport/socket.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/un.h>

#include <cstring>
#include <optional>

namespace godwit {
namespace {

constexpr const char* is_it_running =
    "is `godwit serve` running there, on this port, and does the firewall let us through?";

void set_option(int fd, int level, int name, int value) { (void)::setsockopt(fd, level, name, &value, sizeof value); }

// Waits for a connect(2) that is under way and returns its error, 0 or ETIMEDOUT included.
int finish_connect(int fd, Deadline deadline) {
    for (;;) {
        pollfd entry{fd, POLLOUT, 0};
        const int ready = ::poll(&entry, 1, deadline.poll_timeout());
        if (ready < 0 && errno == EINTR) continue;
        if (ready < 0) return errno;
        if (ready == 0) return ETIMEDOUT;
        int error = 0;
        socklen_t size = sizeof error;
        if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) return errno;
        return error;
    }
}

struct Attempt {
    UniqueFd socket;
    int error = 0;
};

Attempt attempt(int family, const sockaddr* address, socklen_t size, Deadline deadline) {
    Attempt result;
    result.socket = UniqueFd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!result.socket) {
        result.error = errno;
        return result;
    }
    if (::connect(result.socket.get(), address, size) == 0) return result;
    // EAGAIN: a unix listener's queue is full. It has no event to wait for, so it is a failure.
    result.error = errno == EINPROGRESS || errno == EINTR ? finish_connect(result.socket.get(), deadline) : errno;
    return result;
}

Failure cannot_connect(const Address& address, int error) {
    Failure failure = fail_errno(error, "cannot connect to " + address.text(), is_it_running);
    failure.value().code = ExitCode::peer;
    return failure;
}

Result<UniqueFd> connect_unix(const Address& address, Deadline deadline) {
    sockaddr_storage name;
    const socklen_t size = unix_sockaddr(address, name);
    Attempt result = attempt(AF_UNIX, reinterpret_cast<sockaddr*>(&name), size, deadline);
    if (result.error != 0) return cannot_connect(address, result.error);
    return std::move(result.socket);
}

}  // namespace

std::string text_of(const sockaddr_storage& address) {
    char text[INET6_ADDRSTRLEN] = "?";
    if (address.ss_family == AF_INET) {
        const auto& in = reinterpret_cast<const sockaddr_in&>(address);
        ::inet_ntop(AF_INET, &in.sin_addr, text, sizeof text);
        return fmt::format("{}:{}", text, ntohs(in.sin_port));
    }
    if (address.ss_family == AF_INET6) {
        const auto& in = reinterpret_cast<const sockaddr_in6&>(address);
        ::inet_ntop(AF_INET6, &in.sin6_addr, text, sizeof text);
        return fmt::format("[{}]:{}", text, ntohs(in.sin6_port));
    }
    return "unix";
}

void tune_tcp(int fd) {
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 10);
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 5);
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 4);
    set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 30'000);
}

Result<bool> wait_for(int fd, short events, Deadline deadline) {
    for (;;) {
        pollfd entry{fd, events, 0};
        const int ready = ::poll(&entry, 1, deadline.poll_timeout());
        if (ready > 0) return true;
        if (ready == 0) return false;
        if (errno != EINTR) return fail_errno("poll");
    }
}

Result<void> require_root_peer(int fd, const std::string& peer) {
    ucred credentials{};
    socklen_t size = sizeof credentials;
    if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0)
        return fail_errno("cannot learn who is at the other end of " + peer);
    if (credentials.uid != 0)
        return peer_failed(
            fmt::format("pid {} at the other end of {} is uid {}, not root", credentials.pid, peer, credentials.uid),
            "both ends of a unix socket must run as root");
    return {};
}

socklen_t unix_sockaddr(const Address& address, sockaddr_storage& out) {
    out = {};
    auto& name = reinterpret_cast<sockaddr_un&>(out);
    name.sun_family = AF_UNIX;
    address.path.copy(name.sun_path, sizeof name.sun_path - 1);
    return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address.path.size() + 1);
}

Result<AddressList> resolve(const Address& address, bool passive, ExitCode unresolved) {
    addrinfo wanted{};
    wanted.ai_socktype = SOCK_STREAM;
    wanted.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0);
    addrinfo* list = nullptr;
    const int error = ::getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &wanted, &list);
    if (error != 0)
        return fail(fmt::format("cannot resolve {}: {}", address.host,
                                error == EAI_SYSTEM ? std::strerror(errno) : ::gai_strerror(error)),
                    "check the name, or give the host's number", unresolved);
    return AddressList(list);
}

Result<UniqueFd> connect_socket(const Address& address, Deadline deadline) {
    if (address.kind == Address::Kind::unix_socket) return connect_unix(address, deadline);
    const AddressList list = TRY(resolve(address, false, ExitCode::peer));
    int error = EADDRNOTAVAIL;
    for (const addrinfo* entry = list.get(); entry != nullptr; entry = entry->ai_next) {
        Attempt result = attempt(entry->ai_family, entry->ai_addr, entry->ai_addrlen, deadline);
        error = result.error;
        if (error != 0) continue;
        tune_tcp(result.socket.get());
        return std::move(result.socket);
    }
    return cannot_connect(address, error);
}

}  // namespace godwit
