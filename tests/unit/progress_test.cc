#include "tools/progress.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <regex>

namespace godwit {
namespace {

Progress busy_round() {
    Progress progress;
    progress.stage = Stage::round;
    progress.round = 3;
    progress.pages_done = 131'072;
    progress.pages_of_round = 262'144;
    progress.bytes_per_second = 1.234e9;
    progress.dirty_bytes_per_second = 45.6e6;
    progress.predicted_downtime_ms = 85;
    progress.downtime_limit_ms = 100;
    return progress;
}

size_t cells(const std::string& line) {
    return static_cast<size_t>(std::count(line.begin(), line.end(), '#'));
}

TEST(ProgressLine, SaysEverythingOnAnUsualTerminal) {
    EXPECT_EQ(progress_line(busy_round(), 80, false), "round 3 [####....] 131k/262k pages 1.23 GB/s dirty 46 MB/s downtime 85/100 ms");
}

TEST(ProgressLine, StaysShorterThanAnyTerminalAtEveryStage) {
    for (const Stage stage : {Stage::survey, Stage::round, Stage::final_round, Stage::restore})
        for (unsigned width = 0; width < 200; ++width) {
            Progress progress = busy_round();
            progress.stage = stage;
            progress.round = 1000;
            const std::string line = progress_line(progress, width, false);
            EXPECT_LT(line.size(), std::max(width, 1U)) << line;
            EXPECT_EQ(line.find_first_of("\r\n\x1b"), std::string::npos);
        }
}

TEST(ProgressLine, LeavesOutWhatIsNeededLeast) {
    EXPECT_EQ(progress_line(busy_round(), 70, false), "round 3 [####....] 1.23 GB/s dirty 46 MB/s downtime 85/100 ms");
    EXPECT_EQ(progress_line(busy_round(), 60, false), "round 3 [####....] 1.23 GB/s downtime 85/100 ms");
    EXPECT_EQ(progress_line(busy_round(), 40, false), "round 3 [####....] downtime 85/100 ms");
    EXPECT_EQ(progress_line(busy_round(), 30, false), "round 3 [####....]");
    EXPECT_EQ(progress_line(busy_round(), 10, false), "round 3");
    EXPECT_EQ(progress_line(busy_round(), 4, false), "rou");
}

TEST(ProgressLine, BarIsFullOnlyWhenAllIsDone) {
    Progress progress = busy_round();
    progress.pages_of_round = 1000;
    for (const unsigned width : {80U, 100U, 150U}) {
        size_t before = 0;
        for (uint64_t done = 0; done <= 1000; ++done) {
            progress.pages_done = done;
            const std::string line = progress_line(progress, width, false);
            const size_t all = line.find(']') - line.find('[') - 1;
            EXPECT_EQ(cells(line) == all, done == 1000) << line;
            EXPECT_GE(cells(line), before) << line;
            before = cells(line);
        }
    }
    progress.pages_done = 0;
    EXPECT_EQ(cells(progress_line(progress, 80, false)), 0U);
    progress.pages_done = std::numeric_limits<uint64_t>::max();
    EXPECT_EQ(cells(progress_line(progress, 80, false)), 8U);
}

TEST(ProgressLine, ShowsWhatIsNotKnownAsADash) {
    Progress progress;
    progress.stage = Stage::round;
    progress.downtime_limit_ms = 100;
    EXPECT_EQ(progress_line(progress, 80, false), "round 0 [........] - pages - MB/s dirty - MB/s downtime -/100 ms");
    progress.bytes_per_second = std::nan("");
    progress.dirty_bytes_per_second = std::numeric_limits<double>::infinity();
    progress.predicted_downtime_ms = std::nan("");
    EXPECT_EQ(progress_line(progress, 80, false), "round 0 [........] - pages - MB/s dirty - MB/s downtime -/100 ms");
}

TEST(ProgressLine, AFrozenTreeWritesNothingAndModeStopPredictsNothing) {
    Progress progress = busy_round();
    progress.stage = Stage::final_round;
    EXPECT_EQ(progress_line(progress, 80, false), "final round [####....] 131k/262k pages 1.23 GB/s downtime 85/100 ms");
    progress.downtime_limit_ms = 0;
    progress.predicted_downtime_ms.reset();
    EXPECT_EQ(progress_line(progress, 80, false), "final round [####....] 131k/262k pages 1.23 GB/s");
    progress.stage = Stage::restore;
    EXPECT_EQ(progress_line(progress, 80, false), "restoring at the destination");
}

TEST(ProgressLine, ColoursChangeNothingElse) {
    Progress progress = busy_round();
    const std::regex escape("\x1b\\[[0-9]*m");
    for (const double predicted : {85.0, 850.0}) {
        progress.predicted_downtime_ms = predicted;
        const std::string line = progress_line(progress, 120, true);
        EXPECT_NE(line.find('\x1b'), std::string::npos);
        EXPECT_EQ(line.find("\x1b[33m") != std::string::npos, predicted > progress.downtime_limit_ms) << "yellow: the limit is missed";
        EXPECT_EQ(std::regex_replace(line, escape, ""), progress_line(progress, 120, false));
    }
}

TEST(SteadyProgress, NeverGoesBackWithinARoundAndBeginsEachAtNothing) {
    SteadyProgress steady;
    Progress now;
    now.stage = Stage::round;
    now.pages_done = 70;  // left over from an earlier round: the size of this one is not known yet
    EXPECT_EQ(steady(now).pages_done, 0U);
    now.pages_of_round = 100, now.pages_done = 50;
    EXPECT_EQ(steady(now).pages_done, 50U);
    now.pages_done = 40, now.pages_of_round = 200;
    EXPECT_EQ(steady(now).pages_done, 50U);
    EXPECT_EQ(steady(now).pages_of_round, 100U);
    now.pages_done = 150;
    EXPECT_EQ(steady(now).pages_done, 100U);
    now.round = 1, now.pages_done = 0, now.pages_of_round = 10;
    EXPECT_EQ(steady(now).pages_done, 0U);
    now.stage = Stage::final_round, now.pages_done = 1;
    EXPECT_EQ(steady(now).pages_done, 1U);
}

TEST(SteadyProgress, DoesNotTakeTheFiguresOfTheRoundBeforeForThoseOfTheNext) {
    SteadyProgress steady;
    Progress now;
    now.stage = Stage::round, now.pages_done = now.pages_of_round = 100;
    steady(now);
    now.round = 1;
    EXPECT_EQ(steady(now).pages_of_round, 0U);
    now.pages_done = 5, now.pages_of_round = 10;
    EXPECT_EQ(steady(now).pages_done, 5U);
    EXPECT_EQ(steady(now).pages_of_round, 10U);
}

TEST(PlainProgress, SaysEachStageAndEachFinishedRoundOnce) {
    PlainProgress plain;
    Progress now;
    now.downtime_limit_ms = 100;
    EXPECT_EQ(plain(now), "godwit: looking at the tree\n");
    EXPECT_EQ(plain(now), "");
    now.stage = Stage::round, now.pages_of_round = 65536;
    EXPECT_EQ(plain(now), "godwit: copying memory while the tree runs\n");
    now.pages_done = 60000, now.bytes_per_second = 812e6;
    EXPECT_EQ(plain(now), "");
    now.round = 1, now.pages_of_round = 900, now.pages_done = 0, now.dirty_bytes_per_second = 12e6, now.predicted_downtime_ms = 35;
    EXPECT_EQ(plain(now), "godwit: round 0 done: 65536 pages, 812 MB/s, dirty 12 MB/s, downtime 35/100 ms\n");
    now.stage = Stage::final_round, now.round = 2, now.pages_of_round = 10;
    EXPECT_EQ(plain(now), "godwit: round 1 done: 900 pages, 812 MB/s, dirty 12 MB/s, downtime 35/100 ms\n"
                          "godwit: the tree stands still: final round\n");
    now.stage = Stage::restore;
    EXPECT_EQ(plain(now), "godwit: final round done: 10 pages, 812 MB/s\ngodwit: restoring at the destination\n");
    EXPECT_EQ(plain(now), "");
}

}  // namespace
}  // namespace godwit
