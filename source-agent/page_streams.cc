#include "source-agent/page_streams.h"

#include <atomic>
#include <mutex>
#include <optional>
#include <thread>

#include "common/base/fault.h"
#include "source-agent/compression_choice.h"
#include "source-agent/page_piece.h"

namespace godwit {
namespace {

constexpr size_t most_ranges = 1024;  // of a piece: what one process_vm_readv(2) takes

// The pages of a round, given out in pieces. Threads: any.
class WorkList {
  public:
    explicit WorkList(const std::vector<PageJob>& jobs) : jobs_(jobs) {
        for (const PageJob& job : jobs)
            for (const ByteRange& range : job.ranges) bytes_ += range.end - range.start;
    }

    // The job that the next piece belongs to, and its ranges; null: there is no more.
    const PageJob* take(std::vector<ByteRange>& ranges) {
        const std::lock_guard lock(lock_);
        ranges.clear();
        while (job_ < jobs_.size() && range_ == jobs_[job_].ranges.size()) ++job_, range_ = 0, offset_ = 0;
        if (job_ == jobs_.size()) return nullptr;
        const PageJob& job = jobs_[job_];
        size_t room = max_page_bytes;
        for (; range_ < job.ranges.size() && room > 0 && ranges.size() < most_ranges;) {
            const ByteRange& range = job.ranges[range_];
            const uint64_t start = range.start + offset_;
            const uint64_t length = std::min<uint64_t>(room, range.end - start);
            if (length > 0) ranges.push_back({start, start + length});
            room -= length;
            offset_ += length;
            if (start + length == range.end) ++range_, offset_ = 0;
        }
        return &job;
    }

    uint64_t pages() const { return bytes_ / PagePiece::page_bytes; }

  private:
    std::mutex lock_;
    const std::vector<PageJob>& jobs_;
    uint64_t bytes_ = 0;
    size_t job_ = 0, range_ = 0;
    uint64_t offset_ = 0;  // into the range
};

struct Stream {
    Stream(std::unique_ptr<Channel> its_channel, Compression compression)
        : channel(std::move(its_channel)),
          choice((channel->features() & feature_lz4) != 0 ? compression : Compression::none) {}

    std::unique_ptr<Channel> channel;
    CompressionChoice choice;
    PagePiece piece;
    std::vector<ByteRange> ranges;
    std::atomic<uint64_t> frames = 0;
};

constexpr milliseconds abort_limit{2'000};

double seconds_since(Clock::time_point begun) { return std::chrono::duration<double>(Clock::now() - begun).count(); }

Result<void> send_piece(Stream& stream, const PageJob& job) {
    PagePiece& piece = stream.piece;
    if (piece.ranges().empty()) return {};
    CompressionChoice& choice = stream.choice;
    const std::span<const std::byte> raw = piece.content();
    std::span<const std::byte> packed;
    CompressionChoice::Seconds packing{0};
    if (!raw.empty() && (choice.compress() || choice.wants_sample())) {
        const auto begun = Clock::now();
        const size_t size = choice.compress() ? raw.size() : std::min(raw.size(), CompressionChoice::sample_bytes);
        packed = piece.compress(size);
        packing = CompressionChoice::Seconds(seconds_since(begun));
        if (!choice.compress()) {
            choice.sampled(size, packed.empty() ? size : packed.size(), packing);
            packed = {};
        }
    }
    const std::span<const std::byte> content = packed.empty() ? raw : packed;
    PageHeader header{job.pid, job.object, 0, static_cast<uint32_t>(raw.size()), !packed.empty()};
    const iovec body{const_cast<std::byte*>(content.data()), content.size()};
    // Nothing comes on this connection but an ABORT, of a destination that has lost its skeleton or its memory.
    if (TRY(stream.channel->wait_readable(Deadline::in(milliseconds(0))))) TRY(stream.channel->receive(Deadline::in(abort_limit)));
    const auto begun = Clock::now();
    TRY(stream.channel->send_pages(header, piece.ranges(), {&body, 1}));
    if (choice.compress())
        choice.sent_packed(raw.size(), content.size(), packing);
    else
        choice.sent_raw(raw.size(), CompressionChoice::Seconds(seconds_since(begun)));
    ++stream.frames;
    return {};
}

}  // namespace

struct PageStreams::State {
    std::vector<std::unique_ptr<Stream>> streams;
    std::mutex lock;
    std::optional<Problem> problem;  // the first
    std::atomic<bool> over = false;  // no more is sent
    std::atomic<uint64_t> done = 0;  // pages of all rounds
    uint64_t done_before = 0;        // this round
    std::atomic<uint64_t> pages = 0, zero_pages = 0;
    std::atomic<bool> passed_middle = false;

