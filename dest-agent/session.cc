#include "dest-agent/session.h"

#include <fmt/format.h>

#include <algorithm>

namespace godwit {

Result<void> Session::offer(uint32_t stream, std::unique_ptr<Channel> channel) {
    const std::lock_guard lock(lock_);
    if (stream >= channels_.size() || channels_[stream])
        return peer_failed(fmt::format("data connection {} was not agreed upon or is there already", stream));
    channels_[stream] = std::move(channel);
    arrived_.notify_all();
    return {};
}

Result<std::vector<std::unique_ptr<Channel>>> Session::take(Deadline deadline) {
    std::unique_lock lock(lock_);
    const auto complete = [this] {
        return std::all_of(channels_.begin(), channels_.end(), [](const auto& channel) { return channel != nullptr; });
    };
    if (!arrived_.wait_until(lock, deadline.when(), complete))
        return peer_failed("the data connections of the migration did not come", "is a firewall between the hosts?");
    return std::move(channels_);
}

Result<std::shared_ptr<Session>> Sessions::open(const std::string& migration_id, uint32_t streams) {
    const std::lock_guard lock(lock_);
    auto& slot = sessions_[migration_id];
    if (slot) return peer_failed("migration " + migration_id + " is coming in already");
    slot = std::make_shared<Session>(streams);
    return slot;
}

void Sessions::close(const std::string& migration_id) {
    const std::lock_guard lock(lock_);
    sessions_.erase(migration_id);
}

std::shared_ptr<Session> Sessions::find(const std::string& migration_id) {
    const std::lock_guard lock(lock_);
    const auto found = sessions_.find(migration_id);
    return found == sessions_.end() ? nullptr : found->second;
}

}  // namespace godwit
