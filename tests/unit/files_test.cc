// What the source says of descriptors.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/base/file.h"
#include "source-agent/collect/files_tcp.h"
#include "tests/support/descriptor_victim.h"

namespace godwit {
namespace {

using test::DescriptorVictim;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

const image::Description* description_of(const image::Files& files, int fd) {
    for (const auto& descriptor : files.tables(0).descriptors())
        if (descriptor.fd() == fd) return &files.descriptions(static_cast<int>(descriptor.description()) - 1);
    return nullptr;
}

std::string scratch_file() {
    static int count = 0;
    return "/tmp/godwit-files-" + std::to_string(::getpid()) + "-" + std::to_string(++count);
}

int tcp_socket(const char* address, bool listening) {
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in name{};
    name.sin_family = AF_INET;
    ::inet_pton(AF_INET, address, &name.sin_addr);
    if (::bind(fd, reinterpret_cast<sockaddr*>(&name), sizeof name) != 0) return -1;
    if (listening && ::listen(fd, 77) != 0) return -1;
    return fd;
}

int connect_to(int listener) {
    sockaddr_in name{};
    socklen_t size = sizeof name;
    ::getsockname(listener, reinterpret_cast<sockaddr*>(&name), &size);
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    return ::connect(fd, reinterpret_cast<sockaddr*>(&name), size) == 0 ? fd : -1;
}

TEST(FilesSurvey, AProgramOnDevNullIsAccepted) {
    DescriptorVictim victim([] { return true; });
    ASSERT_TRUE(victim.ready());
    image::Plan plan;
    EXPECT_THAT(victim.refusals({}, &plan), IsEmpty());
    EXPECT_THAT(plan.object_kinds(), ElementsAre("memory device"));
    EXPECT_EQ(plan.files_size(), 0);
}

TEST(FilesSurvey, EveryKindOfRefusalIsNamedAtOnce) {
    const std::string path = scratch_file();
    DescriptorVictim victim([&] {
        const int memory = ::memfd_create("secret", MFD_HUGETLB);
        const int gone = ::open(path.c_str(), O_CREAT | O_RDWR, 0600);
        ::unlink(path.c_str());
        const int watch = ::inotify_init1(0);
        const int udp = ::socket(AF_INET, SOCK_DGRAM, 0);
        const int netlink = ::socket(AF_NETLINK, SOCK_RAW, 0);
        const int only_path = ::open("/tmp", O_PATH);
        const int status = ::open("/proc/self/status", O_RDONLY);
        const int space = ::open("/proc/self/ns/net", O_RDONLY);
        const int self = static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0));
        const int terminal = ::open("/dev/ptmx", O_RDWR | O_NOCTTY);
        int half[2];
        ::socketpair(AF_UNIX, SOCK_STREAM, 0, half);
        ::close(half[1]);
        const int lonely = ::socket(AF_UNIX, SOCK_STREAM, 0);
        return memory == 3 && gone == 4 && watch == 5 && udp == 6 && netlink == 7 && only_path == 8 && status == 9 && space == 10 &&
               self == 11 && terminal == 12 && half[0] == 13 && lonely == 14;
    });
    ASSERT_TRUE(victim.ready());
    EXPECT_THAT(victim.refusals(),
                ElementsAre(HasSubstr("fd 3: memory of huge pages (MFD_HUGETLB), or a deleted file: /memfd:secret"), HasSubstr("fd 4: the file was deleted"),
                            HasSubstr("fd 5: an inotify instance"), HasSubstr("fd 6: a UDP socket 0.0.0.0:0"),
                            HasSubstr("fd 7: a netlink socket"), HasSubstr("fd 8: opened with O_PATH: /tmp"),
                            HasSubstr("which shows the state of this host"), HasSubstr("fd 10: a network namespace"),
                            HasSubstr("fd 11: a pidfd"), HasSubstr("fd 12: the terminal"), HasSubstr("fd 13: a unix socket whose other end is closed"),
                            HasSubstr("fd 14: a unix socket that is not connected")));
}

TEST(FilesSurvey, HeldLocksAreNamed) {
    const std::string path = scratch_file();
    DescriptorVictim victim([&] {
        const int one = ::open(path.c_str(), O_CREAT | O_RDWR, 0600);
        const int other = ::open(path.c_str(), O_RDWR);
        struct flock lock {};
        lock.l_type = F_WRLCK;
        lock.l_len = 1;
        return ::flock(one, LOCK_EX) == 0 && ::fcntl(other, F_OFD_SETLK, &lock) == 0;
    });
    ASSERT_TRUE(victim.ready());
    EXPECT_THAT(victim.refusals(), UnorderedElementsAre(HasSubstr("a flock lock is held on " + path),
                                                        HasSubstr("an open file description lock is held on " + path)));
    ::unlink(path.c_str());
}

