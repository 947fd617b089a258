#include <fmt/format.h>
#include <unistd.h>

#include <iostream>

#include "tools/commands.h"

namespace godwit {

void add_common_options(CLI::App& command, CommonOptions& options) {
    command.add_option("--state-dir", options.state_dir, "Where the journals are kept")->capture_default_str();
    command.add_option("-o,--log-file", options.log_file, "Log there instead of to standard error");
    command.add_flag("-v", options.verbosity, "Log more; twice for still more");
}

void add_security_options(CLI::App& command, SecurityOptions& options) {
    command.add_option("--keys", options.keys_dir, "This host's folder of `godwit keys init`");
    command.add_flag("--insecure", options.insecure, "No encryption, no authentication: for test networks");
}

Result<Endpoint> make_endpoint(const std::string& text, const SecurityOptions& options) {
    Endpoint endpoint;
    endpoint.address = TRY(parse_address(text));
    endpoint.security = TRY(choose_security(endpoint.address, options.keys_dir, options.insecure));
    if (endpoint.security.kind == Security::Kind::insecure)
        std::cerr << "godwit: warning: --insecure: anyone who reaches " << text << " can read the tree's memory or start processes\n";
    return endpoint;
}

int print_problem(const Problem& problem) {
    std::cerr << "godwit: " << problem.what << "\n";
    if (!problem.hint.empty()) std::cerr << "  hint: " << problem.hint << "\n";
    return static_cast<int>(problem.code);
}

int print_problems(const std::vector<Problem>& problems) {
    for (const Problem& problem : problems) print_problem(problem);
    return problems.empty() ? 0 : static_cast<int>(problems.front().code);
}

Result<void> need_root() {
    if (::geteuid() == 0) return {};
    return fail("godwit needs root", "run it with sudo", ExitCode::usage);
}

}  // namespace godwit
