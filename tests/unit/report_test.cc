#include "tools/report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tools/units.h"

namespace godwit {
namespace {

using namespace std::string_literals;

MigrateOutcome two_rounds() {
    MigrateOutcome outcome;
    Report& report = outcome.report;
    report.migration_id = "id";
    report.mode = "pre-copy";
    report.rounds = {{0, false, 65536, 10, 0, 268'500'000, 0.5, 330, }, {1, true, 12, 1, 2, 50'000, 0.25, 4}};
    report.bytes_sent = 268'550'000;
    report.total_ms = 12'345;
    report.downtime_ms = 40;
    report.predicted_downtime_ms = 35;
    report.dirty_bytes_per_second = 1e6;
    report.link_bytes_per_second = 8e8;
    report.tracker = "wp-async";
    report.downtime_phases_ms = {{"freeze", 10}, {"memory", 30}};
    report.destination_phases_ms = {{"build", 3}};
    return outcome;
}

TEST(Units, AreDecimalAndSwitchWhereTheyWouldRoundUp) {
    EXPECT_EQ(units::rate(0), "0.0 MB/s");
    EXPECT_EQ(units::rate(4.94e6), "4.9 MB/s");
    EXPECT_EQ(units::rate(9.96e6), "10 MB/s");
    EXPECT_EQ(units::rate(812e6), "812 MB/s");
    EXPECT_EQ(units::rate(999.9e6), "1.00 GB/s");
    EXPECT_EQ(units::rate(1.234e9), "1.23 GB/s");
    EXPECT_EQ(units::megabytes(12.34e9), "12.3 GB");
    EXPECT_EQ(units::duration(0.04), "0.0 ms");
    EXPECT_EQ(units::duration(9.97), "10 ms");
    EXPECT_EQ(units::duration(9999.7), "10.0 s");
    EXPECT_EQ(units::duration(12'345), "12.3 s");
    EXPECT_EQ(units::duration_of(85, 100), "85/100 ms");
    EXPECT_EQ(units::duration_of(12'345, 100), "12.3 s/100 ms");
    EXPECT_EQ(units::count(9'999), "9999");
    EXPECT_EQ(units::count(10'000), "10k");
    EXPECT_EQ(units::count(262'144), "262k");
    EXPECT_EQ(units::count(1'299'999), "1.2M");
    EXPECT_EQ(units::count(16'777'216), "16M");
}

TEST(Units, NeverShowWhatIsNotANumberOrAnExponent) {
    const double inf = std::numeric_limits<double>::infinity();
    for (const std::optional<double> value : {std::optional<double>(), std::optional(std::nan("")), std::optional(inf), std::optional(-1.0)}) {
        EXPECT_EQ(units::rate(value), "- MB/s");
        EXPECT_EQ(units::duration(value), "- ms");
        EXPECT_EQ(units::duration_of(value, 100), "-/100 ms");
        EXPECT_EQ(units::duration_of(value, 60'000), "-/60.0 s");
    }
    EXPECT_EQ(units::duration(1e12).find('e'), std::string::npos);
    EXPECT_EQ(units::rate(1e18).find('e'), std::string::npos);
}

TEST(ReportJson, HasEveryFieldUnderItsName) {
    MigrateOptions options;
    options.streams = 2;
    options.compression = Compression::lz4;
    options.downtime_limit = milliseconds(200);
    const auto json = report_json(two_rounds(), options);
    EXPECT_EQ(json["mode"], "pre-copy");
    EXPECT_EQ(json["streams"], 2);
    EXPECT_EQ(json["compress"], "lz4");
    EXPECT_EQ(json["tracker"], "wp-async");
    EXPECT_EQ(json["downtime_limit_ms"], 200);
    EXPECT_EQ(json["predicted_downtime_ms"], 35);
    EXPECT_EQ(json["dirty_bytes_per_second"], 1e6);
    EXPECT_EQ(json["link_bytes_per_second"], 8e8);
    EXPECT_EQ(json["total_ms"], 12'345);
    EXPECT_EQ(json["downtime_ms"], 40);
    EXPECT_EQ(json["downtime_phases_ms"]["memory"], 30);
    EXPECT_EQ(json["destination_phases_ms"]["build"], 3);
    EXPECT_EQ(json["rounds"][1], nlohmann::ordered_json::parse(R"({"round": 1, "frozen": true, "pages": 12, "zero_pages": 1, "dropped_pages": 2,
                                                                   "bytes": 50000, "scan_ms": 0.25, "ms": 4.0})"));
}

TEST(ReportJson, WhatModeStopDoesNotMeasureIsNull) {
    MigrateOptions options;
    options.mode = image::MODE_STOP;
    const auto json = report_json({}, options);
    for (const char* name : {"downtime_limit_ms", "predicted_downtime_ms", "dirty_bytes_per_second", "link_bytes_per_second", "tracker"})
        EXPECT_TRUE(json.at(name).is_null()) << name;
}

TEST(ReportText, SaysWhereTheDowntimeWent) {
    MigrateOptions options;
    options.tree = 1234;
    EXPECT_EQ(report_text(two_rounds().report, options, "b:1"),
              "pid 1234 runs at b:1 now: 269 MB sent, 12.3 s in all, stopped for 40 ms\n"
              "  round         pages         MB         ms        rate\n"
              "  0             65536      268.5      330.0    814 MB/s\n"
              "  1 frozen         12        0.1        4.0     12 MB/s\n"
              "  downtime 40 ms, predicted 35 ms, limit 100 ms\n"
              "  freeze           10.00 ms   25 %\n"
              "  memory           30.00 ms   75 %\n");
}

TEST(ReportText, DividesByNothing) {
    MigrateOutcome outcome = two_rounds();
    outcome.report.downtime_ms = 0;
    outcome.report.rounds[0].milliseconds = 0;
    const std::string text = report_text(outcome.report, {}, "b:1");
    EXPECT_NE(text.find("- MB/s"), std::string::npos) << text;
    EXPECT_EQ(text.find("nan"), std::string::npos) << text;
    EXPECT_EQ(text.find("inf"), std::string::npos) << text;
}

}  // namespace
}  // namespace godwit
