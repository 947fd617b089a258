#include "dest-agent/page_receiver.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/support/link_pair.h"

namespace godwit {
namespace {

constexpr uint64_t page = 4096;

// Remembers what each page holds, and can be made to hold up a write.
class Memory final : public PageTarget {
  public:
    Result<void> write(std::span<const PageRange> ranges, const std::byte* content) override {
        const std::lock_guard lock(lock_);
        for (const PageRange& range : ranges)
            for (uint64_t at = range.address; at < range.address + range.length; at += page, content += page)
                pages_[at] = static_cast<char>(*content);
        return failing_ ? Result<void>(fail("this target fails")) : Result<void>();
    }
    Result<void> zero(std::span<const PageRange> ranges) override {
        const std::lock_guard lock(lock_);
        for (const PageRange& range : ranges)
            for (uint64_t at = range.address; at < range.address + range.length; at += page) pages_[at] = '0';
        return {};
    }
    std::map<uint64_t, char> pages() {
        const std::lock_guard lock(lock_);
        return pages_;
    }
    void fail_from_now_on() { failing_ = true; }

  private:
    std::mutex lock_;
    std::map<uint64_t, char> pages_;
    std::atomic<bool> failing_ = false;
};

// A receiver with some connections, and the source's ends of them.
struct Arrivals {
    explicit Arrivals(size_t streams) {
        std::vector<std::unique_ptr<Channel>> channels;
        for (size_t i = 0; i < streams; ++i) {
            ChannelPair pair;
            EXPECT_TRUE(pair.source->guard().send(FrameType::hello) && pair.destination->guard().receive(FrameType::hello));
            pair.source->guard().set_role(image::ROLE_DATA);
            pair.destination->guard().set_role(image::ROLE_DATA);
            EXPECT_TRUE(pair.source->guard().receive(FrameType::hello_reply) && pair.destination->guard().send(FrameType::hello_reply));
            sources.push_back(std::move(pair.source));
            channels.push_back(std::move(pair.destination));
        }
        counts.resize(streams);
        receiver = std::make_unique<PageReceiver>(std::move(channels), [this](uint32_t pid, uint64_t object) -> PageTarget* {
            return pid == 7 ? &process : object == 9 ? &object_nine : nullptr;
        });
    }
    void begin(size_t stream, uint32_t round) {
        image::RoundBegin message;
        message.set_round(round);
        EXPECT_TRUE(sources[stream]->send(FrameType::round_begin, message));
        ++counts[stream];
    }
    void send(size_t stream, uint64_t address, char fill, uint32_t pid = 7, uint64_t object = 0) {
        std::string content(page, fill);
        const PageRange range{address, page};
        const iovec body{content.data(), content.size()};
        EXPECT_TRUE(sources[stream]->send_pages({pid, object, 0, page}, {&range, 1}, {&body, 1}));
        ++counts[stream];
    }
    Result<bool> wait(uint32_t round, Deadline deadline = soon()) {
        image::RoundEnd end;
        end.set_round(round);
        for (const uint64_t count : counts) end.add_frames(count);
        return receiver->wait(end, deadline);
    }
    Problem problem(uint32_t round = 0) {
        const auto waited = wait(round);
        EXPECT_FALSE(waited);
        return waited ? Problem{} : waited.error();
    }

