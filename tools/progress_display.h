// Shows the progress of a migration on standard error: on a terminal as one line that is rewritten in place, else as plain
// lines. What is no terminal of any use (TERM unset or dumb) gets plain lines too; NO_COLOR is honoured.
//
// The migration waits for whoever shows its progress, and its tree may be frozen meanwhile: a terminal or pipe that takes
// nothing right now misses something instead of being waited for.
//
// Lines of the log appear above the progress line. If we are killed, one stale line stays; the terminal's modes are never
// changed.
//
// Threads: show() from one at a time; the log's lines may come from any. One display at a time.
#pragma once

#include <mutex>
#include <string>

#include "common/base/unique_fd.h"
#include "tools/progress.h"

namespace godwit {

class ProgressDisplay {
  public:
    enum class Plain { yes, no };  // without a terminal: lines, or nothing at all
    explicit ProgressDisplay(Plain plain);
    // The line is gone afterwards.
    ~ProgressDisplay();
    ProgressDisplay(const ProgressDisplay&) = delete;
    ProgressDisplay& operator=(const ProgressDisplay&) = delete;

    void show(const Progress& progress);

  private:
    void redraw(const Progress& progress);
    void log_above(std::string_view text);

    const bool plain_;
    const bool colour_;
    UniqueFd terminal_;  // invalid: standard error is none
    std::mutex mutex_;   // of what follows
    SteadyProgress steady_;
    PlainProgress lines_;
    std::string shown_;  // empty: the cursor stands at the beginning of an empty line
};

}  // namespace godwit
