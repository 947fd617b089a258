// migrate_out(): moves a tree to another host. Reads as the list of its phases.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/base/result.h"
#include "common/image/session.pb.h"
#include "common/recovery/journal.h"
#include "source-agent/collect/collect.h"
#include "transport/address.h"

namespace godwit {

struct MigrateOptions {
    pid_t tree = 0;  // root process, as this agent's PID namespace numbers it
    Address to;
    Security security;
    image::Mode mode = image::MODE_STOP;
    CollectOptions collect;
    std::string state_dir = default_state_dir;
    milliseconds connect_limit{10'000};
};

struct RoundReport {
    uint32_t round = 0;
    uint64_t pages = 0;
    uint64_t zero_pages = 0;
    uint64_t bytes = 0;
    double milliseconds = 0;
};

// Units as the names say; times are taken at the source, by CLOCK_MONOTONIC.
struct Report {
    std::string migration_id;
    std::string mode;
    std::vector<RoundReport> rounds;
    uint64_t bytes_sent = 0;
    double total_ms = 0;
    double downtime_ms = 0;            // first task frozen … RUNNING received
    std::optional<double> predicted_downtime_ms;  // before the freeze; mode stop predicts nothing
    std::vector<std::pair<std::string, double>> downtime_phases_ms;     // add up to downtime_ms
    std::vector<std::pair<std::string, double>> destination_phases_ms;  // what the destination says of its part
};

// What a command ends with: done with a report, or why not. Several problems when several objects are refused.
struct MigrateOutcome {
    ExitCode code = ExitCode::done;
    std::vector<Problem> problems;
    Report report;
};

// Returns when the tree runs at the destination, or runs on here (codes 1 to 4), or is held on both sides (5).
// Threads: the calling thread becomes the tracer of the tree.
MigrateOutcome migrate_out(const MigrateOptions& options);

// `godwit check`: the survey alone, or with a destination (options.to) everything up to PLAN_REPLY. Nothing is
// touched on either host.
MigrateOutcome check_tree(const MigrateOptions& options, bool ask_destination);

}  // namespace godwit
