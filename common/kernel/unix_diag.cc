#include "common/kernel/unix_diag.h"

#include <fmt/format.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netlink/attr.h>
#include <netlink/errno.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>
#include <sys/socket.h>

#include <cstdlib>

namespace godwit {
namespace {

constexpr uint8_t tcp_listen = 10;  // TCP_LISTEN, which unix sockets share (net/tcp_states.h)
constexpr uint8_t receive_shutdown = 1, send_shutdown = 2;  // RCV_SHUTDOWN, SEND_SHUTDOWN (net/sock.h)

UnixSocket parse(nlmsghdr* header) {
    const auto* message = static_cast<const unix_diag_msg*>(nlmsg_data(header));
    UnixSocket out;
    out.inode = message->udiag_ino;
    out.type = message->udiag_type;
    out.listening = message->udiag_state == tcp_listen;
    if (const nlattr* peer = nlmsg_find_attr(header, sizeof *message, UNIX_DIAG_PEER)) out.peer = nla_get_u32(peer);
    if (const nlattr* name = nlmsg_find_attr(header, sizeof *message, UNIX_DIAG_NAME))
        out.name.assign(static_cast<const char*>(nla_data(name)), static_cast<size_t>(nla_len(name)));
    if (const nlattr* shut = nlmsg_find_attr(header, sizeof *message, UNIX_DIAG_SHUTDOWN)) {
        out.read_shut = (nla_get_u8(shut) & receive_shutdown) != 0;
        out.write_shut = (nla_get_u8(shut) & send_shutdown) != 0;
    }
    if (const nlattr* length = nlmsg_find_attr(header, sizeof *message, UNIX_DIAG_RQLEN))
        out.queued = static_cast<const unix_diag_rqlen*>(nla_data(length))->udiag_rqueue;
    return out;
}

}  // namespace

void UnixDiag::Close::operator()(nl_sock* socket) const {
    nl_socket_free(socket);
}

Result<UnixDiag> UnixDiag::open() {
    nl_sock* const socket = nl_socket_alloc();
    if (socket == nullptr) return fail_errno(ENOMEM, "cannot make a netlink socket");
    UnixDiag out(socket);
    nl_socket_disable_auto_ack(socket);
    if (const int error = nl_connect(socket, NETLINK_SOCK_DIAG); error < 0)
        return fail(fmt::format("cannot ask the kernel about sockets: {}", nl_geterror(error)),
                    "the kernel needs CONFIG_UNIX_DIAG");
    return out;
}

Result<std::optional<UnixSocket>> UnixDiag::find(uint32_t inode) const {
    unix_diag_req request{};
    request.sdiag_family = AF_UNIX;
    request.udiag_states = ~0u;
    request.udiag_ino = inode;
    request.udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN;
    request.udiag_cookie[0] = request.udiag_cookie[1] = ~0u;  // whichever socket has this inode
    if (const int error = nl_send_simple(socket_.get(), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, &request, sizeof request);
        error < 0)
        return fail(fmt::format("cannot ask about unix socket inode {}: {}", inode, nl_geterror(error)));

    sockaddr_nl from{};
    unsigned char* buffer = nullptr;
    const int size = nl_recv(socket_.get(), &from, &buffer, nullptr);
    if (size <= 0) return fail(fmt::format("no answer about unix socket inode {}: {}", inode, nl_geterror(size)));
    const std::unique_ptr<unsigned char, void (*)(void*)> owner(buffer, std::free);
    auto* header = reinterpret_cast<nlmsghdr*>(buffer);
    if (nlmsg_ok(header, size) == 0) return fail(fmt::format("broken answer about unix socket inode {}", inode));
    if (header->nlmsg_type == NLMSG_ERROR) {
        const int error = -static_cast<const nlmsgerr*>(nlmsg_data(header))->error;
        if (error == ENOENT) return std::optional<UnixSocket>();
        return fail_errno(error, fmt::format("cannot ask about unix socket inode {}", inode),
                          "the kernel needs CONFIG_UNIX_DIAG");
    }
    if (header->nlmsg_type != SOCK_DIAG_BY_FAMILY)
        return fail(fmt::format("broken answer about unix socket inode {}", inode));
    return std::optional<UnixSocket>(parse(header));
}

}  // namespace godwit
