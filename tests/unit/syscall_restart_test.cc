#include "common/remote/syscall_restart.h"

#include <gtest/gtest.h>
#include <linux/futex.h>
#include <sys/syscall.h>

#include <cerrno>

#include "common/kernel/abi.h"
#include "common/remote/rseq.h"

namespace godwit {
namespace {

Registers stopped_in(long number, int64_t result) {
    Registers registers{};
    registers.orig_rax = static_cast<uint64_t>(number);
    registers.rax = static_cast<uint64_t>(result);
    registers.rip = 0x1002;
    return registers;
}

bool made_again(const Registers& registers, long number) {
    return registers.rip == 0x1000 && registers.rax == static_cast<uint64_t>(number) && registers.orig_rax == ~0ull;
}

bool ends_with(const Registers& registers, int64_t result) {
    return registers.rip == 0x1002 && registers.rax == static_cast<uint64_t>(result) && registers.orig_rax == ~0ull;
}

TEST(SyscallRestart, CallsThatAnyStopBreaksOffAreRestartedByTheKernel) {
    for (const long number : {SYS_epoll_wait, SYS_semtimedop, SYS_rt_sigtimedwait, SYS_io_getevents, SYS_recvfrom})
        EXPECT_EQ(static_cast<int64_t>(for_same_task(stopped_in(number, -EINTR)).rax), -kernel::ERESTARTNOHAND)
            << number;
    EXPECT_EQ(static_cast<int64_t>(for_same_task(stopped_in(SYS_close, -EINTR)).rax), -EINTR);
    EXPECT_EQ(static_cast<int64_t>(for_same_task(stopped_in(SYS_epoll_wait, 3)).rax), 3);
    EXPECT_EQ(static_cast<int64_t>(for_same_task(stopped_in(-1, -EINTR)).rax), -EINTR);
}

TEST(SyscallRestart, ElsewhereBrokenOffCallsAreMadeAgain) {
    for (const int64_t error : {kernel::ERESTARTSYS, kernel::ERESTARTNOINTR, kernel::ERESTARTNOHAND})
        EXPECT_TRUE(made_again(for_elsewhere(stopped_in(SYS_pause, -error)), SYS_pause)) << error;
    EXPECT_TRUE(made_again(for_elsewhere(stopped_in(SYS_epoll_wait, -EINTR)), SYS_epoll_wait));
}

TEST(SyscallRestart, ElsewhereARestartBlockBecomesEintrUnlessTheArgumentsTellAll) {
    const auto in = [](long number) { return stopped_in(number, -kernel::ERESTART_RESTARTBLOCK); };
    EXPECT_TRUE(ends_with(for_elsewhere(in(SYS_nanosleep)), -EINTR));
    EXPECT_TRUE(ends_with(for_elsewhere(in(SYS_restart_syscall)), -EINTR));
    Registers poll = in(SYS_poll);
    poll.rdx = 100;
    EXPECT_TRUE(ends_with(for_elsewhere(poll), -EINTR));
    poll.rdx = static_cast<uint32_t>(-1);
    EXPECT_TRUE(made_again(for_elsewhere(poll), SYS_poll));
    Registers futex = in(SYS_futex);
    futex.rsi = FUTEX_WAIT | FUTEX_PRIVATE_FLAG;
    EXPECT_TRUE(ends_with(for_elsewhere(futex), -EINTR));
    futex.rsi = FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME;
    EXPECT_TRUE(made_again(for_elsewhere(futex), SYS_futex));
}

TEST(SyscallRestart, InThisTaskTheRestartBlockIsUsed) {
    EXPECT_TRUE(
        made_again(for_plain_jump(stopped_in(SYS_nanosleep, -kernel::ERESTART_RESTARTBLOCK)), SYS_restart_syscall));
    EXPECT_TRUE(made_again(for_plain_jump(stopped_in(SYS_pause, -kernel::ERESTARTNOHAND)), SYS_pause));
}

TEST(SyscallRestart, FinishedCallsAndPlainCodeGoOnAsTheyAre) {
    EXPECT_TRUE(ends_with(for_elsewhere(stopped_in(SYS_read, 17)), 17));
    EXPECT_TRUE(ends_with(for_elsewhere(stopped_in(-1, -kernel::ERESTARTSYS)), -kernel::ERESTARTSYS));
}

TEST(SyscallRestart, ACaughtSignalDecidesByKind) {
    EXPECT_EQ(interruptible(stopped_in(SYS_read, -kernel::ERESTARTSYS)), Interruptible::restart);
    EXPECT_EQ(interruptible(stopped_in(SYS_pause, -kernel::ERESTARTNOHAND)), Interruptible::handler);
    EXPECT_EQ(interruptible(stopped_in(SYS_nanosleep, -kernel::ERESTART_RESTARTBLOCK)), Interruptible::handler);
    EXPECT_EQ(interruptible(stopped_in(SYS_fork, -kernel::ERESTARTNOINTR)), Interruptible::no);
    EXPECT_EQ(interruptible(stopped_in(-1, -kernel::ERESTARTSYS)), Interruptible::no);
}

TEST(Rseq, InsideACriticalSectionTheAbortIsTaken) {
    Registers registers = stopped_in(-1, 5);
    const auto rip = [&](uint64_t at) {
        registers.rip = at;
        return leave_critical_section(registers, 0x1000, 0x10, 0x9000).rip;
    };
    EXPECT_EQ(rip(0xfff), 0xfffu);
    EXPECT_EQ(rip(0x1000), 0x9000u);
    EXPECT_EQ(rip(0x100f), 0x9000u);
    EXPECT_EQ(rip(0x1010), 0x1010u);  // committed
}

}  // namespace
}  // namespace godwit
