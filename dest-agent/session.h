// Migrations that are coming in: finds the one that a data connection belongs to.
//
// Threads: all calls may be made from any thread.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/base/deadline.h"
#include "common/base/result.h"
#include "transport/channel.h"

namespace godwit {

// The data connections of one migration, handed over by the threads that greeted them.
class Session {
  public:
    explicit Session(uint32_t streams) : channels_(streams) {}
    // A stream number that is out of range or taken is refused.
    Result<void> offer(uint32_t stream, std::unique_ptr<Channel> channel);
    // All of them, in order, or a Problem when they are not there in time.
    Result<std::vector<std::unique_ptr<Channel>>> take(Deadline deadline);

  private:
    std::mutex lock_;
    std::condition_variable arrived_;
    std::vector<std::unique_ptr<Channel>> channels_;
};

class Sessions {
  public:
    // Refused when a migration of this id is coming in already.
    Result<std::shared_ptr<Session>> open(const std::string& migration_id, uint32_t streams);
    void close(const std::string& migration_id);
    std::shared_ptr<Session> find(const std::string& migration_id);

  private:
    std::mutex lock_;
    std::map<std::string, std::shared_ptr<Session>> sessions_;
};

}  // namespace godwit
