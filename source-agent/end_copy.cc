#include "source-agent/end_copy.h"

#include <vector>

#include "common/base/log.h"
#include "source-agent/collect/files_tcp.h"

namespace godwit {

Result<void> end_copy(const HoldCgroup& hold, const Journal& journal) {
    std::vector<pid_t> pids;
    if (journal.same_boot())
        for (const JournalProcess& process : journal.entry().processes) {
            const auto started = process_start_time(process.pid);
            // The same number may be another process by now.
            if (started && *started == process.start_time) pids.push_back(process.pid);
        }
    if (const auto reset = reset_connections(pids); !reset) spdlog::warn("{}", reset.error().what);
    return hold.destroy();
}

}  // namespace godwit
