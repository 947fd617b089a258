#include "source-agent/collect/files_tcp.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include "common/kernel/socket_options.h"
#include "source-agent/collect/files_internal.h"

namespace godwit {
namespace files {
namespace {

Result<tcp_info> ask(const Seen& one, int socket) {
    tcp_info info{};
    socklen_t size = sizeof info;
    if (::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size) != 0)
        return fail_errno(one.who() + ": cannot ask the state of the TCP socket");
    return info;
}

std::string name_of(int socket, decltype(&::getsockname) ask_name) {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    if (ask_name(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) return {};
    return std::string(reinterpret_cast<const char*>(&address), size);
}

uint16_t port_of(const std::string& address) {
    // At the same place in both families.
    return address.size() < sizeof(sockaddr_in) ? 0 : ntohs(reinterpret_cast<const sockaddr_in*>(address.data())->sin_port);
}

bool is_any(const std::string& address) {
    if (address.size() < sizeof(sockaddr_in)) return true;
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(address.data());
    if (v4->sin_family == AF_INET) return v4->sin_addr.s_addr == INADDR_ANY;
    return IN6_IS_ADDR_UNSPECIFIED(&reinterpret_cast<const sockaddr_in6*>(address.data())->sin6_addr);
}

bool has_scope(const std::string& address) {
    if (address.size() < sizeof(sockaddr_in6)) return false;
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(address.data());
    return v6->sin6_family == AF_INET6 && v6->sin6_scope_id != 0;
}

short polled(int socket) {
    pollfd waited{socket, POLLIN | POLLRDHUP, 0};
    return ::poll(&waited, 1, 0) == 1 ? waited.revents : static_cast<short>(0);
}

// A socket in CLOSE that was connected once has its receiving side shut; one that was not yet has not.
bool is_over(int socket) {
    return (polled(socket) & (POLLRDHUP | POLLERR)) != 0;
}

bool connected(uint8_t state) {
    return state != TCP_LISTEN && state != TCP_CLOSE;
}

}  // namespace

Refusal check_tcp(const Seen& one, const Looker& looker) {
    const auto socket = looker.duplicate(one);
    if (!socket) return {};  // vanished
    const auto info = ask(one, socket->get());
    if (!info) return info.error();
    const std::string local = name_of(socket->get(), ::getsockname);
    if (connected(info->tcpi_state)) {
        if (looker.options.tcp_close) return {};
        const std::string peer = name_of(socket->get(), ::getpeername);
        return refuse(one, fmt::format("a TCP connection {} to {}", address_text(local), peer.empty() ? "?" : address_text(peer)),
                      "--tcp-close closes it at the move: the program gets an error, the peer a reset");
    }
    if (has_scope(local))
        return refuse(one, "a TCP socket bound to the link-local address " + address_text(local), "have the program bind to another address");
    if (const std::string extra = uncarried_option(socket->get()); !extra.empty())
        return refuse(one, fmt::format("a TCP socket {} with {}", address_text(local), extra), "have the program close it, then try again");
    return {};
}

Result<void> collect_tcp(const Seen& one, const Looker& looker, image::Description& out) {
    const UniqueFd socket = TRY(looker.duplicate(one));
    const tcp_info info = TRY(ask(one, socket.get()));
    auto* tcp = out.mutable_tcp();
    const std::string local = name_of(socket.get(), ::getsockname);
    tcp->set_family(local.size() < sizeof(sa_family_t) ? AF_INET : reinterpret_cast<const sockaddr*>(local.data())->sa_family);
    tcp->set_uid(one.status.st_uid);
    tcp->set_gid(one.status.st_gid);
    if (connected(info.tcpi_state)) {
        if (!looker.options.tcp_close) return fail(one.who() + ": a TCP connection");
        tcp->set_closed(true);
        tcp->set_error_pending(true);
        return {};
    }
    if (info.tcpi_state == TCP_CLOSE && is_over(socket.get())) {
        tcp->set_closed(true);
        tcp->set_error_pending((polled(socket.get()) & POLLERR) != 0);
        return {};
    }
    // One bound to an address with a port yet to be chosen is bound; all zeros is what a new socket shows.
    if (port_of(local) != 0 || !is_any(local)) tcp->set_address(local);
    tcp->set_listening(info.tcpi_state == TCP_LISTEN);
    // In LISTEN the kernel shows the longest queue here (tcp_get_info()).
    if (tcp->listening()) tcp->set_backlog(info.tcpi_sacked);
    return read_socket_options(socket.get(), *tcp->mutable_options());
}

}  // namespace files

Result<void> reset_connections(const std::vector<pid_t>& pids) {
    Result<void> first;
    for (const pid_t pid : pids) {
        files::Looker looker;
        looker.pids = {pid};
        if (const auto looked = looker.look(); !looked) {
            if (looked.error().error != ESRCH && looked.error().error != ENOENT && first) first = looked;
            continue;
        }
        for (const files::Seen& one : looker.seen) {
            if (one.kind != files::Kind::tcp_socket) continue;
            const auto socket = looker.duplicate(one);
            if (!socket) continue;  // the process is gone, its sockets too
            const auto info = files::ask(one, socket->get());
            if (!info || !files::connected(info->tcpi_state)) continue;
            const linger reset{1, 0};
            if (::setsockopt(socket->get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset) != 0 && first)
                first = fail_errno(one.who() + ": cannot have the connection reset");
        }
    }
    return first;
}

}  // namespace godwit
