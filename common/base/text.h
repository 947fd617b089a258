// Text made safe to print: what comes from a peer or a target may hold any byte.
#pragma once

#include <string>
#include <string_view>

namespace godwit {

// The same text with control characters and bytes outside ASCII as \xNN, cut to `limit` bytes.
std::string printable(std::string_view text, size_t limit = 256);

}  // namespace godwit
