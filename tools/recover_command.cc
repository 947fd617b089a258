// godwit recover
#include <fmt/format.h>

#include <algorithm>
#include <iostream>

#include "common/base/log.h"
#include "dest-agent/recover.h"
#include "source-agent/recover.h"
#include "tools/commands.h"
#include "transport/channel.h"

namespace godwit {
namespace {

struct Options {
    CommonOptions common;
    SecurityOptions security;
    std::string id;
    std::string to;
    std::string peer_is_lost;
};

Result<SourceRecoverOptions> source_options(const Options& options) {
    SourceRecoverOptions out;
    out.state_dir = options.common.state_dir;
    out.migration_id = options.id;
    const auto word = operator_word(options.peer_is_lost);
    if (!word) return fail("--peer-is-lost is resume or discard", "see docs/recovery.md", ExitCode::usage);
    out.word = *word;
    if (!options.to.empty()) {
        const Endpoint endpoint = TRY(make_endpoint(options.to, options.security));
        out.peer = peer_address(endpoint.address, endpoint.security);
    }
    out.peer.keys_dir = options.security.keys_dir;
    out.dial = dial_peer;
    return out;
}

void say(const std::string& id, const std::string& what, const std::string& hint) {
    std::cout << fmt::format("migration {}: {}\n", id, what);
    if (!hint.empty()) std::cout << fmt::format("  hint: {}\n", hint);
}

// Trees that this host sent, then those that it was sent.
Result<ExitCode> recover(const Options& options) {
    TRY(need_root());
    const SourceRecoverOptions asked = TRY(source_options(options));
    ExitCode code = ExitCode::done;
    for (const Recovered& one : TRY(recover_sources(asked))) {
        say(one.migration_id, one.what, one.hint);
        code = std::max(code, one.code);
    }
    for (const DestinationRecovered& one : TRY(recover_destinations(options.common.state_dir, options.id, asked.word))) {
        say(one.migration_id, one.what, one.hint);
        if (!one.settled) code = ExitCode::uncertain;
    }
    return code;
}

int run_recover(const Options& options) {
    start_log(options.common.verbosity, options.common.log_file);
    const auto code = recover(options);
    return code ? static_cast<int>(*code) : print_problem(code.error());
}

}  // namespace

Command add_recover(CLI::App& app) {
    auto options = std::make_shared<Options>();
    CLI::App* command = app.add_subcommand("recover", "Settle what failed migrations left, on this host");
    command->add_option("--id", options->id, "Only this migration");
    command->add_option("--to", options->to, "Where the destination is now, if it moved");
    command->add_option("--peer-is-lost", options->peer_is_lost, "The other host is gone for good: resume or discard what is here");
    add_security_options(*command, options->security);
    add_common_options(*command, options->common);
    return [options] { return run_recover(*options); };
}

}  // namespace godwit
