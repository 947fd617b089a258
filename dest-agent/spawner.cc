// The agent's half of the spawner; the helper itself is spawner_helper.cc.
#include "dest-agent/spawner.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <csignal>
#include <cstring>
#include <ctime>
#include <sstream>

#include "common/base/defer.h"
#include "common/base/fault.h"
#include "common/base/file.h"
#include "common/kernel/proc.h"
#include "dest-agent/skeleton.h"

namespace godwit {
namespace {

constexpr milliseconds patience{30'000};
constexpr int64_t second = 1'000'000'000;

struct Offsets {
    int64_t monotonic_ns = 0;
    int64_t boottime_ns = 0;
};

// What this agent's own time namespace adds to the host's clocks. It is what children get that /proc shows, so both must be one.
Result<Offsets> own_offsets() {
    constexpr const char* path = "/proc/self/timens_offsets";
    const auto text = read_file(path);
    if (!text) return unsupported("this kernel has no time namespaces", "it needs CONFIG_TIME_NS (Linux 5.6)");
    if (TRY(read_link("/proc/self/ns/time")) != TRY(read_link("/proc/self/ns/time_for_children")))
        return fail("this agent is not in the time namespace of its children", "start it with unshare --time --fork");
    Offsets offsets;
    std::istringstream lines(*text);
    std::string clock;
    int64_t seconds = 0, nanoseconds = 0;
    while (lines >> clock >> seconds >> nanoseconds) {
        if (clock == "monotonic") offsets.monotonic_ns = seconds * second + nanoseconds;
        if (clock == "boottime") offsets.boottime_ns = seconds * second + nanoseconds;
    }
    return offsets;
}

int64_t now_ns(clockid_t clock) {
    timespec now{};
    ::clock_gettime(clock, &now);
    return now.tv_sec * second + now.tv_nsec;
}

// A clock below zero is what no source has and the kernel does not make; the limit keeps the sums from overflowing.
Result<spawner::Clocks> wanted_offsets(const image::Clocks& clocks, int64_t arrived_ns) {
    constexpr int64_t most = int64_t{1} << 61;
    for (const int64_t value : {clocks.monotonic_ns(), clocks.boottime_ns(), arrived_ns})
        if (value < 0 || value > most) return fail(fmt::format("a clock of {} ns makes no sense", value));
    const Offsets own = TRY(own_offsets());
    // Suspended time counts for CLOCK_BOOTTIME alone, but no host is suspended between the two readings.
    const int64_t boottime_ahead = now_ns(CLOCK_BOOTTIME) - now_ns(CLOCK_MONOTONIC);
    return spawner::Clocks{clocks.monotonic_ns() - (arrived_ns - own.monotonic_ns),
                           clocks.boottime_ns() - (arrived_ns + boottime_ahead - own.boottime_ns)};
}

Result<pid_t> start_helper(const std::string& program, int socket) {
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    const Undo destroy([&] { ::posix_spawn_file_actions_destroy(&actions); });
    ::posix_spawn_file_actions_adddup2(&actions, socket, spawner::socket_number);
    std::string arguments[] = {program, "--skeleton-spawner", std::to_string(spawner::socket_number)};
    char* argv[] = {arguments[0].data(), arguments[1].data(), arguments[2].data(), nullptr};
    char* environment[] = {nullptr};
    pid_t pid = 0;
    const int error = ::posix_spawn(&pid, program.c_str(), &actions, nullptr, argv, environment);
    if (error != 0) return fail_errno(error, fmt::format("cannot start {}", program));
    return pid;
}

// What the helper answers to one request: 0 or an errno.
Result<int> answer(int socket) {
    pollfd ready{socket, POLLIN, 0};
    const Deadline deadline = Deadline::in(patience);
    while (::poll(&ready, 1, deadline.poll_timeout()) < 0 && errno == EINTR) continue;
    int32_t error = 0;
    const ssize_t count = ::recv(socket, &error, sizeof error, MSG_DONTWAIT);
    if (count == sizeof error) return error;
    if (count == 0) return fail("the skeleton spawner ended", "it needs a godwit binary that can be executed again");
    return fail_errno("no answer of the skeleton spawner");
}

Result<void> send_request(int socket, pid_t pid, int gate) {
    int32_t number = pid;
    iovec data{&number, sizeof number};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof gate)] = {};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof gate);
    std::memcpy(CMSG_DATA(head), &gate, sizeof gate);
    if (::sendmsg(socket, &message, MSG_NOSIGNAL) < 0) return fail_errno("cannot reach the skeleton spawner");
    return {};
}

