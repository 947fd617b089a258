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
#include "source-agent/page_streams.h"
#include "source-agent/progress.h"
#include "source-agent/track/dirty_tracker.h"
#include "transport/address.h"

namespace godwit {

struct MigrateOptions {
    pid_t tree = 0;  // root process, as this agent's PID namespace numbers it
    Address to;
    Security security;
    image::Mode mode = image::MODE_PRE_COPY;
    milliseconds downtime_limit{100};  // the tree is frozen when less than this is predicted
    uint32_t max_rounds = 20;          // rounds of the running tree, round 0 among them
    bool force = false;                // switch over although the limit is missed
    uint32_t streams = 1;              // data connections, 1 to most_streams
    Compression compression = Compression::automatic;
    TrackerBackend tracker = TrackerBackend::automatic;
    ProgressSink progress;             // may be empty
    CollectOptions collect;
    std::string state_dir = default_state_dir;
    milliseconds connect_limit{10'000};
};

// One pass over the memory. The last one is of the frozen tree.
struct RoundReport {
    uint32_t round = 0;
    bool frozen = false;
    uint64_t pages = 0;       // whose content was sent
    uint64_t zero_pages = 0;  // found to be zero: told, or left out where the destination has zeros anyway
    uint64_t dropped_pages = 0;  // that have no content any more
    uint64_t bytes = 0;       // over the data connections, headers and compression included
    double scan_ms = 0;       // finding out what was written
    double milliseconds = 0;  // all of the round, up to the destination's answer (of the last: up to its last byte sent)
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
    std::optional<double> dirty_bytes_per_second;  // of the tree, as last measured while it ran
    std::optional<double> link_bytes_per_second;   // of pages, as last measured
    std::string tracker;                           // backend; empty in mode stop
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
