#include "common/recovery/hold_cgroup.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>

#include "common/base/defer.h"
#include "common/base/file.h"
#include "common/base/uuid.h"

namespace godwit {
namespace {

// A child that counts as long as it runs.
struct Counter {
    std::atomic<uint64_t>* count;
    pid_t pid = -1;

    Counter() {
        count = static_cast<std::atomic<uint64_t>*>(
            ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
        pid = ::fork();
        if (pid == 0) {
            for (;;) {
                ++*count;
                ::usleep(500);
            }
        }
    }
    ~Counter() {
        ::kill(pid, SIGKILL);
        ::waitpid(pid, nullptr, 0);
        ::munmap(count, 4096);
    }
    bool advances() const {
        const uint64_t before = *count;
        for (int i = 0; i < 2000 && *count == before; ++i) ::usleep(1000);
        return *count != before;
    }
    bool stands() const {
        const uint64_t before = *count;
        ::usleep(50'000);
        return *count == before;
    }
};

class HoldCgroupTest : public testing::Test {
  protected:
    void SetUp() override {
        if (::geteuid() != 0) GTEST_SKIP() << "needs root";
        const auto top = Cgroup::top();
        ASSERT_TRUE(top) << top.error().what;
        id_ = new_uuid().value();
        auto made = top->make_child("godwit-test-" + id_);
        ASSERT_TRUE(made) << made.error().what;
        home_ = *made;
    }
    void TearDown() override {
        if (home_.path().empty()) return;
        EXPECT_TRUE(home_.kill(Deadline::in(cgroup_limit)));
        const auto gone = home_.remove(Deadline::in(cgroup_limit));
        EXPECT_TRUE(gone) << gone.error().what;
    }
    std::string id_;
    Cgroup home_;
};

TEST_F(HoldCgroupTest, HoldsATreeAndGivesItBack) {
    const Counter victim;
    ASSERT_TRUE(home_.move_in(victim.pid));
    EXPECT_EQ(Cgroup::of(victim.pid)->path(), home_.path());
    const auto process = describe_process(victim.pid);
    ASSERT_TRUE(process);
    const auto hold = HoldCgroup::for_source(id_, victim.pid);
    ASSERT_TRUE(hold) << hold.error().what;
    ASSERT_TRUE(hold->make());
    ASSERT_TRUE(hold->make()) << "one that a dead agent left is used again";
    ASSERT_TRUE(hold->move_in(victim.pid));
    EXPECT_TRUE(victim.advances());
    ASSERT_TRUE(hold->freeze());
    EXPECT_TRUE(*hold->cgroup().frozen());
    EXPECT_TRUE(victim.stands());
    ::kill(victim.pid, SIGCONT);
    EXPECT_TRUE(victim.stands());
    ASSERT_TRUE(hold->give_back({*process}));
    EXPECT_TRUE(victim.advances());
    EXPECT_EQ(Cgroup::of(victim.pid)->path(), home_.path());
    EXPECT_FALSE(hold->cgroup().exists());
    EXPECT_TRUE(hold->give_back({*process})) << "again changes nothing";
}

TEST_F(HoldCgroupTest, AFrozenTreeIsKilledAndNothingStays) {
    Counter victim;
    ASSERT_TRUE(home_.move_in(victim.pid));
    const auto hold = HoldCgroup::for_source(id_, victim.pid);
    ASSERT_TRUE(hold);
    ASSERT_TRUE(hold->make());
    ASSERT_TRUE(hold->move_in(victim.pid));
    ASSERT_TRUE(hold->freeze());
    const auto destroyed = hold->destroy();
    ASSERT_TRUE(destroyed) << destroyed.error().what;
    EXPECT_FALSE(hold->cgroup().exists());
    EXPECT_TRUE(home_.exists());
    int status = 0;
    ASSERT_EQ(::waitpid(victim.pid, &status, 0), victim.pid);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    EXPECT_TRUE(hold->destroy()) << "again changes nothing";
}

TEST_F(HoldCgroupTest, ATaskInAPtraceStopCountsAsFrozenAndStaysSoWhenItsTracerIsKilled) {
    const Counter victim;
    ASSERT_TRUE(home_.move_in(victim.pid));
    int ready[2];
    ASSERT_EQ(::pipe(ready), 0);
    const pid_t tracer = ::fork();
    if (tracer == 0) {
        const bool held = ::ptrace(PTRACE_SEIZE, victim.pid, nullptr, 0) == 0 &&
                          ::ptrace(PTRACE_INTERRUPT, victim.pid, nullptr, nullptr) == 0 &&
                          ::waitpid(victim.pid, nullptr, __WALL) == victim.pid;
        (void)::write(ready[1], held ? "y" : "n", 1);
        ::pause();
        ::_exit(0);
    }
    char said = 0;
    ASSERT_EQ(::read(ready[0], &said, 1), 1);
    ASSERT_EQ(said, 'y');
    const auto frozen = home_.freeze(Deadline::in(cgroup_limit));
    EXPECT_TRUE(frozen) << frozen.error().what;
    ::kill(tracer, SIGKILL);
    ::waitpid(tracer, nullptr, 0);
    EXPECT_TRUE(victim.stands());
    const auto again = home_.freeze(Deadline::in(cgroup_limit));
    EXPECT_TRUE(again) << again.error().what;
    ASSERT_TRUE(home_.thaw());
    EXPECT_TRUE(victim.advances());
    ::close(ready[0]);
    ::close(ready[1]);
}

TEST_F(HoldCgroupTest, AnEmptyCgroupIsFrozenAtOnceAndAMissingOneIsNamed) {
    EXPECT_TRUE(home_.freeze(Deadline::in(milliseconds{5000})));
    EXPECT_FALSE(*home_.populated());
    ASSERT_TRUE(home_.thaw());
    const Cgroup missing(home_.path() + "/missing");
    EXPECT_FALSE(missing.exists());
    EXPECT_TRUE(missing.remove(Deadline::in(milliseconds{100})));
    const auto frozen = missing.freeze(Deadline::in(milliseconds{100}));
    ASSERT_FALSE(frozen);
    EXPECT_NE(frozen.error().what.find(missing.path()), std::string::npos);
}

TEST_F(HoldCgroupTest, AThreadedCgroupIsRefusedByName) {
    const auto threaded = home_.make_child("threads");
    ASSERT_TRUE(threaded);
    ASSERT_TRUE(write_once(threaded->path() + "/cgroup.type", "threaded"));
    for (const Cgroup& each : {*threaded, home_}) {  // home became "domain threaded"
        const auto child = each.make_child("godwit-x");
        ASSERT_FALSE(child);
        EXPECT_EQ(child.error().code, ExitCode::unsupported);
        EXPECT_NE(child.error().what.find(each.path()), std::string::npos);
        EXPECT_NE(child.error().what.find("threaded"), std::string::npos);
    }
}

TEST_F(HoldCgroupTest, TheDestinationsTreeGoesToACgroupOfItsOwn) {
    Counter victim;
    const auto hold = HoldCgroup::for_destination(id_);
    ASSERT_TRUE(hold) << hold.error().what;
    ASSERT_TRUE(hold->make());
    ASSERT_TRUE(hold->move_in(victim.pid));
    const auto moved = hold->move_home();
    ASSERT_TRUE(moved) << moved.error().what;
    EXPECT_FALSE(hold->cgroup().exists());
    EXPECT_TRUE(Cgroup::of(victim.pid)->path().ends_with("/godwit-tree-" + id_));
    // The next migration away from here takes the cgroup along.
    const auto next = HoldCgroup::for_source(new_uuid().value(), victim.pid);
    ASSERT_TRUE(next);
    ASSERT_TRUE(next->make());
    ASSERT_TRUE(next->move_in(victim.pid));
    ASSERT_TRUE(next->destroy());
    EXPECT_FALSE(next->cgroup().exists());
    EXPECT_FALSE(hold->home().exists());
}

}  // namespace
}  // namespace godwit
