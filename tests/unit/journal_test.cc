#include "common/recovery/journal.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "common/base/file.h"
#include "common/base/uuid.h"

namespace godwit {
namespace {

class JournalTest : public testing::Test {
  protected:
    JournalTest() {
        char name[] = "/tmp/godwit-journal-XXXXXX";
        dir_ = ::mkdtemp(name);
        id_ = new_uuid().value();
    }
    ~JournalTest() override { std::filesystem::remove_all(dir_); }

    JournalEntry entry() const {
        JournalEntry made;
        made.migration_id = id_;
        made.state = "preparing";
        made.hold_cgroup = "/c/godwit-x-source";
        made.home_cgroup = "/c";
        made.processes = {{7, 1234567890123, "/c/a b"}};
        made.peer = {"[::1]:7467", "tls", "/etc/godwit"};
        made.peer_state_id = "peer";
        return made;
    }
    size_t files() const {
        size_t count = 0;
        for ([[maybe_unused]] const auto& each : std::filesystem::directory_iterator(dir_)) ++count;
        return count;
    }

    std::string dir_;
    std::string id_;
};

TEST_F(JournalTest, WhatWasWrittenIsReadByTheNext) {
    {
        auto journal = Journal::create(dir_, entry());
        ASSERT_TRUE(journal) << journal.error().what;
        ASSERT_TRUE(journal->write("committed"));
    }
    auto journal = Journal::open(dir_, id_, JournalRole::source);
    ASSERT_TRUE(journal) << journal.error().what;
    const JournalEntry& got = journal->entry();
    EXPECT_EQ(got.state, "committed");
    EXPECT_EQ(got.boot_id, current_boot_id().value());
    EXPECT_TRUE(journal->same_boot());
    ASSERT_EQ(got.processes.size(), 1u);
    EXPECT_EQ(got.processes[0].start_time, 1234567890123u);
    EXPECT_EQ(got.processes[0].cgroup, "/c/a b");
    EXPECT_EQ(got.peer.address, "[::1]:7467");
    EXPECT_EQ(got.peer_state_id, "peer");
    EXPECT_GT(got.written_at, 1'600'000'000);
}

TEST_F(JournalTest, ALivingAgentIsToldFromADeadOne) {
    int ready[2];
    ASSERT_EQ(::pipe(ready), 0);
    const pid_t agent = ::fork();
    if (agent == 0) {
        const auto journal = Journal::create(dir_, entry());
        (void)::write(ready[1], journal ? "y" : "n", 1);
        ::pause();
        ::_exit(0);
    }
    char said = 0;
    ASSERT_EQ(::read(ready[0], &said, 1), 1);
    ASSERT_EQ(said, 'y');
    const auto held = Journal::open(dir_, id_, JournalRole::source);
    ASSERT_FALSE(held);
    EXPECT_EQ(held.error().error, EWOULDBLOCK);
    ::kill(agent, SIGKILL);
    ::waitpid(agent, nullptr, 0);
    EXPECT_TRUE(Journal::open(dir_, id_, JournalRole::source));
    ::close(ready[0]);
    ::close(ready[1]);
}

TEST_F(JournalTest, AMigrationBeginsOnce) {
    ASSERT_TRUE(Journal::create(dir_, entry()));
    const auto again = Journal::create(dir_, entry());
    ASSERT_FALSE(again);
    EXPECT_NE(again.error().what.find(id_), std::string::npos);
    JournalEntry other = entry();
    other.role = JournalRole::destination;
    EXPECT_TRUE(Journal::create(dir_, other)) << "both roles of one migration may be on one host";
}

TEST_F(JournalTest, RemovedLeavesTheIdAlone) {
    auto journal = Journal::create(dir_, entry());
    ASSERT_TRUE(journal);
    EXPECT_EQ(list_journals(dir_)->size(), 1u);
    ASSERT_TRUE(journal->remove());
    EXPECT_EQ(files(), 1u);
    EXPECT_EQ(list_journals(dir_)->size(), 0u);
    EXPECT_EQ(Journal::open(dir_, id_, JournalRole::source).error().error, ENOENT);
    EXPECT_EQ(files(), 1u) << "a question about an unknown migration leaves nothing";
}

TEST_F(JournalTest, TheIdOfTheStateDirectoryStays) {
    const auto first = open_state_dir(dir_ + "/new/er");
    ASSERT_TRUE(first);
    EXPECT_TRUE(is_uuid(*first));
    EXPECT_EQ(open_state_dir(dir_ + "/new/er").value(), *first);
    struct stat made {};
    ASSERT_EQ(::stat((dir_ + "/new/er").c_str(), &made), 0);
    EXPECT_EQ(made.st_mode & 0777, 0700u);
}

TEST_F(JournalTest, AHalfWrittenOneDoesNotHideTheOld) {
    ASSERT_TRUE(Journal::create(dir_, entry()));
    ASSERT_TRUE(replace_file(dir_ + "/" + id_ + ".source.json.new", "{ \"version\""));
    EXPECT_TRUE(Journal::open(dir_, id_, JournalRole::source));
}

TEST_F(JournalTest, AForeignOrDamagedOneIsNamed) {
    for (const char* text : {"", "{}", "[]", "{\"version\": 2}", "\xff"}) {
        ASSERT_TRUE(open_state_dir(dir_));
        ASSERT_TRUE(replace_file(dir_ + "/" + id_ + ".source.json", text));
        const auto journal = Journal::open(dir_, id_, JournalRole::source);
        ASSERT_FALSE(journal) << text;
        EXPECT_NE(journal.error().what.find(id_), std::string::npos) << text;
        EXPECT_FALSE(journal.error().hint.empty()) << text;
    }
    EXPECT_FALSE(Journal::open(dir_, "../../etc/passwd", JournalRole::source));
}

TEST_F(JournalTest, LocksOfAgentsThatDiedBeforeTheirFirstWriteGoAway) {
    ASSERT_TRUE(open_state_dir(dir_));
    ASSERT_TRUE(replace_file(dir_ + "/" + id_ + ".source.lock", ""));
    ASSERT_TRUE(replace_file(dir_ + "/" + id_ + ".source.json.new", "{"));
    ASSERT_TRUE(remove_stray_files(dir_));
    EXPECT_EQ(files(), 1u);
}

TEST(ProcessStartTime, IsReadBehindAnyName) {
    const pid_t child = ::fork();
    if (child == 0) {
        const UniqueFd comm(::open("/proc/self/comm", O_WRONLY));
        (void)::write(comm.get(), ") R 1 2 (", 9);
        ::pause();
        ::_exit(0);
    }
    const uint64_t own = process_start_time(::getpid()).value();
    const auto theirs = process_start_time(child);
    ASSERT_TRUE(theirs);
    EXPECT_GE(*theirs, own);
    EXPECT_LT(*theirs - own, 100u * 3600 * 24);
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    EXPECT_FALSE(process_start_time(child));
}

}  // namespace
}  // namespace godwit
