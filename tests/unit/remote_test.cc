#include "common/remote/remote.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <csignal>
#include <thread>

#include "common/base/file.h"
#include "common/kernel/proc.h"
#include "tests/support/watched_victim.h"

namespace godwit {
namespace {

using test::WatchedVictim;

Deadline soon() { return Deadline::in(milliseconds(5000)); }

#define ASSERT_DONE(...)                          \
    do {                                          \
        const auto done_ = (__VA_ARGS__);         \
        ASSERT_TRUE(done_) << done_.error().what; \
    } while (false)

class RemoteTest : public testing::Test {
  protected:
    void SetUp() override {
        before_ = victim_.maps();
        auto seized = seize_process(victim_.pid(), soon());
        ASSERT_TRUE(seized) << seized.error().what;
        process_ = std::move(*seized);
        ASSERT_EQ(process_.tasks.size(), 5u);
        auto remote = Remote::attach(process_.tasks[0]);
        ASSERT_TRUE(remote) << remote.error().what;
        remote_.emplace(std::move(*remote));
    }
    void leave() {
        ASSERT_DONE(remote_->leave());
        release_process(process_);
        EXPECT_EQ(victim_.maps(), before_);
        EXPECT_EQ(victim_.complaint(), "");
        EXPECT_EQ(victim_.broken_off(), 0u);
        EXPECT_EQ(victim_.finish(), "");
    }

