#include "tools/migrate_options.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace godwit {
namespace {

// The command line as main() would read it, up to what the migration is given.
Result<MigrateOptions> parse(std::vector<std::string> arguments, bool migrate = true) {
    CLI::App app;
    MemoryOptions options;
    add_memory_options(app, options, migrate);
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
    try {
        app.parse(arguments);
    } catch (const CLI::ParseError& error) {
        return fail(error.what(), {}, ExitCode::usage);
    }
    MigrateOptions out;
    TRY(apply(options, out));
    return out;
}

void expect_refusal(const std::vector<std::string>& arguments, ExitCode code, const std::string& what, const std::string& hint) {
    const auto parsed = parse(arguments);
    ASSERT_FALSE(parsed) << arguments.back();
    EXPECT_EQ(parsed.error().code, code) << parsed.error().what;
    EXPECT_NE(parsed.error().what.find(what), std::string::npos) << parsed.error().what;
    EXPECT_NE(parsed.error().hint.find(hint), std::string::npos) << parsed.error().hint;
    EXPECT_EQ(parsed.error().what.find('\n'), std::string::npos);
}

TEST(MemoryOptions, NothingGivenMeansPreCopyWithTheDefaults) {
    const MigrateOptions out = *parse({}), defaults;
    EXPECT_EQ(out.mode, image::MODE_PRE_COPY);
    EXPECT_EQ(out.downtime_limit, milliseconds(100));
    EXPECT_EQ(out.max_rounds, defaults.max_rounds);
    EXPECT_EQ(out.streams, defaults.streams);
    EXPECT_FALSE(out.force);
    EXPECT_EQ(out.compression, Compression::automatic);
    EXPECT_EQ(out.tracker, TrackerBackend::automatic);
}

TEST(MemoryOptions, EveryValueArrives) {
    const MigrateOptions out = *parse({"--mode", "pre-copy", "--downtime-limit", "3600000", "--max-rounds=1000", "--force", "--streams", "16",
                                       "--compress", "lz4", "--tracker", "soft-dirty"});
    EXPECT_EQ(out.mode, image::MODE_PRE_COPY);
    EXPECT_EQ(out.downtime_limit, milliseconds(3'600'000));
    EXPECT_EQ(out.max_rounds, 1000U);
    EXPECT_TRUE(out.force);
    EXPECT_EQ(out.streams, 16U);
    EXPECT_EQ(out.compression, Compression::lz4);
    EXPECT_EQ(out.tracker, TrackerBackend::soft_dirty);
    EXPECT_EQ(parse({"--mode", "stop", "--streams", "2", "--compress", "none"})->mode, image::MODE_STOP);
}

TEST(MemoryOptions, ModesThatAreNotCarriedYetAreRefusedByName) {
    for (const std::string mode : {"post-copy", "hybrid", "auto"})
        expect_refusal({"--mode", mode}, ExitCode::unsupported, "--mode " + mode, "pre-copy, stop");
    expect_refusal({"--compress", "zstd"}, ExitCode::unsupported, "--compress zstd", "none, lz4, auto");
}

TEST(MemoryOptions, NumbersOutOfRangeAreUsageErrorsThatSayTheRange) {
    for (const std::string value : {"0", "3600001", "0.5", "1e3", "-1", "+5", " 5", "5ms", "x", "", "4294967297", "99999999999999999999"})
        expect_refusal({"--downtime-limit", value}, ExitCode::usage, "--downtime-limit " + value, "from 1 to 3600000");
    for (const std::string value : {"0", "1001", "many"})
        expect_refusal({"--max-rounds", value}, ExitCode::usage, "--max-rounds " + value, "from 1 to 1000");
    for (const std::string value : {"0", "17"})
        expect_refusal({"--streams", value}, ExitCode::usage, "--streams " + value, "from 1 to 16");
}

TEST(MemoryOptions, WordsThatDoNotExistAreUsageErrorsThatSayTheWords) {
    expect_refusal({"--mode", "fly"}, ExitCode::usage, "--mode fly", "pre-copy, stop");
    expect_refusal({"--mode", ""}, ExitCode::usage, "--mode", "pre-copy, stop");
    expect_refusal({"--compress", "gzip"}, ExitCode::usage, "--compress gzip", "none, lz4, auto");
    expect_refusal({"--tracker", "guess"}, ExitCode::usage, "--tracker guess", "auto, wp-async, soft-dirty");
    expect_refusal({"--mode", "st\x1b[2Jop"}, ExitCode::usage, "--mode st\\x1b[2Jop", "pre-copy, stop");
}

TEST(MemoryOptions, WhatMeansNothingWithModeStopIsRefusedThere) {
    const std::vector<std::vector<std::string>> senseless{{"--force"}, {"--downtime-limit", "100"}, {"--max-rounds", "20"}, {"--tracker", "auto"}};
    for (std::vector<std::string> arguments : senseless) {
        const std::string option = arguments.front();
        arguments.insert(arguments.end(), {"--mode", "stop"});
        expect_refusal(arguments, ExitCode::usage, option + " means nothing with --mode stop", "leave out");
    }
}

TEST(MemoryOptions, CheckTakesOnlyWhatItCanAskAbout) {
    EXPECT_TRUE(parse({"--mode", "stop", "--streams", "4"}, false));
    EXPECT_TRUE(parse({"--tracker", "soft-dirty"}, false));
    for (const std::string option : {"--downtime-limit", "--max-rounds", "--compress"}) EXPECT_FALSE(parse({option, "1"}, false)) << option;
    EXPECT_FALSE(parse({"--force"}, false));
}

}  // namespace
}  // namespace godwit
