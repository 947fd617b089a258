// Measures parts of godwit in this process, for tools/bench: figures as JSON on standard output.
#include <CLI/CLI.hpp>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>

#include "tools/bench/godwit_bench/samples.h"

int main(int argc, char** argv) {
    using namespace godwit::bench;
    CLI::App app("Parts of godwit, measured");
    app.require_subcommand(1);
    ScanOptions scan;
    CLI::App* scan_command = app.add_subcommand("scan", "The tracker's scan beside the bare ioctl");
    scan_command->add_option("--mib", scan.mebibytes);
    scan_command->add_option("--repeat", scan.repeat);
    BatchOptions batch;
    CLI::App* batch_command = app.add_subcommand("batch", "System calls made in another process");
    batch_command->add_option("--repeat", batch.repeat);
    SlowdownOptions slowdown;
    int64_t window = slowdown.window.count();
    CLI::App* slowdown_command = app.add_subcommand("slowdown", "Writes of a process that is tracked");
    slowdown_command->add_option("--mib", slowdown.mebibytes);
    slowdown_command->add_option("--repeat", slowdown.repeat);
    slowdown_command->add_option("--window-ms", window);
    CLI11_PARSE(app, argc, argv);
    slowdown.window = godwit::milliseconds(window);

    const auto samples = scan_command->parsed() ? measure_scan(scan) : batch_command->parsed() ? measure_batch(batch) : measure_slowdown(slowdown);
    if (!samples) {
        std::cerr << "godwit_bench: " << samples.error().what << "\n";
        if (!samples.error().hint.empty()) std::cerr << "  hint: " << samples.error().hint << "\n";
        return 1;
    }
    std::cout << nlohmann::json(*samples).dump() << std::endl;
    return 0;
}
