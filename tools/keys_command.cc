// godwit keys init
#include <fmt/format.h>

#include <iostream>

#include "tools/commands.h"
#include "transport/keys.h"

namespace godwit {

Command add_keys(CLI::App& app) {
    auto dir = std::make_shared<std::string>();
    CLI::App* command = app.add_subcommand("keys", "Make the keys of two hosts that trust each other");
    command->require_subcommand(1);
    CLI::App* init = command->add_subcommand("init", "Make DIR/source and DIR/destination: give each host one of them");
    init->add_option("DIR", *dir, "Folder to make them in")->required();
    return [dir] {
        const auto made = init_keys(*dir);
        if (!made) return print_problem(made.error());
        std::cout << fmt::format("made {0}/source and {0}/destination: give each host one, and `--keys` its folder\n", *dir);
        return 0;
    };
}

}  // namespace godwit
