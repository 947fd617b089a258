#include "dest-agent/skeleton.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <functional>
#include <random>

#include "common/base/file.h"
#include "common/kernel/proc.h"
#include "dest-agent/restore/restore.h"

namespace godwit {
namespace {

using image::MappingRange;

constexpr uint64_t page = 4096;
constexpr uint64_t code_at = 0x400000;
constexpr uint64_t data_at = 0x10000000;
constexpr uint64_t heap_at = 0x20000000;
constexpr uint64_t stack_at = 0x7ffd00000000;
constexpr uint64_t vdso_area = 0x7ffe00000000;
constexpr uint64_t sa_restorer = 0x04000000;  // SA_RESTORER of the kernel

#define ASSERT_OK(...)                                                    \
    do {                                                                  \
        const auto& ok_ = (__VA_ARGS__);                                  \
        ASSERT_TRUE(ok_.has_value()) << ok_.error().what;                 \
    } while (false)

int64_t monotonic_ns() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

image::Clocks clocks_ahead(int64_t by_ns) {
    timespec boot{};
    ::clock_gettime(CLOCK_BOOTTIME, &boot);
    image::Clocks clocks;
    clocks.set_monotonic_ns(monotonic_ns() + by_ns);
    clocks.set_boottime_ns(boot.tv_sec * 1'000'000'000 + boot.tv_nsec + 2 * by_ns);
    return clocks;
}

bool exists(pid_t pid) { return ::kill(pid, 0) == 0; }

// Numbers below pid_max that nobody has, in descending order.
std::vector<pid_t> free_pids(size_t count) {
    std::vector<pid_t> pids;
    for (pid_t pid = std::atoi(read_file("/proc/sys/kernel/pid_max")->c_str()) - 1; pids.size() < count && pid > 1; --pid)
        if (!exists(pid) && errno == ESRCH) pids.push_back(pid);
    return pids;
}

MappingRange& add(image::Layout& layout, uint64_t start, uint64_t pages, image::MappingKind kind, int protection) {
    MappingRange& range = *layout.add_mappings();
    range.set_start(start);
    range.set_end(start + pages * page);
    range.set_kind(kind);
    range.set_protection(static_cast<uint32_t>(protection));
    range.set_has_content(kind == image::MAPPING_ANONYMOUS && protection != PROT_NONE);
    return range;
}

// This kernel's [vvar] and [vdso], moved.
void add_vdso(image::Layout& layout) {
    const auto maps = read_maps(::getpid());
    uint64_t first = 0;
    for (const Vma& vma : *maps) {
        const bool vdso = vma.path == "[vdso]";
        if (!vdso && !vma.path.starts_with("[vvar")) continue;
        if (first == 0) first = vma.start;
        MappingRange& range = add(layout, vdso_area + (vma.start - first), vma.size() / page,
                                  vdso ? image::MAPPING_VDSO : image::MAPPING_VVAR, static_cast<int>(vma.protection));
        range.set_has_content(false);
        if (vdso) layout.set_vdso(range.start());
    }
}

image::Layout small_layout(size_t threads = 1) {
    image::Layout layout;
    for (const pid_t tid : free_pids(threads)) layout.add_tids(tid);
    layout.set_pid(layout.tids(0));
    layout.set_name("restored");
    const std::string program = std::filesystem::canonical("/bin/true");
    layout.set_executable(program);
    layout.add_files()->set_path(program);
    MappingRange& file = add(layout, code_at - page, 1, image::MAPPING_FILE_PRIVATE, PROT_READ);
    file.set_file(1);
    add(layout, code_at, 1, image::MAPPING_ANONYMOUS, PROT_READ | PROT_EXEC).set_accounted(true);
    add(layout, data_at, 4, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE);
    add(layout, heap_at, 8, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE);
    add(layout, stack_at, 32, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE).set_grows_down(true);
    add_vdso(layout);
    image::MemoryMap& map = *layout.mutable_memory_map();
    map.set_start_code(code_at);
    map.set_end_code(code_at + 100);
    map.set_start_data(data_at);
    map.set_end_data(data_at + 100);
    map.set_start_brk(heap_at);
    map.set_brk(heap_at + 8 * page);
    map.set_start_stack(stack_at + 20 * page);
    map.set_arg_start(stack_at + 30 * page);
    map.set_arg_end(map.arg_start() + 10);
    map.set_env_start(map.arg_end());
    map.set_env_end(map.env_start() + 4);
    map.set_auxv(std::string(32, '\0'));
    return layout;
}

image::Credentials own_credentials() {
    image::Credentials credentials;
    const Status status = *read_status(::getpid(), ::getpid());
    for (const int group : status_ids(status, "Groups")) credentials.add_groups(static_cast<uint32_t>(group));
    credentials.set_inheritable(status_hex(status, "CapInh"));
    credentials.set_permitted(status_hex(status, "CapPrm"));
    credentials.set_effective(status_hex(status, "CapEff"));
    credentials.set_bounding(status_hex(status, "CapBnd"));
    return credentials;
}

// Of a task that does nothing: this machine's size, initial values.
std::string some_xstate() {
    const pid_t child = ::fork();
    if (child == 0)
        for (;;) ::pause();
    std::string bytes;
    if (auto task = Tracee::seize(child)) {
        (void)task->interrupt();
        (void)task->wait_stopped(Deadline::in(milliseconds(5000)));
        bytes = task->xstate().value_or("");
    }
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    return bytes;
}

Registers start_registers(uint64_t rip) {
    Registers registers{};
    registers.rip = rip;
    registers.rsp = stack_at + 20 * page;
    registers.cs = 0x33;
    registers.ss = 0x2b;
    registers.eflags = 0x202;
    return registers;
}

image::Process simple_process(Skeleton& skeleton, uint64_t rip = code_at) {
    image::Process process;
    process.set_pid(skeleton.pid());
    process.set_working_directory("/tmp");
    process.set_umask(027);
    process.set_dumpable(1);
    process.set_core_filter(0x33);
    const std::string xstate = some_xstate();
    for (const int32_t tid : skeleton.layout().tids()) {
        image::Task& task = *process.add_tasks();
        task.set_tid(tid);
        task.set_name(fmt::format("task{}", process.tasks_size()));
        const Registers registers = start_registers(rip);
        task.set_registers(&registers, sizeof registers);
        task.set_xstate(xstate);
        task.set_alternate_stack_flags(SS_DISABLE);
        *task.mutable_credentials() = own_credentials();
    }
    return process;
}

struct Line {
    uint64_t start, end;
    uint32_t protection;
    bool shared;
    uint64_t offset;
    bool operator==(const Line&) const = default;
};
std::ostream& operator<<(std::ostream& out, const Line& line) {
    return out << fmt::format("{:x}-{:x} {} {} {:x}", line.start, line.end, line.protection, line.shared, line.offset);
}

std::vector<Line> expected_lines(const image::Layout& layout) {
    std::vector<Line> lines;
    for (const MappingRange& range : layout.mappings())
        lines.push_back({range.start(), range.end(), range.protection(),
                         range.kind() == image::MAPPING_ANONYMOUS_SHARED || range.kind() == image::MAPPING_FILE_SHARED, range.offset()});
    return lines;
}

std::vector<Line> lines_of(Skeleton& skeleton, bool executor_gone = false) {
    std::vector<Line> lines;
    const auto maps = read_maps(skeleton.pid());
    for (const Vma& vma : *maps) {
        if (vma.path == "[vsyscall]") continue;
        if (!executor_gone) {
            const uint64_t executor = skeleton.remote().start().address();
            if (vma.start >= executor && vma.end <= executor + skeleton.remote().size()) continue;
        }
        lines.push_back({vma.start, vma.end, vma.protection, vma.shared, vma.offset});
    }
    return lines;
}

std::string read_back(pid_t pid, uint64_t at, size_t size) {
    std::string bytes(size, '\0');
    const auto memory = ProcessMemory::open(pid);
    if (!memory || !memory->read(RemotePtr(at), bytes.data(), size)) return "unreadable";
    return bytes;
}

uint64_t read_word(pid_t pid, uint64_t at) {
    uint64_t word = 0;
    std::memcpy(&word, read_back(pid, at, sizeof word).data(), sizeof word);
    return word;
}

std::string pages_of(char fill, size_t count) { return std::string(count * page, fill); }

Result<void> write(Skeleton& skeleton, uint64_t at, const std::string& bytes) {
    return skeleton.write_pages(at, reinterpret_cast<const std::byte*>(bytes.data()), bytes.size());
}

Result<void> write_code(Skeleton& skeleton, const std::vector<uint8_t>& code) {
    std::string bytes(page, '\0');
    std::memcpy(bytes.data(), code.data(), code.size());
    return write(skeleton, code_at, bytes);
}

class SkeletonTest : public testing::Test {
  protected:
    void SetUp() override {
        if (::geteuid() != 0) GTEST_SKIP() << "needs root";
        // Orphans come to us at once instead of to an init that may take its time.
        ::prctl(PR_SET_CHILD_SUBREAPER, 1);
    }
    void TearDown() override {
        while (::waitpid(-1, nullptr, WNOHANG | __WALL) > 0) continue;
        ::prctl(PR_SET_CHILD_SUBREAPER, 0);
    }
    static Result<Spawner> spawner(int64_t ahead_ns = 0) { return Spawner::start(clocks_ahead(ahead_ns), monotonic_ns(), GODWIT_BINARY); }
    static Result<Skeleton> build(const image::Layout& layout) {
        Spawner helper = TRY(spawner());
        return Skeleton::build(helper, layout);
    }
};

TEST_F(SkeletonTest, MappingsAreThoseOfTheLayout) {
    image::Layout layout = small_layout();
    add(layout, 0x600000000000, 1 << 24, image::MAPPING_ANONYMOUS, PROT_NONE);
    std::sort(layout.mutable_mappings()->begin(), layout.mutable_mappings()->end(),
              [](const auto& a, const auto& b) { return a.start() < b.start(); });
    auto skeleton = build(layout);
    ASSERT_OK(skeleton);
    ASSERT_OK(skeleton->finish_memory());
    EXPECT_EQ(lines_of(*skeleton), expected_lines(layout));
}

TEST_F(SkeletonTest, ProcShowsTheProgramItStandsFor) {
    auto skeleton = build(small_layout());
    ASSERT_OK(skeleton);
    std::string arguments = pages_of('\0', 32);
    std::memcpy(arguments.data() + 30 * page, "true\0-abc\0A=b\0", 14);
    ASSERT_OK(write(*skeleton, stack_at, arguments));
    const std::string folder = fmt::format("/proc/{}/", skeleton->pid());
    EXPECT_EQ(*read_file(folder + "cmdline"), std::string("true\0-abc\0", 10));
    EXPECT_EQ(*read_file(folder + "environ"), std::string("A=b\0", 4));
    EXPECT_EQ(*read_file(folder + "comm"), "restored\n");
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

TEST_F(SkeletonTest, PagesLandWhateverTheirProtection) {
    image::Layout layout = small_layout();
    layout.mutable_mappings(0)->set_has_content(true);  // a file mapping that never was writable
    auto skeleton = build(layout);
    ASSERT_OK(skeleton);
    ASSERT_OK(write(*skeleton, code_at - page, pages_of('f', 1) + pages_of('c', 1)));
    ASSERT_OK(write(*skeleton, data_at + page, pages_of('d', 2)));
    ASSERT_OK(skeleton->finish_memory());
    EXPECT_EQ(lines_of(*skeleton), expected_lines(layout));
    EXPECT_EQ(read_back(skeleton->pid(), code_at - page, 2 * page), pages_of('f', 1) + pages_of('c', 1));
    EXPECT_EQ(read_back(skeleton->pid(), data_at, 4 * page), pages_of('\0', 1) + pages_of('d', 2) + pages_of('\0', 1));
}

TEST_F(SkeletonTest, SharedMemoryMappedTwiceIsOneObject) {
    image::Layout layout = small_layout();
    constexpr uint64_t first = 0x30000000, second = 0x31000000;
    MappingRange& whole = add(layout, first, 4, image::MAPPING_ANONYMOUS_SHARED, PROT_READ);
    whole.set_shared_object(77);
    whole.set_has_content(true);
    MappingRange& part = add(layout, second, 2, image::MAPPING_ANONYMOUS_SHARED, PROT_READ | PROT_WRITE);
    part.set_shared_object(77);
    part.set_offset(2 * page);
    std::sort(layout.mutable_mappings()->begin(), layout.mutable_mappings()->end(),
              [](const auto& a, const auto& b) { return a.start() < b.start(); });
    auto skeleton = build(layout);
    ASSERT_OK(skeleton);
    ASSERT_OK(write(*skeleton, first, pages_of('1', 2) + pages_of('2', 2)));
    ASSERT_OK(skeleton->finish_memory());
    EXPECT_EQ(lines_of(*skeleton), expected_lines(layout));
    EXPECT_EQ(read_back(skeleton->pid(), second, 2 * page), pages_of('2', 2));
    const auto memory = ProcessMemory::open(skeleton->pid());
    ASSERT_OK(memory->write(RemotePtr(second), "new", 3));
    EXPECT_EQ(read_back(skeleton->pid(), first + 2 * page, 3), "new");
}

TEST_F(SkeletonTest, WrongPageRangesAreRefused) {
    auto skeleton = build(small_layout());
    ASSERT_OK(skeleton);
    const struct {
        uint64_t at, size;
    } ranges[] = {
        {data_at + 4 * page, page},        // right behind
        {data_at - page, 2 * page},        // begins before
        {data_at + 3 * page, 2 * page},    // ends behind
        {code_at - page, page},            // a mapping without content
        {vdso_area, page},                 // the vDSO
        {data_at + 1, page},               // no page
        {data_at, 100},
        {0, page},
        {~0ull - page + 1, page},
        {0x7ffffffff000, page},
        {data_at, ~0ull - page + 1},
        {0xffffffffff600000, page},
    };
    const std::string bytes = pages_of('x', 4);
    for (const auto& range : ranges) {
        const auto written = skeleton->write_pages(range.at, reinterpret_cast<const std::byte*>(bytes.data()), range.size);
        ASSERT_FALSE(written.has_value()) << fmt::format("{:x} {:x}", range.at, range.size);
        EXPECT_EQ(written.error().code, ExitCode::peer);
    }
    EXPECT_EQ(read_back(skeleton->pid(), data_at, 4 * page), pages_of('\0', 4)) << "a part of a refused range was written";
}

TEST_F(SkeletonTest, WrongLayoutsAreRefused) {
    auto helper = spawner();
    ASSERT_OK(helper);
    const std::pair<const char*, std::function<void(image::Layout&)>> changes[] = {
        {"overlap", [](auto& l) { l.mutable_mappings(1)->set_end(data_at + page); }},
        {"not ascending", [](auto& l) { l.mutable_mappings()->SwapElements(1, 2); }},
        {"end before start", [](auto& l) { l.mutable_mappings(2)->set_end(data_at - page); }},
        {"not a page", [](auto& l) { l.mutable_mappings(2)->set_end(data_at + 5); }},
        {"beyond the address space", [](auto& l) { l.mutable_mappings(l.mappings_size() - 1)->set_end(0x800000000000); }},
        {"unknown kind", [](auto& l) { l.mutable_mappings(2)->set_kind(image::MAPPING_UNKNOWN); }},
        {"unknown protection", [](auto& l) { l.mutable_mappings(2)->set_protection(0x1000000); }},
        {"file that is not listed", [](auto& l) { l.mutable_mappings(0)->set_file(2); }},
        {"anonymous memory of a file", [](auto& l) { l.mutable_mappings(2)->set_file(1); }},
        {"shared object without id", [](auto& l) { l.mutable_mappings(2)->set_kind(image::MAPPING_ANONYMOUS_SHARED); }},
        {"offset that overflows", [](auto& l) { l.mutable_mappings(0)->set_offset(~0ull - 4095); }},
        {"no vDSO", [](auto& l) { l.mutable_mappings()->RemoveLast(); }},
        {"no task", [](auto& l) { l.clear_tids(); }},
        {"init", [](auto& l) { l.set_pid(1); l.set_tids(0, 1); }},
        {"task twice", [](auto& l) { l.add_tids(l.pid()); }},
        {"file that is missing", [](auto& l) { l.mutable_files(0)->set_path("/nowhere/at/all"); }},
        {"executable that is missing", [](auto& l) { l.set_executable("/nowhere/at/all"); }},
        {"cut auxiliary vector", [](auto& l) { l.mutable_memory_map()->set_auxv("abc"); }},
        {"pid in use", [](auto& l) { l.set_pid(::getpid()); l.set_tids(0, ::getpid()); }},
        {"thread id in use", [](auto& l) { l.add_tids(::getpid()); }},
    };
    for (const auto& [name, change] : changes) {
        image::Layout layout = small_layout();
        const pid_t pid = layout.pid();
        change(layout);
        const auto skeleton = Skeleton::build(*helper, layout);
        EXPECT_FALSE(skeleton.has_value()) << name;
        EXPECT_FALSE(exists(pid)) << name << " left a process behind";
    }
    // The helper is none the worse for it.
    EXPECT_TRUE(Skeleton::build(*helper, small_layout()).has_value());
}

TEST_F(SkeletonTest, ThreadsHaveTheirNumbers) {
    auto skeleton = build(small_layout(5));
    ASSERT_OK(skeleton);
    ASSERT_EQ(skeleton->tasks().size(), 5u);
    std::vector<pid_t> wanted(skeleton->layout().tids().begin(), skeleton->layout().tids().end());
    for (size_t i = 0; i < 5; ++i) EXPECT_EQ(skeleton->tasks()[i].tid(), wanted[i]);
    std::sort(wanted.begin(), wanted.end());
    auto there = *read_tasks(skeleton->pid());
    std::sort(there.begin(), there.end());
    EXPECT_EQ(there, wanted);
}

TEST_F(SkeletonTest, AThousandThreadsAreMadeSealedAndGone) {
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

TEST_F(SkeletonTest, ItEndsWithTheAgent) {
    const image::Layout layout = small_layout(3);
    int ready[2];
    ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    const pid_t agent = ::fork();
    if (agent == 0) {
        auto skeleton = build(layout);
        const char built = skeleton.has_value() ? 1 : 0;
        (void)!::write(ready[1], &built, 1);
        for (;;) ::pause();
    }
    char built = 0;
    ASSERT_EQ(::read(ready[0], &built, 1), 1);
    ::close(ready[0]);
    ::close(ready[1]);
    EXPECT_EQ(built, 1);
    EXPECT_TRUE(exists(layout.pid()));
    ::kill(agent, SIGKILL);
    ::waitpid(agent, nullptr, 0);
    // It is our child now.
    int status = 0;
    EXPECT_EQ(::waitpid(layout.pid(), &status, 0), layout.pid());
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

TEST_F(SkeletonTest, ItsClocksGoOnFromThoseOfTheTree) {
    constexpr int64_t hour = 3600ll * 1'000'000'000;
    auto helper = spawner(hour);
    ASSERT_OK(helper);
    auto skeleton = Skeleton::build(*helper, small_layout());
    ASSERT_OK(skeleton);
    Batch batch;
    const auto monotonic = batch.out(sizeof(timespec));
    const auto boot = batch.out(sizeof(timespec));
    batch.call(SYS_clock_gettime, CLOCK_MONOTONIC, monotonic);
    batch.call(SYS_clock_gettime, CLOCK_BOOTTIME, boot);
    ASSERT_OK(skeleton->remote().run(batch));
    timespec boot_here{};
    ::clock_gettime(CLOCK_BOOTTIME, &boot_here);
    EXPECT_NEAR(static_cast<double>(batch.read<timespec>(monotonic).tv_sec), static_cast<double>(monotonic_ns() / 1'000'000'000 + 3600), 3);
    EXPECT_NEAR(static_cast<double>(batch.read<timespec>(boot).tv_sec), static_cast<double>(boot_here.tv_sec + 7200), 3);
    EXPECT_NE(*read_link(fmt::format("/proc/{}/ns/time", skeleton->pid())), *read_link("/proc/self/ns/time"));
}

TEST_F(SkeletonTest, AttributesAreRestored) {
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
TEST_F(SkeletonTest, ItRunsOnAndGetsItsPendingSignalWhenLetGo) {
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

TEST_F(SkeletonTest, WhatCannotBeGivenIsNamed) {
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

TEST(CheckPids, WhatIsInUseIsNamed) {
    image::Plan plan;
    const pid_t free = free_pids(1).front();
    plan.add_processes()->mutable_pid()->add_id(free);
    EXPECT_TRUE(check_pids(plan).empty());
    plan.mutable_processes(0)->add_tids()->add_id(::getpid());
    plan.mutable_processes(0)->add_tids()->add_id(1);
    plan.mutable_processes(0)->add_tids()->add_id(1 << 30);
    const auto problems = check_pids(plan);
    ASSERT_EQ(problems.size(), 3u);
    EXPECT_NE(problems[0].what.find(fmt::format("pid {} is in use here", ::getpid())), std::string::npos);
}

// Not a pass or fail by time: the figure is for people.
TEST_F(SkeletonTest, PagesPerSecond) {
    image::Layout layout = small_layout();
    constexpr uint64_t at = 0x100000000, pages = 65536, chunk = 256;
    add(layout, at, pages, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE);
    std::sort(layout.mutable_mappings()->begin(), layout.mutable_mappings()->end(),
              [](const auto& a, const auto& b) { return a.start() < b.start(); });
    auto skeleton = build(layout);
    ASSERT_OK(skeleton);
    std::string content(chunk * page, '\0');
    std::mt19937_64 random(1);
    for (size_t i = 0; i < content.size(); i += 8) {
        const uint64_t word = random();
        std::memcpy(&content[i], &word, sizeof word);
    }
    for (const char* what : {"fresh", "populated"}) {
        const auto start = Clock::now();
        for (uint64_t i = 0; i < pages; i += chunk) ASSERT_OK(write(*skeleton, at + i * page, content));
        const std::chrono::duration<double> took = Clock::now() - start;
        RecordProperty(what, fmt::format("{:.2f} GB/s", static_cast<double>(pages * page) / took.count() / 1e9));
        std::printf("%s: %.2f GB/s\n", what, static_cast<double>(pages * page) / took.count() / 1e9);
    }
    EXPECT_EQ(read_back(skeleton->pid(), at + (pages - chunk) * page, chunk * page), content);
}

}  // namespace
}  // namespace godwit