    Memory process, object_nine;
    std::vector<std::unique_ptr<Channel>> sources;
    std::vector<uint64_t> counts;
    std::unique_ptr<PageReceiver> receiver;
};

TEST(PageReceiver, PagesGoWhereTheyBelong) {
    Arrivals arrivals(2);
    arrivals.receiver->open_round(0);
    for (const size_t stream : {0, 1}) arrivals.begin(stream, 0);
    arrivals.send(0, 0x1000, 'a');
    arrivals.send(1, 0x2000, 'b');
    arrivals.send(1, 0x1000, 'c', 0, 9);
    const PageRange zeros{0x3000, 2 * page, true};
    ASSERT_TRUE(arrivals.sources[0]->send_pages({7}, {&zeros, 1}, {}));
    ++arrivals.counts[0];
    const auto done = arrivals.wait(0);
    ASSERT_TRUE(done && *done);
    EXPECT_EQ(arrivals.process.pages(), (std::map<uint64_t, char>{{0x1000, 'a'}, {0x2000, 'b'}, {0x3000, '0'}, {0x4000, '0'}}));
    EXPECT_EQ(arrivals.object_nine.pages(), (std::map<uint64_t, char>{{0x1000, 'c'}}));
    EXPECT_EQ(arrivals.receiver->bytes(), 3 * page);
}

TEST(PageReceiver, NothingIsWrittenBeforeItsRoundIsOpen) {
    Arrivals arrivals(1);
    arrivals.begin(0, 0);
    arrivals.send(0, 0x1000, 'a');
    EXPECT_FALSE(arrivals.wait(0, soon())) << "a round that was not opened";
    EXPECT_TRUE(arrivals.process.pages().empty());
    arrivals.receiver->open_round(0);
    const auto done = arrivals.wait(0);
    ASSERT_TRUE(done && *done);
    EXPECT_EQ(arrivals.process.pages().size(), 1u);
}

// One connection is a round ahead of the other: its pages are newer and must win, though they came first.
TEST(PageReceiver, AnOlderPageIsNeverWrittenOverANewerOne) {
    for (int repeat = 0; repeat < 20; ++repeat) {
        Arrivals arrivals(2);
        arrivals.receiver->open_round(0);
        for (const size_t stream : {0, 1}) arrivals.begin(stream, 0);
        const std::vector<uint64_t> first_round = {1, 21};
        arrivals.begin(0, 1);
        for (uint64_t i = 0; i < 20; ++i) arrivals.send(0, i * page, 'n');
        for (uint64_t i = 0; i < 20; ++i) arrivals.send(1, i * page, 'o');
        arrivals.begin(1, 1);
        image::RoundEnd end;
        for (const uint64_t count : first_round) end.add_frames(count);
        const auto ended = arrivals.receiver->wait(end, soon());
        ASSERT_TRUE(ended && *ended) << ended.error().what;
        EXPECT_EQ(arrivals.process.pages().size(), 20u);
        for (const auto& [at, fill] : arrivals.process.pages()) ASSERT_EQ(fill, 'o') << at;
        arrivals.receiver->open_round(1);
        ASSERT_TRUE(arrivals.wait(1));
        for (const auto& [at, fill] : arrivals.process.pages()) ASSERT_EQ(fill, 'n') << at;
    }
}

TEST(PageReceiver, RoundsThatSkipOrGoBackAreRefused) {
    for (const uint32_t wrong : {0u, 2u, 4'000'000'000u}) {
        Arrivals arrivals(1);
        arrivals.receiver->open_round(0);
        arrivals.begin(0, 0);
        ASSERT_TRUE(arrivals.wait(0));
        arrivals.begin(0, wrong);
        arrivals.receiver->open_round(1);
        const Problem problem = arrivals.problem(1);
        EXPECT_EQ(problem.code, ExitCode::peer);
        EXPECT_NE(problem.what.find("where 1 was due"), std::string::npos) << problem.what;
    }
}

TEST(PageReceiver, PagesOutsideARoundAreRefused) {
    {
        Arrivals arrivals(1);
        arrivals.receiver->open_round(0);
        arrivals.send(0, 0x1000, 'a');
        EXPECT_NE(arrivals.problem().what.find("outside a round"), std::string::npos);
    }
    Arrivals arrivals(1);
    arrivals.receiver->open_round(0);
    arrivals.begin(0, 0);
    ASSERT_TRUE(arrivals.wait(0));
    // The round is over: the layout may be changing now.
    arrivals.send(0, 0x1000, 'a');
    arrivals.receiver->open_round(1);
    (void)arrivals.sources[0]->send(FrameType::round_begin, image::RoundBegin());
    ++arrivals.counts[0];
    EXPECT_EQ(arrivals.problem(1).code, ExitCode::peer);
}

TEST(PageReceiver, AnEndThatDoesNotFitIsRefused) {
    Arrivals arrivals(2);
    arrivals.receiver->open_round(0);
    for (const size_t stream : {0, 1}) arrivals.begin(stream, 0);
    image::RoundEnd end;
    end.add_frames(1);
    EXPECT_FALSE(arrivals.receiver->wait(end, soon())) << "one connection is not counted";
    end.add_frames(1);
    end.set_round(3);
    EXPECT_FALSE(arrivals.receiver->wait(end, soon())) << "another round";
    EXPECT_TRUE(arrivals.wait(0));
}

TEST(PageReceiver, PagesThatDoNotComeAreWaitedForNoLongerThanToTheDeadline) {
    Arrivals arrivals(1);
    arrivals.receiver->open_round(0);
    arrivals.begin(0, 0);
    ++arrivals.counts[0];
    const auto late = arrivals.wait(0, Deadline::in(milliseconds(20)));
    ASSERT_TRUE(late);
    EXPECT_FALSE(*late);
}

TEST(PageReceiver, APeerThatDiesEndsAllConnections) {
    Arrivals arrivals(3);
    arrivals.receiver->open_round(0);
    for (const size_t stream : {0, 1, 2}) arrivals.begin(stream, 0);
    ++arrivals.counts[1];
    arrivals.sources[1]->shut_down();
    const Problem problem = arrivals.problem();
    EXPECT_EQ(problem.code, ExitCode::peer);
    EXPECT_NE(problem.what.find("closed the connection"), std::string::npos) << problem.what;
    EXPECT_FALSE(arrivals.sources[0]->receive(soon())) << "the other connection is still open";
}

TEST(PageReceiver, PagesForNobodyAreRefused) {
    Arrivals arrivals(1);
    arrivals.receiver->open_round(0);
    arrivals.begin(0, 0);
    arrivals.send(0, 0x1000, 'a', 8);
    EXPECT_NE(arrivals.problem().what.find("pid 8"), std::string::npos);
}

TEST(PageReceiver, ATargetThatFailsEndsTheRound) {
    Arrivals arrivals(2);
    arrivals.receiver->open_round(0);
    for (const size_t stream : {0, 1}) arrivals.begin(stream, 0);
    arrivals.process.fail_from_now_on();
    arrivals.send(1, 0x1000, 'a');
    EXPECT_EQ(arrivals.problem().what, "this target fails");
}

TEST(PageReceiver, ItsEndNeedsNoOpenRound) {
    Arrivals arrivals(2);
    for (const size_t stream : {0, 1}) arrivals.begin(stream, 0);
    const auto begun = Clock::now();
    arrivals.receiver.reset();
    EXPECT_LT(Clock::now() - begun, milliseconds(10'000));
}

}  // namespace
}  // namespace godwit
