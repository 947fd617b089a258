// Shared memory at the source: found once, told by offset, whoever writes it and how.
#include "source-agent/collect/shared_objects.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include <cstring>

#include "source-agent/collect/layout.h"
#include "tests/support/tracked_victim.h"

namespace godwit {
namespace {

using tracked::all;
using tracked::page;
using tracked::Pages;

class SharedObjectsTest : public tracked::WpAsync {
  protected:
    // A memfd of so many pages in the victim, all written; returns its number there.
    int memfd(uint64_t pages, const char* name = "object") {
        const uint64_t text = victim_.map(page);
        for (size_t i = 0; i <= std::strlen(name); ++i) victim_.poke(text + i, name[i]);
        const int fd = static_cast<int>(victim_.call(SYS_memfd_create, text, MFD_ALLOW_SEALING));
        victim_.call(SYS_ftruncate, fd, pages * page);
        for (uint64_t i = 0; i < pages; ++i) pwrite(fd, i * page, static_cast<char>('a' + i));
        return fd;
    }
    // One byte, by write(2).
    void pwrite(int fd, uint64_t at, char value) {
        if (buffer_ == 0) buffer_ = victim_.map(page);
        victim_.poke(buffer_, value);
        EXPECT_EQ(victim_.call(SYS_pwrite64, fd, buffer_, 1, at), 1u);
    }
    uint64_t map_object(int fd, uint64_t pages, int protection = PROT_READ | PROT_WRITE) {
        return victim_.map(pages * page, protection, MAP_SHARED, 0, fd);
    }
    void punch(int fd, uint64_t from, uint64_t pages) {
        victim_.call(SYS_fallocate, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from * page, pages * page);
    }

