#include "transport/link.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "transport/socket.h"

namespace godwit {
namespace {

// What one sendmsg(2) takes at most (UIO_MAXIOV is 1024).
constexpr size_t pieces_per_call = 64;

class PlainLink final : public Link {
  public:
    PlainLink(UniqueFd socket, std::string peer) : Link(socket.get(), std::move(peer)), socket_(std::move(socket)) {}

    Result<void> send(std::span<const iovec> pieces) override {
        std::vector<iovec> left(pieces.begin(), pieces.end());
        size_t first = 0;
        while (first < left.size()) {
            msghdr message{};
            message.msg_iov = &left[first];
            message.msg_iovlen = std::min(left.size() - first, pieces_per_call);
            const ssize_t sent = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (sent >= 0) {
                first = advance(left, first, static_cast<size_t>(sent));
                continue;
            }
            if (errno == EINTR) continue;
            if (errno != EAGAIN) return broken("send", errno);
            if (!TRY(wait_for(socket_.get(), POLLOUT, Deadline::in(send_limit())))) return late("took nothing");
        }
        return {};
    }

    Result<void> receive(void* data, size_t size, Deadline deadline) override {
        auto* to = static_cast<std::byte*>(data);
        while (size > 0) {
            const ssize_t got = ::recv(socket_.get(), to, size, MSG_DONTWAIT);
            if (got > 0) {
                to += got;
                size -= static_cast<size_t>(got);
                continue;
            }
            if (got == 0) return ended();
            if (errno == EINTR) continue;
            if (errno != EAGAIN) return broken("receive", errno);
            if (!TRY(wait_for(socket_.get(), POLLIN, deadline))) return late("sent nothing");
        }
        return {};
    }

    Result<bool> wait_readable(Deadline deadline) override { return wait_for(socket_.get(), POLLIN, deadline); }

  private:
    // Forgets `sent` bytes of the pieces from `first` on; returns the first piece that is not yet sent.
    static size_t advance(std::vector<iovec>& pieces, size_t first, size_t sent) {
        while (first < pieces.size() && sent >= pieces[first].iov_len) sent -= pieces[first++].iov_len;
        if (sent > 0) {
            pieces[first].iov_base = static_cast<char*>(pieces[first].iov_base) + sent;
            pieces[first].iov_len -= sent;
        }
        return first;
    }

    UniqueFd socket_;
};

}  // namespace

void Link::shut_down() {
    shut_ = true;
    ::shutdown(fd_, SHUT_RDWR);
}

void Link::finish_sending() { ::shutdown(fd_, SHUT_WR); }

void Link::drain(Deadline deadline) {
    std::array<char, 16384> sink;
    while (!deadline.passed()) {
        const auto readable = wait_for(fd_, POLLIN, deadline);
        if (!readable || !*readable) return;
        const ssize_t got = ::recv(fd_, sink.data(), sink.size(), MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return;
    }
}

Failure Link::ended() const {
    if (is_shut()) return shut();
    return peer_failed(fmt::format("{} closed the connection", peer_), "its log says why");
}

Failure Link::shut() const {
    return peer_failed(fmt::format("the connection to {} was shut down", peer_), "what came before this in the log says why");
}

Failure Link::late(const char* what) const {
    return peer_failed(fmt::format("{} {} within the time limit", peer_, what),
                       "is that host, or the network between, overloaded or down?");
}

Failure Link::broken(const char* what, int error) const {
    if (is_shut()) return shut();
    Failure failure =
        fail_errno(error, fmt::format("cannot {} on the connection to {}", what, peer_), "its log may say why");
    failure.value().code = ExitCode::peer;
    return failure;
}

std::unique_ptr<Link> plain_link(UniqueFd socket, std::string peer) {
    return std::make_unique<PlainLink>(std::move(socket), std::move(peer));
}

}  // namespace godwit
