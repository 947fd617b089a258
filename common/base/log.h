// The log, on standard error. error: the request failed; warn: abnormal but harmless; info: a rare
// change of state; debug: what helps to find a bug. Threads: any.
#pragma once

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <string>
#include <string_view>

namespace godwit {

// Sends the log to standard error, or to `file` when it is not empty. verbosity: 0 warn, 1 info, 2 debug.
void start_log(int verbosity, const std::string& file = {});

}  // namespace godwit
