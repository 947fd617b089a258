// `godwit --skeleton-spawner FD`: a single-threaded program without anything of the agent's but its privileges.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/close_range.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <csignal>
#include <cstring>

#include "common/base/file.h"
#include "common/kernel/abi.h"
#include "dest-agent/skeleton.h"
#include "dest-agent/spawner.h"

extern "C" {
extern const char godwit_stub_begin[];
extern const char godwit_stub_end[];
}

namespace godwit {
namespace {

// A skeleton inherits nothing by which it could be told from a program that was started here by hand.
void shed_the_agent() {
    for (int signal = 1; signal < NSIG; ++signal) ::signal(signal, SIG_DFL);
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    const sched_param normal{};
    (void)::sched_setscheduler(0, SCHED_OTHER, &normal);
    (void)::setpriority(PRIO_PROCESS, 0, 0);
    (void)::syscall(SYS_ioprio_set, 1, 0, 0);
    (void)::prctl(PR_SET_TIMERSLACK, 0);
    (void)::prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
    (void)write_once("/proc/self/oom_score_adj", "0");
    ::umask(022);
    (void)!::chdir("/");
}

std::string offset_line(const char* clock, int64_t nanoseconds) {
    constexpr int64_t second = 1'000'000'000;
    // The kernel wants the part below a second positive.
    const int64_t part = (nanoseconds % second + second) % second;
    return fmt::format("{} {} {}\n", clock, (nanoseconds - part) / second, part);
}

int enter_time(const spawner::Clocks& offsets) {
    if (::unshare(CLONE_NEWTIME) != 0) return errno;
    const auto written = write_once("/proc/self/timens_offsets",
                                    offset_line("monotonic", offsets.monotonic_ns) + offset_line("boottime", offsets.boottime_ns));
    if (!written) return written.error().error != 0 ? written.error().error : EINVAL;
    return 0;
}

int make_stub_file() {
    const auto make = [](unsigned flags) { return static_cast<int>(::syscall(SYS_memfd_create, "godwit-skeleton", flags)); };
    int file = make(MFD_CLOEXEC | kernel::memfd_exec);
    if (file < 0 && errno == EINVAL) file = make(MFD_CLOEXEC);  // before Linux 6.3
    if (file < 0) return -1;
    if (!write_all(file, godwit_stub_begin, static_cast<size_t>(godwit_stub_end - godwit_stub_begin))) return -1;
    return file;
}

[[noreturn]] void become_stub(int stub, int gate) {
    ::setsid();
    ::syscall(SYS_close_range, 0u, ~0u, CLOSE_RANGE_CLOEXEC);
    char go = 0;
    if (::read(gate, &go, 1) != 1) ::_exit(1);
    char name[] = "godwit-skeleton";
    char* argv[] = {name, nullptr};
    char* environment[] = {nullptr};
    ::syscall(SYS_execveat, stub, "", argv, environment, AT_EMPTY_PATH);
    const int32_t error = errno;
    (void)!::write(gate, &error, sizeof error);
    ::_exit(1);
}

// In a child of the helper, which ends at once: the new process is nobody's child but init's from the beginning, and no later end
// of a parent gives it the signal that it asked for with PR_SET_PDEATHSIG.
[[noreturn]] void make_process(pid_t pid, int stub, int gate) {
    clone_args arguments{};
    arguments.exit_signal = SIGCHLD;
    arguments.set_tid = reinterpret_cast<uint64_t>(&pid);
    arguments.set_tid_size = 1;
    const long made = ::syscall(SYS_clone3, &arguments, sizeof arguments);
    if (made == 0) become_stub(stub, gate);
    if (made > 0) ::_exit(0);
    // It stands in its own way: the next one has another number.
    ::_exit(errno == EEXIST && ::getpid() == pid ? EAGAIN : errno);
}

int spawn(pid_t pid, int stub, int gate) {
    for (;;) {
        const pid_t between = ::fork();
        if (between == 0) make_process(pid, stub, gate);
        if (between < 0) return errno;
        int status = 0;
        while (::waitpid(between, &status, 0) < 0 && errno == EINTR) continue;
        const int error = WIFEXITED(status) ? WEXITSTATUS(status) : ECHILD;
        if (error != EAGAIN || between != pid) return error;
    }
}

struct Request {
    int32_t pid = 0;
    UniqueFd gate;
};

bool receive(int socket, Request& request) {
    iovec data{&request.pid, sizeof request.pid};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    if (::recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != static_cast<ssize_t>(sizeof request.pid)) return false;
    const cmsghdr* head = CMSG_FIRSTHDR(&message);
    if (head == nullptr || head->cmsg_type != SCM_RIGHTS) return false;
    int gate = -1;
    std::memcpy(&gate, CMSG_DATA(head), sizeof gate);
    request.gate.reset(gate);
    return true;
}

bool reply(int socket, int32_t error) { return ::send(socket, &error, sizeof error, MSG_NOSIGNAL) == sizeof error; }

}  // namespace

int run_skeleton_spawner(int socket) {
    if (::dup3(socket, spawner::socket_number, O_CLOEXEC) < 0 && socket != spawner::socket_number) return 1;
    ::syscall(SYS_close_range, static_cast<unsigned>(spawner::socket_number + 1), ~0u, 0);
    socket = spawner::socket_number;
    shed_the_agent();
    spawner::Clocks offsets;
    if (::recv(socket, &offsets, sizeof offsets, 0) != static_cast<ssize_t>(sizeof offsets)) return 1;
    const int stub = make_stub_file();
    const int error = stub < 0 ? errno : enter_time(offsets);
    if (!reply(socket, error) || error != 0) return 1;
    for (Request request; receive(socket, request); request.gate.reset())
        if (!reply(socket, spawn(request.pid, stub, request.gate.get()))) return 1;
    return 0;  // the agent is done, or dead
}

}  // namespace godwit
