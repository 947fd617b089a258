// A victim that does one thing at a time, told over a socketpair, and what a tracker tells of it.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>

#include "common/base/defer.h"
#include "common/kernel/proc.h"
#include "source-agent/track/dirty_tracker.h"
#include "source-agent/track/ranges.h"

namespace godwit::tracked {

using Pages = std::set<uint64_t>;  // indexes from the start of a mapping

inline constexpr uint64_t page = 4096;
inline constexpr uint64_t huge = 2u << 20;

struct Command {
    enum Kind : uint64_t { call, write_byte, read_byte, write_at_stack, fork_and_write, execute, run_free, churn } kind;
    uint64_t number;
    uint64_t arguments[6];
};

// Runs in the victim: system calls and writes to memory alone.
uint64_t carry_out(const Command& command, int socket);

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

inline Result<void> start(DirtyTracker& tracker, pid_t pid) {
    auto process = TRY(seize_process(pid, Deadline::in(milliseconds(5000))));
    Undo let_go([&] { release_process(process); });
    Remote remote = TRY(Remote::attach(process.tasks[0]));
    TRY(tracker.start(remote));
    return remote.leave();
}

inline Pages pages_in(const Ranges& ranges, uint64_t start, uint64_t size) {
    Pages out;
    for (const ByteRange& range : clip(ranges, start, start + size))
        for (uint64_t at = range.start; at < range.end; at += page) out.insert((at - start) / page);
    return out;
}

inline Pages all(uint64_t count, uint64_t from = 0) {
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
        collect();  // tells all there is
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

}  // namespace godwit::tracked
