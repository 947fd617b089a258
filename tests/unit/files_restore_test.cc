// Descriptors that go from a process into a skeleton are the same there: collected again, they tell the same.
#include <arpa/inet.h>
#include <fcntl.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <optional>

#include "common/base/file.h"
#include "common/kernel/proc.h"
#include "common/kernel/tree_clock.h"
#include "dest-agent/restore/restore.h"
#include "tests/support/descriptor_victim.h"

namespace godwit {
namespace {

using google::protobuf::util::MessageDifferencer;
using test::DescriptorVictim;

constexpr int64_t second = 1'000'000'000;

// Numbers that the kernel chose: PIDs, inodes. Deadlines are compared apart.
image::Files told(image::Files files) {
    std::map<uint64_t, uint64_t> inodes;
    const auto number = [&](uint64_t inode) { return inodes.emplace(inode, inodes.size() + 1).first->second; };
    for (auto& description : *files.mutable_descriptions()) {
        if (description.has_pipe_end()) description.mutable_pipe_end()->set_pipe(number(description.pipe_end().pipe()));
        if (description.has_timer_fd()) description.mutable_timer_fd()->clear_deadline_ns();
        if (description.owner() != 0) description.set_owner(1);
        if (description.has_epoll()) {
            // In the order of the kernel's addresses.
            auto* items = description.mutable_epoll()->mutable_items();
            std::sort(items->begin(), items->end(), [](const auto& a, const auto& b) { return a.fd() < b.fd(); });
            for (auto& item : *items) item.set_pid(1);
        }
        if (!description.has_socket_pair()) continue;
        auto* pair = description.mutable_socket_pair();
        pair->set_inode(number(pair->inode()));
        pair->set_peer(number(pair->peer()));
    }
    for (auto& pipe : *files.mutable_pipes()) pipe.set_pipe(number(pipe.pipe()));
    for (auto& table : *files.mutable_tables()) table.set_pid(1);
    return files;
}

// The same files, as of another process.
void rename(image::Files& files, pid_t from, pid_t to) {
    for (auto& table : *files.mutable_tables()) table.set_pid(to);
    for (auto& description : *files.mutable_descriptions()) {
        if (description.owner() == from) description.set_owner(to);
        if (description.has_epoll())
            for (auto& item : *description.mutable_epoll()->mutable_items()) item.set_pid(to);
    }
}

struct Moved {
    image::Files before, after;
    std::optional<Skeleton> skeleton;
};

// Collects from the victim, ends it (its ports are free then), restores and collects again.
Result<Moved> move(std::unique_ptr<DescriptorVictim> victim, const CollectOptions& options = {}) {
    Moved moved;
    moved.before = TRY(victim->collect(options));
    moved.skeleton = TRY(test::bare_skeleton());
    image::Files files = moved.before;
    rename(files, victim->pid(), moved.skeleton->pid());
    victim.reset();
    // The skeleton's clocks are 1000 s ahead of the victim's, as another host's might be.
    for (auto& description : *files.mutable_descriptions())
        if (description.has_timer_fd() && description.timer_fd().deadline_ns() != 0 &&
            !(description.timer_fd().clock() == CLOCK_REALTIME && description.timer_fd().settime_flags() != 0))
            description.mutable_timer_fd()->set_deadline_ns(description.timer_fd().deadline_ns() + 1000 * second);
    std::vector<Skeleton*> skeletons{&*moved.skeleton};
    TRY(restore_files(skeletons, files));
    moved.after = TRY(test::collect_from(moved.skeleton->pid(), &moved.skeleton->remote(), options));
    return moved;
}

void expect_same(const image::Files& before, const image::Files& after) {
    MessageDifferencer differencer;
    std::string difference;
    differencer.ReportDifferencesToString(&difference);
    EXPECT_TRUE(differencer.Compare(told(before), told(after))) << difference;
}

UniqueFd take(const Skeleton& skeleton, int fd) {
    const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, skeleton.pid(), 0)));
    return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), fd, 0)));
}

std::string scratch_file(const char* name) {
    return "/tmp/godwit-restore-" + std::to_string(::getpid()) + name;
}

class FilesRestore : public testing::Test {
  protected:
    void SetUp() override {
        if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    }
};

