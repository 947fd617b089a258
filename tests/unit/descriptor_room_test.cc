// A process whose descriptor table is full can be worked on, and has its own limit afterwards.
#include "common/remote/descriptor_room.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/base/defer.h"
#include "common/kernel/proc.h"
#include "common/remote/remote.h"
#include "tests/support/forked_child.h"

namespace godwit {
namespace {

using test::ForkedChild;
using test::Told;

int fill_the_table(Told&) {
    const rlimit limit{20, 64};
    if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) return errno;
    while (::open("/dev/null", O_RDONLY | O_CLOEXEC) >= 0) continue;
    return errno == EMFILE ? 0 : errno;
}

rlim_t soft_limit(pid_t pid) {
    rlimit limit{};
    EXPECT_EQ(::prlimit(pid, RLIMIT_NOFILE, nullptr, &limit), 0);
    return limit.rlim_cur;
}

TEST(DescriptorRoom, IsThereOnlyWhileItIsNeeded) {
    const ForkedChild child(fill_the_table);
    ASSERT_EQ(child.error(), 0);
    {
        const auto room = DescriptorRoom::make(child.pid());
        ASSERT_TRUE(room) << room.error().what;
        EXPECT_GT(soft_limit(child.pid()), 20u);
    }
    EXPECT_EQ(soft_limit(child.pid()), 20u);
}

TEST(DescriptorRoom, LimitThatCannotBeRaisedIsNamed) {
    const Status ours = read_status(::getpid(), ::getpid()).value();
    if ((status_hex(ours, "CapEff") >> 24 & 1) != 0) GTEST_SKIP() << "kernel: root may raise every limit here";
    const ForkedChild child([](Told&) {
        const rlimit limit{20, 20};
        if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) return errno;
        while (::open("/dev/null", O_RDONLY | O_CLOEXEC) >= 0) continue;
        return 0;
    });
    ASSERT_EQ(child.error(), 0);
    const auto checked = DescriptorRoom::check(child.pid());
    ASSERT_FALSE(checked);
    EXPECT_EQ(checked.error().code, ExitCode::unsupported);
    EXPECT_NE(checked.error().what.find(std::to_string(child.pid())), std::string::npos);
    EXPECT_FALSE(DescriptorRoom::make(child.pid()));
    EXPECT_EQ(soft_limit(child.pid()), 20u);
}

TEST(DescriptorRoom, NothingIsTouchedWhereThereIsRoom) {
    const ForkedChild child([](Told&) { return 0; });
    const rlim_t before = soft_limit(child.pid());
    const auto room = DescriptorRoom::make(child.pid());
    ASSERT_TRUE(room);
    EXPECT_EQ(soft_limit(child.pid()), before);
}

TEST(DescriptorRoom, ExecutorWorksInAFullTable) {
    const ForkedChild child(fill_the_table);
    ASSERT_EQ(child.error(), 0);
    const auto before = read_fd_numbers(child.pid()).value();
    auto process = seize_process(child.pid(), Deadline::in(milliseconds(5000))).value();
    const Undo let_go([&] { release_process(process); });
    {
        auto remote = Remote::attach(process.tasks.front());
        ASSERT_TRUE(remote) << remote.error().what;
        EXPECT_EQ(soft_limit(child.pid()), 20u);
        EXPECT_EQ(remote->call(SYS_getpid).value(), child.pid());
        ASSERT_TRUE(remote->leave());
    }
    EXPECT_EQ(read_fd_numbers(child.pid()).value(), before);
}

}  // namespace
}  // namespace godwit
