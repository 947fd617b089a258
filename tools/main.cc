// The godwit command.
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <iostream>

#include "common/base/log.h"
#include "dest-agent/skeleton.h"
#include "tools/commands.h"

namespace {

// The helper that makes skeletons is this program again: it must be single-threaded and exec'ed (see skeleton.h).
bool is_spawner(int argc, char** argv) {
    return argc == 3 && std::strcmp(argv[1], "--skeleton-spawner") == 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (is_spawner(argc, argv)) return godwit::run_skeleton_spawner(std::atoi(argv[2]));

    CLI::App app{"godwit: moves running Linux process trees from host to host", "godwit"};
    app.require_subcommand(1);
    app.set_version_flag("--version", "godwit " GODWIT_VERSION);
    app.failure_message(CLI::FailureMessage::simple);
    const std::vector<godwit::Command (*)(CLI::App&)> makers{godwit::add_migrate, godwit::add_serve, godwit::add_check,
                                                             godwit::add_recover, godwit::add_keys};
    std::vector<godwit::Command> commands;
    for (const auto make : makers) commands.push_back(make(app));
    try {
        app.parse(argc, argv);
    } catch (const CLI::Success& success) {
        return app.exit(success);
    } catch (const CLI::ParseError& error) {
        std::cerr << "godwit: " << error.what() << "\n  hint: godwit --help\n";
        return static_cast<int>(godwit::ExitCode::usage);
    }
    ::signal(SIGPIPE, SIG_IGN);
    const auto chosen = app.get_subcommands();
    const auto all = app.get_subcommands([](CLI::App*) { return true; });
    for (size_t i = 0; i < all.size(); ++i)
        if (all[i] == chosen.front()) return commands[i]();
    return static_cast<int>(godwit::ExitCode::usage);
}
