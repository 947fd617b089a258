// What collecting says of a stopped process: mappings, content, tasks, attributes.
#include "source-agent/collect/collect.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <ctime>
#include <optional>
#include <thread>

#include "common/base/file.h"
#include "common/kernel/proc.h"
#include "source-agent/collect/layout.h"
#include "tests/support/forked_child.h"

namespace godwit {
namespace {

using test::ForkedChild;
using test::Told;

constexpr uint64_t page = 4096;

uint64_t number(const void* at) { return reinterpret_cast<uint64_t>(at); }

char* map(size_t pages, int protection, int flags, int fd = -1, off_t offset = 0) {
    void* at = ::mmap(nullptr, pages * page, protection, flags, fd, offset);
    if (at == MAP_FAILED) ::abort();
    return static_cast<char*>(at);
}

constexpr int private_memory = MAP_PRIVATE | MAP_ANONYMOUS;
constexpr int shared_memory = MAP_SHARED | MAP_ANONYMOUS;

// A child, stopped, with an executor in it.
class Stopped {
  public:
    explicit Stopped(pid_t pid) {
        auto process = seize_process(pid, Deadline::in(milliseconds(5000)));
        EXPECT_TRUE(process) << process.error().what;
        if (!process) return;
        process_ = std::move(*process);
        auto remote = Remote::attach(process_.tasks.front());
        EXPECT_TRUE(remote) << remote.error().what;
        if (!remote) return;
        remote_.emplace(std::move(*remote));
        subject_ = {&process_, &*remote_, pid};
    }
    ~Stopped() {
        remote_.reset();
        release_process(process_);
    }
    Subject& subject() { return subject_; }
    bool ready() const { return remote_.has_value(); }
    Result<image::Process> collect() {
        auto out = TRY(collect_process(subject_));
        TRY(remote_->leave());
        TRY(collect_stopped(process_, out));
        return out;
    }

