// A TCP server that answers every line with its process id. --port N (default 7000), --v6.
// --keep: connections stay open; when one is lost it says "lost ERRNO" and goes on.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <vector>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

void set(int fd, int level, int name, int value) { CHECK(setsockopt(fd, level, name, &value, sizeof value) == 0); }

int get(int fd, int level, int name) {
    int value = 0;
    socklen_t length = sizeof value;
    CHECK(getsockopt(fd, level, name, &value, &length) == 0);
    return value;
}

int listen_on(int family, unsigned short port) {
    const int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 77);
    int bound;
    if (family == AF_INET6) {
        set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
        sockaddr_in6 address{};
        address.sin6_family = AF_INET6;
        address.sin6_port = htons(port);
        bound = bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address);
    } else {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(port);
        bound = bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address);
    }
    CHECK(bound == 0 && listen(fd, 77) == 0);
    return fd;
}

void check_listener(int fd, unsigned short port) {
    sockaddr_storage address{};
    socklen_t length = sizeof address;
    CHECK(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0);
    CHECK(reinterpret_cast<sockaddr_in*>(&address)->sin_port == htons(port));  // the port is at the same place in both
    CHECK(get(fd, SOL_SOCKET, SO_ACCEPTCONN) == 1 && get(fd, SOL_SOCKET, SO_REUSEADDR) == 1);
    CHECK(get(fd, IPPROTO_TCP, TCP_NODELAY) == 1 && get(fd, IPPROTO_TCP, TCP_KEEPIDLE) == 77 && get(fd, SOL_SOCKET, SO_KEEPALIVE) == 1);
    CHECK((fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
}

// False once the peer is gone.
bool serve(int fd, bool keep) {
    char line[256];
    const ssize_t got = recv(fd, line, sizeof line, MSG_DONTWAIT);
    if (got == -1 && errno == EAGAIN) return true;
    if (got <= 0) {
        if (keep) say("lost %d", got == 0 ? 0 : errno);
        return false;
    }
    const int length = snprintf(line, sizeof line, "%d\n", getpid());
    (void)!send(fd, line, static_cast<size_t>(length), MSG_NOSIGNAL);
    return keep;
}

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    const auto port = static_cast<unsigned short>(self.number("port", 7000));
    const bool keep = self.flag("keep");
    const int listener = listen_on(self.flag("v6") ? AF_INET6 : AF_INET, port);
    std::vector<pollfd> watched{{listener, POLLIN, 0}};
    self.ready();
    while (self.going(1)) {
        check_listener(listener, port);
        if (poll(watched.data(), watched.size(), 20) < 0) CHECK(errno == EINTR);
        for (size_t i = watched.size(); i-- > 1;)
            if (watched[i].revents != 0 && !serve(watched[i].fd, keep)) {
                close(watched[i].fd);
                watched.erase(watched.begin() + static_cast<long>(i));
            }
        const int peer = (watched[0].revents & POLLIN) != 0 ? accept4(listener, nullptr, nullptr, SOCK_CLOEXEC) : -1;
        if (peer >= 0) {
            watched.push_back({peer, POLLIN, 0});
            if (keep) say("accepted");
        }
    }
    return self.done();
}
