// The tracker against a victim that does one thing at a time, told over a socketpair: which pages are told must be exact.
#include "source-agent/track/dirty_tracker.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>

#include "common/base/defer.h"
#include "common/base/file.h"
#include "source-agent/track/ranges.h"
#include "source-agent/track/soft_dirty.h"
#include "source-agent/track/userfaultfd.h"

namespace godwit {
namespace {

using ::testing::HasSubstr;
using Pages = std::set<uint64_t>;  // indexes from the start of a mapping

constexpr uint64_t page = 4096;
constexpr uint64_t huge = 2u << 20;

struct Command {
    enum Kind : uint64_t { call, write_byte, read_byte, write_at_stack, fork_and_write, execute, run_free } kind;
    uint64_t number;
    uint64_t arguments[6];
};

// Runs in the victim, which was forked from a process with threads: system calls alone.
uint64_t carry_out(const Command& command, int socket) {
    const uint64_t* a = command.arguments;
    switch (command.kind) {
        case Command::call: {
            const long result = ::syscall(static_cast<long>(command.number), a[0], a[1], a[2], a[3], a[4], a[5]);
            return static_cast<uint64_t>(result < 0 ? -errno : result);
        }
        case Command::write_byte:
            *reinterpret_cast<volatile char*>(a[0]) = static_cast<char>(a[1]);
            return 0;
        case Command::read_byte:
            return static_cast<uint64_t>(*reinterpret_cast<volatile unsigned char*>(a[0]));
        case Command::write_at_stack: {
            // The kernel grows the stack for a write anywhere below, within its limit.
            const uint64_t at = (reinterpret_cast<uint64_t>(__builtin_frame_address(0)) - a[0]) & ~(page - 1);
            *reinterpret_cast<volatile char*>(at) = 1;
            return at;
        }
        case Command::fork_and_write: {
            const pid_t child = ::fork();
            if (child == 0) {
                *reinterpret_cast<volatile char*>(a[0]) = 1;
                ::_exit(0);
            }
            int status = 0;
            ::waitpid(child, &status, 0);
            return static_cast<uint64_t>(status);
        }
        case Command::execute:
            ::execl("/bin/sleep", "sleep", "1000", nullptr);
            return static_cast<uint64_t>(-errno);
        case Command::run_free:
            for (uint64_t i = 1;; ++i) {
                *reinterpret_cast<volatile uint64_t*>(a[0]) = i;
                *reinterpret_cast<volatile uint64_t*>(a[0] + page) = i;
                char byte = 0;
                if (::recv(socket, &byte, 1, MSG_DONTWAIT | MSG_PEEK) > 0) return i;
                ::usleep(100);
            }
    }
    return 0;
}

class Victim {
  public:
    explicit Victim(uid_t uid = 0) {
        int pair[2];
        EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
        pid_ = ::fork();
        if (pid_ == 0) {
            ::prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (uid != 0 && (::setresgid(uid, uid, uid) != 0 || ::setresuid(uid, uid, uid) != 0)) ::_exit(1);
            Command command;
            while (::recv(pair[1], &command, sizeof command, 0) == sizeof command) {
                const uint64_t answer = carry_out(command, pair[1]);
                ::send(pair[1], &answer, sizeof answer, 0);
            }
            ::_exit(0);
        }
        ::close(pair[1]);
        socket_ = UniqueFd(pair[0]);
        // Its first answer says that it runs its loop: privileges are gone.
        call(SYS_getpid);
    }
    ~Victim() {
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
    }

