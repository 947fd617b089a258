// One connection to a peer: an ordered stream of bytes over TCP, TLS 1.3 over TCP, or a unix socket.
//
// Threads: one thread at a time uses a Link; only shut_down() may be called from any other, as long as the
// Link lives. Errors: a Problem with ExitCode::peer that names the peer. After one the Link is of no more use
// and only shut_down() and the destructor make sense. The end of the stream is a Problem, never success.
// No operation raises SIGPIPE. See tcp(7), unix(7), ssl(7).
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "common/base/deadline.h"
#include "common/base/result.h"
#include "common/base/unique_fd.h"
#include "transport/address.h"

namespace godwit {

class Link {
  public:
    virtual ~Link() = default;
    Link(const Link&) = delete;
    Link& operator=(const Link&) = delete;

    // Sends every byte of every piece, in order. Fails when nothing could be sent for the send limit.
    virtual Result<void> send(std::span<const iovec> pieces) = 0;
    // Receives exactly `size` bytes.
    virtual Result<void> receive(void* data, size_t size, Deadline deadline) = 0;
    // True when receive() has something to give, be it the end of the stream; false when the deadline passed.
    virtual Result<bool> wait_readable(Deadline deadline) = 0;

    // Ends the connection both ways: the peer sees the end of the stream, a waiting call here fails. Any thread.
    void shut_down();
    // No more bytes will be sent; what was sent still arrives, and receive() goes on.
    void finish_sending();
    // Reads and forgets what the peer still sends, until it closes or the deadline passes. A close with unread
    // bytes would reset the connection, and the peer could lose what we sent last.
    void drain(Deadline deadline);

    void set_send_limit(milliseconds limit) { send_limit_ = limit; }  // default 30 s
    const std::string& peer() const { return peer_; }                 // "10.0.0.2:7467", for messages

  protected:
    Link(int fd, std::string peer) : fd_(fd), peer_(std::move(peer)) {}
    milliseconds send_limit() const { return send_limit_; }
    bool is_shut() const { return shut_.load(); }
    // The Problems that every kind of Link has in common.
    Failure ended() const;
    Failure late(const char* what) const;
    Failure broken(const char* what, int error) const;

  private:
    Failure shut() const;

    const int fd_;  // owned by the derived class
    const std::string peer_;
    milliseconds send_limit_{30'000};
    std::atomic<bool> shut_ = false;
};

// A Link over a connected stream socket, without protection.
std::unique_ptr<Link> plain_link(UniqueFd socket, std::string peer);
// The same with TLS on top: handshake by the deadline, as the server or as the client.
enum class TlsEnd { client, server };
Result<std::unique_ptr<Link>> tls_link(UniqueFd socket, std::string peer, const std::string& keys_dir, TlsEnd end,
                                       Deadline deadline);
// Whether `keys_dir` can be used: files there, key private, certificate of the CA and valid now. For telling the
// user before anything else is done.
Result<void> check_keys(const std::string& keys_dir);

// Connects, including every handshake. Names are resolved by getaddrinfo(3), whose time limit is the resolver's.
Result<std::unique_ptr<Link>> connect_link(const Address& address, const Security& security, Deadline deadline);

}  // namespace godwit
