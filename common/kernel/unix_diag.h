// What the kernel says of a unix socket by its inode number (sock_diag(7), unix_diag; Linux 3.3). Sees the sockets of this
// thread's network namespace.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "common/base/result.h"

struct nl_sock;

namespace godwit {

struct UnixSocket {
    uint32_t inode = 0;
    int type = 0;             // SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET
    bool listening = false;
    uint32_t peer = 0;        // inode; 0: none, or closed
    std::string name;         // sun_path; an abstract name starts with NUL; empty: unnamed
    bool read_shut = false;
    bool write_shut = false;
    uint32_t queued = 0;      // bytes not read yet
};

class UnixDiag {
  public:
    static Result<UnixDiag> open();

    // Nothing when there is no such socket in this network namespace.
    Result<std::optional<UnixSocket>> find(uint32_t inode) const;

  private:
    struct Close {
        void operator()(nl_sock* socket) const;
    };
    explicit UnixDiag(nl_sock* socket) : socket_(socket) {}
    std::unique_ptr<nl_sock, Close> socket_;
};

}  // namespace godwit
