// Pipes and socketpairs within the process, with content in flight, of every size and kind.
#include <sys/socket.h>
#include <sys/ioctl.h>

#include <vector>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

std::string text(size_t size, unsigned seed) {
    std::string content(size, 0);
    for (char& c : content) c = static_cast<char>((seed = seed * 1664525 + 1013904223) >> 24);
    return content;
}

struct Pipe {
    int end[2];
    explicit Pipe(int flags) { CHECK(pipe2(end, flags) == 0); }
    int reading() const { return end[0]; }
    int writing() const { return end[1]; }
    int held() const {
        int count = 0;
        CHECK(ioctl(end[0], FIONREAD, &count) == 0);
        return count;
    }
};

struct Pair {
    int end[2];
    Pair(int type, std::vector<std::string> queued) : messages(std::move(queued)), stream((type & 0xf) == SOCK_STREAM) {
        CHECK(socketpair(AF_UNIX, type, 0, end) == 0);
        for (const std::string& one : messages) CHECK(send(end[0], one.data(), one.size(), 0) == static_cast<ssize_t>(one.size()));
    }
    std::vector<std::string> messages;
    bool stream;

    // Takes what is queued, message by message, and queues it again.
    void turn() const {
        std::string buffer(200000, 0);
        for (const std::string& one : messages) {
            const ssize_t got = recv(end[1], buffer.data(), stream ? one.size() : buffer.size(), stream ? MSG_WAITALL : 0);
            CHECK(got == static_cast<ssize_t>(one.size()) && buffer.compare(0, one.size(), one) == 0);
        }
        CHECK(recv(end[1], buffer.data(), 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
        for (const std::string& one : messages) CHECK(send(end[0], one.data(), one.size(), 0) == static_cast<ssize_t>(one.size()));
        // And the other way, through whatever is queued.
        CHECK(send(end[1], "back", 4, 0) == 4 && recv(end[0], buffer.data(), 4, 0) == 4 && buffer.compare(0, 4, "back") == 0);
    }
};

void check_type(int fd, int type) {
    int now = 0;
    socklen_t length = sizeof now;
    CHECK(getsockopt(fd, SOL_SOCKET, SO_TYPE, &now, &length) == 0 && now == type);
}

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    const Pipe small(O_CLOEXEC);
    const Pipe large(0);
    const Pipe full(O_NONBLOCK);
    const Pipe half(0);  // its writer is gone: what it holds, then end of file
    const Pipe deaf(0);  // its reader is gone: EPIPE
    signal(SIGPIPE, SIG_IGN);
    const std::string in_small = text(1000, 1);
    const std::string in_large = text(300000, 2);
    CHECK(write(small.writing(), in_small.data(), in_small.size()) == 1000);
    CHECK(fcntl(large.writing(), F_SETPIPE_SZ, 524288) == 524288);
    CHECK(write(large.writing(), in_large.data(), in_large.size()) == 300000);
    while (write(full.writing(), in_large.data(), 4096) > 0) {
    }
    CHECK(errno == EAGAIN);
    const int in_full = full.held();
    CHECK(write(half.writing(), "last words", 10) == 10 && close(half.writing()) == 0);
    CHECK(close(deaf.reading()) == 0);
    const int second_writer = dup(small.writing());

    const Pair stream(SOCK_STREAM, {text(10, 3), text(70000, 4)});
    const Pair datagram(SOCK_DGRAM | SOCK_CLOEXEC, {text(1, 5), text(20000, 6), text(333, 7)});
    const Pair packets(SOCK_SEQPACKET, {text(5, 8), text(30000, 9)});
    const Pair silent(SOCK_STREAM, {});
    CHECK(shutdown(silent.end[0], SHUT_WR) == 0);
    const int size = 65536;
    CHECK(setsockopt(stream.end[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
    self.ready();
    do {
        std::string buffer(400000, 0);
        CHECK(small.held() == 1000 && read(small.reading(), buffer.data(), 400000) == 1000 && buffer.compare(0, 1000, in_small) == 0);
        CHECK(write(second_writer, in_small.data(), in_small.size()) == 1000);
        CHECK(large.held() == 300000 && fcntl(large.reading(), F_GETPIPE_SZ) == 524288);
        CHECK(full.held() == in_full && write(full.writing(), in_large.data(), 4096) == -1 && errno == EAGAIN);
        CHECK((fcntl(full.reading(), F_GETFL) & O_NONBLOCK) != 0 && (fcntl(large.reading(), F_GETFL) & O_NONBLOCK) == 0);
        CHECK((fcntl(small.reading(), F_GETFD) & FD_CLOEXEC) != 0);
        CHECK(half.held() == 10);
        CHECK(write(deaf.writing(), "x", 1) == -1 && errno == EPIPE);
        for (const Pair* pair : {&stream, &datagram, &packets}) pair->turn();
        CHECK(recv(silent.end[1], buffer.data(), 1, MSG_DONTWAIT) == 0);
        CHECK(send(silent.end[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
        CHECK(send(silent.end[1], "y", 1, MSG_NOSIGNAL) == 1 && recv(silent.end[0], buffer.data(), 1, 0) == 1);
        check_type(datagram.end[0], SOCK_DGRAM);
        check_type(packets.end[1], SOCK_SEQPACKET);
    } while (self.going(5));
    std::string buffer(400000, 0);
    for (size_t at = 0; at < in_large.size();) {
        const ssize_t got = read(large.reading(), buffer.data() + at, in_large.size() - at);
        CHECK(got > 0);
        at += static_cast<size_t>(got);
    }
    CHECK(buffer.compare(0, in_large.size(), in_large) == 0);
    CHECK(read(half.reading(), buffer.data(), 100) == 10 && read(half.reading(), buffer.data(), 100) == 0);
    return self.done();
}