    pid_t pid() const { return pid_; }
    int socket() const { return socket_.get(); }
    void send(const Command& command) const { EXPECT_EQ(::send(socket_.get(), &command, sizeof command, 0), sizeof command); }
    uint64_t answer() const {
        uint64_t out = 0;
        EXPECT_EQ(::recv(socket_.get(), &out, sizeof out, 0), sizeof out);
        return out;
    }
    uint64_t ask(const Command& command) const {
        send(command);
        return answer();
    }
    template <class... Arguments>
    uint64_t call(long number, Arguments... arguments) const {
        const auto result = static_cast<int64_t>(ask({Command::call, static_cast<uint64_t>(number), {static_cast<uint64_t>(arguments)...}}));
        EXPECT_GE(result, 0) << "system call " << number;
        return static_cast<uint64_t>(result);
    }
    uint64_t map(uint64_t size, int protection = PROT_READ | PROT_WRITE, int flags = MAP_PRIVATE | MAP_ANONYMOUS, uint64_t at = 0, int fd = -1) const {
        return call(SYS_mmap, at, size, protection, flags, fd, 0);
    }
    void poke(uint64_t at, char value = 1) const { ask({Command::write_byte, 0, {at, static_cast<uint64_t>(value)}}); }
    void write(uint64_t start, const Pages& pages) const {
        for (const uint64_t index : pages) poke(start + index * page);
    }
    uint64_t read(uint64_t at) const { return ask({Command::read_byte, 0, {at}}); }
    std::string status(const std::string& field) const {
        return status_value(read_status(pid_, pid_).value(), field);
    }

  private:
    pid_t pid_ = 0;
    UniqueFd socket_;
};

Result<void> start(DirtyTracker& tracker, pid_t pid) {
    auto process = TRY(seize_process(pid, Deadline::in(milliseconds(5000))));
    Undo let_go([&] { release_process(process); });
    Remote remote = TRY(Remote::attach(process.tasks[0]));
    TRY(tracker.start(remote));
    return remote.leave();
}

Pages pages_in(const Ranges& ranges, uint64_t start, uint64_t size) {
    Pages out;
    for (const ByteRange& range : clip(ranges, start, start + size))
        for (uint64_t at = range.start; at < range.end; at += page) out.insert((at - start) / page);
    return out;
}

Pages all(uint64_t count, uint64_t from = 0) {
    Pages out;
    for (uint64_t i = 0; i < count; ++i) out.insert(from + i);
    return out;
}

struct Told {
    Pages written;
    Pages dropped;
};

class WpAsync : public ::testing::Test {
  protected:
    void SetUp() override {
        auto made = make_tracker(victim_.pid(), TrackerBackend::wp_async);
        if (!made) GTEST_SKIP() << made.error().what;
        tracker_ = std::move(*made);
    }
    void begin() {
        const auto started = start(*tracker_, victim_.pid());
        ASSERT_TRUE(started) << started.error().what;
    }
    MemoryChanges collect() {
        const auto refreshed = tracker_->refresh(read_maps(victim_.pid()).value());
        EXPECT_TRUE(refreshed) << refreshed.error().what;
        auto changes = tracker_->collect();
        EXPECT_TRUE(changes) << changes.error().what;
        return changes ? *changes : MemoryChanges{};
    }
    Told told(uint64_t start, uint64_t count) {
        const MemoryChanges changes = collect();
        return {pages_in(changes.written, start, count * page), pages_in(changes.dropped, start, count * page)};
    }
    void expect(uint64_t start, uint64_t count, const Pages& written, const Pages& dropped = {}) {
        const Told found = told(start, count);
        EXPECT_EQ(found.written, written);
        EXPECT_EQ(found.dropped, dropped);
    }
    // A mapping of `count` pages between two that are not accessible, so that neighbours never merge; all written, then tracked.
    uint64_t tracked(uint64_t count, int flags = MAP_PRIVATE | MAP_ANONYMOUS) {
        const uint64_t at = isolated(count);
        victim_.map(count * page, PROT_READ | PROT_WRITE, flags | MAP_FIXED, at);
        victim_.write(at, all(count));
        begin();
        return at;
    }
    bool is_registered() const {
        const auto mappings = read_smaps(victim_.pid()).value();
        return std::any_of(mappings.begin(), mappings.end(), [](const Vma& vma) { return vma.has("uw"); });
    }
    uint64_t isolated(uint64_t count) { return victim_.map((count + 2) * page, PROT_NONE) + page; }