#define MOVE(name, ...)                                                                 \
    auto victim_ = std::make_unique<DescriptorVictim>(__VA_ARGS__);                     \
    ASSERT_TRUE(victim_->ready());                                                      \
    auto name = move(std::move(victim_));                                               \
    ASSERT_TRUE(name) << name.error().what

TEST_F(FilesRestore, FilesKeepPositionFlagsAndSharing) {
    const std::string path = scratch_file("-log");
    ASSERT_TRUE(replace_file(path, "0123456789"));
    MOVE(moved, [&] {
        return ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) == 3 && ::open(path.c_str(), O_RDWR | O_NONBLOCK) == 4 &&
               ::lseek(4, 7, SEEK_SET) == 7 && ::dup2(4, 900) == 900 && ::dup2(3, 40) == 40 && ::open("/tmp", O_RDONLY | O_DIRECTORY) == 5 &&
               ::open("/dev/urandom", O_RDONLY) == 6 && ::close(1) == 0 && ::fcntl(4, F_SETOWN, ::getpid()) == 0;
    });
    expect_same(moved->before, moved->after);
    // Shared in truth, not only in the telling.
    ASSERT_EQ(::lseek(take(*moved->skeleton, 900).get(), 1, SEEK_CUR), 8);
    EXPECT_EQ(::lseek(take(*moved->skeleton, 4).get(), 0, SEEK_CUR), 8);
    ::unlink(path.c_str());
}

TEST_F(FilesRestore, PipesKeepContentCapacityAndEnds) {
    MOVE(moved, [] {
        int a[2], half[2];
        return ::pipe2(a, O_NONBLOCK) == 0 && ::fcntl(a[1], F_SETPIPE_SZ, 1 << 17) > 0 && ::write(a[1], "hello", 5) == 5 &&
               ::open("/proc/self/fd/3", O_RDWR) == 5 && ::open("/proc/self/fd/3", O_RDONLY | O_NONBLOCK) == 6 && ::pipe(half) == 0 &&
               ::write(half[1], "rest", 4) == 4 && ::close(half[1]) == 0;
    });
    expect_same(moved->before, moved->after);
    char text[8] = {};
    EXPECT_EQ(::read(take(*moved->skeleton, 3).get(), text, sizeof text), 5);
    EXPECT_STREQ(text, "hello");
    EXPECT_EQ(::read(take(*moved->skeleton, 7).get(), text, sizeof text), 4);
    EXPECT_EQ(::read(take(*moved->skeleton, 7).get(), text, sizeof text), 0) << "the writer was gone";
}

TEST_F(FilesRestore, SocketPairsKeepQueuesAndShutdowns) {
    MOVE(moved, [] {
        int stream[2], packets[2], datagrams[2];
        return ::socketpair(AF_UNIX, SOCK_STREAM, 0, stream) == 0 && ::write(stream[0], "left", 4) == 4 && ::write(stream[1], "right", 5) == 5 &&
               ::shutdown(stream[0], SHUT_WR) == 0 && ::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, packets) == 0 &&
               ::write(packets[0], "one", 3) == 3 && ::write(packets[0], "three", 5) == 5 &&
               ::socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams) == 0 && ::write(datagrams[1], "x", 1) == 1 && ::write(datagrams[1], "yz", 2) == 2 &&
               ::fchown(stream[0], 12, 34) == 0;
    });
    expect_same(moved->before, moved->after);
    char text[8] = {};
    EXPECT_EQ(::read(take(*moved->skeleton, 6).get(), text, sizeof text), 3);
    EXPECT_EQ(::read(take(*moved->skeleton, 6).get(), text, sizeof text), 5);
    EXPECT_STREQ(text, "three");
}

