// Figures by name, each a list of all that was measured, in the order of measuring; printed as JSON.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "common/base/deadline.h"
#include "common/base/result.h"

namespace godwit::bench {

using Samples = std::map<std::string, std::vector<double>>;

inline double milliseconds_since(Clock::time_point begun) {
    return std::chrono::duration<double, std::milli>(Clock::now() - begun).count();
}

// The tracker's scan beside the bare ioctl, per GiB (scan.cc).
struct ScanOptions {
    uint64_t mebibytes = 1024;
    int repeat = 7;
};
Result<Samples> measure_scan(const ScanOptions& options);

// Attaching, batches, single calls (batch.cc).
struct BatchOptions {
    int repeat = 20;
};
Result<Samples> measure_batch(const BatchOptions& options);

// How many writes a process makes while it is tracked (slowdown.cc).
struct SlowdownOptions {
    uint64_t mebibytes = 256;
    int repeat = 5;
    milliseconds window{1000};    // over which writes are counted
    milliseconds interval{250};   // from one scan to the next
};
Result<Samples> measure_slowdown(const SlowdownOptions& options);

}  // namespace godwit::bench
