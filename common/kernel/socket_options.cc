#include "common/kernel/socket_options.h"

#include <fmt/format.h>
#include <linux/in6.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "common/base/unique_fd.h"

#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72  // Linux 5.14
#endif
#ifndef IP_LOCAL_PORT_RANGE
#define IP_LOCAL_PORT_RANGE 51  // Linux 6.3
#endif

namespace godwit {
namespace {

constexpr size_t longest = 128;

struct Known {
    int level;
    int name;
    const char* text;
};

// In the order in which they are set: IP_TOS changes the priority, so SO_PRIORITY comes after it.
constexpr Known known[] = {
    {SOL_IP, IP_TOS, "IP_TOS"},
    {SOL_IP, IP_TTL, "IP_TTL"},
    {SOL_IP, IP_FREEBIND, "IP_FREEBIND"},
    {SOL_IP, IP_TRANSPARENT, "IP_TRANSPARENT"},
    {SOL_IP, IP_MTU_DISCOVER, "IP_MTU_DISCOVER"},
    {SOL_IP, IP_RECVERR, "IP_RECVERR"},
    {SOL_IP, IP_RECVTOS, "IP_RECVTOS"},
    {SOL_IP, IP_RECVTTL, "IP_RECVTTL"},
    {SOL_IP, IP_PKTINFO, "IP_PKTINFO"},
    {SOL_IP, IP_MINTTL, "IP_MINTTL"},
    {SOL_IP, IP_UNICAST_IF, "IP_UNICAST_IF"},
    {SOL_IP, IP_BIND_ADDRESS_NO_PORT, "IP_BIND_ADDRESS_NO_PORT"},
    {SOL_IP, IP_LOCAL_PORT_RANGE, "IP_LOCAL_PORT_RANGE"},
    {SOL_IPV6, IPV6_V6ONLY, "IPV6_V6ONLY"},
    {SOL_IPV6, IPV6_TCLASS, "IPV6_TCLASS"},
    {SOL_IPV6, IPV6_UNICAST_HOPS, "IPV6_UNICAST_HOPS"},
    {SOL_IPV6, IPV6_MTU_DISCOVER, "IPV6_MTU_DISCOVER"},
    {SOL_IPV6, IPV6_RECVERR, "IPV6_RECVERR"},
    {SOL_IPV6, IPV6_RECVPKTINFO, "IPV6_RECVPKTINFO"},
    {SOL_IPV6, IPV6_RECVTCLASS, "IPV6_RECVTCLASS"},
    {SOL_IPV6, IPV6_RECVHOPLIMIT, "IPV6_RECVHOPLIMIT"},
    {SOL_IPV6, IPV6_MINHOPCOUNT, "IPV6_MINHOPCOUNT"},
    {SOL_IPV6, IPV6_TRANSPARENT, "IPV6_TRANSPARENT"},
    {SOL_IPV6, IPV6_FREEBIND, "IPV6_FREEBIND"},
    {SOL_IPV6, IPV6_DONTFRAG, "IPV6_DONTFRAG"},
    {SOL_IPV6, IPV6_AUTOFLOWLABEL, "IPV6_AUTOFLOWLABEL"},
    {SOL_SOCKET, SO_SNDBUF, "SO_SNDBUF"},
    {SOL_SOCKET, SO_RCVBUF, "SO_RCVBUF"},
    {SOL_SOCKET, SO_BUF_LOCK, "SO_BUF_LOCK"},
    {SOL_SOCKET, SO_DEBUG, "SO_DEBUG"},
    {SOL_SOCKET, SO_REUSEADDR, "SO_REUSEADDR"},
    {SOL_SOCKET, SO_REUSEPORT, "SO_REUSEPORT"},
    {SOL_SOCKET, SO_KEEPALIVE, "SO_KEEPALIVE"},
    {SOL_SOCKET, SO_BROADCAST, "SO_BROADCAST"},
    {SOL_SOCKET, SO_DONTROUTE, "SO_DONTROUTE"},
    {SOL_SOCKET, SO_LINGER, "SO_LINGER"},
    {SOL_SOCKET, SO_OOBINLINE, "SO_OOBINLINE"},
    {SOL_SOCKET, SO_PRIORITY, "SO_PRIORITY"},
    {SOL_SOCKET, SO_RCVLOWAT, "SO_RCVLOWAT"},
    {SOL_SOCKET, SO_RCVTIMEO, "SO_RCVTIMEO"},
    {SOL_SOCKET, SO_SNDTIMEO, "SO_SNDTIMEO"},
    {SOL_SOCKET, SO_PASSCRED, "SO_PASSCRED"},
    {SOL_SOCKET, SO_PASSSEC, "SO_PASSSEC"},
    {SOL_SOCKET, SO_TIMESTAMP, "SO_TIMESTAMP"},
    {SOL_SOCKET, SO_TIMESTAMPNS, "SO_TIMESTAMPNS"},
    {SOL_SOCKET, SO_TIMESTAMPING, "SO_TIMESTAMPING"},
    {SOL_SOCKET, SO_MARK, "SO_MARK"},
    {SOL_SOCKET, SO_RXQ_OVFL, "SO_RXQ_OVFL"},
    {SOL_SOCKET, SO_BUSY_POLL, "SO_BUSY_POLL"},
    {SOL_SOCKET, SO_ZEROCOPY, "SO_ZEROCOPY"},
    {SOL_SOCKET, SO_MAX_PACING_RATE, "SO_MAX_PACING_RATE"},
    {SOL_SOCKET, SO_PEEK_OFF, "SO_PEEK_OFF"},
    {SOL_SOCKET, SO_BINDTODEVICE, "SO_BINDTODEVICE"},
    {IPPROTO_TCP, TCP_NODELAY, "TCP_NODELAY"},
    {IPPROTO_TCP, TCP_CORK, "TCP_CORK"},
    {IPPROTO_TCP, TCP_MAXSEG, "TCP_MAXSEG"},
    {IPPROTO_TCP, TCP_KEEPIDLE, "TCP_KEEPIDLE"},
    {IPPROTO_TCP, TCP_KEEPINTVL, "TCP_KEEPINTVL"},
    {IPPROTO_TCP, TCP_KEEPCNT, "TCP_KEEPCNT"},
    {IPPROTO_TCP, TCP_SYNCNT, "TCP_SYNCNT"},
    {IPPROTO_TCP, TCP_LINGER2, "TCP_LINGER2"},
    {IPPROTO_TCP, TCP_DEFER_ACCEPT, "TCP_DEFER_ACCEPT"},
    {IPPROTO_TCP, TCP_WINDOW_CLAMP, "TCP_WINDOW_CLAMP"},
    {IPPROTO_TCP, TCP_CONGESTION, "TCP_CONGESTION"},
    {IPPROTO_TCP, TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT"},
    {IPPROTO_TCP, TCP_FASTOPEN, "TCP_FASTOPEN"},
    {IPPROTO_TCP, TCP_FASTOPEN_CONNECT, "TCP_FASTOPEN_CONNECT"},
    {IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, "TCP_FASTOPEN_NO_COOKIE"},
    {IPPROTO_TCP, TCP_NOTSENT_LOWAT, "TCP_NOTSENT_LOWAT"},
    {IPPROTO_TCP, TCP_SAVE_SYN, "TCP_SAVE_SYN"},
    {IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, "TCP_THIN_LINEAR_TIMEOUTS"},
    {IPPROTO_TCP, TCP_INQ, "TCP_INQ"},
    {IPPROTO_TCP, TCP_TX_DELAY, "TCP_TX_DELAY"},
};

int whole_number(int socket, int name) {
    int value = 0;
    socklen_t size = sizeof value;
    return ::getsockopt(socket, SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
}

// Empty where the kernel does not know the option for this socket.
std::string value_of(int socket, const Known& option) {
    char value[longest];
    socklen_t size = sizeof value;
    if (::getsockopt(socket, option.level, option.name, value, &size) != 0) return {};
    // Names come back padded to the buffer's or a fixed size.
    if (option.name == TCP_CONGESTION && option.level == IPPROTO_TCP) size = static_cast<socklen_t>(strnlen(value, size));
    return std::string(value, size);
}

// Whether a buffer size was set by the program. Where the kernel cannot tell, a size that is not a new socket's was.
bool size_was_set(int socket, int name) {
    const int locks = whole_number(socket, SO_BUF_LOCK);
    if (locks < 0) return true;
    return (locks & (name == SO_SNDBUF ? SOCK_SNDBUF_LOCK : SOCK_RCVBUF_LOCK)) != 0;
}

bool is_buffer(const Known& option) {
    return option.level == SOL_SOCKET && (option.name == SO_SNDBUF || option.name == SO_RCVBUF);
}

bool is_lock(const Known& option) {
    return option.level == SOL_SOCKET && option.name == SO_BUF_LOCK;
}

// The kernel doubles a size that is set; FORCE passes over net.core.wmem_max, as the program's own rights did once.
int set_buffer(int socket, int name, const std::string& value) {
    int size = 0;
    if (value.size() != sizeof size) return EINVAL;
    std::memcpy(&size, value.data(), sizeof size);
    const int half = size / 2;
    const int force = name == SO_SNDBUF ? SO_SNDBUFFORCE : SO_RCVBUFFORCE;
    if (::setsockopt(socket, SOL_SOCKET, force, &half, sizeof half) == 0) return 0;
    return ::setsockopt(socket, SOL_SOCKET, name, &half, sizeof half) == 0 ? 0 : errno;
}

}  // namespace

Result<void> read_socket_options(int socket, SocketOptions& out) {
    const int domain = whole_number(socket, SO_DOMAIN);
    const UniqueFd fresh(::socket(domain, whole_number(socket, SO_TYPE) | SOCK_CLOEXEC, whole_number(socket, SO_PROTOCOL)));
    if (!fresh) return fail_errno("cannot make a socket to compare with");
    for (const Known& option : known) {
        if (option.level == SOL_IPV6 && domain != AF_INET6) continue;
        std::string value = value_of(socket, option);
        if (value == value_of(fresh.get(), option)) continue;
        if (is_buffer(option) && !size_was_set(socket, option.name)) continue;
        auto* one = out.Add();
        one->set_level(option.level);
        one->set_name(option.name);
        one->set_value(std::move(value));
    }
    return {};
}

Result<void> set_socket_options(int socket, const SocketOptions& options, const std::string& who) {
    for (const auto& option : options) {
        const auto* entry = std::find_if(std::begin(known), std::end(known), [&](const Known& one) {
            return one.level == option.level() && one.name == option.name();
        });
        if (entry == std::end(known) || option.value().size() > longest)
            return peer_failed(fmt::format("{}: socket option {}/{} is not known here", who, option.level(), option.name()),
                               "both hosts need the same version of godwit");
        int error = 0;
        if (is_buffer(*entry))
            error = set_buffer(socket, entry->name, option.value());
        else if (::setsockopt(socket, entry->level, entry->name, option.value().data(),
                              static_cast<socklen_t>(option.value().size())) != 0)
            error = errno;
        // The sizes above are set all the same; what is missed on an older kernel is that one of them tunes itself.
        if (error == ENOPROTOOPT && is_lock(*entry)) continue;
        if (error != 0) return fail_errno(error, fmt::format("{}: cannot set {}", who, entry->text),
                                          "the destination's kernel or network lacks what the option names");
    }
    return {};
}

std::string uncarried_option(int socket) {
    char value[longest];
    socklen_t size = 0;
    const int filter = ::getsockopt(socket, SOL_SOCKET, SO_GET_FILTER, nullptr, &size);
    if (filter == 0 && size > 0) return "a socket filter";
    if (filter != 0 && errno == EACCES) return "an eBPF socket filter";
    size = sizeof value;
    if (::getsockopt(socket, IPPROTO_TCP, TCP_ULP, value, &size) == 0 && size > 0 && value[0] != 0)
        return "the upper layer protocol " + std::string(value, strnlen(value, size));
    size = sizeof value;
    if (whole_number(socket, SO_DOMAIN) == AF_INET && ::getsockopt(socket, SOL_IP, IP_OPTIONS, value, &size) == 0 && size > 0)
        return "IP options";
    return {};
}

}  // namespace godwit
