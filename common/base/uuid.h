// The name of one migration on both hosts: a random UUID (RFC 9562, version 4).
#pragma once

#include <string>
#include <string_view>

#include "common/base/result.h"

namespace godwit {

Result<std::string> new_uuid();
// True for exactly the form that new_uuid makes; what a peer sends becomes a file name only after this.
bool is_uuid(std::string_view text);

}  // namespace godwit
