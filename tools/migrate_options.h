// The options of `godwit migrate` and `godwit check` that say how memory is moved.
//
// They arrive as text: what is wrong with a value is then said in one line that names option and value, with a hint that
// says what is allowed, instead of in the parser's words.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "source-agent/migrate.h"

namespace godwit {

// As given on the command line.
struct MemoryOptions {
    std::optional<std::string> mode;
    std::optional<std::string> downtime_limit;
    std::optional<std::string> max_rounds;
    bool force = false;
    std::optional<std::string> streams;
    std::optional<std::string> compress;
    std::optional<std::string> tracker;
};

// Adds what both commands take, and with `migrate` also what only matters while a tree is moved.
void add_memory_options(CLI::App& command, MemoryOptions& options, bool migrate);

// Sets the fields of `out` that the options name and leaves the others at their defaults. Usage errors (exit 2) for values
// that do not exist and for options that mean nothing together; exit 3 for what exists but is not carried yet.
Result<void> apply(const MemoryOptions& options, MigrateOptions& out);

// The value of --compress that means this.
std::string name_of(Compression compression);

}  // namespace godwit
