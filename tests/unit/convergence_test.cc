// When rounds end, and what is promised then.
#include "source-agent/convergence.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "source-agent/calibration.h"

namespace godwit {
namespace {

constexpr uint64_t mib = 1 << 20;

// A tree that dirties `dirty` bytes per ms of at most `working_set`, over a link of `link` bytes per ms; returns the rounds.
struct Simulated {
    Decision end;
    uint32_t rounds;
    double predicted;
    double downtime;
};
Simulated simulate(ConvergenceLimits limits, double fixed, double memory, double working_set, double dirty, double link) {
    Convergence convergence(limits, fixed);
    double pending = memory, elapsed = 0;
    for (int i = 0; i < 10'000; ++i) {
        convergence.scanned(static_cast<uint64_t>(pending), elapsed, 0.5);
        const Decision decision = convergence.decide();
        if (decision != Decision::round) return {decision, convergence.rounds_sent(), convergence.predicted_ms().value_or(-1), fixed + pending / link};
        const double took = pending / link + 1;
        convergence.sent(static_cast<uint64_t>(pending), took);
        elapsed = took;
        pending = std::min(working_set, dirty * took);
    }
    return {Decision::round, 10'000, 0, 0};
}

TEST(Convergence, RoundZeroIsAlwaysSent) {
    Convergence convergence({100, 20, false}, 5);
    convergence.scanned(1, 0, 0.1);
    EXPECT_EQ(convergence.decide(), Decision::round);
    EXPECT_FALSE(convergence.predicted_ms());
}

TEST(Convergence, IdleTreeIsFrozenAfterItsFirstRound) {
    const auto end = simulate({100, 20, false}, 5, 1024 * mib, 0, 0, mib);
    EXPECT_EQ(end.end, Decision::freeze);
    EXPECT_EQ(end.rounds, 1u);
    EXPECT_LT(end.predicted, 10);
}

TEST(Convergence, RoundsGoOnWhileTheyShortenTheDowntime) {
    // Round 0 takes a second and leaves 50 MiB, which the limit would allow.
    const auto end = simulate({100, 20, false}, 5, 1024 * mib, 1024 * mib, 0.05 * mib, mib);
    EXPECT_EQ(end.end, Decision::freeze);
    EXPECT_GT(end.rounds, 1u);
    EXPECT_LT(end.downtime, 10);
}

TEST(Convergence, SmallWorkingSetIsNotChasedForEver) {
    // 20 MiB are dirty again as soon as they were sent.
    const auto end = simulate({100, 20, false}, 5, 1024 * mib, 20 * mib, 100 * mib, mib);
    EXPECT_EQ(end.end, Decision::freeze);
    EXPECT_LE(end.rounds, 3u);
    EXPECT_NEAR(end.predicted, end.downtime, 5);
}

TEST(Convergence, FasterThanTheLinkIsGivenUpAfterTheLastRound) {
    const ConvergenceLimits limits{100, 7, false};
    const auto end = simulate(limits, 5, 1024 * mib, 1024 * mib, 2 * mib, mib);
    EXPECT_EQ(end.end, Decision::give_up);
    EXPECT_EQ(end.rounds, 7u);
    EXPECT_GT(end.predicted, 900);
}

TEST(Convergence, ForceFreezesAnyway) {
    const auto end = simulate({100, 7, true}, 5, 1024 * mib, 1024 * mib, 2 * mib, mib);
    EXPECT_EQ(end.end, Decision::freeze);
    EXPECT_EQ(end.rounds, 7u);
}

TEST(Convergence, LimitBelowTheFixedPartIsGivenUp) {
    EXPECT_EQ(simulate({10, 5, false}, 20, 64 * mib, 0, 0, mib).end, Decision::give_up);
    EXPECT_EQ(simulate({30, 5, false}, 20, 64 * mib, 0, 0, mib).end, Decision::freeze);
}

TEST(Convergence, OneRoundAtMostMeansRoundZero) {
    EXPECT_EQ(simulate({1, 1, false}, 5, mib, mib, mib, mib).rounds, 1u);
    EXPECT_EQ(simulate({1000, 1, false}, 5, 64 * mib, mib, mib, mib).end, Decision::freeze);
}

TEST(Convergence, TinyRoundsDoNotTellOfTheLink) {
    Convergence convergence({100, 20, false}, 5);
    convergence.scanned(100 * mib, 0, 1);
    convergence.sent(100 * mib, 100);
    convergence.scanned(4096, 100, 1);
    convergence.sent(4096, 10);
    EXPECT_NEAR(*convergence.link_bytes_per_second(), 1000.0 * mib, 1);
}

TEST(Convergence, SlowBuildingOfASmallTreeIsNotTakenForTheLink) {
    Convergence convergence({100, 20, false}, 5);
    convergence.scanned(mib, 0, 1);
    convergence.sent(mib, 200);  // a skeleton was built
    convergence.scanned(mib, 200, 1);
    EXPECT_EQ(convergence.decide(), Decision::round);
    convergence.sent(mib, 5);
    convergence.scanned(mib, 5, 1);
    EXPECT_LT(*convergence.predicted_ms(), 20);
    EXPECT_EQ(convergence.decide(), Decision::freeze);
}

TEST(Convergence, RoundZeroOfZerosDoesNotPromiseAFastLink) {
    Convergence convergence({100, 20, false}, 5);
    convergence.scanned(8192 * mib, 0, 1);
    convergence.sent(8192 * mib, 4000);
    convergence.scanned(80 * mib, 4000, 1);
    convergence.sent(80 * mib, 800);
    convergence.scanned(16 * mib, 800, 1);
    EXPECT_GE(*convergence.predicted_ms(), 160);
    EXPECT_EQ(convergence.decide(), Decision::round);
}

class CalibrationTest : public ::testing::Test {
  protected:
    void SetUp() override {
        char name[] = "/tmp/godwit-calibration-XXXXXX";
        ASSERT_NE(::mkdtemp(name), nullptr);
        folder_ = name;
    }
    void TearDown() override { std::filesystem::remove_all(folder_); }
    std::string folder_;
    const std::string peer_ = "123e4567-e89b-42d3-a456-426614174000";
};

TEST_F(CalibrationTest, LearnsAndRemembers) {
    Calibration first = Calibration::load(folder_, peer_);
    EXPECT_GT(first.fixed_ms(100), 0);
    first.learn(100, 9);
    EXPECT_NEAR(first.fixed_ms(100), 9, 0.1);
    const Calibration again = Calibration::load(folder_, peer_);
    EXPECT_NEAR(again.fixed_ms(100), 9, 0.1);
    // More of everything takes longer, and what no tree can do without stays.
    EXPECT_NEAR(again.fixed_ms(1000), 5 + 40, 0.1);
    EXPECT_GE(again.fixed_ms(1), 5);
}

TEST_F(CalibrationTest, NonsenseCountsAsUnknown) {
    const double unknown = Calibration::load(folder_, peer_).fixed_ms(10);
    for (const char* text : {"", "items 0 ms 5", "items 10 ms nan", "items 10 ms -1", "nothing"}) {
        std::FILE* file = std::fopen((folder_ + "/calibration-" + peer_).c_str(), "w");
        ASSERT_NE(file, nullptr);
        std::fputs(text, file);
        std::fclose(file);
        EXPECT_EQ(Calibration::load(folder_, peer_).fixed_ms(10), unknown) << text;
    }
    // Nothing that a peer calls itself becomes a path.
    Calibration hostile = Calibration::load(folder_, "../../etc/passwd");
    hostile.learn(10, 10);
    EXPECT_FALSE(std::filesystem::exists(folder_ + "/calibration-../../etc/passwd"));
}

}  // namespace
}  // namespace godwit
