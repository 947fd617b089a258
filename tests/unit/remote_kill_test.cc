// The agent is killed at every one of its operations on a victim that checks itself: nothing may be harmed.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <random>

#include "common/base/file.h"
#include "common/remote/remote.h"
#include "tests/support/watched_victim.h"

namespace godwit {
namespace {

using test::WatchedVictim;

Result<void> visit(pid_t pid) {
    StoppedProcess process = TRY(seize_process(pid, Deadline::in(milliseconds(5000))));
    Remote remote = TRY(Remote::attach(process.tasks[0]));
    Batch batch;
    for (int i = 0; i < 20; ++i) batch.call(SYS_getpid);
    TRY(remote.run(batch));
    for (Tracee& task : process.tasks) {
        Batch there;
        there.call(SYS_gettid);
        TRY(remote.run_in(task, there));
    }
    TRY(remote.leave());
    release_process(process);
    return {};
}

// Not a test by itself: what the sweeps start as their agent, so that fault points count from 1.
TEST(RemoteAgent, DISABLED_Visits) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int left = std::atoi(std::getenv("GODWIT_VISITS")); left > 0; --left) {
        const auto visited = visit(std::atoi(std::getenv("GODWIT_VICTIM")));
        ASSERT_TRUE(visited) << visited.error().what;
    }
}

// True when the agent came to its end, false when it was killed.
bool run_agent(pid_t victim, const std::string& fault, const std::string& trace = {}, unsigned kill_after_us = 0) {
    const pid_t agent = ::fork();
    if (agent == 0) {
        ::setenv("GODWIT_VISITS", kill_after_us != 0 ? "1000" : "1", 1);
        ::setenv("GODWIT_VICTIM", std::to_string(victim).c_str(), 1);
        if (!fault.empty()) ::setenv("GODWIT_FAULT", fault.c_str(), 1);
        if (!trace.empty()) ::setenv("GODWIT_FAULT_TRACE", trace.c_str(), 1);
        (void)!::freopen("/dev/null", "w", stdout);
        ::execl("/proc/self/exe", "agent", "--gtest_also_run_disabled_tests",
                "--gtest_filter=RemoteAgent.DISABLED_Visits", nullptr);
        ::_exit(127);
    }
    if (kill_after_us != 0) {
        ::usleep(kill_after_us);
        ::kill(agent, SIGKILL);
    }
    int status = 0;
    ::waitpid(agent, &status, 0);
    EXPECT_TRUE(status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL))
        << fault << ": agent ended with " << status;
    return status == 0;
}

void check_clean(WatchedVictim& victim, const std::string& maps_before) {
    // One visit to the end takes away what the killed ones left.
    EXPECT_TRUE(run_agent(victim.pid(), ""));
    EXPECT_EQ(victim.maps(), maps_before);
    EXPECT_EQ(victim.finish(), "");
}

#ifdef GODWIT_FAULT_POINTS

TEST(RemoteKill, AtEveryOperationTheVictimRunsOnUnharmed) {
    WatchedVictim victim("registers");
    const std::string before = victim.maps();
    const std::string trace = fmt::format("/tmp/godwit-trace-{}", ::getpid());
    ASSERT_TRUE(run_agent(victim.pid(), "", trace));
    const std::string points = read_file(trace).value();
    ::unlink(trace.c_str());
    const auto count = std::count(points.begin(), points.end(), '\n');
    // While tasks are being stopped, the kernel itself may make calls return EINTR; from then on nothing may.
    const auto stopped =
        std::count(points.begin(), points.begin() + static_cast<long>(points.find("remote:")), '\n') + 5;
    int kills = 0;
    for (long n = 1; n <= count; ++n) {
        const uint64_t broken_off = victim.broken_off();
        if (!run_agent(victim.pid(), fmt::format("kill@{}", n))) ++kills;
        ASSERT_EQ(victim.complaint(), "") << "after kill@" << n;
        EXPECT_TRUE(n <= stopped || victim.broken_off() == broken_off) << "EINTR after kill@" << n;
    }
    std::printf("%d kills at %ld operations\n", kills, static_cast<long>(count));
    EXPECT_GE(kills, count * 9 / 10);
    check_clean(victim, before);
}

#endif

TEST(RemoteKill, AtAnyTimeTheVictimRunsOnUnharmed) {
    if (std::getenv("GODWIT_SLOW") == nullptr) GTEST_SKIP() << "slow: set GODWIT_SLOW=1";
    WatchedVictim victim("registers");
    const std::string before = victim.maps();
    std::mt19937 random(std::random_device{}());
    int kills = 0;
    for (const Deadline deadline = Deadline::in(milliseconds(50'000)); !deadline.passed();) {
        if (!run_agent(victim.pid(), "", {}, 8'000 + random() % 30'000)) ++kills;
        if (kills % 8 != 0) continue;
        ASSERT_EQ(victim.complaint(), "") << "after " << kills << " kills";
    }
    std::printf("%d kills\n", kills);
    ASSERT_EQ(victim.complaint(), "");
    check_clean(victim, before);
}

}  // namespace
}  // namespace godwit
