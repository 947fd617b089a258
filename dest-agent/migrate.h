// migrate_in(): receives a tree. Reads as the list of its phases.
#pragma once

#include <memory>
#include <string>

#include "common/base/result.h"
#include "common/recovery/journal.h"
#include "dest-agent/policy.h"
#include "dest-agent/session.h"
#include "transport/channel.h"

namespace godwit {

struct IncomingOptions {
    std::string state_dir = default_state_dir;
    CredentialPolicy policy;
};

// Serves one control connection after its HELLO. Returns when the tree runs here, or when nothing of it is left here
// and the source has been told why if it could be.
// Threads: the calling thread becomes the tracer of the tree's skeletons.
Result<void> migrate_in(Channel& control, const std::string& migration_id, Sessions& sessions, const IncomingOptions& options);

}  // namespace godwit
