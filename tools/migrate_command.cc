// godwit migrate, godwit check
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iostream>
#include <nlohmann/json.hpp>

#include "common/base/log.h"
#include "common/base/text.h"
#include "source-agent/migrate.h"
#include "tools/commands.h"

namespace godwit {
namespace {

struct Options {
    CommonOptions common;
    SecurityOptions security;
    pid_t tree = 0;
    std::string to;
    std::string mode = "stop";
    bool tcp_close = false;
    std::vector<std::string> trusted_files;
};

void add_options(CLI::App& command, Options& options) {
    command.add_option("-t,--tree", options.tree, "PID of the tree's root process")->required();
    command.add_option("--trust-files", options.trusted_files, "Files whose identity is taken for granted (glob pattern)");
    command.add_flag("--tcp-close", options.tcp_close, "Established TCP connections are closed: the peer gets a reset, the program an error");
    command.add_flag("--json", options.common.json, "Report as JSON on standard output");
    add_security_options(command, options.security);
    add_common_options(command, options.common);
}

Result<MigrateOptions> prepare(const Options& options) {
    TRY(need_root());
    MigrateOptions out;
    out.tree = options.tree;
    out.state_dir = options.common.state_dir;
    out.collect.tcp_close = options.tcp_close;
    out.collect.trusted_files = options.trusted_files;
    constexpr std::array<std::string_view, 5> modes{"stop", "pre-copy", "post-copy", "hybrid", "auto"};
    if (std::find(modes.begin(), modes.end(), options.mode) == modes.end())
        return fail("there is no mode " + printable(options.mode), "the modes are stop, pre-copy, post-copy, hybrid and auto", ExitCode::usage);
    out.mode = options.mode == "stop" ? image::MODE_STOP : image::MODE_PRE_COPY;
    if (options.mode != "stop" && options.mode != "pre-copy")
        return fail("mode " + printable(options.mode) + " is not carried yet", "use --mode stop", ExitCode::unsupported);
    if (options.tree <= 0) return fail(fmt::format("{} is not a PID", options.tree), "give the PID of the root process", ExitCode::usage);
    if (!options.to.empty()) {
        const Endpoint endpoint = TRY(make_endpoint(options.to, options.security));
        out.to = endpoint.address;
        out.security = endpoint.security;
    }
    return out;
}

template <class Pairs>
nlohmann::ordered_json object_of(const Pairs& pairs) {
    nlohmann::ordered_json out = nlohmann::ordered_json::object();
    for (const auto& [name, value] : pairs) out[name] = value;
    return out;
}

nlohmann::ordered_json problems_of(const std::vector<Problem>& problems) {
    auto out = nlohmann::ordered_json::array();
    for (const Problem& problem : problems)
        out.push_back({{"what", printable(problem.what, 4096)}, {"hint", printable(problem.hint, 4096)}, {"exit_code", static_cast<int>(problem.code)}});
    return out;
}

void print_json(const MigrateOutcome& outcome) {
    const Report& report = outcome.report;
    nlohmann::ordered_json out;
    out["exit_code"] = static_cast<int>(outcome.code);
    out["migration_id"] = report.migration_id;
    out["mode"] = report.mode;
    out["rounds"] = nlohmann::ordered_json::array();
    for (const RoundReport& round : report.rounds)
        out["rounds"].push_back({{"round", round.round}, {"pages", round.pages}, {"zero_pages", round.zero_pages},
                                 {"dropped_pages", round.dropped_pages}, {"scan_ms", round.scan_ms}, {"bytes", round.bytes}, {"ms", round.milliseconds}});
    out["bytes_sent"] = report.bytes_sent;
    out["total_ms"] = report.total_ms;
    out["downtime_ms"] = report.downtime_ms;
    out["downtime_phases_ms"] = object_of(report.downtime_phases_ms);
    out["destination_phases_ms"] = object_of(report.destination_phases_ms);
    out["predicted_downtime_ms"] = nullptr;
    if (report.predicted_downtime_ms) out["predicted_downtime_ms"] = *report.predicted_downtime_ms;
    out["problems"] = problems_of(outcome.problems);
    std::cout << out.dump(2) << std::endl;
}

void print_report(const MigrateOutcome& outcome, pid_t tree, const std::string& to) {
    const Report& report = outcome.report;
    std::cout << fmt::format("pid {} runs at {} now: {:.1f} MB sent, {:.0f} ms in all, stopped for {:.1f} ms\n", tree, to,
                             static_cast<double>(report.bytes_sent) / 1e6, report.total_ms, report.downtime_ms);
    for (const auto& [name, ms] : report.downtime_phases_ms)
        std::cout << fmt::format("  {:<12} {:>9.2f} ms  {:>3.0f} %\n", name, ms, 100 * ms / report.downtime_ms);
}

int run_migrate(const Options& options) {
    start_log(options.common.verbosity, options.common.log_file);
    const auto prepared = prepare(options);
    if (!prepared) return print_problem(prepared.error());
    const MigrateOutcome outcome = migrate_out(*prepared);
    print_problems(outcome.problems);
    if (options.common.json)
        print_json(outcome);
    else if (outcome.code == ExitCode::done)
        print_report(outcome, options.tree, options.to);
    return static_cast<int>(outcome.code);
}

int run_check(const Options& options) {
    start_log(options.common.verbosity, options.common.log_file);
    const auto prepared = prepare(options);
    if (!prepared) return print_problem(prepared.error());
    const MigrateOutcome outcome = check_tree(*prepared, !options.to.empty());
    print_problems(outcome.problems);
    if (options.common.json)
        std::cout << nlohmann::ordered_json{{"tree", options.tree}, {"problems", problems_of(outcome.problems)}}.dump(2) << std::endl;
    else if (outcome.problems.empty())
        std::cout << fmt::format("pid {} can be migrated{}\n", options.tree, options.to.empty() ? "" : " to " + options.to);
    return static_cast<int>(outcome.code);
}

}  // namespace

Command add_migrate(CLI::App& app) {
    auto options = std::make_shared<Options>();
    CLI::App* command = app.add_subcommand("migrate", "Move a running process tree to another host");
    command->add_option("--to", options->to, "HOST:PORT or unix:PATH of `godwit serve`")->required();
    command->add_option("--mode", options->mode, "stop: the tree stands still while it is copied")->required();
    add_options(*command, *options);
    return [options] { return run_migrate(*options); };
}

Command add_check(CLI::App& app) {
    auto options = std::make_shared<Options>();
    CLI::App* command = app.add_subcommand("check", "Say what keeps a tree from being migrated; touches nothing");
    command->add_option("--to", options->to, "Ask this destination too");
    add_options(*command, *options);
    return [options] { return run_check(*options); };
}

}  // namespace godwit