TEST(FilesSurvey, AFileThatWasReplacedIsNamed) {
    const std::string path = scratch_file();
    ASSERT_TRUE(replace_file(path, "old"));
    DescriptorVictim victim([&] { return ::open(path.c_str(), O_RDONLY) == 3; });
    ASSERT_TRUE(victim.ready());
    const UniqueFd keep(::open(path.c_str(), O_RDONLY));
    ASSERT_EQ(::link(path.c_str(), (path + ".kept").c_str()), 0);
    ASSERT_TRUE(replace_file(path, "new"));
    EXPECT_THAT(victim.refusals(), ElementsAre(HasSubstr("was replaced or deleted")));
    ::unlink(path.c_str());
    ::unlink((path + ".kept").c_str());
}

TEST(FilesSurvey, APipeToUsNamesUs) {
    int ends[2];
    ASSERT_EQ(::pipe2(ends, 0), 0);
    // The child closes what it inherits; it takes the end back from its parent.
    const int read_end = ends[0];
    DescriptorVictim victim([&] {
        const std::string path = "/proc/" + std::to_string(::getppid()) + "/fd/" + std::to_string(read_end);
        return ::open(path.c_str(), O_RDONLY) == 3;
    });
    ASSERT_TRUE(victim.ready());
    EXPECT_THAT(victim.refusals(), ElementsAre(HasSubstr("is shared with pid " + std::to_string(::getpid()))));
    ::close(ends[0]);
    ::close(ends[1]);
}

TEST(FilesSurvey, WrittenFilesAreAskedForAsWritable) {
    const std::string path = scratch_file();
    DescriptorVictim victim([&] {
        return ::open(path.c_str(), O_CREAT | O_WRONLY | O_APPEND, 0600) == 3 && ::open(path.c_str(), O_RDONLY) == 4 &&
               ::open("/etc/passwd", O_RDONLY) == 5 && ::open("/tmp", O_RDONLY | O_DIRECTORY) == 6;
    });
    ASSERT_TRUE(victim.ready());
    image::Plan plan;
    EXPECT_THAT(victim.refusals({}, &plan), IsEmpty());
    std::map<std::string, bool> writable;
    for (const auto& file : plan.files()) writable[file.path()] = file.writable();
    EXPECT_EQ(writable, (std::map<std::string, bool>{{path, true}, {"/etc/passwd", false}, {"/tmp", false}}));
    ::unlink(path.c_str());
}

TEST(FilesSurvey, AConnectionNeedsTcpClose) {
    DescriptorVictim victim([] {
        const int listener = tcp_socket("127.0.0.1", true);
        return listener == 3 && connect_to(listener) == 4;
    });
    ASSERT_TRUE(victim.ready());
    EXPECT_THAT(victim.refusals(), ElementsAre(HasSubstr("fd 4: a TCP connection 127.0.0.1:")));
    CollectOptions options;
    options.tcp_close = true;
    EXPECT_THAT(victim.refusals(options), IsEmpty());
}

TEST(FilesSurvey, AnEpollItemWhoseNumberIsGoneIsNamed) {
    DescriptorVictim victim([] {
        const int set = ::epoll_create1(0);
        const int event = ::eventfd(0, 0);
        const int other = ::dup(event);
        epoll_event wanted{};
        wanted.events = EPOLLIN;
        return ::epoll_ctl(set, EPOLL_CTL_ADD, event, &wanted) == 0 && ::close(event) == 0 && other == 5;
    });
    ASSERT_TRUE(victim.ready());
    EXPECT_THAT(victim.refusals(), ElementsAre(HasSubstr("epoll watches what was fd 4")));
}

TEST(FilesCollect, DuplicatesAreOneDescriptionAndSecondOpensAreNot) {
    DescriptorVictim victim([] {
        return ::open("/etc/passwd", O_RDONLY) == 3 && ::dup(3) == 4 && ::open("/etc/passwd", O_RDONLY) == 5 &&
               ::fcntl(3, F_DUPFD_CLOEXEC, 0) == 6 && ::lseek(3, 5, SEEK_SET) == 5 && ::lseek(5, 5, SEEK_SET) == 5;
    });
    ASSERT_TRUE(victim.ready());
    const auto files = victim.collect();
    ASSERT_TRUE(files) << files.error().what;
    EXPECT_EQ(files->descriptions_size(), 3);  // /dev/null and two
    EXPECT_EQ(description_of(*files, 3), description_of(*files, 4));
    EXPECT_EQ(description_of(*files, 3), description_of(*files, 6));
    EXPECT_NE(description_of(*files, 3), description_of(*files, 5));
    EXPECT_EQ(description_of(*files, 5)->file().position(), 5);
    EXPECT_TRUE(files->tables(0).descriptors(6).close_on_exec());
    EXPECT_FALSE(files->tables(0).descriptors(3).close_on_exec());
}

