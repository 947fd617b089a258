#include "source-agent/page_streams.h"
#include <fmt/format.h>
#include <sys/uio.h>
#include <cstring>
#include "common/remote/remote.h"
namespace godwit {
namespace {
class ProcessPages final : public PageSource {
  public:
    explicit ProcessPages(pid_t pid) : pid_(pid) {}
    Result<void> read(std::span<const ByteRange> ranges, std::byte* to) const override {
        for (const ByteRange& r : ranges) {
            const iovec local{to, r.end - r.start}, remote{reinterpret_cast<void*>(r.start), r.end - r.start};
            if (::process_vm_readv(pid_, &local, 1, &remote, 1, 0) != static_cast<ssize_t>(r.end - r.start)) {
                const ProcessMemory memory = TRY(ProcessMemory::open(pid_));
                auto got = memory.read(RemotePtr(r.start), to, r.end - r.start);
                if (!got) { Problem p = got.error(); if (p.error != ESRCH) p.error = EFAULT; return Failure(p); }
            }
            to += r.end - r.start;
        }
        return {};
    }
  private:
    pid_t pid_;
};
}
std::unique_ptr<PageSource> process_pages(pid_t pid) { return std::make_unique<ProcessPages>(pid); }
struct PageStreams::State {
    std::vector<std::unique_ptr<Channel>> channels;
    std::atomic<uint64_t> pages = 0;
};
PageStreams::PageStreams(std::vector<std::unique_ptr<Channel>> channels, Compression) : state_(new State{std::move(channels)}) {}
PageStreams::~PageStreams() = default;
Result<SentPages> PageStreams::send(uint32_t round, const std::vector<PageJob>& jobs) {
    image::RoundBegin begin; begin.set_round(round);
    for (auto& c : state_->channels) TRY(c->send(FrameType::round_begin, begin));
    SentPages sent; const uint64_t before = bytes_sent();
    std::vector<std::byte> buffer(max_page_bytes);
    for (const PageJob& job : jobs) for (const ByteRange& range : job.ranges)
        for (uint64_t at = range.start; at < range.end; at += 65536) {
            const uint64_t end = std::min(range.end, at + 65536);
            const ByteRange piece{at, end};
            auto got = job.source->read({&piece, 1}, buffer.data());
            state_->pages += (end - at) / 4096;
            if (!got && job.may_vanish && got.error().error == EFAULT) {
                for (uint64_t p = at; p < end; p += 4096) { const ByteRange one{p, p + 4096}; if (job.source->read({&one,1}, buffer.data())) {
                    const iovec c{buffer.data(), 4096}; TRY(state_->channels[0]->send_pages({job.pid, job.object, p, 4096}, {&c, 1})); ++sent.pages; } }
                continue;
            }
            TRY(got);
            const iovec c{buffer.data(), end - at};
            TRY(state_->channels[0]->send_pages({job.pid, job.object, at, end - at}, {&c, 1}));
            sent.pages += (end - at) / 4096;
        }
    sent.bytes = bytes_sent() - before;
    return sent;
}
void PageStreams::count(image::RoundEnd& end) const { for (auto& c : state_->channels) { end.add_frames(c->counters().frames_sent - 1); end.add_bytes(c->counters().bytes_sent); } }
uint64_t PageStreams::pages_done() const { return state_->pages; }
uint64_t PageStreams::bytes_sent() const { uint64_t n = 0; for (auto& c : state_->channels) n += c->counters().bytes_sent; return n; }
void PageStreams::shut_down() { for (auto& c : state_->channels) c->shut_down(); }
}
