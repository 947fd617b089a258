// Which credentials an authorised source may start here: `serve --allow`.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "common/base/result.h"

namespace godwit {

// Without a list, everything. With one: every uid of a task (real, effective, saved, file system) must be on it; so must
// every gid, as a primary or supplementary group of a listed user here or as the number of a listed uid; capabilities
// need uid 0 on the list.
class CredentialPolicy {
  public:
    // "any" or "UID[,UID...]", numbers or names of this host.
    static Result<CredentialPolicy> parse(std::string_view text);

    std::vector<Problem> check(const std::string& who, const std::set<uint32_t>& uids, const std::set<uint32_t>& gids,
                               uint64_t capabilities) const;

  private:
    std::optional<std::set<uint32_t>> uids_;
    std::set<uint32_t> gids_;
};

}  // namespace godwit
