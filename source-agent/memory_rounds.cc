#include "source-agent/memory_rounds.h"

#include <fmt/format.h>

#include <algorithm>
#include <system_error>

#include "common/base/defer.h"
#include "common/base/fault.h"
#include "common/image/layout_changes.h"
#include "source-agent/collect/collect.h"

namespace godwit {
namespace {

constexpr uint64_t page_size = 4096;
constexpr milliseconds stop_limit{30'000};
constexpr milliseconds reply_limit{600'000};   // the destination answers when all of the round is written
constexpr milliseconds silence_limit{60'000};  // and says now and then that it is at work
constexpr milliseconds tick_every{100};

uint64_t bytes_in(const Ranges& ranges) {
    uint64_t sum = 0;
    for (const ByteRange& range : ranges) sum += range.end - range.start;
    return sum;
}

// Where pages of these kinds are, merged.
template <class Wanted>
Ranges mapped(const image::Layout& layout, Wanted wanted) {
    Ranges out;
    for (const image::MappingRange& range : layout.mappings())
        if (wanted(range)) append(out, {range.start(), range.end()});
    return out;
}

double milliseconds_since(Clock::time_point then) { return std::chrono::duration<double, std::milli>(Clock::now() - then).count(); }

// What the two must have in common for LAYOUT to leave it out.
std::string mappings_of(const image::Layout& layout) {
    image::Layout only;
    *only.mutable_mappings() = layout.mappings();
    *only.mutable_files() = layout.files();
    return only.SerializeAsString();
}

}  // namespace

struct MemoryRounds::Member {
    explicit Member(LayoutReader from) : reader(std::move(from)) {}

    LayoutReader reader;
    std::unique_ptr<PageSource> pages;
    std::unique_ptr<DirtyTracker> tracker;
    bool told = false;             // a layout was sent
    std::string told_mappings;     // what the last one said of mappings
    image::Layout scanned;         // as of the last scan, sent or not
    Ranges content;                // pending: to be sent
    Ranges dropped;                // pending: to be told
};

MemoryRounds::MemoryRounds(Channel& control, PageStreams& streams, std::function<void()> tick)
    : control_(control), streams_(streams), tick_(std::move(tick)) {}

MemoryRounds::~MemoryRounds() {
    if (!last_pages_.valid()) return;
    streams_.shut_down();
    last_pages_.wait();
}

Result<void> MemoryRounds::add(pid_t pid, pid_t pid_inside, const image::Plan& plan, const CollectOptions& options) {
    auto member = std::make_unique<Member>(TRY(LayoutReader::make(pid, pid_inside, plan, options)));
    member->pages = process_pages(pid);
    members_.push_back(std::move(member));
    return {};
}

Result<void> MemoryRounds::track(TrackerBackend backend) {
    for (auto& member : members_) {
        const pid_t pid = member->reader.pid();
        member->tracker = TRY(make_tracker(pid, backend));
        StoppedProcess process = TRY(seize_process(pid, Deadline::in(stop_limit)));
        const Undo let_go([&] { release_process(process); });
        Remote remote = TRY(Remote::attach(process.tasks.front()));
        TRY(member->tracker->start(remote));
        TRY(remote.leave());
        member->reader.tracked();
    }
    fault_point("round:tracked");
    return {};
}

std::string MemoryRounds::backend() const {
    if (members_.empty() || !members_.front()->tracker) return {};
    return members_.front()->tracker->needs_stop() ? "soft-dirty" : "wp-async";
}

Result<void> MemoryRounds::scan_running() {
    objects_.begin_look();
    for (auto& member : members_) {
        if (member->tracker->needs_stop()) {
            TRY(scan_stopped_for_a_moment(*member));
            continue;
        }
        image::Layout layout = TRY(member->reader.read_running());
        TRY(scan(*member, std::move(layout)));
    }
    TRY(objects_.end_look());
    fault_point("round:scanned");
    return {};
}

Result<void> MemoryRounds::scan_stopped_for_a_moment(Member& member) {
    StoppedProcess process = TRY(seize_process(member.reader.pid(), Deadline::in(stop_limit)));
    const Undo let_go([&] { release_process(process); });
    image::Layout layout = TRY(member.reader.read_running());
    return scan(member, std::move(layout));
}

Result<void> MemoryRounds::scan_stopped() {
    objects_.begin_look();
    for (auto& member : members_) {
        image::Layout layout = TRY(member->reader.read_stopped());
        TRY(scan(*member, std::move(layout)));
    }
    TRY(objects_.end_look());
    fault_point("round:scanned");
    return {};
}

// Adds what changed since the scan before to what is pending. Where the layouts differ the destination may start from fresh
// memory, or, when the layout between them was never sent, not know that it has to: such ranges are told as dropped,
// and all of their content again.
Result<void> MemoryRounds::scan(Member& member, image::Layout layout) {
    TRY(objects_.find(member.reader.pid(), layout));
    const bool first = member.scanned.mappings_size() == 0;
    Ranges fresh;
    for (const auto& part : compare(member.scanned, layout).map) append(fresh, {part.start, part.end});
    const Ranges taking = mapped(layout, takes_pages);
    MemoryChanges changes;
    if (member.tracker) {
        TRY(member.tracker->refresh(member.reader.mappings()));
        for (const ByteRange& range : fresh) member.tracker->forget(range.start, range.end);
        changes = TRY(member.tracker->collect());
        objects_.changed(member.scanned, layout, changes);
    } else {
        changes.written = TRY(content_ranges(member.reader.pid(), layout));
    }
    member.content = intersect(unite(subtract(subtract(member.content, fresh), changes.dropped), changes.written), taking);
    if (!first) member.dropped = intersect(unite(unite(member.dropped, fresh), changes.dropped), taking);
    member.scanned = std::move(layout);
    return {};
}

uint64_t MemoryRounds::pending_bytes() const {
    uint64_t sum = objects_.pending_bytes();
    for (const auto& member : members_) sum += bytes_in(member->content);
    return sum;
}

uint64_t MemoryRounds::pages_done() const { return std::min(pages_of_round_, streams_.pages_done() - pages_before_); }

std::optional<double> MemoryRounds::bytes_per_second() const {
    const double seconds = milliseconds_since(round_begun_) / 1000;
    if (seconds < 0.05) return std::nullopt;
    return static_cast<double>(streams_.bytes_sent() - bytes_before_) / seconds;
}

Result<void> MemoryRounds::send_layouts(bool last) {
    round_ = Round{next_round_++, {}, 0, 0};
    round_begun_ = Clock::now();
    pages_before_ = streams_.pages_done();
    bytes_before_ = streams_.bytes_sent();
    pages_of_round_ = pending_bytes() / page_size;
    for (auto& member : members_) {
        image::Layout message = member->scanned;
        message.set_round(round_.number);
        message.set_last(last);
        std::string mappings = mappings_of(message);
        if (member->told && mappings == member->told_mappings) {
            message.clear_mappings();
            message.clear_files();
            message.clear_vdso();
            message.set_same_mappings(true);
        }
        for (const ByteRange& range : member->dropped) {
            image::PageSpan& span = *message.add_dropped();
            span.set_start(range.start);
            span.set_length(range.end - range.start);
        }
        if (member == members_.front()) round_.dropped_pages += objects_.tell(message) / page_size;
        round_.dropped_pages += bytes_in(member->dropped) / page_size;
        TRY(control_.send(FrameType::layout, message));
        member->reader.told(message);
        member->told = true;
        member->told_mappings = std::move(mappings);
        member->dropped.clear();
    }
    return {};
}

std::vector<PageJob> MemoryRounds::make_jobs() const {
    std::vector<PageJob> jobs = objects_.jobs(!members_.front()->scanned.last());
    const bool first = round_.number == 0;
    for (const auto& member : members_) {
        PageJob job;
        job.pid = static_cast<uint32_t>(member->scanned.pid());
        job.source = member->pages.get();
        job.may_vanish = !member->scanned.last();
        // Under a private file mapping a fresh page is the file's.
        const Ranges of_files = mapped(member->scanned, [](const auto& range) { return takes_pages(range) && range.kind() != image::MAPPING_ANONYMOUS; });
        job.zeros_there = false;
        job.ranges = first ? intersect(member->content, of_files) : member->content;
        if (!job.ranges.empty()) jobs.push_back(job);
        if (!first) continue;
        job.zeros_there = true;
        job.ranges = subtract(member->content, of_files);
        if (!job.ranges.empty()) jobs.push_back(std::move(job));
    }
    return jobs;
}

image::RoundEnd MemoryRounds::round_end() const {
    image::RoundEnd end;
    end.set_round(round_.number);
    streams_.count(end);
    return end;
}

Result<void> MemoryRounds::send_running() {
    TRY(send_layouts(false));
    tick_();
    const std::vector<PageJob> jobs = make_jobs();
    auto pages = TRY(start_sending(jobs));
    while (pages.wait_for(tick_every) != std::future_status::ready) tick_();
    round_.sent = TRY(pages.get());
    fault_point("round:sent");
    for (auto& member : members_) member->content.clear();
    objects_.sent();
    TRY(control_.send(FrameType::round_end, round_end()));
    image::RoundReply reply;
    control_.set_idle_limit(silence_limit);
    const Undo no_limit([this] { control_.set_idle_limit(milliseconds(0)); });
    TRY(control_.expect(FrameType::round_reply, reply, Deadline::in(reply_limit)));
    if (reply.round() != round_.number) return peer_failed(fmt::format("{} answered another round", control_.peer()));
    round_.milliseconds = milliseconds_since(round_begun_);
    fault_point("round:answered");
    return {};
}

// Reads `jobs` until it is done.
Result<std::future<Result<SentPages>>> MemoryRounds::start_sending(const std::vector<PageJob>& jobs) try {
    return std::async(std::launch::async, [this, &jobs] { return streams_.send(round_.number, jobs); });
} catch (const std::system_error& error) {
    return fail(fmt::format("cannot start a thread: {}", error.what()), "is the number of processes limited (ulimit -u, pids.max)?");
}

Result<void> MemoryRounds::begin_last() {
    TRY(send_layouts(true));
    tick_();
    last_jobs_ = make_jobs();
    last_pages_ = TRY(start_sending(last_jobs_));
    return {};
}

Result<void> MemoryRounds::finish_last(std::optional<milliseconds> limit) {
    const Clock::time_point begun = Clock::now();
    while (last_pages_.wait_for(tick_every) != std::future_status::ready) {
        tick_();
        if (limit && Clock::now() - begun > *limit)
            return peer_failed(fmt::format("{} has not taken the last pages within {} s", control_.peer(), limit->count() / 1000),
                               "is that host, or the network between, overloaded? --force waits as long as it takes");
    }
    round_.sent = TRY(last_pages_.get());
    fault_point("round:sent");
    TRY(control_.send(FrameType::last_round_end, round_end()));
    round_.milliseconds = milliseconds_since(round_begun_);
    return {};
}

}  // namespace godwit
