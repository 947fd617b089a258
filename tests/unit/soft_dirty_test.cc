// The soft-dirty backend's reading of page-map entries, and the sets of pages that both backends compute with.
#include "source-agent/track/soft_dirty.h"

#include <gtest/gtest.h>

#include "source-agent/track/mappings.h"

namespace godwit {

static bool operator==(const ByteRange& a, const ByteRange& b) {
    return a.start == b.start && a.end == b.end;
}

namespace {

constexpr uint64_t page = 4096;
constexpr uint64_t base = 0x10000;

// Entries as Linux 6.1 gives them.
constexpr uint64_t hole = 0;
constexpr uint64_t clean = 0x8100000000012345;         // present, exclusive
constexpr uint64_t dirty = 0x8180000000012346;         // and written
constexpr uint64_t swapped = 0x4000000000000042;
constexpr uint64_t swapped_dirty = 0x4080000000000062;
constexpr uint64_t file_clean = 0xa000000000023456;    // present, of the file
constexpr uint64_t file_dirty_bit = 0xa080000000023456;  // of the file, in a new mapping
constexpr uint64_t zero_page = 0x8000000000000777;     // present, not exclusive
constexpr uint64_t after_fork = 0x8000000000054321;    // present, the child's too
constexpr uint64_t new_hole = 0x0080000000000000;      // not there, in a new mapping

Ranges pages(std::initializer_list<uint64_t> indexes) {
    Ranges out;
    for (const uint64_t index : indexes) append(out, {base + index * page, base + (index + 1) * page});
    return out;
}

SoftDirtyPages read(const std::vector<uint64_t>& entries, bool skip_file = false, bool shared = false) {
    SoftDirtyPages out;
    add_soft_dirty(base, entries, skip_file, shared, [](uint64_t frame) { return frame == 0x777; }, out);
    return out;
}

TEST(SoftDirty, WrittenPagesArePresentOrSwappedWithTheBit) {
    const auto found = read({hole, clean, dirty, swapped, swapped_dirty, dirty, after_fork});
    EXPECT_EQ(found.content, pages({1, 2, 3, 4, 5, 6}));
    EXPECT_EQ(found.written, pages({2, 4, 5}));
}

TEST(SoftDirty, NewMappingTellsOnlyWhatIsPopulated) {
    const auto found = read({new_hole, dirty, new_hole, swapped_dirty});
    EXPECT_EQ(found.content, pages({1, 3}));
    EXPECT_EQ(found.written, pages({1, 3}));
}

TEST(SoftDirty, PageOfZerosIsNoContent) {
    const auto found = read({clean, zero_page, zero_page | entry_is_soft_dirty, clean});
    EXPECT_EQ(found.content, pages({0, 3}));
    EXPECT_EQ(found.written, Ranges{});
}

TEST(SoftDirty, FilePagesOfAPrivateMappingAreNoContent) {
    const auto found = read({file_clean, file_dirty_bit, dirty, clean}, true);
    EXPECT_EQ(found.content, pages({2, 3}));
    EXPECT_EQ(found.written, pages({2}));
}

TEST(SoftDirty, SharedPagesThatAreNotPresentMayHaveBeenWritten) {
    const auto found = read({file_clean, file_dirty_bit, swapped, hole}, false, true);
    EXPECT_EQ(found.content, pages({0, 1}));
    EXPECT_EQ(found.written, pages({1, 2, 3}));
}

TEST(SoftDirty, PiecesOfAMappingMergeInOneResult) {
    SoftDirtyPages out;
    const auto never = [](uint64_t) { return false; };
    add_soft_dirty(base, std::vector<uint64_t>{dirty, dirty}, false, false, never, out);
    add_soft_dirty(base + 2 * page, std::vector<uint64_t>{dirty, hole}, false, false, never, out);
    EXPECT_EQ(out.written, pages({0, 1, 2}));
    EXPECT_EQ(out.written.size(), 1u);
}

TEST(SoftDirty, KernelWithoutTheBitsIsRefusedByName) {
    const auto available = SoftDirtyTracker::available();
    ASSERT_TRUE(available) << available.error().what;
    const auto made = make_tracker(::getpid(), TrackerBackend::soft_dirty);
    ASSERT_EQ(made.has_value(), *available);
    if (!made) {
        EXPECT_NE(made.error().what.find("CONFIG_MEM_SOFT_DIRTY"), std::string::npos);
        EXPECT_EQ(made.error().code, ExitCode::unsupported);
    }
}

TEST(PageSets, ClipCutsAtBothEnds) {
    const Ranges set{{0, 10}, {20, 30}, {40, 50}};
    EXPECT_EQ(clip(set, 5, 45), (Ranges{{5, 10}, {20, 30}, {40, 45}}));
    EXPECT_EQ(clip(set, 10, 20), Ranges{});
    EXPECT_EQ(clip(set, 25, 26), (Ranges{{25, 26}}));
}

TEST(PageSets, SubtractLeavesWhatTheOtherHasNot) {
    EXPECT_EQ(subtract({{0, 100}}, {{0, 10}, {20, 30}, {90, 100}}), (Ranges{{10, 20}, {30, 90}}));
    EXPECT_EQ(subtract({{0, 10}, {20, 30}}, {{5, 25}}), (Ranges{{0, 5}, {25, 30}}));
    EXPECT_EQ(subtract({{0, 10}}, {}), (Ranges{{0, 10}}));
    EXPECT_EQ(subtract({{0, 10}}, {{0, 10}}), Ranges{});
    EXPECT_EQ(subtract({{10, 20}, {20, 40}}, {{0, 15}, {35, 50}}), (Ranges{{15, 35}}));
}

TEST(PageSets, IntersectLeavesWhatBothHave) {
    EXPECT_EQ(intersect({{0, 10}, {20, 40}}, {{5, 25}, {30, 50}}), (Ranges{{5, 10}, {20, 25}, {30, 40}}));
    EXPECT_EQ(intersect({{0, 10}}, {{10, 20}}), Ranges{});
}

TEST(PageSets, UniteMerges) {
    EXPECT_EQ(unite({{0, 10}, {30, 40}}, {{5, 20}, {20, 30}, {50, 60}}), (Ranges{{0, 40}, {50, 60}}));
    EXPECT_EQ(unite({}, {{1, 2}}), (Ranges{{1, 2}}));
}

TEST(TrackedMappings, AHoleInTheMiddleOfAMappingLeavesTwo) {
    Vma vma;
    vma.start = 0x1000;
    vma.end = 0x9000;
    vma.inode = 7;
    vma.offset = 0x4000;
    const auto rest = without({vma}, 0x3000, 0x5000);
    ASSERT_EQ(rest.size(), 2u);
    EXPECT_EQ(rest[0].end, 0x3000u);
    EXPECT_EQ(rest[1].start, 0x5000u);
    EXPECT_EQ(rest[1].offset, 0x8000u);
    EXPECT_EQ(without({vma}, 0x9000, 0xa000).size(), 1u);
    EXPECT_EQ(without({vma}, 0x1000, 0x9000).size(), 0u);
}

}  // namespace
}  // namespace godwit
