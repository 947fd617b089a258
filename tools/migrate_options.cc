#include "tools/migrate_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <string_view>

#include "common/base/text.h"

namespace godwit {
namespace {

// A word that an option takes. Without a value: known, but not carried yet.
template <class T>
struct Word {
    std::string_view name;
    std::optional<T> value;
};

constexpr std::array<Word<image::Mode>, 5> modes{{{"pre-copy", image::MODE_PRE_COPY},
                                                  {"stop", image::MODE_STOP},
                                                  {"post-copy", std::nullopt},
                                                  {"hybrid", std::nullopt},
                                                  {"auto", std::nullopt}}};
constexpr std::array<Word<Compression>, 4> compressions{{{"none", Compression::none},
                                                         {"lz4", Compression::lz4},
                                                         {"auto", Compression::automatic},
                                                         {"zstd", std::nullopt}}};
constexpr std::array<Word<TrackerBackend>, 3> trackers{{{"auto", TrackerBackend::automatic},
                                                        {"wp-async", TrackerBackend::wp_async},
                                                        {"soft-dirty", TrackerBackend::soft_dirty}}};

template <class Words>
std::string allowed(const Words& words) {
    std::string out;
    for (const auto& word : words)
        if (word.value) out += (out.empty() ? "" : ", ") + std::string(word.name);
    return out;
}

template <class T, size_t n>
Result<T> word_option(std::string_view option, std::string_view text, const std::array<Word<T>, n>& words) {
    const auto found = std::find_if(words.begin(), words.end(), [&](const auto& word) { return word.name == text; });
    const std::string hint = "give one of " + allowed(words);
    if (found == words.end())
        return fail(fmt::format("{} {}: there is no such value", option, printable(text)), hint, ExitCode::usage);
    if (!found->value) return unsupported(fmt::format("{} {} is not carried yet", option, text), hint);
    return *found->value;
}

Result<uint32_t> number_option(std::string_view option, std::string_view text, uint32_t least, uint32_t most, std::string_view unit) {
    uint32_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc{} && end == text.data() + text.size() && value >= least && value <= most) return value;
    return fail(fmt::format("{} {}: not a value it takes", option, printable(text)),
                fmt::format("give a whole number{} from {} to {}", unit, least, most), ExitCode::usage);
}

// Mode stop copies the frozen tree once: nothing is predicted, nothing is tracked, there is nothing to force.
Result<void> check_stop(const MemoryOptions& options) {
    const std::array<std::pair<std::string_view, bool>, 4> senseless{{{"--downtime-limit", options.downtime_limit.has_value()},
                                                                      {"--max-rounds", options.max_rounds.has_value()},
                                                                      {"--force", options.force},
                                                                      {"--tracker", options.tracker.has_value()}}};
    for (const auto& [option, given] : senseless)
        if (given)
            return fail(fmt::format("{} means nothing with --mode stop", option),
                        "mode stop copies the tree once while it stands still: leave out one of the two", ExitCode::usage);
    return {};
}

}  // namespace

void add_memory_options(CLI::App& command, MemoryOptions& options, bool migrate) {
    const MigrateOptions defaults;
    const auto add = [&](const char* name, std::optional<std::string>& value, const char* type, const std::string& help) {
        command.add_option(name, value, help)->type_name(type);
    };
    add("--mode", options.mode, "MODE", "pre-copy: memory is copied in rounds while the tree runs; stop: the tree stands still meanwhile [pre-copy]");
    add("--streams", options.streams, "N", fmt::format("Data connections, 1 to {} [{}]", most_streams, defaults.streams));
    add("--tracker", options.tracker, "NAME", "How writes are noticed: auto, wp-async or soft-dirty [auto]");
    if (!migrate) return;
    add("--downtime-limit", options.downtime_limit, "MS",
        fmt::format("Freeze the tree when less than these milliseconds is predicted [{}]", defaults.downtime_limit.count()));
    add("--max-rounds", options.max_rounds, "N", fmt::format("Rounds over the running tree at the most [{}]", defaults.max_rounds));
    command.add_flag("--force", options.force, "Switch over even if the downtime limit will be missed");
    add("--compress", options.compress, "NAME", "Pages on the wire: none, lz4 or auto [auto]");
}

Result<void> apply(const MemoryOptions& options, MigrateOptions& out) {
    if (options.mode) out.mode = TRY(word_option("--mode", *options.mode, modes));
    if (options.downtime_limit)
        out.downtime_limit = milliseconds(TRY(number_option("--downtime-limit", *options.downtime_limit, 1, 3'600'000, " of milliseconds")));
    if (options.max_rounds) out.max_rounds = TRY(number_option("--max-rounds", *options.max_rounds, 1, 1000, ""));
    if (options.streams) out.streams = TRY(number_option("--streams", *options.streams, 1, most_streams, ""));
    if (options.compress) out.compression = TRY(word_option("--compress", *options.compress, compressions));
    if (options.tracker) out.tracker = TRY(word_option("--tracker", *options.tracker, trackers));
    out.force = options.force;
    return out.mode == image::MODE_STOP ? check_stop(options) : Result<void>{};
}

std::string name_of(Compression compression) {
    for (const auto& word : compressions)
        if (word.value == compression) return std::string(word.name);
    return {};
}

}  // namespace godwit
