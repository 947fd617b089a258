// Which pages the tracker tells of must be exact, whatever the process does to its mappings.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/uio.h>

#include <vector>

#include "common/base/file.h"
#include "tests/support/tracked_victim.h"

namespace godwit::tracked {
namespace {

TEST_F(WpAsync, TellsExactlyThePagesWritten) {
    const uint64_t at = tracked(64);
    expect(at, 64, {});
    victim_.write(at, {0, 7, 8, 63});
    expect(at, 64, {0, 7, 8, 63});
    expect(at, 64, {});
    victim_.write(at, {8});
    expect(at, 64, {8});
}

TEST_F(WpAsync, ReadingIsNotWriting) {
    const uint64_t at = isolated(8);
    victim_.map(8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, at);
    victim_.write(at, {0});
    begin();
    victim_.read(at);
    victim_.read(at + 3 * page);  // the page of zeros
    expect(at, 8, {});
    victim_.write(at, {3});
    expect(at, 8, {3});
}

TEST_F(WpAsync, FirstWriteToAHoleIsTold) {
    const uint64_t at = isolated(16);
    victim_.map(16 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, at);
    begin();
    expect(at, 16, {});
    victim_.write(at, {5, 9});
    expect(at, 16, {5, 9});
    expect(at, 16, {});
}

TEST_F(WpAsync, NewMappingIsToldWhollyOnce) {
    begin();
    const uint64_t at = isolated(8);
    victim_.map(8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, at);
    victim_.write(at, {1, 2});
    expect(at, 8, {1, 2});
    expect(at, 8, {});
    victim_.write(at, {2, 4});
    expect(at, 8, {2, 4});
}

TEST_F(WpAsync, UnmappedAndMappedAnewAtTheSamePlace) {
    const uint64_t at = tracked(8);
    victim_.call(SYS_munmap, at, 8 * page);
    victim_.map(8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, at);
    victim_.write(at, {3});
    expect(at, 8, {3}, {0, 1, 2, 4, 5, 6, 7});
    victim_.write(at, {3, 4});
    expect(at, 8, {3, 4});
}

TEST_F(WpAsync, UnmappedIsNeitherWrittenNorDropped) {
    const uint64_t at = tracked(8);
    victim_.call(SYS_munmap, at + 2 * page, 2 * page);
    victim_.write(at, {1, 4});
    expect(at, 8, {1, 4});
}

TEST_F(WpAsync, MovedMappingIsToldWholly) {
    const uint64_t at = tracked(8);
    const uint64_t to = isolated(8);
    victim_.call(SYS_mremap, at, 8 * page, 8 * page, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    expect(to, 8, all(8));
    victim_.write(to, {6});
    expect(to, 8, {6});
    expect(at, 8, {});
}

TEST_F(WpAsync, MoveThatLeavesTheOldMappingDropsItsPages) {
    const uint64_t at = tracked(4);
    const uint64_t to = isolated(4);
    victim_.call(SYS_mremap, at, 4 * page, 4 * page, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to);
    const MemoryChanges changes = collect();
    EXPECT_EQ(pages_in(changes.written, to, 4 * page), all(4));
    EXPECT_EQ(pages_in(changes.written, at, 4 * page), Pages{});
    EXPECT_EQ(pages_in(changes.dropped, at, 4 * page), all(4));
    victim_.write(at, {2});
    expect(at, 4, {2});
}

TEST_F(WpAsync, GrownInPlaceTellsOnlyWhatWasWritten) {
    const uint64_t at = victim_.map(16 * page, PROT_NONE) + page;
    victim_.map(4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, at);
    victim_.call(SYS_munmap, at + 4 * page, 8 * page);
    victim_.write(at, all(4));
    begin();
    EXPECT_EQ(victim_.call(SYS_mremap, at, 4 * page, 8 * page, 0), at);
    victim_.write(at, {2, 6});
    expect(at, 8, {2, 6});
    victim_.write(at, {7});
    expect(at, 8, {7});
}

TEST_F(WpAsync, ShrunkAndGrownAgainLosesTheTail) {
    const uint64_t at = tracked(8);
    victim_.call(SYS_mremap, at, 8 * page, 4 * page, 0);
    victim_.call(SYS_mremap, at, 4 * page, 8 * page, 0);
    victim_.write(at, {5});
    expect(at, 8, {5}, {4, 6, 7});
}

TEST_F(WpAsync, ProtectionThereAndBack) {
    const uint64_t at = tracked(8);
    victim_.write(at, {1});
    victim_.call(SYS_mprotect, at + 2 * page, 4 * page, PROT_NONE);
    victim_.call(SYS_mprotect, at + 2 * page, 4 * page, PROT_READ | PROT_WRITE);
    victim_.write(at, {3});
    expect(at, 8, {1, 3});
    victim_.call(SYS_mprotect, at + 2 * page, 4 * page, PROT_READ);
    expect(at, 8, {});
    victim_.call(SYS_mprotect, at + 2 * page, 4 * page, PROT_READ | PROT_WRITE);
    victim_.write(at, {4});
    expect(at, 8, {4});
}

TEST_F(WpAsync, DontneedDrops) {
    const uint64_t at = tracked(8);
    victim_.write(at, {1, 2});
    victim_.call(SYS_madvise, at + 2 * page, 3 * page, MADV_DONTNEED);
    expect(at, 8, {1}, {2, 3, 4});
    victim_.read(at + 3 * page);  // still zeros
    victim_.write(at, {4});
    expect(at, 8, {4});
    victim_.call(SYS_madvise, at + 4 * page, page, MADV_DONTNEED);
    victim_.read(at + 4 * page);
    expect(at, 8, {}, {4});
}

TEST_F(WpAsync, FreeKeepsThePagesUntilTheyAreReclaimed) {
    const uint64_t at = tracked(8);
    victim_.call(SYS_madvise, at, 4 * page, MADV_FREE);
    victim_.write(at, {2});
    expect(at, 8, {2});
}

TEST_F(WpAsync, RemoveDropsSharedPages) {
    const uint64_t at = tracked(8, MAP_SHARED | MAP_ANONYMOUS);
    victim_.call(SYS_madvise, at + 2 * page, 2 * page, MADV_REMOVE);
    victim_.write(at, {3, 5});
    expect(at, 8, {3, 5}, {2});
    expect(at, 8, {});
}

TEST_F(WpAsync, DontneedOfASharedMappingDropsNothing) {
    const uint64_t at = tracked(8, MAP_SHARED | MAP_ANONYMOUS);
    victim_.call(SYS_madvise, at, 8 * page, MADV_DONTNEED);
    victim_.write(at, {4});
    expect(at, 8, {4});
    victim_.call(SYS_madvise, at, 2 * page, MADV_REMOVE);
    expect(at, 8, {}, {0, 1});
}

// The entry that was written is gone with its mark; only the object has the page.
TEST_F(WpAsync, SharedPageWrittenBeforeItLeavesThePageTableIsTold) {
    const uint64_t at = tracked(8, MAP_SHARED | MAP_ANONYMOUS);
    expect(at, 8, {});
    victim_.write(at, {3, 5});
    victim_.call(SYS_madvise, at + 3 * page, page, MADV_DONTNEED);
    expect(at, 8, {3, 5});
    expect(at, 8, {});
}

TEST_F(WpAsync, ObjectThatEndsWithinAPageIsToldInWholePages) {
    begin();
    const auto fd = static_cast<int>(victim_.call(SYS_memfd_create, victim_.map(page), 0));
    victim_.call(SYS_ftruncate, fd, 2 * page + 10);
    const uint64_t at = victim_.map(3 * page, PROT_READ | PROT_WRITE, MAP_SHARED, 0, fd);
    const uint64_t from = victim_.map(page);
    victim_.poke(from);
    victim_.call(SYS_pwrite64, fd, from, 1, 2 * page);
    for (const ByteRange& range : collect().written) EXPECT_EQ(range.end % page, 0u);
    expect(at, 3, {});
    victim_.write(at, {2});
    victim_.call(SYS_madvise, at, 3 * page, MADV_DONTNEED);
    for (const ByteRange& range : collect().written) EXPECT_EQ(range.end % page, 0u);
}

TEST_F(WpAsync, SharedMappingTellsWrites) {
    const uint64_t at = tracked(8, MAP_SHARED | MAP_ANONYMOUS);
    expect(at, 8, {});
    victim_.write(at, {0, 7});
    expect(at, 8, {0, 7});
    expect(at, 8, {});
}

TEST_F(WpAsync, NewSharedMappingTellsAllContentOfItsObject) {
    begin();
    const auto fd = static_cast<int>(victim_.call(SYS_memfd_create, victim_.map(page), 0));
    victim_.call(SYS_ftruncate, fd, 8 * page);
    const uint64_t from = victim_.map(page);
    victim_.poke(from);
    victim_.call(SYS_pwrite64, fd, from, 1, 3 * page);
    const uint64_t at = victim_.map(8 * page, PROT_READ | PROT_WRITE, MAP_SHARED, 0, fd);
    victim_.write(at, {6});
    expect(at, 8, {3, 6});
    expect(at, 8, {});
}

TEST_F(WpAsync, PrivateFilePagesAreToldWhenTheyAreChanged) {
    const auto fd = static_cast<int>(victim_.call(SYS_memfd_create, victim_.map(page), 0));
    victim_.call(SYS_ftruncate, fd, 8 * page);
    const uint64_t at = victim_.map(8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0, fd);
    victim_.write(at, {1});
    begin();
    victim_.read(at + 4 * page);
    expect(at, 8, {});
    victim_.write(at, {1, 5});
    expect(at, 8, {1, 5});
    victim_.call(SYS_madvise, at, 8 * page, MADV_DONTNEED);
    expect(at, 8, {}, {1, 5});
}

TEST_F(WpAsync, GuardPagesDropWhatTheyReplace) {
    const uint64_t at = tracked(8);
    constexpr int guard_install = 102, guard_remove = 103;  // Linux 6.13
    if (static_cast<int64_t>(victim_.ask({Command::call, SYS_madvise, {at + page, 2 * page, guard_install}})) == -EINVAL)
        GTEST_SKIP() << "no MADV_GUARD_INSTALL before Linux 6.13";
    victim_.write(at, {4, 5});
    expect(at, 8, {4, 5}, {1, 2});
    victim_.call(SYS_madvise, at + page, 2 * page, guard_remove);
    expect(at, 8, {});
    victim_.write(at, {2, 3});
    expect(at, 8, {2, 3});
}

TEST_F(WpAsync, SplitAndMergedMappings) {
    const uint64_t at = tracked(8);
    victim_.call(SYS_munmap, at + 3 * page, page);
    expect(at, 8, {});
    victim_.map(page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, at + 3 * page);
    victim_.write(at, {0, 3});
    expect(at, 8, {0, 3});  // three mappings, the middle one new
    victim_.write(at, {3, 7});
    expect(at, 8, {3, 7});
    victim_.call(SYS_mprotect, at + 6 * page, page, PROT_READ);
    expect(at, 8, {});
    victim_.call(SYS_mprotect, at + 6 * page, page, PROT_READ | PROT_WRITE);
    victim_.write(at, {6, 7});
    expect(at, 8, {6, 7});
}

TEST_F(WpAsync, SharedInsteadOfPrivateAtTheSamePlace) {
    const uint64_t at = tracked(4);
    victim_.map(4 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, at);
    victim_.write(at, {2, 3});
    expect(at, 4, {2, 3}, {0, 1});
    expect(at, 4, {});
}

TEST_F(WpAsync, ListOlderThanTheMappingsLosesNothing) {
    const uint64_t at = tracked(8);
    const auto stale = read_maps(victim_.pid()).value();
    const auto name = victim_.map(page);
    victim_.poke(name, 'x');
    const auto fd = static_cast<int>(victim_.call(SYS_memfd_create, name, MFD_ALLOW_SEALING));
    victim_.call(SYS_ftruncate, fd, 4 * page);
    victim_.call(SYS_fcntl, fd, F_ADD_SEALS, F_SEAL_WRITE);
    victim_.write(at, {1, 2, 5});
    victim_.map(4 * page, PROT_READ, MAP_SHARED | MAP_FIXED, at + 4 * page, fd);  // cannot ever be written
    ASSERT_TRUE(tracker_->refresh(stale));
    const auto first = tracker_->collect();
    ASSERT_TRUE(first) << first.error().what;
    Pages written = pages_in(first->written, at, 4 * page);
    EXPECT_TRUE(written.contains(1) && written.contains(2));
    victim_.write(at, {3});
    written = told(at, 4).written;
    EXPECT_EQ(written, Pages{3});
    expect(at, 4, {});
}

TEST_F(WpAsync, HeapGrowth) {
    const uint64_t end = (victim_.call(SYS_brk, 0) + page - 1) & ~(page - 1);
    EXPECT_EQ(victim_.call(SYS_brk, end + 2 * page), end + 2 * page);
    victim_.write(end, all(2));
    begin();
    EXPECT_EQ(victim_.call(SYS_brk, end + 6 * page), end + 6 * page);
    victim_.write(end, {1, 3});
    expect(end, 6, {1, 3});
    victim_.write(end, {3, 5});
    expect(end, 6, {3, 5});
    EXPECT_EQ(victim_.call(SYS_brk, end + 4 * page), end + 4 * page);
    expect(end, 4, {});
}

TEST_F(WpAsync, StackGrowth) {
    begin();
    const uint64_t low = victim_.ask({Command::write_at_stack, 0, {1u << 20}});
    const MemoryChanges changes = collect();
    EXPECT_EQ(pages_in(changes.written, low, 16 * page), Pages{0});
    EXPECT_EQ(pages_in(collect().written, low, 16 * page), Pages{});
}

TEST_F(WpAsync, ParentAndChildAfterFork) {
    const uint64_t at = tracked(8);
    victim_.ask({Command::fork_and_write, 0, {at + 2 * page}});  // the child's write is not the parent's
    expect(at, 8, {});
    victim_.write(at, {2, 3});
    expect(at, 8, {2, 3});
}

TEST_F(WpAsync, ExecIsTold) {
    tracked(8);
    victim_.send({Command::execute, 0, {}});
    char byte = 0;
    EXPECT_EQ(::recv(victim_.socket(), &byte, 1, 0), 0);  // close-on-exec: it is another program now
    const auto changes = tracker_->collect();
    ASSERT_FALSE(changes);
    EXPECT_EQ(changes.error().error, ESRCH);
    const auto refreshed = tracker_->refresh(read_maps(victim_.pid()).value());
    ASSERT_FALSE(refreshed);
    EXPECT_EQ(refreshed.error().error, ESRCH);
    auto again = make_tracker(victim_.pid()).value();
    EXPECT_TRUE(start(*again, victim_.pid()));
    EXPECT_TRUE(again->collect());
}

TEST_F(WpAsync, ExitIsTold) {
    tracked(8);
    ::kill(victim_.pid(), SIGKILL);
    siginfo_t info;
    EXPECT_EQ(::waitid(P_PID, static_cast<id_t>(victim_.pid()), &info, WEXITED | WNOWAIT), 0);
    const auto changes = tracker_->collect();
    ASSERT_FALSE(changes);
    EXPECT_EQ(changes.error().error, ESRCH);
}

TEST_F(WpAsync, HugePageIsToldByItsSmallPages) {
    const uint64_t at = (victim_.map(3 * huge) + huge - 1) & ~(huge - 1);
    victim_.call(SYS_madvise, at, huge, MADV_HUGEPAGE);
    victim_.poke(at);
    begin();
    expect(at, 512, {});
    victim_.poke(at + 100 * page);
    const Told found = told(at, 512);
    EXPECT_TRUE(found.written.contains(100));
    EXPECT_EQ(found.dropped, Pages{});
    victim_.poke(at + 200 * page);
    expect(at, 512, {200});
    victim_.call(SYS_madvise, at, huge, MADV_DONTNEED);
    expect(at, 512, {}, all(512));
}

// Blocks that are populated throughout are scanned in another way than the rest.
TEST_F(WpAsync, LargePopulatedMapping) {
    const uint64_t at = ((isolated(5 * 512) + huge - 1) & ~(huge - 1)) - page;
    constexpr uint64_t count = 3 * 512 + 2;  // one page, three blocks, one page
    victim_.map(count * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_POPULATE, at);
    victim_.call(SYS_madvise, at, count * page, MADV_NOHUGEPAGE);
    begin();
    expect(at, count, {});
    victim_.write(at, {0, 1, 700, 701, count - 1});
    expect(at, count, {0, 1, 700, 701, count - 1});
    victim_.call(SYS_madvise, at + 600 * page, 2 * page, MADV_DONTNEED);
    victim_.write(at, {601, 602});
    expect(at, count, {601, 602}, {600});
    victim_.write(at, {600});
    expect(at, count, {600});
    // A block without a page table: emptied, moved away, mapped anew.
    victim_.call(SYS_madvise, at + page, huge, MADV_DONTNEED);
    victim_.write(at, {514});
    expect(at, count, {514}, all(512, 1));
    victim_.write(at, {5});
    expect(at, count, {5});
    expect(at, count, {});
}

TEST_F(WpAsync, HugePageThatGoesIsDropped) {
    const uint64_t at = (victim_.map(4 * huge) + huge - 1) & ~(huge - 1);
    victim_.call(SYS_madvise, at, 2 * huge, MADV_HUGEPAGE);
    victim_.poke(at);
    victim_.poke(at + huge);
    begin();
    expect(at, 1024, {});
    victim_.call(SYS_madvise, at + huge, huge, MADV_DONTNEED);
    victim_.read(at + huge);  // zeros, huge or small
    const Told found = told(at, 1024);
    if (found.dropped.empty())
        EXPECT_EQ(found.written, all(512, 512));  // the huge page of zeros is told as content where the kernel does not tell it apart
    else
        EXPECT_EQ(found.dropped, all(512, 512));
    victim_.poke(at + huge + 3 * page);
    EXPECT_TRUE(told(at, 1024).written.contains(515));
}

TEST_F(WpAsync, CopyKeptByRoundsOfARunningProcessIsExact) {
    constexpr uint64_t count = 4 * 512;
    const uint64_t at = victim_.map(count * page);
    victim_.call(SYS_madvise, at, count * page, MADV_NOHUGEPAGE);
    victim_.write(at, all(count));
    begin();
    const auto memory = ProcessMemory::open(victim_.pid()).value();
    std::vector<uint64_t> copy(count);
    const auto word = [&](uint64_t index) {
        uint64_t value = 0;
        EXPECT_TRUE(memory.read(RemotePtr(at + index * page), &value, sizeof value));
        return value;
    };
    const auto round = [&] {
        const Told found = told(at, count);
        for (const uint64_t index : found.dropped) copy[index] = 0;
        for (const uint64_t index : found.written) copy[index] = word(index);
    };
    for (uint64_t i = 0; i < count; ++i) copy[i] = word(i);
    victim_.send({Command::churn, 0, {at, count}});
    for (int i = 0; i < 100; ++i) round();
    victim_.send({Command::read_byte, 0, {at}});
    EXPECT_GT(victim_.answer(), 0u);
    victim_.answer();
    round();
    for (uint64_t i = 0; i < count; ++i) ASSERT_EQ(copy[i], word(i)) << "page " << i;
}

TEST_F(WpAsync, KernelWritesAreTold) {
    const uint64_t at = tracked(8);
    const uint64_t zeros = victim_.map(page);
    victim_.poke(zeros, 'z');
    const auto fd = static_cast<int>(victim_.call(SYS_memfd_create, zeros, 0));
    victim_.call(SYS_pwrite64, fd, zeros, page, 0);
    EXPECT_EQ(victim_.call(SYS_pread64, fd, at + 3 * page, 10, 0), 10u);
    expect(at, 8, {3});
    EXPECT_EQ(victim_.read(at + 3 * page), static_cast<uint64_t>('z'));
}

TEST_F(WpAsync, WritesFromOutsideAreTold) {
    const uint64_t at = tracked(8);
    char bytes[] = "outside";
    const iovec ours{bytes, sizeof bytes};
    const iovec theirs{reinterpret_cast<void*>(at + 5 * page), sizeof bytes};
    EXPECT_EQ(::process_vm_writev(victim_.pid(), &ours, 1, &theirs, 1, 0), static_cast<ssize_t>(sizeof bytes));
    expect(at, 8, {5});
    const auto memory = ProcessMemory::open(victim_.pid()).value();
    EXPECT_TRUE(memory.write(RemotePtr(at + 6 * page), bytes, sizeof bytes));
    expect(at, 8, {6});
}

}  // namespace
}  // namespace godwit::tracked
