#include "tools/units.h"

#include <fmt/format.h>

#include <cmath>
#include <utility>

namespace godwit::units {
namespace {

using Measure = std::pair<std::string, std::string>;  // number, unit

bool known(std::optional<double> value) {
    return value && std::isfinite(*value) && *value >= 0;
}

// Where a number changes its looks is where it would be rounded to the next one: 9.96 is 10, not 10.0.
Measure bytes_of(std::optional<double> bytes) {
    if (!known(bytes)) return {"-", "MB"};
    const double mb = *bytes / 1e6;
    if (mb < 9.95) return {fmt::format("{:.1f}", mb), "MB"};
    if (mb < 999.5) return {fmt::format("{:.0f}", mb), "MB"};
    return {fmt::format("{:.{}f}", mb / 1000, mb < 9995 ? 2 : 1), "GB"};
}

Measure time_of(std::optional<double> ms) {
    if (!known(ms)) return {"-", "ms"};
    if (*ms < 9.95) return {fmt::format("{:.1f}", *ms), "ms"};
    if (*ms < 9999.5) return {fmt::format("{:.0f}", *ms), "ms"};
    return {fmt::format("{:.1f}", *ms / 1000), "s"};
}

}  // namespace

std::string megabytes(double bytes) {
    const auto [number, unit] = bytes_of(bytes);
    return number + " " + unit;
}

std::string rate(std::optional<double> bytes_per_second) {
    const auto [number, unit] = bytes_of(bytes_per_second);
    return number + " " + unit + "/s";
}

std::string duration(std::optional<double> milliseconds) {
    const auto [number, unit] = time_of(milliseconds);
    return number + " " + unit;
}

std::string duration_of(std::optional<double> milliseconds, double limit_ms) {
    const auto [number, unit] = time_of(milliseconds);
    const auto [limit, limit_unit] = time_of(limit_ms);
    const bool same = number == "-" || unit == limit_unit;
    return number + (same ? "" : " " + unit) + "/" + limit + " " + limit_unit;
}

std::string count(uint64_t number) {
    if (number < 10'000) return std::to_string(number);
    if (number < 1'000'000) return std::to_string(number / 1000) + "k";
    if (number < 10'000'000) return fmt::format("{}.{}M", number / 1'000'000, number / 100'000 % 10);
    if (number < 1'000'000'000) return std::to_string(number / 1'000'000) + "M";
    return std::to_string(number / 1'000'000'000) + "G";
}

}  // namespace godwit::units
