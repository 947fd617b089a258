// What every victim shares. A victim is a small program that holds one kind of kernel state and keeps checking
// that it is unharmed while it is migrated:
//
//   VICTIM --log FILE [--NAME VALUE | --NAME]...
//
// It appends to FILE (opened O_APPEND): "ready" once its state is set up, "ok N" as it goes on, and
// "FAIL reason" before it exits with 1 when something was harmed. At SIGTERM it checks everything a last time,
// appends "done" and exits with 0. Victims work in short bursts between sleeps of some milliseconds: many of
// them share a small machine.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>

namespace victim {

inline int log_fd = 2;
inline volatile sig_atomic_t stop_asked = 0;

inline void say(const char* format, ...) __attribute__((format(printf, 1, 2)));
inline void say(const char* format, ...) {
    char line[512];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    if (length > static_cast<int>(sizeof line) - 2) length = sizeof line - 2;
    line[length] = '\n';
    (void)!write(log_fd, line, static_cast<size_t>(length) + 1);
}

// Fails the victim with the source line, the text of the condition and errno.
[[noreturn]] inline void fail(const char* file, int line, const char* text, int error) {
    const char* name = strrchr(file, '/');
    say("FAIL %s:%d %s (errno %d %s)", name != nullptr ? name + 1 : file, line, text, error, strerror(error));
    _exit(1);
}

#define CHECK(condition) ((condition) ? void(0) : victim::fail(__FILE__, __LINE__, #condition, errno))

inline void sleep_ms(long ms) {
    timespec rest{ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&rest, &rest) != 0 && errno == EINTR) {
    }
}

inline long long now_ns(clockid_t clock = CLOCK_MONOTONIC) {
    timespec t{};
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

class Victim {
public:
    Victim(int argc, char** argv) : argc_(argc), argv_(argv) {
        const std::string path = text("log", "");
        if (!path.empty()) log_fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
        if (log_fd < 0) _exit(2);
        struct sigaction action {};
        action.sa_handler = [](int) { stop_asked = 1; };
        sigaction(SIGTERM, &action, nullptr);
    }

    std::string text(const char* name, const char* otherwise) const {
        for (int i = 1; i + 1 < argc_; ++i)
            if (std::string(argv_[i]) == std::string("--") + name) return argv_[i + 1];
        return otherwise;
    }
    long number(const char* name, long otherwise) const { return atol(text(name, std::to_string(otherwise).c_str()).c_str()); }
    bool flag(const char* name) const {
        for (int i = 1; i < argc_; ++i)
            if (std::string(argv_[i]) == std::string("--") + name) return true;
        return false;
    }

    void ready() { say("ready"); }

    // Rests and reports; false once the victim is asked to end.
    bool going(long rest_ms = 3) {
        sleep_ms(rest_ms);
        const long long now = now_ns();
        if (now - last_report_ > 50000000) {
            say("ok %lu", ++count_);
            last_report_ = now;
        }
        return stop_asked == 0;
    }

    int done() {
        say("done");
        return 0;
    }

private:
    int argc_;
    char** argv_;
    unsigned long count_ = 0;
    long long last_report_ = 0;
};

}  // namespace victim
