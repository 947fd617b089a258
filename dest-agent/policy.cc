#include "dest-agent/policy.h"

#include <fmt/format.h>
#include <grp.h>
#include <pwd.h>

#include <charconv>
#include <vector>

#include "common/base/text.h"

namespace godwit {
namespace {

const char* const allow_hint = "add it to `godwit serve --allow`, if this source may start such processes here";

void add_groups(const passwd& user, std::set<uint32_t>& gids) {
    std::vector<gid_t> groups(64);
    int count = static_cast<int>(groups.size());
    if (::getgrouplist(user.pw_name, user.pw_gid, groups.data(), &count) < 0) {
        groups.resize(static_cast<size_t>(count));
        ::getgrouplist(user.pw_name, user.pw_gid, groups.data(), &count);
    }
    gids.insert(groups.begin(), groups.begin() + count);
}

}  // namespace

Result<CredentialPolicy> CredentialPolicy::parse(std::string_view text) {
    CredentialPolicy policy;
    if (text == "any") return policy;
    policy.uids_.emplace();
    while (!text.empty()) {
        const size_t comma = text.find(',');
        const std::string name(text.substr(0, comma));
        text = comma == std::string_view::npos ? std::string_view{} : text.substr(comma + 1);
        uint32_t uid = 0;
        const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), uid);
        const bool number = error == std::errc{} && end == name.data() + name.size() && !name.empty();
        const passwd* user = number ? ::getpwuid(uid) : ::getpwnam(name.c_str());
        if (!number && user == nullptr)
            return fail("--allow: no user is called \"" + printable(name) + "\" here", "give user names or numbers, or \"any\"",
                        ExitCode::usage);
        if (!number) uid = user->pw_uid;
        policy.uids_->insert(uid);
        policy.gids_.insert(uid);
        if (user != nullptr) add_groups(*user, policy.gids_);
    }
    return policy;
}

std::vector<Problem> CredentialPolicy::check(const std::string& who, const std::set<uint32_t>& uids,
                                             const std::set<uint32_t>& gids, uint64_t capabilities) const {
    std::vector<Problem> problems;
    if (!uids_) return problems;
    // Root among the allowed stands for every group and capability, yet not for other users.
    const bool root = uids_->contains(0);
    const auto refuse = [&](std::string what) {
        problems.push_back({who + " has " + std::move(what) + ", which this host does not allow", allow_hint, ExitCode::unsupported, 0});
    };
    for (const uint32_t uid : uids)
        if (!uids_->contains(uid)) refuse(fmt::format("uid {}", uid));
    for (const uint32_t gid : gids)
        if (!root && !gids_.contains(gid)) refuse(fmt::format("gid {}", gid));
    if (!root && capabilities != 0) refuse(fmt::format("capabilities {:#x}", capabilities));
    return problems;
}

}  // namespace godwit