    Victim victim_;
    std::unique_ptr<DirtyTracker> tracker_;
};

TEST_F(WpAsync, TellsExactlyThePagesWritten) {
    const uint64_t at = tracked(64);
    expect(at, 64, {});
    victim_.write(at, {0, 7, 8, 63});
    expect(at, 64, {0, 7, 8, 63});
    expect(at, 64, {});
    victim_.write(at, {8});
    expect(at, 64, {8});
}

TEST_F(WpAsync, ReadingIsNotWriting) {
    const uint64_t at = isolated(8);
    victim_.map(8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, at);
    victim_.write(at, {0});
    begin();
    victim_.read(at);
    victim_.read(at + 3 * page);  // the page of zeros
    expect(at, 8, {});
    victim_.write(at, {3});
    expect(at, 8, {3});
}

TEST_F(WpAsync, FirstWriteToAHoleIsTold) {
    const uint64_t at = isolated(16);
    victim_.map(16 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, at);
    begin();
    expect(at, 16, {});
    victim_.write(at, {5, 9});
    expect(at, 16, {5, 9});
    expect(at, 16, {});
}

TEST_F(WpAsync, NewMappingIsToldWhollyOnce) {
    begin();
    const uint64_t at = isolated(8);
    victim_.map(8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, at);
    victim_.write(at, {1, 2});
    expect(at, 8, {1, 2});
    expect(at, 8, {});
    victim_.write(at, {2, 4});
    expect(at, 8, {2, 4});
}

TEST_F(WpAsync, UnmappedAndMappedAnewAtTheSamePlace) {
    const uint64_t at = tracked(8);
    victim_.call(SYS_munmap, at, 8 * page);
    victim_.map(8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, at);
    victim_.write(at, {3});
    expect(at, 8, {3}, {0, 1, 2, 4, 5, 6, 7});
    victim_.write(at, {3, 4});
    expect(at, 8, {3, 4});
}

TEST_F(WpAsync, UnmappedIsNeitherWrittenNorDropped) {
    const uint64_t at = tracked(8);
    victim_.call(SYS_munmap, at + 2 * page, 2 * page);
    victim_.write(at, {1, 4});
    expect(at, 8, {1, 4});
}

TEST_F(WpAsync, MovedMappingIsToldWholly) {
    const uint64_t at = tracked(8);
    const uint64_t to = isolated(8);
    victim_.call(SYS_mremap, at, 8 * page, 8 * page, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    expect(to, 8, all(8));
    victim_.write(to, {6});
    expect(to, 8, {6});
    expect(at, 8, {});
}

TEST_F(WpAsync, MoveThatLeavesTheOldMappingDropsItsPages) {
    const uint64_t at = tracked(4);
    const uint64_t to = isolated(4);
    victim_.call(SYS_mremap, at, 4 * page, 4 * page, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to);
    const MemoryChanges changes = collect();
    EXPECT_EQ(pages_in(changes.written, to, 4 * page), all(4));
    EXPECT_EQ(pages_in(changes.written, at, 4 * page), Pages{});
    EXPECT_EQ(pages_in(changes.dropped, at, 4 * page), all(4));
    victim_.write(at, {2});
    expect(at, 4, {2});
}

TEST_F(WpAsync, GrownInPlaceTellsOnlyWhatWasWritten) {
    const uint64_t at = victim_.map(16 * page, PROT_NONE) + page;
    victim_.map(4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, at);
    victim_.call(SYS_munmap, at + 4 * page, 8 * page);
    victim_.write(at, all(4));
    begin();
    EXPECT_EQ(victim_.call(SYS_mremap, at, 4 * page, 8 * page, 0), at);
    victim_.write(at, {2, 6});
    expect(at, 8, {2, 6});
    victim_.write(at, {7});
    expect(at, 8, {7});
}

TEST_F(WpAsync, ShrunkAndGrownAgainLosesTheTail) {
    const uint64_t at = tracked(8);
    victim_.call(SYS_mremap, at, 8 * page, 4 * page, 0);
    victim_.call(SYS_mremap, at, 4 * page, 8 * page, 0);
    victim_.write(at, {5});
    expect(at, 8, {5}, {4, 6, 7});
}

TEST_F(WpAsync, ProtectionThereAndBack) {
    const uint64_t at = tracked(8);
    victim_.write(at, {1});
    victim_.call(SYS_mprotect, at + 2 * page, 4 * page, PROT_NONE);
    victim_.call(SYS_mprotect, at + 2 * page, 4 * page, PROT_READ | PROT_WRITE);
    victim_.write(at, {3});
    expect(at, 8, {1, 3});
    victim_.call(SYS_mprotect, at + 2 * page, 4 * page, PROT_READ);
    expect(at, 8, {});
    victim_.call(SYS_mprotect, at + 2 * page, 4 * page, PROT_READ | PROT_WRITE);
    victim_.write(at, {4});
    expect(at, 8, {4});
}

TEST_F(WpAsync, DontneedDrops) {
    const uint64_t at = tracked(8);
    victim_.write(at, {1, 2});
    victim_.call(SYS_madvise, at + 2 * page, 3 * page, MADV_DONTNEED);
    expect(at, 8, {1}, {2, 3, 4});
    victim_.read(at + 3 * page);  // still zeros
    victim_.write(at, {4});
    expect(at, 8, {4});
    victim_.call(SYS_madvise, at + 4 * page, page, MADV_DONTNEED);
    victim_.read(at + 4 * page);
    expect(at, 8, {}, {4});
}

TEST_F(WpAsync, FreeKeepsThePagesUntilTheyAreReclaimed) {
    const uint64_t at = tracked(8);
    victim_.call(SYS_madvise, at, 4 * page, MADV_FREE);
    victim_.write(at, {2});
    expect(at, 8, {2});
}

TEST_F(WpAsync, RemoveDropsSharedPages) {
    const uint64_t at = tracked(8, MAP_SHARED | MAP_ANONYMOUS);
    victim_.call(SYS_madvise, at + 2 * page, 2 * page, MADV_REMOVE);
    victim_.write(at, {3, 5});
    expect(at, 8, {3, 5}, {2});
    expect(at, 8, {});
}

TEST_F(WpAsync, DontneedOfASharedMappingDropsNothing) {
    const uint64_t at = tracked(8, MAP_SHARED | MAP_ANONYMOUS);
    victim_.call(SYS_madvise, at, 8 * page, MADV_DONTNEED);
    victim_.write(at, {4});
    expect(at, 8, {4});
    victim_.call(SYS_madvise, at, 2 * page, MADV_REMOVE);
    expect(at, 8, {}, {0, 1});
}

TEST_F(WpAsync, SharedMappingTellsWrites) {
    const uint64_t at = tracked(8, MAP_SHARED | MAP_ANONYMOUS);
    expect(at, 8, {});
    victim_.write(at, {0, 7});
    expect(at, 8, {0, 7});
    expect(at, 8, {});
}

TEST_F(WpAsync, NewSharedMappingTellsAllContentOfItsObject) {
    begin();
    const auto fd = static_cast<int>(victim_.call(SYS_memfd_create, victim_.map(page), 0));
    victim_.call(SYS_ftruncate, fd, 8 * page);
    const uint64_t from = victim_.map(page);
    victim_.poke(from);
    victim_.call(SYS_pwrite64, fd, from, 1, 3 * page);
    const uint64_t at = victim_.map(8 * page, PROT_READ | PROT_WRITE, MAP_SHARED, 0, fd);
    victim_.write(at, {6});
    expect(at, 8, {3, 6});
    expect(at, 8, {});
}

TEST_F(WpAsync, PrivateFilePagesAreToldWhenTheyAreChanged) {
    const auto fd = static_cast<int>(victim_.call(SYS_memfd_create, victim_.map(page), 0));
    victim_.call(SYS_ftruncate, fd, 8 * page);
    const uint64_t at = victim_.map(8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0, fd);
    victim_.write(at, {1});
    begin();
    victim_.read(at + 4 * page);
    expect(at, 8, {});
    victim_.write(at, {1, 5});
    expect(at, 8, {1, 5});
    victim_.call(SYS_madvise, at, 8 * page, MADV_DONTNEED);
    expect(at, 8, {}, {1, 5});
}

TEST_F(WpAsync, GuardPagesDropWhatTheyReplace) {
    const uint64_t at = tracked(8);
    constexpr int guard_install = 102, guard_remove = 103;  // Linux 6.13
    if (static_cast<int64_t>(victim_.ask({Command::call, SYS_madvise, {at + page, 2 * page, guard_install}})) == -EINVAL)
        GTEST_SKIP() << "no MADV_GUARD_INSTALL before Linux 6.13";
    victim_.write(at, {4, 5});
    expect(at, 8, {4, 5}, {1, 2});
    victim_.call(SYS_madvise, at + page, 2 * page, guard_remove);
    expect(at, 8, {});
    victim_.write(at, {2, 3});
    expect(at, 8, {2, 3});
}

TEST_F(WpAsync, SplitAndMergedMappings) {
    const uint64_t at = tracked(8);
    victim_.call(SYS_munmap, at + 3 * page, page);
    expect(at, 8, {});
    victim_.map(page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, at + 3 * page);
    victim_.write(at, {0, 3});
    expect(at, 8, {0, 3});  // three mappings, the middle one new
    victim_.write(at, {3, 7});
    expect(at, 8, {3, 7});
    victim_.call(SYS_mprotect, at + 6 * page, page, PROT_READ);
    expect(at, 8, {});
    victim_.call(SYS_mprotect, at + 6 * page, page, PROT_READ | PROT_WRITE);
    victim_.write(at, {6, 7});
    expect(at, 8, {6, 7});
}

TEST_F(WpAsync, SharedInsteadOfPrivateAtTheSamePlace) {
    const uint64_t at = tracked(4);
    victim_.map(4 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, at);
    victim_.write(at, {2, 3});
    expect(at, 4, {2, 3}, {0, 1});
    expect(at, 4, {});
}

TEST_F(WpAsync, HeapGrowth) {
    const uint64_t end = (victim_.call(SYS_brk, 0) + page - 1) & ~(page - 1);
    EXPECT_EQ(victim_.call(SYS_brk, end + 2 * page), end + 2 * page);
    victim_.write(end, all(2));
    begin();
    EXPECT_EQ(victim_.call(SYS_brk, end + 6 * page), end + 6 * page);
    victim_.write(end, {1, 3});
    expect(end, 6, {1, 3});
    victim_.write(end, {3, 5});
    expect(end, 6, {3, 5});
    EXPECT_EQ(victim_.call(SYS_brk, end + 4 * page), end + 4 * page);
    expect(end, 4, {});
}

TEST_F(WpAsync, StackGrowth) {
    begin();
    const uint64_t low = victim_.ask({Command::write_at_stack, 0, {1u << 20}});
    const MemoryChanges changes = collect();
    EXPECT_EQ(pages_in(changes.written, low, 16 * page), Pages{0});
    EXPECT_EQ(pages_in(collect().written, low, 16 * page), Pages{});
}

TEST_F(WpAsync, ParentAndChildAfterFork) {
    const uint64_t at = tracked(8);
    victim_.ask({Command::fork_and_write, 0, {at + 2 * page}});  // the child's write is not the parent's
    expect(at, 8, {});
    victim_.write(at, {2, 3});
    expect(at, 8, {2, 3});
}

TEST_F(WpAsync, ExecIsTold) {
    tracked(8);
    victim_.send({Command::execute, 0, {}});
    char byte = 0;
    EXPECT_EQ(::recv(victim_.socket(), &byte, 1, 0), 0);  // close-on-exec: it is another program now
    const auto changes = tracker_->collect();
    ASSERT_FALSE(changes);
    EXPECT_EQ(changes.error().error, ESRCH);
    const auto refreshed = tracker_->refresh(read_maps(victim_.pid()).value());
    ASSERT_FALSE(refreshed);
    EXPECT_EQ(refreshed.error().error, ESRCH);
    auto again = make_tracker(victim_.pid()).value();
    EXPECT_TRUE(start(*again, victim_.pid()));
    EXPECT_TRUE(again->collect());
}

TEST_F(WpAsync, ExitIsTold) {
    tracked(8);
    ::kill(victim_.pid(), SIGKILL);
    siginfo_t info;
    EXPECT_EQ(::waitid(P_PID, static_cast<id_t>(victim_.pid()), &info, WEXITED | WNOWAIT), 0);
    const auto changes = tracker_->collect();
    ASSERT_FALSE(changes);
    EXPECT_EQ(changes.error().error, ESRCH);
}

TEST_F(WpAsync, HugePageIsToldByItsSmallPages) {
    const uint64_t at = (victim_.map(3 * huge) + huge - 1) & ~(huge - 1);
    victim_.call(SYS_madvise, at, huge, MADV_HUGEPAGE);
    victim_.poke(at);
    begin();
    expect(at, 512, {});
    victim_.poke(at + 100 * page);
    const Told found = told(at, 512);
    EXPECT_TRUE(found.written.contains(100));
    EXPECT_EQ(found.dropped, Pages{});
    victim_.poke(at + 200 * page);
    expect(at, 512, {200});
    victim_.call(SYS_madvise, at, huge, MADV_DONTNEED);
    expect(at, 512, {}, all(512));
}

TEST_F(WpAsync, KernelWritesAreTold) {
    const uint64_t at = tracked(8);
    const uint64_t zeros = victim_.map(page);
    victim_.poke(zeros, 'z');
    const auto fd = static_cast<int>(victim_.call(SYS_memfd_create, zeros, 0));
    victim_.call(SYS_pwrite64, fd, zeros, page, 0);
    EXPECT_EQ(victim_.call(SYS_pread64, fd, at + 3 * page, 10, 0), 10u);
    expect(at, 8, {3});
    EXPECT_EQ(victim_.read(at + 3 * page), static_cast<uint64_t>('z'));
}

TEST_F(WpAsync, WritesFromOutsideAreTold) {
    const uint64_t at = tracked(8);
    char bytes[] = "outside";
    const iovec ours{bytes, sizeof bytes};
    const iovec theirs{reinterpret_cast<void*>(at + 5 * page), sizeof bytes};
    EXPECT_EQ(::process_vm_writev(victim_.pid(), &ours, 1, &theirs, 1, 0), static_cast<ssize_t>(sizeof bytes));
    expect(at, 8, {5});
    const auto memory = ProcessMemory::open(victim_.pid()).value();
    EXPECT_TRUE(memory.write(RemotePtr(at + 6 * page), bytes, sizeof bytes));
    expect(at, 8, {6});
}

TEST_F(WpAsync, ReservationsCostNoPageTables) {
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

TEST_F(WpAsync, StartLeavesNothingBehind) {
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

TEST_F(WpAsync, NextTrackerStartsClean) {
    const uint64_t at = tracked(8);
    victim_.write(at, {1});
    tracker_ = make_tracker(victim_.pid()).value();
    begin();
    expect(at, 8, {});
    victim_.write(at, {2});
    expect(at, 8, {2});
}

TEST_F(WpAsync, OwnUserfaultfdIsRefusedByName) {
    victim_.call(SYS_userfaultfd, O_CLOEXEC);
    const auto started = start(*tracker_, victim_.pid());
    ASSERT_FALSE(started);
    EXPECT_EQ(started.error().code, ExitCode::unsupported);
    EXPECT_THAT(started.error().what, HasSubstr("uses userfaultfd itself"));
}

TEST_F(WpAsync, MappingUnderAnotherUserfaultfdIsRefusedByName) {
    tracked(8);
    auto second = make_tracker(victim_.pid()).value();
    const auto started = start(*second, victim_.pid());
    ASSERT_FALSE(started);
    EXPECT_EQ(started.error().code, ExitCode::unsupported);
    EXPECT_THAT(started.error().what, HasSubstr("under another userfaultfd"));
    EXPECT_TRUE(tracker_->collect());
}

TEST_F(WpAsync, NearlyExhaustedMappingCountIsRefusedByName) {
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

TEST_F(WpAsync, TrackerDeathLeavesTheVictimWriting) {
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
}  // namespace godwit
