// When to freeze: what the downtime would be, and whether another round makes it shorter.
//
// Pure: knows only what it is told. Bytes are of pages as they lie in memory.
#pragma once

#include <cstdint>
#include <optional>

namespace godwit {

struct ConvergenceLimits {
    double downtime_ms = 100;
    uint32_t max_rounds = 20;  // of the running tree
    bool force = false;
};

enum class Decision {
    round,    // send what is known to be dirty while the tree runs on
    freeze,
    give_up,  // the limit is out of reach within max_rounds
};

class Convergence {
  public:
    // `fixed_ms`: what the downtime takes besides memory (calibration.h).
    Convergence(ConvergenceLimits limits, double fixed_ms) : limits_(limits), fixed_ms_(fixed_ms) {}

    // A scan found `bytes` to be sent, `elapsed_ms` after the scan before it (0: the first); it took `scan_ms`.
    void scanned(uint64_t bytes, double elapsed_ms, double scan_ms);
    // They were sent, and the destination has written them, in `ms`.
    void sent(uint64_t bytes, double ms);
    // After scanned().
    Decision decide() const;

    uint32_t rounds_sent() const { return rounds_; }
    // If the tree were frozen now. Absent until a round was sent.
    std::optional<double> predicted_ms() const;
    std::optional<double> dirty_bytes_per_second() const { return dirty_rate_; }
    std::optional<double> link_bytes_per_second() const { return link_rate_; }
    double fixed_ms() const { return fixed_ms_; }

  private:
    double transfer_ms(double bytes) const { return bytes / *link_rate_ * 1000; }

    ConvergenceLimits limits_;
    double fixed_ms_;
    uint32_t rounds_ = 0;
    uint32_t told_ = 0;  // of them, whose rate counted as the link's
    uint64_t pending_ = 0;
    double scan_ms_ = 0;
    std::optional<double> dirty_rate_;
    std::optional<double> link_rate_;
};

}  // namespace godwit
