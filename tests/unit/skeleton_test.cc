#include "dest-agent/skeleton.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include <chrono>
#include <functional>
#include <random>

#include "tests/support/skeletons.h"

namespace godwit {
namespace {

using namespace hand_made;
TEST_F(SkeletonTest, MappingsAreThoseOfTheLayout) {
    image::Layout layout = small_layout();
    add(layout, 0x600000000000, 1 << 24, image::MAPPING_ANONYMOUS, PROT_NONE);
    std::sort(layout.mutable_mappings()->begin(), layout.mutable_mappings()->end(),
              [](const auto& a, const auto& b) { return a.start() < b.start(); });
    auto skeleton = build(layout);
    ASSERT_OK(skeleton);
    ASSERT_OK(skeleton->finish_memory());
    EXPECT_EQ(lines_of(*skeleton), expected_lines(layout));
}

TEST_F(SkeletonTest, PagesLandWhateverTheirProtection) {
    image::Layout layout = small_layout();
    auto skeleton = build(layout);
    ASSERT_OK(skeleton);
    ASSERT_OK(write(*skeleton, code_at - page, pages_of('f', 1) + pages_of('c', 1)));
    ASSERT_OK(write(*skeleton, data_at + page, pages_of('d', 2)));
    ASSERT_OK(skeleton->finish_memory());
    EXPECT_EQ(lines_of(*skeleton), expected_lines(layout));
    EXPECT_TRUE(read_back(skeleton->pid(), code_at - page, 2 * page) == pages_of('f', 1) + pages_of('c', 1));
    EXPECT_TRUE(read_back(skeleton->pid(), data_at, 4 * page) == pages_of('\0', 1) + pages_of('d', 2) + pages_of('\0', 1));
}

TEST_F(SkeletonTest, TheLastVersionOfAPageWins) {
    auto skeleton = build(small_layout());
    ASSERT_OK(skeleton);
    ASSERT_OK(write(*skeleton, data_at + page, pages_of('1', 1)));
    ASSERT_OK(write(*skeleton, data_at, pages_of('2', 3)));  // missing, there, missing
    ASSERT_OK(write(*skeleton, code_at, pages_of('1', 1)));
    ASSERT_OK(write(*skeleton, code_at, pages_of('2', 1)));
    ASSERT_OK(skeleton->finish_memory());
    EXPECT_TRUE(read_back(skeleton->pid(), data_at, 4 * page) == pages_of('2', 3) + pages_of('\0', 1));
    EXPECT_TRUE(read_back(skeleton->pid(), code_at, page) == pages_of('2', 1));
}

Result<void> zero(Skeleton& skeleton, uint64_t at, uint64_t pages) {
    const PageRange range{at, pages * page, true};
    return skeleton.zero({&range, 1});
}

TEST_F(SkeletonTest, ManyRangesOfOneCallLandEachInItsPlace) {
    image::Layout layout = small_layout();
    constexpr uint64_t at = 0x100000000, count = 4000;
    add(layout, at, count, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE);
    add(layout, at + count * page, count, image::MAPPING_ANONYMOUS, PROT_READ);
    add(layout, at + 2 * count * page, count, image::MAPPING_ANONYMOUS, PROT_NONE);
    std::sort(layout.mutable_mappings()->begin(), layout.mutable_mappings()->end(),
              [](const auto& a, const auto& b) { return a.start() < b.start(); });
    auto skeleton = build(layout);
    ASSERT_OK(skeleton);
    // Every second page, then every third: missing ones and ones that are there, all mixed, across three mappings.
    std::string expected(3 * count * page, '\0');
    for (const uint64_t step : {2, 3}) {
        std::vector<PageRange> ranges;
        std::string content;
        for (uint64_t i = 0; i < 3 * count; i += step) {
            ranges.push_back({at + i * page, page});
            content += pages_of(static_cast<char>('a' + (i + step) % 26), 1);
            expected.replace(i * page, page, content, content.size() - page, page);
        }
        ASSERT_OK(skeleton->write(ranges, reinterpret_cast<const std::byte*>(content.data())));
    }
    ASSERT_OK(skeleton->finish_memory());
    EXPECT_TRUE(read_back(skeleton->pid(), at, 3 * count * page) == expected);
}

TEST_F(SkeletonTest, ZeroedPagesAreZeroWhateverWasThere) {
    image::Layout layout = small_layout();
    constexpr uint64_t at = 0x100000000, huge = 1 << 24;
    add(layout, at, huge, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE).set_no_reserve(true);
    std::sort(layout.mutable_mappings()->begin(), layout.mutable_mappings()->end(),
              [](const auto& a, const auto& b) { return a.start() < b.start(); });
    auto skeleton = build(layout);
    ASSERT_OK(skeleton);
    const uint64_t last = at + (huge - 1) * page;
    for (const uint64_t written : {at + 5 * page, last, data_at}) ASSERT_OK(write(*skeleton, written, pages_of('x', 1)));
    ASSERT_OK(write(*skeleton, code_at, pages_of('x', 1)));  // not writable in the end
    ASSERT_OK(zero(*skeleton, at, huge));
    ASSERT_OK(zero(*skeleton, data_at, 4));
    ASSERT_OK(zero(*skeleton, code_at - page, 2));  // a page of a file, and ours
    ASSERT_FALSE(zero(*skeleton, data_at, 5)) << "beyond the mapping";
    ASSERT_OK(skeleton->finish_memory());
    for (const uint64_t zeroed : {at + 5 * page, last, data_at, code_at - page, code_at})
        EXPECT_TRUE(read_back(skeleton->pid(), zeroed, page) == pages_of('\0', 1)) << std::hex << zeroed;
    const auto smaps = read_smaps(skeleton->pid());
    for (const Vma& vma : *smaps)
        if (vma.start == at) { EXPECT_LT(vma.resident_kb, 10'000u) << "64 GiB of zeros were made pages"; }
}

TEST_F(SkeletonTest, ACopyThatWasKilledIsSaidSo) {
    auto skeleton = build(small_layout());
    ASSERT_OK(skeleton);
    ASSERT_OK(write(*skeleton, data_at, pages_of('x', 1)));
    ASSERT_EQ(::kill(skeleton->pid(), SIGKILL), 0);  // as the OOM killer does
    Problem problem;
    for (int i = 0; i < 1000 && problem.what.empty(); ++i)
        if (auto written = write(*skeleton, data_at, pages_of('x', 4)); !written) problem = written.error();
    EXPECT_NE(problem.what.find("was killed while its memory arrived"), std::string::npos) << problem.what;
    EXPECT_NE(problem.hint.find("ran out of memory"), std::string::npos) << problem.hint;
}

TEST_F(SkeletonTest, WrongPageRangesAreRefused) {
    auto skeleton = build(small_layout());
    ASSERT_OK(skeleton);
    const struct {
        uint64_t at, size;
    } ranges[] = {
        {data_at + 4 * page, page},        // right behind
        {data_at - page, 2 * page},        // begins before
        {data_at + 3 * page, 2 * page},    // ends behind
        {code_at - 2 * page, 2 * page},    // begins before the first mapping
        {vdso_area, page},                 // the vDSO
        {data_at + 1, page},               // no page
        {data_at, 100},
        {0, page},
        {~0ull - page + 1, page},
        {0x7ffffffff000, page},
        {data_at, ~0ull - page + 1},
        {0xffffffffff600000, page},
    };
    const std::string bytes = pages_of('x', 4);
    for (const auto& range : ranges) {
        // The good one before it is not written either.
        const PageRange both[] = {{data_at, page}, {range.at, range.size}};
        const auto written = skeleton->write(both, reinterpret_cast<const std::byte*>(bytes.data()));
        ASSERT_FALSE(written.has_value()) << fmt::format("{:x} {:x}", range.at, range.size);
        EXPECT_EQ(written.error().code, ExitCode::peer);
    }
    ASSERT_OK(skeleton->finish_memory());
    EXPECT_TRUE(read_back(skeleton->pid(), data_at, 4 * page) == pages_of('\0', 4)) << "a part of a refused range was written";
}

TEST_F(SkeletonTest, WrongLayoutsAreRefused) {
    auto helper = spawner();
    ASSERT_OK(helper);
    const std::pair<const char*, std::function<void(image::Layout&)>> changes[] = {
        {"overlap", [](auto& l) { l.mutable_mappings(1)->set_end(data_at + page); }},
        {"not ascending", [](auto& l) { l.mutable_mappings()->SwapElements(1, 2); }},
        {"end before start", [](auto& l) { l.mutable_mappings(2)->set_end(data_at - page); }},
        {"not a page", [](auto& l) { l.mutable_mappings(2)->set_end(data_at + 5); }},
        {"beyond the address space", [](auto& l) { l.mutable_mappings(l.mappings_size() - 1)->set_end(0x800000000000); }},
        {"unknown kind", [](auto& l) { l.mutable_mappings(2)->set_kind(image::MAPPING_UNKNOWN); }},
        {"unknown protection", [](auto& l) { l.mutable_mappings(2)->set_protection(0x1000000); }},
        {"file that is not listed", [](auto& l) { l.mutable_mappings(0)->set_file(2); }},
        {"anonymous memory of a file", [](auto& l) { l.mutable_mappings(2)->set_file(1); }},
        {"shared object without id", [](auto& l) { l.mutable_mappings(2)->set_kind(image::MAPPING_OBJECT_SHARED); }},
        {"offset that overflows", [](auto& l) { l.mutable_mappings(0)->set_offset(~0ull - 4095); }},
        {"no vDSO", [](auto& l) { l.mutable_mappings()->RemoveLast(); }},
        {"no task", [](auto& l) { l.clear_tids(); }},
        {"init", [](auto& l) { l.set_pid(1); l.set_tids(0, 1); }},
        {"task twice", [](auto& l) { l.add_tids(l.pid()); }},
        {"file that is missing", [](auto& l) { l.mutable_files(0)->set_path("/nowhere/at/all"); }},
        {"pid in use", [](auto& l) { l.set_pid(::getpid()); l.set_tids(0, ::getpid()); }},
        {"thread id in use", [](auto& l) { l.add_tids(::getpid()); }},
    };
    for (const auto& [name, change] : changes) {
        image::Layout layout = small_layout();
        const pid_t pid = layout.pid();
        change(layout);
        const auto skeleton = Skeleton::build(*helper, layout);
        EXPECT_FALSE(skeleton.has_value()) << name;
        EXPECT_FALSE(exists(pid)) << name << " left a process behind";
    }
    // The helper is none the worse for it.
    EXPECT_TRUE(Skeleton::build(*helper, small_layout()).has_value());
}

TEST_F(SkeletonTest, ThreadsHaveTheirNumbers) {
    auto skeleton = build(small_layout(5));
    ASSERT_OK(skeleton);
    ASSERT_EQ(skeleton->tasks().size(), 5u);
    std::vector<pid_t> wanted(skeleton->layout().tids().begin(), skeleton->layout().tids().end());
    for (size_t i = 0; i < 5; ++i) EXPECT_EQ(skeleton->tasks()[i].tid(), wanted[i]);
    std::sort(wanted.begin(), wanted.end());
    auto there = *read_tasks(skeleton->pid());
    std::sort(there.begin(), there.end());
    EXPECT_EQ(there, wanted);
}

TEST_F(SkeletonTest, ItEndsWithTheAgent) {
    const image::Layout layout = small_layout(3);
    int ready[2];
    ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    const pid_t agent = ::fork();
    if (agent == 0) {
        auto skeleton = build(layout);
        const char built = skeleton.has_value() ? 1 : 0;
        (void)!::write(ready[1], &built, 1);
        for (;;) ::pause();
    }
    char built = 0;
    ASSERT_EQ(::read(ready[0], &built, 1), 1);
    ::close(ready[0]);
    ::close(ready[1]);
    EXPECT_EQ(built, 1);
    EXPECT_TRUE(exists(layout.pid()));
    ::kill(agent, SIGKILL);
    ::waitpid(agent, nullptr, 0);
    // It is our child now.
    int status = 0;
    EXPECT_EQ(::waitpid(layout.pid(), &status, 0), layout.pid());
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

TEST_F(SkeletonTest, ItsClocksGoOnFromThoseOfTheTree) {
    constexpr int64_t hour = 3600ll * 1'000'000'000;
    auto helper = spawner(hour);
    ASSERT_OK(helper);
    auto skeleton = Skeleton::build(*helper, small_layout());
    ASSERT_OK(skeleton);
    Batch batch;
    const auto monotonic = batch.out(sizeof(timespec));
    const auto boot = batch.out(sizeof(timespec));
    batch.call(SYS_clock_gettime, CLOCK_MONOTONIC, monotonic);
    batch.call(SYS_clock_gettime, CLOCK_BOOTTIME, boot);
    ASSERT_OK(skeleton->remote().run(batch));
    timespec boot_here{};
    ::clock_gettime(CLOCK_BOOTTIME, &boot_here);
    EXPECT_NEAR(static_cast<double>(batch.read<timespec>(monotonic).tv_sec), static_cast<double>(monotonic_ns() / 1'000'000'000 + 3600), 3);
    EXPECT_NEAR(static_cast<double>(batch.read<timespec>(boot).tv_sec), static_cast<double>(boot_here.tv_sec + 7200), 3);
    EXPECT_NE(*read_link(fmt::format("/proc/{}/ns/time", skeleton->pid())), *read_link("/proc/self/ns/time"));
}

TEST(CheckPids, WhatIsInUseIsNamed) {
    image::Plan plan;
    const pid_t free = free_pids(1).front();
    plan.add_processes()->mutable_pid()->add_id(free);
    EXPECT_TRUE(check_pids(plan).empty());
    plan.mutable_processes(0)->add_tids()->add_id(::getpid());
    plan.mutable_processes(0)->add_tids()->add_id(1);
    plan.mutable_processes(0)->add_tids()->add_id(1 << 30);
    const auto problems = check_pids(plan);
    ASSERT_EQ(problems.size(), 3u);
    EXPECT_NE(problems[0].what.find(fmt::format("pid {} is in use here", ::getpid())), std::string::npos);
}

// Not a pass or fail by time: the figure is for people.
TEST_F(SkeletonTest, PagesPerSecond) {
    image::Layout layout = small_layout();
    constexpr uint64_t at = 0x100000000, pages = 65536, chunk = 256;
    add(layout, at, pages, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE);
    std::sort(layout.mutable_mappings()->begin(), layout.mutable_mappings()->end(),
              [](const auto& a, const auto& b) { return a.start() < b.start(); });
    auto skeleton = build(layout);
    ASSERT_OK(skeleton);
    std::string content(chunk * page, '\0');
    std::mt19937_64 random(1);
    for (size_t i = 0; i < content.size(); i += 8) {
        const uint64_t word = random();
        std::memcpy(&content[i], &word, sizeof word);
    }
    for (const char* what : {"fresh", "populated"}) {
        const auto start = Clock::now();
        for (uint64_t i = 0; i < pages; i += chunk) ASSERT_OK(write(*skeleton, at + i * page, content));
        const std::chrono::duration<double> took = Clock::now() - start;
        RecordProperty(what, fmt::format("{:.2f} GB/s", static_cast<double>(pages * page) / took.count() / 1e9));
        std::printf("%s: %.2f GB/s\n", what, static_cast<double>(pages * page) / took.count() / 1e9);
    }
    EXPECT_TRUE(read_back(skeleton->pid(), at + (pages - chunk) * page, chunk * page) == content);
}

}  // namespace
}  // namespace godwit
