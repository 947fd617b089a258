#include "tests/support/watched_victim.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/wait.h>

#include <array>
#include <csignal>
#include <cstdlib>

#include "common/base/deadline.h"
#include "common/base/file.h"

namespace godwit::test {
namespace {

constexpr milliseconds patience{10'000};

std::array<uint64_t, WatchedVictim::tasks> counters(const Mapping& progress) {
    std::array<uint64_t, WatchedVictim::tasks> values{};
    const auto* words = reinterpret_cast<const volatile uint64_t*>(progress.data());
    for (size_t i = 0; i < values.size(); ++i) values[i] = words[i];
    return values;
}

}  // namespace

WatchedVictim::WatchedVictim(const std::string& name) {
    char path[] = "/tmp/godwit-victim-XXXXXX";
    const UniqueFd file(::mkostemp(path, O_CLOEXEC));
    int pipe[2] = {-1, -1};
    if (!file || ::ftruncate(file.get(), 4096) != 0 || ::pipe2(pipe, O_CLOEXEC) != 0) return;
    output_ = UniqueFd(pipe[0]);
    const UniqueFd written(pipe[1]);
    void* at = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
    if (at == MAP_FAILED) return;
    progress_ = Mapping(at, 4096);
    const std::string program = std::string(VICTIMS) + "/" + name;
    pid_ = ::fork();
    if (pid_ == 0) {
        ::dup2(written.get(), STDOUT_FILENO);
        ::execl(program.c_str(), name.c_str(), path, nullptr);
        ::_exit(127);
    }
    (void)complaint();
    ::unlink(path);
}

WatchedVictim::~WatchedVictim() { kill(); }

void WatchedVictim::kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
}

std::string WatchedVictim::maps() const { return read_file(fmt::format("/proc/{}/maps", pid_)).value_or(""); }

std::string WatchedVictim::output() {
    std::string text(4096, '\0');
    pollfd ready{output_.get(), POLLIN, 0};
    const ssize_t size = ::poll(&ready, 1, 1000) == 1 ? ::read(output_.get(), text.data(), text.size()) : 0;
    text.resize(static_cast<size_t>(std::max<ssize_t>(size, 0)));
    return text;
}

uint64_t WatchedVictim::broken_off() const {
    return reinterpret_cast<const volatile uint64_t*>(progress_.data())[tasks];
}

std::string WatchedVictim::complaint() {
    const auto before = counters(progress_);
    const Deadline deadline = Deadline::in(patience);
    for (;;) {
        const auto now = counters(progress_);
        bool all = true;
        for (size_t i = 0; i < now.size(); ++i) all &= now[i] > before[i] + 1;
        int status = 0;
        if (::waitpid(pid_, &status, WNOHANG) == pid_) {
            pid_ = 0;
            return fmt::format("ended with status {:#x}: {}", status, output());
        }
        if (all) return {};
        if (deadline.passed()) {
            std::string text = "no progress, counters:";
            for (size_t i = 0; i < now.size(); ++i) text += fmt::format(" {}+{}", before[i], now[i] - before[i]);
            return text;
        }
        ::usleep(1000);  // the counters are plain memory
    }
}

std::string WatchedVictim::finish() {
    ::kill(pid_, SIGTERM);
    const std::string text = output();
    int status = 0;
    for (const Deadline deadline = Deadline::in(patience); ::waitpid(pid_, &status, WNOHANG) == 0; ::usleep(1000))
        if (deadline.passed()) return "does not end: " + text;
    pid_ = 0;
    if (status == 0 && text.starts_with("ok ")) return {};
    return fmt::format("ended with status {:#x}: {}", status, text);
}

}  // namespace godwit::test
