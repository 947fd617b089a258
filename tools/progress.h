// A migration's progress as text. Nothing here touches a descriptor: progress_display.h does.
#pragma once

#include <optional>
#include <string>

#include "source-agent/progress.h"

namespace godwit {

// One line without line end, shorter than `width` (a terminal would go on to the next line when its last column is written).
// What does not fit is left out, the least needed first: pages, dirty rate, rate, predicted downtime, bar. The bar's length
// depends on `width` alone, and it is full only when all pages of the round are done.
std::string progress_line(const Progress& progress, unsigned width, bool colour);

// Keeps what is shown of one round from going backwards, whatever is told: pages done never become fewer, the size of the
// round is the first that was told.
class SteadyProgress {
  public:
    Progress operator()(Progress now);

  private:
    std::optional<Progress> last_;
};

// For logs and pipes: a line per change of stage and per finished round, no escape codes.
class PlainProgress {
  public:
    // Whole lines, or nothing if there is nothing new to say.
    std::string operator()(const Progress& now);

  private:
    std::optional<Progress> last_;
};

}  // namespace godwit