TEST_F(FilesRestore, EventsTimersAndSignalsGoOn) {
    MOVE(moved, [] {
        itimerspec soon{}, wall{};
        soon.it_value.tv_sec = 500;
        soon.it_interval.tv_nsec = 250'000'000;
        ::clock_gettime(CLOCK_REALTIME, &wall.it_value);
        wall.it_value.tv_sec += 5000;
        itimerspec past{};
        past.it_value.tv_nsec = 1;
        sigset_t mask;
        ::sigemptyset(&mask);
        ::sigaddset(&mask, SIGUSR2);
        ::sigprocmask(SIG_BLOCK, &mask, nullptr);
        bool good = ::eventfd(5, EFD_NONBLOCK) == 3 && ::eventfd(7, EFD_SEMAPHORE) == 4;
        good = good && ::timerfd_create(CLOCK_MONOTONIC, 0) == 5 && ::timerfd_settime(5, 0, &soon, nullptr) == 0;
        good = good && ::timerfd_create(CLOCK_REALTIME, 0) == 6 && ::timerfd_settime(6, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &wall, nullptr) == 0;
        good = good && ::timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK) == 7 && ::timerfd_settime(7, 0, &past, nullptr) == 0;
        good = good && ::timerfd_create(CLOCK_REALTIME, 0) == 8 && ::signalfd(-1, &mask, SFD_CLOEXEC) == 9;
        pollfd expired{7, POLLIN, 0};
        return good && ::poll(&expired, 1, 1000) == 1;
    });
    expect_same(moved->before, moved->after);
    for (const int fd : {5, 6}) {
        const auto& was = moved->before.descriptions(fd - 2).timer_fd();
        const auto& is = moved->after.descriptions(fd - 2).timer_fd();
        const int64_t ahead = fd == 5 ? 1000 * second : 0;  // by the skeleton's clocks
        EXPECT_NEAR(static_cast<double>(is.deadline_ns() - ahead), static_cast<double>(was.deadline_ns()), 50e6) << fd;
    }
    uint64_t ticks = 0;
    EXPECT_EQ(::read(take(*moved->skeleton, 7).get(), &ticks, sizeof ticks), 8);
    EXPECT_EQ(ticks, 1u);
}

TEST_F(FilesRestore, EpollSetsWatchWhatTheyWatched) {
    MOVE(moved, [] {
        int pipe[2], pair[2];
        bool good = ::epoll_create1(EPOLL_CLOEXEC) == 3 && ::pipe(pipe) == 0 && ::eventfd(0, 0) == 6 && ::epoll_create1(0) == 7 &&
                    ::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0;
        uint64_t data = 0x1122334455667788;
        const auto add = [&](int set, int fd, uint32_t events) {
            epoll_event event{};
            event.events = events;
            event.data.u64 = data++;
            return ::epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) == 0;
        };
        good = good && add(3, 4, EPOLLIN | EPOLLET) && add(3, 6, EPOLLIN | EPOLLONESHOT) && add(3, 7, EPOLLIN) && add(7, 8, EPOLLIN | EPOLLRDHUP);
        const uint64_t one = 1;
        epoll_event ready[4];
        return good && ::write(6, &one, 8) == 8 && ::epoll_wait(3, ready, 4, 1000) == 1 && ::write(9, "x", 1) == 1;
    });
    image::Files before = told(moved->before), after = told(moved->after);
    // Adding always adds errors, which a disarmed item shows when nothing took its event away again.
    for (image::Files* files : {&before, &after})
        for (auto& description : *files->mutable_descriptions())
            if (description.has_epoll()) {
                auto* items = description.mutable_epoll()->mutable_items();
                for (auto& item : *items) item.set_events(item.events() & ~static_cast<uint32_t>(EPOLLERR | EPOLLHUP));
            }
    expect_same(before, after);
    epoll_event ready[4];
    ASSERT_EQ(::epoll_wait(take(*moved->skeleton, 3).get(), ready, 4, 0), 1) << "the disarmed item stays silent";
    EXPECT_EQ(ready[0].data.u64, 0x112233445566778au);
}

TEST_F(FilesRestore, ListenersListenAndClosedConnectionsFail) {
    auto victim = std::make_unique<DescriptorVictim>([] {
        const int on = 1;
        const int fd = ::socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
        sockaddr_in6 name{};
        name.sin6_family = AF_INET6;
        socklen_t size = sizeof name;
        bool good = ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 && ::setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) == 0;
        good = good && ::bind(fd, reinterpret_cast<sockaddr*>(&name), size) == 0 && ::listen(fd, 19) == 0;
        ::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &size);
        name.sin6_addr = in6addr_loopback;
        const int client = ::socket(AF_INET6, SOCK_STREAM, 0);
        good = good && ::connect(client, reinterpret_cast<sockaddr*>(&name), size) == 0 && ::accept(fd, nullptr, nullptr) == 5;
        const int bound = ::socket(AF_INET, SOCK_STREAM, 0);
        sockaddr_in local{};
        local.sin_family = AF_INET;
        local.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        good = good && ::bind(bound, reinterpret_cast<sockaddr*>(&local), sizeof local) == 0;
        const int fresh = ::socket(AF_INET, SOCK_STREAM, 0);
        return good && fresh == 7;
    });
    ASSERT_TRUE(victim->ready());
    CollectOptions options;
    options.tcp_close = true;
    auto moved = move(std::move(victim), options);
    ASSERT_TRUE(moved) << moved.error().what;
    expect_same(moved->before, moved->after);
    EXPECT_EQ(moved->after.descriptions(1).tcp().backlog(), 19u);
    const UniqueFd closed = take(*moved->skeleton, 4);
    char byte = 0;
    EXPECT_EQ(::read(closed.get(), &byte, 1), -1);
    EXPECT_EQ(errno, ECONNABORTED);
    EXPECT_EQ(::read(closed.get(), &byte, 1), 0);
    EXPECT_EQ(::send(closed.get(), "x", 1, MSG_NOSIGNAL), -1);
    EXPECT_EQ(errno, EPIPE);
}

