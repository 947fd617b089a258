// Objects of the process's own event loop: eventfd, epoll, timerfd, signalfd. All is in their fdinfo (proc_pid_fdinfo(5)).
#include <fmt/format.h>
#include <sys/timerfd.h>
#include <time.h>

#include <cinttypes>
#include <cstdio>

#include "common/kernel/kcmp.h"
#include "common/kernel/tree_clock.h"
#include "source-agent/collect/files_internal.h"

namespace godwit::files {
namespace {

constexpr int64_t billion = 1'000'000'000;

// "tfd:        5 events:       19 data:                5  pos:0 ino:3a sdev:9"
struct Item {
    int fd = -1;
    uint32_t events = 0;
    uint64_t data = 0;
    uint64_t inode = 0;
    unsigned nth = 0;  // among the items of this number
};

bool items_of(const Seen& one, std::vector<Item>& out) {
    std::map<int, unsigned> count;
    for (const std::string& line : one.info) {
        if (!line.starts_with("tfd:")) continue;
        Item item;
        if (std::sscanf(line.c_str(), "tfd: %d events: %" SCNx32 " data: %" SCNx64 " pos:%*d ino:%" SCNx64, &item.fd,
                        &item.events, &item.data, &item.inode) != 4)
            return false;
        item.nth = count[item.fd]++;
        out.push_back(item);
    }
    return true;
}

// One descriptor of the epoll set in each process that holds it.
std::vector<const Seen*> holders_of(const Seen& one, const Looker& looker) {
    std::vector<const Seen*> out{&one};
    for (const Seen& other : looker.seen)
        if (other.kind == Kind::epoll && other.pid != out.back()->pid && other.pid != one.pid &&
            kcmp_files(one.pid, one.fd, other.pid, other.fd) == 0)
            out.push_back(&other);
    return out;
}

// The process of the tree in which the item's number still names what is watched; 0: none.
pid_t holder_of(const std::vector<const Seen*>& holders, const Item& item, const Looker& looker) {
    for (const Seen* epoll : holders) {
        const Seen* watched = looker.find(epoll->pid, item.fd);
        if (watched == nullptr) continue;
        // A socket's inode is its own, so that thousands of connections need not be compared one by one (the kernel
        // walks the whole set for each).
        const bool same = S_ISSOCK(watched->status.st_mode)
                              ? watched->status.st_ino == item.inode
                              : kcmp_epoll(epoll->pid, item.fd, epoll->fd, item.fd, item.nth) == 0;
        if (same) return epoll->pid;
    }
    return 0;
}

Refusal check_epoll(const Seen& one, const Looker& looker) {
    std::vector<Item> items;
    if (!items_of(one, items)) return refuse(one, "cannot make sense of its epoll items", "this kernel is not known here");
    const auto holders = holders_of(one, looker);
    for (const Item& item : items)
        if (holder_of(holders, item, looker) == 0)
            return refuse(one, fmt::format("epoll watches what was fd {} when it was added and is no longer", item.fd),
                          "have the program remove a descriptor from epoll before it closes the number");
    return {};
}

struct Timer {
    int clock = -1;
    uint64_t ticks = 0;
    uint32_t flags = 0;
    int64_t left_ns = 0;
    int64_t interval_ns = 0;
};

// "(seconds, nanoseconds)"
bool parse_time(const std::string& text, int64_t& out) {
    long long seconds = 0, nanoseconds = 0;
    if (std::sscanf(text.c_str(), "(%lld, %lld)", &seconds, &nanoseconds) != 2) return false;
    out = seconds * billion + nanoseconds;
    return true;
}

bool timer_of(const Seen& one, Timer& out) {
    return std::sscanf(one.field("clockid").c_str(), "%d", &out.clock) == 1 &&
           std::sscanf(one.field("ticks").c_str(), "%" SCNu64, &out.ticks) == 1 &&
           std::sscanf(one.field("settime flags").c_str(), "%" SCNo32, &out.flags) == 1 &&
           parse_time(one.field("it_value"), out.left_ns) && parse_time(one.field("it_interval"), out.interval_ns);
}

Refusal check_timer(const Seen& one) {
    Timer timer;
    if (!timer_of(one, timer)) return refuse(one, "cannot make sense of its timerfd", "the kernel needs CONFIG_PROC_FS with timerfd details (Linux 3.17)");
    if (timer.clock != CLOCK_REALTIME && timer.clock != CLOCK_MONOTONIC && timer.clock != CLOCK_BOOTTIME)
        return refuse(one, fmt::format("a timerfd on clock {} (it can wake the machine)", timer.clock),
                      "alarm clocks are not carried: have the program close it");
    if ((timer.flags & ~static_cast<uint32_t>(TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET)) != 0)
        return refuse(one, fmt::format("a timerfd with flags {:#o}, which are not known here", timer.flags), "have the program close it");
    return {};
}

Result<void> collect_timer(const Seen& one, image::TimerFd& out) {
    Timer timer;
    if (!timer_of(one, timer)) return fail(one.who() + ": cannot make sense of its timerfd");
    out.set_clock(timer.clock);
    out.set_ticks(timer.ticks);
    out.set_interval_ns(timer.interval_ns);
    out.set_settime_flags(timer.flags);
    // fdinfo shows 0 for "disarmed" and for a one-shot timer that has expired: both are at rest.
    if (timer.left_ns == 0 && timer.interval_ns == 0) return {};
    const bool wall_clock = timer.clock == CLOCK_REALTIME && (timer.flags & TFD_TIMER_ABSTIME) != 0;
    const int clock = timer.clock == CLOCK_BOOTTIME ? CLOCK_BOOTTIME : CLOCK_MONOTONIC;
    const int64_t now = wall_clock ? own_clock(CLOCK_REALTIME) : TRY(tree_clock(one.pid, clock));
    out.set_deadline_ns(now + timer.left_ns);
    return {};
}

Result<void> collect_epoll(const Seen& one, const Looker& looker, image::Epoll& out) {
    std::vector<Item> items;
    if (!items_of(one, items)) return fail(one.who() + ": cannot make sense of its epoll items");
    const auto holders = holders_of(one, looker);
    std::map<pid_t, pid_t> inside;
    for (const Item& item : items) {
        const pid_t pid = holder_of(holders, item, looker);
        if (pid == 0) return fail(fmt::format("{}: epoll item {} vanished", one.who(), item.fd));
        if (!inside.contains(pid)) inside[pid] = TRY(looker.inside(pid));
        auto* added = out.add_items();
        added->set_fd(item.fd);
        added->set_events(item.events);
        added->set_data(item.data);
        added->set_pid(inside[pid]);
    }
    return {};
}

}  // namespace

Refusal check_event(const Seen& one, const Looker& looker) {
    uint64_t value = 0;
    switch (one.kind) {
        case Kind::epoll: return check_epoll(one, looker);
        case Kind::timer_fd: return check_timer(one);
        case Kind::event_fd:
            if (std::sscanf(one.field("eventfd-count").c_str(), "%" SCNx64, &value) == 1) return {};
            return refuse(one, "cannot make sense of its eventfd", "this kernel is not known here");
        default:
            if (std::sscanf(one.field("sigmask").c_str(), "%" SCNx64, &value) == 1) return {};
            return refuse(one, "cannot make sense of its signalfd", "this kernel is not known here");
    }
}

Result<void> collect_event(const Seen& one, const Looker& looker, image::Description& out) {
    uint64_t value = 0;
    switch (one.kind) {
        case Kind::epoll: return collect_epoll(one, looker, *out.mutable_epoll());
        case Kind::timer_fd: return collect_timer(one, *out.mutable_timer_fd());
        case Kind::event_fd:
            std::sscanf(one.field("eventfd-count").c_str(), "%" SCNx64, &value);
            out.mutable_event_fd()->set_count(value);
            // The line came with Linux 6.5: an older kernel does not tell a semaphore (docs/descriptors.md).
            out.mutable_event_fd()->set_semaphore(one.field("eventfd-semaphore") == "1");
            return {};
        default:
            std::sscanf(one.field("sigmask").c_str(), "%" SCNx64, &value);
            out.mutable_signal_fd()->set_mask(value);
            return {};
    }
}

}  // namespace godwit::files
