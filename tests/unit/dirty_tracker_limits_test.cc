// What tracking costs, what it refuses, and what is left when it ends or its agent dies.
#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/file.h"
#include "source-agent/track/userfaultfd.h"
#include "tests/support/tracked_victim.h"

namespace godwit::tracked {
namespace {

using ::testing::HasSubstr;

class WpAsyncLimits : public WpAsync {};

TEST_F(WpAsyncLimits, ReservationsCostNoPageTables) {
    constexpr uint64_t size = 64ull << 30;
    const uint64_t at = victim_.map(size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
    const uint64_t writable = victim_.map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
    const uint64_t shared = victim_.map(size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE);
    const std::string tables = victim_.status("VmPTE");
    begin();
    const auto now = read_maps(victim_.pid()).value();
    const auto before = Clock::now();
    ASSERT_TRUE(tracker_->refresh(now));
    ASSERT_TRUE(tracker_->collect());
    EXPECT_LT(Clock::now() - before, milliseconds(10));
    EXPECT_EQ(victim_.status("VmPTE"), tables);
    victim_.poke(writable + size / 2);
    const MemoryChanges changes = collect();
    EXPECT_EQ(pages_in(changes.written, writable, size), Pages{size / 2 / page});
    EXPECT_EQ(pages_in(changes.written, at, size), Pages{});
    EXPECT_EQ(pages_in(changes.written, shared, size), Pages{});
}

TEST_F(WpAsyncLimits, StartLeavesNothingBehind) {
    victim_.map(4 * page);
    const auto fds = read_fd_numbers(victim_.pid()).value();
    const auto maps = read_file(fmt::format("/proc/{}/maps", victim_.pid())).value();
    begin();
    EXPECT_TRUE(is_registered());
    EXPECT_EQ(read_fd_numbers(victim_.pid()).value(), fds);
    EXPECT_EQ(read_file(fmt::format("/proc/{}/maps", victim_.pid())).value(), maps);
    tracker_.reset();
    EXPECT_FALSE(is_registered());
}

TEST_F(WpAsyncLimits, NextTrackerStartsClean) {
    const uint64_t at = tracked(8);
    victim_.write(at, {1});
    tracker_ = make_tracker(victim_.pid()).value();
    begin();
    expect(at, 8, {});
    victim_.write(at, {2});
    expect(at, 8, {2});
}

TEST_F(WpAsyncLimits, OwnUserfaultfdIsRefusedByName) {
    victim_.call(SYS_userfaultfd, O_CLOEXEC);
    const auto started = start(*tracker_, victim_.pid());
    ASSERT_FALSE(started);
    EXPECT_EQ(started.error().code, ExitCode::unsupported);
    EXPECT_THAT(started.error().what, HasSubstr("uses userfaultfd itself"));
}

TEST_F(WpAsyncLimits, MappingUnderAnotherUserfaultfdIsRefusedByName) {
    tracked(8);
    auto second = make_tracker(victim_.pid()).value();
    ASSERT_TRUE(start(*second, victim_.pid()));
    ASSERT_TRUE(second->refresh(read_maps(victim_.pid()).value()));
    const auto collected = second->collect();
    ASSERT_FALSE(collected);
    EXPECT_EQ(collected.error().code, ExitCode::unsupported);
    EXPECT_THAT(collected.error().what, HasSubstr("under another userfaultfd"));
    EXPECT_TRUE(tracker_->collect());
}

TEST_F(WpAsyncLimits, NearlyExhaustedMappingCountIsRefusedByName) {
    const size_t most = std::stoull(read_file("/proc/sys/vm/max_map_count").value());
    if (most > 200000) GTEST_SKIP() << "vm.max_map_count is too high to exhaust: " << most;
    const size_t have = read_maps(victim_.pid()).value().size();
    const uint64_t at = victim_.map(most * page, PROT_NONE);
    for (size_t made = have; made + 100 < most; made += 2)
        victim_.call(SYS_mprotect, at + made * page, page, PROT_READ);
    const auto started = start(*tracker_, victim_.pid());
    ASSERT_FALSE(started);
    EXPECT_EQ(started.error().code, ExitCode::unsupported);
    EXPECT_THAT(started.error().what, HasSubstr("too few are left"));
}

TEST_F(WpAsyncLimits, TrackerDeathLeavesTheVictimWriting) {
    const uint64_t at = victim_.map(8 * page);
    victim_.write(at, all(8));
    int ready[2];
    ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    const pid_t agent = ::fork();
    if (agent == 0) {
        const char good = start(*tracker_, victim_.pid()) ? 'y' : 'n';
        if (::write(ready[1], &good, 1) == 1)
            for (;;) ::pause();
        ::_exit(1);
    }
    char good = 0;
    ASSERT_EQ(::read(ready[0], &good, 1), 1);
    EXPECT_EQ(good, 'y');
    victim_.send({Command::run_free, 0, {at}});
    ::kill(agent, SIGKILL);
    ::waitpid(agent, nullptr, 0);
    ::close(ready[0]);
    ::close(ready[1]);
    // It goes on until the next command lies in its socket.
    victim_.send({Command::read_byte, 0, {at}});
    EXPECT_GT(victim_.answer(), 0u);
    victim_.answer();
    EXPECT_FALSE(is_registered());
    begin();
    victim_.write(at, {6});
    expect(at, 8, {6});
}

TEST(WpAsyncUnprivileged, ProcessIsTracked) {
    if (Userfaultfd::missing()) GTEST_SKIP() << Userfaultfd::missing()->what;
    const Victim victim(65534);
    const uint64_t at = victim.map(4 * page);
    auto tracker = make_tracker(victim.pid(), TrackerBackend::wp_async).value();
    const auto started = start(*tracker, victim.pid());
    ASSERT_TRUE(started) << started.error().what;
    ASSERT_TRUE(tracker->refresh(read_maps(victim.pid()).value()));
    ASSERT_TRUE(tracker->collect());
    victim.write(at, {2});
    EXPECT_EQ(pages_in(tracker->collect().value().written, at, 4 * page), Pages{2});
}

TEST(WpAsyncUnprivileged, DescriptorIsMadeByTheDevice) {
    if (Userfaultfd::missing()) GTEST_SKIP() << Userfaultfd::missing()->what;
    if (::access("/dev/userfaultfd", R_OK | W_OK) != 0) GTEST_SKIP() << "no /dev/userfaultfd";
    const Victim victim(65534);
    const auto fds = read_fd_numbers(victim.pid()).value();
    const uint64_t at = victim.map(4 * page);
    {
        auto process = seize_process(victim.pid(), Deadline::in(milliseconds(5000))).value();
        Undo let_go([&] { release_process(process); });
        Remote remote = Remote::attach(process.tasks[0]).value();
        const auto made = Userfaultfd::make_by_device(remote);
        ASSERT_TRUE(made) << made.error().what;
        EXPECT_EQ(made->add(at, at + 4 * page).value(), Userfaultfd::Registered::yes);
        ASSERT_TRUE(remote.leave());
    }
    EXPECT_EQ(read_fd_numbers(victim.pid()).value(), fds);
}

}  // namespace
}  // namespace godwit::tracked
