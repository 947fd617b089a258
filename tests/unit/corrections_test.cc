// A skeleton becomes what each later layout says, and keeps what both have in common.
#include <sys/syscall.h>

#include <functional>
#include <random>

#include "tests/support/skeletons.h"

namespace godwit {
namespace {

using namespace hand_made;
using CorrectionsTest = SkeletonTest;

void sort(image::Layout& layout) {
    std::sort(layout.mutable_mappings()->begin(), layout.mutable_mappings()->end(),
              [](const auto& a, const auto& b) { return a.start() < b.start(); });
}

MappingRange& range_at(image::Layout& layout, uint64_t start) {
    for (MappingRange& range : *layout.mutable_mappings())
        if (range.start() == start) return range;
    ADD_FAILURE() << "no mapping at " << std::hex << start;
    return *layout.mutable_mappings(0);
}

void drop(image::Layout& layout, uint64_t start, uint64_t pages) {
    image::PageSpan& span = *layout.add_dropped();
    span.set_start(start);
    span.set_length(pages * page);
}

constexpr uint64_t place = 0x30000000;

// What a round does to memory shows when all are over: until then what was never written cannot be read.
TEST_F(CorrectionsTest, MappingsGrowAndKeepTheirContent) {
    image::Layout layout = small_layout();
    add(layout, place, 8, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE);
    sort(layout);
    auto skeleton = build(layout);
    ASSERT_OK(skeleton);
    ASSERT_OK(write(*skeleton, place, pages_of('a', 8)));
    image::Layout grown = layout;
    grown.set_round(1);
    range_at(grown, place).set_end(place + 12 * page);
    add(grown, place + 32 * page, 2, image::MAPPING_ANONYMOUS, PROT_READ);
    sort(grown);
    ASSERT_OK(skeleton->correct(grown));
    ASSERT_OK(write(*skeleton, place + 10 * page, pages_of('b', 2)));
    ASSERT_OK(skeleton->finish_memory());
    EXPECT_EQ(read_back(skeleton->pid(), place, 12 * page), pages_of('a', 8) + pages_of('\0', 2) + pages_of('b', 2));
    EXPECT_EQ(lines_of(*skeleton), expected_lines(grown));
}

TEST_F(CorrectionsTest, MappingsThatShrankLoseTheirTail) {
    image::Layout layout = small_layout();
    add(layout, place, 8, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE);
    sort(layout);
    auto skeleton = build(layout);
    ASSERT_OK(skeleton);
    ASSERT_OK(write(*skeleton, place, pages_of('a', 8)));
    image::Layout shrunk = layout;
    range_at(shrunk, place).set_end(place + 3 * page);
    ASSERT_OK(skeleton->correct(shrunk));
    EXPECT_FALSE(write(*skeleton, place + 3 * page, pages_of('x', 1)));
    ASSERT_OK(skeleton->correct(layout));
    ASSERT_OK(skeleton->finish_memory());
    EXPECT_EQ(read_back(skeleton->pid(), place, 8 * page), pages_of('a', 3) + pages_of('\0', 5));
    EXPECT_EQ(lines_of(*skeleton), expected_lines(layout));
}

TEST_F(CorrectionsTest, ProtectionChangesAndContentStays) {
    image::Layout layout = small_layout();
    auto skeleton = build(layout);
    ASSERT_OK(skeleton);
    ASSERT_OK(write(*skeleton, data_at, pages_of('1', 4)));
    // Split in three, the middle without access; then one piece again that can only be read.
    image::Layout split = layout;
    range_at(split, data_at).set_end(data_at + page);
    add(split, data_at + page, 2, image::MAPPING_ANONYMOUS, PROT_NONE);
    add(split, data_at + 3 * page, 1, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE);
    sort(split);
    ASSERT_OK(skeleton->correct(split));
    ASSERT_OK(write(*skeleton, data_at + page, pages_of('2', 2)));
    image::Layout read_only = layout;
    range_at(read_only, data_at).set_protection(PROT_READ);
    range_at(read_only, data_at).set_accounted(true);
    ASSERT_OK(skeleton->correct(read_only));
    ASSERT_OK(write(*skeleton, data_at + 2 * page, pages_of('3', 1)));
    ASSERT_OK(skeleton->finish_memory());
    EXPECT_EQ(lines_of(*skeleton), expected_lines(read_only));
    EXPECT_EQ(read_back(skeleton->pid(), data_at, 4 * page), pages_of('1', 1) + pages_of('2', 1) + pages_of('3', 1) + pages_of('1', 1));
}

TEST_F(CorrectionsTest, MemoryOfAnotherKindIsFresh) {
    image::Layout layout = small_layout();
    auto skeleton = build(layout);
    ASSERT_OK(skeleton);
    ASSERT_OK(write(*skeleton, data_at, pages_of('1', 4)));
    image::Layout other = layout;
    MappingRange& range = range_at(other, data_at);
    range.set_kind(image::MAPPING_FILE_PRIVATE);
    range.set_file(1);
    range.set_protection(PROT_READ);
    ASSERT_OK(skeleton->correct(other));
    EXPECT_EQ(read_back(skeleton->pid(), data_at, 4), std::string("\x7f" "ELF"));
    ASSERT_OK(skeleton->correct(layout));
    ASSERT_OK(skeleton->finish_memory());
    EXPECT_EQ(read_back(skeleton->pid(), data_at, 4 * page), pages_of('\0', 4));
}

TEST_F(CorrectionsTest, DroppedPagesAreAsInAFreshMapping) {
    image::Layout layout = small_layout();
    auto skeleton = build(layout);
    ASSERT_OK(skeleton);
    ASSERT_OK(write(*skeleton, data_at, pages_of('1', 4)));
    ASSERT_OK(write(*skeleton, code_at - page, pages_of('2', 1)));  // of a file
    image::Layout next = layout;
    next.clear_mappings();
    next.clear_files();
    next.set_same_mappings(true);
    drop(next, code_at - page, 1);
    drop(next, data_at + page, 3);
    ASSERT_OK(skeleton->correct(next));
    ASSERT_OK(write(*skeleton, data_at + 2 * page, pages_of('3', 1)));
    ASSERT_OK(skeleton->finish_memory());
    EXPECT_EQ(read_back(skeleton->pid(), data_at, 4 * page), pages_of('1', 1) + pages_of('\0', 1) + pages_of('3', 1) + pages_of('\0', 1));
    EXPECT_EQ(read_back(skeleton->pid(), code_at - page, 4), std::string("\x7f" "ELF"));
}

TEST_F(CorrectionsTest, DroppedPagesOutsideItsMappingsAreRefused) {
    const std::pair<uint64_t, uint64_t> wrong[] = {{data_at + 3 * page, 2}, {data_at - page, 1}, {vdso_area, 1}, {data_at + 1, 1}, {data_at, 0}, {0, 1}};
    for (const auto& [start, pages] : wrong) {
        auto skeleton = build(small_layout());
        ASSERT_OK(skeleton);
        image::Layout next = skeleton->layout();
        drop(next, start, pages);
        const auto corrected = skeleton->correct(next);
        ASSERT_FALSE(corrected) << std::hex << start;
        EXPECT_EQ(corrected.error().code, ExitCode::peer);
    }
}

TEST_F(CorrectionsTest, ThreadsComeAndGo) {
    image::Layout layout = small_layout(6);
    const std::vector<int32_t> all(layout.tids().begin(), layout.tids().end());
    const auto with = [&](const std::vector<size_t>& chosen) {
        image::Layout next = layout;
        next.clear_tids();
        for (const size_t index : chosen) next.add_tids(all[index]);
        next.set_last(true);
        return next;
    };
    auto skeleton = build(with({0, 1, 2}));
    ASSERT_OK(skeleton);
    for (const std::vector<size_t>& chosen : {std::vector<size_t>{0, 3, 2, 4, 5}, {0}, {0, 5, 1}, {0, 1, 5}}) {
        const image::Layout next = with(chosen);
        ASSERT_OK(skeleton->correct(next));
        std::vector<pid_t> there = *read_tasks(skeleton->pid()), wanted(next.tids().begin(), next.tids().end()), traced;
        for (const Tracee& task : skeleton->tasks()) traced.push_back(task.tid());
        EXPECT_EQ(traced, wanted);
        std::sort(there.begin(), there.end());
        std::sort(wanted.begin(), wanted.end());
        EXPECT_EQ(there, wanted);
        // The executor answers, in the leader and in a thread.
        EXPECT_EQ(*skeleton->remote().call(SYS_gettid), skeleton->pid());
        Batch batch;
        const auto asked = batch.call(SYS_gettid);
        ASSERT_OK(skeleton->remote().run_in(skeleton->tasks().back(), batch));
        EXPECT_EQ(batch.result_of(asked), next.tids(next.tids_size() - 1));
    }
    ASSERT_OK(skeleton->finish_memory());
}

TEST_F(CorrectionsTest, ThreadsAreMadeInTheEndOnly) {
    const image::Layout layout = small_layout(3);
    image::Layout few = layout;
    few.mutable_tids()->Truncate(1);
    auto skeleton = build(few);
    ASSERT_OK(skeleton);
    image::Layout busy = layout;
    busy.add_tids(::getpid());  // lived for a moment at the source; its number is somebody's here
    ASSERT_OK(skeleton->correct(busy));
    EXPECT_EQ(read_tasks(skeleton->pid())->size(), 1u);
    image::Layout last = layout;
    last.set_last(true);
    ASSERT_OK(skeleton->correct(last));
    EXPECT_EQ(read_tasks(skeleton->pid())->size(), 3u);
}

TEST_F(CorrectionsTest, ExecutorMakesRoomForWhatIsMappedThere) {
    image::Layout layout = small_layout(3);
    auto skeleton = build(layout);
    ASSERT_OK(skeleton);
    ASSERT_OK(write(*skeleton, data_at, pages_of('1', 4)));
    const uint64_t there = skeleton->remote().start().address();
    image::Layout next = layout;
    add(next, there - page, skeleton->remote().size() / page + 2, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE);
    sort(next);
    ASSERT_OK(skeleton->correct(next));
    ASSERT_OK(write(*skeleton, there, pages_of('2', 1)));
    EXPECT_EQ(read_back(skeleton->pid(), data_at, page), pages_of('1', 1));
    ASSERT_OK(skeleton->finish_memory());
    EXPECT_EQ(lines_of(*skeleton), expected_lines(next));
    Batch batch;
    const auto asked = batch.call(SYS_gettid);
    ASSERT_OK(skeleton->remote().run_in(skeleton->tasks().back(), batch));
    EXPECT_EQ(batch.result_of(asked), next.tids(2));
}

// Each of the two got pages of its own before they became one mapping.
TEST_F(CorrectionsTest, PagesLandAcrossASeam) {
    image::Layout layout = small_layout();
    add(layout, place, 4, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE);
    add(layout, place + 4 * page, 4, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE).set_dont_fork(true);
    sort(layout);
    auto skeleton = build(layout);
    ASSERT_OK(skeleton);
    ASSERT_OK(write(*skeleton, place, pages_of('1', 1)));
    ASSERT_OK(write(*skeleton, place + 7 * page, pages_of('2', 1)));
    image::Layout next = small_layout();
    next.set_pid(layout.pid());
    *next.mutable_tids() = layout.tids();
    add(next, place, 8, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE);
    sort(next);
    ASSERT_OK(skeleton->correct(next));
    ASSERT_OK(write(*skeleton, place + page, pages_of('3', 6)));
    ASSERT_OK(skeleton->finish_memory());
    EXPECT_EQ(read_back(skeleton->pid(), place, 8 * page), pages_of('1', 1) + pages_of('3', 6) + pages_of('2', 1));
    EXPECT_EQ(lines_of(*skeleton), expected_lines(next));
}

TEST_F(CorrectionsTest, WrongLayoutsAreRefused) {
    const std::vector<std::pair<const char*, std::function<void(image::Layout&)>>> changes{
        {"another pid", [](auto& l) { l.set_pid(l.pid() - 1); l.set_tids(0, l.pid()); }},
        {"overlap", [](auto& l) { l.mutable_mappings(1)->set_end(data_at + page); }},
        {"moved vDSO", [](auto& l) { l.mutable_mappings()->RemoveLast(); l.clear_vdso(); }},
        {"no leader", [](auto& l) { l.clear_tids(); }},
        {"no file", [](auto& l) { l.clear_files(); }},
    };
    for (const auto& [name, change] : changes) {
        auto skeleton = build(small_layout());
        ASSERT_OK(skeleton);
        image::Layout next = skeleton->layout();
        change(next);
        EXPECT_FALSE(skeleton->correct(next)) << name;
    }
}

// Layout after layout at random: the map is always that of the last one, and content told since a range was last mapped is there.
TEST_F(CorrectionsTest, RandomLayoutsFollowOneAnother) {
    std::mt19937 random(7);
    image::Layout base = small_layout();
    range_at(base, code_at).set_accounted(false);  // final from the start
    auto skeleton = build(base);
    ASSERT_OK(skeleton);
    constexpr uint64_t pages = 64;
    std::vector<int> kind(pages, 0);      // 0: nothing, 1: anonymous, 2: not reserved
    std::vector<char> content(pages, 0);  // what each page begins with
    for (int turn = 0; turn < 60; ++turn) {
        std::vector<int> next_kind(pages);
        for (uint64_t i = 0; i < pages;) {
            const auto now = static_cast<int>(random() % 3);
            for (uint64_t n = 1 + random() % 9; n-- > 0 && i < pages; ++i) next_kind[i] = now;
        }
        image::Layout layout = base;
        for (uint64_t i = 0; i < pages;) {
            uint64_t end = i + 1;
            while (end < pages && next_kind[end] == next_kind[i]) ++end;
            if (next_kind[i] != 0) add(layout, place + i * page, end - i, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE).set_no_reserve(next_kind[i] == 2);
            i = end;
        }
        sort(layout);
        ASSERT_OK(skeleton->correct(layout));
        ASSERT_OK(skeleton->finish_memory());
        EXPECT_EQ(lines_of(*skeleton), expected_lines(layout));
        for (uint64_t i = 0; i < pages; ++i) {
            if (next_kind[i] != kind[i]) content[i] = 0;
            if (next_kind[i] == 0) continue;
            if (random() % 4 == 0) {
                content[i] = static_cast<char>('a' + random() % 26);
                ASSERT_OK(write(*skeleton, place + i * page, pages_of(content[i], 1)));
            }
            ASSERT_EQ(read_back(skeleton->pid(), place + i * page, 1)[0], content[i]) << "page " << i << " in turn " << turn;
        }
        kind = next_kind;
    }
}

}  // namespace
}  // namespace godwit
