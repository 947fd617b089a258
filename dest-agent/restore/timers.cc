#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <ctime>

#include "common/kernel/abi.h"
#include "dest-agent/restore/parts.h"

namespace godwit {
namespace {

constexpr int64_t second_us = 1'000'000;
constexpr int64_t second_ns = 1'000'000'000;
// Timers made and deleted to reach an id on kernels before 6.15, some 1 µs each.
constexpr uint32_t most_steps = 1'000'000;
constexpr uint32_t steps_at_once = 500;

// struct sigevent as the kernel has it.
struct KernelSigevent {
    uint64_t value;
    int32_t signal;
    int32_t notify;
    int32_t thread;
    int32_t padding[11];
};
static_assert(sizeof(KernelSigevent) == 64);

itimerspec times_of(const image::PosixTimer& timer) {
    itimerspec times{};
    times.it_value = {timer.remaining_ns() / second_ns, timer.remaining_ns() % second_ns};
    times.it_interval = {timer.interval_ns() / second_ns, timer.interval_ns() % second_ns};
    return times;
}

// Makes a disarmed timer and returns its id: with `choose`, the kernel takes the wanted one from where it would store it.
Result<uint32_t> make_timer(Remote& remote, const image::PosixTimer& timer, bool choose) {
    KernelSigevent event{};
    event.value = timer.value();
    event.signal = static_cast<int32_t>(timer.signal());
    event.notify = static_cast<int32_t>(timer.notify());
    event.thread = timer.thread();
    const uint32_t wanted = timer.id();
    NamedCalls calls;
    Batch& batch = calls.batch();
    const auto id = choose ? batch.bytes(&wanted, sizeof wanted) : batch.out(sizeof wanted);
    calls.call(fmt::format("make timer {} of clock {}", wanted, timer.clock()), SYS_timer_create, timer.clock(),
               batch.bytes(&event, sizeof event), id);
    TRY(calls.run(remote));
    return choose ? wanted : batch.read<uint32_t>(id);
}

// Makes and deletes the timers with ids from `next` up to, not including, `end`.
Result<void> skip_ids(Remote& remote, uint32_t next, uint32_t end) {
    while (next < end) {
        NamedCalls calls;
        const auto ignored = calls.batch().out(sizeof(uint32_t));
        for (const uint32_t stop = std::min(end, next + steps_at_once); next < stop; ++next) {
            calls.call("make a timer", SYS_timer_create, CLOCK_MONOTONIC, 0, ignored);
            calls.call("delete a timer", SYS_timer_delete, next);
        }
        TRY(calls.run(remote));
    }
    return {};
}

// Before Linux 6.15 ids are given in order and not given again.
Result<void> reach_timer(Remote& remote, const image::PosixTimer& timer) {
    uint32_t id = TRY(make_timer(remote, timer, false));
    if (id == timer.id()) return {};
    TRY(remote.call(SYS_timer_delete, id));
    if (id < timer.id() && timer.id() - id <= most_steps) {
        TRY(skip_ids(remote, id + 1, timer.id()));
        id = TRY(make_timer(remote, timer, false));
        if (id == timer.id()) return {};
    }
    return unsupported(fmt::format("timer id {} of process {} cannot be had here", timer.id(), remote.pid()),
                       "it needs Linux 6.15 at the destination");
}

Result<void> make_posix_timers(Remote& remote, const image::Process& process) {
    std::vector<const image::PosixTimer*> timers;
    for (const image::PosixTimer& timer : process.posix_timers()) timers.push_back(&timer);
    std::sort(timers.begin(), timers.end(), [](const auto* a, const auto* b) { return a->id() < b->id(); });
    NamedCalls mode;
    const auto choosing = mode.try_call(SYS_prctl, kernel::pr_timer_create_restore_ids, 1, 0, 0, 0);
    TRY(mode.run(remote));
    const bool choose = mode.batch().result_of(choosing) == 0;
    for (const image::PosixTimer* timer : timers) {
        if (choose)
            TRY(make_timer(remote, *timer, true));
        else
            TRY(reach_timer(remote, *timer));
    }
    if (choose) TRY(remote.call(SYS_prctl, kernel::pr_timer_create_restore_ids, 0, 0, 0, 0));
    return {};
}

}  // namespace

Result<void> restore_timers(Remote& remote, const image::Process& process) {
    if (process.posix_timers_size() != 0) TRY(make_posix_timers(remote, process));
    // All that tick start together.
    NamedCalls calls;
    for (const image::PosixTimer& timer : process.posix_timers()) {
        const itimerspec times = times_of(timer);
        calls.call(fmt::format("arm timer {}", timer.id()), SYS_timer_settime, timer.id(), 0, calls.batch().bytes(&times, sizeof times), 0);
    }
    for (const image::IntervalTimer& timer : process.interval_timers()) {
        itimerval times{};
        times.it_value = {timer.value_us() / second_us, timer.value_us() % second_us};
        times.it_interval = {timer.interval_us() / second_us, timer.interval_us() % second_us};
        calls.call(fmt::format("arm interval timer {}", timer.which()), SYS_setitimer, timer.which(),
                   calls.batch().bytes(&times, sizeof times), 0);
    }
    return calls.run(remote);
}

}  // namespace godwit
