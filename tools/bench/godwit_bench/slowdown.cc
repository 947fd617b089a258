// How many writes per second a process makes: alone, tracked but not asked, asked in intervals, and its pages read as well.
#include <sys/uio.h>

#include <thread>

#include "common/kernel/proc.h"
#include "source-agent/track/dirty_tracker.h"
#include "tools/bench/godwit_bench/samples.h"
#include "tools/bench/godwit_bench/subject.h"

namespace godwit::bench {
namespace {

// Where the writes go: pages that all fit the caches, or most of the memory.
struct Spread {
    const char* name;
    uint64_t bytes;
};

enum class Watch { none, asked, copied };

Result<uint64_t> ask_once(DirtyTracker& tracker, const Subject& subject, Watch watch) {
    const std::vector<Vma> now = TRY(read_maps(subject.pid()));
    TRY(tracker.refresh(now));
    const MemoryChanges changes = TRY(tracker.collect());
    uint64_t pages = 0;
    std::vector<char> buffer(1 << 20);
    for (const ByteRange& range : changes.written) {
        pages += (range.end - range.start) / page_size;
        for (uint64_t at = range.start; watch == Watch::copied && at < range.end; at += buffer.size()) {
            const iovec local{buffer.data(), std::min<uint64_t>(buffer.size(), range.end - at)};
            const iovec remote{reinterpret_cast<void*>(at), local.iov_len};
            if (::process_vm_readv(subject.pid(), &local, 1, &remote, 1, 0) < 0) return fail_errno("cannot read the subject's memory");
        }
    }
    return pages;
}

// Writes per second over the window; with a tracker, also pages told of per scan.
Result<double> count_writes(const Subject& subject, uint64_t bytes, DirtyTracker* tracker, Watch watch, const SlowdownOptions& options,
                            std::vector<double>& pages_per_scan) {
    TRY(subject.write_on(bytes));
    // What is there from the first moment, page faults of the first pass among it, is not what is asked for here.
    std::this_thread::sleep_for(options.window / 4);
    const auto begun = Clock::now();
    const uint64_t before = subject.writes();
    auto next = begun + options.interval;
    while (Clock::now() - begun < options.window) {
        std::this_thread::sleep_until(std::min(next, begun + options.window));
        if (tracker != nullptr && watch != Watch::none && Clock::now() >= next) {
            const uint64_t pages = TRY(ask_once(*tracker, subject, watch));
            pages_per_scan.push_back(static_cast<double>(pages));
        }
        next += options.interval;
    }
    const double rate = static_cast<double>(subject.writes() - before) / milliseconds_since(begun) * 1000;
    TRY(subject.stop_writing());
    return rate;
}

Result<void> measure_spread(const Subject& subject, const Spread& spread, const SlowdownOptions& options, Samples& samples) {
    const std::string name = spread.name;
    std::vector<double> unused;
    samples[name + " untracked"].push_back(TRY(count_writes(subject, spread.bytes, nullptr, Watch::none, options, unused)));
    const auto tracker = TRY(make_tracker(subject.pid()));
    const auto start = [&](Tracee& task) -> Result<void> {
        Remote remote = TRY(Remote::attach(task));
        TRY(tracker->start(remote));
        return remote.leave();
    };
    TRY(while_stopped(subject, start));
    TRY(subject.dirty(1));  // between scans means: every page was written since the last one
    samples[name + " between scans"].push_back(TRY(count_writes(subject, spread.bytes, tracker.get(), Watch::none, options, unused)));
    TRY(ask_once(*tracker, subject, Watch::asked));
    auto& asked = samples[name + " pages per scan"];
    samples[name + " asked"].push_back(TRY(count_writes(subject, spread.bytes, tracker.get(), Watch::asked, options, asked)));
    samples[name + " copied"].push_back(TRY(count_writes(subject, spread.bytes, tracker.get(), Watch::copied, options, unused)));
    return {};
}

}  // namespace

Result<Samples> measure_slowdown(const SlowdownOptions& options) {
    Samples samples;
    samples["interval ms"].push_back(static_cast<double>(options.interval.count()));
    const Subject subject = TRY(Subject::start(options.mebibytes << 20));
    const Spread spreads[] = {{"4 MiB", 4u << 20}, {"all", subject.bytes()}};
    for (int i = 0; i < options.repeat; ++i)
        for (const Spread& spread : spreads) TRY(measure_spread(subject, spread, options, samples));
    return samples;
}

}  // namespace godwit::bench