    void start_rounds() {
        auto reader = LayoutReader::make(victim_.pid(), victim_.pid(), {}, options_);
        ASSERT_TRUE(reader) << reader.error().what;
        reader_ = std::make_unique<LayoutReader>(std::move(*reader));
        const auto started = tracked::start(*tracker_, victim_.pid());
        ASSERT_TRUE(started) << started.error().what;
        reader_->tracked();
    }
    // One round: a look, and all that it found is sent.
    void round() {
        objects_.begin_look();
        auto layout = reader_->read_running();
        ASSERT_TRUE(layout) << layout.error().what;
        ASSERT_TRUE(objects_.find(victim_.pid(), *layout));
        ASSERT_TRUE(tracker_->refresh(reader_->mappings()));
        auto changes = tracker_->collect();
        ASSERT_TRUE(changes) << changes.error().what;
        objects_.changed(before_, *layout, *changes);
        before_ = *layout;
        const auto looked = objects_.end_look();
        ASSERT_TRUE(looked) << looked.error().what;
        layout_ = image::Layout();
        objects_.tell(layout_);
        jobs_ = objects_.jobs(true);
        for (const PageJob& job : jobs_)
            for (const ByteRange& range : job.ranges) {
                std::vector<std::byte> content(range.end - range.start);
                ASSERT_TRUE(job.source->read({&range, 1}, content.data()));
                for (uint64_t at = range.start; at < range.end; at += page)
                    there_[job.object][at / page] = static_cast<char>(content[at - range.start]);
            }
        objects_.sent();
    }
    // Times are stamped by ticks: a stamp of the last 20 ms before a look may hide another change.
    static void let_stamps_age() {
        timespec now{}, later{};
        ::clock_gettime(CLOCK_REALTIME, &now);
        do ::clock_gettime(CLOCK_REALTIME, &later);
        while ((later.tv_sec - now.tv_sec) * 1'000'000'000 + later.tv_nsec - now.tv_nsec < 25'000'000);
    }
    Pages sent(uint64_t id) const {
        Pages out;
        for (const PageJob& job : jobs_)
            if (job.object == id) out.merge(tracked::pages_in(job.ranges, 0, uint64_t{1} << 40));
        return out;
    }
    const image::SharedObject* told(const std::string& name) const {
        for (const image::SharedObject& object : layout_.objects())
            if (object.name() == name) return &object;
        return nullptr;
    }

    uint64_t buffer_ = 0;
    CollectOptions options_;
    std::unique_ptr<LayoutReader> reader_;
    SharedObjects objects_;
    image::Layout layout_;  // as told last
    image::Layout before_;
    std::vector<PageJob> jobs_;
    std::map<uint64_t, std::map<uint64_t, char>>
        there_;  // what the destination would have: object, page, its first byte
};

TEST_F(SharedObjectsTest, AMemfdThatIsOnlyHeldIsTold) {
    const int fd = memfd(3, "held");
    victim_.call(SYS_ftruncate, fd, 2 * page + 10);
    victim_.call(SYS_fchmod, fd, 0640);
    victim_.call(SYS_fcntl, fd, F_ADD_SEALS, F_SEAL_GROW);
    start_rounds();
    round();
    const image::SharedObject* object = told("held");
    ASSERT_NE(object, nullptr);
    EXPECT_EQ(object->kind(), image::OBJECT_MEMFD);
    EXPECT_EQ(object->size(), 2 * page + 10);
    EXPECT_EQ(object->mode(), 0640u);
    EXPECT_EQ(object->seals(), static_cast<uint32_t>(F_SEAL_GROW));
    EXPECT_EQ(sent(object->id()), all(3)) << "the last page is half there";
}

TEST_F(SharedObjectsTest, MappingsAndDescriptorsOfOneMemfdAreOneObject) {
    const int fd = memfd(8, "one");
    map_object(fd, 8);
    map_object(fd, 4, PROT_READ);
    start_rounds();
    round();
    ASSERT_NE(told("one"), nullptr);
    const uint64_t id = told("one")->id();
    EXPECT_EQ(std::count_if(layout_.objects().begin(), layout_.objects().end(),
                            [&](const auto& o) { return o.name() == "one"; }),
              1);
    EXPECT_EQ(sent(id), all(8));
}

TEST_F(SharedObjectsTest, WhatWasWrittenAndLeftThePageTablesIsTold) {
    const uint64_t at = victim_.map(8 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
    victim_.write(at, all(8));
    victim_.call(SYS_madvise, at + 6 * page, 2 * page, MADV_DONTNEED);  // in the object, in no page table
    start_rounds();
    round();
    ASSERT_EQ(jobs_.size(), 1u);
    const uint64_t id = jobs_[0].object;
    EXPECT_EQ(sent(id), all(8));
    for (const uint64_t index : {1, 6}) victim_.poke(at + index * page, 9);
    victim_.call(SYS_madvise, at, 8 * page, MADV_DONTNEED);
    round();
    EXPECT_EQ(sent(id), (Pages{1, 6}));
    EXPECT_EQ(there_[id][1], 9);
    EXPECT_EQ(there_[id][6], 9);
    round();
    EXPECT_EQ(sent(id), Pages{});
}

TEST_F(SharedObjectsTest, WhatWasWrittenThroughAMappingThatIsGoneIsTold) {
    const uint64_t at = victim_.map(8 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
    victim_.write(at, all(8));
    const uint64_t twin = victim_.call(SYS_mremap, at, 0, 4 * page, MREMAP_MAYMOVE);
    start_rounds();
    round();
    const uint64_t id = jobs_[0].object;
    victim_.poke(twin + 3 * page, 9);
    victim_.call(SYS_munmap, twin, 4 * page);
    round();
    EXPECT_TRUE(sent(id).contains(3));
    EXPECT_EQ(there_[id][3], 9);
}

TEST_F(SharedObjectsTest, WhatWasRemovedAndReadAgainIsToldAsZero) {
    const uint64_t at = victim_.map(8 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
    victim_.write(at, all(8));
    start_rounds();
    round();
    ASSERT_EQ(jobs_.size(), 1u);
    const uint64_t id = jobs_[0].object;
    EXPECT_EQ(sent(id), all(8));
    let_stamps_age();
    round();
    victim_.call(SYS_madvise, at + 2 * page, 2 * page, MADV_REMOVE);
    EXPECT_EQ(victim_.read(at + 2 * page), 0u);  // there again, and to the page tables as before
    round();
    EXPECT_EQ(there_[id][2], 0);
    EXPECT_TRUE(sent(id).contains(2));
    const auto& dropped = layout_.objects(0).dropped();
    ASSERT_EQ(dropped.size(), 1);
    EXPECT_EQ(dropped[0].start(), 3 * page);
    // Known from now on.
    round();
    EXPECT_FALSE(sent(id).contains(2));
    victim_.write(at, {2});
    round();
    EXPECT_EQ(there_[id][2], 1);
}

TEST_F(SharedObjectsTest, PagesOfAnonymousMemoryThatAreNotMappedAnyMoreAreTold) {
    const uint64_t at = victim_.map(8 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
    victim_.write(at, all(8));
    victim_.call(SYS_munmap, at, 4 * page);
    start_rounds();
    round();
    uint64_t id = 0;
    for (const auto& object : layout_.objects())
        if (object.kind() == image::OBJECT_ANONYMOUS && object.size() == 8 * page) id = object.id();
    EXPECT_EQ(sent(id), all(8));
    victim_.poke(at + 5 * page, 7);
    round();
    EXPECT_EQ(sent(id), Pages{5}) << "by offset";
}

TEST_F(SharedObjectsTest, WhatIsWrittenThroughAMappingIsToldAlone) {
    const int fd = memfd(8, "mapped");
    const uint64_t at = map_object(fd, 8);
    victim_.call(SYS_close, fd);
    start_rounds();
    let_stamps_age();
    round();
    const uint64_t id = told("mapped")->id();
    round();
    EXPECT_EQ(sent(id), Pages{});
    victim_.write(at, {2, 6});
    round();
    EXPECT_EQ(sent(id), (Pages{2, 6}));
}

TEST_F(SharedObjectsTest, WhatWriteChangesIsFoundByComparing) {
    const int fd = memfd(8, "held");
    start_rounds();
    let_stamps_age();
    round();
    const uint64_t id = told("held")->id();
    EXPECT_EQ(sent(id), all(8));
    pwrite(fd, 3 * page + 100, 'x');
    round();
    EXPECT_EQ(sent(id), Pages{3});
    let_stamps_age();
    round();
    EXPECT_EQ(sent(id), Pages{});
    round();
    EXPECT_EQ(sent(id), Pages{});
}

TEST_F(SharedObjectsTest, WriteAndMappingsOfOneMemfdAreToldTogether) {
    const int fd = memfd(8, "mapped");
    const uint64_t at = map_object(fd, 8);
    start_rounds();
    let_stamps_age();
    round();
    const uint64_t id = told("mapped")->id();
    pwrite(fd, 3 * page, 'x');
    victim_.poke(at + 6 * page, 'y');
    round();
    EXPECT_EQ(sent(id), (Pages{3, 6}));
    pwrite(fd, 6 * page, 'z');
    round();
    EXPECT_EQ(sent(id), Pages{6});
    EXPECT_EQ(there_[id][6], 'z');
}

// Compared is what was sent, not what was there at some look.
TEST_F(SharedObjectsTest, AChangeThatIsTakenBackAfterItWasSentIsToldAgain) {
    const int fd = memfd(4, "held");
    start_rounds();
    round();
    const uint64_t id = told("held")->id();
    pwrite(fd, page, 'x');
    round();
    EXPECT_EQ(there_[id][1], 'x');
    pwrite(fd, page, 'b');
    round();
    EXPECT_EQ(sent(id), Pages{1});
    EXPECT_EQ(there_[id][1], 'b');
}

TEST_F(SharedObjectsTest, HolesAndCutsAreToldAsDropped) {
    const int fd = memfd(10, "held");
    map_object(fd, 10);
    start_rounds();
    round();
    const uint64_t id = told("held")->id();
    punch(fd, 2, 3);
    round();
    ASSERT_EQ(told("held")->dropped_size(), 1);
    EXPECT_EQ(told("held")->dropped(0).start(), 2 * page);
    EXPECT_EQ(told("held")->dropped(0).length(), 3 * page);
    round();
    EXPECT_EQ(told("held")->dropped_size(), 0);
    pwrite(fd, 3 * page, 'n');
    victim_.call(SYS_ftruncate, fd, 6 * page);
    round();
    EXPECT_EQ(told("held")->size(), 6 * page);
    EXPECT_EQ(told("held")->dropped_size(), 0) << "ftruncate does it";
    EXPECT_TRUE(sent(id).contains(3));
    victim_.call(SYS_ftruncate, fd, 12 * page);
    pwrite(fd, 11 * page, 'z');
    round();
    EXPECT_EQ(told("held")->size(), 12 * page);
    EXPECT_TRUE(sent(id).contains(11));
    EXPECT_FALSE(sent(id).contains(8));
}

// Between two looks nothing shows of it but the ctime.
TEST_F(SharedObjectsTest, WhatWasCutAndGrownAgainIsDropped) {
    const int fd = memfd(4, "held");
    start_rounds();
    round();
    victim_.call(SYS_ftruncate, fd, page);
    victim_.call(SYS_ftruncate, fd, 4 * page);
    round();
    ASSERT_EQ(told("held")->dropped_size(), 1);
    EXPECT_EQ(told("held")->dropped(0).length(), 3 * page);
    EXPECT_EQ(sent(told("held")->id()), Pages{}) << "the first page is as it was";
}

TEST_F(SharedObjectsTest, AnObjectThatIsLetGoIsToldNoMore) {
    const int fd = memfd(2, "short");
    start_rounds();
    round();
    ASSERT_NE(told("short"), nullptr);
    victim_.call(SYS_close, fd);
    round();
    EXPECT_EQ(told("short"), nullptr);
    EXPECT_EQ(objects_.pending_bytes(), 0u);
}

// The mapping moved while the list was read, and no layout without it was sent: the destination has the object still.
TEST_F(SharedObjectsTest, AnObjectThatALookMissesIsTheSameOne) {
    const int fd = memfd(4, "missed");
    map_object(fd, 4);
    start_rounds();
    round();
    const uint64_t id = told("missed")->id();
    let_stamps_age();
    pwrite(fd, 2 * page, 0);
    objects_.begin_look();
    ASSERT_TRUE(objects_.end_look());
    EXPECT_EQ(objects_.pending_bytes(), 0u);
    round();
    EXPECT_EQ(sent(id), Pages{2});
    ASSERT_EQ(jobs_.size(), 1u);
    EXPECT_FALSE(jobs_[0].zeros_there) << "the destination would keep what was there before the zeros";
}

TEST_F(SharedObjectsTest, LookingChangesNeitherPositionNorTimes) {
    const int fd = memfd(2, "held");
    victim_.call(SYS_lseek, fd, 123, SEEK_SET);
    const auto look = [&] {
        struct stat info {};
        EXPECT_EQ(::stat(fmt::format("/proc/{}/fd/{}", victim_.pid(), fd).c_str(), &info), 0);
        return std::pair(info.st_atim.tv_sec * 1'000'000'000 + info.st_atim.tv_nsec,
                         info.st_ctim.tv_sec * 1'000'000'000 + info.st_ctim.tv_nsec);
    };
    const auto before = look();
    start_rounds();
    let_stamps_age();
    round();
    round();
    EXPECT_EQ(victim_.call(SYS_lseek, fd, 0, SEEK_CUR), 123u);
    EXPECT_EQ(look(), before);
}

// Opened, written and closed between two looks, by its name.
TEST_F(SharedObjectsTest, AFileIsComparedThoughNobodyHoldsItOpen) {
    const std::string path = fmt::format("/dev/shm/godwit-test-{}", ::getpid());
    const Undo remove([&] { ::unlink(path.c_str()); });
    const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_EQ(::pwrite(fd.get(), "x", 1, 3 * page), 1);
    struct stat info {};
    ASSERT_EQ(::fstat(fd.get(), &info), 0);
    options_.moving_files.insert(shared_object_id(info.st_dev, info.st_ino));
    const uint64_t text = victim_.map(page);
    for (size_t i = 0; i <= path.size(); ++i) victim_.poke(text + i, path.c_str()[i]);
    const int theirs = static_cast<int>(victim_.call(SYS_openat, AT_FDCWD, text, O_RDWR));
    map_object(theirs, 4);
    victim_.call(SYS_close, theirs);
    start_rounds();
    let_stamps_age();
    round();
    ASSERT_NE(told(path), nullptr);
    EXPECT_EQ(told(path)->kind(), image::OBJECT_TMPFS);
    EXPECT_EQ(sent(told(path)->id()), Pages{3});
    ASSERT_EQ(::pwrite(fd.get(), "y", 1, 3 * page + 7), 1);
    round();
    EXPECT_EQ(sent(told(path)->id()), Pages{3});
    EXPECT_EQ(objects_.files().count(path), 1u);
}

TEST(ObjectPages, WhatIsBehindTheEndIsZeroInTheLastPageAndGoneBeyondIt) {
    const UniqueFd fd(static_cast<int>(::syscall(SYS_memfd_create, "object", 0)));
    ASSERT_EQ(::pwrite(fd.get(), "end", 3, page), 3);
    const ObjectPages pages(fd.get(), "object");
    std::vector<char> content(2 * page, 'x');
    const ByteRange both{0, 2 * page}, beyond{2 * page, 3 * page};
    ASSERT_TRUE(pages.read({&both, 1}, reinterpret_cast<std::byte*>(content.data())));
    EXPECT_EQ(std::string(&content[page], 4), std::string("end\0", 4));
    EXPECT_EQ(content.back(), 0);
    const auto gone = pages.read({&beyond, 1}, reinterpret_cast<std::byte*>(content.data()));
    ASSERT_FALSE(gone);
    EXPECT_EQ(gone.error().error, EFAULT);
}

TEST(ObjectPages, OnlyWhatWasReadSinceItRemembersIsTheSame) {
    const UniqueFd fd(static_cast<int>(::syscall(SYS_memfd_create, "object", 0)));
    ASSERT_EQ(::ftruncate(fd.get(), 2000 * page), 0);
    ObjectPages pages(fd.get(), "object");
    std::vector<std::byte> content(2000 * page);
    const ByteRange everything{0, 2000 * page}, some{100 * page, 1500 * page};
    ASSERT_TRUE(pages.read({&everything, 1}, content.data()));
    pages.remember();
    ASSERT_TRUE(pages.read({&some, 1}, content.data()));
    ASSERT_EQ(::pwrite(fd.get(), "x", 1, 700 * page + 9), 1);
    const auto differing = pages.differing({everything});
    ASSERT_TRUE(differing);
    Pages expected = all(100);
    expected.insert(700);
    expected.merge(all(500, 1500));
    EXPECT_EQ(tracked::pages_in(*differing, 0, everything.end), expected);
}

}  // namespace
}  // namespace godwit
