// A running victim with progress counters (tests/victims/registers.cc): is it alive, does every task get on, did it end
// well?
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "common/base/unique_fd.h"

namespace godwit::test {

class WatchedVictim {
  public:
    static constexpr int tasks = 5;

    // Starts VICTIMS/name and waits until every task gets on.
    explicit WatchedVictim(const std::string& name);
    // Kills it if it still runs.
    ~WatchedVictim();
    WatchedVictim(const WatchedVictim&) = delete;
    WatchedVictim& operator=(const WatchedVictim&) = delete;

    pid_t pid() const { return pid_; }
    std::string maps() const;
    // Empty when every counter rises within a few seconds; else what is wrong, with the victim's own words.
    std::string complaint();
    // How often a call returned EINTR for a stop that no signal caused.
    uint64_t broken_off() const;
    // SIGTERM; empty when it said "ok" and exited with 0.
    std::string finish();
    // SIGKILL, and takes the remains.
    void kill();

  private:
    std::string output();

    pid_t pid_ = 0;
    UniqueFd output_;
    Mapping progress_;
};

}  // namespace godwit::test