TEST(FilesCollect, ContentsArePeekedAtAndStay) {
    DescriptorVictim victim([] {
        int pipe[2], stream[2], packets[2];
        return ::pipe(pipe) == 0 && ::write(pipe[1], "in the pipe", 11) == 11 && ::socketpair(AF_UNIX, SOCK_STREAM, 0, stream) == 0 &&
               ::write(stream[0], "a st", 4) == 4 && ::write(stream[0], "ream", 4) == 4 &&
               ::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets) == 0 && ::write(packets[0], "one", 3) == 3 &&
               ::write(packets[0], "second", 6) == 6 && ::shutdown(packets[0], SHUT_WR) == 0;
    });
    ASSERT_TRUE(victim.ready());
    // Twice: the first time took nothing.
    for (int i = 0; i < 2; ++i) {
        const auto files = victim.collect();
        ASSERT_TRUE(files) << files.error().what;
        ASSERT_EQ(files->pipes_size(), 1);
        EXPECT_EQ(files->pipes(0).content(), "in the pipe");
        const auto& stream = description_of(*files, 6)->socket_pair();
        ASSERT_EQ(stream.queue_size(), 1);
        EXPECT_EQ(stream.queue(0).data(), "a stream");
        const auto& packets = description_of(*files, 8)->socket_pair();
        ASSERT_EQ(packets.queue_size(), 2);
        EXPECT_EQ(packets.queue(1).data(), "second");
        EXPECT_TRUE(packets.read_shut());
        EXPECT_TRUE(description_of(*files, 7)->socket_pair().write_shut());
    }
}

TEST(FilesCollect, DescriptorsUnderWayAreNamed) {
    DescriptorVictim victim([] {
        int pair[2];
        ::socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
        const int sent = 0;
        iovec vector{const_cast<char*>("x"), 1};
        alignas(cmsghdr) char control[CMSG_SPACE(sizeof sent)] = {};
        msghdr message{};
        message.msg_iov = &vector;
        message.msg_iovlen = 1;
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        cmsghdr* head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof sent);
        __builtin_memcpy(CMSG_DATA(head), &sent, sizeof sent);
        return ::sendmsg(pair[0], &message, 0) == 1;
    });
    ASSERT_TRUE(victim.ready());
    const auto files = victim.collect();
    ASSERT_FALSE(files);
    EXPECT_THAT(files.error().what, HasSubstr("descriptors or credentials are under way"));
    EXPECT_EQ(files.error().code, ExitCode::unsupported);
}

TEST(FilesCollect, AListenerIsToldWithBacklogAndOptions) {
    DescriptorVictim victim([] {
        const int on = 1, size = 100'000;
        const int fd = tcp_socket("127.0.0.1", true);
        return ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) == 0 &&
               ::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size) == 0;
    });
    ASSERT_TRUE(victim.ready());
    const auto files = victim.collect();
    ASSERT_TRUE(files) << files.error().what;
    const auto& tcp = description_of(*files, 3)->tcp();
    EXPECT_TRUE(tcp.listening());
    EXPECT_EQ(tcp.backlog(), 77u);
    std::map<int, int> options;
    for (const auto& option : tcp.options()) {
        EXPECT_EQ(option.level(), SOL_SOCKET) << option.name();
        __builtin_memcpy(&options[option.name()], option.value().data(), 4);
    }
    constexpr int buffer_lock = 72;  // SO_BUF_LOCK
    EXPECT_EQ(options, (std::map<int, int>{{SO_KEEPALIVE, 1}, {SO_RCVBUF, 200'000}, {buffer_lock, 2}}));
}

TEST(FilesTcp, ThePeerOfAKilledProgramGetsAReset) {
    const int listener = tcp_socket("127.0.0.1", true);
    sockaddr_in name{};
    socklen_t size = sizeof name;
    ASSERT_EQ(::getsockname(listener, reinterpret_cast<sockaddr*>(&name), &size), 0);
    int accepted = -1;
    {
        DescriptorVictim victim([&] {
            const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
            return ::connect(fd, reinterpret_cast<sockaddr*>(&name), size) == 0;
        });
        ASSERT_TRUE(victim.ready());
        accepted = ::accept(listener, nullptr, nullptr);
        const auto done = reset_connections({victim.pid()});
        EXPECT_TRUE(done) << done.error().what;
    }
    char byte = 0;
    EXPECT_EQ(::read(accepted, &byte, 1), -1);
    EXPECT_EQ(errno, ECONNRESET);
    ::close(accepted);
    ::close(listener);
}

TEST(FilesTcp, AProcessThatIsGoneIsPassedOver) {
    EXPECT_TRUE(reset_connections({0x3ffffffe}));
}

}  // namespace
}  // namespace godwit
