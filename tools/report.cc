#include "tools/report.h"

#include <fmt/format.h>

#include "common/base/text.h"
#include "tools/migrate_options.h"
#include "tools/units.h"

namespace godwit {
namespace {

using Json = nlohmann::ordered_json;

template <class Pairs>
Json object_of(const Pairs& pairs) {
    Json out = Json::object();
    for (const auto& [name, value] : pairs) out[name] = value;
    return out;
}

Json or_null(const std::optional<double>& value) {
    return value ? Json(*value) : Json(nullptr);
}

Json round_json(const RoundReport& round) {
    return {{"round", round.round}, {"frozen", round.frozen}, {"pages", round.pages}, {"zero_pages", round.zero_pages},
            {"dropped_pages", round.dropped_pages}, {"bytes", round.bytes}, {"scan_ms", round.scan_ms}, {"ms", round.milliseconds}};
}

std::optional<double> per_second(uint64_t bytes, double ms) {
    if (ms <= 0) return std::nullopt;
    return static_cast<double>(bytes) * 1000 / ms;
}

std::string rounds_text(const std::vector<RoundReport>& rounds) {
    std::string out = fmt::format("  {:<10}{:>9}{:>11}{:>11}{:>12}\n", "round", "pages", "MB", "ms", "rate");
    for (const RoundReport& round : rounds)
        out += fmt::format("  {:<10}{:>9}{:>11.1f}{:>11.1f}{:>12}\n", fmt::format("{}{}", round.round, round.frozen ? " frozen" : ""), round.pages,
                           static_cast<double>(round.bytes) / 1e6, round.milliseconds, units::rate(per_second(round.bytes, round.milliseconds)));
    return out;
}

std::string downtime_text(const Report& report, const MigrateOptions& options) {
    std::string out = fmt::format("  downtime {}", units::duration(report.downtime_ms));
    if (report.predicted_downtime_ms)
        out += fmt::format(", predicted {}, limit {}", units::duration(report.predicted_downtime_ms), units::duration(static_cast<double>(options.downtime_limit.count())));
    out += "\n";
    for (const auto& [name, ms] : report.downtime_phases_ms)
        out += fmt::format("  {:<12} {:>9.2f} ms  {:>3.0f} %\n", name, ms, report.downtime_ms > 0 ? 100 * ms / report.downtime_ms : 0);
    return out;
}

}  // namespace

std::string report_text(const Report& report, const MigrateOptions& options, const std::string& to) {
    std::string out = fmt::format("pid {} runs at {} now: {} sent, {} in all, stopped for {}\n", options.tree, to,
                                  units::megabytes(static_cast<double>(report.bytes_sent)), units::duration(report.total_ms), units::duration(report.downtime_ms));
    if (!report.rounds.empty()) out += rounds_text(report.rounds);
    return out + downtime_text(report, options);
}

Json problems_json(const std::vector<Problem>& problems) {
    auto out = Json::array();
    for (const Problem& problem : problems)
        out.push_back({{"what", printable(problem.what, 4096)}, {"hint", printable(problem.hint, 4096)}, {"exit_code", static_cast<int>(problem.code)}});
    return out;
}

Json report_json(const MigrateOutcome& outcome, const MigrateOptions& options) {
    const Report& report = outcome.report;
    const bool rounds = options.mode != image::MODE_STOP;
    Json out;
    out["exit_code"] = static_cast<int>(outcome.code);
    out["migration_id"] = report.migration_id;
    out["mode"] = report.mode;
    out["streams"] = options.streams;
    out["compress"] = name_of(options.compression);
    out["tracker"] = report.tracker.empty() ? Json(nullptr) : Json(report.tracker);
    out["rounds"] = Json::array();
    for (const RoundReport& round : report.rounds) out["rounds"].push_back(round_json(round));
    out["bytes_sent"] = report.bytes_sent;
    out["link_bytes_per_second"] = or_null(report.link_bytes_per_second);
    out["dirty_bytes_per_second"] = or_null(report.dirty_bytes_per_second);
    out["total_ms"] = report.total_ms;
    out["downtime_ms"] = report.downtime_ms;
    out["downtime_limit_ms"] = rounds ? Json(options.downtime_limit.count()) : Json(nullptr);
    out["predicted_downtime_ms"] = or_null(report.predicted_downtime_ms);
    out["downtime_phases_ms"] = object_of(report.downtime_phases_ms);
    out["destination_phases_ms"] = object_of(report.destination_phases_ms);
    out["problems"] = problems_json(outcome.problems);
    return out;
}

}  // namespace godwit
