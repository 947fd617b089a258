// HELLO and HELLO_REPLY: the first frame each way.
//
// Versions: the major version must be equal, the minor may differ. What a minor version adds is used only under a
// feature bit that both know; a bit that one side requires and the other does not know is refused.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "transport/channel.h"

namespace godwit {

inline constexpr uint64_t supported_features = feature_lz4;

// What one connection is for.
struct Greeting {
    image::Role role = image::ROLE_UNKNOWN;
    std::string migration_id;  // is_uuid()
    uint32_t stream = 0;       // number of a data connection, else 0
    uint64_t features = 0;     // that both sides know; the Channel has been told
    uint32_t peer_minor = 0;
    std::string peer_program;  // "godwit 0.1.0", printable
};

// At who connected: says hello and takes the answer. Problems have ExitCode::peer: not godwit, another major version;
// or the code that the peer refuses us with.
Result<Greeting> say_hello(Channel& channel, image::Role role, const std::string& migration_id, uint32_t stream,
                           Deadline deadline);

// At who accepted. `admit` may refuse a well-formed hello (a data connection of no known migration); its Problem goes
// to the peer and is returned.
Result<Greeting> answer_hello(Channel& channel, Deadline deadline,
                              const std::function<Result<void>(const Greeting&)>& admit = {});

}  // namespace godwit
