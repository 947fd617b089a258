// Where the time went: named phases, one after the other, in microseconds of CLOCK_MONOTONIC.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/base/deadline.h"

namespace godwit {

class Ledger {
  public:
    using Phases = std::vector<std::pair<std::string, uint64_t>>;

    // Starts the first phase.
    void start() { last_ = Clock::now(); }
    // Ends the running phase under this name and starts the next.
    void mark(std::string name) {
        const auto now = Clock::now();
        phases_.emplace_back(std::move(name), std::chrono::duration_cast<std::chrono::microseconds>(now - last_).count());
        last_ = now;
    }
    Clock::time_point last() const { return last_; }
    const Phases& phases() const { return phases_; }

  private:
    Clock::time_point last_ = Clock::now();
    Phases phases_;
};

}  // namespace godwit
