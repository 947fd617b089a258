#include "source-agent/convergence.h"

#include <algorithm>

namespace godwit {
namespace {

// The rate of a round of a few pages tells of latency, not of the link.
constexpr uint64_t telling_bytes = 4u << 20;
// Another round is worth its while if it is expected to leave this part at most, and to save that much.
constexpr double worthwhile_part = 0.7;
constexpr double worthwhile_ms = 1;
// What a round takes besides its pages: a scan, layouts, an answer.
constexpr double least_round_ms = 2;

}  // namespace

void Convergence::scanned(uint64_t bytes, double elapsed_ms, double scan_ms) {
    pending_ = bytes;
    scan_ms_ = scan_ms;
    if (elapsed_ms > 0) dirty_rate_ = static_cast<double>(bytes) / elapsed_ms * 1000;
}

void Convergence::sent(uint64_t bytes, double ms) {
    ++rounds_;
    if (ms <= 0) return;
    const double rate = std::max(1.0, static_cast<double>(bytes) / ms * 1000);
    // Rounds differ: round 0 builds the skeleton, goes into memory never touched and leaves zeros out, later ones are
    // scattered as the last one will be. So the first later one that tells replaces it.
    if (link_rate_ && bytes < telling_bytes)
        link_rate_ = std::max(*link_rate_, rate);  // latency is in it: the link takes that much at least
    else
        link_rate_ = told_ > 1 ? (*link_rate_ + rate) / 2 : rate;
    if (rounds_ == 1 || bytes >= telling_bytes) ++told_;
}

std::optional<double> Convergence::predicted_ms() const {
    if (!link_rate_) return std::nullopt;
    return fixed_ms_ + scan_ms_ + transfer_ms(static_cast<double>(pending_));
}

Decision Convergence::decide() const {
    const auto predicted = predicted_ms();
    if (!predicted) return Decision::round;
    const bool more_rounds = rounds_ < limits_.max_rounds;
    if (*predicted > limits_.downtime_ms) {
        if (more_rounds) return Decision::round;
        return limits_.force ? Decision::freeze : Decision::give_up;
    }
    if (!more_rounds || !dirty_rate_) return Decision::freeze;
    const double now = static_cast<double>(pending_);
    const double next = *dirty_rate_ * (transfer_ms(now) + scan_ms_ + least_round_ms) / 1000;
    const bool worthwhile = next < worthwhile_part * now && transfer_ms(now - next) > worthwhile_ms;
    return worthwhile ? Decision::round : Decision::freeze;
}

}  // namespace godwit
