#include "tools/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "tools/units.h"

namespace godwit {
namespace {

constexpr std::string_view green = "\x1b[32m", yellow = "\x1b[33m", no_colour = "\x1b[0m";

// A part of the line. What needs most stands first in `parts`, which is not the order on the screen.
struct Part {
    std::string text;
    std::string_view colour;
};

bool has_pages(const Progress& progress) {
    return progress.stage == Stage::round || progress.stage == Stage::final_round;
}

bool same_round(const Progress& a, const Progress& b) {
    return a.stage == b.stage && a.round == b.round;
}

std::string label(const Progress& progress) {
    switch (progress.stage) {
        case Stage::survey: return "looking at the tree";
        case Stage::round: return fmt::format("round {}", progress.round);
        case Stage::final_round: return "final round";
        case Stage::restore: return "restoring at the destination";
    }
    return {};
}

unsigned bar_cells(unsigned width) {
    return width >= 120 ? 30 : width >= 100 ? 20 : 8;
}

// Rounded down, so that a full bar means that all is done.
unsigned filled(const Progress& progress, unsigned cells) {
    if (progress.pages_of_round == 0) return 0;
    const double done = static_cast<double>(std::min(progress.pages_done, progress.pages_of_round));
    return static_cast<unsigned>(done * cells / static_cast<double>(progress.pages_of_round));
}

Part bar(const Progress& progress, unsigned width) {
    if (!has_pages(progress)) return {};
    const unsigned cells = bar_cells(width), full = filled(progress, cells);
    return {" [" + std::string(full, '#') + std::string(cells - full, '.') + "]", green};
}

Part downtime(const Progress& progress) {
    // Mode stop has no limit and predicts nothing.
    if (progress.stage == Stage::survey || !(progress.downtime_limit_ms > 0)) return {};
    const bool missed = progress.predicted_downtime_ms && *progress.predicted_downtime_ms > progress.downtime_limit_ms;
    return {" downtime " + units::duration_of(progress.predicted_downtime_ms, progress.downtime_limit_ms), missed ? yellow : green};
}

Part pages(const Progress& progress) {
    if (!has_pages(progress)) return {};
    if (progress.pages_of_round == 0) return {" - pages", {}};
    return {fmt::format(" {}/{} pages", units::count(progress.pages_done), units::count(progress.pages_of_round)), {}};
}

Part sent(const Progress& progress) {
    if (!has_pages(progress)) return {};
    return {" " + units::rate(progress.bytes_per_second), {}};
}

// A frozen tree writes nothing.
Part dirty(const Progress& progress) {
    if (progress.stage != Stage::round) return {};
    return {" dirty " + units::rate(progress.dirty_bytes_per_second), {}};
}

}  // namespace

std::string progress_line(const Progress& progress, unsigned width, bool colour) {
    const size_t room = width > 0 ? width - 1 : 0;
    // As they stand on the line, and which of them go first when there is too little room.
    std::array<Part, 6> parts{Part{label(progress), {}}, bar(progress, width), pages(progress), sent(progress), dirty(progress), downtime(progress)};
    size_t length = 0;
    for (const Part& part : parts) length += part.text.size();
    for (const size_t least : {2, 4, 3, 5, 1}) {
        if (length <= room) break;
        length -= parts[least].text.size();
        parts[least].text.clear();
    }
    parts[0].text.resize(std::min(parts[0].text.size(), room));
    std::string line;
    for (const Part& part : parts) {
        const bool painted = colour && !part.colour.empty() && !part.text.empty();
        line += painted ? fmt::format("{}{}{}", part.colour, part.text, no_colour) : part.text;
    }
    return line;
}

Progress SteadyProgress::operator()(Progress now) {
    if (last_ && same_round(*last_, now)) {
        if (last_->pages_of_round != 0) now.pages_of_round = last_->pages_of_round;
        now.pages_done = std::max(now.pages_done, last_->pages_done);
    } else if (last_ && now.pages_done == last_->pages_done && now.pages_of_round == last_->pages_of_round) {
        // The first word of a round comes before its pages are counted, with the figures of the one before.
        now.pages_done = now.pages_of_round = 0;
    }
    // While the size of a round is not known, pages are not counted either: the bar begins at its beginning.
    now.pages_done = std::min(now.pages_done, now.pages_of_round);
    last_ = now;
    return now;
}

std::string PlainProgress::operator()(const Progress& now) {
    std::string lines;
    if (last_ && has_pages(*last_) && !same_round(*last_, now)) {
        // It was finished, or this would not be another. What the tree wrote meanwhile is known only now.
        lines += fmt::format("godwit: {} done: {} pages, {}", label(*last_), last_->pages_of_round, units::rate(last_->bytes_per_second));
        if (last_->stage == Stage::round) lines += ", dirty " + units::rate(now.dirty_bytes_per_second);
        if (last_->stage == Stage::round && now.downtime_limit_ms > 0)
            lines += ", downtime " + units::duration_of(now.predicted_downtime_ms, now.downtime_limit_ms);
        lines += "\n";
    }
    if (!last_ || last_->stage != now.stage)
        lines += fmt::format("godwit: {}\n", now.stage == Stage::round ? "copying memory while the tree runs"
                                             : now.stage == Stage::final_round ? "the tree stands still: final round" : label(now));
    last_ = now;
    return lines;
}

}  // namespace godwit