TEST_F(FilesRestore, ManyDescriptorsComeInOrder) {
    MOVE(moved, [] {
        for (int i = 3; i < 600; ++i)
            if (::eventfd(static_cast<unsigned>(i), 0) != i) return false;
        for (int i = 3; i < 300; i += 3) ::close(i);
        return ::dup2(301, 3) == 3 && ::dup2(4, 700) == 700;
    });
    expect_same(moved->before, moved->after);
}

TEST_F(FilesRestore, APortInUseIsNamed) {
    auto victim = std::make_unique<DescriptorVictim>([] {
        const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
        sockaddr_in name{};
        name.sin_family = AF_INET;
        name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        return ::bind(fd, reinterpret_cast<sockaddr*>(&name), sizeof name) == 0 && ::listen(fd, 5) == 0;
    });
    ASSERT_TRUE(victim->ready());
    auto files = victim->collect();
    ASSERT_TRUE(files) << files.error().what;
    auto skeleton = test::bare_skeleton();
    ASSERT_TRUE(skeleton) << skeleton.error().what;
    rename(*files, victim->pid(), skeleton->pid());
    std::vector<Skeleton*> skeletons{&*skeleton};
    const auto done = restore_files(skeletons, *files);
    ASSERT_FALSE(done);
    EXPECT_NE(done.error().what.find("fd 3: cannot bind to 127.0.0.1:"), std::string::npos) << done.error().what;
}

TEST_F(FilesRestore, WhatAConfusedPeerSendsIsRefused) {
    auto skeleton = test::bare_skeleton();
    ASSERT_TRUE(skeleton) << skeleton.error().what;
    std::vector<Skeleton*> skeletons{&*skeleton};
    const auto refused = [&](const std::function<void(image::Files&)>& change) {
        image::Files files;
        auto* description = files.add_descriptions();
        description->set_id(1);
        description->mutable_event_fd();
        auto* table = files.add_tables();
        table->set_pid(skeleton->pid());
        auto* descriptor = table->add_descriptors();
        descriptor->set_fd(3);
        descriptor->set_description(1);
        change(files);
        return !restore_files(skeletons, files);
    };
    EXPECT_TRUE(refused([](image::Files& files) { files.mutable_tables(0)->set_pid(1); }));
    EXPECT_TRUE(refused([](image::Files& files) { files.mutable_tables(0)->mutable_descriptors(0)->set_description(2); }));
    EXPECT_TRUE(refused([](image::Files& files) { files.mutable_tables(0)->mutable_descriptors(0)->set_fd(-1); }));
    EXPECT_TRUE(refused([](image::Files& files) { *files.add_descriptions() = files.descriptions(0); }));
    EXPECT_TRUE(refused([](image::Files& files) { files.mutable_descriptions(0)->mutable_pipe_end()->set_pipe(9); }));
    EXPECT_TRUE(refused([](image::Files& files) { files.mutable_descriptions(0)->mutable_socket_pair()->set_inode(9); }));
    EXPECT_TRUE(refused([](image::Files& files) { files.mutable_descriptions(0)->clear_event_fd(); }));
    EXPECT_TRUE(refused([](image::Files& files) { files.mutable_descriptions(0)->mutable_file()->set_path("etc"); }));
    EXPECT_TRUE(refused([](image::Files& files) { files.clear_tables(); }));
    EXPECT_FALSE(refused([](image::Files&) {}));
}

}  // namespace
}  // namespace godwit
