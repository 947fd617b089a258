// godwit migrate, godwit check
#include <fmt/format.h>

#include <iostream>
#include <nlohmann/json.hpp>

#include "common/base/log.h"
#include "source-agent/migrate.h"
#include "tools/commands.h"
#include "tools/migrate_options.h"
#include "tools/progress_display.h"
#include "tools/report.h"

namespace godwit {
namespace {

struct Options {
    CommonOptions common;
    SecurityOptions security;
    pid_t tree = 0;
    std::string to;
    MemoryOptions memory;
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
    TRY(apply(options.memory, out));
    if (options.tree <= 0) return fail(fmt::format("{} is not a PID", options.tree), "give the PID of the root process", ExitCode::usage);
    if (!options.to.empty()) {
        const Endpoint endpoint = TRY(make_endpoint(options.to, options.security));
        out.to = endpoint.address;
        out.security = endpoint.security;
    }
    return out;
}

// The display is gone when this returns: what is printed next finds a clean terminal.
MigrateOutcome migrate_and_show(MigrateOptions& options, bool json) {
    ProgressDisplay display(json ? ProgressDisplay::Plain::no : ProgressDisplay::Plain::yes);
    options.progress = [&display](const Progress& progress) { display.show(progress); };
    auto outcome = migrate_out(options);
    options.progress = {};
    return outcome;
}

int run_migrate(const Options& options) {
    start_log(options.common.verbosity, options.common.log_file);
    auto prepared = prepare(options);
    if (!prepared) return print_problem(prepared.error());
    const MigrateOutcome outcome = migrate_and_show(*prepared, options.common.json);
    print_problems(outcome.problems);
    if (options.common.json)
        std::cout << report_json(outcome, *prepared).dump(2) << std::endl;
    else if (outcome.code == ExitCode::done)
        std::cout << report_text(outcome.report, *prepared, options.to) << std::flush;
    return static_cast<int>(outcome.code);
}

int run_check(const Options& options) {
    start_log(options.common.verbosity, options.common.log_file);
    const auto prepared = prepare(options);
    if (!prepared) return print_problem(prepared.error());
    const MigrateOutcome outcome = check_tree(*prepared, !options.to.empty());
    print_problems(outcome.problems);
    if (options.common.json)
        std::cout << nlohmann::ordered_json{{"tree", options.tree}, {"problems", problems_json(outcome.problems)}}.dump(2) << std::endl;
    else if (outcome.problems.empty())
        std::cout << fmt::format("pid {} can be migrated{}\n", options.tree, options.to.empty() ? "" : " to " + options.to);
    return static_cast<int>(outcome.code);
}

}  // namespace

Command add_migrate(CLI::App& app) {
    auto options = std::make_shared<Options>();
    CLI::App* command = app.add_subcommand("migrate", "Move a running process tree to another host");
    command->add_option("--to", options->to, "HOST:PORT or unix:PATH of `godwit serve`")->required();
    add_memory_options(*command, options->memory, true);
    add_options(*command, *options);
    return [options] { return run_migrate(*options); };
}

Command add_check(CLI::App& app) {
    auto options = std::make_shared<Options>();
    CLI::App* command = app.add_subcommand("check", "Say what keeps a tree from being migrated; touches nothing");
    command->add_option("--to", options->to, "Ask this destination too");
    add_memory_options(*command, options->memory, false);
    add_options(*command, *options);
    return [options] { return run_check(*options); };
}

}  // namespace godwit
