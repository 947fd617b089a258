#include "common/base/text.h"

#include <fmt/format.h>

namespace godwit {

std::string printable(std::string_view text, size_t limit) {
    std::string out;
    for (const char c : text.substr(0, limit)) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte >= 0x20 && byte < 0x7f && c != '\\')
            out += c;
        else
            out += fmt::format("\\x{:02x}", byte);
    }
    if (text.size() > limit) out += "...";
    return out;
}

}  // namespace godwit
