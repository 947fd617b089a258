// What it costs to ask which pages a process has written, by DirtyTracker and by the ioctl under it.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ioctl.h>

#include <optional>

#include "common/base/file.h"
#include "common/kernel/pagemap.h"
#include "common/kernel/proc.h"
#include "source-agent/track/dirty_tracker.h"
#include "source-agent/track/userfaultfd.h"
#include "tools/bench/godwit_bench/samples.h"
#include "tools/bench/godwit_bench/subject.h"

namespace godwit::bench {
namespace {

// What of the memory is written before a scan: every step-th page.
struct Dirt {
    const char* name;
    uint64_t step;
};
constexpr Dirt dirts[] = {{"idle", 0}, {"1 %", 100}, {"100 %", 1}};
constexpr int idle_scans = 5;  // a scan that finds nothing is short: more of them are taken

// PAGEMAP_SCAN (Linux 6.7, include/uapi/linux/fs.h) exactly as the tracker asks for populated memory, with nothing done
// about the answer.
Result<uint64_t> scan_bare(int pagemap, uint64_t start, uint64_t end) {
    struct {
        uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, all_of, any_of, told;
    } argument{};
    PageRegion found[1024];
    argument.size = sizeof argument;
    argument.flags = 3;  // PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC
    argument.start = start;
    argument.end = end;
    argument.vec = reinterpret_cast<uint64_t>(found);
    argument.vec_len = std::size(found);
    argument.all_of = page_is_written;
    argument.told = page_is_written;
    uint64_t pages = 0;
    while (argument.start < end) {
        const int count = ::ioctl(pagemap, _IOWR('f', 16, decltype(argument)), &argument);
        if (count < 0) return fail_errno("PAGEMAP_SCAN failed");
        for (int i = 0; i < count; ++i) pages += (found[i].end - found[i].start) / page_size;
        argument.start = argument.walk_end;
    }
    return pages;
}

// Writes to the memory as `dirts` say and times `scan`, which returns how many pages it was told of.
template <class Scan>
Result<void> time_scans(const Subject& subject, const std::string& who, Samples& samples, const Scan& scan) {
    const double gibibytes = static_cast<double>(subject.bytes()) / (1 << 30);
    for (const Dirt& dirt : dirts)
        for (int i = 0; i < (dirt.step == 0 ? idle_scans : 1); ++i) {
            TRY(subject.dirty(dirt.step));
            const auto begun = Clock::now();
            const uint64_t pages = TRY(scan());
            samples[who + " " + dirt.name].push_back(milliseconds_since(begun) / gibibytes);
            const uint64_t expected = dirt.step == 0 ? 0 : (subject.bytes() / page_size + dirt.step - 1) / dirt.step;
            // Besides its memory the subject writes to its stack.
            if (pages < expected || pages > expected + 64)
                return fail(fmt::format("{}, {}: told of {} pages, {} were written", who, dirt.name, pages, expected));
        }
    return {};
}

Result<void> measure_bare(const Subject& subject, Samples& samples) {
    std::optional<Userfaultfd> userfaultfd;
    const auto make = [&](Tracee& task) -> Result<void> {
        Remote remote = TRY(Remote::attach(task));
        userfaultfd = TRY(Userfaultfd::make(remote));
        return remote.leave();
    };
    TRY(while_stopped(subject, make));
    const uint64_t start = subject.memory(), end = start + subject.bytes();
    TRY(userfaultfd->add(start, end));
    const UniqueFd pagemap = TRY(open_file(fmt::format("/proc/{}/pagemap", subject.pid()), O_RDONLY));
    TRY(scan_bare(pagemap.get(), start, end));
    return time_scans(subject, "ioctl", samples, [&] { return scan_bare(pagemap.get(), start, end); });
}

Result<std::unique_ptr<DirtyTracker>> start_tracker(const Subject& subject, Samples& samples) {
    auto tracker = TRY(make_tracker(subject.pid(), TrackerBackend::wp_async));
    const auto start = [&](Tracee& task) -> Result<void> {
        Remote remote = TRY(Remote::attach(task));
        const auto begun = Clock::now();
        TRY(tracker->start(remote));
        samples["tracker start"].push_back(milliseconds_since(begun) * (1 << 30) / static_cast<double>(subject.bytes()));
        return remote.leave();
    };
    TRY(while_stopped(subject, start));
    return tracker;
}

Result<uint64_t> scan_by(DirtyTracker& tracker, pid_t pid) {
    const std::vector<Vma> now = TRY(read_maps(pid));
    TRY(tracker.refresh(now));
    const MemoryChanges changes = TRY(tracker.collect());
    uint64_t bytes = 0;
    for (const ByteRange& range : changes.written) bytes += range.end - range.start;
    return bytes / page_size;
}

Result<void> measure_tracker(const Subject& subject, Samples& samples) {
    const auto tracker = TRY(start_tracker(subject, samples));
    TRY(scan_by(*tracker, subject.pid()));  // takes what the subject wrote on its way back to its loop
    return time_scans(subject, "tracker", samples, [&] { return scan_by(*tracker, subject.pid()); });
}

// Plain reading of /proc/PID/pagemap, which older kernels need, of the same memory.
Result<void> measure_reading(const Subject& subject, Samples& samples) {
    const Pagemap pagemap = TRY(Pagemap::open(subject.pid()));
    const auto begun = Clock::now();
    TRY(pagemap.entries(subject.memory(), subject.memory() + subject.bytes(),
                        [](uint64_t, std::span<const uint64_t>) -> Result<void> { return {}; }));
    samples["pagemap read"].push_back(milliseconds_since(begun) * (1 << 30) / static_cast<double>(subject.bytes()));
    return {};
}

Result<double> page_tables_kb(pid_t pid) {
    return std::stod(status_value(TRY(read_status(pid, pid)), "VmPTE"));
}

// With much more reserved than touched: neither time nor page tables of the subject may follow.
Result<void> measure_reserved(const Subject& subject, int repeat, Samples& samples) {
    constexpr uint64_t reserved = 16ull << 30;
    const double gibibytes = static_cast<double>(subject.bytes()) / (1 << 30);
    TRY(subject.reserve(reserved));
    const double tables = TRY(page_tables_kb(subject.pid()));
    const auto tracker = TRY(start_tracker(subject, samples));
    TRY(scan_by(*tracker, subject.pid()));
    for (int i = 0; i < repeat * idle_scans; ++i) {
        const auto begun = Clock::now();
        TRY(scan_by(*tracker, subject.pid()));
        samples["tracker idle, 16 GiB reserved"].push_back(milliseconds_since(begun) / gibibytes);
    }
    samples["page tables grown, KiB"].push_back(TRY(page_tables_kb(subject.pid())) - tables);
    return {};
}

}  // namespace

Result<Samples> measure_scan(const ScanOptions& options) {
    Samples samples;
    const Subject subject = TRY(Subject::start(options.mebibytes << 20));
    for (int i = 0; i < options.repeat; ++i) {
        // Who comes second profits from what the first has warmed: take turns.
        if (i % 2 == 0) TRY(measure_bare(subject, samples));
        TRY(measure_tracker(subject, samples));
        if (i % 2 == 1) TRY(measure_bare(subject, samples));
        TRY(measure_reading(subject, samples));
    }
    TRY(measure_reserved(subject, options.repeat, samples));
    return samples;
}

}  // namespace godwit::bench
