// Two ends of one connection within this process, for tests of the transport.
#pragma once

#include <sys/socket.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "transport/channel.h"

namespace godwit {

inline Deadline soon() { return Deadline::in(milliseconds(5000)); }

inline std::pair<UniqueFd, UniqueFd> socket_pair() {
    int fds[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) std::abort();
    return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

// A Channel, and the raw other end of its connection.
struct ChannelAndPeer {
    explicit ChannelAndPeer(Side side) {
        auto [ours, theirs] = socket_pair();
        channel = std::make_unique<Channel>(plain_link(std::move(ours), "there"), side);
        raw = std::move(theirs);
    }
    std::unique_ptr<Channel> channel;
    UniqueFd raw;
};

// A source's and a destination's Channel, connected.
struct ChannelPair {
    ChannelPair() {
        auto [a, b] = socket_pair();
        source = std::make_unique<Channel>(plain_link(std::move(a), "destination"), Side::source);
        destination = std::make_unique<Channel>(plain_link(std::move(b), "source"), Side::destination);
    }
    std::unique_ptr<Channel> source, destination;
};

class TemporaryFolder {
  public:
    TemporaryFolder() {
        char name[] = "/tmp/godwit-test-XXXXXX";
        if (::mkdtemp(name) == nullptr) std::abort();
        path_ = name;
    }
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    ~TemporaryFolder() { std::filesystem::remove_all(path_); }
    std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  private:
    std::string path_;
};

}  // namespace godwit