    WatchedVictim victim_{"registers"};
    std::string before_;
    StoppedProcess process_;
    std::optional<Remote> remote_;
};

TEST_F(RemoteTest, AttachRunLeaveLeavesNothingBehind) {
    Batch batch;
    for (int i = 0; i < 3000; ++i) batch.call(SYS_getpid);
    ASSERT_DONE(remote_->run(batch));
    EXPECT_EQ(batch.result_of(0), victim_.pid());
    EXPECT_EQ(batch.result_of(2999), victim_.pid());
    leave();
}

TEST_F(RemoteTest, ResultsAreArgumentsAndMemoryComesBack) {
    Batch batch;
    const auto name = batch.text("/proc/self/comm");
    const auto out = batch.out(64);
    const auto fd = batch.call(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC);
    batch.call(SYS_pread64, batch.result(fd), out, 64, 0);
    for (int i = 0; i < 2000; ++i) batch.call(SYS_getpid);
    batch.call(SYS_close, batch.result(fd));  // of an earlier piece
    ASSERT_DONE(remote_->run(batch));
    EXPECT_EQ(std::memcmp(batch.data_of(out, 10).data(), "registers\n", 10), 0);
    leave();
}

TEST_F(RemoteTest, PointersInMemoryAreAddressesOfTheTarget) {
    Batch batch;
    const auto pipe = batch.out(8);
    batch.call(SYS_pipe2, pipe, O_CLOEXEC);
    ASSERT_DONE(remote_->run(batch));
    const auto ends = batch.read<std::array<int, 2>>(pipe);
    const iovec plain{nullptr, 5};
    Batch second;
    const auto text = second.text("hello");
    const auto to = second.bytes(&plain, sizeof plain);
    second.point(to, 0, text);
    const auto got = second.out(8);
    second.call(SYS_writev, ends[1], to, 1);
    second.call(SYS_read, ends[0], got, 8);
    second.call(SYS_close, ends[0]);
    second.call(SYS_close, ends[1]);
    ASSERT_DONE(remote_->run(second));
    EXPECT_EQ(std::memcmp(second.data_of(got, 5).data(), "hello", 5), 0);
    leave();
}

TEST_F(RemoteTest, TheFailingCallIsNamedAndEndsTheBatch) {
    Batch batch;
    batch.call_may_fail(SYS_close, -1);
    batch.call(SYS_getpid);
    batch.call(SYS_dup, -1);
    const auto never = batch.call(SYS_getpid);
    const auto result = remote_->run(batch);
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().error, EBADF);
    EXPECT_NE(result.error().what.find(fmt::format("system call {} (call 2 of 4) in task {}", SYS_dup, victim_.pid())),
              std::string::npos)
        << result.error().what;
    EXPECT_EQ(batch.result_of(0), -EBADF);
    EXPECT_EQ(batch.result_of(never), 0);
    leave();
}

TEST_F(RemoteTest, ABatchMayHaveMegabytesOfData) {
    std::vector<uint64_t> numbers(1 << 19);
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = i * 77;
    Batch batch;
    const auto data = batch.bytes(numbers.data(), numbers.size() * 8);
    const auto back = batch.out(numbers.size() * 8);
    const auto name = batch.text("data");
    const auto fd = batch.call(SYS_memfd_create, name, MFD_CLOEXEC);
    batch.call(SYS_write, batch.result(fd), data, numbers.size() * 8);
    batch.call(SYS_pread64, batch.result(fd), back, numbers.size() * 8, 0);
    batch.call(SYS_close, batch.result(fd));
    ASSERT_DONE(remote_->run(batch));
    EXPECT_EQ(std::memcmp(batch.data_of(back, numbers.size() * 8).data(), numbers.data(), numbers.size() * 8), 0);
    leave();
}

TEST_F(RemoteTest, DescriptorsArriveAndTheSocketMoves) {
    const UniqueFd file(::memfd_create("sent", MFD_CLOEXEC));
    const std::vector<int> many(600, file.get());
    auto numbers = remote_->send_fds(many);
    ASSERT_TRUE(numbers) << numbers.error().what;
    ASSERT_EQ(numbers->size(), many.size());
    const std::string link = fmt::format("/proc/{}/fd/{}", victim_.pid(), numbers->back());
    char target[64] = {};
    EXPECT_GT(::readlink(link.c_str(), target, sizeof target - 1), 0);
    EXPECT_TRUE(std::string(target).starts_with("/memfd:sent")) << target;

    const int old = remote_->socket_number();
    ASSERT_DONE(remote_->move_socket(900));
    EXPECT_EQ(remote_->socket_number(), 900);
    EXPECT_NE(::access(fmt::format("/proc/{}/fd/{}", victim_.pid(), old).c_str(), F_OK), 0);
    Batch batch;
    for (const int number : *numbers) batch.call(SYS_close, number);
    ASSERT_DONE(remote_->run(batch));
    leave();
    EXPECT_EQ(remote_->socket_number(), 900);
}

TEST_F(RemoteTest, AFullDescriptorTableIsAProblemAndNothingStays) {
    struct rlimit limit {};
    ASSERT_EQ(::prlimit(victim_.pid(), RLIMIT_NOFILE, nullptr, &limit), 0);
    const struct rlimit small { 40, limit.rlim_max };
    ASSERT_EQ(::prlimit(victim_.pid(), RLIMIT_NOFILE, &small, nullptr), 0);
    const UniqueFd file(::memfd_create("sent", MFD_CLOEXEC));
    const auto numbers = remote_->send_fds(std::vector<int>(100, file.get()));
    ASSERT_FALSE(numbers);
    EXPECT_NE(numbers.error().what.find("of 100 descriptors"), std::string::npos) << numbers.error().what;
    EXPECT_NE(::access(fmt::format("/proc/{}/fd/30", victim_.pid()).c_str(), F_OK), 0);
    leave();
}

TEST_F(RemoteTest, EveryTaskCanBeVisited) {
    for (int round = 0; round < 50; ++round) {
        for (Tracee& task : process_.tasks) {
            Batch batch;
            const auto tid = batch.call(SYS_gettid);
            ASSERT_DONE(remote_->run_in(task, batch));
            EXPECT_EQ(batch.result_of(tid), task.tid());
        }
    }
    leave();
}

TEST_F(RemoteTest, ThousandsOfCallsInAVisitedTask) {
    Batch batch;
    for (int i = 0; i < 2500; ++i) batch.call(SYS_gettid);
    ASSERT_DONE(remote_->run_in(process_.tasks[2], batch));
    EXPECT_EQ(batch.result_of(2499), process_.tasks[2].tid());
    leave();
}

TEST_F(RemoteTest, DeathDuringARunIsAProblem) {
    std::thread killer([&] {
        ::usleep(50'000);
        ::kill(victim_.pid(), SIGKILL);
    });
    const timespec long_time{100, 0};
    Batch batch;
    const auto time = batch.bytes(&long_time, sizeof long_time);
    batch.call(SYS_nanosleep, time, 0);
    const auto result = remote_->run(batch);
    killer.join();
    ASSERT_FALSE(result);
    EXPECT_NE(result.error().what.find("is gone"), std::string::npos) << result.error().what;
    EXPECT_FALSE(remote_->leave());
    release_process(process_);
    victim_.kill();
}

TEST_F(RemoteTest, AStopSignalDoesNotHoldABatchUp) {
    std::thread stopper([&] {
        ::usleep(20'000);
        ::kill(victim_.pid(), SIGSTOP);
    });
    const timespec moment{0, 50'000'000};
    Batch batch;
    const auto time = batch.bytes(&moment, sizeof moment);
    batch.call_may_fail(SYS_nanosleep, time, 0);
    for (int i = 0; i < 10; ++i) batch.call(SYS_getpid);
    const auto result = remote_->run(batch);
    stopper.join();
    ASSERT_TRUE(result) << result.error().what;
    ASSERT_DONE(remote_->leave());
    release_process(process_);
    ::usleep(5'000);
    const auto stat = read_file(fmt::format("/proc/{}/stat", victim_.pid())).value();
    EXPECT_NE(stat.find(" T "), std::string::npos) << stat;
    ::kill(victim_.pid(), SIGCONT);
    EXPECT_EQ(victim_.complaint(), "");
    EXPECT_EQ(victim_.finish(), "");
}

TEST_F(RemoteTest, UndoneAtDeathIsForgottenOnRequest) {
    const auto first = remote_->undo_at_death(SYS_close, 1000);
    const auto second = remote_->undo_at_death(SYS_close, 1001);
    ASSERT_TRUE(first && second);
    EXPECT_NE(*first, *second);
    ASSERT_DONE(remote_->forget_undo(*first));
    EXPECT_EQ(remote_->undo_at_death(SYS_close, 1002).value(), *first);
    leave();
}

// What cannot be entered is left as it was.
void expect_refusal(const RemoteOptions& options, const rlimit& limit, const std::string& words) {
    WatchedVictim victim("registers");
    const std::string before = victim.maps();
    ASSERT_EQ(::prlimit(victim.pid(), RLIMIT_NOFILE, &limit, nullptr), 0);
    auto process = seize_process(victim.pid(), soon());
    ASSERT_TRUE(process) << process.error().what;
    for (Tracee& task : process->tasks) {
        const auto remote = Remote::attach(task, options);
        ASSERT_FALSE(remote);
        EXPECT_NE(remote.error().what.find(words), std::string::npos) << remote.error().what;
    }
    release_process(*process);
    EXPECT_EQ(victim.maps(), before);
    EXPECT_EQ(victim.complaint(), "");
    EXPECT_EQ(victim.broken_off(), 0u);
    EXPECT_EQ(victim.finish(), "");
}

TEST(RemoteAttach, WithoutAFreeDescriptorNothingIsHarmed) {
    const Status ours = read_status(::getpid(), ::getpid()).value();
    if ((status_hex(ours, "CapEff") >> 24 & 1) != 0) GTEST_SKIP() << "kernel: root may raise every limit here";
    expect_refusal({}, {3, 3}, "cannot be raised");
}

TEST(RemoteAttach, WhereNothingCanBeMappedNothingIsHarmed) {
    // Beyond the end of the address space.
    expect_refusal({RemotePtr(0x7ffffffff000)}, {1024, 4096}, "cannot map");
}

TEST(RemoteAttach, TheRegionIsMappedWhereItWasAskedFor) {
    WatchedVictim victim("registers");
    auto process = seize_process(victim.pid(), soon());
    ASSERT_TRUE(process) << process.error().what;
    auto remote = Remote::attach(process->tasks[0], {RemotePtr(0x10'0000'0000)});
    ASSERT_TRUE(remote) << remote.error().what;
    EXPECT_EQ(remote->start(), RemotePtr(0x10'0000'0000));
    EXPECT_EQ(remote->call(SYS_getpid).value(), victim.pid());
    ASSERT_DONE(remote->retire(find_syscall_instruction(victim.pid()).value()));
    EXPECT_EQ(victim.maps().find("/dev/zero"), std::string::npos);
    release_process(*process);  // registers as they were at the stop
    EXPECT_EQ(victim.complaint(), "");
    EXPECT_EQ(victim.finish(), "");
}

TEST(Seize, AGroupStoppedProcessStaysStopped) {
    WatchedVictim victim("registers");
    ::kill(victim.pid(), SIGSTOP);
    ::usleep(5'000);
    auto process = seize_process(victim.pid(), soon());
    ASSERT_TRUE(process) << process.error().what;
    EXPECT_TRUE(process->tasks[0].group_stopped());
    auto remote = Remote::attach(process->tasks[0]);
    ASSERT_TRUE(remote) << remote.error().what;
    EXPECT_EQ(remote->call(SYS_getpid).value(), victim.pid());
    Batch batch;
    batch.call(SYS_gettid);
    ASSERT_DONE(remote->run_in(process->tasks[3], batch));
    ASSERT_DONE(remote->leave());
    release_process(*process);
    ::usleep(5'000);
    EXPECT_NE(read_file(fmt::format("/proc/{}/stat", victim.pid())).value().find(" T "), std::string::npos);
    ::kill(victim.pid(), SIGCONT);
    EXPECT_EQ(victim.complaint(), "");
    EXPECT_EQ(victim.finish(), "");
}

TEST(Seize, SeizingAndLettingGoHarmsNothing) {
    WatchedVictim victim("registers");
    for (int i = 0; i < 100; ++i) {
        auto process = seize_process(victim.pid(), soon());
        ASSERT_TRUE(process) << process.error().what;
        release_process(*process);
        ::usleep(1'000);
    }
    EXPECT_EQ(victim.complaint(), "");
    EXPECT_EQ(victim.broken_off(), 0u);
    EXPECT_EQ(victim.finish(), "");
}

TEST(Seize, AnotherTracerIsNamed) {
    WatchedVictim victim("registers");
    int ready[2];
    ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    const pid_t other = ::fork();
    if (other == 0) {
        (void)Tracee::seize(victim.pid()).map([&](Tracee task) {
            (void)::write(ready[1], "", 1);
            ::pause();
            (void)task;
        });
        ::_exit(0);
    }
    char byte = 0;
    ASSERT_EQ(::read(ready[0], &byte, 1), 1);
    const auto process = seize_process(victim.pid(), soon());
    ASSERT_FALSE(process);
    EXPECT_NE(process.error().what.find(fmt::format("traced by process {}", other)), std::string::npos)
        << process.error().what;
    ::kill(other, SIGKILL);
    ::waitpid(other, nullptr, 0);
    EXPECT_EQ(victim.complaint(), "");
}

TEST(Seize, KernelThreadsZombiesAndMissingProcessesAreRefused) {
    const auto kernel = seize_process(2, soon());
    ASSERT_FALSE(kernel);
    EXPECT_NE(kernel.error().what.find("is a kernel thread"), std::string::npos) << kernel.error().what;
    const pid_t child = ::fork();
    if (child == 0) ::_exit(0);
    siginfo_t info;
    ::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT);
    const auto zombie = seize_process(child, soon());
    ASSERT_FALSE(zombie);
    EXPECT_NE(zombie.error().what.find("is a zombie"), std::string::npos) << zombie.error().what;
    ::waitpid(child, nullptr, 0);
    const auto missing = seize_process(child, soon());
    ASSERT_FALSE(missing);
    EXPECT_NE(missing.error().what.find("does not exist"), std::string::npos) << missing.error().what;
}

TEST(Seize, AVforkParentIsGivenUpAtTheDeadline) {
    const pid_t parent = ::fork();
    if (parent == 0) {
        const pid_t child = ::vfork();
        if (child == 0) {
            ::usleep(600'000);
            ::_exit(0);
        }
        ::_exit(0);
    }
    ::usleep(50'000);
    // A task in D is let go only when the thread that seized it ends.
    std::thread([&] {
        const auto process = seize_process(parent, Deadline::in(milliseconds(200)));
        ASSERT_FALSE(process);
        EXPECT_NE(process.error().what.find(fmt::format("task {} does not stop", parent)), std::string::npos)
            << process.error().what;
    }).join();
    int status = -1;
    ASSERT_EQ(::waitpid(parent, &status, 0), parent);
    EXPECT_EQ(status, 0);
}

TEST(Seccomp, IsRefused) {
    WatchedVictim victim("registers");
    EXPECT_TRUE(check_seccomp(victim.pid()));
    const pid_t strict = ::fork();
    if (strict == 0) {
        ::prctl(PR_SET_SECCOMP, 1, 0, 0, 0);
        char byte;
        for (;;) (void)::read(-1, &byte, 1);
    }
    ::usleep(20'000);
    const auto checked = check_seccomp(strict);
    ::kill(strict, SIGKILL);
    ::waitpid(strict, nullptr, 0);
    ASSERT_FALSE(checked);
    EXPECT_NE(checked.error().what.find("seccomp strict mode"), std::string::npos) << checked.error().what;
}

}  // namespace
}  // namespace godwit
