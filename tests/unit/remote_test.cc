#include "common/remote/remote.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "common/base/file.h"

namespace godwit {
namespace {

TEST(Remote, Basic) {
    const pid_t child = ::fork();
    if (child == 0) {
        for (;;) ::usleep(1000);
    }
    const std::string maps_path = "/proc/" + std::to_string(child) + "/maps";
    ::usleep(10000);
    const auto before = read_file(maps_path).value();
    {
        auto process = seize_process(child, Deadline::in(milliseconds(3000)));
        ASSERT_TRUE(process) << process.error().what;
        auto remote = Remote::attach(process->tasks[0]);
        ASSERT_TRUE(remote) << remote.error().what;
        Batch batch;
        for (int i = 0; i < 3000; ++i) batch.call(SYS_getpid);
        auto ran = remote->run(batch);
        ASSERT_TRUE(ran) << ran.error().what;
        EXPECT_EQ(batch.result_of(2999), child);
        auto left = remote->leave();
        ASSERT_TRUE(left) << left.error().what;
        release_process(*process);
    }
    EXPECT_EQ(read_file(maps_path).value(), before);
    ::usleep(10000);
    EXPECT_EQ(::waitpid(child, nullptr, WNOHANG), 0);
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
}

}  // namespace
}  // namespace godwit
