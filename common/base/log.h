// The log, on standard error. error: the request failed; warn: abnormal but harmless; info: a rare
// change of state; debug: what helps to find a bug. Threads: any.
#pragma once

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <functional>
#include <string>
#include <string_view>

namespace godwit {

// Sends the log to standard error, or to `file` when it is not empty. verbosity: 0 warn, 1 info, 2 debug.
void start_log(int verbosity, const std::string& file = {});

// Whoever draws on the terminal takes over what the log has for standard error, until it is set to nothing again. It gets
// whole lines, one call at a time, from whichever thread logs, and must not log itself. A log that goes to a file stays there.
using LogWriter = std::function<void(std::string_view lines)>;
void set_log_writer(const LogWriter& writer);

}  // namespace godwit
