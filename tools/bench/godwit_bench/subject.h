// A child that does one thing at a time, for measuring what godwit's parts do to it.
//
// Ownership: the destructor kills and reaps it; it dies with this process in any case. Threads: one.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>

#include "common/base/deadline.h"
#include "common/base/defer.h"
#include "common/base/result.h"
#include "common/base/unique_fd.h"
#include "common/remote/tracee.h"

namespace godwit::bench {

inline constexpr uint64_t page_size = 4096;

class Subject {
  public:
    // With `bytes` of private memory in pages of 4 KiB, all of them written once.
    static Result<Subject> start(uint64_t bytes);
    Subject(Subject&& other) noexcept;
    Subject& operator=(Subject&&) = delete;
    ~Subject();

    pid_t pid() const { return pid_; }
    uint64_t memory() const { return memory_; }  // address of its memory
    uint64_t bytes() const { return bytes_; }

    // Writes to every `step`-th page of its memory. `step` 0: to none.
    Result<void> dirty(uint64_t step) const;
    // Maps address space that nobody may touch.
    Result<void> reserve(uint64_t bytes) const;
    // Makes that many getpid calls in a loop; how long it took.
    Result<std::chrono::nanoseconds> call_getpid(uint64_t times) const;

    // Writes to random pages of the first `bytes` until stop_writing(); writes() counts. Nothing else may be asked meanwhile.
    Result<void> write_on(uint64_t bytes) const;
    uint64_t writes() const { return shared_->writes.load(std::memory_order_relaxed); }
    Result<void> stop_writing() const;

  private:
    struct Shared {
        std::atomic<uint64_t> writes;
        std::atomic<bool> stop;
    };
    struct Command {
        enum Kind : uint64_t { ready, dirty, reserve, getpid, write_on } kind;
        uint64_t value;
    };
    Subject() = default;
    [[noreturn]] void live(int socket);
    uint64_t carry_out(const Command& command);
    uint64_t write_until_stopped(uint64_t bytes);
    Result<void> send(const Command& command) const;
    Result<uint64_t> answer() const;
    Result<uint64_t> ask(const Command& command) const;

    pid_t pid_ = 0;
    UniqueFd socket_;
    Shared* shared_ = nullptr;
    uint64_t memory_ = 0;
    uint64_t bytes_ = 0;
};

// Seizes and stops the subject for as long as `use` runs; `use` takes its one task.
template <class Use>
Result<void> while_stopped(const Subject& subject, const Use& use) {
    StoppedProcess process = TRY(seize_process(subject.pid(), Deadline::in(milliseconds(10'000))));
    const Undo let_go([&] { release_process(process); });
    return use(process.tasks.front());
}

}  // namespace godwit::bench
