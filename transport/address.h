// Where a peer listens, and how the way to it is protected.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/base/result.h"

namespace godwit {

struct Address {
    enum class Kind { tcp, unix_socket };
    Kind kind = Kind::tcp;
    std::string host;   // name or number, without brackets
    uint16_t port = 0;  // 0 when listening: any free one
    std::string path;   // of a unix socket

    std::string text() const;  // as parse_address takes it
};

// "10.0.0.2:7467", "[::1]:7467", "host:7467" or "unix:/run/godwit-peer.sock". What does not parse is a
// usage error with a hint. Resolves nothing.
Result<Address> parse_address(std::string_view text);

struct Security {
    // tls: TLS 1.3, both ends show a certificate of one CA. insecure: nothing, for test networks.
    // unix_socket: both ends must be root (SO_PEERCRED).
    enum class Kind { tls, insecure, unix_socket };
    Kind kind = Kind::tls;
    std::string keys_dir;  // tls: this host's folder with ca.pem, cert.pem and key.pem (transport/keys.h)
};

// The security that fits the address and the options --keys DIR and --insecure; a usage error when a TCP
// address has neither or both.
Result<Security> choose_security(const Address& address, std::string_view keys_dir, bool insecure);

}  // namespace godwit
