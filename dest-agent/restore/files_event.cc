// eventfd, timerfd, signalfd and epoll.
#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>

#include "common/base/file.h"
#include "common/kernel/tree_clock.h"
#include "dest-agent/restore/files_internal.h"

namespace godwit::files {
namespace {

constexpr int64_t billion = 1'000'000'000;
constexpr unsigned long timer_set_ticks = _IOW('T', 0, uint64_t);  // TFD_IOC_SET_TICKS, Linux 3.17

timespec time_of(int64_t ns) {
    return {ns / billion, ns % billion};
}

Result<UniqueFd> make_event_fd(const image::EventFd& event) {
    UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | (event.semaphore() ? EFD_SEMAPHORE : 0)));
    if (!fd) return fail_errno("cannot make an eventfd");
    const uint64_t count = event.count();
    if (count != 0) TRY(write_all(fd.get(), &count, sizeof count));
    return fd;
}

Result<UniqueFd> make_timer(const image::TimerFd& timer, pid_t pid) {
    UniqueFd fd(::timerfd_create(timer.clock(), TFD_CLOEXEC | TFD_NONBLOCK));
    if (!fd) return fail_errno(fmt::format("cannot make a timerfd on clock {}", timer.clock()));
    uint64_t ticks = timer.ticks();
    if (timer.deadline_ns() != 0) {
        const bool absolute = (timer.settime_flags() & TFD_TIMER_ABSTIME) != 0;
        const bool wall_clock = timer.clock() == CLOCK_REALTIME && absolute;
        const int clock = timer.clock() == CLOCK_BOOTTIME ? CLOCK_BOOTTIME : CLOCK_MONOTONIC;
        int64_t left = timer.deadline_ns() - (wall_clock ? own_clock(CLOCK_REALTIME) : TRY(tree_clock(pid, clock)));
        // What came due on the way: the beats that were missed are counted, the next one stays in time.
        if (left <= 0 && timer.interval_ns() > 0) {
            const int64_t missed = 1 + (-left) / timer.interval_ns();
            ticks += static_cast<uint64_t>(missed);
            left += missed * timer.interval_ns();
        }
        left = std::max<int64_t>(left, 1);
        itimerspec value{};
        value.it_interval = time_of(timer.interval_ns());
        // An absolute time is in our own clocks here; the timer itself knows no namespace.
        value.it_value = time_of(absolute ? own_clock(timer.clock()) + left : left);
        if (::timerfd_settime(fd.get(), static_cast<int>(timer.settime_flags()), &value, nullptr) != 0)
            return fail_errno("cannot start a timerfd");
    }
    // After the start, which clears them.
    if (ticks != 0 && ::ioctl(fd.get(), timer_set_ticks, &ticks) != 0)
        return fail_errno(errno, "cannot set the expirations of a timerfd", "the kernel needs CONFIG_CHECKPOINT_RESTORE");
    return fd;
}

Result<UniqueFd> make_signal_fd(const image::SignalFd& signals) {
    const uint64_t mask = signals.mask();
    UniqueFd fd(static_cast<int>(::syscall(SYS_signalfd4, -1, &mask, sizeof mask, SFD_CLOEXEC | SFD_NONBLOCK)));
    if (!fd) return fail_errno("cannot make a signalfd");
    return fd;
}

// True for an item of EPOLLONESHOT whose event was delivered: it waits for EPOLL_CTL_MOD.
bool is_disarmed(const image::EpollItem& item) {
    constexpr uint32_t private_bits = EPOLLWAKEUP | EPOLLONESHOT | EPOLLET | EPOLLEXCLUSIVE;
    return (item.events() & EPOLLONESHOT) != 0 && (item.events() & ~private_bits) == 0;
}

epoll_event event_of(const image::EpollItem& item) {
    epoll_event event{};
    event.events = item.events();
    event.data.u64 = item.data();
    return event;
}

}  // namespace

Result<UniqueFd> make_event(const image::Description& description, pid_t pid) {
    if (description.has_event_fd()) return make_event_fd(description.event_fd());
    if (description.has_timer_fd()) return make_timer(description.timer_fd(), pid);
    if (description.has_signal_fd()) return make_signal_fd(description.signal_fd());
    UniqueFd fd(::epoll_create1(EPOLL_CLOEXEC));
    if (!fd) return fail_errno("cannot make an epoll set");
    return fd;
}

Result<void> add_epoll_items(Skeleton& skeleton, const image::DescriptorTable& table, const image::Files& files) {
    // One number of each description: a set that has several is filled through one.
    std::map<uint32_t, int> numbers;
    for (const auto& descriptor : table.descriptors()) numbers.emplace(descriptor.description(), descriptor.fd());
    Batch batch;
    for (const auto& description : files.descriptions()) {
        const auto set = numbers.find(description.id());
        if (!description.has_epoll() || set == numbers.end()) continue;
        // Adding always watches for errors. A disarmed item whose object has one is disarmed again by receiving the event,
        // which is the item's own as long as no armed one is there: those come second.
        for (const bool disarmed : {true, false})
            for (const auto& item : description.epoll().items()) {
                if (item.pid() != table.pid() || is_disarmed(item) != disarmed) continue;
                const epoll_event event = event_of(item);
                batch.call(SYS_epoll_ctl, set->second, EPOLL_CTL_ADD, item.fd(), batch.bytes(&event, sizeof event));
                if (disarmed) batch.call_may_fail(SYS_epoll_wait, set->second, batch.out(sizeof event), 1, 0);
            }
    }
    if (batch.empty()) return {};
    return skeleton.remote().run(batch);
}

}  // namespace godwit::files
