// The sub-commands of godwit, one file each. Each adds itself to the parser and returns what runs it.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/recovery/journal.h"
#include "transport/address.h"

namespace godwit {

// Options that several commands share.
struct CommonOptions {
    std::string state_dir = default_state_dir;
    std::string log_file;
    int verbosity = 0;
    bool json = false;
};
void add_common_options(CLI::App& command, CommonOptions& options);

struct SecurityOptions {
    std::string keys_dir;
    bool insecure = false;
};
void add_security_options(CLI::App& command, SecurityOptions& options);

// Parses the address, chooses its security and says loudly when that is none.
struct Endpoint {
    Address address;
    Security security;
};
Result<Endpoint> make_endpoint(const std::string& address, const SecurityOptions& options);

// One line and one hint per problem on standard error; returns the exit code of the first.
int print_problems(const std::vector<Problem>& problems);
int print_problem(const Problem& problem);

// Root is needed for ptrace, namespaces and cgroups; a usage error else.
Result<void> need_root();

using Command = std::function<int()>;
Command add_migrate(CLI::App& app);  // migrate
Command add_check(CLI::App& app);    // check
Command add_serve(CLI::App& app);    // serve
Command add_recover(CLI::App& app);  // recover
Command add_keys(CLI::App& app);     // keys init

}  // namespace godwit
