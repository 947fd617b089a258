// What a migration tells of itself while it goes on.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

namespace godwit {

enum class Stage { survey, round, final_round, restore };

// Rates are per second, over the round so far; what is not known yet is absent.
struct Progress {
    Stage stage = Stage::survey;
    uint32_t round = 0;             // from 0
    uint64_t pages_done = 0;        // of this round, zero pages among them
    uint64_t pages_of_round = 0;
    uint64_t bytes_sent = 0;        // of the whole migration, as they go over the link
    std::optional<double> bytes_per_second;
    std::optional<double> dirty_bytes_per_second;  // written by the tree, as of the last finished round
    std::optional<double> predicted_downtime_ms;
    double downtime_limit_ms = 0;
};

// Called from one thread at a time, some ten times a second at most and at every change of stage or round. Must not block
// for long: the migration waits for it.
using ProgressSink = std::function<void(const Progress&)>;

}  // namespace godwit
