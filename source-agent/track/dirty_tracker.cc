#include "source-agent/track/dirty_tracker.h"

#include <fmt/format.h>

#include "source-agent/track/mappings.h"
#include "source-agent/track/soft_dirty.h"
#include "source-agent/track/userfaultfd.h"
#include "source-agent/track/wp_async.h"

namespace godwit {

Result<std::unique_ptr<DirtyTracker>> make_tracker(pid_t pid, TrackerBackend backend) {
    std::optional<Problem> missing;
    if (backend != TrackerBackend::soft_dirty) {
        missing = Userfaultfd::missing();
        if (!missing) return std::make_unique<WpAsyncTracker>(pid);
        if (backend == TrackerBackend::wp_async) return Failure(std::move(*missing));
    }
    if (TRY(SoftDirtyTracker::available())) return std::make_unique<SoftDirtyTracker>(pid);
    if (!missing)
        return unsupported("this kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)", "use userfaultfd (Linux 6.7), or --mode stop");
    return unsupported(fmt::format("this kernel cannot track the memory that a process writes: {}, and it has no soft-dirty bits "
                                   "(CONFIG_MEM_SOFT_DIRTY)", missing->what),
                       "use --mode stop");
}

std::vector<Problem> check_tracking(pid_t pid, TrackerBackend backend) {
    std::vector<Problem> problems;
    const auto tracker = make_tracker(pid, backend);
    if (!tracker) {
        problems.push_back(tracker.error());
        return problems;
    }
    if ((*tracker)->needs_stop()) return problems;
    const auto own = check_own_userfaultfd(pid);
    if (!own) problems.push_back(own.error());
    const auto mappings = read_maps(pid);
    const auto room = mappings ? check_mapping_count(pid, mappings->size()) : Result<void>(Failure(mappings.error()));
    if (!room) problems.push_back(room.error());
    return problems;
}

}  // namespace godwit
