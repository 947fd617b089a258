#include "common/base/result.h"

#include <cstring>

namespace godwit {

Failure fail_errno(int error, std::string what, std::string hint) {
    char text[128];
    what += ": ";
    what += strerror_r(error, text, sizeof text);
    return Failure(Problem{std::move(what), std::move(hint), ExitCode::failed, error});
}

}  // namespace godwit
