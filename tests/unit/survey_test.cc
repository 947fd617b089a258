// What the survey refuses, by name, and what it lets pass.
#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/aio_abi.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <functional>
#include <thread>

#include "common/base/file.h"
#include "common/kernel/proc.h"
#include "source-agent/collect/collect.h"
#include "tests/support/forked_child.h"

namespace godwit {
namespace {

using test::ForkedChild;
using test::Told;
using testing::ContainsRegex;

constexpr size_t page = 4096;

int done(long result) { return result < 0 ? errno : 0; }
int mapped(void* at) { return at == MAP_FAILED ? errno : 0; }

std::string text(const Problems& problems) {
    std::string out;
    for (const Problem& problem : problems) {
        EXPECT_EQ(problem.code, ExitCode::unsupported) << problem.what;
        EXPECT_FALSE(problem.hint.empty()) << problem.what;
        out += problem.what + "\n";
    }
    return out;
}

// Process and memory, as survey() asks; descriptors are another test's.
std::string refused(pid_t pid) {
    image::Plan plan;
    Problems problems;
    const auto process = survey_process(pid, {}, plan, problems);
    EXPECT_TRUE(process) << process.error().what;
    if (plan.processes_size() == 0) return text(problems);
    const auto memory = survey_memory(pid, {}, plan, problems);
    EXPECT_TRUE(memory) << memory.error().what;
    return text(problems);
}

void start_thread(const std::function<void()>& act) {
    int ready[2];
    if (::pipe(ready) != 0) ::abort();
    std::thread([=] {
        act();
        if (::write(ready[1], "x", 1) != 1) ::abort();
        for (;;) ::pause();
    }).detach();
    char byte;
    if (::read(ready[0], &byte, 1) != 1) ::abort();
    ::close(ready[0]);
    ::close(ready[1]);
}

struct Case {
    const char* name;
    std::function<int(Told&)> act;
    const char* words;  // regular expression
    bool session = true;
};

int fork_sleeper(int flags) {
    const long child = ::syscall(SYS_clone, flags, 0, 0, 0, 0);
    if (child != 0) return done(child);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) ::pause();
}

int make_terminal() {
    const int master = ::posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || ::grantpt(master) != 0 || ::unlockpt(master) != 0) return errno;
    return done(::open(::ptsname(master), O_RDWR));
}

