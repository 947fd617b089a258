// Waits for peers. accept() never talks to a peer, so that a slow or silent one holds up nobody: what it
// gives back is finished by the thread that is going to serve that peer.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "transport/link.h"

namespace godwit {

// A peer that has connected but has proved nothing yet. Owns the connection.
class PendingLink {
  public:
    // TLS handshake, or the check that the peer is root. One call. Any thread.
    Result<std::unique_ptr<Link>> finish(Deadline deadline);
    const std::string& peer() const { return peer_; }

  private:
    friend class Listener;
    PendingLink(UniqueFd socket, std::string peer, Security security)
        : socket_(std::move(socket)), peer_(std::move(peer)), security_(std::move(security)) {}
    UniqueFd socket_;
    std::string peer_;
    Security security_;
};

class Listener {
  public:
    // Binds and listens. A unix socket gets mode 0600; its file is removed again by the destructor, and a
    // file that a dead listener left is replaced.
    static Result<Listener> open(const Address& address, const Security& security);
    Listener(Listener&&) noexcept = default;
    Listener& operator=(Listener&&) = delete;
    ~Listener();

    // The next peer; nothing when the deadline passed.
    Result<std::optional<PendingLink>> accept(Deadline deadline);
    uint16_t port() const { return port_; }   // the real one where 0 was asked for; 0 for a unix socket
    int fd() const { return socket_.get(); }  // readable (poll(2)) when accept() has a peer; still owned here

  private:
    Listener(UniqueFd socket, Security security) : socket_(std::move(socket)), security_(std::move(security)) {}
    UniqueFd socket_;
    Security security_;
    uint16_t port_ = 0;
    std::string unlink_path_;
};

}  // namespace godwit
