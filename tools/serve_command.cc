// godwit serve
#include <csignal>
#include <iostream>

#include "common/base/log.h"
#include "dest-agent/serve.h"
#include "tools/commands.h"

namespace godwit {
namespace {

struct Options {
    CommonOptions common;
    SecurityOptions security;
    std::string listen;
    std::string allow = "any";
};

int run_serve(const Options& options) {
    start_log(options.common.verbosity, options.common.log_file);
    // Before the first thread: serve() takes them from a signalfd.
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
    const auto run = [&]() -> Result<void> {
        TRY(need_root());
        const Endpoint endpoint = TRY(make_endpoint(options.listen, options.security));
        ServeOptions serving;
        serving.listen = endpoint.address;
        serving.security = endpoint.security;
        serving.incoming.state_dir = options.common.state_dir;
        serving.incoming.policy = TRY(CredentialPolicy::parse(options.allow));
        serving.on_listening = [](const std::string& address) { std::cerr << "godwit: listening on " << address << std::endl; };
        return serve(serving);
    };
    const auto served = run();
    return served ? 0 : print_problem(served.error());
}

}  // namespace

Command add_serve(CLI::App& app) {
    auto options = std::make_shared<Options>();
    CLI::App* command = app.add_subcommand("serve", "Wait for trees that other hosts send");
    command->add_option("--listen", options->listen, "ADDRESS:PORT or unix:PATH")->required();
    command->add_option("--allow", options->allow, "Users whose processes a source may start here: any, or a list")->capture_default_str();
    add_security_options(*command, options->security);
    add_common_options(*command, options->common);
    return [options] { return run_serve(*options); };
}

}  // namespace godwit
