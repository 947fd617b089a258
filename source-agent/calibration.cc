#include "source-agent/calibration.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "common/base/file.h"
#include "common/base/log.h"
#include "common/base/uuid.h"

namespace godwit {
namespace {

// What does not depend on the tree: two journals on disk, the freezer, some round trips.
constexpr double least_ms = 5;
// Before anything is known; measured between local hosts.
constexpr double usual_ms = 12;
constexpr double usual_ms_per_item = 0.02;

}  // namespace

Calibration Calibration::load(const std::string& state_dir, const std::string& peer_state_id) {
    Calibration out;
    if (!is_uuid(peer_state_id)) return out;  // a peer's word is no file name
    out.path_ = fmt::format("{}/calibration-{}", state_dir, peer_state_id);
    const auto text = read_file(out.path_);
    unsigned long items = 0;
    double ms = 0;
    if (text && std::sscanf(text->c_str(), "items %lu ms %lf", &items, &ms) == 2 && items > 0 && std::isfinite(ms) && ms > 0) {
        out.items_ = items;
        out.ms_ = ms;
    }
    return out;
}

double Calibration::fixed_ms(uint64_t items) const {
    if (items_ == 0) return usual_ms + usual_ms_per_item * static_cast<double>(items);
    const double scaled = std::max(0.0, ms_ - least_ms) * static_cast<double>(items) / static_cast<double>(items_);
    return std::min(ms_, least_ms) + scaled;
}

void Calibration::learn(uint64_t items, double fixed_ms) {
    if (path_.empty() || items == 0 || !std::isfinite(fixed_ms) || fixed_ms <= 0) return;
    // Hosts have good and bad moments: half of what was thought stays.
    ms_ = items_ == 0 ? fixed_ms : (this->fixed_ms(items) + fixed_ms) / 2;
    items_ = items;
    const auto written = replace_file(path_, fmt::format("items {} ms {:.3f}\n", items_, ms_));
    if (!written) spdlog::info("{}", written.error().what);
}

}  // namespace godwit
