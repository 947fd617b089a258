// `godwit serve`: waits for sources and serves each on a thread of its own.
#pragma once

#include <functional>
#include <string>

#include "common/base/result.h"
#include "dest-agent/migrate.h"
#include "transport/address.h"

namespace godwit {

struct ServeOptions {
    Address listen;
    Security security;
    IncomingOptions incoming;
    // Called once when peers can connect, with the address as it turned out.
    std::function<void(const std::string& address)> on_listening;
};

// Runs until SIGTERM or SIGINT, which the caller has blocked in every thread: stops listening, ends the connections that
// are open (a migration before GO is given up, its tree runs on at the source) and waits for their threads.
Result<void> serve(const ServeOptions& options);

}  // namespace godwit
