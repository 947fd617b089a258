#include "source-agent/collect/object_pages.h"
#include "source-agent/page_streams.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <thread>

#include "source-agent/compression_choice.h"
#include "tests/support/link_pair.h"
#include "transport/handshake.h"

namespace godwit {
namespace {

constexpr uint64_t page = 4096;
constexpr uint32_t inside = 7;

// What a destination has after it applied all frames: the first word of each page; 0 for pages told as zero.
struct Received {
    std::map<uint64_t, uint64_t> words;
    uint64_t content_pages = 0, zero_pages = 0, frames = 0, packed_frames = 0;
    std::vector<uint32_t> rounds;
    bool whole = true;  // every page had one word all over
};

class Streams {
  public:
    explicit Streams(size_t count, Compression compression = Compression::none, uint64_t features = feature_lz4) {
        std::vector<std::unique_ptr<Channel>> channels;
        for (size_t i = 0; i < count; ++i) {
            ChannelPair pair;
            EXPECT_TRUE(pair.source->guard().send(FrameType::hello) && pair.destination->guard().receive(FrameType::hello));
            for (Channel* channel : {pair.source.get(), pair.destination.get()}) {
                channel->guard().set_role(image::ROLE_DATA);
                channel->set_features(features);
            }
            EXPECT_TRUE(pair.source->guard().receive(FrameType::hello_reply) && pair.destination->guard().send(FrameType::hello_reply));
            channels.push_back(std::move(pair.source));
            ends_.push_back(std::move(pair.destination));
        }
        streams = std::make_unique<PageStreams>(std::move(channels), compression);
        for (auto& end : ends_) threads_.emplace_back([this, &end] { receive(*end); });
    }
    ~Streams() { stop(); }
    // Everything that was sent is received.
    const Received& finish() {
        streams.reset();
        stop();
        return received_;
    }
    void kill(size_t stream) { ends_[stream]->shut_down(); }

    std::unique_ptr<PageStreams> streams;