  private:
    StoppedProcess process_;
    std::optional<Remote> remote_;
    Subject subject_;
};

const image::MappingRange* mapping_at(const image::Layout& layout, uint64_t start) {
    for (const auto& mapping : layout.mappings())
        if (mapping.start() <= start && start < mapping.end()) return &mapping;
    return nullptr;
}

std::vector<uint64_t> pages_in(const std::vector<ByteRange>& ranges, uint64_t start, uint64_t count) {
    std::vector<uint64_t> out;
    for (uint64_t i = 0; i < count; ++i)
        for (const ByteRange& range : ranges)
            if (range.start <= start + i * page && start + i * page < range.end) out.push_back(i);
    return out;
}

using Pages = std::vector<uint64_t>;

image::Layout layout_of(Stopped& stopped) {
    auto reader = LayoutReader::make(stopped.subject().process->pid, stopped.subject().process->pid, {});
    EXPECT_TRUE(reader) << reader.error().what;
    auto layout = reader->read_stopped();
    EXPECT_TRUE(layout) << layout.error().what;
    return layout ? *layout : image::Layout{};
}

TEST(CollectLayout, KindsAndFlagsAreAsMapped) {
    char name[] = "/tmp/godwit-layout-XXXXXX";
    const int fd = ::mkstemp(name);
    ASSERT_EQ(::ftruncate(fd, 8 * page), 0);
    const ForkedChild child([&](Told& told) {
        int at = 0;
        const auto keep = [&](char* start) { told.number[at++] = number(start); return start; };
        ::madvise(keep(map(4, PROT_READ | PROT_WRITE, private_memory)), 4 * page, MADV_DONTDUMP);
        ::madvise(keep(map(512, PROT_READ | PROT_WRITE, private_memory | MAP_NORESERVE)), 512 * page, MADV_HUGEPAGE);
        ::madvise(keep(map(4, PROT_READ | PROT_WRITE, private_memory)), 4 * page, MADV_WIPEONFORK);
        // The system calls themselves: sanitizers make the C library's functions do nothing.
        ::syscall(SYS_mlock, keep(map(4, PROT_READ | PROT_WRITE, private_memory)), 4 * page);
        keep(map(4, PROT_READ, MAP_PRIVATE, fd, page));
        keep(map(4, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 2 * page));
        keep(map(4, PROT_READ | PROT_WRITE, shared_memory));
        char* relro = keep(map(4, PROT_READ | PROT_WRITE, private_memory));
        relro[0] = 'x';
        ::mprotect(relro, 4 * page, PROT_READ);
        keep(map(4, PROT_READ | PROT_WRITE, private_memory | MAP_GROWSDOWN));
        keep(map(4, PROT_READ | PROT_WRITE, MAP_PRIVATE, ::open("/dev/zero", O_RDWR)));
        ::mlock2(keep(map(4, PROT_READ | PROT_WRITE, private_memory)), 4 * page, MLOCK_ONFAULT);
        ::madvise(keep(map(4, PROT_READ, MAP_PRIVATE, fd)), 4 * page, MADV_RANDOM);
        told.number[at++] = number(::sbrk(0));
        return 0;
    });
    Stopped stopped(child.pid());
    ASSERT_TRUE(stopped.ready());
    const image::Layout layout = layout_of(stopped);
    std::vector<const image::MappingRange*> at;
    for (int i = 0; i < 12; ++i) {
        at.push_back(mapping_at(layout, child.told(i)));
        ASSERT_NE(at.back(), nullptr) << i;
    }
    EXPECT_TRUE(at[0]->dont_dump());
    EXPECT_EQ(at[0]->kind(), image::MAPPING_ANONYMOUS);
    EXPECT_TRUE(at[1]->huge_page() && at[1]->no_reserve());
    EXPECT_TRUE(at[2]->wipe_on_fork());
    EXPECT_TRUE(at[3]->locked() && !at[3]->lock_on_fault());
    EXPECT_EQ(at[4]->kind(), image::MAPPING_FILE_PRIVATE);
    EXPECT_EQ(at[4]->offset(), page);
    EXPECT_EQ(layout.files(static_cast<int>(at[4]->file()) - 1).path(), name);
    EXPECT_FALSE(layout.files(static_cast<int>(at[4]->file()) - 1).writable());
    EXPECT_EQ(at[5]->kind(), image::MAPPING_FILE_SHARED);
    EXPECT_EQ(at[5]->offset(), 2 * page);
    EXPECT_TRUE(layout.files(static_cast<int>(at[5]->file()) - 1).writable());
    EXPECT_EQ(at[6]->kind(), image::MAPPING_OBJECT_SHARED);
    EXPECT_NE(at[6]->shared_object(), 0u);
    EXPECT_TRUE(at[7]->accounted());
    EXPECT_EQ(at[7]->protection(), static_cast<uint32_t>(PROT_READ));
    EXPECT_TRUE(at[8]->grows_down());
    EXPECT_EQ(at[9]->kind(), image::MAPPING_ANONYMOUS);
    EXPECT_TRUE(at[10]->lock_on_fault());
    EXPECT_TRUE(at[11]->random());
    EXPECT_EQ(layout.tids_size(), 1);
    EXPECT_NE(layout.vdso(), 0u);
    const auto process = collect_process(stopped.subject());
    ASSERT_TRUE(process) << process.error().what;
    EXPECT_EQ(process->memory_map().brk(), child.told(12));
    EXPECT_GE(process->memory_map().auxv().size(), 64u);
    uint64_t end = 0;
    for (const auto& mapping : layout.mappings()) {
        EXPECT_GE(mapping.start(), end);
        EXPECT_NE(mapping.kind(), image::MAPPING_UNKNOWN);
        end = mapping.end();
    }
    ::close(fd);
    ::unlink(name);
}

TEST(ContentRanges, HoldExactlyWhatWasTouched) {
    char name[] = "/tmp/godwit-content-XXXXXX";
    const int fd = ::mkstemp(name);
    ASSERT_EQ(::ftruncate(fd, 8 * page), 0);
    const ForkedChild child([&](Told& told) {
        char* memory = map(64, PROT_READ | PROT_WRITE, private_memory);
        ::madvise(memory, 64 * page, MADV_NOHUGEPAGE);
        for (const int i : {0, 1, 5, 63}) memory[i * page] = 'x';
        const volatile char zero = memory[20 * page];  // the kernel's page of zeros
        memory[30 * page] = 'x';
        ::madvise(memory + 30 * page, page, MADV_DONTNEED);
        told.number[0] = number(memory);
        told.number[9] = static_cast<uint64_t>(zero);
        char* file = map(8, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
        file[3 * page] = 'x';
        const volatile char clean = file[page];
        told.number[9] += static_cast<uint64_t>(clean);
        told.number[1] = number(file);
        char* hidden = map(8, PROT_READ | PROT_WRITE, private_memory);
        hidden[2 * page] = 'x';
        ::mprotect(hidden, 8 * page, PROT_NONE);
        told.number[2] = number(hidden);
        char* shared = map(16, PROT_READ | PROT_WRITE, shared_memory);
        shared[4 * page] = shared[7 * page] = 'x';
        // There, but in no page table of this process.
        ::madvise(shared, 16 * page, MADV_DONTNEED);
        told.number[3] = number(shared);
        void* twin = ::mremap(shared, 0, 8 * page, MREMAP_MAYMOVE);
        told.number[4] = number(twin);
        char* file_shared = map(8, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
        file_shared[0] = 'x';
        told.number[5] = number(file_shared);
        return twin == MAP_FAILED ? errno : 0;
    });
    ASSERT_EQ(child.error(), 0);
    Stopped stopped(child.pid());
    ASSERT_TRUE(stopped.ready());
    const image::Layout layout = layout_of(stopped);
    const auto ranges = content_ranges(child.pid(), layout);
    ASSERT_TRUE(ranges) << ranges.error().what;
    EXPECT_EQ(pages_in(*ranges, child.told(0), 64), (Pages{0, 1, 5, 63}));
    EXPECT_EQ(pages_in(*ranges, child.told(1), 8), (Pages{3}));
    EXPECT_EQ(pages_in(*ranges, child.told(2), 8), (Pages{2}));
    EXPECT_EQ(pages_in(*ranges, child.told(4), 8), Pages{});  // shared memory is told by SharedObjects
    EXPECT_EQ(pages_in(*ranges, child.told(3), 16), Pages{});
    EXPECT_EQ(pages_in(*ranges, child.told(5), 8), Pages{});
    EXPECT_EQ(pages_in(*ranges, layout.vdso(), 1), Pages{});
    for (size_t i = 1; i < ranges->size(); ++i) EXPECT_LT((*ranges)[i - 1].end, (*ranges)[i].start);
    ::close(fd);
    ::unlink(name);
}

uint64_t page_table_kb(pid_t pid) {
    const auto status = read_status(pid, pid);
    return status ? std::strtoull(status_value(*status, "VmPTE").c_str(), nullptr, 10) : 0;
}

TEST(ContentRanges, HugeReservationCostsNothing) {
    const ForkedChild child([](Told& told) {
        char* reserved = map((4ull << 40) / page, PROT_NONE, private_memory | MAP_NORESERVE);
        ::mprotect(reserved + (1ull << 40), page, PROT_READ | PROT_WRITE);
        reserved[1ull << 40] = 'x';
        told.number[0] = number(reserved) + (1ull << 40);
        return 0;
    });
    Stopped stopped(child.pid());
    ASSERT_TRUE(stopped.ready());
    const image::Layout layout = layout_of(stopped);
    const uint64_t before = page_table_kb(child.pid());
    const auto begun = Clock::now();
    const auto ranges = content_ranges(child.pid(), layout);
    ASSERT_TRUE(ranges);
    EXPECT_LT(Clock::now() - begun, milliseconds(500));
    EXPECT_EQ(page_table_kb(child.pid()), before);
    EXPECT_EQ(pages_in(*ranges, child.told(0), 2), (Pages{0}));
}

void ignore(int) {}

int become_peculiar(Told& told) {
    struct sigaction action{};
    action.sa_handler = ignore;
    action.sa_flags = SA_RESTART;
    sigaddset(&action.sa_mask, SIGUSR1);
    ::sigaction(SIGUSR2, &action, nullptr);
    ::signal(SIGPIPE, SIG_IGN);
    sigset_t blocked;
    sigemptyset(&blocked);
    for (const int signal : {SIGUSR1, SIGALRM, SIGRTMIN}) sigaddset(&blocked, signal);
    ::sigprocmask(SIG_BLOCK, &blocked, nullptr);
    for (int i = 1; i <= 3; ++i) {
        sigval value{};
        value.sival_int = i;
        ::sigqueue(::getpid(), SIGRTMIN, value);
    }
    ::syscall(SYS_tgkill, ::getpid(), ::gettid(), SIGUSR1);
    const itimerval interval{{0, 500'000}, {3600, 0}};
    ::setitimer(ITIMER_PROF, &interval, nullptr);
    timer_t timer{};
    sigevent event{};
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGUSR2;
    event.sigev_value.sival_ptr = &told;
    if (::timer_create(CLOCK_MONOTONIC, &event, &timer) != 0) return errno;
    told.number[2] = number(&told);
    const itimerspec when{{7, 0}, {1000, 0}};
    ::timer_settime(timer, 0, &when, nullptr);
    static char stack[65536];
    const stack_t alternate{stack, 0, sizeof stack};
    ::sigaltstack(&alternate, nullptr);
    told.number[0] = number(stack);
    told.number[1] = number(reinterpret_cast<void*>(ignore));
    ::umask(0027);
    const rlimit files{100, 200};
    ::setrlimit(RLIMIT_NOFILE, &files);
    ::prctl(PR_SET_NAME, "odd (name) x");
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::prctl(PR_SET_TIMERSLACK, 70'000);
    ::prctl(PR_SET_KEEPCAPS, 1);
    ::setpriority(PRIO_PROCESS, 0, 3);
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(0, &cpus);
    ::sched_setaffinity(0, sizeof cpus, &cpus);
    return ::chdir("/usr") != 0 ? errno : 0;
}

TEST(CollectProcess, TellsAttributes) {
    const ForkedChild child(become_peculiar);
    ASSERT_EQ(child.error(), 0);
    Stopped stopped(child.pid());
    ASSERT_TRUE(stopped.ready());
    const auto process = stopped.collect();
    ASSERT_TRUE(process) << process.error().what;
    EXPECT_EQ(process->pid(), child.pid());
    EXPECT_EQ(process->sid(), child.pid());
    EXPECT_EQ(process->umask(), 0027u);
    EXPECT_EQ(process->working_directory(), "/usr");
    EXPECT_TRUE(process->child_subreaper());
    EXPECT_EQ(process->limits(RLIMIT_NOFILE).soft(), 100u);
    EXPECT_EQ(process->limits(RLIMIT_NOFILE).hard(), 200u);
    int known = 0;
    for (const auto& action : process->actions()) {
        if (action.signal() == SIGPIPE && action.handler() == 1) ++known;
        if (action.signal() != SIGUSR2) continue;
        EXPECT_EQ(action.handler(), child.told(1));
        EXPECT_NE(action.flags() & SA_RESTART, 0u);
        EXPECT_EQ(action.mask(), 1ull << (SIGUSR1 - 1));
        ++known;
    }
    EXPECT_EQ(known, 2);
    ASSERT_EQ(process->shared_pending_size(), 3);
    for (int i = 0; i < 3; ++i) {
        siginfo_t info;
        std::memcpy(&info, process->shared_pending(i).siginfo().data(), sizeof info);
        EXPECT_EQ(info.si_value.sival_int, i + 1);
    }
    ASSERT_EQ(process->interval_timers_size(), 1);
    EXPECT_EQ(process->interval_timers(0).interval_us(), 500'000);
    ASSERT_EQ(process->posix_timers_size(), 1);
    const auto& timer = process->posix_timers(0);
    EXPECT_EQ(timer.clock(), CLOCK_MONOTONIC);
    EXPECT_EQ(timer.signal(), static_cast<uint32_t>(SIGUSR2));
    EXPECT_EQ(timer.value(), child.told(2));
    EXPECT_EQ(timer.interval_ns(), 7'000'000'000);
    EXPECT_NEAR(static_cast<double>(timer.remaining_ns()), 1000e9, 30e9);
    ASSERT_EQ(process->tasks_size(), 1);
    const auto& task = process->tasks(0);
    EXPECT_EQ(task.name(), "odd (name) x");
    EXPECT_EQ(task.pending_size(), 1);
    EXPECT_EQ(task.signal_mask(), (1ull << (SIGUSR1 - 1)) | (1ull << (SIGALRM - 1)) | (1ull << (SIGRTMIN - 1)));
    EXPECT_EQ(task.alternate_stack(), child.told(0));
    EXPECT_EQ(task.alternate_stack_size(), 65536u);
    EXPECT_EQ(task.parent_death_signal(), static_cast<uint32_t>(SIGKILL));
    EXPECT_EQ(task.scheduling().timer_slack_ns(), 70'000u);
    EXPECT_EQ(task.scheduling().nice(), 3);
    EXPECT_EQ(task.scheduling().affinity()[0], 1);
    EXPECT_EQ(task.credentials().securebits(), 1u << 4);  // SECBIT_KEEP_CAPS
    EXPECT_EQ(task.credentials().uid(), ::getuid());
    EXPECT_EQ(task.registers().size(), sizeof(user_regs_struct));
    EXPECT_GE(task.xstate().size(), 576u);
    EXPECT_NE(task.rseq(), 0u);
    EXPECT_NE(task.robust_list(), 0u);
}

TEST(CollectProcess, EachThreadHasItsOwn) {
    const ForkedChild child([](Told& told) {
        for (int i = 0; i < 3; ++i)
            std::thread([i, &told] {
                ::prctl(PR_SET_NAME, fmt::format("worker {}", i).c_str());
                ::syscall(SYS_setresuid, 1000 + i, -1, -1);
                ::prctl(PR_SET_TIMERSLACK, 60'000 + i);
                told.number[i] = static_cast<uint64_t>(::gettid());
                for (;;) ::pause();
            }).detach();
        while (const_cast<volatile uint64_t&>(told.number[0]) == 0 || const_cast<volatile uint64_t&>(told.number[1]) == 0 ||
               const_cast<volatile uint64_t&>(told.number[2]) == 0)
            ::usleep(100);
        return 0;
    });
    Stopped stopped(child.pid());
    ASSERT_TRUE(stopped.ready());
    const auto process = stopped.collect();
    ASSERT_TRUE(process) << process.error().what;
    ASSERT_EQ(process->tasks_size(), 4);
    EXPECT_EQ(process->tasks(0).tid(), child.pid());
    for (int i = 0; i < 3; ++i)
        for (const auto& task : process->tasks()) {
            if (task.tid() != static_cast<int>(child.told(i))) continue;
            EXPECT_EQ(task.name(), fmt::format("worker {}", i));
            EXPECT_EQ(task.credentials().uid(), 1000u + static_cast<unsigned>(i));
            EXPECT_EQ(task.scheduling().timer_slack_ns(), 60'000u + static_cast<unsigned>(i));
            EXPECT_NE(task.clear_child_tid(), 0u);
            EXPECT_NE(task.rseq(), process->tasks(0).rseq());
        }
}

// The kernel arms it again only when the signal is taken.
TEST(CollectProcess, PeriodicAlarmWithItsSignalPendingGoesOn) {
    const ForkedChild child([](Told&) {
        sigset_t alarm;
        sigemptyset(&alarm);
        sigaddset(&alarm, SIGALRM);
        ::sigprocmask(SIG_BLOCK, &alarm, nullptr);
        const itimerval soon{{60, 0}, {0, 1000}};
        ::setitimer(ITIMER_REAL, &soon, nullptr);
        do ::sigpending(&alarm);
        while (sigismember(&alarm, SIGALRM) == 0);
        return 0;
    });
    Stopped stopped(child.pid());
    ASSERT_TRUE(stopped.ready());
    const auto process = stopped.collect();
    ASSERT_TRUE(process) << process.error().what;
    EXPECT_EQ(process->shared_pending_size(), 1);
    ASSERT_EQ(process->interval_timers_size(), 1);
    EXPECT_EQ(process->interval_timers(0).interval_us(), 60'000'000);
    EXPECT_EQ(process->interval_timers(0).value_us(), 60'000'000);
}

// With no room to queue it, a signal is a bit alone.
TEST(CollectProcess, SignalsWithoutDescriptionAreNotLost) {
    const ForkedChild child([](Told&) {
        ::setresuid(12345, 12345, 12345);
        const rlimit none{0, 0};
        ::setrlimit(RLIMIT_SIGPENDING, &none);
        sigset_t blocked;
        sigemptyset(&blocked);
        sigaddset(&blocked, SIGUSR1);
        ::sigprocmask(SIG_BLOCK, &blocked, nullptr);
        return ::kill(::getpid(), SIGUSR1) != 0 ? errno : 0;
    });
    ASSERT_EQ(child.error(), 0);
    Stopped stopped(child.pid());
    ASSERT_TRUE(stopped.ready());
    const auto process = stopped.collect();
    ASSERT_TRUE(process) << process.error().what;
    ASSERT_EQ(process->shared_pending_size(), 1);
    siginfo_t info;
    std::memcpy(&info, process->shared_pending(0).siginfo().data(), sizeof info);
    EXPECT_EQ(info.si_signo, SIGUSR1);
}

struct Inside {
    const char* name;
    int (*act)(Told&);
    const char* words;
};
class InsideRefusal : public testing::TestWithParam<Inside> {};

TEST_P(InsideRefusal, IsNamed) {
    const ForkedChild child(GetParam().act);
    if (child.not_here()) GTEST_SKIP() << "kernel: does not let a program do it here: " << ::strerror(child.error());
    ASSERT_EQ(child.error(), 0);
    Stopped stopped(child.pid());
    ASSERT_TRUE(stopped.ready());
    const auto process = stopped.collect();
    ASSERT_FALSE(process);
    EXPECT_EQ(process.error().code, ExitCode::unsupported);
    EXPECT_THAT(process.error().what, testing::ContainsRegex(GetParam().words));
}

int outcome(long result) { return result < 0 ? errno : 0; }

// Neither a descriptor nor a mapping of the kernel's shows it.
int register_ring() {
    uint32_t parameters[30] = {0, 0, 1u << 14 | 1u << 15};  // IORING_SETUP_NO_MMAP, IORING_SETUP_REGISTERED_FD_ONLY: Linux 6.5
    for (const size_t user_addr : {18, 28}) {
        const void* ring = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        std::memcpy(&parameters[user_addr], &ring, sizeof ring);
    }
    return outcome(::syscall(SYS_io_uring_setup, 1, parameters));
}

INSTANTIATE_TEST_SUITE_P(
    Collect, InsideRefusal,
    testing::Values(Inside{"tsc", [](Told&) { return outcome(::prctl(PR_SET_TSC, PR_TSC_SIGSEGV)); }, "RDTSC"},
                    Inside{"membarrier",
                           [](Told&) { return outcome(::syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0)); },
                           "membarrier"},
                    Inside{"merge", [](Told&) { return outcome(::prctl(67, 1, 0, 0, 0)); }, "merges all its memory"},
                    Inside{"ring", [](Told&) { return register_ring(); }, "registered io_uring"},
                    Inside{"locks", [](Told&) { return outcome(static_cast<int>(::syscall(SYS_mlockall, MCL_FUTURE))); }, "MCL_FUTURE"},
                    Inside{"errors", [](Told&) { return outcome(::prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0)); }, "memory errors"},
                    Inside{"child",
                           [](Told&) {
                               const pid_t parent = ::getpid();
                               if (const pid_t child = ::fork(); child != 0) return outcome(child);
                               ::prctl(PR_SET_PDEATHSIG, SIGKILL);
                               while (::getppid() == parent) ::pause();  // or it ended before we could hear of it
                               ::_exit(0);
                           },
                           "has a child"},
                    Inside{"directory",
                           [](Told&) {
                               char name[] = "/tmp/godwit-lost-XXXXXX";
                               if (::mkdtemp(name) == nullptr || ::chdir(name) != 0) return errno;
                               return outcome(::rmdir(name));
                           },
                           "working directory .* deleted"}),
    [](const testing::TestParamInfo<Inside>& one) { return std::string(one.param.name); });

}  // namespace
}  // namespace godwit