    void run(Stream& stream, uint32_t round, WorkList& work);
    Result<void> send(Stream& stream, uint32_t round, WorkList& work);
    void fail_with(Problem what);
    void shut_down();
    uint64_t bytes_sent() const;
};

// Whatever ends one connection ends all: a thread that waits for its link is let go.
void PageStreams::State::fail_with(Problem what) {
    {
        const std::lock_guard locked(lock);
        if (!problem) problem = std::move(what);
    }
    shut_down();
}

void PageStreams::State::shut_down() {
    over = true;
    for (auto& stream : streams) stream->channel->shut_down();
}

void PageStreams::State::run(Stream& stream, uint32_t round, WorkList& work) {
    if (auto sent = send(stream, round, work); !sent) fail_with(std::move(sent.error()));
}

Result<void> PageStreams::State::send(Stream& stream, uint32_t round, WorkList& work) {
    image::RoundBegin begin;
    begin.set_round(round);
    TRY(stream.channel->send(FrameType::round_begin, begin));
    ++stream.frames;
    while (const PageJob* job = work.take(stream.ranges)) {
        if (over) return fail("the sending of pages was called off");
        TRY(stream.piece.read(*job, stream.ranges));
        TRY(send_piece(stream, *job));
        pages += stream.piece.pages();
        zero_pages += stream.piece.zero_pages();
        uint64_t count = 0;
        for (const ByteRange& range : stream.ranges) count += (range.end - range.start) / PagePiece::page_bytes;
        if (((done += count) - done_before) * 2 >= work.pages() && !passed_middle.exchange(true)) fault_point("pages:middle");
    }
    return {};
}

uint64_t PageStreams::State::bytes_sent() const {
    uint64_t bytes = 0;
    for (const auto& stream : streams) bytes += stream->channel->counters().bytes_sent;
    return bytes;
}

PageStreams::PageStreams(std::vector<std::unique_ptr<Channel>> channels, Compression compression)
    : state_(std::make_unique<State>()) {
    for (auto& channel : channels) state_->streams.push_back(std::make_unique<Stream>(std::move(channel), compression));
}

PageStreams::~PageStreams() = default;

Result<SentPages> PageStreams::send(uint32_t round, const std::vector<PageJob>& jobs) {
    fault_point("pages:begin");
    State& state = *state_;
    state.done_before = state.done;
    state.pages = state.zero_pages = 0;
    state.passed_middle = false;
    const uint64_t bytes_before = state.bytes_sent();
    WorkList work(jobs);
    {
        // The first connection is this thread's. A thread takes some 30 microseconds to make: too little to keep any.
        std::vector<std::jthread> threads;
        try {
            for (size_t i = 1; i < state.streams.size(); ++i)
                threads.emplace_back([&state, &work, round, i] { state.run(*state.streams[i], round, work); });
        } catch (const std::system_error& error) {
            state.fail_with(Problem{std::string("cannot start a thread: ") + error.what(), {}, ExitCode::failed, 0});
        }
        state.run(*state.streams.front(), round, work);
    }
    if (state.problem) return Failure(*state.problem);
    fault_point("pages:end");
    return SentPages{state.pages, state.zero_pages, state.bytes_sent() - bytes_before};
}

void PageStreams::count(image::RoundEnd& end) const {
    for (const auto& stream : state_->streams) {
        end.add_frames(stream->frames);
        end.add_bytes(stream->channel->counters().bytes_sent);
    }
}

uint64_t PageStreams::pages_done() const { return state_->done; }
uint64_t PageStreams::bytes_sent() const { return state_->bytes_sent(); }
void PageStreams::shut_down() { state_->shut_down(); }

}  // namespace godwit