int filter_calls() {
    sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    sock_fprog program{1, &allow};
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return errno;
    return done(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

int lose_directory() {
    char name[] = "lost-XXXXXX";
    if (::mkdtemp(name) == nullptr || ::chdir(name) != 0) return errno;
    return done(::rmdir((std::string("../") + name).c_str()));
}

int foreign_timer() {
    timer_t timer;
    sigevent event{};
    event.sigev_notify = SIGEV_NONE;
    return done(::timer_create(static_cast<clockid_t>((~static_cast<unsigned>(::getppid()) << 3) | 2), &event, &timer));
}

std::vector<Case> process_cases() {
    return {
        {"child", [](Told&) { return fork_sleeper(SIGCHLD); }, "has a child"},
        {"zombie", [](Told&) { const pid_t child = ::fork(); if (child == 0) ::_exit(0); return 0; }, "has a child"},
        {"session", [](Told&) { return 0; }, "not the leader of its session", false},
        {"terminal", [](Told&) { return make_terminal(); }, "controlling terminal"},
        {"seccomp", [](Told&) { return filter_calls(); }, "seccomp filter"},
        {"net", [](Told&) { return done(::unshare(CLONE_NEWNET)); }, "another net namespace"},
        {"mnt", [](Told&) { return done(::unshare(CLONE_NEWNS)); }, "another mnt namespace"},
        {"uts", [](Told&) { return done(::unshare(CLONE_NEWUTS)); }, "another uts namespace"},
        {"ipc", [](Told&) { return done(::unshare(CLONE_NEWIPC)); }, "another ipc namespace"},
        {"pid", [](Told&) { return done(::unshare(CLONE_NEWPID)); }, "PID namespace for its children"},
        {"time", [](Told&) { return done(::unshare(0x80)); }, "time namespace for its children"},
        {"chroot", [](Told&) { return done(::chroot("/proc")); }, "root directory"},
        {"directory", [](Told&) { return lose_directory(); }, "working directory .* deleted"},
        {"files", [](Told&) { start_thread([] { ::unshare(CLONE_FILES); }); return 0; }, "descriptor table of its own"},
        {"fs", [](Told&) { start_thread([] { ::unshare(CLONE_FS); }); return 0; }, "working directory of its own"},
        {"thread-uts", [](Told&) { start_thread([] { ::unshare(CLONE_NEWUTS); }); return 0; }, "tid .* another uts namespace"},
        {"thread-seccomp", [](Told&) { start_thread([] { filter_calls(); }); return 0; }, "tid .* seccomp filter"},
        {"shared-memory", [](Told&) { return fork_sleeper(CLONE_FILES | SIGCHLD); }, "shares its descriptor table with pid"},
        {"foreign-timer", [](Told&) { return foreign_timer(); }, "CPU time of pid"},
    };
}

int attach_old_shared_memory() {
    const int id = ::shmget(IPC_PRIVATE, page, 0600);
    if (id < 0) return errno;
    const int error = mapped(::shmat(id, nullptr, 0));
    ::shmctl(id, IPC_RMID, nullptr);
    return error;
}

int map_file_and(int (*act)(const char*)) {
    char name[] = "file-XXXXXX";
    const int fd = ::mkstemp(name);
    if (fd < 0 || ::ftruncate(fd, page) != 0) return errno;
    const int error = mapped(::mmap(nullptr, page, PROT_READ, MAP_PRIVATE, fd, 0));
    return error != 0 ? error : act(name);
}

// The file goes on under another name, but it is not the one that was mapped.
int rename_by_link(const char* name) {
    return ::link(name, "kept") != 0 ? errno : done(::unlink(name));
}

int fault_handler(Told&) {
    const int fd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
    uffdio_api api{UFFD_API, 0, 0};
    if (fd < 0 || ::ioctl(fd, UFFDIO_API, &api) != 0) return errno;
    void* at = ::mmap(nullptr, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uffdio_register range{{reinterpret_cast<uint64_t>(at), page}, UFFDIO_REGISTER_MODE_MISSING, 0};
    return done(::ioctl(fd, UFFDIO_REGISTER, &range));
}

int map_secret() {
    const int fd = static_cast<int>(::syscall(SYS_memfd_secret, 0));
    if (fd < 0 || ::ftruncate(fd, page) != 0) return errno;
    return mapped(::mmap(nullptr, page, PROT_READ, MAP_SHARED, fd, 0));
}

int protect_by_key() {
    const int key = ::pkey_alloc(0, 0);
    void* at = ::mmap(nullptr, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return key < 0 ? errno : done(::pkey_mprotect(at, page, PROT_READ, key));
}

int with_page(const std::function<long(void*)>& act) {
    void* at = ::mmap(nullptr, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return at == MAP_FAILED ? errno : done(act(at));
}

int map_device() {
    const int fd = ::open("/dev/mem", O_RDONLY);
    return fd < 0 ? ENODEV : mapped(::mmap(nullptr, page, PROT_READ, MAP_SHARED, fd, 0));
}

constexpr int install_guard = 102;  // MADV_GUARD_INSTALL, Linux 6.13
constexpr long mseal_call = 462;    // Linux 6.10
constexpr int map_droppable = 8;    // Linux 6.11

std::vector<Case> memory_cases() {
    return {
        {"sysv", [](Told&) { return attach_old_shared_memory(); }, "SysV shared memory"},
        {"deleted", [](Told&) { return map_file_and([](const char* name) { return done(::unlink(name)); }); }, "deleted file"},
        {"linked", [](Told&) { return map_file_and(rename_by_link); }, "deleted file"},
        {"userfaultfd", fault_handler, "userfaultfd"},
        {"aio", [](Told&) { aio_context_t context = 0; return done(::syscall(SYS_io_setup, 4, &context)); }, "ring of io_setup"},
        {"secret", [](Told&) { return map_secret(); }, "memfd_secret"},
        {"key", [](Told&) { return protect_by_key(); }, "protection key"},
        {"guard", [](Told&) { return with_page([](void* at) { return ::madvise(at, page, install_guard); }); }, "guard pages"},
        {"sealed", [](Told&) { return with_page([](void* at) { return ::syscall(mseal_call, at, page, 0); }); }, "sealed mapping"},
        {"droppable", [](Told&) { return mapped(::mmap(nullptr, page, PROT_READ, map_droppable | MAP_ANONYMOUS, -1, 0)); }, "droppable"},
        {"huge", [](Told&) { return mapped(::mmap(nullptr, 2u << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE, -1, 0)); }, "hugetlbfs"},
        {"device", [](Told&) { return map_device(); }, "device"},
    };
}

class Refusal : public testing::TestWithParam<Case> {
  protected:
    std::string skipped_;
};

TEST_P(Refusal, IsNamed) {
    const Case& one = GetParam();
    char folder[] = "/tmp/godwit-survey-XXXXXX";
    ASSERT_NE(::mkdtemp(folder), nullptr);
    {
        const ForkedChild child([&](Told& told) { return ::chdir(folder) != 0 ? errno : one.act(told); }, one.session);
        if (child.not_here())
            skipped_ = fmt::format("kernel: does not let a program do it here: {}", ::strerror(child.error()));
        else if (child.error() != 0)
            ADD_FAILURE() << ::strerror(child.error());
        else
            EXPECT_THAT(refused(child.pid()), ContainsRegex(one.words));
    }
    std::filesystem::remove_all(folder);
    if (!skipped_.empty()) GTEST_SKIP() << skipped_;
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
    std::string name = info.param.name;
    std::erase(name, '-');
    return name;
}
INSTANTIATE_TEST_SUITE_P(Process, Refusal, testing::ValuesIn(process_cases()), case_name);
INSTANTIATE_TEST_SUITE_P(Memory, Refusal, testing::ValuesIn(memory_cases()), case_name);

TEST(Survey, FindsNothingAgainstAPlainProcess) {
    const ForkedChild child([](Told&) {
        start_thread([] {});
        return 0;
    });
    EXPECT_EQ(refused(child.pid()), "");
}

TEST(Survey, NamesAllAtOnce) {
    const ForkedChild child([](Told&) {
        ::unshare(CLONE_NEWUTS);
        attach_old_shared_memory();
        return fork_sleeper(SIGCHLD);
    });
    ASSERT_EQ(child.error(), 0);
    EXPECT_THAT(refused(child.pid()), testing::AllOf(ContainsRegex("uts namespace"), ContainsRegex("SysV"), ContainsRegex("a child")));
}

TEST(Survey, StoppedAndTracedAreRefused) {
    const ForkedChild child([](Told&) { return 0; });
    ::kill(child.pid(), SIGSTOP);
    int status = 0;
    ::waitpid(child.pid(), &status, WUNTRACED);
    EXPECT_THAT(refused(child.pid()), ContainsRegex("is stopped"));
    ::kill(child.pid(), SIGCONT);
    ASSERT_EQ(::ptrace(PTRACE_SEIZE, child.pid(), 0, 0), 0);
    EXPECT_THAT(refused(child.pid()), ContainsRegex(fmt::format("is traced by pid {}", ::getpid())));
}

TEST(Survey, TracerIsRefused) {
    const ForkedChild traced([](Told&) { return 0; });
    const pid_t other = traced.pid();
    const ForkedChild child([other](Told&) { return done(::ptrace(PTRACE_SEIZE, other, 0, 0)); });
    ASSERT_EQ(child.error(), 0);
    EXPECT_THAT(refused(child.pid()), ContainsRegex(fmt::format("traces pid {}", other)));
}

TEST(Survey, UntouchablesAreRefused) {
    EXPECT_THAT(refused(1), ContainsRegex("init of this PID namespace"));
    EXPECT_THAT(refused(::getpid()), ContainsRegex("godwit itself or one of its ancestors"));
    EXPECT_THAT(refused(::getppid()), ContainsRegex("ancestors|init"));
    const ForkedChild child([](Told& told) {
        start_thread([&told] { told.number[0] = static_cast<uint64_t>(::gettid()); });
        return 0;
    });
    EXPECT_THAT(refused(static_cast<pid_t>(child.told(0))), ContainsRegex(fmt::format("is a thread of pid {}", child.pid())));
    const auto second = read_stat(2);
    if (second && (second->flags & 0x00200000) != 0) {
        EXPECT_THAT(refused(2), ContainsRegex("kernel thread"));
    }
}

TEST(Survey, GoneProcessFails) {
    pid_t gone = 0;
    {
        const ForkedChild child([](Told&) { return 0; });
        gone = child.pid();
    }
    image::Plan plan;
    Problems problems;
    const auto result = survey_process(gone, {}, plan, problems);
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, ExitCode::failed);
    EXPECT_THAT(result.error().what, ContainsRegex(fmt::format("no process with pid {}", gone)));
}

TEST(Survey, PlanNamesExecutableDirectoryAndLibraries) {
    const ForkedChild child([](Told&) { return done(::chdir("/tmp")); });
    image::Plan plan;
    Problems problems;
    ASSERT_TRUE(survey_process(child.pid(), {}, plan, problems));
    ASSERT_TRUE(survey_memory(child.pid(), {}, plan, problems));
    ASSERT_EQ(plan.processes_size(), 1);
    const auto executable = read_link("/proc/self/exe");
    ASSERT_TRUE(executable);
    EXPECT_EQ(plan.processes(0).executable(), *executable);
    EXPECT_GT(plan.processes(0).resident_bytes(), 0u);
    int found = 0;
    for (const auto& file : plan.files()) {
        if (file.path() == "/tmp") found |= 1;
        if (file.path() == *executable) found |= file.build_id().empty() ? 0 : 2;
        if (file.path().find("libc.so") != std::string::npos) found |= file.build_id().empty() ? 0 : 4;
        EXPECT_TRUE(file.used_by().starts_with("pid ")) << file.used_by();
    }
    EXPECT_EQ(found, 7);
}

// Mappings of files and memory that come, move and go all the time: none of it is a reason to refuse.
int churn(const std::string& one, const std::string& other) {
    const int files[2] = {::open(one.c_str(), O_RDWR), ::open(other.c_str(), O_RDWR)};
    if (files[0] < 0 || files[1] < 0) return errno;
    void* const place = ::mmap(nullptr, 64 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    start_thread([=] {
        std::thread([=] {
            for (unsigned round = 0;; ++round) {
                ::mmap(place, 4 * page, PROT_READ, MAP_PRIVATE | MAP_FIXED, files[round & 1], 0);
                void* shared = ::mmap(nullptr, 4 * page, PROT_READ | PROT_WRITE, MAP_SHARED, files[round & 1], 0);
                void* moved = ::mremap(shared, 4 * page, 8 * page, MREMAP_MAYMOVE);
                ::munmap(moved, 8 * page);
                void* memory = ::mmap(nullptr, 16 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
                ::mprotect(memory, page, PROT_READ);
                ::munmap(memory, 16 * page);
                ::munmap(place, 64 * page);
                ::mmap(place, 64 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
                if (round % 8 == 0) ::usleep(50);
            }
        }).detach();
    });
    return 0;
}

TEST(Survey, VanishingMappingsAreNoProblem) {
    char one[] = "/tmp/godwit-churn-XXXXXX", other[] = "/tmp/godwit-churn-XXXXXX";
    for (char* name : {one, other}) {
        const int fd = ::mkstemp(name);
        ASSERT_EQ(::ftruncate(fd, 64 * page), 0);
        ::close(fd);
    }
    const ForkedChild child([&](Told&) { return churn(one, other); });
    ASSERT_EQ(child.error(), 0);
    for (int i = 0; i < 200; ++i) {
        image::Plan plan;
        Problems problems;
        const auto result = survey_memory(child.pid(), {}, plan, problems);
        ASSERT_TRUE(result) << result.error().what;
        ASSERT_EQ(text(problems), "") << "survey " << i;
    }
    ::unlink(one);
    ::unlink(other);
}

}  // namespace
}  // namespace godwit
