// eventfd, timerfd, signalfd and epoll: counters, deadlines, masks, and items level, edge-triggered and one-shot.
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <vector>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

void add(int set, int fd, uint32_t events, uint64_t data) {
    epoll_event item{};
    item.events = events;
    item.data.u64 = data;
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, fd, &item) == 0);
}

// What is ready now, in order.
std::vector<uint64_t> ready(int set) {
    epoll_event items[16];
    const int count = epoll_wait(set, items, 16, 0);
    CHECK(count >= 0);
    std::vector<uint64_t> found;
    for (int i = 0; i < count; ++i) found.push_back(items[i].data.u64);
    std::sort(found.begin(), found.end());
    return found;
}

enum : uint64_t { counter_item = 0x100000000ULL, quiet_item, edge_item, once_item, timer_item, signal_item, set_item };

void check_semaphore(int fd) {
    uint64_t value = 0;
    CHECK(read(fd, &value, 8) == 8 && value == 1);
    CHECK(write(fd, &value, 8) == 8);
}

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    const int counter = eventfd(41, EFD_NONBLOCK);
    const int semaphore = eventfd(3, EFD_SEMAPHORE | EFD_CLOEXEC);
    const int quiet = eventfd(0, EFD_NONBLOCK);
    const int edge = eventfd(7, EFD_NONBLOCK);
    const int once = eventfd(8, EFD_NONBLOCK);

    const int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    const itimerspec far{{0, 0}, {4000, 0}};
    CHECK(timerfd_settime(timer, 0, &far, nullptr) == 0);
    const int ticking = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK | TFD_CLOEXEC);
    const itimerspec ticks{{0, 10000000}, {0, 10000000}};
    CHECK(timerfd_settime(ticking, 0, &ticks, nullptr) == 0);
    const int expired = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK);  // has gone off, nobody has read it
    const itimerspec soon{{0, 0}, {0, 1000}};
    CHECK(timerfd_settime(expired, 0, &soon, nullptr) == 0);

    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1);
    sigaddset(&mask, SIGRTMIN + 2);
    CHECK(sigprocmask(SIG_BLOCK, &mask, nullptr) == 0);
    const int signals = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
    CHECK(signals >= 0 && sigqueue(getpid(), SIGRTMIN + 2, sigval{1234}) == 0);

    const int set = epoll_create1(EPOLL_CLOEXEC);
    const int inner = epoll_create1(0);
    const int gone = dup(quiet);
    add(set, counter, EPOLLIN, counter_item);
    add(set, quiet, EPOLLIN | EPOLLPRI, quiet_item);
    add(set, edge, EPOLLIN | EPOLLET, edge_item);
    add(set, once, EPOLLIN | EPOLLONESHOT, once_item);
    add(set, timer, EPOLLIN, timer_item);
    add(set, signals, EPOLLIN, signal_item);
    if (self.flag("nested")) {
        add(inner, quiet, EPOLLIN, 1);
        add(set, inner, EPOLLIN, set_item);
    }
    // An item whose number was closed stays as long as its description is open; few programs mean it.
    if (self.flag("stale")) add(set, gone, EPOLLIN, 9);
    close(gone);

    const std::vector<uint64_t> first = {counter_item, edge_item, once_item, signal_item};
    CHECK(ready(set) == first);
    const std::vector<uint64_t> rest = {counter_item, signal_item};
    CHECK(ready(set) == rest);
    sleep_ms(5);
    long long ticked = now_ns();
    bool edge_came_again = false;  // in the turn before
    self.ready();
    do {
        uint64_t value = 0;
        std::vector<uint64_t> now = ready(set);
        // An edge that is made anew by a move may report once more (epoll(7) lets it); the one-shot item may not.
        const bool edge_came = now.size() == 3 && now[1] == edge_item;
        CHECK(!(edge_came && edge_came_again));
        if (edge_came) now.erase(now.begin() + 1);
        edge_came_again = edge_came;
        CHECK(now == rest);
        CHECK(read(counter, &value, 8) == 8 && value == 41 && write(counter, &value, 8) == 8);
        check_semaphore(semaphore);
        CHECK(read(quiet, &value, 8) == -1 && errno == EAGAIN);
        value = 1;
        CHECK(write(quiet, &value, 8) == 8);
        CHECK(ready(set).size() == (self.flag("nested") ? 4u : 3u) + (self.flag("stale") ? 1u : 0u));
        CHECK(read(quiet, &value, 8) == 8 && value == 1);
        if (read(ticking, &value, 8) == 8) ticked = now_ns();
        CHECK(now_ns() - ticked < 20000000000LL);
        itimerspec left{};
        CHECK(timerfd_gettime(timer, &left) == 0 && left.it_value.tv_sec > 3000 && left.it_value.tv_sec < 4000);
    } while (self.going());
    uint64_t value = 0;
    CHECK(read(expired, &value, 8) == 8 && value == 1);
    epoll_event item{};
    item.events = EPOLLIN | EPOLLONESHOT;
    item.data.u64 = once_item;
    CHECK(epoll_ctl(set, EPOLL_CTL_MOD, once, &item) == 0 && ready(set).size() == 3);
    signalfd_siginfo info{};
    CHECK(read(signals, &info, sizeof info) == sizeof info);
    CHECK(info.ssi_signo == static_cast<uint32_t>(SIGRTMIN + 2) && info.ssi_int == 1234 && info.ssi_pid == static_cast<uint32_t>(getpid()));
    CHECK(read(signals, &info, sizeof info) == -1 && errno == EAGAIN);
    for (uint64_t i = 0; i < 3; ++i) CHECK(read(semaphore, &value, 8) == 8 && value == 1);
    return self.done();
}
