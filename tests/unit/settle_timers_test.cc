#include <gtest/gtest.h>
#include <sys/time.h>

#include <csignal>

#include "source-agent/collect/timers.h"

namespace godwit {
namespace {

image::Process with_alarm(int64_t left_us, int64_t interval_us) {
    image::Process process;
    process.set_timers_read_ns(1'000'000'000);
    auto& timer = *process.add_interval_timers();
    timer.set_which(ITIMER_REAL);
    timer.set_value_us(left_us);
    timer.set_interval_us(interval_us);
    siginfo_t info{};
    info.si_signo = SIGALRM;
    info.si_code = SI_KERNEL;
    process.add_shared_pending()->set_siginfo(&info, sizeof info);
    return process;
}

TEST(SettleTimers, AlarmThatCameMeanwhileDoesNotComeTwice) {
    constexpr int64_t ten_ms_later = 1'010'000'000;
    auto once = with_alarm(5'000, 0);
    settle_timers(once, ten_ms_later);
    EXPECT_EQ(once.interval_timers_size(), 0);
    auto periodic = with_alarm(5'000, 20'000);
    settle_timers(periodic, ten_ms_later);
    EXPECT_EQ(periodic.interval_timers(0).value_us(), 20'000);
    auto later = with_alarm(50'000, 0);  // the pending one is an earlier alarm
    settle_timers(later, ten_ms_later);
    EXPECT_EQ(later.interval_timers(0).value_us(), 50'000);
}

}  // namespace
}  // namespace godwit