  private:
    void stop() {
        streams.reset();
        for (auto& thread : threads_) thread.join();
        threads_.clear();
    }
    void receive(Channel& channel) {
        DataFrame frame;
        for (;;) {
            const auto type = channel.receive_data(frame, Deadline::in(milliseconds(30'000)));
            if (!type) return;
            const std::lock_guard lock(lock_);
            if (*type == FrameType::round_begin)
                received_.rounds.push_back(frame.round);
            else
                take(frame);
        }
    }
    void take(const DataFrame& frame) {
        ++received_.frames;
        received_.packed_frames += frame.header.lz4;
        EXPECT_EQ(frame.header.pid, inside);
        const std::byte* from = frame.content.data();
        for (const PageRange& range : frame.ranges)
            for (uint64_t at = range.address; at < range.address + range.length; at += page) {
                ++(range.zero ? received_.zero_pages : received_.content_pages);
                uint64_t word = 0;
                if (!range.zero) {
                    std::memcpy(&word, from, sizeof word);
                    received_.whole &= std::memcmp(from, from + 8, page - 8) == 0;
                    from += page;
                }
                received_.words[at] = word;
            }
    }

    std::vector<std::unique_ptr<Channel>> ends_;
    std::vector<std::thread> threads_;
    std::mutex lock_;
    Received received_;
};

// Memory of this process, page by page of one word each.
class Memory {
  public:
    explicit Memory(uint64_t pages, int extra_flags = 0)
        : size(pages * page),
          start(reinterpret_cast<uint64_t>(::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | extra_flags, -1, 0))) {}
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { ::munmap(at(0), size); }
    void* at(uint64_t index) const { return reinterpret_cast<void*>(start + index * page); }
    void fill(uint64_t index, uint64_t word) const { std::fill_n(static_cast<uint64_t*>(at(index)), page / 8, word); }
    ByteRange range(uint64_t index, uint64_t count) const { return {start + index * page, start + (index + count) * page}; }
    const uint64_t size;
    const uint64_t start;
};

PageJob job_of(const PageSource& source, std::vector<ByteRange> ranges) {
    PageJob job;
    job.pid = inside;
    job.source = &source;
    job.ranges = std::move(ranges);
    return job;
}

class PageStreamsOf : public testing::TestWithParam<size_t> {};
INSTANTIATE_TEST_SUITE_P(Count, PageStreamsOf, testing::Values(1, 4));

TEST_P(PageStreamsOf, EveryPageArrivesOnce) {
    const uint64_t pages = 3000;
    const Memory memory(pages);
    std::vector<ByteRange> ranges;
    for (uint64_t i = 0; i < pages; ++i) memory.fill(i, i + 1);
    for (uint64_t i = 0; i < 1000; i += 2) ranges.push_back(memory.range(i, 1));  // scattered
    ranges.push_back(memory.range(1000, 2000));
    const auto source = process_pages(::getpid());
    Streams to(GetParam());
    const auto sent = to.streams->send(0, {job_of(*source, ranges)});
    ASSERT_TRUE(sent) << sent.error().what;
    EXPECT_EQ(sent->pages, 2500u);
    EXPECT_EQ(sent->zero_pages, 0u);
    EXPECT_GT(sent->bytes, 2500 * page);
    EXPECT_EQ(to.streams->pages_done(), 2500u);
    image::RoundEnd end;
    to.streams->count(end);
    const Received& got = to.finish();
    EXPECT_EQ(got.content_pages, 2500u);
    EXPECT_EQ(got.words.size(), 2500u);
    EXPECT_TRUE(got.whole);
    for (const auto& [at, word] : got.words) ASSERT_EQ(word, (at - memory.start) / page + 1);
    EXPECT_LE(got.frames, 11u) << "scattered pages do not travel together";
    EXPECT_EQ(got.rounds, std::vector<uint32_t>(GetParam(), 0));
    uint64_t counted = 0;
    for (const uint64_t frames : end.frames()) counted += frames;
    EXPECT_EQ(counted, got.frames + got.rounds.size());
}

TEST_P(PageStreamsOf, EveryConnectionHearsOfEveryRound) {
    Streams to(GetParam());
    for (uint32_t round = 0; round < 3; ++round) ASSERT_TRUE(to.streams->send(round, {}));
    EXPECT_EQ(to.finish().rounds.size(), 3 * GetParam());
}

TEST(PageStreams, ZeroPagesAreLeftOutOrTold) {
    const Memory memory(100);
    for (uint64_t i = 0; i < 100; i += 10) memory.fill(i, i + 1);
    static_cast<char*>(memory.at(5))[page - 1] = 1;  // nearly zero
    const auto source = process_pages(::getpid());
    for (const bool zeros_there : {true, false}) {
        Streams to(1);
        PageJob job = job_of(*source, {memory.range(0, 100)});
        job.zeros_there = zeros_there;
        const auto sent = to.streams->send(0, {job});
        ASSERT_TRUE(sent);
        EXPECT_EQ(sent->pages, 11u);
        EXPECT_EQ(sent->zero_pages, 89u);
        const Received& got = to.finish();
        EXPECT_EQ(got.content_pages, 11u);
        EXPECT_EQ(got.zero_pages, zeros_there ? 0u : 89u);
        EXPECT_EQ(got.words.at(memory.start + 90 * page), 91u);
        EXPECT_EQ(got.words.contains(memory.start + 5 * page), true);
    }
}

TEST(PageStreams, MemoryThatMayNotBeReadIsRead) {
    const Memory memory(30);
    for (uint64_t i = 0; i < 30; ++i) memory.fill(i, i + 1);
    ASSERT_EQ(::mprotect(memory.at(10), 5 * page, PROT_NONE), 0);
    ASSERT_EQ(::mprotect(memory.at(20), 5 * page, PROT_READ), 0);
    const auto source = process_pages(::getpid());
    Streams to(1);
    ASSERT_TRUE(to.streams->send(0, {job_of(*source, {memory.range(0, 2), memory.range(8, 12), memory.range(20, 10)})}));
    const Received& got = to.finish();
    EXPECT_EQ(got.words.size(), 24u);
    for (const auto& [at, word] : got.words) EXPECT_EQ(word, (at - memory.start) / page + 1);
}

// A child that has unmapped parts of its copy of our memory: nothing else ever takes their place there.
class ChildWithHoles {
  public:
    ChildWithHoles(const Memory& memory, std::vector<std::pair<uint64_t, uint64_t>> holes) {
        int ready[2];
        EXPECT_EQ(::pipe2(ready, O_CLOEXEC), 0);
        pid = ::fork();
        if (pid == 0) {
            ::prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (const auto& [first, count] : holes) ::munmap(memory.at(first), count * page);
            (void)!::write(ready[1], "", 1);
            for (;;) ::pause();
        }
        char byte;
        EXPECT_EQ(::read(ready[0], &byte, 1), 1);
        ::close(ready[0]);
        ::close(ready[1]);
    }
    ChildWithHoles(const ChildWithHoles&) = delete;
    ChildWithHoles& operator=(const ChildWithHoles&) = delete;
    ~ChildWithHoles() {
        ::kill(pid, SIGKILL);
        ::waitpid(pid, nullptr, 0);
    }
    pid_t pid;
};

TEST(PageStreams, PagesThatVanishedArePassedOver) {
    const Memory memory(600);
    for (uint64_t i = 0; i < 600; ++i) memory.fill(i, i + 1);
    const ChildWithHoles child(memory, {{50, 3}, {100, 300}});
    const auto source = process_pages(child.pid);
    PageJob job = job_of(*source, {memory.range(0, 40), memory.range(45, 400), memory.range(500, 100)});
    {
        Streams to(2);
        job.may_vanish = true;
        const auto sent = to.streams->send(0, {job});
        ASSERT_TRUE(sent) << sent.error().what;
        EXPECT_EQ(sent->pages, 540u - 303);
        EXPECT_EQ(to.streams->pages_done(), 540u);
        const Received& got = to.finish();
        EXPECT_EQ(got.words.size(), 540u - 303);
        for (const auto& [at, word] : got.words) EXPECT_EQ(word, (at - memory.start) / page + 1);
    }
    Streams to(2);
    job.may_vanish = false;
    const auto sent = to.streams->send(0, {job});
    ASSERT_FALSE(sent);
    EXPECT_EQ(sent.error().error, EFAULT);
    EXPECT_NE(sent.error().what.find(std::to_string(child.pid)), std::string::npos) << sent.error().what;
    char address[32];
    std::snprintf(address, sizeof address, "%lx", memory.start + 50 * page);
    EXPECT_NE(sent.error().what.find(address), std::string::npos) << sent.error().what;
    EXPECT_FALSE(to.streams->send(1, {})) << "no more can be sent after a Problem";
}

TEST(PageStreams, AProcessThatEndedIsNamed) {
    const Memory memory(300);
    const pid_t child = ::fork();
    if (child == 0) ::_exit(0);
    siginfo_t info;
    ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT), 0);
    for (const bool reaped : {false, true}) {
        if (reaped) ::waitpid(child, nullptr, 0);
        const auto source = process_pages(child);
        PageJob job = job_of(*source, {memory.range(0, 300)});
        job.may_vanish = true;
        Streams to(1);
        const auto sent = to.streams->send(0, {job});
        ASSERT_FALSE(sent);
        EXPECT_EQ(sent.error().error, ESRCH) << sent.error().what;
        EXPECT_NE(sent.error().what.find(std::to_string(child)), std::string::npos);
    }
}

TEST(PageStreams, ASharedObjectIsReadByOffset) {
    const UniqueFd fd(static_cast<int>(::syscall(SYS_memfd_create, "object", 0)));
    ASSERT_EQ(::ftruncate(fd.get(), 10 * page), 0);
    std::vector<uint64_t> words(page / 8, 55);
    ASSERT_EQ(::pwrite(fd.get(), words.data(), page, 4 * page), static_cast<ssize_t>(page));
    const auto source = std::make_unique<ObjectPages>(fd.get(), "shared object 5");
    Streams to(1);
    ASSERT_TRUE(to.streams->send(0, {job_of(*source, {{4 * page, 6 * page}})}));
    PageJob beyond = job_of(*source, {{8 * page, 12 * page}});
    beyond.may_vanish = true;
    const auto sent = to.streams->send(1, {beyond});
    ASSERT_TRUE(sent);
    EXPECT_EQ(sent->zero_pages, 2u);
    beyond.may_vanish = false;
    const auto failed = to.streams->send(2, {beyond});
    ASSERT_FALSE(failed);
    EXPECT_NE(failed.error().what.find("shared object 5"), std::string::npos);
    const Received& got = to.finish();
    EXPECT_EQ(got.words.at(4 * page), 55u);
    EXPECT_EQ(got.words.at(5 * page), 0u);
    EXPECT_EQ(got.words.count(10 * page), 0u);
}

TEST(PageStreams, CompressedPagesArriveAsTheyAre) {
    const uint64_t pages = 1024;
    const Memory memory(pages);
    std::mt19937_64 random(1);
    for (uint64_t i = 0; i < pages; ++i) {
        if (i < 512)
            memory.fill(i, i + 1);
        else
            for (uint64_t k = 0; k < page / 8; ++k) static_cast<uint64_t*>(memory.at(i))[k] = random();
    }
    const auto source = process_pages(::getpid());
    for (const uint64_t features : {uint64_t{feature_lz4}, uint64_t{0}}) {
        Streams to(1, Compression::lz4, features);
        const auto sent = to.streams->send(0, {job_of(*source, {memory.range(0, pages)})});
        ASSERT_TRUE(sent) << sent.error().what;
        const Received& got = to.finish();
        EXPECT_EQ(got.packed_frames, features != 0 ? 2u : 0u) << "what does not get shorter goes as it is";
        EXPECT_EQ(sent->bytes < pages * page * 6 / 10, features != 0);
        for (uint64_t i = 0; i < pages; ++i) ASSERT_EQ(got.words.at(memory.start + i * page), *static_cast<uint64_t*>(memory.at(i)));
    }
}

// A source that holds up all readers until it is let go, so that a test can act in the middle of a round.
class Gate final : public PageSource {
  public:
    Result<void> read(std::span<const ByteRange> ranges, std::byte* to) const override {
        for (const ByteRange& range : ranges) {
            std::memset(to, 1, range.end - range.start);
            to += range.end - range.start;
        }
        if (++reads == 4 && at_fourth) at_fourth();
        return {};
    }
    mutable std::atomic<int> reads = 0;
    std::function<void()> at_fourth;
};

TEST_P(PageStreamsOf, APeerThatDiesInTheMiddleEndsTheRound) {
    Streams to(GetParam());
    Gate gate;
    gate.at_fourth = [&] { to.kill(GetParam() - 1); };
    const auto begun = Clock::now();
    const auto sent = to.streams->send(0, {job_of(gate, {{0, 1ull << 40}})});  // would never end
    ASSERT_FALSE(sent);
    EXPECT_EQ(sent.error().code, ExitCode::peer) << sent.error().what;
    EXPECT_LT(Clock::now() - begun, milliseconds(20'000));
}

TEST_P(PageStreamsOf, AnotherThreadCanEndARound) {
    Streams to(GetParam());
    Gate gate;
    std::thread other;
    gate.at_fourth = [&] { other = std::thread([&] { to.streams->shut_down(); }); };
    const auto sent = to.streams->send(0, {job_of(gate, {{0, 1ull << 40}})});
    EXPECT_FALSE(sent);
    other.join();
    EXPECT_FALSE(to.streams->send(1, {}));
}

using Seconds = CompressionChoice::Seconds;
constexpr size_t mib = 1u << 20;

// Sends frames of 1 MiB over a link of so many bytes per second; returns how many of them went compressed.
size_t packed_of(CompressionChoice& choice, size_t frames, double link, double lz4, double ratio) {
    size_t packed = 0;
    for (size_t i = 0; i < frames; ++i) {
        if (choice.wants_sample()) choice.sampled(mib / 8, static_cast<size_t>(mib / 8 * ratio), Seconds(mib / 8 / lz4));
        if (choice.compress()) {
            ++packed;
            choice.sent_packed(mib, static_cast<size_t>(mib * ratio), Seconds(mib / lz4));
        } else {
            choice.sent_raw(mib, Seconds(mib / link));
        }
    }
    return packed;
}

TEST(CompressionChoice, ASlowLinkIsCompressedFor) {
    CompressionChoice choice(Compression::automatic);
    EXPECT_EQ(packed_of(choice, 16, 100e6, 600e6, 0.4), 0u) << "it is measured first";
    EXPECT_EQ(packed_of(choice, 256, 100e6, 600e6, 0.4), 256u);
    EXPECT_EQ(packed_of(choice, 16, 100e6, 600e6, 0.4), 0u) << "it is measured again";
}

TEST(CompressionChoice, AFastLinkOrPoorContentIsNot) {
    CompressionChoice fast(Compression::automatic);
    EXPECT_EQ(packed_of(fast, 1000, 2500e6, 600e6, 0.4), 0u);
    CompressionChoice poor(Compression::automatic);
    EXPECT_EQ(packed_of(poor, 1000, 100e6, 600e6, 0.98), 0u);
}

TEST(CompressionChoice, ItChangesWithTheLink) {
    CompressionChoice choice(Compression::automatic);
    EXPECT_EQ(packed_of(choice, 200, 2500e6, 600e6, 0.4), 0u);
    EXPECT_GT(packed_of(choice, 200, 50e6, 600e6, 0.4), 50u);
    (void)packed_of(choice, 300, 2500e6, 600e6, 0.4);
    EXPECT_EQ(packed_of(choice, 200, 2500e6, 600e6, 0.4), 0u);
}

TEST(CompressionChoice, WhatWasAskedForIsNotMeasured) {
    CompressionChoice always(Compression::lz4), never(Compression::none);
    EXPECT_EQ(packed_of(always, 1000, 1e10, 1e8, 0.9), 1000u);
    EXPECT_EQ(packed_of(never, 1000, 1e6, 1e9, 0.1), 0u);
    EXPECT_FALSE(never.wants_sample());
}

}  // namespace
}  // namespace godwit
