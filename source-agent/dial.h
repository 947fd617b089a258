// How commit and recover reach the destination again: given by whoever knows the transport's security options.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "common/base/deadline.h"
#include "common/base/result.h"
#include "common/recovery/journal.h"

namespace godwit {

class Channel;

// Opens a connection for ROLE_RECOVER, HELLO and HELLO_REPLY exchanged.
using Dial = std::function<Result<std::unique_ptr<Channel>>(const PeerAddress& peer, const std::string& migration_id, Deadline deadline)>;

}  // namespace godwit
