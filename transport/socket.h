// Sockets of this layer: names of peers, options, who is at the other end. For link.cc's neighbours only.
#pragma once

#include <netdb.h>
#include <sys/socket.h>

#include <memory>
#include <string>

#include "common/base/deadline.h"
#include "common/base/result.h"
#include "common/base/unique_fd.h"
#include "transport/address.h"

namespace godwit {

// "10.0.0.2:7467", "[::1]:7467" or "unix".
std::string text_of(const sockaddr_storage& address);

// TCP_NODELAY, keepalive and TCP_USER_TIMEOUT (tcp(7)): a host that vanished is noticed within 30 s, whether or not
// anything is being sent. Best effort: a connection without them is still bounded by every call's own limit.
void tune_tcp(int fd);

// Waits for these events of poll(2); false when the deadline passed.
Result<bool> wait_for(int fd, short events, Deadline deadline);

// unix(7) SO_PEERCRED: refuses a peer that is not root, as an accepted one or as a listening one.
Result<void> require_root_peer(int fd, const std::string& peer);

// The sockaddr of a unix address.
socklen_t unix_sockaddr(const Address& address, sockaddr_storage& out);

// Connects without a handshake.
Result<UniqueFd> connect_socket(const Address& address, Deadline deadline);

// getaddrinfo(3). passive: to listen on. `unresolved` is the exit code when there is no such host.
struct FreeAddressList {
    void operator()(addrinfo* list) const { ::freeaddrinfo(list); }
};
using AddressList = std::unique_ptr<addrinfo, FreeAddressList>;
Result<AddressList> resolve(const Address& address, bool passive, ExitCode unresolved);

}  // namespace godwit