Result<void> make_pair(int type, UniqueFd& ours, UniqueFd& theirs) {
    int pair[2];
    if (::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair) != 0) return fail_errno("cannot make a socket pair");
    ours.reset(pair[0]);
    theirs.reset(pair[1]);
    return {};
}

// Lets the new process go on to exec and waits until that was done: its end of the gate closes then.
Result<void> open_gate(int gate, pid_t pid) {
    if (::send(gate, "", 1, MSG_NOSIGNAL) != 1) return fail_errno(fmt::format("process {} died before it was a skeleton", pid));
    pollfd ready{gate, POLLIN, 0};
    const Deadline deadline = Deadline::in(patience);
    while (::poll(&ready, 1, deadline.poll_timeout()) < 0 && errno == EINTR) continue;
    int32_t error = 0;
    const ssize_t count = ::recv(gate, &error, sizeof error, MSG_DONTWAIT);
    if (count == 0) return {};
    if (count == sizeof error)
        return fail_errno(error, fmt::format("cannot execute the stub as process {}", pid), "vm.memfd_noexec must not be 2");
    return fail_errno(fmt::format("process {} does not start", pid));
}

}  // namespace

struct Spawner::State {
    UniqueFd socket;
    pid_t helper = 0;

    State() = default;
    State(const State&) = delete;
    State& operator=(const State&) = delete;
    ~State() {
        socket.reset();  // ends its loop
        if (helper > 0)
            while (::waitpid(helper, nullptr, 0) < 0 && errno == EINTR) continue;
    }
};

Spawner::Spawner(std::unique_ptr<State> state) : state_(std::move(state)) {}
Spawner::Spawner(Spawner&&) noexcept = default;
Spawner& Spawner::operator=(Spawner&&) noexcept = default;
Spawner::~Spawner() = default;

Result<Spawner> Spawner::start(const image::Clocks& clocks, int64_t arrived_ns, const std::string& program) {
    const spawner::Clocks offsets = TRY(wanted_offsets(clocks, arrived_ns));
    auto state = std::make_unique<State>();
    UniqueFd theirs;
    TRY(make_pair(SOCK_SEQPACKET, state->socket, theirs));
    state->helper = TRY(start_helper(program, theirs.get()));
    theirs.reset();
    if (::send(state->socket.get(), &offsets, sizeof offsets, MSG_NOSIGNAL) < 0) return fail_errno("cannot reach the skeleton spawner");
    const int error = TRY(answer(state->socket.get()));
    if (error != 0)
        return fail_errno(error, fmt::format("cannot make a time namespace with offsets of {} and {} ns", offsets.monotonic_ns, offsets.boottime_ns),
                          "it needs CAP_SYS_ADMIN and CAP_SYS_TIME");
    return Spawner(std::move(state));
}

Result<Tracee> Spawner::spawn(pid_t pid) {
    UniqueFd gate, theirs;
    TRY(make_pair(SOCK_STREAM, gate, theirs));
    fault_point("skeleton:spawn");
    TRY(send_request(state_->socket.get(), pid, theirs.get()));
    theirs.reset();
    const int error = TRY(answer(state_->socket.get()));
    if (error == EEXIST) return fail(fmt::format("pid {} is in use here", pid), "start the destination in a PID namespace of its own");
    if (error != 0) return fail_errno(error, fmt::format("cannot make a process with pid {}", pid), "it needs CAP_CHECKPOINT_RESTORE");

    // It waits at the gate, whose end makes it exit: whoever dies first, nothing stays.
    const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    if (!pidfd) return fail_errno(fmt::format("pidfd_open of process {}", pid));
    Tracee task = TRY(Tracee::seize(pid, PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE));
    Undo kill([&] {
        (void)::syscall(SYS_pidfd_send_signal, pidfd.get(), SIGKILL, nullptr, 0);
        (void)::waitpid(pid, nullptr, __WALL);
        task.forget();
    });
    TRY(open_gate(gate.get(), pid));
    TRY(task.interrupt());
    TRY(task.wait_stopped(Deadline::in(patience)));
    kill.dismiss();
    return task;
}

}  // namespace godwit
