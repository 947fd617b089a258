// What `godwit migrate` says when it is done.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "source-agent/migrate.h"

namespace godwit {

// For people: what happened, the rounds, what the downtime was spent on. Ends with a newline.
std::string report_text(const Report& report, const MigrateOptions& options, const std::string& to);

// For programs: every figure of the report, null for what was not measured. Names are part of the interface.
nlohmann::ordered_json report_json(const MigrateOutcome& outcome, const MigrateOptions& options);
nlohmann::ordered_json problems_json(const std::vector<Problem>& problems);

}  // namespace godwit
