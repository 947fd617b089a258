// A moment by which something must have happened. Every wait in godwit has one: never a hang
// without a time limit.
#pragma once

#include <algorithm>
#include <chrono>

namespace godwit {

using Clock = std::chrono::steady_clock;  // CLOCK_MONOTONIC of this host
using std::chrono::milliseconds;

class Deadline {
  public:
    static Deadline in(milliseconds time) { return Deadline(Clock::now() + time); }
    static Deadline at(Clock::time_point when) { return Deadline(when); }

    bool passed() const { return Clock::now() >= when_; }
    // What is left for poll(2): rounded up, 0 when passed.
    int poll_timeout() const {
        const auto left = std::chrono::ceil<milliseconds>(when_ - Clock::now()).count();
        return static_cast<int>(std::clamp<decltype(left)>(left, 0, 1'000'000'000));
    }
    Clock::time_point when() const { return when_; }

  private:
    explicit Deadline(Clock::time_point when) : when_(when) {}
    Clock::time_point when_;
};

}  // namespace godwit
