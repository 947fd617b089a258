// Clocks go on: they never go back and never jump, sleeps are as long as asked, deadlines keep their meaning.
// --posix adds POSIX timers, --itimer adds setitimer.
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

constexpr long long second = 1000000000LL;
constexpr long long jump = 20 * second;  // longer than any freeze of a test

volatile sig_atomic_t ticks = 0;
volatile sig_atomic_t wrong_value = 0;

void on_tick(int, siginfo_t* info, void*) {
    ticks = ticks + 1;
    if (info->si_value.sival_int != 77) wrong_value = 1;
}

long long nanoseconds(const timespec& t) { return t.tv_sec * second + t.tv_nsec; }

// What is left of a deadline set `since`, against the clock.
void check_left(long long left, long long whole, long long since) {
    const long long expected = whole - (now_ns() - since);
    CHECK(left - expected < second && expected - left < second);
}

struct Posix {
    timer_t far{};
    timer_t near{};
};

Posix make_posix() {
    Posix timers;
    struct sigaction action {};
    action.sa_sigaction = on_tick;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    CHECK(sigaction(SIGRTMIN + 1, &action, nullptr) == 0);
    sigevent event{};
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGRTMIN + 2;
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timers.far) == 0);
    const itimerspec far{{0, 0}, {5000, 0}};
    CHECK(timer_settime(timers.far, 0, &far, nullptr) == 0);
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGRTMIN + 1;
    event.sigev_value.sival_int = 77;
    event._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timers.near) == 0);
    const itimerspec near{{0, 20000000}, {0, 20000000}};
    CHECK(timer_settime(timers.near, 0, &near, nullptr) == 0);
    return timers;
}

void check_clock(clockid_t clock, long long& last) {
    const long long now = now_ns(clock);
    CHECK(now >= last && now - last < jump);
    last = now;
}

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    const bool posix = self.flag("posix");
    const bool itimer = self.flag("itimer");
    const long long start = now_ns();
    const int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    const itimerspec far{{7, 0}, {5000, 0}};
    CHECK(fd >= 0 && timerfd_settime(fd, 0, &far, nullptr) == 0);
    const Posix timers = posix ? make_posix() : Posix{};
    if (itimer) {
        const itimerval value{{0, 0}, {5000, 0}};
        CHECK(setitimer(ITIMER_REAL, &value, nullptr) == 0);
    }
    long long monotonic = start;
    long long boottime = now_ns(CLOCK_BOOTTIME);
    long last_ticks = 0;
    long long ticked = start;
    self.ready();
    do {
        check_clock(CLOCK_MONOTONIC, monotonic);
        check_clock(CLOCK_BOOTTIME, boottime);
        const long long before = now_ns();
        const long long until = before + 5000000;
        const timespec wake{static_cast<time_t>(until / second), static_cast<long>(until % second)};
        int result;
        while ((result = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, nullptr)) == EINTR && stop_asked == 0) {
        }
        CHECK(result == 0 || result == EINTR);
        CHECK(result == EINTR || (now_ns() >= until && now_ns() - until < jump));
        itimerspec left{};
        CHECK(timerfd_gettime(fd, &left) == 0 && nanoseconds(left.it_interval) == 7 * second);
        check_left(nanoseconds(left.it_value), 5000 * second, start);
        if (posix) {
            CHECK(timer_gettime(timers.far, &left) == 0);
            check_left(nanoseconds(left.it_value), 5000 * second, start);
            if (ticks != last_ticks) last_ticks = ticks, ticked = now_ns();
            CHECK(now_ns() - ticked < jump && wrong_value == 0);
        }
        if (itimer) {
            itimerval value{};
            CHECK(getitimer(ITIMER_REAL, &value) == 0);
            check_left(value.it_value.tv_sec * second + value.it_value.tv_usec * 1000LL, 5000 * second, start);
        }
    } while (self.going(1));
    return self.done();
}
