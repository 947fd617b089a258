// TCP sockets that listen or are bound, and what stands for a connection that was closed at the move.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "common/base/log.h"
#include "common/kernel/socket_options.h"
#include "dest-agent/restore/files_internal.h"

namespace godwit::files {
namespace {

constexpr int repair_off_silently = -1;  // TCP_REPAIR_OFF_NO_WP, Linux 4.19

std::string address_text(const sockaddr_storage& address) {
    char text[INET6_ADDRSTRLEN] = "?";
    if (address.ss_family == AF_INET) {
        const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
        ::inet_ntop(AF_INET, &v4.sin_addr, text, sizeof text);
        return fmt::format("{}:{}", text, ntohs(v4.sin_port));
    }
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
    ::inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof text);
    return fmt::format("[{}]:{}", text, ntohs(v6.sin6_port));
}

// The error that is waiting, without any network: disconnecting a socket in repair mode leaves ECONNABORTED on it
// (tcp_disconnect() since Linux 3.5). An orderly end alone could pass for the end of a complete answer.
Result<void> leave_error(int socket) {
    const int on = 1;
    if (::setsockopt(socket, IPPROTO_TCP, TCP_REPAIR, &on, sizeof on) != 0)
        return fail_errno(errno, "cannot put a TCP socket in repair mode", "the kernel needs CONFIG_CHECKPOINT_RESTORE, godwit CAP_NET_ADMIN");
    const sockaddr nobody{AF_UNSPEC, {}};
    if (::connect(socket, &nobody, sizeof nobody) != 0) return fail_errno("cannot disconnect a TCP socket");
    if (::setsockopt(socket, IPPROTO_TCP, TCP_REPAIR, &repair_off_silently, sizeof repair_off_silently) != 0)
        return fail_errno("cannot take a TCP socket out of repair mode");
    return {};
}

Result<void> make_closed(int socket, bool error_pending) {
    if (error_pending) TRY(leave_error(socket));
    // Says ENOTCONN and shuts both directions all the same (inet_shutdown()): end-of-file, EPIPE.
    if (::shutdown(socket, SHUT_RDWR) != 0 && errno != ENOTCONN) return fail_errno("cannot shut a TCP socket");
    return {};
}

Result<void> bind_to(int socket, const std::string& bytes, std::string& text) {
    sockaddr_storage address{};
    if (bytes.size() < sizeof(sockaddr_in) || bytes.size() > sizeof address) return peer_failed("not a socket address");
    std::memcpy(&address, bytes.data(), bytes.size());
    if (address.ss_family != AF_INET && address.ss_family != AF_INET6) return peer_failed("not an internet address");
    text = address_text(address);
    if (::bind(socket, reinterpret_cast<const sockaddr*>(&address), static_cast<socklen_t>(bytes.size())) == 0) return {};
    const int error = errno;
    return fail_errno(error, "cannot bind to " + text,
                      error == EADDRINUSE      ? "another program of the destination uses the port: stop it first"
                      : error == EADDRNOTAVAIL ? "give the destination this address first"
                                               : "");
}

Result<void> listen_on(int socket, uint32_t backlog, const std::string& text) {
    if (::listen(socket, static_cast<int>(std::min<uint32_t>(backlog, INT32_MAX))) != 0)
        return fail_errno(errno, "cannot listen on " + text, "another program of the destination uses the port: stop it first");
    tcp_info info{};
    socklen_t size = sizeof info;
    if (::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 && info.tcpi_sacked < backlog)
        spdlog::warn("{}: the queue of connections is {} long, not {}: net.core.somaxconn is lower here", text, info.tcpi_sacked, backlog);
    return {};
}

}  // namespace

Result<UniqueFd> make_tcp(const image::Description& description, const std::string& who) {
    const image::TcpSocket& tcp = description.tcp();
    if (tcp.family() != AF_INET && tcp.family() != AF_INET6) return peer_failed(fmt::format("a TCP socket of family {}", tcp.family()));
    UniqueFd fd(::socket(tcp.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP));
    if (!fd) return fail_errno("cannot make a TCP socket");
    // The kernel remembers the uid of who made a socket; others may share a port (SO_REUSEPORT) only with the same.
    if ((tcp.uid() != 0 || tcp.gid() != 0) && ::fchown(fd.get(), tcp.uid(), tcp.gid()) != 0)
        return fail_errno(fmt::format("cannot give a TCP socket to uid {}", tcp.uid()));
    if (tcp.closed()) {
        TRY(make_closed(fd.get(), tcp.error_pending()));
        return fd;
    }
    TRY(set_socket_options(fd.get(), tcp.options(), who));
    std::string text = "a port of the kernel's choice";
    if (!tcp.address().empty()) TRY(bind_to(fd.get(), tcp.address(), text));
    if (tcp.listening()) TRY(listen_on(fd.get(), tcp.backlog(), text));
    return fd;
}

}  // namespace godwit::files
