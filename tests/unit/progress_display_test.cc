#include "tools/progress_display.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <string>

#include "common/base/log.h"

namespace godwit {
namespace {

struct Ended {
    std::string screen;  // all that was written to it
    int status = 0;      // of waitpid()
};

// Runs `body` in a child whose standard error is a terminal `columns` wide, or a pipe when that is 0. What it writes is read
// when it has ended, so a body that waits for its terminal is ended by the alarm.
Ended run_child(unsigned short columns, const char* term, const std::function<void()>& body) {
    int outer = -1, inner = -1;
    winsize size{24, columns, 0, 0};
    int ends[2];
    if (columns != 0) {
        EXPECT_EQ(::openpty(&outer, &inner, nullptr, nullptr, &size), 0);
    } else {
        EXPECT_EQ(::pipe(ends), 0);
        outer = ends[0], inner = ends[1];
    }
    const pid_t child = ::fork();
    if (child == 0) {
        ::alarm(20);
        ::dup2(inner, STDERR_FILENO);
        ::setenv("TERM", term, 1);
        ::unsetenv("NO_COLOR");
        body();
        ::_exit(0);
    }
    Ended ended;
    ::waitpid(child, &ended.status, 0);
    ::fcntl(outer, F_SETFL, O_NONBLOCK);
    char buffer[65536];
    for (ssize_t n = 0; (n = ::read(outer, buffer, sizeof buffer)) > 0;) ended.screen.append(buffer, static_cast<size_t>(n));
    ::close(inner);
    ::close(outer);
    return ended;
}

Progress round_of(uint64_t done) {
    Progress progress;
    progress.stage = Stage::round;
    progress.pages_done = done;
    progress.pages_of_round = 100;
    progress.downtime_limit_ms = 100;
    return progress;
}

TEST(ProgressDisplay, RewritesOneLineAndLeavesACleanTerminal) {
    const Ended ended = run_child(60, "xterm", [] {
        ::setenv("NO_COLOR", "1", 1);
        ProgressDisplay display(ProgressDisplay::Plain::no);
        display.show(round_of(0));
        display.show(round_of(50));
    });
    EXPECT_EQ(ended.screen, "\r" + progress_line(round_of(0), 60, false) + "\x1b[K" + "\r" + progress_line(round_of(50), 60, false) + "\x1b[K\r\x1b[K");
}

TEST(ProgressDisplay, PutsLinesOfTheLogAboveTheLine) {
    const Ended ended = run_child(60, "xterm", [] {
        ::setenv("NO_COLOR", "1", 1);
        start_log(1);
        {
            ProgressDisplay display(ProgressDisplay::Plain::no);
            spdlog::info("first");
            display.show(round_of(0));
            spdlog::info("second");
        }
        spdlog::info("third");
    });
    const std::string line = progress_line(round_of(0), 60, false);
    const auto is_there = [&](const std::string& part) { EXPECT_NE(ended.screen.find(part), std::string::npos) << part << " in " << ended.screen; };
    is_there("info: first\r\n\r" + line);
    is_there("\x1b[K\r\x1b[K20");  // the log's line begins with the date, where the progress line was
    is_there("info: second\r\n" + line + "\r\x1b[K20");
    EXPECT_TRUE(ended.screen.ends_with("info: third\r\n")) << ended.screen;
}

TEST(ProgressDisplay, DoesNotWaitForATerminalThatTakesNothing) {
    const Ended ended = run_child(200, "xterm", [] {
        ProgressDisplay* display = new ProgressDisplay(ProgressDisplay::Plain::no);
        for (int i = 0; i < 10'000; ++i) display->show(round_of(1));
        ::_exit(7);  // without the end of the display, which does wait
    });
    ASSERT_TRUE(WIFEXITED(ended.status)) << "signal " << WTERMSIG(ended.status);
    EXPECT_EQ(WEXITSTATUS(ended.status), 7);
}

TEST(ProgressDisplay, DoesNotWaitForAPipeThatTakesNothing) {
    const Ended ended = run_child(0, "xterm", [] {
        ProgressDisplay display(ProgressDisplay::Plain::yes);
        for (uint32_t i = 0; i < 10'000; ++i) {
            Progress progress = round_of(100);
            progress.round = i;
            display.show(progress);
        }
    });
    EXPECT_EQ(ended.status, 0);
    EXPECT_TRUE(ended.screen.starts_with("godwit: copying memory while the tree runs\ngodwit: round 0 done: 100 pages"));
    EXPECT_EQ(ended.screen.find('\x1b'), std::string::npos);
}

TEST(ProgressDisplay, DrawsOnItsOwnTerminalOnlyInTheForeground) {
    for (const bool background : {false, true}) {
        const Ended ended = run_child(80, "xterm", [background] {
            ::setsid();
            if (::ioctl(STDERR_FILENO, TIOCSCTTY, 0) != 0) ::_exit(1);
            const pid_t job = ::fork();
            if (job == 0) {
                if (background) ::setpgid(0, 0);
                ProgressDisplay(ProgressDisplay::Plain::yes).show(round_of(0));
                ::_exit(0);
            }
            ::waitpid(job, nullptr, 0);
        });
        EXPECT_EQ(ended.status, 0);
        EXPECT_EQ(ended.screen.empty(), background) << ended.screen;
    }
}

TEST(ProgressDisplay, ADumbTerminalGetsPlainLinesAndWithJsonNothing) {
    const auto body = [](ProgressDisplay::Plain plain) {
        return [plain] {
            ProgressDisplay display(plain);
            display.show(round_of(0));
        };
    };
    for (const char* term : {"dumb", ""})
        EXPECT_EQ(run_child(80, term, body(ProgressDisplay::Plain::yes)).screen, "godwit: copying memory while the tree runs\r\n");
    EXPECT_EQ(run_child(0, "xterm", body(ProgressDisplay::Plain::no)).screen, "");
}

}  // namespace
}  // namespace godwit
