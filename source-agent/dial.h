// How commit and recover reach the destination again. A function, so that tests put their own links under it.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "common/base/deadline.h"
#include "common/base/result.h"
#include "common/recovery/journal.h"
#include "transport/address.h"

namespace godwit {

class Channel;

// Opens a connection for ROLE_RECOVER, HELLO and HELLO_REPLY exchanged.
using Dial = std::function<Result<std::unique_ptr<Channel>>(const PeerAddress& peer, const std::string& migration_id,
                                                            Deadline deadline)>;

// The real one: over TCP, TLS or a unix socket as `peer` says.
Result<std::unique_ptr<Channel>> dial_peer(const PeerAddress& peer, const std::string& migration_id, Deadline deadline);

// What the journal keeps of the options that `migrate` was given.
PeerAddress peer_address(const Address& address, const Security& security);

}  // namespace godwit
