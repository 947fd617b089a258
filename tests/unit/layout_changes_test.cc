// The difference of two layouts is what both agents act upon: exact, and in their own words the same.
#include "common/image/layout_changes.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <string>

#include <fmt/format.h>

namespace godwit {
namespace {

constexpr uint64_t page = 4096;

image::MappingRange& add(image::Layout& layout, uint64_t first, uint64_t last, image::MappingKind kind = image::MAPPING_ANONYMOUS,
                         uint32_t protection = PROT_READ | PROT_WRITE) {
    image::MappingRange& range = *layout.add_mappings();
    range.set_start(first * page);
    range.set_end(last * page);
    range.set_kind(kind);
    range.set_protection(protection);
    return range;
}

image::MappingRange& add_of_file(image::Layout& layout, uint64_t first, uint64_t last, uint64_t offset, uint32_t file = 1) {
    image::MappingRange& range = add(layout, first, last, image::MAPPING_FILE_PRIVATE, PROT_READ);
    range.set_offset(offset * page);
    range.set_file(file);
    return range;
}

// "unmap 1-3 map 5-7 adjust 8-9", in pages.
std::string told(const image::Layout& have, const image::Layout& want) {
    const LayoutChanges changes = compare(have, want);
    std::string out;
    for (const auto& span : changes.unmap) out += fmt::format("unmap {}-{} ", span.start / page, span.end / page);
    for (const auto& part : changes.map) out += fmt::format("map {}-{} ", part.start / page, part.end / page);
    for (const auto& part : changes.adjust) out += fmt::format("adjust {}-{} ", part.start / page, part.end / page);
    return out;
}

TEST(LayoutChanges, SameLayoutsDifferInNothing) {
    image::Layout layout;
    add(layout, 1, 4);
    add_of_file(layout, 4, 8, 0);
    layout.add_files()->set_path("/a");
    EXPECT_EQ(told(layout, layout), "");
    EXPECT_TRUE(compare(layout, layout).empty());
    EXPECT_EQ(told({}, layout), "map 1-4 map 4-8 ");
    EXPECT_EQ(told(layout, {}), "unmap 1-8 ");
}

TEST(LayoutChanges, WhatGrewOrShrankKeepsTheRest) {
    image::Layout have, grown, shrunk;
    add(have, 4, 8);
    add(grown, 2, 10);
    add(shrunk, 5, 6);
    EXPECT_EQ(told(have, grown), "map 2-4 map 8-10 ");
    EXPECT_EQ(told(have, shrunk), "unmap 4-5 unmap 6-8 ");
}

TEST(LayoutChanges, SplitAndMergedMemoryStays) {
    image::Layout one, three;
    add(one, 1, 10);
    add(three, 1, 4);
    add(three, 4, 6, image::MAPPING_ANONYMOUS, PROT_NONE);
    add(three, 6, 10);
    EXPECT_EQ(told(one, three), "adjust 4-6 ");
    EXPECT_EQ(told(three, one), "adjust 4-6 ");
}

TEST(LayoutChanges, AnotherFileOrOffsetIsMappedAnew) {
    image::Layout have;
    add_of_file(have, 1, 5, 0);
    have.add_files()->set_path("/a");
    image::Layout want = have;
    want.mutable_files(0)->set_path("/b");
    EXPECT_EQ(told(have, want), "unmap 1-5 map 1-5 ");
    want = have;
    want.mutable_mappings(0)->set_offset(page);
    EXPECT_EQ(told(have, want), "unmap 1-5 map 1-5 ");
    // The tail of a mapping is the same memory.
    want = have;
    want.mutable_mappings(0)->set_start(3 * page);
    want.mutable_mappings(0)->set_offset(2 * page);
    EXPECT_EQ(told(have, want), "unmap 1-3 ");
    // The same file by another number.
    want = have;
    want.mutable_files(0)->set_path("/b");
    want.add_files()->set_path("/a");
    want.mutable_mappings(0)->set_file(2);
    EXPECT_EQ(told(have, want), "");
}

TEST(LayoutChanges, AnotherKindIsMappedAnew) {
    image::Layout have, want;
    add(have, 1, 5);
    add(want, 1, 5, image::MAPPING_OBJECT_SHARED).set_shared_object(9);
    EXPECT_EQ(told(have, want), "unmap 1-5 map 1-5 ");
    image::Layout other = want;
    other.mutable_mappings(0)->set_shared_object(10);
    EXPECT_EQ(told(want, other), "unmap 1-5 map 1-5 ");
}

TEST(LayoutChanges, AdviceIsAdjustedButForHugePagesTakenBack) {
    image::Layout have, want;
    add(have, 1, 5).set_dont_fork(true);
    add(want, 1, 5);
    EXPECT_EQ(told(have, want), "adjust 1-5 ");
    want.mutable_mappings(0)->set_dont_fork(true);
    want.mutable_mappings(0)->set_name("arena");
    EXPECT_EQ(told(have, want), "adjust 1-5 ");
    have.mutable_mappings(0)->set_huge_page(true);
    EXPECT_EQ(told(have, want), "unmap 1-5 map 1-5 ");
    want.mutable_mappings(0)->set_no_huge_page(true);
    EXPECT_EQ(told(have, want), "adjust 1-5 ");
}

TEST(LayoutChanges, TheKernelsOwnAreLeftAlone) {
    image::Layout have, want;
    add(have, 1, 2);
    add(have, 6, 8, image::MAPPING_VVAR, PROT_READ);
    add(have, 8, 9, image::MAPPING_VDSO, PROT_READ | PROT_EXEC);
    want = have;
    EXPECT_TRUE(same_vdso(have, want));
    EXPECT_EQ(told({}, want), "map 1-2 ");
    want.mutable_mappings(2)->set_end(10 * page);
    EXPECT_FALSE(same_vdso(have, want));
    want.mutable_mappings()->RemoveLast();
    EXPECT_FALSE(same_vdso(have, want));
}

// Applying the difference to a model of memory gives what the later layout says, whatever the two are.
TEST(LayoutChanges, RandomLayoutsComeOutRight) {
    uint64_t state = 12345;
    const auto random = [&](uint64_t below) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (state >> 33) % below;
    };
    const auto make = [&] {
        image::Layout layout;
        layout.add_files()->set_path("/a");
        layout.add_files()->set_path("/b");
        for (uint64_t at = 1 + random(3); at < 40;) {
            const uint64_t end = at + 1 + random(6);
            if (random(3) == 0)
                add_of_file(layout, at, end, at + random(2), 1 + static_cast<uint32_t>(random(2)));
            else
                add(layout, at, end, image::MAPPING_ANONYMOUS, static_cast<uint32_t>(random(4))).set_no_reserve(random(4) == 0);
            at = end + random(3);
        }
        return layout;
    };
    const auto memory = [](const image::Layout& layout) {
        std::vector<std::string> pages(60);
        for (const auto& range : layout.mappings())
            for (uint64_t at = range.start(); at < range.end(); at += page)
                pages[at / page] = fmt::format("{} {} {} {} {}", static_cast<int>(range.kind()), range.protection(), range.no_reserve(), range.file(),
                                               range.file() != 0 ? range.offset() + at - range.start() : 0);
        return pages;
    };
    for (int turn = 0; turn < 2000; ++turn) {
        const image::Layout have = make(), want = make();
        std::vector<std::string> pages = memory(have);
        const std::vector<std::string> goal = memory(want);
        const LayoutChanges changes = compare(have, want);
        for (const auto& span : changes.unmap)
            for (uint64_t at = span.start; at < span.end; at += page) {
                ASSERT_FALSE(pages[at / page].empty());
                pages[at / page].clear();
            }
        for (const auto& part : changes.map)
            for (uint64_t at = part.start; at < part.end; at += page) {
                ASSERT_TRUE(pages[at / page].empty()) << "mapped over something";
                pages[at / page] = goal[at / page];
            }
        for (const auto& part : changes.adjust)
            for (uint64_t at = part.start; at < part.end; at += page) {
                ASSERT_FALSE(pages[at / page].empty());
                pages[at / page] = goal[at / page];
            }
        ASSERT_EQ(pages, goal);
    }
}

}  // namespace
}  // namespace godwit
