#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <functional>
#include <tuple>

#include "dest-agent/restore/restore.h"
#include "tests/support/skeletons.h"

namespace godwit {
namespace {

using namespace hand_made;
using RestoreProcessTest = SkeletonTest;

TEST_F(RestoreProcessTest, AThousandThreadsAreMadeSealedAndGone) {
    const image::Layout layout = small_layout(1000);
    {
        auto skeleton = build(layout);
        ASSERT_OK(skeleton);
        EXPECT_EQ(read_tasks(skeleton->pid())->size(), 1000u);
        const image::Process process = simple_process(*skeleton);
        ASSERT_OK(skeleton->finish_memory());
        ASSERT_OK(restore_process(*skeleton, process));
        ASSERT_OK(seal(*skeleton, process));
        EXPECT_EQ(*read_file(fmt::format("/proc/{}/task/{}/comm", skeleton->pid(), layout.tids(999))), "task1000\n");
    }
    for (const pid_t tid : layout.tids()) EXPECT_FALSE(exists(tid)) << tid;
}

TEST_F(RestoreProcessTest, ProcShowsTheProgramItStandsFor) {
    auto skeleton = build(small_layout());
    ASSERT_OK(skeleton);
    std::string arguments = pages_of('\0', 32);
    std::memcpy(arguments.data() + 30 * page, "true\0-abc\0A=b\0", 14);
    ASSERT_OK(write(*skeleton, stack_at, arguments));
    ASSERT_OK(skeleton->finish_memory());
    ASSERT_OK(restore_process(*skeleton, simple_process(*skeleton)));
    const std::string folder = fmt::format("/proc/{}/", skeleton->pid());
    EXPECT_EQ(*read_file(folder + "cmdline"), std::string("true\0-abc\0", 10));
    EXPECT_EQ(*read_file(folder + "environ"), std::string("A=b\0", 4));
    EXPECT_EQ(*read_file(folder + "comm"), "task1\n");
    EXPECT_EQ(*read_link(folder + "exe"), skeleton->layout().executable());
    const auto maps = read_maps(skeleton->pid());
    const auto named = [&](const char* name) {
        return std::count_if(maps->begin(), maps->end(), [&](const Vma& vma) { return vma.path == name; });
    };
    EXPECT_EQ(named("[heap]"), 1);
    EXPECT_EQ(named("[stack]"), 1);
    EXPECT_EQ(named("[vdso]"), 1);
    const Stat stat = *read_stat(skeleton->pid());
    EXPECT_EQ(stat.sid, skeleton->pid());
    EXPECT_EQ(stat.pgid, skeleton->pid());
    EXPECT_EQ(*skeleton->remote().call(SYS_brk, 0), static_cast<int64_t>(heap_at + 8 * page));
}

TEST_F(RestoreProcessTest, BadMemoryMapIsRefused) {
    auto skeleton = build(small_layout());
    ASSERT_OK(skeleton);
    ASSERT_OK(skeleton->finish_memory());
    image::Process process = simple_process(*skeleton);
    process.mutable_memory_map()->set_auxv("abc");
    const auto cut = restore_process(*skeleton, process);
    ASSERT_FALSE(cut);
    EXPECT_NE(cut.error().what.find("auxiliary vector"), std::string::npos);
    *process.mutable_memory_map() = small_memory_map();
    process.mutable_memory_map()->set_start_brk(0xdead0000);
    EXPECT_FALSE(restore_process(*skeleton, process));
}

TEST_F(RestoreProcessTest, AttributesAreRestored) {
    auto skeleton = build(small_layout(2));
    ASSERT_OK(skeleton);
    ASSERT_OK(skeleton->finish_memory());
    image::Process process = simple_process(*skeleton);
    const struct {
        int resource;
        rlim_t soft, hard;
    } limits[] = {{RLIMIT_CORE, 0, 4096}, {RLIMIT_NOFILE, 100, 200}};
    for (const auto& limit : limits) {
        auto& entry = *process.add_limits();
        entry.set_resource(static_cast<uint32_t>(limit.resource));
        entry.set_soft(limit.soft);
        entry.set_hard(limit.hard);
    }
    auto& action = *process.add_actions();
    action.set_signal(SIGUSR2);
    action.set_handler(code_at);
    action.set_flags(sa_restorer);
    action.set_restorer(code_at);
    auto& interval = *process.add_interval_timers();
    interval.set_which(ITIMER_REAL);
    interval.set_value_us(1'000'000'000);
    interval.set_interval_us(5'000'001);
    for (const int id : {7, 2}) {
        auto& timer = *process.add_posix_timers();
        timer.set_id(static_cast<uint32_t>(id));
        timer.set_clock(CLOCK_MONOTONIC);
        timer.set_notify(SIGEV_THREAD_ID);
        timer.set_signal(SIGRTMIN);
        timer.set_thread(skeleton->layout().tids(1));
        timer.set_remaining_ns(id == 7 ? 100'000'000'000 : 0);
    }
    process.set_oom_score_adj(123);
    process.set_core_filter(0x13);
    image::Task& thread = *process.mutable_tasks(1);
    thread.mutable_scheduling()->set_nice(5);
    thread.mutable_scheduling()->set_policy(SCHED_BATCH);
    thread.mutable_scheduling()->set_timer_slack_ns(70'000);
    auto& credentials = *thread.mutable_credentials();
    credentials.set_uid(1000);
    credentials.set_euid(1001);
    credentials.set_suid(1002);
    credentials.set_fsuid(1001);
    credentials.set_gid(2000);
    credentials.set_egid(2001);
    credentials.set_sgid(2002);
    credentials.set_fsgid(2001);
    credentials.clear_groups();
    credentials.add_groups(3000);
    credentials.add_groups(3001);
    constexpr uint64_t bind = 1ull << CAP_NET_BIND_SERVICE, chown = 1ull << CAP_CHOWN;
    credentials.set_bounding(bind | chown);
    credentials.set_permitted(bind | chown);
    credentials.set_effective(chown);
    credentials.set_inheritable(bind);
    credentials.set_ambient(bind);
    credentials.set_securebits(0x10);  // SECBIT_KEEP_CAPS
    credentials.set_no_new_privileges(true);
    thread.set_parent_death_signal(SIGTERM);
    ASSERT_OK(restore_process(*skeleton, process));

    Batch asked;
    const auto alarm = asked.out(sizeof(itimerval));
    const auto armed = asked.out(sizeof(itimerspec));
    asked.call(SYS_getitimer, ITIMER_REAL, alarm);
    asked.call(SYS_timer_gettime, 7, armed);
    asked.call(SYS_timer_gettime, 2, asked.out(sizeof(itimerspec)));
    ASSERT_OK(skeleton->remote().run(asked));
    Batch of_thread;
    const auto death = of_thread.out(4);
    const auto bits = of_thread.call(SYS_prctl, PR_GET_SECUREBITS);
    of_thread.call(SYS_prctl, PR_GET_PDEATHSIG, death);
    ASSERT_OK(skeleton->remote().run_in(skeleton->tasks()[1], of_thread));
    EXPECT_EQ(of_thread.result_of(bits), 0x10);
    EXPECT_EQ(of_thread.read<int>(death), SIGTERM);
    EXPECT_EQ(asked.read<itimerval>(alarm).it_interval.tv_usec, 1);
    EXPECT_GE(asked.read<itimerspec>(armed).it_value.tv_sec, 98);

    ASSERT_OK(seal(*skeleton, process));
    const pid_t pid = skeleton->pid(), tid = skeleton->tasks()[1].tid();
    const Status leader = *read_status(pid, pid), other = *read_status(pid, tid);
    EXPECT_EQ(status_value(leader, "Umask"), "0027");
    EXPECT_EQ(status_hex(leader, "SigCgt"), 1ull << (SIGUSR2 - 1));
    EXPECT_EQ(status_ids(leader, "Uid"), (std::vector<int>{0, 0, 0, 0}));
    EXPECT_EQ(status_hex(leader, "CapEff"), own_credentials().effective());
    EXPECT_EQ(status_hex(leader, "CapBnd"), own_credentials().bounding());
    EXPECT_EQ(status_ids(other, "Uid"), (std::vector<int>{1000, 1001, 1002, 1001}));
    EXPECT_EQ(status_ids(other, "Gid"), (std::vector<int>{2000, 2001, 2002, 2001}));
    EXPECT_EQ(status_ids(other, "Groups"), (std::vector<int>{3000, 3001}));
    EXPECT_EQ(status_hex(other, "CapBnd"), bind | chown);
    EXPECT_EQ(status_hex(other, "CapPrm"), bind | chown);
    EXPECT_EQ(status_hex(other, "CapEff"), chown);
    EXPECT_EQ(status_hex(other, "CapInh"), bind);
    EXPECT_EQ(status_hex(other, "CapAmb"), bind);
    EXPECT_EQ(status_value(other, "NoNewPrivs"), "1");
    EXPECT_EQ(*read_file(fmt::format("/proc/{}/task/{}/comm", pid, tid)), "task2\n");
    EXPECT_EQ(*read_link(fmt::format("/proc/{}/cwd", pid)), "/tmp");
    EXPECT_EQ(*read_file(fmt::format("/proc/{}/oom_score_adj", pid)), "123\n");
    EXPECT_EQ(*read_file(fmt::format("/proc/{}/coredump_filter", pid)), "00000013\n");
    EXPECT_EQ(::getpriority(PRIO_PROCESS, static_cast<id_t>(tid)), 5);
    EXPECT_EQ(::sched_getscheduler(tid), SCHED_BATCH);
    EXPECT_EQ(*read_file(fmt::format("/proc/{}/timerslack_ns", tid)), "70000\n");
    EXPECT_TRUE(read_fd_numbers(pid)->empty()) << "the executor left a descriptor behind";
    EXPECT_EQ(lines_of(*skeleton, true), expected_lines(skeleton->layout())) << "the executor left a mapping behind";
    rlimit limit{};
    ::prlimit(pid, RLIMIT_NOFILE, nullptr, &limit);
    EXPECT_EQ(limit.rlim_cur, 100u);
    EXPECT_EQ(limit.rlim_max, 200u);
}

// Counts its start, sleeps; a handler keeps what came with the signal.
TEST_F(RestoreProcessTest, ItRunsOnAndGetsItsPendingSignalWhenLetGo) {
    auto skeleton = build(small_layout());
    ASSERT_OK(skeleton);
    constexpr uint8_t handler_offset = 0x40, restorer_offset = 0x60;
    std::vector<uint8_t> code(page, 0xf4);
    const auto put = [&](size_t at, std::initializer_list<uint8_t> bytes) { std::copy(bytes.begin(), bytes.end(), code.begin() + static_cast<long>(at)); };
    put(0, {0x48, 0xff, 0x03,                    // incq (%rbx)
            0xb8, 34, 0, 0, 0, 0x0f, 0x05,       // pause
            0xeb, 0xf4});                        // again
    put(handler_offset, {0x48, 0x8b, 0x46, 0x18,  // mov 24(%rsi), %rax: si_value
                         0x48, 0x89, 0x43, 0x08,  // mov %rax, 8(%rbx)
                         0xc3});
    put(restorer_offset, {0xb8, 15, 0, 0, 0, 0x0f, 0x05});  // rt_sigreturn
    ASSERT_OK(write_code(*skeleton, code));
    ASSERT_OK(skeleton->finish_memory());

    image::Process process = simple_process(*skeleton);
    image::Task& task = *process.mutable_tasks(0);
    Registers registers = start_registers(code_at);
    registers.rbx = data_at;
    registers.fs_base = data_at + 64;
    task.set_registers(&registers, sizeof registers);
    task.set_signal_mask(1ull << (SIGHUP - 1));
    auto& action = *process.add_actions();
    action.set_signal(SIGUSR1);
    action.set_handler(code_at + handler_offset);
    action.set_flags(SA_SIGINFO | sa_restorer);
    action.set_restorer(code_at + restorer_offset);
    siginfo_t info{};
    info.si_signo = SIGUSR1;
    info.si_code = SI_QUEUE;
    info.si_value.sival_ptr = reinterpret_cast<void*>(0x1234567812345678);
    process.add_shared_pending()->set_siginfo(&info, sizeof info);
    info.si_signo = SIGHUP;
    info.si_code = SI_KERNEL;
    task.add_pending()->set_siginfo(&info, sizeof info);
    ASSERT_OK(restore_process(*skeleton, process));
    ASSERT_OK(seal(*skeleton, process));

    const pid_t pid = skeleton->pid();
    EXPECT_EQ(skeleton->tasks().front().registers()->fs_base, data_at + 64);
    EXPECT_EQ(status_hex(*read_status(pid, pid), "SigBlk"), 1ull << (SIGHUP - 1));
    EXPECT_EQ(status_hex(*read_status(pid, pid), "SigPnd"), 1ull << (SIGHUP - 1));
    EXPECT_EQ(read_word(pid, data_at), 0u) << "it ran before it was let go";
    skeleton->release();
    ASSERT_OK(skeleton->tasks().front().detach());
    const Deadline deadline = Deadline::in(milliseconds(5000));
    while (read_word(pid, data_at) == 0 && !deadline.passed()) ::usleep(1000);
    EXPECT_EQ(read_word(pid, data_at + 8), 0x1234567812345678u);
    EXPECT_GE(read_word(pid, data_at), 1u);
    ::kill(pid, SIGKILL);
    int status = 0;
    EXPECT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

TEST_F(RestoreProcessTest, WhatCannotBeGivenIsNamed) {
    const std::tuple<const char*, const char*, std::function<void(image::Process&)>> changes[] = {
        {"folder", "/nowhere", [](auto& p) { p.set_working_directory("/nowhere"); }},
        {"CPUs", "bound to CPUs", [](auto& p) { p.mutable_tasks(0)->mutable_scheduling()->set_affinity(std::string(100, '\xff')); }},
        {"capabilities", "capabilities", [](auto& p) { p.mutable_tasks(0)->mutable_credentials()->set_permitted(1ull << 63); }},
        {"pending SIGKILL", "signal 9", [](auto& p) {
             siginfo_t info{};
             info.si_signo = SIGKILL;
             p.mutable_tasks(0)->add_pending()->set_siginfo(&info, sizeof info);
         }},
        {"registers", "registers", [](auto& p) { p.mutable_tasks(0)->set_registers("short"); }},
        {"task", "task", [](auto& p) { p.mutable_tasks(0)->set_tid(1); }},
        {"unknown limit", "limit 99", [](auto& p) { p.add_limits()->set_resource(99); }},
    };
    for (const auto& [name, text, change] : changes) {
        auto skeleton = build(small_layout());
        ASSERT_OK(skeleton);
        image::Process process = simple_process(*skeleton);
        change(process);
        const auto restored = restore_process(*skeleton, process);
        ASSERT_FALSE(restored.has_value()) << name;
        EXPECT_NE(restored.error().what.find(text), std::string::npos) << restored.error().what;
    }
    auto skeleton = build(small_layout());
    ASSERT_OK(skeleton);
    image::Process process = simple_process(*skeleton);
    process.mutable_tasks(0)->mutable_xstate()->resize(512);
    ASSERT_OK(restore_process(*skeleton, process));
    const auto sealed = seal(*skeleton, process);
    ASSERT_FALSE(sealed.has_value());
    EXPECT_NE(sealed.error().what.find("512 bytes"), std::string::npos);
}

}  // namespace
}  // namespace godwit
