#include "tools/bench/godwit_bench/subject.h"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

namespace godwit::bench {
namespace {

constexpr milliseconds answer_limit{120'000};

}  // namespace

Result<Subject> Subject::start(uint64_t bytes) {
    Subject out;
    out.bytes_ = bytes;
    void* shared = ::mmap(nullptr, page_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return fail_errno("cannot map a page to share with the child");
    out.shared_ = static_cast<Shared*>(shared);
    // Reserved here, so that both know the address; touched by the child alone.
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return fail_errno(fmt::format("cannot map {} bytes", bytes));
    const Undo unmap([&] { ::munmap(memory, bytes); });
    ::madvise(memory, bytes, MADV_NOHUGEPAGE);
    out.memory_ = reinterpret_cast<uint64_t>(memory);
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return fail_errno("cannot make a socket pair");
    out.socket_ = UniqueFd(pair[0]);
    const UniqueFd theirs(pair[1]);
    out.pid_ = ::fork();
    if (out.pid_ < 0) return fail_errno("cannot fork");
    if (out.pid_ == 0) out.live(theirs.get());
    TRY(out.dirty(1));
    return out;
}

Subject::Subject(Subject&& other) noexcept
    : pid_(std::exchange(other.pid_, 0)), socket_(std::move(other.socket_)), shared_(std::exchange(other.shared_, nullptr)),
      memory_(other.memory_), bytes_(other.bytes_) {}

Subject::~Subject() {
    if (pid_ > 0) {
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
    }
    if (shared_ != nullptr) ::munmap(shared_, page_size);
}

// ---- in the child ----

void Subject::live(int socket) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    socket_.reset();  // else it would never see the end of its own socket
    Command command;
    while (::recv(socket, &command, sizeof command, 0) == sizeof command) {
        const uint64_t answer = carry_out(command);
        if (::send(socket, &answer, sizeof answer, 0) != sizeof answer) break;
    }
    ::_exit(0);
}

uint64_t Subject::carry_out(const Command& command) {
    auto* memory = reinterpret_cast<volatile char*>(memory_);
    switch (command.kind) {
        case Command::dirty:
            for (uint64_t at = 0; command.value != 0 && at < bytes_; at += command.value * page_size) memory[at] = static_cast<char>(memory[at] + 1);
            return 0;
        case Command::reserve:
            return ::mmap(nullptr, command.value, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == MAP_FAILED;
        case Command::getpid: {
            const auto begun = Clock::now();
            for (uint64_t i = 0; i < command.value; ++i) ::syscall(SYS_getpid);
            return static_cast<uint64_t>(std::chrono::nanoseconds(Clock::now() - begun).count());
        }
        case Command::write_on: return write_until_stopped(command.value);
        default: return 0;
    }
}

uint64_t Subject::write_until_stopped(uint64_t bytes) {
    auto* memory = reinterpret_cast<volatile uint64_t*>(memory_);
    constexpr uint64_t words_per_page = page_size / sizeof(uint64_t);
    const uint64_t pages = bytes / page_size;
    uint64_t random = 88172645463325252ull;
    while (!shared_->stop.load(std::memory_order_relaxed)) {
        for (int i = 0; i < 64; ++i) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            memory[(random % pages) * words_per_page] = random;
        }
        shared_->writes.fetch_add(64, std::memory_order_relaxed);
    }
    return 0;
}

// ---- in the parent ----

Result<void> Subject::send(const Command& command) const {
    if (::send(socket_.get(), &command, sizeof command, MSG_NOSIGNAL) == sizeof command) return {};
    return fail_errno(fmt::format("cannot ask process {}", pid_));
}

Result<uint64_t> Subject::answer() const {
    pollfd readable{socket_.get(), POLLIN, 0};
    const Deadline deadline = Deadline::in(answer_limit);
    while (::poll(&readable, 1, deadline.poll_timeout()) < 0 && errno == EINTR) {
    }
    uint64_t out = 0;
    if (::recv(socket_.get(), &out, sizeof out, MSG_DONTWAIT) == sizeof out) return out;
    return fail(fmt::format("process {} did not answer", pid_));
}

Result<uint64_t> Subject::ask(const Command& command) const {
    TRY(send(command));
    return answer();
}

Result<void> Subject::dirty(uint64_t step) const {
    TRY(ask({Command::dirty, step}));
    return {};
}

Result<void> Subject::reserve(uint64_t bytes) const {
    if (TRY(ask({Command::reserve, bytes})) != 0) return fail(fmt::format("process {} cannot reserve {} bytes", pid_, bytes));
    return {};
}

Result<std::chrono::nanoseconds> Subject::call_getpid(uint64_t times) const {
    return std::chrono::nanoseconds(TRY(ask({Command::getpid, times})));
}

Result<void> Subject::write_on(uint64_t bytes) const {
    shared_->stop = false;
    return send({Command::write_on, bytes});
}

Result<void> Subject::stop_writing() const {
    shared_->stop = true;
    TRY(answer());
    return {};
}

}  // namespace godwit::bench
