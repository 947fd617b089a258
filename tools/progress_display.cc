#include "tools/progress_display.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string_view>

#include "common/base/log.h"

namespace godwit {
namespace {

constexpr unsigned usual_width = 80;
constexpr std::string_view erase_line = "\r\x1b[K";

// Empty: not set, or set to nothing, which means the same.
std::string_view environment(const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr ? value : "";
}

// An open file of our own, so that it can be non-blocking without changing what the shell and others write to.
UniqueFd open_terminal() {
    const std::string_view kind = environment("TERM");
    if (::isatty(STDERR_FILENO) != 1 || kind.empty() || kind == "dumb") return {};
    return UniqueFd(::open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
}

unsigned width_of(const UniqueFd& terminal) {
    winsize size{};
    return ::ioctl(terminal.get(), TIOCGWINSZ, &size) == 0 && size.ws_col != 0 ? size.ws_col : usual_width;
}

// Whoever is in the foreground owns the screen; with `stty tostop` writing would even stop us. 0: the terminal's foreground
// is in another PID namespace; an error: it is not our controlling terminal. Both tell nothing.
bool in_background(const UniqueFd& terminal) {
    const pid_t front = ::tcgetpgrp(terminal.get());
    return front > 0 && front != ::getpgrp();
}

// Only where nothing waits for it: after the migration, or as the log does anyway.
void write_all(std::string_view text) {
    while (!text.empty()) {
        const ssize_t n = ::write(STDERR_FILENO, text.data(), text.size());
        if (n < 0 && errno != EINTR) return;
        if (n > 0) text.remove_prefix(static_cast<size_t>(n));
    }
}

// A pipe that is ready takes PIPE_BUF bytes at once, which is more than we ever have.
void write_if_ready(std::string_view text) {
    pollfd waiting{STDERR_FILENO, POLLOUT, 0};
    if (!text.empty() && ::poll(&waiting, 1, 0) == 1 && (waiting.revents & POLLOUT) != 0) write_all(text);
}

}  // namespace

ProgressDisplay::ProgressDisplay(Plain plain) : plain_(plain == Plain::yes), colour_(environment("NO_COLOR").empty()), terminal_(open_terminal()) {
    if (terminal_) set_log_writer([this](std::string_view text) { log_above(text); });
}

ProgressDisplay::~ProgressDisplay() {
    // Not under the lock: a line of the log that is being written needs it.
    if (terminal_) set_log_writer({});
    if (!shown_.empty() && !in_background(terminal_)) write_all(erase_line);
}

void ProgressDisplay::show(const Progress& progress) {
    const std::lock_guard lock(mutex_);
    if (terminal_)
        redraw(progress);
    else if (plain_)
        write_if_ready(lines_(progress));
}

void ProgressDisplay::redraw(const Progress& progress) {
    const Progress steady = steady_(progress);
    if (in_background(terminal_)) return;
    shown_ = progress_line(steady, width_of(terminal_), colour_);
    const std::string frame = fmt::format("\r{}\x1b[K", shown_);
    // A terminal that is stopped or full takes part of it or nothing. The next frame begins at the line's beginning again.
    (void)!::write(terminal_.get(), frame.data(), frame.size());
}

void ProgressDisplay::log_above(std::string_view text) {
    const std::lock_guard lock(mutex_);
    const bool line = !shown_.empty() && !in_background(terminal_);
    write_all(line ? fmt::format("{}{}{}", erase_line, text, shown_) : std::string(text));
}

}  // namespace godwit
